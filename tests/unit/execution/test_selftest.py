"""The self-test's digest against a model of its kernel in NumPy and Python integers, and what a wrong bit leads to."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.execution import SelfTestError, _selftest, open_pool, self_test
from p2pcompute.random import philox, uniform

CANONICAL = {"float32": np.uint32(0x7FC00000), "float64": np.uint64(0x7FF8000000000000)}


def wrap(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def to_int(value: Any, low: int, high: int) -> int:
    if math.isnan(value):
        return 0
    return high if value == math.inf else low if value == -math.inf else max(low, min(high, int(value)))


def stored(columns: list[Any], dtype: str) -> bytes:
    table = np.stack([np.asarray(column, dtype=dtype) for column in columns], axis=1)
    bits = table.view(CANONICAL[dtype].dtype)
    return np.where(np.isnan(table), CANONICAL[dtype], bits).tobytes()


def floats(a: Any, b: Any) -> list[Any]:
    less, greater = np.where(b < a, b, a), np.where(b > a, b, a)
    quotient = np.floor(a / b)
    return [a + b, a - b, a * b, a / b, quotient, a - quotient * b, less, greater, a * b + a, np.sqrt(a), np.floor(a)]


def integers(p: int, q: int, a: Any, b: Any, c: float, i: int) -> list[int]:
    words = philox(p, q, i, 0, 3, 4)
    return [
        wrap(p + q),
        wrap(p * q),
        wrap(p // q) if q else 0,
        p % q if q else 0,
        wrap(p << q) if 0 <= q < 64 else 0,
        p >> q if 0 <= q < 64 else -1 if p < 0 else 0,
        to_int(a, -(2**63), 2**63 - 1),
        to_int(c, -(2**31), 2**31 - 1),
        to_int(a, 0, 255),
        int(np.float32(p) < a) + 2 * int(a <= b) + 4 * int(a == b),
        words[0] ^ words[3],
        words[1] + words[2],
    ]


def model() -> str:
    index = np.arange(1024)
    wide = np.array([float.fromhex(text) for text in _selftest.FLOATS])
    single = wide.astype(np.float32)
    a, b, c, e = single[index % 32], single[index // 32], wide[index % 32], wide[index // 32]
    with np.errstate(all="ignore"):
        random = [uniform(7, int(i), 3) for i in index]
        f = stored([*floats(a, b), random], "float32")
        d = stored([c + e, c * e, c / e, c * e - c, np.sqrt(c), np.floor(c / e)], "float64")
        whole = _selftest.INTEGERS
        n = [
            integers(whole[i % 32], whole[i // 32], a[i], b[i], float(c[i]), int(i)) for i in range(1024)
        ]  # Python's integers, which do not wrap
    return hashlib.sha256(f + d + np.array(n, dtype=np.int64).tobytes()).hexdigest()


def test_the_digest_is_the_models() -> None:
    assert model() == _selftest.DIGEST


def test_every_operand_is_exact() -> None:
    for text in _selftest.FLOATS:
        value = float.fromhex(text)
        assert math.isnan(value) or float(np.float32(value)) == value, text


@pytest.mark.net
def test_this_machine_passes_and_another_digest_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with open_pool(spare=1) as pool:
            await self_test(pool)
            monkeypatch.setattr(_selftest, "DIGEST", "00" * 32)
            with pytest.raises(SelfTestError, match="would be taken for a liar"):
                await self_test(pool)

    trio.run(main)
