"""k-means: a round of the task finds the nearest centre of every point, adds up what each centre has, and moves them.

A round is three launches on a state of labels, sums and centres, which stays at its provider; the points are sent once.
Sums are combined in a fixed order, so the bits are the same everywhere. Where nothing moves any more, the state's
digest is the last round's: that is seen without the state.

python examples/kmeans.py [--points 200000] [--clusters 5] [--out kmeans.png]
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
def nearest(new_label, points, centres):
    i = cuda.grid(1)
    if i < new_label.size:
        best = np.float32(math.inf)
        chosen = 0
        for k in range(centres.shape[0]):
            distance = np.float32(0.0)
            for axis in range(points.shape[1]):
                gap = points[i, axis] - centres[k, axis]
                distance += gap * gap
            if distance < best:
                best = distance
                chosen = k
        new_label[i] = chosen


@p2p.kernel
def add_up(sums, label, points):
    i = cuda.grid(1)
    if i < label.size:
        k = label[i]
        for axis in range(points.shape[1]):
            sums[i, k, axis] = np.float64(points[i, axis])
        sums[i, k, points.shape[1]] = 1.0


@p2p.kernel
def move(new_centres, centres, sums):
    k = cuda.grid(1)
    if k < new_centres.shape[0]:
        members = sums[k, centres.shape[1]]
        for axis in range(centres.shape[1]):
            new_centres[k, axis] = np.float32(sums[k, axis] / members) if members > 0.0 else centres[k, axis]


def clouds(points: int, clusters: int, seed: int = 1) -> Array:
    """`points` points in the plane around `clusters` places, float32 of shape (points, 2)."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-10, 10, (clusters, 2))
    return (places[rng.integers(0, clusters, points)] + rng.normal(0, 0.7, (points, 2))).astype(np.float32)


def start(points: Array, clusters: int) -> Array:
    """Points far from each other, the first one first: each next is the farthest from all before."""
    chosen = [points[0]]
    distance = ((points - chosen[0]) ** 2).sum(axis=1)
    for _ in range(clusters - 1):
        chosen.append(points[int(distance.argmax())])
        distance = np.minimum(distance, ((points - chosen[-1]) ** 2).sum(axis=1))
    return np.array(chosen)


async def cluster(node: p2p.Node, points: Array, clusters: int, rounds: int = 30) -> tuple[Array, Array, int]:
    """Lloyd's algorithm, 1957: the centres (clusters, 2), the label of each point, and how many rounds it took."""
    count, axes = points.shape
    state = {
        "label": np.zeros(count, np.int32),
        "sums": np.zeros((clusters, axes + 1)),
        "centres": start(points, clusters),
    }
    steps = [
        p2p.step(nearest, p2p.new("label"), points, p2p.state("centres")),
        p2p.step(add_up, p2p.new("sums", reduce="sum", shape=(count, clusters, axes + 1)), p2p.state("label"), points),
        p2p.step(move, p2p.new("centres"), p2p.state("centres"), p2p.state("sums")),
    ]
    before, settled = b"", rounds
    async with node.rounds(steps, rounds=rounds, state=state, rounds_per_chunk=4, budget="0.10 USD") as stream:
        async for done in stream:
            if done.digest == before:
                settled = min(settled, done.number)
            before = done.digest
            if settled <= stream.done:  # the state behind it is here
                break
    return stream.state["centres"], stream.state["label"], settled


def save(points: Array, labels: Array, centres: Array, path: str, side: int = 480) -> None:
    """A PNG of the points, a colour for each cluster, and a cross at each centre."""
    from PIL import Image

    low, high = points.min(axis=0), points.max(axis=0)

    def place(of: Array) -> Array:
        return np.clip(((of - low) / (high - low) * (side - 1)).astype(int), 0, side - 1)

    turn = np.arange(len(centres))[:, None] / len(centres) + np.array([0, 1 / 3, 2 / 3])
    colours = 0.6 + 0.4 * np.cos(2 * math.pi * turn)
    sums, counts = np.zeros((side, side, 3)), np.zeros((side, side, 1))
    at = place(points)
    np.add.at(sums, (side - 1 - at[:, 1], at[:, 0]), colours[labels])
    np.add.at(counts, (side - 1 - at[:, 1], at[:, 0]), 1)
    image = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
    for x, y in place(centres):
        image[np.clip(side - 1 - y + np.arange(-6, 7), 0, side - 1), x] = 0
        image[side - 1 - y, np.clip(x + np.arange(-6, 7), 0, side - 1)] = 0
    Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).save(path)


def main() -> None:
    """Open a node on the network of this machine and cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--clusters", type=int, default=5)
    parser.add_argument("--out", default="kmeans.png")
    options = parser.parse_args()

    points = clouds(options.points, options.clusters)

    async def work() -> tuple[Array, Array, int]:
        async with p2p.open_node() as node:
            return await cluster(node, points, options.clusters)

    centres, labels, rounds = trio.run(work)
    for k, centre in enumerate(centres):
        sys.stdout.write(f"({centre[0]:7.3f}, {centre[1]:7.3f})  {int((labels == k).sum()):8,} points\n")
    save(points, labels, centres, options.out)
    sys.stdout.write(f"after {rounds} rounds; {options.out}\n")


if __name__ == "__main__":
    main()
