"""Workers that start while a node is being opened: handed over once, or ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute._ahead import workers_ahead
from p2pcompute.errors import ConfigError, WorkerDied
from p2pcompute.execution import SandboxPolicy, WorkerPool
from p2pcompute.execution._pool_process import WorkerProgram
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain

pytestmark = pytest.mark.net

TOY = WorkerProgram(module="toy_worker", roots=(str(Path(__file__).parent / "execution" / "hostile"),))


def pool(program: WorkerProgram = TOY, *, refill: bool = True) -> WorkerPool:
    return WorkerPool(threads=1, spare=1, policy=SandboxPolicy(bwrap="never"), program=program, refill=refill)


def reaped(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def test_who_takes_the_workers_has_one_that_is_warm_and_nobody_has_it_afterwards() -> None:
    async def main() -> None:
        mine = pool()
        async with workers_ahead(mine) as ahead:
            assert ahead is not None
            assert await ahead.take(1, False) is mine
            async with mine.session() as session:
                pid = session.pid
            await mine.wait_warm()
            spare = mine._warm[0].pid
        assert reaped(pid)
        assert reaped(spare)
        with pytest.raises(WorkerDied, match="not running"):
            async with mine.session():
                pass

    trio.run(main)


def test_a_node_takes_them_and_takes_them_once() -> None:
    async def main() -> None:
        mine = pool()
        network, chain = MemoryNetwork(), simulated_chain()
        async with workers_ahead(mine) as ahead, open_simulated_node(network, chain) as node:
            node.workers_ahead = ahead
            assert await node._worker_pool(1) is mine
            assert node.workers_ahead is None
            assert await node._worker_pool(1) is mine

    trio.run(main)


@pytest.mark.parametrize("asked", [(2, False), (1, True)])
def test_who_asks_for_other_workers_gets_none_and_these_end(asked: tuple[int, bool]) -> None:
    async def main() -> None:
        mine = pool()
        async with workers_ahead(mine) as ahead:
            assert ahead is not None
            await mine.wait_warm()
            pid = mine._warm[0].pid
            assert await ahead.take(*asked) is None
            assert reaped(pid)
            assert await ahead.take(1, False) is None  # gone is gone

    trio.run(main)


def test_workers_that_do_not_start_are_left_to_whoever_opens_others() -> None:
    async def main() -> None:
        async with workers_ahead(pool(WorkerProgram(module="no_such_module"))) as ahead:
            assert ahead is not None
            assert await ahead.take(1, False) is None

    trio.run(main)


def test_a_block_that_fails_says_what_it_says_and_ends_workers_that_start() -> None:
    pids: list[int] = []

    async def main() -> None:
        mine = pool()
        async with workers_ahead(mine):
            await mine.wait_warm()
            pids.append(mine._warm[0].pid)
            raise ConfigError("as it was")

    with pytest.raises(ConfigError, match=r"^as it was$"):
        trio.run(main)
    assert reaped(pids[0])


def test_without_a_pool_there_is_nothing_to_take() -> None:
    async def main() -> Any:
        async with workers_ahead(None) as ahead:
            return ahead

    assert trio.run(main) is None


def test_workers_for_one_task_are_not_replaced_and_more_come_when_they_are_asked_for() -> None:
    async def main() -> None:
        mine = pool(refill=False)
        async with workers_ahead(mine) as ahead:
            assert ahead is not None
            assert await ahead.take(1, False) is mine
            assert mine.warm == 1
            async with mine.session() as first, mine.session() as second:
                assert first.pid != second.pid
                assert (mine.warm, mine._starting) == (0, 0)
            async with mine.session() as third:
                assert third.pid not in (first.pid, second.pid)
            assert (mine.warm, mine._starting) == (0, 0)

    trio.run(main)
