"""Requests on the network in memory, in virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import RecordValidator
from p2pcompute.testing import MemoryNetwork, open_memory_overlay
from p2pcompute.testing._request_checks import REQUEST_CHECKS


@pytest.mark.parametrize("latency_s", [0.0, 0.03])
@pytest.mark.parametrize("name", REQUEST_CHECKS)
def test_requests(name: str, latency_s: float) -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=latency_s)

        def open_node(validator: RecordValidator):
            return open_memory_overlay(network, NodeKey.generate(), record_validator=validator)

        with trio.fail_after(3600):
            await REQUEST_CHECKS[name](open_node)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
