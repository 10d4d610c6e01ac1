"""What is wrong with a call is said before anything is opened or compiled."""

from __future__ import annotations

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._options import AmountError, parse_usd, price_per_unit_pusd
from p2pcompute._requester import bound
from p2pcompute.errors import ConfigError, KernelTypeError


@p2p.kernel
def copy(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i]


X = np.zeros(8, np.float32)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((p2p.out(0, np.float32), X), "out has the shape"),
        ((p2p.out(8, np.float32), X[:0]), "x has the shape"),
        ((p2p.out(8, np.uint8), np.zeros(64 * 1024 * 1024 + 1, np.uint8)), "at most 67108864"),
    ],
)
def test_arguments_that_no_task_can_have(args: tuple[object, ...], says: str) -> None:
    with pytest.raises(KernelTypeError, match=says):
        bound(copy, args)


def test_a_plain_function_is_told_to_be_decorated() -> None:
    def plain() -> None: ...

    with pytest.raises(KernelTypeError, match=r"plain is not a kernel; decorate the function with @p2p\.kernel"):
        p2p.run(plain)


def test_a_price_is_rounded_up_and_only_zero_is_free() -> None:
    assert price_per_unit_pusd("0.05 USD") == 14  # 13.9 exactly
    assert price_per_unit_pusd("0.05 USD", at_most=True) == 13
    assert price_per_unit_pusd("0.0036 USD", at_most=True) == price_per_unit_pusd("0.0036 USD") == 1
    assert price_per_unit_pusd("0 USD", at_most=True) == 0
    with pytest.raises(AmountError, match="write at least"):
        price_per_unit_pusd("0.001 USD", at_most=True)
    assert price_per_unit_pusd("0.000001 USD") == 1
    assert price_per_unit_pusd(0) == 0


@pytest.mark.parametrize("amount", ["lots", "-1", "0.0000001", "nan", ""])
def test_what_is_no_amount_says_how_to_write_one(amount: str) -> None:
    with pytest.raises(ConfigError, match=r"0\.01 USD"):
        parse_usd(amount)
