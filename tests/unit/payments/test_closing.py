"""Closing channels, from both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2pcompute.control import MONEY_ANSWERS, MoneyOnChain
from p2pcompute.errors import ChainUnreachable, ConfigError
from p2pcompute.payments import ClosedChannel, Finalize, RequestClose, Wallet
from p2pcompute.payments._model_hub import CLOSE_DELAY_S

from .conftest import World

DAY_MS = CLOSE_DELAY_S * 1000


class Clock:
    """UNIX time that a test sets."""

    now_ms = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def wallets(world: World, clock: Clock) -> tuple[Wallet, Wallet]:
    world.chain.clock_ms = clock
    return (
        Wallet(ledger=world.payer_ledger, hub=world.payer.hub, outbox=world.payer_outbox, clock_ms=clock),
        Wallet(
            ledger=world.payee_ledger,
            hub=world.chain.hub(world.account.address),
            outbox=world.payee_outbox,
            clock_ms=clock,
        ),
    )


async def earn(world: World, chunks: int, *, first: int = 0) -> None:
    task = await world.agree()
    await world.payer.open_channels(world.need(1_000))
    for index in range(first, first + chunks):
        await world.work(task, index)
    await world.channel_out().pay()


def run(make_world: Callable[..., World], scenario: Callable[[World, Clock, Wallet, Wallet], Any]) -> None:
    async def main() -> None:
        async with make_world().open() as world:
            total = world.chain.total_uusd()
            clock = Clock()
            await scenario(world, clock, *wallets(world, clock))
            assert world.chain.total_uusd() == total
            for ledger in (world.payer_ledger, world.payee_ledger):
                await ledger.verify(full=True)

    trio.run(main)


async def shown_to(wallet: Wallet, world: World) -> list[tuple[str, int]]:
    """What `p2pcompute channels` is told of the payer's: direction, and when each can be closed."""
    money = MoneyOnChain(
        wallet=wallet,
        account=wallet.address,
        ledger=world.payer_ledger,
        network="test",
        chain_url=None,
        chain_id=1,
        hub=bytes(20),
    )
    answer = await MONEY_ANSWERS["GET", "/channels"](money, {})
    return [(row["direction"], row["close_at_s"]) for row in answer["channels"]]


def test_a_payee_claims_and_closes_at_once(make_world: Callable[..., World]) -> None:
    async def scenario(world: World, clock: Clock, payer: Wallet, payee: Wallet) -> None:
        await earn(world, 7)
        name = world.channel.hex()
        assert await payee.close(name[:8]) == ClosedChannel(
            channel=world.channel, direction="in", state="closed", close_at_s=0, refund_uusd=993, claimed_uusd=7
        )
        assert (await payee.balances()).free_uusd == 7
        assert world.chain.free[world.wallet.address] == 993
        with pytest.raises(ConfigError, match="nothing is reserved"):
            await payee.close(name)
        row = await world.payee_ledger.channel_in(world.channel)
        assert row is not None
        assert (row.deposit_uusd, row.claimed_uusd, row.unclaimed_uusd) == (7, 7, 0)
        # The two go on: the channel is funded again, above its watermark.
        await earn(world, 3, first=7)
        assert await payee.settle() == 3

    run(make_world, scenario)


def test_a_payer_asks_waits_a_day_and_gets_what_is_left(make_world: Callable[..., World]) -> None:
    async def scenario(world: World, clock: Clock, payer: Wallet, payee: Wallet) -> None:
        await earn(world, 7)
        name = "0x" + world.channel.hex()[:10].upper()
        asked = await payer.close(name)
        due_s = clock.now_ms // 1000 + CLOSE_DELAY_S
        assert (asked.direction, asked.state, asked.close_at_s, asked.refund_uusd) == ("out", "closing", due_s, 0)
        assert await shown_to(payer, world) == [("out", due_s)]
        clock.now_ms += DAY_MS - 1000
        again = await payer.close(name)
        assert (again.state, again.close_at_s) == ("closing", due_s)  # the date stays
        assert await payee.settle() == 7  # vouchers count until then
        clock.now_ms += 1000
        closed = await payer.close(name)
        assert (closed.state, closed.refund_uusd, closed.claimed_uusd) == ("closed", 993, 7)
        assert (await payer.balances()).free_uusd == 993
        (row,) = await world.payer_ledger.channels_out()
        assert (row.deposit_uusd, row.claimed_uusd) == (7, 7)
        assert await shown_to(payer, world) == [("out", 0)]
        with pytest.raises(ConfigError, match="nothing is reserved"):
            await payer.close(name)

    run(make_world, scenario)


def test_a_chain_that_does_not_answer_hides_no_channels(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World, clock: Clock, payer: Wallet, payee: Wallet) -> None:
        async def fails(_: Any) -> Any:
            raise ChainUnreachable("nobody answers")

        await earn(world, 7)
        await payer.close(world.channel.hex())
        monkeypatch.setattr(payer._hub, "channel", fails)
        assert await shown_to(payer, world) == [("out", 0)]

    run(make_world, scenario)


def test_new_work_takes_the_request_back(make_world: Callable[..., World]) -> None:
    async def scenario(world: World, clock: Clock, payer: Wallet, payee: Wallet) -> None:
        await earn(world, 7)
        await payer.close(world.channel.hex())
        clock.now_ms += DAY_MS
        await world.payer.open_channels(world.need(5_000))
        assert world.chain.channels[world.channel].close_at_s == 0
        asked = await payer.close(world.channel.hex())
        assert (asked.state, asked.close_at_s) == ("closing", clock.now_ms // 1000 + CLOSE_DELAY_S)

    run(make_world, scenario)


def test_a_payer_that_was_stopped_in_between_goes_on(make_world: Callable[..., World]) -> None:
    """The request is on its way, and nobody waits for it: the next call finds it, and does not ask twice."""

    async def scenario(world: World, clock: Clock, payer: Wallet, payee: Wallet) -> None:
        await earn(world, 7)
        world.chain.mines = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(payer.close, world.channel.hex())
            while not await world.payer_ledger.unsettled(world.wallet.address):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        world.chain.mines = True
        asked = await payer.close(world.channel.hex())
        assert asked.state == "closing"
        assert world.chain.nonces[world.wallet.address] == 4  # approve, deposit, fund, and one request

    run(make_world, scenario)


@pytest.mark.parametrize(
    ("name", "error"),
    [("", "names no channel"), ("1234567", "names no channel"), ("no such thing", "names no channel")],
)
def test_names_that_are_none(make_world: Callable[..., World], name: str, error: str) -> None:
    async def scenario(world: World, clock: Clock, payer: Wallet, payee: Wallet) -> None:
        await earn(world, 1)
        with pytest.raises(ConfigError, match=error):
            await payer.close(name)
        other = bytes(b ^ 0xFF for b in world.channel[:4]).hex()
        with pytest.raises(ConfigError, match="no channel begins"):
            await payer.close(other)

    run(make_world, scenario)


def test_the_model_closes_for_whom_the_hub_does(make_world: Callable[..., World]) -> None:
    async def scenario(world: World, clock: Clock, payer: Wallet, payee: Wallet) -> None:
        await earn(world, 7)
        who = {"payee": world.account.address, "signer": world.wallet.address}
        finalize = Finalize(payer=world.wallet.address, **who)

        async def send(wallet: Any, call: Any) -> bool:
            hub = world.chain.hub(wallet.address)
            tx_hash, raw = (await hub.signing(call))(await hub.nonce())
            await hub.send(raw)
            outcome = await hub.outcome(tx_hash)
            assert outcome is not None
            return outcome.ok

        assert not await send(world.wallet, finalize)  # without a request
        assert not await send(world.account, RequestClose(**who))  # the payee has no such channel
        assert await send(world.wallet, RequestClose(**who))
        assert not await send(world.wallet, RequestClose(**who))  # a second one
        clock.now_ms += DAY_MS - 1000
        assert not await send(world.wallet, finalize)
        clock.now_ms += 1000
        assert await send(world.wallet, finalize)
        assert not await send(world.account, finalize)  # it is closed

    run(make_world, scenario)
