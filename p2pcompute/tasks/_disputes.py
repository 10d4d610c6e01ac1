"""Disputes over tasks in rounds: a provider shows what it is committed to, a challenger finds the first wrong round.

Whoever ran a task has the digests of all states from its receipts. This is for whoever has not: an arbiter, or a
requester that goes through the rounds again later and ends elsewhere.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._dialogue import SEND_TIMEOUT_S, Dialogue
from p2pcompute.checking import Challenger, Defender, Finding
from p2pcompute.errors import StreamError, TaskRefused
from p2pcompute_protocols import dispute
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.dispute import (
    Challenge,
    DisputeConnection,
    DisputeRefusal,
    RoundsPayload,
    rounds_tree,
    seal_rounds,
)
from p2pcompute_protocols.envelope import Signer
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId, TaskId
from p2pcompute_protocols.negotiation import Agreement

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay, OverlayStream

__all__ = ["DisputeService", "challenge"]

_log = logging.getLogger("p2pcompute.tasks")
_QUESTION_S: Final = 30.0
_TASKS: Final = 256
_BYTES: Final = 64 * 1024 * 1024  # of the digests of all tasks together


@dataclass(slots=True)
class _Kept:
    digests: Sequence[bytes]
    asked_by: frozenset[str]
    finished_ms: int
    commitment: bytes = b""


@dataclass(slots=True, kw_only=True)
class DisputeService:
    """The digests of the states of tasks that have ended here, and who asks for them. The oldest make room for others,
    and none outlive the process: evidence of what was paid is in receipts.

    A task's requester may challenge, and the arbiters that its agreement names.
    """

    overlay: Overlay
    network: str
    signer: Signer
    now_ms: Callable[[], int]
    _kept: OrderedDict[bytes, _Kept] = field(default_factory=OrderedDict)

    def register(self) -> None:
        """Serve dispute streams from now on."""
        self.overlay.handle(dispute.PROTOCOL_ID, self._serve)

    def keep(self, agreement: Agreement, digests: Sequence[bytes]) -> None:
        """A task has ended; `digests` are those of its states, the first one's first."""
        if len(digests) < 2 or 32 * len(digests) > _BYTES:
            return
        terms = agreement.terms
        self._kept[agreement.task_id] = _Kept(digests, frozenset({terms.requester, *terms.arbiters}), self.now_ms())
        while len(self._kept) > _TASKS or 32 * sum(len(kept.digests) for kept in self._kept.values()) > _BYTES:
            self._kept.popitem(last=False)

    async def _serve(self, stream: OverlayStream) -> None:
        connection = DisputeConnection(Role.PROVIDER)
        connection.network, connection.provider = self.network, self.signer.peer_id
        dialogue = Dialogue(connection, stream)
        try:
            event = await dialogue.expect(Challenge, stall_s=_QUESTION_S)
            kept = self._kept.get(event.task)
            if kept is None or stream.peer_id not in kept.asked_by:  # nobody learns which tasks there were
                refusal = DisputeRefusal(code=WireCode.UNSUPPORTED, detail="no rounds of this task are kept here")
                await dialogue.send(refusal)
                return
            defender = Defender(
                commitment=self._commitment(TaskId(event.task), kept),
                digests=kept.digests,
                network=self.network,
                provider=self.signer.peer_id,
                task=TaskId(event.task),
            )
            defender.connection = connection
            await _say(stream, defender.answer(event))
            while not connection.is_done:
                asked = await dialogue.receive(stall_s=_QUESTION_S)
                if isinstance(asked, StreamEnded):
                    return
                await _say(stream, defender.answer(asked))
        except RemoteProtocolError as exc:
            _log.warning("a dispute with %s ended: %s", stream.peer_id, exc)
            await stream.reset()
        except StreamError as exc:
            _log.info("a dispute with %s ended: %s", stream.peer_id, exc)

    def _commitment(self, task: TaskId, kept: _Kept) -> bytes:
        if not kept.commitment:  # signed once: two of one task may not differ
            payload = RoundsPayload(
                task=task,
                rounds=len(kept.digests) - 1,
                root=rounds_tree(kept.digests).root,
                finished_ms=kept.finished_ms,
            )
            kept.commitment = seal_rounds(payload, network=self.network, signer=self.signer)
        return kept.commitment


async def _say(stream: OverlayStream, data: bytes) -> None:
    if not data:
        return
    with trio.move_on_after(SEND_TIMEOUT_S) as scope:
        await stream.send_all(data)
    if scope.cancelled_caught:
        raise RemoteProtocolError("the peer did not take a message", code=WireCode.STALLED)


async def challenge(
    overlay: Overlay, provider: PeerId, task: TaskId, *, network: str, ours: Callable[[int], bytes], rounds: int
) -> Finding:
    """Ask a provider for what it is committed to, and find the first round whose result differs from ours.

    Args:
        overlay: a connection to the provider is open.
        provider, task: whose task.
        network: the network's ID.
        ours: gives our digest of the state after so many rounds, 0 for the first.
        rounds: how many there were.

    Raises:
        TaskRefused: it shows nothing; says why.
        RemoteProtocolError: it answers something else than what it is committed to, or stalls.
        LocalProtocolError: it has run another number of rounds. OverlayError: it is gone.
    """
    challenger = Challenger(network=network, provider=provider, task=task, ours=ours, rounds=rounds)
    stream = await overlay.open_stream(provider, dispute.PROTOCOL_ID)
    dialogue = Dialogue(challenger.connection, stream)
    try:
        await _say(stream, challenger.begin())
        while challenger.finding is None and challenger.refusal is None:
            event = await dialogue.receive(stall_s=_QUESTION_S)
            if isinstance(event, StreamEnded):
                raise StreamError("the provider closed the stream in the middle of a dispute")
            await _say(stream, challenger.answer(event))
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await stream.aclose()
    if challenger.finding is None:
        assert challenger.refusal is not None
        raise TaskRefused(f"{provider} shows no rounds of this task: {challenger.refusal.detail}")
    return challenger.finding
