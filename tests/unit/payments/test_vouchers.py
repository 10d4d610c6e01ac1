"""Paying over a stream: what an honest pair does, and what a dishonest side gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.errors import DiskFull, InsufficientFunds, StreamError, VoucherRefused
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.payments import ChannelNeed
from p2pcompute_protocols.channel import (
    ChannelConnection,
    ChannelHello,
    ChannelSync,
    Domain,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
)
from p2pcompute_protocols.connection import NEED_DATA, Role
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.money import ChainTerms

Run = Callable[..., None]


async def no_room(*_: Any, **__: Any) -> Any:
    raise DiskFull("no room")


class Attacker:
    """A payer that says what it likes: no state machine holds it back."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.connection = ChannelConnection(Role.REQUESTER)

    async def say(self, message: Any) -> None:
        await self.stream.send_all(frame(message.encode(), max_bytes=65_536))

    async def hear(self) -> Any:
        # The reader's table is not used: an attacker gets answers to things that the table forbids.
        from p2pcompute_protocols.channel import MESSAGES
        from p2pcompute_protocols.framing import FrameBuffer
        from p2pcompute_protocols.wire import decode_message

        buffer = FrameBuffer(max_bytes=65_536)
        while (payload := buffer.pop()) is None:
            data = await self.stream.receive_some()
            if not data:
                return None
            buffer.feed(data)
        return decode_message(payload, MESSAGES, max_bytes=65_536)


def hello(world: Any, **changes: Any) -> ChannelHello:
    fields: dict[str, Any] = {
        "chain": world.chain.terms,
        "payer": world.binding(),
        "payee": bytes(world.account.address),
    }
    return ChannelHello(**(fields | changes))


def test_work_is_paid_by_rising_vouchers(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        for index in range(3):
            await world.work(task, index, units=2)
            assert await world.payee.unpaid_pusd(world.channel) == 2_000_000
            assert await world.channel_out().pay() == 2 * (index + 1)
            assert await world.payee.wait_settled(world.channel) == 2 * (index + 1)
        assert await world.channel_out().pay() == 6  # nothing new: nothing is sent
        assert world.payee.counters.vouchers == 3
        assert len(world.streams) == 1
        assert await world.settler.checkpoint() == {world.channel: 6}
        assert world.chain.free[world.account.address] == 6
        assert await world.settler.checkpoint() == {}

    run(body)


def test_fractions_of_a_micro_usd_are_rounded_once_per_channel(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=300_000)
        await world.payer.open_channels(world.need(1_000))
        for index in range(10):
            await world.work(task, index)
            await world.channel_out().pay()
        assert await world.payee.paid_uusd(world.channel) == 3
        assert await world.payee.unpaid_pusd(world.channel) == 0

    run(body)


def test_the_voucher_is_on_disk_before_it_is_sent_and_before_it_is_acked(run: Run) -> None:
    seen: list[tuple[str, int]] = []

    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.channel_out().pay()
        await world.work(task, 0, units=7)
        out, dial = world.channel_out(), world.dial

        def stored(ledger: Any, table: str, column: str) -> int:
            return int(ledger._database.connection.execute(f"SELECT {column} FROM {table}").fetchone()[0])

        async def watched(peer: Any) -> Any:
            client = await dial(peer)
            server = world.streams[-1][1]
            client.on_send = lambda _: seen.append(("sent", stored(world.payer_ledger, "channels_out", "voucher_uusd")))
            server.on_send = lambda _: seen.append(("acked", stored(world.payee_ledger, "channels_in", "best_uusd")))
            return client

        world.payer.dial = watched
        assert await out.pay() == 7

    run(body)
    # hello, sync, voucher, ack
    assert seen == [("sent", 0), ("acked", 0), ("sent", 7), ("acked", 7)]


def test_payment_waits_for_funding_that_is_under_way(run: Run) -> None:
    async def body(world: Any) -> None:
        world.chain.mines = False
        task = await world.agree()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.payer.open_channels, world.need(1_000))
            await world.work(task, 0)

            async def miner() -> None:
                while world.payer.is_funding:
                    await trio.sleep(12)
                    world.chain.mine()

            nursery.start_soon(miner)
            await trio.testing.wait_all_tasks_blocked()
            assert await world.channel_out().pay() == 1

    run(body)


def test_without_money_behind_it_nothing_is_signed(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(ceiling_uusd=20_000_000)
        await world.work(task, 0)
        with pytest.raises(InsufficientFunds, match="fund it"):
            await world.channel_out().pay()
        with pytest.raises(InsufficientFunds, match="bring tokens there"):
            await world.payer.open_channels(world.need(20_000_000))
        row = await world.payer_ledger.channel_out(world.channel)
        assert row.voucher_uusd == 0
        assert world.payee.counters.vouchers == 0

    run(body)


def test_channels_are_topped_up_for_all_open_agreements(run: Run) -> None:
    async def body(world: Any) -> None:
        await world.agree(ceiling_uusd=300)
        await world.agree(ceiling_uusd=500)
        await world.payer.open_channels(world.need(300), deposit_uusd=5_000)
        assert world.chain.channels[world.channel].deposit_uusd == 800
        assert world.chain.free[world.wallet.address] == 4_200
        await world.payer.open_channels(world.need(300))
        assert world.chain.channels[world.channel].deposit_uusd == 800
        assert world.chain.nonces[world.wallet.address] == 3  # approve, deposit, fund

    run(body)


def test_a_lost_ack_is_made_up_for_on_the_next_stream(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)
        dial = world.dial

        async def cut(peer: Any) -> Any:
            client = await dial(peer)
            server = world.streams[-1][1]

            def drop_second(_: bytes) -> None:
                if server.sent:  # the sync went out, this is the ack
                    raise trio.BrokenResourceError

            server.on_send = drop_second
            world.payer.dial = dial
            return client

        world.payer.dial = cut
        assert await world.channel_out().pay() == 1
        assert len(world.streams) == 2
        assert world.payee.counters.vouchers == 1

    run(body)


def test_a_provider_out_of_reach_costs_nothing_and_gets_its_voucher_later(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)
        world.reachable = False
        with pytest.raises(StreamError, match="the voucher is kept"):
            await world.channel_out().pay()
        world.reachable = True
        assert await world.channel_out().pay() == 1

    run(body)


@pytest.mark.parametrize("full", [False, True])
def test_a_payer_with_a_restored_backup_adopts_its_own_newest_voucher(
    make_world: Any, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    world = make_world()

    async def before(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0, units=5)
        assert await world.channel_out().pay() == 5

    async def main() -> None:
        async with world.open() as opened:
            await before(opened)
            kept = opened.payee_ledger
            async with make_world().open() as other, trio.open_nursery() as nursery:
                other.chain = world.chain
                other.agreements = 1
                other.compose(other.payer_ledger, kept, nursery)  # an empty payer's ledger, and the old payee's
                task = await other.agree()
                await other.payer.refresh(other.channel)
                await other.work(task, 0, units=2)
                if full:  # the voucher can't be kept: nothing is signed below it, now or later
                    with monkeypatch.context() as patch:
                        patch.setattr(other.payer_ledger, "adopt_voucher", no_room)
                        with pytest.raises(DiskFull):
                            await other.channel_out().pay()
                assert await other.channel_out().pay() == 7
                row = await kept.channel_in(other.channel)
                assert row is not None
                assert (row.best_uusd, row.unpaid_pusd) == (7, 0)
                await other.payer.aclose()
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_claim_that_the_chain_takes_back_for_a_while_is_made_good_once(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        # A restored backup: this ledger knows nothing of the 100 that the chain has claimed.
        ledger, channel = world.payer_ledger, world.channel
        for claimed_uusd in (100, 0, 100, 60, 100):  # reorganisations, or an endpoint behind the others
            await ledger.set_chain_out(channel, deposit_uusd=1_000, claimed_uusd=claimed_uusd)
        await world.work(task, 0, units=5)
        row = await ledger.channel_out(channel)
        assert (row.accepted_uusd, row.claimed_uusd) == (105, 100)
        await ledger.verify(full=True)

    run(body)


def test_a_payee_with_a_restored_backup_gets_the_newest_voucher_again(run: Run, make_world: Any) -> None:
    async def main() -> None:
        world = make_world()
        async with world.open() as opened:
            task = await opened.agree()
            await opened.payer.open_channels(opened.need(1_000))
            await opened.work(task, 0, units=5)
            await opened.channel_out().pay()
            kept = opened.payer_ledger
            async with make_world().open() as other, trio.open_nursery() as nursery:
                other.chain = world.chain
                other.agreements = 1
                other.compose(kept, other.payee_ledger, nursery)
                task = await other.agree()
                await other.work(task, 0, units=2)
                assert await other.channel_out().pay() == 7
                assert await other.payee.unpaid_pusd(other.channel) == 0
                await other.payer.aclose()
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_payee_that_shows_a_made_up_voucher_is_found_out(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)
        thief = WalletKey(b"T" * 32)

        async def dial(_: Any) -> Any:
            client, server = pair(world.requester.peer_id, world.provider.peer_id)

            async def lie() -> None:
                connection = ChannelConnection(Role.PROVIDER)
                while connection.next_event() is NEED_DATA:
                    connection.receive_data(await server.receive_some())
                await server.send_all(
                    connection.send(
                        ChannelSync(amount_uusd=900, memo=bytes(32), signature=world.voucher(900, key=thief))
                    )
                )

            world.nursery.start_soon(lie)
            return client

        world.payer.dial = dial
        with pytest.raises(VoucherRefused, match="not ours"):
            await world.channel_out().pay()
        row = await world.payer_ledger.channel_out(world.channel)
        assert (row.voucher_uusd, row.accepted_uusd) == (0, 1)

    run(body)


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("forged", WireCode.BAD_SIGNATURE),
        ("garbage signature", WireCode.BAD_SIGNATURE),
        ("other channel", WireCode.BAD_SIGNATURE),
        ("other chain", WireCode.BAD_SIGNATURE),
        ("above the deposit", WireCode.UNFUNDED),
        ("backward", WireCode.BAD_VOUCHER),
        ("the same again", WireCode.BAD_VOUCHER),
        ("above 64 bits", WireCode.OVERSIZED),
    ],
)
def test_bad_vouchers_are_refused_typed_and_counted(run: Run, attack: str, code: WireCode) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0, units=10)
        await world.channel_out().pay()
        amount, signature = {
            "forged": (20, world.voucher(20, key=WalletKey(b"T" * 32))),
            "garbage signature": (20, b"\xff" * 65),
            "other channel": (20, world.voucher(20, channel=b"c" * 32)),
            "other chain": (20, world.voucher(20, domain=Domain(chain_id=1, contract=world.domain.contract))),
            "above the deposit": (1_001, world.voucher(1_001)),
            "backward": (9, world.voucher(9)),
            "the same again": (10, world.voucher(10)),
            "above 64 bits": (2**63, world.voucher(2**63)),
        }[attack]
        attacker = Attacker(world.connect())
        await attacker.say(hello(world))
        held = await world.payer_ledger.channel_out(world.channel)
        assert await attacker.hear() == ChannelSync(amount_uusd=10, memo=held.memo, signature=held.signature)
        await trio.sleep(1)
        await attacker.say(VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=signature))
        answer = await attacker.hear()
        assert isinstance(answer, VoucherRefusal)
        # One above the deposit counts up to it.
        paid = 1_000 if attack == "above the deposit" else 10
        assert (answer.code, answer.best_uusd) == (code, paid)
        assert world.payee.counters.refused == {code: 1}
        assert await world.payee.paid_uusd(world.channel) == paid
        await world.work(task, 1)
        assert await world.channel_out().pay() == 11  # the honest stream goes on

    run(body)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"chain": ChainTerms(chain_id=1, hub=b"h" * 20, token=b"t" * 20, decimals=6)}, WireCode.CHAIN_MISMATCH),
        ({"chain": ChainTerms(chain_id=31337, hub=b"x" * 20, token=b"t" * 20, decimals=6)}, WireCode.CHAIN_MISMATCH),
        ({"payee": b"x" * 20}, WireCode.WRONG_PEER),
        ({"binding": "expired"}, WireCode.EXPIRED),
        ({"binding": "of another peer"}, WireCode.WRONG_PEER),
        ({"binding": "forged"}, WireCode.BAD_SIGNATURE),
    ],
)
def test_a_wrong_hello_is_refused_typed(run: Run, changes: dict[str, Any], code: WireCode) -> None:
    async def body(world: Any) -> None:
        changed = dict(changes)
        kind = changed.pop("binding", None)
        if kind == "expired":
            changed["payer"] = world.binding(expires_ms=10)
        elif kind == "of another peer":
            other, world.requester = world.requester, NodeKey(b"x" * 32)
            changed["payer"] = world.binding()
            world.requester = other
        elif kind == "forged":
            import dataclasses

            changed["payer"] = dataclasses.replace(world.binding(), signer=b"v" * 20)
        attacker = Attacker(world.connect())
        await attacker.say(hello(world, **changed))
        answer = await attacker.hear()
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == code
        assert world.payee.counters.refused == {code: 1}
        assert await attacker.hear() is None

    run(body)


def test_strangers_with_unfunded_channels_leave_nothing_on_disk(run: Run, pair: Any) -> None:
    """A hundred identities with good signatures and no money: all refused, and the ledger does not grow."""

    async def body(world: Any) -> None:
        for number in range(100):
            world.requester = NodeKey(number.to_bytes(32, "big"))
            world.wallet = WalletKey((number + 1).to_bytes(32, "big"))
            world.compose(world.payer_ledger, world.payee_ledger, world.nursery)
            attacker = Attacker(world.connect())
            await attacker.say(hello(world))
            assert await attacker.hear() == ChannelSync(amount_uusd=0)
            await attacker.say(VoucherFrame(amount_uusd=1, memo=bytes(32), signature=world.voucher(1)))
            answer = await attacker.hear()
            assert answer.code == WireCode.UNFUNDED
        report = await world.payee_ledger.verify()
        assert (report.events, report.channels_in) == (0, 0)

    run(body)


def test_a_flood_of_bad_vouchers_ends_and_reads_the_chain_seldom(run: Run) -> None:
    reads = 0

    async def body(world: Any) -> None:
        nonlocal reads
        await world.payer.open_channels(world.need(10))
        await world.agree()
        hub = world.payee._hub
        channel = hub.channel

        async def counted(which: Any) -> Any:
            nonlocal reads
            reads += 1
            return await channel(which)

        hub.channel = counted
        attacker = Attacker(world.connect())
        await attacker.say(hello(world))
        await attacker.hear()
        answers = 0
        for _ in range(1_000):
            try:
                await attacker.say(VoucherFrame(amount_uusd=99, memo=bytes(32), signature=world.voucher(99)))
            except trio.BrokenResourceError:
                break
            answers += await attacker.hear() is not None
        assert answers == 16

    run(body)
    assert reads == 1


def test_a_flood_of_forgeries_counts_as_one_failure_on_disk(run: Run) -> None:
    async def body(world: Any) -> None:
        await world.agree()
        attacker = Attacker(world.connect())
        await attacker.say(hello(world))
        await attacker.hear()
        for amount in range(1, 11):
            await attacker.say(VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=b"\x01" * 65))
            assert (await attacker.hear()).code == WireCode.BAD_SIGNATURE
        assert (await world.payee_ledger.peer(world.requester.peer_id)).failures == 1
        assert world.payee.counters.refused == {WireCode.BAD_SIGNATURE: 10}

    run(body)


@pytest.mark.parametrize("after", ["nothing", "half a hello", "hello"])
def test_a_silent_peer_is_let_go(run: Run, after: str) -> None:
    async def body(world: Any) -> None:
        attacker = Attacker(world.connect())
        data = frame(hello(world).encode(), max_bytes=65_536)
        if after == "hello":
            await attacker.say(hello(world))
            await attacker.hear()
        elif after == "half a hello":
            await attacker.stream.send_all(data[:10])
        start = trio.current_time()
        assert isinstance(await attacker.hear(), VoucherRefusal | None)
        assert await attacker.hear() is None
        assert trio.current_time() - start <= (900 if after == "hello" else 20)
        assert world.payee.counters.refused == {WireCode.STALLED: 1}

    run(body)


def test_a_farewell_left_unread_between_two_tasks_is_no_answer_to_the_next_voucher(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0, units=5)
        assert await world.channel_out().pay() == 5
        await trio.sleep(1_000)  # the payee has let the idle stream go, and said so
        await world.work(task, 1, units=5)
        assert await world.channel_out().pay() == 10
        assert len(world.streams) == 2

    run(body)


def test_dribbled_bytes_do_not_hold_a_stream_open(run: Run) -> None:
    """One byte in a while renews a timeout per read; the limit is on the whole message."""

    async def body(world: Any) -> None:
        attacker = Attacker(world.connect())
        data = frame(hello(world).encode(), max_bytes=65_536)
        start = trio.current_time()

        async def dribble() -> None:
            for byte in data:
                await attacker.stream.send_all(bytes([byte]))
                await trio.sleep(5)

        with pytest.raises(trio.BrokenResourceError):
            await dribble()
        assert trio.current_time() - start < 60

    run(body)


def test_a_payer_gives_up_on_a_payee_that_never_answers(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)
        kept = []

        async def dial(_: Any) -> Any:
            client, server = pair(world.requester.peer_id, world.provider.peer_id)
            kept.append(server)
            return client

        world.payer.dial = dial
        with pytest.raises(StreamError):
            await world.channel_out().pay()
        assert len(kept) == 8

    run(body)


def test_two_payments_at_once_send_one_voucher_each_amount(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(world.channel_out().pay)
        assert world.payee.counters.vouchers == 1

    run(body)


def test_a_full_disk_at_the_payee_delays_payment_and_loses_nothing(run: Run, tmp_path: Path) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)
        connection = world.payee_ledger._database.connection
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        peers = (NodeKey(number.to_bytes(32, "big")).peer_id for number in range(10_000))

        async def fill(size: int) -> None:
            for peer in peers:
                await world.payee_ledger.ban(peer, reason="x" * size)

        for size in (900, 100, 1):
            with pytest.raises(DiskFull):
                await fill(size)
        async with trio.open_nursery() as nursery:

            async def make_room() -> None:
                await trio.sleep(2)
                assert world.payee.counters.refused[WireCode.INTERNAL] > 0
                connection.execute("PRAGMA max_page_count = 1000000")

            nursery.start_soon(make_room)
            assert await world.channel_out().pay() == 1

    run(body, directory=tmp_path)


def test_a_closing_channel_takes_no_vouchers_in_its_last_hour(run: Run) -> None:
    async def body(world: Any) -> None:
        import dataclasses

        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)
        await world.channel_out().pay()
        state = world.chain.channels[world.channel]
        world.chain.channels[world.channel] = dataclasses.replace(state, close_at_s=1_000 + 3_000)
        await world.settler._refresh(await world.payee_ledger.channel_in(world.channel))
        assert await world.settler.is_due()
        await world.work(task, 1)
        with pytest.raises(VoucherRefused, match="UNFUNDED"):
            await world.channel_out().pay()

    run(body)


def test_wait_paid_wakes_on_the_voucher(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        got: list[int] = []

        async def waiter(amount: int) -> None:
            got.append(await world.payee.wait_paid(world.channel, amount))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter, 1)
            nursery.start_soon(waiter, 3)
            await trio.testing.wait_all_tasks_blocked()
            assert got == []
            await world.work(task, 0)
            await world.channel_out().pay()
            await trio.testing.wait_all_tasks_blocked()
            assert got == [1]
            await world.work(task, 1, units=2)
            await world.channel_out().pay()
        assert got == [1, 3]

    run(body)


def test_many_channels_are_funded_by_one_transaction(run: Run) -> None:
    async def body(world: Any) -> None:
        needs = [
            ChannelNeed(payee=Address(bytes([i]) * 20), peer=NodeKey(bytes([i]) * 32).peer_id, amount_uusd=10)
            for i in range(1, 51)
        ]
        await world.payer.open_channels(needs)
        assert world.chain.nonces[world.wallet.address] == 3
        assert len(world.chain.channels) == 50
        assert world.chain.total_uusd() == 10_000_000

    run(body)


def test_acks_are_only_taken_for_what_was_sent(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0)

        async def dial(_: Any) -> Any:
            client, server = pair(world.requester.peer_id, world.provider.peer_id)

            async def lie() -> None:
                attacker = Attacker(server)
                await attacker.hear()
                await attacker.say(ChannelSync(amount_uusd=0))
                await attacker.hear()
                await attacker.say(VoucherAck(amount_uusd=500))

            world.nursery.start_soon(lie)
            return client

        world.payer.dial = dial
        with pytest.raises(StreamError):
            await world.channel_out().pay()
        row = await world.payer_ledger.channel_out(world.channel)
        assert row.acked_uusd == 0

    run(body)


def test_a_payment_that_is_cancelled_does_not_spoil_the_next(run: Run) -> None:
    """Its answer may lie on the stream, or never come: the next payment syncs anew."""

    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0, units=5)
        await world.channel_out().pay()
        await world.work(task, 1, units=5)
        (_, server) = world.streams[-1]
        with trio.CancelScope() as scope:
            server.on_send = lambda _: scope.cancel()  # the ack is on its way
            await world.channel_out().pay()
        assert scope.cancelled_caught
        assert await world.channel_out().pay() == 10
        assert len(world.streams) == 2

    run(body)
