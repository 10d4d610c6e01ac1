"""The requester's side of a standing agreement: as for chunks, and before the first chunk of a call its inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute.errors import OverlayError
from p2pcompute_protocols import task
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import CallInputs
from p2pcompute_protocols.wire import Record

from ._api import RequesterAccount
from ._link import Link, ReceivedChunk
from ._link_hooks import LinkHooks
from ._standing import CallQueue, CallScheduler, PendingCall

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay

__all__ = ["StandingLink"]

_CANCEL_S: Final = 1.0  # to say that a call is not needed


class StandingLink(Link):
    """Works with one provider until no more calls come, the agreement's numbers are used up, or the provider fails.

    Attributes:
        calls: what the provider is given.
    """

    def __init__(
        self,
        overlay: Overlay,
        agreement: Agreement,
        account: RequesterAccount,
        queue: CallQueue,
        blobs: Mapping[bytes, bytes],
        hooks: LinkHooks,
        *,
        given_uusd: int,
    ) -> None:
        terms = agreement.terms
        inputs = CallInputs(terms.work)
        self.calls = CallScheduler(
            queue, inputs, price_pusd=terms.price_pusd, ceiling_uusd=terms.ceiling_uusd, given_uusd=given_uusd
        )
        super().__init__(overlay, agreement, account, self.calls, blobs, hooks)
        self._giving: Mapping[bytes, bytes] = {}  # the arrays of the call that is given out just now
        self.connection.calls = self.connection.tiles = inputs
        self.connection.call_chunks = inputs.work.chunks
        self.connection.chunks = inputs.most * inputs.work.chunks

    def nudge(self) -> None:
        """There is another call."""
        self._wake.set()

    def _take(self) -> list[int]:
        """Chunks of one call: what it is given goes before them."""
        room, taken = self._room(), list[int]()
        call: PendingCall | None = None
        while len(taken) < room and (call is None or self.calls.queue.first() is call):
            index = self.calls.take(self.provider, trio.current_time())
            if index is None:
                break
            taken.append(index)
            call, _ = self.calls.call_of(index)
        return taken

    def _next_call(self, index: int) -> task.Call | None:
        """The call that is to be made before a chunk is assigned; None where it was made."""
        inputs = self.calls.inputs
        number = index // inputs.work.chunks
        if number < inputs.made:
            return None
        call, _ = self.calls.call_of(index)
        return task.Call(call=number, args=call.args)

    def _fits(self, index: int) -> bool:
        call = self._next_call(index)
        return super()._fits(index) if call is None else self.calls.inputs.fits_call(call)

    def _before(self, index: int) -> tuple[Record, ...]:
        call = self._next_call(index)
        return () if call is None else (call,)

    def _call_of(self, index: int) -> bytes | None:
        return self.calls.inputs.of_chunk(index)[1]

    def _tile(self, digest: bytes) -> bytes:
        return self._giving[digest]

    def _pays_at_once(self) -> bool:
        """Calls come one after the other: a voucher for each would cost more than the call. Half a window is paid as
        always, and what is left when it has been quiet for a while."""
        return self.draining or self.unpaid >= max(self.window, 1)

    def _heard(self) -> None:
        """The next call says so itself. What waits here, or is to end, may go on."""
        calls = self.calls
        waits = calls.queue.first() is not None or bool(self._giving)
        ends = calls.queue.closed or calls.used_up or self.draining or self.unpaid >= max(self.window, 1)
        if waits or ends:
            self._wake.set()

    async def _pass_on(
        self, received: list[ReceivedChunk], results: trio.MemorySendChannel[list[ReceivedChunk]]
    ) -> None:
        """Where nobody looks at results, and nobody takes long over one, they are handed over as they come."""
        if self.hooks.check is None:
            await self._check_chunks(received)
        else:
            await super()._pass_on(received, results)

    async def _hand_out(self, chunks: range) -> None:
        """As of any chunks; and those of a call that was withdrawn while its Assign waited to be sent are cancelled."""
        call, _ = self.calls.call_of(chunks[0])
        self._giving = call.blobs  # kept here: a provider may answer before they have come
        await super()._hand_out(chunks)
        self._giving = {}
        if call.over.is_set():
            await self._cancel(call)

    async def withdraw(self, call: PendingCall) -> None:
        """Nobody waits for a call any more: say so to the provider. What it was not given yet it is not given."""
        self._wake.set()  # it may be about to be given out
        with trio.CancelScope(shield=True), trio.move_on_after(_CANCEL_S):
            await self._cancel(call)

    async def _cancel(self, call: PendingCall) -> None:
        for index in self.calls.withdrawn(call):
            if index not in self._cancelled:
                with contextlib.suppress(OverlayError, ProtocolError):
                    await self.cancel(index)
