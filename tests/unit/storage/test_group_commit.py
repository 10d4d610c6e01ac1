"""Transactions that share a sync: each has its own outcome, and what befalls the disk befalls all of them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from p2pcompute.errors import DiskFull
from p2pcompute.storage import InlineExecutor, Ledger, LedgerFailed, ReceiptConflict, ThreadExecutor, open_ledger
from p2pcompute.storage._commits import _ALONE, MAX_GROUP
from p2pcompute.storage._executor import BRIEF_IN_A_ROW, BRIEF_S
from p2pcompute_protocols.ids import PeerId

T = TypeVar("T")


class Gate:
    """An executor that holds calls back until it is opened."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.open.set()
        self.after: Callable[[], None] = lambda: None

    async def __call__(self, function: Callable[[], T]) -> T:
        await self.open.wait()
        result = function()
        after, self.after = self.after, lambda: None
        after()
        return result


def commits(ledger: Ledger) -> list[int]:
    """From now on, how many transactions each commit of the ledger holds."""
    sizes: list[int] = []
    write = ledger._database.write_all

    def counted(works: Any, now_ms: int) -> Any:
        sizes.append(len(works))
        return write(works, now_ms)

    ledger._database.write_all = counted  # type: ignore[method-assign]
    return sizes


async def held_back(gate: Gate, ledger: Ledger, nursery: trio.Nursery) -> None:
    """One transaction is under way, and does not come to its end before the gate opens."""
    gate.open = trio.Event()
    nursery.start_soon(lambda: ledger.ban(PeerId("first"), reason="x"))
    await trio.testing.wait_all_tasks_blocked()


def test_those_that_wait_for_the_disk_share_its_next_sync(tmp_path: Path) -> None:
    async def main() -> None:
        gate = Gate()
        async with open_ledger(tmp_path, executor=gate) as ledger:
            sizes = commits(ledger)
            async with trio.open_nursery() as nursery:
                await held_back(gate, ledger, nursery)
                for number in range(MAX_GROUP + 20):
                    nursery.start_soon(lambda number=number: ledger.ban(PeerId(f"peer {number}"), reason="x"))
                await trio.testing.wait_all_tasks_blocked()
                gate.open.set()
            assert sizes == [1, MAX_GROUP, 20]
            assert len(await ledger.peers()) == MAX_GROUP + 21
            await ledger.verify(full=True)

    trio.run(main)


def half_done(tx: Any) -> None:
    tx.emit("peer_banned", peer="half", reason="x")
    raise ValueError("after its first write")


def test_who_raises_with_nobody_beside_it_is_undone(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            with pytest.raises(ValueError, match="first write"):
                await ledger._write(half_done)
            await ledger.ban(PeerId("first"), reason="x")
            assert [row.peer for row in await ledger.peers()] == ["first"]
            await ledger.verify(full=True)

    trio.run(main)


def test_one_that_raises_is_undone_alone(tmp_path: Path, deal: Any) -> None:
    async def main() -> None:
        gate = Gate()
        async with open_ledger(tmp_path, executor=gate) as ledger:
            await ledger.add_agreement(deal.agreement, role="provider")
            sizes = commits(ledger)
            outcomes: dict[int, object] = {}

            async def record(number: int, output: bytes) -> None:
                try:
                    outcomes[number] = await ledger.record_receipt(deal.receipt(0, output=output), sign=deal.sign)
                except ReceiptConflict as exc:
                    outcomes[number] = exc

            async def fail() -> None:
                with pytest.raises(ValueError, match="first write"):
                    await ledger._write(half_done)

            async with trio.open_nursery() as nursery:
                await held_back(gate, ledger, nursery)
                nursery.start_soon(record, 0, b"a" * 32)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(fail)
                for number in range(1, 5):
                    nursery.start_soon(record, number, b"b" * 32)
                await trio.testing.wait_all_tasks_blocked()
                gate.open.set()
            assert sizes == [1, 6]
            assert isinstance(outcomes.pop(0), bytes)
            assert all(isinstance(outcome, ReceiptConflict) for outcome in outcomes.values())
            assert len({id(outcome) for outcome in outcomes.values()}) == 4
            assert [row.peer for row in await ledger.peers()] == sorted([deal.requester.peer_id, "first"])
            await ledger.verify(full=True)

    trio.run(main)


@pytest.mark.parametrize(("writes_before", "runs"), [(False, 1), (True, 2)])
def test_only_one_that_raises_behind_a_write_has_the_others_done_again(
    tmp_path: Path, writes_before: bool, runs: int
) -> None:
    """What is refused, as peers can have it at will, costs whoever waits beside it nothing."""

    async def main() -> None:
        gate = Gate()
        async with open_ledger(tmp_path, executor=gate) as ledger:
            seen: list[str] = []

            def beside(tx: Any, name: str) -> str:
                tx.emit("peer_banned", peer=name, reason="x")
                seen.append(name)
                return name

            def refused(tx: Any) -> None:
                if writes_before:
                    half_done(tx)
                raise ValueError("refused")

            async def refuse() -> None:
                with pytest.raises(ValueError, match="write" if writes_before else "refused"):
                    await ledger._write(refused)

            async with trio.open_nursery() as nursery:
                await held_back(gate, ledger, nursery)
                nursery.start_soon(ledger._write, lambda tx: beside(tx, "before"))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(refuse)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ledger._write, lambda tx: beside(tx, "behind"))
                await trio.testing.wait_all_tasks_blocked()
                gate.open.set()
            assert seen.count("before") == runs
            assert seen.count("behind") == 1
            assert [row.peer for row in await ledger.peers()] == ["before", "behind", "first"]
            await ledger.verify(full=True)

    trio.run(main)


def test_who_is_cancelled_while_it_waits_has_done_nothing(tmp_path: Path) -> None:
    """Even the one that was to write for the others: they are written all the same."""

    async def main() -> None:
        gate = Gate()
        async with open_ledger(tmp_path, executor=gate) as ledger:
            scopes = [trio.CancelScope() for _ in range(4)]

            async def ban(number: int) -> None:
                with scopes[number]:
                    await ledger.ban(PeerId(f"peer {number}"), reason="x")

            async with trio.open_nursery() as nursery:
                await held_back(gate, ledger, nursery)
                for number in range(4):
                    nursery.start_soon(ban, number)
                    await trio.testing.wait_all_tasks_blocked()
                scopes[2].cancel()
                # Between the end of the first commit and the next: 0 is told to write for all while it is cancelled.
                gate.after = scopes[0].cancel
                gate.open.set()
            assert [row.peer for row in await ledger.peers()] == ["first", "peer 1", "peer 3"]
            with trio.CancelScope() as scope:
                scope.cancel()
                await ledger.ban(PeerId("late"), reason="x")
            assert scope.cancelled_caught
            assert await ledger.peer(PeerId("late")) is None

    async def ends() -> None:
        with trio.fail_after(60):  # of virtual time: who waits for ever is found out at once
            await main()

    trio.run(ends, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_is_being_written_is_not_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        gate = Gate()
        async with open_ledger(tmp_path, executor=gate) as ledger:
            scope, done = trio.CancelScope(), trio.Event()

            async def ban() -> None:
                with scope:
                    await ledger.ban(PeerId("under way"), reason="x")
                    done.set()

            async with trio.open_nursery() as nursery:
                await held_back(gate, ledger, nursery)
                nursery.start_soon(ban)
                await trio.testing.wait_all_tasks_blocked()
                gate.open.set()
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
            assert done.is_set()
            assert await ledger.peer(PeerId("under way")) is not None

    trio.run(main)


def test_a_row_is_looked_up_while_others_wait_for_the_disk(tmp_path: Path) -> None:
    """It is as of the last commit: what is being written is not there yet."""

    async def main() -> None:
        gate = Gate()
        async with open_ledger(tmp_path, executor=gate) as ledger:
            await ledger.ban(PeerId("there"), reason="x")
            async with trio.open_nursery() as nursery:
                await held_back(gate, ledger, nursery)
                with trio.fail_after(300):
                    found = await ledger.peer(PeerId("there"))
                    assert found is not None
                    assert found.banned == "x"
                    assert await ledger.peer(PeerId("first")) is None
                gate.open.set()
            assert await ledger.peer(PeerId("first")) is not None
            looks = ledger._database._looks
            assert looks is not None
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                looks.execute("DELETE FROM peers")
        with pytest.raises(LedgerFailed, match="closed"):
            await ledger.peer(PeerId("there"))

    trio.run(main)


def test_a_full_disk_undoes_the_whole_group_and_each_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        gate = Gate()
        async with open_ledger(tmp_path, executor=gate) as ledger:
            connection = ledger._database.connection
            told: list[DiskFull] = []

            async def ban(number: int) -> None:
                try:
                    await ledger.ban(PeerId(f"peer {number}"), reason="x" * 2_000)
                except DiskFull as exc:
                    told.append(exc)

            async with trio.open_nursery() as nursery:
                await held_back(gate, ledger, nursery)
                for number in range(20):
                    nursery.start_soon(ban, number)
                await trio.testing.wait_all_tasks_blocked()
                pages = connection.execute("PRAGMA page_count").fetchone()[0]
                connection.execute(f"PRAGMA max_page_count = {pages + 5}")
                gate.open.set()
            assert len(told) == 20
            assert len({id(error) for error in told}) == 20
            assert [row.peer for row in await ledger.peers()] == ["first"]
            connection.execute("PRAGMA max_page_count = 100000")
            await ledger.ban(PeerId("later"), reason="x")
            await ledger.verify(full=True)

    trio.run(main)


@pytest.mark.parametrize("executor", [InlineExecutor, ThreadExecutor])
def test_a_hundred_signers_of_one_increment_sign_once(tmp_path: Path, deal: Any, executor: type) -> None:
    """All see the same accepted work and want to sign for it at once: one signature is made, and all get that one."""

    async def main() -> None:
        async with open_ledger(tmp_path, executor=executor()) as ledger:
            row = await ledger.add_agreement(deal.agreement, role="requester")
            await ledger.set_chain_out(row.channel, deposit_uusd=1_000, claimed_uusd=0)
            signed: list[int] = []
            seen: list[tuple[int, bytes | None]] = []

            async def raise_it(number: int) -> None:
                def sign(amount_uusd: int, _: bytes) -> tuple[bytes, bytes]:
                    signed.append(amount_uusd)
                    return bytes(32), number.to_bytes(65, "big")

                found = await ledger.raise_voucher(row.channel, sign=sign)
                seen.append((found.voucher_uusd, found.signature))

            for increment in range(1, 4):
                receipt = deal.receipt(increment, units=10)
                amount = await ledger.accept_work(deal.task, [(receipt, deal.sign(receipt))], sampled=1)
                seen.clear()
                async with trio.open_nursery() as nursery:
                    for number in range(100):
                        nursery.start_soon(raise_it, number)
                assert signed.count(amount) == 1
                assert len(signed) == increment
                assert len(seen) == 100
                assert len(set(seen)) == 1
                assert seen[0][0] == amount
            await ledger.verify(full=True)

    trio.run(main)


def on_disk(ledger: Ledger, sql: str) -> Any:
    """What another connection finds, that is to say what is committed."""
    connection = sqlite3.connect(str(ledger.path))
    try:
        return connection.execute(sql).fetchone()[0]
    finally:
        connection.close()


def test_an_ack_rides_with_the_next_transaction(tmp_path: Path, deal: Any) -> None:
    """It is seen at once, costs no sync of its own, and is there after a close, and after the next start."""
    acked = "SELECT acked_uusd FROM channels_out"

    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            channel = (await ledger.add_agreement(deal.agreement, role="requester")).channel
            await ledger.set_chain_out(channel, deposit_uusd=1_000, claimed_uusd=0)

            async def pay(index: int) -> None:
                receipt = deal.receipt(index)
                await ledger.accept_work(deal.task, [(receipt, deal.sign(receipt))], sampled=1)
                row = await ledger.raise_voucher(channel, sign=lambda *_: (bytes(32), bytes(65)))
                assert (await ledger.ack_voucher(channel, amount_uusd=row.voucher_uusd)).acked_uusd == row.voucher_uusd
                found = await ledger.channel_out(channel)
                assert found is not None
                assert found.acked_uusd == row.voucher_uusd

            sizes = commits(ledger)
            await pay(0)
            assert (sizes, on_disk(ledger, acked)) == ([1, 1], 0)
            await pay(1)  # its first transaction takes the ack of the first voucher along
            assert (sizes, on_disk(ledger, acked)) == ([1, 1, 2, 1], 3)
            assert [row.acked_uusd for row in await ledger.channels_out()] == [6]  # to list them writes it
            assert on_disk(ledger, acked) == 6
            await pay(2)
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            assert on_disk(ledger, acked) == 9
            await ledger.verify(full=True)

    trio.run(main)


def test_what_rides_is_undone_alone_and_waits_for_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:

            def fails(tx: Any) -> None:
                tx.emit("peer_banned", peer="half", reason="x")
                raise ValueError("after its first write")

            ledger._ride("fails", fails)
            ledger._ride("stays", lambda tx: tx.emit("peer_banned", peer="rider", reason="x"))
            connection = ledger._database.connection
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(DiskFull):
                await ledger.ban(PeerId("no room"), reason="x" * 20_000)
            assert on_disk(ledger, "SELECT count(*) FROM peers") == 0
            connection.execute("PRAGMA max_page_count = 100000")
            await ledger.ban(PeerId("room"), reason="x")
            assert [row.peer for row in await ledger.peers()] == ["rider", "room"]
            await ledger.verify(full=True)

    trio.run(main)


def test_a_quick_disk_needs_no_thread_and_a_slow_one_has_it_back() -> None:
    """The event loop feels one slow call, and none while others want to run."""

    async def main() -> None:
        now, takes = 0.0, 0.0
        places: list[str] = []

        def clock_s() -> float:
            return now

        def call() -> None:
            nonlocal now
            now += takes
            places.append("loop" if threading.current_thread() is threading.main_thread() else "thread")

        async def calls(count: int) -> list[str]:
            places.clear()
            for _ in range(count):
                await executor.brief(call)
            return places.copy()

        executor = ThreadExecutor(clock_s=clock_s)
        assert await calls(BRIEF_IN_A_ROW + 2) == ["thread"] * BRIEF_IN_A_ROW + ["loop"] * 2
        takes = BRIEF_S
        assert await calls(3) == ["loop", "thread", "thread"]
        takes = 0.0
        assert await calls(BRIEF_IN_A_ROW + 1) == ["thread"] * BRIEF_IN_A_ROW + ["loop"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)
            assert await calls(1) == ["thread"]
        assert await calls(1) == ["loop"]
        with trio.CancelScope() as scope:
            scope.cancel()
            await calls(1)
        assert scope.cancelled_caught
        assert places == []

        # One that is under way in the thread is waited for.
        held, done = threading.Event(), trio.Event()

        async def hold() -> None:
            await executor(held.wait)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(calls, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert places == []
            held.set()
        assert done.is_set()
        assert places == ["thread"]

    trio.run(main)


def test_who_is_alone_waits_for_nobody_until_others_come(tmp_path: Path) -> None:
    class Steps(trio.abc.Instrument):
        turns = 0

        def before_io_wait(self, timeout: float) -> None:
            self.turns += 1

    async def main() -> None:
        async with open_ledger(tmp_path, executor=ThreadExecutor(clock_s=lambda: 0.0)) as ledger:
            for _ in range(BRIEF_IN_A_ROW):
                await ledger.note_failure(PeerId("one"))
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            for _ in range(9 * (_ALONE + 1)):
                await ledger.note_failure(PeerId("one"))
            trio.lowlevel.remove_instrument(steps)
            assert 8 <= steps.turns <= 10  # the event loop is nobody's own
            sizes = commits(ledger)
            for _ in range(4):
                async with trio.open_nursery() as nursery:
                    for number in range(_ALONE):
                        nursery.start_soon(ledger.note_failure, PeerId(f"{number}"))
            assert sizes[-2:] == [_ALONE, _ALONE]
            assert sizes.count(1) <= 2 * _ALONE

    trio.run(main)
