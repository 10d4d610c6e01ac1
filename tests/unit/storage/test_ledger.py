"""What the ledger keeps, refuses and rebuilds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.errors import ConfigError, InsufficientFunds, LedgerCorrupt, VoucherRefused
from p2pcompute.storage import (
    INT64_MAX,
    AmountOutOfRange,
    CeilingReached,
    InlineExecutor,
    Ledger,
    ReceiptConflict,
    ThreadExecutor,
    UnknownAgreement,
    open_ledger,
)
from p2pcompute_protocols.channel import channel_id
from p2pcompute_protocols.ids import ChannelId, PeerId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.task import open_receipt

MEMO = bytes(32)


def with_ledger(body: Callable[[Ledger], Any], directory: Path | None = None) -> None:
    async def main() -> None:
        async with open_ledger(directory, executor=InlineExecutor(), clock_ms=lambda: 1_000) as ledger:
            await body(ledger)
            await ledger.verify(full=True)

    trio.run(main)


def test_settings_are_as_promised(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_ledger(tmp_path) as ledger:
            connection = ledger._database.connection
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
            assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)

    trio.run(main)


def test_one_result_per_index_even_with_parallel_signers(tmp_path: Path, deal: Any) -> None:
    """Twenty runs of one chunk, each with another output, ask for a receipt at once: one gets it."""

    async def main() -> None:
        async with open_ledger(tmp_path, executor=ThreadExecutor()) as ledger:
            await ledger.add_agreement(deal.agreement, role="provider")
            signed: list[bytes] = []
            given: list[bytes] = []
            refused: list[int] = []

            def sign(receipt: Any) -> bytes:
                signed.append(receipt.output)
                return bytes(deal.sign(receipt))

            async def one(number: int) -> None:
                receipt = deal.receipt(0, output=bytes([number]) * 32)
                try:
                    given.append(await ledger.record_receipt(receipt, sign=sign))
                except ReceiptConflict:
                    refused.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(one, number)
            assert len(signed) == len(given) == 1
            assert len(refused) == 19
            again = deal.receipt(0, output=signed[0])
            assert await ledger.record_receipt(again, sign=sign) == given[0]
            assert len(signed) == 1
            row = await ledger.agreement(deal.task)
            assert row is not None
            assert row.total_pusd == 10 * 300_000

    trio.run(main)


def test_a_receipt_and_what_is_owed_for_it_are_one_transaction(tmp_path: Path, deal: Any) -> None:
    def fail(_: Any) -> bytes:
        raise RuntimeError("the signer failed")

    async def body(ledger: Ledger) -> None:
        row = await ledger.add_agreement(deal.agreement, role="provider")
        with pytest.raises(RuntimeError, match="the signer failed"):
            await ledger.record_receipt(deal.receipt(0), sign=fail)
        channel = await ledger.channel_in(row.channel)
        assert channel is not None
        assert channel.owed_pusd == 0
        assert await ledger.issued_receipt(deal.task, 0) is None
        envelope = await ledger.record_receipt(deal.receipt(0), sign=deal.sign)
        channel = await ledger.channel_in(row.channel)
        assert channel is not None
        assert channel.owed_pusd == channel.unpaid_pusd == 3_000_000
        assert await ledger.issued_receipt(deal.task, 0) == envelope
        open_receipt(envelope, network="test", provider=deal.provider.peer_id, task=deal.task, index=0)

    with_ledger(body, tmp_path)


def test_a_failure_can_be_followed_by_a_result_but_costs_nothing(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        await ledger.add_agreement(deal.agreement, role="provider")
        await ledger.record_receipt(deal.receipt(3, code=21), sign=deal.sign)
        await ledger.record_receipt(deal.receipt(3), sign=deal.sign)
        rows = await ledger.receipts(deal.task)
        assert [(row.index, row.code, row.pusd) for row in rows] == [(3, 0, 3_000_000), (3, 21, 0)]

    with_ledger(body)


def test_receipts_under_one_signature_are_one_transaction(deal: Any) -> None:
    """All of them and what is owed for them, or nothing; what is there is as if each had been recorded by itself."""

    def fail(_: Any) -> Any:
        raise RuntimeError("the signer failed")

    async def body(ledger: Ledger) -> None:
        row = await ledger.add_agreement(deal.agreement, role="provider")
        receipts = [deal.receipt(index, units=1 + index) for index in range(4, 9)]
        with pytest.raises(RuntimeError, match="the signer failed"):
            await ledger.record_receipts(receipts, sign=fail)
        assert await ledger.receipts(deal.task) == []
        batch = await ledger.record_receipts(receipts, sign=deal.sign_batch)
        assert batch is not None
        assert [await ledger.issued_receipt(deal.task, index) for index in range(4, 9)] == list(batch.receipts)
        channel, agreement = await ledger.channel_in(row.channel), await ledger.agreement(deal.task)
        assert channel is not None
        assert agreement is not None
        owed_pusd = sum(receipt.units for receipt in receipts) * 300_000
        assert (channel.owed_pusd, agreement.total_pusd) == (owed_pusd, owed_pusd)
        assert {stored.index: stored.pusd for stored in await ledger.receipts(deal.task)} == {
            receipt.index: receipt.units * 300_000 for receipt in receipts
        }
        # The same once more, by itself, with the same result: that receipt again; with another: none.
        assert await ledger.record_receipt(receipts[2], sign=deal.sign) == batch.receipts[2]
        with pytest.raises(ReceiptConflict):
            await ledger.record_receipt(deal.receipt(6, output=b"x" * 32), sign=deal.sign)
        await ledger.verify(full=True)

    with_ledger(body)


def test_no_second_signature_for_a_chunk_that_is_in_a_batch(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        await ledger.add_agreement(deal.agreement, role="provider")
        signed: list[Any] = []

        def sign(receipts: Any) -> Any:
            signed.append(receipts)
            return deal.sign_batch(receipts)

        first = await ledger.record_receipt(deal.receipt(2), sign=deal.sign)
        other = [deal.receipt(index, output=b"x" * 32) for index in (1, 2, 3)]
        assert await ledger.record_receipts(other, sign=sign) is None
        assert await ledger.record_receipts([deal.receipt(5), deal.receipt(5)], sign=sign) is None
        assert signed == []
        assert [(row.index, row.envelope) for row in await ledger.receipts(deal.task)] == [(2, first)]
        assert await ledger.record_receipts([deal.receipt(1), deal.receipt(3)], sign=sign) is not None
        await ledger.record_receipt(deal.receipt(4, code=21), sign=deal.sign)  # a failure is no result
        assert await ledger.record_receipts([deal.receipt(4), deal.receipt(5)], sign=sign) is not None
        await ledger.verify(full=True)

    with_ledger(body)


def test_a_batch_needs_an_agreement_too(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        with pytest.raises(UnknownAgreement):
            await ledger.record_receipts([deal.receipt(0), deal.receipt(1)], sign=deal.sign_batch)

    with_ledger(body)


def test_nothing_is_signed_without_an_agreement(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        with pytest.raises(UnknownAgreement):
            await ledger.record_receipt(deal.receipt(0), sign=deal.sign)
        await ledger.add_agreement(deal.agreement, role="requester")
        with pytest.raises(UnknownAgreement):  # we are the other side
            await ledger.record_receipt(deal.receipt(0), sign=deal.sign)

    with_ledger(body)


def test_accepting_twice_pays_once_and_the_ceiling_holds(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        await ledger.add_agreement(deal.agreement, role="requester")

        def work(*indexes: int, units: int = 10) -> list[tuple[Any, bytes]]:
            receipts = [deal.receipt(index, units=units) for index in indexes]
            return [(receipt, deal.sign(receipt)) for receipt in receipts]

        assert await ledger.accept_work(deal.task, work(0, 1), sampled=4) == 6
        assert await ledger.accept_work(deal.task, work(1, 0), sampled=4) == 6
        # 1 000 micro-USD are the ceiling; 3 334 units of 0.3 are one unit too many.
        with pytest.raises(CeilingReached):
            await ledger.accept_work(deal.task, work(2, 3, units=1_657), sampled=4)
        row = await ledger.agreement(deal.task)
        assert row is not None
        assert row.total_uusd == 6
        assert await ledger.accept_work(deal.task, work(2, units=3_313), sampled=4) == 1_000
        await ledger.reject_work(deal.receipt(4), deal.sign(deal.receipt(4)), reason="sample differs", sampled=1)
        assert [row.verdict for row in await ledger.receipts(deal.task)] == ["accepted"] * 3 + ["rejected"]
        await ledger.close_agreement(deal.task, state="done")
        with pytest.raises(UnknownAgreement):
            await ledger.accept_work(deal.task, work(5, units=0), sampled=4)

    with_ledger(body)


def test_each_of_several_receipts_keeps_its_own_count_of_samples(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        await ledger.add_agreement(deal.agreement, role="requester")
        work = [(deal.receipt(index), deal.sign(deal.receipt(index))) for index in range(3)]
        with pytest.raises(ValueError, match="zip"):
            await ledger.accept_work(deal.task, work, sampled=[4, 0])
        assert await ledger.receipts(deal.task) == []
        await ledger.accept_work(deal.task, work, sampled=[4, 0, 9])
        assert [row.sampled for row in await ledger.receipts(deal.task)] == [4, 0, 9]

    with_ledger(body)


def test_a_voucher_is_never_above_deposit_or_accepted_work(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        agreement = await ledger.add_agreement(deal.agreement, role="requester")
        channel = agreement.channel
        signed: list[int] = []

        def sign(amount_uusd: int, _: bytes) -> tuple[bytes, bytes]:
            signed.append(amount_uusd)
            return MEMO, b"s" * 65

        receipt = deal.receipt(0)
        await ledger.accept_work(deal.task, [(receipt, deal.sign(receipt))], sampled=1)
        with pytest.raises(InsufficientFunds):
            await ledger.raise_voucher(channel, sign=sign)
        await ledger.set_chain_out(channel, deposit_uusd=100, claimed_uusd=0)
        row = await ledger.raise_voucher(channel, sign=sign)
        assert (row.voucher_uusd, row.acked_uusd) == (3, 0)
        await ledger.raise_voucher(channel, sign=sign)
        assert signed == [3]
        await ledger.ack_voucher(channel, amount_uusd=99)  # more than we signed: ignored
        await ledger.ack_voucher(channel, amount_uusd=3)
        out = await ledger.channel_out(channel)
        assert out is not None
        assert out.acked_uusd == 3
        assert out.reserved_pusd == 1_000_000_000 - 3_000_000
        peer = await ledger.peer(deal.provider.peer_id)
        assert peer is not None
        assert peer.earned_uusd == 3

    with_ledger(body)


def test_vouchers_only_rise_and_pay_what_is_owed(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        channel = (await ledger.add_agreement(deal.agreement, role="provider")).channel
        await ledger.record_receipt(deal.receipt(0), sign=deal.sign)

        async def take(amount: int) -> None:
            await ledger.take_voucher(
                channel, amount_uusd=amount, memo=MEMO, signature=b"s" * 65, peer=deal.requester.peer_id
            )

        await ledger.set_chain_in(channel, deposit_uusd=100, claimed_uusd=0, close_at_s=0)
        await take(2)
        for amount in (2, 1, 0):
            with pytest.raises(VoucherRefused):
                await take(amount)
        row = await ledger.channel_in(channel)
        assert row is not None
        assert (row.best_uusd, row.unpaid_pusd) == (2, 1_000_000)
        await take(50)  # for work that this ledger has lost: no credit for later work
        row = await ledger.channel_in(channel)
        assert row is not None
        assert (row.owed_uusd, row.unpaid_pusd) == (50, 0)
        await ledger.record_receipt(deal.receipt(1), sign=deal.sign)
        row = await ledger.channel_in(channel)
        assert row is not None
        assert row.unpaid_pusd == 3_000_000
        peer = await ledger.peer(deal.requester.peer_id)
        assert peer is not None
        assert peer.paid_uusd == 50
        await take(200)  # above the deposit: it counts up to it, and replaces what is lower only
        for amount in (150, 200):
            with pytest.raises(VoucherRefused):
                await take(amount)
        row = await ledger.channel_in(channel)
        assert row is not None
        assert (row.best_uusd, row.paid_uusd) == (200, 100)
        await ledger.verify(full=True)

    with_ledger(body)


def test_the_outbox_gives_each_nonce_once(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        sender = deal.payer.address

        def sign(nonce: int) -> tuple[bytes, bytes]:
            return bytes([nonce]) * 32, b"raw%d" % nonce

        first = await ledger.queue_tx(sender, kind="claim", chain_nonce=7, sign=sign, rows=[(ChannelId(b"c" * 32), 5)])
        second = await ledger.queue_tx(sender, kind="claim", chain_nonce=7, sign=sign)
        assert (first.nonce, second.nonce) == (7, 8)
        assert first.rows == ((b"c" * 32, 5),)
        await ledger.tx_sent(first.id)
        assert [row.state for row in await ledger.unsettled(sender)] == ["sent", "pending"]
        await ledger.tx_settled(first.id, ok=True)
        await ledger.tx_settled(first.id, ok=False, detail="too late")
        settled = await ledger.transaction(first.id)
        assert settled is not None
        assert settled.state == "mined"
        await ledger.tx_settled(second.id, ok=False, detail="reverted")
        assert await ledger.unsettled(sender) == []

        def fail(_: int) -> tuple[bytes, bytes]:
            raise RuntimeError("no key")

        with pytest.raises(RuntimeError, match="no key"):
            await ledger.queue_tx(sender, kind="claim", chain_nonce=9, sign=fail)
        assert (await ledger.queue_tx(sender, kind="claim", chain_nonce=9, sign=sign)).nonce == 9

    with_ledger(body)


@pytest.mark.parametrize("amount", [INT64_MAX + 1, -1])
def test_amounts_outside_of_64_bits_are_refused_typed(deal: Any, amount: int) -> None:
    async def body(ledger: Ledger) -> None:
        channel = (await ledger.add_agreement(deal.agreement, role="requester")).channel
        with pytest.raises(AmountOutOfRange):
            await ledger.set_chain_out(channel, deposit_uusd=amount, claimed_uusd=0)

    with_ledger(body)


def test_an_amount_in_one_of_many_rows_is_refused_typed(make_deal: Callable[..., Any]) -> None:
    deal = make_deal(price_pusd=2**32)

    async def body(ledger: Ledger) -> None:
        await ledger.add_agreement(deal.agreement, role="provider")
        with pytest.raises(AmountOutOfRange, match="pusd of"):
            await ledger.record_receipts([deal.receipt(0), deal.receipt(1, units=2**40)], sign=deal.sign_batch)
        assert await ledger.issued_receipt(deal.task, 0) is None

    with_ledger(body)


def test_a_sum_that_overflows_is_refused_and_not_rounded(make_deal: Callable[..., Any]) -> None:
    """SQLite makes a float of an integer sum that overflows: 2**62 + 2**62 must not become 9.2e18."""
    deal = make_deal(price_pusd=2**31, ceiling_uusd=2**40)

    async def body(ledger: Ledger) -> None:
        channel = (await ledger.add_agreement(deal.agreement, role="provider")).channel
        await ledger.record_receipt(deal.receipt(0, units=2**31), sign=deal.sign)
        with pytest.raises(AmountOutOfRange):
            await ledger.record_receipt(deal.receipt(1, units=2**31), sign=deal.sign)
        row = await ledger.channel_in(channel)
        assert row is not None
        assert row.owed_pusd == 2**62

    with_ledger(body)


def test_a_ledger_belongs_to_one_hub(tmp_path: Path) -> None:
    home = ChainTerms(chain_id=1, hub=b"h" * 20, token=b"t" * 20, decimals=6)

    async def body(ledger: Ledger) -> None:
        await ledger.bind_chain(home)
        await ledger.bind_chain(home)
        with pytest.raises(ConfigError, match="use another profile"):
            await ledger.bind_chain(ChainTerms(chain_id=2, hub=b"h" * 20, token=b"t" * 20, decimals=6))

    with_ledger(body, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE channels_in SET owed_pusd = owed_pusd + 1",
        "DELETE FROM receipts_issued",
        "DELETE FROM events WHERE seq = 2",
        "UPDATE events SET body = x'a0' WHERE seq = 1",
        "UPDATE peers SET paid_uusd = 9",
        "DELETE FROM channels_in",
    ],
)
def test_full_verification_finds_damage(tmp_path: Path, deal: Any, damage: str) -> None:
    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            await ledger.add_agreement(deal.agreement, role="provider")
            await ledger.record_receipt(deal.receipt(0), sign=deal.sign)
            await ledger.verify(full=True)
            ledger._database.connection.execute(damage)
            with pytest.raises(LedgerCorrupt):
                await ledger.verify(full=True)

    trio.run(main)


def test_a_voucher_above_the_accepted_work_is_found_at_the_start(tmp_path: Path, deal: Any) -> None:
    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            await ledger.add_agreement(deal.agreement, role="requester")
            ledger._database.connection.execute(
                "UPDATE channels_out SET voucher_uusd = 1, memo = zeroblob(32), signature = zeroblob(65)"
            )
        with pytest.raises(LedgerCorrupt, match="more than the accepted work"):
            async with open_ledger(tmp_path, executor=InlineExecutor()):
                pass

    trio.run(main)


def test_a_file_that_is_no_ledger_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").write_bytes(b"not a database at all" * 100)

    async def main() -> None:
        with pytest.raises(LedgerCorrupt, match="restore a backup"):
            async with open_ledger(tmp_path):
                pass

    trio.run(main)


def test_a_cancelled_caller_does_not_lose_a_commit(tmp_path: Path, deal: Any) -> None:
    """Cancelled while the thread commits: the call still returns, because the receipt is on disk."""

    async def main() -> None:
        async with open_ledger(tmp_path, executor=ThreadExecutor()) as ledger:
            await ledger.add_agreement(deal.agreement, role="provider")
            scope = trio.CancelScope()

            def sign(receipt: Any) -> bytes:
                trio.from_thread.run_sync(scope.cancel)
                return bytes(deal.sign(receipt))

            envelope = b""
            with scope:
                envelope = await ledger.record_receipt(deal.receipt(0), sign=sign)
            assert envelope == await ledger.issued_receipt(deal.task, 0)

    trio.run(main)


def test_strangers_leave_no_rows(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        for number in range(50):
            await ledger.note_failure(PeerId(f"stranger{number}"))
        assert await ledger.peers() == []
        await ledger.add_agreement(deal.agreement, role="provider")
        await ledger.note_failure(deal.requester.peer_id)
        assert [row.failures for row in await ledger.peers()] == [1]

    with_ledger(body)


def test_the_channel_is_the_one_of_the_terms(deal: Any) -> None:
    async def body(ledger: Ledger) -> None:
        row = await ledger.add_agreement(deal.agreement, role="requester")
        assert row == await ledger.add_agreement(deal.agreement, role="requester")
        assert row.channel == channel_id(deal.payer.address, deal.payee.address, deal.payer.address)
        assert await ledger.open_agreements() == [row]

    with_ledger(body)
