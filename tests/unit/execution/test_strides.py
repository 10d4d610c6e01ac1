"""Loops by strides of the launch: their code gives the bits of a loop that each thread goes through by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from p2pcompute.execution import _index_ranges
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import lower
from p2pcompute.execution._rows import Layout

Array = np.ndarray[Any, Any]

INT_MAX = 2**63 - 1


@pytest.fixture(scope="module", params=[1, 2])
def backend(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    with CpuBackend(request.param) as made:
        yield made


class Case:
    """A kernel ``f(out, x, n)`` over float32, bound: `shape` of the output, `length` of x, blocks and threads."""

    def __init__(self, body: str, shape: tuple[int, ...], length: int, geometry: tuple[Any, Any], n: int = 5) -> None:
        text = "def f(out, x, n):\n" + "".join(f"    {line}\n" for line in body.splitlines())
        self.source = KernelSource(text=text, entry="f", digest=source_digest("f", text))
        grid, block = ((one,) if isinstance(one, int) else one for one in geometry)
        grid3, block3 = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        self.launch = Launch(grid=grid3, block=block3, dims=len(block))  # type: ignore[arg-type]
        x_shape = (length,) if len(shape) == 1 else shape
        self.x = np.random.default_rng(length).standard_normal(x_shape, dtype=np.float32)
        self.values = [self.x, np.int64(n)]
        self.specs: list[ArgSpec] = [
            OutputSpec(dtype="float32", shape=shape),
            InputSpec(dtype="float32", shape=x_shape),
            ScalarSpec(dtype="int64", value=np.int64(n)),
        ]
        self.layout = Layout.of_admitted(admit(self.source), self.launch, self.specs)

    def body(self) -> str:
        return lower(admit(self.source), self.launch, self.specs).body

    def rows(self, backend: CpuBackend) -> bytes:
        """Rows of the whole launch; in parts, and thread by thread, they are the same."""
        compiled = backend.compile(self.source, self.launch, self.specs)
        blocks, each = self.launch.blocks, self.layout.items_per_block
        (row,) = self.layout.row_shapes
        whole = np.zeros((blocks * each, *row), np.float32)
        compiled.run_blocks(0, blocks, self.values, [whole])
        for step in {1, 3, blocks // 2 + 1}:
            for first in range(0, blocks, step):
                count = min(step, blocks - first)
                part = np.full((count * each + 2, *row), 77, np.float32)
                part[1:-1] = 0
                compiled.run_blocks(first, count, self.values, [part[1:-1]])
                assert np.all(part[0] == 77)
                assert np.all(part[-1] == 77)
                assert part[1:-1].tobytes() == whole[first * each :][: count * each].tobytes()
        ids = np.random.default_rng(2).permutation(blocks * each)
        single = np.zeros_like(whole)
        compiled.run_threads(ids, self.values, [single])
        assert single.tobytes() == whole[ids].tobytes()
        return whole.tobytes()


def as_loops(case: Case, backend: CpuBackend, patch: pytest.MonkeyPatch) -> bytes:
    """The rows where nothing is known of how often a thread goes through a loop."""
    with patch.context() as within:
        within.setattr(_index_ranges._Walk, "at_most_once", lambda *_: False)
        assert "for t" in case.body() or "while " in case.body()
        return case.rows(backend)


LINE = "for j in range(cuda.grid(1), {stop}, {step}):\n    out[j] = x[j] * 2.0 + j"
WHILE = "j = cuda.grid(1)\nwhile j < {stop}:\n    out[j] = x[j] * 2.0 + j\n    j += {step}"
BEHIND = (
    "i = cuda.grid(1)\nj = -7\ns = 0.5\nfor j in range(i, {stop}, {step}):\n    s += x[j]\n    n += 1\n"
    "out[i] = s + j + n"
)
BEHIND_WHILE = (
    "i = cuda.grid(1)\nj = i\nk = 0\ns = 0.5\nwhile j < {stop}:\n    s += x[j]\n    j += {step}\n    s += x[j]\n"
    "    k += 1\nout[i] = s + j + k"
)
CHANGED = "i = cuda.grid(1)\nfor j in range(i, {stop}, {step}):\n    j = j * 3 + n\n    n = j\nout[i] = j + n"
NESTED = (
    "i = cuda.grid(1)\ns = 1.0\nfor j in range(i, {stop}, {step}):\n    for k in range(i, {stop}, {step}):\n"
    "        if x[k] > 0.0:\n            continue\n        s += x[k] * j\nout[i] = s"
)
LEFT = (
    "i = cuda.grid(1)\nfor j in range(i, {stop}, {step}):\n    if x[j] > 0.0:\n        return\n    out[j] = x[j]\n"
    "out[i] = 3"
)
BROKEN = (
    "i = cuda.grid(1)\nfor k in range(3):\n    for j in range(i, {stop}, {step}):\n        if x[j] > 0.5:\n"
    "            break\n        if x[j] > 0.0:\n            continue\n        out[i] += x[j] + k\n    out[i] += 10.0"
)
AROUND = "for j in range(cuda.grid(1), {stop}, {step}):\n    out[j] = x[j - 1] + 2.0 * x[j + 1]"
ALL = [LINE, WHILE, BEHIND, BEHIND_WHILE, CHANGED, NESTED, LEFT, BROKEN, AROUND]
NAMES = ["line", "while", "behind", "behind a while", "changed", "nested", "left", "broken", "around"]


@pytest.mark.parametrize("body", ALL, ids=NAMES)
@pytest.mark.parametrize(
    ("size", "length", "geometry", "stop", "n"),
    [
        (100, 100, (4, 32), "x.size", 5),  # some threads have no element
        (96, 96, (3, 32), "x.size", 5),  # all have one
        (100, 70, (4, 32), "x.size", 5),  # some threads of the output have no turn
        (100, 100, (4, 32), "n", 50),
        (100, 100, (4, 32), "n", 0),
        (100, 100, (4, 32), "n", -5),
        (2, 1, (1, 2), "x.size", 5),
    ],
)
def test_a_loop_that_no_thread_goes_through_twice_is_none(
    backend: CpuBackend,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    size: int,
    length: int,
    geometry: tuple[int, int],
    stop: str,
    n: int,
) -> None:
    case = Case(body.format(stop=stop, step="cuda.gridsize(1)"), (size,), length, geometry, n)
    left = body is BROKEN or body is NESTED  # a break, a continue needs a loop around it
    assert ("for t" in case.body() or "while " in case.body()) is left
    assert case.rows(backend) == as_loops(case, backend, monkeypatch)


@pytest.mark.parametrize("body", [BEHIND, BEHIND_WHILE, CHANGED])
@pytest.mark.parametrize(
    ("stop", "step", "n"),
    [
        ("x.size", "n", 99),  # the last thread but one has a second turn
        ("x.size", "n", 0),
        ("x.size", "n", -1),
        ("x.size", "n", -(2**63)),
        ("-5", "n", -1),  # down
        ("-5", "-3", 1),
        ("x.size", "cuda.gridsize(1) - i * n", 1),  # not the same for all
        ("n", "1", INT_MAX),
        ("x.size + 40", "cuda.gridsize(1)", 1),
    ],
)
def test_a_loop_that_threads_may_go_through_twice_stays(body: str, stop: str, step: str, n: int) -> None:
    found = Case(body.format(stop=stop, step=step), (100,), 100, (4, 32), n).body()
    assert "for t" in found or "while " in found


def test_a_counter_that_is_set_back_goes_round_again(backend: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "i = cuda.grid(1)\nj = i\nk = 0\nwhile j < x.size:\n    k += 1\n    j += cuda.gridsize(1)\n"
        "    if k < 3:\n        j = i\nout[i] = k"
    )
    case = Case(body, (100,), 90, (4, 32))
    assert "while " in case.body()
    assert case.rows(backend) == as_loops(case, backend, monkeypatch)


@pytest.mark.parametrize(
    "head", ["for j in range(i, x.size, cuda.gridsize(1)):", "while j < x.size:\n    j += cuda.gridsize(1)"]
)
@pytest.mark.parametrize("threads", [32, 64])
def test_what_is_set_in_a_first_turn_is_there_in_a_second(
    backend: CpuBackend, monkeypatch: pytest.MonkeyPatch, head: str, threads: int
) -> None:
    """The place of a load is known in a loop's first turn; in later ones it lies outside."""
    body = f"i = cuda.grid(1)\nj = i\nk = 0\ns = 0.0\n{head}\n    s += x[k] + 1.0\n    k += 1000\nout[i] = s"
    case = Case(body, (2 * threads,), 100, (2, threads))
    assert ("load1(" in case.body()) is (threads == 32)
    assert case.rows(backend) == as_loops(case, backend, monkeypatch)


def test_places_near_the_greatest_number(backend: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A while goes on where its counter has wrapped; a range ends."""
    near = "i = cuda.grid(1)\nj = i + {start}\nk = 0\nwhile j < n:\n    k += 1\n    j += {step}\nout[i] = k + (j < 0)"
    wraps = Case(near.format(start=2**62, step=2**62 + 2**61), (8,), 8, (1, 8), INT_MAX)
    assert "while " in wraps.body()
    stays = Case(near.format(start=2**62, step=2**62 - 8), (8,), 8, (1, 8), 2**62 + 100)
    assert "while " not in stays.body()
    assert stays.rows(backend) == as_loops(stays, backend, monkeypatch)
    counted = "i = cuda.grid(1)\nk = 0\nfor j in range(i, n, {step}):\n    k += 1\nout[i] = k"
    once = Case(counted.format(step=INT_MAX), (8,), 8, (1, 8), INT_MAX)
    assert "for t" not in once.body()
    assert once.rows(backend) == as_loops(once, backend, monkeypatch) == np.ones(8, np.float32).tobytes()


def test_along_two_and_three_axes(backend: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = (
        "sx, sy = cuda.gridsize(2)\npx, py = cuda.grid(2)\nfor c in range(px, x.shape[1], sx):\n"
        "    for r in range(py, x.shape[0], sy):\n        out[r, c] = x[r, c] + 10.0 * x[r - 1, c + 1]"
    )
    space = (
        "sx, sy, sz = cuda.gridsize(3)\npx, py, pz = cuda.grid(3)\nfor c in range(px, x.shape[2], sx):\n"
        "    for b in range(py, x.shape[1], sy):\n        for a in range(pz, x.shape[0], sz):\n"
        "            out[a, b, c] = x[a, b, c] * 2.0"
    )
    for body, shape, geometry in (
        (plane, (11, 19), ((4, 3), (5, 4))),
        (plane, (12, 32), ((2, 3), (16, 4))),
        (space, (5, 6, 9), ((3, 2, 3), (4, 4, 2))),
    ):
        case = Case(body, shape, 0, geometry)
        assert "for t" not in case.body()
        assert case.rows(backend) == as_loops(case, backend, monkeypatch)


TOGETHER = (
    "t = cuda.shared.array(32, np.float32)\ni = cuda.grid(1)\np = cuda.threadIdx.x\ns = 0.5\nm = 0\n"
    "for b in range(cuda.blockIdx.x, n, cuda.gridDim.x):\n"
    "    t[p] = x[b * 32 + p]\n    cuda.syncthreads()\n    s += t[31 - p] * b\n    m += 1\n    cuda.syncthreads()\n"
    "for j in range(i, x.size, cuda.gridsize(1)):\n    s += x[j]\n    m += 10\n"
    "cuda.syncthreads()\nc = cuda.blockIdx.x\nwhile c < n:\n"
    "    t[p] = s\n    cuda.syncthreads()\n    s += t[31 - p] + c\n    c += cuda.gridDim.x\n    cuda.syncthreads()\n"
    "out[i] = s + b + c + 0.5 * m + j"
)


@pytest.mark.parametrize(("n", "stays"), [(3, False), (4, False), (0, False), (5, True), (9, True)])
def test_blocks_that_go_on_by_strides(
    backend: CpuBackend, monkeypatch: pytest.MonkeyPatch, n: int, stays: bool
) -> None:
    """Barriers stand in a loop over blocks of the input: a block reaches them once, or not at all."""
    case = Case(TOGETHER, (120,), 100, (4, 32), n)
    assert ("for t" in case.body()) is stays
    assert case.rows(backend) == as_loops(case, backend, monkeypatch)
