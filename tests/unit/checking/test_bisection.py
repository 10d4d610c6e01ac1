"""Bisection: the first round that differs, whatever a liar has made up, and a verdict on that round alone."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2pcompute.checking import Bisection, Challenger, Defender, SearchState
from p2pcompute.checking._bisection import TRANSITIONS
from p2pcompute_protocols import dispute
from p2pcompute_protocols.connection import NEED_DATA
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import TaskId
from p2pcompute_protocols.limits import MAX_DISPUTE_QUESTIONS, MAX_LEAVES
from p2pcompute_protocols.wire import Record

from ..protocols.vectors._dispute import TASK_ID
from ..protocols.vectors._material import NETWORK, NOW, PROVIDER, REQUESTER, STRANGER, Node
from ._disputes import Case, blur, case_of, judge

ROUNDS = st.integers(1, 400)


def digests(states: list[bytes]) -> list[bytes]:
    return [hashlib.sha256(state).digest() for state in states]


# The search


@given(st.data(), ROUNDS)
def test_a_round_that_differs_is_found_and_its_beginning_agrees(data: st.DataObject, rounds: int) -> None:
    """Two histories that agree and differ wherever they like, even back and forth."""
    differ = data.draw(st.lists(st.booleans(), min_size=rounds + 1, max_size=rounds + 1))
    search = Bisection(rounds)
    seen: list[int] = []
    while (asked := search.question) is not None:
        seen.append(asked)
        search.take(b"ours", b"theirs" if differ[asked] else b"ours")
    assert search.questions == len(seen) == len(set(seen)) <= 2 + math.ceil(math.log2(rounds))
    found = search.round
    if not differ[-1]:
        assert (found, search.state) == (None, SearchState.NOTHING)
    else:
        assert found is not None
        assert differ[found]
        assert found == 0 or not differ[found - 1]


@given(st.data(), ROUNDS)
def test_where_all_goes_wrong_from_one_round_on_it_is_the_one(data: st.DataObject, rounds: int) -> None:
    wrong = data.draw(st.integers(0, rounds))
    search = Bisection(rounds)
    while (asked := search.question) is not None:
        search.take(b"ours", b"theirs" if asked >= wrong else b"ours")
    assert search.round == wrong


def test_the_bounds_of_a_search() -> None:
    longest = Bisection(MAX_LEAVES - 1)
    while (asked := longest.question) is not None:
        longest.take(b"", b"x" if asked else b"")
    assert longest.round == 1
    assert longest.questions <= MAX_DISPUTE_QUESTIONS
    with pytest.raises(LocalProtocolError, match="over"):
        longest.take(b"", b"")
    with pytest.raises(LocalProtocolError, match="at least one"):
        Bisection(0)


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(SearchState) - {SearchState.FOUND, SearchState.NOTHING}
    reached = {to for row in TRANSITIONS.values() for to in row} | {SearchState.LAST}
    assert reached == set(SearchState)


# The dialogue


def play(challenger: Challenger, defender: Defender, *, twist: Any = None) -> list[Record]:
    """Let the two talk; `twist` may exchange a claim on its way. Gives what the challenger heard."""
    heard: list[Record] = []
    said = challenger.begin()
    while said:
        defender.connection.receive_data(said)
        event = defender.connection.next_event()
        assert isinstance(event, Record)
        answer = defender.answer(event)
        if not answer:
            break
        if twist is not None:
            answer = twist(answer)
        challenger.connection.receive_data(answer)
        event = challenger.connection.next_event()
        assert isinstance(event, Record)
        heard.append(event)
        said = challenger.answer(event)
    assert challenger.connection.next_event() is NEED_DATA
    return heard


def parties(
    ours: list[bytes], theirs: list[bytes], *, task: bytes = TASK_ID, node: Node = PROVIDER
) -> tuple[Challenger, Defender]:
    """Of two histories of digests."""
    tree = dispute.rounds_tree(theirs)
    made = dispute.RoundsPayload(task=task, state=1, out=0, rounds=len(theirs) - 1, root=tree.root, finished_ms=NOW)
    raw = dispute.seal_rounds(made, network=NETWORK, signer=node)
    known: Any = {"network": NETWORK, "provider": PROVIDER.peer_id, "task": TaskId(task)}
    return (
        Challenger(ours=ours.__getitem__, rounds=len(ours) - 1, **known),
        Defender(commitment=raw, digests=theirs, **known),
    )


@given(st.data(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_whatever_a_liar_has_made_up_one_round_of_it_is_shown(data: st.DataObject, rounds: int) -> None:
    ours = digests([bytes([n]) for n in range(rounds + 1)])
    forged = data.draw(st.lists(st.booleans(), min_size=rounds + 1, max_size=rounds + 1))
    theirs = [bytes(31) + bytes([n]) if lie else ours[n] for n, lie in enumerate(forged)]
    challenger, defender = parties(ours, theirs)
    heard = play(challenger, defender)
    finding = challenger.finding
    assert finding is not None
    assert challenger.connection.is_done
    assert defender.connection.is_done
    assert defender.settled == dispute.Settle(round=finding.round)
    assert sum(isinstance(event, dispute.Claim) for event in heard) <= 2 + math.ceil(math.log2(rounds))
    if finding.round is None:
        assert not forged[-1]
        with pytest.raises(LocalProtocolError, match="nothing differs"):
            finding.evidence(None, before=b"", blobs={}, signer=REQUESTER, now_ms=NOW)  # type: ignore[arg-type]
        return
    numbers = [finding.round - 1, finding.round] if finding.round else [0]
    assert [claim.proof.index for claim in finding.claims] == numbers
    assert [claim.digest for claim in finding.claims] == [theirs[n] for n in numbers]
    assert forged[finding.round]
    for claim, number in zip(finding.claims, numbers, strict=True):
        dispute.check_claim(claim, finding.rounds, number)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_answers_that_are_made_up_on_the_way_are_refused(data: st.DataObject) -> None:
    """A liar answers each question as it suits it: its commitment speaks against it at once."""
    rounds = 16
    ours = digests([bytes([n]) for n in range(rounds + 1)])
    theirs = [*ours[:5], *digests([b"x", b"y"]), *digests([bytes([n + 99]) for n in range(rounds - 6)])]
    challenger, defender = parties(ours, theirs)
    when = data.draw(st.integers(0, 3))
    how = data.draw(st.sampled_from(["honest digest", "another state's", "another place", "another tree"]))
    count = 0

    def twist(answer: bytes) -> bytes:
        nonlocal count
        if count != when + 1:  # the first answer is the commitment
            count += 1
            return answer
        count += 1
        asked = defender.connection.asked
        tree = dispute.rounds_tree(theirs)
        digest, proof = theirs[asked], tree.proof(asked)
        match how:
            case "honest digest":
                digest = ours[asked] if ours[asked] != digest else bytes(32)
            case "another state's":
                digest = theirs[(asked + 1) % len(theirs)]
            case "another place":
                proof = tree.proof((asked + 1) % len(theirs))
            case _:
                digest, proof = ours[asked], dispute.rounds_tree([*ours[:-1], bytes(32)]).proof(asked)
        from p2pcompute_protocols.framing import frame

        claim = dispute.Claim(claim=dispute.StateClaim(digest=digest, proof=proof))
        return frame(claim.encode(), max_bytes=65_536)

    with pytest.raises(RemoteProtocolError) as refused:
        play(challenger, defender, twist=twist)
    assert refused.value.code in (WireCode.BAD_DIGEST, WireCode.REPLAYED)
    assert challenger.finding is None


def test_without_a_commitment_a_liar_denies_what_it_delivered() -> None:
    """The attack: it has delivered another last state, and says the right digests when it is asked."""
    ours = digests([bytes([n]) for n in range(9)])
    delivered = [*ours[:4], *digests([bytes([n + 50]) for n in range(5)])]
    unbound = Bisection(8)
    while (asked := unbound.question) is not None:
        unbound.take(ours[asked], ours[asked])  # whatever it says counts
    assert unbound.state is SearchState.NOTHING  # it gets away with it
    challenger, defender = parties(ours, delivered)
    defender._digests = ours  # what it would like to say
    with pytest.raises((LocalProtocolError, RemoteProtocolError)) as refused:
        play(challenger, defender)
    assert refused.value.code is WireCode.BAD_DIGEST
    challenger, defender = parties(ours, delivered)
    play(challenger, defender)
    assert challenger.finding is not None
    assert challenger.finding.round == 4


def test_commitments_of_others_are_refused() -> None:
    ours = digests([b"a", b"b", b"c"])
    challenger, defender = parties(ours, ours, node=STRANGER)
    with pytest.raises((LocalProtocolError, RemoteProtocolError)) as refused:
        play(challenger, defender)
    assert refused.value.code is WireCode.WRONG_PEER
    challenger, _ = parties(ours, ours, task=bytes(32))
    _, defender = parties(ours, ours)
    play(challenger, defender)
    assert challenger.refusal is not None
    assert challenger.finding is None
    assert challenger.connection.is_done
    shorter, _ = parties(ours[:2], ours[:2])
    _, defender = parties(ours, ours)
    with pytest.raises(LocalProtocolError, match="2 rounds there and 1 here") as unlike:
        play(shorter, defender)
    assert unlike.value.code is WireCode.UNSUPPORTED


# With a kernel: the round that was found is judged by somebody who has only the file


@pytest.fixture(scope="module")
def truth() -> tuple[Case, list[bytes]]:
    case = case_of(blur)
    return case, case.states(13)


def settle(case: Case, ours: list[bytes], theirs: list[bytes]) -> tuple[int | None, str]:
    """Who wins where one party has `ours` and the provider has committed itself to `theirs`."""
    raw, _ = case.committed(theirs)
    known: Any = {"network": NETWORK, "provider": PROVIDER.peer_id, "task": case.agreement.task_id}
    mine = digests(ours)
    challenger = Challenger(ours=mine.__getitem__, rounds=len(ours) - 1, **known)
    play(challenger, Defender(commitment=raw, digests=digests(theirs), **known))
    finding = challenger.finding
    assert finding is not None
    if finding.round is None:
        return None, "nobody"
    before = ours[finding.round - 1] if finding.round else b""
    file = finding.evidence(case.agreement, before=before, blobs=case.blobs, signer=REQUESTER, now_ms=NOW)
    return finding.round, judge(file).wrong


def spoiled(state: bytes) -> bytes:
    return state[:100] + bytes([state[100] ^ 4]) + state[101:]


@pytest.mark.parametrize("wrong", [1, 2, 7, 13])
def test_a_provider_that_went_wrong_is_convicted_by_one_round(truth: tuple[Case, list[bytes]], wrong: int) -> None:
    case, states = truth
    assert settle(case, states, [*states[:wrong], *map(spoiled, states[wrong:])]) == (wrong, "provider")


@pytest.mark.parametrize("wrong", [0, 1, 6, 13])
def test_a_challenger_that_lies_convicts_itself(truth: tuple[Case, list[bytes]], wrong: int) -> None:
    case, states = truth
    assert settle(case, [*states[:wrong], *map(spoiled, states[wrong:])], states) == (wrong, "accuser")


def test_a_history_that_begins_elsewhere_or_only_ends_rightly(truth: tuple[Case, list[bytes]]) -> None:
    case, states = truth
    elsewhere = [spoiled(states[0]), *map(spoiled, states[1:])]
    assert settle(case, states, elsewhere) == (0, "provider")
    detour = [*states[:3], *map(spoiled, states[3:-1]), states[-1]]
    assert settle(case, states, detour) == (None, "nobody")


def test_a_referee_between_two_providers_asks_both_and_believes_neither(truth: tuple[Case, list[bytes]]) -> None:
    """Two that have committed themselves to unlike histories: each is held against the other's, and computing one
    round convicts whoever is wrong, both if need be."""
    case, states = truth

    def held_against(theirs: list[bytes], others: list[bytes]) -> str:
        return settle(case, others, theirs)[1]

    one = [*states[:5], *map(spoiled, states[5:])]
    other = [*states[:9], *(bytes(len(state)) for state in states[9:])]
    assert held_against(one, states) == "provider"
    assert held_against(states, one) == "accuser"  # who brings the wrong history loses
    # Both are wrong, the one from round 5 on, the other from round 9 on: they part at 5, where the other is right.
    assert held_against(one, other) == "provider"
    assert held_against(other, one) == "accuser"
    assert held_against(other, states) == "provider"
