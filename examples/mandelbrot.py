"""A picture of the Mandelbrot set: one kernel, one thread a pixel.

python examples/mandelbrot.py [--width 960] [--out mandelbrot.png]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda


@p2p.kernel
def escape(out, left, top, step, limit):
    x, y = cuda.grid(2)
    if x < out.shape[1] and y < out.shape[0]:
        cr = left + x * step
        ci = top + y * step
        zr = np.float32(0.0)
        zi = np.float32(0.0)
        n = 0
        while n < limit and zr * zr + zi * zi <= 4.0:
            zr, zi = zr * zr - zi * zi + cr, 2.0 * zr * zi + ci
            n += 1
        out[y, x] = n


async def paint(node: p2p.Node, width: int, limit: int = 500) -> np.ndarray[Any, Any]:
    """How many steps each point takes to leave the circle of radius 2, an array of shape (height, width)."""
    height = width * 2 // 3
    image = p2p.out((height, width), np.uint16)
    step = np.float32(3.0 / width)
    return await node.run(escape, image, np.float32(-2.2), np.float32(-1.0), step, limit, budget="0.05 USD")


def save(counts: np.ndarray[Any, Any], path: str, limit: int = 500) -> None:
    """A PNG with logarithmic colours; inside of the set is black."""
    from PIL import Image

    shade = np.log1p(counts) / np.log1p(limit)
    colours = np.stack([shade**1.2, shade**0.6 * 0.8, 0.3 + 0.6 * shade**0.4], axis=-1)
    colours[counts >= limit] = 0
    Image.fromarray((np.clip(colours, 0, 1) * 255).astype(np.uint8)).save(path)


def main() -> None:
    """Open a node on the network of this machine, paint, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--out", default="mandelbrot.png")
    options = parser.parse_args()

    async def work() -> np.ndarray[Any, Any]:
        async with p2p.open_node() as node:
            return await paint(node, options.width)

    save(trio.run(work), options.out)
    sys.stdout.write(f"{options.out}\n")


if __name__ == "__main__":
    main()
