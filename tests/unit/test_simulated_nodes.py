"""Simulated nodes: what they compile, and whom they find and wait for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import NoProviderError
from p2pcompute.execution import _cpu

from .market._harness import Market, Z, compute, in_memory


@p2p.kernel
def scaled(out, scale, x):  # type: ignore[no-untyped-def]
    i = p2p.cuda.grid(1)
    if i < out.size:
        out[i] = scale * x[i] + 41


def test_simulated_nodes_compile_a_kernel_once_for_all_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    programs: list[Any] = []
    compile_program = _cpu._Program

    def counted(*args: Any) -> Any:
        programs.append(args)
        return compile_program(*args)

    async def scenario(market: Market) -> None:
        node = await market.node(connect=(await market.provider(),))
        for scale, size in ((2, 300), (3, 300), (3, 70)):
            x = np.arange(size)
            found = await node.run(scaled, p2p.out(size, np.int64), scale, x)
            assert np.array_equal(found, scale * x + 41)

    monkeypatch.setattr(_cpu, "_Program", counted)
    in_memory(scenario)
    assert len(programs) == 1


def test_a_provider_that_answers_late_is_found_and_nobody_is_waited_for_where_there_is_nobody() -> None:
    async def scenario(market: Market) -> None:
        alone = await market.node()
        began = trio.current_time()
        with pytest.raises(NoProviderError, match="none is known"):
            await compute(alone)
        assert trio.current_time() - began < 3
        node = await market.node(connect=(await market.provider(),))
        assert np.array_equal(await compute(node), Z)

    in_memory(scenario, latency_s=0.8)
