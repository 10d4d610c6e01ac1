"""The market's scenarios on the network in memory, under virtual time."""

from __future__ import annotations

import pytest

from ..market._harness import in_memory
from ._scenarios import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_in_memory(name: str) -> None:
    in_memory(SCENARIOS[name])
