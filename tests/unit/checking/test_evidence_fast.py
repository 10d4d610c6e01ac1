"""Evidence about results in fast mode: values are compared, and nobody is blamed for what rounding decides."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.checking import SampleReport, result_evidence, two_results_evidence
from p2pcompute.errors import EvidenceError
from p2pcompute_protocols.evidence import EvidenceFile
from p2pcompute_protocols.limits import MAX_EVIDENCE_BYTES
from p2pcompute_protocols.negotiation import CheckPolicy, Tolerance

from ..protocols.vectors._material import NOW, PROVIDER, REQUESTER
from ._disputes import SIZE, Case, case_of, judge, scaled

TOLERANCE = Tolerance.of(rtol32=1e-4, atol32=1e-6, rtol64=1e-9, atol64=1e-12)
AGREED = {"fp": "fast", "check": CheckPolicy(kind="sample", per_chunk=16, tolerance=TOLERANCE)}
FLOATS = 2 * 128 * 4  # bytes of the first output of a chunk: the rest are integers


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of(scaled, **AGREED)


@pytest.fixture(scope="module")
def truth(case: Case) -> bytes:
    return case.output(0)


def against(case: Case, output: bytes, **changes: Any) -> bytes:
    receipt = case.receipt(0, output, **{"fp": "fast", **changes})
    report = SampleReport(checked=16, mismatched=1, thread=3)
    return result_evidence(
        case.agreement, receipt, 0, blobs=case.blobs, signer=REQUESTER, now_ms=NOW, report=report, output=output
    )


def scaled_by(output: bytes, factor: float) -> bytes:
    return (np.frombuffer(output[:FLOATS], np.float32) * np.float32(factor)).tobytes() + output[FLOATS:]


@pytest.mark.parametrize("factor", [1.0, 1 + 9e-5, 1 - 9e-5])
def test_who_accuses_a_provider_that_came_near_is_wrong(case: Case, truth: bytes, factor: float) -> None:
    output = scaled_by(truth, factor)
    found = judge(against(case, output))
    assert (found.wrong, found.peer) == ("accuser", REQUESTER.peer_id)
    assert found.claimed == hashlib.sha256(output).digest()
    assert found.computed == hashlib.sha256(truth).digest()


def test_one_element_that_is_off_convicts(case: Case, truth: bytes) -> None:
    values = np.frombuffer(truth[:FLOATS], np.float32).copy()
    values[77] *= np.float32(1 + 3e-4)
    found = judge(against(case, values.tobytes() + truth[FLOATS:]))
    assert (found.wrong, found.peer) == ("provider", PROVIDER.peer_id)
    assert "1 items" in found.reason
    found = judge(against(case, truth[:FLOATS] + bytes([truth[FLOATS] ^ 1]) + truth[FLOATS + 1 :]))
    assert found.wrong == "provider"  # an integer: equal to the bit


def test_the_output_is_named_where_the_file_does_not_hold_it(case: Case, truth: bytes) -> None:
    wrong = scaled_by(truth, 2)
    whole = against(case, wrong)
    file = EvidenceFile.decode(whole, max_bytes=MAX_EVIDENCE_BYTES)
    assert wrong in file.blobs
    receipt = case.receipt(0, wrong, fp="fast")
    bare = result_evidence(case.agreement, receipt, 0, blobs=case.blobs, signer=REQUESTER, now_ms=NOW)
    found = judge(bare)
    assert found.wrong == "undecided"
    assert hashlib.sha256(wrong).hexdigest() in found.reason
    assert judge(bare, blobs=[wrong]).wrong == "provider"


def test_two_fast_results_for_one_chunk_are_no_contradiction(case: Case, truth: bytes) -> None:
    receipts = (case.receipt(0, truth, fp="fast"), case.receipt(0, scaled_by(truth, 1 + 1e-5), fp="fast"))
    evidence = two_results_evidence(case.agreement, receipts, 0, signer=REQUESTER, now_ms=NOW)
    with pytest.raises(EvidenceError, match="no contradiction"):
        judge(evidence)
    strict = case_of(scaled)
    receipts = (strict.receipt(0, truth), strict.receipt(0, scaled_by(truth, 1 + 1e-5)))
    evidence = two_results_evidence(strict.agreement, receipts, 0, signer=REQUESTER, now_ms=NOW)
    assert judge(evidence).wrong == "provider"


@p2p.kernel
def remains(out, x, y):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = ((x[i] + y[i]) - x[i] - y[i]) * np.float32(1e6) + (np.float32(1.0) if i < 100 else y[i])


def test_a_provider_is_not_framed_by_a_kernel_that_is_made_of_rounding() -> None:
    # A requester writes a kernel whose fast result is far from the strict one, pays nobody and accuses everybody.
    rng = np.random.default_rng(4)
    x, y = (rng.random(SIZE, dtype=np.float32) for _ in range(2))
    framed = case_of(remains, (p2p.out((SIZE,), np.float32), x, y), **AGREED)
    strict = np.frombuffer(framed.output(0), np.float32)
    honest = np.where(np.arange(strict.size) < 100, np.float32(1), y[: strict.size]).astype(np.float32)
    off = np.abs(honest - strict) > 1e-6 + 1e-4 * np.abs(strict)
    assert off.sum() > 50  # a verdict that knew only the strict result would convict
    found = judge(against(framed, honest.tobytes()))
    assert found.wrong == "undecided"
    assert "own fast mode" in found.reason
    # What does not hang on rounding still counts.
    sure = int(np.flatnonzero(~off)[0])
    honest[sure] += np.float32(0.5)
    assert judge(against(framed, honest.tobytes())).wrong == "provider"


def test_a_strict_receipt_for_fast_work_has_no_verdict(case: Case, truth: bytes) -> None:
    found = judge(against(case, truth, fp="strict"))
    assert found.wrong == "undecided"
    assert "another mode" in found.reason
