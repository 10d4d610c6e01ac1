"""What a task waits for, held against every requester that there can be: one that pays for all that it has."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from p2pcompute.payments._earlier import EarlierWork
from p2pcompute_protocols.money import PUSD_PER_UUSD

PUSD = st.integers(0, 3 * PUSD_PER_UUSD)


def ceil_uusd(pusd: int) -> int:
    return -(-pusd // PUSD_PER_UUSD)


@given(
    accepted=PUSD,
    unpaid=PUSD,
    lost=PUSD,
    price=st.integers(1, 3 * PUSD_PER_UUSD),
    chunks=st.lists(st.booleans(), max_size=12),
)
@example(accepted=608_000, unpaid=0, lost=300_000, price=350_000, chunks=[False])
def test_whoever_pays_for_all_that_it_has_is_waited_for_nowhere(
    accepted: int, unpaid: int, lost: int, price: int, chunks: list[bool]
) -> None:
    """`unpaid` was accepted before and is paid before the chunk that is marked first; `lost` never is."""
    owed, paid = accepted + unpaid + lost, ceil_uusd(accepted)
    earlier = EarlierWork(owed_pusd=owed, paid_uusd=paid)
    assert 0 <= earlier.left_out_pusd <= unpaid + lost + PUSD_PER_UUSD - 1
    for pays_earlier in chunks:
        if pays_earlier:
            accepted, unpaid = accepted + unpaid, 0
            paid = max(paid, ceil_uusd(accepted))
        earlier.see(owed_pusd=owed, paid_uusd=paid)
        owed += price
        accepted += price
        paid = max(paid, ceil_uusd(accepted))
        assert earlier.due_uusd(owed) <= paid


@given(accepted=PUSD, lost=PUSD, prices=st.lists(st.integers(1, 3 * PUSD_PER_UUSD), min_size=1, max_size=12))
def test_a_task_gives_away_less_than_a_micro_usd(accepted: int, lost: int, prices: list[int]) -> None:
    """Whoever pays nothing for a task is waited for before its work comes to a micro-USD, whatever was before."""
    owed, paid = accepted + lost, ceil_uusd(accepted)
    earlier = EarlierWork(owed_pusd=owed, paid_uusd=paid)
    work = 0
    for price in prices:
        earlier.see(owed_pusd=owed, paid_uusd=paid)
        owed, work = owed + price, work + price
        assert work < PUSD_PER_UUSD or earlier.due_uusd(owed) > paid


@given(owed=PUSD)
def test_who_never_paid_gets_no_part_of_a_micro_usd(owed: int) -> None:
    earlier = EarlierWork(owed_pusd=owed, paid_uusd=0)
    earlier.see(owed_pusd=owed, paid_uusd=0)
    assert earlier.due_uusd(owed + 1) == 1


@given(before=PUSD, paid=st.integers(0, 3), work=PUSD, other=st.integers(1, 3 * PUSD_PER_UUSD))
def test_what_another_task_loses_is_not_waited_for(before: int, paid: int, work: int, other: int) -> None:
    alone = EarlierWork(owed_pusd=before, paid_uusd=paid)
    beside = EarlierWork(owed_pusd=before, paid_uusd=paid)
    beside.lose(owed_pusd=before + work + other, pusd=other)
    assert beside.due_uusd(before + work + other) == alone.due_uusd(before + work)
    beside.lose(owed_pusd=before, pusd=other)  # what was there before counts once
    assert beside.due_uusd(before + work + other) == alone.due_uusd(before + work)
