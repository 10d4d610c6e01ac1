"""The page on programs and the example beside it: what they say is run."""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute.execution._program_files import GROUP

from .execution._program_site import install, install_example, on_path
from .market._harness import Market, in_memory

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "programs.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def forget_modules() -> Iterator[None]:
    yield
    for name in ("soft_steps", "tiny_learner"):
        sys.modules.pop(name, None)


def run_on_a_market(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """Put a simulated market, with one provider that allows `programs`, in the place of `p2p.run`."""

    def run(kernel: Any, *args: Any, **options: Any) -> Any:
        found: list[Any] = []

        async def scenario(market: Market) -> None:
            provider = await market.provider(programs=list(programs))
            node = await market.node(connect=(provider,))
            found.append(await node.run(kernel, *args, **options))

        in_memory(scenario)
        return found[0]

    monkeypatch.setattr(p2p, "run", run)


def test_the_program_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, ask = blocks("python")
    project = tomllib.loads(blocks("toml")[0])["project"]
    install(tmp_path, project["name"], project["version"], {"soft_steps.py": source}, project["entry-points"][GROUP])
    on_path(monkeypatch, tmp_path)
    run_on_a_market(monkeypatch, "soft-steps:spread")
    script = tmp_path / "ask.py"
    script.write_text(ask)
    names = runpy.run_path(str(script), run_name="__main__")
    windows = np.lib.stride_tricks.sliding_window_view(names["series"], 1_000)[:4_000]
    assert np.array_equal(names["low"], windows.min(axis=1))
    assert np.array_equal(names["high"], windows.max(axis=1))
    assert capsys.readouterr().out == f"{names['low'].min()} {names['high'].max()}\n"


def test_the_example_learns_from_shards_that_nobody_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example(tmp_path)
    on_path(monkeypatch, tmp_path)
    rng = np.random.default_rng(1)
    truth = np.array([1.5, -2.0, 0.5], np.float32)
    x = rng.normal(size=(4, 60, 3)).astype(np.float32)
    y = (x @ truth > 0).astype(np.uint8)
    losses: list[float] = []

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["local-step"])
        node = await market.node(connect=(provider,))
        step, weights = p2p.program("local-step"), np.zeros(3, np.float32)
        for _ in range(6):
            updates, loss = await node.run(
                step[4], p2p.out((4, 3), np.float32), p2p.out(4, np.float32), weights, x, y, np.float32(1),
                check="none",
            )  # fmt: skip
            weights += updates.mean(axis=0)
            losses.append(float(loss.mean()))

    in_memory(scenario)
    assert losses[0] == pytest.approx(np.log(2))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5
