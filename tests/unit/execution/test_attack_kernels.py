"""Over a hundred kernels of strangers who mean harm, in seventeen classes: each is refused or harmless, and does what
it was written for where its defence is off.

Without the guard a text is run as Python runs it, by a machine of a few lines that also plays the threads of a block
in an order that a test gives. Without the tests of indices and the helpers of arithmetic it is compiled as it stands.
"""

from __future__ import annotations

import ast
import gc
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p2pcompute import random
from p2pcompute.errors import KernelError
from p2pcompute.execution import _cpu, _index_ranges, _lower, _lower_scratch
from p2pcompute.execution import _language as lang
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import Admitted, admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import lower
from p2pcompute.execution._rows import check_launch

from .hostile.attack_kernels import AS_PYTHON, MEMORY, ORDER, STATE, SUMS, TOGETHER, UNDEFINED, body

LAUNCH = Launch(grid=(2, 1, 1), block=(8, 1, 1), dims=1)
SPECS: list[ArgSpec] = [
    OutputSpec(dtype="int64", shape=(16,)),
    InputSpec(dtype="float32", shape=(16,)),
    ScalarSpec(dtype="int64", value=np.int64(3)),
]
X = np.arange(16, dtype=np.float32)


def each(*tables: dict[str, dict[str, str]]) -> pytest.MarkDecorator:
    """Every kernel's text, called by its class and name."""
    kernels = [(kind, name, text) for table in tables for kind, own in table.items() for name, text in own.items()]
    return pytest.mark.parametrize(
        "text", [text for *_, text in kernels], ids=[f"{kind}: {name}" for kind, name, _ in kernels]
    )


def source(text: str) -> KernelSource:
    return KernelSource(text=text, entry="k", digest=source_digest("k", text))


def admitted_here(given: KernelSource) -> None:
    """What a worker does with a text before it makes code of it, and a requester with its own; a provider's node does
    none of it."""
    found = admit(given)
    check_launch(found, LAUNCH, SPECS)
    lower(found, LAUNCH, SPECS)


def refused(text: str) -> KernelError:
    """How a requester and a provider's worker refuse a text: with the same words, and a line of it."""
    with pytest.raises(KernelError) as caught:
        admitted_here(source(text))
    with CpuBackend() as backend, pytest.raises(KernelError) as worker:
        backend.compile(source(text), LAUNCH, SPECS)
    assert str(worker.value) == str(caught.value)
    assert 0 <= caught.value.line <= text.count("\n") + 1
    assert caught.value.reason
    assert caught.value.instead, caught.value.reason
    return caught.value


# A machine without defences


class Cuda:
    """What numba.cuda is to a kernel, for one thread at a time."""

    def __init__(self, blocks: int, threads: int) -> None:
        self.gridDim = SimpleNamespace(x=blocks, y=1, z=1)
        self.blockDim = SimpleNamespace(x=threads, y=1, z=1)
        self.memory: dict[tuple[int, int], Any] = {}
        self.shared = SimpleNamespace(array=self._shared)
        self.local = SimpleNamespace(array=np.zeros)
        self.atomic = SimpleNamespace(
            add=lambda a, i, v: self._before(a, i, a[i] + v),
            max=lambda a, i, v: self._before(a, i, max(a[i], v)),
            exch=lambda a, i, v: self._before(a, i, v),
        )

    def take(self, block: int, thread: int, made: list[int]) -> None:
        """Go on as this thread; `made` counts its shared arrays."""
        self.blockIdx = SimpleNamespace(x=block, y=0, z=0)
        self.threadIdx = SimpleNamespace(x=thread, y=0, z=0)
        self.made = made

    def _shared(self, shape: Any, dtype: Any) -> Any:
        self.made[0] += 1
        return self.memory.setdefault((self.blockIdx.x, self.made[0]), np.zeros(shape, dtype))

    @staticmethod
    def _before(array: Any, place: Any, value: Any) -> Any:
        found, array[place] = array[place], value
        return found

    def grid(self, _axes: int) -> int:
        return int(self.blockIdx.x * self.blockDim.x + self.threadIdx.x)

    def gridsize(self, _axes: int) -> int:
        return int(self.gridDim.x * self.blockDim.x)


class _Barriers(ast.NodeTransformer):
    """A barrier is where a thread gives way."""

    def visit_Expr(self, node: ast.Expr) -> Any:
        return ast.Expr(ast.Yield()) if ast.unparse(node) == "cuda.syncthreads()" else node


class WaitsForEver(Exception):
    """Some threads of a block have ended, or are elsewhere, and others wait."""


def played(text: str, *, backwards: bool = False, parts: int = 1, world: dict[str, Any] | None = None) -> Any:
    """The output of a kernel that nothing has looked at, whose threads run in this order; of so many chunks."""
    cuda = Cuda(2, 8)
    names: dict[str, Any] = {"cuda": cuda, "np": np, "math": math, "random": random, **(world or {})}
    tree = ast.fix_missing_locations(_Barriers().visit(ast.parse(text)))
    exec(compile(tree, "<stranger>", "exec"), names)
    x = names["x"] = names.get("x", X.copy())
    order = range(7, -1, -1) if backwards else range(8)
    outs = [np.zeros(16, np.int64) for _ in range(parts)]
    for block in (1, 0) if backwards else (0, 1):
        out = outs[block % parts]
        running: dict[int, tuple[Iterator[None], list[int]]] = {}
        for thread in order:
            made = [0]
            cuda.take(block, thread, made)
            try:
                begun = names["k"](out, x, 3)
            except IndexError:
                continue
            if begun is not None:
                running[thread] = begun, made
        while running:
            ended = []
            for thread, (turns, made) in running.items():
                cuda.take(block, thread, made)
                try:
                    next(turns)
                except StopIteration:
                    ended.append(thread)
                except IndexError:
                    ended.append(thread)
            if ended and len(ended) < len(running):
                raise WaitsForEver
            for thread in ended:
                del running[thread]
    return np.concatenate([outs[block % parts][8 * block : 8 * block + 8] for block in (0, 1)])


# Refused, since they are not in the language


@each(AS_PYTHON, STATE)
def test_what_would_act_on_the_machine_is_refused(text: str) -> None:
    refused(text)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@each(AS_PYTHON)
def test_it_acts_where_a_text_is_run_as_it_comes(text: str, tmp_path: Path) -> None:
    secret, made = tmp_path / "secret", tmp_path / "made"
    secret.write_text("hidden")
    text = text.replace("{secret}", str(secret)).replace("{made}", str(made))
    x = X.copy()
    world: dict[str, Any] = {"x": x}
    out = played(text, world=world)
    assert out[0] == 42 or 42 in x or x.sum() > X.sum() or made.exists()
    gc.collect()  # files that it has left open are closed within this test


@each(STATE)
def test_what_hangs_on_time_and_luck_differs_from_run_to_run(text: str) -> None:
    try:
        text = text.replace(
            "out[i] = v", "out[i] = v * 2 ** 40 if v < 2 ** 20 else v"
        )  # a random number has no integer part
        assert not np.array_equal(played(text), played(text))
    finally:
        np.__dict__.pop("seen", None)


@each(ORDER)
def test_a_thread_at_others_rows_is_refused(text: str) -> None:
    refused(text)


@each(ORDER)
def test_its_result_hangs_on_the_order_of_threads_or_on_chunks(text: str) -> None:
    whole = played(text)
    assert not (np.array_equal(whole, played(text, backwards=True)) and np.array_equal(whole, played(text, parts=2)))


@each(TOGETHER)
def test_what_threads_do_to_each_other_is_refused(text: str) -> None:
    refused(text)


@each({kind: own for kind, own in TOGETHER.items() if kind != "barriers for some"})
def test_its_result_hangs_on_the_order_of_a_blocks_threads(text: str) -> None:
    assert not np.array_equal(played(text), played(text, backwards=True))


@each({"barriers for some": TOGETHER["barriers for some"]})
def test_threads_that_miss_a_barrier_hold_up_the_others_for_ever(text: str) -> None:
    with pytest.raises(WaitsForEver):
        played(text)


# Admitted, and harmless: memory


class _Among:
    """Arrays that lie among sevens."""

    def __init__(self) -> None:
        self.arenas: list[tuple[Any, Any]] = []

    def array(self, size: int, dtype: Any) -> Any:
        whole = np.full(4096 + size + 4096, 7, dtype)
        inner = whole[4096 : 4096 + size]
        inner[:] = 0
        self.arenas.append((whole, inner))
        return inner

    @property
    def written(self) -> bool:
        return any((whole[:4096] != 7).any() or (whole[4096 + inner.size :] != 7).any() for whole, inner in self.arenas)


def computed(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, _Among]:
    """The output, from compiled code whose arrays lie among sevens."""
    among = _Among()

    def job(self: Any, entry: Any, given: list[Any]) -> Any:
        size = self._layout.launch.threads_per_block
        memory = [
            among.array(count * size if by_thread else count, dtype).reshape(1, -1)
            for dtype, count, by_thread in self._program.memory
        ]
        return _cpu._Job(entry, given, memory)

    x = among.array(16, np.float32)
    x[:] = X
    with CpuBackend(1) as backend:
        compiled: Any = backend.compile(source(text), LAUNCH, SPECS)
        monkeypatch.setattr(type(compiled), "_job", job)
        out = among.array(16, np.int64)
        compiled.run_blocks(0, 2, [x, np.int64(3)], [out.reshape(2, 8) if "shared" in text else out])
    return out, among


@each(MEMORY)
def test_nothing_beside_an_array_is_read_or_written(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, among = computed(text, monkeypatch)
    assert 7 not in out[8:]
    assert not among.written


@each(MEMORY)
def test_without_the_test_of_an_index_it_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = _lower_scratch.ScratchLowering.place
    monkeypatch.setattr(_index_ranges.IndexRanges, "inside", lambda *_: True)  # as if it had been proved
    monkeypatch.setattr(_lower_scratch.ScratchLowering, "place", lambda *given: (place(*given)[0], ""))
    out, among = computed(text, monkeypatch)
    assert 7 in out or among.written


# Admitted, and harmless: arithmetic

PLAIN = """
import json, math, os, sys
import numba, numpy as np
from numba import int64, float32
for line in sys.stdin:
    text, a, x = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = numba.njit([(int64, float32)])(eval(f"lambda a, x: {text}", {"math": math, "np": np}))(a, x)
            os.write(write, str(int(found)).encode())
        except BaseException as error:
            os.write(write, type(error).__name__.encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    os.close(write)
    said = os.read(read, 100).decode() or f"signal {os.WTERMSIG(status)}"
    print(said, flush=True)
"""


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    """What numba makes of each expression by itself: a number, an error, or a signal that ended the process."""
    given = "".join(json.dumps([text, a, x]) + "\n" for text, a, x, _ in UNDEFINED.values())
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], input=given, capture_output=True, text=True, check=True, timeout=300
    )
    return dict(zip(UNDEFINED, done.stdout.split("\n"), strict=False))


@pytest.fixture(scope="module")
def strictly() -> dict[str, int]:
    """What the back end gives."""
    text = "def k(out, many, floats):\n    i = cuda.grid(1)\n    a = many[i]\n    x = floats[i]\n" + "".join(
        f"    if i == {place}:\n        out[i] = {expression}\n"
        for place, (expression, *_) in enumerate(UNDEFINED.values())
    )
    count = len(UNDEFINED)
    specs: list[ArgSpec] = [
        OutputSpec(dtype="int64", shape=(count,)),
        InputSpec(dtype="int64", shape=(count,)),
        InputSpec(dtype="float32", shape=(count,)),
    ]
    a = np.array([a for _, a, _, _ in UNDEFINED.values()])
    x = np.array([x for _, _, x, _ in UNDEFINED.values()], np.float32)
    launch = Launch(grid=(1, 1, 1), block=(count, 1, 1), dims=1)
    out = np.zeros(count, np.int64)
    with CpuBackend(1) as backend:
        backend.compile(source(text), launch, specs).run_blocks(0, 1, [a, x], [out])
    return dict(zip(UNDEFINED, out.tolist(), strict=True))


@pytest.mark.parametrize("name", UNDEFINED)
def test_what_machines_leave_open_has_one_result(name: str, strictly: dict[str, int], plain: dict[str, str]) -> None:
    assert strictly[name] == UNDEFINED[name][3]
    assert plain[name] != str(UNDEFINED[name][3])


# What grows faster than its text


@pytest.mark.parametrize("name", SUMS)
def test_a_number_is_never_made_larger_than_the_language_has_it(name: str) -> None:
    """Python's own integers grow."""
    assert eval(SUMS[name]).bit_length() > 64_000
    refused(body(f"v = {SUMS[name]}"))


def chain(length: int) -> str:
    """Functions each of which calls the last one twice."""
    text = "def f0(a):\n    return a + 1\n"
    text += "".join(f"def f{at}(a):\n    return f{at - 1}(a) + f{at - 1}(a)\n" for at in range(1, length))
    return text + body(f"v = f{length - 1}(i)")


def instances(types: int) -> str:
    """A function for each combination of types of four arguments."""
    kinds = ["i", "np.uint64(i)", "np.float32(i)", "np.float64(i)", "i > 0"][:types]
    calls = [f"v = v + f({a}, {b}, {c})" for a in kinds for b in kinds for c in kinds]
    return "def f(a, b, c):\n    return a + b + c\n" + body("v = np.float64(0.0)", *calls)


GROWING: dict[str, tuple[str, str, Callable[[Admitted], int], int]] = {
    "calls that double": (
        chain(20),
        "MAX_EXPANDED_NODES",
        lambda found: len(found.functions) and 2 ** (len(found.functions) - 2),
        2**18,
    ),
    "functions for each mix of types": (
        instances(5),
        "MAX_INSTANCES",
        lambda found: len(lower(found, LAUNCH, SPECS).functions),
        100,
    ),
    "a shared array of a gibibyte": (
        body("sm = cuda.shared.array(1 << 27, np.int64)".replace("1 << 27", "134217728"), "v = sm[i]"),
        "MAX_SHARED_BYTES",
        lambda found: sum(array.nbytes for array in found.entry.scratch.values()),
        1 << 30,
    ),
    "a local array of a gibibyte": (
        body("own = cuda.local.array(134217728, np.int64)", "v = own[i]"),
        "MAX_LOCAL_BYTES",
        lambda found: sum(array.nbytes for array in found.entry.scratch.values()),
        1 << 30,
    ),
    "many variables": (
        body(*(f"v{at} = {at}" for at in range(1000)), "v = v999"),
        "MAX_LOCALS",
        lambda found: len(found.entry.names),
        1000,
    ),
    "many functions": (
        "".join(f"def f{at}(a):\n    return a\n" for at in range(200)) + body("v = f7(i)"),
        "MAX_FUNCTIONS",
        lambda found: len(found.functions),
        200,
    ),
    "many barriers": (
        "def k(out, x, n):\n    i = cuda.grid(1)\n" + "    cuda.syncthreads()\n" * 300 + "    out[i] = 1\n",
        "MAX_BARRIERS",
        lambda found: sum(isinstance(node, ast.Call) for node in found.entry.nodes),
        300,
    ),
    "a text of many statements": (
        body(*("v = n + n + n" for _ in range(2000)), "v = 1"),
        "MAX_NODES",
        lambda found: len(found.entry.nodes),
        10_000,
    ),
}


@pytest.mark.parametrize("name", GROWING)
def test_what_a_text_grows_to_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, bound, size, least = GROWING[name]
    refused(text)
    for module in (lang, _lower):
        if hasattr(module, bound):
            monkeypatch.setattr(module, bound, 1 << 60)
    assert size(admit(source(text))) >= least


@pytest.mark.parametrize("text", ["(" * 5000 + "1" + ")" * 5000, "-" * 50_000 + "n", "x[" * 2000 + "0" + "]" * 2000])
def test_what_is_nested_ends_no_parser(text: str) -> None:
    """Python's own ends with errors of its kind."""
    refused(body(f"v = {text}"))
    with pytest.raises((SyntaxError, RecursionError, MemoryError)):
        exec(compile(body(f"v = {text}"), "<stranger>", "exec"), {})


def test_there_are_as_many_as_is_said() -> None:
    kinds = [own for table in (AS_PYTHON, ORDER, STATE, TOGETHER, MEMORY) for own in table.values()]
    kinds += [dict.fromkeys(UNDEFINED, ""), SUMS, dict.fromkeys(GROWING, "")]
    assert len(kinds) >= 15
    assert sum(map(len, kinds)) >= 60
