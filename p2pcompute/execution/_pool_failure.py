"""A worker's FAILED packet as the error that it means."""

from __future__ import annotations

from typing import Any

from p2pcompute.errors import (
    ExecutionError,
    KernelError,
    KernelTypeError,
    P2PComputeError,
    SandboxError,
    WorkerProtocolError,
)
from p2pcompute.execution import _ipc as ipc

__all__ = ["failure_of", "printable"]


def printable(text: str) -> str:
    """`text` with every character escaped that could steer a terminal or a log; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def failure_of(packet: list[Any]) -> P2PComputeError:
    """The error in a FAILED packet. Raises `WorkerProtocolError` where the packet is not one."""
    try:
        kind, reason, line, filename, instead = ipc.take_list(packet[2:], low=5, high=5)
        ipc.take_int(kind, low=ipc.Failure.KERNEL, high=ipc.Failure.GUARD_TYPE)
        ipc.take_int(line, low=0, high=ipc.MAX_EXTENT)
        texts = [printable(ipc.take_text(text, limit=ipc.MAX_TEXT)) for text in (reason, filename, instead)]
    except ipc.FrameError as error:
        raise WorkerProtocolError(f"the worker reported a failure badly: {error}") from None
    if kind == ipc.Failure.EXECUTION:
        return ExecutionError(texts[0])
    if kind == ipc.Failure.SANDBOX:
        return SandboxError(texts[0])
    error_type = KernelTypeError if kind in {ipc.Failure.KERNEL_TYPE, ipc.Failure.GUARD_TYPE} else KernelError
    refused = error_type(texts[0], line=line, filename=texts[1] or "<kernel>", instead=texts[2])
    refused.by_guard = kind in {ipc.Failure.GUARD, ipc.Failure.GUARD_TYPE}
    return refused
