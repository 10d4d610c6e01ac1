"""A lost result is owed for good in the payee's books, and is no reason to keep a channel open for good."""

from __future__ import annotations

from collections.abc import Callable

from p2pcompute.payments._debts import OLD_DEBT_MS
from p2pcompute_protocols.channel import VoucherRefusal
from p2pcompute_protocols.errors import WireCode

from .conftest import NOW_MS, World
from .test_consents import asking, consent

Run = Callable[..., None]


async def lose(world: World, *, deadline_ms: int) -> None:
    """Two chunks are done and paid, and the result of a third one is lost on its way."""
    task = await world.agree(deadline_ms=deadline_ms)
    await world.payer.open_channels(world.need(1_000))
    for index in range(2):
        await world.work(task, index)
    await world.payee_ledger.record_receipt(world.receipt(task, 2), sign=world.sign_receipt)
    await world.channel_out().pay()
    await world.payee_ledger.close_agreement(task, state="failed")
    await world.payer_ledger.close_agreement(task, state="failed")


def test_a_result_that_was_lost_a_day_ago_keeps_no_channel_open(run: Run) -> None:
    async def body(world: World) -> None:
        deadline_ms = NOW_MS + 60_000
        await lose(world, deadline_ms=deadline_ms)
        world.now_ms = deadline_ms + OLD_DEBT_MS
        answer = await consent(world, 2)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.PAYMENT_REQUIRED
        world.now_ms += 1
        closed = await asking(world).close(world.channel.hex())
        assert (closed.state, closed.refund_uusd, closed.claimed_uusd) == ("closed", 998, 2)
        row = await world.payee_ledger.channel_in(world.channel)
        assert row is not None
        assert row.unpaid_pusd == 1_000_000  # it is owed all the same, and counts where credit is given

    run(body)


def test_a_later_task_that_is_paid_does_not_hide_it(run: Run) -> None:
    """Which work it is that nobody has paid can't be told: while any of it is of the last day, it may be that."""

    async def body(world: World) -> None:
        await lose(world, deadline_ms=NOW_MS + 60_000)
        world.now_ms += 10 * OLD_DEBT_MS
        await lose(world, deadline_ms=world.now_ms)
        answer = await consent(world, 4)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.PAYMENT_REQUIRED

    run(body)
