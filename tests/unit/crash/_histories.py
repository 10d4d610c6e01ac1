"""Lives of a payer and a payee, recorded down to each write of their ledgers and each thing that left them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
import trio.testing

from p2pcompute.errors import ChannelClosing, InsufficientFunds
from p2pcompute.payments import Approve, ModelChain, SettlementPending
from p2pcompute.payments._consents import CONSENT_S, OVER_S
from p2pcompute.storage import CeilingReached, Ledger, LedgerFailed, ReceiptConflict
from p2pcompute.storage._database import Database
from p2pcompute_protocols.channel import MESSAGES, ChannelSync, ConsentFrame, VoucherAck, VoucherFrame
from p2pcompute_protocols.framing import FrameBuffer
from p2pcompute_protocols.ids import PeerId, TaskId
from p2pcompute_protocols.task import ReceiptPayload
from p2pcompute_protocols.wire import decode_message

from ..payments.conftest import RaisingHub, World
from ..payments.test_consents import asking
from ._disk import Left, Note, Recorder

__all__ = ["SIDES", "History", "live", "watch"]

SIDES = ("payer", "payee")


@dataclass(slots=True, kw_only=True)
class History:
    """What was recorded.

    Attributes:
        directory: holds the ledgers of both, by the names in `SIDES`.
        notes: writes and what left, in order.
        events: each side's whole log in the end.
        receipts: what every envelope says.
        failed: the error that ended it early, where the disk failed.
        start: files that were there before.
        boundaries: how many events each side's log may hold, where the notes don't say so.
    """

    name: str
    directory: Path
    notes: list[Note | Left]
    events: dict[str, list[tuple[int, str, bytes]]] = field(default_factory=dict)
    receipts: dict[bytes, ReceiptPayload] = field(default_factory=dict)
    failed: str = ""
    start: dict[str, bytes] = field(default_factory=dict)
    boundaries: dict[str, list[int]] = field(default_factory=dict)

    def points(self) -> list[int]:
        """Where power can go: before the first write, and after each."""
        return [0] + [at + 1 for at, note in enumerate(self.notes) if isinstance(note, Note)]


class _WatchedHub(RaisingHub):
    """Notes what is broadcast, and what the chain is then."""

    def __init__(self, chain: ModelChain, account: Any, who: str, recorder: Recorder) -> None:
        super().__init__(chain, account)
        self._who, self._recorder = who, recorder

    async def send(self, raw: bytes) -> None:
        self._recorder.left(self._who, "transaction", raw)
        await super().send(raw)
        self._recorder.left("chain", copy.deepcopy(self._chain))


def watch(world: Any, recorder: Recorder) -> None:
    """Note what leaves the nodes of an open world."""
    for who, ledger in (("payer", world.payer_ledger), ("payee", world.payee_ledger)):
        _watch_commits(who, ledger, recorder)
    for who, outbox in (("payer", world.payer_outbox), ("payee", world.payee_outbox)):
        outbox._hub = _WatchedHub(world.chain, outbox._hub.account, who, recorder)
    dial = world.dial

    async def watched(peer: PeerId) -> Any:
        client = await dial(peer)
        client.on_send = _heard(recorder, "payer")
        world.streams[-1][1].on_send = _heard(recorder, "payee")
        return client

    world.payer.dial = watched


def _watch_commits(who: str, ledger: Ledger, recorder: Recorder) -> None:
    # What a method of the ledger returned may be acted on by whoever called it.
    database: Database = ledger._database
    write = database.write_all

    def committed(works: Any, now_ms: int) -> Any:
        result = write(works, now_ms)
        recorder.left(who, "events", database.connection.execute("SELECT count(*) FROM events").fetchone()[0])
        return result

    database.write_all = committed  # type: ignore[method-assign]


def _heard(recorder: Recorder, who: str) -> Callable[[bytes], None]:
    buffer = FrameBuffer(max_bytes=65_536)

    def note(data: bytes) -> None:
        buffer.feed(data)
        while (payload := buffer.pop()) is not None:
            match decode_message(payload, MESSAGES, max_bytes=65_536):
                case VoucherFrame() as frame:
                    recorder.left(who, "voucher", frame.amount_uusd, frame.signature)
                case VoucherAck() as ack:
                    recorder.left(who, "held", ack.amount_uusd)
                case ChannelSync() as sync:
                    recorder.left(who, "held", sync.amount_uusd)
                case ConsentFrame() as consent:
                    recorder.left(who, "consent", consent.epoch, consent.deadline_s)
                case _:
                    pass

    return note


class _Life:
    """Acts of both nodes, chosen by a seed."""

    def __init__(self, world: Any, recorder: Recorder, history: History, chance: random.Random) -> None:
        self.world, self.recorder, self.history, self.chance = world, recorder, history, chance
        self.tasks: list[TaskId] = []
        self.chunks = 0

    async def act(self) -> None:
        if not self.tasks:
            await self.agree()
            return
        acts: list[tuple[int, Callable[[], Any]]] = [
            (3, self.agree),
            (14, self.work),
            (10, self.pay),
            (3, self.fund),
            (2, self.checkpoint),
            (2, self.reject),
            (3, self.credit),
            (4, self.at_once),
            (1, self.peers),
            (1, self.close_task),
        ]
        (act,) = self.chance.choices([act for _, act in acts], [weight for weight, _ in acts])
        await act()

    async def agree(self) -> None:
        price = self.chance.choice([300_000, 1_000_000, 1_700_000])
        task = await self.world.agree(price_pusd=price, ceiling_uusd=self.chance.randrange(20, 200))
        self.recorder.left("payer", "agreement", task)
        self.tasks.append(task)

    async def work(self) -> None:
        world, task = self.world, self.chance.choice(self.tasks)
        payloads = []
        for _ in range(self.chance.randrange(1, 4)):
            self.chunks += 1
            payloads.append(world.receipt(task, self.chunks, units=self.chance.randrange(1, 12)))
        if len(payloads) > 1:  # under one signature
            batch = await world.payee_ledger.record_receipts(payloads, sign=world.sign_batch)
            envelopes = batch.receipts
        else:
            envelopes = (await world.payee_ledger.record_receipt(payloads[0], sign=world.sign_receipt),)
        receipts = list(zip(payloads, envelopes, strict=True))
        for payload, envelope in receipts:
            self.history.receipts[envelope] = payload
            self.recorder.left("payee", "receipt", envelope)
        with suppress(CeilingReached):
            await world.channel_out().accept(task, receipts, sampled=1)
        with suppress(ReceiptConflict):  # the same chunk computed again, with other bits
            await world.payee_ledger.record_receipt(
                world.receipt(task, self.chunks, output=b"x" * 32), sign=world.sign_receipt
            )

    async def at_once(self) -> None:
        """Many chunks of several tasks end together, so that they share a sync."""
        world = self.world

        async def chunk(task: TaskId, number: int) -> None:
            payload = world.receipt(task, number)
            envelope = await world.payee_ledger.record_receipt(payload, sign=world.sign_receipt)
            self.history.receipts[envelope] = payload
            self.recorder.left("payee", "receipt", envelope)
            with suppress(CeilingReached):
                await world.channel_out().accept(task, [(payload, envelope)], sampled=1)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                self.chunks += 1
                nursery.start_soon(chunk, self.chance.choice(self.tasks), self.chunks)

    async def reject(self) -> None:
        world, task = self.world, self.chance.choice(self.tasks)
        self.chunks += 1
        payload = world.receipt(task, self.chunks, output=b"w" * 32)
        await world.payer_ledger.reject_work(payload, world.sign_receipt(payload), reason="another result")

    async def fund(self) -> None:
        with suppress(InsufficientFunds):
            await self.world.payer.open_channels(self.world.need(self.chance.randrange(1, 100)))

    async def pay(self) -> None:
        self.chance.randbytes(32)  # without it each seed would lead another life than the ones looked at so far
        with suppress(InsufficientFunds):
            await self.world.channel_out().pay()

    async def checkpoint(self) -> None:
        await self.world.settler.checkpoint()

    async def credit(self) -> None:
        ledger, peer = self.world.payee_ledger, PeerId(f"peer {self.chance.randrange(4)}")
        hour = self.chance.randrange(400_000, 400_040)
        await ledger.charge_credit(
            peer,
            subnet="10.0.0.0/24",
            hour=hour,
            pusd=1_000,
            peer_limit_pusd=10_000,
            subnet_limit_pusd=20_000,
            provider_limit_pusd=30_000,
        )
        if self.chance.random() < 0.5:
            await ledger.release_credit(peer, pusd=400)

    async def peers(self) -> None:
        await self.world.payee_ledger.note_failure(self.world.requester.peer_id)
        await self.world.payer_ledger.ban(PeerId(f"peer {self.chance.randrange(4)}"), reason="wrong result")

    async def close_task(self) -> None:
        if len(self.tasks) > 1:
            task = self.tasks.pop(0)
            await self.world.payer_ledger.close_agreement(task, state="done")
            await self.world.payee_ledger.close_agreement(task, state="failed", reason="ended with unpaid chunks")


class _ClosingLife(_Life):
    """Acts that each end in a consent to close the channel: the payer closes by it, tops the channel up in its place,
    or lets its time pass; then the two go on."""

    async def act(self) -> None:
        world = self.world
        world.chain.clock_ms = lambda: world.now_ms
        await world.payee.check_open(world.channel)
        task = await world.agree(ceiling_uusd=1_000)
        self.recorder.left("payer", "agreement", task)
        self.tasks = [task]
        await world.payer.open_channels(world.need(100))
        for act in self.chance.choices([self.work, self.at_once, self.pay], k=3):
            await act()
        await self.pay()
        await world.payer_ledger.close_agreement(task, state="done")
        await world.payee_ledger.close_agreement(task, state="done")
        for _ in range(self.chance.randrange(1, 3)):  # one that was lost on its way is given again
            consent, signature = await world.channel_out().ask_close()
        with suppress(ChannelClosing):
            await world.agree()
            raise AssertionError("an agreement on a channel that may be closed")
        await world.payer_ledger.close_agreement(world.last_agreement.task_id, state="failed")
        match self.chance.choice(["close", "close", "top up", "wait"]):
            case "close":
                await self.checkpoint()
                await world.payer_outbox.run(world.closing(consent, signature))
                await world.payer.refresh(world.channel)
            case "top up":
                await world.payer.open_channels(world.need(300))
                closed = await asking(world).close(world.channel.hex())
                assert closed.state == "closed"
            case _:
                world.now_ms += (CONSENT_S + OVER_S + 1) * 1_000
                self.recorder.left("payee", "consent over")
        await trio.sleep(120)  # in so long a payee has its chain asked for four consents


class _OutbiddingLife(_Life):
    """Acts that each sign a transaction anew at a higher fee; the chain takes one of the two."""

    async def act(self) -> None:
        outbox, chain = self.world.payer_outbox, self.world.chain
        if not self.tasks:
            await self.agree()
        await self.work()
        await self.pay()
        chain.mines = False
        self.recorder.left("chain", copy.deepcopy(chain))
        with suppress(SettlementPending):
            await outbox.run(Approve(amount_uusd=self.chance.randrange(1, 100)))
        outbox._hub.fee += 1
        with suppress(SettlementPending):
            await outbox.settle(raise_fees=True)
        lower, higher = list(chain._pool)
        del chain._pool[self.chance.choice([lower, higher])]
        chain.mines = True
        chain.mine()
        self.recorder.left("chain", copy.deepcopy(chain))
        await outbox.settle()


def live(
    directory: Path,
    *,
    seed: str,
    steps: int,
    lives: int = 2,
    checkpoint_pages: int | None = None,
    recorder: Recorder | None = None,
    after_open: Callable[[Any], None] = lambda _: None,
    closing: bool = False,
    outbidding: bool = False,
) -> History:
    """Record a history: `lives` times both nodes start, do `steps` things together, and stop.

    Args:
        directory: where the ledgers lie; made.
        seed: decides what they do.
        steps: in each life.
        lives: the first one makes the ledgers.
        checkpoint_pages: SQLite's automatic checkpoint, so that a short history has some; 1,000 by default.
        recorder: one with faults.
        after_open: is called with the world of each life.
        closing: each of the steps ends in a consent to close the channel.
        outbidding: in each of them the payer outbids a transaction of its own.
    """
    recorder = recorder if recorder is not None else Recorder()
    history = History(name=seed, directory=directory, notes=recorder.notes)
    world, chance = World(directory), random.Random(seed)
    directory.mkdir(mode=0o700, parents=True)
    recorder.left("chain", copy.deepcopy(world.chain))

    async def main() -> None:
        kind = _ClosingLife if closing else _OutbiddingLife if outbidding else _Life
        life = kind(world, recorder, history, chance)
        for _ in range(lives):
            async with world.open():
                after_open(world)
                watch(world, recorder)
                for who, ledger in (("payer", world.payer_ledger), ("payee", world.payee_ledger)):
                    if checkpoint_pages is not None:
                        ledger._database.connection.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")
                    recorder.left(who, "events", len(_events(ledger)))
                for _ in range(steps):
                    await life.act()
                for who, ledger in (("payer", world.payer_ledger), ("payee", world.payee_ledger)):
                    await ledger.channels_out()  # writes what was waiting for the next transaction
                    history.events[who] = _events(ledger)

    with recorder.installed(), _same_order():
        try:
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        except* LedgerFailed as failures:
            first: BaseException = failures
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            history.failed = str(first)
    return history


@contextmanager
def _same_order() -> Iterator[None]:
    """Tasks run in the same order each time, so that a seed gives one history; trio takes turns by chance otherwise.

    It is what trio has for hypothesis, and for that alone.
    """
    run: Any = trio._core._run
    kept, run._ALLOW_DETERMINISTIC_SCHEDULING = run._ALLOW_DETERMINISTIC_SCHEDULING, True
    state = run._r.getstate()
    run._r.seed(0)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = kept
        run._r.setstate(state)


def _events(ledger: Ledger) -> list[tuple[int, str, bytes]]:
    return list(ledger._database.connection.execute("SELECT at_ms, kind, body FROM events ORDER BY seq"))
