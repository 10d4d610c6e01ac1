"""Who finds no provider where one is about to be is told to wait, and not to start another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio

from p2pcompute._opening import _how_to_get_one
from p2pcompute._profile import NetworkDir
from p2pcompute.errors import ChainUnreachable, NoProviderError
from p2pcompute.node import open_node

from .market._harness import Market, compute, in_memory


async def opens() -> None:
    async with open_node(network="mine"):
        pass


def test_a_provider_that_starts_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    directory = NetworkDir.named("mine")
    with pytest.raises(NoProviderError, match=r"Start one here with `p2pcompute up --network mine`"):
        trio.run(opens)
    with directory.announce_start():
        assert directory.starting() == [os.getpid()]
        with pytest.raises(NoProviderError, match=rf"is starting here \(process {os.getpid()}\).* in some seconds"):
            trio.run(opens)
    assert not directory.starting()
    with pytest.raises(NoProviderError, match="Start one here"):
        trio.run(opens)


def test_a_chain_that_does_not_start_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    directory = NetworkDir.named("mine")
    directory.chain_data.mkdir(parents=True)
    (directory.chain_data / "chain.journal").write_bytes(b"of something else\n" * 8)

    async def starts() -> None:
        async with open_node(network="mine", start_chain=True):
            pass

    with pytest.raises(ChainUnreachable, match="did not start"):
        trio.run(starts)


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"pid": "1"}', '{"pid": -1}', json.dumps({"pid": 2**22 + 1})])
def test_notes_of_nobody_are_not_believed(tmp_path: Path, note: str) -> None:
    directory = NetworkDir(tmp_path)
    (tmp_path / "starting").mkdir()
    (tmp_path / "starting" / "1.json").write_text(note)
    assert not directory.starting()


def test_a_note_that_was_left_long_ago_is_not_believed(tmp_path: Path) -> None:
    directory = NetworkDir(tmp_path)
    with directory.announce_start():
        (note,) = (tmp_path / "starting").glob("*.json")
        os.utime(note, (1, 1))
        assert not directory.starting()


def test_a_node_that_is_open_says_so_too(tmp_path: Path) -> None:
    directory = NetworkDir(tmp_path)

    async def scenario(market: Market) -> None:
        requester = await market.node()

        def advice() -> str:
            return _how_to_get_one(directory, "mine")

        requester.services.coordinator.advice = advice
        with directory.announce_start(), pytest.raises(NoProviderError, match="is starting here"):
            await compute(requester)
        with pytest.raises(NoProviderError, match="Start one here with `p2pcompute up --network mine`"):
            await compute(requester)

    in_memory(scenario)
