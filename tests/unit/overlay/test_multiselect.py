"""multistream-select without I/O: cut in every way, bounded against strangers, and held against libp2p's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from libp2p.custom_types import TProtocol
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector

from p2pcompute.overlay._multiselect import (
    HEADER,
    MAX_LINE_BYTES,
    MAX_PROPOSALS,
    Answer,
    MultiselectError,
    Proposal,
    line,
)

from .._mutants import MUTANTS, SEED, mutants


def talk(proposal: Proposal, answer: Answer) -> None:
    """Until neither has anything to say."""
    while True:
        there, back = proposal.data_to_send(), answer.data_to_send()
        if not there and not back:
            return
        if there:
            answer.receive_data(there)
        if back:
            proposal.receive_data(back)


@pytest.mark.parametrize(
    ("proposed", "spoken", "chosen"),
    [(["/a"], ["/a"], "/a"), (["/a", "/b"], ["/b", "/a"], "/a"), (["/a", "/b", "/c"], ["/c", "/b"], "/b")],
)
def test_the_first_that_both_speak_is_chosen(proposed: list[str], spoken: list[str], chosen: str) -> None:
    proposal, answer = Proposal(proposed), Answer(spoken)
    talk(proposal, answer)
    assert proposal.chosen == answer.chosen == chosen
    assert proposal.trailing == answer.trailing == b""


def test_peers_that_share_nothing_are_told() -> None:
    with pytest.raises(MultiselectError, match="none of the protocols"):
        talk(Proposal(["/a", "/b"]), Answer(["/c"]))


def test_both_greet_before_they_hear_anything_and_the_dialler_proposes_at_once() -> None:
    assert Answer(["/a"]).data_to_send() == b"\x13/multistream/1.0.0\n"
    assert Proposal(["/a", "/b"]).data_to_send() == b"\x13/multistream/1.0.0\n\x03/a\n"


def test_every_cut_gives_the_same() -> None:
    long = "/" + "x" * 200
    for make, data, chosen in (
        (lambda: Proposal(["/a", long]), line(HEADER) + line("na") + line(long) + b"noise", long),
        (lambda: Answer(["/a", long]), line(HEADER) + line("/b") + line("ls") + line(long) + b"noise", long),
    ):

        def said(pieces: list[bytes], make: Callable[[], Any] = make) -> tuple[str | None, bytes, bytes]:
            side = make()
            sent = trailing = b""
            for piece in pieces:
                if side.chosen is None:
                    side.receive_data(piece)
                    trailing = side.trailing
                else:
                    trailing += piece
                sent += side.data_to_send()
            return side.chosen, sent, trailing

        whole = said([data])
        assert whole[0] == chosen
        assert whole[2] == b"noise"
        for at in range(1, len(data)):
            assert said([data[:at], data[at:]]) == whole
        assert said([data[at : at + 1] for at in range(len(data))]) == whole


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x81\x02",  # 257 bytes
        b"\xff\xff",
        b"\x04abc\n" + b"x",
        b"\x13/multistream/1.0.0x",
        b"\x13/multistream/2.0.0\n",
        b"\x02\xff\n",
        line(HEADER) + b"\x03abc",
        line(HEADER) + b"\x80\x00",
    ],
)
def test_what_is_no_negotiation_is_refused(data: bytes) -> None:
    for side in (Proposal(["/a"]), Answer(["/a"])):
        with pytest.raises(MultiselectError):
            side.receive_data(data)


@pytest.mark.parametrize("make", [lambda: Proposal(["/a", "/b", "/yamux/1.0.0"]), lambda: Answer(["/yamux/1.0.0"])])
def test_mutants_of_negotiations(make: Callable[[], Proposal | Answer]) -> None:
    """Split any way, the same is chosen, said and left over, or the same refused."""
    originals = [line(HEADER) + line("na") + line("na") + line("/yamux/1.0.0") + b"what follows"]

    def outcome(pieces: list[bytes]) -> tuple[str | None, bytes, bytes]:
        side = make()
        for number, piece in enumerate(pieces):
            try:
                if side.receive_data(piece) is not None:
                    return side.chosen, side.data_to_send(), side.trailing + b"".join(pieces[number + 1 :])
            except MultiselectError:
                return "refused", side.data_to_send(), b""
        return None, side.data_to_send(), b""

    chance, ends = random.Random(SEED), Counter[str | None]()
    for mutant in mutants(originals, MUTANTS // 2, heads=b"\x00\x0a\x7f\x80\x81\x02\xff"):
        cut = chance.randrange(len(mutant) + 1)
        whole = outcome([mutant])
        assert outcome([mutant[:cut], mutant[cut:]]) == whole, mutant.hex()
        ends[whole[0]] += 1
    assert min(ends[end] for end in (None, "refused", "/yamux/1.0.0")) > MUTANTS // 100


def test_a_line_that_is_too_long_is_refused_before_it_has_come() -> None:
    longest = line("/" + "x" * (MAX_LINE_BYTES - 2))
    assert len(longest) == MAX_LINE_BYTES + 2
    side = Answer(["/a"])
    assert side.receive_data(line(HEADER) + longest) is None
    with pytest.raises(MultiselectError, match="257 bytes"):
        side.receive_data(b"\x81\x02")
    with pytest.raises(ValueError, match="too long"):
        line("x" * MAX_LINE_BYTES)


def test_a_stranger_may_not_ask_for_ever() -> None:
    side = Answer(["/a"])
    side.receive_data(line(HEADER) + line("/b") * (MAX_PROPOSALS - 1))
    assert side.data_to_send().count(line("na")) == MAX_PROPOSALS - 1
    with pytest.raises(MultiselectError, match="16 protocols"):
        side.receive_data(line("/b"))
    last = Answer(["/a"])
    last.receive_data(line(HEADER) + line("/b") * (MAX_PROPOSALS - 1))
    assert last.receive_data(line("/a")) == "/a"


def test_an_answer_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(MultiselectError, match="strange answer"):
        Proposal(["/a", "/b"]).receive_data(line(HEADER) + line("/b"))


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_waited_for_or_refused(data: bytes, greeted: bool) -> None:
    for side in (Proposal(["/a"]), Answer(["/a"])):
        try:
            side.receive_data((line(HEADER) if greeted else b"") + data)
        except MultiselectError:
            continue
        assert side.chosen in (None, "/a")
        assert len(side._buffer) <= max(len(data), MAX_LINE_BYTES + 2)


class Pipe:
    """One end of a memory stream as libp2p wants it."""

    def __init__(self, stream: trio.testing.MemoryReceiveStream | trio.StapledStream) -> None:  # type: ignore[type-arg]
        self.stream = stream

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)  # type: ignore[union-attr]


@pytest.mark.parametrize("we_dial", [True, False])
def test_libp2p_negotiates_with_it(we_dial: bool) -> None:
    async def main() -> None:
        here, there = trio.testing.memory_stream_pair()
        selector: GenericMultistreamSelector[str] = GenericMultistreamSelector()
        for protocol in ("/b", "/c") if we_dial else ("/x", "/c", "/b"):
            selector.add_handler(TProtocol(protocol), protocol)
        ours = Proposal(["/a", "/b"]) if we_dial else Answer(["/b", "/a"])
        async with trio.open_nursery() as nursery:
            theirs: list[str] = []

            async def libp2p() -> None:
                theirs.append((await selector.select(Pipe(there), not we_dial))[1])  # type: ignore[arg-type]

            nursery.start_soon(libp2p)
            while True:
                if data := ours.data_to_send():
                    await here.send_all(data)
                if ours.chosen is not None:
                    break
                ours.receive_data(await here.receive_some())
        assert theirs == [ours.chosen] == ["/b"]

    trio.run(main)
