"""The network in memory does what every overlay must do."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import RecordValidator
from p2pcompute.testing import MemoryNetwork, open_memory_overlay
from p2pcompute.testing._counter_checks import COUNTER_CHECKS
from p2pcompute.testing._overlay_checks import OVERLAY_CHECKS

CHECKS = {**OVERLAY_CHECKS, **COUNTER_CHECKS}


@pytest.mark.parametrize("latency_s", [0.0, 0.03])
@pytest.mark.parametrize("name", CHECKS)
def test_conforms(name: str, latency_s: float) -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=latency_s)

        def open_node(validator: RecordValidator):
            return open_memory_overlay(network, NodeKey.generate(), record_validator=validator)

        with trio.fail_after(3600):
            await CHECKS[name](open_node)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
