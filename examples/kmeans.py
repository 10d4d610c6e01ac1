"""k-means: in each round the network finds the nearest centre of every point, and the centres move here.

The points are the same in each round, but the task is a new one. What both sides compiled in the first round is there
in the next ones, so a round takes a fraction of a second.

python examples/kmeans.py [--points 200000] [--clusters 5]
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
def nearest(label, points, centres):
    i = cuda.grid(1)
    if i < label.size:
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
        label[i] = chosen


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
    centres = start(points, clusters)
    labels = np.full(len(points), -1)
    for done in range(1, rounds + 1):
        before = labels
        labels = await node.run(nearest, p2p.out(len(points), np.int32), points, centres, budget="0.01 USD")
        if np.array_equal(labels, before):
            return centres, labels, done
        members = [points[labels == k] for k in range(clusters)]
        centres = np.array(
            [some.mean(axis=0) if len(some) else centres[k] for k, some in enumerate(members)], dtype=np.float32
        )
    return centres, labels, rounds


def main() -> None:
    """Open a node on the network of this machine and cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200_000)
    parser.add_argument("--clusters", type=int, default=5)
    options = parser.parse_args()

    async def work() -> tuple[Array, Array, int]:
        async with p2p.open_node() as node:
            return await cluster(node, clouds(options.points, options.clusters), options.clusters)

    centres, labels, rounds = trio.run(work)
    for k, centre in enumerate(centres):
        sys.stdout.write(f"({centre[0]:7.3f}, {centre[1]:7.3f})  {int((labels == k).sum()):8,} points\n")
    sys.stdout.write(f"after {rounds} rounds\n")


if __name__ == "__main__":
    main()
