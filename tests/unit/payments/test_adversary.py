"""One honest side, one that does what it likes on the wire and on the chain, and days that pass: the honest one gets
what it is owed to within one credit window, and never pays more than it accepted.

The dishonest side holds its own keys, has no state machine, and may put its transactions before any of the honest
side's. The honest payee is the product's `Payee` and `Settler`, the honest payer its `Payer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings

from p2pcompute.errors import P2PComputeError
from p2pcompute.identity import WalletKey
from p2pcompute.payments import ChannelOnChain, ModelChain, _settler
from p2pcompute.payments._api import ChannelIn
from p2pcompute.payments._payee import CLOSING_MARGIN_S
from p2pcompute.storage import CeilingReached
from p2pcompute_protocols.channel import (
    MESSAGES,
    ChannelHello,
    ChannelSync,
    Domain,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
)
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.framing import FrameBuffer, frame
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.wire import decode_message

from .conftest import NOW_MS, TERMS, World

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
CLOSE_DELAY_S = 86_400  # the hub's
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
WINDOW = 2  # chunks
CHUNK_UUSD = 5
ATTACKS = (
    "forged",
    "wrong channel",
    "wrong contract",
    "wrong chain",
    "malleated",
    "64 bytes",
    "another v",
    "below the best",
    "above the deposit",
    "above 64 bits",
)
SETTINGS = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


class BentChain(ModelChain):
    """A chain on which somebody can be first, and channels can be closed as in `ChannelHub.vy`."""

    def __init__(self) -> None:
        super().__init__(TERMS)
        self.first: Callable[[], None] | None = None

    def submit(self, raw: bytes) -> None:
        first, self.first = self.first, None
        if first is not None:
            first()
        super().submit(raw)

    def ask_to_close(self, channel: Any, now_s: int) -> None:
        state = self.channels.get(channel)
        if state is not None and state.deposit_uusd > state.claimed_uusd and not state.close_at_s:
            self.channels[channel] = dataclasses.replace(state, close_at_s=now_s + CLOSE_DELAY_S)

    def close(self, channel: Any, payer: Address, now_s: int) -> None:
        """By anybody, once the delay is over."""
        state = self.channels.get(channel)
        if state is not None and 0 < state.close_at_s <= now_s:
            self.free[payer] = self.free.get(payer, 0) + state.deposit_uusd - state.claimed_uusd
            self.channels[channel] = ChannelOnChain(
                deposit_uusd=state.claimed_uusd, claimed_uusd=state.claimed_uusd, close_at_s=0
            )

    def withdraw_all(self, account: Address) -> None:
        self.mint(account, self.free.pop(account, 0))

    def top_up(self, channel: Any, payer: Address, amount: int) -> None:
        amount = min(amount, self.free.get(payer, 0))
        if amount:
            state = self.channels.get(channel, ChannelOnChain(deposit_uusd=0, claimed_uusd=0, close_at_s=0))
            self.free[payer] -= amount
            self.channels[channel] = dataclasses.replace(state, deposit_uusd=state.deposit_uusd + amount, close_at_s=0)


class Wire:
    """One end of a stream for somebody who says what he likes."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._buffer = FrameBuffer(max_bytes=65_536)

    async def say(self, message: Any) -> None:
        await self.say_bytes(message.encode())

    async def say_bytes(self, payload: bytes) -> None:
        await self.stream.send_all(frame(payload, max_bytes=65_536))

    async def hear(self) -> Any:
        while (payload := self._buffer.pop()) is None:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._buffer.feed(data)
        return decode_message(payload, MESSAGES, max_bytes=65_536)


def now_s() -> int:
    return NOW_MS // 1000 + int(trio.current_time())


def clocked(world: Any) -> None:
    """The nodes' clocks go with virtual time."""
    world.payee._clock_ms = world.settler._clock_ms = lambda: now_s() * 1000


class BadPayer:
    """Has a requester's keys."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.chain: BentChain = world.chain
        self.sent: list[VoucherFrame] = []  # and acknowledged
        self.signed = 0
        self.wire: Wire | None = None

    def frame_of(self, amount: int, **changes: Any) -> VoucherFrame:
        if not changes:
            self.signed = max(self.signed, amount)
        return VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=self.world.voucher(amount, **changes))

    async def connect(self) -> Wire:
        if self.wire is None:
            self.wire = Wire(self.world.connect())
            await self.wire.say(
                ChannelHello(chain=TERMS, payer=self.world.binding(), payee=bytes(self.world.account.address))
            )
            assert isinstance(await self.wire.hear(), ChannelSync)
        return self.wire

    async def offer(self, message: VoucherFrame) -> Any:
        """Send a voucher and hear the answer; None where the stream was ended."""
        try:
            wire = await self.connect()
            await wire.say(message)
            answer = await wire.hear()
        except BROKEN:
            answer = None
        if answer is None:
            await self.hang_up()
        if isinstance(answer, VoucherAck):
            self.sent.append(message)
        return answer

    async def hang_up(self) -> None:
        wire, self.wire = self.wire, None
        if wire is not None:
            await wire.stream.aclose()

    async def attack(self, kind: str, owed: int) -> None:
        """A voucher that must not count."""
        world, amount = self.world, owed + 1
        held = await world.payee.paid_uusd(world.channel)
        before = await world.payee_ledger.channel_in(world.channel)
        good = world.voucher(amount)
        deposit = self.chain.channels[world.channel].deposit_uusd if world.channel in self.chain.channels else 0
        made: dict[str, Callable[[], VoucherFrame]] = {
            "forged": lambda: self.frame_of(amount, key=WalletKey(b"T" * 32)),
            "wrong channel": lambda: self.frame_of(amount, channel=b"c" * 32),
            "wrong contract": lambda: self.frame_of(
                amount, domain=Domain(chain_id=TERMS.chain_id, contract=Address(b"x" * 20))
            ),
            "wrong chain": lambda: self.frame_of(amount, domain=Domain(chain_id=1, contract=world.domain.contract)),
            "malleated": lambda: VoucherFrame(
                amount_uusd=amount,
                memo=bytes(32),
                signature=good[:32] + (ORDER - int.from_bytes(good[32:64])).to_bytes(32) + bytes([55 - good[64]]),
            ),
            "another v": lambda: VoucherFrame(
                amount_uusd=amount, memo=bytes(32), signature=good[:64] + bytes([55 - good[64]])
            ),
            "below the best": lambda: self.frame_of(held),
            "above the deposit": lambda: self.frame_of(deposit + 1),
            "above 64 bits": lambda: self.frame_of(2**64 - 1),
        }
        if kind == "64 bytes":
            # The record refuses to be made with such a signature, so its bytes are cut by hand.
            await self.hang_up()
            wire = await self.connect()
            whole = self.frame_of(amount).encode()
            head, tail = whole.split(b"\x58\x41", 1)  # a byte string of 65; only zeros come before it
            await wire.say_bytes(head + b"\x58\x40" + tail[:64])
            answer = await wire.hear()
            await self.hang_up()
        else:
            if kind == "below the best" and not held:
                return
            answer = await self.offer(made[kind]())
        # Below one that is kept above the deposit it is paid for already, and is told so.
        known = kind == "below the best" and before is not None and before.best_uusd > before.paid_uusd
        assert answer is None or known or isinstance(answer, VoucherRefusal)
        after = await world.payee_ledger.channel_in(world.channel)
        if before is not None and after is not None:
            if kind == "above the deposit":
                assert after.paid_uusd <= max(before.paid_uusd, deposit)
            else:
                assert (after.best_uusd, after.owed_pusd) == (before.best_uusd, before.owed_pusd)

    def claim_by_a_third(self, at: int) -> None:
        """Somebody else submits an older voucher among rows that are worth nothing."""
        from p2pcompute.payments import Claim, ClaimRow

        if not self.sent:
            return
        old = self.sent[at % len(self.sent)]
        world = self.world
        good = ClaimRow(
            payer=world.wallet.address,
            signer=world.wallet.address,
            amount_uusd=old.amount_uusd,
            memo=old.memo,
            signature=old.signature,
        )
        poison = [
            dataclasses.replace(good, amount_uusd=2**90),
            dataclasses.replace(good, signature=bytes(65)),
            dataclasses.replace(good, payer=Address(b"z" * 20)),
        ]
        self.chain._claim(Claim(payee=world.account.address, rows=(*poison, good, *poison, good)))


@contextmanager
def slow_settler() -> Iterator[None]:
    """It looks every ten minutes and not every 30 seconds: days pass faster so, and it is the weaker for it."""
    kept, _settler.CHECK_S = _settler.CHECK_S, 600.0  # type: ignore[misc]
    try:
        yield
    finally:
        _settler.CHECK_S = kept  # type: ignore[misc]


PAYER_ACTS = st.one_of(
    st.tuples(st.just("work"), st.integers(1, 4)),
    st.tuples(st.just("pay"), st.integers(-6, 3)),
    st.tuples(st.just("attack"), st.sampled_from(ATTACKS)),
    st.tuples(st.just("replay"), st.integers(0, 20)),
    st.tuples(st.just("reorder"), st.integers(1, 3)),
    st.tuples(st.just("drop"), st.integers(0, 120)),
    st.tuples(st.just("fund"), st.sampled_from([1, 5, 40])),
    st.tuples(st.just("withdraw"), st.just(0)),
    st.tuples(st.just("ask to close"), st.just(0)),
    st.tuples(st.just("close"), st.just(0)),
    st.tuples(st.just("be first"), st.sampled_from(["ask to close", "close", "fund", "claim"])),
    st.tuples(st.just("claim by a third"), st.integers(0, 20)),
    st.tuples(st.just("wait"), st.sampled_from([60, 3_600, 12 * 3_600, 86_400])),
)


async def against_a_bad_payer(acts: list[tuple[str, Any]]) -> int:
    """What the payee is short of in the end, in micro-USD."""
    world = World()
    chain = world.chain = BentChain()
    payer, payee = world.wallet.address, world.account.address
    chain.free[payer] = 1_000
    async with world.open():
        clocked(world)
        world.nursery.start_soon(world.settler.serve)
        bad = BadPayer(world)
        task = await world.agree(price_pusd=1_000_000, ceiling_uusd=10_000)
        money, chunks = chain.total_uusd(), 0

        async def owed() -> int:
            row = await world.payee_ledger.channel_in(world.channel)
            return 0 if row is None else int(row.owed_uusd)

        on_chain: dict[str, Callable[[int], None]] = {
            "fund": lambda amount: chain.top_up(world.channel, payer, amount),
            "withdraw": lambda _: chain.withdraw_all(payer),
            "ask to close": lambda _: chain.ask_to_close(world.channel, now_s()),
            "close": lambda _: chain.close(world.channel, payer, now_s()),
            "claim": lambda at: bad.claim_by_a_third(at),
            "claim by a third": lambda at: bad.claim_by_a_third(at),
        }
        for act, how in acts:
            match act:
                case "work":
                    for _ in range(how):
                        # The provider's side of the bargain: no chunk is begun that would leave more than a window.
                        if await world.payee.unpaid_pusd(world.channel) > (WINDOW - 1) * CHUNK_UUSD * 1_000_000:
                            break
                        receipt = world.receipt(task, chunks, units=CHUNK_UUSD)
                        await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt)
                        chunks += 1
                case "pay":
                    if await owed() + how > 0:
                        await bad.offer(bad.frame_of(await owed() + how))
                case "attack":
                    await bad.attack(how, await owed())
                case "replay":
                    if bad.sent:
                        before = await world.payee_ledger.channel_in(world.channel)
                        answer = await bad.offer(bad.sent[how % len(bad.sent)])
                        if isinstance(answer, VoucherAck):  # one that is kept above the deposit has paid for it
                            after = await world.payee_ledger.channel_in(world.channel)
                            assert before is not None
                            assert after is not None
                            assert after.best_uusd == before.best_uusd > before.paid_uusd
                case "reorder":
                    newest = await owed() + how
                    await bad.offer(bad.frame_of(newest))
                    await bad.offer(bad.frame_of(newest - 1))
                case "drop":
                    payload = frame(bad.frame_of(await owed() + 1).encode(), max_bytes=65_536)
                    with suppress(*BROKEN):
                        wire = await bad.connect()
                        await wire.stream.send_all(payload[: min(how, len(payload))])
                    await bad.hang_up()
                case "be first":
                    chain.first = lambda what=how: on_chain[what](1)  # type: ignore[misc]
                case "wait":
                    await trio.sleep(how)
                case _:
                    on_chain[act](how)
            assert chain.total_uusd() == money
            claimed = chain.channels[world.channel].claimed_uusd if world.channel in chain.channels else 0
            assert claimed <= bad.signed
            await trio.testing.wait_all_tasks_blocked()
        await bad.hang_up()
        await world.settler.checkpoint()
        await world.payee_ledger.verify(full=True)
        return await owed() - chain.free.get(payee, 0)


@pytest.mark.timeout(900)
@SETTINGS
@given(acts=st.lists(PAYER_ACTS, max_size=40))
@example(acts=[("fund", 40), ("work", 2), ("pay", 0), ("ask to close", 0), ("wait", 86_400), ("close", 0)])
@example(
    acts=[
        ("fund", 5),
        ("work", 2),
        ("pay", -6),
        ("ask to close", 0),
        ("wait", 12 * 3_600),
        ("fund", 1),  # bait: the request to close is gone, and the deposit covers a little more
        ("pay", 0),
        ("work", 2),
        ("ask to close", 0),
        ("be first", "ask to close"),
        ("wait", 86_400),
        ("close", 0),
        ("fund", 1),
    ]
)
@example(
    acts=[("fund", 40), *[("work", 1), ("pay", 0)] * 4, ("be first", "claim"), ("claim by a third", 1), ("replay", 0)]
)
@example(acts=[("fund", 40), ("work", 2), ("pay", 0), *[("attack", kind) for kind in ATTACKS]])
def test_an_honest_payee_is_short_of_one_window_at_most(acts: list[tuple[str, Any]]) -> None:
    with slow_settler():
        short = trio.run(against_a_bad_payer, acts, clock=trio.testing.MockClock(autojump_threshold=0))
    assert short <= WINDOW * CHUNK_UUSD


def test_a_payee_that_never_looks_at_the_chain_loses_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack without the defence: work is paid by vouchers, and the channel closes before they are claimed."""
    paid = [("fund", 40), *[("work", 1), ("pay", 0)] * 6]
    acts: list[tuple[str, Any]] = [*paid, ("ask to close", 0), ("wait", 86_400), ("close", 0)]
    with slow_settler():
        assert trio.run(against_a_bad_payer, acts, clock=trio.testing.MockClock(autojump_threshold=0)) <= 0

    async def as_it_was(_: _settler.Settler, row: ChannelIn) -> ChannelIn:
        return row

    with slow_settler():
        monkeypatch.setattr(_settler.Settler, "_refresh", as_it_was)
        short = trio.run(against_a_bad_payer, acts, clock=trio.testing.MockClock(autojump_threshold=0))
    assert short == 6 * CHUNK_UUSD > WINDOW * CHUNK_UUSD


def test_the_margin_is_longer_than_what_was_read_of_the_chain_counts() -> None:
    from p2pcompute.payments._payee import CHAIN_TTL_S

    assert CLOSING_MARGIN_S > CHAIN_TTL_S + _settler.CHECK_S


PAYEE_ACTS = st.one_of(
    st.tuples(st.just("work"), st.integers(1, 9)),
    st.tuples(
        st.just("pay"),
        st.sampled_from(
            ["honest", "old sync", "forged sync", "no answer", "wrong ack", "refuse", "refuse with more", "hang up"]
        ),
    ),
    st.tuples(st.just("claim"), st.integers(0, 20)),
    st.tuples(st.just("claim forged"), st.integers(1, 900)),
    st.tuples(st.just("wait"), st.sampled_from([1, 86_400])),
)


async def against_a_bad_payee(acts: list[tuple[str, Any]]) -> None:
    world = World()
    chain = world.chain = BentChain()
    payer, payee = world.wallet.address, world.account.address
    chain.free[payer] = 1_000
    seen: list[VoucherFrame] = []
    manner = "honest"

    async def serve(wire: Wire) -> None:
        """The payee's end of a stream."""
        try:
            hello = await wire.hear()
            if manner == "hang up" or hello is None:
                return
            best = seen[0] if manner == "old sync" and seen else (seen[-1] if seen else None)
            if manner == "forged sync":
                best = VoucherFrame(
                    amount_uusd=900, memo=bytes(32), signature=world.voucher(900, key=WalletKey(b"T" * 32))
                )
            await wire.say(
                ChannelSync(amount_uusd=0)
                if best is None
                else ChannelSync(amount_uusd=best.amount_uusd, memo=best.memo, signature=best.signature)
            )
            while isinstance(message := await wire.hear(), VoucherFrame):
                seen.append(message)
                match manner:
                    case "no answer":
                        await trio.sleep_forever()
                    case "wrong ack":
                        await wire.say(VoucherAck(amount_uusd=message.amount_uusd + 500))
                    case "refuse":
                        await wire.say(VoucherRefusal(code=int(WireCode.UNFUNDED), detail="more", best_uusd=0))
                    case "refuse with more":
                        await wire.say(
                            VoucherRefusal(
                                code=int(WireCode.BAD_VOUCHER), detail="I have more", best_uusd=2**60, deposit_uusd=0
                            )
                        )
                    case _:
                        await wire.say(VoucherAck(amount_uusd=message.amount_uusd))
        except BROKEN:
            pass
        finally:
            await wire.stream.aclose()

    async def dial(_: Any) -> Any:
        from .conftest import stream_pair

        await trio.lowlevel.checkpoint()
        client, server = stream_pair(world.requester.peer_id, world.provider.peer_id)
        world.nursery.start_soon(serve, Wire(server))
        return client

    async with world.open():
        clocked(world)
        task = await world.agree(price_pusd=1_000_000, ceiling_uusd=200)
        world.payer.dial = dial
        chain.top_up(world.channel, payer, 200)
        money, chunks, voucher = chain.total_uusd(), 0, 0
        for act, how in acts:
            match act:
                case "work":
                    receipt = world.receipt(task, chunks, units=how)
                    chunks += 1
                    with suppress(CeilingReached):
                        await world.channel_out().accept(task, [(receipt, world.sign_receipt(receipt))], sampled=1)
                case "pay":
                    manner = how
                    if manner == "honest" or chunks % 2:
                        await world.channel_out().aclose()
                    try:
                        held = await world.channel_out().pay()
                    except P2PComputeError:
                        pass
                    else:
                        row = await world.payer_ledger.channel_out(world.channel)
                        assert held == row.accepted_uusd
                case "claim" | "claim forged":
                    _claim(world, chain, seen, act, how)
                case _:
                    await trio.sleep(how)
            row = await world.payer_ledger.channel_out(world.channel)
            assert voucher <= row.voucher_uusd <= row.accepted_uusd <= 200
            voucher = row.voucher_uusd
            assert chain.channels[world.channel].claimed_uusd <= voucher
            assert chain.total_uusd() == money
        # What is left comes back, and what went is what was accepted at most.
        _claim(world, chain, seen, "claim", len(seen) - 1)
        chain.ask_to_close(world.channel, now_s())
        await trio.sleep(CLOSE_DELAY_S)
        chain.close(world.channel, payer, now_s())
        row = await world.payer_ledger.channel_out(world.channel)
        assert chain.free[payer] >= 1_000 - row.accepted_uusd
        assert chain.free[payer] + chain.free.get(payee, 0) == money
        await world.payer_ledger.verify(full=True)


def _claim(world: Any, chain: BentChain, seen: list[VoucherFrame], act: str, how: int) -> None:
    from p2pcompute.payments import Claim, ClaimRow

    if act == "claim":
        if not seen:
            return
        one = seen[how % len(seen)]
        amount, memo, signature = one.amount_uusd, one.memo, one.signature
    else:
        signature = world.voucher(how, channel=b"c" * 32)
        amount, memo = how, bytes(32)
    row = ClaimRow(
        payer=world.wallet.address,
        signer=world.wallet.address,
        amount_uusd=amount,
        memo=memo,
        signature=signature,
    )
    chain._claim(Claim(payee=world.account.address, rows=(row,)))


@pytest.mark.timeout(900)
@SETTINGS
@given(acts=st.lists(PAYEE_ACTS, max_size=25))
@example(acts=[("work", 5), ("pay", "honest"), ("claim", 0), ("work", 3), ("pay", "old sync"), ("claim", 1)])
@example(acts=[("work", 5), ("pay", "refuse with more"), ("claim", 0), ("work", 9), ("pay", "honest")])
def test_an_honest_payer_never_pays_more_than_it_accepted(acts: list[tuple[str, Any]]) -> None:
    trio.run(against_a_bad_payee, acts, clock=trio.testing.MockClock(autojump_threshold=0))
