"""What a watchtower keeps for others: one row a channel, in a file of its own.

It is no part of the ledger: that keeps a log of all that happened, and who leaves a voucher here a thousand times a
second must not make ours grow.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import trio

from p2pcompute._private_files import private_directory
from p2pcompute_protocols.ids import Address

from ._database import Database, Transaction
from ._executor import Executor, ThreadExecutor
from ._failing import Failing

__all__ = ["WatchStore", "WatchedRow", "open_watch_store"]

T = TypeVar("T")

_V1: Final = """
CREATE TABLE watched (
    account   BLOB NOT NULL CHECK (length(account) = 20),
    payer     BLOB NOT NULL CHECK (length(payer) = 20),
    signer    BLOB NOT NULL CHECK (length(signer) = 20),
    uusd      INTEGER NOT NULL CHECK (uusd > 0),
    memo      BLOB NOT NULL CHECK (length(memo) = 32),
    signature BLOB NOT NULL CHECK (length(signature) = 65),
    PRIMARY KEY (account, payer, signer)
) STRICT, WITHOUT ROWID;
"""
_KEY: Final = "account = :account AND payer = :payer AND signer = :signer"
_ROW: Final = "SELECT account, payer, signer, uusd, memo, signature FROM watched"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRow:
    """The best voucher of a channel of which `account` is the payee."""

    account: Address
    payer: Address
    signer: Address
    amount_uusd: int
    memo: bytes
    signature: bytes


def _row(row: tuple[object, ...]) -> WatchedRow:
    return WatchedRow(**dict(zip(WatchedRow.__dataclass_fields__, row, strict=True)))  # type: ignore[arg-type]


class WatchStore:
    """The vouchers of others. Open it with `open_watch_store`.

    Each method is one transaction, on disk when it returns (WAL and ``synchronous=FULL``); errors and cancellation are
    those of `Ledger`.
    """

    def __init__(self, database: Database, executor: Executor) -> None:
        self._database = database
        self._executor = executor
        self._failing = Failing(database)

    async def wait_failed(self) -> NoReturn:
        """As `Ledger.wait_failed`."""
        await self._failing.wait()

    async def put(
        self, account: Address, payer: Address, signer: Address, uusd: int, memo: bytes, signature: bytes, *, room: int
    ) -> int | None:
        """Keep a verified voucher where it is above the one that is held of its channel.

        Args:
            account, payer, signer: the channel; `account` is its payee.
            uusd: the voucher's amount.
            memo, signature: the rest of it.
            room: how many channels one account may have.

        Returns:
            The amount that is held now; None where there is no room for one more channel.
        """

        def work(tx: Transaction) -> int | None:
            key = {"account": account, "payer": payer, "signer": signer}
            held = tx.one(f"SELECT uusd FROM watched WHERE {_KEY}", **key)
            if held is not None and held[0] >= uusd:
                return int(held[0])
            if held is None and self._count(tx, account) >= room:
                return None
            tx._connection.execute(
                "INSERT OR REPLACE INTO watched VALUES (:account, :payer, :signer, :uusd, :memo, :signature)",
                {**key, "uusd": uusd, "memo": memo, "signature": signature},
            )
            return uusd

        return await self._write(work)

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        outcome = (await self._run(lambda: self._database.write_all([work], 0)))[0]
        if isinstance(outcome, Exception):
            raise outcome
        result: T = outcome
        return result

    async def _run(self, call: Callable[[], T]) -> T:
        with self._failing:
            return await self._executor(call)

    @staticmethod
    def _count(tx: Transaction, account: Address) -> int:
        found = tx.one("SELECT count(*) FROM watched WHERE account = :account", account=account)
        return 0 if found is None else int(found[0])

    async def count(self, account: Address) -> int:
        """Of how many channels of an account a voucher is held."""
        return await self._run(lambda: self._database.read(lambda tx: self._count(tx, account)))

    async def page(self, account: Address, *, after: bytes, limit: int) -> list[WatchedRow]:
        """An account's vouchers from behind `after` on (payer and signer, 40 bytes; b"" for the first), ascending."""

        def work(tx: Transaction) -> list[WatchedRow]:
            rows = tx.all(
                f"{_ROW} WHERE account = :account AND (payer, signer) > (:payer, :signer)"
                " ORDER BY payer, signer LIMIT :limit",
                account=account,
                payer=after[:20],
                signer=after[20:],
                limit=limit,
            )
            return [_row(row) for row in rows]

        return await self._run(lambda: self._database.read(work))

    async def every(self) -> list[WatchedRow]:
        """All that is held, account by account."""

        def work(tx: Transaction) -> list[WatchedRow]:
            return [_row(row) for row in tx.all(f"{_ROW} ORDER BY account, payer, signer")]

        return await self._run(lambda: self._database.read(work))

    async def forget(self, account: Address, payer: Address, signer: Address, *, up_to_uusd: int) -> None:
        """Forget the voucher of a channel, unless it is for more than this."""

        def work(tx: Transaction) -> None:
            tx._connection.execute(
                f"DELETE FROM watched WHERE {_KEY} AND uusd <= :uusd",
                {"account": account, "payer": payer, "signer": signer, "uusd": up_to_uusd},
            )

        await self._write(work)

    async def aclose(self) -> None:
        """Close the file; waits for a call under way."""
        with trio.CancelScope(shield=True):
            await self._executor(self._database.close)


@asynccontextmanager
async def open_watch_store(directory: Path | None, *, executor: Executor | None = None) -> AsyncGenerator[WatchStore]:
    """Open, or make, the store of a profile, whose ledger's lock has to be held.

    Args:
        directory: the profile's; None for one in memory.
        executor: where SQLite runs; a worker thread where None.

    Raises:
        ConfigError, DiskFull, LedgerCorrupt, LedgerFailed: as `open_ledger`.
    """
    if directory is not None:
        private_directory(directory)
    chosen = executor if executor is not None else ThreadExecutor()
    path = None if directory is None else directory / "watched.sqlite3"
    store = WatchStore(await chosen(lambda: Database(path, migrations=(_V1,))), chosen)
    try:
        yield store
    finally:
        await store.aclose()
