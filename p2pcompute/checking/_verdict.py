"""Who is wrong: a file of evidence is checked by itself, and what it disputes is computed again.

Nothing of the file is believed but signatures. Both parties have signed the agreement, which names kernel and inputs by
their digests; the provider has signed its receipt or commitment; the accuser has signed the accusation. The kernel is
a stranger's, so it runs in a locked worker, as at a provider.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from p2pcompute.errors import EvidenceError, ExecutionError, KernelError, SandboxError
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.evidence import Evidence, open_evidence
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.task import HeldTiles
from p2pcompute_protocols.work import ArrayArg, ChunkWork, RoundWork

from ._evidence import read_evidence
from ._rounds import recompute_round
from ._verdict_fast import Held, hold_against

if TYPE_CHECKING:
    from p2pcompute.tasks._api import Workers

__all__ = ["Verdict", "verify_evidence"]

_TIMEOUT_S: Final = 300.0
_PART_BYTES: Final = 64 * 1024 * 1024  # of a round's outputs in one run
_TENANT: Final = "evidence"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a file of evidence shows.

    Attributes:
        wrong: who has signed something that is not so, or "undecided" where that can't be told here.
        peer: that one's peer ID; None where undecided.
        signature: SHA-256 of the envelope that binds it: the receipt or commitment, or the accusation.
        reason: why, in words.
        kind: "result", "equivocation" or "round"; `task`, and `index` (chunk) or `round`, say of what.
        accuser, provider: the two parties.
        claimed, computed: SHA-256 of the output or state that the provider claims, and of ours; None where nothing
            was computed.
    """

    wrong: Literal["provider", "accuser", "undecided"]
    peer: PeerId | None
    signature: bytes | None
    reason: str
    kind: str
    task: bytes
    index: int | None
    round: int | None
    accuser: PeerId
    provider: PeerId
    claimed: bytes | None = None
    computed: bytes | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: digests in hex."""
        return {
            name: value.hex() if isinstance(value := getattr(self, name), bytes) else value
            for name in self.__dataclass_fields__
        }


async def verify_evidence(
    evidence: bytes | str | Path,
    *,
    blobs: Iterable[bytes] = (),
    workers: Workers | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Verdict:
    """Check a file of evidence and compute what it disputes again, from the file alone.

    Args:
        evidence: the file's bytes, or its path.
        blobs: inputs that the file names by digest and does not hold; others are ignored.
        workers: where the kernel runs; a locked worker of our own where None.
        timeout_s: for all that is computed; beyond it the verdict is "undecided".

    Returns:
        The verdict. It is "undecided" where an input is missing, the work is of another version of the language, or
        can't be computed here, and where in fast mode rounding alone decides.

    Raises:
        EvidenceError: it is no evidence: damaged, forged, put together from unlike parts. It says nothing of anybody.
        SandboxError: no worker can be locked in here.

    Cancellation: ends the worker.
    """
    data = evidence if isinstance(evidence, bytes) else read_evidence(Path(evidence))
    try:
        found = open_evidence(data, more={hashlib.sha256(blob).digest(): blob for blob in blobs})
    except LocalProtocolError as exc:
        name = "this" if isinstance(evidence, bytes) else str(evidence)
        raise EvidenceError(f"{name} is no evidence ({exc.code.name.lower()}): {exc}") from exc
    match found.accusation.kind:
        case "equivocation":
            return _against_provider(found, "it has signed two results for one chunk", claimed=found.receipts[0].output)
        case "round" if found.rounds is not None and found.accusation.round == 0:
            return _judge_first_state(found)
        case _:
            pass
    if (why := _why_not_here(found)) is not None:
        return _undecided(found, why)
    return await _compute(found, workers, timeout_s)


def _judge_first_state(found: Evidence) -> Verdict:
    due = _first_state(found)
    claimed = found.claims[0].digest
    if claimed == due:
        return _against_accuser(found, "the rounds begin with the input that was agreed", claimed, due)
    return _against_provider(
        found, "the rounds begin with another input than was agreed", claimed=claimed, computed=due
    )


def _first_state(found: Evidence) -> bytes:
    if isinstance(found.work, RoundWork):
        return found.work.first_state
    assert found.rounds is not None  # as was checked when the file was opened, and what it names
    assert found.rounds.state is not None
    arg = found.work.args[found.rounds.state]
    assert isinstance(arg, ArrayArg)
    return arg.digest


def _why_not_here(found: Evidence) -> str | None:
    from p2pcompute.execution._language import LANGUAGE_VERSION

    terms = found.agreement.terms
    if any(receipt.fp != terms.fp for receipt in found.receipts):
        return f"{terms.fp} work was agreed, and the receipt is for another mode"
    if terms.fp != "strict" and (found.rounds is not None or found.claim is not None):
        return "the rounds are not of the strict mode, in which every state has one value"
    if terms.language != LANGUAGE_VERSION:
        return f"the work is of version {terms.language} of the language, and this program has {LANGUAGE_VERSION}"
    if found.missing:
        names = ", ".join(f"{digest.hex()} ({size} bytes)" for digest, size in found.missing.items())
        return f"inputs are missing; hand over the files with the SHA-256 {names}"
    return None


async def _compute(found: Evidence, workers: Workers | None, timeout_s: float) -> Verdict:
    import trio

    computed: bytes | Held | None = None
    why = f"it was not computed in {timeout_s:.0f} s"
    async with AsyncExitStack() as stack:
        pool = workers if workers is not None else await _own_worker(stack)
        with trio.move_on_after(timeout_s):
            try:
                async with pool.session(tenant=_TENANT) as worker:
                    if found.agreement.terms.fp == "fast":
                        computed = await hold_against(found, worker, timeout_s=timeout_s)
                    else:
                        computed = await _digest_of(found, worker, timeout_s)
            except KernelError as exc:
                why = f"the kernel is refused here: {exc}"
            except SandboxError:
                raise  # a stranger's kernel is not run unlocked, and that says nothing of the evidence
            except ExecutionError as exc:
                why = f"it can't be computed here: {exc}"
    if computed is None:
        return _undecided(found, why)
    if isinstance(computed, Held):
        return _judge_held(found, computed)
    what = "chunk" if found.accusation.round is None else "round"
    if found.claim is not None:
        assert found.claim.after is not None  # nothing is missing
        claimed = found.claim.after
    else:
        claimed = found.claims[1].digest if found.rounds is not None else found.receipts[0].output
    if computed == claimed:
        return _against_accuser(found, f"the {what} was computed rightly", claimed, computed)
    return _against_provider(found, f"the {what} gives another result", claimed=claimed, computed=computed)


def _judge_held(found: Evidence, held: Held) -> Verdict:
    claimed = found.receipts[0].output
    if not held.off:
        return _against_accuser(found, "all of the chunk is within the tolerance", claimed, held.computed)
    if held.loose == held.off:
        return _undecided(
            found, f"{held.off} items are off by more than the tolerance, and so is this machine's own fast mode there"
        )
    reason = f"{held.off - held.loose} items of the chunk are off by more than the tolerance"
    return _against_provider(found, reason, claimed=claimed, computed=held.computed)


async def _own_worker(stack: AsyncExitStack) -> Workers:
    from p2pcompute.execution import open_pool

    return await stack.enter_async_context(open_pool(spare=0))


async def _digest_of(found: Evidence, worker: Any, timeout_s: float) -> bytes:
    from p2pcompute.tasks._windows import tile_pieces, windowed
    from p2pcompute.tasks._work import execution_args

    work = found.work
    if isinstance(work, RoundWork):
        return await _digest_of_round(found, work, worker, timeout_s)
    if found.rounds is not None:
        assert found.rounds.state is not None  # of a launch, as was checked
        work = _work_of_round(work, found.rounds.state, found.claims[0].digest)
    try:
        source, launch, specs, inputs = execution_args(work, found.blobs)
    except LocalProtocolError as exc:
        raise KernelError(str(exc)) from exc
    compiled = await worker.compile(source, launch, specs, inputs)
    if found.rounds is None:
        index = found.accusation.index
        assert index is not None  # of this kind
        if work.splits:
            manifests = {position: found.blobs[arg.manifest] for position, arg in work.splits.items()}
            pieces = tile_pieces(work, HeldTiles(work, manifests), found.blobs.__getitem__)
            worker = windowed(worker, launch, specs, compiled.items_per_block, pieces)
        run = await worker.run_blocks(*work.chunk_range(index), timeout_s=timeout_s)
        return hashlib.sha256(b"".join(run.outputs)).digest()
    assert found.rounds.out is not None
    return await _state_after(found.rounds.out, worker, source, launch, specs, compiled.row_shapes, timeout_s)


async def _digest_of_round(found: Evidence, work: RoundWork, worker: Any, timeout_s: float) -> bytes:
    """The digest of the state after the disputed round, from the one before it."""
    from p2pcompute.tasks._round_work import StateBytes, execution_steps

    assert found.claim is not None
    assert found.claim.before is not None  # nothing is missing
    try:
        steps, state, inputs = execution_steps(work, found.blobs)
    except LocalProtocolError as exc:
        raise KernelError(str(exc)) from exc
    before = [found.blobs[digest] for digest in found.claim.before]
    number = work.first + found.claim.round - 1
    after = await recompute_round(worker, steps, state, inputs, number, before, timeout_s=timeout_s)
    return StateBytes.of(after).digest


def _work_of_round(work: ChunkWork, state: int, digest: bytes) -> ChunkWork:
    """The work with another content of the argument `state`, of the same type and shape."""
    array = work.args[state]
    assert isinstance(array, ArrayArg)  # as was checked when the file was opened
    args = (*work.args[:state], dataclasses.replace(array, digest=digest), *work.args[state + 1 :])
    return dataclasses.replace(work, args=args)


async def _state_after(
    out: int, worker: Any, source: Any, launch: Any, specs: list[Any], row_shapes: Any, timeout_s: float
) -> bytes:
    """SHA-256 of the whole output at position `out`. Only the source's text is read in this process: which element is
    whose stands in it."""
    from p2pcompute.execution._api import OutputSpec
    from p2pcompute.execution._rows import Layout

    layout = Layout.of(source, launch, specs)
    place = sum(isinstance(spec, OutputSpec) for spec in specs[:out])
    spec = layout.outputs[place]
    target = np.zeros(spec.shape, np.dtype(spec.dtype))
    per_block = layout.items_per_block * sum(
        int(np.prod(row, dtype=np.int64)) * np.dtype(output.dtype).itemsize
        for row, output in zip(row_shapes, layout.outputs, strict=True)
    )
    step = max(1, _PART_BYTES // max(1, per_block))
    for first in range(0, launch.blocks, step):
        blocks = min(step, launch.blocks - first)
        run = await worker.run_blocks(first, blocks, timeout_s=timeout_s)
        rows = np.frombuffer(run.outputs[place], target.dtype)
        shape = (blocks * layout.items_per_block, *layout.row_shapes[place])
        layout.scatter(place, first, blocks, rows.reshape(shape), target)
    return hashlib.sha256(target.astype(target.dtype.newbyteorder("<"), copy=False).tobytes()).digest()


def _facts(found: Evidence) -> dict[str, Any]:
    return {
        "kind": found.accusation.kind,
        "task": found.agreement.task_id,
        "index": found.accusation.index,
        "round": found.accusation.round,
        "accuser": found.accuser,
        "provider": found.provider,
    }


def _against_provider(found: Evidence, reason: str, *, claimed: bytes, computed: bytes | None = None) -> Verdict:
    return Verdict(
        wrong="provider",
        peer=found.provider,
        signature=found.statements[-1].digest,
        reason=reason,
        claimed=claimed,
        computed=computed,
        **_facts(found),
    )


def _against_accuser(found: Evidence, reason: str, claimed: bytes, computed: bytes) -> Verdict:
    return Verdict(
        wrong="accuser",
        peer=found.accuser,
        signature=found.signed.digest,
        reason=reason,
        claimed=claimed,
        computed=computed,
        **_facts(found),
    )


def _undecided(found: Evidence, reason: str) -> Verdict:
    return Verdict(wrong="undecided", peer=None, signature=None, reason=reason, **_facts(found))
