"""The comparison with the reference finds what a liar alters, and only that."""

from __future__ import annotations

from typing import Any

import numpy as np
import trio

from p2pcompute.testing._output_faults import parse_fault
from p2pcompute_testnet._pathtracer import Scene, scene
from p2pcompute_testnet._pathtracer_reference import reference_pixels
from p2pcompute_testnet._pathtracer_scene import Picture
from p2pcompute_testnet._picture_check import PictureCheck, check_picture, chunk_count, places_of_chunks

PICTURE = Picture(width=80, height=48, side=1, depth=3)
CHUNKS = 6


def whole(known: Scene) -> np.ndarray[Any, Any]:
    ys, xs = np.mgrid[0 : PICTURE.height, 0 : PICTURE.width]
    return reference_pixels(known.picture, ys.ravel(), xs.ravel()).reshape(PICTURE.height, PICTURE.width, 3)


def check(picture: np.ndarray[Any, Any], *, pixels: int, lied: tuple[int, ...] = ()) -> PictureCheck:
    async def main() -> PictureCheck:
        return await check_picture(
            scene(PICTURE), picture, pixels=pixels, chunks=CHUNKS, suspect={1}, lied=lied, fault="lie:0.02:3"
        )

    return trio.run(main)


def test_chunks_are_whole_blocks() -> None:
    assert chunk_count(scene(PICTURE), CHUNKS) == 5  # 15 blocks, 3 in each
    assert chunk_count(scene(PICTURE), 100) == 15


def test_the_chunks_together_are_the_picture() -> None:
    places = [places_of_chunks(scene(PICTURE), CHUNKS, [index]) for index in range(5)]
    together = np.unique(np.concatenate(places), axis=0)
    assert len(together) == sum(map(len, places)) == PICTURE.width * PICTURE.height


def test_every_pixel_that_a_liar_altered_is_looked_at() -> None:
    known = scene(PICTURE)
    right = whole(known)
    assert check(right, pixels=64, lied=(2,)).differ == 0
    # What the picture would be, had chunk 2 of the liar been taken.
    wrong = right.copy()
    binding = known.kernel.bind(*known.args)
    marks = np.zeros((3 * 256, 3), np.uint8)
    altered = parse_fault("lie:0.02:3")(marks.tobytes(), 2)
    shown = np.zeros_like(right)
    binding.layout.scatter(0, 6, 3, np.frombuffer(altered, np.uint8).reshape(marks.shape), shown)
    wrong += shown
    found = check(wrong, pixels=1, lied=(2,))
    assert found.altered == found.differ == int((shown != 0).any(axis=2).sum()) > 10


def test_random_pixels_find_a_picture_that_is_wrong_all_over() -> None:
    found = check(whole(scene(PICTURE)) ^ 1, pixels=200)
    assert found.differ == found.checked > 150
