"""What goes to the hub on somebody's signature: deposits without an approval before, and closing at once.

A permit (EIP-2612) and an authorisation (EIP-3009) are signed for the token, in the token's own EIP-712 domain; a
`CloseConsent` is signed by a payee for the hub, in the domain of its vouchers. All of it is pure functions: digests,
and calldata. `docs/contracts.md` says what each is worth to whom.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pcompute_protocols.channel import MAX_EPOCH, CloseConsent, close_digest
from p2pcompute_protocols.channel._voucher import keccak256
from p2pcompute_protocols.ids import Address, ChannelId

from ._abi import DOMAIN_TYPE
from ._abi import address as _address
from ._abi import bytes32 as _bytes32
from ._abi import word as _word

__all__ = [
    "MAX_EPOCH",
    "Authorization",
    "CloseConsent",
    "Permit",
    "TokenDomain",
    "authorization_digest",
    "authorization_nonce",
    "close_digest",
    "encode_close_signed",
    "encode_deposit_with_authorization",
    "encode_deposit_with_permit",
    "encode_epoch",
    "encode_permit_nonce",
    "permit_digest",
]

_PERMIT_TYPE = keccak256(b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)")
_RECEIVE_TYPE = keccak256(
    b"ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,"
    b"bytes32 nonce)"
)
_DEPOSIT_INTENT = keccak256(b"p2pcompute hub: deposit for the signer")
_DEPOSIT_WITH_PERMIT = keccak256(b"deposit_with_permit(uint256,address,uint256,uint8,bytes32,bytes32)")[:4]
_DEPOSIT_WITH_AUTHORIZATION = keccak256(
    b"deposit_with_authorization(address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
)[:4]
_CLOSE_SIGNED = keccak256(b"close_signed(address,address,address,uint256,uint256,bytes32,bytes32)")[:4]
_EPOCH = keccak256(b"epoch(bytes32)")[:4]
_NONCES = keccak256(b"nonces(address)")[:4]


def _vrs(signature: bytes) -> bytes:
    """v, r and s as three words, as tokens take them."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise ValueError("a signature has 65 bytes, r, s and a v of 27 or 28")
    return _word(signature[64]) + signature[:64]


def compact(signature: bytes) -> bytes:
    """The 64 bytes of EIP-2098 for a signature of 65 bytes with a low s.

    Raises:
        ValueError: it is none.
    """
    if len(signature) != 65 or signature[64] not in (27, 28) or signature[32] & 0x80:
        raise ValueError("a signature has 65 bytes, a low s and a v of 27 or 28")
    return signature[:32] + bytes((signature[32] | (signature[64] - 27) << 7,)) + signature[33:64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDomain:
    """Where a permit or an authorisation counts: one token on one chain.

    Attributes:
        name: the token's own name for EIP-712 ("test USD" for the development token).
        version: its version for EIP-712, "1" or "2" as a rule.
        chain_id: EIP-155 chain ID.
        contract: the token's address.
        separator: the domain separator that follows, 32 bytes.
    """

    name: str
    version: str
    chain_id: int
    contract: Address
    separator: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = keccak256(self.name.encode()) + keccak256(self.version.encode())
        value = keccak256(DOMAIN_TYPE + names + _word(self.chain_id) + _address(self.contract))
        object.__setattr__(self, "separator", value)


def _typed(separator: bytes, *words: bytes) -> bytes:
    return keccak256(b"\x19\x01" + separator + keccak256(b"".join(words)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """What an owner signs so that the hub may move its tokens (EIP-2612).

    Attributes:
        owner: whose tokens.
        amount_uusd: how many.
        nonce: the owner's count of permits at the token; see `encode_permit_nonce`.
        deadline_s: UNIX time until which it is good.
    """

    owner: Address
    amount_uusd: int
    nonce: int
    deadline_s: int


def permit_digest(token: TokenDomain, permit: Permit, *, hub: Address) -> bytes:
    """The 32 bytes that the owner signs."""
    return _typed(
        token.separator,
        _PERMIT_TYPE,
        _address(permit.owner),
        _address(hub),
        _word(permit.amount_uusd),
        _word(permit.nonce),
        _word(permit.deadline_s),
    )


def encode_deposit_with_permit(permit: Permit, signature: bytes, *, beneficiary: Address) -> bytes:
    """Calldata for the hub, sent by the permit's owner: approve and deposit in one.

    Raises:
        ValueError: the signature does not have 65 bytes, or a field is out of range.
    """
    words = (_word(permit.amount_uusd), _address(beneficiary), _word(permit.deadline_s), _vrs(signature))
    return _DEPOSIT_WITH_PERMIT + b"".join(words)


def encode_permit_nonce(owner: Address) -> bytes:
    """Calldata for a read of the token: the nonce of the owner's next permit."""
    return _NONCES + _address(owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """What an owner signs so that anyone can bring its tokens to the hub, for it (EIP-3009).

    Attributes:
        owner: whose tokens, and whose balance at the hub grows.
        amount_uusd: how many.
        valid_after_s: UNIX time after which it is good.
        valid_before_s: UNIX time before which it is good.
        salt: 32 random bytes; the nonce follows from hub and salt.
    """

    owner: Address
    amount_uusd: int
    valid_after_s: int
    valid_before_s: int
    salt: bytes


def authorization_nonce(hub: Address, salt: bytes) -> bytes:
    """The nonce of an authorisation: it names the hub and what the money is for."""
    return keccak256(_DEPOSIT_INTENT + _address(hub) + _bytes32(salt))


def authorization_digest(token: TokenDomain, authorization: Authorization, *, hub: Address) -> bytes:
    """The 32 bytes that the owner signs."""
    return _typed(
        token.separator,
        _RECEIVE_TYPE,
        _address(authorization.owner),
        _address(hub),
        _word(authorization.amount_uusd),
        _word(authorization.valid_after_s),
        _word(authorization.valid_before_s),
        authorization_nonce(hub, authorization.salt),
    )


def encode_deposit_with_authorization(authorization: Authorization, signature: bytes) -> bytes:
    """Calldata for the hub, sent by anyone: bring the owner's tokens in, for the owner.

    Raises:
        ValueError: the signature does not have 65 bytes, or a field is out of range.
    """
    words = (
        _address(authorization.owner),
        _word(authorization.amount_uusd),
        _word(authorization.valid_after_s),
        _word(authorization.valid_before_s),
        _bytes32(authorization.salt),
        _vrs(signature),
    )
    return _DEPOSIT_WITH_AUTHORIZATION + b"".join(words)


def encode_close_signed(
    consent: CloseConsent, signature: bytes, *, payer: Address, payee: Address, signer: Address
) -> bytes:
    """Calldata for the hub, sent by anyone: close a channel on its payee's signature.

    Raises:
        ValueError: the signature is not one of 65 bytes with a low s, or a field is out of range.
    """
    who = _address(payer) + _address(payee) + _address(signer)
    return _CLOSE_SIGNED + who + _word(consent.amount_uusd) + _word(consent.deadline_s) + compact(signature)


def encode_epoch(channel: ChannelId) -> bytes:
    """Calldata for a read of the hub: how often a channel was closed."""
    return _EPOCH + _bytes32(channel)
