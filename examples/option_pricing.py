"""An Asian call option priced by Monte-Carlo paths: each thread follows some paths and gives their sum.

The random numbers are a function of (seed, path, step), so every provider draws the same ones for a path, and any
path can be drawn again to check it.

python examples/option_pricing.py [--paths 1000000]
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda, random

PATHS_PER_THREAD = 64
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


async def price(node: p2p.Node, option: Option, paths: int, seed: int = 7) -> tuple[float, float]:
    """The price and its standard error, in the option's currency, from about `paths` paths."""
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
    count = threads * PATHS_PER_THREAD
    discount = np.exp(-option.rate * option.years)
    mean = total.sum() / count
    variance = max(squares.sum() / count - mean**2, 0.0)
    return float(discount * mean), float(discount * np.sqrt(variance / count))


def main() -> None:
    """Open a node on the network of this machine and price."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=1_000_000)
    paths = parser.parse_args().paths

    async def work() -> tuple[float, float]:
        async with p2p.open_node() as node:
            return await price(node, Option(), paths)

    value, error = trio.run(work)
    sys.stdout.write(f"{value:.4f} ± {error:.4f} from {paths:,} paths\n")


if __name__ == "__main__":
    main()
