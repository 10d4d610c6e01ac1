"""Evidence about a round of a RoundWork: receipts, the lists of digests that they are for, and the state before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..dispute import StateClaim
from ..errors import LocalProtocolError, WireCode
from ..task import ReceiptPayload
from ..work import ArrayArg, RoundWork

__all__ = [
    "RoundClaim",
    "chunks_of_round",
    "claim_of_commitment",
    "claim_of_round",
    "needs_of_commitment",
    "needs_of_round",
]


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


def claim_of_commitment(
    work: RoundWork, round_: int, claims: Sequence[StateClaim], blobs: Mapping[bytes, bytes]
) -> RoundClaim:
    """What a commitment claims of a round, as far as the blobs tell."""
    if round_ == 0:
        return RoundClaim(round=0, before=None, after=claims[0].digest)
    first, after = claims[0].digest, claims[1].digest
    if first == work.first_state:
        return RoundClaim(round=round_, before=tuple(array.digest for array in work.state), after=after)
    return RoundClaim(round=round_, before=_arrays(blobs.get(first)), after=after)


def needs_of_commitment(
    work: RoundWork, round_: int, claims: Sequence[StateClaim], blobs: Mapping[bytes, bytes]
) -> dict[bytes, int]:
    """As `needs_of_round`, where a commitment is disputed."""
    if round_ == 0:
        return {}
    needs = _fixed_needs(work)
    if claims[0].digest != work.first_state:
        _need(needs, claims[0].digest, 32 * len(work.state))
    claim = claim_of_commitment(work, round_, claims, blobs)
    for array, found in zip(work.state, claim.before or (), strict=False):
        _need(needs, found, array.nbytes)
    return needs


def _arrays(listed: bytes | None) -> tuple[bytes, ...] | None:
    return None if listed is None else tuple(listed[at : at + 32] for at in range(0, len(listed), 32))


def _need(needs: dict[bytes, int], digest: bytes, size: int) -> None:
    if needs.setdefault(digest, size) != size:
        raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)


def _fixed_needs(work: RoundWork) -> dict[bytes, int]:
    """Kernels and constants."""
    needs: dict[bytes, int] = {}
    for launch in work.launches:
        _need(needs, launch.kernel.digest, launch.kernel.size)
        for arg in launch.args:
            if isinstance(arg, ArrayArg):
                _need(needs, arg.digest, arg.nbytes)
    return needs


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
        before = _arrays(None if digest is None else blobs.get(digest))
    return RoundClaim(round=round_, before=before, after=_digest_after(work, round_, receipts, blobs))


def needs_of_round(
    work: RoundWork, round_: int, receipts: Sequence[ReceiptPayload], blobs: Mapping[bytes, bytes]
) -> dict[bytes, int]:
    """Digest to size of all that computing the round again takes, as far as that can be told from `blobs`: a list of
    digests has to be there before it is known what it names.

    Raises:
        LocalProtocolError: BAD_DIGEST, one digest with two sizes.
    """
    needs = _fixed_needs(work)
    for receipt in receipts:
        _need(needs, receipt.output, 32 * work.chunk_range(receipt.index)[1])
    if round_ > 1 and (digest := _digest_after(work, round_ - 1, receipts, blobs)) is not None:
        _need(needs, digest, 32 * len(work.state))
    claim = claim_of_round(work, round_, receipts, blobs)
    for array, found in zip(work.state, claim.before or (), strict=False):
        _need(needs, found, array.nbytes)
    return needs
