"""Calls of a standing agreement: which are open, and which of their arrays a provider holds."""

from __future__ import annotations

import pytest

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.limits import MAX_CALLS, MAX_CHUNKS
from p2pcompute_protocols.task import Assign, Call, CallInputs, standing_work
from p2pcompute_protocols.work import ArrayArg, OutArg

from .vectors._material import program_work, round_work, sha, split_work, work

SIZE = 16


def inputs(*, most_bytes: int = 3 * SIZE, most: int = 10) -> CallInputs:
    """Of work in three chunks with one array."""
    own = ArrayArg(dtype="uint8", shape=(SIZE,), digest=sha(b"own"))
    made = CallInputs(work(args=(own, OutArg(dtype="uint8", shape=(20,)))))
    made._most_bytes, made._most = most_bytes, most
    return made


def call(calls: CallInputs, name: str) -> int:
    """Make a call with the array of this name; gives its first chunk."""
    arg = ArrayArg(dtype="uint8", shape=(SIZE,), digest=sha(name.encode()))
    calls.call(Call(call=calls.made, args=(arg,)))
    return 3 * (calls.made - 1)


def compute(calls: CallInputs, index: int) -> None:
    """Have a chunk assigned and answered."""
    calls.assign(index)
    calls.answered(index)


def held(calls: CallInputs) -> list[bytes]:
    return list(calls.held)


def digests(names: str) -> list[bytes]:
    return [sha(name.encode()) for name in names]


def test_an_array_comes_once_and_the_work_s_own_never() -> None:
    calls = inputs()
    first = call(calls, "a")
    assert calls.assign(first) == {sha(b"a"): SIZE}
    assert calls.assign(first + 1) == {}
    assert calls.assign(call(calls, "a")) == {}
    assert calls.assign(call(calls, "own")) == {}
    assert held(calls) == digests("a")


@pytest.mark.parametrize("bound", [{"most_bytes": 3 * SIZE}, {"most": 3}])
def test_the_least_recently_used_makes_room(bound: dict[str, int]) -> None:
    calls = inputs(**{"most_bytes": 100 * SIZE, **bound})
    for name in "abca":
        index = call(calls, name)
        calls.assign(index)
        calls.answered(index)
    assert held(calls) == digests("bca")
    assert calls.assign(call(calls, "d")) == {sha(b"d"): SIZE}
    assert held(calls) == digests("cad")


def test_what_is_under_way_never_makes_room() -> None:
    calls = inputs()
    chunks: list[int] = []
    for name in "abc":
        chunks.append(call(calls, name))
        calls.assign(chunks[-1])
    calls.answered(chunks[1])
    index = call(calls, "d")
    assert not calls.fits(index)  # "a", which would have to go first, is under way
    with pytest.raises(LocalProtocolError) as caught:
        calls.assign(index)
    assert caught.value.code is WireCode.OVERSIZED
    assert held(calls) == digests("abc")
    calls.answered(chunks[0])
    assert calls.fits(index)
    calls.assign(index)
    assert held(calls) == digests("bcd")


def test_old_calls_close_and_one_under_way_does_not() -> None:
    calls = inputs()
    first = call(calls, "own")
    calls.assign(first)
    for _ in range(MAX_CALLS - 1):
        compute(calls, call(calls, "own"))
    assert not calls.has_room()
    with pytest.raises(LocalProtocolError) as caught:
        call(calls, "own")
    assert caught.value.code is WireCode.OVERSIZED
    assert calls.made == MAX_CALLS
    calls.answered(first)
    last = call(calls, "own")
    compute(calls, last)
    with pytest.raises(LocalProtocolError) as caught:
        calls.assign(first)
    assert caught.value.code is WireCode.UNKNOWN_CHUNK
    assert calls.of_chunk(3)[0].call == 1
    assert calls.of_chunk(last + 2)[0].call == MAX_CALLS
    assert calls.open_calls == MAX_CALLS


def test_there_are_as_many_calls_as_their_chunks_have_numbers() -> None:
    calls = inputs()
    assert calls.most == MAX_CHUNKS // 3
    calls.made = calls.most - 1
    assert 3 * calls.made + 2 < MAX_CHUNKS
    compute(calls, call(calls, "own"))
    assert not calls.has_room()
    with pytest.raises(LocalProtocolError) as caught:
        call(calls, "own")
    assert caught.value.code is WireCode.OVERSIZED


def test_a_call_has_a_chunk_before_the_next_one_is_made() -> None:
    calls = inputs()
    first = call(calls, "own")
    for _ in range(2):  # and nothing has changed
        with pytest.raises(LocalProtocolError) as caught:
            call(calls, "own")
        assert caught.value.code is WireCode.OUT_OF_ORDER
        assert calls.made == 1
    calls.assign(first + 2)  # any of its chunks
    call(calls, "own")
    calls.assign(first)  # one of another call is none of this one
    with pytest.raises(LocalProtocolError) as caught:
        call(calls, "own")
    assert caught.value.code is WireCode.OUT_OF_ORDER


def test_an_assignment_of_no_chunks_can_not_be_said() -> None:
    honest = Assign(index=0, count=2).encode()
    assert Assign.decode(honest, max_bytes=100).count == 2
    assert honest.count(b"\x02\x02") == 1  # the key and its value
    for count in (b"\x00", b"\x01"):
        with pytest.raises(LocalProtocolError) as caught:
            Assign.decode(honest.replace(b"\x02\x02", b"\x02" + count), max_bytes=100)
        assert caught.value.code is WireCode.OVERSIZED


OTHERS = {"none": None, "rounds": round_work(), "a program": program_work(), "split": split_work()}


@pytest.mark.parametrize("other", OTHERS)
def test_what_can_not_be_called(other: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        standing_work(OTHERS[other])
    assert caught.value.code is WireCode.UNSUPPORTED
