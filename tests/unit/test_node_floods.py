"""Strangers who send garbage, too much or too far ahead cost a provider a line of its log at most."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.errors import DiskFull, NoProviderError, StreamError
from p2pcompute.market import AdBoard
from p2pcompute.market import _bidding as bidding
from p2pcompute_protocols import ads, negotiation

from .market._harness import Market, Z, compute, in_memory


def _tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("protocol", [ads.PROTOCOL_ID, negotiation.PROTOCOL_ID])
@pytest.mark.parametrize("sent", [b"\xff" * 64, b"\x00\x00\x00\x01\x00", b""], ids=["garbage", "no message", "silence"])
def test_a_garbage_stream_leaves_no_traceback(protocol: str, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        stranger = await market.node(connect=(provider,))
        stream = await stranger.services.overlay.open_stream(provider.peer_id, protocol)
        if sent:
            await stream.send_all(sent)
        with trio.fail_after(60):
            try:
                while await stream.receive_some():
                    pass
            except StreamError:
                pass
        assert not _tracebacks(caplog)
        assert np.array_equal(await compute(stranger), Z)

    in_memory(scenario)


def test_a_full_disk_in_a_negotiation_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        role = provider.provider
        assert role is not None

        async def full(_: Any) -> None:
            raise DiskFull("no room")

        role.negotiations.agreed = full
        with pytest.raises(Exception, match="provider"):
            await compute(requester)
        assert not _tracebacks(caplog)
        assert "no room" in caplog.text

    in_memory(scenario)


def test_of_a_flood_of_a_peers_ads_the_first_is_passed_on_and_the_newest_later() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        role = provider.provider
        assert role is not None
        now = provider.now_ms()
        board = AdBoard(network=provider.network, now_ms=lambda: now)
        flood = [role.make_ad(now + count)[1] for count in range(1_000)]
        assert [board.accepts(raw) for raw in flood] == [True] + [False] * 999
        now += 1_999
        assert not board.accepts(flood[-1])
        now += 1
        assert board.accepts(flood[-1])
        now -= 100_000  # the clock is set back
        assert board.put(role.make_ad(now + 200_000)[1]) is not None  # asked for, not gossiped

    in_memory(scenario)


def test_a_change_of_the_ad_soon_after_another_reaches_everybody() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        other = await market.node(connect=(provider,))
        await trio.sleep(60)
        role = provider.provider
        assert role is not None
        for slots in (2, 3):
            role.device = dataclasses.replace(role.device, slots=slots)
            provider.services.ad_service.changed()
            await trio.sleep(0.2)
        await trio.sleep(3)
        entry = other.services.board.get(provider.peer_id)
        assert entry is not None
        assert entry.ad.devices[0].slots == 3

    in_memory(scenario)


def test_a_deadline_too_far_ahead_is_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        assert np.array_equal(await compute(requester, deadline_s=7 * 86_400), Z)
        monkeypatch.setattr(bidding, "MAX_DEADLINE_MS", 6 * 86_400_000)
        with pytest.raises(NoProviderError, match="days ahead"):
            await compute(requester, deadline_s=7 * 86_400)

    in_memory(scenario)
