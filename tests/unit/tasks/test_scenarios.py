"""The market's scenarios on the network in memory, under virtual time."""

from __future__ import annotations

import pytest

from ..market._harness import in_memory
from ._scenarios import ONLY_IN_MEMORY, SCENARIOS

ALL = {**SCENARIOS, **ONLY_IN_MEMORY}


@pytest.mark.parametrize("name", ALL)
def test_in_memory(name: str) -> None:
    in_memory(ALL[name])
