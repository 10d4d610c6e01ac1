"""Kernels that were written to deceive: each of these once passed where it must not, or took a machine's time."""

from __future__ import annotations

import ast

import numpy as np
import pytest

from p2pcompute.errors import KernelTypeError
from p2pcompute.execution import _index_values
from p2pcompute.execution._api import ArgSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import Admitted, admit
from p2pcompute.execution._guard_block import _Cutter
from p2pcompute.execution._language import MAX_LOOPS
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import lower

LAUNCH = Launch(grid=(2, 1, 1), block=(32, 1, 1), dims=1)
OUT = OutputSpec(dtype="int64", shape=(64,))


def admitted(text: str) -> Admitted:
    return admit(KernelSource(text=text, entry="f", digest=source_digest("f", text)))


PASSED = """
def push(mine, shared, k):
    mine[0] = shared[k]
def f(out):
    sm = cuda.shared.array(32, np.int64)
    mine = cuda.local.array(1, np.int64)
    tx = cuda.threadIdx.x
    sm[tx] = tx + 1{between}
    push(mine, sm, tx + 1)
    out[cuda.grid(1)] = mine[0]
"""


def test_a_function_that_is_called_for_what_it_stores_loads_what_others_store() -> None:
    """Threads one after the other find zeros, and side by side anything: who ran it could be framed."""
    with pytest.raises(KernelTypeError, match="a device function loads from sm"):
        lower(admitted(PASSED.format(between="")), LAUNCH, [OUT])
    assert lower(admitted(PASSED.format(between="\n    cuda.syncthreads()")), LAUNCH, [OUT]).block is not None


def test_loops_in_loops_around_a_barrier_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level with a way out once doubled the time: 28 levels, half an hour, and before a worker was asked."""
    text = "def f(out, n):\n"
    for level in range(MAX_LOOPS):
        deep = "    " * (level + 1)
        text += f"{deep}for a{level} in range(n):\n{deep}    if n > 3:\n{deep}        break\n"
    text += "    " * (MAX_LOOPS + 1) + "cuda.syncthreads()\n    out[cuda.grid(1)] = 1\n"
    calls = 0
    plain = _Cutter.find_structure

    def counted(*args: object) -> bool:
        nonlocal calls
        calls += 1
        assert calls < 1000
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(_Cutter, "find_structure", counted)
    plan = admitted(text).plan
    assert plan is not None
    assert len(plan.loops) == MAX_LOOPS


@pytest.mark.parametrize("test", ["k < 4 + k * 0 and t < 16", "t < 16", "True", "not False", "1 < 2", "1"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_loop_without_an_end_that_nobody_enters_compiles(test: str, alone: bool) -> None:
    """A requester's types are right, and it was the provider's compiler that failed."""
    lines = ["t = cuda.threadIdx.x", "k = 0", "if n > 9:", f"    while {test}:", "        k += 1"]
    if not alone:
        lines = ["sm = cuda.shared.array(16, np.int64)", *lines, "        cuda.syncthreads()", "sm[t] = k"]
        if "t < 16" in test:  # not the same for all: no barrier within
            lines.remove("        cuda.syncthreads()")
    lines += ["for t in range(k):", "    k += 2", "out[cuda.grid(1)] = k + 5"]
    text = "def f(out, n):\n" + "".join(f"    {line}\n" for line in lines)
    launch = Launch(grid=(2, 1, 1), block=(16, 1, 1), dims=1)
    specs: list[ArgSpec] = [OutputSpec(dtype="int64", shape=(32,)), ScalarSpec(dtype="int64", value=np.int64(3))]
    lower(admitted(text), launch, specs)
    with CpuBackend() as backend:
        compiled = backend.compile(KernelSource(text=text, entry="f", digest=source_digest("f", text)), launch, specs)
        rows = np.zeros((32,) if alone else (2, 16), np.int64)
        compiled.run_blocks(0, 2, [np.int64(3)], [rows])
    assert (rows == 5).all()


def test_a_loop_with_a_long_test_is_not_gone_through_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that are lost one after the other, each after many turns: once a minute and more."""
    text = "def f(out, n):\n    m = cuda.local.array(4, np.int64)\n    s = 0\n"
    text += "".join(f"    a{at} = {at}\n" for at in range(12))
    text += f"    while s < 250 and {' and '.join(['(' + ' + '.join(['n'] * 100) + ') > 0'] * 20)}:\n        s += 1\n"
    text += "".join(f"        a{at} += {4_400_000_000 + at * 1_000_000}\n" for at in range(12))
    text += "        m[s & 3] = 1\n    out[cuda.grid(1)] = m[0]\n"
    calls = 0
    plain = _index_values.IndexWalk.value

    def counted(walk: _index_values.IndexWalk, node: ast.expr) -> object:
        nonlocal calls
        calls += 1
        return plain(walk, node)

    monkeypatch.setattr(_index_values.IndexWalk, "value", counted)
    lower(admitted(text), LAUNCH, [OUT, ScalarSpec(dtype="int64", value=np.int64(1))])
    assert 1000 < calls < 1_000_000
