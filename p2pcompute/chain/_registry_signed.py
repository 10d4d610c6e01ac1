"""What is signed for the stake registry: receipts, terms and verdicts as EIP-712 typed data.

A provider that has something at stake signs two more things than its node's Ed25519 key does, with a secp256k1 key
that the registry knows (`set_receipt_key`): a `StrictReceipt` for each chunk that it computed in strict mode, and,
with the requester, `StakeTerms` that name arbiters. Arbiters sign a `Verdict`. All three are in the registry's own
domain; `docs/contracts.md` specifies them, `contracts/StakeRegistry.vy` checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pcompute_protocols.channel._voucher import MAX_AMOUNT_UUSD, keccak256
from p2pcompute_protocols.ids import Address, TaskId
from p2pcompute_protocols.merkle import MerkleTree

from ._abi import DOMAIN_TYPE, MAX_TIME_S
from ._abi import address as _address
from ._abi import bytes32 as _bytes32
from ._abi import word as _word

__all__ = [
    "MAX_ARBITERS",
    "RegistryDomain",
    "StakeTerms",
    "StrictReceipt",
    "Verdict",
    "receipt_key_digest",
    "receipt_leaf",
    "strict_receipt_digest",
    "strict_receipts_tree",
    "terms_digest",
    "verdict_digest",
]

MAX_ARBITERS = 16

_NAMES = keccak256(b"p2pcompute stake") + keccak256(b"1")
_KEY_TYPE = keccak256(b"ReceiptKey(address owner)")
_RECEIPT_TYPE = keccak256(b"StrictReceipt(bytes32 task,uint64 index,bytes32 output)")
_TERMS_TYPE = keccak256(
    b"Terms(bytes32 task,address provider,address requester,uint96 at_risk,uint8 threshold,uint40 expires,"
    b"address[] arbiters)"
)
_VERDICT_TYPE = keccak256(b"Verdict(bytes32 terms,uint96 amount,bytes32 evidence)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryDomain:
    """Where a receipt, terms or a verdict count: one registry on one chain.

    Attributes:
        chain_id: EIP-155 chain ID.
        contract: the registry's address.
        separator: the EIP-712 domain separator that follows, 32 bytes.
    """

    chain_id: int
    contract: Address
    separator: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        value = keccak256(DOMAIN_TYPE + _NAMES + _word(self.chain_id) + _address(self.contract))
        object.__setattr__(self, "separator", value)

    def digest(self, struct_hash: bytes) -> bytes:
        """What gets signed for a struct: keccak256(0x1901 ‖ separator ‖ struct hash)."""
        return keccak256(b"\x19\x01" + self.separator + _bytes32(struct_hash))


@dataclass(frozen=True, slots=True, kw_only=True)
class StrictReceipt:
    """What a provider says of one chunk that it computed in strict mode. It says it once.

    Attributes:
        task: the task.
        index: the chunk, below 2**64.
        output: SHA-256 over the chunk's output bytes, as in the receipt on the wire.
    """

    task: TaskId
    index: int
    output: bytes

    def __post_init__(self) -> None:
        _bytes32(self.task)
        _bytes32(self.output)
        if not 0 <= self.index < 2**64:
            raise ValueError("a chunk's index is an unsigned integer of 64 bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeTerms:
    """What a provider and a requester both sign, so that arbiters can take from the provider's stake.

    Attributes:
        task: the task: SHA-256 of the agreement that both signed.
        provider: the account whose stake it is.
        requester: the account that signs with it, and gets its part of what is taken.
        at_risk_uusd: the most that can be taken.
        threshold: how many arbiters have to agree.
        expires_s: UNIX time up to which a verdict counts. At most `UNSTAKE_DELAY_S` ahead, else a provider could
            leave first.
        arbiters: their accounts, 1 to `MAX_ARBITERS`, ascending, neither of the two parties among them.

    Raises:
        ValueError: a field is out of range.
    """

    task: TaskId
    provider: Address
    requester: Address
    at_risk_uusd: int
    threshold: int
    expires_s: int
    arbiters: tuple[Address, ...]

    def __post_init__(self) -> None:
        _bytes32(self.task)
        for address in (self.provider, self.requester, *self.arbiters):
            _address(address)
        if not 0 <= self.at_risk_uusd <= MAX_AMOUNT_UUSD or not 0 <= self.expires_s <= MAX_TIME_S:
            raise ValueError("an amount has 96 bits and a time 40")
        if not 0 < self.threshold <= len(self.arbiters) <= MAX_ARBITERS:
            raise ValueError(f"there are 1 to {MAX_ARBITERS} arbiters, and the threshold is between 1 and their number")
        if list(self.arbiters) != sorted(set(self.arbiters)):
            raise ValueError("arbiters ascend, and none is named twice")
        if self.provider in self.arbiters or self.requester in self.arbiters:
            raise ValueError("provider and requester can't be arbiters of their own task")

    @property
    def struct_hash(self) -> bytes:
        """The EIP-712 hash: what names these terms in a verdict."""
        return keccak256(
            b"".join(
                (
                    _TERMS_TYPE,
                    self.task,
                    _address(self.provider),
                    _address(self.requester),
                    _word(self.at_risk_uusd),
                    _word(self.threshold),
                    _word(self.expires_s),
                    keccak256(b"".join(map(_address, self.arbiters))),
                )
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What arbiters sign.

    Attributes:
        terms: `StakeTerms.struct_hash`.
        amount_uusd: what is to be taken; the registry takes no more than is at risk, nor than there is.
        evidence: SHA-256 of what they judged by.
    """

    terms: bytes
    amount_uusd: int
    evidence: bytes

    def __post_init__(self) -> None:
        _bytes32(self.terms)
        _bytes32(self.evidence)
        if not 0 < self.amount_uusd <= MAX_AMOUNT_UUSD:
            raise ValueError("a verdict's amount is from 1 to 2**96-1")


def receipt_key_digest(domain: RegistryDomain, owner: Address) -> bytes:
    """What a receipt key signs before it speaks for `owner`."""
    return domain.digest(keccak256(_KEY_TYPE + _address(owner)))


def receipt_leaf(receipt: StrictReceipt) -> bytes:
    """The struct hash of a receipt: a leaf of the tree that a provider anchors."""
    return keccak256(_RECEIPT_TYPE + receipt.task + _word(receipt.index) + receipt.output)


def strict_receipt_digest(domain: RegistryDomain, receipt: StrictReceipt) -> bytes:
    """What a provider's receipt key signs for a chunk."""
    return domain.digest(receipt_leaf(receipt))


def strict_receipts_tree(receipts: Mapping[int, StrictReceipt]) -> MerkleTree:
    """The tree over a task's receipts, in ascending order of chunks; `anchor` takes its root and size.

    It is not the tree of `p2pcompute_protocols.task.receipts_tree`, whose leaves are envelopes.
    """
    return MerkleTree(receipt_leaf(receipts[index]) for index in sorted(receipts))


def terms_digest(domain: RegistryDomain, terms: StakeTerms) -> bytes:
    """What provider and requester sign."""
    return domain.digest(terms.struct_hash)


def verdict_digest(domain: RegistryDomain, verdict: Verdict) -> bytes:
    """What arbiters sign."""
    return domain.digest(keccak256(_VERDICT_TYPE + verdict.terms + _word(verdict.amount_uusd) + verdict.evidence))
