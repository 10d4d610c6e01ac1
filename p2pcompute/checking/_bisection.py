"""The first round whose result differs, in as many questions as the number of rounds has bits: sans-IO.

A provider that runs a task in rounds has committed itself to the digests of all states (protocols/dispute/README.md).
Who has gone through the same rounds and ended elsewhere asks about the last state and the first, and then halves what
lies between a state that agrees and one that differs. The two end as neighbours: a round whose beginning is undisputed
and whose end is not. It alone has to be computed again, by whoever is to judge, so finding it leads to evidence.

    Challenger, who asks                         Defender, who has committed itself
    begin()             --- Challenge --->       answer()
    answer(Commitment)  <-- Commitment ---
                        --- Ask(state) --->      answer()
    answer(Claim)       <-- Claim --------
                        --- Settle ------->

Source: R. Canetti, B. Riva, G. Rothblum, "Practical Delegation of Computation using Multiple Servers" (CCS 2011), and
J. Teutsch, C. Reitwießner, "A scalable verification solution for blockchains" (2017), whose games this simplifies: what
is claimed is fixed by a Merkle root before the first question, so that answers need no signatures of their own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.dispute import (
    Ask,
    Challenge,
    Claim,
    Commitment,
    DisputeConnection,
    DisputeRefusal,
    RoundsPayload,
    Settle,
    StateClaim,
    rounds_tree,
)
from p2pcompute_protocols.envelope import Signer
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId, TaskId
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.wire import Record

from ._evidence import round_evidence

__all__ = ["Bisection", "Challenger", "Defender", "Finding", "SearchState"]


class SearchState(enum.Enum):
    """Where a search stands."""

    LAST = "last"  # do the last states differ?
    FIRST = "first"  # do the first ones?
    BETWEEN = "between"  # `low` agrees, `high` differs, and they are no neighbours
    FOUND = "found"
    NOTHING = "nothing"  # the last states agree: there is nothing to dispute


_S = SearchState
# state -> (where both agree, where they differ); BETWEEN is left once `low` and `high` are neighbours.
TRANSITIONS: Final[Mapping[SearchState, tuple[SearchState, SearchState]]] = {
    _S.LAST: (_S.NOTHING, _S.FIRST),
    _S.FIRST: (_S.BETWEEN, _S.FOUND),
    _S.BETWEEN: (_S.BETWEEN, _S.BETWEEN),
}


class Bisection:
    """The search alone: two parties' digests of the same state go in, the next state to ask for comes out.

    Args:
        rounds: how many there are, at least 1; states have the numbers 0 to `rounds`.

    Attributes:
        state: where it stands; `FOUND` and `NOTHING` are final.
        low: the highest state known to agree below `high`; -1 before any.
        high: the lowest state known to differ above `low`.
        questions: how many were asked; 2 + ceil(log2(rounds)) at most.
    """

    def __init__(self, rounds: int) -> None:
        if rounds < 1:
            raise LocalProtocolError(f"{rounds} rounds; there is at least one")
        self.rounds = rounds
        self.state = SearchState.LAST
        self.low, self.high = -1, rounds
        self.questions = 0

    @property
    def question(self) -> int | None:
        """The state to ask both parties for, or None at the end."""
        match self.state:
            case SearchState.LAST:
                return self.rounds
            case SearchState.FIRST:
                return 0
            case SearchState.BETWEEN:
                return (self.low + self.high) // 2
            case _:
                return None

    @property
    def round(self) -> int | None:
        """The first round whose result differs, once it is found; 0 where the first states differ."""
        return self.high if self.state is SearchState.FOUND else None

    def take(self, one: bytes, other: bytes) -> None:
        """Both parties' digests of the state that `question` names.

        Raises:
            LocalProtocolError: OUT_OF_ORDER, the search is over.
        """
        asked = self.question
        if asked is None:
            raise LocalProtocolError("the search is over", code=WireCode.OUT_OF_ORDER)
        self.questions += 1
        agrees = one == other
        following = TRANSITIONS[self.state][0 if agrees else 1]
        if agrees:
            self.low = asked
        else:
            self.high = asked
        neighbours = self.high - self.low == 1
        self.state = SearchState.FOUND if following is SearchState.BETWEEN and neighbours else following


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a dispute came to.

    Attributes:
        commitment: the provider's envelope.
        rounds: its payload.
        round: the first round whose result differs from ours; None where nothing does.
        claims: the committed states before and after it, with their proofs; for round 0 the first state alone.
    """

    commitment: bytes
    rounds: RoundsPayload
    round: int | None
    claims: tuple[StateClaim, ...]

    def evidence(
        self, agreement: Agreement, *, before: bytes, blobs: Mapping[bytes, bytes], signer: Signer, now_ms: int
    ) -> bytes:
        """A file that anybody can check; see `round_evidence`.

        Args:
            before: the bytes of the state before the round, which is undisputed; not looked at for round 0.

        Raises:
            LocalProtocolError: nothing differs.
        """
        if self.round is None:
            raise LocalProtocolError("nothing differs: there is nothing to accuse anybody of")
        return round_evidence(
            agreement,
            self.commitment,
            self.round,
            self.claims,
            before=before if self.round else b"",
            blobs=blobs,
            signer=signer,
            now_ms=now_ms,
        )


class Challenger:
    """Who asks: knows its own digest of every state, and compares.

    Bytes of the stream go through `connection`, whose events go into `answer`; a provider that answers anything but
    what it has committed itself to breaks the protocol there (`RemoteProtocolError`).

    Args:
        network, provider, task: whose commitment it has to be.
        ours: the digests of the states 0 to *n* as we computed them. For a referee between two providers, the claims
            of the other one: a function of the state's number that gives the digest.
        rounds: how many rounds we know of.
    """

    def __init__(
        self, *, network: str, provider: PeerId, task: TaskId, ours: Callable[[int], bytes], rounds: int
    ) -> None:
        self.connection = DisputeConnection(Role.REQUESTER)
        self.connection.network = network
        self.connection.provider = provider
        self.search = Bisection(rounds)
        self.finding: Finding | None = None
        self.refusal: DisputeRefusal | None = None
        self._task = task
        self._ours = ours
        self._commitment = b""
        self._claims: dict[int, StateClaim] = {}

    def begin(self) -> bytes:
        """What to send first."""
        return self.connection.send(Challenge(task=self._task))

    def answer(self, event: Record) -> bytes:
        """What to send next; b"" where nothing is left to say.

        Raises:
            LocalProtocolError: UNSUPPORTED, the provider has run another number of rounds: nothing can be compared.
        """
        match event:
            case Commitment():
                self._commitment = event.rounds
                rounds = self.connection.rounds
                assert rounds is not None  # the connection has just taken it
                if rounds.rounds != self.search.rounds:
                    raise LocalProtocolError(
                        f"{rounds.rounds} rounds there and {self.search.rounds} here", code=WireCode.UNSUPPORTED
                    )
            case Claim():
                asked = self.connection.asked
                self._claims[asked] = event.claim
                self.search.take(self._ours(asked), event.claim.digest)
            case DisputeRefusal():
                self.refusal = event
                return b""
            case _:
                return b""
        question = self.search.question
        if question is not None:
            return self.connection.send(Ask(state=question))
        self.finding = self._found()
        return self.connection.send(Settle(round=self.finding.round))

    def _found(self) -> Finding:
        assert self.connection.rounds is not None
        round_ = self.search.round
        numbers: tuple[int, ...] = () if round_ is None else (round_ - 1, round_) if round_ else (0,)
        return Finding(
            commitment=self._commitment,
            rounds=self.connection.rounds,
            round=round_,
            claims=tuple(self._claims[number] for number in numbers),
        )


class Defender:
    """Who is asked: shows its commitment, and the states that it is asked for.

    Args:
        commitment: the envelope; `digests` are those of the states 0 to *n* that it commits to.
        network, provider, task: what is in it.
    """

    def __init__(
        self, *, commitment: bytes, digests: Sequence[bytes], network: str, provider: PeerId, task: TaskId
    ) -> None:
        self.connection = DisputeConnection(Role.PROVIDER)
        self.connection.network = network
        self.connection.provider = provider
        self.settled: Settle | None = None
        self._commitment = commitment
        self._digests = digests
        self._tree = rounds_tree(digests)
        self._task = task

    def answer(self, event: Record) -> bytes:
        """What to send next; b"" where nothing is left to say."""
        match event:
            case Challenge():
                if event.task != self._task:
                    return self.connection.send(
                        DisputeRefusal(code=WireCode.UNSUPPORTED, detail="no rounds of this task are kept here")
                    )
                return self.connection.send(Commitment(rounds=self._commitment))
            case Ask():
                claim = StateClaim(digest=self._digests[event.state], proof=self._tree.proof(event.state))
                return self.connection.send(Claim(claim=claim))
            case Settle():
                self.settled = event
                return b""
            case _:
                return b""
