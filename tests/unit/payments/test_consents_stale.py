"""What a payee has read of the chain before a closing counts for nothing behind it, whoever notices the closing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pcompute.payments import Hub, Payee
from p2pcompute.payments._api import ChannelOnChain
from p2pcompute_protocols.channel import VoucherAck, VoucherRefusal
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import ChannelId

from .conftest import World
from .test_consents import asking, earn, offer

Run = Callable[..., None]


async def close_and_notice(world: World, seen_by: str) -> None:
    """The payer takes home 993 of the 1,000 that it had deposited, and the payee comes to know of that."""
    await earn(world, 7)
    await asking(world).close(world.channel.hex())
    if seen_by == "a task":
        await world.payee.check_open(world.channel)
    assert (await world.payee_ledger.consent(world.channel) is None) == (seen_by != "a voucher")


@pytest.mark.parametrize("seen_by", ["a task", "a voucher"])
def test_a_deposit_that_was_taken_home_covers_no_voucher(run: Run, seen_by: str) -> None:
    async def body(world: World) -> None:
        await close_and_notice(world, seen_by)
        answer = await offer(world, 900)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.UNFUNDED
        row = await world.payee_ledger.channel_in(world.channel)
        assert row is not None
        assert (row.paid_uusd, row.unclaimed_uusd, row.deposit_uusd) == (7, 0, 7)

    run(body)


def test_without_looking_again_it_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: nothing is left in the channel, and ten minutes of work are paid with vouchers on it."""

    async def body(world: World) -> None:
        async def as_it_was(_: Hub, channel: ChannelId) -> ChannelOnChain:
            row = await world.payee_ledger.channel_in(channel)
            assert row is not None
            return ChannelOnChain(deposit_uusd=row.deposit_uusd, claimed_uusd=row.claimed_uusd, close_at_s=0)

        monkeypatch.setattr(Payee, "_forget_read", lambda *_: None)
        monkeypatch.setattr("p2pcompute.payments._consents.payee_view", as_it_was)
        world.compose(world.payer_ledger, world.payee_ledger, world.nursery)
        await close_and_notice(world, "a task")
        assert isinstance(await offer(world, 900), VoucherAck)
        assert await world.settler.checkpoint() == {}
        assert world.chain.free[world.account.address] == 7

    run(body)
