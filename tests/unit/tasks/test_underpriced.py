"""A chunk that costs far more than its order says ends the task; one that waited for a busy machine does not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.tasks import ChunkDone
from p2pcompute.tasks._meter import Spent, check_price
from p2pcompute.tasks._refusing import RefuseError
from p2pcompute_protocols.work import ChunkWork, ProgramWork

from ..market._harness import Market, Watch, X, Y, axpy, in_memory

SECOND = 1_000_000_000
LEAST_S = 10.0  # what a task may take for whatever it likes to say


@dataclass
class Account:
    """What is charged for a chunk that is dropped."""

    used: list[int] = field(default_factory=list)

    async def drop(self, *, used_units: int = 0) -> None:
        self.used.append(used_units)


def said(kind: type, *, wall_s: float, cpu_s: float = 0.0, device_s: float = 0.0, units: int = 100_000) -> list[int]:
    """What is charged, for a chunk that is to take `units` microseconds of one core and took so long."""
    agreement: Any = SimpleNamespace(terms=SimpleNamespace(work=object.__new__(kind), chunk_timeout_ms=60_000))
    run: Any = SimpleNamespace(
        wall_ns=int(wall_s * SECOND), cpu_ns=int(cpu_s * SECOND), device_ns=int(device_s * SECOND)
    )
    account: Any = Account()
    with suppress(RefuseError):
        trio.run(check_price, agreement, account, run, units, 1_000, Spent())
        assert not account.used
    return account.used  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "times", "charged"),
    [
        (ChunkWork, {"wall_s": 5, "cpu_s": 5}, [5_000_000]),
        (ChunkWork, {"wall_s": 5, "cpu_s": 10}, [5_000_000]),  # two threads
        (ChunkWork, {"wall_s": 5, "cpu_s": 0.1, "device_s": 4}, [4_000_000]),
        (ChunkWork, {"wall_s": 5, "cpu_s": 1.5}, []),  # others had the machine
        (ChunkWork, {"wall_s": 1.9, "cpu_s": 1.9, "units": 1}, []),
        (ProgramWork, {"wall_s": 5, "cpu_s": 0.1}, [5_000_000]),  # it may have slept: its place was taken all the same
    ],
)
def test_what_a_chunk_took_is_compared_with_what_was_said(
    kind: type, times: dict[str, Any], charged: list[int]
) -> None:
    assert said(kind, **times) == charged


@pytest.mark.parametrize("busy_s", [1.9, 0.5])
@pytest.mark.parametrize("defended", [True, False])
def test_many_chunks_below_the_bound_of_one_are_found_out(
    busy_s: float, defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requester that says of chunks that are too short to be found out one by one that they take next to nothing:
    sixty seconds of a processor were had for a micro-USD."""
    if not defended:
        monkeypatch.setattr(Spent, "is_underpriced", False)

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=20 * busy_s))
        node = await market.node(connect=(provider,), workers=market.workers(chunk_s=1e-6))
        watch = Watch()
        run = node.run(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=32, on_event=watch)
        if defended:
            with pytest.raises(p2p.P2PComputeError, match=r"underpriced.*item_s="):
                await run
            assert 0 < len(watch.of(ChunkDone)) <= LEAST_S / busy_s + 2
            return
        await run
        (channel,) = await provider.services.ledger.channels_in()
        assert channel.paid_uusd == 1

    in_memory(scenario)
