"""Ctrl-C at a script that uses `p2p.run`: its own line is shown, and not where in a node it came."""

from __future__ import annotations

import signal
import traceback
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
import p2pcompute._options
import p2pcompute.node
from p2pcompute import cuda


@p2p.kernel
def ones(out):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = 1.0


@p2p.kernel
def step(new_x, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        new_x[i] = x[i] + 1.0


@pytest.fixture(autouse=True)
def interrupts() -> Generator[None]:
    """A shell's background job, which a test run may be, starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def deep_inside() -> None:
    signal.raise_signal(signal.SIGINT)


@asynccontextmanager
async def interrupted(**_: Any) -> AsyncGenerator[Any]:
    deep_inside()
    await trio.lowlevel.checkpoint()
    yield None


@asynccontextmanager
async def interrupted_in_a_task(**_: Any) -> AsyncGenerator[Any]:
    async def task() -> None:
        deep_inside()
        await trio.lowlevel.checkpoint()

    async def other() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("of a task that ends with it")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(task)
        await trio.sleep_forever()
    yield None


def run() -> None:
    p2p.run(ones, p2p.out((8,), np.float32))


def iterate() -> None:
    p2p.iterate(step, rounds=1, state={"x": np.zeros(8, np.float32)})


@pytest.mark.parametrize("call", [run, iterate])
@pytest.mark.parametrize("opening", [interrupted, interrupted_in_a_task])
def test_ctrl_c_while_a_node_opens(call: Any, opening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2pcompute.node, "open_node", opening)
    with pytest.raises(KeyboardInterrupt) as caught:
        call()
    shown = "".join(traceback.format_exception(caught.value))
    assert "deep_inside" not in shown
    assert call.__name__ in shown


@pytest.mark.parametrize("call", [run, iterate])
def test_ctrl_c_before_a_node_opens(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p2pcompute._options, "chosen", lambda *_, **__: deep_inside())
    with pytest.raises(KeyboardInterrupt) as caught:
        call()
    assert "deep_inside" not in "".join(traceback.format_exception(caught.value))
