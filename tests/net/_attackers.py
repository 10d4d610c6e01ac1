"""Strangers that misbehave below what `open_libp2p` lets anybody do: raw sockets, and raw frames behind a handshake.

The handshake is py-libp2p's own Noise, so nothing here trusts or shares what is attacked. Run as a program it is an
attacker in a process of its own: ``_attackers.py crowd <multiaddr> <connections> <streams of each>``.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.upgrader import TransportUpgrader

__all__ = [
    "DATA",
    "MULTISTREAM",
    "PING",
    "RST",
    "SYN",
    "WINDOW",
    "YAMUX_ID",
    "frame",
    "handshake",
    "line",
    "open_echo",
    "secured",
    "tcp",
]

DATA, WINDOW, PING = range(3)
SYN, ACK, FIN, RST = 1, 2, 4, 8
_HEADER = struct.Struct("!BBHII")


def line(text: str) -> bytes:
    """A message of multistream-select."""
    return bytes([len(text) + 1]) + text.encode() + b"\n"


MULTISTREAM = line("/multistream/1.0.0")


def frame(kind: int, flags: int, stream_id: int, length: int, data: bytes = b"") -> bytes:
    """A frame of Yamux, whatever it says."""
    return _HEADER.pack(0, kind, flags, stream_id, length) + data


def open_echo(stream_id: int, protocol: str) -> bytes:
    """Frames that open a stream and ask for a protocol at once."""
    ask = MULTISTREAM + line(protocol)
    return frame(WINDOW, SYN, stream_id, 0) + frame(DATA, 0, stream_id, len(ask), ask)


async def tcp(multiaddr: str, source: str = "127.0.0.1") -> trio.SocketStream:
    """A connection to a node, from any address of 127/8."""
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await sock.bind((source, 0))
        await sock.connect((multiaddr.split("/")[2], int(multiaddr.split("/")[4])))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def secured(stream: trio.SocketStream, multiaddr: str, key_pair: KeyPair | None = None) -> Any:
    """Noise over `stream`, as py-libp2p does it; a connection to write bytes to."""
    key_pair = key_pair or create_new_key_pair()
    noise = NoiseTransport(key_pair, noise_privkey=new_x25519_key_pair().private_key)
    upgrader = TransportUpgrader({NOISE_ID: noise}, {})
    peer = ID.from_string(multiaddr.rpartition("/")[2])
    return await upgrader.upgrade_security(RawConnection(TrioTCPStream(stream), True), True, peer)


async def handshake(stream: trio.SocketStream, multiaddr: str, key_pair: KeyPair | None = None) -> Any:
    """Noise and the choice of Yamux over `stream`, as py-libp2p does it; a connection to write frames to."""
    secure = await secured(stream, multiaddr, key_pair)
    await MuxerMultistream({TProtocol(YAMUX_ID): Yamux})._selector.select(secure, True, 60)
    return secure


async def crowd(multiaddr: str, connections: int, streams: int) -> None:
    """Under one key: so many connections, and so many streams on each, none of which is ever closed."""
    key_pair = create_new_key_pair()
    made = refused = 0
    kept = []
    for _ in range(connections):
        stream = await tcp(multiaddr)
        kept.append(stream)
        try:
            secure = await handshake(stream, multiaddr, key_pair)
            for number in range(streams):
                await secure.write(open_echo(2 * number + 1, "/echo/1"))
            made += 1
        except Exception:  # noqa: BLE001 - whichever way it is refused
            refused += 1
    sys.stdout.write(json.dumps({"made": made, "refused": refused}) + "\n")
    sys.stdout.flush()
    await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(crowd, sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
