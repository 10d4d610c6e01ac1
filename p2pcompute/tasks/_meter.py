"""What a provider has computed, and what it is owed for it, in units of work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._rates import Buckets, Rate
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.work import ProgramWork, Work

from ._refusing import RefuseError

if TYPE_CHECKING:
    from ._api import ChunkRun, ProviderAccount

__all__ = ["UNPAID", "Meter", "Spent", "check_price", "units_of"]

_UNDERPRICED: Final = 16  # a chunk that costs so many times its units ends the task, and so do all of them together
_UNDERPRICED_MIN_MS: Final = 2_000
_TOGETHER_MIN_MS: Final = 1_000  # of all of them: what is new takes longer
_RUN_MS: Final = 2.0  # which a run may take that no unit is for
UNPAID: Final = Rate(per_s=10_000 / 3_600, burst=10_000)
"""Milliseconds that a peer's orders may leave out beyond that, of all its tasks together."""


class Meter:
    """A context manager that adds up the time inside of it, in units of a device with this score; `limit_s` at most.

    What takes longer than it may is ended by then. Where it seems to have gone on, it was this machine that stood
    still: it slept, or was stopped.
    """

    def __init__(self, score_milli: int, limit_s: float) -> None:
        self.units = 0
        self._score_milli = score_milli
        self._limit_s = limit_s
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = trio.current_time()

    def __exit__(self, *_: object) -> None:
        took_s = min(trio.current_time() - self._began, self._limit_s)
        self.units += int(took_s * 1_000) * self._score_milli


class Spent:
    """What all runs of a task took together, beside what the units of its order say, in milliseconds.

    Args:
        unpaid: what peers have left of `UNPAID`.
        peer: the requester.
        thread_milli: what a thread of a slot does, in thousandths of a reference core.
    """

    __slots__ = ("_beyond_ms", "_peer", "_unpaid", "ms", "paid_ms", "thread_milli")

    def __init__(self, unpaid: Buckets[PeerId], peer: PeerId, thread_milli: int) -> None:
        self.ms = 0.0
        self.paid_ms = 0.0
        self.thread_milli = thread_milli
        self._unpaid = unpaid
        self._peer = peer
        self._beyond_ms = 0.0

    def add(self, busy_ns: int, units: int, speed_milli: int) -> None:
        """A run took so much where so many units were said."""
        self.ms += max(0.0, busy_ns / 1e6 - _RUN_MS)
        self.paid_ms += units / max(1, speed_milli)
        beyond_ms = self.ms - max(_TOGETHER_MIN_MS, _UNDERPRICED * self.paid_ms)
        if beyond_ms > self._beyond_ms:
            self._unpaid.charge(self._peer, beyond_ms - self._beyond_ms)
            self._beyond_ms = beyond_ms

    @property
    def is_underpriced(self) -> bool:
        """Whether that is far more than the order says, and more than its requester has left for such."""
        return self._beyond_ms > 0 and not self._unpaid.has(self._peer, 0.0)


def units_of(work: Work, blocks: int) -> int:
    """Units of a chunk of `blocks` blocks: the last one costs its share, rounded up."""
    return -(-work.units_per_chunk * blocks // work.blocks_per_chunk)


async def check_price(
    agreement: Agreement, account: ProviderAccount, run: ChunkRun, units: int, speed_milli: int, spent: Spent
) -> None:
    """End the task of a requester whose order has far too few units for what its chunks take, one or all of them.

    Raises:
        RefuseError: UNDERPRICED; what the run has used is charged.
    """
    # Wall time, since the speed is that of all threads which the work may have. But a kernel, which can only compute,
    # has waited for a machine that is busy with other things where it has had less of its processors; and one that is
    # too narrow for all threads has not used the others.
    spent_ns = min(run.wall_ns, agreement.terms.chunk_timeout_ms * 1_000_000)
    if not isinstance(agreement.terms.work, ProgramWork):
        threads = max(1, speed_milli // max(1, spent.thread_milli))
        spent_ns = min(spent_ns, max(run.cpu_ns // threads, run.device_ns))
    spent_ms = spent_ns // 1_000_000
    paid_ms = units * 1_000 // max(1, speed_milli) // 1_000
    if spent_ms > max(_UNDERPRICED_MIN_MS, _UNDERPRICED * paid_ms):
        await account.drop(used_units=spent_ms * speed_milli)
        raise RefuseError(WireCode.UNDERPRICED, f"a chunk took {spent_ms} ms where the order's units say {paid_ms} ms")
    spent.add(spent_ns, units, speed_milli)
    if spent.is_underpriced:
        await account.drop(used_units=int(spent.ms) * speed_milli)
        raise RefuseError(
            WireCode.UNDERPRICED,
            f"the chunks took {spent.ms:.0f} ms together where the order's units say {spent.paid_ms:.0f} ms",
        )
