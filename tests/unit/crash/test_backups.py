"""A ledger is put back to how it was at some time of its life, and its node goes on.

It may have forgotten the newest promises, but it never signs below what its peer or the chain has seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.payments import ModelChain, Payer
from p2pcompute.storage import InlineExecutor, Ledger, open_ledger

from ..payments.conftest import NOW_MS, World
from ._disk import Disk, Left, Note, write_image
from ._histories import History, live


def backup(history: History, who: str, at: int) -> dict[str, bytes]:
    """The files of one side as they were at a point, like a snapshot of the file system gives them."""
    disk = Disk()
    for note in history.notes[:at]:
        if isinstance(note, Note):
            disk.play(note)
    return disk.image(str(history.directory / who), "all of it", "backup")


def last_chain(history: History) -> ModelChain:
    chains = [note.what[0] for note in history.notes if isinstance(note, Left) and note.who == "chain"]
    found: ModelChain = copy.deepcopy(chains[-1])
    return found


def watch_signing(ledger: Ledger) -> list[int]:
    """The amounts for which vouchers are signed from now on."""
    signed: list[int] = []
    raise_voucher = ledger.raise_voucher

    async def watched(channel: Any, *, sign: Callable[[int, bytes], tuple[bytes, bytes]]) -> Any:
        def noted(amount: int, root: bytes) -> tuple[bytes, bytes]:
            signed.append(amount)
            return sign(amount, root)

        return await raise_voucher(channel, sign=noted)

    ledger.raise_voucher = watched  # type: ignore[method-assign]
    return signed


async def goes_on(history: History, place: Path, at: int, *, payee_knows: bool) -> tuple[list[int], int, int]:
    """The payer's ledger is that of a point, the payee's the newest or a new one; what is signed for new work.

    Returns:
        the amounts signed, the highest that the peer or the chain had seen, and what is paid in the end.
    """
    write_image(backup(history, "payer", at), place / "payer")
    if payee_knows:
        write_image(backup(history, "payee", len(history.notes)), place / "payee")
    world = World(place)
    world.chain = last_chain(history)
    world.agreements = 1_000
    async with world.open():
        out = await world.payee_ledger.channel_in(world.channel)
        chain = world.chain.channels.get(world.channel)
        seen = max(out.best_uusd if out is not None else 0, chain.claimed_uusd if chain is not None else 0)
        signed = watch_signing(world.payer_ledger)
        task = await world.agree(ceiling_uusd=500)
        await world.work(task, 0, units=3)
        # Not by `open_channels`, which reads the chain in any case.
        world.chain.channels[world.channel] = type(chain)(  # type: ignore[misc]
            deposit_uusd=10_000, claimed_uusd=chain.claimed_uusd if chain is not None else 0, close_at_s=0
        )
        await world.payer_ledger.set_chain_out(world.channel, deposit_uusd=10_000, claimed_uusd=0)
        paid = await world.channel_out().pay()
        await world.payer_ledger.verify(full=True)
        await world.payee_ledger.verify(full=True)
        return signed, seen, paid


def history_and_points(tmp_path: Path) -> tuple[History, list[int]]:
    history = live(tmp_path / "life", seed="backups 3", steps=25)
    # After each of the payer's commits, and before its first.
    commits = [
        at + 1
        for at, note in enumerate(history.notes)
        if isinstance(note, Left) and note.who == "payer" and note.what[0] == "events"
    ]
    assert len(commits) > 40
    return history, commits[::3]


@pytest.mark.parametrize("payee_knows", [True, False])
def test_a_restored_payer_never_signs_below_what_peer_or_chain_have_seen(tmp_path: Path, payee_knows: bool) -> None:
    history, points = history_and_points(tmp_path)
    behind = 0
    for at in points:
        signed, seen, paid = trio.run(
            lambda at=at: goes_on(history, tmp_path / str(at), at, payee_knows=payee_knows),  # type: ignore[misc]
            clock=trio.testing.MockClock(autojump_threshold=0),
        )
        assert signed
        assert min(signed) > seen
        assert paid == max(signed) >= seen + 3
        behind += seen > 0
    assert behind > 10


def test_without_a_look_at_the_chain_it_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack without the defence: the payee has lost its ledger too, and shows nothing."""

    async def nothing(self: Payer, channel: Any) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Payer, "see_claims", nothing)
    history, points = history_and_points(tmp_path)
    signed, seen, _ = trio.run(
        lambda: goes_on(history, tmp_path / "below", points[0], payee_knows=False),
        clock=trio.testing.MockClock(autojump_threshold=0),
    )
    assert min(signed) <= seen


def test_a_restored_payee_takes_nothing_below_what_the_chain_has_paid(tmp_path: Path) -> None:
    """And gets the newest voucher again with the payer's next payment."""
    history, _ = history_and_points(tmp_path)
    commits = [
        at + 1
        for at, note in enumerate(history.notes)
        if isinstance(note, Left) and note.who == "payee" and note.what[0] == "events"
    ]

    async def main(at: int) -> None:
        place = tmp_path / f"payee {at}"
        write_image(backup(history, "payer", len(history.notes)), place / "payer")
        write_image(backup(history, "payee", at), place / "payee")
        world = World(place)
        world.chain = last_chain(history)
        world.agreements = 1_000
        async with world.open():
            row = await world.payer_ledger.channel_out(world.channel)
            assert row is not None
            # Its ledger is old, so it must not go on with tasks that were open in it.
            for task in await world.payee_ledger.open_agreements():
                await world.payee_ledger.close_agreement(task.task, state="failed", reason="restored")
            new = await world.agree(ceiling_uusd=500)
            await world.work(new, 0, units=3)
            await world.payer.open_channels(world.need(10))
            paid = await world.channel_out().pay()
            assert paid > row.voucher_uusd
            held = await world.payee_ledger.channel_in(world.channel)
            assert held is not None
            assert held.paid_uusd == paid
            await world.settler.checkpoint()
            assert world.chain.free[world.account.address] == paid

    for at in commits[::12]:
        trio.run(main, at, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_backup_is_a_ledger_that_opens(tmp_path: Path) -> None:
    history, points = history_and_points(tmp_path)
    write_image(backup(history, "payer", points[5]), tmp_path / "restored")

    async def main() -> None:
        async with open_ledger(tmp_path / "restored", executor=InlineExecutor(), clock_ms=lambda: NOW_MS) as ledger:
            report = await ledger.verify(full=True)
            assert report.events == max(
                note.what[1]
                for note in history.notes[: points[5]]
                if isinstance(note, Left) and note.who == "payer" and note.what[0] == "events"
            )

    trio.run(main)
