"""The table of `p2pcompute testnet up`: what the providers answered, and all of them together."""

from __future__ import annotations

import io

import pytest
import trio
import trio.testing
from rich.console import Console
from rich.table import Table

from p2pcompute_testnet._testnet_view import ProviderRow, TestnetView, network_table

STATUS = {
    "peer_count": 3,
    "provider": {"busy_slots": 1, "tasks": [{"chunks_done": 4}, {"chunks_done": 5}], "served": {"chunks": 12}},
    "totals": {"earned_uusd": 1_500_000, "claimed_uusd": 500_000},
}


def shown(rows: list[ProviderRow], most: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=120).print(network_table(rows, most=most))
    return out.getvalue().splitlines()


def test_a_row_is_what_the_provider_answered() -> None:
    row = ProviderRow(name="node-1", peer_id="12D3KooWabcdefgh")
    row.take(STATUS)
    assert (row.state, row.tasks, row.chunks, row.peers) == ("busy", 2, 12, 3)
    _, line, together = shown([row], 10)
    assert line.split() == ["node-1", "…abcdefgh", "busy", "3", "2", "12", "1.500000", "USD", "0.500000", "USD"]
    assert together.split() == ["together", "1", "busy", "2", "12", "1.500000", "USD", "0.500000", "USD"]
    row.take({"provider": None, "totals": {}})
    assert (row.state, row.tasks, row.earned_uusd) == ("idle", 0, 0)


def test_all_count_though_not_all_are_shown() -> None:
    rows = [ProviderRow(name=f"node-{n}", peer_id="x" * 10, earned_uusd=1) for n in range(5)]
    lines = shown(rows, 2)
    assert [line.split()[0] for line in lines] == ["provider", "node-0", "node-1", "and", "together"]
    assert "and 3 more" in lines[3]
    assert "0.000005 USD" in lines[4]


@pytest.mark.parametrize("width", [30, 40, 50, 60, 70, 80])
def test_a_narrow_terminal_has_fewer_columns_and_whole_ones(width: int) -> None:
    rows = [ProviderRow(name=f"node-{n}", peer_id="x" * 10, earned_uusd=1_234_567) for n in range(3)]

    def drawn(table: Table) -> list[str]:
        out = io.StringIO()
        Console(file=out, width=width).print(table)
        return out.getvalue().splitlines()

    lines = drawn(network_table(rows, most=10, width=width))
    assert len(lines) == 5
    assert all("…" not in line.replace("…xxxxxxxx", "") for line in lines)
    assert all("1.234567 USD" in line and row.name in line for line, row in zip(lines[1:4], rows, strict=True))
    whole = drawn(network_table(rows, most=10))
    assert (lines == whole) == (width >= 79), "nothing is left out where there is room"


def test_without_a_terminal_nothing_is_drawn() -> None:
    out = io.StringIO()

    async def main() -> None:
        await TestnetView(nodes=[], console=Console(file=out)).run()

    trio.run(main, clock=trio.testing.MockClock())
    assert out.getvalue() == ""
