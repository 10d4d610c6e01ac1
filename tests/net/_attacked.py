"""Nodes that are attacked over real sockets, and what is seen of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.peer.id import ID

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Subject, open_libp2p
from p2pcompute.overlay._libp2p import Libp2pOverlay
from p2pcompute.testing._overlay_checks import PrefixValidator
from p2pcompute_protocols.ids import PeerId, peer_id_from_bytes

ECHO = "/echo/1"
HOLD = "/hold/1"


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(500):
            await main()

    trio.run(bounded)


async def wait_until(condition: Callable[[], bool]) -> None:
    """For what has no event: look every 20 ms; `run` bounds it."""
    while True:
        if condition():
            return
        await trio.sleep(0.02)


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def hold(_stream: Any) -> None:
    await trio.sleep_forever()


@asynccontextmanager
async def a_node(**options: Any) -> AsyncGenerator[Libp2pOverlay, None]:
    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator(), **options) as node:
        node.handle(ECHO, echo)
        node.handle(HOLD, hold)
        yield node


async def answers(client: Libp2pOverlay, peer: PeerId) -> bool:
    stream = await client.open_stream(peer, ECHO)
    await stream.send_all(b"x")
    answer = await stream.receive_some()
    await stream.aclose()
    return answer == b"x"


def peer_of(key_pair: Any) -> PeerId:
    return peer_id_from_bytes(ID.from_pubkey(key_pair.public_key).to_bytes())


def score(node: Libp2pOverlay, peer: PeerId) -> float:
    return node._defence.bans.score(Subject("peer", peer))


def banned(node: Libp2pOverlay) -> list[str]:
    return [ban.subject.name for ban in node.limits_report().bans]


async def ended(stream: trio.SocketStream) -> None:
    """Return once the node has closed a connection; what it says before does not matter."""
    try:
        while await stream.receive_some(65536):
            pass
    except trio.BrokenResourceError:
        pass
