"""keccak-256, the EVM's hash."""

from __future__ import annotations

from sha3 import keccak_256

__all__ = ["keccak256"]


def keccak256(data: bytes) -> bytes:
    """keccak-256 (not SHA3-256)."""
    digest: bytes = keccak_256(data).digest()
    return digest
