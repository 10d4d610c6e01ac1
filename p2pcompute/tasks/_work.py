"""From a kernel and arguments to wire work and back to what execution takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pcompute.errors import KernelTypeError
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.work import DTYPES, ArrayArg, BlobRef, ChunkWork, LaunchSpec, OutArg, ScalarArg

if TYPE_CHECKING:
    from p2pcompute.execution._api import ArgSpec, KernelSource, Launch

__all__ = ["BoundArgs", "bind_args", "chunk_bytes", "chunk_work", "execution_args"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundArgs:
    """A call's arguments as wire work, as execution wants them, and the bytes behind the digests."""

    wire: tuple[ScalarArg | ArrayArg | OutArg, ...]
    specs: tuple[ArgSpec, ...]
    inputs: dict[int, bytes]  # parameter position -> bytes of the array
    blobs: dict[bytes, bytes]  # digest -> bytes


def _little(value: Any) -> Any:
    return value.astype(value.dtype.newbyteorder("<"), copy=False)


def bind_args(args: Sequence[Any], *, name: str) -> BoundArgs:
    """Turn a call's arguments into work.

    Python ints are int64, floats float64 and bools bool, as NumPy has it; arrays of up to 4 dimensions are sent
    in C order. `p2p.out(shape, dtype)` marks an output.

    Raises:
        KernelTypeError: a type that kernels do not take, saying which argument and what to pass instead.
    """
    from p2pcompute.execution._api import InputSpec, OutputSpec, ScalarSpec
    from p2pcompute.kernel import Out

    wire: list[ScalarArg | ArrayArg | OutArg] = []
    specs: list[ArgSpec] = []
    inputs: dict[int, bytes] = {}
    blobs: dict[bytes, bytes] = {}
    for position, arg in enumerate(args):
        if isinstance(arg, Out):
            dtype = np.dtype(arg.dtype).name
            shape = tuple(int(n) for n in arg.shape)
            _known(dtype, position, name)
            if not 1 <= len(shape) <= 4 or min(shape) < 1:
                raise KernelTypeError(
                    f"{name}: output {position} has shape {shape}", instead="use 1 to 4 axes of at least 1"
                )
            wire.append(OutArg(dtype=dtype, shape=shape))
            specs.append(OutputSpec(dtype=dtype, shape=shape))
        elif isinstance(arg, np.ndarray) and arg.ndim > 0:
            dtype = arg.dtype.name
            _known(dtype, position, name)
            if arg.ndim > 4 or arg.size == 0:
                raise KernelTypeError(
                    f"{name}: argument {position} has shape {arg.shape}", instead="pass 1 to 4 axes, none empty"
                )
            data = np.ascontiguousarray(_little(arg)).tobytes()
            digest = hashlib.sha256(data).digest()
            blobs[digest] = data
            inputs[position] = data
            wire.append(ArrayArg(dtype=dtype, shape=tuple(arg.shape), digest=digest))
            specs.append(InputSpec(dtype=dtype, shape=tuple(arg.shape)))
        elif isinstance(arg, bool | int | float | np.generic) or (isinstance(arg, np.ndarray) and arg.ndim == 0):
            try:
                scalar = arg[()] if isinstance(arg, np.ndarray) else np.asarray(arg)[()]
            except OverflowError:
                scalar = None
            if scalar is None or scalar.dtype.name not in DTYPES:
                raise KernelTypeError(
                    f"{name}: argument {position} ({arg!r:.40}) does not fit a kernel scalar",
                    instead=f"pass one of {', '.join(DTYPES)}",
                )
            wire.append(ScalarArg(dtype=scalar.dtype.name, value=_little(scalar).tobytes()))
            specs.append(ScalarSpec(dtype=scalar.dtype.name, value=scalar))
        else:
            raise KernelTypeError(
                f"{name}: argument {position} is a {type(arg).__name__}",
                instead="pass NumPy arrays, NumPy or Python scalars, and p2p.out(shape, dtype) for outputs",
            )
    if not any(isinstance(arg, OutArg) for arg in wire):
        raise KernelTypeError(f"{name}: no output", instead="pass p2p.out(shape, dtype) for each array it writes")
    return BoundArgs(wire=tuple(wire), specs=tuple(specs), inputs=inputs, blobs=blobs)


def _known(dtype: str, position: int, name: str) -> None:
    if dtype not in DTYPES:
        raise KernelTypeError(
            f"{name}: argument {position} has dtype {dtype}", instead=f"use one of {', '.join(DTYPES)}"
        )


def chunk_work(
    source: KernelSource,
    launch: Launch,
    bound: BoundArgs,
    row_shapes: Sequence[tuple[int, ...]],
    *,
    blocks_per_chunk: int,
    units_per_chunk: int,
) -> tuple[ChunkWork, dict[bytes, bytes]]:
    """The wire form of a launch, and every blob that it names."""
    text = source.text.encode()
    digest = hashlib.sha256(text).digest()
    work = ChunkWork(
        kernel=BlobRef(digest=digest, size=len(text)),
        entry=source.entry,
        launch=LaunchSpec(dims=launch.dims, grid=launch.grid, block=launch.block),
        args=bound.wire,
        blocks_per_chunk=blocks_per_chunk,
        chunk_output_bytes=blocks_per_chunk * launch.threads_per_block * row_bytes(bound.wire, row_shapes),
        units_per_chunk=units_per_chunk,
    )
    return work, {digest: text, **bound.blobs}


def row_bytes(args: Sequence[ScalarArg | ArrayArg | OutArg], row_shapes: Sequence[tuple[int, ...]]) -> int:
    """Bytes that one thread writes, over all outputs."""
    outs = [arg for arg in args if isinstance(arg, OutArg)]
    total = 0
    for arg, shape in zip(outs, row_shapes, strict=True):
        size = DTYPES[arg.dtype]
        for extent in shape:
            size *= extent
        total += size
    return total


def chunk_bytes(work: ChunkWork) -> tuple[int, int]:
    """Output bytes of a whole chunk and of the last one.

    Raises:
        LocalProtocolError: the work's size is not a whole number of bytes a block.
    """
    per_block, rest = divmod(work.chunk_output_bytes, work.blocks_per_chunk)
    if rest:
        raise LocalProtocolError("chunk_output_bytes is not a whole number a block", code=WireCode.MALFORMED)
    return work.chunk_output_bytes, per_block * work.chunk_range(work.chunks - 1)[1]


def execution_args(
    work: ChunkWork, blobs: Mapping[bytes, bytes]
) -> tuple[KernelSource, Launch, list[ArgSpec], dict[int, bytes]]:
    """What a provider's worker takes, from the work of an agreement and the blobs that came.

    Raises:
        LocalProtocolError: the source is not UTF-8.
    """
    from p2pcompute.execution._api import InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec

    try:
        text = blobs[work.kernel.digest].decode()
    except UnicodeDecodeError:
        raise LocalProtocolError("the kernel is not UTF-8", code=WireCode.KERNEL_REFUSED) from None
    digest = hashlib.sha256(work.entry.encode() + b"\0" + text.encode()).digest()
    specs: list[ArgSpec] = []
    inputs: dict[int, bytes] = {}
    for position, arg in enumerate(work.args):
        match arg:
            case ScalarArg():
                value = np.frombuffer(arg.value, dtype=np.dtype(arg.dtype).newbyteorder("<"))[0]
                specs.append(ScalarSpec(dtype=arg.dtype, value=value))
            case ArrayArg():
                specs.append(InputSpec(dtype=arg.dtype, shape=arg.shape))
                inputs[position] = blobs[arg.digest]
            case OutArg():
                specs.append(OutputSpec(dtype=arg.dtype, shape=arg.shape))
    grid, block = work.launch.grid, work.launch.block
    launch = Launch(grid=(grid[0], grid[1], grid[2]), block=(block[0], block[1], block[2]), dims=work.launch.dims)
    return KernelSource(text=text, entry=work.entry, digest=digest), launch, specs, inputs
