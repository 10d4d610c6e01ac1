"""Work in rounds: chunks cover all rounds once, and nothing in it is left to chance."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import given

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.work import ArrayArg, NextArg, RoundWork, StateArg, state_digest

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


@pytest.mark.parametrize("name", CASES)
def test_what_would_be_ambiguous_or_too_much_is_refused(name: str) -> None:
    changes, code = CASES[name]
    with pytest.raises(LocalProtocolError) as refused:
        changed(**changes)
    assert refused.value.code is code
