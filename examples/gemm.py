"""A product of two matrices by tiles: the threads of a block load a tile of each once and all of them use it.

Every element is a sum in the order of k, whoever computes it and however the rows are cut into tiles and chunks. So
it has the same bits everywhere, and its error has a bound that is known before the first product.

python examples/gemm.py [--side 1024]
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda

Array = np.ndarray[Any, Any]
TILE = 16


@p2p.kernel
def product(c, a, b):
    tile_a = cuda.shared.array((TILE, TILE), np.float32)
    tile_b = cuda.shared.array((TILE, TILE), np.float32)
    x, y = cuda.grid(2)
    tx = cuda.threadIdx.x
    ty = cuda.threadIdx.y
    total = np.float32(0.0)
    for first in range(0, a.shape[1], TILE):
        tile_a[ty, tx] = a[y, first + tx]  # beyond the edges these are zeros, which add nothing
        tile_b[ty, tx] = b[first + ty, x]
        cuda.syncthreads()
        for k in range(TILE):
            total += tile_a[ty, k] * tile_b[k, tx]
        cuda.syncthreads()
    c[y, x] = total  # beyond the edges it is dropped


async def multiply(node: p2p.Node, a: Array, b: Array) -> Array:
    """``a @ b`` in float32, for float32 arrays of shapes (rows, inner) and (inner, columns)."""
    rows, columns = a.shape[0], b.shape[1]
    blocks = -(-columns // TILE), -(-rows // TILE)
    return await node.run(product[blocks, (TILE, TILE)], p2p.out((rows, columns), np.float32), a, b, budget="0.05 USD")


def in_order(a: Array, b: Array) -> Array:
    """The sum of each element in the order of k, rounded after each step: what `product` gives, to the last bit."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total += a[:, k, None] * b[k]
    return total


def error_bound(a: Array, b: Array) -> Array:
    """How far an element may be from the true one: n u / (1 - n u) times |a| @ |b|, in whatever order it is summed.

    Higham, "Accuracy and Stability of Numerical Algorithms", section 3.5; n products, u = 2**-24 for float32.
    """
    steps = a.shape[1] * 2.0**-24
    return steps / (1 - steps) * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))


def main() -> None:
    """Open a node on the network of this machine and multiply."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1_024)
    side = parser.parse_args().side
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, side, side), dtype=np.float32)

    async def work() -> tuple[Array, float]:
        async with p2p.open_node() as node:
            began = time.perf_counter()
            return await multiply(node, a, b), time.perf_counter() - began

    c, took_s = trio.run(work)
    error = np.abs(c - a.astype(np.float64) @ b.astype(np.float64))
    some = rng.choice(side, min(side, 64), replace=False)
    same = np.array_equal(c[some], in_order(a[some], b))
    sys.stdout.write(
        f"{side} x {side} in {took_s:.2f} s from order to array, {2 * side**3 / took_s / 1e9:.2f} GFLOP/s\n"
        f"{len(some)} of the rows are {'the bits of sums in order' if same else 'NOT THOSE OF SUMS IN ORDER'}\n"
        f"largest error {error.max():.2e}, at most {(error / error_bound(a, b)).max():.1%} of its bound\n"
    )


if __name__ == "__main__":
    main()
