"""What can be worked on: a union from the start, so that other shapes of work need no new agreement.

`ChunkWork` is a kernel launch cut into block-aligned chunks, `ProgramWork` calls of an installed program cut into runs
of items, `RoundWork` launches that are repeated on a state, cut into runs of rounds. Tag 2 (tick: metered time of a
lease or service) is reserved and refused as unsupported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from ._split import EDGES, launch_window_bytes
from .errors import LocalProtocolError, WireCode
from .limits import (
    MAX_ARGS,
    MAX_BLOB_BYTES,
    MAX_CHUNKS,
    MAX_DIMS,
    MAX_HALO,
    MAX_KERNEL_BYTES,
    MAX_LAUNCHES,
    MAX_LEAVES,
    MAX_NAME,
    MAX_OUTPUT_BYTES,
    MAX_PROGRAM_NAME,
    MAX_SPLIT_BYTES,
    MAX_TILE_BYTES,
    MAX_TILES,
    MAX_WINDOW_BYTES,
)
from .wire import Array, Bytes, Choice, Nested, OneOf, Record, Text, Uint, optional, record, wire

__all__ = [
    "DTYPES",
    "REDUCE",
    "WORK",
    "ArrayArg",
    "BlobRef",
    "ChunkWork",
    "LaunchSpec",
    "NextArg",
    "OutArg",
    "ProgramRef",
    "ProgramWork",
    "RoundArg",
    "RoundLaunch",
    "RoundSplit",
    "RoundWork",
    "ScalarArg",
    "SplitArg",
    "StateArg",
    "StepArg",
    "Work",
    "WorkArg",
    "can_reduce",
    "state_digest",
]

# name -> bytes
DTYPES: Final = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float32": 4,
    "float64": 8,
}
REDUCE: Final = ("sum", "prod", "min", "max", "and", "or", "xor")
_DTYPE = Choice(*DTYPES)
_SHAPE = Array(Uint(1, 2**40), MAX_DIMS, 1)


def can_reduce(operation: str, dtype: str) -> bool:
    """Whether values of `dtype` can be combined by `operation`: bitwise ones take no floats, and bools no others."""
    bitwise = operation in ("and", "or", "xor")
    return operation in REDUCE and (not dtype.startswith("float") if bitwise else dtype != "bool")


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    total = DTYPES[dtype]
    for extent in shape:
        total *= extent
    return total


@record
class BlobRef(Record):
    """Bytes by content: SHA-256 and size."""

    digest: bytes = wire(1, Bytes(32))
    size: int = wire(2, Uint(0, MAX_BLOB_BYTES))


@record
class ScalarArg(Record):
    """A scalar argument; `value` is its little-endian bytes, as wide as the dtype."""

    dtype: str = wire(1, _DTYPE)
    value: bytes = wire(2, Bytes(1, 8))

    def validate(self) -> None:
        if len(self.value) != DTYPES[self.dtype]:
            raise LocalProtocolError(f"a {self.dtype} has {DTYPES[self.dtype]} bytes")


@record
class ArrayArg(Record):
    """A read-only input array: C order, little-endian."""

    dtype: str = wire(1, _DTYPE)
    shape: tuple[int, ...] = wire(2, _SHAPE)
    digest: bytes = wire(3, Bytes(32))

    def validate(self) -> None:
        if self.nbytes > MAX_BLOB_BYTES:
            raise LocalProtocolError(f"an input of {self.nbytes} bytes", code=WireCode.OVERSIZED)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return _nbytes(self.dtype, self.shape)


@record
class OutArg(Record):
    """An output array, of which each thread writes its own row. `reduce` is the operation by which the rows of a
    block's threads become one; without it each stands for itself."""

    dtype: str = wire(1, _DTYPE)
    shape: tuple[int, ...] = wire(2, _SHAPE)
    reduce: str | None = optional(3, Choice(*REDUCE), default=None)

    def validate(self) -> None:
        if self.reduce is not None and not can_reduce(self.reduce, self.dtype):
            raise LocalProtocolError(f"values of {self.dtype} are not combined by {self.reduce}")

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return _nbytes(self.dtype, self.shape)


@record
class SplitArg(Record):
    """A read-only input that is sent in tiles: each provider gets those that its chunks need.

    The array's first axes run along the launch's grid axes `axes` (0 is x), each once, and a thread reads no further
    than `halo` from its own place there; the array's other axes are whole. `tile` are a tile's lengths; the last one
    along an axis may be shorter. `manifest` is SHA-256 over the tiles' SHA-256, one behind the other, in C order of
    the tiles; a tile's bytes are its elements in C order, little-endian.
    """

    dtype: str = wire(1, _DTYPE)
    shape: tuple[int, ...] = wire(2, _SHAPE)
    tile: tuple[int, ...] = wire(3, _SHAPE)
    axes: tuple[int, ...] = wire(4, Array(Uint(0, 2), 3, 1))
    halo: tuple[int, ...] = wire(5, Array(Uint(0, MAX_HALO), 3, 1))
    edge: str = wire(6, Choice(*EDGES))
    manifest: bytes = wire(7, Bytes(32))

    def validate(self) -> None:
        if len(self.tile) != len(self.shape) or any(t > n for t, n in zip(self.tile, self.shape, strict=True)):
            raise LocalProtocolError("a tile is no larger than its array, along each axis")
        _check_axes(self.axes, self.halo)
        if len(self.axes) > len(self.shape):
            raise LocalProtocolError("a split array has an axis for each of the grid's")
        if self.nbytes > MAX_SPLIT_BYTES:
            raise LocalProtocolError(f"a split input of {self.nbytes} bytes", code=WireCode.OVERSIZED)
        if _nbytes(self.dtype, self.tile) > MAX_TILE_BYTES or self.tiles > MAX_TILES:
            raise LocalProtocolError(
                f"{self.tiles} tiles of {_nbytes(self.dtype, self.tile)} bytes", code=WireCode.OVERSIZED
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return _nbytes(self.dtype, self.shape)

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype]

    @property
    def tile_counts(self) -> tuple[int, ...]:
        """Tiles along each axis."""
        return tuple(-(-n // t) for n, t in zip(self.shape, self.tile, strict=True))

    @property
    def tiles(self) -> int:
        """How many tiles there are."""
        total = 1
        for count in self.tile_counts:
            total *= count
        return total

    @property
    def manifest_bytes(self) -> int:
        """Bytes of the manifest."""
        return 32 * self.tiles

    def tile_number(self, place: Sequence[int]) -> int:
        """The number of the tile at `place` among the tiles."""
        number = 0
        for at, count in zip(place, self.tile_counts, strict=True):
            number = number * count + at
        return number

    def tile_box(self, number: int) -> tuple[tuple[int, int], ...]:
        """The indices, (first, behind the last) along each axis, that a tile covers."""
        found: list[tuple[int, int]] = []
        for count, tile, length in zip(
            reversed(self.tile_counts), reversed(self.tile), reversed(self.shape), strict=True
        ):
            number, at = divmod(number, count)
            found.append((at * tile, min((at + 1) * tile, length)))
        return tuple(reversed(found))

    def tile_bytes(self, number: int) -> int:
        """Bytes of a tile."""
        return _nbytes(self.dtype, tuple(high - low for low, high in self.tile_box(number)))


def _check_axes(axes: tuple[int, ...], halo: tuple[int, ...]) -> None:
    if sorted(axes) != list(range(len(axes))):
        raise LocalProtocolError("a split array's first axes run along the grid's, each once")
    if len(halo) != len(axes):
        raise LocalProtocolError("a halo is a number for each axis that runs along the grid")


WorkArg: TypeAlias = ScalarArg | ArrayArg | OutArg | SplitArg
_MOST_ITEMS_SPLIT: Final = 2**31 - 1  # as of blocks along an axis
_WORK_ARG: Final = OneOf({1: ScalarArg, 2: ArrayArg, 3: OutArg, 4: SplitArg})


@record
class LaunchSpec(Record):
    """Launch geometry: blocks in the grid and threads in a block, x first; unused axes are 1."""

    dims: int = wire(1, Uint(1, 3))
    grid: tuple[int, ...] = wire(2, Array(Uint(1, 2**31 - 1), 3, 3))
    block: tuple[int, ...] = wire(3, Array(Uint(1, 1024), 3, 3))

    def validate(self) -> None:
        if any(n != 1 for n in (*self.grid[self.dims :], *self.block[self.dims :])):
            raise LocalProtocolError("axes beyond dims are 1")
        if self.block[0] * self.block[1] * self.block[2] > 1024:
            raise LocalProtocolError("a block has at most 1024 threads", code=WireCode.OVERSIZED)
        if self.blocks > 2**40:
            raise LocalProtocolError("a launch has at most 2**40 blocks", code=WireCode.OVERSIZED)

    @property
    def blocks(self) -> int:
        """Blocks in the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@record
class ChunkWork(Record):
    """A kernel launch in chunks of `blocks_per_chunk` blocks; the last one may be shorter.

    A chunk's output is, for each `OutArg` in order, the rows of its threads in thread order; its digest is
    SHA-256 over those bytes, one output after the other. `units_per_chunk` prices a chunk: one unit is a
    microsecond of one reference core, estimated by the requester from a calibration run.
    """

    kernel: BlobRef = wire(1, Nested(BlobRef))
    entry: str = wire(2, Text(MAX_NAME, 1))
    launch: LaunchSpec = wire(3, Nested(LaunchSpec))
    args: tuple[WorkArg, ...] = wire(4, Array(_WORK_ARG, MAX_ARGS, 1))
    blocks_per_chunk: int = wire(5, Uint(1, 2**40))
    chunk_output_bytes: int = wire(6, Uint(1, MAX_OUTPUT_BYTES))
    units_per_chunk: int = wire(7, Uint(1, 2**53))

    def validate(self) -> None:
        if not any(isinstance(arg, OutArg) for arg in self.args):
            raise LocalProtocolError("work without an output")
        if not 1 <= self.kernel.size <= MAX_KERNEL_BYTES:
            raise LocalProtocolError(f"a kernel of {self.kernel.size} bytes", code=WireCode.OVERSIZED)
        _check_sizes(self.args, self.chunks)
        if any(len(arg.axes) != self.launch.dims for arg in self.splits.values()):
            raise LocalProtocolError("a split array runs along all of the launch's axes")
        # Whoever maps a blob by its digest must be able to trust the size that an argument gives it.
        sizes = {(self.kernel.digest, self.kernel.size), *_blobs(self.args)}
        if len(sizes) != len(self.inputs):
            raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)

    @property
    def blocks(self) -> int:
        """Blocks of the launch."""
        return self.launch.blocks

    @property
    def chunks(self) -> int:
        """How many chunks the launch has."""
        return -(-self.launch.blocks // self.blocks_per_chunk)

    def chunk_range(self, index: int) -> tuple[int, int]:
        """First block and number of blocks of chunk `index`."""
        first = index * self.blocks_per_chunk
        return first, min(self.blocks_per_chunk, self.launch.blocks - first)

    @property
    def inputs(self) -> dict[bytes, int]:
        """Digest to size of each distinct blob that the work needs at its beginning: the kernel's source, arrays, and
        manifests of split ones."""
        return dict([(self.kernel.digest, self.kernel.size), *_blobs(self.args)])

    @property
    def splits(self) -> dict[int, SplitArg]:
        """The split arguments, by position."""
        return {position: arg for position, arg in enumerate(self.args) if isinstance(arg, SplitArg)}


@record
class ProgramRef(Record):
    """A program: a function of an installed distribution, found by the name of its entry point and pinned by content.

    `digest` is over the distribution's files as the specification of negotiation says.
    """

    distribution: str = wire(1, Text(MAX_NAME, 1))
    version: str = wire(2, Text(MAX_NAME, 1))
    name: str = wire(3, Text(MAX_PROGRAM_NAME, 1))
    digest: bytes = wire(4, Bytes(32))

    @property
    def feature(self) -> str:
        """What the ad of a provider that runs it has among its features: its name, and 8 bytes of SHA-256 over this
        record. A hint: the whole record is compared when an order comes."""
        return f"{self.feature_stem}{hashlib.sha256(self.encode()).digest()[:8].hex()}"

    @property
    def feature_stem(self) -> str:
        """What features of all programs of this name begin with, whatever they are pinned to."""
        return f"program:{self.name}:"


@record
class ProgramWork(Record):
    """Calls of a program for the items 0 to `items` - 1, in chunks of `items_per_chunk`; the last may be shorter.

    The first axis of each `OutArg` counts the items: item *i* writes row *i* of each. A chunk's output is, for each
    `OutArg` in order, the rows of its items; its digest is SHA-256 over those bytes, one output after the other.
    `units_per_chunk` prices a chunk as in `ChunkWork`.
    """

    program: ProgramRef = wire(1, Nested(ProgramRef))
    items: int = wire(2, Uint(1, 2**40))
    args: tuple[WorkArg, ...] = wire(3, Array(_WORK_ARG, MAX_ARGS, 1))
    items_per_chunk: int = wire(4, Uint(1, 2**40))
    units_per_chunk: int = wire(5, Uint(1, 2**53))

    def validate(self) -> None:
        outs = [arg for arg in self.args if isinstance(arg, OutArg)]
        if not outs:
            raise LocalProtocolError("work without an output")
        if any(arg.reduce is not None for arg in outs):
            raise LocalProtocolError("outputs of a program are not combined")
        if any(arg.axes != (0,) for arg in self.splits.values()):
            raise LocalProtocolError("the first axis of a program's split input counts its items, and no other does")
        if self.splits and self.items > _MOST_ITEMS_SPLIT:
            raise LocalProtocolError(f"{self.items} items with split inputs", code=WireCode.OVERSIZED)
        if any(arg.shape[0] != self.items for arg in outs):
            raise LocalProtocolError("the first axis of a program's outputs counts its items")
        if self.items_per_chunk > self.items:
            raise LocalProtocolError("a chunk has more items than there are")
        if self.chunk_output_bytes > MAX_OUTPUT_BYTES:
            raise LocalProtocolError(f"{self.chunk_output_bytes} bytes a chunk", code=WireCode.OVERSIZED)
        _check_sizes(self.args, self.chunks)
        if len(set(_blobs(self.args))) != len(self.inputs):
            raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)

    @property
    def launch(self) -> LaunchSpec:
        """The geometry that says which items a chunk has: blocks of one. There is one where an input is split."""
        return LaunchSpec(dims=1, grid=(self.items, 1, 1), block=(1, 1, 1))

    @property
    def splits(self) -> dict[int, SplitArg]:
        """The split arguments, by position."""
        return {position: arg for position, arg in enumerate(self.args) if isinstance(arg, SplitArg)}

    @property
    def blocks(self) -> int:
        """What chunks are made of, under the name that it has in `ChunkWork`: items."""
        return self.items

    @property
    def blocks_per_chunk(self) -> int:
        """The same of a chunk."""
        return self.items_per_chunk

    @property
    def chunk_output_bytes(self) -> int:
        """Output bytes of a whole chunk, all outputs together."""
        return self.items_per_chunk * sum(arg.nbytes // self.items for arg in self.args if isinstance(arg, OutArg))

    @property
    def chunks(self) -> int:
        """How many chunks the work has."""
        return -(-self.items // self.items_per_chunk)

    def chunk_range(self, index: int) -> tuple[int, int]:
        """First item and number of items of chunk `index`."""
        first = index * self.items_per_chunk
        return first, min(self.items_per_chunk, self.items - first)

    @property
    def inputs(self) -> dict[bytes, int]:
        """Digest to size of each distinct blob that the work needs at its beginning: arrays, and manifests of split
        ones."""
        return dict(_blobs(self.args))


def _blobs(args: tuple[WorkArg, ...]) -> list[tuple[bytes, int]]:
    """Digest and size of what the arguments name."""
    arrays = [(arg.digest, arg.nbytes) for arg in args if isinstance(arg, ArrayArg)]
    return arrays + [(arg.manifest, arg.manifest_bytes) for arg in args if isinstance(arg, SplitArg)]


@record
class StateArg(Record):
    """An input: array number `array` of the state, as an earlier launch of this round left it, or else the last round.

    A launch that also gives this array reads what the last round left.
    """

    array: int = wire(1, Uint(0, MAX_ARGS - 1))


@record
class NextArg(Record):
    """An output that becomes array number `array` of the state. Without `reduce` it has that array's shape; with it
    `shape` is what the kernel stores into, and what is combined from it is the array."""

    array: int = wire(1, Uint(0, MAX_ARGS - 1))
    shape: tuple[int, ...] | None = optional(2, _SHAPE, default=None)
    reduce: str | None = optional(3, Choice(*REDUCE), default=None)

    def validate(self) -> None:
        if (self.shape is None) != (self.reduce is None):
            raise LocalProtocolError("an output that is combined, and only that, has a shape of its own")


@record
class RoundArg(Record):
    """A scalar: how many rounds there were before this one, `RoundWork.first` included."""

    dtype: str = wire(1, Choice("int32", "int64", "uint32", "uint64"))


StepArg: TypeAlias = ScalarArg | ArrayArg | StateArg | NextArg | RoundArg


@record
class RoundSplit(Record):
    """That a launch of a round reads an input as a split one: argument number `arg`, a constant or an array of the
    state. What a thread loads is as of `SplitArg`; the array is whole at the provider, which computes all of a round.
    """

    arg: int = wire(1, Uint(0, MAX_ARGS - 1))
    axes: tuple[int, ...] = wire(2, Array(Uint(0, 2), 3, 1))
    halo: tuple[int, ...] = wire(3, Array(Uint(0, MAX_HALO), 3, 1))
    edge: str = wire(4, Choice(*EDGES))

    def validate(self) -> None:
        _check_axes(self.axes, self.halo)


@record
class RoundLaunch(Record):
    """One launch of each round. `splits` are the inputs among `args` that it reads as split ones, in their order."""

    kernel: BlobRef = wire(1, Nested(BlobRef))
    entry: str = wire(2, Text(MAX_NAME, 1))
    launch: LaunchSpec = wire(3, Nested(LaunchSpec))
    args: tuple[StepArg, ...] = wire(
        4, Array(OneOf({1: ScalarArg, 2: ArrayArg, 3: StateArg, 4: NextArg, 5: RoundArg}), MAX_ARGS, 1)
    )
    splits: tuple[RoundSplit, ...] = wire(5, Array(Nested(RoundSplit), MAX_ARGS))

    def validate(self) -> None:
        if not 1 <= self.kernel.size <= MAX_KERNEL_BYTES:
            raise LocalProtocolError(f"a kernel of {self.kernel.size} bytes", code=WireCode.OVERSIZED)
        if not any(isinstance(arg, NextArg) for arg in self.args):
            raise LocalProtocolError("a launch that gives nothing of the state")
        places = [split.arg for split in self.splits]
        if places != sorted(set(places)):
            raise LocalProtocolError("split inputs are named once each, in the order of the arguments")
        if any(place >= len(self.args) or not isinstance(self.args[place], ArrayArg | StateArg) for place in places):
            raise LocalProtocolError("what is split is a constant array or one of the state")
        if any(len(split.axes) != self.launch.dims for split in self.splits):
            raise LocalProtocolError("a split array runs along all of the launch's axes")


@record
class RoundWork(Record):
    """Rounds 1 to `rounds`, each the same launches in order, on the state that the last one left; in chunks of
    `rounds_per_chunk` rounds, of which the last may be shorter.

    State 0 is what the digests of `state` name. Each array of the state is given by one launch of a round, as zeros
    where no thread stores. A chunk's output is the digests of the states after its rounds (`state_digest`), 32 bytes
    each, and what it is receipted by is SHA-256 of those. `first` is how many rounds were done before, by others;
    `units_per_chunk` prices a chunk as in `ChunkWork`.
    """

    launches: tuple[RoundLaunch, ...] = wire(1, Array(Nested(RoundLaunch), MAX_LAUNCHES, 1))
    state: tuple[ArrayArg, ...] = wire(2, Array(Nested(ArrayArg), MAX_ARGS, 1))
    first: int = wire(3, Uint(0, 2**31 - 1))
    rounds: int = wire(4, Uint(1, MAX_LEAVES - 1))
    rounds_per_chunk: int = wire(5, Uint(1, MAX_LEAVES - 1))
    units_per_chunk: int = wire(6, Uint(1, 2**53))

    def validate(self) -> None:
        if self.rounds_per_chunk > self.rounds:
            raise LocalProtocolError("a chunk has more rounds than there are")
        if self.first + self.rounds > 2**31:
            raise LocalProtocolError("the number of a round has 31 bits", code=WireCode.OVERSIZED)
        args = [arg for launch in self.launches for arg in launch.args]
        if any(isinstance(arg, StateArg | NextArg) and arg.array >= len(self.state) for arg in args):
            raise LocalProtocolError("an argument names an array that the state does not have")
        given = [arg for arg in args if isinstance(arg, NextArg)]
        if sorted(arg.array for arg in given) != list(range(len(self.state))):
            raise LocalProtocolError("each array of the state is given by one launch of a round")
        for arg in given:
            dtype = self.state[arg.array].dtype
            if arg.reduce is not None and not can_reduce(arg.reduce, dtype):
                raise LocalProtocolError(f"values of {dtype} are not combined by {arg.reduce}")
            if arg.shape is not None and _nbytes(dtype, arg.shape) > MAX_CHUNKS * MAX_OUTPUT_BYTES:
                raise LocalProtocolError("outputs above what a launch can hold", code=WireCode.OVERSIZED)
        windows = 0
        for launch in self.launches:
            for split in launch.splits:
                array = launch.args[split.arg]
                if isinstance(array, StateArg):
                    array = self.state[array.array]
                assert isinstance(array, ArrayArg)  # as the launch has checked
                if len(array.shape) < len(split.axes):
                    raise LocalProtocolError("a split array has an axis for each of the grid's")
                windows += launch_window_bytes(launch.launch, DTYPES[array.dtype], array.shape, split.axes, split.halo)
        if windows > MAX_WINDOW_BYTES:
            raise LocalProtocolError(f"a round reads windows of {windows} bytes", code=WireCode.OVERSIZED)
        inputs = self.inputs
        sizes = [(launch.kernel.digest, launch.kernel.size) for launch in self.launches]
        sizes += [(array.digest, array.nbytes) for array in self._arrays]
        if any(inputs[digest] != size for digest, size in sizes):
            raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)
        if sum({array.digest: array.nbytes for array in self._arrays}.values()) > MAX_BLOB_BYTES:
            raise LocalProtocolError("inputs above the bound of a task", code=WireCode.OVERSIZED)
        if self.state_bytes > MAX_BLOB_BYTES:
            raise LocalProtocolError(f"a state of {self.state_bytes} bytes", code=WireCode.OVERSIZED)

    @property
    def _arrays(self) -> list[ArrayArg]:
        return [*self.state, *(arg for launch in self.launches for arg in launch.args if isinstance(arg, ArrayArg))]

    @property
    def state_bytes(self) -> int:
        """Bytes of a state, all arrays together."""
        return sum(array.nbytes for array in self.state)

    @property
    def first_state(self) -> bytes:
        """The digest of state 0."""
        return state_digest([array.digest for array in self.state])

    @property
    def blocks(self) -> int:
        """What chunks are made of, under the name that it has in `ChunkWork`: rounds."""
        return self.rounds

    @property
    def blocks_per_chunk(self) -> int:
        """The same of a chunk."""
        return self.rounds_per_chunk

    @property
    def chunk_output_bytes(self) -> int:
        """Output bytes of a whole chunk."""
        return 32 * self.rounds_per_chunk

    @property
    def chunks(self) -> int:
        """How many chunks the work has."""
        return -(-self.rounds // self.rounds_per_chunk)

    def chunk_range(self, index: int) -> tuple[int, int]:
        """The state before chunk `index`, by its number, and how many rounds the chunk has."""
        first = index * self.rounds_per_chunk
        return first, min(self.rounds_per_chunk, self.rounds - first)

    @property
    def inputs(self) -> dict[bytes, int]:
        """Digest to size of each distinct blob that the work needs, the kernels' sources and state 0 included."""
        blobs = {launch.kernel.digest: launch.kernel.size for launch in self.launches}
        blobs.update({array.digest: array.nbytes for array in self._arrays})
        return blobs


def state_digest(arrays: Sequence[bytes]) -> bytes:
    """The digest of a state: SHA-256 over the digests of its arrays, in the order of `RoundWork.state`; an array's is
    SHA-256 of its bytes, C order, little-endian."""
    return hashlib.sha256(b"".join(arrays)).digest()


def _check_sizes(args: tuple[WorkArg, ...], chunks: int) -> None:
    if chunks > MAX_CHUNKS:
        raise LocalProtocolError(f"{chunks} chunks", code=WireCode.OVERSIZED)
    if sum(size for _, size in _blobs(args)) > MAX_BLOB_BYTES:
        raise LocalProtocolError("inputs above the bound of a task", code=WireCode.OVERSIZED)
    if sum(arg.nbytes for arg in args if isinstance(arg, OutArg)) > MAX_CHUNKS * MAX_OUTPUT_BYTES:
        raise LocalProtocolError("outputs above what all chunks can hold", code=WireCode.OVERSIZED)


Work: TypeAlias = ChunkWork | ProgramWork | RoundWork
WORK: Final = OneOf({1: ChunkWork, 3: RoundWork, 4: ProgramWork}, reserved=(2,))
