"""Strangers that flood, stall and talk nonsense over real sockets, while honest peers go on.

Each attack is shown to hurt where its defence is off, and to hurt nobody but itself where it is on. What is compared
are counts of what was done and what is held, never times.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from p2pcompute.errors import DialError, OverlayError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Limits, Offence, ProtocolLimits, Rate, Subject, open_libp2p
from p2pcompute.overlay._bans import _POINTS
from p2pcompute.overlay._libp2p import Libp2pOverlay
from p2pcompute.overlay._mends import MendedSwarm
from p2pcompute.testing._overlay_checks import PrefixValidator
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode

from ._attacked import ECHO, HOLD, a_node, answers, banned, ended, peer_of, run, score, wait_until
from ._attackers import (
    DATA,
    MULTISTREAM,
    PING,
    RST,
    SYN,
    WINDOW,
    YAMUX_ID,
    frame,
    handshake,
    line,
    open_echo,
    secured,
    tcp,
)

pytestmark = pytest.mark.net

MANY = 10**6
ANY = Rate(per_s=MANY, burst=MANY)
OPEN = ProtocolLimits(streams_per_peer=MANY, streams=MANY)
UNDEFENDED = Limits(
    connections=2000,
    connections_per_host=2000,
    connections_per_subnet=2000,
    connections_per_peer=2000,
    handshakes_per_host=2000,
    handshakes_per_subnet=2000,
    handshake_rate_per_host=ANY,
    handshake_rate_per_subnet=ANY,
    connection_rate_per_peer=ANY,
    streams_per_peer=MANY,
    stream_rate_per_peer=ANY,
    gossip_rate_per_peer=ANY,
    gossip_rate_own=ANY,
    gossip_control_per_peer=ANY,
    gossip_asked_per_peer=ANY,
    protocol=OPEN,
    protocols={},
)


@pytest.fixture(autouse=True)
def _no_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast this machine is must not matter: scores stay, bans and unfinished handshakes last."""
    monkeypatch.setattr("p2pcompute.overlay._bans.HALF_LIFE_S", 1e9)
    monkeypatch.setattr("p2pcompute.overlay._bans.FIRST_BAN_S", 3600.0)
    monkeypatch.setattr("p2pcompute.overlay._mends.CONNECT_TIMEOUT_S", 400.0)


@pytest.fixture
def few_are_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_POINTS, Offence.FLOOD, 5.0)


async def knock(node: Libp2pOverlay, stack: AsyncExitStack, source: str) -> tuple[Any, bool]:
    """Connect, say nothing, and tell whether the node begins to negotiate."""
    try:
        stream = await stack.enter_async_context(await tcp(node.addresses[0], source))
    except ConnectionResetError:  # sent away before this side knew that it was there
        return None, False
    try:
        return stream, bool(await stream.receive_some())
    except trio.BrokenResourceError:
        return stream, False


# One peer with streams and connections without number, in a process of its own


async def crowd_comes(
    victim: Libp2pOverlay,
    connections: int,
    streams: int,
    meanwhile: Callable[[], Any],
    enough: Callable[[], bool] = lambda: True,
) -> Any:
    command = [sys.executable, str(Path(__file__).with_name("_attackers.py")), "crowd"]
    command += [victim.addresses[0], str(connections), str(streams)]
    attacker = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        async with trio.open_nursery() as nursery:

            async def go_on() -> None:
                while True:
                    await meanwhile()

            nursery.start_soon(go_on)
            assert attacker.stdout is not None
            said = b""
            while not said.endswith(b"\n"):
                piece = await attacker.stdout.receive_some()
                assert piece, "the attacker failed"
                said += piece
            await wait_until(enough)
            nursery.cancel_scope.cancel()
        return json.loads(said)
    finally:
        attacker.kill()
        with trio.CancelScope(shield=True):
            await attacker.wait()
            for pipe in (attacker.stdin, attacker.stdout):
                if pipe is not None:
                    await pipe.aclose()


def test_ten_thousand_streams_on_64_connections_of_one_peer() -> None:
    async def main() -> None:
        limits = Limits(connection_rate_per_peer=Rate(per_s=1e-9, burst=32))
        async with a_node(limits=limits) as victim, a_node() as friend:
            await friend.connect(victim.addresses[0])
            assert await answers(friend, victim.peer_id)
            for node in (victim, friend):  # gossip's own
                await wait_until(lambda node=node: node.limits_report().streams == 1)  # type: ignore[misc]
            tasks, files = trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))
            worst, answered = 0, 0

            async def meanwhile() -> None:
                nonlocal worst, answered
                answered += await answers(friend, victim.peer_id)
                crowd = [use for use in victim.limits_report().peers if use.peer_id != friend.peer_id]
                worst = max([worst, *(use.streams for use in crowd)])
                assert victim.limits_report().memory_bytes < 32 * 1024 * 1024

            def both_are_refused() -> bool:  # the attacker is done when it has asked, and the victim takes its time
                refused = victim.limits_report().refused
                return all(any(name.startswith(what) for name in refused) for what in ("connection", "stream"))

            await crowd_comes(victim, 64, 160, meanwhile, both_are_refused)
            assert answered > 0
            assert worst <= Limits().streams_per_peer
            assert await answers(friend, victim.peer_id)
            # It has gone: so has all that was held for it.
            await wait_until(lambda: [use.peer_id for use in victim.limits_report().peers] == [friend.peer_id])
            await wait_until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks + 8)
            await wait_until(lambda: len(os.listdir("/proc/self/fd")) <= files + 4)
            await wait_until(lambda: victim.limits_report().memory_bytes == 0)
            assert victim._defence.memory.peers == 1

    run(main)


def test_without_limits_one_peer_gets_all_that_it_asks_for() -> None:
    async def main() -> None:
        async with a_node(limits=UNDEFENDED) as victim:
            reached = 0

            async def meanwhile() -> None:
                nonlocal reached
                reached = max(reached, victim.limits_report().streams)
                await trio.sleep(0.01)

            allowed = Limits().of(ECHO).streams_per_peer
            said = await crowd_comes(victim, 3, 100, meanwhile, lambda: reached > 2 * allowed)
            assert said == {"made": 3, "refused": 0}

    run(main)


# Handshakes that are not finished


def test_handshakes_from_one_subnet_push_nobody_else_out() -> None:
    """Whoever comes takes the place of the oldest unfinished handshake: a crowd would end everybody's."""

    async def main(limits: Limits, stays: bool) -> None:
        async with a_node(limits=limits) as victim, AsyncExitStack() as stack:
            slow, greeted = await knock(victim, stack, "127.0.1.1")
            assert greeted
            crowd = [await knock(victim, stack, f"127.0.5.{number}") for number in range(1, 9)]
            assert sum(greeted for _, greeted in crowd) == (3 if stays else 8)
            if stays:
                await slow.send_all(MULTISTREAM + line("/none/1"))
                assert line("na") in await slow.receive_some()
                assert victim.limits_report().handshakes == 4
            else:
                await ended(slow)

    few = replace(UNDEFENDED, handshakes=6, loopback_exempt=False)
    run(lambda: main(replace(few, handshakes_per_subnet=3), True))
    run(lambda: main(few, False))


def test_a_subnet_has_its_share_of_connections_and_leaves_the_rest() -> None:
    async def main() -> None:
        limits = replace(UNDEFENDED, loopback_exempt=False, connections_per_subnet=4)
        async with a_node(limits=limits) as victim, a_node() as friend, AsyncExitStack() as stack:
            crowd = [await knock(victim, stack, f"127.0.5.{number}") for number in range(1, 8)]
            assert [greeted for _, greeted in crowd] == [True] * 4 + [False] * 3
            await friend.connect(victim.addresses[0])
            assert await answers(friend, victim.peer_id)
            await crowd[0][0].aclose()
            await wait_until(lambda: victim.limits_report().handshakes == 3)
            assert (await knock(victim, stack, "127.0.5.9"))[1]

    run(main)


def test_an_address_that_only_fails_its_handshakes_is_refused_and_its_neighbours_are_not() -> None:
    async def main() -> None:
        limits = replace(UNDEFENDED, loopback_exempt=False)
        async with a_node(limits=limits) as victim, AsyncExitStack() as stack:
            for _ in range(200):
                stream, greeted = await knock(victim, stack, "127.0.5.1")
                if not greeted:
                    break
                await stream.send_all(b"\xff" * 64)
                await ended(stream)
                await stream.aclose()
                await wait_until(lambda: victim.limits_report().handshakes == 0)
            else:
                pytest.fail("it may fail without end")
            assert banned(victim) == ["127.0.5.1"]
            assert (await knock(victim, stack, "127.0.5.2"))[1]
            victim._defence.bans.pardon(Subject("host", "127.0.5.1"))
            assert (await knock(victim, stack, "127.0.5.1"))[1]

    run(main)


def test_connections_that_come_and_go_have_a_rate() -> None:
    async def main() -> None:
        limits = replace(
            UNDEFENDED, loopback_exempt=False, handshake_rate_per_host=Rate(per_s=1e-9, burst=3), handshakes_per_host=9
        )
        async with a_node(limits=limits) as victim, AsyncExitStack() as stack:
            greeted = [(await knock(victim, stack, "127.0.5.1"))[1] for _ in range(5)]
            assert greeted == [True] * 3 + [False] * 2
            assert (await knock(victim, stack, "127.0.5.2"))[1]

    run(main)


def test_who_is_refused_has_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred of them a second are noticed by nobody (benchmarks/network_attack.py)."""
    welcomed: list[str] = []
    welcome = MendedSwarm.welcome

    async def counted(swarm: Any, stream: Any, visit: Any, maddr: Any) -> None:
        welcomed.append(visit.place.host)
        await welcome(swarm, stream, visit, maddr)

    monkeypatch.setattr(MendedSwarm, "welcome", counted)

    async def main() -> None:
        limits = replace(UNDEFENDED, loopback_exempt=False, handshake_rate_per_host=Rate(per_s=1e-9, burst=1))
        async with a_node(limits=limits) as victim, AsyncExitStack() as stack:
            greeted = [(await knock(victim, stack, f"127.0.5.{number}"))[1] for number in (1, 1, 1, 2, 1, 2)]
            assert greeted == [True, False, False, True, False, False]
            assert welcomed == ["127.0.5.1", "127.0.5.2"]
            assert victim.limits_report().handshakes == 2

    run(main)


# Nonsense at each layer


async def nonsense_on_tcp(victim: Libp2pOverlay, key_pair: Any) -> trio.SocketStream:
    stream = await tcp(victim.addresses[0])
    await stream.send_all(random.Random(7).randbytes(4096))
    return stream


async def nonsense_for_multistream(victim: Libp2pOverlay, key_pair: Any) -> trio.SocketStream:
    stream = await tcp(victim.addresses[0])
    await stream.send_all(MULTISTREAM + line("/plaintext/2.0.0") * 5000)
    return stream


async def nonsense_for_noise(victim: Libp2pOverlay, key_pair: Any) -> trio.SocketStream:
    stream = await tcp(victim.addresses[0])
    message = b"\x00\x60" + random.Random(7).randbytes(96)
    await stream.send_all(MULTISTREAM + line("/noise") + message + message)  # the first can't be told from a key
    return stream


async def nonsense_for_records(victim: Libp2pOverlay, key_pair: Any) -> trio.SocketStream:
    stream = await tcp(victim.addresses[0])
    await handshake(stream, victim.addresses[0], key_pair)
    await stream.send_all(b"\x01\x00" + random.Random(7).randbytes(256))
    return stream


async def nonsense_for_yamux(victim: Libp2pOverlay, key_pair: Any) -> trio.SocketStream:
    stream = await tcp(victim.addresses[0])
    secure = await handshake(stream, victim.addresses[0], key_pair)
    await secure.write(b"\x07" + random.Random(7).randbytes(255))
    return stream


async def nonsense_for_yamux_at_once(victim: Libp2pOverlay, key_pair: Any) -> trio.SocketStream:
    """In one record with the choice of Yamux, so that it is read before the victim counts the connection."""
    stream = await tcp(victim.addresses[0])
    secure = await secured(stream, victim.addresses[0], key_pair)
    await secure.write(MULTISTREAM + line(YAMUX_ID) + b"\x07" + random.Random(7).randbytes(255))
    return stream


NONSENSE = [
    # what is sent, and whether it is held against the peer: not where anybody between the two could have sent it
    (nonsense_on_tcp, False),
    (nonsense_for_multistream, False),
    (nonsense_for_noise, False),
    (nonsense_for_records, False),
    (nonsense_for_yamux, True),
    (nonsense_for_yamux_at_once, True),
]


@pytest.mark.parametrize(("nonsense", "blamed"), NONSENSE)
def test_nonsense_ends_one_connection_and_nothing_else(nonsense: Any, blamed: bool) -> None:
    async def main() -> None:
        async with a_node() as victim, a_node() as friend:
            await friend.connect(victim.addresses[0])
            key_pair = create_new_key_pair()
            async with await nonsense(victim, key_pair) as stream:
                await ended(stream)
            await wait_until(lambda: victim.limits_report().connections == 1)
            await wait_until(lambda: victim.limits_report().handshakes == 0)
            assert await answers(friend, victim.peer_id)
            if blamed:  # its stream may have ended before anybody is blamed
                await wait_until(lambda: score(victim, peer_of(key_pair)) > 0)
            else:
                assert score(victim, peer_of(key_pair)) == 0

    run(main)


def test_who_breaks_the_protocol_again_is_kept_out_and_others_at_its_address_are_not() -> None:
    async def main() -> None:
        async with a_node() as victim, a_node() as friend:
            key_pair = create_new_key_pair()
            for _ in range(2):
                async with await nonsense_for_yamux(victim, key_pair) as stream:
                    await ended(stream)
                await wait_until(lambda: victim.limits_report().connections == 0)
            await wait_until(lambda: banned(victim) == [peer_of(key_pair)])
            async with await tcp(victim.addresses[0]) as stream:
                with suppress(Exception):  # it may end while Yamux is agreed on
                    await handshake(stream, victim.addresses[0], key_pair)
                await ended(stream)
            assert victim.limits_report().connections == 0
            await friend.connect(victim.addresses[0])  # from the same address
            assert await answers(friend, victim.peer_id)
            # And we don't dial it either, with a word that says for how long.
            with pytest.raises(DialError, match="banned; try again in"):
                async with open_libp2p(
                    NodeKey(key_pair.private_key.to_bytes()[:32]), record_validator=PrefixValidator()
                ) as again:
                    await victim.connect(again.addresses[0])

    run(main)


def test_a_handler_that_finds_the_protocol_broken_holds_it_against_the_peer() -> None:
    async def find_fault(stream: Any) -> None:
        await stream.receive_some()
        raise RemoteProtocolError("a field that may not be there", code=WireCode.MALFORMED)

    async def fail(stream: Any) -> None:
        await stream.receive_some()
        raise RuntimeError("a fault of our own")

    async def main() -> None:
        async with a_node() as victim, a_node() as attacker:
            victim.handle("/strict/1", find_fault)
            victim.handle("/faulty/1", fail)
            await attacker.connect(victim.addresses[0])
            for protocol in ("/faulty/1", "/strict/1"):
                stream = await attacker.open_stream(victim.peer_id, protocol)
                await stream.send_all(b"nonsense")
                with pytest.raises(OverlayError):
                    await stream.receive_some()
                assert (score(victim, attacker.peer_id) > 1) is (protocol == "/strict/1")

    run(main)


def test_a_recorded_handshake_opens_nothing_when_it_is_played_again() -> None:
    async def main() -> None:
        async with a_node() as victim, a_node() as friend:
            said = bytearray()

            async def relay(source: trio.SocketStream, target: trio.SocketStream, kept: bytearray) -> None:
                try:
                    while data := await source.receive_some():
                        kept += data
                        await target.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass

            async def between(near: trio.SocketStream) -> None:
                async with near, await tcp(victim.addresses[0]) as far, trio.open_nursery() as both:
                    both.start_soon(relay, near, far, said)
                    await relay(far, near, bytearray())
                    both.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                nursery.start_soon(trio.serve_listeners, between, listeners)
                port = listeners[0].socket.getsockname()[1]
                await friend.connect(f"/ip4/127.0.0.1/tcp/{port}/p2p/{victim.peer_id}")
                assert await answers(friend, victim.peer_id)
                await friend.disconnect(victim.peer_id)
                nursery.cancel_scope.cancel()
            await wait_until(lambda: victim.limits_report().connections == 0)
            async with await tcp(victim.addresses[0]) as stream:
                await stream.send_all(bytes(said))
                await ended(stream)
            assert victim.limits_report().connections == 0
            assert not victim.peers()
            assert score(victim, friend.peer_id) == 0  # whoever plays it again is not who said it
            await friend.connect(victim.addresses[0])
            assert await answers(friend, victim.peer_id)

    run(main)


# Streams


def test_streams_that_are_opened_and_reset_without_end() -> None:
    """They cost the opener twelve bytes each, and us a task and a negotiation."""

    async def main() -> None:
        async with a_node() as victim, a_node() as friend:
            await friend.connect(victim.addresses[0])
            key_pair = create_new_key_pair()
            while peer_of(key_pair) not in banned(victim):
                async with await tcp(victim.addresses[0]) as stream:
                    try:
                        secure = await handshake(stream, victim.addresses[0], key_pair)
                        for start in range(0, 10_000, 500):
                            pairs = (
                                frame(WINDOW, SYN, 2 * number + 1, 0) + frame(WINDOW, RST, 2 * number + 1, 0)
                                for number in range(start, start + 500)
                            )
                            await secure.write(b"".join(pairs))
                    except Exception:  # noqa: BLE001 - cut off in the middle
                        pass
                    await ended(stream)
                assert await answers(friend, victim.peer_id)
            await wait_until(lambda: [use.peer_id for use in victim.limits_report().peers] == [friend.peer_id])

    run(main)


def test_pings_without_end() -> None:
    async def main() -> None:
        async with a_node() as victim, a_node() as friend:
            await friend.connect(victim.addresses[0])
            async with await tcp(victim.addresses[0]) as stream:
                secure = await handshake(stream, victim.addresses[0])
                try:
                    while True:
                        await secure.write(frame(PING, SYN, 0, 1) * 1000)
                except Exception:  # noqa: BLE001 - cut off in the middle
                    pass
                await ended(stream)
            assert await answers(friend, victim.peer_id)

    run(main)


@pytest.mark.usefixtures("few_are_a_flood")
def test_a_rate_of_streams_is_kept_and_who_ignores_it_is_banned() -> None:
    async def main() -> None:
        limits = replace(UNDEFENDED, stream_rate_per_peer=Rate(per_s=1e-9, burst=20))
        async with a_node(limits=limits) as victim, a_node() as friend, a_node() as flood:
            for node in (friend, flood):
                await node.connect(victim.addresses[0])
            served = 0
            while flood.peer_id not in banned(victim):
                try:
                    served += await answers(flood, victim.peer_id)
                except OverlayError:
                    continue
            assert 0 < served <= 20
            await wait_until(lambda: victim.peers() == {friend.peer_id})
            assert await answers(friend, victim.peer_id)

    run(main)


def test_silent_dht_streams_leave_the_dht_to_others() -> None:
    """libp2p's serves twelve streams at once, and waits for each for ever."""
    kad = "/ipfs/kad/1.0.0"

    async def main(limits: Limits, served: bool) -> None:
        async with a_node(limits=limits) as victim, a_node() as friend:
            if not served:
                victim._dht._inbound_limiter = trio.CapacityLimiter(12)
            async with await tcp(victim.addresses[0]) as stream:
                secure = await handshake(stream, victim.addresses[0])
                for number in range(12):
                    await secure.write(open_echo(2 * number + 1, kad))
                busy = 4 if served else 12
                await wait_until(lambda: victim._dht._inbound_limiter.borrowed_tokens == busy)
                await friend.connect(victim.addresses[0])
                await friend.dht_put(bytes(32), b"ok from a friend")
                assert (f"/p2pcompute/{bytes(32).hex()}".encode() in victim._dht.value_store.store) is served

    run(lambda: main(Limits(), True))
    run(lambda: main(UNDEFENDED, False))


def test_a_stream_on_which_nothing_moves_is_ended_and_one_that_is_used_is_not() -> None:
    async def main(idle_s: float, stays: bool) -> None:
        limits = replace(UNDEFENDED, protocols={HOLD: replace(OPEN, idle_s=idle_s), ECHO: replace(OPEN, idle_s=1e6)})
        async with a_node(limits=limits) as victim, a_node() as attacker:
            await attacker.connect(victim.addresses[0])
            used = await attacker.open_stream(victim.peer_id, ECHO)
            idle = await attacker.open_stream(victim.peer_id, HOLD)
            served = victim._defence._served_with
            await wait_until(lambda: (served[ECHO], served[HOLD]) == (1, 1))
            # The sweep of every few seconds, now: what it finds hangs on no clock of this machine.
            victim._defence.sweep(trio.current_time() + 1000)
            if stays:
                assert served[HOLD] == 1
            else:
                with pytest.raises(OverlayError):
                    await idle.receive_some()
                await wait_until(lambda: score(victim, attacker.peer_id) > 0)
            await used.send_all(b"still")
            assert await used.receive_some() == b"still"

    run(lambda: main(900, False))
    run(lambda: main(1e9, True))


# Memory


def test_streams_that_are_not_read_hold_what_their_peer_may_hold_and_no_more() -> None:
    """A window is 256 KiB at least, for each stream: 512 of them are 128 MiB on one connection."""
    size, streams = 256 * 1024, 24

    async def main(limits: Limits, most: int, least: int) -> None:
        async with a_node(limits=limits) as victim, a_node() as friend:
            await friend.connect(victim.addresses[0])
            key_pair = create_new_key_pair()
            async with await tcp(victim.addresses[0]) as stream, trio.open_nursery() as nursery:
                secure = await handshake(stream, victim.addresses[0], key_pair)

                async def read_nothing_of_it() -> None:
                    await ended(stream)

                nursery.start_soon(read_nothing_of_it)
                reached = 0
                for number in range(streams):
                    stream_id = 2 * number + 1
                    await secure.write(open_echo(stream_id, HOLD))
                    for _ in range(size // 32768 - 1):
                        await secure.write(frame(DATA, 0, stream_id, 32768, bytes(32768)))
                    reached = max(reached, victim.limits_report().memory_bytes)
                    assert reached <= most
                    assert await answers(friend, victim.peer_id)
                if least:
                    await wait_until(lambda: victim.limits_report().memory_bytes >= least)
                nursery.cancel_scope.cancel()
            await wait_until(lambda: victim.limits_report().memory_bytes == 0)

    megabyte = 1024 * 1024
    bounded = replace(UNDEFENDED, memory=3 * megabyte, memory_per_peer=megabyte, memory_kept_per_peer=size)
    run(lambda: main(bounded, megabyte + 64 * 1024, 0))
    run(
        lambda: main(
            replace(UNDEFENDED, memory=99 * megabyte, memory_per_peer=99 * megabyte), 99 * megabyte, 5 * megabyte
        )
    )


# Gossip


def forged(number: int) -> bytes:
    author = NodeKey.generate()
    message = rpc_pb2.Message(
        data=b"ok forged",
        topicIDs=["t"],
        from_id=ID.from_base58(author.peer_id).to_bytes(),
        seqno=number.to_bytes(8, "big"),
        signature=bytes(64),
    )
    return encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString())


def test_who_hands_on_forged_gossip_is_banned() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            victim, friend, attacker = [await stack.enter_async_context(a_node()) for _ in range(3)]
            async with victim.subscribe("t", lambda _source, _data: True) as subscription:
                for node in (friend, attacker):
                    await node.connect(victim.addresses[0])
                victim_id = ID.from_base58(victim.peer_id)
                stream = await attacker._host.new_stream(victim_id, ["/meshsub/1.1.0"])
                await stream.write(forged(1) + forged(2))
                await wait_until(lambda: banned(victim) == [attacker.peer_id])
                await wait_until(lambda: victim.peers() == {friend.peer_id})
                while True:
                    await friend.publish("t", b"still there")
                    with trio.move_on_after(1):
                        assert await subscription.__anext__() == (friend.peer_id, b"still there")
                        break

    run(main)


@pytest.mark.usefixtures("few_are_a_flood")
def test_a_flood_of_gossip_is_dropped_and_its_publisher_banned() -> None:
    async def main(limits: Limits, flooded: bool) -> None:
        async with AsyncExitStack() as stack:
            victim = await stack.enter_async_context(a_node(limits=limits))
            flood = await stack.enter_async_context(a_node())
            async with victim.subscribe("t", lambda _source, _data: True) as subscription:
                await flood.connect(victim.addresses[0])
                got = []

                async def count() -> None:
                    async for source, data in subscription:
                        got.append((source, data))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(count)
                    number = 0
                    while flood.peer_id not in banned(victim) and len(got) < 200:
                        number += 1
                        await flood.publish("t", b"%d" % number)
                    nursery.cancel_scope.cancel()
                assert (len(got) >= 200) is flooded

    run(lambda: main(replace(UNDEFENDED, gossip_rate_own=Rate(per_s=1e-9, burst=50)), False))
    run(lambda: main(UNDEFENDED, True))


def test_a_message_that_is_asked_for_again_and_again_is_sent_once() -> None:
    """libp2p's copies it into its answer as often as it is named: 20 bytes cost the size of the message."""

    async def main() -> None:
        async with a_node() as victim, a_node() as friend:
            router: Any = victim._router
            message = rpc_pb2.Message(data=bytes(1000), topicIDs=["t"], from_id=b"a", seqno=b"b")
            router.mcache.put(message)
            name = victim._pubsub.get_message_id(message)
            spellings = [name.hex().encode(), name.hex().upper().encode(), name.hex(" ").encode()]
            asked = rpc_pb2.RPC(
                control=rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=spellings * 250)])
            )
            sent: list[rpc_pb2.RPC] = []
            router.send_rpc = lambda _peer, rpc: sent.append(rpc)
            await router.handle_rpc(asked, ID.from_base58(friend.peer_id))
            assert sum(len(rpc.publish) for rpc in sent) == 1
            sent.clear()
            await GossipSub.handle_iwant(router, asked.control.iwant[0], ID.from_base58(friend.peer_id))
            assert sum(len(rpc.publish) for rpc in sent) == 750

    run(main)
