"""The SQLite file: opened with the settings that durability rests on, each of them read back.

WAL with `synchronous=FULL` syncs the log at every commit (sqlite.org/pragma.html#pragma_synchronous: NORMAL may lose
committed transactions in a power cut). Library defaults differ between builds, so nothing is left to them.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import cbor2

from p2pcompute._private_files import open_private
from p2pcompute.errors import ConfigError, DiskFull, LedgerCorrupt, StorageError

from ._reducers import REDUCERS, ROWS
from ._schema import MIGRATIONS

__all__ = ["INT64_MAX", "AmountOutOfRange", "Database", "LedgerFailed", "Transaction"]

INT64_MAX: Final = 2**63 - 1
"""SQLite's largest integer: in pico-USD that is 9.2 million USD on one channel."""

_NEEDED_SQLITE: Final = (3, 37, 0)  # STRICT tables
_CONSTRAINT_DATATYPE: Final = sqlite3.SQLITE_CONSTRAINT | (12 << 8)  # not named by the sqlite3 module
_PRAGMAS: Final = (
    ("journal_mode", "wal", "wal"),
    ("synchronous", "full", 2),
    # The log is begun anew after so many pages of 4 KiB. Up to there it grows, and a sync of a file that grows takes
    # nearly twice as long as one of a file that is written over; SQLite's own 1,000 pages are some 300 vouchers.
    # More of them would make a crowd of short chunks faster until they are full, and then hold up one commit, and where
    # that is made in the event loop all of the node: 5 ms at 256 pages, 12 at 1,024 and 30 at 4,096.
    ("wal_autocheckpoint", "256", 256),
    ("foreign_keys", "on", 1),
    ("trusted_schema", "off", 0),
    ("cell_size_check", "on", 1),
)
_MOST_SEEN: Final = 1_024  # answers that `Database.look` keeps

Row = tuple[Any, ...]
T = TypeVar("T")


class AmountOutOfRange(StorageError):
    """An amount does not fit into the ledger's 64-bit integers; nothing was written."""


class LedgerFailed(StorageError):
    """The disk reported an I/O error, so what is on it is not known; the ledger takes nothing more until it is
    opened again."""


class _HalfWritten(Exception):
    """A work raised `outcome` after it had written something."""

    def __init__(self, outcome: Exception) -> None:
        self.outcome = outcome
        super().__init__(outcome)


class Transaction:
    """One transaction on the ledger. Reads see its own writes; `emit` is the only way to write."""

    __slots__ = ("_connection", "known", "now_ms")

    def __init__(self, connection: sqlite3.Connection, now_ms: int) -> None:
        self._connection = connection
        self.now_ms = now_ms
        self.known: dict[object, object] = {}

    def know(self, key: object, found: object) -> None:
        """What `Database.look` would find under this key, once this is committed; with the next `emit` of any work of
        the transaction that is forgotten."""
        self.known[key] = found

    def one(self, sql: str, /, **params: object) -> Row | None:
        """The first row, or None."""
        row: Row | None = self._connection.execute(sql, params).fetchone()
        return row

    def all(self, sql: str, /, **params: object) -> list[Row]:
        """Every row."""
        return self._connection.execute(sql, params).fetchall()

    def emit(self, kind: str, /, **params: bytes | str | int | None) -> None:
        """Append an event and apply it.

        Raises:
            AmountOutOfRange: an integer below zero or above `INT64_MAX`.
        """
        for name, value in params.items():
            _check_amount(name, value)
        self._log(kind, params)

    def emit_rows(
        self, kind: str, rows: Sequence[tuple[bytes | str | int | None, ...]], /, **params: bytes | str | int | None
    ) -> None:
        """As `emit`, for a kind that has many rows: what each holds, `ROWS` says."""
        names = ROWS[kind]
        for name, value in params.items():
            _check_amount(name, value)
        for row in rows:
            for value in row:
                if type(value) is int and not 0 <= value <= INT64_MAX:
                    _check_amount(names[row.index(value)], value)
        self._log(kind, {**params, "rows": rows})

    def _log(self, kind: str, params: dict[str, Any]) -> None:
        self.known.clear()
        body = cbor2.dumps(params)
        self._connection.execute("INSERT INTO events (at_ms, kind, body) VALUES (?, ?, ?)", (self.now_ms, kind, body))
        apply_event(self._connection, kind, params | {"now_ms": self.now_ms})


def _check_amount(name: str, value: object) -> None:
    if type(value) is int and not 0 <= value <= INT64_MAX:
        raise AmountOutOfRange(f"{name} of {value} does not fit into the ledger")


def _make_private(path: Path) -> None:
    """Make the file where it is missing, and give it and those beside it mode 0600."""
    # SQLite gives the files that it makes beside a database the database's mode; an older ledger's may be there.
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if os.path.lexists(beside):
            os.close(open_private(beside)[0])
    os.close(open_private(path)[0])


def apply_event(connection: sqlite3.Connection, kind: str, params: dict[str, Any]) -> None:
    """What an event does to the tables, now or when it is replayed."""
    statements = REDUCERS[kind]
    if kind in ROWS:
        params = dict(params)
        rows = params.pop("rows")
        statement, names = _by_place(kind)
        common = tuple(params[name] for name in names)
        connection.executemany(statement, [(*row, *common) for row in rows])
        statements = statements[1:]
    for statement in statements:
        connection.execute(statement, params)


@cache
def _by_place(kind: str) -> tuple[str, tuple[str, ...]]:
    """The statement for each row of a kind, with numbers in place of its parameters' names, so that none is looked up
    for each row: first what the row holds, then what all rows have in common, whose names are given too."""
    places = {name: number for number, name in enumerate(ROWS[kind], 1)}
    statement = re.sub(r":(\w+)", lambda found: f"?{places.setdefault(found[1], len(places) + 1)}", REDUCERS[kind][0])
    return statement, tuple(places)[len(ROWS[kind]) :]


class Database:
    """The open database file. Not thread-safe: the ledger's executor runs one call at a time.

    Raises:
        ConfigError: this Python's SQLite is too old, the file system can't do WAL, or the file can't be made private.
        DiskFull, LedgerCorrupt, LedgerFailed: see `p2pcompute.errors`.
    """

    def __init__(self, path: Path | None, *, migrations: Sequence[str] = MIGRATIONS) -> None:
        if sqlite3.sqlite_version_info < _NEEDED_SQLITE:
            raise ConfigError(
                f"SQLite {sqlite3.sqlite_version} is too old; p2pcompute needs 3.37 or newer: use a newer Python build"
            )
        self.path = path
        self._failed = ""
        self._looks: sqlite3.Connection | None = None
        self._writes = 0  # odd while a transaction is being written
        self._seen: tuple[int, dict[object, object]] = (0, {})  # what `look` gave, and after how many of `_writes`
        if path is not None:
            _make_private(path)
        # isolation_level None: transactions are begun and ended here, and nowhere behind our back.
        self.connection = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None, check_same_thread=False
        )
        try:
            self._guard(self._set_pragmas)
            self._guard(lambda: self._migrate(migrations))
            if path is not None:
                # At each start: a process that was killed while it made the file may not have come to it.
                _sync_directory(path.parent)
        except BaseException:
            self.connection.close()
            raise

    @property
    def failure(self) -> str:
        """Why it takes nothing more; "" while it does."""
        return self._failed

    def _set_pragmas(self) -> None:
        for name, value, expected in _PRAGMAS:
            if self.path is None and name == "journal_mode":
                continue  # memory has no log
            self.connection.execute(f"PRAGMA {name} = {value}")
            got = self.connection.execute(f"PRAGMA {name}").fetchone()[0]
            if got != expected:
                raise ConfigError(
                    f"SQLite did not take {name}={value} (it says {got!r}); put the profile on a local file system"
                )

    def _migrate(self, migrations: Sequence[str]) -> None:
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):
            raise ConfigError(
                f"the ledger {self.path} has version {version} and this p2pcompute knows up to {len(migrations)}; "
                "install the newer p2pcompute that wrote it"
            )
        for number in range(version, len(migrations)):
            # executescript commits what is open, so the script brings its own transaction.
            self.connection.executescript(
                f"BEGIN IMMEDIATE;\n{migrations[number]}\nPRAGMA user_version = {number + 1};\nCOMMIT;"
            )

    def write_all(self, works: Sequence[Callable[[Transaction], Any]], now_ms: int) -> list[Any]:
        """Run `works` in one transaction that is on disk when this returns.

        Each looks before it writes, so one that raises has nearly always written nothing. Where one has, all is undone
        and they are run once more, each in a savepoint: what a work does besides must bear being done twice.

        Returns:
            for each what it gave, or the exception that it raised; what that one wrote is undone.

        Raises:
            what befalls all of them: a full disk or one that fails, or anything that is no `Exception`. All is undone.
        """

        known: dict[object, object] = {}

        def run(one: Callable[[Callable[[Transaction], Any], Transaction], Any]) -> list[Any]:
            nonlocal known
            self.connection.execute("BEGIN IMMEDIATE")
            transaction = Transaction(self.connection, now_ms)
            outcomes = [one(work, transaction) for work in works]
            self.connection.execute("COMMIT")
            known = transaction.known
            return outcomes

        self._writes += 1
        try:
            try:
                return self._guard(lambda: run(self._one_whole))
            except _HalfWritten as exc:
                if len(works) == 1:
                    return [exc.outcome]
                return self._guard(lambda: run(self._one_in_savepoint))
        finally:
            self._writes += 1
            if known:
                self._seen = (self._writes, known)

    def _one(self, work: Callable[[Transaction], Any], transaction: Transaction) -> Any:
        try:
            return work(transaction)
        except sqlite3.Error as exc:
            if not self.connection.in_transaction or _befalls_all(exc):
                raise
            return self._translate(exc)
        except Exception as exc:  # noqa: BLE001  it is its caller's, who gets it
            return exc

    def _one_whole(self, work: Callable[[Transaction], Any], transaction: Transaction) -> Any:
        changes = self.connection.total_changes
        outcome = self._one(work, transaction)
        if isinstance(outcome, Exception) and self.connection.total_changes != changes:
            raise _HalfWritten(outcome)
        return outcome

    def _one_in_savepoint(self, work: Callable[[Transaction], Any], transaction: Transaction) -> Any:
        self.connection.execute("SAVEPOINT one")
        outcome = self._one(work, transaction)
        if isinstance(outcome, Exception):
            self.connection.execute("ROLLBACK TO one")
            transaction.known.clear()
        self.connection.execute("RELEASE one")
        return outcome

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work`, which reads one consistent state."""

        def run() -> T:
            self.connection.execute("BEGIN")
            result = work(Transaction(self.connection, 0))
            self.connection.execute("ROLLBACK")
            return result

        return self._guard(run)

    def look(self, work: Callable[[Transaction], T], key: object = None) -> T:
        """Run `work`, a query or few by key, on a connection of its own: it sees what is committed, and waits for no
        transaction that is being written meanwhile. Only for a file, and only in one thread.

        Args:
            work: gives something that nobody changes.
            key: names what `work` looks at, all of it. What it gave is given again until the next transaction.

        Raises:
            LedgerFailed, LedgerCorrupt, StorageError: as `read`.
        """
        if self._failed:
            raise LedgerFailed(self._failed)
        try:
            if self._looks is None:
                self._looks = sqlite3.connect(str(self.path), isolation_level=None, check_same_thread=False)
                self._looks.execute("PRAGMA query_only = on")
            began = self._writes
            if key is None or began % 2:  # of what is being written now, nobody can say on which side of it a look is
                return work(Transaction(self._looks, 0))
            at, seen = self._seen
            if at != began:
                seen = {}
                self._seen = (began, seen)
            if key in seen:
                return cast("T", seen[key])
            found = work(Transaction(self._looks, 0))
            if self._writes == began and len(seen) < _MOST_SEEN:
                seen[key] = found
            return found
        except sqlite3.Error as exc:
            raise self._translate(exc) from exc

    def _guard(self, work: Callable[[], T]) -> T:
        if self._failed:
            raise LedgerFailed(self._failed)
        try:
            try:
                return work()
            finally:
                # Some errors roll back by themselves, others leave that to us.
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
        except sqlite3.Error as exc:
            raise self._translate(exc) from exc

    def _translate(self, exc: sqlite3.Error) -> Exception:
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        name = getattr(exc, "sqlite_errorname", "")
        primary = code & 0xFF
        where = self.path or "in memory"
        if primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
            return DiskFull(
                f"no room to write the ledger {where}; what was acknowledged before is safe. Make room on that disk; "
                "the node goes on by itself"
            )
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return LedgerCorrupt(
                f"the ledger {where} is damaged ({exc}). Keep a copy of it with its -wal file, restore a backup, and "
                "let the node sync: peers give back the newest vouchers"
            )
        if code == _CONSTRAINT_DATATYPE:
            return AmountOutOfRange("a total does not fit into the ledger; open a new channel for more")
        if primary == sqlite3.SQLITE_CONSTRAINT:
            return LedgerCorrupt(f"the ledger {where} refused a change that breaks its rules ({exc})")
        if primary == sqlite3.SQLITE_IOERR:
            # After a failed fsync the kernel may have dropped the pages, so trying again would prove nothing.
            self._failed = f"the disk under the ledger {where} failed ({name or exc}); check it, then restart the node"
            return LedgerFailed(self._failed)
        return StorageError(f"the ledger {where}: {exc}")

    def close_looks(self) -> None:
        """Close the connection of `look`, in the thread that had it; a later `look` opens another."""
        if self._looks is not None:
            self._looks.close()
            self._looks = None

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._failed = self._failed or "the ledger is closed"
        self.close_looks()
        self.connection.close()


def _befalls_all(exc: sqlite3.Error) -> bool:
    primary = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
