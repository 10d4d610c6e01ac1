"""Kernels that are rewritten in two ways: an array changed in place, beside a result of atomic operations."""

from __future__ import annotations

from typing import Any

import numpy as np

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._form import Variants
from p2pcompute.execution._cpu import CpuBackend


@p2p.kernel
def doubled_and_counted(x: Any, odd: Any) -> None:
    i = cuda.grid(1)
    if i >= x.size:
        return
    cuda.atomic.add(odd, x[i] % 2, 1)
    x[i] *= 2


def test_in_place_beside_a_count() -> None:
    x = np.random.default_rng(5).integers(0, 100, 1000)
    with CpuBackend(2) as backend:
        for size in (2, 3):
            binding = doubled_and_counted[8, 128].bind(p2p.inout(x), p2p.reduce("sum", (size,), np.int32))
            again = doubled_and_counted[8, 128].bind(p2p.inout(x), p2p.reduce("sum", (size,), np.int32))
            assert again.source is binding.source
            layout, blocks = binding.layout, binding.launch.blocks
            rows = [
                np.zeros((blocks * layout.items_per_block, *row), spec.dtype)
                for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
            ]
            compiled = backend.compile(binding.source, binding.launch, binding.specs)
            compiled.run_blocks(0, blocks, binding.values, rows)
            placed = binding.empty_outputs()
            for place, (part, target) in enumerate(zip(rows, placed, strict=True)):
                layout.scatter(place, 0, blocks, part, target)
            doubled, odd = binding.results(placed)
            assert np.array_equal(doubled, 2 * x)
            assert np.array_equal(odd, np.bincount(x % 2, minlength=size))


def test_the_variants_that_were_asked_for_last_are_kept() -> None:
    made: list[int] = []

    def of(key: int) -> Any:
        def make() -> Any:
            made.append(key)
            return object()

        return kept.get(key, make)

    kept = Variants()
    first, second = of(0), of(1)
    for key in range(2, 65):
        of(key)
        assert of(0) is first
    assert made == list(range(65))
    assert of(1) is not second  # 64 others were asked for since
    assert made[65:] == [1]
