"""A provider whose disk fails ends at once, whoever met with it; one whose disk is full goes on when there is room."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.errors import DiskFull, P2PComputeError
from p2pcompute.node import Node
from p2pcompute.storage import InlineExecutor, LedgerFailed, WatchStore, open_watch_store
from p2pcompute.storage._database import Database, Transaction
from p2pcompute_protocols.ids import Address

from .market._harness import Market, Watch, Z, compute, in_memory
from .stake._court import Court, in_court

FAREWELL_S = 2.5  # half a second for the streams, and what is left of two seconds for what can't be claimed any more


class Disk:
    """Lets no write of a store come to its end while `error` is set."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.failed_s: list[float] = []
        write = database.write_all

        def written(works: Sequence[Callable[[Transaction], Any]], now_ms: int) -> list[Any]:
            def failing() -> list[Any]:
                error = sqlite3.OperationalError("as the disk says")
                error.sqlite_errorcode, error.sqlite_errorname = self.error, str(self.error)
                self.failed_s.append(trio.current_time())
                raise error

            return database._guard(failing) if self.error else write(works, now_ms)

        monkeypatch.setattr(database, "write_all", written)


class Serving:
    """A node that serves, and how that ended."""

    def __init__(self, market: Market, **options: Any) -> None:
        self._market, self._options = market, options
        self.error: BaseException | None = None
        self.over = trio.Event()
        self.over_s = 0.0

    async def node(self, *, tower: Any = None) -> Node:
        node = await self._market.node()
        node.services.watch_store = tower
        await self._market.nursery.start(self._serve, node)
        return node

    async def _serve(self, node: Node, *, task_status: Any) -> None:
        try:
            await node.serve(task_status=task_status, **self._options)
        except LedgerFailed as error:
            self.error = error
        self.over_s = trio.current_time()
        self.over.set()
        del self._market.nodes[node.peer_id]  # its ledger can't be looked at any more


def test_a_failed_fsync_ends_the_node_at_once_and_tells_requesters(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(market: Market) -> None:
        serving = Serving(market)
        provider = await serving.node()
        node = await market.node(connect=(provider,))
        assert np.array_equal(await compute(node), Z)
        disk = Disk(provider.services.ledger._database, monkeypatch)
        disk.error = sqlite3.SQLITE_IOERR_FSYNC
        watch = Watch()
        with trio.fail_after(120), pytest.raises(P2PComputeError):
            await compute(node, watch=watch, deadline_s=60)
        await serving.over.wait()
        assert serving.over_s - disk.failed_s[0] <= FAREWELL_S
        assert isinstance(serving.error, LedgerFailed)
        assert "restart the node" in str(serving.error)
        assert "ledger can't be written" in str(watch.events)  # in place of a stream that breaks

    in_memory(scenario)


def test_whoever_meets_with_it_first_the_node_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a command that looks at the ledger, and makes an answer of the error."""

    async def scenario(market: Market) -> None:
        serving = Serving(market)
        provider = await serving.node()
        disk = Disk(provider.services.ledger._database, monkeypatch)
        disk.error = sqlite3.SQLITE_IOERR_WRITE
        with pytest.raises(LedgerFailed):
            await provider.services.ledger.ban(provider.peer_id, reason="nothing")
        await serving.over.wait()
        assert serving.over_s - disk.failed_s[0] <= FAREWELL_S
        assert isinstance(serving.error, LedgerFailed)

    in_memory(scenario)


def test_a_watchtower_ends_with_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    stores: list[WatchStore] = []

    @asynccontextmanager
    async def opened() -> AsyncGenerator[WatchStore]:
        async with open_watch_store(None, executor=InlineExecutor()) as store:
            stores.append(store)
            yield store

    async def scenario(market: Market) -> None:
        serving = Serving(market, watch_for=("0x" + "11" * 20,))
        await serving.node(tower=opened)
        disk = Disk(stores[0]._database, monkeypatch)
        disk.error = sqlite3.SQLITE_IOERR_FSYNC
        someone = Address(bytes(20))
        with pytest.raises(LedgerFailed):
            await stores[0].put(someone, someone, someone, 1, b"", b"", room=1)
        await serving.over.wait()
        assert serving.over_s - disk.failed_s[0] <= FAREWELL_S
        assert isinstance(serving.error, LedgerFailed)

    in_memory(scenario)


def test_an_arbiter_ends_with_its_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(court: Court) -> None:
        node = await court.node()
        async with trio.open_nursery() as nursery:
            with pytest.raises(LedgerFailed, match="restart the node"):  # noqa: PT012
                nursery.start_soon(fail, node)
                await node.arbitrate()
        del court.market.nodes[node.peer_id]

    async def fail(node: Node) -> None:
        await trio.sleep(1)
        Disk(node.services.ledger._database, monkeypatch).error = sqlite3.SQLITE_IOERR_FSYNC
        with pytest.raises(LedgerFailed):
            await node.services.ledger.ban(node.peer_id, reason="nothing")

    in_court(tmp_path, scenario)


def test_a_full_disk_ends_nothing_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(market: Market) -> None:
        serving = Serving(market)
        provider = await serving.node()
        node = await market.node(connect=(provider,))
        disk = Disk(provider.services.ledger._database, monkeypatch)
        disk.error = sqlite3.SQLITE_FULL
        with trio.fail_after(120), pytest.raises(P2PComputeError):
            await compute(node, deadline_s=60)
        assert any("Make room on that disk" in record.getMessage() for record in caplog.records)
        await trio.sleep(3_600)
        with pytest.raises(DiskFull, match="Make room on that disk"):
            await provider.services.ledger.ban(node.peer_id, reason="nothing")
        assert not serving.over.is_set()
        disk.error = 0
        assert np.array_equal(await compute(node), Z)

    in_memory(scenario)
