"""Evidence about a round of a RoundWork: receipts, the lists of digests that they are for, and the state before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import LocalProtocolError, WireCode
from ..task import ReceiptPayload
from ..work import ArrayArg, RoundWork

__all__ = ["RoundClaim", "chunks_of_round", "claim_of_round", "needs_of_round"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundClaim:
    """What a provider has receipted about a round.

    Attributes:
        round: from 1 on, within the agreement's work.
        before: digests of the arrays of the state before it; None where that can't be told from what is there.
        after: the digest of the state after it; None likewise.
    """

    round: int
    before: tuple[bytes, ...] | None
    after: bytes | None


def chunks_of_round(work: RoundWork, round_: int) -> tuple[int, ...]:
    """Which chunks' receipts say what the states before and after a round are; ascending.

    Raises:
        LocalProtocolError: UNKNOWN_CHUNK, the work has no such round.
    """
    if not 1 <= round_ <= work.rounds:
        raise LocalProtocolError(f"round {round_} of {work.rounds}", code=WireCode.UNKNOWN_CHUNK)
    last, at = divmod(round_ - 1, work.rounds_per_chunk)
    return (last - 1, last) if last and not at else (last,)


def _digest_after(
    work: RoundWork, state: int, receipts: Sequence[ReceiptPayload], blobs: Mapping[bytes, bytes]
) -> bytes | None:
    """What was receipted for the state after `state` rounds; None where the list is not there."""
    if state == 0:
        return work.first_state
    index, at = divmod(state - 1, work.rounds_per_chunk)
    receipt = next(receipt for receipt in receipts if receipt.index == index)
    listed = blobs.get(receipt.output)
    return None if listed is None else listed[32 * at : 32 * at + 32]


def claim_of_round(
    work: RoundWork, round_: int, receipts: Sequence[ReceiptPayload], blobs: Mapping[bytes, bytes]
) -> RoundClaim:
    """What the receipts claim, as far as the blobs tell."""
    before: tuple[bytes, ...] | None = None
    if round_ == 1:
        before = tuple(array.digest for array in work.state)
    else:
        digest = _digest_after(work, round_ - 1, receipts, blobs)
        arrays = None if digest is None else blobs.get(digest)
        if arrays is not None:
            before = tuple(arrays[at : at + 32] for at in range(0, len(arrays), 32))
    return RoundClaim(round=round_, before=before, after=_digest_after(work, round_, receipts, blobs))


def needs_of_round(
    work: RoundWork, round_: int, receipts: Sequence[ReceiptPayload], blobs: Mapping[bytes, bytes]
) -> dict[bytes, int]:
    """Digest to size of all that computing the round again takes, as far as that can be told from `blobs`: a list of
    digests has to be there before it is known what it names.

    Raises:
        LocalProtocolError: BAD_DIGEST, one digest with two sizes.
    """
    needs: dict[bytes, int] = {}

    def need(digest: bytes, size: int) -> None:
        if needs.setdefault(digest, size) != size:
            raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)

    for receipt in receipts:
        need(receipt.output, 32 * work.chunk_range(receipt.index)[1])
    for launch in work.launches:
        need(launch.kernel.digest, launch.kernel.size)
        for arg in launch.args:
            if isinstance(arg, ArrayArg):
                need(arg.digest, arg.nbytes)
    if round_ > 1 and (digest := _digest_after(work, round_ - 1, receipts, blobs)) is not None:
        need(digest, 32 * len(work.state))
    claim = claim_of_round(work, round_, receipts, blobs)
    for array, found in zip(work.state, claim.before or (), strict=False):
        need(found, array.nbytes)
    return needs
