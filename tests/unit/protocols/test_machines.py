"""Two connections and the bytes between them: honest sides never accuse each other, however bytes are split.

Each machine lets both sides say whatever their own connection lets them say, in any order, while bytes of either
direction arrive late and in pieces. What must hold: everything that was said arrives, in order and unchanged; no
side ever gets `RemoteProtocolError`; a refused message changes nothing. Afterwards the same bytes are given to a
fresh side byte by byte, and must be the same events.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from p2pcompute_protocols import ads, blob, channel, dispute, negotiation, stake, task, watch
from p2pcompute_protocols.connection import NEED_DATA, Connection, Role
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.limits import MAX_STATES_PER_CHUNK
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import ArrayArg, OutArg

from .test_tables import BINDING, CHAIN, HOLDER, memory
from .vectors._blob import ANOTHER, LEAVES, PIECES, want
from .vectors._dispute import ROUNDS, TASK_ID, a_claim, rounds_bytes
from .vectors._material import NETWORK, PROVIDER
from .vectors._material import work as some_work

BLOBS = {hashlib.sha256(blob).digest(): blob for blob in (b"kernel", b"input of a task", b"x" * 700)}
ARRAYS = {hashlib.sha256(array).digest(): array for array in (b"own", b"one", b"two")}  # of calls
OWN = hashlib.sha256(b"own").digest()
CONTENT = {**BLOBS, **ARRAYS}
CHUNKS, WHOLE, LAST = 6, 40, 7
R, P = Role.REQUESTER, Role.PROVIDER
DELIVERIES: list[list[tuple[Role, float]]] = [[], [(P, 1.0)], [(R, 1.0)], [(R, 1.0), (P, 1.0)], [(P, 0.4)], [(R, 0.4)]]


class Dialogue(RuleBasedStateMachine):
    """Requester and provider of one protocol over a lossless pipe."""

    kind: ClassVar[type[Connection[Any]]]

    @initialize(hasty=st.sampled_from([False, False, True]))
    def begin(self, hasty: bool) -> None:
        self.hasty = hasty  # a requester that finishes before anything is ready, so that messages cross
        self.sides: dict[Role, Connection[Any]] = {role: self.fresh(role) for role in Role}
        self.wire: dict[Role, bytearray] = {role: bytearray() for role in Role}  # bytes under way to `role`
        self.history: dict[Role, list[Any]] = {role: [] for role in Role}  # what `role` did, in order
        self.said: dict[Role, list[Record]] = {role: [] for role in Role}
        self.heard: dict[Role, list[Record]] = {role: [] for role in Role}

    def fresh(self, role: Role) -> Connection[Any]:
        return self.kind(role)

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        """What that side may want to say, legal or not."""
        raise NotImplementedError

    def stopped(self, role: Role) -> bool:
        """Whether this side has left: it reads no more."""
        return False

    @rule(role=st.sampled_from(Role), data=st.data())
    def say(self, role: Role, data: st.DataObject) -> None:
        conn = self.sides[role]
        message = data.draw(self.messages(conn))
        before, table = memory(conn), conn.table[role].get(conn.state, {})
        try:
            sent = conn.send(message)
        except LocalProtocolError:
            assert memory(conn) == before
            return
        assert conn.state is table[type(message)]
        self.said[role].append(message)
        self.history[role].append(message)
        self.wire[role.other] += sent

    @rule(role=st.sampled_from(Role), share=st.floats(0, 1))
    def deliver(self, role: Role, share: float) -> None:
        if self.stopped(role):
            return
        waiting = self.wire[role]
        size = max(1, int(len(waiting) * share))
        piece = bytes(waiting[:size])
        if not piece:
            return
        del waiting[:size]
        conn = self.sides[role]
        conn.receive_data(piece)
        self.history[role].append(piece)
        while (event := conn.next_event()) is not NEED_DATA:
            assert isinstance(event, Record)
            self.heard[role].append(event)

    @invariant()
    def what_is_heard_was_said(self) -> None:
        for role in Role:
            heard = self.heard[role]
            assert heard == self.said[role.other][: len(heard)]

    @invariant()
    def once_all_has_arrived_both_sides_know_the_same(self) -> None:
        if not any(self.wire.values()) and not any(self.stopped(role) for role in Role):
            one, other = (memory(self.sides[role]) for role in Role)
            assert {**one, "role": None, "_buffer": 0} == {**other, "role": None, "_buffer": 0}

    def teardown(self) -> None:
        for role in Role:
            # The same life again, with every piece fed byte by byte.
            conn = self.fresh(role)
            heard: list[Any] = []
            for step in self.history[role]:
                if isinstance(step, Record):
                    conn.send(step)
                    continue
                for byte in step:
                    conn.receive_data(bytes([byte]))
                    while (event := conn.next_event()) is not NEED_DATA:
                        heard.append(event)
            assert heard == self.heard[role]
            assert memory(conn) == memory(self.sides[role])


class AdsDialogue(Dialogue):
    kind = ads.AdsConnection

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        blob = st.binary(min_size=1, max_size=50)
        return st.one_of(
            st.builds(ads.AdQuery, limit=st.integers(1, 64), kind=st.sampled_from(["cpu", "cuda", None])),
            st.builds(ads.AdBatch, ads=st.lists(blob, max_size=4).map(tuple), more=st.booleans()),
            st.just(ads.AdRefusal(code=13, detail="busy")),
        )


class NegotiationDialogue(Dialogue):
    kind = negotiation.NegotiationConnection

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        blob = st.binary(min_size=1, max_size=300)
        return st.one_of([st.builds(cls, envelope=blob) for cls in negotiation.MESSAGES.values()])

    @invariant()
    def rounds_are_bounded(self) -> None:
        orders = [m for m in self.said[Role.REQUESTER] if isinstance(m, negotiation.OrderFrame)]
        assert len(orders) <= 3


class ChannelDialogue(Dialogue):
    kind = channel.ChannelConnection

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        near = st.integers(0, 6).map(lambda n: max(0, getattr(conn, "best_uusd", 0) + n - 2))
        offered = st.just(getattr(conn, "_offered_uusd", 0))
        sync = near.map(
            lambda n: channel.ChannelSync(
                amount_uusd=n, memo=bytes(32) if n else None, signature=bytes(65) if n else None
            )
        )
        return st.one_of(
            st.just(channel.ChannelHello(chain=CHAIN, payer=BINDING, payee=b"p" * 20)),
            st.builds(channel.VoucherFrame, amount_uusd=near, memo=st.just(bytes(32)), signature=st.just(bytes(65))),
            st.builds(channel.CloseAsk, amount_uusd=near),
            sync,
            st.just(channel.ConsentFrame(epoch=0, deadline_s=1, signature=bytes(65))),
            st.builds(channel.VoucherAck, amount_uusd=near | offered),
            st.builds(channel.VoucherRefusal, code=st.just(19), detail=st.just(""), best_uusd=near),
        )

    @invariant()
    def amounts_never_go_back(self) -> None:
        acked = [m.amount_uusd for m in self.said[Role.PROVIDER] if isinstance(m, channel.VoucherAck)]
        assert acked == sorted(set(acked))

    @invariant()
    def nothing_is_said_after_a_consent(self) -> None:
        kinds = [type(message) for message in self.said[Role.PROVIDER]]
        assert channel.ConsentFrame not in kinds[:-1]


class WatchDialogue(Dialogue):
    kind = watch.WatchConnection

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        amounts = st.integers(1, 4)
        vouchers = st.builds(
            watch.WatchedVoucher,
            payer=st.integers(0, 3).map(lambda n: bytes([n]) * 20),
            signer=st.just(b"s" * 20),
            amount_uusd=amounts,
            memo=st.just(bytes(32)),
            signature=st.just(bytes(65)),
        )
        one = vouchers.map(lambda voucher: (voucher,))
        return st.one_of(
            st.just(watch.WatchHello(chain=CHAIN, owner=BINDING)),
            st.builds(watch.WatchKeep, voucher=vouchers),
            st.builds(watch.WatchFetch, after=st.none() | vouchers.map(lambda voucher: voucher.place)),
            st.builds(watch.WatchWelcome, kept=amounts, room=amounts),
            st.builds(watch.WatchKept, amount_uusd=amounts),
            st.builds(watch.WatchGiven, vouchers=one, more=st.booleans()),
            st.builds(watch.WatchRefusal, code=st.just(13), detail=st.just("")),
        )

    @invariant()
    def questions_have_one_answer_each(self) -> None:
        asked = [m for m in self.said[Role.REQUESTER] if isinstance(m, watch.WatchKeep | watch.WatchFetch)]
        answers = [m for m in self.said[Role.PROVIDER] if not isinstance(m, watch.WatchWelcome)]
        assert 0 <= len(asked) - len(answers) + (1 if self._refused() else 0) <= 1
        kept = [m.voucher.amount_uusd for m in asked if isinstance(m, watch.WatchKeep)]
        held = [m.amount_uusd for m in answers if isinstance(m, watch.WatchKept)]
        assert len(held) <= len(kept)

    def _refused(self) -> bool:
        said = self.said[Role.PROVIDER]
        return bool(said) and isinstance(said[0], watch.WatchRefusal)


class StakeDialogue(Dialogue):
    kind = stake.StakeConnection

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        terms = stake.PledgedTerms(
            chain=CHAIN,
            registry=bytes(20),
            task=bytes(32),
            provider=b"p" * 20,
            requester=b"q" * 20,
            at_risk_uusd=2,
            threshold=1,
            expires_s=1,
            arbiters=(b"a" * 20,),
        )
        digests = st.sampled_from([b"d" * 32, b"e" * 32])
        signed = bytes(65)
        return st.one_of(
            st.just(stake.CardQuery()),
            st.just(stake.Pledge(terms=terms, signature=signed, cards=(b"c",))),
            st.just(stake.StrictQuery(task=bytes(32), index=0)),
            st.builds(
                stake.Accuse,
                terms=st.just(terms),
                provider_signature=st.just(signed),
                requester_signature=st.just(signed),
                size=st.integers(1, 3),
                digest=digests,
            ),
            st.integers(1, 2).map(lambda size: stake.EvidencePiece(data=bytes(size))),
            st.just(stake.EvidenceEnd()),
            st.just(stake.CardGiven(card=b"c")),
            st.just(stake.Pledged(signature=signed)),
            st.just(stake.StrictGiven(output=bytes(32), signature=signed)),
            st.just(stake.Proceed()),
            st.builds(stake.VerdictGiven, amount_uusd=st.integers(1, 3), evidence=digests, signature=st.just(signed)),
            st.just(stake.StakeRefusal(code=9, detail="no")),
        )

    @invariant()
    def verdicts_are_on_what_was_sent(self) -> None:
        accused = [m for m in self.said[Role.REQUESTER] if isinstance(m, stake.Accuse)]
        verdicts = [m for m in self.said[Role.PROVIDER] if isinstance(m, stake.VerdictGiven)]
        assert len(verdicts) <= len(accused)
        assert all(m.evidence in {one.digest for one in accused} and m.amount_uusd <= 2 for m in verdicts)
        got = sum(len(m.data) for m in self.said[Role.REQUESTER] if isinstance(m, stake.EvidencePiece))
        assert got <= sum(m.size for m in accused)


class DisputeDialogue(Dialogue):
    kind = dispute.DisputeConnection

    def fresh(self, role: Role) -> Connection[Any]:
        conn = dispute.DisputeConnection(role)
        conn.network, conn.provider = NETWORK, PROVIDER.peer_id
        return conn

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        state = st.integers(0, ROUNDS + 1)
        if conn.role is Role.REQUESTER:
            return st.one_of(
                st.sampled_from([dispute.Challenge(task=TASK_ID), dispute.Challenge(task=bytes(32))]),
                st.builds(dispute.Ask, state=state),
                st.builds(dispute.Ask, state=state),
                st.integers(0, 9).map(lambda n: dispute.Ask(state=0) if n else dispute.Settle(round=1)),
            )
        asked = getattr(conn, "asked", 0)
        return st.one_of(
            st.sampled_from([dispute.Commitment(rounds=rounds_bytes()), dispute.Commitment(rounds=b"r")]),
            st.integers(0, ROUNDS).map(lambda n: dispute.Claim(claim=a_claim(n))),
            st.just(dispute.Claim(claim=a_claim(asked))),
            st.integers(0, 9).map(
                lambda n: dispute.Claim(claim=a_claim(asked)) if n else dispute.DisputeRefusal(code=9, detail="no")
            ),
        )

    @invariant()
    def every_claim_was_asked_for(self) -> None:
        asked = [m.state for m in self.said[Role.REQUESTER] if isinstance(m, dispute.Ask)]
        claimed = [m.claim.proof.index for m in self.said[Role.PROVIDER] if isinstance(m, dispute.Claim)]
        assert claimed == asked[: len(claimed)]


class BlobDialogue(Dialogue):
    kind = blob.BlobConnection

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        index = st.integers(0, 3)
        if conn.role is Role.REQUESTER:
            return st.one_of(
                st.sampled_from([want(), want(), want(root=ANOTHER)]),
                st.builds(blob.BlobGet, index=index),
                st.builds(blob.BlobGet, index=index),
                st.builds(blob.BlobDrop, index=index),
                st.integers(0, 8).map(lambda n: blob.BlobDrop(index=0) if n else blob.BlobDone()),
            )
        return st.one_of(
            st.sampled_from([b"\x00", b"\x02", b"\x05"]).map(lambda held: blob.BlobHave(leaves=LEAVES, held=held)),
            st.builds(blob.BlobHeld, index=index),
            st.sampled_from([(2, PIECES[2]), (2, PIECES[2]), (2, b"jello"), (0, b"hello")]).map(
                lambda piece: blob.BlobPiece(index=piece[0], data=piece[1])
            ),
            st.builds(blob.BlobDropped, index=index, code=st.just(23)),
            st.integers(0, 8).map(lambda n: blob.BlobHeld(index=0) if n else blob.BlobGone(code=12, detail="")),
        )

    @invariant()
    def each_get_is_answered_once(self) -> None:
        if not hasattr(self, "said"):
            return
        for index in range(3):
            asked = [m for m in self.said[Role.REQUESTER] if isinstance(m, blob.BlobGet) and m.index == index]
            kinds = (blob.BlobPiece, blob.BlobDropped)
            answers = [m for m in self.said[Role.PROVIDER] if isinstance(m, kinds) and m.index == index]
            assert len(answers) <= len(asked)


class TaskDialogue(Dialogue):
    kind = task.TaskConnection

    def fresh(self, role: Role) -> Connection[Any]:
        conn = task.TaskConnection(role)
        conn.chunks, conn.chunk_bytes = CHUNKS, (WHOLE, LAST)
        conn.blob_sizes = {digest: len(blob) for digest, blob in BLOBS.items()}
        return conn

    def stopped(self, role: Role) -> bool:
        # Who sends `Refused` reads no further: what the requester said meanwhile has crossed it (see the spec).
        said = self.said[role]
        return bool(said) and isinstance(said[-1], task.Refused)

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        assert isinstance(conn, task.TaskConnection)
        some = st.integers(0, CHUNKS)
        if conn.role is Role.REQUESTER:
            choices = [
                st.builds(task.Assign, index=some),
                st.builds(task.Assign, index=some),
                st.builds(task.Cancel, index=some),
                st.just(task.Open(agreement=b"a")),
                st.sampled_from([task.BlobStart(digest=d, size=len(b)) for d, b in BLOBS.items()]),
                st.builds(task.BlobData, data=st.binary(min_size=1, max_size=20)),
                st.builds(
                    task.Share,
                    digest=st.sampled_from([*BLOBS, bytes(32)]),
                    root=st.just(bytes(32)),
                    ticket=st.sampled_from([bytes(32), bytes(32), b"t" * 32]),
                    holders=st.sampled_from([(), (HOLDER,), (HOLDER,) * 9]),
                ),
            ]
            if conn._blob is not None:
                digest, left = conn._blob
                rest = CONTENT[digest][-left:]
                piece = st.integers(1, len(rest)).map(lambda n: task.BlobData(data=rest[:n]))
                choices += [piece, st.just(task.BlobData(data=rest))]
            return st.one_of(choices) | st.integers(0, 30).map(
                lambda n: task.Cancel(index=0) if n else task.Finish(code=0, detail="")
            )
        choices = [
            st.lists(st.sampled_from(list(BLOBS)), max_size=3, unique=True).map(
                lambda need: task.Opened(need=tuple(need), slots=1, window=1, fetches=len(need) > 1 or None)
            ),
            st.just(task.Ready(compile_ms=5)),
            st.builds(
                task.ResultStart, index=some, receipt=st.just(b"r"), size=st.sampled_from([WHOLE, WHOLE, LAST, 9])
            ),
            st.builds(task.ResultData, data=st.binary(min_size=1, max_size=WHOLE)),
            st.builds(task.ChunkError, index=some, receipt=st.just(b"r")),
            st.just(task.Notice(kind="window", window=4)),
            st.just(task.Closed(chunks=1)),
        ]
        if conn._result_left:
            choices.append(st.just(task.ResultData(data=bytes(conn._result_left))))
        return st.one_of(choices) | st.integers(0, 40).map(
            lambda n: task.Notice(kind="pause") if n else task.Refused(code=15, detail="no")
        )

    def legal(self, conn: task.TaskConnection) -> list[st.SearchStrategy[Record]]:
        """What that side may say now, by its own view."""
        state, notices = conn.state, st.sampled_from(["pause", "resume", "drain"]).map(lambda k: task.Notice(kind=k))
        finish: st.SearchStrategy[Record] = st.just(task.Finish(code=0, detail=""))
        if conn.role is Role.REQUESTER:
            match state:
                case task.TaskState.IDLE:
                    return [st.just(task.Open(agreement=b"a"))]
                case task.TaskState.SETUP if conn._blob is not None:
                    digest, left = conn._blob
                    come, rest = BLOBS[digest][:-left], BLOBS[digest][-left:]
                    if conn._hash.digest() != hashlib.sha256(come).digest():
                        return []  # `say` has put other bytes into it: nothing completes it any more
                    return [st.sampled_from([1, len(rest)]).map(lambda n: task.BlobData(data=rest[:n]))]
                case task.TaskState.SETUP if conn.needed:
                    return [
                        st.sampled_from(sorted(conn.needed)).map(lambda d: task.BlobStart(digest=d, size=len(BLOBS[d])))
                    ]
                case task.TaskState.RUNNING:
                    free = [n for n in range(CHUNKS) if n not in conn.outstanding]
                    assign = [st.sampled_from(free).map(lambda n: task.Assign(index=n))] if free else []
                    cancel = st.integers(0, CHUNKS - 1).map(lambda n: task.Cancel(index=n))
                    return [*assign * 12, cancel, cancel, finish]
                case task.TaskState.OPENING | task.TaskState.SETUP if self.hasty:
                    return [finish]
                case _:
                    return []
        match state:
            case task.TaskState.OPENING:
                some = st.lists(st.sampled_from(sorted(BLOBS)), max_size=2, unique=True)
                return [some.map(lambda need: task.Opened(need=tuple(need), slots=1, window=1, fetches=True))]
            case task.TaskState.SETUP if not conn.needed and conn._blob is None:
                if conn._has_not_compiled:
                    return []  # `Refused` would end most examples here
                failed = task.ChunkError(index=0, receipt=b"r")
                return [st.integers(0, 9).map(lambda n: task.Ready(compile_ms=5) if n else failed)]
            case task.TaskState.RUNNING | task.TaskState.FINISHING if conn._result_left:
                return [st.sampled_from([1, conn._result_left]).map(lambda n: task.ResultData(data=bytes(n)))]
            case task.TaskState.RUNNING | task.TaskState.FINISHING:
                asked = st.sampled_from(sorted(conn.outstanding)) if conn.outstanding else None
                answers = (
                    []
                    if asked is None
                    else [
                        asked.map(
                            lambda n: task.ResultStart(index=n, receipt=b"r", size=LAST if n == CHUNKS - 1 else WHOLE)
                        ),
                        asked.map(lambda n: task.ChunkError(index=n, receipt=b"r")),
                    ]
                )
                closing = [st.just(task.Closed(chunks=1))] if state is task.TaskState.FINISHING else []
                return closing if conn._has_not_compiled else [*answers * 3, *closing, notices]
            case _:
                return []

    @rule(data=st.data(), steps=st.integers(1, 25))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        """A stretch of legal steps, so that examples get as far as results."""
        for _ in range(steps):
            role = data.draw(st.sampled_from(Role))
            conn = self.sides[role]
            assert isinstance(conn, task.TaskConnection)
            choices = self.legal(conn)
            if choices:
                message = data.draw(st.one_of(choices))
                self.history[role].append(message)
                self.said[role].append(message)
                self.wire[role.other] += conn.send(message)
            for to, share in data.draw(st.sampled_from(DELIVERIES)):
                self.deliver(to, share)

    @invariant()
    def each_chunk_is_answered_once(self) -> None:
        if not hasattr(self, "said"):
            return
        for index in range(CHUNKS):
            asked = sum(1 for m in self.said[Role.REQUESTER] if isinstance(m, task.Assign) and m.index == index)
            answers = [m for m in self.said[Role.PROVIDER] if isinstance(m, task.ResultStart | task.ChunkError)]
            # One of chunk 0 where compiling failed; then no chunk was assigned at all.
            failed = index == 0 and self.sides[Role.PROVIDER]._has_not_compiled  # type: ignore[attr-defined]
            assert sum(1 for m in answers if m.index == index) <= (1 if failed else asked)


class RoundsDialogue(TaskDialogue):
    """The same for work in rounds: chunks in order, and states on demand."""

    def fresh(self, role: Role) -> Connection[Any]:
        conn = super().fresh(role)
        assert isinstance(conn, task.TaskConnection)
        conn.chunk_bytes, conn.chunk_rounds, conn.state_arrays = (WHOLE, LAST), 1, (3, 2)
        return conn

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        if conn.role is Role.REQUESTER:
            return super().messages(conn) | st.builds(task.GetState, state=st.integers(1, CHUNKS + 1))
        state = st.integers(1, CHUNKS + 1)
        digests = st.sampled_from([(bytes(32),) * 2, (bytes(32),)])
        return (
            super().messages(conn)
            | st.builds(task.StateStart, state=state, arrays=digests)
            | st.builds(task.StateData, data=st.binary(min_size=1, max_size=6))
            | st.builds(task.StateGone, state=state, code=st.just(12), detail=st.just(""))
        )

    def legal(self, conn: task.TaskConnection) -> list[st.SearchStrategy[Record]]:
        if conn.role is Role.REQUESTER and conn.state is task.TaskState.RUNNING:
            said: list[Record] = [task.Finish(code=0, detail="")]
            if conn.assigned < CHUNKS:
                said += [task.Assign(index=conn.assigned)] * 8
            if conn.last_state and conn._may_ask:
                said += [task.GetState(state=n) for n in range(1, conn.last_state + 1)]
            return [st.sampled_from(said)]
        if conn.role is Role.PROVIDER and conn.state in (task.TaskState.RUNNING, task.TaskState.FINISHING):
            if conn._state_left:
                return [st.sampled_from([1, conn._state_left]).map(lambda n: task.StateData(data=bytes(n)))]
            if conn.asked and not conn._result_left:
                state = conn.asked[0]
                start = task.StateStart(state=state, arrays=(bytes(32),) * 2)
                return [st.sampled_from([start, start, task.StateGone(state=state, code=12, detail="")])]
            if conn.outstanding and not conn._result_left:
                index = min(conn.outstanding)
                result = task.ResultStart(index=index, receipt=b"r", size=LAST if index == CHUNKS - 1 else WHOLE)
                return [st.sampled_from([result, result, task.ChunkError(index=index, receipt=b"r")])]
        return super().legal(conn)

    @invariant()
    def states_are_answered_in_order(self) -> None:
        if not hasattr(self, "said"):
            return
        chunks = [m.index for m in self.said[Role.PROVIDER] if isinstance(m, task.ResultStart | task.ChunkError)]
        assert chunks == list(range(len(chunks)))
        asked = [m.state for m in self.said[Role.REQUESTER] if isinstance(m, task.GetState)]
        given = [m.state for m in self.said[Role.PROVIDER] if isinstance(m, task.StateStart | task.StateGone)]
        assert given == asked[: len(given)]
        results = sum(isinstance(m, task.ResultStart) for m in self.said[Role.PROVIDER])
        assert len(asked) <= MAX_STATES_PER_CHUNK * results


class CallsDialogue(TaskDialogue):
    """The same for a standing agreement: calls of three chunks, each with an array; two calls are open at once."""

    def fresh(self, role: Role) -> Connection[Any]:
        conn = super().fresh(role)
        assert isinstance(conn, task.TaskConnection)
        own = ArrayArg(dtype="uint8", shape=(3,), digest=OWN)
        conn.calls = conn.tiles = task.CallInputs(some_work(args=(own, OutArg(dtype="uint8", shape=(20,)))))
        conn.calls.most_open = 2
        conn.calls._most = 1  # arrays held at once, so that they make room for each other
        conn.call_chunks, conn.chunks = 3, 30
        return conn

    def messages(self, conn: Connection[Any]) -> st.SearchStrategy[Record]:
        if conn.role is Role.PROVIDER:
            return super().messages(conn)
        calls = st.builds(self.call, number=st.integers(0, 10), digest=st.sampled_from([*ARRAYS, bytes(32)]))
        chunks = st.integers(0, 30)
        arrays = st.sampled_from([task.BlobStart(digest=d, size=3) for d in ARRAYS])
        return super().messages(conn) | calls | st.builds(task.Assign, index=chunks) | arrays

    @staticmethod
    def call(number: int, digest: bytes) -> task.Call:
        return task.Call(call=number, args=(ArrayArg(dtype="uint8", shape=(3,), digest=digest),))

    def legal(self, conn: task.TaskConnection) -> list[st.SearchStrategy[Record]]:
        running = conn.state is task.TaskState.RUNNING
        if conn.role is Role.REQUESTER and running:
            assert conn.calls is not None
            if conn._blob is not None:
                digest, left = conn._blob
                rest = ARRAYS[digest][-left:]
                if conn._hash.digest() != hashlib.sha256(ARRAYS[digest][:-left]).digest():
                    return []  # `say` has put other bytes into it
                return [st.sampled_from([1, left]).map(lambda n: task.BlobData(data=rest[:n]))]
            if conn.needed:
                due = sorted(conn.needed & ARRAYS.keys())  # `say` may have made a call with another
                return [st.sampled_from(due).map(lambda d: task.BlobStart(digest=d, size=3))] if due else []
            said: list[st.SearchStrategy[Record]] = [st.just(task.Finish(code=0, detail=""))]
            if conn.calls.has_room() and conn.calls._has_chunk and conn.calls.made < 10:
                number = conn.calls.made
                said += [st.sampled_from(sorted(ARRAYS)).map(lambda d: self.call(number, d))] * 3
            free = [n for n in range(30) if n not in conn.outstanding and conn.calls.fits(n)]
            if free:
                said += [st.sampled_from(free).map(lambda n: task.Assign(index=n))] * 6
            return said
        answers = conn.state in (task.TaskState.RUNNING, task.TaskState.FINISHING) and not conn._result_left
        if conn.role is Role.PROVIDER and answers and conn.outstanding:
            asked = st.sampled_from(sorted(conn.outstanding))
            sizes = (WHOLE, WHOLE, LAST)
            return [
                asked.map(lambda n: task.ResultStart(index=n, receipt=b"r", size=sizes[n % 3])),
                asked.map(lambda n: task.ChunkError(index=n, receipt=b"r")),
            ]
        return super().legal(conn)

    @invariant()
    def calls_are_counted(self) -> None:
        if hasattr(self, "heard"):
            calls = [m.call for m in self.heard[Role.PROVIDER] if isinstance(m, task.Call)]
            assert calls == list(range(len(calls)))


SETTINGS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
AdsDialogue.TestCase.settings = SETTINGS
NegotiationDialogue.TestCase.settings = SETTINGS
ChannelDialogue.TestCase.settings = SETTINGS
WatchDialogue.TestCase.settings = SETTINGS
StakeDialogue.TestCase.settings = SETTINGS
DisputeDialogue.TestCase.settings = SETTINGS
BlobDialogue.TestCase.settings = SETTINGS
TaskDialogue.TestCase.settings = settings(SETTINGS, max_examples=80, stateful_step_count=12)
TestAds = AdsDialogue.TestCase
TestNegotiation = NegotiationDialogue.TestCase
TestChannel = ChannelDialogue.TestCase
TestWatch = WatchDialogue.TestCase
TestStake = StakeDialogue.TestCase
TestDispute = DisputeDialogue.TestCase
TestBlob = BlobDialogue.TestCase
TestTask = TaskDialogue.TestCase
RoundsDialogue.TestCase.settings = TaskDialogue.TestCase.settings
TestRounds = RoundsDialogue.TestCase
CallsDialogue.TestCase.settings = TaskDialogue.TestCase.settings
TestCalls = CallsDialogue.TestCase
