"""The task stream's transition table, and what its connection remembers between messages."""

from __future__ import annotations

import enum
import hashlib
from typing import Final

from ..connection import Connection, Role, Table
from ..errors import LocalProtocolError, WireCode
from ..limits import MAX_DATA_FRAME_BYTES, MAX_HOLDERS, MAX_INFLIGHT_CHUNKS, MAX_STATES_PER_CHUNK
from ..wire import Record
from ._calls import CallInputs
from ._held import Held
from ._messages import (
    MESSAGES,
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
    Refused,
    ResultData,
    Results,
    ResultStart,
    Share,
    StateData,
    StateGone,
    StateStart,
)

__all__ = ["TABLE", "TaskConnection", "TaskState"]


class TaskState(enum.Enum):
    """Where the dialogue stands."""

    IDLE = "idle"
    OPENING = "opening"  # the provider checks the agreement
    SETUP = "setup"  # blobs travel, the provider compiles
    RUNNING = "running"
    FINISHING = "finishing"  # the requester takes what is still on its way
    CLOSED = "closed"


_S = TaskState
TABLE: Final[Table[TaskState]] = {
    Role.REQUESTER: {
        _S.IDLE: {Open: _S.OPENING},
        _S.OPENING: {Finish: _S.FINISHING},
        _S.SETUP: {BlobStart: _S.SETUP, BlobData: _S.SETUP, Finish: _S.FINISHING, Share: _S.SETUP},
        _S.RUNNING: {
            BlobStart: _S.RUNNING,
            BlobData: _S.RUNNING,
            Call: _S.RUNNING,
            Assign: _S.RUNNING,
            Cancel: _S.RUNNING,
            Finish: _S.FINISHING,
            GetState: _S.RUNNING,
            Share: _S.RUNNING,
        },
    },
    Role.PROVIDER: {
        _S.OPENING: {Opened: _S.SETUP, Refused: _S.CLOSED},
        _S.SETUP: {Ready: _S.RUNNING, ChunkError: _S.SETUP, Refused: _S.CLOSED, Notice: _S.SETUP},
        _S.RUNNING: {
            ResultStart: _S.RUNNING,
            ResultData: _S.RUNNING,
            ChunkError: _S.RUNNING,
            Notice: _S.RUNNING,
            Refused: _S.CLOSED,
            StateStart: _S.RUNNING,
            StateData: _S.RUNNING,
            StateGone: _S.RUNNING,
            Results: _S.RUNNING,
        },
        _S.FINISHING: {
            Opened: _S.FINISHING,
            Ready: _S.FINISHING,
            ResultStart: _S.FINISHING,
            ResultData: _S.FINISHING,
            ChunkError: _S.FINISHING,
            Notice: _S.FINISHING,
            Refused: _S.CLOSED,
            Closed: _S.CLOSED,
            StateStart: _S.FINISHING,
            StateData: _S.FINISHING,
            StateGone: _S.FINISHING,
            Results: _S.FINISHING,
        },
    },
}


class TaskConnection(Connection[TaskState]):
    """One task over one stream.

    Besides the table it holds: each blob was asked for and its bytes hash to its digest; each assigned chunk is
    answered once, and no other is; behind an Assign come the tiles that it takes, those that the provider does not
    hold, before the next one; a result's bytes come in one piece, as many as announced. `chunks`, `chunk_bytes` and,
    where inputs are split, `tiles` are set by whoever knows the agreement, before the first chunk.

    Of a standing agreement `call_chunks`, the chunks of one call, and `calls` are set as well. A chunk is one of a call
    that was made, and behind its Assign come the arrays of the call that the provider does not hold.

    Of work in rounds `chunk_rounds` and `state_arrays` are set as well. Chunks are then assigned, and answered, in
    ascending order, each once, and states that have come may be asked for, so many for each chunk; each question is
    answered, in order.
    """

    messages = MESSAGES
    table = TABLE
    start = _S.IDLE
    final = frozenset({_S.CLOSED})
    max_frame_bytes = MAX_DATA_FRAME_BYTES

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.chunks = 0
        self.chunk_bytes: tuple[int, int] = (0, 0)  # of a whole chunk, of the last one
        self.call_chunks = 0  # of one call; 0 where the agreement is for one launch
        self.blob_sizes: dict[bytes, int] = {}  # what the work names; a blob of another size is refused
        self.needed: set[bytes] = set()
        self.tiles: Held | None = None  # or the arrays of calls
        self.calls: CallInputs | None = None  # of a standing agreement; `tiles` is the same then
        self.outstanding: set[int] = set()
        self._blob: tuple[bytes, int] | None = None  # digest, bytes still to come
        self._hash = hashlib.sha256()
        self.fetches = False  # whether the provider takes `Share`
        self._inputs: set[bytes] = set()  # `blob_sizes` as it was when the task was opened
        self.shared: dict[bytes, tuple[bytes, bytes, int]] = {}  # by digest: root, ticket, holders named
        self._result_left = 0
        self.chunk_rounds = 0  # rounds of a whole chunk; 0 where the work is of another shape
        self.state_arrays: tuple[int, ...] = ()  # bytes of each array of a state
        self.assigned = 0  # chunks of rounds
        self.last_state = 0  # the highest that a result has named
        self.asked: list[int] = []  # states, not answered yet
        self._may_ask = 0
        self._state_left = 0
        self._was_ready = False
        self._has_not_compiled = False  # its receipt was sent: what follows is the end

    @property
    def result_is_complete(self) -> bool:
        """Whether no bytes of a result or a state are still to come."""
        return self._result_left == 0 and self._state_left == 0

    def check(self, sender: Role, message: Record) -> None:
        if sender is Role.PROVIDER and self._result_left and not isinstance(message, ResultData):
            raise LocalProtocolError("a result's bytes come in one piece", code=WireCode.OUT_OF_ORDER)
        if sender is Role.PROVIDER and self._state_left and not isinstance(message, StateData):
            raise LocalProtocolError("a state's bytes come in one piece", code=WireCode.OUT_OF_ORDER)
        if sender is Role.PROVIDER and self._has_not_compiled and not isinstance(message, Refused | Closed):
            raise LocalProtocolError("a task goes on that has not compiled", code=WireCode.OUT_OF_ORDER)
        match message:
            case Opened():
                if not self.blob_sizes.keys() >= set(message.need):
                    raise LocalProtocolError("a blob that the work does not name", code=WireCode.BAD_DIGEST)
                self.needed = set(message.need)
                self.fetches = bool(message.fetches)
                self._inputs = set(self.blob_sizes)
            case Share():
                self._share(message)
            case BlobStart():
                self._start_blob(message)
            case BlobData():
                self._take_blob(message.data)
            case Ready():
                if self.state is _S.SETUP and (self.needed or self._blob is not None):
                    raise LocalProtocolError("ready before all blobs came", code=WireCode.OUT_OF_ORDER)
                self._was_ready = True
            case Call():
                if self.calls is None:
                    raise LocalProtocolError("a call, and no standing agreement", code=WireCode.OUT_OF_ORDER)
                if self.needed or self._blob is not None:
                    raise LocalProtocolError(
                        "a call before all arrays of the last one came", code=WireCode.OUT_OF_ORDER
                    )
                self.calls.call(message)
            case Assign():
                self._assign(message)
            case Cancel():
                # A cancel may cross the chunk's answer on the wire, so the provider can't refuse it.
                if message.index >= self.chunks:
                    raise LocalProtocolError("a cancel of no chunk", code=WireCode.UNKNOWN_CHUNK, certain=True)
            case ResultStart():
                if message.index in self.outstanding and message.size != self.size_of(message.index):
                    raise LocalProtocolError(f"a result of {message.size} bytes", code=WireCode.OVERSIZED)
                self._answer(message.index)
                self._result_left = message.size
                if self.chunk_rounds:
                    self.last_state = max(self.last_state, message.index * self.chunk_rounds + message.size // 32)
                    self._may_ask += MAX_STATES_PER_CHUNK
            case Results():
                self._results(message)
            case ResultData():
                if len(message.data) > self._result_left:
                    raise LocalProtocolError("more result bytes than announced", code=WireCode.OVERSIZED)
                self._result_left -= len(message.data)
            case ChunkError():
                if self.state is _S.SETUP or (self.state is _S.FINISHING and not self._was_ready):
                    self._fail_to_compile(message.index)
                else:
                    self._answer(message.index)
            case GetState():
                if not 1 <= message.state <= self.last_state:
                    text = f"state {message.state} is not there"  # its sender knows of fewer than who sent them
                    raise LocalProtocolError(text, code=WireCode.UNKNOWN_CHUNK, certain=True)
                if not self._may_ask:
                    raise LocalProtocolError("too many states", code=WireCode.OVERSIZED)
                self._may_ask -= 1
                self.asked.append(message.state)
            case StateStart():
                if len(message.arrays) != len(self.state_arrays):
                    raise LocalProtocolError(f"a state of {len(message.arrays)} arrays")
                self._answer_state(message.state)
                self._state_left = sum(self.state_arrays)
            case StateData():
                if len(message.data) > self._state_left:
                    raise LocalProtocolError("more bytes than the state has", code=WireCode.OVERSIZED)
                self._state_left -= len(message.data)
            case StateGone():
                self._answer_state(message.state)
            case _:
                pass

    def size_of(self, index: int) -> int:
        """Bytes of the output of a chunk."""
        whole, last = self.chunk_bytes
        return last if (index + 1) % (self.call_chunks or self.chunks) == 0 else whole

    @property
    def one_by_one(self) -> bool:
        """Whether each chunk is assigned, and answered, by itself: of work in rounds, and where inputs are split."""
        return bool(self.chunk_rounds) or (self.tiles is not None and self.calls is None)

    def _results(self, message: Results) -> None:
        if self.one_by_one:
            raise LocalProtocolError("chunks of this work are answered one by one", code=WireCode.OUT_OF_ORDER)
        if not self.outstanding.issuperset(message.chunks):
            raise LocalProtocolError("one of these chunks was not asked for", code=WireCode.UNKNOWN_CHUNK)
        size = sum(map(self.size_of, message.chunks))
        if len(message.data) != size:
            raise LocalProtocolError(
                f"{len(message.data)} bytes where these chunks have {size}", code=WireCode.OVERSIZED
            )
        self.outstanding.difference_update(message.chunks)
        if self.tiles is not None:
            for index in message.chunks:
                self.tiles.answered(index)

    def _fail_to_compile(self, index: int) -> None:
        """Before anything can be assigned: what the task would have begun with has failed."""
        if self.needed or self._blob is not None:
            raise LocalProtocolError("compiled before all blobs came", code=WireCode.OUT_OF_ORDER)
        if index != 0:
            raise LocalProtocolError(f"chunk {index} where nothing was assigned", code=WireCode.UNKNOWN_CHUNK)
        self._has_not_compiled = True

    def _answer_state(self, state: int) -> None:
        if not self.asked or self.asked[0] != state:
            raise LocalProtocolError(f"state {state} was not asked for now", code=WireCode.UNKNOWN_CHUNK)
        del self.asked[0]

    def _share(self, message: Share) -> None:
        """An input that comes on other streams, or is here: it is not sent on this one. It may cross Ready."""
        if not self.fetches:
            raise LocalProtocolError("this provider takes its inputs here", code=WireCode.OUT_OF_ORDER)
        root, ticket, named = self.shared.get(message.digest, (message.root, message.ticket, -1))
        if message.digest not in self._inputs:
            raise LocalProtocolError("a blob that the work does not name", code=WireCode.BAD_DIGEST)
        if self._blob is not None and self._blob[0] == message.digest:
            raise LocalProtocolError("a blob that is on its way here", code=WireCode.OUT_OF_ORDER)
        if (root, ticket) != (message.root, message.ticket):
            raise LocalProtocolError("one blob with two roots or tickets", code=WireCode.BAD_DIGEST)
        if named >= 0 and not message.holders:
            raise LocalProtocolError("the same once more", code=WireCode.REPLAYED)
        named = max(named, 0) + len(message.holders)
        if named > MAX_HOLDERS:
            raise LocalProtocolError("too many holders", code=WireCode.OVERSIZED)
        self.shared[message.digest] = (root, ticket, named)
        self.needed.discard(message.digest)

    def _start_blob(self, message: BlobStart) -> None:
        if self._blob is not None:
            raise LocalProtocolError("a blob inside a blob", code=WireCode.OUT_OF_ORDER)
        if message.digest not in self.needed:
            raise LocalProtocolError("a blob that was not asked for", code=WireCode.BAD_DIGEST, certain=True)
        if message.size != self.blob_sizes.get(message.digest):
            raise LocalProtocolError("a blob of another size than the work says", code=WireCode.OVERSIZED)
        self._blob = (message.digest, message.size)
        self._hash = hashlib.sha256()

    def _take_blob(self, data: bytes | memoryview) -> None:
        if self._blob is None:
            raise LocalProtocolError("blob bytes without a blob", code=WireCode.OUT_OF_ORDER)
        digest, left = self._blob
        if len(data) > left:
            raise LocalProtocolError("more blob bytes than announced", code=WireCode.OVERSIZED)
        if len(data) < left:
            self._hash.update(data)
            self._blob = (digest, left - len(data))
            return
        whole = self._hash.copy()  # a sender that is refused must find everything as it was
        whole.update(data)
        if whole.digest() != digest:
            raise LocalProtocolError("a blob's bytes do not hash to its digest", code=WireCode.BAD_DIGEST)
        self._blob = None
        self.needed.discard(digest)

    def _assign(self, message: Assign) -> None:
        index, chunks = message.index, message.chunks
        if self.needed or self._blob is not None:
            raise LocalProtocolError("a chunk before all tiles of the last one came", code=WireCode.OUT_OF_ORDER)
        if message.count is not None and self.one_by_one:
            raise LocalProtocolError("chunks of this work are assigned one by one", code=WireCode.OUT_OF_ORDER)
        if self.call_chunks and index // self.call_chunks != chunks[-1] // self.call_chunks:
            raise LocalProtocolError("chunks of two calls in one message", code=WireCode.OUT_OF_ORDER)
        if chunks[-1] >= self.chunks:
            text = f"chunk {chunks[-1]} of {self.chunks}"
            raise LocalProtocolError(text, code=WireCode.UNKNOWN_CHUNK, certain=True)
        if not self.outstanding.isdisjoint(chunks):
            text = f"chunk {index}, or one behind it, is assigned already"  # its sender sees the answers last
            raise LocalProtocolError(text, code=WireCode.REPLAYED, certain=True)
        if len(self.outstanding) + len(chunks) > MAX_INFLIGHT_CHUNKS:
            raise LocalProtocolError("too many chunks under way", code=WireCode.OVERSIZED)
        if self.tiles is not None:
            missing = self.tiles.assign(index)
            self.blob_sizes = missing
            self.needed = set(missing)
            for other in chunks[1:]:  # of the same call: they need the same
                self.tiles.assign(other)
        if self.chunk_rounds:
            if index != self.assigned:
                raise LocalProtocolError("chunks of rounds are assigned in order", code=WireCode.OUT_OF_ORDER)
            self.assigned += 1
        self.outstanding.update(chunks)

    def _answer(self, index: int) -> None:
        if index not in self.outstanding:
            raise LocalProtocolError(f"chunk {index} was not asked for", code=WireCode.UNKNOWN_CHUNK)
        if self.chunk_rounds and index != min(self.outstanding):
            raise LocalProtocolError(f"rounds of chunk {index} before earlier ones", code=WireCode.OUT_OF_ORDER)
        self.outstanding.remove(index)
        if self.tiles is not None:
            self.tiles.answered(index)
