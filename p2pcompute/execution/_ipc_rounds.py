"""COMPILE_STEP and RUN_ROUNDS as packets, and where states lie in an arena: state after state, array after array, each
64-byte aligned; the first is what the rounds begin with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import InputSpec, KernelSource, OutputSpec
from p2pcompute.execution._rounds import ReadState, RoundNumber, Step, StepArg, WriteState

__all__ = ["StateLayout", "decode_step", "encode_step"]

_READ, _WRITE, _NUMBER, _PLAIN = 4, 5, 6, 7
_NUMBERS = ("int32", "int64", "uint32", "uint64")


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Where arrays lie within a state: `spans` are offsets and sizes in bytes; a state takes `slot_bytes`."""

    spans: tuple[tuple[int, int], ...]
    slot_bytes: int

    @classmethod
    def of(cls, state: Sequence[InputSpec]) -> StateLayout:
        """The layout of states of these arrays; both sides compute it from what they know."""
        spans: list[tuple[int, int]] = []
        offset = 0
        for spec in state:
            size = math.prod(spec.shape) * ipc.DTYPES[spec.dtype].itemsize
            spans.append((offset, size))
            offset = -(-(offset + size) // ipc.ALIGNMENT) * ipc.ALIGNMENT
        return cls(tuple(spans), offset)


def encode_step(place: int, state: Sequence[InputSpec], step: Step) -> list[Any]:
    """The fields of a COMPILE_STEP packet. The first step of a round, of place 0, takes the place of all before."""
    source, launch = step.source, step.launch
    return [
        place,
        ipc.encode_arguments(state),
        source.text,
        source.entry,
        source.digest,
        list(launch.grid),
        list(launch.block),
        launch.dims,
        [_encode(arg) for arg in step.args],
    ]


def _encode(arg: StepArg) -> list[Any]:
    match arg:
        case ReadState():
            split = arg.split
            return [_READ, arg.array, *([] if split is None else [[list(split.axes), list(split.halo), split.edge]])]
        case WriteState():
            return [_WRITE, arg.array, *ipc.encode_arguments([arg.spec])]
        case RoundNumber():
            return [_NUMBER, arg.dtype]
        case _:
            return [_PLAIN, *ipc.encode_arguments([arg])]


def decode_step(fields: list[Any]) -> tuple[int, list[InputSpec], Step]:
    """The reverse of `encode_step`. Raises `FrameError`."""
    place, arrays, text, entry, digest, grid, block, dims, arguments = ipc.take_list(fields, low=9, high=9)
    state = [spec for spec in ipc.decode_arguments(arrays) if isinstance(spec, InputSpec)]
    if len(state) != len(arrays) or not state:
        raise ipc.FrameError("a state is of arrays")
    args = tuple(_decode(item, len(state)) for item in ipc.take_list(arguments, high=ipc.MAX_ARGUMENTS))
    step = Step(
        source=KernelSource(
            text=ipc.take_text(text, limit=ipc.MAX_SOURCE_BYTES),
            entry=ipc.take_text(entry, limit=ipc.MAX_TEXT),
            digest=ipc.take_bytes(digest, limit=32),
        ),
        launch=ipc.check_launch(grid, block, dims),
        args=args,
    )
    return ipc.take_int(place, low=0, high=ipc.MAX_ARGUMENTS), state, step


def _decode(item: Any, arrays: int) -> StepArg:
    kind, *rest = ipc.take_list(item, low=2, high=3)
    if ipc.take_int(kind, low=_READ, high=_PLAIN) == _NUMBER:
        dtype = ipc.take_text(rest[0], limit=16)
        if dtype not in _NUMBERS or len(rest) != 1:
            raise ipc.FrameError(f"no round has a number of {dtype!r}")
        return RoundNumber(dtype=dtype)
    if kind == _PLAIN:
        (plain,) = ipc.decode_arguments(rest)
        if isinstance(plain, OutputSpec):
            raise ipc.FrameError("an output that is no array of the state")
        return plain
    array = ipc.take_int(rest[0], low=0, high=arrays - 1)
    if kind == _READ:
        return ReadState(array=array, split=ipc.take_split(rest[1]) if len(rest) == 2 else None)
    (spec,) = ipc.decode_arguments(rest[1:])
    if not isinstance(spec, OutputSpec):
        raise ipc.FrameError("a step gives outputs")
    return WriteState(array=array, spec=spec)
