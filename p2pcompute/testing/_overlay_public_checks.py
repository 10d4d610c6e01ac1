"""What every implementation of `Overlay` must do with messages and records that all see; see `_overlay_checks`."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import trio

from p2pcompute.errors import OverlayError, RecordRefused
from p2pcompute.overlay import (
    MAX_GOSSIP_BYTES,
    MAX_RECORD_BYTES,
    GossipTooLarge,
    Overlay,
    Subscription,
)

from ._overlay_acts import ECHO, OpenNode, PrefixValidator, ask, echo

__all__ = ["PUBLIC_CHECKS"]


async def _publish_until(node: Overlay, topic: str, data: bytes, subscription: Subscription) -> bytes:
    """Publish until something arrives: how soon a new subscriber is reached is not promised."""
    while True:
        await node.publish(topic, data)
        with trio.move_on_after(1):
            source, received = await subscription.__anext__()
            assert source == node.peer_id
            return received


async def check_gossip(open_node: OpenNode) -> None:
    """What a validator refuses is neither delivered nor passed on; the rest crosses the network."""
    async with (
        open_node(PrefixValidator()) as a,
        open_node(PrefixValidator()) as b,
        open_node(PrefixValidator()) as c,
    ):
        asked: list[tuple[str, bytes]] = []

        def middle(source: str, data: bytes) -> bool:
            asked.append((source, data))
            if data == b"raise":
                raise RuntimeError("a fault in a validator")
            return data.startswith(b"good")

        await a.connect(b.addresses[0])
        await b.connect(c.addresses[0])
        async with b.subscribe("ads", middle) as at_b, c.subscribe("ads", lambda _s, _d: True) as at_c:
            assert await _publish_until(a, "ads", b"good 1", at_b) == b"good 1"
            assert await _publish_until(a, "ads", b"good 1", at_c) == b"good 1"
            for data in (b"bad", b"raise", b"good 2"):
                await a.publish("ads", data)
            for subscription in (at_b, at_c):
                while (received := await subscription.__anext__())[1] != b"good 2":
                    assert received == (a.peer_id, b"good 1")
                assert received == (a.peer_id, b"good 2")
                assert subscription.dropped == 0
        assert (a.peer_id, b"bad") in asked
        assert (a.peer_id, b"raise") in asked


async def check_gossip_bounds(open_node: OpenNode) -> None:
    """The largest message passes, one byte more is refused at its publisher; a node does not hear itself."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        await a.connect(b.addresses[0])
        async with a.subscribe("t", lambda _s, _d: True) as at_a, b.subscribe("t", lambda _s, _d: True) as at_b:
            try:
                await a.publish("t", bytes(MAX_GOSSIP_BYTES + 1))
            except GossipTooLarge:
                pass
            else:
                raise AssertionError("published a message that nobody would carry")
            try:
                async with a.subscribe("t", lambda _s, _d: True):
                    pass
            except OverlayError:
                pass
            else:
                raise AssertionError("subscribed twice")
            largest = bytes(MAX_GOSSIP_BYTES)
            assert await _publish_until(a, "t", largest, at_b) == largest
            assert await _publish_until(b, "t", b"back", at_a) == b"back"
        async with a.subscribe("t", lambda _s, _d: True):
            pass


async def check_providers(open_node: OpenNode) -> None:
    """A provider is found by others, under addresses that work; nobody is found for another key."""
    async with (
        open_node(PrefixValidator()) as a,
        open_node(PrefixValidator()) as b,
        open_node(PrefixValidator()) as c,
    ):
        a.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        await c.connect(b.addresses[0])
        key = hashlib.sha256(b"a bucket").digest()
        await a.dht_provide(key)
        while not (found := await c.dht_find_providers(key)):  # noqa: ASYNC110 - it is not acknowledged
            await trio.sleep(0.05)
        assert [(info.peer_id, info.addresses) for info in found] == [(a.peer_id, a.addresses)]
        assert await ask(c, a, b"found you") == b"found you"
        assert await c.dht_find_providers(hashlib.sha256(b"another").digest()) == []
        assert await a.dht_find_providers(key) == []


async def check_records(open_node: OpenNode) -> None:
    """Records are found, better ones replace worse ones, and bad ones are refused with a typed error."""
    async with (
        open_node(PrefixValidator()) as a,
        open_node(PrefixValidator()) as b,
        open_node(PrefixValidator()) as c,
    ):
        await a.connect(b.addresses[0])
        await c.connect(b.addresses[0])
        key = hashlib.sha256(b"a record").digest()
        assert await c.dht_get(key) is None
        await a.dht_put(key, b"ok 1")
        assert await c.dht_get(key) == b"ok 1"
        await a.dht_put(key, b"ok 2")
        await a.dht_put(key, b"ok 2")
        for bad in (b"forged", b"ok 1", b"ok" + bytes(MAX_RECORD_BYTES)):
            try:
                await a.dht_put(key, bad)
            except RecordRefused:
                continue
            raise AssertionError(f"stored {bad[:10]!r}")
        async with open_node(PrefixValidator()) as late:
            await late.connect(b.addresses[0])
            assert await late.dht_get(key) == b"ok 2"
        for short in (b"", bytes(31), bytes(33)):
            try:
                await a.dht_put(short, b"ok")
            except ValueError:
                continue
            raise AssertionError("stored under a key that is none")


async def check_forged_record(open_node: OpenNode) -> None:
    """What a node with another validator stores, no honest node believes or keeps."""
    async with (
        open_node(PrefixValidator(b"")) as rogue,
        open_node(PrefixValidator()) as honest,
        open_node(PrefixValidator(b"")) as gullible,
    ):
        await rogue.connect(honest.addresses[0])
        await gullible.connect(honest.addresses[0])
        await gullible.connect(rogue.addresses[0])
        key = hashlib.sha256(b"forged").digest()
        await rogue.dht_put(key, b"forged")
        assert await honest.dht_get(key) is None
        assert await gullible.dht_get(key) == b"forged", "the attack works where nobody checks"


PUBLIC_CHECKS: dict[str, Callable[[OpenNode], Awaitable[None]]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
