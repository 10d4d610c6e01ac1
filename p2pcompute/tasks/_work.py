"""From a kernel or a program and arguments to wire work, and back to what execution takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.work import (
    DTYPES,
    ArrayArg,
    BlobRef,
    ChunkWork,
    LaunchSpec,
    OutArg,
    ProgramWork,
    ScalarArg,
    SplitArg,
    Work,
    WorkArg,
)

if TYPE_CHECKING:
    from p2pcompute.execution import SharedInput
    from p2pcompute.execution._api import ArgSpec, KernelSource, Launch
    from p2pcompute.kernel import Binding

    from ._splits import SplitInputs

__all__ = [
    "chunk_bytes",
    "chunk_work",
    "execution_args",
    "little_endian",
    "own_arrays",
    "program_work",
    "row_bytes",
    "viewed",
    "wire_args",
]


def own_arrays(binding: Binding) -> Binding:
    """The same binding with whole arrays copied, once: what is sent, hashed and computed again for samples are the
    same bytes then, and a caller that writes to an array while its task runs makes no liar of an honest provider.
    Split arrays stay the caller's; each tile of them is hashed again when it is used."""
    held = tuple(little_endian(value).tobytes() if isinstance(value, np.ndarray) else None for value in binding.values)
    values = tuple(
        value if data is None else viewed(data, value.dtype, value.shape)
        for value, data in zip(binding.values, held, strict=True)
    )
    return replace(binding, values=values, held=held)


def viewed(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """An array over little-endian bytes, read-only; a copy where this machine has another order."""
    return np.frombuffer(data, dtype=dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def wire_args(binding: Binding, splits: SplitInputs | None = None) -> tuple[tuple[WorkArg, ...], dict[bytes, bytes]]:
    """A binding's arguments as they go over the wire, and the bytes behind the digests. `splits` has its split ones."""
    from p2pcompute.execution._api import InputSpec, OutputSpec, ScalarSpec

    wire: list[WorkArg] = []
    blobs: dict[bytes, bytes] = {}
    values = iter(zip(binding.values, binding.held or (None,) * len(binding.values), strict=True))
    for position, spec in enumerate(binding.specs):
        match spec:
            case InputSpec() if spec.split is not None:
                next(values)
                assert splits is not None  # cut by whoever binds a kernel to split arguments
                tiled = splits.inputs[position]
                blobs[tiled.arg.manifest] = tiled.manifest
                wire.append(tiled.arg)
            case OutputSpec():
                wire.append(OutArg(dtype=spec.dtype, shape=spec.shape, reduce=spec.reduce))
            case InputSpec():
                value, held = next(values)
                data = little_endian(value).tobytes() if held is None else held
                digest = hashlib.sha256(data).digest()
                blobs[digest] = data
                wire.append(ArrayArg(dtype=spec.dtype, shape=spec.shape, digest=digest))
            case ScalarSpec():
                wire.append(ScalarArg(dtype=spec.dtype, value=little_endian(next(values)[0]).tobytes()))
    return tuple(wire), blobs


def little_endian(value: Any) -> Any:
    """An array or a NumPy scalar as its bytes go over the wire: the same one, where it is that already."""
    return value.astype(value.dtype.newbyteorder("<"), copy=False)


def chunk_work(
    binding: Binding, *, blocks_per_chunk: int, units_per_chunk: int, splits: SplitInputs | None = None
) -> tuple[ChunkWork, dict[bytes, bytes]]:
    """The wire form of a launch, and every blob that it names.

    Raises:
        LocalProtocolError: over a bound of the protocol (OVERSIZED).
    """
    source, launch = binding.source, binding.launch
    text = source.text.encode()
    digest = hashlib.sha256(text).digest()
    args, blobs = wire_args(binding, splits)
    work = ChunkWork(
        kernel=BlobRef(digest=digest, size=len(text)),
        entry=source.entry,
        launch=LaunchSpec(dims=launch.dims, grid=launch.grid, block=launch.block),
        args=args,
        blocks_per_chunk=blocks_per_chunk,
        chunk_output_bytes=blocks_per_chunk
        * binding.layout.items_per_block
        * row_bytes(args, binding.layout.row_shapes),
        units_per_chunk=units_per_chunk,
    )
    return work, {digest: text, **blobs}


def program_work(
    binding: Binding, *, items_per_chunk: int, units_per_chunk: int, splits: SplitInputs | None = None
) -> tuple[ProgramWork, dict[bytes, bytes]]:
    """The wire form of calls of a program, and every blob that it names.

    Raises:
        LocalProtocolError: over a bound of the protocol (OVERSIZED).
    """
    assert binding.program is not None
    args, blobs = wire_args(binding, splits)
    work = ProgramWork(
        program=binding.program,
        items=binding.launch.blocks,
        args=args,
        items_per_chunk=items_per_chunk,
        units_per_chunk=units_per_chunk,
    )
    return work, blobs


def row_bytes(args: Sequence[WorkArg], row_shapes: Sequence[tuple[int, ...]]) -> int:
    """Bytes that one item writes, over all outputs."""
    outs = [arg for arg in args if isinstance(arg, OutArg)]
    total = 0
    for arg, shape in zip(outs, row_shapes, strict=True):
        size = DTYPES[arg.dtype]
        for extent in shape:
            size *= extent
        total += size
    return total


def chunk_bytes(work: Work) -> tuple[int, int]:
    """Output bytes of a whole chunk and of the last one.

    Raises:
        LocalProtocolError: the work's size is not a whole number of bytes a block.
    """
    per_block, rest = divmod(work.chunk_output_bytes, work.blocks_per_chunk)
    if rest:
        raise LocalProtocolError("chunk_output_bytes is not a whole number a block", code=WireCode.MALFORMED)
    return work.chunk_output_bytes, per_block * work.chunk_range(work.chunks - 1)[1]


def execution_args(
    work: ChunkWork | ProgramWork, blobs: Mapping[bytes, bytes | SharedInput], *, fp: str = "strict"
) -> tuple[KernelSource, Launch, list[ArgSpec], dict[int, bytes | SharedInput]]:
    """What a provider's worker takes, from the work of an agreement and the blobs that came; the kernel's are bytes.
    `fp` is the agreement's mode.

    Raises:
        LocalProtocolError: the source is not UTF-8.
    """
    from p2pcompute.execution._api import InputSpec, Launch, OutputSpec, ScalarSpec, SplitSpec
    from p2pcompute.execution._program import program_launch, program_source

    source: KernelSource
    launch: Launch
    if isinstance(work, ProgramWork):
        source, launch = program_source(work.program), program_launch(work.items)
    else:
        grid, block = work.launch.grid, work.launch.block
        launch = Launch(grid=(grid[0], grid[1], grid[2]), block=(block[0], block[1], block[2]), dims=work.launch.dims)
        source = _kernel_source(work, blobs, fp)
    specs: list[ArgSpec] = []
    inputs: dict[int, bytes | SharedInput] = {}
    for position, arg in enumerate(work.args):
        match arg:
            case ScalarArg():
                value = np.frombuffer(arg.value, dtype=np.dtype(arg.dtype).newbyteorder("<"))[0]
                specs.append(ScalarSpec(dtype=arg.dtype, value=value))
            case SplitArg():
                split = SplitSpec(axes=arg.axes, halo=arg.halo, edge=arg.edge)
                specs.append(InputSpec(dtype=arg.dtype, shape=arg.shape, split=split))
            case ArrayArg():
                specs.append(InputSpec(dtype=arg.dtype, shape=arg.shape))
                inputs[position] = blobs[arg.digest]
            case OutArg():
                specs.append(OutputSpec(dtype=arg.dtype, shape=arg.shape, reduce=arg.reduce))
    return source, launch, specs, inputs


def _kernel_source(work: ChunkWork, blobs: Mapping[bytes, bytes | SharedInput], fp: str) -> KernelSource:
    from p2pcompute.execution._api import KernelSource

    try:
        kernel = blobs[work.kernel.digest]
        assert isinstance(kernel, bytes)
        text = kernel.decode()
    except UnicodeDecodeError:
        raise LocalProtocolError("the kernel is not UTF-8", code=WireCode.KERNEL_REFUSED) from None
    digest = hashlib.sha256(work.entry.encode() + b"\0" + text.encode()).digest()
    return KernelSource(text=text, entry=work.entry, digest=digest, fp=fp)
