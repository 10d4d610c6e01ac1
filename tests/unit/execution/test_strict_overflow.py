"""What is computed from integers that wrapped. A compiler that may take signed overflow for impossible answers these
from the text, and not from the bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import Kernel, kernel, out

from .test_strict_arithmetic import edges, wrap

Array = np.ndarray[Any, Any]


@kernel
def consequences(result, x):
    i = cuda.grid(1)
    a = x[i]
    result[i, 0] = a + 1 > a
    result[i, 1] = a - 1 < a
    result[i, 2] = a * 2 // 2
    result[i, 3] = abs(9223372036854775807 * a - 5)
    result[i, 4] = -a < 0
    result[i, 5] = (a + 9223372036854775807) % 16
    result[i, 6] = a**3 // a**2
    result[i, 7] = a * 4 < a * 3


@kernel
def literals(result, x):
    i = cuda.grid(1)
    result[i, 0] = -9223372036854775808 - 127
    result[i, 1] = -(-9223372036854775808)  # noqa: B002 - the unary minus of the least integer
    result[i, 2] = 9223372036854775807 * 9223372036854775807
    result[i, 3] = 1 << 63
    result[i, 4] = (1 << 62) << 3
    result[i, 5] = ~1 << 63
    result[i, 6] = 3**41 * x[i]
    result[i, 7] = 9223372036854775807 + 1 + x[i]


def run(function: Kernel, x: Array) -> list[list[int]]:
    binding = function.bind(out((len(x), 8), np.int64), x)
    compiled = CpuBackend().compile(binding.source, binding.launch, binding.specs)
    rows = np.zeros((binding.launch.threads, 8), np.int64)
    compiled.run_blocks(0, binding.launch.blocks, binding.values, [rows])
    found: list[list[int]] = rows[: len(x)].tolist()
    return found


def floor_div(a: int, b: int) -> int:
    return 0 if b == 0 else wrap(a // b, "int64")


def test_what_follows_from_a_sum_that_wrapped() -> None:
    def int64(value: int) -> int:
        return wrap(value, "int64")

    x = edges("int64")
    for a, found in zip(x.tolist(), run(consequences, x), strict=True):
        square = int64(a * a)
        assert found == [
            int64(a + 1) > a,
            int64(a - 1) < a,
            floor_div(int64(a * 2), 2),
            int64(abs(int64((2**63 - 1) * a - 5))),
            int64(-a) < 0,
            int64(a + 2**63 - 1) % 16,
            floor_div(int64(square * a), square),
            int64(a * 4) < int64(a * 3),
        ], a


def test_literals_are_not_folded_to_more_than_64_bits() -> None:
    top = -(2**63)
    ((first, *rest),) = run(literals, np.array([1], dtype=np.int64))
    assert first == 2**63 - 127
    assert rest == [top, 1, top, 0, 0, wrap(3**41, "int64"), top + 1]
