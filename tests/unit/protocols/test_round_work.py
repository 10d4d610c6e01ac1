"""Work in rounds: chunks cover all rounds once, and nothing in it is left to chance."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import given

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.work import ArrayArg, LaunchSpec, NextArg, RoundSplit, RoundWork, StateArg, state_digest

from ._strategies import records
from .vectors._material import round_work


@given(records(RoundWork))
def test_chunks_cover_all_rounds_once(made: object) -> None:
    assert isinstance(made, RoundWork)
    done = 0
    for index in {0, 1, made.chunks - 1} & set(range(made.chunks)):
        first, rounds = made.chunk_range(index)
        assert first == index * made.rounds_per_chunk
        assert 1 <= rounds <= made.rounds_per_chunk
        done = first + rounds
    assert done == made.rounds
    assert made.chunk_output_bytes == 32 * made.rounds_per_chunk
    assert sorted(arg.array for launch in made.launches for arg in launch.args if isinstance(arg, NextArg)) == list(
        range(len(made.state))
    )


def test_a_state_is_known_by_its_arrays() -> None:
    one, other = hashlib.sha256(b"1").digest(), hashlib.sha256(b"2").digest()
    assert state_digest([one, other]) == hashlib.sha256(one + other).digest()
    assert state_digest([one, other]) != state_digest([other, one])
    made = round_work()
    assert made.first_state == state_digest([array.digest for array in made.state])
    assert made.state_bytes == 17
    assert set(made.inputs.values()) >= {16, 1}


def changed(**changes: Any) -> RoundWork:
    return round_work(**changes)


ARRAY = ArrayArg(dtype="uint8", shape=(4,), digest=b"d" * 32)
FIRST, SECOND = round_work().launches
CASES: dict[str, tuple[dict[str, Any], WireCode]] = {
    "more rounds a chunk than there are": ({"rounds_per_chunk": 21}, WireCode.MALFORMED),
    "a number beyond the last": ({"first": 2**31 - 10}, WireCode.OVERSIZED),
    "an array of the state too many": ({"state": (*round_work().state, ARRAY)}, WireCode.MALFORMED),
    "an array of the state too few": ({"state": round_work().state[:1]}, WireCode.MALFORMED),
    "an array twice": ({"launches": (FIRST, FIRST, SECOND)}, WireCode.MALFORMED),
    "floats that are combined by or": (
        {
            "state": (round_work().state[0], dataclasses.replace(ARRAY, dtype="float32")),
            "launches": (FIRST, dataclasses.replace(SECOND, args=(NextArg(array=1, shape=(4,), reduce="or"),))),
        },
        WireCode.MALFORMED,
    ),
    "a constant of another size under one digest": (
        {
            "launches": (
                dataclasses.replace(
                    FIRST, args=(*FIRST.args, dataclasses.replace(ARRAY, digest=round_work().state[0].digest))
                ),
                SECOND,
            )
        },
        WireCode.BAD_DIGEST,
    ),
    "a state above the bound": (
        {"state": (dataclasses.replace(ARRAY, shape=(2**26,)), round_work().state[1])},
        WireCode.OVERSIZED,
    ),
    "an array that there is not": (
        {"launches": (dataclasses.replace(FIRST, args=(*FIRST.args, StateArg(array=2))), SECOND)},
        WireCode.MALFORMED,
    ),
}


SPLIT = RoundSplit(arg=1, axes=(0,), halo=(1,), edge="wrap")
PLANE = LaunchSpec(dims=2, grid=(4, 1, 1), block=(4, 1, 1))


def split(launch: LaunchSpec | None = None, *splits: RoundSplit) -> dict[str, Any]:
    """The first launch, which has 16 threads and an array of 16 bytes for argument 1, with other splits."""
    return {"launches": (dataclasses.replace(FIRST, launch=launch or FIRST.launch, splits=splits), SECOND)}


def windows_of(launches: int, halo: int) -> dict[str, Any]:
    """As many launches, each with a window of 16 + 2 * halo bytes of array 0."""
    state = tuple(dataclasses.replace(ARRAY, shape=(16,), digest=bytes([n]) * 32) for n in range(launches))
    made = [
        dataclasses.replace(
            SECOND,
            args=(NextArg(array=n), StateArg(array=0)),
            splits=(dataclasses.replace(SPLIT, halo=(halo,)),),
        )
        for n in range(launches)
    ]
    return {"state": state, "launches": tuple(made)}


SPLITS: dict[str, tuple[Any, WireCode]] = {
    "an argument that there is not": (lambda: split(None, dataclasses.replace(SPLIT, arg=4)), WireCode.MALFORMED),
    "an output": (lambda: split(None, dataclasses.replace(SPLIT, arg=0)), WireCode.MALFORMED),
    "the number of the round": (lambda: split(None, dataclasses.replace(SPLIT, arg=3)), WireCode.MALFORMED),
    "one input twice": (lambda: split(None, SPLIT, dataclasses.replace(SPLIT, halo=(2,))), WireCode.MALFORMED),
    "inputs in another order": (
        lambda: split(None, dataclasses.replace(SPLIT, arg=2), SPLIT), WireCode.MALFORMED),
    "an axis twice": (
        lambda: split(PLANE, dataclasses.replace(SPLIT, axes=(0, 0), halo=(1, 1))), WireCode.MALFORMED),
    "an axis that the launch does not have": (
        lambda: split(None, dataclasses.replace(SPLIT, axes=(1,))), WireCode.MALFORMED),
    "fewer axes than the launch": (lambda: split(PLANE, SPLIT), WireCode.MALFORMED),
    "an array with fewer axes than the launch": (
        lambda: split(PLANE, dataclasses.replace(SPLIT, axes=(0, 1), halo=(1, 1))), WireCode.MALFORMED),
    "more halos than axes": (lambda: split(None, dataclasses.replace(SPLIT, halo=(1, 1))), WireCode.MALFORMED),
    "a halo above the bound": (
        lambda: split(None, dataclasses.replace(SPLIT, halo=(2**20 + 1,))), WireCode.OVERSIZED),
    "an edge that is none": (lambda: split(None, dataclasses.replace(SPLIT, edge="mirror")), WireCode.UNSUPPORTED),
    "a launch far beyond the array": (
        lambda: split(LaunchSpec(dims=1, grid=(2**31 - 1, 1, 1), block=(1024, 1, 1)), SPLIT), WireCode.OVERSIZED),
    "a launch just beyond the bound": (
        lambda: split(LaunchSpec(dims=1, grid=(2**20, 1, 1), block=(64, 1, 1)), SPLIT), WireCode.OVERSIZED),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_splits_that_say_nothing_or_too_much_are_refused(name: str) -> None:
    make, code = SPLITS[name]
    with pytest.raises(LocalProtocolError) as refused:
        changed(**make())
    assert refused.value.code is code


def test_windows_of_all_launches_count_together() -> None:
    assert changed(**split(None, SPLIT)).launches[0].splits == (SPLIT,)
    assert changed(**split(LaunchSpec(dims=1, grid=(2**16 - 1, 1, 1), block=(1024, 1, 1)), SPLIT)).launches
    assert changed(**windows_of(8, 2**20)).launches
    wide = LaunchSpec(dims=1, grid=(2**13, 1, 1), block=(1024, 1, 1))
    launches = [dataclasses.replace(one, launch=wide) for one in windows_of(8, 1)["launches"]]
    with pytest.raises(LocalProtocolError) as refused:
        changed(state=windows_of(8, 1)["state"], launches=tuple(launches))
    assert refused.value.code is WireCode.OVERSIZED
    assert changed(state=windows_of(7, 1)["state"], launches=tuple(launches[:7])).launches


@pytest.mark.parametrize("name", CASES)
def test_what_would_be_ambiguous_or_too_much_is_refused(name: str) -> None:
    changes, code = CASES[name]
    with pytest.raises(LocalProtocolError) as refused:
        changed(**changes)
    assert refused.value.code is code
