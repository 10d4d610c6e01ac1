"""The ledger's part about transactions: signed and stored first, broadcast after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from p2pcompute.errors import StorageError
from p2pcompute_protocols.ids import Address, ChannelId

from ._channels import count_again, need_in
from ._database import Transaction
from ._rows import OutboxRow

__all__ = ["OutboxMixin"]

_TX = "SELECT id, sender, nonce, kind, hash, raw, state, detail FROM outbox"

_REPLACED = "replaced by transaction "

T = TypeVar("T")


def _row(tx: Transaction, row: tuple[object, ...]) -> OutboxRow:
    channels = tx.all("SELECT channel, uusd FROM outbox_rows WHERE id = :id ORDER BY channel", id=row[0])
    names = ("id", "sender", "nonce", "kind", "hash", "raw", "state", "detail")
    return OutboxRow(**dict(zip(names, row, strict=True)), rows=tuple((ChannelId(c), u) for c, u in channels))  # type: ignore[arg-type]


class OutboxMixin:
    """Methods of `Ledger` about transactions; see there for what holds for all of them."""

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def _read(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def queue_tx(
        self,
        sender: Address,
        *,
        kind: str,
        chain_nonce: int,
        sign: Callable[[int], tuple[bytes, bytes]],
        rows: Sequence[tuple[ChannelId, int]] = (),
    ) -> OutboxRow:
        """Allocate the next nonce, sign, and store the signed bytes.

        Args:
            sender: whose nonce it uses.
            kind: what it does, in a word.
            chain_nonce: the chain's count of the sender's transactions. Those that wait in the outbox come on top;
                settled ones do not, so that a chain that was set back does not leave a gap.
            sign: gets the nonce and gives hash and raw bytes; called inside of the transaction.
            rows: the channels that it claims or funds, and the amounts.
        """

        def work(tx: Transaction) -> OutboxRow:
            last = tx.one(
                "SELECT max(nonce) FROM outbox WHERE sender = :sender AND state IN ('pending', 'sent')", sender=sender
            )
            waiting = -1 if last is None or last[0] is None else int(last[0])
            nonce = max(chain_nonce, waiting + 1)
            found = tx.one("SELECT coalesce(max(id), 0) + 1 FROM outbox")
            number = 1 if found is None else int(found[0])
            tx_hash, raw = sign(nonce)
            tx.emit("tx_queued", id=number, sender=sender, nonce=nonce, kind=kind, hash=tx_hash, raw=raw)
            for channel, uusd in rows:
                tx.emit("tx_row", id=number, channel=channel, uusd=uusd)
            row = tx.one(f"{_TX} WHERE id = :id", id=number)
            assert row is not None
            return _row(tx, row)

        return await self._write(work)

    async def transaction(self, number: int) -> OutboxRow | None:
        """One transaction by its number in the outbox."""

        def work(tx: Transaction) -> OutboxRow | None:
            row = tx.one(f"{_TX} WHERE id = :id", id=number)
            return None if row is None else _row(tx, row)

        return await self._read(work)

    async def unsettled(self, sender: Address) -> list[OutboxRow]:
        """Transactions whose outcome is not known, in nonce order: those to broadcast again after a restart."""

        def work(tx: Transaction) -> list[OutboxRow]:
            rows = tx.all(
                f"{_TX} WHERE sender = :sender AND state IN ('pending', 'sent') ORDER BY nonce", sender=sender
            )
            return [_row(tx, row) for row in rows]

        return await self._read(work)

    async def of_kind(self, sender: Address, kind: str) -> list[OutboxRow]:
        """All transactions of a kind, whatever became of them; the newest first."""

        def work(tx: Transaction) -> list[OutboxRow]:
            rows = tx.all(f"{_TX} WHERE sender = :sender AND kind = :kind ORDER BY id DESC", sender=sender, kind=kind)
            return [_row(tx, row) for row in rows]

        return await self._read(work)

    async def replace_tx(self, number: int, *, tx_hash: bytes, raw: bytes) -> OutboxRow:
        """Put another transaction in the place of one whose outcome is not known: the same nonce, kind and rows, other
        bytes. The chain takes one of the two at most. The earlier one's hash is kept: it may be the one."""

        def work(tx: Transaction) -> OutboxRow:
            found = tx.one(f"{_TX} WHERE id = :id AND state IN ('pending', 'sent')", id=number)
            if found is None:
                raise StorageError(f"transaction {number} is settled, so nothing takes its place; read it again")
            old = _row(tx, found)
            last = tx.one("SELECT max(id) + 1 FROM outbox")
            assert last is not None
            new = int(last[0])
            tx.emit("tx_state", id=number, state="failed", detail=f"{_REPLACED}{new}")
            tx.emit("tx_queued", id=new, sender=old.sender, nonce=old.nonce, kind=old.kind, hash=tx_hash, raw=raw)
            for channel, uusd in old.rows:
                tx.emit("tx_row", id=new, channel=channel, uusd=uusd)
            row = tx.one(f"{_TX} WHERE id = :id", id=new)
            assert row is not None
            return _row(tx, row)

        return await self._write(work)

    async def replaced_hashes(self, number: int) -> list[bytes]:
        """Hashes of what this transaction has taken the place of, directly or by way of others; the newest first."""

        def work(tx: Transaction) -> list[bytes]:
            hashes: list[bytes] = []
            current = number
            while row := tx.one("SELECT id, hash FROM outbox WHERE detail = :detail", detail=f"{_REPLACED}{current}"):
                current = int(row[0])
                hashes.append(bytes(row[1]))
            return hashes

        return await self._read(work)

    async def tx_sent(self, number: int) -> None:
        """The endpoint took the bytes."""

        def work(tx: Transaction) -> None:
            if tx.one("SELECT 1 FROM outbox WHERE id = :id AND state = 'pending'", id=number):
                tx.emit("tx_state", id=number, state="sent", detail="")

        await self._write(work)

    async def tx_settled(
        self, number: int, *, ok: bool, detail: str = "", claimed: Sequence[tuple[ChannelId, int]] = ()
    ) -> None:
        """It was mined, or can never be. `claimed` are the watermarks (total micro-USD) that it reports for
        channels on which we are paid; they are stored in the same transaction. Settling twice changes nothing."""

        def work(tx: Transaction) -> None:
            if tx.one("SELECT 1 FROM outbox WHERE id = :id AND state IN ('pending', 'sent')", id=number) is None:
                return
            tx.emit("tx_state", id=number, state="mined" if ok else "failed", detail=detail)
            for channel, claimed_uusd in claimed:
                if tx.one("SELECT 1 FROM channels_in WHERE channel = :channel", channel=channel):
                    before = need_in(tx, channel)
                    tx.emit("claimed", channel=channel, claimed_uusd=claimed_uusd)
                    count_again(tx, before)

        await self._write(work)
