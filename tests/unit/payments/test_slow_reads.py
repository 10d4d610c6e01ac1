"""An answer of the chain that was under way while a channel was closed says nothing of the channel behind it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from p2pcompute.payments import ModelHub
from p2pcompute.payments._api import ChannelOnChain
from p2pcompute.payments._payee import CHAIN_TTL_S
from p2pcompute_protocols.channel import CloseAsk, ConsentFrame, VoucherAck, VoucherRefusal
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import ChannelId

from .conftest import World
from .test_consents import asking, earn, greet, offer

Run = Callable[..., None]


class SlowAnswer:
    """The next answer about a channel to the payee is as of now, and comes when it is let go."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.let_go = trio.Event(), trio.Event()
        original = ModelHub.channel

        async def read(hub: ModelHub, channel: ChannelId) -> ChannelOnChain:
            state = await original(hub, channel)
            if hub.account == world.account.address and not self.asked.is_set():
                self.asked.set()
                await self.let_go.wait()
            return state

        monkeypatch.setattr(ModelHub, "channel", read)


async def close_meanwhile(world: World, slow: SlowAnswer) -> None:
    """The payer takes home 993 of 1,000, and the payee comes to know of it, before the answer is here."""
    await slow.asked.wait()
    await asking(world).close(world.channel.hex())
    await world.payee.check_open(world.channel)
    assert await world.payee_ledger.consent(world.channel) is None


async def nothing_more_is_taken(world: World) -> None:
    await trio.sleep(1)
    answer = await offer(world, 900)
    assert isinstance(answer, VoucherRefusal)
    assert answer.code == WireCode.UNFUNDED
    row = await world.payee_ledger.channel_in(world.channel)
    assert row is not None
    assert (row.paid_uusd, row.deposit_uusd) == (7, 7)
    assert world.chain.channels[world.channel].deposit_uusd == 7


def test_a_voucher_whose_deposit_is_looked_up_for_long(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        await trio.sleep(CHAIN_TTL_S)
        slow, answers = SlowAnswer(world, monkeypatch), list[VoucherAck | VoucherRefusal]()

        async def pay() -> None:
            answers.append(await offer(world, 900))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pay)
            await close_meanwhile(world, slow)
            slow.let_go.set()
        assert isinstance(answers[0], VoucherRefusal)
        assert answers[0].code == WireCode.INTERNAL
        await nothing_more_is_taken(world)

    run(body)


def test_another_closing_that_is_asked_for_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        await trio.sleep(1)
        slow = SlowAnswer(world, monkeypatch)

        async def ask() -> None:
            dialogue = await greet(world)
            await dialogue.send(CloseAsk(amount_uusd=8))
            await dialogue.expect(ConsentFrame, VoucherRefusal)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await close_meanwhile(world, slow)
            slow.let_go.set()
        await nothing_more_is_taken(world)

    run(body)


@pytest.mark.parametrize("offered", [True, False])
def test_a_round_of_claims_that_reads_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch, offered: bool) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        await trio.sleep(1)
        slow = SlowAnswer(world, monkeypatch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.settler.round)
            await close_meanwhile(world, slow)
            if offered:
                answer = await offer(world, 800)  # has the chain asked, which counts for a while
                assert isinstance(answer, VoucherRefusal)
            slow.let_go.set()
        row = await world.payee_ledger.channel_in(world.channel)
        assert row is not None
        assert (row.paid_uusd, row.deposit_uusd) == (7, 7)
        await nothing_more_is_taken(world)

    run(body)
