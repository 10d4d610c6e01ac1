"""Words of the Solidity ABI, and the type of an EIP-712 domain: what all calldata and digests here are made of.

Every argument of these contracts has a fixed size or is a list of such, so an encoder comes down to words of 32
bytes. Sources: the Solidity ABI specification, EIP-712.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pcompute_protocols.channel._voucher import keccak256

__all__ = ["DOMAIN_TYPE", "MAX_TIME_S", "address", "bytes32", "counted", "selector", "word"]

DOMAIN_TYPE = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
"""The type hash of a domain with a name, a version, a chain and a contract."""

MAX_TIME_S = 2**40 - 1
"""The latest UNIX time that the contracts keep: they do it in 40 bits."""

_MAX_WORD = 2**256 - 1


def selector(signature: str) -> bytes:
    """The four bytes that call a function, from its name and types."""
    return keccak256(signature.encode("ascii"))[:4]


def word(value: int) -> bytes:
    """An unsigned integer.

    Raises:
        ValueError: it is none of 256 bits.
    """
    if type(value) is not int or not 0 <= value <= _MAX_WORD:
        raise ValueError("an amount, an index or a time is an unsigned integer of 256 bits")
    return value.to_bytes(32, "big")


def address(value: bytes) -> bytes:
    """An account.

    Raises:
        ValueError: it has not 20 bytes.
    """
    if len(value) != 20:
        raise ValueError("an address has 20 bytes")
    return value.rjust(32, b"\0")


def bytes32(value: bytes) -> bytes:
    """A digest or an ID, as it is.

    Raises:
        ValueError: it has not 32 bytes.
    """
    if len(value) != 32:
        raise ValueError("expected 32 bytes")
    return value


def counted(members: Iterable[bytes]) -> bytes:
    """A list: how many members there are, and they."""
    made = list(members)
    return word(len(made)) + b"".join(made)
