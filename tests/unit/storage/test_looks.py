"""What was looked up is remembered until the next transaction, and never a moment longer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.errors import StorageError
from p2pcompute.storage._database import Database, Transaction
from p2pcompute_protocols.ids import PeerId

PEER = PeerId("somebody")


class Looks:
    """How often a peer has failed, and how often the file was asked for it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0

    def __call__(self, peer: str = PEER) -> int | None:
        def work(tx: Transaction) -> int | None:
            self.asked += 1
            row = tx.one("SELECT failures FROM peers WHERE peer = :peer", peer=peer)
            return None if row is None else int(row[0])

        return self._database.look(work, ("failures", peer))


def fail(tx: Transaction) -> None:
    tx.emit("peer_failed", peer=PEER)


@pytest.fixture
def database(tmp_path: Path) -> Any:
    opened = Database(tmp_path / "ledger.sqlite3")
    yield opened
    opened.close()


def test_a_second_look_costs_nothing_until_something_is_written(database: Database) -> None:
    looks = Looks(database)
    assert [looks(), looks()] == [None, None]
    assert looks.asked == 1
    for number in range(1, 4):
        database.write_all([fail], 0)
        assert [looks(), looks(), looks()] == [number] * 3
        assert looks.asked == 1 + number


def test_what_is_seen_while_another_writes_is_not_remembered(database: Database) -> None:
    """A look in the middle of a transaction sees what was before it; kept, it would outlive the commit."""
    looks = Looks(database)
    seen: list[int | None] = []

    def work(tx: Transaction) -> None:
        fail(tx)
        seen.append(looks())

    for number in range(3):
        before = looks()
        database.write_all([work], 0)
        assert (seen.pop(), looks()) == (before, number + 1)


def test_a_transaction_that_is_undone_changes_no_look(database: Database) -> None:
    looks = Looks(database)

    def work(tx: Transaction) -> None:
        fail(tx)
        raise StorageError("no")

    database.write_all([fail], 0)
    assert isinstance(database.write_all([work], 0)[0], StorageError)
    assert looks() == 1
    database.write_all([fail, work, fail], 0)
    assert looks() == 3


def test_a_ledger_that_is_closed_answers_nothing_from_memory(database: Database) -> None:
    looks = Looks(database)
    looks()
    database.close()
    with pytest.raises(StorageError, match="closed"):
        looks()


def test_how_much_is_remembered_is_bounded(database: Database) -> None:
    looks = Looks(database)
    for number in range(5_000):
        looks(f"peer {number}")
    assert len(database._seen[1]) == 1_024


def test_any_order_of_writes_and_looks_gives_what_was_written(database: Database) -> None:
    looks, rng, failures = Looks(database), random.Random(1), 0
    for _ in range(300):
        if rng.random() < 0.3:
            database.write_all([fail], 0)
            failures += 1
        assert looks() == (failures or None)


def knows(tx: Transaction) -> None:
    """Fails, and says what a look will find."""
    fail(tx)
    row = tx.one("SELECT failures FROM peers WHERE peer = :peer", peer=PEER)
    assert row is not None
    tx.know(("failures", PEER), row[0])


def test_what_a_transaction_knows_is_not_looked_up(database: Database) -> None:
    looks = Looks(database)
    database.write_all([fail, knows], 0)
    assert (looks(), looks(), looks.asked) == (2, 2, 0)
    assert (looks("somebody else"), looks.asked) == (None, 1)
    database.write_all([fail], 0)
    assert (looks(), looks.asked) == (3, 2)


def test_what_one_of_a_group_knows_is_forgotten_where_another_writes_behind_it(database: Database) -> None:
    looks = Looks(database)
    database.write_all([knows, fail], 0)
    assert (looks(), looks.asked) == (2, 1)


def test_what_a_transaction_knows_that_is_undone_is_not_known(database: Database) -> None:
    looks = Looks(database)

    def undone(tx: Transaction) -> None:
        knows(tx)
        raise StorageError("no")

    database.write_all([fail, undone], 0)
    assert (looks(), looks.asked) == (1, 1)
    database.write_all([knows], 0)
    assert (looks(), looks.asked) == (2, 1)
    with pytest.raises(KeyboardInterrupt):
        database.write_all([knows, _interrupted], 0)
    assert (looks(), looks.asked) == (2, 2)


def _interrupted(_: Transaction) -> None:
    raise KeyboardInterrupt
