"""The task stream: open, send inputs, hand out chunks, take results and receipts, finish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from ..errors import LocalProtocolError, WireCode
from ..limits import (
    MAX_ADDRESSES,
    MAX_ARGS,
    MAX_BATCH_CHUNKS,
    MAX_BLOB_BYTES,
    MAX_CHUNKS,
    MAX_CREDIT_WINDOW,
    MAX_ENVELOPE_BYTES,
    MAX_HOLDERS,
    MAX_INFLIGHT_CHUNKS,
    MAX_LEAVES,
    MAX_OUTPUT_BYTES,
    MAX_SLOTS,
    MAX_TEXT,
)
from ..wire import Array, Bytes, Choice, Flag, Nested, OneOf, Peer, Record, Text, Uint, optional, record, wire
from ..work import ArrayArg, ScalarArg

__all__ = [
    "BATCH_BYTES",
    "DATA_BYTES",
    "MESSAGES",
    "PROTOCOL_ID",
    "RECEIPTS_KIND",
    "RECEIPT_KIND",
    "Assign",
    "BlobData",
    "BlobStart",
    "Call",
    "CallArg",
    "Cancel",
    "ChunkError",
    "Closed",
    "Finish",
    "GetState",
    "Holder",
    "Notice",
    "Open",
    "Opened",
    "Ready",
    "ReceiptPayload",
    "ReceiptsPayload",
    "Refused",
    "ResultData",
    "ResultStart",
    "Results",
    "Share",
    "StateData",
    "StateGone",
    "StateStart",
]

PROTOCOL_ID: Final = "/p2pcompute/task/3"
RECEIPT_KIND: Final = "receipt"
RECEIPTS_KIND: Final = "receipts"
DATA_BYTES: Final = 256 * 1024  # of a blob or an output in one frame
BATCH_BYTES: Final = 192 * 1024  # of the outputs of several chunks in one frame
_RECEIPT_BYTES: Final = 4 * 1024
_RECEIPTS_BYTES: Final = 1024  # an envelope over 32 bytes of a task, 32 of a root, and a number

CallArg: TypeAlias = ScalarArg | ArrayArg


@record
class ReceiptPayload(Record):
    """What a provider signs for a chunk. `code` is 0 for a result, else the `WireCode` of the failure.

    `output` is SHA-256 over the chunk's output bytes; 32 zero bytes where it failed. A provider signs at most
    one receipt with code 0 for an index of a task. In a standing agreement `call` is SHA-256 of the `Call` that the
    chunk belongs to, as it was sent.
    """

    task: bytes = wire(1, Bytes(32))
    index: int = wire(2, Uint(0, MAX_CHUNKS - 1))
    code: int = wire(3, Uint(0, 255))
    output: bytes = wire(4, Bytes(32))
    fp: str = wire(5, Choice("strict", "fast"))
    units: int = wire(6, Uint())
    finished_ms: int = wire(7, Uint())
    detail: str | None = optional(8, Text(MAX_TEXT), default=None)
    call: bytes | None = optional(9, Bytes(32), default=None)

    def validate(self) -> None:
        if self.code != 0 and (self.output != bytes(32) or self.units != 0):
            raise LocalProtocolError("a failed chunk has no output and costs nothing")


@record
class ReceiptsPayload(Record):
    """What a provider signs for several chunks of a task at once: the root of the tree whose leaves are their
    `ReceiptPayload`s as encoded, `leaves` of them."""

    task: bytes = wire(1, Bytes(32))
    root: bytes = wire(2, Bytes(32))
    leaves: int = wire(3, Uint(2, MAX_BATCH_CHUNKS))


@record
class Open(Record):
    """Requester: begin the task of this agreement."""

    TYPE = 1
    agreement: bytes = wire(1, Bytes(1, MAX_ENVELOPE_BYTES))


@record
class BlobStart(Record):
    """Requester: the bytes of a blob that the provider asked for follow."""

    TYPE = 2
    digest: bytes = wire(1, Bytes(32))
    size: int = wire(2, Uint(1, MAX_BLOB_BYTES))


@record
class BlobData(Record):
    """Requester: the next bytes of the blob."""

    TYPE = 3
    data: bytes | memoryview = wire(1, Bytes(1, DATA_BYTES, bulk=True))


@record
class Assign(Record):
    """Requester: compute this chunk, or this and those behind it, `count` of them. Each of them is answered by exactly
    one result or error."""

    TYPE = 4
    index: int = wire(1, Uint(0, MAX_CHUNKS - 1))
    count: int | None = optional(2, Uint(2, MAX_INFLIGHT_CHUNKS), default=None)

    @property
    def chunks(self) -> range:
        """The chunks that it assigns."""
        return range(self.index, self.index + (self.count or 1))


@record
class Cancel(Record):
    """Requester: this chunk is not needed any more; a result on its way still counts."""

    TYPE = 5
    index: int = wire(1, Uint(0, MAX_CHUNKS - 1))


@record
class Finish(Record):
    """Requester: no more chunks will be assigned, and what is under way is cancelled."""

    TYPE = 6
    code: int = wire(1, Uint(0, 255))
    detail: str = wire(2, Text(MAX_TEXT))


@record
class GetState(Record):
    """Requester, of work in rounds: give the state after round `state`. Each is answered, in their order."""

    TYPE = 7
    state: int = wire(1, Uint(1, MAX_LEAVES - 1))


@record
class Holder(Record):
    """A peer that holds a blob, or is getting it, and where it may be reached."""

    peer: str = wire(1, Peer())
    addresses: tuple[str, ...] = wire(2, Array(Text(256, 1), MAX_ADDRESSES))


@record
class Share(Record):
    """Requester: this input is one that its holders may give to each other. Get it on blob streams where it is needed,
    from these and from us, and serve it to whoever shows the ticket, until the task ends. The same again names further
    holders."""

    TYPE = 8
    digest: bytes = wire(1, Bytes(32))
    root: bytes = wire(2, Bytes(32))
    ticket: bytes = wire(3, Bytes(32))
    holders: tuple[Holder, ...] = wire(4, Array(Nested(Holder), MAX_HOLDERS))


@record
class Call(Record):
    """Requester, of a standing agreement: the next call has these inputs, in the order of the work's without its
    outputs, and of the same types and shapes. Calls count from 0; with n chunks in the work, call c has the chunks from
    c × n to c × n + n - 1."""

    TYPE = 9
    call: int = wire(1, Uint(0, MAX_CHUNKS - 1))
    args: tuple[CallArg, ...] = wire(2, Array(OneOf({1: ScalarArg, 2: ArrayArg}), MAX_ARGS))


@record
class Opened(Record):
    """Provider: the task is open; `need` are the digests of the blobs that it does not have. `fetches` where it takes
    `Share` for them."""

    TYPE = 17
    need: tuple[bytes, ...] = wire(1, Array(Bytes(32), 64))
    slots: int = wire(2, Uint(1, MAX_SLOTS))
    window: int = wire(3, Uint(1, MAX_CREDIT_WINDOW))
    fetches: bool | None = optional(4, Flag(), default=None)


@record
class Ready(Record):
    """Provider: compiled; chunks may be assigned."""

    TYPE = 18
    compile_ms: int = wire(1, Uint())


@record
class Refused(Record):
    """Provider: the task can't be opened or can't go on; the stream ends."""

    TYPE = 19
    code: int = wire(1, Uint(1, 255))
    detail: str = wire(2, Text(MAX_TEXT))
    line: int | None = optional(3, Uint(0, 2**20), default=None)


@record
class ResultStart(Record):
    """Provider: a chunk is done; `size` bytes of output follow. The receipt is in its envelope."""

    TYPE = 20
    index: int = wire(1, Uint(0, MAX_CHUNKS - 1))
    receipt: bytes = wire(2, Bytes(1, _RECEIPT_BYTES))
    size: int = wire(3, Uint(1, MAX_OUTPUT_BYTES))


@record
class ResultData(Record):
    """Provider: the next bytes of the output."""

    TYPE = 21
    data: bytes | memoryview = wire(1, Bytes(1, DATA_BYTES, bulk=True))


@record
class ChunkError(Record):
    """Provider: a chunk failed; the receipt in its envelope says why. Before `Ready` it is chunk 0, for which the work
    was to be compiled: that failed, and `Refused` follows."""

    TYPE = 22
    index: int = wire(1, Uint(0, MAX_CHUNKS - 1))
    receipt: bytes = wire(2, Bytes(1, _RECEIPT_BYTES))


@record
class Notice(Record):
    """Provider: pause, resume, drain (no more chunks), or a new credit window."""

    TYPE = 23
    kind: str = wire(1, Choice("pause", "resume", "drain", "window"))
    window: int | None = optional(2, Uint(1, MAX_CREDIT_WINDOW), default=None)
    after_ms: int | None = optional(3, Uint(), default=None)
    detail: str | None = optional(4, Text(MAX_TEXT), default=None)

    def validate(self) -> None:
        if (self.kind == "window") != (self.window is not None):
            raise LocalProtocolError("a window notice, and only that, names the window", code=WireCode.MALFORMED)


@record
class Closed(Record):
    """Provider: answers `Finish`; nothing follows."""

    TYPE = 24
    chunks: int = wire(1, Uint(0, MAX_CHUNKS))


@record
class StateStart(Record):
    """Provider: the state follows, array after array; `arrays` are their digests, in the order of the work's state."""

    TYPE = 25
    state: int = wire(1, Uint(1, MAX_LEAVES - 1))
    arrays: tuple[bytes, ...] = wire(2, Array(Bytes(32), MAX_ARGS, 1))


@record
class StateData(Record):
    """Provider: the next bytes of the state."""

    TYPE = 26
    data: bytes | memoryview = wire(1, Bytes(1, DATA_BYTES, bulk=True))


@record
class StateGone(Record):
    """Provider: the state can't be given; `code` is a `WireCode`."""

    TYPE = 27
    state: int = wire(1, Uint(1, MAX_LEAVES - 1))
    code: int = wire(2, Uint(1, 255))
    detail: str = wire(3, Text(MAX_TEXT))


@record
class Results(Record):
    """Provider: chunk `index` and those behind it are done, `count` of them; `data` is their outputs, one behind the
    other. `receipts` is an envelope over the root of their receipts, which follow from this message and the agreement
    (`batch_payloads`)."""

    TYPE = 30
    index: int = wire(1, Uint(0, MAX_CHUNKS - 1))
    count: int = wire(2, Uint(2, MAX_BATCH_CHUNKS))
    finished_ms: int = wire(3, Uint())
    receipts: bytes = wire(4, Bytes(1, _RECEIPTS_BYTES))
    data: bytes = wire(5, Bytes(2, BATCH_BYTES))

    @property
    def chunks(self) -> range:
        """The chunks that it answers."""
        return range(self.index, self.index + self.count)


MESSAGES: Final[Mapping[int, type[Record]]] = {
    cls.TYPE: cls
    for cls in (
        Open,
        BlobStart,
        BlobData,
        Assign,
        Cancel,
        Finish,
        GetState,
        Share,
        Call,
        Opened,
        Ready,
        Refused,
        ResultStart,
        ResultData,
        ChunkError,
        Notice,
        Closed,
        StateStart,
        StateData,
        StateGone,
        Results,
    )
}
