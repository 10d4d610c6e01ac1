"""A chunk that costs far more than its order says ends the task; one that waited for a busy machine does not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from p2pcompute.tasks._meter import check_price
from p2pcompute.tasks._refusing import RefuseError
from p2pcompute_protocols.work import ChunkWork, ProgramWork

SECOND = 1_000_000_000


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
        trio.run(check_price, agreement, account, run, units, 1_000)
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
