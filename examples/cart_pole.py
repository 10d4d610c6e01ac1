"""Reinforcement learning: a policy learns to balance a pole on a cart, with an episode for each thread.

The environments are a kernel, and a generation of policies times episodes is one task. Starts are drawn from counters,
so all policies of a generation meet the same ones, and any episode can be played again bit for bit. What it learns
with is the cross-entropy method: draw policies around a mean, keep the best, move mean and spread to theirs.

python examples/cart_pole.py [--generations 8]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda, random

Array = np.ndarray[Any, Any]
GRAVITY, CART, POLE, HALF_LENGTH, FORCE, DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
TRACK, LEAN = 2.4, 12 * math.pi / 180  # an episode ends where the cart or the pole is beyond
START = 0.1  # each of the four numbers of a state begins within so much of zero


@p2p.device
def step(x, speed, angle, turn, force):
    """One step of Euler's method: Barto, Sutton and Anderson, 1983, without friction."""
    sin = math.sin(angle)
    cos = math.cos(angle)
    thrust = (force + POLE * HALF_LENGTH * turn * turn * sin) / (CART + POLE)
    fall = (GRAVITY * sin - cos * thrust) / (HALF_LENGTH * (4.0 / 3.0 - POLE * cos * cos / (CART + POLE)))
    push = thrust - POLE * HALF_LENGTH * fall * cos / (CART + POLE)
    return x + DT * speed, speed + DT * push, angle + DT * turn, turn + DT * fall


@p2p.kernel
def play(steps, policies, seed, limit):
    episode, who = cuda.grid(2)
    if episode < steps.shape[1] and who < steps.shape[0]:
        x = START * (2.0 * random.uniform(seed, episode, 0) - 1.0)
        speed = START * (2.0 * random.uniform(seed, episode, 1) - 1.0)
        angle = START * (2.0 * random.uniform(seed, episode, 2) - 1.0)
        turn = START * (2.0 * random.uniform(seed, episode, 3) - 1.0)
        n = 0
        while n < limit and abs(x) < TRACK and abs(angle) < LEAN:
            wish = policies[who, 0] * x + policies[who, 1] * speed + policies[who, 2] * angle + policies[who, 3] * turn
            x, speed, angle, turn = step(x, speed, angle, turn, FORCE if wish > 0.0 else -FORCE)
            n += 1
        steps[who, episode] = n


async def scores(node: p2p.Node, policies: Array, episodes: int, seed: int, limit: int) -> Array:
    """How many steps each policy, a row of float32 (policies, 4), keeps the pole up: (policies, episodes)."""
    shape = p2p.out((len(policies), episodes), np.int32)
    return await node.run(play, shape, policies, seed, limit, budget="0.01 USD")


async def learn(
    node: p2p.Node,
    *,
    generations: int = 8,
    candidates: int = 64,
    episodes: int = 64,
    limit: int = 500,
    report: Callable[[int, float, float], object] = lambda *_: None,
) -> Array:
    """The policy, float32 of shape (4,), after so many generations; stops where the mean is within 2 % of `limit`.

    `report` gets each generation's number, and the mean steps of all its candidates and of its best.
    """
    rng = np.random.default_rng(5)
    mean, spread = np.zeros(4), np.ones(4)
    best = max(2, candidates // 8)
    for generation in range(generations):
        policies = rng.normal(mean, spread, (candidates, 4)).astype(np.float32)
        reached = (await scores(node, policies, episodes, generation, limit)).mean(axis=1)
        elite = np.argsort(-reached, kind="stable")[:best]
        report(generation, float(reached.mean()), float(reached[elite].mean()))
        mean, spread = policies[elite].mean(axis=0), policies[elite].std(axis=0) + 0.02
        if reached.mean() > 0.98 * limit:
            break
    return mean.astype(np.float32)


def line(generation: int, mean: float, best: float) -> None:
    """One line of the learning curve."""
    sys.stdout.write(f"{generation:3}  mean {mean:6.1f}  best {best:6.1f} steps  {'█' * round(mean / 10)}\n")
    sys.stdout.flush()


def main() -> None:
    """Open a node on the network of this machine and learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=8)
    generations = parser.parse_args().generations

    async def work() -> tuple[Array, Array, Array]:
        async with p2p.open_node() as node:
            policy = await learn(node, generations=generations, report=line)
            both = np.stack([np.zeros(4, np.float32), policy])  # the first one always pushes to the left
            nothing, learned = await scores(node, both, 1_000, 12_345, 2_000)
            return policy, nothing, learned

    policy, nothing, learned = trio.run(work)
    sys.stdout.write(
        f"policy {np.array2string(policy, precision=2)}: the pole is up for {learned.mean():.0f} steps of 2000 in 1000 "
        f"new episodes, and for {nothing.mean():.0f} without a policy\n"
    )


if __name__ == "__main__":
    main()
