"""Opening a file of evidence: all that can be said of it without computing anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..dispute import RoundsPayload, StateClaim, check_claim, check_rounds_fit, check_rounds_of, open_rounds
from ..envelope import Envelope, open_envelope
from ..errors import LocalProtocolError, WireCode
from ..ids import PeerId
from ..limits import MAX_EVIDENCE_BYTES
from ..negotiation import Agreement, Terms, open_agreement
from ..negotiation._messages import ACCEPT_KIND, TERMS_KIND
from ..task import HeldTiles, ReceiptPayload, open_receipt
from ..work import ArrayArg, ChunkWork, RoundWork
from ._messages import ACCUSATION_KIND, Accusation, EvidenceFile
from ._rounds import (
    RoundClaim,
    chunks_of_round,
    claim_of_commitment,
    claim_of_round,
    needs_of_commitment,
    needs_of_round,
)

__all__ = ["Evidence", "open_evidence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A file whose signatures, digests and proofs all hold together. What it accuses somebody of may still be false.

    Attributes:
        signed: the accusation's envelope.
        statements: the provider's signed statements that are disputed: one receipt, two of them, or one commitment.
        receipts: payloads of the receipts; none for a commitment.
        rounds: the commitment's payload; None otherwise.
        claim: what receipts say of a round, where the work is in rounds and one of them is disputed.
        claims: for a round, the committed states before and after it; for round 0 the first state alone.
        blobs: bytes by digest, each named by the work, or the state before the round, or the output that a receipt
            in fast mode is for.
        missing: digests and sizes of what is needed to compute it again and is not in the file.
    """

    network: str
    accusation: Accusation
    signed: Envelope
    agreement: Agreement
    work: ChunkWork | RoundWork
    statements: tuple[Envelope, ...]
    receipts: tuple[ReceiptPayload, ...]
    rounds: RoundsPayload | None
    claims: tuple[StateClaim, ...]
    blobs: Mapping[bytes, bytes]
    missing: Mapping[bytes, int]
    claim: RoundClaim | None = None

    @property
    def accuser(self) -> PeerId:
        """Who signed the accusation."""
        return self.signed.signer

    @property
    def provider(self) -> PeerId:
        """Who is accused: the provider of the agreement."""
        return PeerId(self.agreement.terms.provider)

    @property
    def needs(self) -> Mapping[bytes, int]:
        """Digest to size of all that computing it again takes; nothing where signatures alone decide. Of split inputs
        it is the manifests, and the tiles of the chunk as soon as those are there."""
        found = (self.accusation, self.agreement, self.work, self.receipts, self.rounds, self.claims)
        return _needs(*found, self.blobs)


def _needs(
    accusation: Accusation,
    agreement: Agreement,
    work: ChunkWork | RoundWork,
    receipts: Sequence[ReceiptPayload],
    rounds: RoundsPayload | None,
    claims: tuple[StateClaim, ...],
    blobs: Mapping[bytes, bytes],
) -> dict[bytes, int]:
    if isinstance(work, RoundWork):
        if accusation.round is None:
            return {}
        if claims:
            return needs_of_commitment(work, accusation.round, claims, blobs)
        return needs_of_round(work, accusation.round, receipts, blobs)
    if accusation.kind == "equivocation" or accusation.round == 0:
        return {}
    needs = {work.kernel.digest: work.kernel.size}
    needs.update({arg.manifest: arg.manifest_bytes for arg in work.splits.values()})
    for position, arg in enumerate(work.args):
        if isinstance(arg, ArrayArg) and (rounds is None or position != rounds.state):
            needs[arg.digest] = arg.nbytes
    if accusation.index is not None and agreement.terms.fp == "fast":  # a digest says nothing of what comes near
        blocks = work.chunk_range(accusation.index)[1]
        size = work.chunk_output_bytes // work.blocks_per_chunk * blocks
        if needs.setdefault(receipts[0].output, size) != size:
            raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)
    if rounds is not None:
        state = check_rounds_fit(rounds, work)
        if needs.get(claims[0].digest, state.nbytes) != state.nbytes:
            raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)
        needs[claims[0].digest] = state.nbytes
    return {**needs, **_tiles(accusation, work, blobs)}


def _tiles(accusation: Accusation, work: ChunkWork, blobs: Mapping[bytes, bytes]) -> dict[bytes, int]:
    """Digest to size of the tiles that the chunk needs; none where a manifest is missing."""
    splits = work.splits
    if not splits or accusation.index is None or any(arg.manifest not in blobs for arg in splits.values()):
        return {}
    held = HeldTiles(work, {position: blobs[arg.manifest] for position, arg in splits.items()})
    return {
        digest: splits[position].tile_bytes(number)
        for (position, number), digest in held.of_chunk(accusation.index).items()
    }


def _open_agreement(raw: bytes, network: str) -> Agreement:
    """Both signatures, by those whom the terms name."""
    outer = open_envelope(raw, kind=ACCEPT_KIND, network=network)
    inner = open_envelope(outer.payload, kind=TERMS_KIND, network=network)
    terms = Terms.decode(inner.payload)
    return open_agreement(raw, network=network, requester=PeerId(terms.requester), provider=PeerId(terms.provider))


def open_evidence(data: bytes, *, more: Mapping[bytes, bytes] | None = None) -> Evidence:
    """Read a file of evidence, and verify that it is of one piece.

    Args:
        data: the file.
        more: blobs by digest that the file names and does not hold; others are ignored.

    Raises:
        LocalProtocolError: it is no evidence, with the code that says why: MALFORMED or OVERSIZED for its form,
            BAD_SIGNATURE, WRONG_PEER or WRONG_NETWORK for who signed what, REPLAYED for a receipt of another task or
            chunk, BAD_DIGEST for statements that are not those accused, blobs that nobody named, or states that were
            not committed to.
    """
    file = EvidenceFile.decode(data, max_bytes=MAX_EVIDENCE_BYTES)
    signed = open_envelope(file.accusation, kind=ACCUSATION_KIND, network=file.network)
    accusation = Accusation.decode(signed.payload)
    agreement = _open_agreement(file.agreement, file.network)
    if accusation.task != agreement.task_id:
        raise LocalProtocolError("the accusation is about another task", code=WireCode.REPLAYED)
    if tuple(hashlib.sha256(raw).digest() for raw in file.statements) != accusation.statements:
        raise LocalProtocolError("the statements are not those that are accused", code=WireCode.BAD_DIGEST)
    work = agreement.terms.work
    if not isinstance(work, ChunkWork | RoundWork):
        raise LocalProtocolError("the agreement is not about a kernel's launch", code=WireCode.UNSUPPORTED)
    if agreement.terms.standing and accusation.kind != "equivocation":
        raise LocalProtocolError("the inputs of a call are not in its agreement", code=WireCode.UNSUPPORTED)
    if isinstance(work, RoundWork) and accusation.kind == "result":
        raise LocalProtocolError("of work in rounds a round is disputed", code=WireCode.UNSUPPORTED)
    provider = PeerId(agreement.terms.provider)
    statements: list[Envelope] = []
    receipts: list[ReceiptPayload] = []
    rounds: RoundsPayload | None = None
    for raw, index in zip(file.statements, _receipted(accusation, work, file), strict=True):
        if index is None:
            envelope, rounds = open_rounds(raw, network=file.network, provider=provider, task=agreement.task_id)
            _check_claims(file.claims, rounds, work, accusation)
        else:
            envelope, receipt = open_receipt(
                raw, network=file.network, provider=provider, task=agreement.task_id, index=index
            )
            _check_receipt(receipt, file.claims, work)
            receipts.append(receipt)
        statements.append(envelope)
    if accusation.kind == "equivocation" and receipts[0].output == receipts[1].output:
        raise LocalProtocolError("two receipts for one output are no contradiction", code=WireCode.REPLAYED)
    if accusation.kind == "equivocation" and agreement.terms.fp == "fast":
        raise LocalProtocolError("in fast mode unlike outputs are no contradiction", code=WireCode.UNSUPPORTED)
    held = {hashlib.sha256(blob).digest(): blob for blob in (*(more or {}).values(), *file.blobs)}
    needs = _needs(accusation, agreement, work, receipts, rounds, file.claims, held)
    blobs, missing = _take_blobs(file, needs, more or {})
    return Evidence(
        network=file.network,
        accusation=accusation,
        signed=signed,
        agreement=agreement,
        work=work,
        statements=tuple(statements),
        receipts=tuple(receipts),
        rounds=rounds,
        claims=file.claims,
        blobs=blobs,
        missing=missing,
        claim=_claim(accusation, work, file.claims, receipts, blobs),
    )


def _claim(
    accusation: Accusation,
    work: ChunkWork | RoundWork,
    claims: tuple[StateClaim, ...],
    receipts: Sequence[ReceiptPayload],
    blobs: Mapping[bytes, bytes],
) -> RoundClaim | None:
    if not isinstance(work, RoundWork) or accusation.round is None:
        return None
    if claims:
        return claim_of_commitment(work, accusation.round, claims, blobs)
    return claim_of_round(work, accusation.round, receipts, blobs)


def _receipted(accusation: Accusation, work: ChunkWork | RoundWork, file: EvidenceFile) -> tuple[int | None, ...]:
    """Of which chunk each statement is a receipt; None for a commitment, which comes with claims."""
    statements = len(file.statements)
    if accusation.index is not None:
        return (accusation.index,) * statements
    assert accusation.round is not None  # one of the two, as the accusation's own rules have it
    found: tuple[int | None, ...] = (None,)
    if isinstance(work, RoundWork) and not file.claims:
        found = chunks_of_round(work, accusation.round)
    if len(found) != statements:
        raise LocalProtocolError(f"{statements} statements where this round has {len(found)}")
    return found


def _check_receipt(receipt: ReceiptPayload, claims: tuple[StateClaim, ...], work: ChunkWork | RoundWork) -> None:
    if claims:
        raise LocalProtocolError("claims about states of a chunk")
    if receipt.code:
        raise LocalProtocolError("a receipt for a failure claims no output", code=WireCode.UNSUPPORTED)
    if receipt.index >= work.chunks:
        raise LocalProtocolError(f"chunk {receipt.index} of {work.chunks}", code=WireCode.UNKNOWN_CHUNK)


def _check_claims(
    claims: tuple[StateClaim, ...], rounds: RoundsPayload, work: ChunkWork | RoundWork, accusation: Accusation
) -> None:
    if isinstance(work, RoundWork):
        check_rounds_of(rounds, work)
    else:
        check_rounds_fit(rounds, work)
    after = accusation.round
    assert after is not None  # of this kind, as the accusation's own rules have it
    if after > rounds.rounds:
        raise LocalProtocolError(f"round {after} of {rounds.rounds}", code=WireCode.UNKNOWN_CHUNK)
    states = (after - 1, after) if after else (0,)
    if len(claims) != len(states):
        raise LocalProtocolError(f"{len(claims)} claims where the round has {len(states)}")
    for claim, state in zip(claims, states, strict=True):
        check_claim(claim, rounds, state)


def _take_blobs(
    file: EvidenceFile, needs: Mapping[bytes, int], more: Mapping[bytes, bytes]
) -> tuple[dict[bytes, bytes], dict[bytes, int]]:
    blobs: dict[bytes, bytes] = {}
    for blob in file.blobs:
        digest = hashlib.sha256(blob).digest()
        if digest not in needs or digest in blobs:
            raise LocalProtocolError("a blob that nothing names, or one twice", code=WireCode.BAD_DIGEST)
        blobs[digest] = blob
    for digest, blob in more.items():
        if digest in needs and digest not in blobs:
            if hashlib.sha256(blob).digest() != digest:
                raise LocalProtocolError("a blob's bytes do not hash to its digest", code=WireCode.BAD_DIGEST)
            blobs[digest] = blob
    for digest, blob in blobs.items():
        if len(blob) != needs[digest]:
            raise LocalProtocolError("a blob of another size than the work says", code=WireCode.BAD_DIGEST)
    return blobs, {digest: size for digest, size in needs.items() if digest not in blobs}
