"""Files of evidence, whole and with one thing wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

from p2pcompute_protocols.dispute import RoundsPayload, StateClaim
from p2pcompute_protocols.evidence import Accusation, EvidenceFile
from p2pcompute_protocols.merkle import InclusionProof
from p2pcompute_protocols.negotiation import CheckPolicy, Tolerance
from p2pcompute_protocols.task import ReceiptPayload

from ._dispute import a_claim, rounds_bytes, rounds_work, some_rounds
from ._material import (
    DATA,
    KERNEL,
    NETWORK,
    NOW,
    PROVIDER,
    REQUESTER,
    STRANGER,
    Json,
    Node,
    cose,
    edited,
    round_work,
    sha,
    vector,
)
from ._merkle import path_of, root_of
from ._negotiation import agreement_bytes, bid_bytes, order_bytes, some_terms, terms_bytes
from ._task import a_receipt, receipt_bytes

__all__ = ["evidence_vectors"]

AGREEMENT = agreement_bytes()
ROUNDS_AGREEMENT = agreement_bytes(terms_bytes(some_terms(order_bytes(), bid_bytes(), work=rounds_work()).encode()))

OUTPUT = b"87654321"
TOLERANCE = Tolerance.of(rtol32=1e-4, atol32=1e-6, rtol64=1e-9, atol64=0.0)
FAST_AGREEMENT = agreement_bytes(
    terms_bytes(
        some_terms(
            order_bytes(),
            bid_bytes(),
            fp="fast",
            check=CheckPolicy(kind="sample", per_chunk=4, tolerance=TOLERANCE),
        ).encode()
    )
)


def receipt(node: Node = PROVIDER, **changes: object) -> bytes:
    made: ReceiptPayload = a_receipt(task=sha(AGREEMENT), **changes)
    return receipt_bytes(made.encode(), node)


def accused(statements: tuple[bytes, ...], **changes: Any) -> Accusation:
    given = {"task": sha(AGREEMENT), "kind": "result", "created_ms": NOW, "index": 1, **changes}
    return Accusation(statements=tuple(map(sha, statements)), **given)


def file(accusation: Accusation, statements: tuple[bytes, ...], node: Node = REQUESTER, **changes: Any) -> EvidenceFile:
    given = {"agreement": AGREEMENT, "blobs": (KERNEL, DATA), "claims": (), **changes}
    sealed = cose("accusation", accusation.encode(), node)
    return EvidenceFile(version=1, network=NETWORK, accusation=sealed, statements=statements, **given)


# Work in rounds: state 2 is the first one again, and so is state 8.
IN_ROUNDS = agreement_bytes(terms_bytes(some_terms(order_bytes(), bid_bytes(), work=round_work()).encode()))
ARRAYS = sha(DATA) + sha(b"\0")
LISTS = [b"".join(sha(ARRAYS) if n in (2, 8) else sha(bytes([n])) for n in range(at, at + 8)) for at in (1, 9)]


def chunk_of_rounds(index: int, **changes: object) -> bytes:
    made = a_receipt(task=sha(IN_ROUNDS), index=index, **{"output": sha(LISTS[index]), **changes})
    return receipt_bytes(made.encode())


def in_rounds(number: int | None, **changes: Any) -> tuple[EvidenceFile, Accusation]:
    """A file about a round by its receipts; None: about two results of its first chunk."""
    given: dict[str, Any] = {"agreement": IN_ROUNDS, "blobs": (KERNEL, LISTS[0], ARRAYS, DATA, b"\0"), **changes}
    if number is None:
        receipts = (chunk_of_rounds(0), chunk_of_rounds(0, output=bytes(32)))
        accusation = accused(receipts, task=sha(IN_ROUNDS), kind="equivocation", index=0)
        return file(accusation, receipts, **{**given, "blobs": ()}), accusation
    receipts = (chunk_of_rounds(0), chunk_of_rounds(1))
    if number != 9:
        receipts = receipts[:1]
    if number == 9 and "blobs" not in changes:
        given["blobs"] = (*given["blobs"], LISTS[1])
    receipts = given.pop("receipts", receipts)
    accusation = accused(receipts, task=sha(IN_ROUNDS), kind="round", index=None, round=number)
    return file(accusation, receipts, **given), accusation


def committed(number: int, **changes: Any) -> tuple[EvidenceFile, Accusation]:
    """The same by a commitment to five rounds."""
    digests = [sha(ARRAYS) if n in (0, 2) else sha(bytes([n])) for n in range(6)]
    payload = RoundsPayload(task=sha(IN_ROUNDS), rounds=5, root=root_of(digests), finished_ms=NOW)
    claims = tuple(
        StateClaim(digest=digests[n], proof=InclusionProof(index=n, leaves=6, path=tuple(path_of(n, digests))))
        for n in (number - 1, number)
    )
    statements = (cose("rounds", dataclasses.replace(payload, **changes.pop("payload", {})).encode(), PROVIDER),)
    accusation = accused(statements, task=sha(IN_ROUNDS), kind="round", index=None, round=number)
    given: dict[str, Any] = {"agreement": IN_ROUNDS, "claims": claims, "blobs": (), **changes}
    return file(accusation, statements, **given), accusation


def evidence_vectors() -> Json:
    one, other = receipt(), receipt(output=sha(b"another"))
    result, twice = accused((one,)), accused((one, other), kind="equivocation")
    rounds = rounds_bytes(some_rounds(task=sha(ROUNDS_AGREEMENT)).encode())

    def of_round(number: int, **changes: Any) -> EvidenceFile:
        claims = (a_claim(number - 1), a_claim(number)) if number else (a_claim(0),)
        accusation = accused((rounds,), task=sha(ROUNDS_AGREEMENT), kind="round", index=None, round=number)
        return file(accusation, (rounds,), **{"agreement": ROUNDS_AGREEMENT, "claims": claims, "blobs": (), **changes})

    def taken(
        name: str, made: EvidenceFile, accusation: Accusation, missing: list[bytes], node: Node = REQUESTER
    ) -> Json:
        expect = {
            "accuser": node.peer_id,
            "provider": PROVIDER.peer_id,
            "task": accusation.task.hex(),
            "kind": accusation.kind,
            "missing": sorted(digest.hex() for digest in missing),
        }
        return vector(name, "evidence", made.encode(), expect=expect)

    def refused(name: str, made: EvidenceFile | bytes, code: str) -> Json:
        return vector(name, "evidence", made if isinstance(made, bytes) else made.encode(), code=code)

    def round_case(name: str, number: int, missing: list[bytes], **changes: Any) -> Json:
        accusation = accused((rounds,), task=sha(ROUNDS_AGREEMENT), kind="round", index=None, round=number)
        return taken(name, of_round(number, **changes), accusation, missing)

    itemised = dataclasses.replace(result, item=5, detail="one of 256 samples differs")
    late = accused((receipt(index=2),), index=2)
    fast = receipt(fp="fast")
    inexact = receipt_bytes(a_receipt(task=sha(FAST_AGREEMENT), fp="fast", output=sha(OUTPUT)).encode())
    unlike = receipt_bytes(a_receipt(task=sha(FAST_AGREEMENT), fp="fast").encode())
    near = accused((inexact,), task=sha(FAST_AGREEMENT))
    parted = accused((inexact, unlike), task=sha(FAST_AGREEMENT), kind="equivocation")

    def nearly(**changes: Any) -> EvidenceFile:
        return file(near, (inexact,), **{"agreement": FAST_AGREEMENT, **changes})

    accept = [
        taken("a result, with all that it takes", file(result, (one,)), result, []),
        taken("a result without its input", file(result, (one,), blobs=(KERNEL,)), result, [sha(DATA)]),
        taken("a result without anything", file(result, (one,), blobs=()), result, [sha(DATA), sha(KERNEL)]),
        taken("the blobs in another order", file(result, (one,), blobs=(DATA, KERNEL)), result, []),
        taken("a result, accused by a stranger", file(result, (one,), STRANGER), result, [], STRANGER),
        taken("a result, with item and detail", file(itemised, (one,)), itemised, []),
        taken("the last chunk", file(late, (receipt(index=2),)), late, []),
        taken("a receipt in fast mode for strict work", file(accused((fast,)), (fast,)), result, []),
        taken("a result in fast mode, with the output", nearly(blobs=(KERNEL, DATA, OUTPUT)), near, []),
        taken("a result in fast mode without the output", nearly(), near, [sha(OUTPUT)]),
        taken("two results for one chunk", file(twice, (one, other), blobs=()), twice, []),
        taken(
            "two results, the other way round",
            file(accused((other, one), kind="equivocation"), (other, one), blobs=()),
            twice,
            [],
        ),
        round_case("the first state", 0, []),
        round_case("the first round", 1, [], blobs=(KERNEL, DATA)),
        round_case("the last round, without anything", 5, [sha(KERNEL), a_claim(4).digest]),
    ]
    accept += [
        taken("a round of work in rounds, with all that it takes", *in_rounds(3), []),
        taken("its first round, which the agreement begins", *in_rounds(1, blobs=(KERNEL, LISTS[0], DATA, b"\0")), []),
        taken("a round that begins a chunk, by two receipts", *in_rounds(9), []),
        taken(
            "a round without the digests of the state before",
            *in_rounds(3, blobs=(KERNEL, LISTS[0])),
            [sha(ARRAYS)],
        ),
        taken("a round without its list", *in_rounds(3, blobs=(KERNEL,)), [sha(LISTS[0])]),
        taken("a round of work in rounds, of a commitment", *committed(3, blobs=(KERNEL, DATA, b"\0")), []),
        taken("two results for one chunk of rounds", *in_rounds(None), []),
    ]
    forged = one[:-1] + bytes([one[-1] ^ 1])
    foreign = receipt_bytes(a_receipt().encode())
    stranger = receipt(STRANGER)
    failed = receipt(code=21, output=bytes(32), units=0)
    beyond = receipt(index=3)
    same = receipt(finished_ms=NOW + 1)
    agreement = dataclasses.replace(some_terms(order_bytes(), bid_bytes()), price_pusd=1)
    swapped = agreement_bytes(terms_bytes(agreement.encode()))
    half = cose("agreement", terms_bytes(node=STRANGER), PROVIDER)
    whole = file(result, (one,))
    reject = [
        refused(
            "one receipt for a round that begins a chunk", in_rounds(9, receipts=(chunk_of_rounds(1),))[0], "MALFORMED"
        ),
        refused(
            "two receipts for a round within a chunk",
            in_rounds(3, receipts=(chunk_of_rounds(0), chunk_of_rounds(1)))[0],
            "MALFORMED",
        ),
        refused(
            "the receipt of another chunk than the round's", in_rounds(3, receipts=(chunk_of_rounds(1),))[0], "REPLAYED"
        ),
        refused("round 0 by a receipt", in_rounds(0, receipts=(chunk_of_rounds(0),))[0], "UNKNOWN_CHUNK"),
        refused("round 21 of 20", in_rounds(21, receipts=(chunk_of_rounds(0),))[0], "UNKNOWN_CHUNK"),
        refused(
            "a state that the list does not have",
            in_rounds(3, blobs=(KERNEL, LISTS[0], sha(KERNEL) + sha(b"\0"), DATA, b"\0"))[0],
            "BAD_DIGEST",
        ),
        refused("a commitment to more rounds than there are", committed(3, payload={"rounds": 21})[0], "MALFORMED"),
        refused("a commitment that names arguments", committed(3, payload={"state": 0, "out": 1})[0], "MALFORMED"),
        refused(
            "a result of work in rounds",
            file(
                accused((chunk_of_rounds(1),), task=sha(IN_ROUNDS)),
                (chunk_of_rounds(1),),
                agreement=IN_ROUNDS,
                blobs=(),
            ),
            "UNSUPPORTED",
        ),
        refused(
            "a receipt with one bit of its signature changed", file(accused((forged,)), (forged,)), "BAD_SIGNATURE"
        ),
        refused("a receipt of a stranger", file(accused((stranger,)), (stranger,)), "WRONG_PEER"),
        refused("a receipt of another task", file(accused((foreign,)), (foreign,)), "REPLAYED"),
        refused("a receipt of another chunk", file(accused((one,), index=2), (one,)), "REPLAYED"),
        refused("another agreement of the two", file(result, (one,), agreement=swapped), "REPLAYED"),
        refused("an agreement that the requester did not sign", file(result, (one,), agreement=half), "WRONG_PEER"),
        refused("another receipt than accused", file(result, (other,)), "BAD_DIGEST"),
        refused("a receipt for a failure", file(accused((failed,)), (failed,)), "UNSUPPORTED"),
        refused("a chunk that the work does not have", file(accused((beyond,), index=3), (beyond,)), "UNKNOWN_CHUNK"),
        refused(
            "two receipts for one output", file(accused((one, same), kind="equivocation"), (one, same)), "REPLAYED"
        ),
        refused(
            "two results in fast mode",
            file(parted, (inexact, unlike), agreement=FAST_AGREEMENT, blobs=()),
            "UNSUPPORTED",
        ),
        refused(
            "another output than a receipt in fast mode is for",
            nearly(blobs=(KERNEL, DATA, OUTPUT[::-1])),
            "BAD_DIGEST",
        ),
        refused("another kernel", file(result, (one,), blobs=(KERNEL + b"\n", DATA)), "BAD_DIGEST"),
        refused("an input twice", file(result, (one,), blobs=(KERNEL, DATA, DATA)), "BAD_DIGEST"),
        refused("a blob of nobody", file(result, (one,), blobs=(KERNEL, DATA, b"x")), "BAD_DIGEST"),
        refused("the file of another network", edited(whole, k2="other"), "WRONG_NETWORK"),
        refused(
            "an accusation that is none", edited(whole, k3=cose("receipt", result.encode(), REQUESTER)), "UNSUPPORTED"
        ),
        refused("claims about a chunk", file(result, (one,), claims=(a_claim(0),)), "MALFORMED"),
        refused("a round without its claims", of_round(2, claims=()), "MALFORMED"),
        refused("a round with claims of another", of_round(2, claims=(a_claim(2), a_claim(3))), "REPLAYED"),
        refused(
            "a state that was not committed to",
            of_round(2, claims=(a_claim(1), dataclasses.replace(a_claim(2), digest=bytes(32)))),
            "BAD_DIGEST",
        ),
        refused("another state before", of_round(2, blobs=(DATA,)), "BAD_DIGEST"),
        refused("version 2", edited(whole, k1=2), "OVERSIZED"),
        refused("an unknown key", edited(whole, k8=1), "MALFORMED"),
        refused("cut short", whole.encode()[:-1], "MALFORMED"),
        refused("bytes after the end", whole.encode() + b"\0", "MALFORMED"),
        refused("nothing", b"", "MALFORMED"),
    ]
    return {"accept": accept, "reject": reject}
