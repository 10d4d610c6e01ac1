"""The requester's side of one provider's task stream: inputs, chunks, receipts, checks, vouchers."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute._groups import single_error
from p2pcompute.checking import SampleReport, SampleRuns
from p2pcompute.errors import (
    BudgetError,
    ChainError,
    OverlayError,
    P2PComputeError,
    PaymentError,
    StreamError,
    TaskRefused,
)
from p2pcompute.overlay import BULK_BYTES
from p2pcompute_protocols import task
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.errors import ProtocolError, RemoteProtocolError, WireCode, remote
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import (
    DATA_BYTES,
    Assign,
    BlobData,
    BlobStart,
    Cancel,
    ChunkError,
    Closed,
    Finish,
    HeldTiles,
    Notice,
    Open,
    Opened,
    Ready,
    Refused,
    ResultData,
    Results,
    ResultStart,
    TaskConnection,
    TaskState,
)
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import ChunkWork, ProgramWork

from ._api import RequesterAccount
from ._link_hooks import LinkHooks
from ._pace import Pace
from ._refusing import advice
from ._results import ReceivedChunk, checked_together, cut, gather, open_failure, open_results, ranges
from ._scheduler import ChunkScheduler
from ._work import chunk_bytes

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay

    from ._sharing import Sharing
    from ._splits import SplitInputs

__all__ = ["MIN_BYTES_PER_S", "LiarError", "Link", "NoRoomNow", "ReceivedChunk", "WaitedTooLong"]

_log = logging.getLogger("p2pcompute.tasks")

_OPEN_S: Final = 15.0
_SETUP_S: Final = 120.0  # blobs and compiling
_GRACE_S: Final = 10.0  # beyond the agreed time of a chunk, for the wire
_LAST_PAYMENT_S: Final = 1.0  # of a task that is cancelled
_FINISH_S: Final = 2.0
_PAY_EARLIER_S: Final = 10.0  # for what earlier tasks have left unpaid; the set-up waits for it
_QUIET_S: Final = 2.0  # without an answer, where something is unpaid: it may wait for the money
_PAUSE_S: Final = 120.0
_MAX_NOTICES: Final = 64  # without a result between them
_WAITED_S: Final = 0.4  # with less to wait for, nobody can say that we kept it waiting
_CROSSING_S: Final = 2.0  # a chunk that was given out so short a time ago may have crossed a farewell
_NO_SAMPLES: Final = SampleReport(checked=0, mismatched=0)
MIN_BYTES_PER_S: Final = 64 * 1024  # below this a transfer has stalled, however regularly it drips


class LiarError(P2PComputeError):
    """A private sample of a chunk differed from what we computed."""

    def __init__(self, provider: PeerId, index: int, report: SampleReport) -> None:
        self.provider = provider
        self.index = index
        self.report = report
        super().__init__(f"{provider}: {report.mismatched} of {report.checked} samples of chunk {index} differ")


class NoRoomNow(TaskRefused):
    """The provider has no place for this task now. It may have one later."""


class WaitedTooLong(NoRoomNow):
    """The provider had nothing to do, or no voucher, for too long, and that is so: it was our doing."""


class Link:
    """Works with one provider until the scheduler is complete or the provider fails."""

    def __init__(
        self,
        overlay: Overlay,
        agreement: Agreement,
        account: RequesterAccount,
        scheduler: ChunkScheduler,
        blobs: Mapping[bytes, bytes],
        hooks: LinkHooks,
        splits: SplitInputs | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        work = agreement.terms.work
        assert work is not None  # standing agreements are not made
        self.overlay = overlay
        self.agreement = agreement
        self.account = account
        self.scheduler = scheduler
        self.blobs = blobs
        self.hooks = hooks
        self.work = work
        self.provider = PeerId(agreement.terms.provider)
        self.connection = TaskConnection(Role.REQUESTER)
        self.connection.chunks = work.chunks
        self.connection.chunk_bytes = chunk_bytes(work)
        self.connection.blob_sizes = {digest: size for digest, size in work.inputs.items() if size}
        self.splits = splits
        self.sharing = sharing
        self.pledge = b""  # what the provider has put at risk, as a file
        if splits is not None and isinstance(work, ChunkWork | ProgramWork):
            self.connection.tiles = HeldTiles(work, splits.manifests)
        self.window = agreement.terms.credit_window
        self.slots = agreement.terms.slots
        self._pace = Pace(self.slots + 1)
        self.paused = False
        self.draining = False
        self.ready = False  # the provider has what it needs; before that nothing can be owed
        self.unpaid = 0  # chunks that came and that no voucher covers
        self.lie: LiarError | None = None  # the one that ended this link, whatever else ended it at the same time
        self.rejected: list[ReceivedChunk] = []
        self._checked: list[tuple[ReceivedChunk, int]] = []  # samples were equal, not accepted yet
        self._unchecked = 0  # came, but their samples are not compared and handed over yet
        self._accepted = 0  # stored as owed, not covered by an acknowledged voucher
        self._runs = SampleRuns(hooks.sample_every)
        self._check_s = None if hooks.check is not None else 0.0  # what the last check took for each chunk
        self._settling = trio.Lock()
        self._wake = trio.Event()
        self._pay_now = trio.Event()
        self._last_progress = 0.0
        self._answered = 0.0  # as `_last_progress`, but no notice counts
        self._paused_since: float | None = None  # the first pause since a result: an end of it proves nothing
        self._resumed = False  # since the last result
        self._notices = 0  # likewise
        self._idled_s = 0.0  # how long it had nothing to do before the chunks that are under way
        self._unpaid_since = 0.0  # counts where `unpaid` does: since when no voucher came
        self._cancelled: set[int] = set()

    async def run(self) -> None:
        """Work until all chunks are done.

        Raises:
            LiarError: a sample differed; nothing more was paid.
            TaskRefused: the provider refused or ended the task with a reason.
            RemoteProtocolError, OverlayError: it broke the protocol, stalled or is gone.
            PaymentError: our voucher was refused for good.
        """
        await self._pay_earlier()
        stream = await self.overlay.open_stream(self.provider, task.PROTOCOL_ID, bulk=self._carries() >= BULK_BYTES)
        self.dialogue = Dialogue(self.connection, stream)
        try:
            await self._setup()
            received_in, received_out = trio.open_memory_channel[list[ReceivedChunk]](math.inf)
            with single_error(LiarError, TaskRefused, ProtocolError, P2PComputeError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive, received_in)
                    nursery.start_soon(self._check, received_out)
                    nursery.start_soon(self._pay)
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._relay, self.hooks.changed())
                    await self._assign()
                    await self._settle()  # before the end of `_pay`: a voucher under way is not broken off
                    nursery.cancel_scope.cancel()
            await self._finish(WireCode.OK, "done")
        except TaskRefused:
            # It leaves for a reason that it said; what it has done, and was found right, it is paid for.
            with trio.move_on_after(_FINISH_S):
                await self._settle()
            await stream.reset()
            raise
        except OverlayError:
            # It is gone, not wrong: its results are used, so they stay owed, and the next voucher covers them.
            with trio.CancelScope(shield=True):
                await stream.reset()
            with contextlib.suppress(BudgetError):
                await self._accept()
            raise
        except Exception as exc:
            if isinstance(exc, RemoteProtocolError):
                stream.blame(exc)
            # A reset, not a close: the provider is to stop at once, and what it still sends goes nowhere.
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise
        except BaseException:
            # Cancelled: the same, but what was found right is paid for, if that is quick.
            with trio.CancelScope(shield=True):
                await stream.reset()
                with trio.move_on_after(_LAST_PAYMENT_S), contextlib.suppress(P2PComputeError, ProtocolError):
                    await self._settle()
            raise
        finally:
            if self.sharing is not None:
                self.sharing.end(self.provider)
            with trio.CancelScope(shield=True), trio.move_on_after(_FINISH_S):
                await stream.aclose()

    def _carries(self) -> int:
        """The most bytes of arrays that may go to and fro."""
        known = self.connection
        return sum(known.blob_sizes.values()) + self.work.chunks * known.chunk_bytes[0] + sum(known.state_arrays)

    async def _pay_earlier(self) -> None:
        """What is owed from before counts against what the provider lends, so that it might not begin at all."""
        with trio.move_on_after(_PAY_EARLIER_S):
            try:
                await self.account.pay_earlier()
            except (PaymentError, ChainError, OverlayError, ProtocolError) as exc:
                _log.debug("%s is not paid for earlier work: %s", self.provider, exc)  # it stays owed

    async def _setup(self) -> None:
        size = sum(len(data) for data in self.blobs.values())
        with trio.move_on_after(_SETUP_S + size / MIN_BYTES_PER_S) as scope:
            await self._open_task()
        if scope.cancelled_caught:
            raise StreamError("the provider was not ready in time")
        self.ready = True
        self._last_progress = self._answered = trio.current_time()

    async def _open_task(self) -> None:
        await self.dialogue.send(Open(agreement=self.agreement.raw))
        opened = await self.dialogue.expect(Opened, Refused, stall_s=_OPEN_S)
        if isinstance(opened, Refused):
            raise self._refusal(opened)
        self.window = min(opened.window, self.agreement.terms.max_window)
        self.slots = max(1, min(opened.slots, self.slots))
        self._pace = Pace(self.slots + 1)
        with single_error(TaskRefused, ProtocolError, P2PComputeError):
            async with trio.open_nursery() as nursery:
                shared = await self._share(opened, nursery)
                for digest in opened.need:
                    if digest not in shared:
                        await self._send_blob(digest, self.blobs[digest])
                await self._until_ready(stall_s=None if shared else _SETUP_S)
                nursery.cancel_scope.cancel()

    async def _share(self, opened: Opened, nursery: trio.Nursery) -> Collection[bytes]:
        """Name the inputs that come from other providers as well, and who they are; in `nursery` those that follow."""
        if self.sharing is None or not opened.fetches:
            return ()
        told = await self.sharing.begin(self.provider, self.dialogue)
        needed = {digest: known for digest, known in told.items() if digest in opened.need}
        if needed:
            nursery.start_soon(self.sharing.keep_telling, self.provider, self.dialogue, needed)
        return needed

    async def _until_ready(self, *, stall_s: float | None) -> None:
        while True:
            message = await self.dialogue.receive(stall_s=stall_s)
            match message:
                case Ready():
                    self.hooks.ready(self.provider, message.compile_ms)
                    return
                case Refused():
                    raise self._refusal(message)
                case ChunkError():  # of a chunk that was never given out; what ends the task follows
                    await self._reject(message)
                case Notice():
                    self._notice(message)
                case _:
                    raise StreamError("the provider left while the task was set up")

    def _refusal(self, message: Refused) -> TaskRefused:
        known = message.code in WireCode._value2member_map_
        name = WireCode(message.code).name.lower() if known else str(message.code)
        kind = NoRoomNow if message.code in (WireCode.STALLED, WireCode.NO_CAPACITY) else TaskRefused
        if self._kept_waiting(message.code):
            kind = WaitedTooLong
        return kind(f"{self.provider} ended the task ({name}): {message.detail}{advice(message.code)}")

    def _kept_waiting(self, code: int) -> bool:
        """Whether a provider that ends the task because it waited has really waited for us: anybody can say so."""
        if not self.ready:
            return False
        now = trio.current_time()
        if code == WireCode.PAYMENT_REQUIRED:
            return self.unpaid > 0 and now - self._unpaid_since >= _WAITED_S
        if code != WireCode.STALLED:
            return False
        if not self.connection.outstanding:
            return now - self._answered >= _WAITED_S
        return now - self._answered < _CROSSING_S and self._idled_s >= _WAITED_S

    def _notice(self, message: Notice) -> None:
        self._notices += 1
        if self._notices > _MAX_NOTICES:
            raise RemoteProtocolError("notices and no results", code=WireCode.STALLED)
        match message.kind:
            case "pause":
                self.paused = True
                if self._paused_since is None:
                    self._paused_since = trio.current_time()
            case "resume":
                self.paused = False
                if not self._resumed:  # once a result: pauses without end put nothing off
                    self._resumed = True
                    self._last_progress = trio.current_time()
            case "drain":
                self.draining = True
            case _:
                # A provider may only widen what it gives on credit as far as was agreed.
                self.window = min(message.window or 1, self.agreement.terms.max_window)
        self._wake.set()

    @property
    def owes_since(self) -> float | None:
        """Since when a provider that is ready has kept us waiting for a result, or has paused; None where it waits for
        us. What it says meanwhile does not count."""
        if self.connection.outstanding and self.unpaid < self.window:
            return self._answered
        return self._paused_since if self.paused else None

    def _room(self) -> int:
        """How many chunks may be given out now."""
        if self.paused or self.draining:
            return 0
        under_way = len(self.connection.outstanding)
        return max(0, min(self._pace.depth - under_way, max(self.window, 1) - self.unpaid - under_way))

    def _take(self) -> list[int]:
        """The chunks to give out now: none where there is no room, nothing to do here, or enough for now."""
        under_way, now, taken = len(self.connection.outstanding), trio.current_time(), list[int]()
        room = min(self._room(), self.scheduler.share(self.provider, under_way))
        if room < self._pace.portion <= under_way:
            return []
        if room > 0 and (self.connection.tiles is not None or self.connection.chunk_rounds):
            room = 1  # these are assigned one by one
        while len(taken) < room and (index := self.scheduler.take(self.provider, now)) is not None:
            taken.append(index)
        return taken

    async def _assign(self) -> None:
        """Give out chunks while there is room; returns when all are done and ours are handed over."""
        while self._unchecked or not self.scheduler.is_complete:
            if self.draining and not self.connection.outstanding and not self.unpaid:
                raise TaskRefused(f"{self.provider} takes no more work")
            if taken := self._take():
                # One that is still under way here, cancelled and then needed again, is not asked for twice.
                fresh = [index for index in taken if index not in self.connection.outstanding]
                for chunks in ranges(fresh):
                    await self._hand_out(chunks)
                continue
            if not self.connection.outstanding and self.unpaid and self._pays_at_once():
                self._pay_now.set()  # nothing is under way: the provider waits for money, or the work is ending
            hedge_at = self.scheduler.hedge_at(self.provider) if self._room() else None
            self._wake = trio.Event()
            # Nothing was awaited since the scheduler was asked, so no wake-up is missed.
            with trio.move_on_at(math.inf if hedge_at is None else max(hedge_at, trio.current_time() + 0.05)):
                await self._wake.wait()

    def _pays_at_once(self) -> bool:
        """Whether what is unpaid is paid as soon as nothing is under way."""
        return True

    async def _relay(self, changed: trio.Event) -> None:
        """Wake `_assign` when the scheduler may have something new. `changed` is from before `_assign` first asked."""
        while True:
            await changed.wait()
            changed = self.hooks.changed()
            self._wake.set()

    async def _hand_out(self, chunks: range) -> None:
        """Assign chunks, and send the tiles or arrays that they need and the provider lacks: several chunks have none,
        or the same ones."""
        tiles, index = self.connection.tiles, chunks[0]
        while self._is_wanted(index) and self.connection.outstanding and not self._fits(index):
            self._wake = trio.Event()
            await self._wake.wait()
        if not self._is_wanted(index):
            for one in chunks:
                self.scheduler.fail(one, self.provider, for_good=False)
            return
        if not self.connection.outstanding:
            self._idled_s = trio.current_time() - self._answered
            self._last_progress = self._answered = trio.current_time()
            self._pace.began(self._answered)
        assign = Assign(index=index, count=len(chunks) if len(chunks) > 1 else None)
        await self.dialogue.send(*self._before(index), assign)
        for one in chunks:
            self.hooks.assigned(self.provider, one)
        if tiles is None or not self.connection.needed:
            return
        for digest in list(self.connection.blob_sizes):
            await self._send_blob(digest, self._tile(digest))
        if self.connection.outstanding == set(chunks):  # until now it has waited for us
            self._last_progress = self._answered = trio.current_time()

    def _is_wanted(self, index: int) -> bool:
        """Whether a chunk that was taken, and not assigned yet, is still to be: it may be done elsewhere, or not needed
        any more."""
        return not self.draining and self.scheduler.ran_at(index, self.provider)

    async def _send_blob(self, digest: bytes, data: bytes) -> None:
        await self.dialogue.send(BlobStart(digest=digest, size=len(data)))
        view = memoryview(data)
        for at in range(0, len(data), DATA_BYTES):
            await self.dialogue.send(BlobData(data=view[at : at + DATA_BYTES]))

    def _fits(self, index: int) -> bool:
        """Whether what a chunk needs has room at the provider, beside the chunks that are under way."""
        return self.connection.tiles is None or self.connection.tiles.fits(index)

    def _before(self, index: int) -> tuple[Record, ...]:  # noqa: ARG002  only standing agreements have calls
        """What is said before a chunk is assigned."""
        return ()

    def _tile(self, digest: bytes) -> bytes:
        """The bytes of what a chunk needs and the provider lacks."""
        assert self.splits is not None  # nothing else is due behind an Assign
        return self.splits.tile(digest)

    def blobs_of(self, index: int) -> dict[bytes, bytes]:
        """What it takes to compute a chunk, by digest."""
        tiles = self.connection.tiles
        return {
            **self.blobs,
            **{digest: self._tile(digest) for digest in (() if tiles is None else tiles.needs(index))},
        }

    async def cancel(self, index: int) -> None:
        """Another provider was faster."""
        if index in self.connection.outstanding and self.connection.state is TaskState.RUNNING:
            self._cancelled.add(index)
            await self.dialogue.send(Cancel(index=index))

    async def _receive(self, results: trio.MemorySendChannel[list[ReceivedChunk]]) -> None:
        while True:
            message = await self.dialogue.receive()
            match message:
                case ResultStart():
                    await self._pass_on(self._came([await self._result(message)]), results)
                case Results():
                    opened = open_results(self.agreement, self.work, message, self.connection.size_of, self._call_of)
                    await self._pass_on(self._came(opened), results)
                case ChunkError():
                    await self._chunk_error(message)
                    self._progress()
                case Notice():
                    self._notice(message)
                case Refused():
                    raise self._refusal(message)
                case StreamEnded():
                    raise StreamError("the provider closed the stream")
                case _:
                    await self._other(message)
            self._heard()

    def _heard(self) -> None:
        """There may be something to give out, or nothing more."""
        self._wake.set()

    async def _pass_on(
        self, received: list[ReceivedChunk], results: trio.MemorySendChannel[list[ReceivedChunk]]
    ) -> None:
        """Have results checked; nothing is to be read later for that."""
        results.send_nowait(received)  # of which any number may wait

    async def _other(self, message: Record) -> None:
        """What only work of another shape has."""
        raise RemoteProtocolError(f"unexpected {type(message).__name__}", code=WireCode.OUT_OF_ORDER)

    def _came(self, received: list[ReceivedChunk]) -> list[ReceivedChunk]:
        """These results are here: they count as unpaid."""
        now = trio.current_time()
        if not self.unpaid:
            self._unpaid_since = now
        self.unpaid += len(received)
        self._unchecked += len(received)
        last = received[-1]
        took_s = self.scheduler.ran(last.index, self.provider, now)
        self._pace.answered(len(received), now, took_s, finished_ms=last.payload.finished_ms)
        for one in received:
            self.scheduler.came(one.index, self.provider, now)
        self._progress()
        return received

    def _progress(self) -> None:
        """Only answers count: a provider that says everything else but them has stalled."""
        self._last_progress = self._answered = trio.current_time()
        self._paused_since = None
        self._resumed = False
        self._notices = 0

    async def _result(self, start: ResultStart) -> ReceivedChunk:
        with remote():
            _, payload = task.open_receipt(
                start.receipt,
                network=self.agreement.network,
                provider=self.provider,
                task=self.agreement.task_id,
                index=start.index,
            )
        blocks = self.work.chunk_range(start.index % self.work.chunks)[1]
        units = -(-self.work.units_per_chunk * blocks // self.work.blocks_per_chunk)
        given = (payload.code, payload.units, payload.fp, payload.call)
        if given != (0, units, self.agreement.terms.fp, self._call_of(start.index)):
            raise RemoteProtocolError("a receipt that does not fit the agreement", code=WireCode.MALFORMED)
        # Up to 64 MiB, so there is one copy; of the right size, which the connection has compared with the chunk's.
        output = memoryview(bytearray(start.size))
        self.connection.land_in(output)
        digest = hashlib.sha256()
        at = 0
        with trio.move_on_after(_GRACE_S + start.size / MIN_BYTES_PER_S) as scope:
            while at < start.size:
                piece = (await self.dialogue.expect(ResultData, stall_s=_GRACE_S)).data
                digest.update(piece)
                at += len(piece)
        self.connection.land_in(None)
        if scope.cancelled_caught:
            raise RemoteProtocolError("a result came too slowly", code=WireCode.STALLED)
        if digest.digest() != payload.output:
            raise RemoteProtocolError("the output is not what the receipt says", code=WireCode.BAD_DIGEST)
        return ReceivedChunk(start.index, start.receipt, payload, output.toreadonly())

    def _call_of(self, index: int) -> bytes | None:  # noqa: ARG002  only standing agreements have calls
        """What has to stand for a chunk's call in its receipt."""
        return None

    async def _chunk_error(self, message: ChunkError) -> None:
        self.hooks.failed(self.provider, message.index, *await self._reject(message))

    async def _reject(self, message: ChunkError) -> tuple[WireCode, str]:
        """Keep the receipt of a failure; what it says."""
        payload = open_failure(self.agreement, message)
        known = payload.code in WireCode._value2member_map_
        code = WireCode(payload.code) if known else WireCode.INTERNAL
        detail = payload.detail or code.name.lower()
        if code is WireCode.CANCELLED and message.index not in self._cancelled:
            raise RemoteProtocolError("a chunk was cancelled that we had not cancelled", code=WireCode.OUT_OF_ORDER)
        self._cancelled.discard(message.index)
        if code is not WireCode.CANCELLED:
            await self.account.reject(message.receipt, payload, detail)
        if code is WireCode.CREDIT_EXHAUSTED:
            raise TaskRefused(f"{self.provider} gives no more credit: {detail}")  # the chunk is not to blame
        return code, detail

    async def _check(self, results: trio.MemoryReceiveChannel[list[ReceivedChunk]]) -> None:
        """Sample each chunk, and only then accept it; in the order in which they came."""
        async for waiting in results:
            if self.hooks.checks_together and self.hooks.check is not None:
                await gather(waiting, results, self._can_wait)
            while waiting:
                most = 1
                if self.hooks.checks_together:
                    with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                        while True:
                            waiting += results.receive_nowait()
                    most = checked_together(self._check_s)
                together, waiting = cut(waiting, most)
                await self._check_chunks(together)
                self._wake.set()

    def _can_wait(self, waiting: int) -> bool:
        """Whether neither the provider nor the end of the task waits for a check of so many that have come."""
        return bool(self.connection.outstanding) and len(self._checked) + waiting < max(1, self.window // 2)

    async def _check_chunks(self, together: Sequence[ReceivedChunk]) -> None:
        check = self.hooks.check
        is_sampled = [check is not None and self._runs.next_is_sampled(self.window) for _ in together]
        sampled = [(one.index, one.output) for one, drawn in zip(together, is_sampled, strict=True) if drawn]
        found: Iterator[SampleReport] = iter(())
        if check is not None and sampled:
            began = trio.current_time()
            found = iter(await check(sampled))
            self._check_s = (trio.current_time() - began) / len(sampled)
        # By their place and not by their index: a chunk may have come twice, and only one of them be right.
        reports = [next(found) if drawn else _NO_SAMPLES for drawn in is_sampled]
        for received, report in zip(together, reports, strict=True):
            if not report.ok:
                self.rejected = [*(earlier for earlier, _ in self._checked), received]
                self.lie = LiarError(self.provider, received.index, report)
                raise self.lie
            self._checked.append((received, report.checked))
        # Paid before they are handed over: whoever takes them may take long, and the provider is not to wait for that.
        if len(self._checked) >= max(1, self.window // 2):
            self._pay_now.set()
        await self.hooks.done(
            self.provider, [(one.index, one.output, report) for one, report in zip(together, reports, strict=True)]
        )
        for received in together:
            received.output = memoryview(b"")
        self._unchecked -= len(together)

    async def _watch(self) -> None:
        """A chunk that runs past what was agreed means that the provider has stalled; before that, it may be us who
        keep it waiting."""
        limit = self.agreement.terms.chunk_timeout_ms / 1000 * max(1, self.slots) + _GRACE_S
        while True:
            await trio.sleep(1.0)
            silent = trio.current_time() - self._last_progress
            if (self._checked or self._accepted) and trio.current_time() - self._answered >= _QUIET_S:
                # Not only where nothing is under way: what it lends may be used up by other tasks or older debts.
                self._pay_now.set()
            if self.paused and not self.connection.outstanding:
                if silent > _PAUSE_S:
                    raise TaskRefused(f"{self.provider} has paused for {silent:.0f} s")
            elif self.connection.outstanding and self.unpaid < self.window:
                allowed = limit * (len(self.connection.outstanding) + 1)
                if silent > allowed:
                    raise StreamError(f"the provider has given no result for {silent:.0f} s")

    async def _pay(self) -> None:
        while True:
            await self._pay_now.wait()
            self._pay_now = trio.Event()
            await self._settle()

    async def _accept(self) -> None:
        """Store what was checked as owed."""
        if self._checked:
            # As long as the chain takes, which is not the provider's fault; and before anything is accepted, because
            # what is accepted already would be funded on top of what the agreement may cost.
            await self.account.funded()
        # What is checked meanwhile comes with the next voucher: the provider waits for this one.
        left = most = len(self._checked)
        while kept := list(takewhile(lambda one: self._is_kept(one[0].index), self._checked[: min(most, left)])):
            await trio.lowlevel.checkpoint_if_cancelled()  # a lie that was found meanwhile ends this
            with trio.CancelScope(shield=True):  # accepted exactly once
                try:
                    await self.account.accept([(one.receipt, one.payload, sampled) for one, sampled in kept])
                except (BudgetError, PaymentError):
                    if len(kept) == 1:
                        raise
                    most = 1  # together they are too dear, and nothing was accepted; the first of them may not be
                    continue
                del self._checked[: len(kept)]
                self._accepted += len(kept)
                left -= len(kept)

    async def _keep(self) -> None:
        """Before anything is accepted: see that what was checked is ours, whatever becomes of the provider."""

    def _is_kept(self, index: int) -> bool:  # noqa: ARG002  the results of chunks are handed over as they come
        """Whether a checked chunk is of use without the provider: only that is owed."""
        return True

    async def _settle(self) -> None:
        """Accept what was checked and send one voucher for it; samples come first, always."""
        async with self._settling:
            await self._keep()
            await self._accept()
            covered = self._accepted
            if not covered:
                return
            await self.account.pay()
            self._accepted -= covered
            self.unpaid -= covered
            self._unpaid_since = trio.current_time()
        self.hooks.paid(self.provider, self.account.paid_uusd)
        self._wake.set()

    async def _finish(self, code: WireCode, detail: str) -> None:
        """End the task politely; a provider that dawdles is left."""
        with trio.move_on_after(_FINISH_S):
            try:
                await self.dialogue.send(Finish(code=code, detail=detail))
                while not isinstance(await self.dialogue.receive(stall_s=_FINISH_S), Closed | StreamEnded):
                    pass
            except (OverlayError, RemoteProtocolError):
                pass  # everything is settled; how the stream ends does not matter any more
