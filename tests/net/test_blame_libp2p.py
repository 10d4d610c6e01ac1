"""Over real sockets: whoever breaks a protocol is banned, whether the handler raises that or answers it politely."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from p2pcompute._dialogue import Dialogue
from p2pcompute.errors import DialError, StreamError
from p2pcompute.overlay import Offence
from p2pcompute_protocols.ads import AdsConnection
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import RemoteProtocolError

from ._attacked import a_node, answers, banned, run, score, wait_until

pytestmark = pytest.mark.net

POLITE = "/polite/1"
RAISING = "/raising/1"
SORRY = b"sorry"
NOISE = b"\x04\xff\xff\xff\xff"
HALF = b"\x7f\x82"


@pytest.fixture(autouse=True)
def _no_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.overlay._bans.HALF_LIFE_S", 1e9)
    monkeypatch.setattr("p2pcompute.overlay._bans.FIRST_BAN_S", 3600.0)


async def raising(stream: Any) -> None:
    await Dialogue(AdsConnection(Role.PROVIDER), stream).receive()


async def polite(stream: Any) -> None:
    try:
        await raising(stream)
    except RemoteProtocolError:
        await stream.send_all(SORRY)


@pytest.mark.parametrize("protocol", [POLITE, RAISING])
def test_two_violations_are_a_ban_and_an_early_end_is_none(protocol: str) -> None:
    async def main() -> None:
        async with a_node() as node, a_node() as peer:
            node.handle(POLITE, polite)
            node.handle(RAISING, raising)
            await peer.connect(node.addresses[0])
            heard: list[bytes] = []

            async def say(data: bytes) -> None:
                stream = await peer.open_stream(node.peer_id, protocol)
                await stream.send_all(data)
                await stream.close_write()
                with contextlib.suppress(StreamError):
                    heard.append(await stream.receive_some())
                await stream.reset()

            for _ in range(5):
                await say(HALF)
            assert score(node, peer.peer_id) == 0
            await say(NOISE)
            assert score(node, peer.peer_id) == pytest.approx(Offence.VIOLATION.points)
            assert heard == ([SORRY] * 6 if protocol == POLITE else [])
            assert await answers(peer, node.peer_id)
            await say(NOISE)
            assert banned(node) == [peer.peer_id]
            await wait_until(lambda: not peer.peers())
            with contextlib.suppress(DialError):  # it learns that it is kept out where it negotiates, or just after
                await peer.connect(node.addresses[0])
            await wait_until(lambda: not peer.peers())
            await wait_until(lambda: not node.peers())

    run(main)


@pytest.mark.parametrize("protocol", [POLITE, RAISING])
def test_whom_we_asked_and_who_answers_wrongly_twice_is_kept_out_too(protocol: str) -> None:
    async def main() -> None:
        async with a_node() as node, a_node() as peer:

            async def noise(stream: Any) -> None:
                await stream.send_all(NOISE)

            peer.handle(protocol, noise)
            await node.connect(peer.addresses[0])
            for expected in ([], [peer.peer_id]):
                stream = await node.open_stream(peer.peer_id, protocol)
                with pytest.raises(RemoteProtocolError):
                    await Dialogue(AdsConnection(Role.REQUESTER), stream).receive(stall_s=60)
                assert banned(node) == expected
            with pytest.raises(DialError):
                await node.open_stream(peer.peer_id, protocol)

    run(main)
