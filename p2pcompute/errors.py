"""Every error that p2pcompute raises, in one tree.

    P2PComputeError
    ├── ConfigError                  a setting, a profile or the machine is not as it has to be
    │   ├── ProfileInUse             another process owns this profile's ledger
    │   ├── IdentityError            the key file is unreadable, malformed or open to others; identity.KeystoreError,
    │   │                            .WrongPassword, .OwnerLocked
    │   └── PortInUse                the listen port is taken
    ├── KernelError                  a kernel is refused; has file, line, reason and what to write instead
    │   ├── KernelTypeError          arguments do not fit the kernel or the program
    │   │   └── NotCalled            a kernel or a program was called: `run` starts them; also a TypeError
    │   └── UnstableKernel           in fast mode its results can't be checked within the tolerance
    ├── ProgramError                 a program is not installed here, can't be pinned, or is needed and is not there
    ├── NoProviderError              nobody on the network fits the order; no money has moved
    ├── BudgetError                  the work costs more than the budget, before or while it is done
    ├── TaskError                    a task ended without a full result
    │   ├── TaskRefused              the provider refused the task with a typed reason
    │   │   ├── market.OrderRefused  it does not bid or does not sign
    │   │   └── stake.StakeTooLow, stake.PledgeRefused: it has too little at stake, or does not put it at risk
    │   ├── ChunkFailed              a chunk failed for a reason that another provider would meet as well
    │   ├── InputChanged             a split input was written to while its task ran
    │   └── TaskTimeout              the deadline passed
    ├── tasks.LiarError              a private sample differed; the coordinator acts on it, users see `LiarCaught`
    ├── ExecutionError               a worker could not do what it was asked
    │   ├── WorkerDied               the worker process ended (crash, memory limit, killed)
    │   ├── WorkerTimeout            it ran past its limit and was killed
    │   ├── WorkerProtocolError      it sent what no honest worker sends
    │   └── SandboxError             the sandbox that the policy asks for is not to be had here
    ├── OverlayError                 the network under us; overlay.GossipTooLarge
    │   ├── DialError                a peer could not be reached
    │   ├── StreamError              a stream broke or timed out; overlay.StreamReset, overlay.UnknownProtocol
    │   │   └── overlay.RequestError a request has no answer: RequestRefused, RequestTimeout, RequestLost; says
    │   │                            whether the peer may have acted on it
    │   └── RecordRefused            a DHT record or a gossip message failed validation
    ├── PaymentError
    │   ├── VoucherRefused           a voucher is not better than the one we hold, or not for this channel
    │   ├── ChannelChanged           its deposit is not what a voucher was checked against; look again
    │   ├── ChannelClosing           the payee has consented to close the channel; nothing more is paid over it
    │   ├── ChannelBusy              work over the channel is under way or unpaid, so it is not closed now
    │   ├── InsufficientFunds        the wallet or the channel does not hold enough
    │   ├── storage.CeilingReached   an agreement's ceiling would be passed
    │   └── payments.CreditExhausted a stranger's free credit is used up
    ├── ChainError                   the EVM endpoint; payments.SettlementPending, chain.ReceiptTimeout, chain.NoHub,
    │   │                            chain.WrongHub (another contract than ours), chain.NoGas (nothing to pay gas with)
    │   ├── ChainUnreachable         no answer, or none that can be used; one error for each way: `chain/_faults.py`
    │   ├── WrongChain               it serves another chain ID than the one asked for
    │   ├── RpcError                 it answered with a JSON-RPC error; has code and message
    │   └── TransactionFailed        a transaction was mined and reverted, or can never be mined
    ├── StorageError                 storage.AmountOutOfRange, .ReceiptConflict, .UnknownAgreement
    │   ├── DiskFull                 no room; what was committed before is safe
    │   ├── storage.LedgerFailed     the disk failed; restart the node
    │   └── LedgerCorrupt            a check of the ledger's own invariants failed
    ├── EvidenceError                a file of evidence is none, and says nothing of anybody
    └── StakeError                   stake.NoVerdict: too few arbiters find the provider wrong

What peers do wrong on the wire is in `p2pcompute_protocols.errors` (`LocalProtocolError`, `RemoteProtocolError`).
Each message says what to do next. `exit_code` is what the command returns for it, and `partial` is what a task had
come to where it ended without a full result: outputs with a mask, chunks, and what was paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "BudgetError",
    "ChainError",
    "ChainUnreachable",
    "ChannelBusy",
    "ChannelChanged",
    "ChannelClosing",
    "ChunkFailed",
    "ConfigError",
    "DialError",
    "DiskFull",
    "EvidenceError",
    "ExecutionError",
    "IdentityError",
    "InputChanged",
    "InsufficientFunds",
    "KernelError",
    "KernelTypeError",
    "LedgerCorrupt",
    "NoProviderError",
    "NotCalled",
    "OverlayError",
    "P2PComputeError",
    "Partial",
    "PaymentError",
    "PortInUse",
    "ProfileInUse",
    "ProgramError",
    "RecordRefused",
    "RpcError",
    "SandboxError",
    "StakeError",
    "StorageError",
    "StreamError",
    "TaskError",
    "TaskRefused",
    "TaskTimeout",
    "TransactionFailed",
    "UnstableKernel",
    "VoucherRefused",
    "WorkerDied",
    "WorkerProtocolError",
    "WorkerTimeout",
    "WrongChain",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partial:
    """What a task had come to when it ended with an error.

    Attributes:
        outputs: for each output a NumPy masked array of its shape, masked (and zero) where no checked result came. What
            is combined (`p2p.reduce`) is masked whole: it takes all blocks.
        done: how many of `chunks` came, were checked, hold, and are in the outputs.
        accepted_uusd: micro-USD owed for what was accepted, to all providers together; `paid_uusd` of them are
            acknowledged, and the rest is paid when a provider is back.
    """

    outputs: tuple[Any, ...]
    done: int
    chunks: int
    accepted_uusd: int
    paid_uusd: int


class P2PComputeError(Exception):
    """The root: catch this for anything that p2pcompute raises on purpose.

    `partial` is set where `run` had started to compute, and is None elsewhere.
    """

    exit_code: ClassVar[int] = 1
    partial: Partial | None = None


class ConfigError(P2PComputeError):
    """A setting, a profile or the machine is not as it has to be."""

    exit_code = 3


class ProfileInUse(ConfigError):
    """Another process owns this profile's ledger."""


class IdentityError(ConfigError):
    """The key file is unreadable, malformed or open to others."""


class PortInUse(ConfigError):
    """The listen port is taken."""


class KernelError(P2PComputeError):
    """A kernel is refused.

    Attributes:
        reason: what is not taken, in a few words.
        line: 1-based line in `filename`, or 0 where there is none.
        filename: the file that the kernel was written in, or "<kernel>".
        instead: what to write instead, or "".
        by_guard: whether it is the source, the launch or the arguments that the language does not have, on whatever
            machine: not what a back end can't do, or fails at.
    """

    exit_code = 4
    by_guard = False

    def __init__(self, reason: str, *, line: int = 0, filename: str = "<kernel>", instead: str = "") -> None:
        self.reason = reason
        self.line = line
        self.filename = filename
        self.instead = instead
        where = f"{filename}:{line}: " if line else ""
        super().__init__(f"{where}{reason}" + (f"; {instead}" if instead else ""))


class KernelTypeError(KernelError):
    """Arguments do not fit the kernel or the program."""


class NotCalled(KernelTypeError, TypeError):
    """A kernel or a program was called as a function. `p2pcompute.run` starts them."""


class UnstableKernel(KernelError):
    """In fast mode its results can't be checked: they hang on rounding by more than the tolerance, or vanish in it."""


class ProgramError(P2PComputeError):
    """A program is not installed here, is not what was expected, or is needed here and is not there."""

    exit_code = 13


class NoProviderError(P2PComputeError):
    """Nobody on the network fits the order; no money has moved."""

    exit_code = 5


class BudgetError(P2PComputeError):
    """The work costs more than the budget.

    Raised before the start where the estimate says so: then no money has moved, and the message says that. Raised
    later where the budget is used up: then what was paid is covered by checked receipts.
    """

    exit_code = 6


class TaskError(P2PComputeError):
    """A task ended without a full result."""

    exit_code = 7


class TaskRefused(TaskError):
    """The provider refused the task with a typed reason."""


class ChunkFailed(TaskError):
    """A chunk failed for a reason that another provider would meet as well."""


class InputChanged(TaskError):
    """A split input was written to while its task ran: what is sent and checked would not be what was agreed."""


class TaskTimeout(TaskError):
    """The deadline passed."""


class ExecutionError(P2PComputeError):
    """A worker could not do what it was asked."""

    exit_code = 8


class WorkerDied(ExecutionError):
    """The worker process ended: it crashed, met a limit or was killed."""


class WorkerTimeout(ExecutionError):
    """The worker ran past its limit and was killed."""


class WorkerProtocolError(ExecutionError):
    """The worker sent what no honest worker sends, and was killed."""


class SandboxError(ExecutionError):
    """The sandbox that the policy asks for is not to be had here."""


class OverlayError(P2PComputeError):
    """The network under us."""

    exit_code = 9


class DialError(OverlayError):
    """A peer could not be reached."""


class StreamError(OverlayError):
    """A stream broke, was reset or timed out."""


class RecordRefused(OverlayError):
    """A DHT record or a gossip message failed validation."""


class PaymentError(P2PComputeError):
    """Something about money; what was acknowledged before is safe."""

    exit_code = 10


class VoucherRefused(PaymentError):
    """A voucher is not better than the one we hold, or not for this channel."""


class ChannelChanged(PaymentError):
    """A channel's deposit, or when it can be closed, is not what a voucher was checked against: look again, then retry.
    Nothing was written."""


class ChannelClosing(PaymentError):
    """The payee has consented to close the channel: nothing more is paid over it before that, or the deadline."""


class ChannelBusy(PaymentError):
    """Work over the channel is under way or unpaid, so its payee does not consent to close it now."""


class InsufficientFunds(PaymentError):
    """The wallet or the channel does not hold enough."""


class ChainError(P2PComputeError):
    """The EVM endpoint."""

    exit_code = 11


class ChainUnreachable(ChainError):
    """No answer, or none that can be used: down, timed out, not JSON-RPC, out of line with what it said before.

    `p2pcompute.chain` has an error for each way: EndpointRefused, EndpointTimeout, RateLimited and so on."""


class WrongChain(ChainError):
    """The endpoint serves another chain ID than the one asked for."""


class RpcError(ChainError):
    """The endpoint answered with a JSON-RPC error."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        self.code = code
        super().__init__(message)


class TransactionFailed(ChainError):
    """A transaction was mined and reverted, or can never be mined."""


class StorageError(P2PComputeError):
    """The ledger on disk."""

    exit_code = 12


class DiskFull(StorageError):
    """No room; what was committed before is safe."""


class LedgerCorrupt(StorageError):
    """A check of the ledger's own invariants failed."""


class EvidenceError(P2PComputeError):
    """A file of evidence is none: it says nothing of anybody. The message says what is wrong with it."""

    exit_code = 14


class StakeError(P2PComputeError):
    """Nothing is taken from anybody's stake. The message says why, and what to do."""

    exit_code = 15
