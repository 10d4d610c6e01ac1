"""The requester's side: providers that have something at stake, and terms by which they can lose it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from p2pcompute._dialogue import STREAM_FAULTS, Dialogue
from p2pcompute._groups import single_error
from p2pcompute.chain import UNSTAKE_DELAY_S, terms_digest
from p2pcompute.errors import ConfigError, P2PComputeError, TaskRefused
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError, WireCode
from p2pcompute_protocols.ids import Address, PeerId
from p2pcompute_protocols.money import usd
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.stake import (
    PROTOCOL_ID,
    CardGiven,
    CardQuery,
    OpenCard,
    Pledge,
    Pledged,
    PledgedTerms,
    PledgeFile,
    SignedReceipt,
    StakeConnection,
    StakeRefusal,
    StrictGiven,
    StrictQuery,
    open_card,
)

from ._registry import Registry
from ._staking import KeySigner
from ._terms import signer_of, terms_of

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay

__all__ = ["PledgeRefused", "StakeDesk", "StakeTooLow", "StakeWish", "TaskStake", "refused_text"]

_ANSWER_S: Final = 30.0
_EARLIER_S: Final = 3_600  # than a stake could leave, so that there is time to have a verdict carried out
_FRESH_S: Final = 60.0  # for so long is what the chain said of a stake believed


class StakeTooLow(TaskRefused):
    """The provider has less at stake than this task asks for. It may stake more, and `min_stake` may ask for less."""

    code: ClassVar = WireCode.UNFUNDED


class PledgeRefused(TaskRefused):
    """The provider has named arbiters with us, and does not put its stake at risk for them."""

    code: ClassVar = WireCode.UNFUNDED


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeWish:
    """What a task asks of providers' stakes.

    Attributes:
        min_stake_uusd: what a provider has to have at stake, on its way out not counted.
        arbiters: multiaddrs with a peer, or peer IDs of peers that there is a connection to.
        threshold: how many of them have to agree.
        at_risk_uusd: what verdicts can take for one task; what the registry has for the least stake where None.
    """

    min_stake_uusd: int = 0
    arbiters: tuple[str, ...] = ()
    threshold: int = 1
    at_risk_uusd: int | None = None


def refused_text(refusal: StakeRefusal) -> str:
    """A refusal in words."""
    try:
        code = WireCode(refusal.code).name.lower()
    except ValueError:
        code = str(refusal.code)
    return f"{code}: {refusal.detail or 'no reason given'}"


@dataclass(slots=True, kw_only=True)
class StakeDesk:
    """What a node's tasks have in common: where the registry is, and what was read there.

    Attributes:
        overlay: the node's.
        network: the network's ID.
        registry: opens the stake registry; raises `ChainError`.
        account: this node's, which signs terms and gets its part of what is taken.
        now_ms: UNIX time in milliseconds.
    """

    overlay: Overlay
    network: str
    registry: Callable[[], Awaitable[Registry]]
    account: KeySigner
    now_ms: Callable[[], int]
    _stakes: dict[Address, tuple[float, int]] = field(default_factory=dict[Address, tuple[float, int]])

    async def staked_uusd(self, owner: Address) -> int:
        """What an account has at stake and can't take out within 14 days, as the chain says; 0 below the minimum.
        Raises `ChainError`."""
        now = trio.current_time()
        read_at, amount_uusd = self._stakes.get(owner, (-_FRESH_S, 0))
        if now - read_at < _FRESH_S:
            return amount_uusd
        registry = await self.registry()
        state = await registry.state(owner)
        amount_uusd = state.stake_uusd - state.leaving_uusd
        if amount_uusd < registry.place.min_stake_uusd:
            amount_uusd = 0
        self._stakes = {key: kept for key, kept in self._stakes.items() if now - kept[0] < _FRESH_S}
        self._stakes[owner] = (now, amount_uusd)
        return amount_uusd

    async def prepare(self, wish: StakeWish) -> TaskStake:
        """See that the arbiters are there, and what their accounts are.

        Raises:
            ConfigError: one of them is none, or not for our chain; nothing was sent to a provider.
            ChainError: the endpoint.
        """
        registry = await self.registry()
        cards: dict[str, OpenCard] = {}
        addresses: list[str] = []

        async def ask(name: str) -> None:
            cards[name] = await self._card(name, registry)

        with single_error(P2PComputeError):
            async with trio.open_nursery() as nursery:
                for name in wish.arbiters:
                    nursery.start_soon(ask, name)
                    if name.startswith("/"):
                        addresses.append(name)
        found = sorted(cards.values(), key=lambda card: card.account)
        if self.account.address in {card.account for card in found}:
            raise ConfigError("one of the arbiters has this node's own account; name somebody else")
        if len({card.account for card in found}) < len(wish.arbiters):
            raise ConfigError("two of the arbiters have one account, and would have one vote; name each once")
        at_risk_uusd = wish.at_risk_uusd or registry.place.min_stake_uusd
        return TaskStake(
            desk=self,
            cards=tuple(found),
            addresses=tuple(addresses),
            threshold=wish.threshold,
            at_risk_uusd=at_risk_uusd,
            least_uusd=max(wish.min_stake_uusd, at_risk_uusd if found else 0),
        )

    async def _card(self, name: str, registry: Registry) -> OpenCard:
        try:
            peer = await self.overlay.connect(name) if name.startswith("/") else PeerId(name)
            stream = await self.overlay.open_stream(peer, PROTOCOL_ID)
            try:
                dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
                await dialogue.send(CardQuery())
                answer = await dialogue.expect(CardGiven, StakeRefusal, stall_s=_ANSWER_S)
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await stream.aclose()
            if isinstance(answer, StakeRefusal):
                raise ConfigError(
                    f"{name} is no arbiter ({refused_text(answer)}); name one that `p2pcompute arbiter` runs"
                )
            card = open_card(answer.card, network=self.network, now_ms=self.now_ms())
        except (*STREAM_FAULTS, ProtocolError) as exc:
            raise ConfigError(
                f"the arbiter {name} can't be asked: {exc}; name one that is up, by its multiaddr"
            ) from exc
        if card.peer_id != peer:
            raise ConfigError(f"{name} shows the card of another peer; name another arbiter")
        if card.card.chain != registry.chain or card.card.registry != registry.address:
            raise ConfigError(f"the arbiter {name} judges for another chain or stake registry; name one of ours")
        if not await registry.is_active(card.account):
            raise ConfigError(
                f"the arbiter {name} has not the minimum at stake, so its verdicts don't count; it has to run "
                "`p2pcompute stake`"
            )
        return card


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStake:
    """What one task asks of its providers. See `StakeDesk.prepare`.

    Attributes:
        least_uusd: what a provider has to have at stake.
    """

    desk: StakeDesk
    cards: tuple[OpenCard, ...]
    addresses: tuple[str, ...]
    threshold: int
    at_risk_uusd: int
    least_uusd: int

    @property
    def arbiters(self) -> tuple[str, ...]:
        """The peers that orders name as arbiters."""
        return tuple(card.peer_id for card in self.cards)

    async def admit(self, provider: PeerId, payee: bytes) -> None:
        """Refuse a provider whose account has too little at stake.

        Raises:
            StakeTooLow: it has.
            ChainError: the endpoint.
        """
        if provider in self.arbiters:
            raise StakeTooLow("it is an arbiter of this task, and can't do its work as well")
        if self.least_uusd:
            staked_uusd = await self.desk.staked_uusd(Address(payee))
            if staked_uusd < self.least_uusd:
                raise StakeTooLow(
                    f"it has {usd(staked_uusd)} at stake, of {usd(self.least_uusd)}: ask for less with min_stake= and "
                    "at_risk=, or have it run `p2pcompute stake`"
                )

    async def pledge(self, agreement: Agreement) -> bytes:
        """Have the provider put its stake at risk for what was agreed; the file that its victim needs.

        Raises:
            PledgeRefused: it does not, or by a signature that is worth less.
            StreamError, RemoteProtocolError: it is gone, or broke the protocol. ChainError: the endpoint.
        """
        if not self.cards:
            return b""
        desk, agreed = self.desk, agreement.terms
        registry = await desk.registry()
        terms = PledgedTerms(
            chain=registry.chain,
            registry=registry.address,
            task=agreement.task_id,
            provider=agreed.payee,
            requester=desk.account.address,
            at_risk_uusd=self.at_risk_uusd,
            threshold=self.threshold,
            # What is asked for after now leaves after this, so a liar can't take its stake out before a verdict.
            expires_s=desk.now_ms() // 1000 + UNSTAKE_DELAY_S - _EARLIER_S,
            arbiters=tuple(card.account for card in self.cards),
        )
        ours = desk.account.sign_digest(terms_digest(registry.domain, terms_of(terms)))
        cards = tuple(card.raw for card in self.cards)
        provider = PeerId(agreed.provider)
        stream = await desk.overlay.open_stream(provider, PROTOCOL_ID)
        try:
            dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
            await dialogue.send(Pledge(terms=terms, signature=ours, cards=cards))
            answer = await dialogue.expect(Pledged, StakeRefusal, stall_s=_ANSWER_S)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.aclose()
        if isinstance(answer, StakeRefusal):
            raise PledgeRefused(f"it does not put {usd(self.at_risk_uusd)} at risk: {refused_text(answer)}")
        await self._check(registry, terms, answer.signature, provider)
        return PledgeFile(
            version=1,
            network=desk.network,
            terms=terms,
            provider_signature=answer.signature,
            requester_signature=ours,
            cards=cards,
            addresses=self.addresses,
        ).encode()

    async def _check(self, registry: Registry, terms: PledgedTerms, signature: bytes, provider: PeerId) -> None:
        owner = Address(terms.provider)
        try:
            signer = signer_of(terms, signature, registry)
        except LocalProtocolError as exc:
            raise PledgeRefused(f"{provider} has signed nothing: {exc}") from exc
        if not await registry.speaks_for(owner, signer):
            raise PledgeRefused(f"{provider} has signed with a key that does not speak for its stake")
        if signer != owner and await registry.allowance_uusd(signer) < terms.at_risk_uusd:
            raise PledgeRefused(f"{provider} has signed with a key that may put less at risk than that")
        # Read after it has signed: what is asked for from now on leaves after the terms.
        state = await registry.state(owner)
        if state.stake_uusd - state.leaving_uusd < terms.at_risk_uusd:
            raise PledgeRefused(f"{provider} has asked for its stake back")

    async def strict_receipt(self, agreement: Agreement, index: int) -> SignedReceipt:
        """What the provider signs for the registry of a chunk that it has receipted.

        Raises:
            PledgeRefused: it signs nothing, or not for the key that speaks for it.
            StreamError, RemoteProtocolError, ChainError: as `pledge`.
        """
        from p2pcompute.chain import StrictReceipt, strict_receipt_digest
        from p2pcompute_protocols._evm import recover_address

        desk, provider = self.desk, PeerId(agreement.terms.provider)
        registry = await desk.registry()
        stream = await desk.overlay.open_stream(provider, PROTOCOL_ID)
        try:
            dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
            await dialogue.send(StrictQuery(task=agreement.task_id, index=index))
            answer = await dialogue.expect(StrictGiven, StakeRefusal, stall_s=_ANSWER_S)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.aclose()
        if isinstance(answer, StakeRefusal):
            raise PledgeRefused(f"{provider} signs no receipt for the registry: {refused_text(answer)}")
        owner = Address(agreement.terms.payee)
        made = StrictReceipt(task=agreement.task_id, index=index, output=answer.output)
        try:
            signer = recover_address(strict_receipt_digest(registry.domain, made), answer.signature)
        except LocalProtocolError as exc:
            raise PledgeRefused(f"{provider} has signed nothing: {exc}") from exc
        if not await registry.speaks_for(owner, signer):
            raise PledgeRefused(f"{provider} has signed with a key that does not speak for its stake")
        return SignedReceipt(
            version=1,
            chain=registry.chain,
            registry=registry.address,
            owner=owner,
            task=agreement.task_id,
            index=index,
            output=answer.output,
            signature=answer.signature,
        )
