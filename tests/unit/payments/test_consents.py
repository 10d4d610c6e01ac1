"""Closing a channel with its payee's consent: at once where it is right, and what comes of asking where it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute.errors import (
    ChainError,
    ChainUnreachable,
    ChannelBusy,
    ChannelClosing,
    ConfigError,
    StreamError,
    TransactionFailed,
    VoucherRefused,
)
from p2pcompute.identity import WalletKey
from p2pcompute.payments import ClosedChannel, CloseSigned, ModelHub, Payee, Wallet
from p2pcompute.payments._api import ChannelOnChain
from p2pcompute.payments._consents import CONSENT_S, OVER_S
from p2pcompute.storage import ChannelInRow, InlineExecutor, open_ledger
from p2pcompute_protocols.channel import (
    ChannelConnection,
    ChannelHello,
    ChannelSync,
    CloseAsk,
    CloseConsent,
    ConsentFrame,
    Domain,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
    channel_id,
    close_digest,
    recover_closer,
)
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import Address, ChannelId

from .conftest import NOW_MS, TERMS, World

Run = Callable[..., None]
NOW_S = NOW_MS // 1000


def asking(world: World) -> Wallet:
    """The payer's wallet, which can ask the payee."""
    world.chain.clock_ms = lambda: world.now_ms
    return Wallet(
        ledger=world.payer_ledger,
        hub=world.payer.hub,
        outbox=world.payer_outbox,
        clock_ms=lambda: world.now_ms,
        ask=lambda row: world.payer.channel(row.payee, row.peer).ask_close(),
    )


async def earn(world: World, chunks: int, *, first: int = 0, pay: bool = True, end: bool = True) -> Any:
    """A task of so many chunks of one micro-USD each, in a channel with room for a thousand."""
    task = await world.agree()
    await world.payer.open_channels(world.need(1_000))
    for index in range(first, first + chunks):
        await world.work(task, index)
    if pay:
        await world.channel_out().pay()
    if end:
        await world.payee_ledger.close_agreement(task, state="done")
        await world.payer_ledger.close_agreement(task, state="done")
    return task


async def consent(world: World, amount: int) -> ConsentFrame | VoucherRefusal:
    """What a payer that says whatever it wants gets for asking."""
    dialogue = await greet(world)
    dialogue.connection.best_uusd = 0  # type: ignore[attr-defined]  # it asks below what is held as well
    await dialogue.send(CloseAsk(amount_uusd=amount))
    return await dialogue.expect(ConsentFrame, VoucherRefusal)


async def greet(world: World) -> Dialogue:
    dialogue = Dialogue(ChannelConnection(Role.REQUESTER), world.connect())
    await dialogue.send(ChannelHello(chain=TERMS, payer=world.binding(), payee=bytes(world.account.address)))
    await dialogue.expect(ChannelSync)
    return dialogue


async def offer(world: World, amount: int) -> VoucherAck | VoucherRefusal:
    """The answer to a voucher that is signed as it has to be, whatever the payer's own ledger says."""
    dialogue = await greet(world)
    await dialogue.send(VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=world.voucher(amount)))
    return await dialogue.expect(VoucherAck, VoucherRefusal)


def given(world: World, frame: ConsentFrame, amount: int, **changes: Any) -> CloseSigned:
    fields: dict[str, Any] = {
        "payer": world.wallet.address,
        "payee": world.account.address,
        "signer": world.wallet.address,
        "epoch": frame.epoch,
        "amount_uusd": amount,
        "deadline_s": frame.deadline_s,
        "signature": frame.signature,
    }
    return CloseSigned(**(fields | changes))


def test_what_is_left_comes_back_at_once(run: Run) -> None:
    async def body(world: World) -> None:
        total = world.chain.total_uusd()
        await earn(world, 7)
        closed = await asking(world).close(world.channel.hex()[:8])
        assert closed == ClosedChannel(
            channel=world.channel, direction="out", state="closed", close_at_s=0, refund_uusd=993, claimed_uusd=7
        )
        assert world.chain.free == {world.wallet.address: 993, world.account.address: 7}
        assert world.chain.total_uusd() == total
        row = await world.payer_ledger.channel_out(world.channel)
        assert row is not None
        assert (row.deposit_uusd, row.claimed_uusd) == (7, 7)
        # Nothing is left to claim for the payee, who has paid no gas.
        assert await world.settler.checkpoint() == {}
        assert world.chain.nonces.get(world.account.address, 0) == 0

    run(body)


def test_what_is_accepted_and_not_paid_is_paid_first(run: Run) -> None:
    async def body(world: World) -> None:
        await earn(world, 4, pay=False)
        closed = await asking(world).close(world.channel.hex())
        assert (closed.state, closed.refund_uusd, closed.claimed_uusd) == ("closed", 996, 4)
        assert world.chain.free[world.account.address] == 4

    run(body)


def test_a_channel_on_which_nothing_was_ever_paid(run: Run) -> None:
    async def body(world: World) -> None:
        await world.payer.open_channels(world.need(1_000))
        closed = await asking(world).close(world.channel.hex())
        assert (closed.state, closed.refund_uusd, closed.claimed_uusd) == ("closed", 1_000, 0)

    run(body)


def test_the_two_go_on_after_it_was_funded_again(run: Run) -> None:
    """The consent is spent: the payee reads so from the chain, and takes work and vouchers again."""

    async def body(world: World) -> None:
        await earn(world, 7)
        wallet = asking(world)
        await wallet.close(world.channel.hex())
        await world.payee.check_open(world.channel)
        await earn(world, 3, first=7)
        assert await world.payee_ledger.consent(world.channel) is None
        assert await world.settler.checkpoint() == {world.channel: 10}
        closed = await wallet.close(world.channel.hex())
        assert (closed.state, closed.claimed_uusd) == ("closed", 10)
        assert world.chain.epochs[world.channel] == 2

    run(body)


@pytest.mark.parametrize("seen_by", ["a round", "a task"])
def test_the_payee_knows_of_the_closing_before_it_is_paid_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, seen_by: str
) -> None:
    """What `p2pcompute channels` says is no longer the deposit that the payer has taken home."""

    async def body(world: World) -> None:
        await earn(world, 7)
        await world.settler.checkpoint()  # so that nothing is left to claim, for which the channel would be read
        await asking(world).close(world.channel.hex())
        stale = await world.payee_ledger.channel_in(world.channel)
        assert stale is not None
        assert stale.deposit_uusd == 1_000
        if seen_by == "a round":
            await world.settler.round()
        else:
            await world.payee.check_open(world.channel)
        row = await world.payee_ledger.channel_in(world.channel)
        assert row is not None
        assert (row.deposit_uusd, row.claimed_uusd, row.unclaimed_uusd) == (7, 7, 0)
        reads: list[ChannelId] = []
        original = ModelHub.channel

        async def read(self: ModelHub, channel: ChannelId) -> ChannelOnChain:
            reads.append(channel)
            return await original(self, channel)

        monkeypatch.setattr(ModelHub, "channel", read)
        await world.settler.round()
        assert reads == []  # nothing is left on it that could be closed

    run(body)


def test_a_closing_that_was_not_sent_is_sent_by_the_next_try(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends between storing the closing and sending it; what the next one says is that it is closed."""

    async def body(world: World) -> None:
        await earn(world, 7)
        await world.settler.checkpoint()

        async def lost(*_: Any) -> None:
            raise ChainUnreachable("the process ends here")

        with monkeypatch.context() as patch:
            patch.setattr(ModelHub, "send", lost)
            with pytest.raises(ChainError), trio.fail_after(3_600):
                await asking(world).close(world.channel.hex())
        assert world.chain.channels[world.channel].deposit_uusd == 1_000
        closed = await asking(world).close(world.channel.hex())
        assert (closed.state, closed.refund_uusd, closed.claimed_uusd) == ("closed", 993, 7)
        row = await world.payer_ledger.channel_out(world.channel)
        assert row is not None
        assert (row.deposit_uusd, row.claimed_uusd) == (7, 7)
        assert world.chain.epochs[world.channel] == 1
        with pytest.raises(ConfigError, match="nothing is reserved"):
            await asking(world).close(world.channel.hex())

    run(body)


def test_where_nobody_answers_the_payer_asks_the_hub(run: Run) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        await world.channel_out().aclose()
        world.reachable = False
        wallet = asking(world)
        asked = await wallet.close(world.channel.hex())
        assert (asked.state, asked.close_at_s) == ("closing", NOW_S + 86_400)
        # It is back before the day is over.
        world.reachable = True
        closed = await wallet.close(world.channel.hex())
        assert (closed.state, closed.refund_uusd) == ("closed", 993)

    run(body)


@pytest.mark.parametrize("what", ["under way", "unpaid"])
def test_no_consent_while_work_is_under_way_or_unpaid(run: Run, what: str) -> None:
    async def body(world: World) -> None:
        if what == "under way":
            await earn(world, 2, end=False)
        else:
            # The provider has done a third chunk, of which the payer says nothing.
            task = await earn(world, 2, end=False)
            await world.payee_ledger.record_receipt(world.receipt(task, 2), sign=world.sign_receipt)
            await world.payee_ledger.close_agreement(task, state="failed")
        answer = await consent(world, 2)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.PAYMENT_REQUIRED
        assert await world.payee_ledger.consent(world.channel) is None
        closed = await asking(world).close(world.channel.hex())
        assert closed.state == "closing"  # the slow way, in which the payee has a day for its claim

    run(body)


def test_without_that_rule_the_unpaid_chunk_is_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: the same payer, where the ledger does not look at what is unpaid."""

    async def body(world: World) -> None:
        task = await earn(world, 2, end=False)
        await world.payee_ledger.record_receipt(world.receipt(task, 2), sign=world.sign_receipt)
        await world.payee_ledger.close_agreement(task, state="failed")
        with monkeypatch.context() as patch:
            patch.setattr(ChannelInRow, "unpaid_pusd", 0)
            closed = await asking(world).close(world.channel.hex())
        assert closed.state == "closed"
        row = await world.payee_ledger.channel_in(world.channel)
        assert row is not None
        assert row.unpaid_pusd == 1_000_000
        state = world.chain.channels[world.channel]
        assert state.deposit_uusd == state.claimed_uusd  # nothing is left that could pay for it

    run(body)


@pytest.mark.parametrize("amount", [0, 6, 8])
def test_no_consent_at_another_total_than_what_is_paid(run: Run, amount: int) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        await trio.sleep(1)  # the chain is asked again where the payee knows of less
        answer = await consent(world, amount)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.BAD_VOUCHER
        assert await world.payee_ledger.consent(world.channel) is None

    run(body)


def test_a_payer_that_asks_and_then_goes_on_is_refused(run: Run) -> None:
    """It could close under what it is about to pay: so vouchers and agreements are refused from the consent on, also
    those that come on a stream that was open before."""

    async def body(world: World) -> None:
        await earn(world, 7)
        before = await greet(world)
        frame = await consent(world, 7)
        assert isinstance(frame, ConsentFrame)
        answer = await offer(world, 8)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.CLOSING
        await before.send(VoucherFrame(amount_uusd=8, memo=bytes(32), signature=world.voucher(8)))
        refused = await before.expect(VoucherAck, VoucherRefusal)
        assert isinstance(refused, VoucherRefusal)
        assert refused.code == WireCode.CLOSING
        with pytest.raises(ChannelClosing):
            await world.payee.check_open(world.channel)
        with pytest.raises(ChannelClosing):
            await world.agree()
        row = await world.payee_ledger.channel_in(world.channel)
        assert row is not None
        assert row.best_uusd == 7

    run(body)


def test_without_that_rule_the_voucher_is_worth_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack: a payee that forgets its consent works on, is paid, and the payer closes under the voucher."""

    async def body(world: World) -> None:
        world.chain.clock_ms = lambda: world.now_ms
        await earn(world, 7)
        await world.settler.checkpoint()
        frame = await consent(world, 7)
        assert isinstance(frame, ConsentFrame)
        with monkeypatch.context() as patch:
            patch.setattr("p2pcompute.storage._channels.refuse_closing", lambda *_: None)
            patch.setattr("p2pcompute.storage._ledger.refuse_closing", lambda *_: None)
            patch.setattr("p2pcompute.payments._consents.Consents.check", _nothing)
            await earn(world, 5, first=7)
        row = await world.payee_ledger.channel_in(world.channel)
        assert row is not None
        assert row.best_uusd == 12
        await world.payer_outbox.run(given(world, frame, 7))
        assert await world.settler.checkpoint() == {}
        assert world.chain.free[world.account.address] == 7  # five chunks for nothing

    run(body)


async def _nothing(*_: Any) -> bool:
    await trio.lowlevel.checkpoint()
    return False


def test_a_payer_that_tops_up_in_place_of_closing_has_to_wait(run: Run) -> None:
    """Its consent stays good on the deeper channel, so nothing is taken on it until its time is over."""

    async def body(world: World) -> None:
        world.chain.clock_ms = lambda: world.now_ms
        await earn(world, 7)
        frame = await consent(world, 7)
        assert isinstance(frame, ConsentFrame)
        assert frame.deadline_s == NOW_S + CONSENT_S
        await world.payer.open_channels(world.need(5_000))
        world.now_ms = (frame.deadline_s + OVER_S) * 1000
        refused = await offer(world, 8)
        assert isinstance(refused, VoucherRefusal)
        assert refused.code == WireCode.CLOSING
        world.now_ms += 1_000
        assert isinstance(await offer(world, 8), VoucherAck)
        assert await world.payee_ledger.consent(world.channel) is None
        with pytest.raises(TransactionFailed):
            await world.payer_outbox.run(given(world, frame, 7))

    run(body)


def test_a_consent_that_was_lost_is_given_again(run: Run) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        first = await consent(world, 7)
        world.now_ms += 60_000
        assert await consent(world, 7) == first
        # Too late for a claim and a closing: a longer one, and no vouchers any earlier for it.
        world.now_ms += 600_000
        longer = await consent(world, 7)
        assert isinstance(longer, ConsentFrame)
        assert longer.deadline_s == world.now_ms // 1000 + CONSENT_S

    run(body)


@pytest.mark.parametrize("other", ["channel", "chain", "hub", "epoch", "amount", "deadline", "key"])
def test_a_consent_is_good_for_nothing_else(run: Run, other: str) -> None:
    """The payer does not take it for a consent, and the hub closes nothing on it."""

    async def body(world: World) -> None:
        world.chain.clock_ms = lambda: world.now_ms
        await earn(world, 7)
        await world.settler.checkpoint()
        signer = world.account if other != "key" else WalletKey(b"t" * 32)
        domain = Domain(
            chain_id=1 if other == "chain" else TERMS.chain_id,
            contract=Address((b"x" if other == "hub" else b"h") * 20),
        )
        told = CloseConsent(channel=world.channel, epoch=0, amount_uusd=7, deadline_s=NOW_S + CONSENT_S)
        changes: dict[str, Any] = {
            "channel": {"channel": channel_id(world.wallet.address, world.account.address, world.account.address)},
            "epoch": {"epoch": 1},
            "amount": {"amount_uusd": 6},
            "deadline": {"deadline_s": told.deadline_s - 1},
        }
        signed = dataclasses.replace(told, **changes.get(other, {}))
        signature = signer.sign_digest(close_digest(domain, signed))

        async def lie(stream: Any) -> None:
            dialogue = Dialogue(ChannelConnection(Role.PROVIDER), stream)
            await dialogue.receive()
            await dialogue.send(ChannelSync(amount_uusd=7, memo=bytes(32), signature=world.voucher(7)))
            await dialogue.receive()
            await dialogue.send(ConsentFrame(epoch=0, deadline_s=told.deadline_s, signature=signature))

        world.payee.serve_channel = lie  # type: ignore[method-assign]
        with pytest.raises(VoucherRefused, match="signed something else"):
            await world.channel_out().ask_close()
        with pytest.raises(TransactionFailed):
            await world.payer_outbox.run(
                given(world, ConsentFrame(epoch=0, deadline_s=told.deadline_s, signature=signature), 7)
            )

    run(body)


def test_a_consent_closes_once(run: Run) -> None:
    """Replayed on the channel that was opened again, it is of another epoch."""

    async def body(world: World) -> None:
        world.chain.clock_ms = lambda: world.now_ms
        await earn(world, 7)
        await world.settler.checkpoint()
        frame = await consent(world, 7)
        assert isinstance(frame, ConsentFrame)
        await world.payer_outbox.run(given(world, frame, 7))
        await world.payer.refresh(world.channel)
        await world.payee.check_open(world.channel)
        await earn(world, 5, first=7)
        for epoch in (0, 1):
            with pytest.raises(TransactionFailed):
                await world.payer_outbox.run(given(world, frame, 7, epoch=epoch))
        assert await world.settler.checkpoint() == {world.channel: 12}

    run(body)


def test_a_consent_of_no_use_is_not_sent(run: Run) -> None:
    """One for another closing, or that is over in a moment: the payer takes the slow way, and pays no gas for it."""

    async def body(world: World) -> None:
        await earn(world, 7)

        def sign(epoch: int, deadline_s: int) -> tuple[CloseConsent, bytes]:
            made = CloseConsent(channel=world.channel, epoch=epoch, amount_uusd=7, deadline_s=deadline_s)
            return made, world.account.sign_digest(close_digest(world.domain, made))

        for epoch, left_s in ((1, CONSENT_S), (0, 60)):
            made = sign(epoch, NOW_S + left_s)

            async def ask(_: Any, made: Any = made) -> tuple[CloseConsent, bytes]:
                await trio.lowlevel.checkpoint()
                return made  # type: ignore[no-any-return]

            wallet = asking(world)
            wallet._ask = ask
            assert (await wallet.close(world.channel.hex())).state == "closing"
        assert world.chain.nonces[world.wallet.address] == 4  # approve, deposit, fund, and one request to close

    run(body)


def test_a_payee_that_disappears_after_signing_costs_nothing(run: Run) -> None:
    """Its consent never comes: the payer takes the slow way, and the payee, back again, holds to what it has signed."""

    async def body(world: World) -> None:
        await earn(world, 7)
        original = world.connect

        def cut() -> Any:
            client = original()
            server = world.streams[-1][1]

            async def nothing(data: bytes) -> None:
                if server.sent:
                    await server.aclose()
                    return
                server.sent += data
                await server._half.send_all(data)

            server.send_all = nothing  # type: ignore[method-assign]
            return client

        world.connect = cut  # type: ignore[method-assign]
        await world.channel_out().aclose()
        with pytest.raises(StreamError):
            await world.channel_out().ask_close()
        assert (await asking(world).close(world.channel.hex())).state == "closing"
        assert await world.payee_ledger.consent(world.channel) is not None
        world.connect = original  # type: ignore[method-assign]
        assert (await asking(world).close(world.channel.hex())).state == "closed"

    run(body)


def test_a_payee_without_its_key_consents_to_nothing(run: Run) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)
        world.payee = Payee(
            ledger=world.payee_ledger,
            hub=world.chain.hub(world.account.address),
            payee=world.account.address,
            network="test",
            clock_ms=lambda: world.now_ms,
        )
        answer = await consent(world, 7)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.UNSUPPORTED

    run(body)


def test_a_stranger_leaves_nothing_on_disk(run: Run) -> None:
    """Nobody has put money behind its channel, so asking to close it makes no row."""

    async def body(world: World) -> None:
        answer = await consent(world, 0)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.UNFUNDED
        assert await world.payee_ledger.channels_in() == []

    run(body)


def test_a_voucher_that_the_payee_has_lost_is_brought_again(run: Run) -> None:
    """A payee whose ledger is an old backup is shown the voucher first, and consents at what that says."""

    async def body(world: World) -> None:
        await earn(world, 7)
        await world.channel_out().aclose()
        lost = world.payee_ledger
        async with open_ledger(None, executor=InlineExecutor(), clock_ms=lambda: NOW_MS) as empty:
            world.compose(world.payer_ledger, empty, world.nursery)
            closed = await asking(world).close(world.channel.hex())
            assert (closed.state, closed.claimed_uusd) == ("closed", 7)
        world.payee_ledger = lost

    run(body)


def test_a_consent_and_a_voucher_at_the_same_time(run: Run) -> None:
    """Two streams of one payer: whichever is stored first, the other one is refused."""

    async def body(world: World) -> None:
        await earn(world, 7)
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await consent(world, 7))

        async def pay() -> None:
            answers.append(await offer(world, 8))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(pay)
        kinds = {type(answer) for answer in answers}
        assert kinds in ({ConsentFrame, VoucherRefusal}, {VoucherAck, VoucherRefusal})
        row, out = await world.payee_ledger.channel_in(world.channel), await world.payee_ledger.consent(world.channel)
        assert row is not None
        assert (row.best_uusd, out is None) in ((7, False), (8, True))

    run(body)


def test_a_ledger_signs_nothing_that_it_does_not_store(run: Run) -> None:
    async def body(world: World) -> None:
        await earn(world, 7)

        def fails(*_: int) -> bytes:
            raise ZeroDivisionError

        fields: dict[str, Any] = {"epoch": 0, "amount_uusd": 7, "deadline_s": NOW_S, "renew_before_s": 0}
        with pytest.raises(ZeroDivisionError):
            await world.payee_ledger.give_consent(world.channel, **fields, sign=fails)
        assert await world.payee_ledger.consent(world.channel) is None
        task = await world.agree()
        with pytest.raises(ChannelBusy):
            await world.payee_ledger.give_consent(world.channel, **fields, sign=fails)
        await world.payee_ledger.close_agreement(task, state="done")
        out = await world.payee_ledger.give_consent(world.channel, **fields, sign=lambda *_: bytes(65))
        with pytest.raises(ChannelClosing):
            await world.payee_ledger.give_consent(world.channel, **(fields | {"epoch": 1}), sign=fails)
        await world.payee_ledger.end_consent(world.channel, epoch=1)  # of another one: nothing happens
        assert await world.payee_ledger.consent(world.channel) == out

    run(body)


def test_the_connection_closes_no_channel_below_what_is_held() -> None:
    connection = ChannelConnection(Role.REQUESTER)
    connection.state = connection.state.OPEN
    connection.best_uusd = 3
    with pytest.raises(LocalProtocolError) as caught:
        connection.send(CloseAsk(amount_uusd=2))
    assert caught.value.code == WireCode.BAD_VOUCHER
    connection.send(CloseAsk(amount_uusd=3))
    assert not connection.is_done


def test_who_signed_a_consent() -> None:
    key = WalletKey(b"P" * 32)
    domain = Domain(chain_id=1, contract=Address(b"h" * 20))
    made = CloseConsent(channel=channel_id(key.address, key.address, key.address), epoch=0, amount_uusd=0, deadline_s=1)
    signature = key.sign_digest(close_digest(domain, made))
    assert recover_closer(domain, made, signature) == key.address
    with pytest.raises(LocalProtocolError) as caught:
        recover_closer(domain, made, bytes(65))
    assert caught.value.code == WireCode.BAD_SIGNATURE
