"""What a node sells of fast mode: what it has proved on itself (docs/fast.md).

Before it offers fast mode it computes the fast self-test in a worker of its own. What that finds is kept with the
measurement of this machine, and for as long; what fails is tried again at the next start.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.work import ChunkWork, OutArg

from ._profile import read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from p2pcompute.execution import FastFindings, WorkerPool
    from p2pcompute_protocols.negotiation import Tolerance
    from p2pcompute_protocols.work import Work

__all__ = ["ModesSold", "Prove", "check_tolerance", "kept_proof", "modes_sold"]

_log = logging.getLogger(__name__)

Prove: TypeAlias = "Callable[[WorkerPool, str], Awaitable[FastFindings]]"
"""Computes the self-test on the workers of a device, ``cpu`` or ``cuda:0``; raises `FastSelfTestError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModesSold:
    """The floating-point modes that a node sells.

    Attributes:
        modes: "strict", "fast" or both.
        findings: how far off this machine's fast mode is; None where that was not looked at.
        refused: why fast mode is not among them although it was wanted, for people; "" where it is, or was not.
    """

    modes: tuple[str, ...]
    findings: FastFindings | None = None
    refused: str = ""


async def modes_sold(fp: str, prove: Prove | None, pool: WorkerPool, slot: str) -> ModesSold:
    """Which modes a node sells.

    Args:
        fp: what its owner wants: "strict", "fast" or "both".
        prove: None takes the machine's word, as in a simulation.
        pool: the workers that compute.
        slot: on which device.

    Raises:
        FastSelfTestError: "fast" is all that was wanted, and this machine fails. With "both" it sells strict mode only.
    """
    from p2pcompute.execution import FastSelfTestError

    wanted = ("strict", "fast") if fp == "both" else (fp,)
    if "fast" not in wanted or prove is None:
        return ModesSold(modes=wanted)
    try:
        return ModesSold(modes=wanted, findings=await prove(pool, slot))
    except FastSelfTestError as error:
        if "strict" not in wanted:
            raise
        _log.warning("fast mode is not sold: %s", error)
        return ModesSold(modes=("strict",), refused=str(error))


def check_tolerance(work: Work | None, tolerance: Tolerance | None, findings: FastFindings | None) -> None:
    """Refuse an order for kernels in fast mode whose tolerance is tighter than what this machine is sure of. Of a
    program the self-test's kernels say nothing; and a product of matrices (`p2p.matmul`) is compared by its `atol`,
    which is worked out from the matrices, beside the least `rtol` that there is.

    Raises:
        LocalProtocolError: UNSUPPORTED; says which tolerance would do.
    """
    if findings is None or tolerance is None or not isinstance(work, ChunkWork):
        return
    for dtype in sorted({arg.dtype for arg in work.args if isinstance(arg, OutArg)}):
        near = tolerance.for_dtype(dtype)
        if near is None or (near[1] > 0 and _is_product(work)):
            continue
        if near[0] < (least := findings.least_rtol(dtype)):
            raise LocalProtocolError(
                f"our fast mode is sure of an rtol of {least:.2g} for {dtype}, and {near[0]:.2g} is asked for",
                code=WireCode.UNSUPPORTED,
            )


def _is_product(work: ChunkWork) -> bool:
    """Whether this is the kernel of `p2p.matmul`, as far as an order says: its text is known by its hash."""
    from p2pcompute.execution._fast_matmul import ENTRY, TEXT

    return work.entry == ENTRY and work.kernel.digest == hashlib.sha256(TEXT.encode()).digest()


async def kept_proof(path: Path, machine: str, test: Callable[[], Awaitable[FastFindings]]) -> FastFindings:
    """What `test` found on this machine, from the file of its measurement, or anew and into that file.

    Args:
        path: the file; without a measurement of this machine in it nothing is kept.
        machine: what it was measured on, compilers included.
        test: computes the self-test.
    """
    from p2pcompute.execution import FastFindings

    note = read_json(path)
    mine = note is not None and note.get("machine") == machine
    kept = note.get("fast") if note is not None and mine else None
    if isinstance(kept, list) and len(kept) == 2 and all(type(n) is float and 0 <= n < 1 for n in kept):
        return FastFindings(error32=kept[0], error64=kept[1])
    found = await test()
    if note is not None and mine:
        write_json(path, {**note, "fast": [found.error32, found.error64]})
    return found
