"""Evidence about work with split inputs: the manifest and the tiles of the chunk are enough, and no others count."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.checking import result_evidence
from p2pcompute.errors import EvidenceError
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.tasks._splits import SplitInputs, TiledInput
from p2pcompute.tasks._work import chunk_work
from p2pcompute_protocols import negotiation
from p2pcompute_protocols.evidence import EvidenceFile, open_evidence
from p2pcompute_protocols.limits import MAX_EVIDENCE_BYTES
from p2pcompute_protocols.task import HeldTiles

from ..protocols.vectors._material import NETWORK, NOW, PROVIDER, REQUESTER
from ..protocols.vectors._negotiation import bid_bytes, order_bytes, some_terms
from ._disputes import Case, judge

LINE = np.random.default_rng(4).integers(0, 1000, 1_000)


@p2p.kernel
def smoothed(result, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < result.size:
        result[i] = x[i - 1] + 2 * x[i] + x[i + 1]


def rightly(index: int) -> bytes:
    padded = np.pad(LINE, 1, mode="edge")
    due = padded[:-2] + 2 * LINE + padded[2:]
    rows = np.zeros(2 * 128, np.int64)
    part = due[256 * index : 256 * index + 256]
    rows[: len(part)] = part
    return rows.tobytes()


@pytest.fixture(scope="module")
def case() -> Case:
    binding = smoothed.bind(p2p.out(LINE.size, np.int64), p2p.split(LINE, halo=1, edge="clamp"))
    spec: Any = binding.specs[1]
    tiled = TiledInput.bare("x", LINE, spec, (100,), 1)
    trio.run(tiled.hash)
    splits = SplitInputs({1: tiled})
    work, blobs = chunk_work(binding, blocks_per_chunk=2, units_per_chunk=1_000, splits=splits)
    terms = some_terms(order_bytes(), bid_bytes(), work=work, language=LANGUAGE_VERSION, fp="strict")
    sealed = negotiation.seal_terms(terms, network=NETWORK, signer=REQUESTER)
    raw = negotiation.accept_terms(sealed, network=NETWORK, signer=PROVIDER)
    agreement = negotiation.open_agreement(raw, network=NETWORK, requester=REQUESTER.peer_id, provider=PROVIDER.peer_id)
    every = {hashlib.sha256(tiled.tile(number)).digest(): tiled.tile(number) for number in range(tiled.arg.tiles)}
    return Case(binding=binding, agreement=agreement, blobs={**blobs, **every})


def against(case: Case, index: int, content: bytes, **changes: Any) -> bytes:
    receipt = case.receipt(index, content)
    given = {"blobs": case.blobs, "signer": REQUESTER, "now_ms": NOW, **changes}
    return result_evidence(case.agreement, receipt, index, **given)


def rewritten(evidence: bytes, **changes: Any) -> bytes:
    file = EvidenceFile.decode(evidence, max_bytes=MAX_EVIDENCE_BYTES)
    return dataclasses.replace(file, **changes).encode()


@pytest.mark.parametrize("index", [0, 1, 3])
def test_the_file_alone_convicts_a_liar_and_whoever_accuses_an_honest_one(case: Case, index: int) -> None:
    truth = rightly(index)
    assert judge(against(case, index, truth[:-1] + b"\1")).wrong == "provider"
    assert judge(against(case, index, truth)).wrong == "accuser"


def test_the_file_holds_the_tiles_of_its_chunk_and_no_others(case: Case) -> None:
    found = open_evidence(against(case, 1, rightly(1)))
    held = HeldTiles(case.work, {1: case.blobs[case.work.splits[1].manifest]})
    # Elements 255 to 512, in tiles of 100.
    assert set(held.of_chunk(1)) == {(1, number) for number in (2, 3, 4, 5)}
    assert set(found.blobs) == {*case.work.inputs, *held.of_chunk(1).values()}
    assert found.needs.keys() == found.blobs.keys()


def test_what_is_missing_is_named_and_may_be_handed_over(case: Case) -> None:
    work = case.work
    manifest = work.splits[1].manifest
    held = HeldTiles(work, {1: case.blobs[manifest]})
    tile = held.of_chunk(0)[1, 1]
    lie = bytes(2048)
    for without in (tile, manifest):
        blobs = {digest: data for digest, data in case.blobs.items() if digest != without}
        evidence = against(case, 0, lie, blobs=blobs)
        found = judge(evidence)
        assert found.wrong == "undecided"
        assert without.hex() in found.reason
        assert judge(evidence, blobs=list(case.blobs.values())).wrong == "provider"
        if without == manifest:  # without it nobody knows what tiles are for, so none is in the file
            assert set(open_evidence(evidence).blobs) == {work.kernel.digest}


def test_foreign_and_altered_tiles_are_no_evidence(case: Case) -> None:
    evidence = against(case, 0, bytes(2048))
    file = EvidenceFile.decode(evidence, max_bytes=MAX_EVIDENCE_BYTES)
    other = next(blob for blob in case.blobs.values() if blob not in file.blobs)
    manifest = case.blobs[case.work.splits[1].manifest]
    for blobs in (
        (*file.blobs, other),  # of another chunk
        (*file.blobs, bytes(800)),
        tuple(blob[:-1] + b"\1" if len(blob) == 800 else blob for blob in file.blobs),
        tuple(blob for blob in file.blobs if blob != manifest),  # tiles that nothing names any more
        tuple(manifest[::-1] if blob == manifest else blob for blob in file.blobs),
    ):
        with pytest.raises(EvidenceError, match="no evidence"):
            judge(rewritten(evidence, blobs=blobs))
