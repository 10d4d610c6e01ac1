"""A machine that fails the self-test is neither measured nor sold, and who starts it is told what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import _opening, execution
from p2pcompute.errors import NoProviderError
from p2pcompute.execution import SelfTestError, _selftest
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain

from .test_fast_proof import scaled


class WrongSession:
    """A worker that computes other bits."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def compile(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()

    async def run_blocks(self, *_: object, **__: object) -> Any:
        await trio.lowlevel.checkpoint()
        return SimpleNamespace(outputs=[bytes(1024 * 12 * 4), bytes(1024 * 6 * 8), bytes(1024 * 12 * 8)])


def wrong_pool() -> Any:
    return SimpleNamespace(threads=1, session=WrongSession)


def test_it_is_not_measured_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []

    async def benchmark(pool: object) -> None:
        await trio.lowlevel.checkpoint()
        measured.append(pool)

    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    monkeypatch.setattr(execution, "benchmark", benchmark)
    with pytest.raises(SelfTestError, match=r"check its memory, take back any overclocking and reinstall numba"):
        trio.run(_opening.measure_device, wrong_pool())
    assert not measured
    assert not list(tmp_path.rglob("device*.json"))  # so that the next start tests it again


def test_it_does_not_serve() -> None:
    x = np.arange(256, dtype=np.float32)

    async def measure(*_: object) -> Any:
        return await _selftest.self_test(wrong_pool())

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with open_simulated_node(network, chain) as provider, open_simulated_node(network, chain) as node:
            await node.services.overlay.connect(provider.addresses[0])
            provider.services.measure = measure
            with pytest.raises(SelfTestError, match="would be taken for a liar"):
                await provider.serve()
            assert provider.provider is None
            with pytest.raises(NoProviderError):
                await node.run(scaled, p2p.out(x.shape, x.dtype), np.float32(3), x, chunks=2)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
