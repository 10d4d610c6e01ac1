"""Power is lost at a point of a history: what the ledgers of both nodes are then, and what they have to be."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import shutil
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio.testing

from p2pcompute.errors import ChannelClosing, P2PComputeError
from p2pcompute.payments import ModelChain
from p2pcompute.storage import CeilingReached, InlineExecutor, Ledger, ReceiptConflict, UnknownAgreement, open_ledger

from ..payments.conftest import NOW_MS, World
from ..payments.test_consents import asking
from ._disk import VARIANTS, Disk, Left, Note, Recorder, write_image
from ._histories import SIDES, History

__all__ = ["Lost", "Tally", "cut", "reopened", "rest_of_life"]


class Lost(AssertionError):
    """Something that had left a process was not on its disk, or the disk held what never was."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was looked at."""

    points: int = 0
    images: int = 0
    different: set[bytes] = field(default_factory=set)
    lives: int = 0


@dataclass(slots=True)
class _Promised:
    """What one side has let out so far."""

    made: int = 0
    events: int = 0
    voucher: tuple[int, bytes] = (0, b"")
    held: int = 0
    receipts: list[bytes] = field(default_factory=list)
    agreements: list[bytes] = field(default_factory=list)
    transactions: list[bytes] = field(default_factory=list)
    consent: tuple[int, int] | None = None  # epoch and deadline of the newest, while it may be used

    def seen(self, chain: ModelChain) -> None:
        """The chain is so now: a consent of an epoch that is over closes nothing more."""
        if self.consent is not None and self.consent[0] < max(chain.epochs.values(), default=0):
            self.consent = None

    def add(self, what: tuple[Any, ...]) -> None:
        self.made += 1
        match what:
            case ("events", count):
                self.events = count
            case ("voucher", amount, signature):
                self.voucher = max(self.voucher, (amount, signature))
            case ("held", amount):
                self.held = max(self.held, amount)
            case ("receipt", envelope):
                self.receipts.append(envelope)
            case ("agreement", task):
                self.agreements.append(task)
            case ("transaction", raw):
                self.transactions.append(raw)
            case ("consent", epoch, deadline_s):
                self.consent = (epoch, deadline_s)
            case ("consent over",):
                self.consent = None
            case _:
                raise AssertionError(what)


def cut(
    history: History,
    scratch: Path,
    *,
    variants: Iterable[str] = tuple(VARIANTS),
    per_point: int | None = None,
    every: int = 1,
    lives_every: int = 0,
    first: int = 0,
    failed: str = "nothing of it",
    tally: Tally | None = None,
) -> Tally:
    """Cut the power at the points of a history and hold what is left against what was promised.

    Args:
        history: as recorded.
        scratch: an empty directory.
        variants: what the disk does with what was not synced; see `VARIANTS`.
        per_point: so many of the variants at each point, in turn; all where None.
        every: only every so many-th point.
        first: the first point.
        failed: what a failed sync has brought to the disk; see `Disk`.
        lives_every: at every so many-th point looked at, both nodes go on from there to the end of their lives.
        tally: to add to.

    Raises:
        Lost: a promise was not kept.
    """
    tally = tally if tally is not None else Tally()
    names = list(variants)
    turn = itertools.cycle(names)

    async def main() -> None:
        disk = Disk(history.start, failed=failed)
        promised = {who: _Promised() for who in SIDES}
        chain: Any = None
        at = -1
        looked = dict.fromkeys(SIDES, 0)
        boundaries = history.boundaries or {who: _boundaries(history, who) for who in SIDES}
        for number, note in enumerate([None, *history.notes]):
            if isinstance(note, Left):
                if note.who == "chain":
                    chain = note.what[0]
                    promised["payee"].seen(chain)
                else:
                    promised[note.who].add(note.what)
                continue
            if note is not None:
                disk.play(note)
            at += 1
            if at % every or at < first:
                continue
            tally.points += 1
            side = None if note is None else _side(history, note)
            for variant in names if per_point is None else list(itertools.islice(turn, per_point)):
                images = {
                    who: disk.image(str(history.directory / who), variant, f"{history.name}/{number}/{who}")
                    for who in SIDES
                }
                for who in SIDES:
                    if side is not None and who != side and promised[who].made == looked[who]:
                        continue  # this disk is as it was at the point before, and so is what it has to hold
                    looked[who] = promised[who].made
                    tally.images += 1
                    mark = _digest(images[who])
                    if seen.get(mark) == promised[who].made:
                        continue  # the very same disk with the same promises
                    tally.different.add(mark)
                    seen[mark] = promised[who].made
                    where = f"{history.name}: {who} at point {at} ({note and note.kind}), {variant}"
                    async with _recovered(scratch, {who: images[who]}, where) as found:
                        _check(found[who], promised[who], boundaries[who], history.events[who], where)
                        if promised[who].events:
                            await _verify(found[who], where)
                if lives_every and (at // every) % lives_every == 0 and all(promised[who].events for who in SIDES):
                    tally.lives += 1
                    where = f"{history.name}: both at point {at}, {variant}"
                    async with _recovered(scratch, images, where) as found:
                        await rest_of_life(history, found, copy.deepcopy(chain), promised, where)

    seen: dict[bytes, int] = {}
    fsync, os.fsync = os.fsync, lambda _: None  # what is looked at here is thrown away: a sync would only cost time
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        os.fsync = fsync
    return tally


def reopened(history: History, at: int, variant: str, scratch: Path) -> History:
    """Cut the power at a point, and record the next start: it mends both ledgers, and stops at once.

    Args:
        history: as recorded.
        at: a point, as of `History.points`.
        variant: see `VARIANTS`.
        scratch: the ledgers of the next start go there.
    """
    disk, recorder = Disk(), Recorder()
    recorder.notes.extend(note for note in history.notes[:at] if isinstance(note, Left))
    for note in history.notes[:at]:
        if isinstance(note, Note):
            disk.play(note)
    directory = scratch / f"again {at}"
    directory.mkdir()
    start = {}
    for who in SIDES:
        image = disk.image(str(history.directory / who), variant, f"{history.name}/{at}/{who}")
        write_image(image, directory / who)
        for name, data in image.items():
            start[str(directory / who / name)] = data
            recorder.known(directory / who / name)

    async def main() -> None:
        for who in SIDES:
            async with open_ledger(directory / who, executor=InlineExecutor(), clock_ms=lambda: NOW_MS):
                pass

    with recorder.installed():
        trio.run(main)
    return History(
        name=f"{history.name} again {at}",
        directory=directory,
        notes=recorder.notes,
        events=history.events,
        receipts=history.receipts,
        start=start,
        boundaries={who: _boundaries(history, who) for who in SIDES},
    )


def _side(history: History, note: Note) -> str | None:
    for who in SIDES:
        if note.path.startswith(str(history.directory / who)):
            return who
    return None


def _digest(image: dict[str, bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(image):
        digest.update(f"{name}:{len(image[name])}:".encode())
        digest.update(image[name])
    return digest.digest()


def _boundaries(history: History, who: str) -> list[int]:
    """How many events there were after each transaction."""
    counts = [
        note.what[1]
        for note in history.notes
        if isinstance(note, Left) and note.who == who and note.what[0] == "events"
    ]
    return sorted({0, *counts})


@asynccontextmanager
async def _recovered(
    scratch: Path, images: dict[str, dict[str, bytes]], where: str
) -> AsyncGenerator[dict[str, Ledger]]:
    """The ledgers that the next start finds, opened as a node opens them; removed in the end."""
    async with AsyncExitStack() as stack:
        ledgers = {}
        for who, image in images.items():
            write_image(image, scratch / who)
            stack.callback(shutil.rmtree, scratch / who)
            opening = open_ledger(scratch / who, executor=InlineExecutor(), clock_ms=lambda: NOW_MS)
            try:
                ledgers[who] = await stack.enter_async_context(opening)
            except P2PComputeError as exc:
                raise Lost(f"{where}: the ledger does not open: {exc}") from exc
            ledgers[who]._database.connection.execute("PRAGMA synchronous = OFF")
        yield ledgers


async def _verify(ledger: Ledger, where: str) -> None:
    try:
        await ledger.verify(full=True)
    except P2PComputeError as exc:
        raise Lost(f"{where}: {exc}") from exc


def _check(
    ledger: Ledger,
    promised: _Promised,
    boundaries: list[int],
    events: list[tuple[int, str, bytes]],
    where: str,
) -> None:
    connection = ledger._database.connection
    _check_promises(connection, promised, where)
    found = list(connection.execute("SELECT at_ms, kind, body FROM events ORDER BY seq"))
    if len(found) < promised.events:
        raise Lost(f"{where}: {promised.events} events were committed and {len(found)} are there")
    allowed = [count for count in boundaries if count >= promised.events][:2]  # and the one that was under way
    if len(found) not in allowed:
        raise Lost(f"{where}: {len(found)} events are there, in the middle of a transaction (of {allowed})")
    if found != events[: len(found)]:
        raise Lost(f"{where}: the log holds events that never were")


def _check_promises(connection: Any, promised: _Promised, where: str) -> None:
    def all_of(sql: str) -> set[Any]:
        return {row[0] for row in connection.execute(sql)}

    amount, signature = promised.voucher
    if amount:
        row = connection.execute("SELECT voucher_uusd, signature FROM channels_out").fetchone()
        if row is None or row[0] < amount or (row[0] == amount and row[1] != signature):
            raise Lost(f"{where}: a voucher of {amount} was sent and the ledger knows of {row and row[0]}")
    if promised.held:
        row = connection.execute("SELECT best_uusd FROM channels_in").fetchone()
        if row is None or row[0] < promised.held:
            raise Lost(f"{where}: a voucher of {promised.held} was acknowledged and {row and row[0]} is held")
    if lost := set(promised.receipts) - all_of("SELECT envelope FROM receipts_issued"):
        raise Lost(f"{where}: {len(lost)} receipts that were sent are not there")
    if lost := set(promised.agreements) - all_of("SELECT task FROM agreements"):
        raise Lost(f"{where}: {len(lost)} agreements are not there")
    if lost := set(promised.transactions) - all_of("SELECT raw FROM outbox"):
        raise Lost(f"{where}: {len(lost)} transactions that were broadcast are not there")
    if promised.consent is not None:
        row = connection.execute("SELECT epoch, deadline_s FROM consents").fetchone()
        if row is None or row < promised.consent:
            raise Lost(f"{where}: the consent {promised.consent} was given and the ledger knows of {row}")


async def rest_of_life(
    history: History, ledgers: dict[str, Ledger], chain: Any, promised: dict[str, _Promised], where: str
) -> None:
    """Both nodes go on from what their disks hold: all work is paid once, and nothing is signed twice."""
    world = World()
    world.chain = chain
    async with trio.open_nursery() as nursery:
        world.compose(ledgers["payer"], ledgers["payee"], nursery)
        money = chain.total_uusd()
        chain.mines = True
        chain.mine()  # what had been broadcast
        for task in await world.payee_ledger.open_agreements():
            for row in await world.payee_ledger.receipts(task.task):
                receipt = history.receipts.get(row.envelope)
                if receipt is None:
                    continue  # signed and stored, and the power went before it left: it may go out now
                try:
                    await world.channel_out().accept(task.task, [(receipt, row.envelope)], sampled=1)
                except (CeilingReached, UnknownAgreement):
                    continue
                other = world.receipt(task.task, receipt.index, output=b"y" * 32)
                try:
                    await world.payee_ledger.record_receipt(other, sign=world.sign_receipt)
                except ReceiptConflict:
                    pass
                else:
                    raise Lost(f"{where}: two results are signed for chunk {receipt.index}")
        await _use_consent(world, promised["payee"].consent, where)
        await world.payer.open_channels(world.need(1))
        paid = await world.channel_out().pay()
        out = await world.payer_ledger.channel_out(world.channel)
        into = await world.payee_ledger.channel_in(world.channel)
        if out is None or paid != out.accepted_uusd:
            raise Lost(f"{where}: {out and out.accepted_uusd} are accepted and {paid} are paid")
        if paid < promised["payer"].voucher[0] or paid < promised["payee"].held:
            raise Lost(f"{where}: {paid} are paid after {promised['payer'].voucher[0]} were")
        if into is not None and into.paid_uusd != paid:
            raise Lost(f"{where}: {paid} are paid and {into.paid_uusd} are held")
        if into is not None and into.rooted_leaves != out.signed_leaves:
            raise Lost(f"{where}: the payee has {into.rooted_leaves} of {out.signed_leaves} receipts under its root")
        await world.settler.checkpoint()
        if chain.free.get(world.account.address, 0) != paid:
            raise Lost(f"{where}: {paid} are paid and {chain.free.get(world.account.address, 0)} are claimed")
        if chain.total_uusd() != money:
            raise Lost(f"{where}: money came from nowhere")
        for ledger in ledgers.values():
            await _verify(ledger, where)
        await world.payer.aclose()
        nursery.cancel_scope.cancel()


async def _use_consent(world: World, promised: tuple[int, int] | None, where: str) -> None:
    """A payer that has a consent closes by it, as it may; the payee has taken nothing on the channel meanwhile."""
    world.chain.clock_ms = lambda: world.now_ms
    try:
        await world.payee.check_open(world.channel)
    except ChannelClosing:
        closed = await asking(world).close(world.channel.hex())
        if closed.state != "closed":
            raise Lost(f"{where}: the consent that is out closes nothing") from None
        await trio.sleep(1)  # the payee asks the chain about a channel twice a second
        await world.payee.check_open(world.channel)
        return
    if promised is not None:
        raise Lost(f"{where}: a consent can be used and the payee would go on")
