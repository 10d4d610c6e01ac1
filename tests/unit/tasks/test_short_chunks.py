"""Short chunks: many go together, and each is still computed, receipted, checked, paid and bounded by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._books import _ProviderAccount
from p2pcompute.checking import read_evidence
from p2pcompute.errors import StorageError
from p2pcompute.storage import Ledger
from p2pcompute.tasks import Agreed, ChunkAssigned, ChunkDone, ChunkRejected, LiarCaught, Paid
from p2pcompute.tasks import _provider_group as grouping
from p2pcompute.testing import WorkerFaults
from p2pcompute.testing._simulation import _InlineSession
from p2pcompute_protocols.evidence import open_evidence
from p2pcompute_protocols.task import BatchedReceipt, open_proven_receipt, open_receipt, stands_in_batch

from ..market._harness import SIZE, Market, Watch, X, Y, Z, axpy, in_memory, until
from ._scenarios import altered_rows

CHUNKS = 256
SHORT_S = 0.0005
WIDE: dict[str, Any] = {"max_window": 64}


@contextmanager
def runs_of(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[int, int], None] = lambda *_: None
) -> Iterator[list[tuple[int, int]]]:
    """The blocks of each run of a worker: the first, and how many. `before` is told of each before it begins."""
    seen: list[tuple[int, int]] = []
    run_blocks = _InlineSession.run_blocks

    async def spied(self: _InlineSession, first_block: int, blocks: int, **options: Any) -> Any:
        seen.append((first_block, blocks))
        before(first_block, blocks)
        return await run_blocks(self, first_block, blocks, **options)

    monkeypatch.setattr(_InlineSession, "run_blocks", spied)
    yield seen


def short(market: Market, **options: Any) -> Any:
    return market.workers(**{"chunk_s": SHORT_S, **options})


async def run_short(requester: Any, watch: Watch, **options: Any) -> None:
    """As many blocks as chunks, at most: a chunk that is named is a block."""
    given = {"budget": "0.10 USD", "chunks": CHUNKS, "on_event": watch, **options}
    launch = axpy[CHUNKS, SIZE // CHUNKS]
    assert np.array_equal(await requester.run(launch, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, **given), Z)


def test_they_go_together_and_each_has_its_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=short(market), **WIDE)
        requester = await market.node(connect=(provider,))
        watch = Watch()
        with runs_of(monkeypatch) as runs:
            await run_short(requester, watch)
        assert sum(blocks for _, blocks in runs) == CHUNKS  # each of them once
        assert len(runs) < CHUNKS // 4
        assert len({event.index for event in watch.of(ChunkDone)}) == CHUNKS
        task = watch.of(Agreed)[0].task
        issued, held = [
            {row.index: row for row in await node.services.ledger.receipts(task)} for node in (provider, requester)
        ]
        assert issued.keys() == held.keys() == set(range(CHUNKS))
        assert sum(stands_in_batch(row.envelope) for row in issued.values()) > CHUNKS // 2
        for index, row in issued.items():
            assert row.envelope == held[index].envelope  # so roots over receipts are the same on both sides
            _, payload = open_receipt(
                row.envelope, network="simulated", provider=provider.peer_id, task=task, index=index
            )
            assert (payload.output, payload.units) == (row.digest, row.units)
        # What a third party is shown: the receipt, its path to the voucher's root, and the voucher.
        (channel,) = await provider.services.ledger.channels_in()
        for index in (0, CHUNKS // 2):
            proof = await provider.services.ledger.prove_receipt(task, index, root=channel.memo)
            assert (
                open_proven_receipt(
                    proof.envelope,
                    proof.proof,
                    proof.root,
                    network="simulated",
                    provider=provider.peer_id,
                    task=task,
                    index=index,
                ).output
                == issued[index].digest
            )
        assert await market.claimed_uusd(provider) == watch.of(Paid)[-1].paid_uusd

    in_memory(scenario)


@p2p.kernel
def sum_and_product(total, product, x):  # type: ignore[no-untyped-def]
    i, j = cuda.grid(2)
    if i < total.shape[0] and j < total.shape[1]:
        total[i, j] = x[i, j] + 1.0
        product[i, j, 0] = i * j
        product[i, j, 1] = i - j


@p2p.kernel
def added(total, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    total[i] = x[i]


def test_outputs_of_every_form_are_cut_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several outputs over a grid of two dimensions, which the blocks do not fill; and one that is combined."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=short(market), **WIDE)
        requester = await market.node(connect=(provider,))
        height, width = 61, 83
        x = np.arange(height * width, dtype=np.float32).reshape(height, width)
        with runs_of(monkeypatch) as runs:
            total, product = await requester.run(
                sum_and_product[(16, 21), (4, 4)],
                p2p.out(x.shape, np.float32),
                p2p.out((*x.shape, 2), np.int32),
                x,
                chunks=112,  # of three blocks each
                budget="0.10 USD",
            )
        assert max(blocks for _, blocks in runs) >= 12
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        assert np.array_equal(total, x + 1)
        assert np.array_equal(product, np.stack([rows * columns, rows - columns], axis=-1).astype(np.int32))
        with runs_of(monkeypatch) as runs:
            total = await requester.run(
                added[128, 32],
                p2p.reduce("sum", (4096,), np.int32),
                np.arange(4096, dtype=np.int32),
                chunks=128,
                budget="0.10 USD",
            )
        assert max(blocks for _, blocks in runs) >= 4
        assert total == 4095 * 2048

    in_memory(scenario)


def test_a_group_is_no_longer_than_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for a turn no longer than for one chunk of that length; long chunks are never grouped."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=short(market, chunk_s=0.004), **WIDE)
        slow = await market.provider(workers=short(market, chunk_s=0.15), **WIDE)
        for node, most in ((provider, range(16, 51)), (slow, range(1, 2))):
            requester = await market.node(connect=(node,))
            with runs_of(monkeypatch) as runs:
                await run_short(requester, Watch())
            assert max(blocks for _, blocks in runs) in most

    in_memory(scenario)


@p2p.kernel
def numbered(result):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < result.size:
        result[i] = i


@pytest.mark.parametrize(("block", "sizes"), [(256, {2, 3}), (300, {2}), (500, {0})])
def test_what_is_too_much_for_one_message_is_one_run_and_several(
    block: int, sizes: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three chunks of 64 KiB go into a message, two of 75 KiB, and those of 125 KiB go alone."""
    chunks = 48
    written: list[int] = []
    record_receipts = Ledger.record_receipts

    async def spied(self: Ledger, receipts: Any, **options: Any) -> Any:
        written.append(len(receipts))
        return await record_receipts(self, receipts, **options)

    monkeypatch.setattr(Ledger, "record_receipts", spied)

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=short(market, chunk_s=0.002), **WIDE)
        requester = await market.node(connect=(provider,))
        watch = Watch()
        with runs_of(monkeypatch) as runs:
            found = await requester.run(
                numbered[chunks * 64, block],
                p2p.out(chunks * 64 * block, np.int32),
                chunks=chunks,
                budget="0.10 USD",
                on_event=watch,
            )
        assert np.array_equal(found, np.arange(chunks * 64 * block))
        task = watch.of(Agreed)[0].task
        issued, held = [
            {row.index: row.envelope for row in await node.services.ledger.receipts(task)}
            for node in (provider, requester)
        ]
        assert issued == held
        assert len(issued) == chunks
        together = [BatchedReceipt.decode(shown) for shown in issued.values() if stands_in_batch(shown)]
        assert {shown.proof.leaves for shown in together} <= sizes
        if sizes == {0}:
            assert max(blocks for _, blocks in runs) == 64
            assert not written
        else:
            assert len(together) > chunks // 2
            assert max(blocks for _, blocks in runs) > 4 * 64
            assert max(written) > 4  # of all messages of a run at once

    in_memory(scenario)


def test_a_requester_looks_at_one_half_of_a_window_while_the_other_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that take no time to speak of could all go together, and then each side would wait for the other."""
    chunks, most = 2000, 100
    monkeypatch.setattr(grouping, "MAX_BATCH_CHUNKS", most)

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=1e-7), **WIDE)
        requester = await market.node(connect=(provider,))
        watch = Watch()
        with runs_of(monkeypatch) as runs:
            given = {"budget": "0.10 USD", "chunks": chunks, "on_event": watch, "check": "none"}
            found = await requester.run(numbered[chunks, 1], p2p.out(chunks, np.int32), **given)
        assert np.array_equal(found, np.arange(chunks))
        agreed = watch.of(Agreed)[0]
        assert max(blocks for _, blocks in runs) == agreed.max_window // 2 > 2 * most
        # Each side lets others run behind so many.
        issued = [row.envelope for row in await provider.services.ledger.receipts(agreed.task)]
        leaves = {BatchedReceipt.decode(shown).proof.leaves for shown in issued if stands_in_batch(shown)}
        assert most // 2 < max(leaves) <= most

    in_memory(scenario)


def test_a_lonely_chunk_waits_for_nobody() -> None:
    """The first chunk of a task is answered when it is done, whether or not others are on their way: nothing is held
    back for a batch."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=short(market), **WIDE)
        requester = await market.node(connect=(provider,))

        async def first_s(chunks: int) -> float:
            times: dict[type, float] = {}

            def note(event: Any) -> None:
                times.setdefault(type(event), trio.current_time())

            await run_short(requester, Watch(note), chunks=chunks, check="none")
            return times[ChunkDone] - times[ChunkAssigned]

        await first_s(1)
        alone_s = await first_s(1)
        assert alone_s < 2 * 0.02 + CHUNKS * SHORT_S + 0.01  # the whole grid is one chunk there
        assert await first_s(CHUNKS) <= alone_s + 1e-6  # differences of times that are rounded

    in_memory(scenario)


@pytest.mark.parametrize("fault", ["dies_at", "hangs_at"])
def test_a_chunk_that_breaks_its_group_fails_alone(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other chunks of the group have results, and the requester hears of one failure."""

    async def scenario(market: Market) -> None:
        faults, bad = WorkerFaults(), -1

        def choose(first: int, blocks: int) -> None:
            """How chunks fall into groups hangs on when vouchers come: what breaks one is chosen when there is one."""
            nonlocal bad
            if bad < 0 and first >= 100 and blocks > 1:
                bad = first + blocks // 2
                setattr(faults, fault, frozenset({bad}))

        fragile = await market.provider(workers=short(market, faults=faults), price="0.01 USD", **WIDE)
        requester = await market.node(connect=(fragile,))
        watch = Watch()
        sound: list[Any] = []

        def react(event: Any) -> None:
            if isinstance(event, ChunkRejected) and not sound:
                sound.append(event)

        watch._react = react
        async with trio.open_nursery() as nursery:

            async def help_out() -> None:
                await until(lambda: sound, within_s=300)
                other = await market.provider(workers=short(market), **WIDE)
                await requester.services.overlay.connect(other.addresses[0])

            nursery.start_soon(help_out)
            with runs_of(monkeypatch, choose) as runs:
                await run_short(requester, watch, deadline_s=600)
        assert {(event.provider, event.index) for event in watch.of(ChunkRejected)} == {(fragile.peer_id, bad)}
        together = [blocks for first, blocks in runs if blocks > 1 and bad in range(first, first + blocks)]
        assert together  # the fault was met in a group first
        mine = {event.index for event in watch.of(ChunkDone) if event.provider == fragile.peer_id}
        assert len(mine) >= 100

    in_memory(scenario)


def test_a_lie_among_them_is_found_and_proven_by_its_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(market: Market) -> None:
        lies: list[int] = []

        def lie(output: bytes, index: int) -> bytes:
            # The first lie is in a group. The newest run may be the honest provider's, and be of other chunks.
            mine = next(blocks for first, blocks in reversed(runs) if index in range(first, first + blocks))
            if not lies and mine < 2:
                return output
            lies.append(index)
            return altered_rows(output, index)

        liar = await market.provider(workers=short(market), fault=lie, price="0.01 USD", **WIDE)
        requester = await market.node(connect=(liar,), evidence=tmp_path)
        honest = await market.provider(workers=short(market), **WIDE)
        await requester.services.overlay.connect(honest.addresses[0])
        watch = Watch()
        with runs_of(monkeypatch) as runs:
            await run_short(requester, watch)
        (caught,) = watch.of(LiarCaught)
        assert caught.provider == liar.peer_id
        assert caught.index in lies
        # Nothing that was checked after the lie is paid, whatever came in the same message.
        assert await market.claimed_uusd(liar) == caught.paid_uusd
        rejected = [
            row
            for row in await requester.services.ledger.receipts(
                next(event.task for event in watch.of(Agreed) if event.provider == liar.peer_id)
            )
            if row.verdict == "rejected"
        ]
        assert caught.index in {row.index for row in rejected}
        shown = open_evidence(read_evidence(Path(caught.evidence)))
        assert stands_in_batch(shown.statements[0].raw)
        assert shown.receipts[0].index == caught.index

    in_memory(scenario)


def test_a_requester_that_leaves_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is cancelled in the middle of a group: no chunk stays charged, and the next task is computed."""

    async def scenario(market: Market) -> None:
        accounts: list[_ProviderAccount] = []
        begin_many = _ProviderAccount.begin_many

        async def and_remembers(self: _ProviderAccount, chunks: int) -> bool:
            accounts[:] = [self]
            return await begin_many(self, chunks)

        monkeypatch.setattr(_ProviderAccount, "begin_many", and_remembers)
        provider = await market.provider(workers=short(market), **WIDE)
        requester = await market.node(connect=(provider,))
        done = 0
        scope = trio.CancelScope()

        def react(event: Any) -> None:
            nonlocal done
            done += isinstance(event, ChunkDone)
            if done == 40:
                scope.cancel()

        with scope:
            await run_short(requester, Watch(react))
        assert scope.cancelled_caught
        await trio.sleep(5)
        (account,) = accounts
        assert not account._under_way
        assert not account._begun_pusd
        watch = Watch()
        await run_short(requester, watch)
        assert len({event.index for event in watch.of(ChunkDone)}) == CHUNKS

    in_memory(scenario)


def test_no_result_leaves_before_its_receipt_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that refuses a batch: none of its results goes out, and none of them is owed."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=short(market), price="0.01 USD", **WIDE)
        requester = await market.node(connect=(provider,))
        honest = await market.provider(workers=short(market), **WIDE)
        await requester.services.overlay.connect(honest.addresses[0])
        broken = provider.services.ledger
        record: Callable[..., Any] = Ledger.record_receipts
        refused: list[set[int]] = []

        async def refuses(self: Ledger, receipts: Any, **options: Any) -> Any:
            if self is broken:
                refused.append({receipt.index for receipt in receipts})
                raise StorageError("the disk says no")
            return await record(self, receipts, **options)

        monkeypatch.setattr(Ledger, "record_receipts", refuses)
        watch = Watch()
        await run_short(requester, watch)
        (once,) = refused
        assert len(once) > 1
        assert not once & {event.index for event in watch.of(ChunkDone) if event.provider == provider.peer_id}
        for row in await broken.receipts(watch.of(Agreed)[0].task):
            assert row.index not in once

    in_memory(scenario)


@pytest.mark.parametrize("most", [2, 3, 4, 17, 256])
def test_messages_of_a_run_are_few_and_none_has_a_single_result(most: int) -> None:
    for count in range(2, 257):
        if most == 2 and count % 2:
            continue  # which is not run together
        parts = grouping._batches(count, most)
        sizes = [part.stop - part.start for part in parts]
        assert sum(sizes) == count
        assert [part.start for part in parts] == [sum(sizes[:at]) for at in range(len(sizes))]
        assert 2 <= min(sizes) <= max(sizes) <= most
        assert len(sizes) == -(-count // most)


def test_how_many_go_together() -> None:
    group = grouping.Group()
    assert group.most(1_000) == 1  # until one was timed
    sizes = []
    for _ in range(11):
        sizes.append(most := group.most(2_000))
        group.ran(most, most * 50_000)
    assert sizes == [1 << doubled for doubled in range(11)]
    assert group.most(2_000) == 1024
    group.ran(256, 256 * 1_000_000)  # they have become longer
    assert group.most(1_000) == 200
    group.ran(1, 10_000_000)  # one by itself says how long they take, and nothing of how many may go together
    assert group.most(100) == 20
    group.ran(1, 300_000_000)
    assert group.most(100) == 1
    group.ran(1, 1)
    group.refused(256)
    assert group.most(1_000) == 128  # there may be credit for half
    group.refused(2)
    assert group.most(1_000) == 2
    group.alone = True
    assert group.most(1_000) == 1


def test_no_chunk_is_left_over_by_itself() -> None:
    group = grouping.Group()
    group.ran(64, 64 * 20_000_000)  # ten take as long as a group should
    for room in range(1, 100):
        sizes, left = [], room
        while left:
            sizes.append(size := group.most(left))
            left -= size
        assert max(sizes) <= 15  # half as long again at most
        assert room < 10 or min(sizes) >= 7
    assert group.most(0) == 1


@pytest.mark.parametrize(
    ("window", "unpaid", "together"),
    [
        (8, 0, 4),
        (8, 3, 0),
        (8, 4, 4),
        (8, 6, 2),
        (8, 8, 0),
        (64, 0, 11),
        (64, 16, 8),
        (64, 27, 5),
        (3, 1, 0),
        (1, 0, 0),
    ],
)
def test_a_group_ends_where_half_a_window_does(window: int, unpaid: int, together: int) -> None:
    """For which a voucher comes; and it takes about a fifth of a second."""
    group = grouping.Group()
    group.ran(64, 64 * 20_000_000)
    session: Any = SimpleNamespace(
        connection=SimpleNamespace(chunk_bytes=(64, 0)),
        group=group,
        queue=range(100),
        cancelled=set(),
        answered=dict.fromkeys(range(100), 0),
    )
    work: Any = SimpleNamespace(chunks=100, splits=False)
    account: Any = SimpleNamespace(window=window, unpaid=unpaid)
    assert grouping._chosen(session, work, account) == list(range(together))
