"""What `p2pcompute testnet up` shows in a terminal: its providers, what they do and what they earn, drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from p2pcompute.control import ask
from p2pcompute.errors import P2PComputeError

from ._cluster import NodeProcess
from ._live import usd

__all__ = ["ProviderRow", "TestnetView", "network_table"]

_EVERY_S: Final = 1.0
_ASK_S: Final = 2.0


@dataclass(slots=True, kw_only=True)
class ProviderRow:
    """One provider as it last answered.

    Attributes:
        name: of its profile.
        peer_id: its peer ID.
        state: "idle", "busy", "stopped" or "silent".
        tasks, chunks: running tasks; chunks done since it began to sell.
        earned_uusd, claimed_uusd: over its life; what of it is on chain.
        peers: how many it is connected to.
    """

    name: str
    peer_id: str
    state: str = "idle"
    tasks: int = 0
    chunks: int = 0
    earned_uusd: int = 0
    claimed_uusd: int = 0
    peers: int = 0

    def take(self, status: dict[str, Any]) -> None:
        """Bring the row up to date with an answer to ``/status``."""
        provider, totals = status.get("provider") or {}, status.get("totals") or {}
        tasks: list[dict[str, Any]] = provider.get("tasks") or []
        self.tasks, self.chunks = len(tasks), int((provider.get("served") or {}).get("chunks", 0))
        self.state = "busy" if provider.get("busy_slots") or tasks else "idle"
        self.earned_uusd = int(totals.get("earned_uusd", 0))
        self.claimed_uusd = int(totals.get("claimed_uusd", 0))
        self.peers = int(status.get("peer_count", 0))


_STYLES: Final = {"busy": "green", "idle": "dim", "silent": "yellow", "stopped": "red"}


_LEFT_OUT: Final = ("peers", "on chain", "peer", "tasks", "chunks")
"""Columns in the order in which they go where there is no room."""


def network_table(rows: Sequence[ProviderRow], *, most: int, width: int | None = None) -> Table:
    """The rows, the first `most` of them, and a line for all together; with the columns that `width` has room for."""
    columns: dict[str, list[str]] = {
        "provider": [row.name for row in rows[:most]],
        "peer": [f"…{row.peer_id[-8:]}" for row in rows[:most]],
        "state": [row.state for row in rows[:most]],
        "peers": [str(row.peers) for row in rows[:most]],
        "tasks": [str(row.tasks) for row in rows[:most]],
        "chunks": [str(row.chunks) for row in rows[:most]],
        "earned": [usd(row.earned_uusd) for row in rows[:most]],
        "on chain": [usd(row.claimed_uusd) for row in rows[:most]],
    }
    together = {
        "provider": "together",
        "state": f"{sum(1 for row in rows if row.state == 'busy')} busy",
        "tasks": str(sum(row.tasks for row in rows)),
        "chunks": str(sum(row.chunks for row in rows)),
        "earned": usd(sum(row.earned_uusd for row in rows)),
        "on chain": usd(sum(row.claimed_uusd for row in rows)),
    }
    more = {"provider": f"and {len(rows) - most} more"} if len(rows) > most else {}

    def needed() -> int:
        ends = [{name: name for name in columns}, more, together]
        widest = [max(map(len, [*cells, *(end.get(name, "") for end in ends)])) for name, cells in columns.items()]
        return sum(widest) + 2 * (len(widest) - 1)

    for name in _LEFT_OUT:
        if width is not None and needed() > width:
            del columns[name]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name in ("provider", "peer", "state") else "right", no_wrap=True)
    for number, row in enumerate(rows[:most]):
        styled = {"state": Text(row.state, style=_STYLES.get(row.state, ""))}
        table.add_row(*(styled.get(name, cells[number]) for name, cells in columns.items()))
    if more:
        table.add_row(more["provider"])
    table.add_row(*(together.get(name, "") for name in columns), style="bold")
    return table


@dataclass(slots=True, kw_only=True)
class TestnetView:
    """Asks every provider once a second and draws the table. Without a terminal it does nothing."""

    nodes: Sequence[NodeProcess]
    console: Console

    __test__ = False  # pytest would take the name for a test's

    async def run(self) -> None:
        """Draw until cancelled."""
        if not self.console.is_terminal:
            return
        rows = [ProviderRow(name=node.spec.name, peer_id=node.peer_id) for node in self.nodes]
        # No thread of rich's: this task draws.
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            while True:
                async with trio.open_nursery() as nursery:
                    for node, row in zip(self.nodes, rows, strict=True):
                        nursery.start_soon(_look, node, row)
                live.update(
                    network_table(rows, most=max(3, self.console.height - 4), width=self.console.width), refresh=True
                )
                await trio.sleep(_EVERY_S)


async def _look(node: NodeProcess, row: ProviderRow) -> None:
    if node.exit_code is not None:
        row.state, row.tasks, row.peers = "stopped", 0, 0
        return
    socket = node.home / "profiles" / node.spec.name / "control.sock"
    try:
        answer = await ask(socket, "/status", timeout_s=_ASK_S)
    except P2PComputeError:
        row.state = "silent"
        return
    if isinstance(answer, dict):
        row.take(answer)
