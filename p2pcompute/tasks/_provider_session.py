"""One task stream at a provider, from its first byte to its last: open, take blobs, compile, compute, sign, wait."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute._groups import single_error
from p2pcompute.errors import ExecutionError, KernelError, StorageError, StreamError, WorkerTimeout
from p2pcompute.market import check_program
from p2pcompute.storage import ReceiptConflict
from p2pcompute_protocols import negotiation, task
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import TaskId
from p2pcompute_protocols.limits import MAX_INFLIGHT_CHUNKS
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import (
    Assign,
    BlobData,
    BlobStart,
    Call,
    Cancel,
    ChunkError,
    Closed,
    Finish,
    GetState,
    Notice,
    Open,
    Opened,
    Ready,
    ReceiptPayload,
    ResultStart,
    Share,
    StateGone,
    TaskConnection,
    TaskState,
)
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import RoundWork, Work

from ._api import ChunkRun, ProviderAccount, TaskWorker
from ._fetching import TaskBlobs
from ._held_inputs import HeldInputs
from ._inputs import TaskInputs
from ._link import MIN_BYTES_PER_S
from ._meter import Meter, Spent, check_price, units_of
from ._places import Place
from ._provider_group import Group, result_receipt, together
from ._refusing import NotCompiledError, RefuseError, WorkerGoneError, printable
from ._results import send_result
from ._round_provider import RoundStates, RoundsWorker, give_state
from ._standing_provider import CALL_IDLE_S, ServedCalls
from ._tiles import TaskTiles
from ._usage import ActiveTask
from ._work import chunk_bytes, execution_args

if TYPE_CHECKING:
    from p2pcompute.overlay import OverlayStream

    from ._provider import TaskService

__all__ = ["Session"]

_log = logging.getLogger("p2pcompute.tasks")

_OPEN_S: Final = 10.0
_BLOB_S: Final = 30.0  # between two pieces of a blob
_IDLE_S: Final = 120.0  # with nothing to compute: nothing assigned, or no money for what was
_COMPILE_S: Final = 60.0
_CORE_MILLI: Final = 1_000  # of the reference core; compiling takes one core, whatever the device has
_PRESENCE_S: Final = 2.0  # between two looks whether the requester is still connected
_WORKER_DEATHS: Final = 2  # of one task before it is refused
_FIRST_IDLE_S: Final = 30.0  # the same before the first chunk is done: a place is not to be had for nothing
_FAREWELL_S: Final = 10.0  # what saying why a task ends may take
_REPEATS: Final = 2  # results of one chunk in one task: a second one may be needed, it is not paid again
_STOPS: Final = 8  # chunks that a requester may cancel while they are computed, beyond one for each result
_NOT_BEGUN: Final = 256  # answers about chunks that were never begun, beyond eight for each result


class Session:
    """One task stream from its first byte to its last."""

    def __init__(self, service: TaskService, stream: OverlayStream) -> None:
        self.service = service
        self.stream = stream
        self.connection = TaskConnection(Role.PROVIDER)
        self.dialogue = Dialogue(self.connection, stream)
        self.entry: ActiveTask | None = None
        self.place: Place
        self.queue: deque[int] = deque()
        self.wake = trio.Event()
        self.cancelled: set[int] = set()
        self.finish = trio.Event()
        self.running = trio.CancelScope()  # around the chunk that is computed; its successor makes its own
        self.computing: int | None = None  # the chunk that is
        self.deaths = 0
        self.leaving = False
        self._notice: Notice | None = None
        self.answered: Counter[int] = Counter()
        self.not_begun = 0
        self.tiles: TaskTiles
        self.shared: TaskBlobs
        self.held: HeldInputs
        self.fp = "strict"
        self.spent = Spent(service.unpaid, stream.peer_id, service.thread_milli)
        self.group = Group()  # of short chunks that are computed together
        self.asked: deque[int] = deque()  # states of work in rounds
        self.states: RoundStates | None = None
        self.calls: ServedCalls | None = None  # of a standing agreement

    async def run(self) -> None:
        """Serve; returns when the stream is closed."""
        opening = await self.dialogue.expect(Open, stall_s=_OPEN_S)
        try:
            try:
                await self._task(opening)
            except LocalProtocolError as exc:
                raise RefuseError(exc.code, str(exc)) from exc
            except StorageError as exc:
                _log.exception("a task ends, since the ledger can't be written: %s", exc)
                raise RefuseError(WireCode.INTERNAL, "the provider's ledger can't be written") from exc
        except RefuseError as refuse:
            _log.info("task of %s refused: %s", self.stream.peer_id, refuse)
            self.leave()
            if self.connection.state is not TaskState.CLOSED and self.connection.result_is_complete:
                with trio.move_on_after(_FAREWELL_S) as farewell:
                    await self.dialogue.send(refuse.message)
                if not farewell.cancelled_caught:
                    return
            await self.stream.reset()

    def say_farewell(self) -> None:
        """End the task, if it has begun, and say why."""
        if self.entry is not None:
            self.leaving = True
            self.place.scope.cancel()

    def leave(self) -> None:
        """Give the task's place to others. Idempotent."""
        if self.entry is not None:
            self.service.active.pop(self.entry.task_id, None)
            self.service.places.leave(self.place)
            self.entry = None

    async def _admit(self, opening: Open) -> tuple[Agreement, Work]:
        service = self.service
        try:
            agreement = negotiation.open_agreement(
                opening.agreement,
                network=service.network,
                requester=self.stream.peer_id,
                provider=service.signer.peer_id,
            )
        except LocalProtocolError as exc:
            exc.certain = exc.code == WireCode.WRONG_PEER  # this stream is between the two that it has to name
            self.stream.blame(exc)  # whoever shows an agreement has verified it, if honest
            raise
        guest = await service.guest(self.stream.peer_id)
        # From here on nothing is awaited: of two that come at once the second finds the first's place taken.
        if service.draining:
            raise LocalProtocolError("this provider takes no more work", code=WireCode.DRAINING)
        if agreement.terms.deadline_ms <= service.now_ms():
            raise LocalProtocolError("the agreement's deadline has passed", code=WireCode.EXPIRED)
        if agreement.task_id in service.active:
            raise LocalProtocolError("this task has a stream already", code=WireCode.REPLAYED)
        work = task.standing_work(agreement.terms.work) if agreement.terms.standing else agreement.terms.work
        assert work is not None  # which terms have where they are not standing
        check_program(work, service.programs)  # its owner may have taken it back since it was agreed
        self.fp = agreement.terms.fp
        self.place = service.places.take(guest)
        self.entry = ActiveTask(task_id=agreement.task_id, requester=self.stream.peer_id, started_ms=service.now_ms())
        service.active[agreement.task_id] = self.entry
        return agreement, work

    async def _task(self, opening: Open) -> None:
        agreement, work = await self._admit(opening)
        with self.place.scope:
            account = await self.service.books.open(agreement)
            try:
                await self._with_account(agreement, work, account)
            finally:
                with trio.CancelScope(shield=True):
                    await account.close()
        if self.leaving:
            raise RefuseError(WireCode.DRAINING, "the provider is being stopped")
        if self.place.scope.cancelled_caught:
            # STALLED and not NO_CAPACITY: it may come again at once, and finds out then whether there is room.
            raise RefuseError(WireCode.STALLED, "the place was needed, and nothing was computed in it")

    async def _with_account(self, agreement: Agreement, work: Work, account: ProviderAccount) -> None:
        service = self.service
        self.connection.chunks = work.chunks
        self.connection.chunk_bytes = chunk_bytes(work)
        self.connection.blob_sizes = {digest: size for digest, size in work.inputs.items() if size}
        if isinstance(work, RoundWork):
            self.connection.chunk_rounds = work.rounds_per_chunk
            self.connection.state_arrays = tuple(array.nbytes for array in work.state)
        peer = self.stream.peer_id
        with (
            HeldInputs(service, self.place.guest, self.connection.blob_sizes.values()) as self.held,
            TaskInputs(work, service.kept, peer, keep=self._has_paid(account)) as blobs,
            self._sharing(blobs) as self.shared,
        ):
            await self.shared.look()
            need = tuple(digest for digest in self.connection.blob_sizes if not blobs.whole[digest])
            fetches = True if self.shared.fetches else None
            await self.dialogue.send(
                Opened(need=need, slots=agreement.terms.slots, window=account.window, fetches=fetches)
            )
            if not await self._take(blobs):
                await self.dialogue.send(Closed(chunks=0))
                return
            if agreement.terms.standing:
                self.calls = ServedCalls(self.connection, work, blobs.whole)
            self.tiles = TaskTiles(self.connection, work, blobs.whole, hold=self.held.add)
            seconds_left = (agreement.terms.deadline_ms - service.now_ms()) / 1000
            with trio.move_on_after(seconds_left) as deadline, self._keeping_states(agreement, work):
                await self._compute(agreement, work, account, blobs)
        if deadline.cancelled_caught:
            raise RefuseError(WireCode.TIMED_OUT, "the agreement's deadline passed")

    def _sharing(self, blobs: TaskInputs) -> TaskBlobs:
        return TaskBlobs(
            self.service.exchange,
            blobs,
            self.connection.blob_sizes,
            self.stream.peer_id,
            known=self.place.guest.known,
            took=self._took,
        )

    def _took(self, size: int) -> None:
        """So much more of its inputs has come."""
        self.place.moved(size)
        self.held.add(size)

    @contextmanager
    def _keeping_states(self, agreement: Agreement, work: Work) -> Generator[None]:
        """Of work in rounds, whose states count as inputs do."""
        if not isinstance(work, RoundWork):
            yield
            return
        with RoundStates(work, window=agreement.terms.max_window, hold=self.held.add) as self.states:
            try:
                yield
            finally:
                self.service.disputes.keep(agreement, self.states.digests)

    async def _take(self, blobs: TaskInputs) -> bool:
        """Take the blobs that were asked for; False when the requester finished instead."""
        size = sum(self.connection.blob_sizes.values())
        try:
            with trio.move_on_after(_BLOB_S + size / MIN_BYTES_PER_S):
                return await self._take_at_any_speed(blobs)
        except ExecutionError as exc:
            raise RefuseError(WireCode.NO_CAPACITY, str(exc)) from exc
        self.place.overstayed = True
        raise RemoteProtocolError("the inputs came too slowly", code=WireCode.STALLED)

    async def _take_at_any_speed(self, blobs: TaskInputs) -> bool:
        with single_error(RefuseError, ProtocolError, StreamError, ExecutionError):
            async with trio.open_nursery() as nursery:
                complete = await self._hear_inputs(blobs, nursery)
                nursery.cancel_scope.cancel()
        return complete

    async def _hear_inputs(self, blobs: TaskInputs, nursery: trio.Nursery) -> bool:
        while self.connection.needed or self.shared.under_way:
            match await self.shared.hear(self.dialogue, stall_s=_BLOB_S):
                case BlobStart(digest=digest, size=size):
                    blobs.start(digest, size)
                case BlobData(data=data):
                    self._took(len(data))
                    blobs.add(data)
                case Share() as message:
                    self.shared.share(message, nursery)
                case Finish():
                    return False
                case None:
                    pass
                case _:
                    raise StreamError("the requester left before its inputs had come")
        return True

    async def _compute(self, agreement: Agreement, work: Work, account: ProviderAccount, blobs: TaskInputs) -> None:
        # All the time, also while it waits for its turn to compile: a requester that has left waits for nothing.
        with single_error(RefuseError, StorageError, ProtocolError, StreamError, ExecutionError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._notify_window, account)
                nursery.start_soon(self._watch_presence)
                while await self._with_worker(agreement, work, account, blobs):
                    self.deaths += 1
                nursery.cancel_scope.cancel()
        if self.finish.is_set() and self.connection.state is TaskState.FINISHING:
            done = self.entry.chunks_done if self.entry is not None else 0
            if self._has_paid(account)():
                await self.shared.keep()
            await self.dialogue.send(Closed(chunks=done))

    async def _with_worker(self, agreement: Agreement, work: Work, account: ProviderAccount, blobs: TaskInputs) -> bool:
        """Compute with one worker until the task is finished; True when the worker was lost before that."""
        lost: str | None = None
        async with AsyncExitStack() as stack:
            ready: tuple[TaskWorker | RoundsWorker, int] | None = None
            try:
                with trio.CancelScope() as self.running:
                    if self.finish.is_set():
                        self.running.cancel()
                    ready = await self._ready_worker(stack, work, account, blobs)
            except NotCompiledError as exc:
                await self._fail_to_compile(agreement, account, exc)
                raise
            if ready is None:
                return False
            worker, compile_ms = ready
            if self.connection.state is TaskState.SETUP:
                await self.dialogue.send(Ready(compile_ms=compile_ms))
            try:
                await self._chunks(agreement, work, account, worker)
            except WorkerGoneError as exc:
                lost = str(exc)
        if lost is not None and self.deaths + 1 >= _WORKER_DEATHS:
            raise RefuseError(WireCode.EXECUTION_FAILED, lost)
        return lost is not None

    async def _ready_worker(
        self, stack: AsyncExitStack, work: Work, account: ProviderAccount, blobs: TaskInputs
    ) -> tuple[TaskWorker | RoundsWorker, int]:
        """A worker that has compiled the kernel, and how many milliseconds that took."""
        guest, service = self.place.guest, self.service
        with self.place.working():
            async with service.compile_turn(guest):
                await account.begin_compile()
                used = Meter(min(service.score_milli, _CORE_MILLI), _COMPILE_S)
                try:
                    workers = service.workers_for(work)
                    try:
                        opened = await stack.enter_async_context(
                            workers.session(tenant=self.stream.peer_id, keep=self._has_paid(account))
                        )
                    except ExecutionError as exc:
                        raise RefuseError(WireCode.EXECUTION_FAILED, f"no worker can be had: {exc}") from exc
                    worker: TaskWorker | RoundsWorker = opened
                    if isinstance(work, RoundWork):
                        assert self.states is not None  # kept for all of the task
                        worker = RoundsWorker(
                            opened,
                            work,
                            self.states,
                            fault=service.round_fault,
                        )
                    with used:
                        worker, compile_ms = await self._compile(worker, work, blobs)
                finally:
                    with trio.CancelScope(shield=True):
                        await account.end_compile(used_units=used.units)
        return worker, compile_ms

    def _has_paid(self, account: ProviderAccount) -> Callable[[], bool]:
        """Whether its requester has paid anything, as far as this task knows: asked when the worker is left."""
        return lambda: self.place.guest.known or self.place.chunks > account.unpaid

    async def _compile(
        self, worker: TaskWorker | RoundsWorker, work: Work, blobs: TaskInputs
    ) -> tuple[TaskWorker | RoundsWorker, int]:
        try:
            with trio.fail_after(_COMPILE_S):
                if isinstance(worker, RoundsWorker):
                    return worker, int(await worker.compile_work(blobs.whole))
                assert not isinstance(work, RoundWork)  # which is wrapped
                source, launch, specs, inputs = execution_args(work, blobs.whole, fp=self.fp)
                if self.calls is not None:
                    specs = self.calls.begin(specs)
                compiled = await worker.compile(source, launch, specs, inputs)
        except KernelError as exc:
            if exc.by_guard:  # and not only what a back end has against it
                self._unfit(str(exc))
            raise RefuseError(WireCode.KERNEL_REFUSED, f"{exc.reason}; {exc.instead}", exc.line) from exc
        except trio.TooSlowError:
            raise NotCompiledError(WireCode.TIMED_OUT, f"the kernel took over {_COMPILE_S:g} s to compile") from None
        except ExecutionError as exc:
            code = WireCode.TIMED_OUT if isinstance(exc, WorkerTimeout) else WireCode.EXECUTION_FAILED
            raise NotCompiledError(code, f"compiling failed: {exc}") from exc
        from ._work import row_bytes

        per_block = compiled.items_per_block * row_bytes(work.args, compiled.row_shapes)
        if per_block * work.blocks_per_chunk != work.chunk_output_bytes:
            self._unfit("chunk_output_bytes does not fit what the kernel writes")
            raise RefuseError(WireCode.MALFORMED, "chunk_output_bytes does not fit what the kernel writes")
        return self.tiles.windowed(worker, launch, specs, compiled.items_per_block), int(compiled.compile_ms)

    def _unfit(self, why: str) -> None:
        """Hold it against the requester that nobody can do its work."""
        self.stream.blame(RemoteProtocolError(why, code=WireCode.KERNEL_REFUSED, certain=True))

    async def _hear(self) -> Record:
        try:
            return await self.tiles.receive(self.dialogue)
        except RemoteProtocolError:
            self.place.overstayed = self.place.overstayed or self.tiles.awaited
            raise

    async def _read(self) -> None:
        """Take what the requester says while chunks are computed."""
        while True:
            message = await self._hear()  # `_chunks` ends a task in which nothing happens
            match message:
                case Call():
                    if self.calls is not None:
                        self.calls.forget(self.answered)
                case Assign():
                    if len(self.queue) + len(message.chunks) > MAX_INFLIGHT_CHUNKS:
                        raise RemoteProtocolError("too many chunks assigned", code=WireCode.OVERSIZED)
                    if any(self.answered[index] >= _REPEATS for index in message.chunks):
                        raise RemoteProtocolError("a chunk that was answered already", code=WireCode.REPLAYED)
                    if self.tiles.assigned(message.chunks):
                        self.queue.extend(message.chunks)
                case BlobStart() | BlobData():
                    self.place.moved(len(message.data) if isinstance(message, BlobData) else 0)
                    if (complete := self.tiles.take(message)) is not None:
                        self.queue.extend(complete)
                case GetState():
                    self.asked.append(message.state)
                case Share():
                    self.shared.share(message, None)
                case Cancel():
                    if message.index in self.connection.outstanding:  # else it has crossed the answer
                        self.cancelled.add(message.index)
                        self._stop_computing(message.index)
                case Finish():
                    self.finish.set()
                    self.running.cancel()
                case StreamEnded():
                    raise StreamError("the requester closed the stream")
                case _:
                    raise RemoteProtocolError(f"unexpected {type(message).__name__}", code=WireCode.OUT_OF_ORDER)
            self.wake.set()
            if self.finish.is_set():
                return

    def _stop_computing(self, index: int) -> None:
        """End a chunk that is computed just now: another provider was faster. One who cancels most of what it assigns
        gets results instead: it would have this machine work for nothing."""
        if index == self.computing and self.entry is not None and self.entry.stopped < _STOPS + self.place.chunks:
            self.entry.stopped += 1
            self.running.cancel()

    async def _watch_presence(self) -> None:
        """A requester whose connection is gone ends its tasks, whatever became of the stream's own end."""
        while True:
            await trio.sleep(_PRESENCE_S)
            if self.stream.peer_id not in self.service.overlay.peers():
                raise StreamError("the requester is not connected any more")

    async def _notify_window(self, account: ProviderAccount) -> None:
        window = account.window
        while True:
            await account.wait_changed()
            if account.window != window and self.connection.state is TaskState.RUNNING:
                window = account.window
                self._notice = Notice(kind="window", window=window)
            if self.queue or self._notice is not None:  # with neither, nobody waits for this
                self.wake.set()

    async def _chunks(
        self, agreement: Agreement, work: Work, account: ProviderAccount, worker: TaskWorker | RoundsWorker
    ) -> None:
        """Compute what is queued, one after the other, while there is credit; returns when finished."""
        starved = False  # of credit, until the next voucher
        while not self.finish.is_set():
            if self._notice is not None:
                notice, self._notice = self._notice, None
                await self.dialogue.send(notice)
            if self.asked and isinstance(worker, RoundsWorker):
                await self._give_state(agreement, worker, self.asked.popleft())
                continue
            has_credit = account.unpaid < account.window and not starved
            if not (self.queue and (self.queue[0] in self.cancelled or has_credit)):
                self.wake = trio.Event()
                idle_s = CALL_IDLE_S if self.calls is not None and not self.queue else _IDLE_S
                patience_s = idle_s if self.place.chunks else _FIRST_IDLE_S
                # Between the check above and the wait nothing else runs, so no wake-up can be missed.
                patience_s = math.inf if self.tiles.awaited else patience_s  # they have a bound of their own
                with trio.move_on_at(self.place.idle_from_s + patience_s) as idle:
                    await self.wake.wait()
                starved = False
                if idle.cancelled_caught:
                    self.place.overstayed = True
                    if self.queue:
                        raise RefuseError(WireCode.PAYMENT_REQUIRED, f"no voucher came for {patience_s:g} s")
                    raise RefuseError(WireCode.STALLED, f"no chunk was assigned for {patience_s:g} s")
                continue
            if await together(self, agreement, work, account, worker):
                continue
            index = self.queue.popleft()
            if index in self.cancelled:
                self.cancelled.discard(index)
                await self._not_begun(agreement, index, account, WireCode.CANCELLED, "cancelled before it began")
                continue
            if not await self._one(agreement, work, account, worker, index):
                self.queue.appendleft(index)
                starved = True
                continue
            self.cancelled.discard(index)  # it came too late

    async def _give_state(self, agreement: Agreement, worker: RoundsWorker, number: int) -> None:
        """Send a state that the requester wants to look at, or say why not. It may have to be computed again; how many
        it may ask for, the connection bounds."""
        try:
            with self.place.working():
                async with self.service.slots.turn(known=self.place.guest.known):
                    state = await worker.state(number, timeout_s=agreement.terms.chunk_timeout_ms / 1000)
        except ExecutionError as exc:
            detail = printable(str(exc))
            await self.dialogue.send(StateGone(state=number, code=WireCode.EXECUTION_FAILED, detail=detail))
            raise WorkerGoneError(str(exc)) from exc
        await give_state(self.dialogue, state, number, self.place.moved)

    async def _one(
        self, agreement: Agreement, work: Work, account: ProviderAccount, worker: TaskWorker | RoundsWorker, index: int
    ) -> bool:
        """Compute, sign and send a chunk, or say why not; False when it has to wait for a voucher first."""
        service, terms = self.service, agreement.terms
        first, blocks = work.chunk_range(index % work.chunks)  # of its call, in a standing agreement
        while True:
            unpaid = account.unpaid
            try:
                await account.begin()
                break
            except LocalProtocolError as exc:
                if account.unpaid < unpaid:
                    continue  # a voucher came while that was found out, and has brought credit back
                if account.unpaid:
                    return False  # a voucher is under way, and brings credit back
                await self._not_begun(agreement, index, account, exc.code, str(exc))
                return True
        run: ChunkRun | None = None
        limit_s = terms.chunk_timeout_ms / 1000
        speed_milli = service.speed_milli(work)
        used = Meter(speed_milli, limit_s)
        try:
            with trio.CancelScope() as self.running, self.place.working():
                self.computing = index
                try:
                    if self.finish.is_set():
                        self.running.cancel()
                    async with service.slots.turn(known=self.place.guest.known):
                        with used, self.shown(index, blocks) as shown:
                            await self.give_call(worker, index, timeout_s=limit_s)
                            run = await worker.run_blocks(first, blocks, timeout_s=limit_s, progress=shown.progress)
                            shown.end(run)
                            service.used.add(run)
                            service.computed(agreement.task_id, run)
                finally:
                    self.computing = None
        except ExecutionError as exc:
            await account.drop(used_units=used.units)
            code = WireCode.TIMED_OUT if isinstance(exc, WorkerTimeout) else WireCode.EXECUTION_FAILED
            await self._fail(agreement, index, account, code, str(exc))
            raise WorkerGoneError(str(exc)) from exc
        except BaseException:  # whoever leaves in the middle has used as much as who stays
            with trio.CancelScope(shield=True):
                await account.drop(used_units=used.units)
            raise
        if run is None:  # the requester has finished, or wants this chunk no more
            await account.drop(used_units=used.units)
            if not self.finish.is_set():
                await self._fail(agreement, index, account, WireCode.CANCELLED, "cancelled while it was computed")
                if not worker.usable:
                    raise WorkerGoneError("a chunk that was cancelled did not stop")
            return True
        outputs = run.outputs
        if service.fault is not None:
            outputs = (service.fault(b"".join(outputs), index),)
        units = units_of(work, blocks)
        payload = result_receipt(agreement, index, outputs, units, service.now_ms(), self.call_of(index))
        if await self.hand_over(agreement, account, payload, outputs, used.units):
            self.group.ran(1, run.wall_ns)
            await check_price(agreement, account, run, units, speed_milli, self.spent)
        return True

    async def hand_over(
        self,
        agreement: Agreement,
        account: ProviderAccount,
        payload: ReceiptPayload,
        outputs: Sequence[bytes | memoryview],
        used_units: int,
    ) -> bool:
        """Store the receipt of a chunk that is computed, and send the result with it; False where it has failed."""
        service, index = self.service, payload.index
        try:
            receipt = await account.issue(
                payload, lambda p: task.seal_receipt(p, network=service.network, signer=service.signer)
            )
        except ReceiptConflict as exc:
            with trio.CancelScope(shield=True):
                await account.drop(used_units=used_units)
            if self.fp != "fast":
                raise
            # Asked for a second time, and this time the last places are others: there is one receipt for a chunk.
            await self._fail(agreement, index, account, WireCode.EXECUTION_FAILED, str(exc))
            return False
        except BaseException:  # it is computed, and owed by nobody
            with trio.CancelScope(shield=True):
                await account.drop(used_units=used_units)
            raise
        self.place.chunks += 1
        start = ResultStart(index=index, receipt=receipt, size=sum(map(len, outputs)))
        await send_result(self.dialogue, start, outputs, self.place.moved)
        self.note_answered((index,))
        return True

    def call_of(self, index: int) -> bytes | None:
        """What stands for a chunk's call in its receipt; None before the first call as well."""
        return None if self.calls is None or not self.calls.inputs.made else self.calls.digest(index)

    async def give_call(self, worker: TaskWorker | RoundsWorker, index: int, *, timeout_s: float) -> None:
        """Have the worker run with the inputs of a chunk's call, if this is about calls. Raises as the worker does."""
        if self.calls is not None:
            await self.calls.give(worker, index, self.tiles.content, timeout_s=timeout_s)

    def note_answered(self, chunks: Collection[int]) -> None:
        """The results of these chunks are on their way."""
        self.place.rest()
        self.answered.update(chunks)
        if self.entry is not None:
            self.entry.chunks_done += len(chunks)

    def shown(self, index: int, blocks: int) -> ActiveTask:
        """The entry of this task; within its context a chunk is computed."""
        entry = self.entry or ActiveTask(task_id=TaskId(bytes(32)), requester="")  # it has left, and nobody looks
        entry.begin(index, blocks)
        return entry

    async def _not_begun(
        self, agreement: Agreement, index: int, account: ProviderAccount, code: WireCode, detail: str
    ) -> None:
        """Say why a chunk was not begun. Signing that costs this node something, and its requester nothing."""
        self.not_begun += 1
        if self.not_begun > _NOT_BEGUN + 8 * self.place.chunks:
            raise RefuseError(WireCode.STALLED, "too many chunks were assigned that could not begin")
        await self._fail(agreement, index, account, code, detail)

    async def _fail_to_compile(self, agreement: Agreement, account: ProviderAccount, error: NotCompiledError) -> None:
        """Sign and send why the chunk that would have been computed next has no result; in SETUP it is the first."""
        code, detail = WireCode(error.message.code), str(error)
        if self.connection.state is TaskState.SETUP:
            await self._fail(agreement, 0, account, code, detail)
        elif self.queue and self.connection.state is TaskState.RUNNING:
            await self._fail(agreement, self.queue.popleft(), account, code, detail)

    async def _fail(
        self, agreement: Agreement, index: int, account: ProviderAccount, code: WireCode, detail: str
    ) -> None:
        """Sign and send why a chunk has no result."""
        service = self.service
        payload = ReceiptPayload(
            task=agreement.task_id,
            index=index,
            code=code,
            output=bytes(32),
            fp=agreement.terms.fp,
            units=0,
            finished_ms=service.now_ms(),
            detail=printable(detail),
            call=self.call_of(index),
        )
        receipt = await account.issue(
            payload, lambda p: task.seal_receipt(p, network=service.network, signer=service.signer)
        )
        await self.dialogue.send(ChunkError(index=index, receipt=receipt))
        if self.entry is not None:
            self.entry.chunks_failed += 1
