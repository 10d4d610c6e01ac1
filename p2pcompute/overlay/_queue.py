"""The bounded queue behind a gossip subscription: it never blocks the network, it drops the oldest."""

from __future__ import annotations

from collections import deque

import trio

from p2pcompute_protocols.ids import PeerId

from ._api import SUBSCRIPTION_QUEUE

__all__ = ["SubscriptionQueue"]


class SubscriptionQueue:
    """Implements `Subscription`. Ads age fast, so of two that wait the newer is worth more."""

    def __init__(self, capacity: int = SUBSCRIPTION_QUEUE) -> None:
        self._items: deque[tuple[PeerId, bytes]] = deque()
        self._capacity = capacity
        self._arrived = trio.Event()
        self._closed = False
        self.dropped = 0

    def put(self, source: PeerId, data: bytes) -> None:
        """Add a message, pushing out the oldest one where the queue is full."""
        if self._closed:
            return
        if len(self._items) >= self._capacity:
            self._items.popleft()
            self.dropped += 1
        self._items.append((source, data))
        self._arrived.set()

    def close(self) -> None:
        """End the iteration once what waits has been read."""
        self._closed = True
        self._arrived.set()

    def __aiter__(self) -> SubscriptionQueue:
        return self

    async def __anext__(self) -> tuple[PeerId, bytes]:
        while not self._items:
            if self._closed:
                await trio.lowlevel.checkpoint()
                raise StopAsyncIteration
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        item = self._items.popleft()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return item
