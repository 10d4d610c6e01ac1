"""Strangers that hold stake streams, or ask questions, so that nobody else has any."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute.errors import StreamError
from p2pcompute.identity import NodeKey
from p2pcompute.payments import subnet_of
from p2pcompute.stake import _service
from p2pcompute.testing import open_memory_overlay
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.stake import (
    PROTOCOL_ID,
    CardGiven,
    CardQuery,
    EvidenceEnd,
    EvidencePiece,
    Proceed,
    StakeConnection,
    StakeRefusal,
)
from p2pcompute_protocols.wire import Record

from .test_attacks import Deal, accuse_of, dealt
from .test_floods import VALIDATOR, asks, self_accusation

STREAMS = 64
ATTACKER, HONEST = "198.51.100.9", "203.0.113.7"


async def hold(made: Deal, streams: int, stack: AsyncExitStack) -> list[Dialogue]:
    """Streams of as many strangers as it takes, each with one question asked; all of them stay open."""
    target, held = made.arbiters[0], list[Dialogue]()
    for _ in range(-(-streams // 8)):
        overlay = await stack.enter_async_context(
            open_memory_overlay(made.court.market.memory, NodeKey.generate(), record_validator=VALIDATOR)
        )
        await overlay.connect(target.addresses[0])
        for _ in range(min(8, streams - len(held))):
            stream = await overlay.open_stream(target.peer_id, PROTOCOL_ID)
            held.append(Dialogue(StakeConnection(Role.REQUESTER), stream))
    for dialogue in held:
        await dialogue.send(CardQuery())
        assert isinstance(await dialogue.receive(stall_s=5), CardGiven)
    return held


async def is_open(dialogue: Dialogue) -> bool:
    try:
        await dialogue.send(CardQuery())
        return not isinstance(await dialogue.receive(stall_s=5), StreamEnded)
    except (StreamError, RemoteProtocolError):
        return False


def test_who_holds_streams_and_asks_nothing_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        async with AsyncExitStack() as stack:
            held = await hold(made, STREAMS, stack)
            await trio.sleep(5)
            for _ in range(3):
                answers = await asks(made.court.market, made.arbiters[0], [CardQuery()])
                assert [type(answer) for answer in answers] == [CardGiven]
            # The one that had been silent for the longest has gone, once: those who came have left since.
            assert [await is_open(one) for one in held] == [False] + [True] * (STREAMS - 1)

    dealt(tmp_path, monkeypatch, play)


async def accuses(made: Deal, ip: str) -> list[WireCode]:
    """What a stranger at this address is told, whose accusation comes as far as the chain and no further."""
    key = NodeKey.generate()
    made.court.market.memory.place(key.peer_id, ip)
    answers = await asks(made.court.market, made.arbiters[0], [self_accusation(made)] * 16, key=key)
    return [WireCode(answer.code) for answer in answers if isinstance(answer, StakeRefusal)]


@pytest.mark.parametrize("defended", [True, False])
def test_the_strangers_of_one_subnet_leave_something_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    """An honest accuser is a stranger to an arbiter as well."""
    if not defended:
        monkeypatch.setattr(_service, "subnet_of", lambda _, peer: subnet_of("127.0.0.1", peer))

    async def play(made: Deal) -> None:
        async def go_on() -> None:
            while True:
                await accuses(made, ATTACKER)

        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(go_on)
            await trio.sleep(3)
            codes = await accuses(made, HONEST)
            nursery.cancel_scope.cancel()
        if defended:
            assert codes == [WireCode.UNFUNDED] * 16
        else:
            assert codes.count(WireCode.NO_CAPACITY) > 8

    dealt(tmp_path, monkeypatch, play)


@pytest.mark.parametrize("defended", [True, False])
def test_two_that_drip_leave_a_place_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defended: bool) -> None:
    """Whoever has a stake could accuse itself, and hold each place for three minutes with a byte now and then."""
    if not defended:
        monkeypatch.setattr(_service, "_SOON_S", math.inf)

    async def play(made: Deal) -> None:
        evidence = await made.accusation()
        asked, arbiter = accuse_of(made, evidence), made.arbiters[0]
        assert arbiter.stake_service is not None

        async def drip() -> None:
            stream = await made.requester.services.overlay.open_stream(arbiter.peer_id, PROTOCOL_ID)
            dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
            with suppress(StreamError, RemoteProtocolError):
                await dialogue.send(asked)
                await dialogue.expect(Proceed)
                for byte in evidence:
                    await dialogue.send(EvidencePiece(data=bytes([byte])))
                    await trio.sleep(5)

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(drip)
            await trio.sleep(30)
            assert len(arbiter.stake_service._uploads) == 2
            stream = await made.requester.services.overlay.open_stream(arbiter.peer_id, PROTOCOL_ID)
            dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
            await dialogue.send(asked)
            answer = await dialogue.receive(stall_s=5)
            assert isinstance(answer, Proceed if defended else StakeRefusal)
            await trio.sleep(1)
            assert len(arbiter.stake_service._uploads) == 2  # of the two that dripped one has gone, or none
            nursery.cancel_scope.cancel()

    dealt(tmp_path, monkeypatch, play)


def test_whoever_shows_the_terms_uses_up_nobody_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both signatures under them are known to the liar as well, which could show them for hours."""

    async def play(made: Deal) -> None:
        evidence, arbiter = await made.accusation(), made.arbiters[0]
        asked, overlay = accuse_of(made, evidence), made.provider.services.overlay
        for _ in range(4):
            await overlay.connect(arbiter.addresses[0])
            stream = await overlay.open_stream(arbiter.peer_id, PROTOCOL_ID)
            dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
            await dialogue.send(asked)
            await dialogue.expect(Proceed)
            with suppress(StreamError, RemoteProtocolError):
                for byte in evidence:
                    await dialogue.send(EvidencePiece(data=bytes([byte])))
                    await trio.sleep(20)
        stream = await made.requester.services.overlay.open_stream(arbiter.peer_id, PROTOCOL_ID)
        dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
        await dialogue.send(asked)
        await dialogue.expect(Proceed)

    dealt(tmp_path, monkeypatch, play)


def test_a_slow_file_that_is_nearly_here_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        evidence, arbiter = await made.accusation(), made.arbiters[0]

        async def show(pause_s: float) -> Record:
            stream = await made.requester.services.overlay.open_stream(arbiter.peer_id, PROTOCOL_ID)
            dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
            await dialogue.send(accuse_of(made, evidence))
            answer = await dialogue.receive(stall_s=5)
            if isinstance(answer, Proceed):
                size = -(-len(evidence) // 10)
                for begin in range(0, len(evidence), size):  # ten pieces
                    await trio.sleep(pause_s)
                    await dialogue.send(EvidencePiece(data=evidence[begin : begin + size]))
                await dialogue.send(EvidenceEnd())
                answer = await dialogue.receive(stall_s=60)
            assert isinstance(answer, Record)
            return answer

        found: list[Record] = []

        async def kept() -> None:
            found.append(await show(3.0))

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(kept)
            await trio.sleep(20)
            refused = await show(0.0)
            assert isinstance(refused, StakeRefusal)
            assert refused.code == WireCode.NO_CAPACITY
        judged = [answer.code for answer in found if isinstance(answer, StakeRefusal)]
        assert judged == [WireCode.CHECK_FAILED] * 2  # it is the accuser who is wrong

    dealt(tmp_path, monkeypatch, play)
