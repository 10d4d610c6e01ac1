"""Files of evidence, whole and with one thing wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

from p2pcompute_protocols.evidence import Accusation, EvidenceFile
from p2pcompute_protocols.negotiation import CheckPolicy, Tolerance
from p2pcompute_protocols.task import ReceiptPayload

from ._dispute import a_claim, rounds_bytes, rounds_work, some_rounds
from ._material import DATA, KERNEL, NETWORK, NOW, PROVIDER, REQUESTER, STRANGER, Json, Node, cose, edited, sha, vector
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
