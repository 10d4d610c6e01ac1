"""The root over receipts that a voucher carries: both sides come to it, and it proves to others what was paid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.errors import StorageError
from p2pcompute.payments import ClaimRow
from p2pcompute.storage import _roots
from p2pcompute_protocols.channel import Voucher, voucher_digest
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import TaskId
from p2pcompute_protocols.merkle import MerkleTree, verify_inclusion
from p2pcompute_protocols.task import open_proven_receipt

NETWORK = "test"


async def issue(world: Any, task: TaskId, index: int) -> tuple[Any, bytes]:
    """The provider does a chunk."""
    receipt = world.receipt(task, index)
    return receipt, await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt)


async def pay_for(world: Any, *receipts: tuple[Any, bytes]) -> Any:
    """The requester accepts them in this order, and pays; the payee's row then."""
    for receipt, envelope in receipts:
        await world.channel_out().accept(receipt.task, [(receipt, envelope)], sampled=1)
    await world.channel_out().pay()
    return await world.payee_ledger.channel_in(world.channel)


async def named_with_voucher(world: Any) -> Any:
    """What the requester would name with its highest voucher, if it were sent now."""
    row = await world.payer_ledger.channel_out(world.channel)
    return await world.payer_ledger.covered_by_voucher(
        world.channel, told_leaves=row.told_leaves, signed_leaves=row.signed_leaves
    )


def root(receipts: Sequence[tuple[Any, bytes]]) -> bytes:
    return MerkleTree(envelope for _, envelope in receipts).root


async def proven(world: Any, receipt: Any, envelope: bytes, against: bytes) -> None:
    """Both sides prove it, and a third party that knows the root from the chain is convinced."""
    proofs = [
        await ledger.prove_receipt(receipt.task, receipt.index, root=against)
        for ledger in (world.payer_ledger, world.payee_ledger)
    ]
    assert proofs[0] == proofs[1]
    proof = proofs[0]
    assert (proof.channel, proof.root, proof.envelope) == (world.channel, against, envelope)
    shown = open_proven_receipt(
        proof.envelope,
        proof.proof,
        against,
        network=NETWORK,
        provider=world.provider.peer_id,
        task=receipt.task,
        index=receipt.index,
    )
    assert shown == receipt
    with pytest.raises(LocalProtocolError):
        open_proven_receipt(
            proof.envelope,
            proof.proof,
            bytes(32),
            network=NETWORK,
            provider=world.provider.peer_id,
            task=receipt.task,
            index=receipt.index,
        )


@pytest.mark.parametrize("at_once", [1, 2, 5, 1_024])
def test_a_proof_is_made_in_parts_between_which_others_write(
    run: Any, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """However many receipts a channel has, the ledger is held up for a part of them at a time."""

    async def body(world: Any) -> None:
        monkeypatch.setattr(_roots, "_AT_ONCE", at_once)
        monkeypatch.setattr(_roots, "MAX_COVERED", 3)
        tasks = [await world.agree(), await world.agree()]
        await world.payer.open_channels(world.need(1_000))
        done = [await issue(world, tasks[number % 2], number) for number in range(20)]
        roots = []
        for at in range(0, 20, 2):
            await pay_for(world, *done[at : at + 2])
            roots.append(root(done[: at + 2]))
        for ledger in (world.payer_ledger, world.payee_ledger):
            reads, read = 0, ledger._read

            async def counted(work: Any, read: Any = read, ledger: Any = ledger) -> Any:
                nonlocal reads
                reads += 1
                if reads == 3:  # somebody else's turn
                    await ledger.ban(world.requester.peer_id, reason="between two parts")
                return await read(work)

            with monkeypatch.context() as patch:
                patch.setattr(ledger, "_read", counted)
                for against, leaves in ((roots[9], 20), (roots[3], 8)):
                    for receipt, envelope in done[:leaves]:
                        reads = 0
                        proof = await ledger.prove_receipt(receipt.task, receipt.index, root=against)
                        assert (proof.proof.leaves, proof.envelope) == (leaves, envelope)
                        verify_inclusion(envelope, proof.proof, against)
                        assert reads > leaves / 2 / at_once
                with pytest.raises(StorageError, match="does not cover"):
                    await ledger.prove_receipt(done[8][0].task, done[8][0].index, root=roots[3])

    run(body)


def test_both_sides_come_to_the_root_and_it_is_claimed(make_world: Any, tmp_path: Path) -> None:
    """Two tasks at once, accepted in another order than done, over a restart of both nodes."""
    world = make_world(tmp_path)
    claims: list[ClaimRow] = []
    accepted: list[tuple[Any, bytes]] = []

    async def life(first: bool) -> None:
        if first:
            tasks.extend([await world.agree(), await world.agree()])
            await world.payer.open_channels(world.need(1_000))
        start = 0 if first else 10
        done = [await issue(world, tasks[number % 2], start + number) for number in range(7)]
        for part in ([done[3], done[0]], [done[1]], [done[6], done[5], done[2], done[4]]):
            row = await pay_for(world, *part)
            accepted.extend(part)
            assert row.memo == root(accepted)
            assert row.rooted_leaves == len(accepted) == row.best_uusd
        claim = world.chain._claim

        def noted(call: Any) -> Any:
            claims.extend(call.rows)
            return claim(call)

        world.chain._claim = noted
        assert await world.settler.checkpoint()
        world.chain._claim = claim
        assert claims[-1].memo == root(accepted)
        assert world.payee.counters.unrooted == 0
        for receipt, envelope in accepted:
            await proven(world, receipt, envelope, root(accepted))
        for ledger in (world.payer_ledger, world.payee_ledger):
            await ledger.verify(full=True)
            old = await ledger.prove_receipt(
                done[3][0].task, done[3][0].index, root=root(accepted[: 2 if first else 9])
            )
            assert old.proof.leaves == (2 if first else 9)

    tasks: list[TaskId] = []

    async def main() -> None:
        for first in (True, False):
            async with world.open():
                await life(first)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(accepted) == 14


def test_what_no_root_covers_is_not_proven(run: Any) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        paid, unpaid = await issue(world, task, 0), await issue(world, task, 1)
        await pay_for(world, paid)
        for ledger in (world.payer_ledger, world.payee_ledger):
            with pytest.raises(StorageError, match="no task"):
                await ledger.prove_receipt(TaskId(b"x" * 32), 0)
            with pytest.raises(StorageError, match=r"no paid receipt|does not cover"):
                await ledger.prove_receipt(task, 1)
            with pytest.raises(StorageError, match="does not cover"):
                await ledger.prove_receipt(task, 0, root=b"r" * 32)
            assert (await ledger.prove_receipt(task, 0)).root == root([paid])
        await pay_for(world, unpaid)
        for ledger in (world.payer_ledger, world.payee_ledger):
            with pytest.raises(StorageError, match="does not cover"):
                await ledger.prove_receipt(task, 1, root=root([paid]))
            assert (await ledger.prove_receipt(task, 1)).proof.index == 1

    run(body)


def test_receipts_are_named_again_until_an_ack_has_come(run: Any) -> None:
    """The payee holds the voucher and what it names, and its ack is lost: what it knows is named to it once more."""

    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        done = [await issue(world, task, index) for index in range(5)]
        await pay_for(world, done[0])
        for receipt, envelope in done[1:3]:
            await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)
        ack = world.payer_ledger.ack_voucher

        async def lost(*_: Any, **__: Any) -> Any:
            raise trio.BrokenResourceError

        world.payer_ledger.ack_voucher = lost
        with trio.move_on_after(0.1):
            await world.channel_out().pay()
        world.payer_ledger.ack_voucher = ack
        assert (await world.payee_ledger.channel_in(world.channel)).rooted_leaves == 3
        named = await named_with_voucher(world)
        assert (named.first, len(named.receipts)) == (1, 2)
        row = await pay_for(world, done[3])
        assert (row.rooted_leaves, row.memo) == (4, root(done[:4]))
        assert (await pay_for(world, done[4])).rooted_leaves == 5
        named = await named_with_voucher(world)
        assert named is None
        assert world.payee.counters.unrooted == 0

    run(body)


@pytest.mark.parametrize("lie", ["never issued", "of another channel", "in another order", "a gap", "not named"])
def test_money_is_taken_whatever_its_memo_says(run: Any, lie: str) -> None:
    """A memo that the payee can't reproduce is noted, keeps nothing, and neither refuses nor loses a voucher."""

    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        done = [await issue(world, task, index) for index in range(4)]
        row = await pay_for(world, done[0])
        assert row.rooted_leaves == 1
        covered = world.payer_ledger.covered_by_voucher

        async def lying(channel: Any, **leaves: int) -> Any:
            truth = await covered(channel, **leaves)
            assert truth is not None
            match lie:
                case "never issued":
                    return _roots.Covered(first=truth.first, receipts=((task, 77),))
                case "of another channel":
                    return _roots.Covered(first=truth.first, receipts=((TaskId(b"o" * 32), 0),))
                case "in another order":
                    return _roots.Covered(first=truth.first, receipts=truth.receipts[::-1])
                case "a gap":
                    return _roots.Covered(first=truth.first + 1, receipts=truth.receipts)
                case _:
                    return None

        world.payer_ledger.covered_by_voucher = lying
        row = await pay_for(world, done[1], done[2])
        assert (row.best_uusd, row.rooted_leaves, row.memo) == (3, 0, root(done[:3]))
        assert world.payee.counters.unrooted == 1
        proof = await world.payee_ledger.prove_receipt(task, 0, root=root(done[:1]))
        assert proof.proof.leaves == 1  # what was reproduced before stays
        with pytest.raises(StorageError, match="does not cover"):
            await world.payee_ledger.prove_receipt(task, 1)
        assert await world.settler.checkpoint() == {world.channel: 3}

    run(body)


def test_a_backlog_is_named_part_by_part(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_roots, "MAX_COVERED", 3)

    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        done = [await issue(world, task, index) for index in range(12)]
        for count, leaves in ((8, 3), (9, 6), (10, 9), (11, 11), (12, 12)):
            known = 0 if count == 8 else count - 1
            row = await pay_for(world, *done[known:count])
            assert (row.best_uusd, row.rooted_leaves, row.memo) == (count, leaves, root(done[:leaves]))
        assert world.payee.counters.unrooted == 0

    run(body)


def test_receipts_are_covered_once(run: Any) -> None:
    """The attack: few receipts, named again and again. Each voucher of a micro-USD would write 10 KB."""

    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        refs, envelopes = [], []
        for index in range(8):
            _, envelope = await issue(world, task, index)
            refs.append((task, index))
            envelopes.append(envelope)

        async def pay(amount: int, first: int, named: list[int]) -> int:
            tree = MerkleTree([envelopes[at] for at in named])
            voucher = Voucher(channel=world.channel, amount_uusd=amount, memo=tree.root)
            row = await world.payee_ledger.take_voucher(
                world.channel,
                amount_uusd=amount,
                memo=tree.root,
                signature=world.wallet.sign_digest(voucher_digest(world.domain, voucher)),
                peer=world.requester.peer_id,
                covered=_roots.Covered(first=first, receipts=tuple(refs[at] for at in named[first:])),
            )
            return int(row.rooted_leaves)

        assert await pay(1, 0, [0] * 256) == 0
        assert await pay(2, 0, [0, 1, 2]) == 3
        assert await pay(3, 3, [0, 1, 2, 0, 1, 2]) == 6  # a few may be there twice, which harms the payer's proofs only
        assert await pay(4, 6, [0, 1, 2, 0, 1, 2, 0, 1, 2]) == 0  # as many as were issued, and no more
        assert await pay(5, 6, [0, 1, 2, 0, 1, 2, 6, 7]) == 8

    run(body)
