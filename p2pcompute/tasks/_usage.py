"""What tasks use of this machine, added up for those who look."""

from __future__ import annotations

from dataclasses import dataclass

from ._api import ChunkRun

__all__ = ["Usage"]


@dataclass(slots=True, kw_only=True)
class Usage:
    """What some chunks have used.

    Attributes:
        cpu_ns: processor time of the workers, all threads, as the system counts it.
        wall_ns: from the request to a worker to its answer.
        device_ns: what launches took on a device, by its own events and the worker's word; 0 on a processor.
        energy_mj: millijoules that the device used meanwhile; what else ran on it is among them. None where nobody
            counts them.
    """

    cpu_ns: int = 0
    wall_ns: int = 0
    device_ns: int = 0
    energy_mj: int | None = None

    def add(self, run: ChunkRun | Usage) -> None:
        """Count a chunk, or what other chunks have used, too."""
        self.cpu_ns += run.cpu_ns
        self.wall_ns += run.wall_ns
        self.device_ns += run.device_ns
        if run.energy_mj is not None:
            self.energy_mj = (self.energy_mj or 0) + run.energy_mj
