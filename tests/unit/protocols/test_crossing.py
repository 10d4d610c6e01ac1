"""Every interleaving of a small dialogue: honest sides never break each other's protocol, and can always end.

A breadth-first walk over all that two honest sides can do with a few messages, each direction holding up to
`QUEUE` messages under way. What the walk proves for its small alphabet is what random machines can miss: a message
that is refused only because it crossed another one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from p2pcompute_protocols import ads, blob, channel, dispute, negotiation, task
from p2pcompute_protocols.connection import NEED_DATA, Connection, Role
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import ArrayArg, ChunkWork, LaunchSpec, OutArg

from .test_tables import BLOB, DIGEST, LEAF, MESSAGES, memory
from .vectors._material import NETWORK, PROVIDER, sha
from .vectors._material import work as some_work

QUEUE = 3
CONNECTIONS = list(MESSAGES)


def small(cls: type[Connection[Any]]) -> list[Record]:
    """The alphabet."""
    if cls is task.TaskConnection:
        return [
            task.Open(agreement=b"a"),
            task.Opened(need=(DIGEST,), slots=1, window=1),
            task.Opened(need=(), slots=1, window=1),
            task.BlobStart(digest=DIGEST, size=3),
            task.BlobData(data=BLOB[:1]),
            task.BlobData(data=BLOB[1:]),
            task.Ready(compile_ms=1),
            task.Assign(index=0),
            task.Cancel(index=0),
            task.ResultStart(index=0, receipt=b"r", size=1),
            task.ResultData(data=b"1"),
            task.ChunkError(index=0, receipt=b"r"),
            task.Finish(code=0, detail=""),
            task.Refused(code=15, detail=""),
            task.Closed(chunks=0),
            task.Share(digest=DIGEST, root=LEAF, ticket=bytes(32), holders=()),
            task.Opened(need=(), slots=1, window=1, fetches=True),
        ]
    if cls is Rounds:
        return ROUNDS
    if cls is Pairs:
        return PAIRS
    if cls is Calls:
        return CALLS
    if cls is CallPairs:
        return CALL_PAIRS
    if cls is blob.BlobConnection:
        return [*MESSAGES[cls], blob.BlobHave(leaves=(LEAF,), held=b"\x00")]
    if cls is channel.ChannelConnection:
        vouchers = [channel.VoucherFrame(amount_uusd=n, memo=bytes(32), signature=bytes(65)) for n in (1, 2)]
        acks = [channel.VoucherAck(amount_uusd=n) for n in (1, 2)]
        held = channel.ChannelSync(amount_uusd=1, memo=bytes(32), signature=bytes(65))
        return [*MESSAGES[cls][:1], *vouchers, *acks, *MESSAGES[cls][2:], held]
    return MESSAGES[cls]


def fresh(cls: type[Connection[Any]], role: Role) -> Connection[Any]:
    conn = cls(role)
    if isinstance(conn, task.TaskConnection):
        conn.chunks, conn.chunk_bytes, conn.blob_sizes = 1, (1, 1), {DIGEST: 3}
        if isinstance(conn, Rounds):
            conn.chunk_bytes = (64, 64)
        if isinstance(conn, Pairs | Calls):
            conn.chunks = 2 * (conn.call_chunks or 1)
    if isinstance(conn, dispute.DisputeConnection):
        conn.network, conn.provider = NETWORK, PROVIDER.peer_id
    return conn


def clone(conn: Connection[Any]) -> Connection[Any]:
    twin = copy.copy(conn)
    for name, value in vars(conn).items():
        if name == "_hash" or isinstance(value, set | list | dict):
            setattr(twin, name, value.copy())
        elif name == "_buffer":
            setattr(twin, name, copy.deepcopy(_plain_buffer(value)))
    if isinstance(conn, task.TaskConnection) and conn.calls is not None:
        held = copy.copy(conn.calls)
        for name, value in vars(held).items():
            if isinstance(value, dict):
                setattr(held, name, value.copy())
        twin.calls = twin.tiles = held  # type: ignore[attr-defined]
    return twin


def _plain_buffer(buffer: Any) -> Any:
    assert len(buffer) == 0  # messages arrive whole here
    return type(buffer)(max_bytes=buffer._max_bytes)


def key(conn: Connection[Any]) -> tuple[Any, ...]:
    known = memory(conn)
    known.pop("_buffer")
    if isinstance(conn, task.TaskConnection) and known["_blob"] is None:
        known.pop("_hash")  # left over from the last blob, and begun anew with the next one
    return tuple(sorted((n, repr(sorted(v) if isinstance(v, set) else v)) for n, v in known.items()))


World = tuple[Connection[Any], Connection[Any], tuple[Record, ...], tuple[Record, ...]]


def walk(cls: type[Connection[Any]]) -> tuple[int, set[Any]]:
    """All worlds that can be reached; raises `RemoteProtocolError` where one side breaks the other's protocol."""
    alphabet = small(cls)
    start: World = (fresh(cls, Role.REQUESTER), fresh(cls, Role.PROVIDER), (), ())
    todo: list[World] = [start]
    seen = {(key(start[0]), key(start[1]), (), ())}
    ends: set[Any] = set()
    while todo:
        requester, provider, to_provider, to_requester = todo.pop()
        if not to_provider and not to_requester:
            ends.add((requester.state, provider.state))
        following: list[World] = []
        for message in alphabet:
            if len(to_provider) < QUEUE and (said := _say(requester, message)):
                following.append((said, provider, (*to_provider, message), to_requester))
            if len(to_requester) < QUEUE and (said := _say(provider, message)):
                following.append((requester, said, to_provider, (*to_requester, message)))
        if to_provider:
            # Who has sent `Refused` reads no further.
            gone = provider.state is task.TaskState.CLOSED
            heard = provider if gone else _hear(provider, to_provider[0])
            following.append((requester, heard, to_provider[1:], to_requester))
        if to_requester:
            following.append((_hear(requester, to_requester[0]), provider, to_provider, to_requester[1:]))
        for world in following:
            name = (key(world[0]), key(world[1]), world[2], world[3])
            if name not in seen:
                seen.add(name)
                todo.append(world)
    return len(seen), ends


def _say(conn: Connection[Any], message: Record) -> Connection[Any] | None:
    row: Mapping[type[Record], Any] = conn.table[conn.role].get(conn.state, {})
    if type(message) not in row:
        return None
    twin = clone(conn)
    try:
        twin.send(message)
    except LocalProtocolError:
        return None
    return twin


def _hear(conn: Connection[Any], message: Record) -> Connection[Any]:
    twin = clone(conn)
    twin.receive_data(frame(message.encode(), max_bytes=twin.max_frame_bytes))
    assert twin.next_event() == message
    assert twin.next_event() is NEED_DATA
    return twin


def nothing_honest_is_refused(cls: type[Connection[Any]], *, more_than: int) -> None:
    worlds, ends = walk(cls)
    assert worlds > more_than
    # Where nothing is under way both sides are in the same state, and every state is met.
    assert {one for one, other in ends if one is other} == set(type(cls.start))
    assert all(one is other for one, other in ends)


@pytest.mark.parametrize("cls", CONNECTIONS)
def test_no_honest_interleaving_is_refused(cls: type[Connection[Any]]) -> None:
    nothing_honest_is_refused(cls, more_than=3)


def test_the_walk_finds_what_crossing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without these two the protocol would look right in every test that delivers at once.
    table = {role: {state: dict(row) for state, row in rows.items()} for role, rows in task.TABLE.items()}
    del table[Role.PROVIDER][task.TaskState.FINISHING][task.Ready]
    monkeypatch.setattr(task.TaskConnection, "table", table)
    with pytest.raises(RemoteProtocolError, match="Ready in state FINISHING"):
        walk(task.TaskConnection)
    monkeypatch.undo()

    checked = task.TaskConnection.check

    def strict(self: task.TaskConnection, sender: Role, message: Record) -> None:
        if isinstance(message, task.Cancel) and message.index not in self.outstanding:
            raise LocalProtocolError("a cancel of a chunk that is not assigned")
        checked(self, sender, message)

    monkeypatch.setattr(task.TaskConnection, "check", strict)
    with pytest.raises(RemoteProtocolError, match="a cancel of a chunk"):
        walk(task.TaskConnection)


class Rounds(task.TaskConnection):
    """The same protocol for a chunk of two rounds, on a state of one byte."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.chunk_rounds, self.state_arrays = 2, (1,)


ROUNDS = [
    task.Open(agreement=b"a"),
    task.Opened(need=(), slots=1, window=1),
    task.Ready(compile_ms=1),
    task.Assign(index=0),
    task.ResultStart(index=0, receipt=b"r", size=64),
    task.ResultData(data=bytes(64)),
    task.GetState(state=1),
    task.GetState(state=2),
    task.StateStart(state=1, arrays=(DIGEST,)),
    task.StateStart(state=2, arrays=(DIGEST,)),
    task.StateData(data=b"1"),
    task.StateGone(state=1, code=12, detail=""),
    task.Finish(code=0, detail=""),
    task.Refused(code=15, detail=""),
    task.Closed(chunks=0),
]


class Pairs(task.TaskConnection):
    """The same protocol for two chunks, which may be assigned and answered together."""


PAIRS = [
    task.Open(agreement=b"a"),
    task.Opened(need=(), slots=1, window=1),
    task.Ready(compile_ms=1),
    task.Assign(index=0, count=2),
    task.Assign(index=1),
    task.Cancel(index=1),
    task.Results(index=0, count=2, finished_ms=1, receipts=b"r", data=b"12"),
    task.ResultStart(index=1, receipt=b"r", size=1),
    task.ResultData(data=b"2"),
    task.ChunkError(index=0, receipt=b"r"),
    task.ChunkError(index=1, receipt=b"r"),
    task.Finish(code=0, detail=""),
    task.Refused(code=15, detail=""),
    task.Closed(chunks=0),
]


def test_no_honest_interleaving_of_chunks_that_go_together_is_refused() -> None:
    nothing_honest_is_refused(Pairs, more_than=100)


def test_no_honest_interleaving_of_questions_about_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute_protocols.task._state.MAX_STATES_PER_CHUNK", 2)
    nothing_honest_is_refused(Rounds, more_than=100)


class Calls(task.TaskConnection):
    """The same protocol for calls of one chunk of one byte, each with one array; one call is open at once."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        own = ArrayArg(dtype="uint8", shape=(3,), digest=sha(b"own"))
        made = chunks_of_one((own, OutArg(dtype="uint8", shape=(1,))), 1)
        self.calls = self.tiles = task.CallInputs(made)
        self.calls.most_open = 1
        self.call_chunks = 1


def chunks_of_one(args: tuple[Any, ...], chunks: int) -> ChunkWork:
    """Chunks of one thread."""
    launch = LaunchSpec(dims=1, grid=(chunks, 1, 1), block=(1, 1, 1))
    return some_work(launch=launch, args=args, blocks_per_chunk=1, chunk_output_bytes=1)


def a_call(number: int, array: bytes) -> task.Call:
    return task.Call(call=number, args=(ArrayArg(dtype="uint8", shape=(3,), digest=sha(array)),))


CALLS = [
    task.Open(agreement=b"a"),
    task.Opened(need=(), slots=1, window=1),
    task.Ready(compile_ms=1),
    a_call(0, BLOB),
    a_call(1, b"own"),
    a_call(1, BLOB),
    task.BlobStart(digest=DIGEST, size=3),
    task.BlobData(data=BLOB),
    task.Assign(index=0),
    task.Assign(index=1),
    task.Cancel(index=0),
    task.ResultStart(index=0, receipt=b"r", size=1),
    task.ResultStart(index=1, receipt=b"r", size=1),
    task.ResultData(data=b"1"),
    task.ChunkError(index=0, receipt=b"r"),
    task.Finish(code=0, detail=""),
    task.Closed(chunks=0),
]


def test_no_honest_interleaving_of_calls_is_refused() -> None:
    nothing_honest_is_refused(Calls, more_than=100)


class CallPairs(Calls):
    """The same for calls of two chunks, which are assigned and answered together, also with those of another."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        own = ArrayArg(dtype="uint8", shape=(3,), digest=sha(b"own"))
        self.calls = self.tiles = task.CallInputs(chunks_of_one((own, OutArg(dtype="uint8", shape=(2,))), 2))
        self.calls.most_open = 2
        self.call_chunks = 2


CALL_PAIRS = [
    task.Open(agreement=b"a"),
    task.Opened(need=(), slots=1, window=1),
    task.Ready(compile_ms=1),
    a_call(0, BLOB),
    a_call(1, BLOB),
    task.BlobStart(digest=DIGEST, size=3),
    task.BlobData(data=BLOB),
    task.Assign(index=0, count=2),
    task.Assign(index=2, count=2),
    task.Assign(index=1),
    task.Cancel(index=1),
    task.Results(index=0, count=2, finished_ms=1, receipts=b"r", data=b"12"),
    task.Results(index=1, count=3, finished_ms=1, receipts=b"r", data=b"123"),
    task.ChunkError(index=0, receipt=b"r"),
    task.ChunkError(index=1, receipt=b"r"),
    task.Finish(code=0, detail=""),
    task.Closed(chunks=0),
]


def test_no_honest_interleaving_of_calls_whose_chunks_go_together_is_refused() -> None:
    nothing_honest_is_refused(CallPairs, more_than=100)


def test_the_alphabets_are_whole() -> None:
    for cls in CONNECTIONS:
        kinds = {type(m) for m in small(cls)}
        if cls is task.TaskConnection:
            kinds |= {type(m) for m in (*ROUNDS, *PAIRS, *CALLS, *CALL_PAIRS)}
        assert kinds | {task.Notice} >= set(cls.messages.values())
    assert {ads.AdsConnection, negotiation.NegotiationConnection} <= set(CONNECTIONS)
