"""Histograms and a radix sort of 32-bit keys: four passes by one byte each, from the lowest to the highest.

In CUDA a thread writes its key to where it belongs. Here a thread owns its place and finds the key that belongs
there: a scatter becomes a gather, by a binary search in a prefix sum. The sort is exact and stable.

A pass is two tasks. `split` sorts tiles of keys within blocks and counts the digits of each; the counts come back, and
their prefix sums say where the keys of each digit of each tile go; `gather` puts them there. (It moves more than it
computes, so over a network it loses against a sort at home. What it shows is how to write such things.)

python examples/radix_sort.py [--keys 1000000]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda

Array = np.ndarray[Any, Any]
TILE = 1_024  # keys and threads of a block
BITS = 8
DIGITS = 1 << BITS


@p2p.kernel
def split(tiles, counts, keys, shift):
    tile = cuda.shared.array(TILE, np.uint32)
    zeros = cuda.shared.array(TILE, np.int32)
    count = cuda.shared.array(DIGITS, np.int32)
    i = cuda.grid(1)
    t = cuda.threadIdx.x
    tile[t] = keys[i]
    cuda.atomic.add(count, (keys[i] >> shift) & (DIGITS - 1), 1)
    cuda.syncthreads()
    if t < DIGITS:
        counts[cuda.blockIdx.x, t] = count[t]
    for bit in range(shift, shift + BITS):
        mine = 1 - ((tile[t] >> bit) & 1)
        zeros[t] = mine
        cuda.syncthreads()
        step = 1
        while step < TILE:  # an inclusive prefix sum (Hillis and Steele, 1986): how many keys up to t have a 0 here
            if t >= step:
                zeros[t] += zeros[t - step]  # the other's, as it was at the barrier: docs/strict.md, section 12
            cuda.syncthreads()
            step *= 2
        # Those with a 0 come first. Place t takes the key with that many like it up to its own place.
        ahead = zeros[TILE - 1]
        wanted = t + 1 if t < ahead else t + 1 - ahead
        low = 0
        high = TILE - 1
        while low < high:
            middle = (low + high) // 2
            found = zeros[middle] if t < ahead else middle + 1 - zeros[middle]
            if found < wanted:
                low = middle + 1
            else:
                high = middle
        key = tile[low]
        cuda.syncthreads()
        tile[t] = key
    tiles[i] = tile[t]


@p2p.kernel
def gather(keys, tiles, starts, offsets):
    i = cuda.grid(1)
    if i < keys.size:
        low = 0  # the last run that starts at i or before
        high = starts.size - 1
        while low < high:
            middle = (low + high + 1) // 2
            if starts[middle] <= i:
                low = middle
            else:
                high = middle - 1
        keys[i] = tiles[i + offsets[low]]


async def radix_sort(node: p2p.Node, keys: Array) -> tuple[Array, Array]:
    """The uint32 `keys`, ascending, and how many have each highest byte: (256,)."""
    blocks = -(-keys.size // TILE)
    now = np.pad(keys, (0, blocks * TILE - keys.size), constant_values=np.uint32(0xFFFFFFFF))  # these go to the end
    whole = p2p.out(now.size, np.uint32)
    for shift in range(0, 32, BITS):
        tiles, counts = await node.run(
            split[blocks, TILE], whole, p2p.out((blocks, DIGITS), np.int32), now, shift, budget="0.05 USD"
        )
        # A run is the keys of one digit in one tile. All runs of digit 0 come first, in the order of tiles, and so on.
        length = counts.T.ravel()
        starts = np.cumsum(length) - length
        lies = np.cumsum(counts, axis=1) - counts + TILE * np.arange(blocks)[:, None]
        offsets = lies.T.ravel() - starts
        now = await node.run(gather, whole, tiles, starts.astype(np.int32), offsets.astype(np.int32), budget="0.05 USD")
    histogram = counts.sum(axis=0)
    histogram[-1] -= now.size - keys.size
    return now[: keys.size], histogram


def bell(count: int, seed: int = 1) -> Array:
    """`count` keys around the middle of their range, of which some come twice."""
    rng = np.random.default_rng(seed)
    keys = np.clip(rng.normal(2**31, 2**29, count), 0, 2**32 - 1).astype(np.uint32)
    keys[: count // 4] = keys[count // 4 : count // 4 * 2]
    return keys


def bars(histogram: Array, rows: int = 32, width: int = 60) -> str:
    """The histogram in `rows` lines."""
    sums = histogram.reshape(rows, -1).sum(axis=1)
    return "".join(f"{k * 256 // rows:02x}… {'█' * round(width * n / sums.max())} {n:,}\n" for k, n in enumerate(sums))


def main() -> None:
    """Open a node on the network of this machine and sort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    keys = bell(parser.parse_args().keys)

    async def work() -> tuple[Array, Array]:
        async with p2p.open_node() as node:
            return await radix_sort(node, keys)

    ordered, histogram = trio.run(work)
    sys.stdout.write(bars(histogram))
    right = np.array_equal(ordered, np.sort(keys))
    sys.stdout.write(f"{keys.size:,} keys, {'sorted' if right else 'NOT SORTED'}\n")


if __name__ == "__main__":
    main()
