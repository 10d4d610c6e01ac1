"""The examples on a network in memory, against NumPy; those whose operations NumPy has are equal bit for bit."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import random
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain

EXAMPLES = Path(__file__).parents[2] / "examples"
T = TypeVar("T")
Array = np.ndarray[Any, Any]


def example(name: str) -> ModuleType:
    """The program as a module, under its own name: `p2p.kernel` looks for the source there."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def on_a_network(work: Callable[[p2p.Node], Awaitable[T]]) -> T:
    """What `work` gives on a node beside two providers."""

    async def main() -> T:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with (
            open_simulated_node(network, chain) as one,
            open_simulated_node(network, chain) as two,
            open_simulated_node(network, chain) as node,
            trio.open_nursery() as nursery,
        ):
            for provider in (one, two):
                await node.services.overlay.connect(provider.addresses[0])
                await nursery.start(provider.serve)
            result = await work(node)
            nursery.cancel_scope.cancel()
            return result
        raise AssertionError("unreachable")

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_every_example_is_listed_and_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text()
    here = Path(__file__).read_text()
    assert names
    for name in names:
        assert f"[{name}.py]({name}.py)" in listed
        assert f'example("{name}")' in here


def test_mandelbrot(tmp_path: Path) -> None:
    program = example("mandelbrot")
    width, limit = 48, 40
    counts = on_a_network(lambda node: program.paint(node, width, limit))
    step = np.float32(3.0 / width)
    cr = np.float32(-2.2) + np.arange(width).astype(np.float32)[None, :] * step
    ci = np.float32(-1.0) + np.arange(32).astype(np.float32)[:, None] * step
    zr, zi, due = np.zeros((32, width), np.float32), np.zeros((32, width), np.float32), np.zeros((32, width), np.uint16)
    inside = np.ones((32, width), bool)
    for _ in range(limit):
        inside &= zr * zr + zi * zi <= 4
        due += inside
        moved = zr * zr - zi * zi + cr, np.float32(2) * zr * zi + ci
        zr, zi = np.where(inside, moved[0], zr), np.where(inside, moved[1], zi)
    assert np.array_equal(counts, due)
    program.save(counts, str(tmp_path / "picture.png"), limit)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_option_pricing() -> None:
    program = example("option_pricing")
    option = program.Option(steps=6)
    paths = 64 * 20
    value, error = on_a_network(lambda node: program.price(node, option, paths))
    path, day = np.arange(paths)[:, None], np.arange(option.steps)[None]
    u, v = (random.uniform(7, path, 2 * day + k).astype(np.float64) for k in (0, 1))
    per_step = option.years / option.steps
    growth = (option.rate - option.volatility**2 / 2) * per_step + option.volatility * per_step**0.5 * (
        np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)
    )
    mean = option.spot * np.exp(np.cumsum(growth, axis=1)).mean(axis=1)
    payoff = np.exp(-option.rate * option.years) * np.maximum(mean - option.strike, 0)
    assert value == pytest.approx(payoff.mean(), rel=1e-4)
    assert error == pytest.approx(payoff.std() / paths**0.5, rel=1e-3)


def test_kmeans() -> None:
    program = example("kmeans")
    points = program.clouds(2_000, 4)
    centres, labels, rounds = on_a_network(lambda node: program.cluster(node, points, 4))
    assert 1 < rounds < 30
    gap = points[:, None, :] - centres[None]
    distance = gap[..., 0] * gap[..., 0] + gap[..., 1] * gap[..., 1]
    assert np.array_equal(labels, distance.argmin(axis=1))
    assert sorted(np.bincount(labels, minlength=4)) == sorted(np.bincount(labels))


def test_nbody() -> None:
    program = example("nbody")
    stars, steps, dt = 48, 3, np.float32(0.01)
    here, speed, mass = on_a_network(lambda node: program.simulate(node, stars, steps))
    place, move, heavy = program.disc(stars)
    near_zero = np.float32(program.SOFTENING) * np.float32(program.SOFTENING)
    for _ in range(steps):
        push = np.zeros_like(move)
        for j in range(stars):  # one after the other, as each thread does
            gap = place[j] - place
            near = gap[:, 0] * gap[:, 0] + gap[:, 1] * gap[:, 1] + gap[:, 2] * gap[:, 2] + near_zero
            push += (heavy[j] / (near * np.sqrt(near)))[:, None] * gap
        move = move + dt * push
        place = place + dt * move
    assert here.tobytes() == place.tobytes()
    assert speed.tobytes() == move.tobytes()
    assert program.energy(here, speed, mass) == pytest.approx(program.energy(*program.disc(stars)), rel=0.05)


def test_sweep() -> None:
    program = example("sweep")
    loss, rates, penalties = on_a_network(lambda node: program.sweep(node, 4, rows=64, epochs=20))
    (x, y), (held_x, held_y) = (tuple(part.astype(np.float64) for part in program.data(64, seed)) for seed in (1, 2))
    for row, penalty in enumerate(penalties.astype(np.float64)):
        for column, rate in enumerate(rates.astype(np.float64)):
            weights, bias = np.zeros(2), 0.0
            for _ in range(20):
                error = 0.5 + 0.5 * np.tanh((x @ weights + bias) / 2) - y  # the logistic function
                weights = weights - rate * (x.T @ error / 64 + penalty * weights)
                bias -= rate * error.mean()
            score = held_x @ weights + bias
            due = np.mean(np.logaddexp(0, score) - score * held_y)
            assert loss[row, column] == pytest.approx(due, rel=2e-3)


def test_gemm() -> None:
    program = example("gemm")
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((40, 70), dtype=np.float32), rng.standard_normal((70, 23), dtype=np.float32)
    c = on_a_network(lambda node: program.multiply(node, a, b))
    assert c.tobytes() == program.in_order(a, b).tobytes()
    error = np.abs(c - a.astype(np.float64) @ b.astype(np.float64))
    assert (error <= program.error_bound(a, b)).all()
    assert error.any()


def test_radix_sort() -> None:
    program = example("radix_sort")
    keys = program.bell(2_500)  # the last tile is not full
    keys[:3] = 0, 2**32 - 1, 2**32 - 1
    ordered, histogram = on_a_network(lambda node: program.radix_sort(node, keys))
    assert np.array_equal(ordered, np.sort(keys))
    assert np.array_equal(histogram, np.bincount(keys >> 24, minlength=256))
    assert len(program.bars(histogram).splitlines()) == 32
