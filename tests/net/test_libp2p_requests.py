"""Requests over libp2p, on real sockets."""

from __future__ import annotations

import pytest
import trio

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import RecordValidator, open_libp2p
from p2pcompute.testing._request_checks import REQUEST_CHECKS

pytestmark = pytest.mark.net


@pytest.mark.parametrize("name", REQUEST_CHECKS)
def test_requests(name: str) -> None:
    async def main() -> None:
        def open_node(validator: RecordValidator):
            return open_libp2p(NodeKey.generate(), record_validator=validator)

        with trio.fail_after(300):
            await REQUEST_CHECKS[name](open_node)

    trio.run(main)
