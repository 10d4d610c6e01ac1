"""A payer that asks to close again and again, and strangers with a new key for each ask: what it costs a payee."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from p2pcompute.identity import WalletKey
from p2pcompute.payments import ModelHub
from p2pcompute.payments._consents import Consents, NoConsent
from p2pcompute_protocols.channel import ConsentFrame, VoucherRefusal
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import ChannelId

from .conftest import World
from .test_consents import asking, consent, earn

Run = Callable[..., None]
ASKED = 200  # in a loop, one after the other


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the chain is asked, by the account that asks."""
    found: list[str] = []
    for name in ("channel", "epoch"):
        original = getattr(ModelHub, name)

        async def read(self: ModelHub, channel: bytes, name: str = name, original: object = original) -> object:
            found.append(f"{name} by {self.account.hex()}")
            return await original(self, channel)  # type: ignore[operator]

        monkeypatch.setattr(ModelHub, name, read)
    return found


def of_payee(world: World, reads: list[str]) -> int:
    return sum(one.endswith(world.account.address.hex()) for one in reads)


async def loop(world: World, reads: list[str], *, amount: int = 7) -> tuple[int, list[WireCode]]:
    """How often the payee asks the chain for so many asks, one each half a second, and what it refuses them for."""
    before, codes = of_payee(world, reads), []
    for _ in range(ASKED):
        answer = await consent(world, amount)
        if isinstance(answer, VoucherRefusal):
            codes.append(WireCode(answer.code))
        await trio.sleep(0.5)
    return of_payee(world, reads) - before, codes


def test_asking_in_a_loop_has_the_chain_asked_twice_a_minute(run: Run, reads: list[str]) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        count, codes = await loop(world, reads)
        assert count <= 4 + ASKED * 0.5 / 30
        assert {*codes} == {WireCode.INTERNAL}  # for which a payer asks again
        await trio.sleep(60)
        assert (await asking(world).close(world.channel.hex())).state == "closed"

    run(body)


@pytest.mark.parametrize("why", ["under way", "another amount"])
def test_what_the_ledger_refuses_has_nobody_ask_the_chain(run: Run, reads: list[str], why: str) -> None:
    """And uses nothing up: when the task has ended the consent is there."""

    async def body(world: World) -> None:
        task = await earn(world, 7, end=False)
        if why != "under way":
            await world.payee_ledger.close_agreement(task, state="done")
        count, codes = await loop(world, reads, amount=7 if why == "under way" else 6)
        assert (count, {*codes}) == (
            0,
            {WireCode.PAYMENT_REQUIRED if why == "under way" else WireCode.BAD_VOUCHER},
        )
        assert len(codes) == ASKED
        await world.payee_ledger.close_agreement(task, state="done")
        assert isinstance(await consent(world, 7), ConsentFrame)

    run(body)


async def strangers(world: World, count: int) -> None:
    """Each asks under a key of its own to close a channel that nobody ever funded."""
    wallet = world.wallet
    try:
        for number in range(count):
            world.wallet = WalletKey(number.to_bytes(31, "big") + b"\x07")
            await consent(world, 0)
    finally:
        world.wallet = wallet


def test_strangers_have_the_chain_asked_once_a_second_and_keep_nobody_else_waiting(run: Run, reads: list[str]) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        before = of_payee(world, reads)
        await strangers(world, ASKED)
        assert of_payee(world, reads) - before <= 16
        assert isinstance(await consent(world, 7), ConsentFrame)
        assert len(world.payee._consents._asked) <= 1

    run(body)


def test_many_channels_have_the_chain_asked_four_times_a_second(run: Run, reads: list[str]) -> None:
    """Channels that the ledger knows, as it does where somebody has funded each with a micro-USD."""

    async def body(world: World) -> None:
        channels = [ChannelId(bytes([number]) * 32) for number in range(100)]
        payer = world.wallet.address
        for channel in channels:
            await world.payee_ledger.open_channel_in(channel, payer=payer, signer=payer, peer=world.requester.peer_id)
        before = of_payee(world, reads)
        for number, channel in enumerate(channels):
            if number < 64:
                await world.payee._consents.give(channel, amount_uusd=0)
                continue
            with pytest.raises(NoConsent, match="try again") as refused:
                await world.payee._consents.give(channel, amount_uusd=0)
            assert refused.value.code is WireCode.INTERNAL
        assert of_payee(world, reads) - before == 64
        await trio.sleep(1)
        for channel in channels[64:68]:
            await world.payee._consents.give(channel, amount_uusd=0)

    run(body)


@pytest.mark.parametrize("who", ["payer", "strangers"])
def test_without_bounds_every_ask_is_a_read(
    run: Run, reads: list[str], monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        monkeypatch.setattr(Consents, "admit", lambda *_, **__: None)
        before = of_payee(world, reads)
        await (loop(world, reads) if who == "payer" else strangers(world, ASKED))
        assert of_payee(world, reads) - before >= ASKED

    run(body)
