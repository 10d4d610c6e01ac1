"""Each fault of py-libp2p that the overlay mends: the fault shown on a plain libp2p host, then ours without it."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.peer.peerstore import PeerStore
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux as TheirYamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from p2pcompute.errors import ConfigError, DialError, PortInUse
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Limits, open_libp2p
from p2pcompute.overlay._libp2p import Libp2pOverlay
from p2pcompute.overlay._mends import MendedPeerStore, MendedSwarm, SeenMessages
from p2pcompute.overlay._muxer import Yamux
from p2pcompute.testing._overlay_checks import PrefixValidator
from p2pcompute_protocols.ids import PeerId, peer_id_to_bytes

pytestmark = pytest.mark.net

LOOPBACK = Multiaddr("/ip4/127.0.0.1/tcp/0")
ECHO = "/echo/1"


@asynccontextmanager
async def plain_host(**options: Any) -> AsyncGenerator[Any, None]:
    """A libp2p host as its documentation makes one."""
    options.setdefault("key_pair", create_new_key_pair())
    host = new_host(listen_addrs=[LOOPBACK], **options)
    async with host.run([LOOPBACK]):
        try:
            yield host
        finally:
            with trio.move_on_after(5, shield=True):
                await host.close()


@asynccontextmanager
async def plain_pubsub(host: Any) -> AsyncGenerator[Pubsub, None]:
    """Gossipsub as libp2p has it by default, but for a heartbeat at all."""
    router = GossipSub([TProtocol("/meshsub/1.1.0")], 6, 4, 12, heartbeat_interval=1)
    pubsub = Pubsub(host, router)
    try:
        async with background_trio_service(router), background_trio_service(pubsub):
            await pubsub.wait_until_ready()
            yield pubsub
    finally:
        pubsub.seen_messages.stop()


def our_node(**options: Any):
    return open_libp2p(NodeKey.generate(), record_validator=PrefixValidator(), **options)


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def answers(client: Libp2pOverlay, peer: PeerId) -> bool:
    stream = await client.open_stream(peer, ECHO)
    await stream.send_all(b"x")
    answer = await stream.receive_some()
    await stream.aclose()
    return answer == b"x"


def run(main: Callable[[], Awaitable[None]], clock: Any = None) -> None:
    async def bounded() -> None:
        with trio.fail_after(300):
            await main()

    trio.run(bounded, clock=clock)


async def wait_until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """For what has no event: look every 20 ms; `run` bounds it."""
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        await trio.sleep(0.02)


def to_id(peer: PeerId) -> ID:
    return ID(peer_id_to_bytes(peer))


def test_plaintext_is_not_spoken() -> None:
    async def main() -> None:
        key_pair = create_new_key_pair()
        plaintext = {TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(key_pair)}
        async with (
            plain_host(key_pair=key_pair, sec_opt=plaintext) as attacker,
            plain_host() as careless,
            our_node() as ours,
        ):
            await attacker.connect(PeerInfo(careless.get_id(), careless.get_addrs()))
            assert careless.get_connected_peers() == [attacker.get_id()]
            with pytest.raises(SwarmException):
                await attacker.connect(info_from_p2p_addr(Multiaddr(ours.addresses[0])))
            assert not ours.peers()

    run(main)


# What a stranger, or a bug, does to stop a node. Each opens a stream to `victim` and misbehaves.


async def call_a_handler_that_raises(attacker: Libp2pOverlay, victim: ID) -> None:
    stream = await attacker._swarm.new_stream(victim)
    await stream.write(b"\x13/multistream/1.0.0\n\x05/bad\n")


async def name_a_protocol_that_is_not_utf8(attacker: Libp2pOverlay, victim: ID) -> None:
    stream = await attacker._swarm.new_stream(victim)
    await stream.write(b"\x13/multistream/1.0.0\n\x03\xff\xfe\n")


async def gossip_what_is_no_protobuf(attacker: Libp2pOverlay, victim: ID) -> None:
    stream = await attacker._host.new_stream(victim, [TProtocol("/meshsub/1.1.0")])
    await stream.write(b"\x04\xff\xff\xff\xff")


async def gossip_with_a_key_that_is_none(attacker: Libp2pOverlay, victim: ID) -> None:
    sender = b"\x12\x20" + bytes(32)  # an RSA peer's ID: it does not hold the key, so the key field is parsed
    message = rpc_pb2.Message(data=b"x", topicIDs=["t"], from_id=sender, seqno=bytes(8), key=b"garbage", signature=b"s")
    stream = await attacker._host.new_stream(victim, [TProtocol("/meshsub/1.1.0")])
    await stream.write(encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))


ATTACKS = [
    call_a_handler_that_raises,
    name_a_protocol_that_is_not_utf8,
    gossip_what_is_no_protobuf,
    gossip_with_a_key_that_is_none,
]


async def raise_an_error(_stream: Any) -> None:
    raise RuntimeError("a fault in a handler")


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_plain_host_is_stopped_by(attack: Callable[[Libp2pOverlay, ID], Awaitable[None]]) -> None:
    async def main() -> None:
        async with our_node() as attacker, plain_host() as victim, plain_pubsub(victim) as pubsub:
            victim.set_stream_handler(TProtocol("/bad"), raise_an_error)
            await pubsub.subscribe("t")
            await attacker.connect(str(victim.get_addrs()[0]))
            await attack(attacker, victim.get_id())
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        run(main)
    assert caught.value.subgroup(trio.TooSlowError) is None


@pytest.mark.parametrize("attack", ATTACKS)
def test_our_node_is_not_stopped_by(attack: Callable[[Libp2pOverlay, ID], Awaitable[None]]) -> None:
    async def main() -> None:
        async with our_node() as attacker, our_node() as victim:
            victim.handle("/bad", raise_an_error)
            victim.handle(ECHO, echo)
            async with victim.subscribe("t", lambda _s, _d: True) as subscription:
                await attacker.connect(victim.addresses[0])
                await attack(attacker, to_id(victim.peer_id))
                assert await answers(attacker, victim.peer_id)
                while True:
                    await attacker.publish("t", b"still there")
                    with trio.move_on_after(1):
                        assert await subscription.__anext__() == (attacker.peer_id, b"still there")
                        break

    run(main)


def test_a_plain_dial_waits_after_it_succeeded() -> None:
    async def main() -> None:
        async with plain_host() as a, plain_host() as b:
            start = trio.current_time()
            await a.connect(PeerInfo(b.get_id(), b.get_addrs()))
            assert trio.current_time() - start >= 0.25

    run(main, trio.testing.MockClock(autojump_threshold=0.05))


def test_our_dial_needs_no_time_to_pass() -> None:
    async def main() -> None:
        async with our_node() as a, our_node() as b:
            await a.connect(b.addresses[0])
            assert a.peers() == {b.peer_id}

    run(main, trio.testing.MockClock())  # stands still: whoever sleeps, sleeps for ever


def _refused_address() -> Multiaddr:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return Multiaddr(f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")


def test_a_dead_address_does_not_hide_a_live_one() -> None:
    async def main() -> None:
        dead = _refused_address()
        async with our_node() as target, plain_host() as plain, our_node() as ours:
            target.handle(ECHO, echo)
            peer = to_id(target.peer_id)
            live = Multiaddr(target.addresses[0].partition("/p2p/")[0])
            with pytest.raises(SwarmException):
                await plain.connect(PeerInfo(peer, [dead, live]))
            with pytest.raises(SwarmException, match="negative cache"):
                await plain.connect(PeerInfo(peer, [live]))
            ours._host.get_peerstore().add_addrs(peer, [dead, live])
            assert await answers(ours, target.peer_id)

    run(main)


def test_peers_that_come_and_go_use_up_nothing() -> None:
    """libp2p holds the slot of an inbound connection until the host ends: here after 3, by default after 250."""

    async def visit(server_address: str, times: int) -> int:
        served = 0
        for _ in range(times):
            async with our_node() as visitor:
                try:
                    await visitor.connect(server_address)
                except Exception:  # noqa: BLE001 - whichever way it is refused
                    break
                served += 1
        return served

    async def main() -> None:
        limits = ConnectionConfig(max_connections=3, high_watermark=3, low_watermark=0, min_connections=0)
        async with plain_host(connection_config=limits) as plain, our_node() as ours:
            ours._swarm._inbound_limiter.total_tokens = 3
            assert await visit(str(plain.get_addrs()[0]), 6) == 3
            assert await visit(ours.addresses[0], 6) == 6

    run(main)


def test_a_second_node_on_a_port_is_told() -> None:
    async def main() -> None:
        async with plain_host() as first:
            port = first.get_addrs()[0].value_for_protocol("tcp")
            taken = Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")
            second = new_host(key_pair=create_new_key_pair(), listen_addrs=[taken])
            async with second.run([taken]):
                assert second.get_transport_addrs() == first.get_transport_addrs()
                await second.close()
        async with our_node() as ours:
            bare = ours.addresses[0].partition("/p2p/")[0]
            with pytest.raises(PortInUse, match="listen on another port"):
                async with our_node(listen=[bare]):
                    pass
            with pytest.raises(ConfigError):
                async with our_node(listen=["/ip4/192.0.2.1/tcp/0"]):
                    pass
        async with our_node(listen=[bare]):
            pass  # a restart finds its port free again

    run(main)


def test_the_muxer_is_ours() -> None:
    async def main() -> None:
        async with plain_host(muxer_opt={TProtocol(YAMUX_ID): Yamux}) as plain, our_node() as a, our_node() as b:
            await a.connect(str(plain.get_addrs()[0]))
            await a.connect(b.addresses[0])
            assert type(plain.get_network().get_connections(to_id(a.peer_id))[0].muxed_conn) is TheirYamux
            for conn in (*a._swarm.get_connections(), *b._swarm.get_connections()):
                assert type(conn.muxed_conn) is Yamux

    run(main)


def test_gossip_is_not_dropped_at_its_publisher() -> None:
    """By default the eleventh message of a second vanishes without an error."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            plain = await stack.enter_async_context(plain_host())
            pubsub = await stack.enter_async_context(plain_pubsub(plain))
            a = await stack.enter_async_context(our_node())
            b = await stack.enter_async_context(our_node())
            for number in range(30):
                await pubsub.publish("t", b"%d" % number)
            assert len(pubsub.router.mcache.msgs) < 30  # type: ignore[attr-defined]
            await a.connect(b.addresses[0])
            subscription = await stack.enter_async_context(b.subscribe("t", lambda _s, _d: True))
            first = b""
            while not first:
                await a.publish("t", b"begin")
                with trio.move_on_after(1):
                    first = (await subscription.__anext__())[1]
            received: set[bytes] = set()

            async def receive() -> None:
                while len(received) < 200:
                    received.update({(await subscription.__anext__())[1]} - {b"begin"})

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                for number in range(200):
                    await a.publish("t", b"%d" % number)
            assert subscription.dropped == 0

    run(main)


def test_a_restarted_publisher_is_heard() -> None:
    """Sequence numbers that start at the time in seconds repeat after a burst, and repeats are dropped."""

    async def main() -> None:
        async with plain_host() as host, plain_pubsub(host) as pubsub, our_node() as ours:
            before_burst = pubsub.counter
            again = Pubsub(host, GossipSub([TProtocol("/meshsub/1.1.0")], 6, 4, 12))
            again.seen_messages.stop()
            assert again.counter - before_burst <= 2  # so a burst of 3 is enough
            async with our_node() as later:
                assert later._pubsub.counter - ours._pubsub.counter > 10_000

    run(main)


def test_dht_keys_that_nobody_validates_are_not_stored() -> None:
    async def main() -> None:
        async with plain_host() as attacker, plain_host() as careless, our_node() as ours:
            careless_dht = KadDHT(careless, DHTMode.SERVER)
            attacking = KadDHT(attacker, DHTMode.SERVER)
            async with background_trio_service(careless_dht), background_trio_service(attacking):
                await attacker.connect(PeerInfo(careless.get_id(), careless.get_addrs()))
                await attacker.connect(info_from_p2p_addr(Multiaddr(ours.addresses[0])))
                for key in ("anything", "/other/key", f"/p2pcompute/{bytes(32).hex()}"):
                    signed = key.encode()
                    for peer in (careless.get_id(), to_id(ours.peer_id)):
                        attacking.value_store.put(signed, b"bytes")
                        await attacking.value_store._store_at_peer(peer, signed, b"bytes")
                assert b"anything" in careless_dht.value_store.store
                assert not ours._dht.value_store.store
                good = f"/p2pcompute/{bytes(32).hex()}".encode()
                attacking.value_store.put(good, b"ok then")
                assert await attacking.value_store._store_at_peer(to_id(ours.peer_id), good, b"ok then")
                assert await ours.dht_get(bytes(32)) == b"ok then"

    run(main)


def test_a_look_up_asks_the_network_though_it_holds_something() -> None:
    """libp2p's own answers with what it read once, for a day or two."""

    async def main() -> None:
        key = bytes(32)
        name = f"/p2pcompute/{key.hex()}"
        async with our_node() as provider, our_node() as holder, our_node() as ours, plain_host() as plain:
            plain_dht = KadDHT(plain, DHTMode.SERVER)
            async with background_trio_service(plain_dht):
                for node in (provider, ours):
                    await node.connect(holder.addresses[0])
                await plain.connect(info_from_p2p_addr(Multiaddr(holder.addresses[0])))
                for stale in (plain_dht, ours._dht):
                    stale.value_store.put(name.encode(), b"ok 1")
                    stale.provider_store.add_provider(key, PeerInfo(to_id(holder.peer_id), [LOOPBACK]))
                holder._dht.value_store.put(name.encode(), b"ok 2")
                await provider.dht_provide(key)
                assert await plain_dht.get_value(name) == b"ok 1"
                assert len(await plain_dht.provider_store.find_providers(key)) == 1
                assert await ours.dht_get(key) == b"ok 2"
                both = {holder.peer_id, provider.peer_id}

                async def finds_both() -> bool:
                    return {info.peer_id for info in await ours.dht_find_providers(key)} == both

                await wait_until(finds_both)

    run(main)


def test_strangers_fill_the_dht_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.overlay._dht.MAX_RECORDS", 10)
    monkeypatch.setattr("p2pcompute.overlay._dht.MAX_PROVIDED_KEYS", 10)

    async def main() -> None:
        async with our_node() as ours:
            await ours.dht_put(bytes(32), b"ok ours")
            await ours.dht_provide(bytes(32))
            someone = PeerInfo(ID.from_pubkey(create_new_key_pair().public_key), [LOOPBACK])
            for number in range(50):
                name = f"/p2pcompute/{number + 1:064x}".encode()
                ours._dht.value_store.put_record(name, Record(key=name, value=b"ok"))
                ours._dht.provider_store.add_provider(b"%032d" % number, someone)
            assert len(ours._dht.value_store.store) == 10
            assert len(ours._dht.provider_store.providers) == 10
            assert await ours.dht_get(bytes(32)) == b"ok ours"
            assert bytes(32) in ours._dht.provider_store.providers

    run(main)


def test_one_address_cannot_take_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with our_node(limits=Limits(connections_per_host=3)) as ours, AsyncExitStack() as stack:
            for _ in range(5):  # loopback has no bound: many nodes share it in a testnet
                assert (await knock(ours, stack))[1]
            monkeypatch.setattr("p2pcompute.overlay._listener.located", lambda _address: ("192.0.2.7", 1))
            knocks = [await knock(ours, stack) for _ in range(5)]
            assert [greeted for _, greeted in knocks] == [True, True, True, False, False]
            await knocks[0][0].aclose()
            await wait_until(lambda: ours._swarm._from_host["192.0.2.7"] == 2)
            assert (await knock(ours, stack))[1]

    run(main)


def test_the_addresses_of_one_ipv6_customer_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has one IPv6 address has 2**64 of them."""
    hosts = iter([f"2001:db8:0:1::{number:x}" for number in range(1, 6)] + ["2001:db8:0:2::1", "192.0.2.7"])
    monkeypatch.setattr("p2pcompute.overlay._listener.located", lambda _address: (next(hosts), 1))

    async def main() -> None:
        async with our_node(limits=Limits(connections_per_host=3)) as ours, AsyncExitStack() as stack:
            greeted = [(await knock(ours, stack))[1] for _ in range(7)]
            assert greeted == [True, True, True, False, False, True, True]

    run(main)


def test_a_peer_is_where_its_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where it says; and libp2p does not know where an IPv6 peer is at all."""

    async def main() -> None:
        for loopback in ("127.0.0.1", "::1"):
            listen = [f"/ip{6 if ':' in loopback else 4}/{loopback}/tcp/0"]
            async with (
                our_node(listen=listen) as ours,
                our_node(listen=listen, announce=["/ip4/203.0.113.7/tcp/4001"]) as liar,
            ):
                await liar.connect(ours.addresses[0])
                await wait_until(lambda: ours.addresses_of(liar.peer_id) != ())
                assert ours.addresses_of(liar.peer_id)[0].startswith("/ip4/203.0.113.7/")
                assert ours.remote_address(liar.peer_id) == loopback
                conn = ours._swarm.get_connections(to_id(liar.peer_id))[0]
                theirs = TrioTCPStream(conn.muxed_conn.secured_conn.stream).get_remote_address()
                assert (theirs is None) == (loopback == "::1")

    run(main)


async def knock(node: Libp2pOverlay, stack: AsyncExitStack) -> tuple[Any, bool]:
    """Connect, say nothing, and tell whether the node begins to negotiate."""
    port = int(node.addresses[0].split("/")[4])
    try:
        stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
    except OSError:  # sent away before this side knew that it was there
        return None, False
    try:
        return stream, bool(await stream.receive_some())
    except trio.BrokenResourceError:  # sent away with a reset
        return stream, False


def test_handshakes_that_nobody_finishes_hold_no_place() -> None:
    async def main() -> None:
        async with our_node(limits=Limits(handshakes=4)) as ours, our_node() as friend, AsyncExitStack() as stack:
            silent = [(await knock(ours, stack))[0] for _ in range(4)]
            await friend.connect(ours.addresses[0])  # instead of the oldest
            assert await silent[0].receive_some() == b""
            # What is authenticated keeps its place, however many knock.
            for _ in range(12):
                assert (await knock(ours, stack))[1]
            assert ours.peers() == {friend.peer_id}
            ours.handle(ECHO, echo)
            assert await answers(friend, ours.peer_id)
            assert len(ours._swarm._handshakes) == 4
            assert ours._swarm._inbound_limiter.borrowed_tokens == 5

    run(main)


def test_without_making_room_unfinished_handshakes_keep_everybody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libp2p has it, for as long as a handshake may take."""

    def all_or_nothing(swarm: Any, visit: Any) -> bool:
        try:
            swarm._inbound_limiter.acquire_on_behalf_of_nowait(visit)
        except trio.WouldBlock:
            return False
        return True

    async def main(refused: bool) -> None:
        async with our_node(limits=Limits(connections=4)) as ours, our_node() as friend, AsyncExitStack() as stack:
            for _ in range(4):
                await knock(ours, stack)
            if refused:
                with pytest.raises(DialError):
                    await friend.connect(ours.addresses[0])
            else:
                await friend.connect(ours.addresses[0])

    run(lambda: main(False))
    monkeypatch.setattr(MendedSwarm, "_admit", all_or_nothing)
    run(lambda: main(True))


def test_one_host_has_its_share_of_unfinished_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.overlay._listener.located", lambda _address: ("192.0.2.7", 1))

    async def main() -> None:
        async with our_node(limits=Limits(handshakes_per_host=2)) as ours, AsyncExitStack() as stack:
            assert [(await knock(ours, stack))[1] for _ in range(3)] == [True, True, False]

    run(main)


def test_nodes_that_share_a_bootstrap_peer_find_each_other() -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(our_node())
            nodes = [await stack.enter_async_context(our_node(bootstrap=first.addresses)) for _ in range(4)]
            everyone = {first.peer_id, *(node.peer_id for node in nodes)}
            # The last to come looks around at once and finds all who were there.
            await wait_until(lambda: nodes[-1].peers() == everyone - {nodes[-1].peer_id})

    run(main)


def test_a_bootstrap_peer_that_is_down_keeps_nobody_from_starting() -> None:
    async def main() -> None:
        dead = f"{_refused_address()}/p2p/{NodeKey.generate().peer_id}"
        async with our_node() as alive, our_node(bootstrap=[dead, alive.addresses[0]]) as ours:
            assert ours.peers() == {alive.peer_id}

    run(main)


def test_strangers_do_not_push_our_key_out_of_the_peer_store() -> None:
    ours, key_pair = ID.from_pubkey(create_new_key_pair().public_key), create_new_key_pair()
    for store_class, kept in ((PeerStore, False), (MendedPeerStore, True)):
        store = store_class(max_peers=10)
        store.add_key_pair(ID.from_pubkey(key_pair.public_key), key_pair)
        for _ in range(30):
            store.add_addrs(ID.from_pubkey(create_new_key_pair().public_key), [LOOPBACK], 60)
        assert (ID.from_pubkey(key_pair.public_key) in store.peer_data_map) is kept
        assert len(store.peer_data_map) <= 11
        for port in range(1, 100):
            store.add_addrs(ours, [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")], 60)
        addresses = store.addrs(ours)
        assert (len(addresses) <= 8) is kept
        assert Multiaddr("/ip4/127.0.0.1/tcp/99") in addresses


def test_seen_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.overlay._mends.MAX_SEEN", 100)
    seen = SeenMessages()
    for number in range(1000):
        assert seen.add(b"%d" % number)
    assert seen.length() == 100
    assert seen.has(b"999")
    assert not seen.add(b"999")
    assert not seen.has(b"0")


def test_libp2ps_log_stays_off_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("libp2p")

    async def main() -> None:
        async with our_node():
            logging.getLogger("libp2p.network").warning("noise")

    handlers, logger.handlers = logger.handlers, []
    try:
        logging.getLogger("libp2p.network").warning("noise")
        assert "noise" in capfd.readouterr().err
        run(main)
        assert capfd.readouterr().err == ""
    finally:
        logger.handlers = handlers


_COUNT_HANDLERS = """
import logging, sys, trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Limits, open_libp2p
from p2pcompute.testing._overlay_checks import PrefixValidator

async def ours():
    async with (
        open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as a,
        open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as b,
    ):
        await a.connect(b.addresses[0])

async def plain():
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    a, b = (new_host(key_pair=create_new_key_pair(), listen_addrs=listen) for _ in range(2))
    async with a.run(listen), b.run(listen):
        await a.connect(PeerInfo(b.get_id(), b.get_addrs()))
        await a.close()
        await b.close()

trio.run(globals()[sys.argv[1]])
sys.exit(len(logging.getLogger().handlers))
"""


def test_the_root_logger_is_left_alone() -> None:
    for which, handlers in (("plain", 1), ("ours", 0)):
        result = subprocess.run([sys.executable, "-c", _COUNT_HANDLERS, which], capture_output=True, check=False)
        assert (result.returncode, result.stderr) == (handlers, b"")


def test_two_nodes_that_dial_each_other_at_once_stay_connected() -> None:
    async def main() -> None:
        async with our_node() as a, our_node() as b:
            for node in (a, b):
                node.handle(ECHO, echo)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.connect, b.addresses[0])
                nursery.start_soon(b.connect, a.addresses[0])
            assert await answers(a, b.peer_id)
            assert await answers(b, a.peer_id)

    run(main)
