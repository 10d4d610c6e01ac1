"""Outputs of chunks are put in place one by one or neighbours at once: the arrays are the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._partial import Placed
from p2pcompute.kernel import Binding
from p2pcompute_protocols.work import ChunkWork

BLOCK, BLOCKS, PER_CHUNK = 4, 11, 2
THREADS = BLOCK * BLOCKS - 3  # the last block goes over the border, and the last chunk has one block


@p2p.kernel
def one(out):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = i


@p2p.kernel
def two(out, other):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = i
        other[i] = i


def bound(outputs: int) -> Binding:
    shapes = [p2p.out((THREADS,), np.int32), p2p.out((THREADS,), np.float64)][:outputs]
    return (one, two)[outputs - 1][BLOCKS, BLOCK].bind(*shapes)


def chunks_of(blocks: int) -> Any:
    """Work of which only the cut matters."""
    made: Any = object.__new__(ChunkWork)
    for name, value in (("launch", SimpleNamespace(blocks=blocks)), ("blocks_per_chunk", PER_CHUNK)):
        object.__setattr__(made, name, value)
    return made


def output_of(work: Any, index: int, outputs: int, *, add: int = 0) -> memoryview:
    first, blocks = work.chunk_range(index)
    threads = np.arange(first * BLOCK, (first + blocks) * BLOCK) + add
    return memoryview(b"".join(threads.astype(dtype).tobytes() for dtype in ("<i4", "<f8")[:outputs]))


@pytest.mark.parametrize("outputs", [1, 2])
@given(st.permutations(range(6)), st.integers(1, 6))
def test_however_chunks_come_together_each_is_in_its_place(outputs: int, order: list[int], together: int) -> None:
    work, placed = chunks_of(BLOCKS), Placed(bound(outputs))
    assert work.chunks == len(order)
    for at in range(0, len(order), together):
        placed.put([(index, output_of(work, index, outputs)) for index in order[at : at + together]], work)
    for array in placed.outputs:
        assert array.tolist() == list(range(THREADS))


def test_of_one_chunk_that_comes_twice_the_later_one_counts() -> None:
    work, placed = chunks_of(BLOCKS), Placed(bound(1))
    placed.put([(1, output_of(work, 1, 1)), (2, output_of(work, 2, 1)), (1, output_of(work, 1, 1, add=100))], work)
    assert placed.outputs[0][8:24].tolist() == [*range(108, 116), *range(16, 24)]
