"""The vectors of `protocols/*/vectors.json`: bytes that every implementation must take or refuse, and why.

What to expect is written down here by hand, never taken from the implementation; `test_vectors.py` holds ours to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from ._ads import ads_vectors
from ._blob import blob_vectors
from ._channel import channel_vectors
from ._dispute import dispute_vectors
from ._envelope import envelope_vectors
from ._evidence import evidence_vectors
from ._material import KEYS, NETWORK, NOW
from ._merkle import merkle_vectors
from ._negotiation import negotiation_vectors
from ._request import request_vectors
from ._stake import stake_vectors
from ._task import task_vectors
from ._watch import watch_vectors

__all__ = ["build"]

ROOT: Final = Path(__file__).resolve().parents[4] / "protocols"


def build() -> dict[Path, str]:
    """Every file and its text."""
    made = {
        "envelope": envelope_vectors(),
        "ads": ads_vectors(),
        "negotiation": negotiation_vectors(),
        "task": task_vectors(),
        "blob": blob_vectors(),
        "channel": channel_vectors(),
        "watch": watch_vectors(),
        "stake": stake_vectors(),
        "merkle": merkle_vectors(),
        "dispute": dispute_vectors(),
        "evidence": evidence_vectors(),
        "request": request_vectors(),
    }
    files: dict[Path, str] = {}
    for name, vectors in made.items():
        head = {"protocol": name, "network": NETWORK, "now_ms": NOW, "keys": KEYS}
        files[ROOT / name / "vectors.json"] = json.dumps({**head, **vectors}, indent=1, ensure_ascii=False) + "\n"
    return files
