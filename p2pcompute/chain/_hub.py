"""What goes to the hub and the token, and what they answer: calldata and events, as pure functions.

Every argument of these contracts has a fixed size, so the ABI comes down to words of 32 bytes and needs no
encoder. Source: the Solidity ABI specification; `contracts/ChannelHub.vy` is what it talks to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p2pcompute_protocols.channel._voucher import MAX_AMOUNT_UUSD, Voucher, keccak256
from p2pcompute_protocols.ids import Address, ChannelId

from ._abi import address as _address
from ._abi import bytes32 as _bytes32
from ._abi import counted as _counted
from ._abi import selector as _selector
from ._abi import word as _word

__all__ = [
    "CHECKPOINT_TOPIC",
    "CLAIMED_TOPIC",
    "CLOSE_DELAY_S",
    "MAX_BATCH",
    "ChannelState",
    "CheckpointEvent",
    "ClaimRow",
    "ClaimedEvent",
    "FundRow",
    "decode_channel",
    "decode_checkpoints",
    "decode_claims",
    "decode_word",
    "encode_allowance",
    "encode_approve",
    "encode_balance_of",
    "encode_balances",
    "encode_channel",
    "encode_claim",
    "encode_decimals",
    "encode_deposit",
    "encode_finalize",
    "encode_fund",
    "encode_request_close",
    "encode_symbol",
    "encode_transfer",
    "encode_withdraw",
]

MAX_BATCH = 256
"""The most rows in one `fund` or `claim`."""

CLOSE_DELAY_S = 86_400
"""Seconds from a payer's request to close to the earliest refund."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """Where a channel stands on chain.

    Attributes:
        deposit_uusd: the total ever reserved on it, less refunds; vouchers count up to it.
        claimed_uusd: the total ever claimed.
        close_at_s: UNIX time from which anyone may close it, or 0 where the payer has not asked for that.
    """

    deposit_uusd: int
    claimed_uusd: int
    close_at_s: int

    @property
    def open_uusd(self) -> int:
        """What is reserved and not yet claimed."""
        return self.deposit_uusd - self.claimed_uusd


@dataclass(frozen=True, slots=True, kw_only=True)
class FundRow:
    """A channel to open or to top up: its payee, its signer and the amount to add."""

    payee: Address
    signer: Address
    amount_uusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """A voucher to submit.

    Attributes:
        payer: the channel's payer.
        signer: the channel's signer.
        amount_uusd: the voucher's amount.
        memo: the voucher's memo, 32 bytes.
        signature: 65 bytes, r ‖ s ‖ v, as `sign_voucher` makes it.
    """

    payer: Address
    signer: Address
    amount_uusd: int
    memo: bytes
    signature: bytes

    @classmethod
    def of(cls, voucher: Voucher, signature: bytes, *, payer: Address, signer: Address) -> ClaimRow:
        """The row that submits `voucher`."""
        return cls(
            payer=payer,
            signer=signer,
            amount_uusd=voucher.amount_uusd,
            memo=voucher.memo,
            signature=signature,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedEvent:
    """A voucher that counted.

    Attributes:
        channel: the channel's ID.
        payee: who was credited.
        credited_uusd: what this voucher brought.
        claimed_uusd: the channel's watermark afterwards.
        memo: the voucher's memo.
    """

    channel: ChannelId
    payee: Address
    credited_uusd: int
    claimed_uusd: int
    memo: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEvent:
    """What one batch of vouchers came to.

    Attributes:
        payee: whose batch it was.
        credited_uusd: what all its vouchers brought.
        skipped: the rows, from 0, that did not count.
    """

    payee: Address
    credited_uusd: int
    skipped: tuple[int, ...]


def _address_amount(address: bytes, amount: int) -> bytes:
    """A word of an address and an amount of 96 bits, as rows of a batch hold it."""
    if not 0 <= amount <= MAX_AMOUNT_UUSD:
        raise ValueError("the amount of a channel is an integer from 0 to 2**96-1")
    if len(address) != 20:
        raise ValueError("an address has 20 bytes")
    return amount.to_bytes(12, "big") + address


_APPROVE = _selector("approve(address,uint256)")
_TRANSFER = _selector("transfer(address,uint256)")
_BALANCE_OF = _selector("balanceOf(address)")
_DECIMALS = _selector("decimals()")
_SYMBOL = _selector("symbol()")
_ALLOWANCE = _selector("allowance(address,address)")
_DEPOSIT = _selector("deposit(uint256,address)")
_WITHDRAW = _selector("withdraw(uint256,address)")
_FUND = _selector("fund((uint256,address)[])")
_CLAIM = _selector("claim(address,(uint256,address,bytes32,bytes32,bytes32)[])")
_REQUEST_CLOSE = _selector("request_close(address,address)")
_FINALIZE = _selector("finalize(address,address,address)")
_BALANCES = _selector("balances(address)")
_CHANNEL = _selector("channel(bytes32)")
CLAIMED_TOPIC = keccak256(b"Claimed(bytes32,address,uint256,uint256,bytes32)")
CHECKPOINT_TOPIC = keccak256(b"Checkpoint(address,uint256,uint256)")


def _rows(rows: Iterable[bytes]) -> bytes:
    made = list(rows)
    if len(made) > MAX_BATCH:
        raise ValueError(f"at most {MAX_BATCH} rows fit into one batch, {len(made)} were given")
    return _counted(made)


def encode_approve(spender: Address, amount_uusd: int) -> bytes:
    """Calldata for the token: let `spender` (the hub) move up to this much."""
    return _APPROVE + _address(spender) + _word(amount_uusd)


def encode_transfer(to: Address, amount_uusd: int) -> bytes:
    """Calldata for the token: move tokens of the caller."""
    return _TRANSFER + _address(to) + _word(amount_uusd)


def encode_balance_of(owner: Address) -> bytes:
    """Calldata for a read of the token: an account's tokens."""
    return _BALANCE_OF + _address(owner)


def encode_allowance(owner: Address, spender: Address) -> bytes:
    """Calldata for a read of the token: what `spender` may still move."""
    return _ALLOWANCE + _address(owner) + _address(spender)


def encode_decimals() -> bytes:
    """Calldata for a read of the token: how many decimals it has."""
    return _DECIMALS


def encode_symbol() -> bytes:
    """Calldata for a read of the token: what it calls itself."""
    return _SYMBOL


def encode_deposit(amount_uusd: int, beneficiary: Address) -> bytes:
    """Calldata for the hub: turn approved tokens into free balance of `beneficiary`."""
    return _DEPOSIT + _word(amount_uusd) + _address(beneficiary)


def encode_withdraw(amount_uusd: int, to: Address) -> bytes:
    """Calldata for the hub: turn the caller's free balance into tokens of `to`."""
    return _WITHDRAW + _word(amount_uusd) + _address(to)


def encode_fund(rows: Sequence[FundRow]) -> bytes:
    """Calldata for the hub: open or top up channels out of the caller's free balance; at most MAX_BATCH.

    Raises:
        ValueError: too many rows, or a field out of range.
    """
    encoded = (_address_amount(r.payee, r.amount_uusd) + _address(r.signer) for r in rows)
    return _FUND + _word(32) + _rows(encoded)


def _claim_row(row: ClaimRow) -> bytes:
    if len(row.signature) != 65 or row.signature[64] not in (27, 28) or row.signature[32] & 0x80:
        raise ValueError("a voucher's signature has 65 bytes, a low s and a v of 27 or 28")
    # EIP-2098: the recovery bit goes where a low s leaves a bit free.
    s_and_parity = bytes((row.signature[32] | (row.signature[64] - 27) << 7,)) + row.signature[33:64]
    return b"".join(
        (
            _address_amount(row.payer, row.amount_uusd),
            _address(row.signer),
            _bytes32(row.memo),
            row.signature[:32],
            s_and_parity,
        )
    )


def encode_claim(payee: Address, rows: Sequence[ClaimRow]) -> bytes:
    """Calldata for the hub: submit the newest vouchers of channels of `payee`; at most MAX_BATCH.

    Raises:
        ValueError: too many rows, or a field out of range.
    """
    return _CLAIM + _address(payee) + _word(64) + _rows(map(_claim_row, rows))


def encode_request_close(payee: Address, signer: Address) -> bytes:
    """Calldata for the hub: as payer, ask for what is left on a channel."""
    return _REQUEST_CLOSE + _address(payee) + _address(signer)


def encode_finalize(payer: Address, payee: Address, signer: Address) -> bytes:
    """Calldata for the hub: close a channel (the payee at any time, anyone after the delay)."""
    return _FINALIZE + _address(payer) + _address(payee) + _address(signer)


def encode_balances(owner: Address) -> bytes:
    """Calldata for a read of the hub: an account's free balance."""
    return _BALANCES + _address(owner)


def encode_channel(channel: ChannelId) -> bytes:
    """Calldata for a read of the hub: where a channel stands."""
    return _CHANNEL + _bytes32(channel)


def decode_word(output: bytes) -> int:
    """The one unsigned integer that a read gave.

    Raises:
        ValueError: it gave something else.
    """
    if len(output) != 32:
        raise ValueError(f"expected 32 bytes, got {len(output)}: is a hub or token deployed at this address?")
    return int.from_bytes(output, "big")


def decode_channel(output: bytes) -> ChannelState:
    """What a read of `channel` gave.

    Raises:
        ValueError: it gave something else.
    """
    if len(output) != 96:
        raise ValueError(f"expected 96 bytes, got {len(output)}: is a hub deployed at this address?")
    deposit, claimed, close_at = (decode_word(output[i : i + 32]) for i in (0, 32, 64))
    return ChannelState(deposit_uusd=deposit, claimed_uusd=claimed, close_at_s=close_at)


def _logs(receipt: Mapping[str, Any], hub: Address, topic: bytes) -> Iterable[tuple[list[bytes], list[bytes]]]:
    for log in receipt["logs"]:
        topics = [bytes.fromhex(t[2:]) for t in log["topics"]]
        if bytes.fromhex(log["address"][2:]) != hub or not topics or topics[0] != topic:
            continue
        data = bytes.fromhex(log["data"][2:])
        yield topics, [data[i : i + 32] for i in range(0, len(data), 32)]


def decode_claims(receipt: Mapping[str, Any], hub: Address) -> list[ClaimedEvent]:
    """The vouchers that counted in one transaction.

    Args:
        receipt: the receipt as JSON-RPC gives it, or any mapping with its `logs`.
        hub: only events of this contract count.
    """
    return [
        ClaimedEvent(
            channel=ChannelId(topics[1]),
            payee=Address(topics[2][12:]),
            credited_uusd=int.from_bytes(words[0], "big"),
            claimed_uusd=int.from_bytes(words[1], "big"),
            memo=words[2],
        )
        for topics, words in _logs(receipt, hub, CLAIMED_TOPIC)
    ]


def decode_checkpoints(receipt: Mapping[str, Any], hub: Address) -> list[CheckpointEvent]:
    """The batches that one transaction submitted (one, where it calls `claim` itself), and what they skipped."""
    return [
        CheckpointEvent(
            payee=Address(topics[1][12:]),
            credited_uusd=int.from_bytes(words[0], "big"),
            skipped=_bits(int.from_bytes(words[1], "big")),
        )
        for topics, words in _logs(receipt, hub, CHECKPOINT_TOPIC)
    ]


def _bits(mask: int) -> tuple[int, ...]:
    return tuple(i for i in range(MAX_BATCH) if mask >> i & 1)
