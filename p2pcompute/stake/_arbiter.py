"""An arbiter: takes evidence, computes what it disputes again, and signs a verdict where the provider is wrong.

It is asked by strangers, and what it computes is a stranger's kernel. So it looks first at what costs little: whether
it is named in the terms, whether both parties have signed them, and whether the provider has a stake, for identities
without one cost nothing. One file is judged at a time, in a locked worker, and again only where another one is shown.
The time that it takes is charged to the provider's account and to the accuser's, right or wrong: whoever has a stake
could have unlike files judged against itself for ever. A provider that does so uses its time up, so that nobody else is
heard against it; but for an accuser with a stake of its own, of which the other cannot make as many as it likes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._rates import Buckets, Rate
from p2pcompute.chain import Verdict as ChainVerdict
from p2pcompute.chain import verdict_digest
from p2pcompute.checking import verify_evidence
from p2pcompute.errors import EvidenceError
from p2pcompute_protocols._binding import SignerBinding
from p2pcompute_protocols.envelope import Signer
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.evidence import open_evidence
from p2pcompute_protocols.ids import Address, PeerId
from p2pcompute_protocols.stake import Accuse, ArbiterCard, PledgedTerms, VerdictGiven, seal_card

from ._registry import Registry
from ._staking import KeySigner
from ._terms import check_place, signer_of, terms_of

if TYPE_CHECKING:
    from p2pcompute.tasks._api import Workers

__all__ = ["JUDGING_S", "Arbiter"]

JUDGING_S: Final = 300.0
_MOST_WAITING: Final = 4
_MOST_KEPT: Final = 1_024
_CARD_S: Final = 60.0  # for so long is a card given again
_LEAST_S: Final = 2.0  # what a file is charged at least
# Seconds of judging.
_TIME_ON_PROVIDER: Final = Rate(per_s=0.1, burst=6 * JUDGING_S)
_TIME_OF_ACCUSER: Final = Rate(per_s=0.025, burst=2 * JUDGING_S)
_RETRY: Final = "others are being judged; try again in a few minutes"


@dataclass(slots=True, kw_only=True)
class Arbiter:
    """Judges for one account.

    Attributes:
        registry: opens the stake registry; raises `ChainError`.
        account: signs verdicts, and needs a stake of its own for them to count.
        signer: this node's key.
        binding: ties the account to the node, signed by the account itself.
        network: the network's ID.
        now_ms: UNIX time in milliseconds.
        workers: where strangers' kernels run.
        convict: lowers our standing of the peer that is found wrong, provider or accuser; gets why.
        on_verdict: gets the task, who was found wrong ("provider", "accuser" or "undecided"), and why.
    """

    registry: Callable[[], Awaitable[Registry]]
    account: KeySigner
    signer: Signer
    binding: Callable[[], SignerBinding]
    network: str
    now_ms: Callable[[], int]
    workers: Callable[[], Awaitable[Workers]]
    convict: Callable[[PeerId, str], Awaitable[None]]
    on_verdict: Callable[[bytes, str, str], None] | None = None
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _asked: int = 0
    _on_provider: Buckets[bytes] = field(default_factory=lambda: Buckets(_TIME_ON_PROVIDER, trio.current_time))
    _of_accuser: Buckets[bytes] = field(default_factory=lambda: Buckets(_TIME_OF_ACCUSER, trio.current_time))
    _card: tuple[float, bytes] | None = None  # until when it is given again, and the card
    _given: OrderedDict[bytes, VerdictGiven] = field(default_factory=OrderedDict[bytes, VerdictGiven])

    async def card(self) -> bytes:
        """Our card, in its envelope. Raises `ChainError`."""
        if self._card is not None and trio.current_time() < self._card[0]:
            return self._card[1]
        registry = await self.registry()
        made = ArbiterCard(chain=registry.chain, registry=registry.address, binding=self.binding())
        self._card = trio.current_time() + _CARD_S, seal_card(made, network=self.network, signer=self.signer)
        return self._card[1]

    async def admit(self, asked: Accuse) -> None:
        """Whether we look at evidence for these terms at all; no file has to be read for that.

        Raises:
            LocalProtocolError: the typed refusal.
            ChainError: the endpoint.
        """
        terms = asked.terms
        registry = await self.registry()
        check_place(terms, registry)
        if self.account.address not in terms.arbiters:
            raise LocalProtocolError("we are no arbiter of these terms", code=WireCode.WRONG_PEER)
        if terms.expires_s <= self.now_ms() // 1000:
            raise LocalProtocolError("these terms have expired", code=WireCode.EXPIRED)
        if signer_of(terms, asked.requester_signature, registry) != terms.requester:
            raise LocalProtocolError("the terms are not signed by the requester", code=WireCode.BAD_SIGNATURE)
        signer = signer_of(terms, asked.provider_signature, registry)
        if not await registry.speaks_for(Address(terms.provider), signer):
            raise LocalProtocolError("the terms are not signed for the provider", code=WireCode.BAD_SIGNATURE)
        if not (await registry.state(Address(terms.provider))).stake_uusd:
            raise LocalProtocolError("the provider has nothing at stake", code=WireCode.UNFUNDED)
        await self._check_time(terms, registry)
        if self._asked >= _MOST_WAITING:
            raise LocalProtocolError(_RETRY, code=WireCode.NO_CAPACITY)

    async def _check_time(self, terms: PledgedTerms, registry: Registry) -> None:
        if not self._of_accuser.has(terms.requester, _LEAST_S):
            raise LocalProtocolError(
                "too much was judged of late for this accuser; try again in an hour", code=WireCode.NO_CAPACITY
            )
        if self._on_provider.has(terms.provider, _LEAST_S) or await registry.is_active(Address(terms.requester)):
            return
        raise LocalProtocolError(
            "too much was judged of late against this provider; try again in an hour, or stake yourself",
            code=WireCode.NO_CAPACITY,
        )

    async def judge(self, asked: Accuse, evidence: bytes) -> VerdictGiven:
        """A verdict against the provider, over all that is at risk.

        Raises:
            LocalProtocolError: there is none: the evidence is none, or of another task, or shows somebody else wrong,
                or nothing that can be told here; or NO_CAPACITY: others are judged, or too much of these two was.
            SandboxError: no worker can be locked in here. ChainError: the endpoint.
        """
        if self._asked >= _MOST_WAITING:
            raise LocalProtocolError(_RETRY, code=WireCode.NO_CAPACITY)
        self._asked += 1
        try:
            return await self._judge(asked, evidence)
        finally:
            self._asked -= 1

    async def _judge(self, asked: Accuse, evidence: bytes) -> VerdictGiven:
        terms = terms_of(asked.terms)
        digest = hashlib.sha256(evidence).digest()
        if digest != asked.digest:
            raise LocalProtocolError("the evidence is not what was announced", code=WireCode.BAD_DIGEST)
        known = self._given.get(terms.struct_hash)
        if known is not None and known.evidence == digest:
            return known
        self._check_case(asked.terms, evidence)
        async with self._turn:
            await self._check_time(asked.terms, await self.registry())
            began = trio.current_time()
            try:
                found = await verify_evidence(evidence, workers=await self.workers(), timeout_s=JUDGING_S)
            except EvidenceError as exc:
                raise LocalProtocolError(str(exc), code=WireCode.MALFORMED) from exc
            finally:
                took_s = max(_LEAST_S, trio.current_time() - began)
                self._on_provider.charge(asked.terms.provider, took_s)
                self._of_accuser.charge(asked.terms.requester, took_s)
        if self.on_verdict is not None:
            self.on_verdict(terms.task, found.wrong, found.reason)
        if found.peer is not None:
            await self.convict(found.peer, f"as arbiter of task {terms.task.hex()[:16]} we found: {found.reason}")
        if found.wrong == "undecided":
            raise LocalProtocolError(f"undecided: {found.reason}", code=WireCode.UNSUPPORTED)
        if found.wrong != "provider":
            raise LocalProtocolError(f"the accuser is wrong: {found.reason}", code=WireCode.CHECK_FAILED)
        registry = await self.registry()
        verdict = ChainVerdict(terms=terms.struct_hash, amount_uusd=terms.at_risk_uusd, evidence=digest)
        given = VerdictGiven(
            amount_uusd=verdict.amount_uusd,
            evidence=digest,
            signature=self.account.sign_digest(verdict_digest(registry.domain, verdict)),
        )
        self._given[terms.struct_hash] = given
        while len(self._given) > _MOST_KEPT:
            self._given.popitem(last=False)
        return given

    def _check_case(self, terms: PledgedTerms, evidence: bytes) -> None:
        """The evidence is about the task that the terms are for, between the same parties, and names us.

        Raises:
            LocalProtocolError: it is not, or it is no evidence.
        """
        found = open_evidence(evidence)
        agreement = found.agreement
        agreed = agreement.terms
        if agreement.network != self.network:
            raise LocalProtocolError("the evidence is of another network", code=WireCode.WRONG_NETWORK)
        if agreement.task_id != terms.task:
            raise LocalProtocolError("the evidence is about another task than the terms", code=WireCode.REPLAYED)
        if self.signer.peer_id not in map(PeerId, agreed.arbiters):
            raise LocalProtocolError("the agreement does not name us as an arbiter", code=WireCode.WRONG_PEER)
        if agreed.chain != terms.chain:
            raise LocalProtocolError("the agreement is of another chain than the terms", code=WireCode.CHAIN_MISMATCH)
        if (agreed.payee, agreed.payer.owner) != (terms.provider, terms.requester):
            raise LocalProtocolError("the terms are of other accounts than the agreement", code=WireCode.WRONG_PEER)
