"""Threads within a kernel's border have code of their own: the same results for every shape, and nothing unproved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import Lowered, lower
from p2pcompute.execution._rows import Layout

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def backend() -> Iterator[CpuBackend]:
    with CpuBackend(2) as made:
        yield made


def source(body: str) -> KernelSource:
    text = "def f(out, x, n):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    return KernelSource(text=text, entry="f", digest=source_digest("f", text))


def launch_over(shape: tuple[int, ...], block: tuple[int, ...]) -> Launch:
    lengths = shape[::-1]
    grid = [-(-length // size) for length, size in zip(lengths, block, strict=True)]
    whole, parts = [*grid, 1, 1], [*block, 1, 1]
    return Launch(grid=(whole[0], whole[1], whole[2]), block=(parts[0], parts[1], parts[2]), dims=len(shape))


def bound(x: Array, out_shape: tuple[int, ...], n: int) -> list[ArgSpec]:
    return [
        OutputSpec(dtype="int64", shape=out_shape),
        InputSpec(dtype="int64", shape=x.shape),
        ScalarSpec(dtype="int64", value=np.int64(n)),
    ]


def lowered(body: str, shape: tuple[int, ...], block: tuple[int, ...], n: int = 3) -> Lowered:
    x = np.zeros(shape, np.int64)
    return lower(admit(source(body)), launch_over(shape, block), bound(x, shape, n))


def run(backend: CpuBackend, body: str, x: Array, out_shape: tuple[int, ...], block: tuple[int, ...], n: int) -> Array:
    """The whole in one, beside what every single thread gives by itself: that has no code for inner threads."""
    launch, specs, code = launch_over(out_shape, block), bound(x, out_shape, n), source(body)
    layout = Layout.of_admitted(admit(code), launch, specs)
    compiled = backend.compile(code, launch, specs)
    values = [x, np.int64(n)]
    rows, single = (np.zeros(launch.threads, np.int64) for _ in range(2))
    compiled.run_blocks(0, launch.blocks, values, [rows])
    compiled.run_threads(np.arange(launch.threads), values, [single])
    whole, each = (np.zeros(out_shape, np.int64) for _ in range(2))
    layout.scatter(0, 0, launch.blocks, rows, whole)
    layout.scatter(0, 0, launch.blocks, single, each)
    assert np.array_equal(whole, each)
    return whole


def padded(x: Array, by: int) -> Array:
    return np.pad(x, by)


LINE = "i = cuda.grid(1)\nout[i] = x[i - 2] + 10 * x[i + 2] + 100 * x[i]"
PLANE = "j, i = cuda.grid(2)\nout[i, j] = x[i - 2, j] + 10 * x[i + 1, j] + 100 * x[i, j - 1] + 1000 * x[i, j + 2]"
SPACE = "c, b, a = cuda.grid(3)\nout[a, b, c] = x[a - 1, b, c] + 10 * x[a, b + 1, c] + 100 * x[a, b, c - 1]"


def lengths(border: int, size: int) -> list[int]:
    """Shorter than the border, as long, one more; and about where whole blocks begin to be inner ones."""
    return sorted({1, border, border + 1, 2 * border, 2 * border + 1, size, 3 * size - 1, 3 * size, 3 * size + border})


def test_one_axis_of_every_length(backend: CpuBackend) -> None:
    for length in lengths(2, 8):
        x = np.random.default_rng(length).integers(1, 10, length)
        wide = padded(x, 2)
        due = wide[:-4] + 10 * wide[4:] + 100 * x
        assert np.array_equal(run(backend, LINE, x, x.shape, (8,), 3), due)


def test_two_axes_of_every_length(backend: CpuBackend) -> None:
    for height in lengths(2, 4):
        for width in lengths(2, 8):
            x = np.random.default_rng(height).integers(1, 10, (height, width))
            wide = padded(x, 2)
            due = wide[:-4, 2:-2] + 10 * wide[3:-1, 2:-2] + 100 * wide[2:-2, 1:-3] + 1000 * wide[2:-2, 4:]
            assert np.array_equal(run(backend, PLANE, x, x.shape, (8, 4), 3), due)


def test_three_axes(backend: CpuBackend) -> None:
    for shape in ((1, 1, 1), (2, 3, 4), (6, 6, 12), (7, 8, 17)):
        x = np.random.default_rng(1).integers(1, 10, shape)
        wide = padded(x, 1)
        due = wide[:-2, 1:-1, 1:-1] + 10 * wide[1:-1, 2:, 1:-1] + 100 * wide[1:-1, 1:-1, :-2]
        assert np.array_equal(run(backend, SPACE, x, shape, (4, 2, 2), 3), due)


def test_an_input_that_is_shorter_or_longer_than_the_output(backend: CpuBackend) -> None:
    for have in (1, 5, 20, 39, 40, 41, 90):
        x = np.arange(1, have + 1)
        wide = np.zeros(200, np.int64)
        wide[2 : 2 + have] = x
        due = wide[:40] + 10 * wide[4:44] + 100 * wide[2:42]
        assert np.array_equal(run(backend, LINE, x, (40,), (8,), 3), due)


def test_code_for_inner_threads_asks_nothing() -> None:
    for body, shape, block in ((LINE, (100,), (8,)), (PLANE, (40, 60), (8, 4)), (SPACE, (9, 9, 9), (4, 2, 2))):
        found = lowered(body, shape, block)
        assert found.inner is not None
        assert "load" in found.body
        assert "load" not in found.inner.body
    border = lowered(PLANE, (40, 60), (8, 4)).inner
    assert border is not None
    assert border.low[:2] == (2, 2)
    assert border.high[:2] == (58, 38)


@pytest.mark.parametrize(
    "test",
    [
        "if i > 0 and i < out.size - 1:\n    out[i] = x[i - 1] + x[i + 1]\nelse:\n    out[i] = 7",
        "if i == 0 or i == out.size - 1:\n    out[i] = 7\nelse:\n    out[i] = x[i - 1] + x[i + 1]",
        "if i != 0 and i + 1 != out.size:\n    out[i] = x[i - 1] + x[i + 1]\nelse:\n    out[i] = 7",
        "if i <= 0 or out.size - 1 <= i:\n    out[i] = 7\n    return\nout[i] = x[i - 1] + x[i + 1]",
        "out[i] = 7 if not 0 < i < out.size - 1 else x[i - 1] + x[i + 1]",
    ],
)
def test_a_kernel_that_asks_whether_it_is_at_the_border(backend: CpuBackend, test: str) -> None:
    body = f"i = cuda.grid(1)\n{test}"
    found = lowered(body, (50,), (8,))
    assert found.inner is not None
    assert found.inner.low[0] == 1
    for length in (1, 2, 3, 9, 50):
        x = np.arange(length) + 5
        due = np.full(length, 7)
        due[1:-1] = x[:-2] + x[2:]
        assert np.array_equal(run(backend, body, x, x.shape, (8,), 3), due)


@pytest.mark.parametrize(
    "body",
    [
        "i = cuda.grid(1)\nout[i] = x[i]",  # there is no border
        "i = cuda.grid(1)\nout[i] = x[x[i]]",  # of data nothing is known anywhere
        "i = cuda.grid(1)\nout[i] = x[i - 80]",  # a border of more than 64 threads is none
        "i = cuda.grid(1)\nk = i - 1\nif x[i] > 3:\n    k = x[i]\nout[i] = x[k]",
        "i = cuda.grid(1)\nout[i] = x[i * 4611686018427387904]",
        "i = cuda.grid(1)\nout[i] = x[cuda.threadIdx.x - 1]",
    ],
)
def test_where_nothing_more_is_known_there_is_one_code(body: str) -> None:
    assert lowered(body, (100,), (8,)).inner is None


def test_loops_over_neighbours_and_names_for_them(backend: CpuBackend) -> None:
    body = (
        "j, i = cuda.grid(2)\ntotal = 0\nfor a in range(-1, 2):\n    up = i + a\n    for b in range(-1, 2):\n"
        "        total += x[up, j + b] * (a * 3 + b + 5)\nout[i, j] = total"
    )
    found = lowered(body, (20, 20), (8, 4))
    assert found.inner is not None
    assert "load" not in found.inner.body
    for shape in ((1, 1), (3, 40), (20, 24)):
        x = np.random.default_rng(3).integers(0, 9, shape)
        wide = padded(x, 1)
        due = sum(
            wide[1 + a : 1 + a + shape[0], 1 + b : 1 + b + shape[1]] * (a * 3 + b + 5)
            for a in (-1, 0, 1)
            for b in (-1, 0, 1)
        )
        assert np.array_equal(run(backend, body, x, shape, (8, 4), 3), due)


def test_a_wrong_guess_of_the_border_gives_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width is guessed; without the proof behind it inner threads would load what is not there."""
    from p2pcompute.execution import _index_interior as interior

    def too_narrow(*_: object) -> Iterator[tuple[set[int], int]]:
        yield {0}, 1

    monkeypatch.setattr(interior, "_wishes", too_narrow)
    found = lowered("i = cuda.grid(1)\nout[i] = x[i - 2] + x[i + 2]", (50,), (8,))
    assert found.inner is None


def random_index(draw: random.Random, place: str) -> str:
    return draw.choice(
        [
            f"{place} + {draw.randint(-3, 3)}",
            f"{place} - {draw.randint(0, 2)}",
            f"{draw.randint(0, 30)} - {place}",
            f"{place} * {draw.randint(1, 2)} + {draw.randint(-2, 2)}",
            f"max({place} - 1, 0)",
            f"({place} + {draw.randint(0, 9)}) % {draw.randint(1, 30)}",
            f"{place} // 2 - 1",
            f"{place} + k - n",
        ]
    )


def random_test(draw: random.Random) -> str:
    one = f"{draw.choice('ij')}{draw.choice([' + 1', ' - 2', ''])}"
    other = draw.choice(["0", "1", "n", "out.shape[0] - 1", "out.shape[1] - 2", "j", "17"])
    return f"{one} {draw.choice(['<', '<=', '>', '>=', '==', '!='])} {other}"


def random_kernel(draw: random.Random) -> str:
    lines = ["j, i = cuda.grid(2)", "k = i - 1", "t = 0"]
    for _ in range(draw.randint(2, 4)):
        load = f"x[{random_index(draw, 'i')}, {random_index(draw, 'j')}]"
        joined = f" {draw.choice(['and', 'or'])} ".join(random_test(draw) for _ in range(draw.randint(1, 2)))
        lines.append(
            draw.choice(
                [
                    f"t = t * 3 + {load}",
                    f"if {joined}:\n    t += {load}\nelse:\n    t -= 5",
                    f"t += {load} if {joined} else 3",
                    f"for k in range({draw.randint(-2, 1)}, {draw.randint(1, 4)}):\n    t = t * 5 + {load}",
                    f"if not ({joined}):\n    k = j\n    t += {load}",
                ]
            )
        )
    return "\n".join([*lines, "out[i, j] = t"])


@pytest.mark.parametrize("seed", range(8))
def test_random_kernels_give_the_same_within_and_at_the_border(backend: CpuBackend, seed: int) -> None:
    body = random_kernel(random.Random(seed))
    x = np.random.default_rng(seed).integers(-50, 50, (23, 31))
    for shape, block in (((23, 31), (4, 4)), ((5, 70), (8, 4))):
        run(backend, body, x, shape, block, 2)


def test_most_of_the_random_kernels_have_code_for_inner_threads() -> None:
    found = [lowered(random_kernel(random.Random(seed)), (23, 31), (4, 4), 2).inner for seed in range(8)]
    assert sum(inner is not None for inner in found) > 4
