"""The deepest kernels that are admitted compile and run: what is nearer to Python's own limits is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from p2pcompute.errors import KernelError
from p2pcompute.execution import _lower_expr
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language import MAX_BLOCKS, MAX_LOOPS, MAX_NESTING, MAX_TREE_DEPTH
from p2pcompute.execution._language_capture import source_digest

LAUNCH = Launch(grid=(2, 1, 1), block=(8, 1, 1), dims=1)
SPECS: list[ArgSpec] = [OutputSpec(dtype="int64", shape=(16,)), InputSpec(dtype="int64", shape=(16,))]
X = np.arange(16, dtype=np.int64)
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def backend() -> Iterator[CpuBackend]:
    with CpuBackend(1) as made:
        yield made


def kernel(body: str, *, together: bool = False) -> str:
    """`body` gives `v`, of threads by themselves or between barriers."""
    head = "    s = cuda.shared.array(8, np.int64)\n" if together else ""
    tail = "    s[cuda.threadIdx.x] = v\n    cuda.syncthreads()\n    v = s[cuda.threadIdx.x]\n" if together else ""
    return f"def k(out, x):\n{head}    i = cuda.grid(1)\n    v = 0\n{body}{tail}    out[i] = v\n"


def loops(count: int, head: str = "for a{} in range(1):") -> str:
    lines = [" " * (4 + level) + head.format(level) + "\n" for level in range(count)]
    return "".join(lines) + " " * (4 + count) + "v += i + x[i]\n"


def uniform(count: int) -> str:
    """Loops with a barrier in the innermost."""
    return loops(count).replace("v += i + x[i]", "cuda.syncthreads(); v += i + x[i]")


def ladder(arms: int, last: str = "v = 7") -> str:
    lines = [f"    {'el' if arm else ''}if i == {100 + arm}:\n        v = {arm}\n" for arm in range(arms - 1)]
    return "".join(lines) + f"    elif i < 99:\n        {last}\n"


def choices(count: int) -> str:
    """Conditional expressions in each other: each is a block in what is compiled."""
    return f"    v = {'(2 * i if i >= 0 else '.join(['', *[''] * count])}0{')' * count}\n"


def chosen_last(arms: int) -> str:
    """Both at once: as many arms, and in the last one conditional expressions in each other."""
    return ladder(arms, choices(MAX_NESTING - 6).strip())


SHAPES: dict[str, tuple[Callable[[int], str], int, Callable[[int], Array]]] = {
    "for": (loops, MAX_LOOPS, lambda n: 2 * X),
    "while": (lambda n: loops(n, "while v < 2 * i:"), MAX_LOOPS, lambda n: 2 * X),
    "if in for": (lambda n: loops(n).replace("v +=", "if i >= 0: v +="), MAX_LOOPS, lambda n: 2 * X),
    "elif": (ladder, MAX_BLOCKS, lambda n: np.full(16, 7)),
    "elif and choices": (chosen_last, MAX_BLOCKS, lambda n: 2 * X),
    "sum": (lambda n: f"    v = {' + '.join(['i'] * n)}\n", MAX_TREE_DEPTH - 9, lambda n: n * X),
    "differences": (
        lambda n: f"    v = {' - '.join(['x[i] * (i + 1)'] * n)}\n",
        MAX_TREE_DEPTH - 9,
        lambda n: (2 - n) * X * (X + 1),
    ),
    "brackets": (lambda n: f"    v = {'min(' * n}i{', 99)' * n}\n", MAX_NESTING - 6, lambda n: X),
    "loads": (lambda n: f"    v = {'x[' * n}i{']' * n}\n", MAX_NESTING - 6, lambda n: X),
    "choices": (choices, MAX_NESTING - 6, lambda n: 2 * X),
}


def source_of(text: str) -> KernelSource:
    return KernelSource(text=text, entry="k", digest=source_digest("k", text))


def refusal(text: str) -> KernelError | None:
    try:
        admit(source_of(text))
    except KernelError as error:
        return error
    return None


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_admitted_compiles(name: str, together: bool, backend: CpuBackend) -> None:
    made, least, due = SHAPES[name]
    for most in range(least, 2 * MAX_TREE_DEPTH):
        error = refusal(kernel(made(most + 1), together=together))
        if error is not None:
            assert re.search(r"in each other|nested deeper|terms in one chain", error.reason)
            assert error.line > 1
            assert error.instead
            break
    else:
        pytest.fail("nothing is too deep")
    found = np.zeros(16, np.int64)
    compiled = backend.compile(source_of(kernel(made(most), together=together)), LAUNCH, SPECS)
    compiled.run_blocks(0, 2, [X], [found.reshape(2, 8) if together else found])
    assert np.array_equal(found, due(most))


@pytest.mark.parametrize("word", ["and", "or"])
def test_a_long_condition_and_a_loop_of_barriers(word: str, backend: CpuBackend) -> None:
    tests = f" {word} ".join(f"i != {100 + number}" for number in range(1_000))
    texts = [
        kernel(f"    v = 3 if {tests} else 4\n"),
        kernel(f"    v = min({', '.join(['i + 3'] * 32)})\n"),
        kernel(uniform(MAX_LOOPS), together=True),
    ]
    for text, due in zip(texts, (np.full(16, 3), X + 3, 2 * X), strict=True):
        found = np.zeros(16, np.int64)
        compiled = backend.compile(source_of(text), LAUNCH, SPECS)
        compiled.run_blocks(0, 2, [X], [found.reshape(2, 8) if "shared" in text else found])
        assert np.array_equal(found, due)


def test_brackets_without_names_are_more_than_python_takes(
    backend: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lower_expr, "_MOST_BRACKETS", 100_000)
    text = kernel(SHAPES["sum"][0](MAX_TREE_DEPTH - 9))
    with pytest.raises(SyntaxError, match=re.escape("too many nested parentheses")):
        backend.compile(source_of(text), LAUNCH, SPECS)
