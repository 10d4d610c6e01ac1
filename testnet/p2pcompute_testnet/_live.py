"""What the demonstration shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ._tally import ProviderTally, Tally

__all__ = ["LiveView", "chunk_map", "usd"]

COLOURS: Final = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_yellow")
_BAD: Final = "bold red"
_MAP_WIDTH: Final = 45
_MAX_MAP: Final = 360  # chunks; more are shown by the bar alone
_MAX_ROWS: Final = 24
_PLAIN_WIDTH: Final = 120


def usd(amount_uusd: int) -> str:
    """Micro-USD in USD."""
    return f"{amount_uusd / 1e6:.6f} USD"


def _colour(tally: Tally, peer_id: str) -> str:
    if tally.provider(peer_id).state in ("lied", "killed"):
        return "red"
    return COLOURS[list(tally.providers).index(peer_id) % len(COLOURS)]


def chunk_map(tally: Tally) -> Text:
    """A sign for each chunk: who did it (capital), who computes it (small), or a dot."""
    text = Text()
    for index in range(tally.chunks):
        if index and index % _MAP_WIDTH == 0:
            text.append("\n")
        by = tally.done.get(index)
        holder = tally.holder(index)
        if by is not None:
            text.append(tally.provider(by).name[:1].upper(), style=f"bold {_colour(tally, by)}")
        elif holder is not None:
            text.append(holder.name[:1].lower(), style=f"dim {_colour(tally, holder.peer_id)}")
        else:
            text.append("·", style="dim")
    return text


def _state(provider: ProviderTally) -> Text:
    match provider.state:
        case "lied":
            return Text("caught lying", style=_BAD)
        case "killed":
            return Text("killed (SIGKILL)", style=_BAD)
        case "working":
            return Text("working", style="green")
        case state:
            return Text(state, style="dim")


class LiveView:
    """Shows messages and the state of a task. A context manager; nothing runs unless `draw` is called.

    Args:
        console: where to; on a terminal the table below the messages is drawn anew in place.
        quiet: show nothing at all.

    Attributes:
        status: what goes on, beside the time.
        is_live: whether there is a terminal to draw on.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(quiet=quiet, highlight=False)
        if console is None and not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH  # a file or a pipe has none
        self.status = ""
        self._started_s = time.monotonic()
        # No thread of rich's: whoever owns the view calls `draw`.
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self.is_live = self.console.is_terminal and not quiet

    def __enter__(self) -> Self:
        if self.is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_live:
            self._live.update(Text(""))
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the view was made."""
        return time.monotonic() - self._started_s

    def say(self, message: str, *, style: str = "") -> None:
        """One line that stays, with the time."""
        self.console.print(
            f"[dim]{self.elapsed_s:6.1f} s[/dim]  [{style or 'default'}]{escape(message)}[/]", soft_wrap=True
        )

    def show(self, what: RenderableType) -> None:
        """Something that stays."""
        self.console.print(what)

    def draw(self, tally: Tally | None) -> None:
        """Draw the table anew; does nothing where there is no terminal."""
        if self.is_live:
            self._live.update(self._render(tally), refresh=True)

    def _render(self, tally: Tally | None) -> RenderableType:
        status = Text(f"{self.elapsed_s:6.1f} s  {self.status}", style="cyan")
        if tally is None:
            return status
        parts: list[RenderableType] = [status]
        if tally.chunks:
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                ProgressBar(total=tally.chunks, completed=len(tally.done), width=_MAP_WIDTH),
                f"{len(tally.done)}/{tally.chunks} chunks",
                f"paid {usd(tally.paid_uusd)}, owed {usd(tally.owed_uusd)}",
            )
            parts.append(bar)
            if tally.chunks <= _MAX_MAP:
                parts.append(chunk_map(tally))
        parts.append(_providers(tally))
        return Group(*parts)


def _providers(tally: Tally) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("provider", "state", "done", "has", "owed µUSD", "paid µUSD", "last"):
        table.add_column(name, justify="right" if name in ("done", "has", "owed µUSD", "paid µUSD") else "left")
    for provider in list(tally.providers.values())[:_MAX_ROWS]:
        table.add_row(
            Text(provider.name, style=_colour(tally, provider.peer_id)),
            _state(provider),
            str(len(provider.done)),
            str(len(provider.holds)),
            str(provider.owed_uusd(tally.units_per_chunk)),
            str(provider.paid_uusd),
            Text(provider.last[:60]),
        )
    return table
