"""Connections that do not come about are counted by why, in words that no stranger chooses."""

from __future__ import annotations

import pytest
import trio

from p2pcompute.errors import DialError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import open_libp2p
from p2pcompute.testing._overlay_checks import PrefixValidator

pytestmark = pytest.mark.net

REASONS = {"timeout", "security", "muxer", "another-peer", "unreachable", "limit", "displaced", "other"}


async def _until_closed(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some(4096):
            pass
    except trio.BrokenResourceError:
        pass


def test_what_did_not_become_a_connection_is_counted() -> None:
    async def main() -> None:
        with trio.fail_after(300):
            async with (
                open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as node,
                open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as other,
            ):
                port = int(node.addresses[0].split("/")[4])
                for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 100, b"\xff" * 1000, b"\x13/multistream/1.0.0\n\x02x\n"):
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                    await stream.send_all(garbage)
                    await stream.send_eof()
                    await _until_closed(stream)
                    await stream.aclose()
                counted = node.counters.handshakes_failed
                while sum(counted.values()) < 3:  # noqa: ASYNC110 - it is counted when the node is done with it
                    await trio.sleep(0.01)
                assert {way for way, _ in counted} == {"in"}
                assert {why for _, why in counted} <= REASONS
                assert node.counters.connected.total() == 0
                assert node.peer_reports() == []
                stranger = NodeKey.generate().peer_id
                with pytest.raises(DialError, match="somebody else"):
                    await other.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{stranger}")
                with trio.socket.socket() as taken:  # nobody listens there, and nobody else can
                    await taken.bind(("127.0.0.1", 0))
                    with pytest.raises(DialError, match="refused"):
                        await other.connect(f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}/p2p/{stranger}")
                dialled = other.counters.handshakes_failed
                assert dialled.total() == 2
                assert {way for way, _ in dialled} == {"out"}
                assert dialled["out", "unreachable"] == 1
                assert dialled["out", "another-peer"] == 1

    trio.run(main)
