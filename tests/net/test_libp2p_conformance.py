"""The overlay on libp2p does what every overlay must do, over real sockets."""

from __future__ import annotations

import pytest
import trio

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import RecordValidator, open_libp2p
from p2pcompute.testing._counter_checks import COUNTER_CHECKS
from p2pcompute.testing._overlay_checks import OVERLAY_CHECKS

CHECKS = {**OVERLAY_CHECKS, **COUNTER_CHECKS}

pytestmark = pytest.mark.net


@pytest.mark.parametrize("name", CHECKS)
def test_conforms(name: str) -> None:
    async def main() -> None:
        def open_node(validator: RecordValidator):
            return open_libp2p(NodeKey.generate(), record_validator=validator)

        with trio.fail_after(300):
            await CHECKS[name](open_node)

    trio.run(main)
