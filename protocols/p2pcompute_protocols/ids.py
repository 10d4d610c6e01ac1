"""Identifiers, as types of their own so that one can't stand in for another.

A peer ID is libp2p's: the identity multihash of the protobuf-encoded Ed25519 public key
(libp2p/specs peer-ids): 38 bytes on the wire, base58btc text ("12D3Koo…") everywhere else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NewType

import base58

from .errors import LocalProtocolError, WireCode

__all__ = [
    "Address",
    "ChannelId",
    "Digest",
    "PeerId",
    "TaskId",
    "peer_id_from_bytes",
    "peer_id_from_public_key",
    "peer_id_to_bytes",
    "public_key_of",
]

PeerId = NewType("PeerId", str)
TaskId = NewType("TaskId", bytes)  # 32 bytes, SHA-256 of the countersigned agreement
ChannelId = NewType("ChannelId", bytes)  # 32 bytes, keccak-256 of (payer, payee, signer)
Digest = NewType("Digest", bytes)  # 32 bytes, SHA-256
Address = NewType("Address", bytes)  # 20 bytes, an EVM account

# identity multihash (0x00), length 36, protobuf KeyType=Ed25519 (08 01), Data of 32 bytes (12 20)
_PREFIX = b"\x00\x24\x08\x01\x12\x20"
PEER_ID_BYTES = len(_PREFIX) + 32
_REMEMBERED: Final = 1_024  # conversions: base58 is long arithmetic, and the same few peers come again and again


def peer_id_from_public_key(public_key: bytes) -> PeerId:
    """The peer ID of a raw 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise LocalProtocolError("an Ed25519 public key has 32 bytes", code=WireCode.MALFORMED)
    return PeerId(base58.b58encode(_PREFIX + public_key).decode("ascii"))


@lru_cache(_REMEMBERED)
def peer_id_from_bytes(raw: bytes) -> PeerId:
    """The text form of a binary Ed25519 peer ID (`bytes`); anything else is refused."""
    if len(raw) != PEER_ID_BYTES or not raw.startswith(_PREFIX):
        raise LocalProtocolError("not an Ed25519 peer ID", code=WireCode.MALFORMED)
    return PeerId(base58.b58encode(raw).decode("ascii"))


@lru_cache(_REMEMBERED)
def peer_id_to_bytes(peer_id: PeerId) -> bytes:
    """The 38-byte form of a peer ID."""
    try:
        # base58 drops blanks at the end, and one peer must not have two names
        raw = base58.b58decode(peer_id) if len(peer_id) <= 64 and peer_id.isalnum() else b""
    except ValueError:
        raw = b""
    if len(raw) != PEER_ID_BYTES or not raw.startswith(_PREFIX):
        raise LocalProtocolError("not an Ed25519 peer ID", code=WireCode.MALFORMED)
    return raw


def public_key_of(peer_id: PeerId) -> bytes:
    """The raw 32-byte Ed25519 public key inside a peer ID."""
    return peer_id_to_bytes(peer_id)[len(_PREFIX) :]
