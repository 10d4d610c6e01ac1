"""The stake stream: cards, pledges, receipts for the registry, and verdicts."""

from __future__ import annotations

import dataclasses
import hashlib

import cbor2

from p2pcompute_protocols import stake
from p2pcompute_protocols._binding import bind_signer

from ._material import (
    CHAIN,
    NETWORK,
    NOW,
    PAYEE,
    PAYER,
    PROVIDER,
    STRANGER,
    THIEF,
    Json,
    bad_message,
    edited,
    message,
    plain,
    transcript,
    vector,
)

__all__ = ["stake_vectors"]

REGISTRY = b"\xcc" * 20
EVIDENCE = b"evidence"


def _card(**changes: object) -> stake.ArbiterCard:
    binding = bind_signer(NETWORK, STRANGER.peer_id, THIEF, sequence=1, expires_ms=NOW + 1)
    fields = {"chain": CHAIN, "registry": REGISTRY, "binding": binding, **changes}
    return stake.ArbiterCard(**fields)  # type: ignore[arg-type]


def stake_vectors() -> Json:
    terms = stake.PledgedTerms(
        chain=CHAIN,
        registry=REGISTRY,
        task=b"\x07" * 32,
        provider=PAYEE.address,
        requester=PAYER.address,
        at_risk_uusd=100_000_000,
        threshold=1,
        expires_s=NOW // 1000 + 1_000_000,
        arbiters=(THIEF.address,),
    )
    signed, other = b"\x01" * 65, b"\x02" * 65
    digest = hashlib.sha256(EVIDENCE).digest()
    card = stake.seal_card(_card(), network=NETWORK, signer=STRANGER)
    pledge = stake.Pledge(terms=terms, signature=signed, cards=(card,))
    accuse = stake.Accuse(
        terms=terms, provider_signature=other, requester_signature=signed, size=len(EVIDENCE), digest=digest
    )
    verdict = stake.VerdictGiven(amount_uusd=100_000_000, evidence=digest, signature=other)
    no = stake.StakeRefusal(code=26, detail="the accuser is wrong")
    query, given = stake.CardQuery(), stake.CardGiven(card=card)
    pledged = stake.Pledged(signature=other)
    strict = stake.StrictQuery(task=terms.task, index=3)
    strict_given = stake.StrictGiven(output=digest, signature=other)
    piece, end, proceed = stake.EvidencePiece(data=EVIDENCE), stake.EvidenceEnd(), stake.Proceed()
    accept = [
        vector("an arbiter's card", "arbiter-card", card, expect=plain(_card())),
        message("a question for a card", query),
        message("a card", given),
        message("a pledge is asked for", pledge),
        message("a pledge", pledged),
        message("a receipt is asked for", strict),
        message("a receipt for the registry", strict_given),
        message("an accusation", accuse),
        message("the arbiter takes the evidence", proceed),
        message("a piece of evidence", piece),
        message("the end of evidence", end),
        message("a verdict", verdict),
        message("a refusal", no),
    ]
    raw = cbor2.loads(terms.encode())

    def bad_terms(name: str, code: str, **changes: object) -> Json:
        changed = {**raw, **{int(key[1:]): value for key, value in changes.items()}}
        return bad_message(name, edited(pledge, k1=changed), code)

    foreign = bind_signer(NETWORK, PROVIDER.peer_id, THIEF, sequence=1, expires_ms=NOW + 1)
    old = bind_signer(NETWORK, STRANGER.peer_id, THIEF, sequence=1, expires_ms=NOW)
    unsigned = dataclasses.replace(_card().binding, signature=PAYER.sign_digest(digest))

    def sealed(made: stake.ArbiterCard) -> bytes:
        return stake.seal_card(made, network=NETWORK, signer=STRANGER)

    reject = [
        vector(
            "a card that an account has made up for a peer",
            "arbiter-card",
            sealed(_card(binding=foreign)),
            code="WRONG_PEER",
        ),
        vector("a card that has expired", "arbiter-card", sealed(_card(binding=old)), code="EXPIRED"),
        vector(
            "a card that its account has not signed",
            "arbiter-card",
            sealed(_card(binding=unsigned)),
            code="BAD_SIGNATURE",
        ),
        vector(
            "a card of another network",
            "arbiter-card",
            stake.seal_card(_card(), network="elsewhere", signer=STRANGER),
            code="WRONG_NETWORK",
        ),
        bad_terms("arbiters that descend", "MALFORMED", k9=[THIEF.address, bytes(20)]),
        bad_terms("an arbiter twice", "MALFORMED", k9=[THIEF.address, THIEF.address]),
        bad_terms("nobody to judge", "OVERSIZED", k9=[]),
        bad_terms("more votes than arbiters", "MALFORMED", k7=2),
        bad_terms("no votes", "OVERSIZED", k7=0),
        bad_terms("the provider judges", "WRONG_PEER", k9=[PAYEE.address]),
        bad_terms("the requester judges", "WRONG_PEER", k9=[PAYER.address]),
        bad_terms("one account on both sides", "WRONG_PEER", k5=PAYEE.address),
        bad_terms("nothing at risk", "OVERSIZED", k6=0),
        bad_terms("a time of 41 bits", "OVERSIZED", k8=2**40),
        bad_message("an arbiter without a card", edited(pledge, k3=[]), "OVERSIZED"),
        bad_message("a card too many", edited(pledge, k3=[card, card]), "MALFORMED"),
        bad_message("a card above the bound", edited(given, k1=bytes(1025)), "OVERSIZED"),
        bad_message("evidence of no bytes", edited(accuse, k4=0), "OVERSIZED"),
        bad_message("a piece of nothing", edited(piece, k1=b""), "OVERSIZED"),
        bad_message("a verdict that takes nothing", edited(verdict, k1=0), "OVERSIZED"),
        bad_message("a signature of 64 bytes", edited(pledged, k1=bytes(64)), "OVERSIZED"),
        bad_message("a refusal without a reason", edited(no, k1=0), "OVERSIZED"),
        bad_message("an extension where there are none", edited(proceed, k1000=1), "MALFORMED"),
    ]
    r, v = "requester", "provider"
    accused = [(r, accuse), (v, proceed)]
    transcripts = [
        transcript(
            "a card, then a pledge, then a receipt",
            [(r, query), (v, given), (r, pledge), (v, pledged), (r, strict), (v, strict_given)],
        ),
        transcript("a verdict", [*accused, (r, piece), (r, end), (v, verdict)]),
        transcript("no verdict, then another question", [*accused, (r, piece), (r, end), (v, no), (r, query), (v, no)]),
        transcript("evidence that is not wanted", [(r, accuse), (v, no)]),
        transcript("evidence before it is wanted", [(r, accuse), (r, piece, "OUT_OF_ORDER")]),
        transcript("two questions at once", [(r, query), (r, strict, "OUT_OF_ORDER")]),
        transcript("more evidence than announced", [*accused, (r, piece), (r, piece, "OVERSIZED")]),
        transcript("less evidence than announced", [*accused, (r, end, "OUT_OF_ORDER")]),
        transcript("a verdict before the evidence", [*accused, (v, verdict, "OUT_OF_ORDER")]),
        transcript(
            "a verdict on other evidence",
            [*accused, (r, piece), (r, end), (v, dataclasses.replace(verdict, evidence=bytes(32)), "REPLAYED")],
        ),
        transcript(
            "a verdict on more than is at risk",
            [*accused, (r, piece), (r, end), (v, dataclasses.replace(verdict, amount_uusd=100_000_001), "OVERSIZED")],
        ),
        transcript("the arbiter speaks first", [(v, given, "OUT_OF_ORDER")]),
    ]
    return {"accept": accept, "reject": reject, "transcripts": transcripts}
