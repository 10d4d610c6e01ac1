"""Work in rounds for tests: kernels, what they give, and the scenarios that are played in memory and on libp2p."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import numpy as np

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.tasks import Agreed, ChunkDone, Paid

from ..market._harness import Market, Watch

__all__ = [
    "DT",
    "GROUND",
    "HILLS",
    "ROUND_SCENARIOS",
    "SIZE",
    "START",
    "drift",
    "expected",
    "expected_hills",
    "flow_steps",
    "iterate",
    "same",
]

SIZE = 500
Array = np.ndarray[Any, Any]
Scenario = Callable[[Market], Awaitable[None]]
ROUND_SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(function: Scenario) -> Scenario:
    ROUND_SCENARIOS[function.__name__] = function
    return function


@p2p.kernel
def drift(new_x, new_v, x, v, dt, round_number):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        j = (i + 1) % new_x.size
        new_v[i] = v[i] + dt * (x[j] - x[i])
        new_x[i] = x[i] + dt * v[i] + np.float32(round_number)


@p2p.kernel
def turn(new_x, x, round_number):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        new_x[i] = x[(i + round_number) % x.size] + 1


@p2p.kernel
def flow(new_h, h, ground):  # type: ignore[no-untyped-def]
    x, y = cuda.grid(2)
    if y < new_h.shape[0] and x < new_h.shape[1]:
        new_h[y, x] = h[y - 1, x] + h[y + 1, x] - h[y, x - 1] + 3 * h[y, x + 1] + ground[y + 2, x] - ground[y, x - 1]


@p2p.kernel
def rows(sums, h):  # type: ignore[no-untyped-def]
    y = cuda.grid(1)
    if y < sums.shape[0]:
        for x in range(h.shape[1]):
            sums[y] += h[y, x] - h[y + 1, x]


@p2p.kernel
def peak(top, h):  # type: ignore[no-untyped-def]
    x, y = cuda.grid(2)
    if y < top.shape[0] and x < top.shape[1]:
        top[y, x] = h[y, x]


GROUND = np.random.default_rng(5).integers(-9, 9, (37, 50)).astype(np.int32)
HILLS = {
    "h": np.random.default_rng(6).integers(-99, 99, (37, 50)).astype(np.int64),
    "sums": np.zeros(37, np.int64),
    "top": np.zeros(1, np.int64),
}


def flow_steps() -> list[Any]:
    """Three launches that read split inputs: a constant, an array of the last round, and what this one has given."""
    return [
        p2p.step(flow, p2p.new("h"), p2p.state("h", halo=1, edge="wrap"), p2p.split(GROUND, halo=(2, 1), edge="clamp")),
        p2p.step(rows, p2p.new("sums"), p2p.state("h", halo=1)),
        p2p.step(peak, p2p.new("top", reduce="max", shape=GROUND.shape), p2p.state("h", halo=0)),
    ]


def expected_hills(rounds: int) -> dict[str, Array]:
    h = HILLS["h"]
    wide = np.pad(GROUND, ((0, 2), (1, 0)), mode="edge")
    for _ in range(rounds):
        around = np.roll(h, 1, 0) + np.roll(h, -1, 0) - np.roll(h, 1, 1) + 3 * np.roll(h, -1, 1)
        h = around + wide[2:, 1:] - wide[:-2, :-1]
    below = np.pad(h, ((0, 1), (0, 0)))[1:]
    return {"h": h, "sums": (h - below).sum(1), "top": np.array([h.max()])}


START = {
    "x": np.linspace(-1, 1, SIZE, dtype=np.float32),
    "v": np.linspace(2, 0, SIZE, dtype=np.float32),
}
DT = np.float32(0.125)


def expected(rounds: int, start: dict[str, Array] | None = None, first: int = 0) -> dict[str, Array]:
    x, v = (start or START)["x"], (start or START)["v"]
    for number in range(first, rounds):
        x, v = x + DT * v + np.float32(number), v + DT * (np.roll(x, -1) - x)
    return {"x": x, "v": v}


async def iterate(node: p2p.Node, rounds: int = 40, watch: Watch | None = None, **options: Any) -> dict[str, Array]:
    chosen = {"rounds_per_chunk": 8, "on_event": watch, "budget": "0.50 USD", **options}
    return await node.iterate(drift, rounds=rounds, state=START, args=(DT,), **chosen)


def same(found: dict[str, Array], due: dict[str, Array]) -> bool:
    return found.keys() == due.keys() and all(np.array_equal(found[name], due[name]) for name in due)


@scenario
async def rounds_go_on_where_a_provider_was_lost(market: Market) -> None:
    providers = {node.peer_id: node for node in [await market.provider() for _ in range(2)]}
    node = await market.node(connect=tuple(providers.values()))

    def react(event: Any) -> None:
        if isinstance(event, Paid) and len(watch.of(Paid)) == 2:
            market.kill(providers[event.provider])

    watch = Watch(react)
    assert same(await iterate(node, watch=watch), expected(40))
    assert len({event.provider for event in watch.of(Agreed)}) == 2


@scenario
async def two_providers_compute_the_same_rounds(market: Market) -> None:
    providers = [await market.provider() for _ in range(2)]
    node = await market.node(connect=tuple(providers))
    assert same(await iterate(node, check="quorum"), expected(40))
    assert min([await market.claimed_uusd(one) for one in providers]) > 0


@scenario
async def split_inputs_have_their_edges_in_each_round(market: Market) -> None:
    provider = await market.provider()
    node = await market.node(connect=(provider,))
    watch = Watch()
    found = await node.iterate(
        flow_steps(), rounds=12, state=HILLS, rounds_per_chunk=5, budget="1 USD", samples=2_000, on_event=watch
    )
    assert same(found, expected_hills(12))
    assert all(done.checked > 1_850 for done in watch.of(ChunkDone))  # all of h, all of sums


@scenario
async def a_state_of_many_pieces_goes_over_the_wire(market: Market) -> None:
    provider = await market.provider()
    node = await market.node(connect=(provider,))
    x = np.arange(300_000, dtype=np.int64)
    found = await node.iterate(turn, rounds=6, state={"x": x}, rounds_per_chunk=2, budget="1 USD")
    for number in range(6):
        x = np.roll(x, -number) + 1
    assert np.array_equal(found["x"], x)
