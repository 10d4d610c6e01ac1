"""Philox against its authors' known answers, and the kernel's numbers against plain Python's."""

from __future__ import annotations

import numpy as np
import pytest

from p2pcompute import cuda, random
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import kernel, out

# From kat_vectors of Random123 (Salmon et al.), philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@kernel
def blocks(result, counters, keys):
    i = cuda.grid(1)
    a, b, c, d = random.philox(counters[i, 0], counters[i, 1], counters[i, 2], counters[i, 3], keys[i, 0], keys[i, 1])
    result[i, 0] = a
    result[i, 1] = b
    result[i, 2] = c
    result[i, 3] = d


@kernel
def numbers(result, seeds, indices, dims):
    i = cuda.grid(1)
    result[i] = random.uniform(seeds[i], indices[i], dims[i])


@pytest.mark.parametrize("case", range(len(KNOWN)))
def test_known_answers(case: int) -> None:
    counter, key, result = KNOWN[case]
    assert random.philox(*counter, *key) == result
    assert all(type(word) is int for word in random.philox(*counter, *key))


def test_known_answers_in_a_kernel() -> None:
    counters = np.array([case[0] for case in KNOWN], dtype=np.int64)
    keys = np.array([case[1] for case in KNOWN], dtype=np.uint32)
    binding = blocks.bind(out((3, 4), "i8"), counters, keys)
    compiled = CpuBackend().compile(binding.source, binding.launch, binding.specs)
    rows = np.zeros((128, 4), np.int64)
    compiled.run_blocks(0, 1, binding.values, [rows])
    assert [tuple(row) for row in rows[:3].tolist()] == [case[2] for case in KNOWN]


def test_arrays_are_the_same_as_single_numbers() -> None:
    counters = np.arange(8)[:, None] * np.array([1, 2**31, -1, 7])
    words = random.philox(counters[:, 0], counters[:, 1], counters[:, 2], counters[:, 3], 5, -6)
    assert all(word.dtype == np.int64 and word.shape == (8,) for word in words)
    for k, row in enumerate(counters.tolist()):
        assert random.philox(*row, 5, -6) == tuple(int(word[k]) for word in words)


def test_uniform_is_its_definition() -> None:
    for seed, index, dim in ((0, 0, 0), (2**40 + 3, 2**35 + 1, 6), (-1, -2, -3), (7, 5, 2**62 + 1), (2**64 - 1, 1, 2)):
        s, i, d = seed % 2**64, index % 2**64, dim % 2**64
        quad = d >> 2
        words = random.philox(i & 0xFFFFFFFF, i >> 32, quad & 0xFFFFFFFF, quad >> 32, s & 0xFFFFFFFF, s >> 32)
        found = random.uniform(seed, index, dim)
        assert found.dtype == np.float32
        assert found == (words[d & 3] >> 8) * 2.0**-24


def test_uniform_in_a_kernel() -> None:
    edges = [0, 1, 2, 3, 4, 5, -1, 2**31, 2**32, 2**33 + 7, 2**63 - 1, -(2**63)]
    triples = np.array([(s, i, d) for s in edges for i in edges for d in edges], dtype=np.int64)
    seeds, indices, dims = (np.ascontiguousarray(triples[:, k]) for k in range(3))
    binding = numbers.bind(out(len(triples), "f4"), seeds, indices, dims)
    compiled = CpuBackend().compile(binding.source, binding.launch, binding.specs)
    rows = np.zeros(binding.launch.threads, np.float32)
    compiled.run_blocks(0, binding.launch.blocks, binding.values, [rows])
    assert rows[: len(triples)].tobytes() == random.uniform(seeds, indices, dims).tobytes()


def test_uniform_is_uniform() -> None:
    values = random.uniform(1, np.arange(50_000)[:, None], np.arange(8))
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() < 1
    counts, _ = np.histogram(values, bins=64, range=(0, 1))
    expected = values.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # chi-squared, 63 degrees of freedom: p < 1e-5 beyond
    correlation = np.corrcoef(values.T)
    assert np.abs(correlation - np.eye(8)).max() < 0.03
