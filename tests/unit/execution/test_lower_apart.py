"""Mathematical functions out of line: many calls compile in bounded time, and give the bits that copies give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.execution import _lower_apart
from p2pcompute.execution._api import InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import Lowered, lower
from p2pcompute.kernel import device, kernel, out

from .test_tutorials import run, same


def lowered(lines: str, head: str = "", dtype: str = "float32") -> Lowered:
    text = f"{head}def work(out, x):\n    i = cuda.grid(1)\n    v = x[i]\n    s = 0.0\n{lines}    out[i] = s\n"
    source = KernelSource(text=text, entry="work", digest=source_digest("work", text))
    specs = (OutputSpec(dtype=dtype, shape=(64,)), InputSpec(dtype=dtype, shape=(64,)))
    return lower(admit(source), Launch(grid=(2, 1, 1), block=(32, 1, 1), dims=1), specs)


def calls(name: str, times: int) -> str:
    return f"    s += math.{name}(v, s)\n" * times if name == "pow" else f"    s += math.{name}(v)\n" * times


def test_few_calls_are_copied_and_many_are_not() -> None:
    assert "_apart" not in lowered(calls("pow", 8)).body
    assert lowered(calls("pow", 9)).body.count("pow32_apart(") == 9
    assert "_apart" not in lowered(calls("exp", 64) + calls("sin", 64)).body
    body = lowered(calls("exp", 65) + calls("sin", 64)).body
    assert (body.count("exp32_apart("), body.count("sin32("), "sin32_apart(" in body) == (65, 64, False)
    assert lowered(calls("sin", 9), dtype="float64").body.count("sin64_apart(") == 9


def test_device_functions_count_as_often_as_they_are_called() -> None:
    head = "def one(v):\n    return math.pow(v, v)\ndef three(v):\n    return one(v) + one(v) + one(v)\n"
    assert "_apart" not in str(lowered("    s += three(v)\n" * 2, head))
    code = lowered("    s += three(v)\n" * 3, head)
    assert [name for name, text in code.functions if "pow32_apart(" in text] == ["f0_one"]


def test_a_block_has_its_functions_out_of_line_too() -> None:
    code = lowered("    sm = cuda.shared.array(32, np.float32)\n    cuda.syncthreads()\n" + calls("pow", 9))
    assert code.block is not None
    assert (code.body.count("pow32_apart("), code.block.block.count("pow32_apart(")) == (9, 9)


@device
def mixed(v, w):
    return math.pow(v, w) + math.atan2(v, w) + math.exp(-v) + math.sin(w)


@kernel
def many(result, wide, x, y):
    i = cuda.grid(1)
    v, w = x[i], y[i]
    s = mixed(v, w) + mixed(w, v) + mixed(v, v) + mixed(w, w)
    s += mixed(v + 1, w) + mixed(v, w + 1) + mixed(v + 2, w) + mixed(v, w + 2) + mixed(v + 3, w)
    result[i] = s
    d = np.float64(v)
    wide[i] = math.pow(d, w) + math.sin(d) + math.tanh(d)


def test_out_of_line_they_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 200)).astype(np.float32) * 3
    x[:4] = [0, -0.0, np.inf, np.nan]
    binding = many.bind(out(200, np.float32), out(200, np.float64), x, y)
    found: list[Any] = []
    for few, most in ((10**6, 10**6), (0, 0)):  # all copied, and none
        monkeypatch.setattr(_lower_apart, "_FEW", few)
        monkeypatch.setattr(_lower_apart, "_MOST_COPIES", most)
        found.append(run(CpuBackend(), binding))
    for one, other in zip(*found, strict=True):
        same(one, other)
