"""A payer, a payee, their ledgers and a hub, in any order, with kills at any send: nothing is lost or paid twice."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from p2pcompute.errors import InsufficientFunds
from p2pcompute.payments import ModelHub
from p2pcompute.storage import CeilingReached, InlineExecutor, Ledger, ReceiptConflict
from p2pcompute.storage._database import Database
from p2pcompute.storage._ledger import LEDGER_FILE


class Kill(Exception):
    """The process ends here."""


class FragileHub(ModelHub):
    """Dies before or after a transaction is taken."""

    die: str = ""

    async def send(self, raw: bytes) -> None:
        if self.die == "before send":
            raise Kill
        await super().send(raw)
        if self.die == "after send":
            raise Kill


def machine(make_world: Callable[..., Any]) -> type[RuleBasedStateMachine]:
    class Payments(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.root = Path(tempfile.mkdtemp(prefix="p2pcompute-ledger-"))
            self.lives = 0
            self.world = make_world()
            self.money = self.world.chain.total_uusd()
            self.tasks: list[tuple[bytes, int]] = []
            self.signed: dict[tuple[bytes, int], bytes] = {}
            self.best = self.voucher = self.claimed = 0
            self.ledgers: dict[str, Ledger] = {}
            self.open("payer")
            self.open("payee")

        def teardown(self) -> None:
            for who in list(self.ledgers):
                self.check(who)
                self.ledgers.pop(who)._database.close()
            shutil.rmtree(self.root)

        def check(self, who: str) -> None:
            trio.run(lambda: self.ledgers[who].verify(full=True))

        def open(self, who: str) -> None:
            """Open a node's ledger; where one is open, that process is killed, and what is on disk is what counts."""
            self.lives += 1
            directory = self.root / str(self.lives)
            directory.mkdir()
            if who in self.ledgers:
                old = self.ledgers[who]
                assert old.path is not None
                for name in (LEDGER_FILE, f"{LEDGER_FILE}-wal"):
                    shutil.copy(old.path.parent / name, directory / name)
                old._database.close()
            database = Database(directory / LEDGER_FILE)
            self.ledgers[who] = Ledger(database, executor=InlineExecutor(), clock_ms=lambda: 1, lock=None)
            self.check(who)

        def run(self, body: Callable[[Any], Any], *, die: str = "", sends: int = 0) -> None:
            """One act of both nodes. A kill ends the whole act, and both are opened again."""
            world = self.world

            async def main() -> None:
                async with trio.open_nursery() as nursery:
                    world.compose(self.ledgers["payer"], self.ledgers["payee"], nursery)
                    for hub, outbox in (
                        (world.payer.hub, world.payer_outbox),
                        (world.settler._hub, world.payee_outbox),
                    ):
                        fragile = FragileHub(world.chain, hub.account)
                        fragile.die = die
                        outbox._hub = fragile
                    dial, left = world.dial, sends

                    async def dying(peer: Any) -> Any:
                        client = await dial(peer)

                        def count(_: bytes) -> None:
                            nonlocal left
                            left -= 1
                            if left == 0:
                                raise Kill

                        for end in world.streams[-1]:
                            end.on_send = count
                        return client

                    if sends:
                        world.payer.dial = dying
                    await body(world)
                    await world.payer.aclose()
                    nursery.cancel_scope.cancel()

            killed = False
            try:
                trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
            except* Kill:
                killed = True
            if killed:
                self.open("payer")
                self.open("payee")

        @precondition(lambda self: len(self.tasks) < 4)
        @rule(ceiling=st.integers(3, 60), price=st.sampled_from([300_000, 1_000_000, 1_700_000]))
        def agree(self, ceiling: int, price: int) -> None:
            async def body(world: Any) -> None:
                self.tasks.append((await world.agree(price_pusd=price, ceiling_uusd=ceiling), ceiling))

            self.run(body)

        @precondition(lambda self: self.tasks)
        @rule(
            task=st.integers(0, 3),
            index=st.integers(0, 5),
            units=st.integers(1, 12),
            output=st.sampled_from([b"o" * 32, b"x" * 32]),
            accept=st.booleans(),
        )
        def work(self, task: int, index: int, units: int, output: bytes, accept: bool) -> None:
            task_id = self.tasks[task % len(self.tasks)][0]

            async def body(world: Any) -> None:
                receipt = world.receipt(task_id, index, units=units, output=output)
                try:
                    envelope = await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt)
                except ReceiptConflict:
                    assert self.signed[task_id, index] != output
                    return
                assert self.signed.setdefault((task_id, index), output) == output
                if accept and envelope == world.sign_receipt(receipt):
                    with suppress(CeilingReached):
                        await world.channel_out().accept(task_id, [(receipt, envelope)], sampled=1)

            self.run(body)

        @rule(amount=st.integers(0, 80), die=st.sampled_from(["", "", "before send", "after send"]))
        def fund(self, amount: int, die: str) -> None:
            self.run(lambda world: world.payer.open_channels(world.need(amount)), die=die)

        @rule(sends=st.sampled_from([0, 0, 1, 2, 3, 4]))
        def pay(self, sends: int) -> None:
            async def body(world: Any) -> None:
                try:
                    held = await world.channel_out().pay()
                except InsufficientFunds:
                    return
                row = await world.payer_ledger.channel_out(world.channel)
                assert (
                    held == row.accepted_uusd == max(row.acked_uusd, row.claimed_uusd)
                )  # claimed on chain is held as well
                assert await world.payee.paid_uusd(world.channel) == held

            self.run(body, sends=sends)

        @rule(die=st.sampled_from(["", "before send", "after send"]))
        def checkpoint(self, die: str) -> None:
            async def body(world: Any) -> None:
                await world.settler.checkpoint()
                row = await world.payee_ledger.channel_in(world.channel)
                assert row is None or row.unclaimed_uusd == 0

            self.run(body, die=die)

        @rule(who=st.sampled_from(["payer", "payee"]))
        def kill(self, who: str) -> None:
            self.open(who)

        @invariant()
        def money_is_conserved(self) -> None:
            assert self.world.chain.total_uusd() == self.money

        @invariant()
        def the_books_agree(self) -> None:
            if not self.tasks:
                return

            async def main() -> None:
                channel = self.world.channel
                out = await self.ledgers["payer"].channel_out(channel)
                into = await self.ledgers["payee"].channel_in(channel)
                assert out is not None
                assert into is not None
                state = self.world.chain.channels.get(channel)
                deposit = state.deposit_uusd if state else 0
                claimed = state.claimed_uusd if state else 0
                # What was promised: only upwards, covered by money, by accepted work, and by the ceilings.
                assert self.voucher <= out.voucher_uusd <= min(deposit, out.accepted_uusd)
                assert out.voucher_uusd <= sum(ceiling for _, ceiling in self.tasks)
                # What arrived: only upwards, and nothing that was not promised.
                assert self.best <= into.best_uusd <= out.voucher_uusd
                assert out.acked_uusd <= into.best_uusd
                assert self.claimed <= claimed <= into.best_uusd
                # Accepted work is work that was receipted.
                assert out.accepted_pusd <= into.owed_pusd
                self.voucher, self.best, self.claimed = out.voucher_uusd, into.best_uusd, claimed

            trio.run(main)

    return Payments


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_paid_twice(make_world: Callable[..., Any]) -> None:
    run_state_machine_as_test(
        machine(make_world),
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
