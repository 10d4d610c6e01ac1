"""What a dishonest payer can say on the wire and send to the chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio
import trio.testing

from p2pcompute.chain import (
    ClaimRow,
    FundRow,
    encode_claim,
    encode_finalize,
    encode_fund,
    encode_request_close,
    encode_withdraw,
)
from p2pcompute.chain._hub_signed import CloseConsent, close_digest, encode_close_signed
from p2pcompute.storage import CeilingReached
from p2pcompute_protocols.channel import (
    MESSAGES,
    ChannelHello,
    ChannelSync,
    Domain,
    Voucher,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
    voucher_digest,
)
from p2pcompute_protocols.framing import FrameBuffer, frame
from p2pcompute_protocols.ids import Address, ChannelId, TaskId
from p2pcompute_protocols.wire import decode_message

from .whole import CHUNK_UUSD, WINDOW_UUSD, Account, Whole
from .whole_books import Books

__all__ = ["BROKEN", "FORGERIES", "ORDER", "Mallory", "Wire"]

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
MAX = 65_536
FORGERIES = (
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


class Wire:
    """One end of a stream for somebody who says what he likes."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._buffer = FrameBuffer(max_bytes=MAX)

    async def say(self, message: Any) -> None:
        await self.say_bytes(message.encode())

    async def say_bytes(self, payload: bytes) -> None:
        await self.stream.send_all(frame(payload, max_bytes=MAX))

    async def hear(self) -> Any:
        while (payload := self._buffer.pop()) is None:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._buffer.feed(data)
        return decode_message(payload, MESSAGES, max_bytes=MAX)


class Mallory:
    """A payer of bob's that says and sends what it likes, and whoever helps it."""

    def __init__(self, whole: Whole) -> None:
        self.whole = whole
        self.acked: list[VoucherFrame] = []
        self.signed = 0
        self.wire: Wire | None = None
        self.done = dict.fromkeys(("mallory", "ada"), 0)  # micro-USD of work by bob
        self.chunks = 0
        self._books: Books | None = None
        self._books_at = 0
        self.task = TaskId(bytes(32))

    # Helpers

    def count(self, rule: str, times: int = 1) -> None:
        self.whole.taken[rule] += times

    def transact(self, data: bytes, by: Account | None = None, to: Address | None = None) -> bool:
        node = self.whole.node
        node.catch_up()
        return bool(node.transact(by or self.whole.mallory, to or node.hub, data).ok)

    def sign(
        self, amount: int, *, channel: ChannelId | None = None, domain: Domain | None = None, by: Any = None
    ) -> bytes:
        whole = self.whole
        voucher = Voucher(channel=channel or whole.from_mallory, amount_uusd=amount, memo=bytes(32))
        signer = (by or whole.mallory).wallet
        return bytes(signer.sign_digest(voucher_digest(domain or whole.domain, voucher)))

    def frame_of(self, amount: int, **changes: Any) -> VoucherFrame:
        if not changes:
            self.signed = max(self.signed, amount)
        return VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=self.sign(amount, **changes))

    async def books(self) -> Books:
        """The chain, with no more claimed than was signed."""
        whole = self.whole
        if self._books is not None and self._books_at == whole.node.changes:
            return self._books
        most = {whole.from_mallory: self.signed}
        for channel in (whole.from_ada, whole.to_mallory):
            row = await whole.ada.ledger.channel_out(channel)
            most[channel] = 0 if row is None else max(row.voucher_uusd, row.claimed_uusd)
        self._books, self._books_at = Books(whole.node, most), whole.node.changes
        return self._books

    # As bob's payer, on the wire

    async def connect(self) -> Wire:
        if self.wire is None:
            whole = self.whole
            self.wire = Wire(whole.connect_mallory())
            await self.wire.say(
                ChannelHello(chain=whole.terms, payer=whole.mallory.binding(), payee=bytes(whole.bob_account.address))
            )
            assert isinstance(await self.wire.hear(), ChannelSync)
        return self.wire

    async def offer(self, message: VoucherFrame) -> Any:
        try:
            wire = await self.connect()
            await wire.say(message)
            answer = await wire.hear()
        except BROKEN:
            answer = None
        if answer is None:
            await self.hang_up()
        if isinstance(answer, VoucherAck):
            self.acked.append(message)
        return answer

    async def hang_up(self) -> None:
        wire, self.wire = self.wire, None
        if wire is not None:
            await wire.stream.aclose()

    async def owed(self) -> int:
        row = await self.whole.bob.ledger.channel_in(self.whole.from_mallory)
        return 0 if row is None else row.owed_uusd

    async def work(self, how: int) -> None:
        """Bob begins no chunk that would leave more than a window unpaid."""
        whole = self.whole
        for _ in range(how % 4 + 1):
            if await whole.bob.payee.unpaid_pusd(whole.from_mallory) > (WINDOW_UUSD - CHUNK_UUSD) * 1_000_000:
                return
            payload, envelope = whole.receipt(self.task, self.chunks, whole.bob_account, CHUNK_UUSD)
            try:
                await whole.bob.ledger.record_receipt(payload, sign=lambda _, made=envelope: made)
            except CeilingReached:
                return
            self.chunks += 1
            self.done["mallory"] += CHUNK_UUSD
            self.count("work")

    async def pay(self, how: int) -> None:
        amount = await self.owed() + (0, 0, 0, 1, 3, -6)[how % 6]
        if amount > 0 and isinstance(await self.offer(self.frame_of(amount)), VoucherAck):
            self.count("pay")

    async def forgery(self, kind: str) -> None:
        """A voucher that must not count."""
        whole = self.whole
        amount = await self.owed() + 1
        held = await whole.bob.payee.paid_uusd(whole.from_mallory)
        before = await whole.bob.ledger.channel_in(whole.from_mallory)
        good = self.sign(amount)
        twin = ORDER - int.from_bytes(good[32:64], "big")
        deposit = (await self.books()).deposit[whole.from_mallory]

        def cut(signature: bytes) -> VoucherFrame:
            return VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=signature)

        made: dict[str, Callable[[], VoucherFrame]] = {
            "forged": lambda: self.frame_of(amount, by=whole.stranger),
            "wrong channel": lambda: self.frame_of(amount, channel=whole.channel(whole.mallory, whole.stranger)),
            "wrong contract": lambda: self.frame_of(
                amount, domain=Domain(chain_id=whole.terms.chain_id, contract=Address(b"x" * 20))
            ),
            "wrong chain": lambda: self.frame_of(amount, domain=Domain(chain_id=1, contract=whole.node.hub)),
            "malleated": lambda: cut(good[:32] + twin.to_bytes(32, "big") + bytes([55 - good[64]])),
            "another v": lambda: cut(good[:64] + bytes([55 - good[64]])),
            "below the best": lambda: self.frame_of(held),
            "above the deposit": lambda: self.frame_of(deposit + 1),
            "above 64 bits": lambda: self.frame_of(2**64 - 1),
        }
        if kind == "below the best" and not held:
            return
        if kind == "64 bytes":
            # The record refuses to be made so, and its bytes are cut by hand.
            await self.hang_up()
            wire = await self.connect()
            message = cut(good).encode()
            head, tail = message.split(b"\x58\x41", 1)  # a byte string of 65; only zeros come before it
            await wire.say_bytes(head + b"\x58\x40" + tail[:64])
            answer = await wire.hear()
            await self.hang_up()
        else:
            answer = await self.offer(made[kind]())
        # Below one that is kept above the deposit it is paid for already, and is told so.
        known = kind == "below the best" and before is not None and before.best_uusd > before.paid_uusd
        assert answer is None or known or isinstance(answer, VoucherRefusal), f"{kind}: taken"
        after = await whole.bob.ledger.channel_in(whole.from_mallory)
        if before is not None and after is not None:
            if kind == "above the deposit":
                assert after.paid_uusd <= max(before.paid_uusd, deposit), "more counts than there is"
            else:
                assert (after.best_uusd, after.owed_pusd) == (before.best_uusd, before.owed_pusd), kind
        self.count(kind)

    async def replay(self, how: int) -> None:
        if not self.acked:
            return
        before = await self.whole.bob.ledger.channel_in(self.whole.from_mallory)
        answer = await self.offer(self.acked[how % len(self.acked)])
        if isinstance(answer, VoucherAck):  # one that is kept above the deposit has paid for it
            after = await self.whole.bob.ledger.channel_in(self.whole.from_mallory)
            assert before is not None
            assert after is not None
            assert after.best_uusd == before.best_uusd > before.paid_uusd, "a voucher counted twice"
        self.count("replay")

    async def reorder(self, how: int) -> None:
        newest = await self.owed() + how % 3 + 1
        first = await self.offer(self.frame_of(newest))
        second = await self.offer(self.frame_of(newest - 1))
        if isinstance(first, VoucherAck):
            assert not isinstance(second, VoucherAck), "an older voucher counted after a newer one"
            self.count("reorder")

    async def drop(self, how: int) -> None:
        payload = frame(self.frame_of(await self.owed() + 1).encode(), max_bytes=MAX)
        with suppress(*BROKEN):
            wire = await self.connect()
            await wire.stream.send_all(payload[: how % len(payload)])
            self.count("drop")
        await self.hang_up()

    # As bob's payer, on the chain

    def fund_data(self, amount: int) -> bytes:
        whole = self.whole
        return encode_fund([FundRow(payee=whole.bob_account.address, signer=whole.mallory.address, amount_uusd=amount)])

    async def fund(self, how: int) -> None:
        self.count("fund", self.transact(self.fund_data((1, 5, 40)[how % 3])))

    async def bait(self, how: int) -> None:
        """A little more money while a request to close runs, or has run out."""
        if (await self.books()).close_at_s[self.whole.from_mallory]:
            self.count("bait", self.transact(self.fund_data(how % 4)))

    async def withdraw(self, _: int) -> None:
        amount = (await self.books()).free[self.whole.mallory.address]
        if amount:
            self.count("withdraw", self.transact(encode_withdraw(amount, self.whole.mallory.address)))

    def ask_data(self) -> bytes:
        return encode_request_close(self.whole.bob_account.address, self.whole.mallory.address)

    def close_data(self) -> bytes:
        whole = self.whole
        return encode_finalize(whole.mallory.address, whole.bob_account.address, whole.mallory.address)

    async def ask_to_close(self, _: int) -> None:
        self.count("ask to close", self.transact(self.ask_data()))

    async def close(self, _: int) -> None:
        self.count("close", self.transact(self.close_data()))

    async def close_by_a_third(self, how: int) -> None:
        """Anyone tries to close anything. It goes through where a request is a day old, and where not it must not."""
        whole = self.whole
        payer = (whole.mallory, whole.ada_account)[how % 2]
        before = await self.books()
        data = encode_finalize(payer.address, whole.bob_account.address, payer.address)
        channel = whole.channel(payer, whole.bob_account)
        done = self.transact(data, whole.stranger)
        due = 0 < before.close_at_s[channel] <= whole.node.chain.header(whole.node.chain.head).timestamp
        assert done == due, "H6: others close"
        self.count("close by a third")

    async def forged_consent(self, how: int) -> None:
        whole = self.whole
        payer = (whole.mallory, whole.ada_account)[how % 2]
        consent = CloseConsent(
            channel=whole.channel(payer, whole.bob_account), epoch=0, amount_uusd=0, deadline_s=whole.now_s() + 999
        )
        signature = bytes(whole.mallory.wallet.sign_digest(close_digest(whole.domain, consent)))
        data = encode_close_signed(
            consent, signature, payer=payer.address, payee=whole.bob_account.address, signer=payer.address
        )
        assert not self.transact(data), "H5: no consent, no closing"
        self.count("forged consent")

    async def first(self, what: str) -> None:
        """Before bob's next transaction, in the block before it."""
        old = self.acked[:1]
        data = {
            "ask to close": self.ask_data(),
            "close": self.close_data(),
            "top up": self.fund_data(1),
            "claim": encode_claim(self.whole.bob_account.address, [self.row(voucher) for voucher in old]),
        }[what]
        self.whole.node.first.append((f"first: {what}", self.whole.mallory, data))

    def row(self, voucher: VoucherFrame, of: Account | None = None, **changes: Any) -> ClaimRow:
        account = of or self.whole.mallory
        row = ClaimRow(
            payer=account.address,
            signer=account.address,
            amount_uusd=voucher.amount_uusd,
            memo=voucher.memo,
            signature=voucher.signature,
        )
        return dataclasses.replace(row, **changes)

    def garbage(self, voucher: VoucherFrame) -> list[ClaimRow]:
        """Rows of which none may count, nor stop another."""
        whole = self.whole
        amount = voucher.amount_uusd + 50
        no_hub = Domain(chain_id=whole.terms.chain_id, contract=Address(bytes(20)))
        no_chain = Domain(chain_id=1, contract=whole.node.hub)
        return [
            self.row(voucher, amount_uusd=2**90),
            self.row(voucher, signature=bytes(64) + b"\x1b"),
            self.row(voucher, payer=Address(b"z" * 20)),
            self.row(voucher, signer=whole.stranger.address),
            self.row(voucher, memo=b"m" * 32),
            self.row(voucher, amount_uusd=amount, signature=self.sign(amount, domain=no_hub)),
            self.row(voucher, amount_uusd=amount, signature=self.sign(amount, domain=no_chain)),
            self.row(voucher, amount_uusd=amount, signature=self.sign(amount, by=whole.stranger)),
            self.row(voucher, amount_uusd=amount, signature=self.sign(amount, channel=whole.from_ada)),
        ]

    async def poison(self, how: int) -> None:
        """Somebody submits an older voucher among rows that are worth nothing."""
        if not self.acked:
            return
        good = self.acked[how % len(self.acked)]
        bad = self.garbage(good)
        before = await self.books()
        rows = [*bad, self.row(good), *bad, self.row(good)]
        claimed = self.transact(encode_claim(self.whole.bob_account.address, rows), self.whole.stranger)
        assert claimed, "H7: one row spoils a batch"
        after = await self.books()
        gained = after.claimed[self.whole.from_mallory] - before.claimed[self.whole.from_mallory]
        useful = min(good.amount_uusd, before.deposit[self.whole.from_mallory])
        assert gained == max(0, useful - before.claimed[self.whole.from_mallory]), "H7"
        assert after.skipped - before.skipped == len(rows) - (gained > 0), "H7"
        self.count("poison")

    async def old_voucher(self, how: int) -> None:
        """One that is worth nothing any more, on chain, with the twin of its signature beside it."""
        if not self.acked:
            return
        claimed = (await self.books()).claimed[self.whole.from_mallory]
        old = self.acked[how % len(self.acked)]
        assert self.transact(encode_claim(self.whole.bob_account.address, [self.row(old)]), self.whole.stranger)
        after = (await self.books()).claimed[self.whole.from_mallory]
        assert after >= claimed
        self.count("old voucher", after == claimed)

    async def stolen_voucher(self, how: int) -> None:
        """Ada's voucher for bob, which everybody on the wire has seen, as a claim of mallory's."""
        row = await self.whole.bob.ledger.channel_in(self.whole.from_ada)
        if row is None or row.signature is None or row.memo is None:
            return
        voucher = VoucherFrame(amount_uusd=row.best_uusd, memo=row.memo, signature=row.signature)
        before = await self.books()
        whole = self.whole
        rows = [self.row(voucher, whole.ada_account), self.row(voucher, signer=whole.ada_account.address)]
        assert self.transact(encode_claim(whole.mallory.address, rows))
        after = await self.books()
        assert after.money == before.money, "H7"
        self.count("stolen voucher")
