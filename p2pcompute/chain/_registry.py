"""What goes to the stake registry, and what it answers: calldata and events, as pure functions.

Source: the Solidity ABI specification; `contracts/StakeRegistry.vy` is what it talks to, `_registry_signed` what is
signed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pcompute_protocols.channel._voucher import keccak256
from p2pcompute_protocols.ids import Address, TaskId
from p2pcompute_protocols.merkle import InclusionProof

from ._abi import address as _address
from ._abi import bytes32 as _bytes32
from ._abi import counted as _counted
from ._abi import selector as _selector
from ._abi import word as _word
from ._hub_signed import compact
from ._registry_signed import StakeTerms, StrictReceipt, Verdict

__all__ = [
    "CUT_PARTS",
    "CUT_PAUSE_S",
    "DEFAULT_MIN_STAKE_UUSD",
    "DEFAULT_STAKE_PER_CORE_UUSD",
    "SLASHED_TOPIC",
    "UNSTAKE_DELAY_S",
    "SlashedEvent",
    "StakeState",
    "decode_slashes",
    "decode_stake",
    "encode_active",
    "encode_allow",
    "encode_allowance_left",
    "encode_anchor",
    "encode_burned",
    "encode_cap",
    "encode_credits",
    "encode_declare",
    "encode_request_unstake",
    "encode_set_receipt_key",
    "encode_slash_anchored",
    "encode_slash_by_verdict",
    "encode_slash_equivocation",
    "encode_speaks_for",
    "encode_stake",
    "encode_stake_account",
    "encode_stake_withdraw",
    "encode_unstake",
    "encode_weight",
]

DEFAULT_MIN_STAKE_UUSD = 100_000_000
"""The least stake, where whoever deploys a registry has no other in mind: 100 units of a 6-decimal token."""

DEFAULT_STAKE_PER_CORE_UUSD = 10_000_000
"""What a declared reference core lifts a provider's cap by, likewise."""

UNSTAKE_DELAY_S = 1_209_600
"""Seconds from a request to unstake to the money; as long does a retired receipt key speak for its owner."""

CUT_PAUSE_S = 86_400
"""Seconds between two cuts for equivocation of one provider."""

CUT_PARTS = 20
"""A cut for equivocation is one part in so many of the stake, or of the minimum stake where that is less."""

SLASHED_TOPIC = keccak256(b"Slashed(address,bytes32,address,uint256,uint256)")


_SIGNATURE_T = "(bytes32,bytes32)"
_TERMS_T = "(bytes32,address,address,uint256,uint256,uint256,address[])"
_STAKE = _selector("stake(uint256)")
_DECLARE = _selector("declare(uint256)")
_REQUEST_UNSTAKE = _selector("request_unstake(uint256)")
_UNSTAKE = _selector("unstake()")
_WITHDRAW = _selector("withdraw(uint256,address)")
_SET_RECEIPT_KEY = _selector(f"set_receipt_key(address,{_SIGNATURE_T})")
_ALLOW = _selector("allow(address,uint256)")
_ALLOWANCE = _selector("allowance(address)")
_ANCHOR = _selector("anchor(bytes32,bytes32,uint256)")
_SLASH_EQUIVOCATION = _selector(f"slash_equivocation(address,bytes32,uint256,bytes32[2],{_SIGNATURE_T}[2])")
_SLASH_ANCHORED = _selector(
    f"slash_anchored(address,bytes32,uint256,bytes32[2],{_SIGNATURE_T},bytes32,uint256,uint256,bytes32[])"
)
_SLASH_BY_VERDICT = _selector(
    f"slash_by_verdict({_TERMS_T},{_SIGNATURE_T},{_SIGNATURE_T},uint256,bytes32,(uint256,bytes32,bytes32)[])"
)
_ACTIVE = _selector("active(address)")
_ACCOUNT = _selector("account(address)")
_WEIGHT = _selector("weight(address)")
_CAP = _selector("cap(address)")
_CREDITS = _selector("credits(address)")
_BURNED = _selector("burned()")
_SPEAKS_FOR = _selector("speaks_for(address,address)")


# Calldata


def encode_declare(cores: int) -> bytes:
    """How much machine the caller offers, in reference cores: its cap follows."""
    return _DECLARE + _word(cores)


def encode_stake(amount_uusd: int) -> bytes:
    """Add approved tokens to the caller's stake."""
    return _STAKE + _word(amount_uusd)


def encode_request_unstake(amount_uusd: int) -> bytes:
    """Ask for stake back; all of it, or so much that the minimum stays."""
    return _REQUEST_UNSTAKE + _word(amount_uusd)


def encode_unstake() -> bytes:
    """When the delay is over: turn what was asked for into credit."""
    return _UNSTAKE


def encode_stake_withdraw(amount_uusd: int, to: Address) -> bytes:
    """Turn the caller's credit into tokens of `to`."""
    return _WITHDRAW + _word(amount_uusd) + _address(to)


def encode_set_receipt_key(key: Address, signature: bytes | None) -> bytes:
    """Name the key that signs receipts and terms for the caller, with its signature over `receipt_key_digest`.

    A zero key, without a signature, only retires the one before.
    """
    if (signature is None) == any(key):
        raise ValueError("a key comes with its signature, and none without")
    return _SET_RECEIPT_KEY + _address(key) + (bytes(64) if signature is None else compact(signature))


def encode_allow(key: Address, amount_uusd: int) -> bytes:
    """As owner of a receipt key, set what verdicts may take in all on terms that it signs; it can't be lowered."""
    return _ALLOW + _address(key) + _word(amount_uusd)


def encode_anchor(task: TaskId, root: bytes, count: int) -> bytes:
    """As provider, fix the root over a task's receipts, for good."""
    return _ANCHOR + _bytes32(task) + _bytes32(root) + _word(count)


def _conflict(first: StrictReceipt, second: StrictReceipt) -> bytes:
    if (first.task, first.index) != (second.task, second.index) or first.output == second.output:
        raise ValueError("the two receipts are not of one chunk with different outputs: they prove nothing")
    return first.task + _word(first.index) + first.output + second.output


def encode_slash_equivocation(
    owner: Address, first: tuple[StrictReceipt, bytes], second: tuple[StrictReceipt, bytes]
) -> bytes:
    """Show two signed receipts of one chunk with different outputs.

    Raises:
        ValueError: they are not that.
    """
    signatures = compact(first[1]) + compact(second[1])
    return _SLASH_EQUIVOCATION + _address(owner) + _conflict(first[0], second[0]) + signatures


def encode_slash_anchored(
    owner: Address, anchored: StrictReceipt, proof: InclusionProof, root: bytes, other: tuple[StrictReceipt, bytes]
) -> bytes:
    """Show a signed receipt that differs from one that its provider has anchored.

    Raises:
        ValueError: they are not of one chunk with different outputs.
    """
    head = _address(owner) + _conflict(anchored, other[0]) + compact(other[1])
    tree = _bytes32(root) + _word(proof.leaves) + _word(proof.index)
    offset = len(head) + len(tree) + 32
    path = _counted(map(_bytes32, proof.path))
    return _SLASH_ANCHORED + head + tree + _word(offset) + path


def encode_slash_by_verdict(
    terms: StakeTerms,
    provider_signature: bytes,
    requester_signature: bytes,
    verdict: Verdict,
    votes: Mapping[int, bytes],
) -> bytes:
    """Carry out a verdict.

    Args:
        terms: what both signed.
        provider_signature: over `terms_digest`, by a key that speaks for the provider.
        requester_signature: likewise, by the requester.
        verdict: what the arbiters signed.
        votes: their signatures, by place in `terms.arbiters`.

    Raises:
        ValueError: the verdict is of other terms, or too few have signed it.
    """
    if verdict.terms != terms.struct_hash:
        raise ValueError("the verdict is of other terms")
    if len(votes) < terms.threshold or not all(0 <= place < len(terms.arbiters) for place in votes):
        raise ValueError(f"{terms.threshold} of the arbiters have to sign")
    fields = (
        terms.task,
        _address(terms.provider),
        _address(terms.requester),
        _word(terms.at_risk_uusd),
        _word(terms.threshold),
        _word(terms.expires_s),
        _word(7 * 32),
        _counted(map(_address, terms.arbiters)),
    )
    tail = b"".join(fields)
    rows = _counted(_word(place) + compact(votes[place]) for place in sorted(votes))
    head = compact(provider_signature) + compact(requester_signature) + _word(verdict.amount_uusd) + verdict.evidence
    at = len(head) + 2 * 32  # the two offsets come on top
    return _SLASH_BY_VERDICT + _word(at) + head + _word(at + len(tail)) + tail + rows


def encode_active(owner: Address) -> bytes:
    """Read: has an account the minimum at stake?"""
    return _ACTIVE + _address(owner)


def encode_stake_account(owner: Address) -> bytes:
    """Read: where an account's stake stands; see `decode_stake`."""
    return _ACCOUNT + _address(owner)


def encode_weight(owner: Address) -> bytes:
    """Read: what an account's stake counts for."""
    return _WEIGHT + _address(owner)


def encode_cap(owner: Address) -> bytes:
    """Read: the most that an account may have at stake."""
    return _CAP + _address(owner)


def encode_credits(owner: Address) -> bytes:
    """Read: what an account can withdraw."""
    return _CREDITS + _address(owner)


def encode_burned() -> bytes:
    """Read: what was taken and paid to nobody."""
    return _BURNED


def encode_allowance_left(key: Address) -> bytes:
    """Read: what verdicts may still take on terms that a receipt key has signed."""
    return _ALLOWANCE + _address(key)


def encode_speaks_for(owner: Address, key: Address) -> bytes:
    """Read: does what `key` signs now count as said by `owner`?"""
    return _SPEAKS_FOR + _address(owner) + _address(key)


# Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeState:
    """Where an account's stake stands.

    Attributes:
        stake_uusd: all that it can lose.
        leaving_uusd: how much of it is on its way out, and counts for nothing else.
        leave_at_s: UNIX time from which that can be taken, or 0.
    """

    stake_uusd: int
    leaving_uusd: int
    leave_at_s: int


def decode_stake(output: bytes) -> StakeState:
    """What a read of an account's stake gave.

    Raises:
        ValueError: it gave something else.
    """
    if len(output) != 96:
        raise ValueError(f"expected 96 bytes, got {len(output)}: is a stake registry deployed at this address?")
    stake, leaving, leave_at = (int.from_bytes(output[i : i + 32], "big") for i in (0, 32, 64))
    return StakeState(stake_uusd=stake, leaving_uusd=leaving, leave_at_s=leave_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlashedEvent:
    """Stake that was taken.

    Attributes:
        owner: whose.
        proof: the task, for equivocation; the terms' hash, for a verdict.
        beneficiary: who was credited.
        taken_uusd: what the owner lost.
        paid_uusd: what of it the beneficiary was credited; the rest is burned.
    """

    owner: Address
    proof: bytes
    beneficiary: Address
    taken_uusd: int
    paid_uusd: int


def decode_slashes(receipt: Mapping[str, Any], registry: Address) -> list[SlashedEvent]:
    """What one transaction took; only events of this registry count."""
    found: list[SlashedEvent] = []
    for log in receipt["logs"]:
        topics = [bytes.fromhex(topic[2:]) for topic in log["topics"]]
        if bytes.fromhex(log["address"][2:]) != registry or not topics or topics[0] != SLASHED_TOPIC:
            continue
        data = bytes.fromhex(log["data"][2:])
        found.append(
            SlashedEvent(
                owner=Address(topics[1][12:]),
                proof=topics[2],
                beneficiary=Address(topics[3][12:]),
                taken_uusd=int.from_bytes(data[:32], "big"),
                paid_uusd=int.from_bytes(data[32:64], "big"),
            )
        )
    return found
