"""A picture that is larger than what one provider would take whole: each is sent the tiles that its rows need.

A pixel's new value is made from the 25 around it, so a thread loads two pixels further than its own place, and the
halo of the split input is 2. Beyond the picture's edge stands the nearest pixel. The arithmetic is in integers: the
result is NumPy's, to the last bit.

python examples/blur.py [--width 10240] [--height 7168] [--out blurred.png]
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
WEIGHTS = np.array([1, 4, 6, 4, 1], np.int64)  # of a row of the binomial triangle; all 25 products add up to 256


@p2p.kernel
def blur(out, image):
    weights = cuda.const.array_like(WEIGHTS)
    column, row = cuda.grid(2)
    if row < out.shape[0] and column < out.shape[1]:
        total = 128  # so that the shift rounds to the nearest
        for down in range(-2, 3):
            for right in range(-2, 3):
                total += weights[down + 2] * weights[right + 2] * image[row + down, column + right]
        out[row, column] = total >> 8


def picture(height: int, width: int) -> Array:
    """Rings around the middle, and noise: uint8, of shape (height, width)."""
    row, column = np.ogrid[:height, :width]
    rings = ((row - height // 2) ** 2 + (column - width // 2) ** 2) // (height + width) & 127
    return (rings + np.random.default_rng(1).integers(0, 129, (height, width))).astype(np.uint8)


async def blurred(node: p2p.Node, image: Array, **options: Any) -> Array:
    """The picture without most of its noise."""
    image = np.ascontiguousarray(image)
    return await node.run(
        blur,
        p2p.out(image.shape, image.dtype),
        p2p.split(image, halo=2, edge="clamp"),
        budget="0.20 USD",
        **options,
    )


def main() -> None:
    """Open a node on the network of this machine, blur, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=10_240)
    parser.add_argument("--height", type=int, default=7_168)
    parser.add_argument("--out")
    options = parser.parse_args()
    image = picture(options.height, options.width)

    async def work() -> Array:
        async with p2p.open_node() as node:
            return await blurred(node, image)

    began = time.monotonic()
    result = trio.run(work)
    sys.stdout.write(f"{image.nbytes >> 20} MiB in {time.monotonic() - began:.1f} s\n")
    if options.out:
        from PIL import Image

        Image.fromarray(result).save(options.out)
        sys.stdout.write(f"{options.out}\n")


if __name__ == "__main__":
    main()
