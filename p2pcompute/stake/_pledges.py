"""The provider's side: signs terms with requesters whose arbiters it accepts, and what it has receipted.

What it signs can cost it its stake, so it signs only for a task that it has agreed on, with the arbiters that stand in
the agreement, once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from p2pcompute.chain import (
    UNSTAKE_DELAY_S,
    StakeTerms,
    StrictReceipt,
    strict_receipt_digest,
    terms_digest,
)
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import Address, PeerId, TaskId
from p2pcompute_protocols.money import usd
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.stake import Pledge, StrictQuery, open_card
from p2pcompute_protocols.task import open_receipt

from ._registry import Registry
from ._staking import KeySigner
from ._terms import check_place, signer_of, terms_of

__all__ = ["Pledges"]

_MOST_TASKS: Final = 512
_MOST_TRIES: Final = 8  # to have one task pledged; each has the chain asked


@dataclass(slots=True)
class _Task:
    agreement: Agreement
    terms: StakeTerms | None = None
    signature: bytes = b""
    tries: int = 0


@dataclass(slots=True, kw_only=True)
class Pledges:
    """Tasks whose agreements name arbiters, and what was signed for them. The oldest make room for others, and none
    outlive the process: who wants a pledge asks for it before the work begins.

    Attributes:
        registry: opens the stake registry; raises `ChainError`.
        owner: the account whose stake it is.
        key: signs for it. The registry has to know it.
        network: the network's ID.
        arbiters: the peers that this provider accepts as arbiters.
        most_uusd: the most that it puts at risk in one task.
        now_ms: UNIX time in milliseconds.
        receipt: the receipt of a task's chunk as it lies on disk; None where there is none.
    """

    registry: Callable[[], Awaitable[Registry]]
    owner: Address
    key: KeySigner
    network: str
    arbiters: Collection[str]
    most_uusd: int | None
    now_ms: Callable[[], int]
    receipt: Callable[[TaskId, int], Awaitable[bytes | None]]
    _tasks: OrderedDict[TaskId, _Task] = field(default_factory=OrderedDict[TaskId, _Task])

    def note(self, agreement: Agreement) -> None:
        """There is an agreement: whoever it is with may ask for a pledge where it names arbiters."""
        if agreement.terms.arbiters:
            # Once: whoever brings about the same agreement a second time gets no second pledge for it.
            self._tasks.setdefault(agreement.task_id, _Task(agreement))
            while len(self._tasks) > _MOST_TASKS:
                self._tasks.popitem(last=False)

    def is_agreed(self, peer: str) -> bool:
        """Whether there is an agreement with a peer that names arbiters."""
        return any(task.agreement.terms.requester == peer for task in self._tasks.values())

    def _find(self, task: bytes, requester: PeerId) -> _Task:
        found = self._tasks.get(TaskId(task))
        if found is None or found.agreement.terms.requester != requester:  # nobody learns which tasks there are
            raise LocalProtocolError("there is no agreement of yours with arbiters here", code=WireCode.UNSUPPORTED)
        return found

    async def pledge(self, requester: PeerId, asked: Pledge) -> bytes:
        """Our signature over terms that the requester has signed.

        Raises:
            LocalProtocolError: the typed refusal.
            ChainError: the endpoint.
        """
        found, terms = self._find(asked.terms.task, requester), asked.terms
        registry, made = await self.registry(), terms_of(terms)
        check_place(terms, registry)
        if found.terms == made:
            return found.signature
        if found.tries >= _MOST_TRIES:
            raise LocalProtocolError(
                "a pledge for this task was asked for too often; agree on another one", code=WireCode.NO_CAPACITY
            )
        found.tries += 1
        agreed = found.agreement.terms
        if terms.provider != self.owner or agreed.payee != self.owner:
            raise LocalProtocolError("these terms are of another account's stake", code=WireCode.WRONG_PEER)
        if terms.requester != agreed.payer.owner or signer_of(terms, asked.signature, registry) != terms.requester:
            raise LocalProtocolError("the terms are not signed by whoever pays", code=WireCode.BAD_SIGNATURE)
        self._check_arbiters(asked, agreed.arbiters)
        if terms.expires_s > self.now_ms() // 1000 + UNSTAKE_DELAY_S:
            raise LocalProtocolError("terms last 14 days at most", code=WireCode.EXPIRED)
        most = registry.place.min_stake_uusd if self.most_uusd is None else self.most_uusd
        if terms.at_risk_uusd > most:
            raise LocalProtocolError(
                f"{usd(most)} are put at risk for one task at most; at_risk= asks for less", code=WireCode.OVERSIZED
            )
        if found.terms is not None:
            raise LocalProtocolError("other terms are signed for this task", code=WireCode.REPLAYED)
        if not await registry.is_active(self.owner):
            raise LocalProtocolError("we have nothing at stake", code=WireCode.UNFUNDED)
        if not await registry.speaks_for(self.owner, self.key.address):
            raise LocalProtocolError("the registry does not know our receipt key", code=WireCode.UNFUNDED)
        if await registry.allowance_uusd(self.key.address) < terms.at_risk_uusd:
            raise LocalProtocolError("less is allowed to be at risk than that", code=WireCode.UNFUNDED)
        if found.terms is not None and found.terms != made:  # while we looked at the chain
            raise LocalProtocolError("other terms are signed for this task", code=WireCode.REPLAYED)
        found.terms = made
        found.signature = found.signature or self.key.sign_digest(terms_digest(registry.domain, made))
        return found.signature

    def _check_arbiters(self, asked: Pledge, agreed: Collection[str]) -> None:
        """The accounts are those of the agreed peers, as the peers themselves say; a requester can't put others there.

        Raises:
            LocalProtocolError: they are not.
        """
        peers: list[str] = []
        for raw, account in zip(asked.cards, asked.terms.arbiters, strict=True):
            card = open_card(raw, network=self.network, now_ms=self.now_ms())
            if card.account != account or (card.card.chain, card.card.registry) != (
                asked.terms.chain,
                asked.terms.registry,
            ):
                raise LocalProtocolError("a card is of another account or registry", code=WireCode.WRONG_PEER)
            peers.append(card.peer_id)
        if sorted(peers) != sorted(agreed):
            raise LocalProtocolError("the arbiters are not those of the agreement", code=WireCode.WRONG_PEER)
        if not set(peers) <= set(self.arbiters):
            raise LocalProtocolError("we do not accept these arbiters", code=WireCode.WRONG_PEER)

    async def strict_receipt(self, requester: PeerId, asked: StrictQuery) -> tuple[bytes, bytes]:
        """The output of a chunk that is receipted, and our signature over it for the registry.

        What is signed lies on disk as a receipt, one for each chunk, so the same is signed whenever it is asked for.

        Raises:
            LocalProtocolError: there is no pledge of this task, or no result of this chunk.
            ChainError: the endpoint.
        """
        found = self._find(asked.task, requester)
        if found.terms is None:
            raise LocalProtocolError("nothing is pledged for this task", code=WireCode.UNSUPPORTED)
        task = found.agreement.task_id
        raw = await self.receipt(task, asked.index)
        if raw is None:
            raise LocalProtocolError("this chunk is not receipted here", code=WireCode.UNKNOWN_CHUNK)
        _, payload = open_receipt(
            raw,
            network=self.network,
            provider=PeerId(found.agreement.terms.provider),
            task=task,
            index=asked.index,
        )
        if payload.code or payload.fp != "strict":
            raise LocalProtocolError("only results in strict mode are signed so", code=WireCode.UNSUPPORTED)
        receipt = StrictReceipt(task=task, index=asked.index, output=payload.output)
        registry = await self.registry()
        return payload.output, self.key.sign_digest(strict_receipt_digest(registry.domain, receipt))
