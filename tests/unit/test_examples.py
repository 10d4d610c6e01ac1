"""The examples on a network in memory, against NumPy; those whose operations NumPy has are equal bit for bit."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import pytest
import trio
import trio.testing
from PIL import Image

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


def colours_of(path: Path) -> int:
    """How many a picture has."""
    with Image.open(path) as picture:
        return len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0))


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


def test_blur() -> None:
    program = example("blur")
    image = program.picture(90, 130)
    found = on_a_network(lambda node: program.blurred(node, image, chunks=12))
    padded = np.pad(image, 2, mode="edge").astype(np.int64)
    total = np.full(image.shape, 128)
    for down, one in enumerate(program.WEIGHTS):
        for right, other in enumerate(program.WEIGHTS):
            total += one * other * padded[down : down + 90, right : right + 130]
    assert np.array_equal(found, (total >> 8).astype(np.uint8))
    assert found.astype(int).std() < image.astype(int).std()


def test_option_pricing(tmp_path: Path) -> None:
    program = example("option_pricing")
    option = program.Option(steps=6)
    paths = 64 * 20
    prices, errors = on_a_network(lambda node: program.estimates(node, option, paths))
    path, day = np.arange(paths)[:, None], np.arange(option.steps)[None]
    u, v = (random.uniform(7, path, 2 * day + k).astype(np.float64) for k in (0, 1))
    per_step = option.years / option.steps
    growth = (option.rate - option.volatility**2 / 2) * per_step + option.volatility * per_step**0.5 * (
        np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)
    )
    mean = option.spot * np.exp(np.cumsum(growth, axis=1)).mean(axis=1)
    payoff = np.exp(-option.rate * option.years) * np.maximum(mean - option.strike, 0)
    assert prices.shape == errors.shape == (20,)
    for threads in (1, 7, 20):
        first = payoff[: 64 * threads]
        assert prices[threads - 1] == pytest.approx(first.mean(), rel=1e-4)
        assert errors[threads - 1] == pytest.approx(first.std() / first.size**0.5, rel=1e-3)
    program.save(prices, errors, str(tmp_path / "picture.png"), 60, 41)
    with Image.open(tmp_path / "picture.png") as picture:
        seen = np.asarray(picture)
    assert colours_of(tmp_path / "picture.png") == 4  # paper, the band, the last price, the prices
    blue = (seen == (191, 216, 255)).all(axis=2).sum(axis=0)
    assert blue[0] > 2 * blue[-1] > 0  # the band narrows
    assert (seen[20:22, -1] == 0).any()  # and the last price is in the middle


def test_kmeans(tmp_path: Path) -> None:
    program = example("kmeans")
    points = program.clouds(2_000, 4)
    centres, labels, rounds = on_a_network(lambda node: program.cluster(node, points, 4))
    assert 1 < rounds < 30
    gap = points[:, None, :] - centres[None]
    distance = gap[..., 0] * gap[..., 0] + gap[..., 1] * gap[..., 1]
    assert np.array_equal(labels, distance.argmin(axis=1))
    assert sorted(np.bincount(labels, minlength=4)) == sorted(np.bincount(labels))
    program.save(points, labels, centres, str(tmp_path / "picture.png"), 60)
    assert colours_of(tmp_path / "picture.png") > 4  # of clusters, paper and crosses


def test_nbody(tmp_path: Path) -> None:
    program = example("nbody")
    stars, steps, dt = 48, 3, np.float32(0.01)
    here, speed, mass = on_a_network(lambda node: program.simulate(node, stars, steps))
    program.save(here, speed, str(tmp_path / "picture.png"), 60)
    assert colours_of(tmp_path / "picture.png") > 10
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


def test_sweep(tmp_path: Path) -> None:
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
    program.save(loss, str(tmp_path / "picture.png"), 40)
    assert colours_of(tmp_path / "picture.png") > 10  # a colour for each loss, and the frame


def test_a_map_of_losses(tmp_path: Path) -> None:
    """The lowest row below, the best dark within its frame, and red for what is worse than a guess or no number."""
    loss = np.array([[0.3, 0.5], [1e30, np.nan]], np.float32)
    example("sweep").save(loss, str(tmp_path / "picture.png"), 40)
    with Image.open(tmp_path / "picture.png") as picture:
        seen = np.asarray(picture)
    assert seen.shape == (40, 40, 3)
    red, best, other = seen[10, [10, 30]], seen[30, 10], seen[30, 30]
    assert (red == (204, 38, 38)).all()
    assert best.sum() < other.sum()
    assert (seen[20, :20] == 255).all()
    assert not (seen[20, 20:] == 255).all()


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


def test_cart_pole() -> None:
    program = example("cart_pole")
    episodes, limit = 24, 60
    policies = np.random.default_rng(3).normal(0, 1, (6, 4)).astype(np.float32)
    learned = np.array([0.15, 1.2, 1.7, 2.1], np.float32)
    lines: list[tuple[int, float, float]] = []

    async def work(node: p2p.Node) -> tuple[Array, Array]:
        steps = await program.scores(node, np.stack([*policies, learned]), episodes, 11, limit)
        policy = await program.learn(
            node, generations=4, candidates=16, episodes=16, limit=120, report=lambda *line: lines.append(line)
        )
        return steps, await program.scores(node, policy[None], 64, 99, 500)

    steps, after = on_a_network(work)

    # The same episodes in NumPy, all at once, in float32; sines are rounded once, as they are in a kernel.
    f, every = np.float32, np.concatenate([policies, learned[None]])
    start = [f(0.1) * (f(2) * random.uniform(11, np.arange(episodes), k) - f(1)) for k in range(4)]
    x, speed, angle, turn = (np.tile(part, (len(every), 1)) for part in start)
    due, alive = np.zeros_like(steps), np.ones(steps.shape, bool)
    for _ in range(limit):
        alive &= (np.abs(x) < f(2.4)) & (np.abs(angle) < f(np.pi / 15))
        due += alive
        wish = every[:, :1] * x + every[:, 1:2] * speed + every[:, 2:3] * angle + every[:, 3:] * turn
        sin, cos = (wave(angle.astype(np.float64)).astype(f) for wave in (np.sin, np.cos))
        arm, mass = f(0.1) * f(0.5), f(1.0) + f(0.1)
        thrust = (np.where(wish > 0, f(10), f(-10)) + arm * turn * turn * sin) / mass
        fall = (f(9.8) * sin - cos * thrust) / (f(0.5) * (f(4) / f(3) - f(0.1) * cos * cos / mass))
        push = thrust - arm * fall * cos / mass
        x, speed, angle, turn = (
            x + f(0.02) * speed,
            speed + f(0.02) * push,
            angle + f(0.02) * turn,
            turn + f(0.02) * fall,
        )
    assert np.array_equal(steps, due)
    assert steps[:-1].min() < 30
    assert steps[-1].min() == limit  # it is known to balance
    assert lines[-1][1] > 3 * lines[0][1]
    assert after.mean() > 400


def test_local_sgd() -> None:
    program = example("local_sgd")
    shards, rows, steps, rate = 6, 64, 150, np.float32(0.05)
    losses: list[float] = []
    weights = on_a_network(
        lambda node: program.fit(
            node, shards=shards, rows=rows, rounds=4, steps=steps, report=lambda _, loss: losses.append(loss)
        )
    )
    x, y = (part.astype(np.float64) for part in program.moons(shards * rows, seed=1))
    x, y = x.reshape(shards, rows, 2), y.reshape(shards, rows)
    due = np.random.default_rng(2).normal(0, 0.5, program.WEIGHTS).astype(np.float32).astype(np.float64)
    shard = np.arange(shards)
    for number in range(4):
        mine = np.tile(due, (shards, 1))
        hidden, bias = mine[:, :-1].reshape(shards, program.HIDDEN, 4), mine[:, -1]
        total = 0.0
        for step in range(steps):
            row = (random.uniform(number, shard, step) * np.float32(rows)).astype(int)
            place, label = x[shard, row], y[shard, row]
            unit = np.tanh(np.einsum("shk,sk->sh", hidden[..., :2], place) + hidden[..., 2])
            score = (unit * hidden[..., 3]).sum(axis=1) + bias
            total += float((np.logaddexp(0, score) - label * score).mean())
            error = 0.5 + 0.5 * np.tanh(score / 2) - label
            back = error[:, None] * hidden[..., 3] * (1 - unit * unit)
            bias -= rate * error
            hidden[..., 3] -= rate * error[:, None] * unit
            hidden[..., :2] -= rate * back[..., None] * place[:, None]
            hidden[..., 2] -= rate * back
        due = mine.mean(axis=0)
        assert losses[number] == pytest.approx(total / steps, rel=1e-4)
    assert weights == pytest.approx(due, abs=1e-4)
    held, label = program.moons(2_000, seed=3)
    assert np.mean((program.chance(weights, held) > 0.5) == (label > 0.5)) > 0.85
    assert losses[-1] < 0.7 * losses[0]
    assert {"x", "o", "▓"} <= set(program.field(weights))


def test_transformer() -> None:
    program = example("transformer")
    asked = program.questions(6)
    written, scores = on_a_network(lambda node: program.complete(node, asked))
    assert [again + rest for (_, again), rest in zip(asked, written, strict=True)] == [word for word, _ in asked]

    codes, places, looks, attends, up, down, reads = (part.astype(np.float64) for part in program.weights())
    erf = np.vectorize(math.erf)

    def normal(x: Array) -> Array:
        scaled: Array = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        return scaled

    for (word, again), found in zip(asked, scores, strict=True):
        text = f"{word} {again}".rjust(program.PROMPT)
        for due in found:
            x = codes[[program.LETTERS.index(c) for c in text]] + places[: len(text)]
            for layer in range(2):
                query, key, value = (normal(x) @ look.T for look in looks[layer])
                alike = np.where(np.tri(len(text), dtype=bool), query @ key.T / np.sqrt(program.SLOT), -np.inf)
                share = np.exp(alike - alike.max(axis=1, keepdims=True))
                x = x + share / share.sum(axis=1, keepdims=True) @ value @ attends[layer]
                inner = normal(x) @ up[layer].T
                x = x + 0.5 * inner * (1 + erf(inner / np.sqrt(2))) @ down[layer]
            assert due == pytest.approx(reads @ x[-1], abs=2e-4)
            text += program.LETTERS[int(due.argmax())]


def federation(program: ModuleType, count: int) -> tuple[list[Any], Array]:
    clients = [program.Client(k, *program.samples(12, [k % 10, (k + 3) % 10], seed=50 + k)) for k in range(count)]
    return clients, np.random.default_rng(1).normal(0, 0.01, (program.CLASSES, program.FEATURES))


def test_federated() -> None:
    program = example("federated")
    clients, model = federation(program, 6)
    updates = {client.number: client.update(model) for client in clients}

    async def work(node: p2p.Node) -> list[tuple[Array, int]]:
        whole = await program.one_round(node, clients, set(), model, 0)
        part = await program.one_round(node, clients, {1, 4}, model, 1)
        lines: list[tuple[Any, ...]] = []
        await program.federate(node, clients=8, rounds=3, report=lambda *line: lines.append(line))
        assert [line[:2] for line in lines] == [(0, 7), (1, 7), (2, 7)]
        assert lines[-1][2] > 0.5
        assert all(line[3] > 0 for line in lines)
        return [whole, part]

    (whole, paid), (part, paid_part) = on_a_network(work)
    assert paid > 0
    assert paid_part > 0
    for found, numbers in ((whole, range(6)), (part, (0, 2, 3, 5))):
        total = sum(updates[k] for k in numbers)
        assert np.array_equal(found, model + total[:-1].reshape(model.shape) / (program.ONE * total[-1]))


def test_masks_of_federated_clients_cancel_and_nothing_less_takes_them_off() -> None:
    program = example("federated")
    clients, model = federation(program, 4)
    invited = {client.number: client.public for client in clients}
    uploads = [client.upload(model, invited, 7) for client in clients]
    updates = [client.update(model) for client in clients]
    own = [program.mask(client.own, uploads[0].size) for client in clients]
    assert np.array_equal(sum(uploads) - sum(own), sum(updates))

    # What the server is told of one client while all are there: its own mask, which is not all that hides its update.
    assert clients[2].reveal(invited, {0, 1, 2, 3}, 7) == [(clients[2].own, 1)]
    assert np.abs(uploads[2] - own[2] - updates[2]).min() > 0

    # Where one drops out, its peers' masks are left in the sum until they say by which seeds.
    present = [0, 1, 3]
    seeds = [pair for k in present for pair in clients[k].reveal(invited, set(present), 7)]
    rest = sum(uploads[k] - own[k] for k in present)
    assert np.abs(rest - sum(updates[k] for k in present)).min() > 0
    total = sum(uploads[k] for k in present)
    for seed, sign in seeds:
        total = total - sign * program.mask(seed, total.size)
    assert np.array_equal(total, sum(updates[k] for k in present))
    # Its upload, should it come late, is still hidden by its own mask; in another round seeds are others.
    shared = sum(sign * program.mask(seed, total.size) for seed, sign in seeds[1::2])
    assert np.array_equal(uploads[2] + shared, updates[2] + own[2])
    assert clients[0].reveal(invited, {0, 1, 3}, 8)[1] != clients[0].reveal(invited, {0, 1, 3}, 7)[1]
    # Who says that nearly all are missing would learn the update of the one that is not.
    with pytest.raises(ValueError, match="half of the updates"):
        clients[0].reveal(invited, {0, 1}, 7)
