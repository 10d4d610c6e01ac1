"""Evidence: what is right convicts the liar, what is wrong convicts the accuser or is no evidence at all."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.checking import (
    DEFAULT_TOLERANCE,
    EvidenceStore,
    SampleReport,
    Verdict,
    can_be_judged,
    read_evidence,
    result_evidence,
    round_evidence,
    two_results_evidence,
    verify_evidence,
)
from p2pcompute.errors import EvidenceError, SandboxError
from p2pcompute.execution import KernelSource
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.storage import InlineExecutor
from p2pcompute.testing import InlineWorkers, WorkerFaults
from p2pcompute_protocols import dispute
from p2pcompute_protocols.evidence import EvidenceFile
from p2pcompute_protocols.limits import MAX_EVIDENCE_BYTES
from p2pcompute_protocols.negotiation import CheckPolicy

from ..protocols.vectors._material import NOW, PROVIDER, REQUESTER, STRANGER
from ._disputes import Case, blur, case_of, judge

REPORT = SampleReport(checked=64, mismatched=1, thread=261)


def altered(output: bytes) -> bytes:
    return output[:40] + bytes([output[40] ^ 1]) + output[41:]


FAST = CheckPolicy(kind="sample", per_chunk=256, tolerance=DEFAULT_TOLERANCE)


def against(case: Case, receipt: bytes, index: int, **changes: Any) -> bytes:
    given = {"blobs": case.blobs, "signer": REQUESTER, "now_ms": NOW, "report": REPORT, **changes}
    return result_evidence(case.agreement, receipt, index, **given)


def rewritten(evidence: bytes, **changes: Any) -> bytes:
    """The file with parts exchanged, by somebody who can't sign for others."""
    file = EvidenceFile.decode(evidence, max_bytes=MAX_EVIDENCE_BYTES)
    return dataclasses.replace(file, **changes).encode()


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of()


@pytest.fixture(scope="module")
def truth(case: Case) -> list[bytes]:
    return [case.output(index) for index in range(case.work.chunks)]


# Results


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_lie_is_shown_by_its_receipt_alone(case: Case, truth: list[bytes], index: int) -> None:
    receipt = case.receipt(index, altered(truth[index]))
    found = judge(against(case, receipt, index))
    assert (found.wrong, found.peer) == ("provider", PROVIDER.peer_id)
    assert found.signature == hashlib.sha256(receipt).digest()
    assert found.computed == hashlib.sha256(truth[index]).digest()
    assert found.claimed == hashlib.sha256(altered(truth[index])).digest()
    assert (found.kind, found.index, found.task) == ("result", index, case.agreement.task_id)
    assert found.as_dict()["computed"] == found.computed.hex()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_who_accuses_an_honest_provider_loses(case: Case, truth: list[bytes], index: int) -> None:
    evidence = against(case, case.receipt(index, truth[index]), index, signer=STRANGER)
    found = judge(evidence)
    assert (found.wrong, found.peer) == ("accuser", STRANGER.peer_id)
    assert found.claimed == found.computed == hashlib.sha256(truth[index]).digest()
    # It is bound by its own signature, which is in the file.
    file = EvidenceFile.decode(evidence, max_bytes=MAX_EVIDENCE_BYTES)
    assert found.signature == hashlib.sha256(file.accusation).digest()


def test_two_results_for_one_chunk_need_no_computing(case: Case, truth: list[bytes]) -> None:
    receipts = case.receipt(1, truth[1]), case.receipt(1, altered(truth[1]))
    evidence = two_results_evidence(case.agreement, receipts, 1, signer=REQUESTER, now_ms=NOW)
    dead = InlineWorkers(faults=WorkerFaults(dies_at=frozenset(range(9))))
    found = judge(evidence, workers=dead)
    assert (found.wrong, found.peer, found.computed) == ("provider", PROVIDER.peer_id, None)
    again = case.receipt(1, truth[1], finished_ms=NOW + 1)  # the same result signed again is allowed
    with pytest.raises(EvidenceError, match="no contradiction"):
        judge(two_results_evidence(case.agreement, (receipts[0], again), 1, signer=REQUESTER, now_ms=NOW))


# Files that are put together wrongly


def test_forged_and_foreign_receipts_are_no_evidence(case: Case, truth: list[bytes]) -> None:
    lie = altered(truth[0])
    forged = case.receipt(0, lie, node=STRANGER)  # the accuser wrote it
    flipped = case.receipt(0, lie)[:-1] + bytes([case.receipt(0, lie)[-1] ^ 1])
    foreign = case.receipt(0, lie, task=bytes(32))
    failed = case.receipt(0, b"", code=21, output=bytes(32), units=0)
    for receipt, index, words in (
        (forged, 0, "wrong_peer"),
        (flipped, 0, "bad_signature"),
        (foreign, 0, "replayed"),
        (case.receipt(0, lie), 1, "replayed"),  # held against another chunk
        (case.receipt(3, lie), 3, "unknown_chunk"),
        (failed, 0, "unsupported"),
    ):
        with pytest.raises(EvidenceError, match=words):
            judge(against(case, receipt, index))


def test_an_agreement_that_was_swapped_is_no_evidence(case: Case, truth: list[bytes]) -> None:
    """Under other terms the honest receipt would be a lie: both have really signed them, but not for this task."""
    other = case_of(price_pusd=7)
    evidence = against(case, case.receipt(0, truth[0]), 0)
    with pytest.raises(EvidenceError, match="another task"):
        judge(rewritten(evidence, agreement=other.agreement.raw))
    with pytest.raises(EvidenceError, match="replayed"):
        judge(against(other, case.receipt(0, truth[0]), 0))


def test_another_kernel_or_input_is_no_evidence(case: Case, truth: list[bytes]) -> None:
    """The attack that would frame an honest provider: compute something else under its receipt."""
    receipt = case.receipt(0, truth[0])
    evidence = against(case, receipt, 0)
    kernel = case.blobs[case.work.kernel.digest]
    other = kernel.replace(b"0.5", b"0.7")
    assert other != kernel
    (array,) = (blob for blob in case.blobs.values() if blob != kernel)
    for blobs in ((other, array), (kernel, bytes(len(array))), (kernel, array[:-4])):
        with pytest.raises(EvidenceError, match="bad_digest"):
            judge(rewritten(evidence, blobs=blobs))
    # Without the digests that both have signed it would have worked: the other kernel does give other bits.
    framed = case_of()
    entry, text = framed.binding.source.entry, other.decode()
    source = KernelSource(text=text, entry=entry, digest=source_digest(entry, text))
    lying = dataclasses.replace(framed, binding=dataclasses.replace(framed.binding, source=source))
    assert lying.output(0) != truth[0]


def test_receipts_other_than_those_accused_are_no_evidence(case: Case, truth: list[bytes]) -> None:
    evidence = against(case, case.receipt(0, truth[0]), 0)
    with pytest.raises(EvidenceError, match="not those that are accused"):
        judge(rewritten(evidence, statements=(case.receipt(0, altered(truth[0])),)))


def test_damaged_files_are_no_evidence(case: Case, truth: list[bytes], tmp_path: Path) -> None:
    evidence = against(case, case.receipt(0, altered(truth[0])), 0)
    for cut in (0, 1, 7, len(evidence) // 2, len(evidence) - 1):
        with pytest.raises(EvidenceError, match="no evidence"):
            judge(evidence[:cut])
    with pytest.raises(EvidenceError, match="no evidence"):
        judge(evidence + b"\0")
    with pytest.raises(EvidenceError, match="oversized"):
        judge(bytes(MAX_EVIDENCE_BYTES + 1))
    for at in range(0, len(evidence), 211):  # every signature and digest holds: no changed byte gives another verdict
        changed = evidence[:at] + bytes([evidence[at] ^ 0x55]) + evidence[at + 1 :]
        with pytest.raises(EvidenceError):
            judge(changed)


def test_files_are_read_with_bounds(tmp_path: Path, case: Case, truth: list[bytes]) -> None:
    path = tmp_path / "a.p2pevidence"
    path.write_bytes(against(case, case.receipt(0, altered(truth[0])), 0))
    assert judge(path).wrong == judge(str(path)).wrong == "provider"
    with path.open("wb") as file:
        file.truncate(MAX_EVIDENCE_BYTES + 1)  # a hole: nothing is written
    with pytest.raises(EvidenceError, match="more than"):
        read_evidence(path)
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "not a regular file"), ("none", "No such file"), (".", "not a regular|directory")):
        with pytest.raises(EvidenceError, match=words):
            read_evidence(tmp_path / name)


# What can't be decided


def test_missing_inputs_are_named_and_taken_apart(case: Case, truth: list[bytes]) -> None:
    evidence = rewritten(against(case, case.receipt(0, altered(truth[0])), 0), blobs=())
    found = judge(evidence)
    assert (found.wrong, found.peer, found.signature) == ("undecided", None, None)
    for digest in case.blobs:
        assert digest.hex() in found.reason
    assert judge(evidence, blobs=[b"something else", *case.blobs.values()]).wrong == "provider"


def test_large_inputs_stay_outside(case: Case, truth: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.checking._evidence.INLINE_BYTES", 1_000)
    evidence = against(case, case.receipt(0, altered(truth[0])), 0)
    assert len(EvidenceFile.decode(evidence, max_bytes=MAX_EVIDENCE_BYTES).blobs) == 1  # the kernel
    assert judge(evidence).wrong == "undecided"
    assert judge(evidence, blobs=case.blobs.values()).wrong == "provider"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"fp": "fast", "check": FAST}, "receipt is for another mode"), ({"language": "0"}, "version 0 of the language")],
)
def test_what_has_no_one_result_has_no_verdict(changes: dict[str, Any], words: str) -> None:
    case = case_of(**changes)
    found = judge(against(case, case.receipt(0, b"anything"), 0))
    assert found.wrong == "undecided"
    assert words in found.reason


def test_what_can_not_be_computed_here_has_no_verdict(case: Case, truth: list[bytes]) -> None:
    evidence = against(case, case.receipt(1, altered(truth[1])), 1)
    for faults, words in (
        (WorkerFaults(dies_at=frozenset({2})), "a simulated worker died"),
        (WorkerFaults(hangs_at=frozenset({2})), "past its limit|not computed in"),
    ):
        found = judge(evidence, workers=InlineWorkers(faults=faults))
        assert found.wrong == "undecided"
        assert any(word in found.reason for word in words.split("|"))


def test_a_kernel_that_is_refused_has_no_verdict() -> None:
    case = case_of()
    text = b"import os\n"
    work = dataclasses.replace(
        case.work, kernel=dataclasses.replace(case.work.kernel, digest=hashlib.sha256(text).digest(), size=len(text))
    )
    rogue = case_of(work=work)
    found = judge(against(rogue, rogue.receipt(0, b"x"), 0, blobs={**case.blobs, work.kernel.digest: text}))
    assert found.wrong == "undecided"
    assert "refused" in found.reason


# Rounds


def of_round(case: Case, states: list[bytes], round_: int, **changes: Any) -> bytes:
    """An accusation about one round, by somebody who has these states to show."""
    raw, tree = case.committed(states)
    numbers = (round_ - 1, round_) if round_ else (0,)
    claims = [dispute.StateClaim(digest=hashlib.sha256(states[n]).digest(), proof=tree.proof(n)) for n in numbers]
    given: dict[str, Any] = {"before": states[numbers[0]] if round_ else b"", "blobs": case.blobs, **changes}
    return round_evidence(case.agreement, raw, round_, claims, signer=REQUESTER, now_ms=NOW, **given)


@pytest.fixture(scope="module")
def rounds() -> tuple[Case, list[bytes]]:
    case = case_of(blur)
    return case, case.states(6)


@pytest.mark.parametrize("round_", [1, 3, 6])
def test_one_round_decides(rounds: tuple[Case, list[bytes]], round_: int) -> None:
    case, states = rounds
    assert judge(of_round(case, states, round_)).wrong == "accuser"
    lying = [*states[:round_], *(altered(state) for state in states[round_:])]
    found = judge(of_round(case, lying, round_))
    assert (found.wrong, found.peer, found.round) == ("provider", PROVIDER.peer_id, round_)
    assert found.computed == hashlib.sha256(states[round_]).digest()
    assert found.claimed == hashlib.sha256(lying[round_]).digest()
    if round_ < 6:  # the rounds after it are what the lie gives or are not, whatever the first state was
        assert judge(of_round(case, lying, round_ + 1)).wrong == "provider"


def test_the_first_state_is_the_one_that_was_agreed(rounds: tuple[Case, list[bytes]]) -> None:
    case, states = rounds
    assert judge(of_round(case, states, 0)).wrong == "accuser"
    found = judge(of_round(case, [altered(states[0]), *states[1:]], 0))
    assert (found.wrong, found.computed) == ("provider", hashlib.sha256(states[0]).digest())


def test_states_that_were_not_committed_to_are_no_evidence(rounds: tuple[Case, list[bytes]]) -> None:
    case, states = rounds
    evidence = of_round(case, states, 3)
    file = EvidenceFile.decode(evidence, max_bytes=MAX_EVIDENCE_BYTES)
    wrong = dataclasses.replace(file.claims[1], digest=bytes(32))
    for claims, words in (
        ((file.claims[0], wrong), "bad_digest"),
        (file.claims[::-1], "replayed"),
        (file.claims[:1], "malformed"),
        ((), "malformed"),
    ):
        with pytest.raises(EvidenceError, match=words):
            judge(rewritten(evidence, claims=claims))
    with pytest.raises(EvidenceError, match="bad_digest"):  # another state before the round
        judge(rewritten(evidence, blobs=(*file.blobs[:-1], states[5])))


def test_a_commitment_fits_the_work(rounds: tuple[Case, list[bytes]]) -> None:
    case, states = rounds
    for changes in ({"state": 2}, {"out": 2}, {"out": 9}):
        raw, tree = case.committed(states, **changes)
        claim = dispute.StateClaim(digest=hashlib.sha256(states[0]).digest(), proof=tree.proof(0))
        evidence = round_evidence(case.agreement, raw, 0, [claim], blobs={}, signer=REQUESTER, now_ms=NOW)
        with pytest.raises(EvidenceError, match="malformed"):
            judge(evidence)


# A locked worker, as a third party has


def test_a_third_party_with_nothing_but_the_file_runs_it_in_a_locked_worker(case: Case, truth: list[bytes]) -> None:
    async def main() -> tuple[Verdict, Verdict]:
        lie = await verify_evidence(against(case, case.receipt(0, altered(truth[0])), 0))
        return lie, await verify_evidence(against(case, case.receipt(0, truth[0]), 0))

    lie, honest = trio.run(main)
    assert (lie.wrong, honest.wrong) == ("provider", "accuser")


def test_work_without_a_kernel_is_not_for_files(case: Case) -> None:
    assert can_be_judged(case.agreement)
    assert not can_be_judged(case_of(work=None, standing=True).agreement)


def test_where_nothing_can_be_locked_nothing_is_run_and_nothing_is_said(case: Case, truth: list[bytes]) -> None:
    class Unlocked(InlineWorkers):
        def session(self, **options: Any) -> Any:
            raise SandboxError("no Landlock here")

    with pytest.raises(SandboxError):
        judge(against(case, case.receipt(0, truth[0]), 0), workers=Unlocked())


# Files that are kept


def test_files_are_kept_and_the_oldest_make_room(tmp_path: Path, case: Case, truth: list[bytes]) -> None:
    store = EvidenceStore(directory=tmp_path / "evidence", run_sync=InlineExecutor(), max_files=3, max_bytes=30_000)
    assert store.files() == []
    data = against(case, case.receipt(0, altered(truth[0])), 0)

    async def save(what: str, content: bytes) -> Path:
        path = await store.save(case.agreement, what, content)
        assert path is not None
        return path

    async def main() -> None:
        paths = []
        for number in range(5):
            paths.append(await save(f"chunk-{number}", data))
            os.utime(paths[-1], ns=(number, number))
        assert store.files() == sorted(paths[2:])
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in store.files())
        assert (store.directory.stat().st_mode & 0o777) == 0o700
        large = await save("chunk-9", data + bytes(30_000 - len(data) - 1))
        assert store.files() == [large]
        assert await save("chunk-0", data) == paths[0]  # over a file of this name

    trio.run(main)
    assert not list(store.directory.glob("*.part"))


def test_a_disk_that_takes_nothing_ends_nothing(tmp_path: Path, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "evidence").write_text("not a directory")
    store = EvidenceStore(directory=tmp_path / "evidence", run_sync=InlineExecutor())

    async def main() -> None:
        assert await store.save(case.agreement, "chunk-0", b"x") is None

    trio.run(main)
    assert "is not kept" in caplog.text
