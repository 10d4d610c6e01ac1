"""docs/rounds.md says nothing that is not so: its snippets run, and its options are those that there are."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute.testing import InlineWorkers, MemoryNetwork, open_simulated_node, simulated_chain

PAGE = (Path(__file__).parents[2] / "docs" / "rounds.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def on_a_network(call: Any) -> Any:
    async def main() -> Any:
        network, chain = MemoryNetwork(latency_s=0.01), simulated_chain()
        async with (
            open_simulated_node(network, chain, workers=InlineWorkers(round_s=0.001)) as provider,
            open_simulated_node(network, chain, workers=InlineWorkers(chunk_s=0.01)) as node,
            trio.open_nursery() as nursery,
        ):
            await node.services.overlay.connect(provider.addresses[0])
            await nursery.start(provider.serve)
            found = await call(node)
            nursery.cancel_scope.cancel()
        return found

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def iterate(*args: Any, **options: Any) -> Any:
        return on_a_network(lambda node: node.iterate(*args, **options))

    monkeypatch.setattr(p2p, "iterate", iterate)
    path = tmp_path / "snippet.py"
    path.write_text(f"{SNIPPETS[0]}\n{SNIPPETS[3]}", encoding="utf-8")
    names = runpy.run_path(str(path))
    x = names["x0"]
    v, dt = np.zeros_like(x), np.float32(0.1)
    for _ in range(500):
        v = v + dt * (np.roll(x, 1) - np.float32(2) * x + np.roll(x, -1))
        x = x + dt * v
    assert np.array_equal(names["last"]["x"], x)
    still = {"x": np.zeros(100, np.float32), "v": np.zeros(100, np.float32)}
    capsys.readouterr()
    _, state = on_a_network(lambda node: names["watched"](node, still))
    assert len(capsys.readouterr().out.splitlines()) == 2  # where nothing moves, the second digest is the first
    assert not state["x"].any()


def test_the_snippet_with_split_inputs_runs(tmp_path: Path) -> None:
    rain = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    path = tmp_path / "snippet.py"
    path.write_text("\n".join(SNIPPETS[0].splitlines()[:3]) + f"\n{SNIPPETS[2]}", encoding="utf-8")
    land = runpy.run_path(str(path), {"rain": rain})["land"]
    h = np.zeros_like(rain)
    found = on_a_network(lambda node: node.iterate(land, rounds=9, state={"h": h}))
    for _ in range(9):
        around = np.roll(h, 1, 0) + np.roll(h, -1, 0) + np.roll(h, 1, 1) + np.roll(h, -1, 1)
        h = np.float32(0.25) * around + rain
    assert np.array_equal(found["h"], h)


def test_options_and_names_are_those_that_there_are() -> None:
    options = {field.name for field in dataclasses.fields(p2p.RoundOptions)}
    for name in re.findall(r"`(check_rounds|rounds_per_chunk|samples|budget|check)[`=]", PAGE):
        assert name in options
    for name in re.findall(r"\bp2p\.([a-z_]+)", PAGE):
        assert hasattr(p2p, name), name
