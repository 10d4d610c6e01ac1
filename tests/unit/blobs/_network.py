"""Peers that hold and get blobs, on a network in memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from p2pcompute.blobs import BlobFetch, BlobName, BlobServer, Bytes, HeldBlob, Source
from p2pcompute.identity import NodeKey
from p2pcompute.market import AdRecordValidator
from p2pcompute.testing import MemoryNetwork, open_memory_overlay, virtual_clock_ms
from p2pcompute_protocols.blob import leaves_of, root_of

MIB = 1024 * 1024
TICKET = hashlib.sha256(b"a ticket").digest()


def some_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def name_of(data: bytes) -> BlobName:
    return BlobName(digest=hashlib.sha256(data).digest(), size=len(data), root=root_of(leaves_of(data)))


def whole(data: bytes, *, origin: bool = False) -> HeldBlob:
    return HeldBlob(name_of(data), Bytes(data), complete=True, origin=origin)


def empty(data: bytes) -> HeldBlob:
    """Nothing of it yet."""
    return HeldBlob(name_of(data), Bytes(len(data)))


def held_bytes(held: HeldBlob) -> bytes:
    return held.content.read(0, held.name.size)


class Peer:
    """An overlay with a server of blobs on it."""

    def __init__(self, overlay: Any) -> None:
        self.overlay = overlay
        self.server = BlobServer()
        self.server.register(overlay)

    @property
    def source(self) -> Source:
        return Source(peer=self.overlay.peer_id, addresses=self.overlay.addresses)

    @property
    def origin(self) -> Source:
        return Source(peer=self.overlay.peer_id, addresses=self.overlay.addresses, origin=True)


@asynccontextmanager
async def a_peer(network: MemoryNetwork) -> AsyncGenerator[Peer]:
    validator = AdRecordValidator(network="n", now_ms=virtual_clock_ms)
    async with open_memory_overlay(network, NodeKey.generate(), record_validator=validator) as overlay:
        yield Peer(overlay)


def a_fetch(peer: Peer, held: HeldBlob, *sources: Source, seed: int = 1, **more: Any) -> BlobFetch:
    fetch = BlobFetch(peer.overlay, held, TICKET, rng=random.Random(seed), **more)
    for source in sources:
        fetch.add(source)
    return fetch


def virtually(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
