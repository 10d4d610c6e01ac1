"""Who is wrong about a result in fast mode: its values are held against the strict ones, within what was agreed.

What a rounding decides nobody can be blamed for. So an element counts against the provider only where the verifier's
own fast mode comes near to the strict one and the provider's does not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pcompute.errors import KernelError
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.task import HeldTiles
from p2pcompute_protocols.work import ChunkWork

from ._tolerance import outside_rows, rows_of

if TYPE_CHECKING:
    from p2pcompute_protocols.evidence import Evidence

__all__ = ["Held", "hold_against"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A result in fast mode, held against the strict one.

    Attributes:
        computed: SHA-256 of the strict output.
        off: items that are off by more than the tolerance.
        loose: those of them of which the same holds in our own fast mode.
    """

    computed: bytes
    off: int
    loose: int


async def hold_against(found: Evidence, worker: Any, *, timeout_s: float) -> Held:
    """Compute a chunk in both modes, and compare the output that the file holds.

    Raises:
        KernelError, ExecutionError: it can't be computed here.
    """
    from p2pcompute.execution._api import OutputSpec
    from p2pcompute.tasks._windows import tile_pieces, windowed
    from p2pcompute.tasks._work import execution_args

    work = found.work
    assert isinstance(work, ChunkWork)  # of work in rounds no chunk is accused
    index = found.accusation.index
    tolerance = found.agreement.terms.check.tolerance
    assert index is not None  # of this kind
    assert tolerance is not None  # of this mode
    try:
        source, launch, specs, inputs = execution_args(work, found.blobs)
    except LocalProtocolError as exc:
        raise KernelError(str(exc)) from exc
    outputs = [spec for spec in specs if isinstance(spec, OutputSpec)]
    first, blocks = work.chunk_range(index)
    items = 0
    shapes: tuple[tuple[int, ...], ...] = ()

    async def compute(fp: str) -> bytes:
        nonlocal items, shapes
        compiled = await worker.compile(replace(source, fp=fp), launch, specs, inputs)
        items, shapes = blocks * compiled.items_per_block, tuple(compiled.row_shapes)
        runner = worker
        if work.splits:
            manifests = {position: found.blobs[arg.manifest] for position, arg in work.splits.items()}
            pieces = tile_pieces(work, HeldTiles(work, manifests), found.blobs.__getitem__)
            runner = windowed(worker, launch, specs, compiled.items_per_block, pieces)
        run = await runner.run_blocks(first, blocks, timeout_s=timeout_s)
        return b"".join(run.outputs)

    strict = await compute("strict")
    due = rows_of(strict, outputs, shapes, items)
    claimed = found.blobs[found.receipts[0].output]
    if len(claimed) != len(strict):
        raise KernelError(f"the kernel writes {len(strict)} bytes and the agreement says {len(claimed)}")
    theirs = rows_of(claimed, outputs, shapes, items)
    computed = hashlib.sha256(strict).digest()

    def count(own: list[Any] | None) -> int:
        off = np.zeros(items, dtype=bool)
        for place, (rows, right) in enumerate(zip(theirs, due, strict=True)):
            off |= outside_rows(rows, right, None if own is None else own[place], tolerance)[0]
        return int(off.sum())

    off = count(None)
    if not off:
        return Held(computed=computed, off=0, loose=0)
    own = rows_of(await compute("fast"), outputs, shapes, items)
    return Held(computed=computed, off=off, loose=off - count(own))
