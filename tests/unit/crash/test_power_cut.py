"""Power goes at every point where a ledger writes, on a disk that drops, reorders and tears what was not synced.

`docs/guarantees.md` says what these hold. `make crash-nightly` looks at more lives, and at each point in every way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.storage import _database
from p2pcompute.storage._ledger import LEDGER_FILE

from ._disk import VARIANTS, Left, Note, Recorder
from ._histories import SIDES, History, live
from ._power import Lost, Tally, cut, reopened

NIGHTLY = os.environ.get("P2PCOMPUTE_NIGHTLY") == "1"
STEPS = int(os.environ.get("P2PCOMPUTE_CRASH_STEPS", "100")) if NIGHTLY else 20
pytestmark = pytest.mark.timeout(7_200 if NIGHTLY else 900)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


@pytest.mark.parametrize("seed", [f"life-{number}" for number in range(6 if NIGHTLY else 1)] + ["checkpoints"])
def test_no_promise_is_lost_wherever_power_goes(tmp_path: Path, scratch: Path, seed: str) -> None:
    """Each life has 1,000 points and more, and 700 disks of which no two are the same."""
    if seed == "checkpoints":
        # A log that is checkpointed again and again, and begun anew; the default is every 1,000 pages.
        history = live(tmp_path / seed, seed=seed, steps=STEPS, lives=3, checkpoint_pages=30)
        assert sum(isinstance(note, Note) and note.path.endswith("sqlite3") for note in history.notes) > 50
    else:
        history = live(tmp_path / seed, seed=seed, steps=STEPS)
    tally = cut(history, scratch, per_point=None if NIGHTLY else 1, lives_every=1 if NIGHTLY else 25)
    assert tally.points == len(history.points()) >= 1_000
    assert len(tally.different) >= 700
    assert tally.lives >= 30


def test_no_consent_is_lost_wherever_power_goes(tmp_path: Path, scratch: Path) -> None:
    """Consents that close the channel, that are not used, and that run out; after each the two go on."""
    history = live(tmp_path / "life", seed="consents 1", steps=max(2, STEPS // 16) if NIGHTLY else 2, closing=True)
    ends = [note for note in history.notes if isinstance(note, Left) and note.what[0] in ("consent", "consent over")]
    assert len(ends) >= 5
    assert any(note.what[0] == "consent over" for note in ends)
    assert {note.what[1] for note in ends if note.what[0] == "consent"} >= {0, 1, 2}
    tally = cut(history, scratch, per_point=None if NIGHTLY else 1, lives_every=1 if NIGHTLY else 25)
    assert tally.points == len(history.points()) >= 700
    assert tally.lives >= 25


def test_no_higher_fee_is_lost_wherever_power_goes(tmp_path: Path, scratch: Path) -> None:
    """Whichever of the two the chain takes, the one that went on waiting or the one that outbids it."""
    history = live(tmp_path / "life", seed="fees", steps=STEPS if NIGHTLY else 3, lives=1, outbidding=True)
    sent = {note.what[1] for note in history.notes if isinstance(note, Left) and note.what[0] == "transaction"}
    assert len(sent) >= 6
    tally = cut(history, scratch, per_point=None if NIGHTLY else 1, lives_every=1 if NIGHTLY else 10)
    assert tally.points == len(history.points()) >= 100
    assert tally.lives >= 10


def test_power_goes_again_while_the_next_start_mends_the_ledger(tmp_path: Path, scratch: Path) -> None:
    history = live(tmp_path / "life", seed="twice", steps=8, lives=1)
    tally = Tally()
    points = history.points()
    for at in points[:: 1 if NIGHTLY else len(points) // 6]:
        again = reopened(history, at, "half of it, whole writes", scratch)
        assert again.points()
        cut(again, scratch, per_point=None if NIGHTLY else 2, first=1, tally=tally)
    assert tally.points >= 100


@pytest.mark.parametrize("on_disk", ["nothing of it", "all but the last", "half of it, whole writes"])
def test_a_failed_fsync_loses_nothing_that_left(tmp_path: Path, scratch: Path, on_disk: str) -> None:
    """The ledger takes nothing more, nothing leaves, and the next start finds all that had left before."""
    whole = live(tmp_path / "whole", seed="fsync", steps=12, checkpoint_pages=30)
    counter = Recorder()
    live(tmp_path / "count", seed="fsync", steps=12, checkpoint_pages=30, recorder=counter)
    stopped = 0
    step = 1 if NIGHTLY else 5
    for number in range(0, counter.syncs, step):
        recorder = Recorder()
        recorder.fail_syncs = lambda at, number=number: at == number  # type: ignore[misc]
        history = live(tmp_path / f"fails {number}", seed="fsync", steps=12, checkpoint_pages=30, recorder=recorder)
        failed = next(at for at, note in enumerate(history.notes) if isinstance(note, Note) and note.kind == "failed")
        side = next(who for who in SIDES if history.notes[failed].path.startswith(str(history.directory / who)))  # type: ignore[union-attr]
        if history.failed:
            stopped += 1
            assert "restart the node" in history.failed
            after = [note for note in history.notes[failed:] if isinstance(note, Left) and note.who == side]
            assert after == [], f"{side} let something out after its disk had failed"
        # Else it was a checkpoint's: what it had brought into the database is in the log still.
        history.events = whole.events
        cut(history, scratch, per_point=2, first=len(history.points()) - 2, failed=on_disk)
    assert stopped >= 5


def lost(history: History, scratch: Path, **options: Any) -> str:
    """What is found to be lost."""
    with pytest.raises(Lost) as found:
        cut(history, scratch, **options)
    return str(found.value)


@pytest.mark.parametrize("setting", [("off", 0), ("normal", 1)])
def test_without_a_sync_at_each_commit_promises_are_lost(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, setting: tuple[str, int]
) -> None:
    """The attack without the defence: what these tests are worth."""
    pragmas = tuple(("synchronous", *setting) if row[0] == "synchronous" else row for row in _database._PRAGMAS)
    monkeypatch.setattr(_database, "_PRAGMAS", pragmas)
    history = live(tmp_path / "life", seed="unsynced", steps=10)
    assert lost(history, scratch, variants=["nothing of it"])


def commits(history: History) -> list[int]:
    """The places of the syncs that a commit rests on."""
    found: list[int] = []
    for who in SIDES:
        synced = events = 0
        mine: list[int] = []
        for at, note in enumerate(history.notes):
            if isinstance(note, Note):
                if note.kind == "sync" and note.path == f"{history.directory / who / LEDGER_FILE}-wal":
                    synced = at
            elif note.who == who and note.what[0] == "events" and note.what[1] > events:
                mine.append(synced)
                events = note.what[1]
        found += mine[:-1]  # after the last one nothing is written before the ledger's end syncs anew
    return sorted(found)


def test_each_single_sync_counts(tmp_path: Path, scratch: Path) -> None:
    """A disk that leaves out one sync of a commit, or does it before the last write, is found out."""
    history = live(tmp_path / "life", seed="one sync", steps=10, lives=1)
    places = commits(history)
    assert len(places) >= 10
    for at in places if NIGHTLY else places[::3]:
        assert all(lost_without(history, at, scratch))


def lost_without(history: History, at: int, scratch: Path) -> list[str]:
    """What is found to be lost on a disk that leaves the sync at `at` out, and on one that does it too early."""
    found = []
    for without in ("sync", "order"):
        notes = list(history.notes)
        if without == "sync":
            del notes[at]
        else:
            notes[at - 1], notes[at] = notes[at], notes[at - 1]
            assert isinstance(notes[at], Note)
        changed = History(name=f"{without} {at}", directory=history.directory, notes=notes, events=history.events)
        first = sum(isinstance(note, Note) for note in notes[:at])
        found.append(lost(changed, scratch, variants=["nothing of it"], first=first))
    return found


def test_the_sync_before_a_consent_counts(tmp_path: Path, scratch: Path) -> None:
    history = live(tmp_path / "life", seed="a consent's sync", steps=4, lives=1, closing=True)
    log = f"{history.directory / 'payee' / LEDGER_FILE}-wal"
    given: dict[tuple[Any, ...], int] = {}  # by what was signed, the sync it rests on; the same one may leave again
    synced = 0
    for at, note in enumerate(history.notes):
        if isinstance(note, Note):
            synced = at if note.kind == "sync" and note.path == log else synced
        elif note.what[0] == "consent":
            given.setdefault(note.what, synced)
    assert len(given) >= 3
    for at in given.values():
        assert all("the consent" in what for what in lost_without(history, at, scratch))


def postponed(ledger: Any, method: str) -> None:
    """What `method` writes is committed when the ledger is written the next time, and not before it returns."""
    database = ledger._database
    write, read, original = database.write_all, database.read, getattr(ledger, method)

    def finish() -> None:
        if database.connection.in_transaction:
            database.connection.execute("COMMIT")

    def write_later(works: Any, now_ms: int) -> Any:
        finish()
        return write(works, now_ms)

    def read_later(work: Callable[[Any], Any]) -> Any:
        if database.connection.in_transaction:  # it sees what is not committed
            return work(_database.Transaction(database.connection, 0))
        return read(work)

    async def begin_only(*args: Any, **kwargs: Any) -> Any:
        def write_begun(works: Any, now_ms: int) -> Any:
            finish()
            database.connection.execute("BEGIN IMMEDIATE")
            try:
                return [work(_database.Transaction(database.connection, now_ms)) for work in works]
            except BaseException:
                database.connection.execute("ROLLBACK")
                raise

        watched, database.write_all = database.write_all, write_begun
        try:
            return await original(*args, **kwargs)
        finally:
            database.write_all = watched

    database.write_all, database.read = write_later, read_later
    setattr(ledger, method, begin_only)


@pytest.mark.parametrize(
    ("side", "method", "what"),
    [
        ("payer", "add_agreement", "agreements are not there"),
        ("payer", "raise_voucher", "was sent and the ledger knows of"),
        ("payer", "queue_tx", "transactions that were broadcast are not there"),
        ("payer", "replace_tx", "transactions that were broadcast are not there"),
        ("payee", "record_receipt", "receipts that were sent are not there"),
        ("payee", "record_receipts", "receipts that were sent are not there"),
        ("payee", "take_voucher", "was acknowledged and"),
        ("payee", "queue_tx", "transactions that were broadcast are not there"),
        ("payee", "give_consent", "the consent"),
    ],
)
def test_what_leaves_before_it_is_written_is_found_out(
    tmp_path: Path, scratch: Path, side: str, method: str, what: str
) -> None:
    """One write put after what it must come before: the promise that went ahead of it is missed."""

    def reorder(world: Any) -> None:
        postponed(getattr(world, f"{side}_ledger"), method)

    closing, outbidding = method == "give_consent", method == "replace_tx"
    history = live(
        tmp_path / "life",
        seed="reordered",
        steps=3 if closing or outbidding else 60,
        lives=1,
        after_open=reorder,
        closing=closing,
        outbidding=outbidding,
    )
    assert what in lost(history, scratch, variants=["nothing of it"])


def test_the_disk_has_many_minds(tmp_path: Path) -> None:
    """What is not synced is there in part, in any order and torn; what is synced is always there."""
    from ._disk import Disk

    disk = Disk()
    for note in (
        Note(kind="create", path="/d/f"),
        Note(kind="write", path="/d/f", data=b"a" * 2048),
        Note(kind="sync", path="/d/f"),
        Note(kind="directory", path="/d"),
        Note(kind="write", path="/d/f", offset=0, data=b"b" * 2048),
        Note(kind="write", path="/d/f", offset=2048, data=b"c" * 2048),
    ):
        disk.play(note)
    images = {name: disk.image("/d", name, "seed")["f"] for name in VARIANTS}
    assert images["nothing of it"] == b"a" * 2048
    assert images["all of it"] == b"b" * 2048 + b"c" * 2048
    assert images["all but the first"] == b"a" * 2048 + b"c" * 2048
    assert images["all but the last"] == b"b" * 2048
    assert len(set(images.values())) >= 6
    assert any({*data[:2048]} == {*b"ab"} for data in images.values())
