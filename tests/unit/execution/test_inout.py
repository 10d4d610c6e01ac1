"""Arrays that kernels change in place: what is made of such a kernel, and that it gives what NumPy gives in place."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute import cuda
from p2pcompute._inout import inout
from p2pcompute._split import split
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import InputSpec, OutputSpec, SplitSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit, admit_tree
from p2pcompute.execution._language_inout import InPlace
from p2pcompute.execution._rows import Layout
from p2pcompute.kernel import Binding, Kernel, device, kernel, out, reduce

from ._windows import chunked, single

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


@device
def bent(value, gain):
    return value * gain + 1 if value > 0 else value


@kernel
def increment_by_one(an_array):
    pos = cuda.grid(1)
    if pos < an_array.size:
        an_array[pos] += 1


@kernel
def bend(x, gain):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if i >= x.size:
        return
    x[i] = bent(x[i], gain)
    x[i] = x[i] - gain


@kernel
def down(a):  # x runs along the rows
    x, y = cuda.grid(2)
    if x < a.shape[0] and y < a.shape[1]:
        a[x, y] = a[x, y] * 2 + x - y


@kernel
def across(a):
    x, y = cuda.grid(2)
    if y < a.shape[0] and x < a.shape[1]:
        a[y, x] = a[y, x] * 2 + y - x


@kernel
def in_space(a):
    x, y, z = cuda.grid(3)
    if z < a.shape[0] and x < a.shape[1] and y < a.shape[2] and a[z, x, y] > 0:
        a[z, x, y] -= 3


@kernel
def running(a):  # a thread has a row, of two axes more
    i = cuda.grid(1)
    if i < a.shape[0]:
        for j in range(a.shape[1]):
            for k in range(1, a.shape[2]):
                a[i, j, k] += a[i, j, k - 1]


@kernel
def several(low, x, high, total):
    i = cuda.grid(1)
    if i < x.size:
        total[i] = low[i] + high[i]
        if x[i] < low[i]:
            low[i] = x[i]
        if x[i] > high[i]:
            high[i] = x[i]


@kernel
def strided(x, n):
    for i in range(cuda.grid(1), n, cuda.gridsize(1)):
        x[i] += i


@kernel
def reverse_in_tiles(x):
    part = cuda.shared.array(16, np.int32)
    t, i = cuda.threadIdx.x, cuda.grid(1)
    part[t] = x[i]
    cuda.syncthreads()
    if i % 3:
        x[i] = part[15 - t]


@kernel
def add_up(sums, x):  # a block has an element
    part = cuda.shared.array(16, np.int64)
    t, i = cuda.threadIdx.x, cuda.grid(1)
    part[t] = x[i]
    cuda.syncthreads()
    if t == 0:
        for k in range(16):
            sums[cuda.blockIdx.x] += part[k]


@kernel
def reverse_rows(a, step):  # a block has a row of two axes, on a grid of two
    t = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
    for k in range(t, a.shape[2], cuda.blockDim.x * cuda.blockDim.y):
        for c in range(a.shape[3]):
            a[cuda.blockIdx.y, cuda.blockIdx.x, k, c] += step


def arrays_of(binding: Binding) -> list[Any]:
    return [value for value in binding.values if isinstance(value, np.ndarray)]


def assert_gives(backend: CpuBackend, binding: Binding, *due: Array) -> None:
    """In one chunk, in several, and by single items; and what was given is as it was."""
    before = [array.tobytes() for array in arrays_of(binding)]
    for blocks in (binding.launch.blocks, 2, 1):
        for found, expected in zip(chunked(backend, binding, blocks), due, strict=True):
            assert found.dtype == expected.dtype
            assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert [array.tobytes() for array in arrays_of(binding)] == before
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    items = np.arange(binding.launch.blocks * binding.layout.items_per_block)
    all_rows = single(compiled, binding, items)
    for item in items[:: max(1, items.size // 5)]:
        for rows, one in zip(all_rows, single(compiled, binding, items[item : item + 1]), strict=True):
            assert rows[item : item + 1].tobytes() == one.tobytes()


def rewritten(text: str, **axes: int) -> str:
    tree = ast.parse(text)
    before = ast.dump(tree)
    entry = next(node.name for node in tree.body[::-1] if isinstance(node, ast.FunctionDef))
    made = InPlace(tuple(axes.items()))(tree, admit_tree(tree, entry, {}))
    assert ast.dump(tree) == before
    admit_tree(made, entry, {})
    return ast.unparse(made)


def test_what_is_made_of_a_kernel() -> None:
    binding = increment_by_one[8, 128].bind(inout(np.zeros(1000, np.float32)))
    assert binding.source.text == (
        "def increment_by_one(an_array, an_array_given):\n"
        "    own_x = cuda.grid(1)\n"
        "    an_array[own_x] = an_array_given[own_x]\n"
        "    pos = cuda.grid(1)\n"
        "    if pos < an_array.size:\n"
        "        an_array[pos] += 1\n"
    )
    assert binding.source.digest != increment_by_one.source.digest
    assert admit(binding.source).entry.params == ("an_array", "an_array_given")
    assert binding.specs == (OutputSpec(dtype="float32", shape=(1000,)), InputSpec(dtype="float32", shape=(1000,)))
    assert (binding.inout, binding.argument(0), binding.argument(1)) == ((1,), 0, 0)
    assert increment_by_one.params == ("an_array",)
    assert "an_array_given" not in increment_by_one.source.text
    # Made once for each set of arrays and their axes.
    assert increment_by_one.bind(inout(np.zeros(9, np.int8))).source is binding.source


def test_each_axis_of_the_grid_has_its_place_and_the_others_a_loop() -> None:
    head = "def f(a, a_given, n, b, b_given):\n    own_x, own_y = cuda.grid(2)\n"
    assert rewritten("def f(a, n, b):\n x, y = cuda.grid(2)\n a[y, x] = b[x, y, 0]\n b[x, y, 0] = 1", a=2, b=4) == (
        head + "    a[own_y, own_x] = a_given[own_y, own_x]\n"
        "    for at_row in range(b.shape[2]):\n"
        "        for at_row_2 in range(b.shape[3]):\n"
        "            b[own_x, own_y, at_row, at_row_2] = b_given[own_x, own_y, at_row, at_row_2]\n"
        "    x, y = cuda.grid(2)\n    a[y, x] = b[x, y, 0]\n    b[x, y, 0] = 1"
    )


def test_a_blocks_row_is_brought_by_its_threads_before_any_goes_on() -> None:
    text = "def f(s, t):\n s[cuda.blockIdx.y, cuda.blockIdx.x] = 1\n t[cuda.blockIdx.x, cuda.blockIdx.y, 0] = 1"
    assert rewritten(text, s=2, t=3).startswith(
        "def f(s, s_given, t, t_given):\n"
        "    if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:\n"
        "        s[cuda.blockIdx.y, cuda.blockIdx.x] = s_given[cuda.blockIdx.y, cuda.blockIdx.x]\n"
        "    if cuda.threadIdx.y == 0:\n"
        "        for at_row in range(cuda.threadIdx.x, t.shape[2], cuda.blockDim.x):\n"
        "            t[cuda.blockIdx.x, cuda.blockIdx.y, at_row] = t_given[cuda.blockIdx.x, cuda.blockIdx.y, at_row]\n"
        "    cuda.syncthreads()\n"
    )


def test_names_that_are_taken_are_not_made() -> None:
    text = (
        "def a_given(v):\n return v\n"
        "def f(a, own_x):\n a_given_2 = cuda.grid(1)\n for at_row in range(2):\n  a[a_given_2, at_row] = a_given(own_x)"
    )
    found = rewritten(text, a=2)
    assert "def f(a, a_given_3, own_x):\n    own_x_2 = cuda.grid(1)\n    for at_row_2 in range(a.shape[1]):\n" in found
    long = "l" * 64
    found = rewritten(f"def f({long}):\n i = cuda.grid(1)\n {long}[i] += 1", **{long: 1})
    assert f"def f({long}, {'l' * 52}_given):" in found
    assert "def f(a_, a_given):" in rewritten("def f(a_):\n i = cuda.grid(1)\n a_[i] += 1", a_=1)


def test_a_kernel_without_room_for_a_parameter_more() -> None:
    names = ", ".join(f"p{n}" for n in range(31))
    text = f"def f(a, {names}):\n i = cuda.grid(1)\n a[i] += p0"
    tree = ast.parse(text)
    with pytest.raises(KernelTypeError, match=r"f has 32 parameters, and p2pcompute\.inout takes one more of 32"):
        InPlace((("a", 1),))(tree, admit_tree(tree, "f", {}))
    rewritten(text.replace(", p30", ""), a=1)


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float32", "float64"])
def test_one_axis(backend: CpuBackend, dtype: str) -> None:
    x = (np.arange(300) % 127).astype(dtype)
    assert_gives(backend, increment_by_one[3, 128].bind(inout(x)), x + np.ones(1, dtype))
    assert_gives(backend, increment_by_one.bind(inout(x[::3])), x[::3] + np.ones(1, dtype))


def test_a_device_function_and_an_early_return(backend: CpuBackend) -> None:
    x = np.random.default_rng(1).standard_normal(1000, dtype=np.float32)
    gain = np.float32(1.5)
    due = np.where(x > 0, x * gain + np.float32(1), x) - gain
    assert_gives(backend, bend.bind(inout(x), gain), due)


def test_two_and_three_axes_in_either_order(backend: CpuBackend) -> None:
    a = np.random.default_rng(2).integers(-50, 50, (5, 7))
    r, c = np.indices(a.shape)
    for which in (down, across):
        assert_gives(backend, which.bind(inout(a)), a * 2 + r - c)
    space = np.random.default_rng(2).integers(-50, 50, (3, 4, 5)).astype(np.int16)
    assert_gives(backend, in_space[(1, 2, 1), (4, 3, 4)].bind(inout(space)), np.where(space > 0, space - 3, space))


def test_rows(backend: CpuBackend) -> None:
    a = np.random.default_rng(3).integers(0, 9, (20, 3, 4))
    assert_gives(backend, running[2, 16].bind(inout(a)), np.cumsum(a, axis=2))


def test_several_arrays_come_back_at_their_places_among_the_outputs(backend: CpuBackend) -> None:
    low, x, high = np.random.default_rng(4).standard_normal((3, 100), dtype=np.float32)
    binding = several[1, 128].bind(inout(low), x, inout(high), out(100, np.float32))
    assert [type(spec) for spec in binding.specs] == [
        OutputSpec,
        InputSpec,
        InputSpec,
        OutputSpec,
        InputSpec,
        OutputSpec,
    ]
    assert [binding.argument(place) for place in range(6)] == [0, 0, 1, 2, 2, 3]
    assert_gives(backend, binding, np.minimum(low, x), np.maximum(high, x), low + high)
    # One of them as an output that starts as zeros is another kernel.
    other = several[1, 128].bind(out(100, np.float32), x, inout(high), out(100, np.float32))
    assert other.source.digest != binding.source.digest
    zero = np.zeros(1, np.float32)
    assert_gives(backend, other, np.minimum(zero, x), np.maximum(high, x), zero + high)


def test_an_array_may_be_given_to_be_read_as_well(backend: CpuBackend) -> None:
    @kernel
    def neighbour(a, was):
        i = cuda.grid(1)
        if i + 1 < a.size:
            a[i] += was[i + 1]

    a = np.arange(50, dtype=np.int32)
    assert_gives(backend, neighbour[2, 32].bind(inout(a), a), np.append(a[:-1] + a[1:], a[-1]).astype(np.int32))


def test_strides(backend: CpuBackend) -> None:
    x = np.arange(40, dtype=np.int64) * 3
    assert_gives(backend, strided[3, 16].bind(inout(x), 40), x + np.arange(40))
    assert_gives(backend, strided[3, 16].bind(inout(x), 7), x + np.where(np.arange(40) < 7, np.arange(40), 0))


def test_threads_that_work_together(backend: CpuBackend) -> None:
    x = np.arange(60, dtype=np.int32) + 1
    whole = np.append(x, np.zeros(4, np.int32)).reshape(4, 16)[:, ::-1].reshape(-1)[:60]
    assert_gives(backend, reverse_in_tiles[4, 16].bind(inout(x)), np.where(np.arange(60) % 3, whole, x))


def test_what_is_the_blocks_own(backend: CpuBackend) -> None:
    x = np.arange(64)
    sums = np.array([5, -3, 2**40, 0])
    assert_gives(backend, add_up[4, 16].bind(inout(sums), x), sums + x.reshape(4, 16).sum(axis=1))
    a = np.random.default_rng(5).integers(0, 99, (2, 3, 11, 2))
    assert_gives(backend, reverse_rows[(3, 2), (4, 2)].bind(inout(a), 7), a + 7)


def test_split_arrays(backend: CpuBackend) -> None:
    x = np.random.default_rng(6).integers(0, 99, 100)
    binding = increment_by_one[7, 16].bind(inout(split(x, tile=10)))
    assert binding.specs[1] == InputSpec(
        dtype="int64", shape=(100,), split=SplitSpec(axes=(0,), halo=(0,), edge="zero")
    )
    assert_gives(backend, binding, x + 1)
    a = np.random.default_rng(6).integers(0, 99, (9, 11))
    r, c = np.indices(a.shape)
    for which, axes in ((down, (0, 1)), (across, (1, 0))):
        binding = which[(4, 4), (3, 4)].bind(inout(split(a, edge="wrap")))
        spec = binding.specs[1]
        assert isinstance(spec, InputSpec)
        assert spec.split == SplitSpec(axes=axes, halo=(0, 0), edge="wrap")
        assert_gives(backend, binding, a * 2 + r - c)
    x32 = x[:60].astype(np.int32)
    assert_gives(
        backend,
        reverse_in_tiles[4, 16].bind(inout(split(x32))),
        *chunked(backend, reverse_in_tiles[4, 16].bind(inout(x32)), 4),
    )


def test_beside_an_output_that_is_combined(backend: CpuBackend) -> None:
    low, x, high = np.random.default_rng(7).integers(0, 99, (3, 64))
    binding = several[2, 32].bind(inout(low), x, inout(high), reduce("sum", 64, np.int64))
    found = chunked(backend, binding, 1)
    assert np.array_equal(found[0], np.minimum(low, x))
    assert np.array_equal(found[1], np.maximum(high, x))
    assert found[2] == (low + high).sum()


def test_what_is_left_alone_has_the_one_nan(backend: CpuBackend) -> None:
    x = np.arange(6, dtype=np.float32)
    x.view(np.uint32)[[1, 4]] = 0xFFC12345, 0x7F800001
    (found,) = chunked(backend, strided[1, 8].bind(inout(x), 2), 1)
    assert found.view(np.uint32).tolist() == [
        0,
        0x7FC00000,
        *x.view(np.uint32)[2:4],
        0x7FC00000,
        *x.view(np.uint32)[5:],
    ]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape_and_geometry(backend: CpuBackend, data: st.DataObject) -> None:
    which: Kernel = data.draw(st.sampled_from([increment_by_one, down, across, in_space, running]))
    axes = {"increment_by_one": 1, "down": 2, "across": 2, "in_space": 3, "running": 3}[which.name]
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=axes, max_size=axes)))
    values = data.draw(st.integers(0, 2**32))
    a = np.random.default_rng(values).integers(-100, 100, shape).astype(data.draw(st.sampled_from(["i4", "i8", "f8"])))
    mapping = which._admitted.grid.mapping[which.outputs[0]]
    blocks, threads = [1] * len(mapping), [1] * len(mapping)
    for place, axis in enumerate(mapping):
        threads[axis] = data.draw(st.integers(1, 5))
        blocks[axis] = -(-shape[place] // threads[axis]) + data.draw(st.integers(0, 1))
    binding = which[tuple(blocks), tuple(threads)].bind(inout(split(a) if data.draw(st.booleans()) else a))
    r, c = np.indices(shape)[:2] if axes > 1 else (0, 0)
    due = {
        "increment_by_one": lambda: a + 1, "down": lambda: a * 2 + r - c, "across": lambda: a * 2 + r - c,
        "in_space": lambda: np.where(a > 0, a - 3, a), "running": lambda: np.cumsum(a, axis=2),
    }[which.name]()  # fmt: skip
    (found,) = chunked(backend, binding, data.draw(st.integers(1, binding.launch.blocks)))
    assert found.tobytes() == due.astype(a.dtype).tobytes()


def test_a_launch_that_leaves_rows_out_is_refused() -> None:
    x = np.zeros(1000)
    words = "896 threads along x, and an_array, which is changed in place, has 1000 elements there; start 8 blocks"
    with pytest.raises(KernelTypeError, match=words):
        increment_by_one[7, 128].bind(inout(x))
    with pytest.raises(KernelTypeError, match=r"8 threads along y, and a, .* has 9 elements there; start 3 blocks"):
        down[(2, 2), (4, 4)].bind(inout(np.zeros((8, 9))))
    with pytest.raises(KernelTypeError, match=r"3 blocks along x, and sums, .* has 4 elements there; start 4 blocks"):
        add_up[3, 16].bind(inout(np.zeros(4, np.int64)), np.arange(64))


def test_what_can_not_be_changed_in_place() -> None:
    x = np.zeros((4, 4))
    with pytest.raises(KernelTypeError, match=r"never stores into x, which is given p2pcompute\.inout; pass the array"):
        several[1, 8].bind(out(4, "f8"), inout(x), out(4, "f8"), out(4, "f8"))
    with pytest.raises(KernelTypeError, match="fewer axes than the grid"):
        down[(1, 1), (4, 4)].bind(inout(x[0]))
    with pytest.raises(KernelTypeError, match="fewer axes than the grid"):
        down[(1, 1), (4, 4)].bind(inout(split(x[0])))
    with pytest.raises(KernelTypeError, match=r"has the shape .*; arrays have 1 to 4 axes"):
        increment_by_one[1, 8].bind(inout(np.zeros((2,) * 5)))
    with pytest.raises(KernelTypeError, match="sums is split, and its rows are the blocks'"):
        add_up[4, 16].bind(inout(split(np.zeros(4, np.int64))), np.arange(64))
    for given_, words in (
        (3, "3 can't be changed in place; pass a NumPy array of one axis"),
        (np.array(1.0), "can't be changed in place"),
        (out(3, "f8"), r"p2pcompute\.out\(\.\.\.\) holds nothing"),
        (reduce("sum", 3, "f8"), r"p2pcompute\.reduce\(\.\.\.\) holds nothing"),
        (np.array(["a"]), "an array of dtype .* can't be changed in place; use one of bool"),
        (np.ma.MaskedArray([1.0, 2.0], mask=[True, False]), "what is to be changed in place"),
        (split(x, halo=(0, 1)), "is split with a halo, and a thread loads its own row of it only"),
    ):
        with pytest.raises(KernelTypeError, match=words):
            inout(given_)


def test_what_is_wrong_with_the_kernel_has_its_authors_line() -> None:
    @kernel
    def power(a, b):
        i = cuda.grid(1)
        if i < a.size:
            a[i] = a[i] ** b

    with pytest.raises(KernelTypeError) as caught:
        power[1, 8].bind(inout(np.zeros(4, np.int64)), np.int64(3))
    code = power.function.__code__
    assert (caught.value.filename, caught.value.line) == (code.co_filename, code.co_firstlineno + 4)


def test_what_other_threads_change_is_not_loaded() -> None:
    with pytest.raises(KernelError, match=r"take one more parameter, .* load it from there, given\[i - 1\]") as caught:

        @kernel
        def shift(a):
            i = cuda.grid(1)
            if i > 0:
                a[i] = a[i - 1]

    assert "a[i - 1] may be another thread's element" in str(caught.value)


def test_the_layout_is_that_of_any_kernel() -> None:
    """Who is sent it knows nothing of what it was made from."""
    binding = across[(2, 2), (4, 4)].bind(inout(np.zeros((5, 7))))
    assert Layout.of(binding.source, binding.launch, binding.specs) == binding.layout


def test_a_flat_place_is_told_to_be_two() -> None:
    with pytest.raises(KernelError, match=r"inout\(array\.reshape\(height, width\)\), and write a\[y, x\]"):

        @kernel
        def flat(a, width):
            x, y = cuda.grid(2)
            a[y * width + x] += 1
