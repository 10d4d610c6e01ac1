"""keccak-256 and secp256k1 recovery as the EVM does them (EIP-2: s in the lower half)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import coincurve

from ._keccak import keccak256
from .errors import LocalProtocolError, WireCode
from .ids import Address

__all__ = ["address_of_public_key", "keccak256", "recover_address", "sign_digest"]

_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def address_of_public_key(key: coincurve.PublicKey) -> Address:
    """The account of a secp256k1 public key."""
    return _address_of_point(key.format(compressed=False)[1:])


@lru_cache(maxsize=1024)
def _address_of_point(point: bytes) -> Address:
    # Who signs one voucher signs many, and hashing takes a quarter of what recovering takes.
    return Address(keccak256(point)[12:])


def sign_digest(key: coincurve.PrivateKey, digest: bytes) -> bytes:
    """65 bytes r ‖ s ‖ v over a 32-byte digest; libsecp256k1 gives s in the lower half."""
    signature = key.sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes([27 + signature[64]])


def recover_address(digest: bytes, signature: bytes) -> Address:
    """Who signed a 32-byte digest.

    Raises:
        LocalProtocolError: BAD_SIGNATURE: not 65 bytes, v not 27 or 28, a high s, or no such point.
    """
    if len(signature) != 65:
        raise LocalProtocolError("a signature has 65 bytes: r, s, v", code=WireCode.BAD_SIGNATURE)
    if int.from_bytes(signature[32:64]) > _HALF_ORDER:
        raise LocalProtocolError("the signature's s is in the upper half of the order", code=WireCode.BAD_SIGNATURE)
    if signature[64] not in (27, 28):
        raise LocalProtocolError("the signature's v is neither 27 nor 28", code=WireCode.BAD_SIGNATURE)
    try:
        raw = signature[:64] + bytes([signature[64] - 27])
        return address_of_public_key(coincurve.PublicKey.from_signature_and_message(raw, digest, hasher=None))
    except Exception as exc:  # coincurve raises bare Exception for a point that is not on the curve
        raise LocalProtocolError("the signature belongs to no key", code=WireCode.BAD_SIGNATURE) from exc
