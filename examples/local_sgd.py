"""Data-parallel training by local SGD: each thread trains on its own shard for a while, then all models are averaged.

The network is small (2 inputs, 16 hidden units, 1 output), so a thread holds a copy in its local memory, takes
hundreds of steps of plain SGD by itself and writes back its weights. Averaging seldom instead of after every step is
what makes it fit machines far from each other: Stich, "Local SGD converges fast and communicates little", ICLR 2019.

A thread is a long piece of work here, so a block has one, and a chunk a few of them. The check of a chunk is to run
one of its threads again (`samples=1`), drawn in private: it costs a quarter of a chunk, and who forges one shard's
weights is caught with a probability of a quarter, each time.

python examples/local_sgd.py [--shards 32] [--rounds 10]
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
HIDDEN = 16
WEIGHTS = 4 * HIDDEN + 1  # of each hidden unit two weights, a bias and the weight of its output; the output's bias
PER_CHUNK = 4


@p2p.kernel
def train(weights, loss, start, x, y, steps, rate, seed):
    w = cuda.local.array(WEIGHTS, np.float32)
    shard = cuda.grid(1)
    if shard < loss.size:
        for k in range(WEIGHTS):
            w[k] = start[k]
        total = np.float32(0.0)
        for s in range(steps):
            row = int(random.uniform(seed, shard, s) * y.shape[1])
            a = x[shard, row, 0]
            b = x[shard, row, 1]
            score = w[4 * HIDDEN]
            for h in range(HIDDEN):
                score += w[4 * h + 3] * math.tanh(w[4 * h] * a + w[4 * h + 1] * b + w[4 * h + 2])
            sign = 2.0 * y[shard, row] - 1.0
            total += math.log1p(math.exp(-abs(score))) + max(-sign * score, 0.0)
            error = 1.0 / (1.0 + math.exp(-score)) - y[shard, row]  # of the logistic loss, by the score
            w[4 * HIDDEN] -= rate * error
            for h in range(HIDDEN):
                unit = math.tanh(w[4 * h] * a + w[4 * h + 1] * b + w[4 * h + 2])
                back = error * w[4 * h + 3] * (1.0 - unit * unit)
                w[4 * h + 3] -= rate * error * unit
                w[4 * h] -= rate * back * a
                w[4 * h + 1] -= rate * back * b
                w[4 * h + 2] -= rate * back
        for k in range(WEIGHTS):
            weights[shard, k] = w[k]
        loss[shard] = total / steps


def moons(rows: int, seed: int) -> tuple[Array, Array]:
    """Two half-moons that reach into each other: points (rows, 2), labels 0 and 1, float32."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    angle = rng.uniform(0, math.pi, rows)
    side = 1 - 2 * label
    place = np.stack([np.cos(angle) * side + label, np.sin(angle) * side + 0.5 * label], axis=1)
    return (place + rng.normal(0, 0.15, place.shape) - (0.5, 0.25)).astype(np.float32), label.astype(np.float32)


def chance(weights: Array, x: Array) -> Array:
    """The model in NumPy, float64: how likely each point of `x` has the label 1."""
    units, bias = weights[:-1].astype(np.float64).reshape(HIDDEN, 4), float(weights[-1])
    score = np.tanh(x @ units[:, :2].T + units[:, 2]) @ units[:, 3] + bias
    return 0.5 + 0.5 * np.tanh(score / 2)


async def fit(
    node: p2p.Node,
    *,
    shards: int = 32,
    rows: int = 512,
    rounds: int = 10,
    steps: int = 2_000,
    rate: float = 0.05,
    report: Callable[[int, float], object] = lambda *_: None,
) -> Array:
    """The averaged weights, float32 of shape (65,), after `rounds` of `steps` local steps on shards of `rows` rows.

    `report` gets each round's number and the mean loss along all local steps.
    """
    x, y = moons(shards * rows, seed=1)
    x, y = x.reshape(shards, rows, 2), y.reshape(shards, rows)
    weights = np.random.default_rng(2).normal(0, 0.5, WEIGHTS).astype(np.float32)
    for number in range(rounds):
        trained, loss = await node.run(
            train[shards, 1],
            p2p.out((shards, WEIGHTS), np.float32),
            p2p.out(shards, np.float32),
            *(weights, x, y, steps, np.float32(rate), number),
            chunks=-(-shards // PER_CHUNK),
            samples=1,
            budget="0.02 USD",
        )
        weights = trained.mean(axis=0, dtype=np.float64).astype(np.float32)
        report(number, float(loss.mean()))
    return weights


def field(weights: Array, rows: int = 18, columns: int = 64) -> str:
    """What the model thinks of each place, with some points of both moons, as text."""
    across, up = np.meshgrid(np.linspace(-2, 2, columns), np.linspace(1.3, -1.3, rows))
    likely = chance(weights, np.stack([across.ravel(), up.ravel()], axis=1)).reshape(rows, columns)
    marks = np.array(list(" ░▒▓"))[np.minimum((likely * 4).astype(int), 3)]
    for place, label in zip(*moons(160, seed=9), strict=True):
        row, column = round((1.3 - place[1]) / 2.6 * (rows - 1)), round((place[0] + 2) / 4 * (columns - 1))
        if 0 <= row < rows and 0 <= column < columns:
            marks[row, column] = "x" if label else "o"
    return "\n".join("".join(row) for row in marks) + "\n"


def line(number: int, loss: float) -> None:
    """One line of the loss curve."""
    sys.stdout.write(f"{number:3}  loss {loss:.4f}  {'█' * round(100 * loss)}\n")
    sys.stdout.flush()


def main() -> None:
    """Open a node on the network of this machine and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()

    async def work() -> Array:
        async with p2p.open_node() as node:
            return await fit(node, shards=options.shards, rounds=options.rounds, report=line)

    weights = trio.run(work)
    x, y = moons(5_000, seed=3)
    right = np.mean((chance(weights, x) > 0.5) == (y > 0.5))
    sys.stdout.write(field(weights))
    sys.stdout.write(f"{right:.1%} of 5,000 points that it has not seen are told right\n")


if __name__ == "__main__":
    main()
