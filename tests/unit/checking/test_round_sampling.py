"""Sampling rounds: what is right passes, and a wrong element of any launch is found where it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._rounds import BoundRounds, bind_rounds
from p2pcompute.checking._rounds import RoundSampler
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._rounds import RoundEngine, rows_of
from p2pcompute.execution._rows import Layout
from p2pcompute.testing import InlineWorkers

from ..tasks._rounds import HILLS, expected_hills, flow_steps

Array = np.ndarray[Any, Any]


@p2p.kernel
def plane(new_a, a, b, round_number):  # type: ignore[no-untyped-def]
    i, j = cuda.grid(2)
    if i < new_a.shape[0] and j < new_a.shape[1]:
        new_a[i, j] = a[i, (j + 1) % a.shape[1]] + b[j % b.size] + round_number


@p2p.kernel
def tile(new_b, a):  # type: ignore[no-untyped-def]
    part = cuda.shared.array(8, np.int32)
    t = cuda.threadIdx.x
    i = cuda.grid(1)
    part[t] = a[i % a.shape[0], i % a.shape[1]]
    cuda.syncthreads()
    new_b[i] = part[7 - t]


@p2p.kernel
def blocks(tops, b):  # type: ignore[no-untyped-def]
    part = cuda.shared.array(8, np.int32)
    t = cuda.threadIdx.x
    part[t] = b[cuda.grid(1)]
    cuda.syncthreads()
    if t == 0:
        tops[cuda.blockIdx.x] = max(part[0], part[7])


@p2p.kernel
def every(sums, a):  # type: ignore[no-untyped-def]
    i, j = cuda.grid(2)
    if i < sums.shape[0] and j < sums.shape[1]:
        sums[i, j] = a[i, j]


@p2p.kernel
def half(new_c, c):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_c.shape[0] and i % 2 == 0:
        for k in range(new_c.shape[1]):
            new_c[i, k] = c[i, k] + 1


def five_launches() -> BoundRounds:
    steps = [
        p2p.step(plane, p2p.new("a"), p2p.state("a"), p2p.state("b"), p2p.round_number),
        p2p.step(tile[5, 8], p2p.new("b"), p2p.state("a")),
        p2p.step(blocks[5, 8], p2p.new("tops"), p2p.state("b")),
        p2p.step(every, p2p.new("sum", reduce="sum", shape=(20, 30)), p2p.state("a")),
        p2p.step(half[2, 32], p2p.new("c"), p2p.state("c")),  # of 70 rows 64 belong to a thread
    ]
    state = {
        "a": np.arange(600, dtype=np.int32).reshape(20, 30),
        "b": np.arange(40, dtype=np.int32),
        "tops": np.zeros(5, np.int32),
        "sum": np.zeros(1, np.int32),
        "c": np.zeros((70, 3), np.int32),
    }
    return bind_rounds(steps, 9, state, ())


def computed(bound: BoundRounds, number: int) -> tuple[list[Array], list[Array]]:
    """States around one round."""
    with CpuBackend() as backend:
        engine = RoundEngine(backend, bound.specs)
        for one, constants in zip(bound.steps, bound.constants, strict=True):
            engine.add(one, constants)
        before = [
            np.frombuffer(data, spec.dtype).reshape(spec.shape)
            for data, spec in zip(bound.arrays, bound.specs, strict=True)
        ]
        after = [np.ones_like(array) for array in before]
        engine.advance(number, before, after)
    return before, after


@pytest.fixture(scope="module")
def around() -> tuple[BoundRounds, list[Array], list[Array]]:
    bound = five_launches()
    return bound, *computed(bound, 3)


def report(
    bound: BoundRounds, before: list[Array], after: list[Array], *, samples: int = 10**6, number: int = 3
) -> Any:
    workers = InlineWorkers(chunk_s=0, compile_s=0)
    sampler = RoundSampler(workers.session, bound.steps, bound.constants, bound.specs, samples=samples)

    async def main() -> Any:
        return await sampler.check(number, [array.tobytes() for array in before], [array.tobytes() for array in after])

    return trio.run(main)


def test_the_round_is_what_numpy_gives(around: Any) -> None:
    _, before, after = around
    a = np.roll(before[0], -1, axis=1) + before[1][np.arange(30)] + 3
    assert np.array_equal(after[0], a)
    picked = a[np.arange(40) % 20, np.arange(40) % 30]
    assert np.array_equal(after[1], picked.reshape(5, 8)[:, ::-1].ravel())
    assert np.array_equal(after[2], np.maximum(after[1][::8], after[1][7::8]))
    assert after[3].tolist() == [a.sum()]
    assert np.array_equal(after[4][:, 0], np.where(np.arange(70) % 2 == 0, 1, 0) * (np.arange(70) < 64))


@pytest.mark.parametrize("samples", [1, 16, 10**6])
def test_what_is_right_passes(around: Any, samples: int) -> None:
    found = report(*around, samples=samples)
    assert found.ok
    assert found.checked >= 5


def altered(array: int, place: tuple[int, ...]) -> Callable[[list[Array]], None]:
    def change(after: list[Array]) -> None:
        after[array][place] ^= 1

    return change


@pytest.mark.parametrize("samples", [1, 16, 10**6])
def test_samples_of_split_inputs_have_the_windows_of_their_threads(samples: int) -> None:
    bound = bind_rounds(flow_steps(), 9, HILLS, ())
    before, after = computed(bound, 0)
    due = expected_hills(1)
    assert [array.tolist() for array in after] == [due[name].tolist() for name in bound.names]
    assert report(bound, before, after, samples=samples, number=0).ok


@pytest.mark.parametrize("edge", ["zero", "clamp"])
def test_another_edge_than_was_agreed_is_a_lie(edge: str) -> None:
    bound = bind_rounds(flow_steps(), 9, HILLS, ())
    others = [p2p.step(one.kernel, *one.args) for one in flow_steps()]
    others[0] = p2p.step(others[0].kernel, others[0].args[0], p2p.state("h", halo=1, edge=edge), others[0].args[2])
    before, after = computed(bind_rounds(others, 9, HILLS, ()), 0)
    due = expected_hills(1)["h"]
    assert np.array_equal(after[0][1:-1, 1:-1], due[1:-1, 1:-1])  # inside nothing is to be seen of it
    assert not report(bound, before, after, number=0).ok


LIES = {
    "a corner of the plane": altered(0, (19, 29)),
    "a tile's thread": altered(1, (33,)),
    "a block's row": altered(2, (4,)),
    "what is combined": altered(3, (0,)),
    "what a thread leaves as it is": altered(4, (1, 2)),
    "what no thread owns": altered(4, (69, 0)),
}


@pytest.mark.parametrize("name", LIES)
def test_every_lie_is_found_where_all_is_looked_at(around: Any, name: str) -> None:
    bound, before, after = around
    lied = [array.copy() for array in after]
    LIES[name](lied)
    assert not report(bound, before, lied).ok


def test_another_round_s_number_and_another_state_before_are_found(around: Any) -> None:
    bound, before, after = around
    assert not report(bound, before, after, number=4).ok
    assert not report(bound, [array + 1 for array in before], after).ok
    assert not report(bound, before, before).ok  # a round that was skipped


def test_rows_of_a_whole_output_are_what_was_scattered() -> None:
    bound = five_launches()
    rng = np.random.default_rng(5)
    for one in bound.steps[:3]:
        layout = Layout.of(one.source, one.launch, one.specs(bound.specs))
        (spec,), (row,) = layout.outputs, layout.row_shapes
        items = one.launch.blocks * layout.items_per_block
        rows = rng.integers(1, 99, (items, *row)).astype(spec.dtype)
        whole = np.zeros(spec.shape, spec.dtype)
        layout.scatter(0, 0, one.launch.blocks, rows, whole)
        found, owned = rows_of(layout, 0, np.arange(items), whole)
        assert found.shape == rows.shape
        assert np.array_equal(found[owned], rows[owned])
        assert not found[~owned].any()
        assert owned.sum() * (found.size // owned.size) == whole.size
