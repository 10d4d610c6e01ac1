"""Stars that attract each other: a round of the task is a step, and its state stays where the next one is computed.

Forces are summed in one fixed order, so a trajectory is the same bits on every machine. The provider signs a digest of
the state after each step; some steps are drawn in private, and what they say of some stars is computed again here.

python examples/nbody.py [--stars 2048] [--steps 20] [--out nbody.png]
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda

Array = np.ndarray[Any, Any]
SOFTENING = 0.05


@p2p.kernel
def step(new_here, new_speed, here, speed, mass, dt, softening):
    i = cuda.grid(1)
    if i < new_here.shape[0]:
        ax = np.float32(0.0)
        ay = np.float32(0.0)
        az = np.float32(0.0)
        for j in range(mass.size):
            dx = here[j, 0] - here[i, 0]
            dy = here[j, 1] - here[i, 1]
            dz = here[j, 2] - here[i, 2]
            near = dx * dx + dy * dy + dz * dz + softening * softening
            pull = mass[j] / (near * math.sqrt(near))
            ax += pull * dx
            ay += pull * dy
            az += pull * dz
        vx = speed[i, 0] + dt * ax
        vy = speed[i, 1] + dt * ay
        vz = speed[i, 2] + dt * az
        new_speed[i, 0] = vx
        new_speed[i, 1] = vy
        new_speed[i, 2] = vz
        new_here[i, 0] = here[i, 0] + dt * vx
        new_here[i, 1] = here[i, 1] + dt * vy
        new_here[i, 2] = here[i, 2] + dt * vz


def disc(stars: int, seed: int = 3) -> tuple[Array, Array, Array]:
    """Positions, velocities (stars, 3) and masses (stars,) of a turning disc; G = 1, total mass 1."""
    rng = np.random.default_rng(seed)
    radius, angle = np.sqrt(rng.uniform(0.05, 1, stars)), rng.uniform(0, 2 * math.pi, stars)
    flat = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.normal(0, 0.02, stars)], axis=1)
    turn = np.stack([-np.sin(angle), np.cos(angle), np.zeros(stars)], axis=1) * np.sqrt(radius)[:, None]
    return flat.astype(np.float32), turn.astype(np.float32), np.full(stars, 1 / stars, np.float32)


async def simulate(node: p2p.Node, stars: int, steps: int, dt: float = 0.01) -> tuple[Array, Array, Array]:
    """Positions and velocities after `steps` semi-implicit Euler steps, and the masses."""
    here, speed, mass = disc(stars)
    last = await node.iterate(
        step,
        rounds=steps,
        state={"here": here, "speed": speed},
        args=(mass, np.float32(dt), np.float32(SOFTENING)),
        budget="0.10 USD",
    )
    return last["here"], last["speed"], mass


def energy(here: Array, speed: Array, mass: Array) -> float:
    """Kinetic and potential energy, in float64."""
    place, move, heavy = (part.astype(np.float64) for part in (here, speed, mass))
    gap = place[:, None] - place[None]
    potential = heavy[:, None] * heavy / np.sqrt((gap**2).sum(-1) + SOFTENING**2)
    np.fill_diagonal(potential, 0)
    return float(0.5 * (heavy * (move**2).sum(1)).sum() - 0.5 * potential.sum())


def save(here: Array, speed: Array, path: str, side: int = 480) -> None:
    """A PNG of the disc from above: where stars are, and bluer where they are fast."""
    from PIL import Image

    light = np.zeros((side, side, 3))
    place = np.clip(((here[:, :2] / 1.3 + 1) / 2 * side).astype(int), 1, side - 2)
    fast = np.sqrt((speed.astype(np.float64) ** 2).sum(axis=1))
    heat = np.clip(fast / max(float(np.quantile(fast, 0.95)), 1e-9), 0, 1)[:, None]
    colour = (1 - heat) * np.array([1.0, 0.75, 0.45]) + heat * np.array([0.55, 0.75, 1.0])
    for down, right, share in ((0, 0, 1.0), (0, 1, 0.4), (1, 0, 0.4), (0, -1, 0.4), (-1, 0, 0.4)):
        np.add.at(light, (place[:, 1] + down, place[:, 0] + right), share * colour)
    Image.fromarray((np.clip(light, 0, 1) * 255).astype(np.uint8)).save(path)


def main() -> None:
    """Open a node on the network of this machine and simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=2_048)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default="nbody.png")
    options = parser.parse_args()

    async def work() -> tuple[Array, Array, Array]:
        async with p2p.open_node() as node:
            return await simulate(node, options.stars, options.steps)

    before = energy(*disc(options.stars))
    here, speed, mass = trio.run(work)
    after = energy(here, speed, mass)
    save(here, speed, options.out)
    sys.stdout.write(f"energy {before:.6f} before and {after:.6f} after {options.steps} steps; {options.out}\n")


if __name__ == "__main__":
    main()
