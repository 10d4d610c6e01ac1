"""A hyper-parameter sweep: each thread trains a logistic regression with its own rate and penalty.

python examples/sweep.py [--side 32] [--out sweep.png]
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


@p2p.kernel
def train(loss, rates, penalties, x, y, held_x, held_y, epochs):
    i, j = cuda.grid(2)
    if i < loss.shape[1] and j < loss.shape[0]:
        rate = rates[i]
        penalty = penalties[j]
        w0 = np.float32(0.0)
        w1 = np.float32(0.0)
        bias = np.float32(0.0)
        for _ in range(epochs):
            g0 = np.float32(0.0)
            g1 = np.float32(0.0)
            gb = np.float32(0.0)
            for k in range(y.size):
                guess = 1.0 / (1.0 + math.exp(-(w0 * x[k, 0] + w1 * x[k, 1] + bias)))
                error = guess - y[k]
                g0 += error * x[k, 0]
                g1 += error * x[k, 1]
                gb += error
            w0 -= rate * (g0 / y.size + penalty * w0)
            w1 -= rate * (g1 / y.size + penalty * w1)
            bias -= rate * gb / y.size
        total = np.float32(0.0)
        for k in range(held_y.size):
            score = w0 * held_x[k, 0] + w1 * held_x[k, 1] + bias
            total += math.log1p(math.exp(-abs(score))) + max(score, 0.0) - score * held_y[k]
        loss[j, i] = total / held_y.size


def data(rows: int, seed: int) -> tuple[Array, Array]:
    """Two overlapping clouds: (rows, 2) and labels of 0 and 1, float32."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    place = rng.normal(0, 1.2, (rows, 2)) + np.where(label[:, None] == 1, (1.0, 0.6), (-1.0, -0.6))
    return place.astype(np.float32), label.astype(np.float32)


async def sweep(node: p2p.Node, side: int, rows: int = 256, epochs: int = 60) -> tuple[Array, Array, Array]:
    """Loss on held-out data of shape (penalties, rates), NaN where training diverged; rates; penalties. All float32."""
    rates = np.geomspace(0.01, 10, side).astype(np.float32)
    penalties = np.geomspace(1e-4, 1, side).astype(np.float32)
    loss = await node.run(
        train,
        p2p.out((side, side), np.float32),
        rates,
        penalties,
        *data(rows, 1),
        *data(rows, 2),
        epochs,
        budget="0.05 USD",
    )
    return loss, rates, penalties


def save(loss: Array, path: str, side: int = 480) -> None:
    """A PNG of the losses: a rate for each column, rising to the right, a penalty for each row, rising upwards; dark is
    low, red is worse than a guess (a loss of log 2) or diverged, and a white frame stands around the best."""
    from PIL import Image

    learnt = loss < math.log(2)  # False for NaN
    low = np.nanmin(loss)
    shade = (np.where(learnt, loss - low, 0) / max(math.log(2) - low, 1e-9))[..., None] ** 0.5  # most are near the best
    colours = np.array([0.1, 0.1, 0.35]) * (1 - shade) + np.array([1.0, 0.9, 0.55]) * shade
    colours[~learnt] = (0.8, 0.15, 0.15)
    cell = max(4, side // loss.shape[1])
    image = np.kron(colours[::-1], np.ones((cell, cell, 1)))
    row, column = np.unravel_index(int(np.nanargmin(loss)), loss.shape)
    best = image[(loss.shape[0] - 1 - row) * cell :][:cell, column * cell :][:, :cell]
    frame = np.ones((cell, cell), bool)
    frame[2:-2, 2:-2] = cell < 5
    best[frame] = 1
    Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).save(path)


def main() -> None:
    """Open a node on the network of this machine and sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--out", default="sweep.png")
    options = parser.parse_args()

    async def work() -> tuple[Array, Array, Array]:
        async with p2p.open_node() as node:
            return await sweep(node, options.side)

    loss, rates, penalties = trio.run(work)
    save(loss, options.out)
    row, column = np.unravel_index(int(np.nanargmin(loss)), loss.shape)
    sys.stdout.write(
        f"of {loss.size} settings the best has a rate of {rates[column]:.3g} and a penalty of {penalties[row]:.3g}: "
        f"loss {loss[row, column]:.4f}; {options.out}\n"
    )


if __name__ == "__main__":
    main()
