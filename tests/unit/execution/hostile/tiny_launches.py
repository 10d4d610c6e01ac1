"""The worker as it is shipped, with launches as short as they can be: one item each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pcompute.execution import _worker, _worker_launches


def main(config: Mapping[str, Any]) -> None:
    for name in ("TARGET_NS", "LONGEST_NS", "FIRST_NS"):
        setattr(_worker_launches, name, 1)
    _worker.main(config)
