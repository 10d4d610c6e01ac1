"""Inputs of tasks that spread from provider to provider: whole nodes in virtual time."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._dialogue import Dialogue
from p2pcompute.blobs._file import HEADER_BYTES
from p2pcompute.node import Node
from p2pcompute.tasks._sharing import Sharing
from p2pcompute.testing import InlineWorkers, MemoryNetwork, open_simulated_node, simulated_chain
from p2pcompute_protocols import blob
from p2pcompute_protocols.blob import BlobConnection, bitmap, leaves_of
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.framing import frame

from ._network import MIB, virtually


@p2p.kernel
def look_up(out, table):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = table[(i * 4099) % table.size]


def a_table(size: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 2**31, size // 4, dtype=np.int32)


@pytest.mark.parametrize("share", [None, False])
def test_four_providers_take_little_more_than_one_copy(share: bool | None) -> None:
    table = a_table(8 * MIB)

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.01, bytes_per_s=50e6), simulated_chain()
        async with AsyncExitStack() as stack:
            node = await stack.enter_async_context(open_simulated_node(network, chain))
            network.uplink(node.peer_id, bytes_per_s=4e6)
            providers = [
                await stack.enter_async_context(open_simulated_node(network, chain, workers=InlineWorkers(chunk_s=1.5)))
                for _ in range(4)
            ]
            async with trio.open_nursery() as nursery:
                for provider in providers:
                    await node.services.overlay.connect(provider.addresses[0])
                    await nursery.start(provider.serve)
                ready: list[Any] = []

                def watch(event: Any) -> None:
                    if isinstance(event, p2p.events.ProviderReady):
                        ready.append(event.provider)

                out = await node.run(
                    look_up, p2p.out((4096,), np.int32), table, chunks=16, share_inputs=share, on_event=watch
                )
                nursery.cancel_scope.cancel()
            expected = table[(np.arange(4096) * 4099) % table.size]
            assert np.array_equal(out, expected)
            assert len(set(ready)) == 4
            if share is False:
                assert network.sent_bytes(node.peer_id) > 4 * table.nbytes
            else:
                assert network.sent_bytes(node.peer_id) < 2 * table.nbytes

    virtually(main)


@asynccontextmanager
async def a_market(
    network: MemoryNetwork, count: int, *, inputs: Path | None = None, chunk_s: float = 1.5
) -> AsyncGenerator[tuple[Node, list[Node], trio.Nursery]]:
    """A requester and connected providers that serve."""
    chain = simulated_chain()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_simulated_node(network, chain))
        workers = InlineWorkers(chunk_s=chunk_s)
        providers = [
            await stack.enter_async_context(open_simulated_node(network, chain, workers=workers, inputs=inputs))
            for _ in range(count)
        ]
        async with trio.open_nursery() as nursery:
            for provider in providers:
                await node.services.overlay.connect(provider.addresses[0])
                await nursery.start(provider.serve)
            yield node, providers, nursery
            nursery.cancel_scope.cancel()


def arguments(table: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return look_up, p2p.out((4096,), np.int32), table


def expected(table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = table[(np.arange(4096) * 4099) % table.size]
    return found


@pytest.mark.parametrize("how", [{"check": "none"}, {"samples": 0}, {"check": "quorum"}, {"share_inputs": False}])
def test_what_is_not_to_spread_goes_to_the_provider_alone(how: dict[str, Any]) -> None:
    table = a_table(2 * MIB)

    async def main() -> None:
        async with a_market(MemoryNetwork(), 2) as (node, providers, _):
            opened: list[str] = []
            for one in (node, *providers):
                overlay: Any = one.services.overlay
                overlay.handle(blob.PROTOCOL_ID, lambda stream: opened.append(stream.peer_id))
            z = await node.run(*arguments(table), chunks=8, **how)
            assert np.array_equal(z, expected(table))
            assert not opened
            assert not node.services.blobs._offers

    virtually(main)


def test_small_inputs_go_the_short_way() -> None:
    table = a_table(MIB - 4)

    async def main() -> None:
        async with a_market(MemoryNetwork(), 1) as (node, _, _):
            assert np.array_equal(await node.run(*arguments(table), chunks=4), expected(table))
            assert node.services.blobs.sent_bytes == 0

    virtually(main)


def test_who_takes_inputs_on_the_task_stream_only_gets_them_there() -> None:
    table = a_table(2 * MIB)

    async def main() -> None:
        async with a_market(MemoryNetwork(), 2) as (node, providers, _):
            for provider in providers[:1]:
                assert provider.provider is not None
                provider.provider.tasks.exchange = None
            assert np.array_equal(await node.run(*arguments(table), chunks=16), expected(table))
            assert node.services.blobs.sent_bytes <= table.nbytes

    virtually(main)


def test_an_input_that_is_there_is_not_sent_again_and_nothing_is_offered_after_the_task() -> None:
    table = a_table(2 * MIB)

    async def main() -> None:
        async with a_market(MemoryNetwork(), 1) as (node, providers, _):
            for _ in range(2):
                assert np.array_equal(await node.run(*arguments(table), chunks=4), expected(table))
            assert node.services.blobs.sent_bytes == table.nbytes
            await trio.sleep(10)
            for one in (node, *providers):
                assert not one.services.blobs._offers
                assert not one.services.blobs._streams

    virtually(main)


def test_a_holder_among_the_providers_that_poisons_is_passed_by() -> None:
    table = a_table(2 * MIB)

    async def main() -> None:
        async with a_market(MemoryNetwork(latency_s=0.01, bytes_per_s=5e6), 3) as (node, providers, _):
            lied: list[int] = []

            async def poison(stream: Any) -> None:
                dialogue = Dialogue(connection := BlobConnection(Role.PROVIDER), stream)
                await dialogue.expect(blob.BlobWant)
                leaves = leaves_of(table.tobytes())
                await dialogue.send(blob.BlobHave(leaves=leaves, held=bitmap(range(8), 8)))
                index = (await dialogue.expect(blob.BlobGet)).index
                lied.append(index)
                lie = blob.BlobPiece(index=index, data=bytes(blob.PIECE_BYTES))
                await stream.send_all(frame(lie.encode(), max_bytes=connection.max_frame_bytes))

            providers[0].services.overlay.handle(blob.PROTOCOL_ID, poison)
            assert np.array_equal(await node.run(*arguments(table), chunks=24), expected(table))
            assert lied

    virtually(main)


def test_a_requester_that_names_another_root_is_refused_and_nobody_else_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = a_table(2 * MIB)
    made = Sharing.__init__

    def altered(self: Sharing, overlay: Any, server: Any, blobs: Any, digests: Any) -> None:
        wrong = {digest: data[:-1] + b"?" if digest in digests else data for digest, data in blobs.items()}
        made(self, overlay, server, wrong, digests)

    monkeypatch.setattr(Sharing, "__init__", altered)

    async def main() -> None:
        async with a_market(MemoryNetwork(), 1, inputs=tmp_path / "inputs") as (node, providers, _):
            with pytest.raises(p2p.P2PComputeError):
                await node.run(*arguments(table), chunks=4)
            assert "not those of its digest" in caplog.text
            role = providers[0].provider
            assert role is not None
            assert not role.tasks.kept.nbytes
            assert not list((tmp_path / "inputs").iterdir())

    virtually(main)


def test_a_provider_that_dies_while_it_gets_an_input_holds_up_nobody() -> None:
    table = a_table(4 * MIB)

    async def main() -> None:
        network = MemoryNetwork(latency_s=0.01, bytes_per_s=5e6)
        async with a_market(network, 3) as (node, providers, nursery):
            network.uplink(node.peer_id, bytes_per_s=2e6)

            async def kill() -> None:
                await trio.sleep(1)  # of virtual time: two pieces or three have come
                assert providers[0].services.blobs._offers
                network.kill(providers[0].peer_id)

            def watch(event: Any) -> None:
                if isinstance(event, p2p.events.Agreed) and event.provider == providers[0].peer_id:
                    nursery.start_soon(kill)

            z = await node.run(*arguments(table), chunks=24, on_event=watch)
            assert np.array_equal(z, expected(table))

    virtually(main)


def test_a_stranger_leaves_nothing_on_the_disk_before_it_has_paid(tmp_path: Path) -> None:
    table, inputs = a_table(2 * MIB), tmp_path / "inputs"

    async def main() -> None:
        async with a_market(MemoryNetwork(), 1, inputs=inputs) as (node, _, _):
            seen: list[int] = []

            def watch(event: Any) -> None:
                if isinstance(event, p2p.events.ProviderReady | p2p.events.ChunkAssigned):
                    seen.append(len(list(inputs.iterdir())))

            with trio.move_on_after(60) as scope:  # it goes before its first chunk is paid
                async for _ in node.map(*arguments(table), chunks=4, on_event=watch):
                    scope.cancel()
            assert seen
            assert not any(seen)
            assert not list(inputs.iterdir())

    virtually(main)


def test_what_a_paying_requester_sends_stays_on_the_disk(tmp_path: Path) -> None:
    table, inputs = a_table(2 * MIB), tmp_path / "inputs"

    async def main() -> None:
        async with a_market(MemoryNetwork(), 1, inputs=inputs) as (node, providers, _):
            await node.run(*arguments(table), chunks=4)
            await trio.sleep(5)
            (path,) = inputs.iterdir()
            assert path.stat().st_size > table.nbytes
            role = providers[0].provider
            assert role is not None
            await trio.sleep(700)  # what is in memory stays for ten minutes
            assert not role.tasks.kept.nbytes
            sent = node.services.blobs.sent_bytes
            assert np.array_equal(await node.run(*arguments(table), chunks=4), expected(table))
            assert node.services.blobs.sent_bytes == sent
            # Damaged on the disk, one piece of it comes again.
            with path.open("r+b") as file:
                file.seek(HEADER_BYTES + 300_000)
                file.write(b"?!")
            await trio.sleep(700)
            assert np.array_equal(await node.run(*arguments(table), chunks=4), expected(table))
            assert node.services.blobs.sent_bytes == sent + blob.PIECE_BYTES

    virtually(main)


def test_a_full_disk_costs_the_cache_and_not_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, inputs = a_table(2 * MIB), tmp_path / "inputs"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        async with a_market(MemoryNetwork(), 1, inputs=inputs) as (node, _, _):
            monkeypatch.setattr(os, "posix_fallocate", full)
            for _ in range(2):
                assert np.array_equal(await node.run(*arguments(table), chunks=4), expected(table))
                await trio.sleep(700)
            assert not list(inputs.iterdir())

    virtually(main)
