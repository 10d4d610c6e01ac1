"""What a payee's refusal means to whoever pays, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from p2pcompute.errors import VoucherRefused
from p2pcompute_protocols.channel import VoucherRefusal
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.money import usd

__all__ = ["REASONS", "refused_error"]

_OURS: Final = "this is a fault of this program or of what carries its messages: please report it"

REASONS: Final[Mapping[WireCode, str]] = MappingProxyType(
    {
        WireCode.CHAIN_MISMATCH: "it is paid on another chain, at another hub or in another token; name the one that "
        "it advertises, or deal with another provider",
        WireCode.WRONG_PEER: "it does not know the account, or this node, that the channel is of; agree with it anew",
        WireCode.EXPIRED: "the signature that ties the wallet to this node is too old, or one of the two clocks is "
        "wrong; set the clock and start this node again",
        WireCode.BAD_SIGNATURE: "the voucher, or what ties the wallet to this node, is not signed by the channel's "
        "key; start this node with the wallet that opened the channel",
        WireCode.BAD_VOUCHER: "it holds a voucher that is as high already; the next payment asks it for that one and "
        "goes on from there",
        WireCode.UNFUNDED: "the channel holds too little that counts yet, or is about to close; wait for blocks, fund "
        "it again, or take back the request to close by new work",
        WireCode.CLOSING: "it has consented to close the channel and takes no more on it; the next payment after the "
        "closing opens it anew",
        WireCode.PAYMENT_REQUIRED: "it closes no channel on which work goes on or is not paid; let the work end, pay "
        "for it, and ask again",
        WireCode.OVERSIZED: "the amount, or a message, is above what it keeps account of; close the channel and open "
        "another one, of another account",
        WireCode.INTERNAL: "it can't reach its chain or its disk is full; the voucher is kept, so try again later",
        WireCode.STALLED: "it has waited too long for this node; the next payment opens a new stream",
        WireCode.MALFORMED: _OURS,
        WireCode.OUT_OF_ORDER: _OURS,
        WireCode.UNSUPPORTED: "it speaks another version of the channel protocol, or has no key at hand to consent to "
        "a closing; bring both to the same release, or ask the hub to close the channel",
    }
)
"""For each code that a payee sends over a channel stream: why, and what its payer can do."""


def refused_error(refusal: VoucherRefusal) -> VoucherRefused:
    """The error for a refusal that no further try can mend.

    It holds the code's name, the payee's own words, what the payee holds, and what to do next.
    """
    try:
        code = WireCode(refusal.code)
    except ValueError:
        name, advice = (
            str(refusal.code),
            "this release does not know that reason; deal with another provider",
        )
    else:
        name = code.name
        advice = REASONS.get(code, "that is no reason to refuse a voucher; deal with another provider")
    return VoucherRefused(
        f"the provider refused the voucher: {name}, {refusal.detail or 'no reason given'} (it holds "
        f"{usd(refusal.best_uusd)}); {advice}"
    )
