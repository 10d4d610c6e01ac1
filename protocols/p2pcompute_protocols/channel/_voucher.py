"""The voucher: a signed total that a channel's payee can turn into money at the hub contract.

It is EIP-712 typed data, `Voucher(bytes32 channel,uint96 amount,bytes32 memo)`, in the domain of one hub on
one chain, signed with secp256k1 by the channel's signer. `amount` is the total ever paid on the channel, so a
newer voucher replaces an older one. The digest is made by hand here, because it is made for every payment:
general EIP-712 encoders take more than ten times as long.

Sources: EIP-712, EIP-2 (low s); `p2pcompute/chain/contracts/ChannelHub.vy` checks the same digest on chain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import coincurve

from p2pcompute_protocols._evm import address_of_public_key as address_of
from p2pcompute_protocols._evm import keccak256, recover_address, sign_digest
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import Address, ChannelId

__all__ = [
    "MAX_AMOUNT_UUSD",
    "SIGNATURE_BYTES",
    "Domain",
    "Voucher",
    "address_of",
    "channel_id",
    "keccak256",
    "recover_signer",
    "sign_voucher",
    "voucher_digest",
]

MAX_AMOUNT_UUSD = 2**96 - 1
"""The highest amount on a channel: the hub keeps amounts in 96 bits."""

SIGNATURE_BYTES = 65

_MAX_WORD = 2**256 - 1

_DOMAIN_TYPE = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_NAME = keccak256(b"p2pcompute hub")
_VERSION = keccak256(b"1")
_VOUCHER_TYPE = keccak256(b"Voucher(bytes32 channel,uint96 amount,bytes32 memo)")


def _bad(message: str) -> LocalProtocolError:
    return LocalProtocolError(message, code=WireCode.BAD_VOUCHER)


def _address_word(address: bytes, what: str) -> bytes:
    if not isinstance(address, bytes) or len(address) != 20:
        raise _bad(f"{what} is not an address of 20 bytes")
    return address.rjust(32, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Where a voucher counts: one hub contract on one chain.

    Attributes:
        chain_id: EIP-155 chain ID, 1 to 2**256-1.
        contract: the hub's address, 20 bytes.
        separator: the EIP-712 domain separator that follows from the two, 32 bytes.

    Raises:
        LocalProtocolError: BAD_VOUCHER for a field out of range.
    """

    chain_id: int
    contract: Address
    separator: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.chain_id) is not int or not 0 < self.chain_id <= _MAX_WORD:
            raise _bad("a chain ID is a positive integer of at most 256 bits")
        contract = _address_word(self.contract, "the hub contract")
        chain = self.chain_id.to_bytes(32, "big")
        object.__setattr__(self, "separator", keccak256(b"".join((_DOMAIN_TYPE, _NAME, _VERSION, chain, contract))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """What the signer of a channel signs.

    Attributes:
        channel: the channel, 32 bytes; see `channel_id`.
        amount_uusd: the total ever paid on the channel, in micro-USD (base units of the token), below 2**96.
        memo: 32 bytes that the hub repeats in its event: a Merkle root over receipts, or zeros.

    Raises:
        LocalProtocolError: BAD_VOUCHER for a field out of range.
    """

    channel: ChannelId
    amount_uusd: int
    memo: bytes = bytes(32)

    def __post_init__(self) -> None:
        if not isinstance(self.channel, bytes) or len(self.channel) != 32:
            raise _bad("a channel ID has 32 bytes")
        if type(self.amount_uusd) is not int or not 0 <= self.amount_uusd <= MAX_AMOUNT_UUSD:
            raise _bad("a voucher's amount is an integer from 0 to 2**96-1")
        if not isinstance(self.memo, bytes) or len(self.memo) != 32:
            raise _bad("a memo has 32 bytes")


@lru_cache(maxsize=1024)
def channel_id(payer: Address, payee: Address, signer: Address) -> ChannelId:
    """The ID of the channel from `payer` to `payee` for vouchers of `signer`: keccak256(abi.encode(...)).

    Raises:
        LocalProtocolError: BAD_VOUCHER where one of them does not have 20 bytes.
    """
    words = (_address_word(payer, "payer"), _address_word(payee, "payee"), _address_word(signer, "signer"))
    return ChannelId(keccak256(b"".join(words)))


def voucher_digest(domain: Domain, voucher: Voucher) -> bytes:
    """The 32 bytes that get signed: keccak256(0x1901 ‖ domain separator ‖ hash of the struct), EIP-712."""
    amount = voucher.amount_uusd.to_bytes(32, "big")
    struct = keccak256(b"".join((_VOUCHER_TYPE, voucher.channel, amount, voucher.memo)))
    return keccak256(b"\x19\x01" + domain.separator + struct)


def sign_voucher(domain: Domain, voucher: Voucher, private_key: coincurve.PrivateKey) -> bytes:
    """Sign a voucher.

    The nonce is derived from key and digest (RFC 6979), so that the same voucher always gets the same bytes.

    Returns:
        65 bytes, r ‖ s ‖ v with a low s (EIP-2) and v 27 or 28.
    """
    return sign_digest(private_key, voucher_digest(domain, voucher))


def recover_signer(domain: Domain, voucher: Voucher, signature: bytes) -> Address:
    """The address that signed a voucher. The caller compares it with the channel's signer.

    Raises:
        LocalProtocolError: BAD_VOUCHER for a signature that does not have 65 bytes, that has a high s or a v
            other than 27 and 28 (the hub would refuse it, or it would be a second form of another one), or
            that belongs to no key at all.
    """
    if not isinstance(signature, bytes):
        raise _bad("a voucher's signature is bytes")
    try:
        return recover_address(voucher_digest(domain, voucher), signature)
    except LocalProtocolError as exc:
        raise _bad(str(exc)) from exc
