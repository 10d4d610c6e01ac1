"""An Asian call option priced by Monte-Carlo paths: each thread follows some paths and gives their sum.

The random numbers are a function of (seed, path, step), so every provider draws the same ones for a path, and any
path can be drawn again to check it.

python examples/option_pricing.py [--paths 1000000] [--out option_pricing.png]
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda, random

PATHS_PER_THREAD = 64
Array = np.ndarray[Any, Any]
TWO_PI = np.float32(6.2831855)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An Asian call: it pays what the mean of the price over `steps` days is above `strike`."""

    spot: float = 100.0
    strike: float = 100.0
    rate: float = 0.03
    volatility: float = 0.25
    years: float = 1.0
    steps: int = 50


@p2p.kernel
def asian_call(total, squares, paths, seed, spot, strike, drift, spread, steps):
    i = cuda.grid(1)
    if i < total.size:
        gain = np.float64(0.0)
        square = np.float64(0.0)
        for k in range(paths):
            path = i * paths + k
            price = spot
            mean = np.float32(0.0)
            for step in range(steps):
                u = 1.0 - random.uniform(seed, path, 2 * step)  # never 0: its logarithm is taken
                v = random.uniform(seed, path, 2 * step + 1)
                normal = math.sqrt(-2.0 * math.log(u)) * math.cos(TWO_PI * v)  # Box and Muller, 1958
                price = price * math.exp(drift + spread * normal)
                mean += price
            payoff = max(mean / steps - strike, 0.0)
            gain += payoff
            square += np.float64(payoff) * payoff
        total[i] = gain
        squares[i] = square


async def estimates(node: p2p.Node, option: Option, paths: int, seed: int = 7) -> tuple[Array, Array]:
    """Prices and their standard errors, in the option's currency, from the first 64 of about `paths` paths, the first
    128, and so on: two float64 arrays of shape (paths / 64)."""
    threads = max(1, paths // PATHS_PER_THREAD)
    per_step = option.years / option.steps
    total, squares = await node.run(
        asian_call,
        p2p.out(threads, np.float64),
        p2p.out(threads, np.float64),
        PATHS_PER_THREAD,
        seed,
        np.float32(option.spot),
        np.float32(option.strike),
        np.float32((option.rate - option.volatility**2 / 2) * per_step),
        np.float32(option.volatility * per_step**0.5),
        option.steps,
        budget="0.05 USD",
    )
    count = PATHS_PER_THREAD * np.arange(1, threads + 1)
    discount = np.exp(-option.rate * option.years)
    mean = np.cumsum(total) / count
    variance = np.maximum(np.cumsum(squares) / count - mean**2, 0)
    return discount * mean, discount * np.sqrt(variance / count)


def save(prices: Array, errors: Array, path: str, width: int = 720, height: int = 360) -> None:
    """A PNG of how the price converges: the price in black over the number of paths, which is logarithmic, two standard
    errors to each side in blue, and the last price as a red line, from which the picture reaches three of the first
    standard errors."""
    from PIL import Image

    at = np.round(np.geomspace(1, len(prices), width)).astype(int) - 1
    middle = prices[-1]
    span = max(3 * float(errors[0]), 1e-9)

    def row(value: Array) -> Array:
        found: Array = np.clip(np.round((1 - (value - middle) / span) / 2 * (height - 1)), 0, height - 1)
        return found

    down = np.arange(height)[:, None]
    image = np.ones((height, width, 3))
    image[(down >= row(prices[at] + 2 * errors[at])) & (down <= row(prices[at] - 2 * errors[at]))] = (0.75, 0.85, 1.0)
    image[(height - 1) // 2] = (0.85, 0.2, 0.2)
    here = row(prices[at])
    before = np.concatenate([here[:1], here[:-1]])  # steps are joined
    image[(down >= np.minimum(here, before)) & (down <= np.maximum(here, before) + 1)] = 0
    Image.fromarray((image * 255).astype(np.uint8)).save(path)


def main() -> None:
    """Open a node on the network of this machine and price."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=1_000_000)
    parser.add_argument("--out", default="option_pricing.png")
    options = parser.parse_args()

    async def work() -> tuple[Array, Array]:
        async with p2p.open_node() as node:
            return await estimates(node, Option(), options.paths)

    prices, errors = trio.run(work)
    save(prices, errors, options.out)
    count = len(prices) * PATHS_PER_THREAD
    sys.stdout.write(f"{prices[-1]:.4f} ± {errors[-1]:.4f} from {count:,} paths; {options.out}\n")


if __name__ == "__main__":
    main()
