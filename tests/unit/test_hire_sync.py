"""`p2p.hire`: a block of synchronous code around a node in a thread. What is hired is tested elsewhere; here the node
is a stand-in, so that only the thread and the block are looked at."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
import p2pcompute.node
from p2pcompute import cuda
from p2pcompute.errors import BudgetError, ConfigError, KernelTypeError, NoProviderError, TaskError


@p2p.kernel
def double(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] * 2


X = np.arange(8, dtype=np.int32)
ARGS: Any = (double, p2p.out(8, np.int32), X)


class Stage:
    """Stands in for a node and for what it hires; notes what happens to it."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.said: list[str] = []
        self.thread: int | None = None
        self._fails = fails

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncGenerator[Any]:
        self.thread = threading.get_ident()
        self.said.append(f"open {options}")
        yield self
        self.said.append("closed")

    @asynccontextmanager
    async def hire(self, *args: Any, **options: Any) -> AsyncGenerator[Any]:
        assert args == ARGS
        self.said.append(f"hire {options}")
        if self._fails is not None:
            raise self._fails
        try:
            yield self
        except trio.Cancelled:
            self.said.append("cancelled")
            raise
        self.said.append("left")

    async def run(self, x: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if x is None:
            raise BudgetError("nothing is left")
        return x * 2


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    monkeypatch.setattr(p2pcompute.node, "open_node", made.open)
    return made


def test_calls_go_to_the_thread_and_the_block_ends_it(stage: Stage) -> None:
    with p2p.hire(*ARGS, budget="1 USD", network="here") as hired:
        assert np.array_equal(hired.run(X), X * 2)
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(hired.run(1))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [2] * 4
    assert stage.thread != threading.get_ident()
    assert stage.said == ["open {'network': 'here'}", "hire {'budget': '1 USD'}", "left", "closed"]
    with pytest.raises(TaskError, match="hire again"):
        hired.run(X)


def test_an_error_of_a_call_leaves_the_hire_as_it_is(stage: Stage) -> None:
    with p2p.hire(*ARGS) as hired:
        with pytest.raises(BudgetError, match="nothing is left"):
            hired.run(None)
        assert hired.run(2) == 4
    assert stage.said[-2:] == ["left", "closed"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_of_the_block_cancels_what_is_under_way(stage: Stage, error: type[BaseException]) -> None:
    with pytest.raises(error), p2p.hire(*ARGS):
        raise error
    assert stage.said[-1] == "cancelled"


def test_what_can_not_be_hired_is_raised_where_the_block_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Stage(fails=NoProviderError("nobody"))
    monkeypatch.setattr(p2pcompute.node, "open_node", made.open)
    with pytest.raises(NoProviderError, match="nobody"), p2p.hire(*ARGS):
        pytest.fail("it began")
    assert threading.active_count() == 1 or all("hire" not in thread.name for thread in threading.enumerate())


def test_what_is_wrong_is_said_before_anything_is_opened(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="no option"), p2p.hire(*ARGS, max_providers=2):
        pytest.fail("it began")
    with pytest.raises(KernelTypeError, match="not split"), p2p.hire(double, ARGS[1], p2p.split(X, halo=0)):
        pytest.fail("it began")
    assert stage.said == []


def test_async_code_is_told_what_to_write(stage: Stage) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match=r"`async with node\.hire"), p2p.hire(*ARGS):
            pytest.fail("it began")

    trio.run(main)
    assert stage.said == []
