"""When a checkpoint is due, and what of a deposit counts: pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.payments import AT_ONCE, PUBLIC_CHAIN, Confirmations, GasQuote, SettlePolicy
from p2pcompute.payments._settle_policy import CLOSE_WINDOW_S, claim_gas, rows_due, rows_worth_it

NOW_S = 2_000_000
COIN_UUSD = 3_000_000_000  # 3000 USD
CHEAP = GasQuote(fee_wei=10**7, usual_wei=10**7)  # 0.01 gwei: a claim of one row costs about 0.002 USD
DEAR = GasQuote(fee_wei=10**9, usual_wei=10**9)
SPIKE = GasQuote(fee_wei=10**9, usual_wei=10**8)


@dataclass(frozen=True)
class Row:
    """As much of a channel as the policy looks at."""

    unclaimed_uusd: int
    close_at_s: int = 0


def due(rows: list[Row], quote: GasQuote | None = None, **policy: Any) -> list[Row]:
    chosen = SettlePolicy(**({"cap_uusd": 1_000_000} | policy))
    return rows_due(rows, now_s=NOW_S, policy=chosen, quote=quote)


def test_the_cap_makes_a_checkpoint_due() -> None:
    rows = [Row(600_000), Row(400_000)]
    assert due(rows) == []
    assert due([*rows, Row(1)]) == [*rows, Row(1)]
    assert due([Row(1)], cap_uusd=0) == [Row(1)]
    assert due([], cap_uusd=0) == []


def test_so_does_a_multiple_of_what_gas_costs() -> None:
    cost = SettlePolicy(cap_uusd=0, coin_uusd=COIN_UUSD).cost_uusd(claim_gas(1), CHEAP)
    assert cost == 2_145
    row = Row(100 * cost)
    assert due([row], CHEAP, coin_uusd=COIN_UUSD) == [row]
    assert due([Row(100 * cost - 1)], CHEAP, coin_uusd=COIN_UUSD) == []
    assert due([row], CHEAP, coin_uusd=COIN_UUSD, gas_multiple=101) == []
    # Without a price of the coin, or on a chain without a price of gas, only the cap counts.
    assert due([row], CHEAP) == []
    assert due([row], None, coin_uusd=COIN_UUSD) == []


def test_rows_that_cost_more_than_they_bring_are_left_out() -> None:
    dust, fair = Row(400), Row(2_000_000)
    assert due([dust, fair], CHEAP, coin_uusd=COIN_UUSD) == [fair]
    assert due([Row(400)] * 10_000, CHEAP, coin_uusd=COIN_UUSD) == []
    assert due([dust, fair], CHEAP) == [dust, fair]
    assert due([Row(2_000_000)], DEAR, coin_uusd=COIN_UUSD) == [Row(2_000_000)]
    assert due([Row(214_000)], DEAR, coin_uusd=COIN_UUSD, cap_uusd=0) == []  # it would cost 0.2145 USD


def test_a_request_to_close_makes_it_due_at_once() -> None:
    closing = Row(5, close_at_s=NOW_S + CLOSE_WINDOW_S)
    assert due([closing, Row(3)]) == [closing, Row(3)]
    assert due([Row(0, close_at_s=NOW_S + 5)]) == []


@pytest.mark.parametrize(("left_s", "paid"), [(86_400, False), (21_601, False), (21_600, True), (0, True), (-5, True)])
def test_a_spike_is_waited_for_until_a_quarter_of_the_window_is_left(left_s: int, paid: bool) -> None:
    closing, other = Row(5_000_000, close_at_s=NOW_S + left_s), Row(9_000_000)
    assert due([closing, other], SPIKE) == ([closing] if paid else [])
    assert due([closing, other], SPIKE, spike_percent=1_000) == [closing, other]


def test_a_spike_is_not_paid_for_less_than_it_costs() -> None:
    closing = Row(100_000, close_at_s=NOW_S + 60)
    assert due([closing], SPIKE, coin_uusd=COIN_UUSD) == []
    assert due([closing], SPIKE) == [closing]  # nobody has said what it costs


@given(
    values=st.lists(st.integers(0, 10**9), max_size=300),
    fee=st.integers(0, 10**12),
    usual=st.integers(1, 10**12),
    coin=st.none() | st.integers(0, 10**11),
    left=st.integers(-100, 90_000),
)
def test_what_is_claimed_with_a_known_price_brings_more_than_it_costs(
    values: list[int], fee: int, usual: int, coin: int | None, left: int
) -> None:
    quote = GasQuote(fee_wei=fee, usual_wei=usual)
    rows = [Row(value, close_at_s=NOW_S + left if i % 3 == 0 else 0) for i, value in enumerate(values)]
    policy = SettlePolicy(cap_uusd=0, coin_uusd=coin)
    for chosen in (
        rows_due(rows, now_s=NOW_S, policy=policy, quote=quote),
        rows_worth_it(rows, policy, quote),
    ):
        assert all(row.unclaimed_uusd > 0 for row in chosen)
        if chosen:
            assert sum(row.unclaimed_uusd for row in chosen) > policy.cost_uusd(claim_gas(len(chosen)), quote)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cap_uusd": -1},
        {"cap_uusd": 0, "coin_uusd": -1},
        {"cap_uusd": 0, "gas_multiple": 0},
        {"cap_uusd": 0, "spike_percent": 99},
        {"cap_uusd": 0, "patience_percent": 101},
    ],
)
def test_policies_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"not negative|or more"):
        SettlePolicy(**wrong)


# Confirmations

STEPS = Confirmations(steps=((1, 50_000), (3, 10_000_000)), whole=12, head_age_s=900, head_back=64)


def test_a_new_deposit_counts_step_by_step() -> None:
    policy = STEPS
    assert policy.depths == (1, 3, 12)
    assert policy.counted([20_000_000, 0, 0], 0) == 50_000
    assert policy.counted([20_000_000, 20_000_000, 0], 0) == 10_000_000
    assert policy.counted([20_000_000] * 3, 0) == 20_000_000
    assert policy.counted([40_000, 0, 0], 0) == 40_000
    # What is claimed already is no risk any more: the steps come on top of it.
    assert policy.counted([20_000_000, 7_000_000, 7_000_000], 7_000_000) == 7_050_000
    assert (policy.needed(50_000), policy.needed(50_001), policy.needed(10_000_001)) == (1, 3, 12)
    assert (AT_ONCE.counted([5], 0), AT_ONCE.needed(10**12)) == (5, 1)
    assert PUBLIC_CHAIN.depths == (1, 13)
    assert PUBLIC_CHAIN.counted([20_000_000, 0], 0) == 50_000


@given(deposits=st.lists(st.integers(0, 10**9), min_size=3, max_size=3), claimed=st.integers(0, 10**9))
def test_no_more_counts_than_is_there_or_than_the_steps_allow(deposits: list[int], claimed: int) -> None:
    counted = STEPS.counted(deposits, claimed)
    assert counted <= max(deposits)
    assert counted >= deposits[-1]
    for lost_from in (0, 1, 2):
        # Blocks newer than that are taken back: at most the step's value is lost.
        left = max(deposits[lost_from + 1 :], default=0)
        steps = [most for _, most in STEPS.steps]
        if lost_from < 2 and deposits[lost_from] >= left:
            assert counted <= max(left, claimed + steps[lost_from])


@pytest.mark.parametrize(
    ("steps", "whole"), [(((0, 5),), 3), (((3, 5), (1, 6)), 9), (((1, 5),), 1), (((1, 5), (2, 4)), 3), (((1, -1),), 3)]
)
def test_steps_that_do_not_ascend(steps: tuple[tuple[int, int], ...], whole: int) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Confirmations(steps=steps, whole=whole, head_age_s=None, head_back=None)
