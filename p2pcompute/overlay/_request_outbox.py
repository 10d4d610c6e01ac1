"""Frames of a request stream on their way out: many in one write, and at once where the stream takes them."""

from __future__ import annotations

from typing import Any

import trio

from ._api import OverlayStream
from ._request_api import OUTBOX_BYTES

__all__ = ["Outbox"]


class Outbox:
    """What is to be sent on one stream, in order.

    A message that is alone is handed to the stream in the caller's own step (`flush`). Where several tasks send, each
    only adds its bytes (`flush_soon`), and `run`, which the first of them wakes, sends what all of them have added by
    then in one write.

    Attributes:
        size: bytes that the stream has not taken.
        added: bytes that were ever added.
        handed: bytes of them that may have left; what was added behind them has certainly not.
    """

    def __init__(self, stream: OverlayStream) -> None:
        self._stream = stream
        self._parts: list[bytes] = []
        self._sending = False
        self._sleeper: trio.lowlevel.Task | None = None
        self._room = trio.lowlevel.ParkingLot()
        self.size = 0
        self.added = 0
        self.handed = 0

    def add(self, data: bytes) -> None:
        """Put `data` behind what waits; `flush` or `flush_soon` sends it."""
        self._parts.append(data)
        self.size += len(data)
        self.added += len(data)

    def flush(self) -> None:
        """Send without waiting what the stream takes; the rest goes with `run`. Raises `StreamError` where it broke."""
        if self._parts and not self._sending and not self._through():
            self._wake()

    def flush_soon(self) -> None:
        """Send with what others add in this step of the scheduler."""
        if self._parts and not self._sending:
            self._wake()

    def _through(self) -> bool:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if not self._stream.send_nowait(data):
            return False
        self.handed += len(data)
        self.size -= len(data)
        self._parts.clear()
        self._room.unpark_all()  # here, for whoever's call it was that sent: `run` may find nothing left to do
        return True

    def _wake(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            trio.lowlevel.reschedule(sleeper)

    async def room(self) -> None:
        """Wait until at most `OUTBOX_BYTES` are unsent. Cancellation: loses nothing."""
        while self.size > OUTBOX_BYTES:
            self.flush()
            if self.size > OUTBOX_BYTES:
                await self._room.park()

    async def sent(self) -> None:
        """Wait until everything was handed over. Cancellation: loses nothing."""
        while self.size:
            self.flush()
            if self.size:
                await self._room.park()

    async def run(self) -> None:
        """Send what `flush` could not; one task for the life of the stream. Raises `StreamError` where it broke."""
        while True:
            if not self._parts:
                self._sending = False
                await self._sleep()
                continue
            if self._through():
                continue
            self._sending = True
            data = b"".join(self._parts)
            self._parts.clear()
            self.handed += len(data)
            await self._stream.send_all(data)
            self.size -= len(data)
            self._room.unpark_all()

    async def _sleep(self) -> None:
        self._sleeper = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._sleeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
