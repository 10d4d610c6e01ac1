"""Attacks on stakes through nodes: on a provider that signs, on an arbiter that judges, and a liar that signs twice."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import coincurve
import pytest
import trio

from p2pcompute import _books
from p2pcompute._dialogue import Dialogue
from p2pcompute._stakes import make_desk
from p2pcompute.chain import (
    UNSTAKE_DELAY_S,
    encode_approve,
    encode_slash_by_verdict,
    encode_stake,
    terms_digest,
    verdict_digest,
)
from p2pcompute.chain import Verdict as ChainVerdict
from p2pcompute.checking import result_evidence
from p2pcompute.errors import EvidenceError, NoProviderError, StreamError
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.node import Node
from p2pcompute.stake import Accuser, Arbiter, NoVerdict, PledgeRefused, Pledges, StakeWish, TaskStake, open_pledge
from p2pcompute.stake import _pledges as pledges_module
from p2pcompute.stake._terms import terms_of
from p2pcompute.tasks import Agreed, _link
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols._evm import sign_digest
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.envelope import open_envelope
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import Address, PeerId
from p2pcompute_protocols.negotiation import Agreement, open_agreement
from p2pcompute_protocols.stake import (
    PROTOCOL_ID,
    Accuse,
    ArbiterCard,
    EvidencePiece,
    OpenCard,
    Pledge,
    PledgedTerms,
    PledgeFile,
    Proceed,
    SignedReceipt,
    StakeConnection,
    StrictQuery,
    VerdictGiven,
    open_card,
    seal_card,
)
from p2pcompute_protocols.task import ReceiptPayload, open_receipt, seal_receipt

from ..chain.conftest import Account
from ..checking._disputes import case_of
from ..market._harness import Watch, compute
from ._court import MIN_UUSD, Court, in_court


@dataclasses.dataclass
class Deal:
    """An honest provider that has done a task under a pledge, and all that was said of it."""

    court: Court
    provider: Node
    requester: Node
    arbiters: list[Node]
    agreement: Agreement
    pledge: PledgeFile
    cards: tuple[bytes, ...]
    blobs: dict[bytes, bytes]

    @property
    def pledges(self) -> Pledges:
        assert self.provider.provider is not None
        assert self.provider.provider.pledges is not None
        return self.provider.provider.pledges

    def arbiter(self, which: int = 0) -> Arbiter:
        service = self.arbiters[which].stake_service
        assert service is not None
        assert service.arbiter is not None
        return service.arbiter

    def sign(self, who: Node, terms: PledgedTerms) -> bytes:
        return signed(self.court, who.services.wallet, terms)

    async def accusation(self, index: int = 0) -> bytes:
        """Evidence against the provider, made from an honest receipt of its own."""
        receipts = await self.provider.services.ledger.receipts(self.agreement.task_id)
        receipt = await self.provider.services.ledger.issued_receipt(self.agreement.task_id, receipts[index].index)
        assert receipt is not None
        return result_evidence(
            self.agreement,
            receipt,
            receipts[index].index,
            blobs=self.blobs,
            signer=self.requester.services.key,
            now_ms=self.requester.now_ms(),
        )


def signed(court: Court, wallet: WalletKey, terms: PledgedTerms) -> bytes:
    return wallet.sign_digest(terms_digest(court.registry.domain, terms_of(terms)))


async def deal(court: Court, monkeypatch: pytest.MonkeyPatch, *, arbiters: int = 1, **options: Any) -> Deal:
    judges = await court.arbiters(arbiters)
    provider = await court.provider(judges, **options)
    requester = await court.requester(provider, *judges)
    pledged: list[bytes] = []
    sent: dict[bytes, bytes] = {}
    real = TaskStake.pledge
    was = _link.Link.__init__

    async def remember(self: TaskStake, agreement: Agreement) -> bytes:
        pledged.append(await real(self, agreement))
        return pledged[-1]

    def note(self: Any, *args: Any, **kwargs: Any) -> None:
        was(self, *args, **kwargs)
        sent.update(self.blobs)

    with monkeypatch.context() as patch:
        patch.setattr(TaskStake, "pledge", remember)
        patch.setattr(_link.Link, "__init__", note)
        watch = Watch()
        await compute(requester, watch=watch, chunks=2, arbiters=[one.addresses[0] for one in judges])
    (agreed,) = watch.of(Agreed)
    row = await requester.services.ledger.agreement(agreed.task)
    assert row is not None
    agreement = open_agreement(
        row.raw, network=requester.network, requester=requester.peer_id, provider=provider.peer_id
    )
    pledge = open_pledge(pledged[0])
    return Deal(court, provider, requester, judges, agreement, pledge, pledge.cards, sent)


def dealt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Callable[[Deal], Awaitable[None]], **options: Any
) -> None:
    async def scenario(court: Court) -> None:
        await play(await deal(court, monkeypatch, **options))

    in_court(tmp_path, scenario)


async def refused(call: Awaitable[Any]) -> WireCode:
    with pytest.raises(LocalProtocolError) as found:
        await call
    return found.value.code


# On the provider


async def other_card(made: Deal, thief: WalletKey) -> bytes:
    """A card that says that the requester's second account judges for the peer that both trust."""
    trusted = made.arbiters[0].peer_id
    binding = bind_signer(
        made.requester.network, trusted, thief, sequence=1, expires_ms=made.requester.now_ms() + 10**6
    )
    card = ArbiterCard(chain=made.pledge.terms.chain, registry=made.pledge.terms.registry, binding=binding)
    made.court.bench.give(account_of(thief), MIN_UUSD)
    await stake_for(made.court, thief)
    return seal_card(card, network=made.requester.network, signer=made.requester.services.key)


def account_of(wallet: WalletKey) -> Account:
    return Account(coincurve.PrivateKey(wallet.private_key), wallet.address)


async def stake_for(court: Court, wallet: WalletKey) -> None:
    account = account_of(wallet)
    court.bench.do(account, encode_approve(court.contract.address, MIN_UUSD), to=court.bench.token)
    court.bench.do(account, encode_stake(MIN_UUSD), to=court.contract.address)
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("defended", [True, False])
def test_a_requester_that_says_who_judges_for_a_trusted_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    """The thief's account stands for the trusted arbiter, judges, and gets half of an honest provider's stake."""

    async def play(made: Deal) -> None:
        thief = WalletKey.generate()
        card = await other_card(made, thief)
        made.pledges._tasks.clear()
        made.pledges.note(made.agreement)  # as if the task had no pledge yet
        terms = dataclasses.replace(made.pledge.terms, arbiters=(thief.address,))
        asked = Pledge(terms=terms, signature=made.sign(made.requester, terms), cards=(card,))
        if defended:
            assert await refused(made.pledges.pledge(made.requester.peer_id, asked)) is WireCode.WRONG_PEER
            assert await made.court.stakes(made.provider) == MIN_UUSD
            return

        def trusting(raw: bytes, *, network: str, now_ms: int) -> OpenCard:
            found = ArbiterCard.decode(open_envelope(raw, kind="arbiter", network=network).payload)
            return OpenCard(
                peer_id=PeerId(found.binding.peer_id), account=Address(found.binding.owner), card=found, raw=raw
            )

        monkeypatch.setattr(pledges_module, "open_card", trusting)
        theirs = await made.pledges.pledge(made.requester.peer_id, asked)
        # The registry asks for no more than votes.
        verdict = ChainVerdict(terms=terms_of(terms).struct_hash, amount_uusd=MIN_UUSD, evidence=bytes(32))
        vote = thief.sign_digest(verdict_digest(made.court.registry.domain, verdict))
        data = encode_slash_by_verdict(terms_of(terms), theirs, asked.signature, verdict, {0: vote})
        made.court.bench.do(account_of(thief), data, to=made.court.contract.address)
        assert await made.court.stakes(made.provider) == 0

    dealt(tmp_path, monkeypatch, play)


def test_the_same_agreement_twice_is_one_pledge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams with one order may end in one agreement: each of them a pledge would put twice as much at risk."""

    async def play(made: Deal) -> None:
        made.pledges.note(made.agreement)
        terms = dataclasses.replace(made.pledge.terms, at_risk_uusd=MIN_UUSD - 1)
        asked = Pledge(terms=terms, signature=made.sign(made.requester, terms), cards=made.cards)
        assert await refused(made.pledges.pledge(made.requester.peer_id, asked)) is WireCode.REPLAYED

    dealt(tmp_path, monkeypatch, play)


CHANGES: dict[str, tuple[Callable[[Deal], dict[str, Any]], WireCode]] = {
    "another task": (lambda made: {"task": bytes(32)}, WireCode.UNSUPPORTED),
    "another registry": (lambda made: {"registry": b"r" * 20}, WireCode.CHAIN_MISMATCH),
    "another chain": (
        lambda made: {"chain": dataclasses.replace(made.pledge.terms.chain, chain_id=1)},
        WireCode.CHAIN_MISMATCH,
    ),
    "another account's stake": (lambda made: {"provider": b"p" * 20}, WireCode.WRONG_PEER),
    "somebody who does not pay": (lambda made: {"requester": b"q" * 20}, WireCode.BAD_SIGNATURE),
    "more than it puts at risk": (lambda made: {"at_risk_uusd": MIN_UUSD + 1}, WireCode.OVERSIZED),
    "for longer than its stake stays": (
        lambda made: {"expires_s": made.provider.now_ms() // 1000 + UNSTAKE_DELAY_S + 1},
        WireCode.EXPIRED,
    ),
    "other terms for the same task": (lambda made: {"at_risk_uusd": MIN_UUSD - 1}, WireCode.REPLAYED),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_provider_signs_nothing_but_what_was_agreed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async def play(made: Deal) -> None:
        change, code = CHANGES[what]
        terms = dataclasses.replace(made.pledge.terms, **change(made))
        asked = Pledge(terms=terms, signature=made.sign(made.requester, terms), cards=made.cards)
        assert await refused(made.pledges.pledge(made.requester.peer_id, asked)) is code
        # What was signed is signed again, for whoever it was signed for.
        again = Pledge(terms=made.pledge.terms, signature=made.pledge.requester_signature, cards=made.cards)
        assert await made.pledges.pledge(made.requester.peer_id, again) == made.pledge.provider_signature
        stranger = NodeKey.generate().peer_id
        assert await refused(made.pledges.pledge(stranger, again)) is WireCode.UNSUPPORTED

    dealt(tmp_path, monkeypatch, play)


def test_arbiters_that_were_not_agreed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider accepts both, and has agreed on one."""

    async def play(made: Deal) -> None:
        other = await made.court.arbiter()
        made.pledges.arbiters = {*made.pledges.arbiters, other.peer_id}
        made.pledges._tasks.clear()
        made.pledges.note(made.agreement)
        assert other.stake_service is not None
        assert other.stake_service.arbiter is not None
        card = await other.stake_service.arbiter.card()
        account = open_card(card, network=other.network, now_ms=0).account
        terms = dataclasses.replace(made.pledge.terms, arbiters=(account,))
        asked = Pledge(terms=terms, signature=made.sign(made.requester, terms), cards=(card,))
        assert await refused(made.pledges.pledge(made.requester.peer_id, asked)) is WireCode.WRONG_PEER

    dealt(tmp_path, monkeypatch, play)


# On the arbiter


def accuse_of(made: Deal, evidence: bytes, **changes: Any) -> Accuse:
    asked = Accuse(
        terms=made.pledge.terms,
        provider_signature=made.pledge.provider_signature,
        requester_signature=made.pledge.requester_signature,
        size=len(evidence),
        digest=hashlib.sha256(evidence).digest(),
    )
    return dataclasses.replace(asked, **changes)


def resigned(made: Deal, **changes: Any) -> dict[str, Any]:
    """Other terms, which both parties have signed."""
    terms = dataclasses.replace(made.pledge.terms, **changes)
    assert made.provider.services.stake is not None
    return {
        "terms": terms,
        "provider_signature": signed(made.court, made.provider.services.stake.receipt_key, terms),
        "requester_signature": made.sign(made.requester, terms),
    }


ACCUSATIONS: dict[str, tuple[Callable[[Deal], dict[str, Any]], WireCode]] = {
    "another registry": (lambda made: resigned(made, registry=b"r" * 20), WireCode.CHAIN_MISMATCH),
    "another chain": (
        lambda made: resigned(made, chain=dataclasses.replace(made.pledge.terms.chain, chain_id=1)),
        WireCode.CHAIN_MISMATCH,
    ),
    "terms that name others": (lambda made: resigned(made, arbiters=(b"a" * 20,)), WireCode.WRONG_PEER),
    "terms that have expired": (lambda made: resigned(made, expires_s=1_700_000_000), WireCode.EXPIRED),
    "terms that the requester has not signed": (
        lambda made: {"requester_signature": made.pledge.provider_signature},
        WireCode.BAD_SIGNATURE,
    ),
    "terms that the provider has not signed": (
        lambda made: {"provider_signature": made.pledge.requester_signature},
        WireCode.BAD_SIGNATURE,
    ),
    "terms of another task": (lambda made: resigned(made, task=bytes(32)), WireCode.REPLAYED),
    "evidence of another digest": (lambda made: {"digest": bytes(32)}, WireCode.BAD_DIGEST),
    "an honest provider": (lambda made: {}, WireCode.CHECK_FAILED),
}


@pytest.mark.parametrize("what", ACCUSATIONS)
def test_an_arbiter_judges_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    async def play(made: Deal) -> None:
        change, code = ACCUSATIONS[what]
        evidence = await made.accusation()
        asked = accuse_of(made, evidence, **change(made))
        arbiter = made.arbiter()

        async def whole() -> None:
            await arbiter.admit(asked)
            await arbiter.judge(asked, evidence)

        assert await refused(whole()) is code
        assert not arbiter._given

    dealt(tmp_path, monkeypatch, play)


def test_an_honest_provider_that_is_accused_keeps_its_stake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        evidence = await made.accusation(1)
        with pytest.raises(NoVerdict, match="the accuser is wrong"):
            await made.court.accuser(made.requester).by_verdict(evidence, made.pledge)
        assert await made.court.stakes(made.provider) == MIN_UUSD
        # The false accusation is signed, and costs its author the arbiter's trust; the accused nothing.
        (judge,) = made.arbiters
        assert judge.services.books.banned == {made.requester.peer_id}
        assert not made.requester.services.books.banned
        await made.court.market._nurseries[judge.peer_id].start(made.court.market._serve, judge, {"price": "0.01 USD"})
        watch = Watch()
        await compute(made.requester, watch=watch)
        assert {event.provider for event in watch.of(Agreed)} == {made.provider.peer_id}

    dealt(tmp_path, monkeypatch, play)


@pytest.mark.parametrize("defended", [True, False])
def test_evidence_of_another_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defended: bool) -> None:
    """Somebody else's lie is shown under an honest provider's pledge."""
    case = case_of()
    receipt = case.receipt(0, bytes(len(case.output(0))))

    async def play(made: Deal) -> None:
        key = made.requester.services.key
        evidence = result_evidence(
            case.agreement, receipt, 0, blobs=case.blobs, signer=key, now_ms=made.requester.now_ms()
        )
        asked, arbiter = accuse_of(made, evidence), made.arbiter()
        await arbiter.admit(asked)
        if defended:
            assert await refused(arbiter.judge(asked, evidence)) is WireCode.WRONG_NETWORK
            with pytest.raises(EvidenceError):
                await made.court.accuser(made.requester).by_verdict(evidence, made.pledge)
            return
        monkeypatch.setattr(Arbiter, "_check_case", lambda *_: None)
        assert (await arbiter.judge(asked, evidence)).amount_uusd == MIN_UUSD

    dealt(tmp_path, monkeypatch, play)


def test_an_arbiter_that_the_agreement_does_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its account stands in terms that both have signed, and the agreement names another peer."""

    async def play(made: Deal) -> None:
        other = await made.court.arbiter()
        account = other.services.wallet.address
        evidence = await made.accusation()
        asked = accuse_of(made, evidence, **resigned(made, arbiters=(account,)))
        assert other.stake_service is not None
        assert other.stake_service.arbiter is not None
        await other.stake_service.arbiter.admit(asked)
        assert await refused(other.stake_service.arbiter.judge(asked, evidence)) is WireCode.WRONG_PEER

    dealt(tmp_path, monkeypatch, play)


def test_nobody_without_a_stake_has_an_arbiter_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        evidence = await made.accusation()
        made.court.wait(1)
        await made.court.staking(made.provider).unstake()
        made.court.wait(UNSTAKE_DELAY_S)
        await made.court.staking(made.provider).unstake()
        assert await refused(made.arbiter().admit(accuse_of(made, evidence))) is WireCode.UNFUNDED

    dealt(tmp_path, monkeypatch, play)


def test_evidence_that_drips_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        evidence = await made.accusation()
        service = made.arbiters[0].stake_service
        assert service is not None
        stream = await made.requester.services.overlay.open_stream(made.arbiters[0].peer_id, PROTOCOL_ID)
        dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
        await dialogue.send(accuse_of(made, evidence))
        await dialogue.expect(Proceed)
        assert len(service._uploads) == 1

        async def drip() -> None:
            for byte in evidence:
                await dialogue.send(EvidencePiece(data=bytes([byte])))
                await trio.sleep(20)

        with pytest.raises((StreamError, RemoteProtocolError)):
            await drip()
        await trio.sleep(1)
        assert not service._uploads

    dealt(tmp_path, monkeypatch, play)


# On whoever sees a verdict


@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize("whose", ["accounts", "arbiters"])
def test_a_verdict_on_somebody_else_s_stake_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str, defended: bool
) -> None:
    """Two hostile accounts put a stake of their own at risk for an honest provider's task, have an arbiter of their own
    judge, and get a third party to accuse: it would shun an honest provider, for half of a stake that comes back."""

    async def play(made: Deal) -> None:
        court, hostile = made.court, await made.court.arbiter()
        assert hostile.services.stake is not None
        assert hostile.stake_service is not None
        judge = hostile.stake_service.arbiter
        assert judge is not None
        rogue = await court.node()
        await court.stake(rogue)
        owner, key = rogue.services.account.address, rogue.services.stake.receipt_key  # type: ignore[union-attr]
        changes: dict[str, Any] = {"arbiters": (hostile.services.account.address,), "threshold": 1}
        if whose == "accounts":
            changes["provider"] = owner
        else:  # an honest provider signs no such terms, and one that plays the honest provider's part might
            key = made.provider.services.stake.receipt_key  # type: ignore[union-attr]
        terms = dataclasses.replace(made.pledge.terms, **changes)
        pledge = dataclasses.replace(
            made.pledge,
            terms=terms,
            provider_signature=signed(court, key, terms),
            requester_signature=made.sign(made.requester, terms),
            cards=(await judge.card(),),
            addresses=hostile.addresses,
        )
        evidence = await made.accusation()

        async def convicts(asked: Accuse, _: bytes) -> VerdictGiven:
            await trio.lowlevel.checkpoint()
            verdict = ChainVerdict(terms=terms_of(asked.terms).struct_hash, amount_uusd=MIN_UUSD, evidence=asked.digest)
            vote = hostile.services.account.sign_digest(verdict_digest(court.registry.domain, verdict))
            return VerdictGiven(amount_uusd=MIN_UUSD, evidence=asked.digest, signature=vote)

        monkeypatch.setattr(Arbiter, "judge", lambda _, asked, evidence: convicts(asked, evidence))
        witness = await court.requester(made.provider, hostile)
        if defended:
            with pytest.raises(EvidenceError, match=whose):
                await court.accuser(witness).by_verdict(evidence, pledge)
            assert not witness.services.books.banned
            return
        monkeypatch.setattr(Accuser, "_check", lambda *_: made.agreement)
        await court.accuser(witness).by_verdict(evidence, pledge)
        assert witness.services.books.banned == {made.provider.peer_id}

    dealt(tmp_path, monkeypatch, play)


def test_peer_ids_that_convict_themselves_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_books, "MAX_STRANGERS", 3)

    async def scenario(court: Court) -> None:
        books, ledger = (node := await court.node()).services.books, node.services.ledger
        strangers = [NodeKey.generate().peer_id for _ in range(5)]
        for peer in (*strangers, *strangers):
            await books.convicted(peer, "it lied")
        assert books.banned == set(strangers[:3])
        assert {row.peer for row in await ledger.peers()} == books.banned
        assert [books.standing(peer).failures for peer in strangers] == [2] * 5
        # Who was paid before is known, and costs no more.
        books.paid(strangers[4], 1)
        await books.convicted(strangers[4], "it lied")
        assert books.banned == {*strangers[:3], strangers[4]}

    in_court(tmp_path, scenario)


# Two receipts of one chunk


def restored(made: Deal, index: int) -> Callable[..., Awaitable[bytes | None]]:
    """A ledger that an old backup was put in the place of: the chunk was computed again, and came out otherwise."""

    async def receipt(task: Any, asked: int) -> bytes | None:
        raw = await made.provider.services.ledger.issued_receipt(task, asked)
        assert raw is not None
        if asked != index:
            return raw
        _, payload = open_receipt(
            raw, network=made.provider.network, provider=made.provider.peer_id, task=task, index=asked
        )
        other: ReceiptPayload = dataclasses.replace(payload, output=bytes(32))
        return seal_receipt(other, network=made.provider.network, signer=made.provider.services.key)

    return receipt


async def task_stake(made: Deal) -> TaskStake:
    wish = StakeWish(arbiters=tuple(one.addresses[0] for one in made.arbiters))
    return await make_desk(made.requester).prepare(wish)


def test_two_results_for_one_chunk_cost_a_twentieth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        stake = await task_stake(made)
        first = await stake.strict_receipt(made.agreement, 1)
        assert await stake.strict_receipt(made.agreement, 1) == first  # as often as anybody asks
        accuser = made.court.accuser(made.arbiters[0])
        with pytest.raises(EvidenceError, match="prove nothing"):
            await accuser.by_receipts(first, first)
        made.pledges.receipt = restored(made, 1)
        second = await stake.strict_receipt(made.agreement, 1)
        with pytest.raises(EvidenceError, match="prove nothing"):
            await accuser.by_receipts(first, await stake.strict_receipt(made.agreement, 0))
        slashed = await accuser.by_receipts(first, second)
        assert (slashed.taken_uusd, slashed.paid_uusd) == (MIN_UUSD // 20, MIN_UUSD // 40)
        assert slashed.beneficiary == made.arbiters[0].services.wallet.address
        assert await made.court.stakes(made.provider) == MIN_UUSD - MIN_UUSD // 20
        assert not made.arbiters[0].services.books.banned  # it knows an account, and no peer

    dealt(tmp_path, monkeypatch, play)


def test_who_has_signed_two_results_for_us_gets_no_more_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        stake, requester = await task_stake(made), made.requester
        first = await stake.strict_receipt(made.agreement, 1)
        made.pledges.receipt = restored(made, 1)
        second = await stake.strict_receipt(made.agreement, 1)
        await made.court.accuser(requester).by_receipts(first, second)
        known = await requester.services.ledger.peer(made.provider.peer_id)
        assert known is not None
        assert known.banned == f"it has signed two results for chunk 1 of task {made.agreement.task_id.hex()[:16]}"
        with pytest.raises(NoProviderError):
            await compute(requester)

    dealt(tmp_path, monkeypatch, play)


@pytest.mark.parametrize("what", ["a stranger's signature", "another registry", "another account", "garbage"])
def test_receipts_that_prove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    async def play(made: Deal) -> None:
        stake = await task_stake(made)
        first = await stake.strict_receipt(made.agreement, 0)
        made.pledges.receipt = restored(made, 0)
        second = await stake.strict_receipt(made.agreement, 0)
        changes: dict[str, Any] = {
            "a stranger's signature": {"signature": sign_digest(coincurve.PrivateKey(b"\x05" * 32), bytes(32))},
            "another registry": {"registry": b"r" * 20},
            "another account": {"owner": bytes(made.requester.services.wallet.address)},
            "garbage": {"signature": bytes(65)},
        }[what]
        changed: SignedReceipt = dataclasses.replace(second, **changes)
        with pytest.raises(EvidenceError):
            await made.court.accuser(made.requester).by_receipts(first, changed)
        assert await made.court.stakes(made.provider) == MIN_UUSD

    dealt(tmp_path, monkeypatch, play)


def test_receipts_for_the_registry_are_for_whoever_they_were_pledged_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(made: Deal) -> None:
        query = StrictQuery(task=made.agreement.task_id, index=0)
        stranger = NodeKey.generate().peer_id
        assert await refused(made.pledges.strict_receipt(stranger, query)) is WireCode.UNSUPPORTED
        missing = StrictQuery(task=made.agreement.task_id, index=7)
        requester = made.requester.peer_id
        assert await refused(made.pledges.strict_receipt(requester, missing)) is WireCode.UNKNOWN_CHUNK
        made.pledges._tasks.clear()
        made.pledges.note(made.agreement)
        assert await refused(made.pledges.strict_receipt(requester, query)) is WireCode.UNSUPPORTED

    dealt(tmp_path, monkeypatch, play)


# On the requester


def test_a_pledge_that_is_worth_less_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        stake, registry, terms = await task_stake(made), made.court.registry, made.pledge.terms
        provider = made.provider.peer_id
        more = resigned(made, at_risk_uusd=MIN_UUSD + 1)
        for signed_terms, signature, said in (
            (terms, bytes(65), "has signed nothing"),
            (terms, made.pledge.requester_signature, "does not speak for its stake"),
            (more["terms"], more["provider_signature"], "may put less at risk"),
        ):
            with pytest.raises(PledgeRefused, match=said):
                await stake._check(registry, signed_terms, signature, provider)
        await stake._check(registry, terms, made.pledge.provider_signature, provider)
        await made.court.staking(made.provider).unstake()  # between the order and the pledge
        with pytest.raises(PledgeRefused, match="asked for its stake back"):
            await stake._check(registry, terms, made.pledge.provider_signature, provider)

    dealt(tmp_path, monkeypatch, play)
