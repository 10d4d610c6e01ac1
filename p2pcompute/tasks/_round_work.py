"""Work in rounds, from steps and a state to the wire and back to what execution takes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.work import (
    ArrayArg,
    BlobRef,
    LaunchSpec,
    NextArg,
    RoundArg,
    RoundLaunch,
    RoundSplit,
    RoundWork,
    ScalarArg,
    StateArg,
    StepArg,
    state_digest,
)

from ._work import little_endian

if TYPE_CHECKING:
    from p2pcompute.execution import SharedInput
    from p2pcompute.execution._api import InputSpec
    from p2pcompute.execution._rounds import Step

__all__ = ["StateBytes", "array_digests", "content_of", "execution_steps", "round_work", "wipe"]

Content = "bytes | SharedInput"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """A state: the bytes of each array, and their digests. `digest` is the state's."""

    arrays: tuple[bytes | bytearray, ...]
    digests: tuple[bytes, ...]
    digest: bytes

    @classmethod
    def of(cls, arrays: Iterable[bytes | bytearray], digests: tuple[bytes, ...] | None = None) -> StateBytes:
        """The state of these arrays, whose `digests` may be known."""
        held = tuple(arrays)
        known = array_digests(held) if digests is None else digests
        return cls(arrays=held, digests=known, digest=state_digest(known))


def array_digests(arrays: Iterable[bytes | bytearray | memoryview]) -> tuple[bytes, ...]:
    """SHA-256 of each array."""
    return tuple(hashlib.sha256(array).digest() for array in arrays)


def wipe(arrays: Iterable[bytes | bytearray]) -> None:
    """Overwrite what can be."""
    for array in arrays:
        if isinstance(array, bytearray):
            array[:] = bytes(len(array))


def round_work(
    steps: Sequence[Step],
    constants: Sequence[Sequence[Any]],
    state: Sequence[InputSpec],
    arrays: Sequence[bytes | bytearray],
    *,
    first: int,
    rounds: int,
    rounds_per_chunk: int,
    units_per_round: int,
) -> tuple[RoundWork, dict[bytes, bytes]]:
    """The wire form of rounds, and every blob that it names.

    Args:
        steps: the launches of a round; `constants` has the arrays of each, in order.
        state: the arrays of a state; `arrays` their bytes, little-endian.
        first: how many rounds were done before.
        rounds, rounds_per_chunk, units_per_round: how many, how many at a time, and what one costs.

    Raises:
        LocalProtocolError: over a bound of the protocol (OVERSIZED).
    """
    from p2pcompute.execution._api import InputSpec
    from p2pcompute.execution._rounds import ReadState

    blobs: dict[bytes, bytes] = {}

    def blob(data: bytes) -> bytes:
        digest = hashlib.sha256(data).digest()
        blobs[digest] = data
        return digest

    launches: list[RoundLaunch] = []
    for step, given in zip(steps, constants, strict=True):
        text = step.source.text.encode()
        values = iter(given)
        launches.append(
            RoundLaunch(
                kernel=BlobRef(digest=blob(text), size=len(text)),
                entry=step.source.entry,
                launch=LaunchSpec(dims=step.launch.dims, grid=step.launch.grid, block=step.launch.block),
                args=tuple(_wire(arg, values, blob) for arg in step.args),
                splits=tuple(
                    RoundSplit(arg=place, axes=arg.split.axes, halo=arg.split.halo, edge=arg.split.edge)
                    for place, arg in enumerate(step.args)
                    if isinstance(arg, InputSpec | ReadState) and arg.split is not None
                ),
            )
        )
    rounds_per_chunk = min(rounds_per_chunk, rounds)
    work = RoundWork(
        launches=tuple(launches),
        state=tuple(
            ArrayArg(dtype=spec.dtype, shape=spec.shape, digest=blob(bytes(data)))
            for spec, data in zip(state, arrays, strict=True)
        ),
        first=first,
        rounds=rounds,
        rounds_per_chunk=rounds_per_chunk,
        units_per_chunk=units_per_round * rounds_per_chunk,
    )
    return work, blobs


def _wire(arg: Any, values: Any, blob: Any) -> StepArg:
    from p2pcompute.execution._api import InputSpec, ScalarSpec
    from p2pcompute.execution._rounds import ReadState, RoundNumber, WriteState

    match arg:
        case ScalarSpec():
            return ScalarArg(dtype=arg.dtype, value=little_endian(np.asarray(arg.value, arg.dtype)).tobytes())
        case InputSpec():
            return ArrayArg(dtype=arg.dtype, shape=arg.shape, digest=blob(little_endian(next(values)).tobytes()))
        case ReadState():
            return StateArg(array=arg.array)
        case WriteState():
            reduce = arg.spec.reduce
            return NextArg(array=arg.array, shape=arg.spec.shape if reduce else None, reduce=reduce)
        case RoundNumber():
            return RoundArg(dtype=arg.dtype)
        case _:
            raise TypeError(f"{arg!r} is no argument of a step")


def content_of(blob: bytes | SharedInput) -> bytes | bytearray:
    """The bytes of an input, wherever it lies."""
    if isinstance(blob, bytes):
        return blob
    fd = blob.duplicate()
    try:
        data = bytearray(blob.nbytes)
        view, done = memoryview(data), 0
        while done < len(data):
            done += os.preadv(fd, [view[done : done + (1 << 30)]], done)
        return data
    finally:
        os.close(fd)


def execution_steps(
    work: RoundWork, blobs: Mapping[bytes, bytes | SharedInput]
) -> tuple[list[Step], list[InputSpec], list[dict[int, bytes | SharedInput]]]:
    """What a worker takes: the steps, the arrays of a state, and each step's constants by position.

    Raises:
        LocalProtocolError: a source is not UTF-8.
    """
    from p2pcompute.execution._api import InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec, SplitSpec
    from p2pcompute.execution._rounds import ReadState, RoundNumber, Step, WriteState

    state = [InputSpec(dtype=array.dtype, shape=array.shape) for array in work.state]
    steps: list[Step] = []
    inputs: list[dict[int, bytes | SharedInput]] = []
    for launch in work.launches:
        args: list[Any] = []
        constants: dict[int, bytes | SharedInput] = {}
        splits = {one.arg: SplitSpec(axes=one.axes, halo=one.halo, edge=one.edge) for one in launch.splits}
        for position, arg in enumerate(launch.args):
            match arg:
                case ScalarArg():
                    value = np.frombuffer(arg.value, dtype=np.dtype(arg.dtype).newbyteorder("<"))[0]
                    args.append(ScalarSpec(dtype=arg.dtype, value=value))
                case ArrayArg():
                    args.append(InputSpec(dtype=arg.dtype, shape=arg.shape, split=splits.get(position)))
                    constants[position] = blobs[arg.digest]
                case StateArg():
                    args.append(ReadState(array=arg.array, split=splits.get(position)))
                case NextArg():
                    array = work.state[arg.array]
                    spec = OutputSpec(dtype=array.dtype, shape=arg.shape or array.shape, reduce=arg.reduce)
                    args.append(WriteState(array=arg.array, spec=spec))
                case RoundArg():
                    args.append(RoundNumber(dtype=arg.dtype))
        kernel = blobs[launch.kernel.digest]
        try:
            text = bytes(content_of(kernel)).decode()
        except UnicodeDecodeError:
            raise LocalProtocolError("a kernel is not UTF-8", code=WireCode.KERNEL_REFUSED) from None
        grid, block = launch.launch.grid, launch.launch.block
        steps.append(
            Step(
                source=KernelSource(
                    text=text,
                    entry=launch.entry,
                    digest=hashlib.sha256(launch.entry.encode() + b"\0" + text.encode()).digest(),
                ),
                launch=Launch(
                    grid=(grid[0], grid[1], grid[2]), block=(block[0], block[1], block[2]), dims=launch.launch.dims
                ),
                args=tuple(args),
            )
        )
        inputs.append(constants)
    return steps, state, inputs
