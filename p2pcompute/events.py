"""What can be watched: the events that `on_event` gets, of `RunOptions` and of `ProviderOptions`.

    from p2pcompute import events

    def watch(event: events.TaskEvent) -> None:
        if isinstance(event, events.Paid):
            print(event.provider, event.paid_uusd)  # micro-USD, of this task so far

    p2p.run(kernel, ..., on_event=watch)

Each is complete in itself. `TaskEvent` and `ProviderEvent` are the unions of those of either role.
"""

from __future__ import annotations

from p2pcompute._provider_events import Checkpointed, ProviderEvent, ServedTaskEnded, ServedTaskStarted
from p2pcompute.tasks import (
    Agreed,
    ChunkAssigned,
    ChunkDone,
    ChunkRejected,
    Compiling,
    LiarCaught,
    Paid,
    ProviderLost,
    ProviderReady,
    ProviderRefused,
    SecondCopyHere,
    TaskEnded,
    TaskEvent,
    TaskStarted,
    WaitingForProviders,
)

__all__ = [
    "Agreed",
    "Checkpointed",
    "ChunkAssigned",
    "ChunkDone",
    "ChunkRejected",
    "Compiling",
    "LiarCaught",
    "Paid",
    "ProviderEvent",
    "ProviderLost",
    "ProviderReady",
    "ProviderRefused",
    "SecondCopyHere",
    "ServedTaskEnded",
    "ServedTaskStarted",
    "TaskEnded",
    "TaskEvent",
    "TaskStarted",
    "WaitingForProviders",
]
