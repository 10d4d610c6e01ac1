"""Work in rounds on CUDA: states stay on the device, rows are put into place there, and the bits are the CPU's."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._rounds import BoundRounds, bind_rounds
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._cuda_compile import CudaCompiler, link_cubin
from p2pcompute.execution._cuda_rounds import Placing
from p2pcompute.execution._ptx_lint import find_faults
from p2pcompute.execution._rounds import RoundEngine

from ...checking.test_round_sampling import five_launches
from ...tasks._rounds import flow, peak, rows
from .ptx_machine import Machine

Array = np.ndarray[Any, Any]


@p2p.kernel
def turned(new_t, t, b):  # type: ignore[no-untyped-def]
    x, y, z = cuda.grid(3)
    if z < new_t.shape[1] and y < new_t.shape[2] and x < new_t.shape[0]:
        for k in range(new_t.shape[3]):
            new_t[x, z, y, k] = t[x, z, y, k] + t[x, z, y - 1, k] * 3 + k


@p2p.kernel
def flags(new_b, t, b):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_b.size:
        new_b[i] = not b[i] or t[i, 0, 0, 0] > 9


def axes() -> BoundRounds:
    """Axes of the array in another order than the grid's, rows of several elements, and elements of a byte."""
    rng = np.random.default_rng(2)
    state = {"t": rng.integers(-9, 9, (5, 3, 4, 2)).astype(np.int16), "b": rng.integers(0, 2, 5).astype(np.bool_)}
    steps = [
        p2p.step(turned[(3, 2, 2), (2, 2, 2)], p2p.new("t"), p2p.state("t"), p2p.state("b")),
        p2p.step(flags[1, 8], p2p.new("b"), p2p.state("t"), p2p.state("b")),
    ]
    return bind_rounds(steps, 9, state, ())


def hills() -> BoundRounds:
    """Split inputs: a constant, an array of the last round, and what this one has given; and what is combined."""
    rng = np.random.default_rng(3)
    ground = rng.integers(-9, 9, (7, 6)).astype(np.int32)
    state = {
        "h": rng.integers(-99, 99, (7, 6)).astype(np.int64),
        "sums": np.zeros(7, np.int64),
        "top": np.zeros(1, np.int64),
    }
    steps = [
        p2p.step(
            flow[(2, 2), (4, 4)],
            p2p.new("h"),
            p2p.state("h", halo=1, edge="wrap"),
            p2p.split(ground, halo=(2, 1), edge="clamp"),
        ),
        p2p.step(rows[1, 8], p2p.new("sums"), p2p.state("h", halo=1)),
        p2p.step(peak[(2, 2), (4, 4)], p2p.new("top", reduce="max", shape=ground.shape), p2p.state("h", halo=0)),
    ]
    return bind_rounds(steps, 9, state, ())


BOUND = {"several kinds of launches": five_launches, "axes": axes, "split inputs": hills}


def engine_of(backend: CpuBackend | CudaBackend, bound: BoundRounds) -> RoundEngine:
    engine = RoundEngine(backend, bound.specs)
    for step, constants in zip(bound.steps, bound.constants, strict=True):
        for array in constants:
            array.flags.writeable = False  # as in a worker
        engine.add(step, constants)
    return engine


def start(bound: BoundRounds) -> list[Array]:
    return [
        np.frombuffer(data, spec.dtype).reshape(spec.shape)
        for data, spec in zip(bound.arrays, bound.specs, strict=True)
    ]


def advanced(engine: RoundEngine, number: int, before: list[Array]) -> list[Array]:
    after = [np.full_like(array, 1) for array in before]
    engine.advance(number, before, after)
    return after


def bits(state: list[Array]) -> list[bytes]:
    return [array.tobytes() for array in state]


@pytest.mark.parametrize("name", BOUND)
def test_states_have_the_processor_s_bits(cpu: CpuBackend, gpu: CudaBackend, name: str) -> None:
    bound = BOUND[name]()
    ours, theirs = engine_of(cpu, bound), engine_of(gpu, bound)
    due = found = start(bound)
    for number in range(2 if name == "several kinds of launches" else 4):
        due, found = advanced(ours, number, due), advanced(theirs, number, found)
        assert bits(found) == bits(due)
    # from another state, and from the first one again
    other = [array + array.dtype.type(1) if array.dtype != np.bool_ else ~array for array in start(bound)]
    for state in (other, start(bound)):
        assert bits(advanced(theirs, 7, state)) == bits(advanced(ours, 7, state))


def test_a_state_that_a_round_has_left_is_not_brought_again(
    gpu: CudaBackend, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    allocated = machine.allocations
    engine = engine_of(gpu, axes())
    state = start(axes())
    sizes: list[int] = []
    upload = machine.upload
    monkeypatch.setattr(machine, "upload", lambda at, values: (sizes.append(values.nbytes), upload(at, values)))
    state = advanced(engine, 0, state)
    assert sorted(sizes) == [5, 240]
    for number in range(1, 4):
        state = advanced(engine, number, state)
    assert sorted(sizes) == [5, 240]  # the first one alone
    held = machine.allocations
    advanced(engine, 4, list(state))  # as good as another one: nobody says that it is the same
    assert sorted(sizes) == [5, 5, 240, 240]
    assert machine.allocations == held  # no round allocates
    del engine
    gc.collect()
    assert machine.allocations == allocated


def test_a_round_that_has_failed_leaves_nothing_to_go_on_from(
    gpu: CudaBackend, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = axes()
    engine = engine_of(gpu, bound)
    before = start(bound)
    state = advanced(engine, 0, before)
    due = bits(advanced(engine_of(gpu, bound), 1, state))
    download, calls = machine.download, []

    def fails(address: int, values: Array) -> None:
        calls.append(address)
        if len(calls) == 2:
            raise RuntimeError("a device that has no more of it")
        download(address, values)

    monkeypatch.setattr(machine, "download", fails)
    with pytest.raises(RuntimeError):
        advanced(engine, 1, state)
    monkeypatch.undo()
    assert bits(advanced(engine, 1, state)) == due


@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (12, 0)])
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_what_places_rows_passes_the_lint_and_links(
    gpu: CudaBackend, capability: tuple[int, int], itemsize: int
) -> None:
    ptx = Placing(CudaCompiler(capability)).ptx(itemsize)
    assert find_faults(ptx) == []
    assert ".f32" not in ptx
    assert len(link_cubin(ptx, capability)) > 1_000
