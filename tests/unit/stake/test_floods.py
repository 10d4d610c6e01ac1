"""Questions about stakes without end, and evidence without end: what they cost whoever answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute.checking import Verdict
from p2pcompute.errors import StreamError
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.market import AdRecordValidator
from p2pcompute.node import Node
from p2pcompute.stake import Arbiter
from p2pcompute.stake import _arbiter as arbiter_module
from p2pcompute.stake._service import StakeService
from p2pcompute.testing import open_memory_overlay, virtual_clock_ms
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.stake import (
    PROTOCOL_ID,
    Accuse,
    CardGiven,
    CardQuery,
    Pledge,
    Pledged,
    PledgedTerms,
    StakeConnection,
    StakeRefusal,
    StrictGiven,
    StrictQuery,
)
from p2pcompute_protocols.wire import Record

from ..market._harness import Market
from ._court import MIN_UUSD, Court
from .test_attacks import Deal, accuse_of, dealt, refused, resigned, signed

ASKED = 400
VALIDATOR = AdRecordValidator(network="simulated", now_ms=virtual_clock_ms)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each read of the registry, by whomever."""
    found: list[int] = []
    made = Court.__post_init__

    def counted(court: Court) -> None:
        made(court)
        real = court.registry.read

        async def read(data: bytes) -> bytes:
            found.append(1)
            return await real(data)

        court.registry = dataclasses.replace(court.registry, read=read)

    monkeypatch.setattr(Court, "__post_init__", counted)
    return found


async def asks(
    market: Market, target: Node, questions: Sequence[Record], *, key: NodeKey | None = None
) -> list[Record]:
    """The answers that a peer gets on one stream, until it ends."""
    answers: list[Record] = []
    async with open_memory_overlay(market.memory, key or NodeKey.generate(), record_validator=VALIDATOR) as overlay:
        await overlay.connect(target.addresses[0])
        stream = await overlay.open_stream(target.peer_id, PROTOCOL_ID)
        dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
        try:
            for question in questions:
                await dialogue.send(question)
                answer = await dialogue.receive(stall_s=30)
                if isinstance(answer, StreamEnded):
                    break
                answers.append(answer)
        except (StreamError, RemoteProtocolError):
            pass
        await stream.aclose()
    return answers


def refusals(answers: list[Record]) -> int:
    for answer in answers:
        if isinstance(answer, StakeRefusal):
            assert answer.code == WireCode.NO_CAPACITY
            assert "again" in answer.detail
    return sum(isinstance(answer, StakeRefusal) for answer in answers)


def test_a_stream_is_not_for_questions_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(made: Deal) -> None:
        market = made.court.market
        answers = await asks(market, made.arbiters[0], [CardQuery()] * ASKED)
        assert len(answers) == 16
        assert all(isinstance(answer, CardGiven) for answer in answers)

    dealt(tmp_path, monkeypatch, play)


def own_terms(made: Deal) -> tuple[PledgedTerms, WalletKey]:
    """Terms that a stranger has signed with itself, and that name the arbiter: they cost nothing."""
    provider = WalletKey.generate()
    terms = dataclasses.replace(made.pledge.terms, provider=provider.address)
    return terms, provider


def self_accusation(made: Deal) -> Accuse:
    terms, provider = own_terms(made)
    requester = WalletKey.generate()
    terms = dataclasses.replace(terms, requester=requester.address)
    return Accuse(
        terms=terms,
        provider_signature=signed(made.court, provider, terms),
        requester_signature=signed(made.court, requester, terms),
        size=1,
        digest=bytes(32),
    )


async def strangers_accuse(made: Deal) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(ASKED // 10):
            questions: list[Record] = [self_accusation(made) for _ in range(10)]
            nursery.start_soon(asks, made.court.market, made.arbiters[0], questions)


def test_strangers_that_accuse_themselves_have_the_chain_asked_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    async def play(made: Deal) -> None:
        before, began = len(reads), trio.current_time()
        await strangers_accuse(made)
        assert len(reads) - before <= 2 * (64 + 4 * (trio.current_time() - began)) < ASKED / 2  # two reads each
        # It goes on for a requester that has a pledge there, and for whoever asks for a card.
        assert isinstance((await asks(made.court.market, made.arbiters[0], [CardQuery()]))[0], CardGiven)

    dealt(tmp_path, monkeypatch, play)


def test_without_rates_each_of_them_costs_two_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    async def play(made: Deal) -> None:
        monkeypatch.setattr(StakeService, "_admit", lambda *_: None)
        before = len(reads)
        await strangers_accuse(made)
        assert len(reads) - before >= 2 * ASKED

    dealt(tmp_path, monkeypatch, play)


# Pledges


def unlike_terms(made: Deal, count: int) -> list[Pledge]:
    asked = []
    for number in range(count):
        terms = dataclasses.replace(made.pledge.terms, at_risk_uusd=MIN_UUSD - 1 - number)
        asked.append(Pledge(terms=terms, signature=made.sign(made.requester, terms), cards=made.cards))
    return asked


async def requester_asks(made: Deal, questions: list[Record]) -> list[Record]:
    """As the requester's node, on as many streams as it takes."""
    answers: list[Record] = []
    while questions:
        stream = await made.requester.services.overlay.open_stream(made.provider.peer_id, PROTOCOL_ID)
        dialogue = Dialogue(StakeConnection(Role.REQUESTER), stream)
        for question in questions[:16]:
            await dialogue.send(question)
            answers.append(await dialogue.receive(stall_s=30))
        await stream.aclose()
        questions = questions[16:]
    return answers


def test_a_pledge_is_tried_eight_times_and_what_is_signed_is_given_without_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    async def play(made: Deal) -> None:
        again = Pledge(terms=made.pledge.terms, signature=made.pledge.requester_signature, cards=made.cards)
        before = len(reads)
        for answer in await requester_asks(made, [again] * 20):
            assert answer == Pledged(signature=made.pledge.provider_signature)
        assert len(reads) == before
        made.pledges._tasks.clear()
        made.pledges.note(made.agreement)
        await made.court.staking(made.provider).unstake()  # so that each is refused after the chain was asked
        answers = await requester_asks(made, [*unlike_terms(made, 20)])
        codes = [answer.code for answer in answers if isinstance(answer, StakeRefusal)]
        assert codes == [WireCode.UNFUNDED] * 8 + [WireCode.NO_CAPACITY] * 12

    dealt(tmp_path, monkeypatch, play)


def test_without_that_bound_the_chain_is_asked_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]
) -> None:
    async def play(made: Deal) -> None:
        monkeypatch.setattr("p2pcompute.stake._pledges._MOST_TRIES", 10**9)
        made.pledges._tasks.clear()
        made.pledges.note(made.agreement)
        await made.court.staking(made.provider).unstake()
        before = len(reads)
        await requester_asks(made, [*unlike_terms(made, 60)])
        assert len(reads) - before >= 60

    dealt(tmp_path, monkeypatch, play)


@pytest.mark.parametrize("defended", [True, False])
def test_receipts_for_the_registry_are_signed_as_fast_as_a_peer_may_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    async def play(made: Deal) -> None:
        if not defended:
            monkeypatch.setattr(StakeService, "_admit", lambda *_: None)
        began = trio.current_time()
        answers = await requester_asks(made, [StrictQuery(task=made.agreement.task_id, index=0)] * ASKED)
        signed_ = sum(isinstance(answer, StrictGiven) for answer in answers)
        if not defended:
            assert signed_ == ASKED
            return
        assert signed_ <= 64 + 2 * (trio.current_time() - began) + 1
        assert refusals(answers) == ASKED - signed_ > 0
        await trio.sleep(1)
        again = await requester_asks(made, [StrictQuery(task=made.agreement.task_id, index=0)])
        assert isinstance(again[0], StrictGiven)

    dealt(tmp_path, monkeypatch, play)


# Judging


TOOK_S = 100.0
LONG_S = 12_000


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each file was judged; each takes so long, and shows the accuser wrong."""
    found: list[float] = []

    async def slow(evidence: bytes, **_: object) -> Verdict:
        found.append(trio.current_time())
        await trio.sleep(TOOK_S)
        peer = PeerId("somebody")
        return Verdict(
            wrong="accuser",
            peer=None,
            signature=None,
            reason="the chunk is as it was delivered",
            kind="result",
            task=hashlib.sha256(evidence).digest(),
            index=0,
            round=None,
            accuser=peer,
            provider=peer,
        )

    monkeypatch.setattr(arbiter_module, "verify_evidence", slow)
    return found


async def accuse(made: Deal, asked: Accuse, evidence: bytes) -> WireCode:
    """As one stream does; every accusation here is refused, some before the evidence is taken in."""

    async def whole() -> None:
        await made.arbiter().admit(asked)
        await made.arbiter().judge(asked, evidence)

    return await refused(whole())


async def accuse_for(made: Deal, seconds: float, change: Callable[[], dict[str, Any]] = dict) -> Counter[WireCode]:
    """Show unlike evidence of one case for so long, a new file as soon as the last one is answered, or in a minute."""
    codes: Counter[WireCode] = Counter()
    until, number = trio.current_time() + seconds, 0
    good = await made.accusation()
    while trio.current_time() < until:
        number += 1
        evidence = good + number.to_bytes(8, "big")  # `_check_case` is not what is looked at here
        code = await accuse(made, accuse_of(made, evidence, **change()), evidence)
        codes[code] += 1
        await trio.sleep(60 if code is WireCode.NO_CAPACITY else 0)
    return codes


@pytest.fixture
def any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a stake can make agreements with itself, with any requester, and evidence of each."""
    monkeypatch.setattr(Arbiter, "_check_case", lambda *_: None)


def test_unlike_evidence_of_one_accuser_is_judged_for_a_fortieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: list[float], any_case: None
) -> None:
    async def play(made: Deal) -> None:
        codes = await accuse_for(made, LONG_S)
        assert {*codes} == {WireCode.CHECK_FAILED, WireCode.NO_CAPACITY}
        assert len(judged) * TOOK_S <= 600 + TOOK_S + LONG_S / 40
        # Another requester of that provider is heard at once.
        evidence = await made.accusation()
        other = WalletKey.generate()
        terms = dataclasses.replace(made.pledge.terms, requester=other.address)
        changes = resigned(made, requester=other.address) | {"requester_signature": signed(made.court, other, terms)}
        assert await accuse(made, accuse_of(made, evidence, **changes), evidence) is WireCode.CHECK_FAILED

    dealt(tmp_path, monkeypatch, play)


def fresh_requester(made: Deal) -> dict[str, Any]:
    other = WalletKey.generate()
    terms = dataclasses.replace(made.pledge.terms, requester=other.address)
    return resigned(made, requester=other.address) | {"requester_signature": signed(made.court, other, terms)}


def test_a_provider_that_has_itself_accused_by_many_is_judged_for_a_tenth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: list[float], any_case: None
) -> None:
    async def play(made: Deal) -> None:
        codes = await accuse_for(made, LONG_S, lambda: fresh_requester(made))
        assert {*codes} == {WireCode.CHECK_FAILED, WireCode.NO_CAPACITY}
        assert len(judged) * TOOK_S <= 1_800 + TOOK_S + LONG_S / 10

    dealt(tmp_path, monkeypatch, play)


async def no_check(*_: Any) -> None:
    await trio.lowlevel.checkpoint()


def test_a_provider_that_uses_up_its_time_is_judged_for_who_has_a_stake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: list[float], any_case: None
) -> None:
    """It lets nobody be heard by having itself accused without end, for the two weeks in which there is a case."""

    async def play(made: Deal) -> None:
        await accuse_for(made, LONG_S, lambda: fresh_requester(made))
        evidence, before = await made.accusation(), len(judged)
        for _ in range(3):
            assert await accuse(made, accuse_of(made, evidence), evidence) is WireCode.NO_CAPACITY
        await made.court.stake(made.requester)
        assert await accuse(made, accuse_of(made, evidence), evidence) is WireCode.CHECK_FAILED
        assert len(judged) == before + 1

    dealt(tmp_path, monkeypatch, play)


def test_a_stake_is_worth_a_fortieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: list[float], any_case: None
) -> None:
    async def play(made: Deal) -> None:
        await made.court.stake(made.requester)
        codes = await accuse_for(made, LONG_S)
        assert {*codes} == {WireCode.CHECK_FAILED, WireCode.NO_CAPACITY}
        assert len(judged) * TOOK_S <= 600 + TOOK_S + LONG_S / 40

    dealt(tmp_path, monkeypatch, play)


def test_without_that_it_is_judged_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: list[float], any_case: None
) -> None:
    async def play(made: Deal) -> None:
        monkeypatch.setattr(Arbiter, "_check_time", no_check)
        await accuse_for(made, LONG_S)
        assert len(judged) * TOOK_S >= LONG_S

    dealt(tmp_path, monkeypatch, play)


def test_files_that_were_let_in_together_are_charged_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: list[float], any_case: None
) -> None:
    """Four wait for their turn, and each of them was looked at before any was judged."""

    async def play(made: Deal) -> None:
        good = await made.accusation()
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    evidence = good + len(judged).to_bytes(4, "big") + bytes([number])
                    nursery.start_soon(accuse, made, accuse_of(made, evidence), evidence)
        assert len(judged) == 7  # 600 s, and what comes in meanwhile; there is a little left when the last one begins

    dealt(tmp_path, monkeypatch, play)


def test_the_same_evidence_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict that was given is given again, also where the time of both is used up."""

    async def play(made: Deal) -> None:
        evidence, arbiter = await made.accusation(), made.arbiter()
        found: list[bytes] = []

        async def guilty(data: bytes, **_: object) -> Verdict:
            found.append(data)
            await trio.sleep(2_000)
            peer = PeerId("somebody")
            return Verdict(
                wrong="provider",
                peer=peer,
                signature=None,
                reason="another result",
                kind="result",
                task=bytes(32),
                index=0,
                round=None,
                accuser=peer,
                provider=peer,
            )

        monkeypatch.setattr(arbiter_module, "verify_evidence", guilty)
        asked = accuse_of(made, evidence)
        first = await arbiter.judge(asked, evidence)
        assert await arbiter.judge(asked, evidence) == first
        assert found == [evidence]

    dealt(tmp_path, monkeypatch, play)
