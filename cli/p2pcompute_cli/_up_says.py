"""What `p2pcompute up` says: JSON events on stdout, a log on stderr, and while it starts what it is about."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import click

from p2pcompute._log import log_event

from ._logs import log_handler
from ._shared import count, json_line, seconds, short_peer, usd

if TYPE_CHECKING:
    from p2pcompute._provider_events import ProviderEvent

__all__ = ["Voice"]

_log = logging.getLogger("p2pcompute.up")


class Voice:
    """Says what happens, in the way that was asked for.

    Args:
        as_json: events on stdout, an object a line.
        log_format: of the log on stderr, "text" or "json".
        log_level: None is "warning" beside JSON events, else "info".
        debug: everything, with tracebacks.
    """

    def __init__(self, *, as_json: bool, log_format: str = "text", log_level: str | None = None, debug: bool = False):
        self.as_json = as_json
        self._log_format = log_format
        self._log_level = log_level or ("warning" if as_json else "info")
        self._debug = debug
        self._started: dict[bytes, float] = {}

    @property
    def to_people(self) -> bool:
        """Whether what is on stderr is for people, and wanted."""
        return not self.as_json and self._log_format == "text"

    def set_up(self) -> None:
        """Have this process's log go to stderr. Once, by whoever owns the process."""
        root, ours = logging.getLogger(), logging.getLogger("p2pcompute")
        root.addHandler(log_handler(self._log_format, self._log_level, debug=self._debug))
        root.setLevel(logging.INFO if self._debug else logging.WARNING)
        ours.setLevel(logging.DEBUG if self._debug or self._log_level == "debug" else logging.INFO)
        if self.as_json:
            ours.addHandler(_Steps())

    def say(self, event: str, text: str, **fields: Any) -> None:
        """Say something about the process itself: "starting", "stopping", "stopped"."""
        if self.as_json:
            json_line(event=event, **fields)
        if self.to_people:
            click.echo(text, err=True)
        else:
            log_event(_log, event, text, **fields)

    def ready(self, rows: list[tuple[str, str]], network: str, facts: dict[str, Any]) -> None:
        """Say that it lends: `facts` for machines, `rows` of name and text for people."""
        if self.as_json:
            json_line(event="ready", **facts)
        elif self.to_people:
            for name, text in rows:
                click.echo(click.style(f"{name:>8}  ", fg="cyan") + text, err=True)
            click.echo("ready on network " + click.style(network, bold=True) + "; Ctrl-C stops", err=True)
        if not self.to_people:
            log_event(_log, "ready", f"ready on network {network}", **facts)

    def show(self, event: ProviderEvent) -> None:
        """Say what the provider does."""
        from p2pcompute._provider_events import Checkpointed, ServedTaskEnded, ServedTaskStarted

        match event:
            case ServedTaskStarted():
                self._started[event.task] = time.monotonic()
                fields: dict[str, Any] = {
                    "task": event.task.hex(),
                    "requester": event.requester,
                    "price_pusd": event.price_pusd,
                    "window": event.window,
                    "max_loss_uusd": event.max_loss_uusd,
                }
                name, old = "task started", "task-started"
                text = f"{_about(event.task, event.requester)}: started, "
                text += f"{count(event.window, 'unpaid chunk')} at most for now; it can cost you "
                text += f"{usd(event.max_loss_uusd)} of unpaid work at most"
            case ServedTaskEnded():
                took_s = time.monotonic() - self._started.pop(event.task, time.monotonic())
                fields = {
                    "task": event.task.hex(),
                    "requester": event.requester,
                    "chunks": event.chunks,
                    "failed": event.failed,
                    "billed_uusd": event.billed_uusd,
                    "unpaid_chunks": event.unpaid_chunks,
                    "cpu_ns": event.used.cpu_ns,
                    "wall_ns": event.used.wall_ns,
                    "device_ns": event.used.device_ns,
                    "energy_mj": event.used.energy_mj,
                }
                name, old = "task done", "task-ended"
                text = f"{_about(event.task, event.requester)}: {count(event.chunks, 'chunk')} in {seconds(took_s)}, "
                text += f"billed {usd(event.billed_uusd)}"
                text += f", {event.used.energy_mj / 1e3:.1f} J" if event.used.energy_mj is not None else ""
                text += f", {event.failed} failed" if event.failed else ""
                text += f", {event.unpaid_chunks} unpaid" if event.unpaid_chunks else ""
            case Checkpointed():
                fields = {"channels": event.channels, "claimed_uusd": event.claimed_uusd}
                name = old = "checkpoint"
                text = (
                    f"checkpoint: {count(event.channels, 'channel')}, {usd(event.claimed_uusd)} claimed on chain so far"
                    if event.channels
                    else "checkpoint: nothing new to claim"
                )
        if self.as_json:
            json_line(event=old, **fields)
        log_event(_log, name, text, **fields)


def _about(task: bytes, requester: str) -> str:
    return f"task {task.hex()[:8]} for {short_peer(requester)}"


class _Steps(logging.Handler):
    """What the library says that it is about while a node starts, as JSON events."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", None) == "starting" and record.name != _log.name:
            json_line(event="starting", text=record.getMessage(), **getattr(record, "fields", {}))
