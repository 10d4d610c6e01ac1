"""What counts as right in fast mode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.checking import DEFAULT_TOLERANCE, alike, outside, outside_rows
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.negotiation import (
    MAX_RTOL,
    MIN_RTOL,
    CheckPolicy,
    Tolerance,
    check_terms_follow_bid,
    open_bid,
    open_order,
)

from ..protocols.vectors._material import NETWORK, NOW, PROVIDER, REQUESTER
from ..protocols.vectors._negotiation import a_bid, an_order, bid_bytes, order_bytes, some_terms

TINY = float(np.finfo(np.float32).tiny)
TOLERANCE = Tolerance.of(rtol32=2**-10, atol32=2**-20, rtol64=2**-30, atol64=0.0)


def wrong(x: float, strict: float, dtype: str = "float32", tolerance: Tolerance | None = TOLERANCE) -> bool:
    found = outside(np.array([x], dtype), np.array([strict], dtype), tolerance)
    return bool(found[0])


def test_the_bound_is_atol_and_rtol_times_the_strict_value() -> None:
    bound = 2**-20 + 2**-10 * 8
    assert not wrong(8 + 2**-7, 8)
    assert not wrong(8 - 2**-7, 8)
    assert wrong(8 + 2**-7 + 2**-16, 8)
    assert 2**-7 <= bound < 2**-7 + 2**-16
    # Not of the value that was delivered: a larger one does not widen its own bound.
    assert wrong(8 + 8 * 2**-10 + 2**-17, 8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_no_finite_number_has_to_be_the_same(dtype: str) -> None:
    for x, strict, is_wrong in (
        (math.nan, math.nan, False),
        (math.nan, 1.0, True),
        (1.0, math.nan, True),
        (math.inf, math.inf, False),
        (math.inf, -math.inf, True),
        (math.inf, 3e38, True),
        (3e38, math.inf, True),
        (math.nan, math.inf, True),
        (0.0, -0.0, False),
    ):
        assert wrong(x, strict, dtype) is is_wrong, (x, strict)
        assert wrong(x, strict, dtype, Tolerance.of(rtol32=0.01, atol32=1e300, rtol64=0.01, atol64=1.7e308)) is (
            is_wrong
        ), (x, strict)
    with np.errstate(all="ignore"):
        other = np.array([0x7FC00001], np.uint32).view(np.float32)
    assert not outside(other, np.array([np.nan], np.float32), TOLERANCE)[0]


def test_subnormal_numbers_may_be_taken_for_zero() -> None:
    exact = Tolerance.of(rtol32=2**-20, atol32=0.0, rtol64=2**-46, atol64=0.0)
    assert not wrong(0.0, TINY / 2, tolerance=exact)
    assert not wrong(TINY / 4, -TINY / 4, tolerance=exact)
    assert not wrong(0.0, 5e-324, "float64", exact)
    assert wrong(0.0, 2 * TINY, tolerance=exact)


def test_types_other_than_floats_are_compared_by_bits() -> None:
    wide = Tolerance.of(rtol32=MAX_RTOL, atol32=1e9, rtol64=MAX_RTOL, atol64=1e9)
    for dtype in ("bool", "int8", "uint16", "int32", "int64", "uint64"):
        one, two = np.array([1, 0], dtype), np.array([1, 1], dtype)
        assert list(outside(one, two, wide)) == [False, True]
        assert not alike(one, two, wide)
    assert outside(np.float32([1.0]), np.nextafter(np.float32([1]), np.float32(2)), None)[0]


@given(st.floats(width=32), st.floats(width=32), st.floats(width=32))
def test_two_right_results_are_alike(strict: float, x: float, y: float) -> None:
    s, a, b = (np.array([v], np.float32) for v in (strict, x, y))
    loose = Tolerance.of(rtol32=2**-4, atol32=1.0, rtol64=2**-4, atol64=1.0)
    halved = Tolerance.of(rtol32=2**-5, atol32=0.5, rtol64=2**-5, atol64=0.5)
    if not outside(a, s, halved)[0] and not outside(b, s, halved)[0]:
        assert alike(a, b, loose)


def test_what_our_own_fast_mode_puts_outside_too_counts_for_nobody() -> None:
    strict = np.float32([[1, 1], [1, 1], [1, 1], [1, 1]])
    own = np.float32([[1, 1], [1, 2], [1, 2], [1, 1]])
    theirs = np.float32([[1, 1], [1, 7], [7, 7], [1, 7]])
    bad, loose = outside_rows(theirs, strict, own, TOLERANCE)
    assert list(bad) == [False, False, True, True]
    assert list(loose) == [False, True, False, False]
    bad, loose = outside_rows(theirs, strict, None, TOLERANCE)
    assert list(bad) == [False, True, True, True]
    assert not loose.any()


BAD: list[tuple[str, Any]] = [
    ("rtol32", math.nan),
    ("rtol32", math.inf),
    ("rtol32", -1e-4),
    ("rtol32", 0.0),
    ("rtol32", MIN_RTOL["float32"] / 2),
    ("rtol32", MAX_RTOL * 1.01),
    ("rtol64", 1.0),
    ("rtol64", MIN_RTOL["float64"] / 2),
    ("atol32", math.nan),
    ("atol32", -0.5),
    ("atol64", math.inf),
    ("atol64", -math.inf),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_tolerance_that_is_none_can_not_exist(name: str, value: float) -> None:
    given: dict[str, float] = {"rtol32": 1e-4, "atol32": 0.0, "rtol64": 1e-9, "atol64": 0.0}
    with pytest.raises(LocalProtocolError):
        Tolerance.of(**{**given, name: value})


@given(st.floats(2**-20, 2**-4), st.floats(0, allow_infinity=False))
def test_a_tolerance_keeps_its_numbers(rtol: float, atol: float) -> None:
    made = Tolerance.of(rtol32=rtol, atol32=atol, rtol64=rtol, atol64=atol)
    assert Tolerance.decode(made.encode()) == made
    assert made.for_dtype("float32") == made.for_dtype("float64") == (rtol, atol)
    assert made.for_dtype("int32") is None
    policy = CheckPolicy(kind="sample", per_chunk=1, tolerance=made)
    assert CheckPolicy.decode(policy.encode()) == policy


def test_the_usual_tolerance() -> None:
    assert DEFAULT_TOLERANCE.for_dtype("float32") == (1e-4, 1e-6)
    assert DEFAULT_TOLERANCE.for_dtype("float64") == (1e-9, 1e-12)


def test_terms_with_another_tolerance_than_the_order_are_not_signed() -> None:
    checks = [
        CheckPolicy(
            kind="sample", per_chunk=4, tolerance=Tolerance.of(rtol32=rtol, atol32=0.0, rtol64=1e-9, atol64=0.0)
        )
        for rtol in (1e-4, 2e-4)
    ]
    asked = an_order(fp="fast", check=checks[0])
    order = open_order(
        order_bytes(asked.encode()),
        network=NETWORK,
        requester=REQUESTER.peer_id,
        provider=PROVIDER.peer_id,
        now_ms=NOW,
    )[0]
    bid = bid_bytes(a_bid(order_bytes(asked.encode())).encode())
    opened, offered = open_bid(bid, network=NETWORK, requester=REQUESTER.peer_id, provider=PROVIDER.peer_id)
    for check, fp in ((checks[0], "fast"), (checks[1], "fast"), (CheckPolicy(kind="sample", per_chunk=4), "strict")):
        terms = some_terms(order_bytes(asked.encode()), bid, fp=fp, check=check)
        if check is checks[0]:
            check_terms_follow_bid(terms, order=order, order_payload=asked, bid=opened, bid_payload=offered)
        else:
            with pytest.raises(LocalProtocolError, match="differ from order and bid in check"):
                check_terms_follow_bid(terms, order=order, order_payload=asked, bid=opened, bid_payload=offered)
