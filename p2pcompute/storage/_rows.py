"""What the ledger gives back: copies of rows, with the fields of the query in its order, so that `_make` reads one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.money import PUSD_PER_UUSD

__all__ = [
    "AgreementRow",
    "AgreementState",
    "ChannelInRow",
    "ChannelOutRow",
    "ConsentRow",
    "OutboxRow",
    "PeerRow",
    "ReceiptRow",
    "RoleName",
]

RoleName: TypeAlias = Literal["requester", "provider"]
AgreementState: TypeAlias = Literal["open", "done", "failed"]


def ceil_uusd(pusd: int) -> int:
    """Pico-USD as micro-USD, rounded up: the one place where money is rounded."""
    return -(-pusd // PUSD_PER_UUSD)


class AgreementRow(NamedTuple):
    """An agreement. `total_pusd` is what was receipted (provider) or accepted (requester) under it."""

    task: TaskId
    role: RoleName
    peer: PeerId
    channel: ChannelId
    raw: bytes
    price_pusd: int
    ceiling_uusd: int
    total_pusd: int
    state: AgreementState
    reason: str
    created_ms: int
    deadline_ms: int

    @property
    def total_uusd(self) -> int:
        """`total_pusd`, rounded up."""
        return ceil_uusd(self.total_pusd)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptRow:
    """A receipt that we issued or hold; `verdict` is "" for our own, else "accepted" or "rejected"."""

    task: TaskId
    index: int
    code: int
    digest: bytes
    units: int
    pusd: int
    envelope: bytes
    verdict: str = ""
    sampled: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedReceipt:
    """A receipt and its agreement: what this node was in it, with whom, and when it was recorded (UNIX ms)."""

    receipt: ReceiptRow
    role: RoleName
    peer: PeerId
    agreed_ms: int


class ChannelInRow(NamedTuple):
    """A channel on which we are paid.

    Attributes:
        channel: its ID.
        payer: the account that funds it.
        signer: the key whose vouchers count.
        peer: the node that pays over it, as far as was proven last.
        owed_pusd: all work receipted on it.
        best_uusd: amount of the best voucher held, 0 where there is none; `memo` and `signature` go with it. It may be
            above the deposit.
        deposit_uusd: the total reserved on chain, when it was read last.
        claimed_uusd: the total claimed on chain, likewise.
        close_at_s: UNIX time from which the payer can take back what is left; 0 where it did not ask for that.
        rooted_leaves: how many of our receipts the memo of the best voucher is the root of; 0 where it is not
            reproduced from them.
        is_closing: a consent of ours to close it is out, or one that is over and was not taken off yet.
    """

    channel: ChannelId
    payer: Address
    signer: Address
    peer: PeerId
    owed_pusd: int
    best_uusd: int
    memo: bytes | None
    signature: bytes | None
    deposit_uusd: int
    claimed_uusd: int
    close_at_s: int
    rooted_leaves: int
    is_closing: bool

    @property
    def paid_uusd(self) -> int:
        """What the payer has paid: by voucher as far as the deposit covers it, or on chain where that is more."""
        return max(min(self.best_uusd, self.deposit_uusd), self.claimed_uusd)

    @property
    def held_uusd(self) -> int:
        """What a new voucher has to be above: the best one, covered or not, or what was claimed where that is more."""
        return max(self.best_uusd, self.claimed_uusd)

    @property
    def by_voucher_uusd(self) -> int:
        """How much of the best voucher counts as paid."""
        return min(self.best_uusd, self.paid_uusd)

    @property
    def owed_uusd(self) -> int:
        """`owed_pusd`, rounded up."""
        return ceil_uusd(self.owed_pusd)

    @property
    def unpaid_pusd(self) -> int:
        """Work receipted and not paid, never below 0."""
        return max(0, self.owed_pusd - self.paid_uusd * PUSD_PER_UUSD)

    @property
    def unclaimed_uusd(self) -> int:
        """What the best voucher would bring on chain."""
        return max(0, min(self.best_uusd, self.deposit_uusd) - self.claimed_uusd)


class ChannelOutRow(NamedTuple):
    """A channel on which we pay.

    Attributes:
        channel: its ID.
        payee: the account that is paid.
        peer: the provider's node.
        accepted_pusd: all work accepted on it.
        voucher_uusd: amount of the highest voucher ever signed; `memo` and `signature` go with it.
        acked_uusd: amount of the highest voucher that the payee said it holds.
        deposit_uusd: the total reserved on chain, when it was read last.
        claimed_uusd: the total claimed on chain, likewise.
        reserved_pusd: what open agreements on it can still cost.
        signed_leaves: how many accepted receipts the highest voucher's memo is the root of.
        told_leaves: of how many of them the payee has acknowledged to know.
    """

    channel: ChannelId
    payee: Address
    peer: PeerId
    accepted_pusd: int
    voucher_uusd: int
    memo: bytes | None
    signature: bytes | None
    acked_uusd: int
    deposit_uusd: int
    claimed_uusd: int
    reserved_pusd: int
    signed_leaves: int
    told_leaves: int

    @property
    def accepted_uusd(self) -> int:
        """`accepted_pusd`, rounded up: what the next voucher will say."""
        return ceil_uusd(self.accepted_pusd)


class ConsentRow(NamedTuple):
    """Our consent that a channel may be closed, as payee; see `p2pcompute_protocols.channel.CloseConsent`."""

    channel: ChannelId
    epoch: int
    amount_uusd: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """A transaction of ours. `rows` are the channels that it claims or funds, with the amounts."""

    id: int
    sender: Address
    nonce: int
    kind: str
    hash: bytes
    raw: bytes
    state: str
    detail: str
    rows: tuple[tuple[ChannelId, int], ...]


class PeerRow(NamedTuple):
    """What we remember of a peer: what it paid us, what it earned from us, and how often it failed."""

    peer: PeerId
    first_seen_ms: int
    paid_uusd: int
    earned_uusd: int
    failures: int
    banned: str | None
