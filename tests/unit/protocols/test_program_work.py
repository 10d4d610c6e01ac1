"""Calls of a program as work: chunks are runs of items, and its identity is all of its four fields."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute_protocols.ads import CapabilityAd
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.limits import MAX_NAME, MAX_PROGRAM_NAME
from p2pcompute_protocols.work import OutArg, ProgramRef, ProgramWork

from ._strategies import records

STEP = ProgramRef(distribution="soft-steps", version="1.2", name="step", digest=bytes(32))


def work(items: int = 10, per_chunk: int = 4, *outs: OutArg) -> ProgramWork:
    return ProgramWork(
        program=STEP,
        items=items,
        args=outs or (OutArg(dtype="float32", shape=(items, 3)), OutArg(dtype="uint8", shape=(items,))),
        items_per_chunk=per_chunk,
        units_per_chunk=7,
    )


def test_chunks_are_runs_of_items() -> None:
    made = work()
    assert made.chunks == 3
    assert [made.chunk_range(index) for index in range(3)] == [(0, 4), (4, 4), (8, 2)]
    assert made.chunk_output_bytes == 4 * (3 * 4 + 1)
    assert (made.blocks, made.blocks_per_chunk) == (10, 4)
    assert made.inputs == {}


@given(records(ProgramWork))
def test_chunks_cover_all_items_once(made: object) -> None:
    assert isinstance(made, ProgramWork)
    last, count = made.chunk_range(made.chunks - 1)
    assert 1 <= count <= made.items_per_chunk
    assert last + count == made.items


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"args": (OutArg(dtype="uint8", shape=(9,)),)}, WireCode.MALFORMED),
        ({"items_per_chunk": 11}, WireCode.MALFORMED),
        ({"args": (OutArg(dtype="uint8", shape=(10, 2**24)),)}, None),
        ({"args": (OutArg(dtype="uint8", shape=(10, 2**24 + 1)),)}, WireCode.OVERSIZED),
    ],
    ids=str,
)
def test_work_that_does_not_fit_together_is_refused(changes: dict[str, object], code: WireCode | None) -> None:
    if code is None:
        assert dataclasses.replace(work(), **changes).chunk_output_bytes == 2**26  # type: ignore[arg-type]
        return
    with pytest.raises(LocalProtocolError) as caught:
        dataclasses.replace(work(), **changes)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_the_feature_is_the_name_and_eight_bytes_of_the_identity() -> None:
    assert STEP.feature == "program:step:" + hashlib.sha256(STEP.encode()).hexdigest()[:16]
    assert STEP.feature.startswith(STEP.feature_stem)


@given(
    st.sampled_from(["distribution", "version", "name"]),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=1, max_size=32),
)
def test_every_field_counts(name: str, text: str) -> None:
    other = dataclasses.replace(STEP, **{name: text})
    assert (other.feature == STEP.feature) == (other == STEP)
    assert dataclasses.replace(STEP, digest=b"\1" * 32).feature != STEP.feature


def test_the_longest_feature_fits_into_an_ad() -> None:
    longest = dataclasses.replace(STEP, name="n" * MAX_PROGRAM_NAME)
    assert len(longest.feature) <= MAX_NAME
    features = next(of for _, name, of, _ in CapabilityAd._plan if name == "features")
    features.check((longest.feature,))
