"""Whoever listens to a task's events: when that code fails, the task ends, and its error comes out as it is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from p2pcompute.tasks import TaskEvent

__all__ = ["Listener", "listening"]


class Listener:
    """Calls `on_event`, until it raises. Events come from tasks of ours, deep in nurseries of ours: an error of
    somebody else's code there would come out in exception groups, beside errors of its own consequences.

    Attributes:
        failure: what it raised.
        scope: around the task; cancelled with it.
    """

    def __init__(self, on_event: Callable[[TaskEvent], None]) -> None:
        self._on_event = on_event
        self.failure: Exception | None = None
        self.scope = trio.CancelScope()

    def __call__(self, event: TaskEvent) -> None:
        if self.failure is not None:
            return
        try:
            self._on_event(event)
        except Exception as error:  # noqa: BLE001  raised again once the task has ended
            self.failure = error
            self.scope.cancel()


@contextmanager
def listening(on_event: Callable[[TaskEvent], None] | None) -> Generator[Listener | None]:
    """A listener for the length of a task, which is cancelled where `on_event` raises; None where nobody listens.

    Raises:
        whatever `on_event` has raised, once the task has ended; what came of the task then is not said.
    """
    if on_event is None:
        yield None
        return
    listener = Listener(on_event)
    try:
        with listener.scope:
            yield listener
    except Exception:
        if listener.failure is None:
            raise
    if listener.failure is not None:
        raise listener.failure
