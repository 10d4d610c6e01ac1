"""What a run of our own worker says of the work that it did."""

from __future__ import annotations

from typing import Protocol

__all__ = ["run_ns"]


class _Timed(Protocol):
    @property
    def cpu_ns(self) -> int: ...
    @property
    def wall_ns(self) -> int: ...


def run_ns(run: _Timed, threads: int) -> int:
    """Processor nanoseconds that a run on `threads` threads is worth, all of them together.

    It is what the kernel counted: wall time on a busy machine is longer, by as much as others have of it. It is no
    more than the threads have had of wall time, though.
    """
    return max(1, min(run.cpu_ns, run.wall_ns * max(1, threads)))
