"""Who is served, how much, and who is not."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute.blobs import ServerLimits
from p2pcompute.errors import OverlayError
from p2pcompute.testing import MemoryNetwork
from p2pcompute_protocols import blob
from p2pcompute_protocols.blob import (
    BlobConnection,
    BlobDone,
    BlobDrop,
    BlobDropped,
    BlobGet,
    BlobGone,
    BlobHave,
    BlobHeld,
    BlobPiece,
)
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import ProtocolError, WireCode

from ._network import MIB, TICKET, Peer, a_peer, empty, name_of, some_bytes, virtually, whole

DATA = some_bytes(2 * MIB)
NAME = name_of(DATA)


async def ask(getter: Peer, holder: Peer, **changes: Any) -> tuple[Dialogue, Any]:
    stream = await getter.overlay.open_stream(holder.overlay.peer_id, blob.PROTOCOL_ID)
    dialogue = Dialogue(BlobConnection(Role.REQUESTER), stream)
    values = {"digest": NAME.digest, "size": NAME.size, "root": NAME.root, "ticket": TICKET, **changes}
    await dialogue.send(blob.BlobWant(**values))
    return dialogue, await dialogue.receive()


def between(body: Any, **network: Any) -> None:
    async def main() -> None:
        async with a_peer(made := MemoryNetwork(**network)) as holder, a_peer(made) as getter:
            await getter.overlay.connect(holder.overlay.addresses[0])
            await body(holder, getter)

    virtually(main)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ticket": bytes(32)},
        {"root": bytes(32)},
        {"digest": bytes(32)},
        {"size": NAME.size - 1},
        {"digest": b"/../../../../../../../etc/passwd"},
    ],
)
def test_who_has_no_ticket_finds_out_nothing(wrong: dict[str, Any]) -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        _, empty_handed = await ask(getter, holder)
        with holder.server.offer(whole(DATA), TICKET):
            _, refused = await ask(getter, holder, **wrong)
            assert isinstance(refused, BlobGone)
            assert refused == empty_handed  # in the same words as where there is nothing
            _, given = await ask(getter, holder)
            assert isinstance(given, BlobHave)
        _, over = await ask(getter, holder)
        assert over == empty_handed

    between(body)


def test_a_ticket_is_for_one_offer() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        with holder.server.offer(whole(DATA), bytes(32)), holder.server.offer(whole(DATA), TICKET):
            _, given = await ask(getter, holder)
            assert isinstance(given, BlobHave)
        with holder.server.offer(whole(DATA), bytes(32)):
            _, refused = await ask(getter, holder)
            assert isinstance(refused, BlobGone)

    between(body)


def test_the_end_of_an_offer_ends_its_streams() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        with holder.server.offer(whole(DATA), TICKET):
            dialogue, _ = await ask(getter, holder)
        with pytest.raises(OverlayError):
            await dialogue.receive()
        assert not holder.server._streams

    between(body)


def test_nobody_is_sent_a_piece_again_and_again() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        with holder.server.offer(whole(DATA), TICKET):
            answers: list[Any] = []
            for _ in range(3):  # over several streams as well
                dialogue, _ = await ask(getter, holder)
                for _ in range(2):
                    await dialogue.send(BlobGet(index=3))
                    answers.append(await dialogue.receive())
                await dialogue.send(BlobDone())
            assert [type(answer) for answer in answers] == [BlobPiece] * 2 + [BlobDropped] * 4
            assert {answer.code for answer in answers[2:]} == {WireCode.OVERSIZED}
            assert holder.server.sent_bytes == 2 * 256 * 1024

    between(body)


def test_a_peer_gets_so_many_bytes_a_second() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        holder.server.limits = ServerLimits(peer_bytes_per_s=MIB, burst_bytes=MIB, repeats=100)
        with holder.server.offer(whole(DATA), TICKET):
            dialogue, _ = await ask(getter, holder)
            began = trio.current_time()
            for index in [*range(8)] * 3:
                await dialogue.send(BlobGet(index=index))
                assert isinstance(await dialogue.receive(), BlobPiece)
            assert trio.current_time() - began >= 4.7  # six MiB, of which one at once, and the last piece

    between(body)


def test_one_peer_has_so_many_streams() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        with holder.server.offer(whole(DATA), TICKET):
            kept = [await ask(getter, holder) for _ in range(8)]
            with pytest.raises((OverlayError, ProtocolError)):
                await ask(getter, holder)
            await kept[0][0].send(BlobDone())
            await trio.sleep(1)
            _, given = await ask(getter, holder)
            assert isinstance(given, BlobHave)

    between(body)


def test_what_is_dropped_in_time_is_not_sent() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        with holder.server.offer(whole(DATA), TICKET):
            dialogue, _ = await ask(getter, holder)
            for index in range(8):
                await dialogue.send(BlobGet(index=index))
            for index in range(1, 8):
                await dialogue.send(BlobDrop(index=index))
            answers = [await dialogue.receive() for _ in range(8)]
            dropped = {answer.index for answer in answers if isinstance(answer, BlobDropped)}
            assert len(dropped) >= 5  # one is being sent, and the next one may be
            assert holder.server.sent_bytes == (8 - len(dropped)) * 256 * 1024

    between(body, latency_s=0.01, bytes_per_s=1e6)


def test_a_node_that_drains_serves_its_own_tasks_only() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        holder.server.draining = True
        with holder.server.offer(whole(DATA), TICKET):
            _, refused = await ask(getter, holder)
            assert isinstance(refused, BlobGone)
        with holder.server.offer(whole(DATA, origin=True), TICKET):
            _, given = await ask(getter, holder)
            assert isinstance(given, BlobHave)
        holder.server.draining = False
        with holder.server.offer(whole(DATA), TICKET):
            dialogue, _ = await ask(getter, holder)
            holder.server.draining = True
            await dialogue.send(BlobGet(index=0))
            assert await dialogue.receive() == BlobDropped(index=0, code=WireCode.DRAINING)

    between(body)


def test_what_comes_is_told_to_those_who_wait() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        held, source = empty(DATA), whole(DATA)
        with holder.server.offer(held, TICKET):
            async with trio.open_nursery() as nursery:
                answers: list[Any] = []

                async def wait() -> None:
                    dialogue, have = await ask(getter, holder)
                    answers.extend([have, await dialogue.receive(), await dialogue.receive()])

                nursery.start_soon(wait)
                await trio.sleep(1)
                assert not answers  # nothing is known of it yet
                leaves = await source.wait_leaves()
                assert leaves is not None
                held.know(leaves)
                await trio.sleep(1)
                held.put(2, source.read(2))
                held.put(5, source.read(5))
        assert [type(answer) for answer in answers] == [BlobHave, BlobHeld, BlobHeld]
        assert answers[0].held == b"\x00"
        assert [answer.index for answer in answers[1:]] == [2, 5]

    between(body)


def test_who_says_nothing_is_left() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        stream = await getter.overlay.open_stream(holder.overlay.peer_id, blob.PROTOCOL_ID)
        with pytest.raises(OverlayError):
            await stream.receive_some()
        assert trio.current_time() < 60
        with holder.server.offer(whole(DATA), TICKET):
            dialogue, _ = await ask(getter, holder)
            with pytest.raises((OverlayError, ProtocolError)):
                await dialogue.receive()
        assert not holder.server._streams

    between(body)


def test_who_reads_nothing_holds_up_nobody() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        async with a_peer(network) as holder, a_peer(network) as stuck, a_peer(network) as getter:
            for peer in (stuck, getter):
                await peer.overlay.connect(holder.overlay.addresses[0])
            with holder.server.offer(whole(DATA), TICKET):
                kept = [await ask(stuck, holder) for _ in range(4)]
                for dialogue, _ in kept:
                    for index in range(8):
                        await dialogue.send(BlobGet(index=index))
                await trio.sleep(1)
                began = trio.current_time()
                dialogue, _ = await ask(getter, holder)
                for index in range(8):
                    await dialogue.send(BlobGet(index=index))
                    assert isinstance(await dialogue.receive(), BlobPiece)
                assert trio.current_time() - began < 1
                await trio.sleep(100)
                _, refused = await ask(stuck, holder)  # it has had its chances
                assert isinstance(refused, BlobGone)
                assert refused.code == WireCode.NO_CAPACITY
                await trio.sleep(60)
                _, given = await ask(stuck, holder)
                assert isinstance(given, BlobHave)
            await trio.sleep(1)
            assert not holder.server._streams

    virtually(main)


def test_a_piece_goes_to_one_peer_a_few_times_over_all_of_its_streams() -> None:
    async def body(holder: Peer, getter: Peer) -> None:
        with holder.server.offer(whole(DATA), TICKET):
            streams = [(await ask(getter, holder))[0] for _ in range(5)]
            for dialogue in streams:  # at once: none has come to its turn
                await dialogue.send(BlobGet(index=0))
            answers: list[Any] = []

            async def hear(dialogue: Dialogue) -> None:
                answers.append(await dialogue.receive())

            async with trio.open_nursery() as nursery:  # at once: who is sent a piece takes it, whichever that is
                for dialogue in streams:
                    nursery.start_soon(hear, dialogue)
            assert sum(isinstance(answer, BlobPiece) for answer in answers) == 2
            assert sum(answer == BlobDropped(index=0, code=WireCode.OVERSIZED) for answer in answers) == 3
            for dialogue in streams:
                await dialogue.stream.aclose()  # type: ignore[attr-defined]

    between(body)


def test_what_was_asked_for_and_not_sent_may_be_asked_for_again() -> None:
    """A stream that broke, or a piece that was dropped, takes nothing from what a peer may have."""

    async def body(holder: Peer, getter: Peer) -> None:
        held = whole(DATA)
        with holder.server.offer(held, TICKET):
            async with holder.server._turns.turn(lambda: 0), holder.server._turns.turn(lambda: 0):  # nobody's turn
                for _ in range(3):
                    dialogue, _have = await ask(getter, holder)
                    await dialogue.send(BlobGet(index=0), BlobGet(index=1), BlobDrop(index=1))
                    assert await dialogue.receive() == BlobDropped(index=1, code=WireCode.CANCELLED)
                    await dialogue.stream.reset()  # type: ignore[attr-defined]
                await trio.sleep(1)
                assert not any(held.given.values())
            dialogue, _have = await ask(getter, holder)
            for index in (0, 1):
                await dialogue.send(BlobGet(index=index))
                assert isinstance(await dialogue.receive(), BlobPiece)
            assert list(held.given.values()) == [1, 1]
            await dialogue.stream.aclose()  # type: ignore[attr-defined]

    between(body)
