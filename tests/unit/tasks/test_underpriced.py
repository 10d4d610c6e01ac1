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
from p2pcompute._rates import Buckets
from p2pcompute.tasks import ChunkDone, _provider_session
from p2pcompute.tasks._meter import UNPAID, Spent, check_price
from p2pcompute.tasks._refusing import RefuseError
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.work import ChunkWork, ProgramWork

from ..market._harness import Market, Watch, X, Y, axpy, in_memory

SECOND = 1_000_000_000
LEAST_S = 11.0  # what a task may take for whatever it likes to say


@dataclass
class Account:
    """What is charged for a chunk that is dropped."""

    used: list[int] = field(default_factory=list)

    async def drop(self, *, used_units: int = 0) -> None:
        self.used.append(used_units)


def spent(threads: int = 1) -> Spent:
    """For a task of somebody of whom nothing is known, on a machine with one reference core for all its threads."""
    return Spent(Buckets(UNPAID, lambda: 0.0), PeerId("somebody"), 1_000 // threads)


def said(
    kind: type,
    *,
    wall_s: float,
    cpu_s: float = 0.0,
    device_s: float = 0.0,
    units: int = 100_000,
    threads: int = 1,
    runs: int = 1,
) -> list[int]:
    """What is charged, for chunks that are to take `units` microseconds of all threads and took so long."""
    agreement: Any = SimpleNamespace(terms=SimpleNamespace(work=object.__new__(kind), chunk_timeout_ms=60_000))
    run: Any = SimpleNamespace(
        wall_ns=int(wall_s * SECOND), cpu_ns=int(cpu_s * SECOND), device_ns=int(device_s * SECOND)
    )
    account, so_far = Account(), spent(threads)
    with suppress(RefuseError):
        for _ in range(runs):
            trio.run(check_price, agreement, account, run, units, 1_000, so_far)
            assert not account.used
    return account.used


@pytest.mark.parametrize(
    ("kind", "times", "charged"),
    [
        (ChunkWork, {"wall_s": 5, "cpu_s": 5}, [5_000_000]),
        (ChunkWork, {"wall_s": 5, "cpu_s": 10, "threads": 2}, [5_000_000]),
        (ChunkWork, {"wall_s": 5, "cpu_s": 5, "threads": 32}, []),  # it had a thread: a 32nd of the machine
        (ChunkWork, {"wall_s": 5, "cpu_s": 0.1, "device_s": 4}, [4_000_000]),
        (ChunkWork, {"wall_s": 5, "cpu_s": 1.5}, []),  # others had the machine
        (ChunkWork, {"wall_s": 1.9, "cpu_s": 1.9, "units": 1}, []),
        (ChunkWork, {"wall_s": 1.9, "cpu_s": 1.9, "units": 1, "runs": 5}, []),
        (ChunkWork, {"wall_s": 1.9, "cpu_s": 1.9, "units": 1, "runs": 6}, [11_388_000]),
        (ChunkWork, {"wall_s": 0.4, "cpu_s": 0.4, "units": 12_500, "threads": 32, "runs": 1_000}, []),  # a true order
        (ChunkWork, {"wall_s": 0.002, "cpu_s": 0.002, "units": 1, "runs": 10_000}, []),
        (ProgramWork, {"wall_s": 3_600, "cpu_s": 0.1, "units": 4_000_000, "runs": 20}, []),  # the machine slept
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


@pytest.mark.parametrize("defended", [True, False])
def test_what_one_task_was_let_off_another_one_of_the_same_peer_is_not(
    defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks that end just before they are found out, one after the other."""
    if not defended:
        monkeypatch.setattr(
            _provider_session, "Spent", lambda _, *rest: Spent(Buckets(UNPAID, trio.current_time), *rest)
        )
    size, busy_s = 640, 1.9

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=20 * busy_s))
        node = await market.node(connect=(provider,), workers=market.workers(chunk_s=1e-6))
        watch = Watch()

        async def run() -> None:
            for _ in range(12):
                await node.run(
                    axpy, p2p.out((size,), Y.dtype), np.float32(2), X[:size], Y[:size], chunks=5, on_event=watch
                )

        if defended:
            with pytest.raises(p2p.P2PComputeError, match="underpriced"):
                await run()
            assert len(watch.of(ChunkDone)) <= 12
        else:
            await run()

    in_memory(scenario)
