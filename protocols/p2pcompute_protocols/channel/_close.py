"""The payee's consent to close a channel at once: what it signs, and whose signature that is.

It is EIP-712 typed data, `Close(bytes32 channel,uint24 epoch,uint96 amount,uint40 deadline)`, in the domain of the
hub's vouchers. `epoch` counts the channel's closings, so a consent closes it once.

Sources: EIP-712, EIP-2 (low s); `p2pcompute/chain/contracts/ChannelHub.vy` checks the same digest on chain.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute_protocols._evm import keccak256, recover_address
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import Address, ChannelId

from ._voucher import MAX_AMOUNT_UUSD, Domain

__all__ = ["MAX_DEADLINE_S", "MAX_EPOCH", "CloseConsent", "close_digest", "recover_closer"]

MAX_EPOCH = 2**24 - 1
"""Closings that a channel counts; from there on no signed closing counts."""

MAX_DEADLINE_S = 2**40 - 1
"""The latest deadline that the hub keeps apart."""

_CLOSE_TYPE = keccak256(b"Close(bytes32 channel,uint24 epoch,uint96 amount,uint40 deadline)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseConsent:
    """What a payee signs so that a channel may be closed at once (EIP-712 `Close`).

    A payee that has signed one takes no more vouchers on the channel until it is closed or the deadline has passed.

    Attributes:
        channel: the channel's ID, 32 bytes.
        epoch: how often it was closed before.
        amount_uusd: the total that has to be claimed first, over the channel's life: the newest voucher's.
        deadline_s: UNIX time up to which it is good.

    Raises:
        LocalProtocolError: OVERSIZED for a field out of range.
    """

    channel: ChannelId
    epoch: int
    amount_uusd: int
    deadline_s: int

    def __post_init__(self) -> None:
        if not isinstance(self.channel, bytes) or len(self.channel) != 32:
            raise LocalProtocolError("a channel ID has 32 bytes", code=WireCode.OVERSIZED)
        for value in (self.epoch, self.amount_uusd, self.deadline_s):
            if type(value) is not int:
                raise LocalProtocolError("epoch, amount and deadline are integers", code=WireCode.MALFORMED)
        if not 0 <= self.epoch < MAX_EPOCH:
            raise LocalProtocolError(
                "a channel that was closed 2**24-1 times can't be closed by signature", code=WireCode.OVERSIZED
            )
        if not 0 <= self.amount_uusd <= MAX_AMOUNT_UUSD or not 0 <= self.deadline_s <= MAX_DEADLINE_S:
            raise LocalProtocolError("an amount has 96 bits and a deadline 40", code=WireCode.OVERSIZED)


def close_digest(hub: Domain, consent: CloseConsent) -> bytes:
    """The 32 bytes that the payee signs, in the domain of the hub's vouchers."""
    words = (value.to_bytes(32, "big") for value in (consent.epoch, consent.amount_uusd, consent.deadline_s))
    struct = keccak256(_CLOSE_TYPE + consent.channel + b"".join(words))
    return keccak256(b"\x19\x01" + hub.separator + struct)


def recover_closer(hub: Domain, consent: CloseConsent, signature: bytes) -> Address:
    """The address that signed a consent. The caller compares it with the channel's payee.

    Raises:
        LocalProtocolError: BAD_SIGNATURE for a signature that the hub would refuse, or that belongs to no key.
    """
    return recover_address(close_digest(hub, consent), signature)
