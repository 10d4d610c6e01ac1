"""The market's scenarios over libp2p on loopback, in real time: the same that run in memory."""

from __future__ import annotations

import pytest

from ..unit.market._harness import on_libp2p
from ..unit.tasks._rounds import ROUND_SCENARIOS
from ..unit.tasks._scenarios import SCENARIOS

pytestmark = pytest.mark.net


@pytest.mark.parametrize("name", SCENARIOS)
def test_on_libp2p(name: str) -> None:
    on_libp2p(SCENARIOS[name])


@pytest.mark.parametrize("name", ROUND_SCENARIOS)
def test_rounds_on_libp2p(name: str) -> None:
    on_libp2p(ROUND_SCENARIOS[name])
