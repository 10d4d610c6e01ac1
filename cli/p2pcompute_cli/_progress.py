"""What a running script shows: live in a terminal, line by line elsewhere, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from p2pcompute.checking import PLEDGE_SUFFIX
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

from ._shared import count, seconds, short_peer, usd

if TYPE_CHECKING:
    from p2pcompute import Node

__all__ = ["JsonWatcher", "Progress", "TaskView"]


@dataclass(slots=True, kw_only=True)
class ProviderView:
    """One provider in one task."""

    state: str = "agreed"
    done: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)
    paid_uusd: int = 0


@dataclass(slots=True, kw_only=True)
class TaskView:
    """One task, as its events tell it."""

    chunks: int = 0
    ceiling_uusd: int = 0
    estimate_uusd: int = 0
    state: str = "looking for providers"
    started_s: float = field(default_factory=time.monotonic)
    took_s: float = 0.0
    providers: dict[str, ProviderView] = field(default_factory=dict)
    checked: int = 0
    error: str = ""
    broken_off: bool = False  # by its user, as with Ctrl-C: that is no failure

    @property
    def done(self) -> int:
        """Chunks that are done and not revoked."""
        return len(set[int]().union(*(view.done for view in self.providers.values())))

    @property
    def paid_uusd(self) -> int:
        """Acknowledged by all providers together."""
        return sum(view.paid_uusd for view in self.providers.values())

    def take(self, event: TaskEvent) -> None:
        """Bring the view up to date."""
        match event:
            case Compiling():
                self.state = "compiling and timing the kernel"
            case TaskStarted():
                self.chunks, self.state = event.chunks, "negotiating"
                self.ceiling_uusd, self.estimate_uusd = event.ceiling_uusd, event.estimate_uusd
            case Agreed():
                view = self.providers.setdefault(event.provider, ProviderView())
                view.state = "preparing"
            case ProviderRefused():
                self.providers.setdefault(event.provider, ProviderView()).state = f"refused: {event.reason}"
            case ProviderReady():
                self.providers[event.provider].state, self.state = "computing", "computing"
            case ChunkAssigned():
                self.providers[event.provider].busy.add(event.index)
            case ChunkDone():
                view = self.providers[event.provider]
                view.busy.discard(event.index)
                view.done.add(event.index)
                self.checked += event.checked
            case ChunkRejected():
                self.providers[event.provider].busy.discard(event.index)
            case Paid():
                self.providers[event.provider].paid_uusd = event.paid_uusd
            case ProviderLost():
                view = self.providers.setdefault(event.provider, ProviderView())
                view.state = f"lost: {event.reason}"
                view.busy.clear()
            case WaitingForProviders():
                self.state = "waiting for providers"
            case SecondCopyHere() | TaskEnded():
                pass
            case LiarCaught():
                view = self.providers[event.provider]
                view.state = f"caught lying in chunk {event.index}"
                view.done -= set(event.revoked)
                view.busy.clear()


class Progress:
    """Shows tasks on stderr and keeps their views for the summary."""

    def __init__(self, console: Console, *, requested_profile: str) -> None:
        self.tasks: list[TaskView] = []
        self._console = console
        self._profile = requested_profile
        self._now: TaskView | None = None
        self._live: Live | None = None
        self._opened = ""

    def node_opened(self, node: Node) -> None:
        """Say where money is spent."""
        terms = node.services.hub.terms
        path = node.services.ledger.path
        ours = path is not None and path.parent.name == self._profile
        chain = f"chain {terms.chain_id}"
        line = (
            f"network {node.network}: money of "
            + (f"the development {chain} (test money)" if node.services.test_money else chain)
            + f", hub 0x{bytes(terms.hub).hex()[:8]}…, wallet 0x{node.services.account.address.hex()}"
            + ("" if ours else f"; profile {self._profile} is in use, so this one is used once and thrown away")
        )
        if line != self._opened:  # each `p2p.run` of a script opens a node
            self._opened = line
            self._console.print(line, style="dim", highlight=False, soft_wrap=True)

    def task_event(self, event: TaskEvent) -> None:
        """Take an event of the task that runs."""
        if self._now is None:
            self._now = TaskView()
            self.tasks.append(self._now)
            if self._console.is_terminal:
                redirect = self._console.file.isatty()
                self._live = Live(
                    get_renderable=self._render,
                    console=self._console,
                    refresh_per_second=8,
                    transient=True,
                    redirect_stdout=redirect and _stdout_is_terminal(),
                    redirect_stderr=redirect,
                )
                self._live.start()
        self._now.take(event)
        line = self._line(self._now, event)
        if line:
            self._console.print(line, highlight=False, soft_wrap=True)

    def task_ended(self, error: BaseException | None) -> None:
        """The task that ran has ended."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        task, self._now = self._now, None
        if task is None:
            return
        task.took_s = time.monotonic() - task.started_s
        task.error = "" if error is None else type(error).__name__
        task.broken_off = error is not None and not isinstance(error, Exception)
        if error is None:
            providers = sum(1 for view in task.providers.values() if view.done)
            self._console.print(
                f"done: {count(task.done, 'chunk')} from {count(providers, 'provider')} in "
                f"{seconds(task.took_s)}, {task.checked} elements checked, paid {usd(task.paid_uusd)}",
                highlight=False,
                soft_wrap=True,
            )

    def _line(self, task: TaskView, event: TaskEvent) -> Text | str | None:
        """What is worth a line that stays; in a terminal the rest is in the live display."""
        match event:
            case TaskStarted():
                return (
                    f"{count(event.chunks, 'chunk')}, about {usd(event.estimate_uusd)}; this task spends "
                    f"{usd(event.ceiling_uusd)} at most"
                )
            case Agreed():
                risk = {"none": "nothing that it gives is checked: a lie", "quorum": "two providers that lie alike"}
                return Text(
                    f"agreed with {short_peer(event.provider)} in {event.negotiation_ms:.0f} ms; "
                    f"{risk.get(event.check, 'a lie that sampling misses')} can cost you "
                    f"{usd(event.requester_max_loss_uusd)} at most, and it unpaid work of "
                    f"{usd(event.provider_max_loss_uusd)}",
                    style="yellow" if event.check == "none" else "",
                )
            case ProviderRefused():
                return Text(f"{short_peer(event.provider)} refused: {event.reason}", style="yellow")
            case ProviderLost():
                lost = len(event.requeued)
                moved = f"; {count(lost, 'chunk')} {'is' if lost == 1 else 'are'} open again" if lost else ""
                return Text(f"{short_peer(event.provider)} is lost: {event.reason}{moved}", style="yellow")
            case WaitingForProviders():
                return Text(
                    f"nobody is left for {count(event.chunks, 'chunk')}; waiting {event.patience_s:.0f} s for one",
                    style="yellow",
                )
            case SecondCopyHere():
                return Text(f"chunk {event.index} is done a second time here, by us: {event.reason}", style="yellow")
            case ChunkRejected():
                return Text(f"{short_peer(event.provider)} failed chunk {event.index}: {event.reason}", style="yellow")
            case LiarCaught():
                again = len(event.revoked)
                kept = ""
                if event.evidence:
                    kept = f"; evidence: {event.evidence}"
                    if Path(event.evidence).with_suffix(PLEDGE_SUFFIX).exists():
                        kept += f"; its stake is at risk: `p2pcompute accuse {shlex.quote(event.evidence)}`"
                return Text(
                    f"{short_peer(event.provider)} LIED: {event.mismatched} samples of chunk {event.index} differ; it "
                    f"gets nothing more, {count(again, 'chunk')} {'is' if again == 1 else 'are'} computed anew" + kept,
                    style="bold red",
                )
            case ChunkDone() if not self._console.is_terminal and task.chunks:
                # Ten lines a task, however many chunks.
                before, now = (task.done - 1) * 10 // task.chunks, task.done * 10 // task.chunks
                return (
                    f"{task.done} of {count(task.chunks, 'chunk')}, paid {usd(task.paid_uusd)}"
                    if now > before
                    else None
                )
            case _:
                return None

    def _render(self) -> Group:
        task = self._now
        if task is None:
            return Group()
        elapsed = seconds(time.monotonic() - task.started_s)
        if not task.chunks:
            return Group(Text(f"{task.state}…  {elapsed}", style="cyan"))
        head = Table.grid(padding=(0, 1))
        head.add_row(
            ProgressBar(total=task.chunks, completed=task.done, width=24),
            f"{task.done}/{task.chunks}",
            elapsed,
            f"paid {usd(task.paid_uusd)} of {usd(task.ceiling_uusd)}",
        )
        table = Table.grid(padding=(0, 2))
        for peer, view in list(task.providers.items())[:12]:
            table.add_row(
                Text(short_peer(peer), style="cyan"),
                f"{len(view.done)} done",
                f"{len(view.busy)} under way" if view.busy else "",
                usd(view.paid_uusd),
                Text(view.state, style="red" if ":" in view.state or "lying" in view.state else ""),
            )
        return Group(head, table)

    def summary(self, took_s: float) -> None:
        """The table at the end."""
        rows: dict[str, list[int]] = {}
        for task in self.tasks:
            for peer, view in task.providers.items():
                row = rows.setdefault(peer, [0, 0])
                row[0] += len(view.done)
                row[1] += view.paid_uusd
        if not rows:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("provider", "chunks", "paid"):
            table.add_column(name, justify="left" if name == "provider" else "right")
        for peer, (chunks, paid) in sorted(rows.items(), key=lambda item: -item[1][0]):
            table.add_row(peer if self._console.width > 90 else short_peer(peer), str(chunks), usd(paid))
        table.add_row("total", str(sum(row[0] for row in rows.values())), usd(sum(row[1] for row in rows.values())))
        self._console.print(table, highlight=False)
        failed = sum(1 for task in self.tasks if task.error and not task.broken_off)
        broken_off = sum(1 for task in self.tasks if task.broken_off)
        self._console.print(
            count(len(self.tasks), "task")
            + (f", {failed} of them failed" if failed else "")
            + (f", {broken_off} of them broken off" if broken_off else "")
            + ("," if failed or broken_off else "")
            + f" in {seconds(took_s)}",
            highlight=False,
        )


def _stdout_is_terminal() -> bool:
    return sys.stdout.isatty()


class JsonWatcher:
    """Every event as a JSON object of one line: its fields, and its name as ``event``; amounts in micro-USD."""

    def __init__(self, file: IO[str]) -> None:
        self.tasks: list[TaskView] = []
        self._file = file
        self._now: TaskView | None = None
        self._ended: TaskEnded | None = None

    def write(self, **fields: Any) -> None:
        """One line, at once."""
        self._file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self._file.flush()

    def node_opened(self, node: Node) -> None:
        """Say where money is spent."""
        terms = node.services.hub.terms
        self.write(
            event="node-opened",
            network=node.network,
            peer_id=node.peer_id,
            wallet="0x" + node.services.account.address.hex(),
            chain_id=terms.chain_id,
            hub="0x" + bytes(terms.hub).hex(),
        )

    def task_event(self, event: TaskEvent) -> None:
        """Write an event of the task that runs."""
        if self._now is None:
            self._now = TaskView()
            self.tasks.append(self._now)
        self._now.take(event)
        if isinstance(event, TaskEnded):
            self._ended = event  # what came of the task is one line
            return
        values = {
            spec.name: value.hex() if isinstance(value := getattr(event, spec.name), bytes) else value
            for spec in dataclasses.fields(event)
        }
        self.write(event=_kebab(type(event).__name__), **values)

    def task_ended(self, error: BaseException | None) -> None:
        """Write what came of it."""
        task, self._now = self._now, None
        ended, self._ended = self._ended, None
        if task is None:
            task = TaskView()
        task.took_s = time.monotonic() - task.started_s
        self.write(
            event="task-ended",
            error=None if error is None else type(error).__name__,
            chunks=task.done,
            providers={
                peer: {"chunks": len(view.done), "paid_uusd": view.paid_uusd} for peer, view in task.providers.items()
            },
            paid_uusd=task.paid_uusd,
            accepted_uusd=0 if ended is None else ended.accepted_uusd,
            seconds=round(task.took_s, 3),
        )


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
