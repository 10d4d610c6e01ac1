"""A development chain in this process: py-evm, one block for each transaction, nothing about files or sockets.

The rules are Ethereum's Prague ones, with three differences that a chain without consensus can afford: blocks of
one second may share a timestamp, so that time does not run ahead where blocks come quickly; the gas limit stays
where it is; and the precompiles that are curves or BLAKE2 fail, since their prices are for native code and py-evm
computes them in Python. Nothing is pruned: a chain of some ten thousand blocks fits into memory.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from p2pcompute_protocols.ids import Address

from ._devchain_reads import Allowance

# py-evm lifts the interpreter's recursion limit to 12288 for the whole process when it is imported. C code that
# recurses (json.loads on a hundred thousand brackets) then overruns the stack and the process dies, instead of
# raising RecursionError. So the limit is put back: contracts that call 1024 levels deep get an error here.
_limit = sys.getrecursionlimit()
import eth.exceptions  # noqa: E402 (has to come between the two lines that save and restore the limit)
import eth.vm.code_stream  # noqa: E402 (same)
import eth.vm.spoof  # noqa: E402 (same)
from eth.chains.base import MiningChain  # noqa: E402 (same)
from eth.db.atomic import AtomicDB  # noqa: E402 (same)
from eth.vm.chain_context import ChainContext  # noqa: E402 (same)
from eth.vm.forks.prague import PragueVM  # noqa: E402 (same)
from eth.vm.forks.prague.computation import PragueComputation  # noqa: E402 (same)
from eth.vm.forks.prague.state import PragueState  # noqa: E402 (same)
from eth_utils.exceptions import ValidationError  # noqa: E402 (same)

sys.setrecursionlimit(_limit)

__all__ = [
    "BLOCK_GAS_LIMIT",
    "CALL_GAS_LIMIT",
    "CallFailed",
    "DevChain",
    "Genesis",
    "LogEntry",
    "Mined",
    "TransactionRefused",
]

BLOCK_GAS_LIMIT = 30_000_000
CALL_GAS_LIMIT = 16_777_216
"""The most gas of one transaction, or of one that is estimated (EIP-7825 sets this one)."""

_TYPES = (0, 1, 2)  # legacy, EIP-2930, EIP-1559; blobs and delegations have no use here
_INITIAL_BASE_FEE_WEI = 1_000_000_000


class TransactionRefused(Exception):
    """A transaction that can't be mined as it stands; nothing has changed. The text says why."""


class CallFailed(Exception):
    """A call or an estimate ended in an error.

    Attributes:
        reverted: the contract itself reverted, with `output`.
        output: what it gave as the reason, ABI-encoded.
    """

    def __init__(self, message: str, *, reverted: bool, output: bytes) -> None:
        super().__init__(message)
        self.reverted = reverted
        self.output = output


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """What block 0 follows from.

    Attributes:
        chain_id: EIP-155 chain ID.
        timestamp_s: UNIX time of block 0.
        balances_wei: the accounts that hold money from the start.
    """

    chain_id: int
    timestamp_s: int
    balances_wei: tuple[tuple[Address, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One event, and where it lies."""

    block: int
    tx_index: int
    log_index: int
    tx_hash: bytes
    address: Address
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mined:
    """One transaction of the chain, with what came of it."""

    block: int
    index: int
    hash: bytes
    sender: Address
    tx: Any
    ok: bool
    gas_used: int
    cumulative_gas: int
    gas_price_wei: int
    created: Address | None
    logs: tuple[LogEntry, ...]
    receipt: Any


def _refused(computation: Any) -> NoReturn:
    number = int.from_bytes(computation.msg.code_address, "big")
    raise eth.exceptions.VMError(f"the precompile 0x{number:02x} is not on this chain: it would take minutes")


_LOOK_UP = 4096  # instructions: some hundredths of a second
# ECADD, ECMUL, ECPAIRING and BLAKE2F; 0x0a, the blobs' one, is native; BLS12-381.
_SLOW_PRECOMPILES = (6, 7, 8, 9, *range(0x0B, 0x12))


class _WatchedCode(eth.vm.code_stream.CodeStream):
    """Code that looks up from time to time while it runs."""

    def __init__(self, code: bytes, allowance: Allowance) -> None:
        super().__init__(code)
        self._allowance = allowance

    def __iter__(self) -> Iterator[int]:
        left = _LOOK_UP
        for opcode in super().__iter__():
            left -= 1
            if not left:
                left = _LOOK_UP
                self._allowance.look_up()
            yield opcode


class _DevComputation(PragueComputation):
    _precompiles = PragueComputation.get_precompiles() | {
        number.to_bytes(20, "big"): _refused for number in _SLOW_PRECOMPILES
    }

    def __init__(self, state: Any, message: Any, transaction_context: Any) -> None:
        super().__init__(state, message, transaction_context)
        if state.allowance is not None:
            self.code = _WatchedCode(message.code, state.allowance)
            state.allowance.look_up()  # short calls in great number pass no other place


class _DevState(PragueState):
    computation_class = _DevComputation
    allowance: Allowance | None = None  # of a read; a block is never broken off


class _DevVM(PragueVM):
    _state_class = _DevState

    @classmethod
    def validate_header(cls, header: Any, parent_header: Any) -> None:
        """Headers are made here and only here; what others would be checked for holds by construction."""


class DevChain:
    """The chain. Not thread-safe: its owner lets one caller in at a time."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        chain_class: Any = MiningChain.configure(
            __name__="DevMiningChain", vm_configuration=((0, _DevVM),), chain_id=genesis.chain_id
        )
        self._db = AtomicDB()
        self._chain: Any = chain_class.from_genesis(
            self._db,
            {
                "timestamp": genesis.timestamp_s,
                "gas_limit": BLOCK_GAS_LIMIT,
                "base_fee_per_gas": _INITIAL_BASE_FEE_WEI,
            },
            {
                address: {"balance": wei, "nonce": 0, "code": b"", "storage": {}}
                for address, wei in genesis.balances_wei
            },
        )
        self._context = ChainContext(genesis.chain_id)
        self._headers: list[Any] = [self._chain.get_canonical_head()]
        self._numbers: dict[bytes, int] = {self._headers[0].hash: 0}
        self._blocks: list[tuple[Mined, ...]] = [()]
        self._mined: dict[bytes, Mined] = {}
        self._logs: list[LogEntry] = []
        self._log_blocks: list[int] = []  # the block of each entry of _logs, for bisection

    # What is there

    @property
    def head(self) -> int:
        """The number of the newest block."""
        return len(self._headers) - 1

    def header(self, number: int) -> Any:
        """py-evm's header of a block."""
        return self._headers[number]

    def number_of(self, block_hash: bytes) -> int | None:
        """The number of the block with this hash."""
        return self._numbers.get(block_hash)

    def transactions(self, number: int) -> tuple[Mined, ...]:
        """The transactions of a block."""
        return self._blocks[number]

    def mined(self, tx_hash: bytes) -> Mined | None:
        """The transaction with this hash."""
        return self._mined.get(tx_hash)

    def logs(self, first: int, last: int) -> Sequence[LogEntry]:
        """All events of the blocks `first` to `last`, both included."""
        return self._logs[bisect.bisect_left(self._log_blocks, first) : bisect.bisect_right(self._log_blocks, last)]

    def next_base_fee_wei(self) -> int:
        """The base fee of the block after the newest."""
        return int(self._chain.create_header_from_parent(self._headers[-1]).base_fee_per_gas)

    def state(self, number: int) -> Any:
        """py-evm's state as it is after a block; what is changed in it is not kept."""
        return self._state(self._headers[number])

    def _state(self, header: Any) -> Any:
        hashes = (self._headers[i].hash for i in range(header.block_number - 1, -1, -1))
        return _DevVM.build_state(self._db, header, self._context, hashes)

    # Change

    def decode(self, raw: bytes) -> Any:
        """Read a raw transaction.

        Raises:
            TransactionRefused: it is malformed, of a kind that is not taken, or for another chain.
        """
        try:
            tx: Any = _DevVM.get_transaction_builder().decode(raw)
            tx.validate()
            sender = tx.sender
        except Exception as exc:  # rlp, eth-keys and py-evm each have their own, with no common root
            raise TransactionRefused(f"malformed transaction: {type(exc).__name__}") from exc
        if (tx.type_id or 0) not in _TYPES:
            raise TransactionRefused(f"transaction type {tx.type_id} not supported")
        if tx.chain_id is None:
            raise TransactionRefused("only replay-protected (EIP-155) transactions allowed")
        if tx.chain_id != self.genesis.chain_id:
            raise TransactionRefused(f"invalid chain id: have {tx.chain_id}, want {self.genesis.chain_id}")
        if tx.gas > CALL_GAS_LIMIT:
            raise TransactionRefused(f"transaction gas limit too high: at most {CALL_GAS_LIMIT}")
        assert len(sender) == 20
        return tx

    def mine(self, raws: Sequence[bytes], timestamp_s: int) -> tuple[Mined, ...]:
        """Put transactions into one new block.

        Args:
            raws: EIP-2718 envelopes or legacy transactions, in order.
            timestamp_s: the block's UNIX time; not below the newest block's.

        Raises:
            TransactionRefused: one of them can't be mined; none is.
        """
        txs = [self.decode(raw) for raw in raws]
        parent = self._headers[-1]
        header = self._chain.create_header_from_parent(parent).copy(
            timestamp=max(timestamp_s, parent.timestamp), gas_limit=BLOCK_GAS_LIMIT
        )
        self._check(txs, header)
        self._chain.header = header
        try:
            imported, receipts, computations = self._chain.mine_all(txs)
        except ValidationError as exc:
            raise TransactionRefused(str(exc)) from exc
        return self._index(imported.imported_block, txs, receipts, computations)

    def _check(self, txs: Sequence[Any], header: Any) -> None:
        """The refusals that callers act upon, in the words that go-ethereum uses for them."""
        state = self._state(self._headers[-1])
        nonces: dict[bytes, int] = {}
        for tx in txs:
            nonce: int = nonces[tx.sender] if tx.sender in nonces else state.get_nonce(tx.sender)
            if tx.nonce < nonce:
                raise TransactionRefused(f"nonce too low: next nonce {nonce}, tx nonce {tx.nonce}")
            if tx.nonce > nonce:
                raise TransactionRefused(f"nonce too high: next nonce {nonce}, tx nonce {tx.nonce}")
            nonces[tx.sender] = nonce + 1
            most_wei = tx.max_fee_per_gas if (tx.type_id or 0) == 2 else tx.gas_price
            if most_wei < header.base_fee_per_gas:
                raise TransactionRefused(
                    f"max fee per gas less than block base fee: {most_wei} < {header.base_fee_per_gas}"
                )
            have_wei, want_wei = state.get_balance(tx.sender), most_wei * tx.gas + tx.value
            if have_wei < want_wei:
                raise TransactionRefused(f"insufficient funds for gas * price + value: have {have_wei} want {want_wei}")
            if tx.gas < tx.intrinsic_gas:
                raise TransactionRefused(f"intrinsic gas too low: have {tx.gas}, want {tx.intrinsic_gas}")

    def _index(
        self, block: Any, txs: Sequence[Any], receipts: Sequence[Any], computations: Sequence[Any]
    ) -> tuple[Mined, ...]:
        number, before, log_index = self.head + 1, 0, 0
        found: list[Mined] = []
        base_fee_wei = int(block.header.base_fee_per_gas)
        for index, (tx, receipt, computation) in enumerate(zip(txs, receipts, computations, strict=True)):
            logs: list[LogEntry] = []
            for log in receipt.logs:
                logs.append(
                    LogEntry(
                        block=number,
                        tx_index=index,
                        log_index=log_index,
                        tx_hash=tx.hash,
                        address=Address(log.address),
                        topics=tuple(topic.to_bytes(32, "big") for topic in log.topics),
                        data=log.data,
                    )
                )
                log_index += 1
            tip_wei = (
                min(tx.max_priority_fee_per_gas, tx.max_fee_per_gas - base_fee_wei)
                if (tx.type_id or 0) == 2
                else tx.gas_price - base_fee_wei
            )
            creates = tx.to == b""
            found.append(
                Mined(
                    block=number,
                    index=index,
                    hash=tx.hash,
                    sender=Address(tx.sender),
                    tx=tx,
                    ok=computation.is_success,
                    gas_used=receipt.gas_used - before,
                    cumulative_gas=receipt.gas_used,
                    gas_price_wei=base_fee_wei + tip_wei,
                    created=Address(computation.msg.storage_address) if creates else None,
                    logs=tuple(logs),
                    receipt=receipt,
                )
            )
            before = receipt.gas_used
        mined = tuple(found)
        self._headers.append(block.header)
        self._numbers[block.header.hash] = number
        self._blocks.append(mined)
        for item in mined:
            self._mined[item.hash] = item
            self._logs.extend(item.logs)
            self._log_blocks.extend(number for _ in item.logs)
        return mined

    # Without change

    def call(
        self,
        *,
        sender: Address,
        to: Address | None,
        data: bytes,
        value_wei: int,
        gas: int,
        number: int,
        allowance: Allowance,
    ) -> bytes:
        """Run a message on the state after a block, for nothing, and forget what it changes.

        Raises:
            CallFailed: it reverted, ran out of gas, or could not start.
            GasSpent, ClientGone: see `Allowance`, which is charged for what ran.
        """
        computation, _ = self._try(sender, to, data, value_wei, min(gas, allowance.call_gas), number, allowance)
        _raise_for(computation)
        return bytes(computation.output)

    def estimate(
        self,
        *,
        sender: Address,
        to: Address | None,
        data: bytes,
        value_wei: int,
        gas: int,
        number: int,
        allowance: Allowance,
    ) -> int:
        """Gas with which a transaction goes through: at most some 2 % more than it takes.

        Raises:
            CallFailed: it fails however much gas it is given.
            GasSpent, ClientGone: see `Allowance`, which is charged for every try.
        """
        most = min(gas, CALL_GAS_LIMIT)
        computation, used = self._try(sender, to, data, value_wei, most, number, allowance)
        _raise_for(computation)
        # A call may be given only 63/64 of what is left, and a refund comes only at the end: both need more
        # gas to be there than is used. So the first guess can be too low, and is raised until it does.
        guess = used
        while guess < most:
            computation, _ = self._try(sender, to, data, value_wei, guess, number, allowance)
            if not computation.is_error:
                return guess
            guess += max(guess // 50, 500)
        return most

    def _try(
        self,
        sender: Address,
        to: Address | None,
        data: bytes,
        value_wei: int,
        gas: int,
        number: int,
        allowance: Allowance,
    ) -> tuple[Any, int]:
        allowance.need(gas)
        # The block that the call runs in is the one asked for; only its price of gas is set to nothing.
        state = self._state(self._headers[number].copy(base_fee_per_gas=0))
        state.allowance = allowance
        builder: Any = _DevVM.get_transaction_builder()
        unsigned = builder.create_unsigned_transaction(
            nonce=state.get_nonce(sender),
            gas_price=0,
            gas=gas,
            to=to or b"",
            value=value_wei,
            data=data,
        )
        if gas < unsigned.intrinsic_gas:
            raise CallFailed("intrinsic gas too low", reverted=False, output=b"")
        tx: Any = cast(Any, eth.vm.spoof.SpoofTransaction)(unsigned, from_=sender)
        try:
            computation = state.apply_transaction(tx)
        except ValidationError as exc:
            raise CallFailed(str(exc), reverted=False, output=b"") from exc
        except RecursionError:
            allowance.use(gas)
            raise
        used = gas - computation.get_gas_remaining()
        allowance.use(used)
        refund = state.get_transaction_executor().calculate_gas_refund(computation, used)
        return computation, int(used - refund + computation.data_floor_gas)


def _raise_for(computation: Any) -> None:
    if not computation.is_error:
        return
    error = computation.error
    if isinstance(error, eth.exceptions.Revert):
        raise CallFailed("execution reverted", reverted=True, output=bytes(computation.output))
    raise CallFailed(str(error) or type(error).__name__, reverted=False, output=b"")
