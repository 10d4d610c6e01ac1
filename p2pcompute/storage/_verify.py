"""The rules that a ledger keeps at all times, as queries that must find nothing; and the replay of its log."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

import cbor2

from p2pcompute.errors import LedgerCorrupt

from ._database import Database, apply_event
from ._schema import DERIVED_TABLES

__all__ = ["LedgerReport", "check_full", "check_invariants", "replay"]

_CHEAP: Final = (
    (
        "a voucher was signed for more than the accepted work",
        "SELECT hex(channel) FROM channels_out WHERE voucher_uusd > (accepted_pusd + 999999) / 1000000",
    ),
    (
        "the payee acknowledged more than was signed",
        "SELECT hex(channel) FROM channels_out WHERE acked_uusd > voucher_uusd",
    ),
    (
        "the log of events has a gap",
        "SELECT max(seq) FROM events HAVING count(*) != coalesce(max(seq), 0)",
    ),
    (
        "an agreement went over its ceiling",
        "SELECT hex(task) FROM agreements WHERE role = 'requester' AND (total_pusd + 999999) / 1000000 > ceiling_uusd",
    ),
)
_FULL: Final = (
    (
        "an agreement's total is not the sum of its issued receipts",
        (
            "SELECT hex(a.task) FROM agreements a WHERE role = 'provider' AND total_pusd !="
            " (SELECT coalesce(sum(pusd), 0) FROM receipts_issued r WHERE r.task = a.task)"
        ),
    ),
    (
        "an agreement's total is not the sum of its accepted receipts",
        (
            "SELECT hex(a.task) FROM agreements a WHERE role = 'requester' AND total_pusd !="
            " (SELECT coalesce(sum(pusd), 0) FROM receipts_held r WHERE r.task = a.task)"
        ),
    ),
    (
        "a channel's tree of receipts is not made of its accepted receipts",
        (
            "SELECT hex(c.channel) FROM channels_out c WHERE leaves !="
            " (SELECT count(h.leaf) FROM receipts_held h JOIN agreements a ON a.task = h.task"
            " WHERE a.channel = c.channel) OR NOT told_leaves <= signed_leaves OR NOT signed_leaves <= leaves"
        ),
    ),
    (
        "a channel's count of results is not that of its receipts",
        (
            "SELECT hex(c.channel) FROM channels_in c WHERE issued !="
            " (SELECT count(*) FROM agreements a JOIN receipts_issued r ON r.task = a.task"
            " WHERE a.channel = c.channel AND r.code = 0) OR leaves > issued"
        ),
    ),
    (
        "what is owed on a channel is not the sum of its agreements",
        (
            "SELECT hex(c.channel) FROM channels_in c WHERE owed_pusd - base_pusd !="
            " (SELECT coalesce(sum(total_pusd), 0) FROM agreements a WHERE a.channel = c.channel AND role = 'provider')"
        ),
    ),
    (
        "what is accepted on a channel is not the sum of its agreements",
        (
            "SELECT hex(c.channel) FROM channels_out c WHERE accepted_pusd - base_pusd != (SELECT"
            " coalesce(sum(total_pusd), 0) FROM agreements a WHERE a.channel = c.channel AND role = 'requester')"
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """What was checked."""

    events: int
    agreements: int
    channels_in: int
    channels_out: int
    full: bool


def _corrupt(what: str) -> LedgerCorrupt:
    return LedgerCorrupt(
        f"{what}. Keep a copy of the ledger with its -wal file, restore a backup, and let the node sync: peers give "
        "back the newest vouchers"
    )


def _check(connection: sqlite3.Connection, rules: tuple[tuple[str, str], ...]) -> None:
    for what, sql in rules:
        row = connection.execute(sql).fetchone()
        if row is not None:
            raise _corrupt(f"{what} ({row[0]})")


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def check_invariants(connection: sqlite3.Connection, *, full: bool = False) -> LedgerReport:
    """The rules that take a moment, for each start."""
    _check(connection, _CHEAP)
    return LedgerReport(
        events=_count(connection, "events"),
        agreements=_count(connection, "agreements"),
        channels_in=_count(connection, "channels_in"),
        channels_out=_count(connection, "channels_out"),
        full=full,
    )


def check_full(connection: sqlite3.Connection) -> LedgerReport:
    """Every rule, every page, and the log against the tables."""
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise _corrupt(f"SQLite's integrity check: {found}")
    broken = connection.execute("PRAGMA foreign_key_check").fetchone()
    if broken is not None:
        raise _corrupt(f"a row of {broken[0]} refers to nothing")
    _check(connection, _FULL)
    rebuilt = replay(connection)
    try:
        for table in DERIVED_TABLES:
            if dump_table(connection, table) != dump_table(rebuilt.connection, table):
                raise _corrupt(f"the table {table} is not what the log of events gives")
    finally:
        rebuilt.close()
    return check_invariants(connection, full=True)


def dump_table(connection: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    """All rows, in an order that does not depend on how they came in."""
    return sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr)


def replay(connection: sqlite3.Connection) -> Database:
    """A database in memory, made from the events of `connection`."""
    rebuilt = Database(None)
    rebuilt.connection.execute("BEGIN")
    for at_ms, kind, body in connection.execute("SELECT at_ms, kind, body FROM events ORDER BY seq"):
        try:
            apply_event(rebuilt.connection, kind, cbor2.loads(body) | {"now_ms": at_ms})
        except (KeyError, ValueError, TypeError, sqlite3.Error, cbor2.CBORDecodeError) as exc:
            raise _corrupt(f"an event of kind {kind} can't be replayed ({exc})") from exc
    rebuilt.connection.execute("COMMIT")
    return rebuilt
