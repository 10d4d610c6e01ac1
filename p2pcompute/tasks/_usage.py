"""What tasks do here and use of this machine, for those who look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from p2pcompute_protocols.ids import TaskId

from ._api import ChunkRun

__all__ = ["ActiveTask", "Usage"]


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


@dataclass(slots=True, kw_only=True)
class ActiveTask:
    """A task that is running here, for status displays.

    Attributes:
        chunk, chunk_blocks, chunk_blocks_done: the chunk that is computed now, if any, and how far it is.
        stopped: chunks that were cancelled while they were computed.
        used: what its finished chunks have used of this machine.
    """

    task_id: TaskId
    requester: str
    chunks_done: int = 0
    chunks_failed: int = 0
    started_ms: int = 0
    chunk: int | None = None
    chunk_blocks: int = 0
    chunk_blocks_done: int = 0
    stopped: int = 0
    used: Usage = field(default_factory=Usage)

    def begin(self, chunk: int, blocks: int) -> None:
        """A chunk is computed from now on."""
        self.chunk, self.chunk_blocks, self.chunk_blocks_done = chunk, blocks, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(None)

    def progress(self, done: int) -> None:
        """So many of its blocks are done."""
        self.chunk_blocks_done = done

    def end(self, run: ChunkRun | None) -> None:
        """It is over, with a result or without."""
        self.chunk, self.chunk_blocks, self.chunk_blocks_done = None, 0, 0
        if run is not None:
            self.used.add(run)
