"""What payments need of the rest: a ledger, a hub, and streams to peers.

`p2pcompute.storage.Ledger` is such a ledger, `ChainHub` and `ModelHub` are such hubs, and every overlay stream is such
a stream. Payments import none of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, runtime_checkable

from p2pcompute.errors import ChainError, PaymentError
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.task import ReceiptPayload

__all__ = [
    "MAX_BATCH",
    "Approve",
    "ChannelIn",
    "ChannelOnChain",
    "ChannelOutView",
    "Claim",
    "ClaimRow",
    "CloseSigned",
    "ConfirmingEpochs",
    "ConfirmingHub",
    "ConsentOut",
    "ContractCall",
    "CoveredReceipts",
    "CreditExhausted",
    "Deposit",
    "Dial",
    "FeeRaiser",
    "Finalize",
    "Fund",
    "FundRow",
    "GasMeter",
    "GasQuote",
    "Hub",
    "HubCall",
    "Outcome",
    "PayeeLedger",
    "PayerLedger",
    "PeerHistory",
    "QueuedTx",
    "RequestClose",
    "SettlementPending",
    "Stream",
    "TxLedger",
    "Withdraw",
    "payee_epoch",
    "payee_view",
    "read_in",
]

MAX_BATCH: Final = 256
"""The most rows in one `Fund` or `Claim`; the hub's own bound."""


class CreditExhausted(PaymentError):
    """A stranger's free credit for this hour is used up; it can come back next hour, or after it has paid."""


class SettlementPending(ChainError):
    """A transaction is on disk but was not mined in time. It is sent again by the next call or start."""


# Streams


class Stream(Protocol):
    """A byte stream to a peer whose identity is proven; overlay streams are such. `blame` holds against the peer what
    it did wrong."""

    @property
    def peer_id(self) -> PeerId: ...
    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int = ...) -> bytes: ...
    async def aclose(self) -> None: ...
    def blame(self, exc: ProtocolError) -> None: ...


Dial: TypeAlias = Callable[[PeerId], Awaitable[Stream]]
"""Opens a stream of the channel protocol to a peer."""


# The hub


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOnChain:
    """Where a channel stands: totals over its life, and the UNIX time from which it can be closed (0: not asked)."""

    deposit_uusd: int
    claimed_uusd: int
    close_at_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Approve:
    """Let the hub take this much of the account's tokens."""

    amount_uusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposit:
    """Turn approved tokens into free balance of the account."""

    amount_uusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FundRow:
    """A channel to open or top up by `amount_uusd`."""

    payee: Address
    signer: Address
    amount_uusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fund:
    """Move free balance of the account into channels."""

    rows: tuple[FundRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """A voucher to submit."""

    payer: Address
    signer: Address
    amount_uusd: int
    memo: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Submit the newest vouchers of channels of `payee`."""

    payee: Address
    rows: tuple[ClaimRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Turn free balance of the account into tokens of `to`."""

    amount_uusd: int
    to: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClose:
    """As payer, ask for what is left on a channel."""

    payee: Address
    signer: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalize:
    """Close a channel: as its payee, or as anyone a day after its payer has asked for it."""

    payer: Address
    payee: Address
    signer: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSigned:
    """Close a channel at once, as anyone with the payee's signature (`p2pcompute_protocols.channel.CloseConsent`)."""

    payer: Address
    payee: Address
    signer: Address
    epoch: int
    amount_uusd: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractCall:
    """Call another contract than the hub with the account's money and nonces: the token, or the stake registry."""

    to: Address
    data: bytes


HubCall: TypeAlias = Approve | Deposit | Fund | Claim | Withdraw | RequestClose | Finalize | CloseSigned | ContractCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A mined transaction: whether it did anything, and the watermarks (total micro-USD) that it set.

    `final` is False while its block is so new that the chain may still take it back.
    """

    ok: bool
    claimed: tuple[tuple[ChannelId, int], ...] = ()
    final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GasQuote:
    """What transactions cost now, in wei for a unit of gas, and what they have usually cost of late."""

    fee_wei: int
    usual_wei: int


class Hub(Protocol):
    """One hub, seen from one account that can sign transactions. Reads and sends raise `ChainError`s."""

    @property
    def terms(self) -> ChainTerms:
        """Chain, hub and token."""
        ...

    @property
    def account(self) -> Address:
        """Whose money and nonces these are."""
        ...

    async def channel(self, channel: ChannelId) -> ChannelOnChain:
        """Where a channel stands; zeros for one that was never funded."""
        ...

    async def epoch(self, channel: ChannelId) -> int:
        """How often a channel was closed."""
        ...

    async def free_uusd(self) -> int:
        """The account's free balance at the hub."""
        ...

    async def tokens_uusd(self) -> int:
        """The account's tokens outside of it."""
        ...

    async def allowance_uusd(self) -> int:
        """How many of those the hub may take."""
        ...

    async def nonce(self) -> int:
        """The account's count of mined transactions."""
        ...

    async def signing(self, call: HubCall) -> Callable[[int], tuple[bytes, bytes]]:
        """Get fees and gas for `call`; gives a function from nonce to (hash, signed bytes) that does no I/O."""
        ...

    async def send(self, raw: bytes) -> None:
        """Broadcast; the same bytes again are harmless. `TransactionFailed`: it can never be mined."""
        ...

    async def outcome(self, tx_hash: bytes) -> Outcome | None:
        """What became of a transaction; None while it is not mined."""
        ...


@runtime_checkable
class ConfirmingHub(Protocol):
    """A `Hub` on a chain that can take blocks back."""

    async def confirmed_channel(self, channel: ChannelId) -> ChannelOnChain:
        """Where a channel stands for its payee: of a deposit only what the chain hardly takes back any more."""
        ...


async def payee_view(hub: Hub, channel: ChannelId) -> ChannelOnChain:
    """Where a channel stands for its payee. The payer reads `Hub.channel`: it must not fund twice what waits."""
    return await (hub.confirmed_channel(channel) if isinstance(hub, ConfirmingHub) else hub.channel(channel))


async def read_in(ledger: PayeeLedger, hub: Hub, channel: ChannelId) -> ChannelIn:
    """Have the ledger know of an incoming channel what `payee_view` gives.

    An answer that was under way while a channel was seen to be closed may be older than that, and is asked for again.
    """
    while True:
        closings = ledger.closings
        state = await payee_view(hub, channel)
        if ledger.closings == closings:
            return await ledger.set_chain_in(
                channel,
                deposit_uusd=state.deposit_uusd,
                claimed_uusd=state.claimed_uusd,
                close_at_s=state.close_at_s,
            )


@runtime_checkable
class ConfirmingEpochs(Protocol):
    """A `Hub` on a chain that can take a closing back."""

    async def confirmed_epoch(self, channel: ChannelId) -> int:
        """How often a channel was closed in blocks that the chain hardly takes back any more."""
        ...


async def payee_epoch(hub: Hub, channel: ChannelId) -> int:
    """How often a channel was closed for good, as far as its payee relies on it."""
    return await (hub.confirmed_epoch(channel) if isinstance(hub, ConfirmingEpochs) else hub.epoch(channel))


@runtime_checkable
class FeeRaiser(Protocol):
    """A `Hub` that can sign a transaction again, for the same nonce and with the same effect, at a higher fee."""

    async def raised(self, raw: bytes) -> tuple[bytes, bytes] | None:
        """(hash, signed bytes) of what outbids `raw`; None where `raw` pays enough to be mined as fees are now."""
        ...


@runtime_checkable
class GasMeter(Protocol):
    """A `Hub` on a chain whose gas costs something."""

    async def gas_quote(self) -> GasQuote | None:
        """What gas costs; None where it costs nothing."""
        ...


# The ledger


class ChannelIn(Protocol):
    """A channel on which we are paid; see `p2pcompute.storage.ChannelInRow`."""

    @property
    def channel(self) -> ChannelId: ...
    @property
    def payer(self) -> Address: ...
    @property
    def signer(self) -> Address: ...
    @property
    def peer(self) -> PeerId: ...
    @property
    def best_uusd(self) -> int: ...
    @property
    def memo(self) -> bytes | None: ...
    @property
    def rooted_leaves(self) -> int: ...
    @property
    def signature(self) -> bytes | None: ...
    @property
    def deposit_uusd(self) -> int: ...
    @property
    def claimed_uusd(self) -> int: ...
    @property
    def close_at_s(self) -> int: ...
    @property
    def is_closing(self) -> bool: ...
    @property
    def paid_uusd(self) -> int: ...
    @property
    def held_uusd(self) -> int: ...
    @property
    def owed_uusd(self) -> int: ...
    @property
    def unpaid_pusd(self) -> int: ...
    @property
    def unclaimed_uusd(self) -> int: ...


class ConsentOut(Protocol):
    """Our consent to close a channel on which we are paid; see `p2pcompute.storage.ConsentRow`."""

    @property
    def channel(self) -> ChannelId: ...
    @property
    def epoch(self) -> int: ...
    @property
    def amount_uusd(self) -> int: ...
    @property
    def deadline_s(self) -> int: ...
    @property
    def signature(self) -> bytes: ...


class CoveredReceipts(Protocol):
    """Receipts that a voucher's root has come to cover; see `p2pcompute.storage.Covered`."""

    @property
    def first(self) -> int: ...
    @property
    def receipts(self) -> tuple[tuple[TaskId, int], ...]: ...


class ChannelOutView(Protocol):
    """A channel on which we pay; see `p2pcompute.storage.ChannelOutRow`."""

    @property
    def channel(self) -> ChannelId: ...
    @property
    def payee(self) -> Address: ...
    @property
    def peer(self) -> PeerId: ...
    @property
    def accepted_uusd(self) -> int: ...
    @property
    def accepted_pusd(self) -> int: ...
    @property
    def reserved_pusd(self) -> int: ...
    @property
    def voucher_uusd(self) -> int: ...
    @property
    def memo(self) -> bytes | None: ...
    @property
    def signature(self) -> bytes | None: ...
    @property
    def acked_uusd(self) -> int: ...
    @property
    def signed_leaves(self) -> int: ...
    @property
    def told_leaves(self) -> int: ...
    @property
    def deposit_uusd(self) -> int: ...
    @property
    def claimed_uusd(self) -> int: ...


class QueuedTx(Protocol):
    """A signed transaction on disk."""

    @property
    def id(self) -> int: ...
    @property
    def nonce(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def hash(self) -> bytes: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def state(self) -> str: ...
    @property
    def rows(self) -> Sequence[tuple[ChannelId, int]]: ...


class PeerHistory(Protocol):
    """What is remembered of a peer."""

    @property
    def paid_uusd(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def banned(self) -> str | None: ...


class TxLedger(Protocol):
    """The outbox on disk."""

    async def queue_tx(
        self,
        sender: Address,
        *,
        kind: str,
        chain_nonce: int,
        sign: Callable[[int], tuple[bytes, bytes]],
        rows: Sequence[tuple[ChannelId, int]] = (),
    ) -> QueuedTx: ...
    async def unsettled(self, sender: Address) -> Sequence[QueuedTx]: ...
    async def replace_tx(self, number: int, *, tx_hash: bytes, raw: bytes) -> QueuedTx: ...
    async def replaced_hashes(self, number: int) -> Sequence[bytes]: ...
    async def tx_sent(self, number: int) -> None: ...
    async def tx_settled(
        self, number: int, *, ok: bool, detail: str = "", claimed: Sequence[tuple[ChannelId, int]] = ()
    ) -> None: ...


class PayerLedger(Protocol):
    """What a payer keeps on disk."""

    async def open_channel_out(self, channel: ChannelId, *, payee: Address, peer: PeerId) -> ChannelOutView: ...
    async def channel_out(self, channel: ChannelId) -> ChannelOutView | None: ...
    async def set_chain_out(self, channel: ChannelId, *, deposit_uusd: int, claimed_uusd: int) -> ChannelOutView: ...
    async def accept_work(
        self, task: TaskId, receipts: Sequence[tuple[ReceiptPayload, bytes]], *, sampled: int | Sequence[int]
    ) -> int: ...
    async def raise_voucher(
        self, channel: ChannelId, *, sign: Callable[[int, bytes], tuple[bytes, bytes]]
    ) -> ChannelOutView: ...
    async def covered_by_voucher(
        self, channel: ChannelId, *, told_leaves: int, signed_leaves: int
    ) -> CoveredReceipts | None: ...
    async def adopt_voucher(
        self, channel: ChannelId, *, amount_uusd: int, memo: bytes, signature: bytes
    ) -> ChannelOutView: ...
    async def ack_voucher(self, channel: ChannelId, *, amount_uusd: int) -> ChannelOutView: ...


class PayeeLedger(Protocol):
    """What a payee keeps on disk."""

    @property
    def closings(self) -> int: ...
    async def channel_in(self, channel: ChannelId) -> ChannelIn | None: ...
    async def channels_in(self) -> Sequence[ChannelIn]: ...
    async def open_channel_in(
        self, channel: ChannelId, *, payer: Address, signer: Address, peer: PeerId
    ) -> ChannelIn: ...
    async def take_voucher(
        self,
        channel: ChannelId,
        *,
        amount_uusd: int,
        memo: bytes,
        signature: bytes,
        peer: PeerId,
        covered: CoveredReceipts | None = None,
        checked: ChannelIn | None = None,
    ) -> ChannelIn: ...
    async def set_chain_in(
        self, channel: ChannelId, *, deposit_uusd: int, claimed_uusd: int, close_at_s: int
    ) -> ChannelIn: ...
    async def note_failure(self, peer: PeerId) -> None: ...
    async def consent(self, channel: ChannelId) -> ConsentOut | None: ...
    async def consents(self) -> Sequence[ConsentOut]: ...
    async def check_consent(self, channel: ChannelId, *, amount_uusd: int, recent_ms: int = 0) -> None: ...
    async def give_consent(
        self,
        channel: ChannelId,
        *,
        epoch: int,
        amount_uusd: int,
        deadline_s: int,
        renew_before_s: int,
        recent_ms: int = 0,
        sign: Callable[[int, int, int], bytes],
    ) -> ConsentOut: ...
    async def end_consent(self, channel: ChannelId, *, epoch: int) -> None: ...
