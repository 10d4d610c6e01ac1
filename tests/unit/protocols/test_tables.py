"""Every cell of every transition table: what is in it moves both sides, what is not is refused by both."""

from __future__ import annotations

import copy
import dataclasses
import enum
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from p2pcompute_protocols import ads, blob, channel, dispute, negotiation, stake, task, watch
from p2pcompute_protocols._binding import SignerBinding
from p2pcompute_protocols.connection import NEED_DATA, Connection, Role, StreamEnded
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.ids import TaskId, peer_id_from_public_key
from p2pcompute_protocols.limits import MAX_NEGOTIATION_ROUNDS
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.wire import Record, record, wire
from p2pcompute_protocols.work import ArrayArg, ScalarArg

from .vectors._dispute import TASK_ID, a_claim, rounds_bytes, some_rounds
from .vectors._material import NETWORK, PROVIDER
from .vectors._material import work as some_work

BLOB = b"abc"
DIGEST = hashlib.sha256(BLOB).digest()
LEAF = hashlib.sha256(b"\0" + BLOB).digest()  # and the root, where there is one piece
WANT = blob.BlobWant(digest=DIGEST, size=3, root=LEAF, ticket=bytes(32))
CHAIN = ChainTerms(chain_id=31337, hub=b"h" * 20, token=b"t" * 20, decimals=6)
BINDING = SignerBinding(
    peer_id=peer_id_from_public_key(bytes(32)),
    owner=b"o" * 20,
    signer=b"s" * 20,
    sequence=0,
    expires_ms=1,
    signature=bytes(65),
)
WATCHED = watch.WatchedVoucher(payer=b"q" * 20, signer=b"s" * 20, amount_uusd=5, memo=bytes(32), signature=bytes(65))
TERMS = stake.PledgedTerms(
    chain=CHAIN,
    registry=b"r" * 20,
    task=DIGEST,
    provider=b"p" * 20,
    requester=b"q" * 20,
    at_risk_uusd=9,
    threshold=1,
    expires_s=1,
    arbiters=(b"a" * 20,),
)
CALL = task.Call(
    call=0,
    args=(
        ScalarArg(dtype="float32", value=bytes(4)),
        ArrayArg(dtype="uint8", shape=(16,), digest=DIGEST),
    ),
)
MESSAGES: dict[type[Connection[Any]], list[Record]] = {
    ads.AdsConnection: [
        ads.AdQuery(limit=1),
        ads.AdBatch(ads=(b"ad",), more=False),
        ads.AdRefusal(code=13, detail="busy"),
    ],
    negotiation.NegotiationConnection: [
        cls(envelope=b"e")  # type: ignore[call-arg]
        for cls in negotiation.MESSAGES.values()
    ],
    task.TaskConnection: [
        task.Open(agreement=b"a"),
        task.BlobStart(digest=DIGEST, size=3),
        task.BlobData(data=BLOB),
        task.Assign(index=1),
        task.Cancel(index=1),
        task.Finish(code=0, detail=""),
        task.Opened(need=(DIGEST,), slots=1, window=1),
        task.Ready(compile_ms=1),
        task.Refused(code=15, detail="no"),
        task.ResultStart(index=0, receipt=b"r", size=8),
        task.ResultData(data=b"12"),
        task.ChunkError(index=0, receipt=b"r"),
        task.Notice(kind="drain"),
        task.Closed(chunks=1),
        task.GetState(state=2),
        task.StateStart(state=1, arrays=(DIGEST, DIGEST)),
        task.StateData(data=b"12"),
        task.StateGone(state=1, code=12, detail="paid"),
        task.Share(digest=DIGEST, root=LEAF, ticket=bytes(32), holders=()),
        task.Results(index=0, count=2, finished_ms=1, receipts=b"r", data=bytes(16)),
        task.Call(call=1, args=CALL.args),
    ],
    blob.BlobConnection: [
        WANT,
        blob.BlobGet(index=0),
        blob.BlobDrop(index=0),
        blob.BlobDone(),
        blob.BlobHave(leaves=(LEAF,), held=b"\x01"),
        blob.BlobHeld(index=0),
        blob.BlobPiece(index=0, data=BLOB),
        blob.BlobDropped(index=0, code=23),
        blob.BlobGone(code=12, detail=""),
    ],
    channel.ChannelConnection: [
        channel.ChannelHello(chain=CHAIN, payer=BINDING, payee=b"p" * 20),
        channel.VoucherFrame(amount_uusd=5, memo=bytes(32), signature=bytes(65)),
        channel.CloseAsk(amount_uusd=3),
        channel.ChannelSync(amount_uusd=0),
        channel.VoucherAck(amount_uusd=4),
        channel.VoucherRefusal(code=19, detail="no", best_uusd=0),
        channel.ConsentFrame(epoch=0, deadline_s=1, signature=bytes(65)),
    ],
    watch.WatchConnection: [
        watch.WatchHello(chain=CHAIN, owner=BINDING),
        watch.WatchKeep(voucher=WATCHED),
        watch.WatchFetch(after=bytes(40)),
        watch.WatchWelcome(kept=0, room=1),
        watch.WatchKept(amount_uusd=5),
        watch.WatchGiven(vouchers=(WATCHED,), more=False),
        watch.WatchRefusal(code=13, detail="no"),
    ],
    stake.StakeConnection: [
        stake.CardQuery(),
        stake.Pledge(terms=TERMS, signature=bytes(65), cards=(b"c",)),
        stake.StrictQuery(task=DIGEST, index=1),
        stake.Accuse(terms=TERMS, provider_signature=bytes(65), requester_signature=bytes(65), size=3, digest=DIGEST),
        stake.EvidencePiece(data=BLOB),
        stake.EvidenceEnd(),
        stake.CardGiven(card=b"c"),
        stake.Pledged(signature=bytes(65)),
        stake.StrictGiven(output=DIGEST, signature=bytes(65)),
        stake.Proceed(),
        stake.VerdictGiven(amount_uusd=9, evidence=DIGEST, signature=bytes(65)),
        stake.StakeRefusal(code=9, detail="no"),
    ],
    dispute.DisputeConnection: [
        dispute.Challenge(task=TASK_ID),
        dispute.Ask(state=3),
        dispute.Settle(round=3),
        dispute.Commitment(rounds=rounds_bytes()),
        dispute.Claim(claim=a_claim(3)),
        dispute.DisputeRefusal(code=9, detail="no"),
    ],
}
CONNECTIONS = list(MESSAGES)


def arrange(conn: Connection[Any], state: enum.Enum, message: Record) -> None:
    """Put a connection into a state with the memory in which the message itself is in order."""
    conn.state = state
    if isinstance(conn, channel.ChannelConnection):
        conn.best_uusd, conn._offered_uusd = 3, 4
    if isinstance(conn, stake.StakeConnection):
        conn._digest, conn._at_risk_uusd = DIGEST, 9
        conn._left = 3 if isinstance(message, stake.EvidencePiece) else 0
    if isinstance(conn, dispute.DisputeConnection):
        conn.network, conn.provider, conn.task = NETWORK, PROVIDER.peer_id, TaskId(TASK_ID)
        conn.rounds, conn.asked = some_rounds(), 3
    if isinstance(conn, task.TaskConnection):
        conn.chunks, conn.chunk_bytes, conn.blob_sizes = 4, (8, 2), {DIGEST: 3}
        conn.outstanding = {0, 1, 2} if isinstance(message, task.Results) else {0, 2}
        if isinstance(message, task.BlobStart | task.BlobData):
            conn.needed = {DIGEST}
        if isinstance(message, task.BlobData):
            conn._blob = (DIGEST, 3)
        if isinstance(message, task.ResultData):
            conn._result_left = 8
        conn.last_state, conn._may_ask, conn.asked, conn.state_arrays = 3, 2, [1], (3, 5)
        conn.fetches, conn._inputs = True, {DIGEST}
        if isinstance(message, task.StateData):
            conn._state_left = 8
        if isinstance(message, task.Call):
            calls(conn)
    if isinstance(conn, blob.BlobConnection) and state is not blob.BlobState.IDLE:
        conn.want = WANT
        if state is not blob.BlobState.ASKED:
            conn.leaves = (LEAF,)
            conn.held = set() if isinstance(message, blob.BlobHeld) else {0}
            conn.asked = set() if isinstance(message, blob.BlobGet) else {0}


def calls(conn: task.TaskConnection, made: int = 1) -> None:
    """Make it one of a standing agreement, in which so many calls were made."""
    conn.calls = conn.tiles = task.CallInputs(some_work())
    conn.call_chunks, conn.chunks = some_work().chunks, 1_048_575
    for number in range(made):
        conn.calls.call(dataclasses.replace(CALL, call=number))
        conn.calls.assign(number * conn.call_chunks)  # or there may be no other
        conn.calls.answered(number * conn.call_chunks)


def memory(conn: Connection[Any]) -> dict[str, Any]:
    """All that a connection knows, so that two moments can be compared."""
    kept: dict[str, Any] = {}
    for name, value in vars(conn).items():
        if name == "_buffer":
            kept[name] = len(value)
        elif name == "_hash":
            kept[name] = value.digest()
        elif isinstance(value, task.Held):
            kept[name] = {part: copy.copy(held) for part, held in vars(value).items()}
        else:
            kept[name] = value.copy() if isinstance(value, set | dict | list) else value
    return kept


def cells() -> list[Any]:
    found = []
    for cls in CONNECTIONS:
        for state in type(cls.start):
            for role in Role:
                for message in MESSAGES[cls]:
                    name = f"{cls.__name__}-{role.value}-{state.name}-{type(message).__name__}"
                    found.append(pytest.param(cls, role, state, message, id=name))
    return found


@pytest.mark.parametrize(("cls", "role", "state", "message"), cells())
def test_cell(cls: type[Connection[Any]], role: Role, state: enum.Enum, message: Record) -> None:
    sender, receiver = cls(role), cls(role.other)
    arrange(sender, state, message)
    arrange(receiver, state, message)
    to = cls.table[role].get(state, {}).get(type(message))
    if to is not None:
        receiver.receive_data(sender.send(message))
        assert sender.state is to
        assert receiver.next_event() == message
        assert receiver.state is to
        assert receiver.next_event() is NEED_DATA
        after, other = memory(sender), memory(receiver)
        assert {**after, "role": None} == {**other, "role": None}  # both sides remember the same
        return
    before = memory(sender)
    with pytest.raises(LocalProtocolError) as local:
        sender.send(message)
    assert local.value.code is WireCode.OUT_OF_ORDER
    assert memory(sender) == before

    liar = cls(role)  # a peer that sends it all the same
    liar.state = state
    receiver.receive_data(_force(cls, message))
    with pytest.raises(RemoteProtocolError) as remote:
        receiver.next_event()
    assert remote.value.code is WireCode.OUT_OF_ORDER
    assert receiver.state is state
    with pytest.raises(RemoteProtocolError):
        receiver.next_event()
    for mine in MESSAGES[cls]:
        with pytest.raises(LocalProtocolError, match="broken"):
            receiver.send(mine)


def _force(cls: type[Connection[Any]], message: Record) -> bytes:
    return frame(message.encode(), max_bytes=cls.max_frame_bytes)


@pytest.mark.parametrize("cls", CONNECTIONS)
def test_table_is_whole(cls: type[Connection[Any]]) -> None:
    assert {type(m) for m in MESSAGES[cls]} == set(cls.messages.values())
    states = list(type(cls.start))
    reached = {cls.start}
    for _ in states:
        for rows in cls.table.values():
            for state, row in rows.items():
                if state in reached:
                    reached |= set(row.values())
    assert reached == set(states), "a state that no message leads to"
    sent = {kind for rows in cls.table.values() for row in rows.values() for kind in row}
    assert sent == set(cls.messages.values()), "a message that is never allowed"
    assert {kind.TYPE: kind for kind in cls.messages.values()} == cls.messages


@pytest.mark.parametrize("cls", CONNECTIONS)
@pytest.mark.parametrize("role", list(Role))
def test_end_of_stream_in_every_state(cls: type[Connection[Any]], role: Role) -> None:
    for state in type(cls.start):
        conn = cls(role)
        conn.state = state
        conn.receive_data(b"")
        if state in cls.final or state is cls.start:
            assert isinstance(conn.next_event(), StreamEnded)
        else:
            with pytest.raises(RemoteProtocolError):
                conn.next_event()
        half = cls(role)
        half.state = state
        half.receive_data(b"\x05\x00")
        half.receive_data(b"")
        with pytest.raises(RemoteProtocolError):
            half.next_event()
        with pytest.raises((LocalProtocolError, RemoteProtocolError)):
            half.send(MESSAGES[cls][0])


@pytest.mark.parametrize("cls", CONNECTIONS)
def test_a_message_of_another_protocol_is_refused(cls: type[Connection[Any]]) -> None:
    @record
    class Stranger(Record):
        TYPE = 200
        field: int = wire(1, task.Assign._plan[0][2])

    conn = cls(Role.REQUESTER)
    with pytest.raises(LocalProtocolError):
        conn.send(Stranger(field=1))
    conn.receive_data(_force(cls, Stranger(field=1)))
    with pytest.raises(RemoteProtocolError) as refused:
        conn.next_event()
    assert refused.value.code is WireCode.UNSUPPORTED


def test_data_after_the_end_is_refused() -> None:
    conn = ads.AdsConnection(Role.PROVIDER)
    conn.receive_data(b"")
    with pytest.raises(LocalProtocolError):
        conn.receive_data(b"x")


def test_a_broken_dialogue_keeps_no_bytes() -> None:
    conn = ads.AdsConnection(Role.PROVIDER)
    conn.receive_data(b"\x01\xff")
    with pytest.raises(RemoteProtocolError):
        conn.next_event()
    conn.receive_data(bytes(100_000))
    assert len(conn._buffer) == 0


def test_an_order_too_many() -> None:
    for side in ("local", "remote"):
        conn = negotiation.NegotiationConnection(Role.REQUESTER if side == "local" else Role.PROVIDER)
        order = negotiation.OrderFrame(envelope=b"o")
        conn.rounds, conn.state = MAX_NEGOTIATION_ROUNDS, negotiation.NegotiationState.REFUSED
        if side == "local":
            with pytest.raises(LocalProtocolError) as refused:
                conn.send(order)
            assert conn.rounds == MAX_NEGOTIATION_ROUNDS
            assert refused.value.code is WireCode.OVERSIZED
        else:
            conn.receive_data(_force(type(conn), order))
            with pytest.raises(RemoteProtocolError) as refused_remote:
                conn.next_event()
            assert refused_remote.value.code is WireCode.OVERSIZED


# What the connections remember between messages. Each: who speaks, in which state, after which arrangement, what.
Arrange = Callable[[Any], None]
S = task.TaskState
C = channel.ChannelState
W = watch.WatchState
K = stake.StakeState
B = blob.BlobState
P, R = Role.PROVIDER, Role.REQUESTER


def has(**values: Any) -> Arrange:
    def set_all(conn: Any) -> None:
        for name, value in values.items():
            assert hasattr(conn, name)
            setattr(conn, name, value)

    return set_all


def in_calls(made: int = 1, held: dict[str, Any] | None = None, **values: Any) -> Arrange:
    """In a standing agreement, after so many calls; `held` is what its `CallInputs` has."""

    def set_all(conn: Any) -> None:
        calls(conn, made)
        has(**values)(conn)
        has(**(held or {}))(conn.calls)

    return set_all


OUT_OF_ORDER, OVERSIZED, BAD_DIGEST = WireCode.OUT_OF_ORDER, WireCode.OVERSIZED, WireCode.BAD_DIGEST
UNKNOWN_CHUNK, REPLAYED, BAD_VOUCHER = WireCode.UNKNOWN_CHUNK, WireCode.REPLAYED, WireCode.BAD_VOUCHER
SHARE = task.Share(digest=DIGEST, root=LEAF, ticket=bytes(32), holders=())
HOLDER = task.Holder(peer=PROVIDER.peer_id, addresses=())
RESULT = task.ResultStart(index=0, receipt=b"r", size=8)
REMEMBERED: dict[str, tuple[Role, enum.Enum, Arrange, Record, WireCode]] = {
    "a blob that the work does not name": (
        P, S.OPENING, has(blob_sizes={}), task.Opened(need=(DIGEST,), slots=1, window=1), BAD_DIGEST),
    "a blob that was not asked for": (
        R, S.SETUP, has(needed=set()), task.BlobStart(digest=DIGEST, size=3), BAD_DIGEST),
    "a blob twice": (
        R, S.SETUP, has(needed={b"x" * 32}), task.BlobStart(digest=DIGEST, size=3), BAD_DIGEST),
    "a blob of another size": (
        R, S.SETUP, has(needed={DIGEST}), task.BlobStart(digest=DIGEST, size=4), OVERSIZED),
    "a blob inside of a blob": (
        R, S.SETUP, has(needed={DIGEST}, _blob=(DIGEST, 3)), task.BlobStart(digest=DIGEST, size=3), OUT_OF_ORDER),
    "bytes of no blob": (R, S.SETUP, has(), task.BlobData(data=BLOB), OUT_OF_ORDER),
    "more bytes than the blob has": (
        R, S.SETUP, has(needed={DIGEST}, _blob=(DIGEST, 3)), task.BlobData(data=b"abcd"), OVERSIZED),
    "bytes of another blob": (
        R, S.SETUP, has(needed={DIGEST}, _blob=(DIGEST, 3)), task.BlobData(data=b"abd"), BAD_DIGEST),
    "ready before the blobs": (P, S.SETUP, has(needed={DIGEST}), task.Ready(compile_ms=1), OUT_OF_ORDER),
    "ready inside of a blob": (P, S.SETUP, has(_blob=(DIGEST, 1)), task.Ready(compile_ms=1), OUT_OF_ORDER),
    "not compiled before the blobs": (
        P, S.SETUP, has(needed={DIGEST}), task.ChunkError(index=0, receipt=b"r"), OUT_OF_ORDER),
    "not compiled, for another chunk than the first": (
        P, S.SETUP, has(), task.ChunkError(index=1, receipt=b"r"), UNKNOWN_CHUNK),
    "not compiled, of a task that was ready, when it ends": (
        P, S.FINISHING, has(_was_ready=True), task.ChunkError(index=1, receipt=b"r"), UNKNOWN_CHUNK),
    "not compiled twice": (
        P, S.SETUP, has(_has_not_compiled=True), task.ChunkError(index=0, receipt=b"r"), OUT_OF_ORDER),
    "ready, and not compiled": (P, S.SETUP, has(_has_not_compiled=True), task.Ready(compile_ms=1), OUT_OF_ORDER),
    "a notice, and not compiled": (P, S.SETUP, has(_has_not_compiled=True), task.Notice(kind="pause"), OUT_OF_ORDER),
    "a chunk beyond the last": (R, S.RUNNING, has(), task.Assign(index=4), UNKNOWN_CHUNK),
    "a chunk before the chunks are known": (R, S.RUNNING, has(chunks=0), task.Assign(index=0), UNKNOWN_CHUNK),
    "a chunk twice": (R, S.RUNNING, has(), task.Assign(index=0), REPLAYED),
    "a chunk above what may be under way": (
        R, S.RUNNING, has(chunks=2000, outstanding=set(range(1024))), task.Assign(index=1999), OVERSIZED),
    "a cancel beyond the last": (R, S.RUNNING, has(), task.Cancel(index=4), UNKNOWN_CHUNK),
    "a result that was not asked for": (
        P, S.RUNNING, has(), task.ResultStart(index=1, receipt=b"r", size=8), UNKNOWN_CHUNK),
    "a result of another size": (P, S.RUNNING, has(), task.ResultStart(index=0, receipt=b"r", size=9), OVERSIZED),
    "a last result of a whole chunk's size": (
        P, S.RUNNING, has(outstanding={3}), task.ResultStart(index=3, receipt=b"r", size=8), OVERSIZED),
    "an error that was not asked for": (P, S.RUNNING, has(), task.ChunkError(index=1, receipt=b"r"), UNKNOWN_CHUNK),
    "result bytes of no result": (P, S.RUNNING, has(), task.ResultData(data=b"1"), OVERSIZED),
    "more result bytes than announced": (
        P, S.RUNNING, has(_result_left=1), task.ResultData(data=b"12"), OVERSIZED),
    "a result inside of a result": (P, S.RUNNING, has(_result_left=1), RESULT, OUT_OF_ORDER),
    "an error inside of a result": (
        P, S.RUNNING, has(_result_left=1), task.ChunkError(index=0, receipt=b"r"), OUT_OF_ORDER),
    "a notice inside of a result": (P, S.RUNNING, has(_result_left=1), task.Notice(kind="drain"), OUT_OF_ORDER),
    "a refusal inside of a result": (
        P, S.RUNNING, has(_result_left=1), task.Refused(code=1, detail=""), OUT_OF_ORDER),
    "an end inside of a result": (P, S.FINISHING, has(_result_left=1), task.Closed(chunks=1), OUT_OF_ORDER),
    "a second chunk of rounds before the first": (
        R, S.RUNNING, has(chunk_rounds=3, assigned=1, outstanding={0}), task.Assign(index=2), OUT_OF_ORDER),
    "a chunk of rounds again": (
        R, S.RUNNING, has(chunk_rounds=3, assigned=2, outstanding=set()), task.Assign(index=1), OUT_OF_ORDER),
    "rounds of a later chunk first": (
        P, S.RUNNING, has(chunk_rounds=1, assigned=2, outstanding={0, 1}),
        task.ResultStart(index=1, receipt=b"r", size=8), OUT_OF_ORDER),
    "a failure of later rounds first": (
        P, S.RUNNING, has(chunk_rounds=1, assigned=2, outstanding={0, 1}), task.ChunkError(index=1, receipt=b"r"),
        OUT_OF_ORDER),
    "a call of other work": (R, S.RUNNING, has(), CALL, OUT_OF_ORDER),
    "a call again": (R, S.RUNNING, in_calls(), CALL, REPLAYED),
    "a call left out": (R, S.RUNNING, in_calls(), dataclasses.replace(CALL, call=2), OUT_OF_ORDER),
    "a call before an array": (
        R, S.RUNNING, in_calls(needed={DIGEST}), dataclasses.replace(CALL, call=1),
        OUT_OF_ORDER),
    "a call that closes one under way": (
        R, S.RUNNING, in_calls(256, {"_used": {2: frozenset[bytes]()}}),
        dataclasses.replace(CALL, call=256), OVERSIZED),
    "a call without inputs": (
        R, S.RUNNING, in_calls(), dataclasses.replace(CALL, call=1, args=()), WireCode.MALFORMED),
    "a call of other types": (
        R, S.RUNNING, in_calls(), dataclasses.replace(CALL, call=1, args=CALL.args[::-1]), WireCode.MALFORMED),
    "a call with two sizes of one array": (
        R, S.RUNNING, in_calls(1, {"_held": {DIGEST: 3}}),
        dataclasses.replace(CALL, call=1), BAD_DIGEST),
    "a chunk of no call": (R, S.RUNNING, in_calls(), task.Assign(index=3), UNKNOWN_CHUNK),
    "a chunk of a closed call": (R, S.RUNNING, in_calls(257), task.Assign(index=1), UNKNOWN_CHUNK),
    "a last chunk of a call that is whole": (
        P, S.RUNNING, in_calls(), task.ResultStart(index=2, receipt=b"r", size=8), OVERSIZED),
    "a state of other work": (R, S.RUNNING, has(last_state=0), task.GetState(state=1), UNKNOWN_CHUNK),
    "a state that did not come": (R, S.RUNNING, has(), task.GetState(state=4), UNKNOWN_CHUNK),
    "a state too many": (R, S.RUNNING, has(_may_ask=0), task.GetState(state=1), OVERSIZED),
    "a state that was not asked for": (
        P, S.RUNNING, has(asked=[]), task.StateStart(state=1, arrays=(DIGEST, DIGEST)), UNKNOWN_CHUNK),
    "a state out of turn": (
        P, S.RUNNING, has(asked=[2, 1]), task.StateStart(state=1, arrays=(DIGEST, DIGEST)), UNKNOWN_CHUNK),
    "a state of other arrays": (
        P, S.RUNNING, has(), task.StateStart(state=1, arrays=(DIGEST,)), WireCode.MALFORMED),
    "a state that is gone and was not asked for": (
        P, S.RUNNING, has(asked=[]), task.StateGone(state=1, code=1, detail=""), UNKNOWN_CHUNK),
    "bytes of no state": (P, S.RUNNING, has(), task.StateData(data=b"1"), OVERSIZED),
    "more bytes than a state has": (P, S.RUNNING, has(_state_left=1), task.StateData(data=b"12"), OVERSIZED),
    "a result inside of a state": (P, S.RUNNING, has(_state_left=1), RESULT, OUT_OF_ORDER),
    "a notice inside of a state": (P, S.RUNNING, has(_state_left=1), task.Notice(kind="drain"), OUT_OF_ORDER),
    "an end inside of a state": (P, S.FINISHING, has(_state_left=1), task.Closed(chunks=1), OUT_OF_ORDER),
    "a share for who does not fetch": (R, S.SETUP, has(fetches=False), SHARE, OUT_OF_ORDER),
    "a share of no input": (R, S.SETUP, has(_inputs=set()), SHARE, BAD_DIGEST),
    "a share of a blob on its way": (R, S.SETUP, has(_blob=(DIGEST, 1)), SHARE, OUT_OF_ORDER),
    "a share with another root": (R, S.RUNNING, has(shared={DIGEST: (bytes(32), bytes(32), 0)}), SHARE, BAD_DIGEST),
    "a share with another ticket": (R, S.RUNNING, has(shared={DIGEST: (LEAF, LEAF, 0)}), SHARE, BAD_DIGEST),
    "a share again": (R, S.RUNNING, has(shared={DIGEST: (LEAF, bytes(32), 0)}), SHARE, REPLAYED),
    "a holder too many": (
        R, S.RUNNING, has(shared={DIGEST: (LEAF, bytes(32), 16)}),
        task.Share(digest=DIGEST, root=LEAF, ticket=bytes(32), holders=(HOLDER,)), OVERSIZED),
    "two leaves of one piece": (
        P, B.ASKED, has(), blob.BlobHave(leaves=(LEAF, LEAF), held=b"\x01"), WireCode.MALFORMED),
    "leaves of another root": (P, B.ASKED, has(), blob.BlobHave(leaves=(DIGEST,), held=b"\x01"), BAD_DIGEST),
    "a piece that is not there": (R, B.OPEN, has(held=set()), blob.BlobGet(index=0), UNKNOWN_CHUNK),
    "a piece twice": (R, B.OPEN, has(asked={0}), blob.BlobGet(index=0), REPLAYED),
    "pieces above what may be under way": (
        R, B.OPEN, has(leaves=(LEAF,) * 20, held=set(range(20)), asked=set(range(1, 17))), blob.BlobGet(index=0),
        OVERSIZED),
    "a drop beyond the last": (R, B.OPEN, has(), blob.BlobDrop(index=1), UNKNOWN_CHUNK),
    "held already": (P, B.OPEN, has(), blob.BlobHeld(index=0), REPLAYED),
    "held beyond the last": (P, B.OPEN, has(), blob.BlobHeld(index=1), UNKNOWN_CHUNK),
    "a piece that was not asked for": (
        P, B.OPEN, has(asked=set()), blob.BlobPiece(index=0, data=BLOB), UNKNOWN_CHUNK),
    "a piece of another size": (P, B.OPEN, has(asked={0}), blob.BlobPiece(index=0, data=b"abcd"), OVERSIZED),
    "a piece of other bytes": (P, B.OPEN, has(asked={0}), blob.BlobPiece(index=0, data=b"abd"), BAD_DIGEST),
    "not sent, and not asked for": (P, B.OPEN, has(asked=set()), blob.BlobDropped(index=0, code=23), UNKNOWN_CHUNK),
    "a voucher that goes back": (
        R, C.OPEN, has(), channel.VoucherFrame(amount_uusd=2, memo=bytes(32), signature=bytes(65)), BAD_VOUCHER),
    "a voucher that stands still": (
        R, C.OPEN, has(), channel.VoucherFrame(amount_uusd=3, memo=bytes(32), signature=bytes(65)), BAD_VOUCHER),
    "a closing below what is held": (R, C.OPEN, has(), channel.CloseAsk(amount_uusd=2), BAD_VOUCHER),
    "an ack for another voucher": (P, C.PAYING, has(), channel.VoucherAck(amount_uusd=5), OUT_OF_ORDER),
    "less kept than was sent": (P, W.KEEPING, has(_sent_uusd=6), watch.WatchKept(amount_uusd=5), OUT_OF_ORDER),
    "given again": (
        P, W.FETCHING, has(_after=WATCHED.place), watch.WatchGiven(vouchers=(WATCHED,), more=False), OUT_OF_ORDER),
    "more evidence than announced": (
        R, K.RECEIVING, has(_left=2), stake.EvidencePiece(data=BLOB), OVERSIZED),
    "less evidence than announced": (R, K.RECEIVING, has(_left=1), stake.EvidenceEnd(), OUT_OF_ORDER),
    "a verdict on other evidence": (
        P, K.JUDGING, has(), stake.VerdictGiven(amount_uusd=9, evidence=bytes(32), signature=bytes(65)), REPLAYED),
    "a verdict on more than is at risk": (
        P, K.JUDGING, has(), stake.VerdictGiven(amount_uusd=10, evidence=DIGEST, signature=bytes(65)), OVERSIZED),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEMBERED)
def test_what_a_connection_remembers(name: str) -> None:
    role, state, change, message, code = REMEMBERED[name]
    kinds: dict[type[Any], type[Connection[Any]]] = {
        S: task.TaskConnection, C: channel.ChannelConnection, W: watch.WatchConnection, K: stake.StakeConnection,
        B: blob.BlobConnection,
    }  # fmt: skip
    cls = kinds[type(state)]

    def made(role: Role) -> Connection[Any]:
        conn: Connection[Any] = cls(role)
        arrange(conn, state, task.Closed(chunks=0))
        change(conn)
        return conn

    sender, receiver = made(role), made(role.other)
    before = memory(sender)
    with pytest.raises(LocalProtocolError) as local:
        sender.send(message)
    assert local.value.code is code
    assert memory(sender) == before, "a refused send changed something"
    receiver.receive_data(_force(cls, message))
    with pytest.raises(RemoteProtocolError) as remote:
        receiver.next_event()
    assert remote.value.code is code
    assert receiver.state is state
