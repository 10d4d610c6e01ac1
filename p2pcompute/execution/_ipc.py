"""What node and worker say to each other: one canonical CBOR array per packet of a SOCK_SEQPACKET socket pair.

A packet keeps its boundaries, so no length is ever believed. Arrays travel as descriptors of sealed memfds, from
the node to the worker only. The node takes the worker for hostile: whatever does not parse as the one reply that
is due is a `WorkerProtocolError`. The worker parses as strictly.

======================= ============================================================ ======================
node to worker          fields after the operation and the request ID                descriptors
======================= ============================================================ ======================
COMPILE                 text, entry, digest, grid, block, dims, arguments, fp        one per input array
RUN_BLOCKS              first block, blocks, arena bytes                             the arena, if bytes > 0
RUN_THREADS             number of threads, arena bytes                               the arena, if bytes > 0
WINDOWS                 [origin, shape] of each split input's window, arena bytes    the arena, if bytes > 0
COMPILE_STEP            place, state, and the same as for COMPILE                    one per constant array
RUN_ROUNDS              number of the first round, rounds, arena bytes               the arena, if bytes > 0
ARGUMENTS               [position, value or offset] of each, arena bytes             the arena, if bytes > 0
CANCEL                  (nothing; the ID is that of the request to stop)
======================= ============================================================ ======================

======================= ============================================================
worker to node
======================= ============================================================
READY (ID 0)            Landlock ABI, whether seccomp is on
COMPILED                row shapes of the outputs, items of a block
PROGRESS                blocks done so far, of a RUN_BLOCKS that goes on
DONE                    nothing, or nanoseconds that a device computed
CANCELLED               (nothing; the answer to a CANCEL that came in time)
FAILED                  kind, reason, line, filename, instead
======================= ============================================================

A run is several launches (`_worker_launches`), and the worker looks for a CANCEL between them. One that comes too
late crosses the answer, and the worker drops it: there is exactly one of COMPILED, DONE, CANCELLED and FAILED for each
request. PROGRESS rises, stays below the blocks that were asked for, and comes at most once in `PROGRESS_NS`.
COMPILE_STEP and RUN_ROUNDS, which `_ipc_rounds` writes and reads, are answered by DONE, as WINDOWS and ARGUMENTS are.

An *arena* is a memfd of the node that holds the outputs of one run behind each other, each 64-byte aligned, and
before them, for RUN_THREADS, the thread ids as int64. It is sealed against a change of size, so that a worker can
neither shorten it under a reader nor make it eat memory. WINDOWS has another one, with the windows of the split inputs
behind each other, each 64-byte aligned; they are what runs load from until the next WINDOWS. ARGUMENTS has a third one:
the arrays that it names stand in the place of those of COMPILE, as its scalars do, until the next ARGUMENTS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import cbor2
import numpy as np

from p2pcompute.execution._api import ArgSpec, InputSpec, Launch, OutputSpec, ScalarSpec, SplitSpec
from p2pcompute.execution._language import MAX_SOURCE_BYTES
from p2pcompute.execution._operations import OPERATIONS

__all__ = [
    "ALIGNMENT",
    "ARGUMENTS",
    "CANCEL",
    "CANCELLED",
    "COMPILE",
    "COMPILED",
    "COMPILE_STEP",
    "DONE",
    "DTYPES",
    "FAILED",
    "FP_MODES",
    "MAX_ARGUMENTS",
    "MAX_DIMENSIONS",
    "MAX_EXTENT",
    "MAX_PACKET_BYTES",
    "MAX_REPLY_BYTES",
    "MAX_SOURCE_BYTES",
    "MAX_TEXT",
    "PROGRESS",
    "PROGRESS_NS",
    "READY",
    "RUN_BLOCKS",
    "RUN_ROUNDS",
    "RUN_THREADS",
    "WINDOWS",
    "Failure",
    "FrameError",
    "Layout",
    "Packet",
    "check_launch",
    "decode",
    "decode_arguments",
    "encode",
    "encode_arguments",
    "encode_numbers",
    "layout",
    "take_arguments",
    "take_bytes",
    "take_int",
    "take_ints",
    "take_list",
    "take_text",
    "take_windows",
]

Packet: TypeAlias = list[Any]

READY: Final = 0
COMPILE: Final = 1
RUN_BLOCKS: Final = 2
RUN_THREADS: Final = 3
COMPILED: Final = 4
DONE: Final = 5
FAILED: Final = 6
CANCEL: Final = 7
PROGRESS: Final = 8
CANCELLED: Final = 9
WINDOWS: Final = 10
COMPILE_STEP: Final = 11
RUN_ROUNDS: Final = 12
ARGUMENTS: Final = 13

FP_MODES: Final = ("strict", "fast")

MAX_PACKET_BYTES: Final = 160 << 10
"""The largest packet that the node sends; it has to fit into the default socket buffer (208 KiB)."""
MAX_REPLY_BYTES: Final = 16 << 10
"""The largest packet that a worker may send."""
MAX_ARGUMENTS: Final = 64
MAX_DIMENSIONS: Final = 4
MAX_EXTENT: Final = 1 << 48
MAX_TEXT: Final = 2000
"""Characters of one text in a FAILED packet; a longer one is cut."""
PROGRESS_NS: Final = 100_000_000
"""The worker says how far it is no more often than this."""
MAX_DEPTH: Final = 6
MAX_ITEMS: Final = 2000
ALIGNMENT: Final = 64

DTYPES: Final = {
    name: np.dtype(name)
    for name in (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float32",
        "float64",
    )
}


class FrameError(ValueError):
    """A packet is not canonical CBOR of the small subset that is spoken here, or not of the shape that is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The fields of a FAILED packet. `kind`: one of the constants below."""

    KERNEL = 0
    KERNEL_TYPE = 1
    EXECUTION = 2
    SANDBOX = 3
    GUARD = 4  # as KERNEL and KERNEL_TYPE, where the guard says so
    GUARD_TYPE = 5

    kind: int
    reason: str
    line: int = 0
    filename: str = ""
    instead: str = ""


def encode(packet: Sequence[Any], *, limit: int = MAX_PACKET_BYTES) -> bytes:
    """Canonical CBOR of `packet`. Raises `FrameError` past `limit` bytes."""
    frame = cbor2.dumps(list(packet), canonical=True)
    if len(frame) > limit:
        raise FrameError(f"a packet of {len(frame)} bytes is over the limit of {limit}")
    return frame


def encode_numbers(*numbers: int) -> bytes:
    """What `encode` gives for an array of two to 23 integers from 0 to 2**64 - 1: most packets are that, and a small
    chunk takes hardly longer than its packets."""
    pieces = [_ARRAYS[len(numbers)]]
    for number in numbers:
        if number < 24:
            pieces.append(_SMALL[number])
        else:
            width = 1 if number < 1 << 8 else 2 if number < 1 << 16 else 4 if number < 1 << 32 else 8
            pieces.append(_WIDTHS[width] + number.to_bytes(width, "big"))
    return b"".join(pieces)


_ARRAYS: Final = tuple(bytes((0x80 + count,)) for count in range(24))
_SMALL: Final = tuple(bytes((number,)) for number in range(24))
_WIDTHS: Final = {1: b"\x18", 2: b"\x19", 4: b"\x1a", 8: b"\x1b"}


def _numbers(frame: bytes) -> Packet | None:
    """The packet where it is what `encode_numbers` makes; None for any other."""
    count, size = frame[0] - 0x80, len(frame)
    if not 2 <= count < 24:
        return None
    found: Packet = []
    at = 1
    for _ in range(count):
        if at >= size:
            return None
        number = frame[at]
        at += 1
        if number >= 24:
            if number > 27:
                return None
            width = 1 << (number - 24)
            number = int.from_bytes(frame[at : at + width], "big")
            at += width
            if at > size or (number < 24 if width == 1 else number >> 4 * width == 0):
                return None  # cut short, or longer than it has to be
        found.append(number)
    return found if at == size else None


def decode(frame: bytes, *, limit: int) -> Packet:
    """The array in `frame`: integers, byte and text strings, arrays and booleans, nothing else.

    Raises `FrameError` for anything else: tags, maps, floats, indefinite lengths, trailing bytes, a nesting deeper
    than `MAX_DEPTH`, more than `MAX_ITEMS` items, or an encoding that is not the canonical one.
    """
    if not 0 < len(frame) <= limit:
        raise FrameError(f"a packet of {len(frame)} bytes, outside 1 to {limit}")
    packet: Any = _numbers(frame)
    if packet is not None:
        return cast("Packet", packet)
    _scan(frame)
    try:
        packet = cbor2.loads(frame, max_depth=MAX_DEPTH + 2, allow_indefinite=False)
        again = cbor2.dumps(packet, canonical=True)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise FrameError(f"not CBOR: {error}") from None
    if again != frame:
        raise FrameError("not canonical CBOR")
    if not isinstance(packet, list) or len(packet) < 2:
        raise FrameError("not an array of an operation and an ID")
    return packet


def _scan(frame: bytes) -> None:
    """Refuse what the subset leaves out before a decoder acts on it (a tag can mean a regex or a bignum)."""
    position = 0
    items = 0
    open_arrays = [1]  # items still due, per level
    while open_arrays:
        if open_arrays[-1] == 0:
            open_arrays.pop()
            continue
        open_arrays[-1] -= 1
        items += 1
        if items > MAX_ITEMS or position >= len(frame):
            raise FrameError("too many items" if items > MAX_ITEMS else "cut short")
        major, info = frame[position] >> 5, frame[position] & 31
        position += 1
        value = info
        if info >= 24:
            width = 1 << (info - 24) if info <= 27 else 0
            if width == 0 or position + width > len(frame):
                raise FrameError("an indefinite, reserved or cut length")
            value = int.from_bytes(frame[position : position + width], "big")
            position += width
        if major in (2, 3):
            position += value
            if position > len(frame):
                raise FrameError("a string longer than its packet")
        elif major == 4:
            if value > MAX_ITEMS or len(open_arrays) > MAX_DEPTH:
                raise FrameError("an array too long or too deep")
            open_arrays.append(value)
        elif major in (5, 6) or (major == 7 and (info not in (20, 21))):
            raise FrameError("a map, a tag or a simple value that is not spoken here")
    if position != len(frame):
        raise FrameError("bytes behind the packet")


def take_int(value: Any, *, low: int, high: int) -> int:
    """`value` if it is an int (not a bool) within [low, high]. Raises `FrameError`."""
    if type(value) is not int or not low <= value <= high:
        raise FrameError(f"not an integer from {low} to {high}")
    return value


def take_text(value: Any, *, limit: int) -> str:
    """`value` if it is a text of at most `limit` characters. Raises `FrameError`."""
    if type(value) is not str or len(value) > limit:
        raise FrameError(f"not a text of at most {limit} characters")
    return value


def take_bytes(value: Any, *, limit: int) -> bytes:
    """`value` if it is a byte string of at most `limit` bytes. Raises `FrameError`."""
    if type(value) is not bytes or len(value) > limit:
        raise FrameError(f"not a byte string of at most {limit} bytes")
    return value


def take_list(value: Any, *, low: int = 0, high: int) -> list[Any]:
    """`value` if it is an array of `low` to `high` items. Raises `FrameError`."""
    if type(value) is not list or not low <= len(value) <= high:
        raise FrameError(f"not an array of {low} to {high} items")
    return value


def take_ints(value: Any, *, count: tuple[int, int], low: int, high: int) -> tuple[int, ...]:
    """`value` as a tuple if it is an array of integers. Raises `FrameError`."""
    items = take_list(value, low=count[0], high=count[1])
    return tuple(take_int(item, low=low, high=high) for item in items)


def take_split(value: Any) -> SplitSpec:
    """Axes, halo and edge rule of a split input. Raises `FrameError`."""
    axes, halo, edge = take_list(value, low=3, high=3)
    return SplitSpec(
        axes=take_ints(axes, count=(1, 3), low=0, high=2),
        halo=take_ints(halo, count=(1, 3), low=0, high=MAX_EXTENT),
        edge=take_text(edge, limit=16),
    )


def take_windows(value: Any, specs: Sequence[InputSpec]) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Origin, shape and place in the arena of the window of each split input. Raises `FrameError`."""
    found: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []
    offset = 0
    for item, spec in zip(take_list(value, low=len(specs), high=len(specs)), specs, strict=True):
        origin, shape = take_list(item, low=2, high=2)
        axes = (len(spec.shape), len(spec.shape))
        lengths = take_ints(shape, count=axes, low=1, high=MAX_EXTENT)
        found.append((take_ints(origin, count=axes, low=-MAX_EXTENT, high=MAX_EXTENT), lengths, offset))
        offset = _align(offset + math.prod(lengths) * DTYPES[spec.dtype].itemsize)
    return found


def encode_arguments(args: Sequence[ArgSpec]) -> list[Any]:
    """Argument specs as CBOR items. A scalar's value travels as its little-endian bytes, so its bits survive."""
    items: list[Any] = []
    for arg in args:
        if isinstance(arg, ScalarSpec):
            value = np.asarray(arg.value, dtype=DTYPES[arg.dtype])
            items.append([5 if arg.varies else 0, arg.dtype, value.tobytes()])
        elif isinstance(arg, InputSpec) and arg.split is not None:
            items.append([4, arg.dtype, [list(arg.shape), list(arg.split.axes), list(arg.split.halo), arg.split.edge]])
        elif isinstance(arg, OutputSpec) and arg.reduce is not None:
            items.append([3, arg.dtype, [arg.reduce, *arg.shape]])
        else:
            items.append([1 if isinstance(arg, InputSpec) else 2, arg.dtype, list(arg.shape)])
    return items


def decode_arguments(value: Any) -> list[ArgSpec]:
    """The reverse of `encode_arguments`. Raises `FrameError`."""
    args: list[ArgSpec] = []
    for item in take_list(value, high=MAX_ARGUMENTS):
        kind, dtype, rest = take_list(item, low=3, high=3)
        take_int(kind, low=0, high=5)
        if take_text(dtype, limit=16) not in DTYPES:
            raise FrameError(f"unknown dtype {dtype!r}")
        if kind in (0, 5):
            raw = take_bytes(rest, limit=8)
            if len(raw) != DTYPES[dtype].itemsize:
                raise FrameError("a scalar of the wrong width")
            value = np.frombuffer(raw, dtype=DTYPES[dtype])[0]
            args.append(ScalarSpec(dtype=dtype, value=value, varies=kind == 5))
        elif kind == 3:
            operation, *extents = take_list(rest, low=1, high=1 + MAX_DIMENSIONS)
            if take_text(operation, limit=16) not in OPERATIONS:
                raise FrameError(f"unknown operation {operation!r}")
            shape = take_ints(extents, count=(0, MAX_DIMENSIONS), low=0, high=MAX_EXTENT)
            args.append(OutputSpec(dtype=dtype, shape=shape, reduce=operation))
        elif kind == 4:
            extents, *split = take_list(rest, low=4, high=4)
            shape = take_ints(extents, count=(0, MAX_DIMENSIONS), low=0, high=MAX_EXTENT)
            args.append(InputSpec(dtype=dtype, shape=shape, split=take_split(split)))
        else:
            shape = take_ints(rest, count=(0, MAX_DIMENSIONS), low=0, high=MAX_EXTENT)
            args.append(InputSpec(dtype=dtype, shape=shape) if kind == 1 else OutputSpec(dtype=dtype, shape=shape))
    return args


def take_arguments(value: Any, specs: Sequence[ArgSpec]) -> list[tuple[int, Any]]:
    """(Position, a scalar's value or an array's offset) of each argument of ARGUMENTS, ascending. Raises `FrameError`,
    also for a scalar from whose value something may have been proved."""
    found: list[tuple[int, Any]] = []
    least = 0
    for item in take_list(value, high=MAX_ARGUMENTS):
        position, given = take_list(item, low=2, high=2)
        position = take_int(position, low=least, high=len(specs) - 1)
        least = position + 1
        spec = specs[position]
        if isinstance(spec, ScalarSpec) and spec.varies:
            raw = take_bytes(given, limit=8)
            if len(raw) != DTYPES[spec.dtype].itemsize:
                raise FrameError("a scalar of the wrong width")
            found.append((position, np.frombuffer(raw, dtype=DTYPES[spec.dtype])[0]))
        elif isinstance(spec, InputSpec) and spec.split is None:
            offset = take_int(given, low=0, high=MAX_EXTENT)
            if offset % ALIGNMENT:
                raise FrameError("an array that is not aligned")
            found.append((position, offset))
        else:
            raise FrameError(f"argument {position} has no other values")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where things lie in an arena. `spans[k]`: offset and size in bytes of output k; the ids start at 0."""

    ids_bytes: int
    spans: tuple[tuple[int, int], ...]
    total_bytes: int


def layout(
    outputs: Sequence[OutputSpec], row_shapes: Sequence[tuple[int, ...]], threads: int, *, with_ids: bool
) -> Layout:
    """The layout of a run of `threads` threads; both sides compute it from what they know."""
    ids_bytes = threads * 8 if with_ids else 0
    offset = _align(ids_bytes)
    spans: list[tuple[int, int]] = []
    for output, row in zip(outputs, row_shapes, strict=True):
        size = threads * math.prod(row) * DTYPES[output.dtype].itemsize
        spans.append((offset, size))
        offset = _align(offset + size)
    return Layout(ids_bytes=ids_bytes, spans=tuple(spans), total_bytes=offset)


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def check_launch(grid: Any, block: Any, dims: Any) -> Launch:
    """A `Launch` from the wire. Raises `FrameError`."""
    shape_grid = take_ints(grid, count=(3, 3), low=1, high=MAX_EXTENT)
    shape_block = take_ints(block, count=(3, 3), low=1, high=MAX_EXTENT)
    return Launch(
        grid=(shape_grid[0], shape_grid[1], shape_grid[2]),
        block=(shape_block[0], shape_block[1], shape_block[2]),
        dims=take_int(dims, low=1, high=3),
    )
