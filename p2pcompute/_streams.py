"""What a task of a node gives, as async iterators."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeAlias, TypeVar

import trio

from p2pcompute.tasks._budget import TaskBudget

if TYPE_CHECKING:
    import numpy as np

    from p2pcompute._requester import Chunk
    from p2pcompute._rounds import Round, RoundsRun
    from p2pcompute.node import Node

__all__ = ["ChunkStream", "Feed", "RoundStream", "Stream", "TaskOfNode"]

Item = TypeVar("Item")
_Chunk: TypeAlias = "Chunk"
_Round: TypeAlias = "Round"


class TaskOfNode(Protocol):
    """One task of this node: a `TaskRun` or a `RoundsRun`."""

    options: Any
    budget: TaskBudget

    async def execute(self, bound: Any, deliver: Any, /) -> None: ...


class Stream(Generic[Item]):
    """What one task gives, as an async iterator; an async context manager that ends the task when left."""

    def __init__(self, node: Node, task: TaskOfNode, binding: Any) -> None:
        self._node = node
        self._task = task
        self._binding = binding
        self._started = False
        self._feed = Feed()
        self._send, self._receive = trio.open_memory_channel[Item](0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the task; providers stop."""
        self._feed.scope.cancel()
        await self._receive.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if not self._started:
            self._started = True
            waits = not self._node._is_within_stream()
            self._node._feeds.add(self._feed)
            self._node._nursery.start_soon(self._feed.run, self._node, self._task, self._binding, self._send, waits)
        self._feed.note_consumer()
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            if self._feed.failure is not None:
                raise self._feed.failure from None
            raise StopAsyncIteration from None

    def __del__(self) -> None:
        # A loop that was left with `break` drops the iterator; its task must not go on unseen.
        self._feed.scope.cancel()
        self._send.close()
        self._receive.close()


class ChunkStream(Stream[_Chunk]):
    """The chunks of one task, as an async iterator; an async context manager that ends the task when left."""

    async def __anext__(self) -> Chunk:
        chunk = await super().__anext__()
        part = self._binding.layout.part
        rows = tuple(part(place, chunk.first_block, rows) for place, rows in enumerate(chunk.rows))
        return replace(chunk, rows=rows)


class RoundStream(Stream[_Round]):
    """The rounds of one task, as an async iterator; an async context manager that ends the task when left."""

    def __init__(self, node: Node, task: RoundsRun) -> None:
        super().__init__(node, task, task.bound)
        self._rounds = task

    @property
    def done(self) -> int:
        """How many rounds the state that is here is behind."""
        return 0 if self._rounds.last is None else self._rounds.last[0]

    @property
    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """The state that is here; the first one before anything was computed."""
        last = self._rounds.last
        return self._rounds.bound.result(self._rounds.bound.arrays if last is None else last[1].arrays)


class Feed:
    """What fills a `ChunkStream`, in the node's nursery. It doesn't hold the stream, so that one can be dropped."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.failure: Exception | None = None
        self._consumer: trio.lowlevel.Task | None = None
        self._around: tuple[trio.Nursery, ...] = ()

    def note_consumer(self) -> None:
        """The calling task takes the next chunk."""
        self._consumer = trio.lowlevel.current_task()
        self._around = tuple(self._consumer.child_nurseries)

    def waits_for(self, task: trio.lowlevel.Task) -> bool:
        """Whether the next chunk is taken only after `task` is done: it iterates, or was started by what iterates
        in a nursery of the loop's body."""
        if self.scope.cancel_called:
            return False
        nursery = None
        while task is not self._consumer:
            nursery = task.parent_nursery
            if nursery is None:
                return False
            task = nursery.parent_task
        return nursery not in self._around

    async def run(
        self, node: Node, task: TaskOfNode, binding: Any, send: trio.MemorySendChannel[Any], waits: bool
    ) -> None:
        try:
            with self.scope:
                await node._execute(task, binding, send.send, waits=waits)
        except Exception as exc:  # noqa: BLE001  whoever iterates gets it; it must not end the node
            if not self.scope.cancel_called:  # else whoever iterated has left
                self.failure = exc
        finally:
            node._feeds.discard(self)
            send.close()
