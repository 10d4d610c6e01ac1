"""Strangers that misbehave over real sockets, each in its own way, for as long as they can: for `network_attack.py`.

They speak by our own sans-IO Noise and by raw frames, since that costs them least. Each attack is a coroutine that goes
on until the node has thrown it out, and is then begun anew, under a new key and from another address.
"""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from nacl.signing import SigningKey

from p2pcompute.overlay._multiselect import HEADER, Proposal, line
from p2pcompute.overlay.noise import CHACHAPOLY, Credentials, Handshake, NoiseError, Role, Sealer

__all__ = ["ATTACKS", "ECHO", "HOLD", "Attack", "Target", "go_on"]

ECHO: Final = "/echo/1"
HOLD: Final = "/hold/1"
ASK: Final = "/ask/1"
NOISE: Final = "/noise"
YAMUX: Final = "/yamux/1.0.0"
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
KIB: Final = 1024
_HEADER = struct.Struct("!BBHII")
_OPEN: Final = line(HEADER)


def frame(kind: int, flags: int, stream_id: int, length: int, data: bytes = b"") -> bytes:
    """A frame of Yamux, whatever it says."""
    return _HEADER.pack(0, kind, flags, stream_id, length) + data


def opening(stream_id: int, protocol: str) -> bytes:
    """Frames that open a stream and ask for a protocol at once."""
    asked = _OPEN + line(protocol)
    return frame(DATA, SYN, stream_id, len(asked), asked)


@dataclass
class Target:
    """The node, as its attackers see it.

    Attributes:
        host, port: where it listens.
        subnet: three bytes of the addresses that the attackers come from, such as "127.9.1".
        begun: how often an attack was begun.
        bytes_sent: by all of them.
    """

    host: str
    port: int
    subnet: str
    begun: int = 0
    bytes_sent: int = 0
    _hosts: Iterator[int] = field(default_factory=lambda: itertools.cycle(range(1, 255)))

    async def tcp(self) -> trio.SocketStream:
        """A connection from the next address of the subnet."""
        sock = trio.socket.socket()
        try:
            sock.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
            await sock.bind((f"{self.subnet}.{next(self._hosts)}", 0))
            await sock.connect((self.host, self.port))
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)


class Line:
    """A connection that has shaken hands: what it says is sealed, what it hears is thrown away where it is read."""

    def __init__(self, target: Target, tcp: trio.SocketStream, sealer: Sealer) -> None:
        self.tcp = tcp
        self.sealer = sealer
        self._target = target

    async def say(self, data: bytes) -> None:
        """Frames, in as few records as will do."""
        await self.raw(self.sealer.seal([data]))

    async def raw(self, data: bytes) -> None:
        """Bytes of TCP as they are."""
        await self.tcp.send_all(data)
        self._target.bytes_sent += len(data)

    async def read(self) -> None:
        """Throw away what comes, until the node ends it."""
        while await self.tcp.receive_some(65536):
            pass


async def _until_done(tcp: trio.SocketStream, dialogue: Any) -> bytes:
    """Speak until a negotiation or a handshake is over; what came behind it."""
    data = b""
    while True:
        done = dialogue.receive_data(data)
        if said := dialogue.data_to_send():
            await tcp.send_all(said)
        if done is not None:
            return bytes(dialogue.trailing)
        data = await tcp.receive_some(4096)
        if not data:
            raise trio.BrokenResourceError("thrown out")


@asynccontextmanager
async def shaken(target: Target, key: SigningKey | None = None, *, reads: bool = True) -> AsyncGenerator[Line]:
    """A connection on which Yamux may be spoken. Who does not read (`reads`) lets the node's answers pile up."""
    key = key or SigningKey.generate()
    async with await target.tcp() as tcp:
        trailing = await _until_done(tcp, Proposal([NOISE]))
        credentials = Credentials(bytes(key.verify_key), lambda text: key.sign(text).signature, muxers=(YAMUX,))
        shake = Handshake(CHACHAPOLY, Role.INITIATOR, credentials)
        shake.receive_data(trailing)
        await _until_done(tcp, shake)
        assert shake.result is not None
        line_ = Line(target, tcp, Sealer(CHACHAPOLY, shake.result.sending_key))
        if not reads:
            yield line_
            return
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                await line_.read()
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            yield line_
            nursery.cancel_scope.cancel()


# The attacks


async def crowd(target: Target) -> None:
    """One peer: 64 connections, and 10,000 streams over them."""
    key = SigningKey.generate()

    async def one() -> None:
        async with shaken(target, key) as conn:
            for number in range(157):
                await conn.say(opening(2 * number + 1, HOLD))
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(_let, one)


async def slow_handshakes(target: Target) -> None:
    """Handshakes of which a byte comes now and then."""
    async with await target.tcp() as tcp:
        for byte in _OPEN + line(NOISE) + b"\x00\x20" + bytes(32):
            await tcp.send_all(bytes([byte]))
            await trio.sleep(0.05)
        await tcp.receive_some(4096)
        await trio.sleep_forever()


async def slow_frames(target: Target) -> None:
    """Frames of 256 KiB that come byte by byte, each in a record of its own."""
    async with shaken(target) as conn:
        await conn.say(opening(1, HOLD) + frame(DATA, 0, 1, 200 * KIB))
        for _ in range(200 * KIB):
            await conn.say(b"x")


async def windows(target: Target) -> None:
    """Streams that nobody reads, each filled, then more than its window; and windows opened to the utmost."""
    async with shaken(target) as conn:
        for number in range(64):
            stream = 2 * number + 1
            await conn.say(opening(stream, HOLD))
            for _ in range(7):
                await conn.say(frame(DATA, 0, stream, 32 * KIB, bytes(32 * KIB)))
        await conn.say(frame(WINDOW, 0, 1, 0xFFFF_FFFF) + frame(DATA, 0, 3, 256 * KIB, bytes(256 * KIB)))
        await trio.sleep_forever()


async def odd_frames(target: Target) -> None:
    """Empty frames and frames of a byte, as many as go, and at last one of 4 GiB."""
    async with shaken(target) as conn:
        await conn.say(opening(1, ECHO))
        for _ in range(400):
            await conn.say(frame(DATA, 0, 1, 0) * 50 + frame(DATA, 0, 1, 1, b"x") * 50)
        await conn.say(frame(DATA, 0, 1, 0xFFFF_FFFF))


async def split_records(target: Target) -> None:
    """Whole dialogues, each byte of which is a packet."""
    async with shaken(target) as conn:
        for number in itertools.count():
            stream = 2 * number + 1
            said = opening(stream, ECHO) + frame(DATA, 0, stream, 5, b"hello") + frame(DATA, FIN, stream, 0)
            for byte in conn.sealer.seal([said]):
                await conn.raw(bytes([byte]))


async def garbage(target: Target) -> None:
    """Noise in the place of TCP's first bytes, a negotiation, a handshake, a record, a frame, a request."""
    chance = random.Random()

    async def before(said: bytes) -> None:
        async with await target.tcp() as tcp:
            await tcp.send_all(said + chance.randbytes(4 * KIB))
            target.bytes_sent += 4 * KIB
            while await tcp.receive_some(4096):
                pass

    for said in (b"", _OPEN, _OPEN + line(NOISE), _OPEN + line(NOISE) + b"\x00\x20"):
        await _let(before, said)

    async def behind(said: bytes, sealed: bool) -> None:
        async with shaken(target) as conn:
            await conn.say(said or frame(PING, SYN, 0, 1))
            noise = chance.randbytes(4 * KIB)
            await (conn.say(noise) if sealed else conn.raw(noise))
            await trio.sleep_forever()

    asked = opening(1, ASK) + frame(DATA, 0, 1, 4 * KIB)
    for said, sealed in ((b"", False), (b"", True), (asked, True)):
        await _let(behind, said, sealed)


async def replays(target: Target) -> None:
    """A recorded handshake sent again, and a record twice, so that its nonce comes twice."""
    async with shaken(target) as conn:
        record = conn.sealer.seal([frame(PING, SYN, 0, 1)])
        await conn.raw(record + record)
        await trio.sleep_forever()


async def recorded(target: Target) -> None:
    """What one connection said, on another one."""
    said: list[bytes] = []
    key = SigningKey.generate()
    credentials = Credentials(bytes(key.verify_key), lambda text: key.sign(text).signature, muxers=(YAMUX,))
    async with await target.tcp() as tcp:
        trailing = await _until_done(tcp, Proposal([NOISE]))
        shake = Handshake(CHACHAPOLY, Role.INITIATOR, credentials)
        said.append(shake.data_to_send())
        await tcp.send_all(said[0])
        shake.receive_data(trailing)
        while shake.result is None:
            if not (data := await tcp.receive_some(4096)):
                return
            shake.receive_data(data)
        said.append(shake.data_to_send())
        await tcp.send_all(said[1])
    async with await target.tcp() as tcp:
        await tcp.send_all(_OPEN + line(NOISE) + b"".join(said))
        while await tcp.receive_some(4096):
            pass


async def unread(target: Target) -> None:
    """Echoes and pings, of which no answer is ever read."""
    async with shaken(target, reads=False) as conn:
        for number in range(32):
            stream = 2 * number + 1
            await conn.say(opening(stream, ECHO) + frame(WINDOW, 0, stream, 0x7FFF_FFFF))
        while True:
            for number in range(32):
                await conn.say(frame(DATA, 0, 2 * number + 1, 4 * KIB, bytes(4 * KIB)) + frame(PING, SYN, 0, number))


async def resets(target: Target) -> None:
    """Streams that are reset at each point of their life."""
    async with shaken(target) as conn:
        for number in itertools.count():
            stream = 2 * number + 1
            life = [opening(stream, ECHO), frame(DATA, 0, stream, 5, b"hello"), frame(DATA, FIN, stream, 0)]
            await conn.say(b"".join(life[: number % 4]) + frame(WINDOW, RST | (0 if number % 4 else SYN), stream, 0))


async def lingers(target: Target) -> None:
    """Streams that are half-closed at once, read, and never done with."""
    async with shaken(target) as conn:
        for number in itertools.count():
            stream = 2 * number + 1
            await conn.say(opening(stream, HOLD) + frame(DATA, FIN, stream, 5, b"hello"))


async def _let(run: Callable[..., Awaitable[None]], *args: Any) -> None:
    """However it is thrown out."""
    try:
        await run(*args)
    except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError, NoiseError):
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What the attackers' process does: `workers` of them at once, a new one for each that was thrown out."""

    what: str
    runs: tuple[Callable[[Target], Awaitable[None]], ...]
    workers: int = 8


ATTACKS: Final[dict[str, Attack]] = {
    "crowd": Attack(what="10,000 streams on 64 connections of one peer", runs=(crowd,), workers=1),
    "slow-handshakes": Attack(what="handshakes byte by byte", runs=(slow_handshakes,), workers=64),
    "slow-frames": Attack(what="a frame byte by byte, each in a record", runs=(slow_frames,)),
    "windows": Attack(what="windows filled, overrun and opened to the utmost", runs=(windows,)),
    "frames": Attack(what="empty, tiny and giant frames", runs=(odd_frames,)),
    "split": Attack(what="each byte a packet", runs=(split_records,)),
    "garbage": Attack(what="garbage at each layer", runs=(garbage,)),
    "replays": Attack(what="handshakes played again, and nonces twice", runs=(replays, recorded)),
    "unread": Attack(what="asking, and reading nothing", runs=(unread,)),
    "resets": Attack(what="resets at each point of a stream", runs=(resets,)),
    "lingers": Attack(what="streams half-closed, and never done with", runs=(lingers,)),
}


async def go_on(name: str, target: Target) -> None:
    """Attack until cancelled."""
    attack = ATTACKS[name]

    async def worker(number: int) -> None:
        while True:
            target.begun += 1
            await _let(attack.runs[number % len(attack.runs)], target)
            await trio.sleep(0.02)  # thrown out, or refused at the door

    with trio.CancelScope(deadline=math.inf):
        async with trio.open_nursery() as nursery:
            for number in range(attack.workers):
                nursery.start_soon(worker, number)
