"""Transactions signed here: EIP-1559, made by hand so that the client needs no Ethereum library.

Sources: EIP-1559 and EIP-2718 (the envelope), the yellow paper's appendix B (RLP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import coincurve

from p2pcompute_protocols.channel._voucher import address_of, keccak256
from p2pcompute_protocols.ids import Address

__all__ = [
    "SignedTx",
    "UnsignedTx",
    "contract_address",
    "decode_transaction",
    "rlp_encode",
    "sign_transaction",
    "transaction_hash",
]

Rlp: TypeAlias = "bytes | Sequence[Rlp]"


def _length(size: int, offset: int) -> bytes:
    if size < 56:
        return bytes((offset + size,))
    big = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((offset + 55 + len(big),)) + big


def rlp_encode(item: Rlp) -> bytes:
    """Recursive length prefix encoding of bytes and sequences of them."""
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < 0x80:
            return item
        return _length(len(item), 0x80) + item
    body = b"".join(map(rlp_encode, item))
    return _length(len(body), 0xC0) + body


def _int(value: int) -> bytes:
    # RLP writes integers without leading zeros, and zero as the empty string.
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedTx:
    """A transaction before it is signed.

    Attributes:
        chain_id: EIP-155 chain ID.
        nonce: the sender's transaction count.
        to: the account that is called; None creates a contract.
        data: calldata, or the code that creates the contract.
        value_wei: money sent along.
        gas: the most gas it may use.
        max_fee_wei: the most paid for a unit of gas, base fee included.
        priority_fee_wei: what of it goes to the block's producer at most.
    """

    chain_id: int
    nonce: int
    to: Address | None
    data: bytes
    gas: int
    max_fee_wei: int
    priority_fee_wei: int
    value_wei: int = 0

    def __post_init__(self) -> None:
        for name in ("chain_id", "nonce", "gas", "max_fee_wei", "priority_fee_wei", "value_wei"):
            if not 0 <= getattr(self, name) < 2**256:
                raise ValueError(f"{name} is not an unsigned integer of 256 bits")
        if self.to is not None and len(self.to) != 20:
            raise ValueError("to is not an address of 20 bytes")
        if self.priority_fee_wei > self.max_fee_wei:
            raise ValueError("priority_fee_wei is above max_fee_wei")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTx:
    """What is broadcast: store `raw` before sending it, and send the same bytes again where in doubt.

    Attributes:
        raw: the EIP-2718 envelope.
        hash: 32 bytes by which the chain knows it.
        sender: who signed it.
        nonce: the sender's transaction count that it uses up.
    """

    raw: bytes
    hash: bytes
    sender: Address
    nonce: int


def transaction_hash(raw: bytes) -> bytes:
    """The hash by which the chain knows a raw transaction."""
    return keccak256(raw)


def contract_address(sender: Address, nonce: int) -> Address:
    """Where a contract lands that `sender` creates with this nonce."""
    return Address(keccak256(rlp_encode([sender, _int(nonce)]))[12:])


def sign_transaction(tx: UnsignedTx, private_key: coincurve.PrivateKey) -> SignedTx:
    """Sign a transaction. The same transaction and key always give the same bytes (RFC 6979)."""
    fields: list[Rlp] = [
        _int(tx.chain_id),
        _int(tx.nonce),
        _int(tx.priority_fee_wei),
        _int(tx.max_fee_wei),
        _int(tx.gas),
        tx.to or b"",
        _int(tx.value_wei),
        tx.data,
        [],
    ]
    signature = private_key.sign_recoverable(keccak256(b"\x02" + rlp_encode(fields)), hasher=None)
    r, s = (int.from_bytes(signature[i : i + 32], "big") for i in (0, 32))
    raw = b"\x02" + rlp_encode([*fields, _int(signature[64]), _int(r), _int(s)])
    return SignedTx(raw=raw, hash=keccak256(raw), sender=address_of(private_key.public_key), nonce=tx.nonce)


def _rlp_item(data: bytes, start: int) -> tuple[Rlp, int]:
    """One item and where it ends."""
    if start >= len(data):
        raise ValueError("the transaction ends in the middle of an item")
    first = data[start]
    if first < 0x80:
        return data[start : start + 1], start + 1
    is_list = first >= 0xC0
    size, begin = first - (0xC0 if is_list else 0x80), start + 1
    if size > 55:
        wide = size - 55
        size, begin = int.from_bytes(data[begin : begin + wide], "big"), begin + wide
    end = begin + size
    if end > len(data):
        raise ValueError("the transaction ends in the middle of an item")
    if not is_list:
        return data[begin:end], end
    items: list[Rlp] = []
    while begin < end:
        item, begin = _rlp_item(data, begin)
        items.append(item)
    return items, end


def decode_transaction(raw: bytes) -> UnsignedTx:
    """What was signed in a transaction that `sign_transaction` made.

    Raises:
        ValueError: it is no such transaction.
    """
    fields, end = _rlp_item(raw, 1) if raw[:1] == b"\x02" else (b"", 0)
    if isinstance(fields, bytes) or len(fields) != 12 or end != len(raw):
        raise ValueError("this is not a signed EIP-1559 transaction")
    whole = [field for field in fields[:8] if isinstance(field, bytes)]
    if len(whole) != 8:
        raise ValueError("this is not a signed EIP-1559 transaction")
    chain_id, nonce, priority, maximum, gas, to, value, data = whole
    return UnsignedTx(
        chain_id=int.from_bytes(chain_id, "big"),
        nonce=int.from_bytes(nonce, "big"),
        to=Address(to) if to else None,
        data=data,
        value_wei=int.from_bytes(value, "big"),
        gas=int.from_bytes(gas, "big"),
        max_fee_wei=int.from_bytes(maximum, "big"),
        priority_fee_wei=int.from_bytes(priority, "big"),
    )
