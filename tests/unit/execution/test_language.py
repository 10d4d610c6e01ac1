"""From decorated functions to normalised source: what travels, what is refused and where the author is told."""

from __future__ import annotations

import ast
import inspect
import math
import math as m
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda, random
from p2pcompute import random as prng
from p2pcompute.cuda import blockDim, blockIdx, grid, threadIdx
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import InputSpec, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.kernel import Device, Kernel, Out, device, kernel, out

TABLE = np.arange(3)
LONG_TABLE = np.zeros(1025)
NUMBERS = (1, 2.5, 3)
SCALE = 2.5
WIDTH = 640
NEGATIVE = -3
FLAG = True
SINGLE = np.float32(0.1)
DOUBLE = np.float64(0.1)
SHORT = np.int16(-7)
LARGE = np.uint64(2**63)
INFINITE = -math.inf
NOT_A_NUMBER = math.nan
TEXT = "text"


def plain(a):
    return a


@device
def twice(a):
    """Comes along."""
    return a + a


@device
def four(a):
    return twice(twice(a))


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(k for k, line in enumerate(lines) if text in line)


@kernel
def everything(result: Any, x: Any) -> None:
    """Dropped."""
    i: int = cuda.grid(1)  # dropped as well
    value: float
    value = four(x[i]) * SCALE + WIDTH + NEGATIVE
    value += SINGLE + DOUBLE + SHORT + LARGE
    value = value if FLAG else INFINITE + NOT_A_NUMBER
    value += m.sqrt(value) + sqrt(value) + math.pi + np.sqrt(value) + np.float32(1)
    a, b, c, d = prng.philox(1, 2, 3, 4, 5, 6)
    value += random.uniform(a, b, c + d)
    result[i] = value


def test_one_spelling_for_everything() -> None:
    assert everything.source.text == (
        "def twice(a):\n"
        "    return a + a\n"
        "\n"
        "def four(a):\n"
        "    return twice(twice(a))\n"
        "\n"
        "def everything(result, x):\n"
        "    i = cuda.grid(1)\n"
        "    pass\n"
        "    value = four(x[i]) * 2.5 + 640 + -3\n"
        "    value += np.float32(0.10000000149011612) + np.float64(0.1) + -7 + np.uint64(9223372036854775808)\n"
        "    value = value if True else -math.inf + math.nan\n"
        "    value += math.sqrt(value) + math.sqrt(value) + 3.141592653589793 + np.sqrt(value) + np.float32(1)\n"
        "    a, b, c, d = random.philox(1, 2, 3, 4, 5, 6)\n"
        "    value += random.uniform(a, b, c + d)\n"
        "    result[i] = value\n"
    )
    assert everything.source.entry == "everything"
    assert everything.source.digest == source_digest("everything", everything.source.text)


def test_text_is_admitted_and_means_the_same() -> None:
    text = everything.source
    again = admit(text)
    assert again.entry.params == ("result", "x")
    assert ast.unparse(ast.parse(text.text)) + "\n" == text.text


def test_names_of_cuda_by_any_import() -> None:
    @kernel
    def by_name(result: Any) -> None:
        result[grid(1)] = blockIdx.x * blockDim.x + threadIdx.x

    @kernel
    def by_module(result: Any) -> None:
        result[cuda.grid(1)] = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x

    assert by_name.source.text.replace("by_name", "k") == by_module.source.text.replace("by_module", "k")


def test_names_of_numba_cuda_are_the_same_names() -> None:
    """In a process of its own: this one does not load numba.cuda."""
    program = """
import sys
from numba import cuda
from numba.cuda import grid, threadIdx, blockIdx, blockDim
from p2pcompute.kernel import kernel
@kernel
def k(result):
    i = cuda.grid(1)
    result[i] = grid(1) + threadIdx.x + cuda.blockIdx.y + blockDim.z
sys.stdout.write(k.source.text)
"""
    text = run_file(program)
    assert text == (
        "def k(result):\n    i = cuda.grid(1)\n"
        "    result[i] = cuda.grid(1) + cuda.threadIdx.x + cuda.blockIdx.y + cuda.blockDim.z\n"
    )


def run_file(program: str) -> str:
    """Run a program from a file, since a kernel's source has to be readable."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(program)
        result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=500, check=True)
        return result.stdout


def test_kernels_are_made_without_numba() -> None:
    text = run_file(
        """
import sys
import numpy as np
from p2pcompute import cuda
from p2pcompute.kernel import kernel, out
@kernel
def k(result, x):
    i = cuda.grid(1)
    result[i] = x[i]
k.bind(out(3, "float32"), np.zeros(3))
sys.stdout.write(str("numba" in sys.modules))
"""
    )
    assert text == "False"


@pytest.mark.parametrize("first", ["", "import p2pcompute.kernel", "from p2pcompute.kernel import Kernel"])
def test_the_decorator_and_the_module_of_one_name(first: str) -> None:
    text = run_file(
        f"""
import sys
{first}
import p2pcompute as p2p
from p2pcompute import cuda
@p2p.kernel
def one(result):
    result[cuda.grid(1)] = p2p.random.uniform(1, 2, 3)
from p2pcompute.kernel import kernel
@p2p.kernel
def other(result):
    result[cuda.grid(1)] = 1
sys.stdout.write(one.source.text)
"""
    )
    assert text == "def one(result):\n    result[cuda.grid(1)] = random.uniform(1, 2, 3)\n"


def test_cuda_outside_of_a_kernel_says_so() -> None:
    with pytest.raises(RuntimeError, match="inside a kernel"):
        cuda.grid(1)
    with pytest.raises(RuntimeError, match="inside a kernel"):
        _ = cuda.threadIdx.x
    with pytest.raises(RuntimeError, match="inside a kernel"):
        cuda.gridsize(2)


def test_closures_and_equal_names() -> None:
    step = 3

    def make() -> Device:
        @device
        def twice(a: Any) -> Any:  # another one than the module's
            return a * step

        return twice

    other = make()

    @kernel
    def k(result: Any) -> None:
        i = cuda.grid(1)
        result[i] = twice(i) + other(i) + four(i)

    assert k.source.text == (
        "def twice(a):\n    return a + a\n\ndef twice_2(a):\n    return a * 3\n\n"
        "def four(a):\n    return twice(twice(a))\n\n"
        "def k(result):\n    i = cuda.grid(1)\n    result[i] = twice(i) + twice_2(i) + four(i)\n"
    )


def test_a_function_never_takes_the_name_of_a_variable() -> None:
    renamed = twice

    @kernel
    def k(result: Any, twice: int) -> None:
        result[cuda.grid(1)] = renamed(twice)

    assert "twice_2(twice)" in k.source.text


def test_constants_are_part_of_the_digest() -> None:
    def make(value: float) -> Kernel:
        @kernel
        def k(result: Any) -> None:
            result[cuda.grid(1)] = value

        return k

    assert make(1.0).source.digest != make(2.0).source.digest
    assert make(1.0).source.digest == make(1.0).source.digest
    assert make(1.0).source.digest != make(1).source.digest


def test_layout_and_comments_are_not_part_of_the_digest() -> None:
    def one() -> Kernel:
        @kernel
        def k(result: Any) -> None:
            result[cuda.grid(1)] = 1 + 2

        return k

    def other() -> Kernel:
        @kernel
        def k(result):
            """A comment."""
            # another
            result[cuda.grid(1)] = (
                1
                + 2
            )  # fmt: skip

        return k

    assert one().source == other().source


# Refusals at decoration


def refused(function: Callable[..., Any], text: str) -> KernelError:
    with pytest.raises(KernelError) as caught:
        kernel(function)
    assert caught.value.filename == __file__
    assert caught.value.line == line_of(function, text), str(caught.value)
    assert str(caught.value).startswith(f"{__file__}:{caught.value.line}: ")
    return caught.value


def test_refusals_say_file_and_line() -> None:
    def imports(result):
        i = cuda.grid(1)
        import os

        result[i] = os

    assert "an import" in refused(imports, "import os").reason

    def global_array(result):
        i = cuda.grid(1)
        result[i] = LONG_TABLE[i]

    assert "argument" in refused(global_array, "LONG_TABLE").instead

    def place_in_a_tuple(result):
        i = cuda.grid(1)
        result[i] = NUMBERS[i]

    assert "NumPy array" in refused(place_in_a_tuple, "NUMBERS[i]").instead

    def beyond_a_tuple(result):
        result[cuda.grid(1)] = NUMBERS[3]

    assert "from 0 to 2" in refused(beyond_a_tuple, "NUMBERS[3]").reason

    def tuple_of_unlike_lengths(result):
        pair = (1, 2)
        if result.size > 3:
            pair = (1, 2, 3)
        result[cuda.grid(1)] = pair[0]

    assert refused(tuple_of_unlike_lengths, "pair[0]").instead

    def plain_call(result):
        i = cuda.grid(1)

        result[i] = plain(i)

    assert "@p2pcompute.device" in refused(plain_call, "plain(i)").instead

    def text(result):
        result[cuda.grid(1)] = TEXT

    assert "text" in refused(text, "= TEXT").reason

    def unknown(result):
        result[cuda.grid(1)] = nowhere  # noqa: F821 - that is the test

    assert "nowhere" in refused(unknown, "nowhere").reason

    def synchronises(result):
        result[cuda.grid(1)] = 1
        cuda.threadfence()  # type: ignore[attr-defined]

    assert "threadfence" in refused(synchronises, "threadfence").reason

    def gamma(result):
        result[cuda.grid(1)] = math.gamma(1)

    error = refused(gamma, "math.gamma(1)")
    assert "math.gamma" in error.reason
    assert "erf, erfc, exp" in (error.instead or "")

    def of_numpy(result):
        result[cuda.grid(1)] = np.linalg.norm(1)

    assert "norm" in refused(of_numpy, "norm").reason

    def missing(result):
        result[cuda.grid(1)] = np.nothing  # type: ignore[attr-defined]

    assert "np.nothing" in refused(missing, "nothing").reason

    def environment(result):
        result[cuda.grid(1)] = os.environ["HOME"]

    assert "os.environ" in refused(environment, "os.environ").reason

    def own_names(result):
        result[cuda.grid(1)] = (lambda unknown: unknown)(1)

    assert "call" in refused(own_names, "lambda").reason

    def default(result, n=3):
        result[cuda.grid(1)] = n

    assert "parameters" in refused(default, "def default").reason


def test_refusals_in_device_functions_say_where_those_are() -> None:
    @device
    def bad(a):
        b = a
        return [b]

    def k(result):
        result[cuda.grid(1)] = bad(1)

    with pytest.raises(KernelError, match="a list is") as caught:
        kernel(k)
    assert caught.value.line == line_of(bad.function, "return [b]")


def test_recursion() -> None:
    def make() -> Device:
        @device
        def down(a):
            return down(a - 1)

        return down

    down = make()

    def k(result):
        result[cuda.grid(1)] = down(3)

    with pytest.raises(KernelError, match="calls itself"):
        kernel(k)


def test_what_is_no_function() -> None:
    for thing in (3, "text", int, len, object(), lambda result: 1):
        with pytest.raises(KernelError):
            kernel(thing)  # type: ignore[arg-type]
    namespace: dict[str, Any] = {}
    exec("def k(result):\n    result[0] = 1\n", namespace)
    with pytest.raises(KernelError, match="can't be read"):
        kernel(namespace["k"])

    async def coroutine(result):
        result[cuda.grid(1)] = 1

    with pytest.raises(KernelError, match="async"):
        kernel(coroutine)


# Arguments


@kernel
def image(img, x, gain):
    i, j = cuda.grid(2)
    img[j, i, 0] = x[j, i] * gain


@kernel
def turned(img):
    i, j = cuda.grid(2)
    img[i, j] = i


@kernel
def volume(a, b):
    i, j, k = cuda.grid(3)
    a[k, j, i] = i
    b[i, j, k, 0] = k


def test_default_geometry_puts_x_where_the_kernel_indexes_by_it() -> None:
    assert image.launch_for((100, 40, 3)) == Launch(grid=(3, 7, 1), block=(16, 16, 1), dims=2)
    assert turned.launch_for((100, 40)) == Launch(grid=(7, 3, 1), block=(16, 16, 1), dims=2)
    assert everything.launch_for((129,)) == Launch(grid=(2, 1, 1), block=(128, 1, 1), dims=1)
    assert volume.launch_for((9, 5, 17)) == Launch(grid=(3, 2, 3), block=(8, 4, 4), dims=3)
    assert everything.launch_for((0,)).grid == (1, 1, 1)
    with pytest.raises(KernelTypeError):
        image.launch_for((100,))
    both = volume.bind(out((1, 2, 3), "int32"), out((30, 20, 10, 1), "int32"))
    assert both.launch.grid == (4, 5, 3)


def test_binding() -> None:
    x = np.zeros((100, 40), np.float32)[:, ::2]
    binding = image.bind(out((100, 20, 3), np.uint8), x, 0.5)
    assert binding.specs == (
        OutputSpec(dtype="uint8", shape=(100, 20, 3)),
        InputSpec(dtype="float32", shape=(100, 20)),
        ScalarSpec(dtype="float32", value=np.float32(0.5)),
    )
    assert len(binding.values) == 2
    assert binding.values[0].flags.c_contiguous
    assert binding.values[1] == np.float32(0.5)
    assert binding.layout.row_shapes == [(3,)]
    assert [whole.shape for whole in binding.empty_outputs()] == [(100, 20, 3)]
    configured = image[(2, 3), (8, 8)].bind(out((100, 20, 3), np.uint8), x, 0.5)
    assert configured.launch == Launch(grid=(2, 3, 1), block=(8, 8, 1), dims=2)
    assert everything[4, 32].launch == Launch(grid=(4, 1, 1), block=(32, 1, 1), dims=1)


def test_scalars_by_their_python_type() -> None:
    def of(value: Any) -> tuple[str, Any]:
        spec = image.bind(out((1, 1, 1), np.uint8), np.zeros((1, 1)), value).specs[2]
        assert isinstance(spec, ScalarSpec)
        return spec.dtype, spec.value

    assert of(True) == ("bool", True)
    assert of(3) == ("int64", 3)
    assert of(2**63) == ("uint64", 2**63)
    assert of(0.1) == ("float32", np.float32(0.1))
    assert of(np.float64(0.1)) == ("float64", 0.1)
    assert of(np.int8(-3)) == ("int8", -3)
    assert of(np.array(5, np.uint16)) == ("uint16", 5)


def test_arguments_that_do_not_fit() -> None:
    good = (out((4, 4, 3), np.uint8), np.zeros((4, 4), np.float32), 1.0)
    image.bind(*good)
    cases: list[tuple[Any, ...]] = [
        good[:2],
        (np.zeros((4, 4, 3)), *good[1:]),
        (good[0], good[0], 1.0),
        (good[0], 3, 1.0),
        (good[0], np.zeros(4), 1.0),
        (good[0], np.zeros((4, 4), complex), 1.0),
        (good[0], np.zeros((4, 4), ">f4"), 1.0),
        (good[0], [[1.0]], 1.0),
        (good[0], good[1], good[1]),
        (good[0], good[1], 2**64),
        (good[0], good[1], None),
        (good[0], good[1], "text"),
        (out((4, 4), np.uint8), good[1], 1.0),
        (out(4, np.uint8), good[1], 1.0),
    ]
    for args in cases:
        with pytest.raises(KernelTypeError):
            image.bind(*args)
    with pytest.raises(KernelTypeError, match="grid axes"):
        image[4, 4].bind(*good)
    geometries: list[Any] = [4, (4,), (4, 4, 4), (0, 4), ((1, 2, 3, 4), 1), (-1, 1)]
    for geometry in geometries:
        with pytest.raises(KernelTypeError):
            image[geometry]
    with pytest.raises(TypeError, match=r"p2pcompute\.run"):
        image(*good)


def test_types_are_checked_when_arguments_are_bound() -> None:
    @kernel
    def k(result, x):
        i = cuda.grid(1)
        result[i] = x[i] & 1

    k.bind(out(3, np.int32), np.zeros(3, np.int32))
    with pytest.raises(KernelTypeError, match="&") as caught:
        k.bind(out(3, np.int32), np.zeros(3, np.float32))
    assert caught.value.line == line_of(k.function, "& 1")
    assert caught.value.filename == __file__


def test_out() -> None:
    assert out(3, "f4") == Out((3,), np.dtype("float32"))
    assert out([2, 3], bool) == Out((2, 3), np.dtype("bool"))
    for shape, dtype in (((), "f4"), (-1, "f4"), (3, "f2"), (3, complex), (3, object), (3, "U4")):
        with pytest.raises(KernelTypeError):
            out(shape, dtype)


def test_device_functions_run_as_python() -> None:
    assert four(3) == 12
    assert repr(four) == "<p2pcompute.device four>"
    assert repr(image) == "<p2pcompute.kernel image(img, x, gain)>"
    for thing in (3, int, image):
        with pytest.raises(KernelError):
            device(thing)  # type: ignore[arg-type]


def test_a_refusal_shows_the_readers_lines_and_not_the_guards() -> None:
    def texts(result):
        result[cuda.grid(1)] = "text"

    with pytest.raises(KernelError) as caught:
        kernel(texts)
    assert [entry.path.name for entry in caught.traceback] == ["test_language.py", "kernel.py"]
