"""What a provider has computed, and what it is owed for it, in units of work."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import trio

from p2pcompute_protocols.work import Work

__all__ = ["Meter", "units_of"]


class Meter:
    """The time that something takes, in units of a device with this score; `limit_s` at most.

    What takes longer than it may is ended by then. Where it seems to have gone on, it was this machine that stood
    still: it slept, or was stopped.
    """

    def __init__(self, score_milli: int, limit_s: float) -> None:
        self.units = 0
        self._score_milli = score_milli
        self._limit_s = limit_s

    @contextmanager
    def running(self) -> Generator[None]:
        began = trio.current_time()
        try:
            yield
        finally:
            took_s = min(trio.current_time() - began, self._limit_s)
            self.units += int(took_s * 1_000) * self._score_milli


def units_of(work: Work, blocks: int) -> int:
    """Units of a chunk of `blocks` blocks: the last one costs its share, rounded up."""
    return -(-work.units_per_chunk * blocks // work.blocks_per_chunk)
