"""keccak-256, the EVM's hash."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["keccak256"]


def _load() -> Any:
    """pycryptodome's. It calls C by cffi, and by ctypes where there is no cffi: that is as fast, and cffi would read
    the declarations by a parser of C that nothing else needs, for a megabyte and a fiftieth of a second."""
    absent = "cffi" not in sys.modules
    if absent:
        sys.modules["cffi"] = None  # type: ignore[assignment]  # as the import system has it for what can't be found
    try:
        from Crypto.Hash import keccak
    finally:
        if absent and sys.modules.get("cffi") is None:
            sys.modules.pop("cffi", None)
    return keccak


_keccak: Any = _load()


def keccak256(data: bytes) -> bytes:
    """keccak-256 (not SHA3-256)."""
    return bytes(_keccak.new(digest_bits=256, data=data).digest())
