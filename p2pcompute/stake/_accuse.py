"""Accusing a provider: verdicts are collected from the arbiters of its pledge, and carried out on chain.

Whoever holds the evidence and the pledge can do so, not only the requester; its part of what is taken goes to the
requester in any case.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._dialogue import STREAM_FAULTS, Dialogue
from p2pcompute.chain import StrictReceipt, encode_slash_by_verdict, encode_slash_equivocation, verdict_digest
from p2pcompute.chain import Verdict as ChainVerdict
from p2pcompute.errors import ChainError, EvidenceError, StakeError
from p2pcompute_protocols._evm import recover_address
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError
from p2pcompute_protocols.evidence import open_evidence
from p2pcompute_protocols.ids import Address, PeerId, TaskId
from p2pcompute_protocols.limits import MAX_EVIDENCE_BYTES
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.stake import (
    PIECE_BYTES,
    PROTOCOL_ID,
    Accuse,
    EvidenceEnd,
    EvidencePiece,
    PledgeFile,
    Proceed,
    SignedReceipt,
    StakeConnection,
    StakeRefusal,
    VerdictGiven,
    open_card,
)

from ._arbiter import JUDGING_S
from ._registry import Registry
from ._requester import refused_text
from ._staking import AccountCalls
from ._terms import terms_of

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay

__all__ = ["Accuser", "NoVerdict", "Slashed", "open_pledge", "open_strict_receipt"]

_ANSWER_S: Final = 30.0
_VERDICT_S: Final = 5 * JUDGING_S  # others may be judged first


class NoVerdict(StakeError):
    """Fewer arbiters than have to agree have found the provider wrong; says what each of them said. Nothing was sent
    to the chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slashed:
    """What a proof took.

    Attributes:
        provider: whose stake it was.
        stake_uusd: what it has left at stake.
        taken_uusd: what it lost.
        paid_uusd: what of that `beneficiary` was credited, who can withdraw it; the rest is burned.
        arbiters: the peers whose verdicts counted; none for two receipts of one chunk.
        declined: what those said who gave none, by peer.
    """

    provider: Address
    beneficiary: Address
    stake_uusd: int
    taken_uusd: int
    paid_uusd: int
    arbiters: tuple[PeerId, ...] = ()
    declined: Mapping[PeerId, str]


def open_pledge(data: bytes, *, name: str = "this") -> PledgeFile:
    """A pledge's file.

    Raises:
        EvidenceError: it is none.
    """
    try:
        return PledgeFile.decode(data, max_bytes=MAX_EVIDENCE_BYTES)
    except LocalProtocolError as exc:
        raise EvidenceError(f"{name} is no pledge ({exc.code.name.lower()}): {exc}") from exc


def open_strict_receipt(data: bytes, *, name: str = "this") -> SignedReceipt:
    """A receipt for the registry, from its file.

    Raises:
        EvidenceError: it is none.
    """
    try:
        return SignedReceipt.decode(data, max_bytes=MAX_EVIDENCE_BYTES)
    except LocalProtocolError as exc:
        raise EvidenceError(f"{name} is no receipt for a stake registry ({exc.code.name.lower()}): {exc}") from exc


@dataclass(slots=True, kw_only=True)
class Accuser:
    """Has proofs carried out.

    Attributes:
        overlay: reaches the arbiters.
        network: the network's ID.
        registry: opens the stake registry; raises `ChainError`.
        account: pays the gas.
        convict: lowers our standing of a peer that a proof has found wrong; gets why.
        provider: the peer with which we have agreed on a task, where that is to be paid to the account; None where we
            have not.
    """

    overlay: Overlay
    network: str
    registry: Callable[[], Awaitable[Registry]]
    account: AccountCalls
    convict: Callable[[PeerId, str], Awaitable[None]]
    provider: Callable[[TaskId, Address], Awaitable[PeerId | None]]

    async def by_verdict(self, evidence: bytes, pledge: PledgeFile) -> Slashed:
        """Have the arbiters of a pledge judge evidence, and the registry take what they decide. The provider then gets
        no more work of ours, also where somebody else has had it judged before.

        Raises:
            EvidenceError: the evidence is none, or the pledge is of another task, network or registry.
            NoVerdict: too few of them say that the provider is wrong. StakeError: the pledge was used already.
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`; verdicts can be asked for again.

        Cancellation: nothing is sent, or what was sent is mined.
        """
        registry = await self.registry()
        agreement = self._check(evidence, pledge, registry)
        digest = hashlib.sha256(evidence).digest()
        terms = terms_of(pledge.terms)
        liar, why = PeerId(agreement.terms.provider), f"arbiters found it wrong in task {terms.task.hex()[:16]}"
        if await registry.is_judged(terms.struct_hash):
            await self.convict(liar, why)
            raise StakeError("a verdict on this pledge was carried out already: once is all that it allows")
        given, declined = await self._ask_all(evidence, digest, pledge, registry)
        amounts = Counter(verdict.amount_uusd for verdict in given.values())
        amount_uusd = next((amount for amount, votes in amounts.most_common(1) if votes >= terms.threshold), None)
        if amount_uusd is None:
            said = "; ".join(f"…{peer[-8:]}: {why}" for peer, why in declined.items())
            raise NoVerdict(
                f"{len(given)} of the {len(terms.arbiters)} arbiters find the provider wrong, and {terms.threshold} "
                f"have to ({said or 'they want unlike amounts'}); try again when more of them are up. Nothing was sent"
            )
        agreed = {place: one for place, one in given.items() if one.amount_uusd == amount_uusd}
        verdict = ChainVerdict(terms=terms.struct_hash, amount_uusd=amount_uusd, evidence=digest)
        data = encode_slash_by_verdict(
            terms,
            pledge.provider_signature,
            pledge.requester_signature,
            verdict,
            {place: one.signature for place, one in agreed.items()},
        )
        peers = _peers(pledge)
        slashed = await self._carry_out(
            registry,
            data,
            owner=terms.provider,
            beneficiary=terms.requester,
            arbiters=tuple(peers[place] for place in sorted(agreed)),
            declined=declined,
        )
        await self.convict(liar, why)  # the registry has seen that the provider chose these arbiters
        return slashed

    def _check(self, evidence: bytes, pledge: PledgeFile, registry: Registry) -> Agreement:
        try:
            found = open_evidence(evidence)
        except LocalProtocolError as exc:
            raise EvidenceError(f"this is no evidence ({exc.code.name.lower()}): {exc}") from exc
        if pledge.network != self.network or found.agreement.network != self.network:
            raise EvidenceError(f"this is of another network than {self.network}; name its own with --network")
        try:
            cards = [open_card(raw, network=pledge.network, now_ms=0) for raw in pledge.cards]
        except LocalProtocolError as exc:
            raise EvidenceError(f"the pledge holds what is no arbiter's card ({exc.code.name.lower()}): {exc}") from exc
        if tuple(card.account for card in cards) != pledge.terms.arbiters:
            raise EvidenceError("the cards of the pledge are of other arbiters than its terms")
        agreed = found.agreement.terms
        if found.agreement.task_id != pledge.terms.task:
            raise EvidenceError("the pledge is of another task than the evidence; name the one that was kept beside it")
        # Else somebody who has two accounts could have one convicted, and an honest peer blamed for it.
        if (agreed.payee, agreed.payer.owner) != (pledge.terms.provider, pledge.terms.requester):
            raise EvidenceError("the pledge is of other accounts than the agreement in the evidence")
        if not {card.peer_id for card in cards} <= set(agreed.arbiters):
            raise EvidenceError("the pledge is for arbiters that the agreement in the evidence does not name")
        if pledge.terms.chain != registry.chain or pledge.terms.registry != registry.address:
            raise EvidenceError("the pledge is for another chain or stake registry; name its own with --chain")
        return found.agreement

    async def _ask_all(
        self, evidence: bytes, digest: bytes, pledge: PledgeFile, registry: Registry
    ) -> tuple[dict[int, VerdictGiven], dict[PeerId, str]]:
        """Verdicts by the arbiter's place, each checked as the registry will, and what the others said."""
        given: dict[int, VerdictGiven] = {}
        declined: dict[PeerId, str] = {}
        terms = terms_of(pledge.terms)
        asked = Accuse(
            terms=pledge.terms,
            provider_signature=pledge.provider_signature,
            requester_signature=pledge.requester_signature,
            size=len(evidence),
            digest=digest,
        )

        async def ask(place: int, peer: PeerId) -> None:
            try:
                answer = await self._ask(peer, pledge.addresses, asked, evidence)
                if isinstance(answer, StakeRefusal):
                    declined[peer] = refused_text(answer)
                    return
                verdict = ChainVerdict(terms=terms.struct_hash, amount_uusd=answer.amount_uusd, evidence=digest)
                signer = recover_address(verdict_digest(registry.domain, verdict), answer.signature)
                arbiter = terms.arbiters[place]
                if not await registry.speaks_for(arbiter, signer):
                    declined[peer] = "its verdict is not signed for its account"
                elif not await registry.is_active(arbiter):
                    declined[peer] = "it has not the minimum at stake, so its verdict does not count"
                else:
                    given[place] = answer
            except (*STREAM_FAULTS, ProtocolError, ChainError) as exc:
                declined[peer] = str(exc)

        async with trio.open_nursery() as nursery:
            for place, peer in enumerate(_peers(pledge)):
                nursery.start_soon(ask, place, peer)
        return given, declined

    async def _ask(
        self, peer: PeerId, addresses: tuple[str, ...], asked: Accuse, evidence: bytes
    ) -> VerdictGiven | StakeRefusal:
        if peer not in self.overlay.peers():
            for address in addresses:
                if address.endswith(f"/p2p/{peer}"):
                    await self.overlay.connect(address)
        stream = await self.overlay.open_stream(peer, PROTOCOL_ID)
        try:
            dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
            await dialogue.send(asked)
            answer = await dialogue.expect(Proceed, StakeRefusal, stall_s=_ANSWER_S)
            if isinstance(answer, StakeRefusal):
                return answer
            for start in range(0, len(evidence), PIECE_BYTES):
                await dialogue.send(EvidencePiece(data=evidence[start : start + PIECE_BYTES]))
            await dialogue.send(EvidenceEnd())
            return await dialogue.expect(VerdictGiven, StakeRefusal, stall_s=_VERDICT_S)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await stream.aclose()

    async def by_receipts(self, first: SignedReceipt, second: SignedReceipt) -> Slashed:
        """Show the registry two receipts of one chunk with different outputs. Nobody has to judge: the two signatures
        decide. Our account is credited its part. Where the task was ours its provider gets no more work of us; else
        the receipts say of an account and not of a peer.

        Raises:
            EvidenceError: they are not of one chunk, or do not differ, or are not for this registry, or a signature
                does not speak for the account.
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        from p2pcompute.chain import strict_receipt_digest

        registry = await self.registry()
        made: list[tuple[StrictReceipt, bytes]] = []
        for one in (first, second):
            if one.chain != registry.chain or one.registry != registry.address:
                raise EvidenceError("a receipt is for another chain or stake registry; name its own with --chain")
            receipt = StrictReceipt(task=TaskId(one.task), index=one.index, output=one.output)
            try:
                signer = recover_address(strict_receipt_digest(registry.domain, receipt), one.signature)
            except LocalProtocolError as exc:
                raise EvidenceError(f"a receipt is not signed: {exc}") from exc
            if not await registry.speaks_for(Address(one.owner), signer):
                raise EvidenceError("a receipt is not signed by a key that speaks for the account")
            made.append((receipt, one.signature))
        if first.owner != second.owner:
            raise EvidenceError("the receipts are of two accounts, so they prove nothing")
        try:
            data = encode_slash_equivocation(Address(first.owner), made[0], made[1])
        except ValueError as exc:
            raise EvidenceError(str(exc)) from exc
        owner, task = Address(first.owner), TaskId(first.task)
        slashed = await self._carry_out(registry, data, owner=owner, beneficiary=self.account.account, declined={})
        if (liar := await self.provider(task, owner)) is not None:
            await self.convict(liar, f"it has signed two results for chunk {first.index} of task {task.hex()[:16]}")
        return slashed

    async def _carry_out(
        self,
        registry: Registry,
        data: bytes,
        *,
        owner: Address,
        beneficiary: Address,
        declined: Mapping[PeerId, str],
        arbiters: tuple[PeerId, ...] = (),
    ) -> Slashed:
        before, credit_uusd = await registry.state(owner), await registry.credit_uusd(beneficiary)
        await self.account.call(registry.address, data)
        after = await registry.state(owner)
        return Slashed(
            provider=owner,
            beneficiary=beneficiary,
            stake_uusd=after.stake_uusd,
            taken_uusd=before.stake_uusd - after.stake_uusd,
            paid_uusd=await registry.credit_uusd(beneficiary) - credit_uusd,
            arbiters=arbiters,
            declined=dict(declined),
        )


def _peers(pledge: PledgeFile) -> list[PeerId]:
    """Who the arbiters are. Their cards were verified when they were new; by now they may have expired."""
    return [open_card(raw, network=pledge.network, now_ms=0).peer_id for raw in pledge.cards]
