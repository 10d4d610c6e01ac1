"""Files of evidence under mutation: nothing but `LocalProtocolError`, and nothing that was changed passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.evidence import EvidenceFile, open_evidence
from p2pcompute_protocols.limits import MAX_EVIDENCE_BYTES

from .test_vectors import load, spelled

FILES = {vector["name"]: spelled(vector) for vector in load("evidence")["accept"]}
SETTINGS = settings(max_examples=150, deadline=None)


@given(data=st.data())
@SETTINGS
def test_a_file_that_was_changed_is_refused(data: st.DataObject) -> None:
    whole = FILES[data.draw(st.sampled_from(sorted(FILES)))]
    how = data.draw(st.sampled_from(["bit", "cut", "insert", "swap"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    match how:
        case "bit":
            changed = whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :]
        case "cut":
            changed = whole[:at] + whole[at + data.draw(st.integers(1, 40)) :]
        case "insert":
            changed = whole[:at] + data.draw(st.binary(min_size=1, max_size=40)) + whole[at:]
        case _:
            other = data.draw(st.integers(0, len(whole) - 1))
            size = data.draw(st.integers(1, 40))
            changed = whole[:at] + whole[other : other + size] + whole[at + size :]
    if changed == whole:
        return
    with pytest.raises(LocalProtocolError):
        open_evidence(changed)


@given(noise=st.binary(max_size=300))
@SETTINGS
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        open_evidence(noise)


@given(data=st.data())
@SETTINGS
def test_parts_of_two_files_make_no_third(data: st.DataObject) -> None:
    """Each part is signed, and yet they only stand together."""
    one, other = (
        EvidenceFile.decode(FILES[data.draw(st.sampled_from(sorted(FILES)))], max_bytes=MAX_EVIDENCE_BYTES)
        for _ in range(2)
    )
    taken = data.draw(st.sets(st.sampled_from(["accusation", "agreement", "statements", "claims"])))
    changes: dict[str, Any] = {name: getattr(other, name) for name in taken}
    mixed = dataclasses.replace(one, **changes)
    signed = ("accusation", "agreement", "statements", "claims")
    same = any(all(getattr(mixed, name) == getattr(whole, name) for name in signed) for whole in (one, other))
    try:
        found = open_evidence(mixed.encode())
    except LocalProtocolError:
        return
    # What passes is what somebody has signed so: the accusation names its statements, and they their agreement.
    assert same or found.signed.raw in (one.accusation, other.accusation)
    source = one if found.signed.raw == one.accusation else other
    assert (mixed.agreement, mixed.statements) == (source.agreement, source.statements)


def test_bytes_that_are_handed_over_beside_a_file_are_hashed() -> None:
    whole = FILES["a result without anything"]
    needs = open_evidence(whole).missing
    assert len(needs) == 2
    for digest, size in needs.items():
        with pytest.raises(LocalProtocolError) as refused:
            open_evidence(whole, more={digest: bytes(size)})
        assert refused.value.code is WireCode.BAD_DIGEST
    assert open_evidence(whole, more={bytes(32): b"of nobody"}).missing == needs


def test_a_file_above_the_bound_is_not_read() -> None:
    with pytest.raises(LocalProtocolError) as refused:
        open_evidence(bytes(MAX_EVIDENCE_BYTES + 1))
    assert refused.value.code is WireCode.OVERSIZED
