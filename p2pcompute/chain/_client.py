"""The hub and its token through an endpoint: reads, transactions, receipts.

Nothing here remembers anything. Whoever pays keeps the signed bytes of a transaction before sending it, and sends
the same bytes again where in doubt; `HubClient.send_raw` is made for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import coincurve
import trio

from p2pcompute.errors import ChainError, ChainUnreachable, RpcError, TransactionFailed
from p2pcompute_protocols.channel._voucher import Domain, address_of
from p2pcompute_protocols.ids import Address, ChannelId

from ._faults import FeeTooLow, NoGas, NotJsonRpc
from ._hub import (
    CLAIMED_TOPIC,
    ChannelState,
    CheckpointEvent,
    ClaimedEvent,
    decode_channel,
    decode_checkpoints,
    decode_claims,
    decode_word,
    encode_allowance,
    encode_balance_of,
    encode_balances,
    encode_channel,
)
from ._hub_signed import encode_epoch
from ._rpc import ChainClient, hex_bytes, hex_int
from ._tx import UnsignedTx, sign_transaction, transaction_hash

__all__ = ["DevInfo", "Fees", "Head", "Holdings", "HubClient", "Receipt", "ReceiptTimeout", "dev_info", "faucet"]

_GAS_MARGIN_PERCENT = 20  # what other transactions change between estimate and block
_FEE_BLOCKS = 256  # of which the median base fee is what is usual: about an hour of Ethereum
# go-ethereum, Erigon and anvil ("insufficient funds for gas * price + value"); reth, Nethermind, Besu
_NO_GAS = ("insufficient funds", "insufficientfunds", "insufficient sender balance", "upfront cost", "max upfront")
# go-ethereum, reth, Erigon and anvil; Nethermind ("FeeTooLow…"); Besu ("gas price below current base fee")
_FEE_TOO_LOW = ("underpriced", "less than block base fee", "feetoolow", "fee too low", "below current base fee")
_POLL_FIRST_S = 0.05
_POLL_MOST_S = 2.0
# go-ethereum and reth, Nethermind, Besu; anvil says "already imported"
_ALREADY_KNOWN = ("already known", "alreadyknown", "known transaction", "already imported")

_T = TypeVar("_T")


class ReceiptTimeout(ChainError):
    """A transaction was not mined in the time given. It may still be: send the same bytes again, then wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """What a unit of gas costs: at most `max_wei`, of which `priority_wei` to the block's producer. `base_wei` is what
    the newest block asks for; the next one may ask for an eighth more."""

    max_wei: int
    priority_wei: int
    base_wei: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest block that an endpoint knows of."""

    number: int
    timestamp_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A mined transaction.

    Attributes:
        hash: the transaction's.
        block: the number of its block.
        ok: it did not revert.
        gas_used: in units of gas.
        fee_wei: what its sender paid for it.
        raw: the receipt as JSON-RPC gave it.
    """

    hash: bytes
    block: int
    ok: bool
    gas_used: int
    fee_wei: int
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What an account has: `wei` for gas, tokens outside of the hub, and its free balance there."""

    wei: int
    token_uusd: int
    free_uusd: int


class HubClient:
    """One hub and its token.

    Every method raises `ChainUnreachable`, `WrongChain` or `RpcError` as `ChainClient.call` does.

    Args:
        client: an open client.
        hub: the hub's address.
        token: the address of its token.
    """

    def __init__(self, client: ChainClient, hub: Address, token: Address) -> None:
        self.client = client
        self.hub = hub
        self.token = token

    # Reads

    async def domain(self) -> Domain:
        """The domain of this hub's vouchers."""
        return Domain(chain_id=await self.client.chain_id(), contract=self.hub)

    async def block_number(self) -> int:
        """The number of the newest block."""
        return hex_int(await self.client.call("eth_blockNumber"))

    async def head(self) -> Head:
        """The newest block."""
        return _head(await self.client.call("eth_getBlockByNumber", ["latest", False]))

    async def newest_channel_state(self, channel: ChannelId) -> tuple[Head, ChannelState]:
        """Where a channel stands, and the newest block, in one exchange."""
        block, output = await self.client.batch(
            [("eth_getBlockByNumber", ["latest", False]), self._read(self.hub, encode_channel(channel))]
        )
        state = _decoded(lambda: decode_channel(hex_bytes(_result(output))))
        return _head(_result(block)), state

    async def channel_history(self, channel: ChannelId, blocks: Sequence[int]) -> list[ChannelState]:
        """Where a channel stood after each of these blocks, in one exchange.

        Raises:
            RpcError: the endpoint has no state of one of them any more; nodes keep that of 128 blocks at least.
        """
        answers = await self.client.batch(
            [self._read(self.hub, encode_channel(channel), hex(number)) for number in blocks]
        )
        outputs = [hex_bytes(_result(answer)) for answer in answers]
        # Before the hub was created there was nothing there, so no channel either.
        return _decoded(lambda: [decode_channel(output or bytes(96)) for output in outputs])

    async def channel_state(self, channel: ChannelId) -> ChannelState:
        """Where a channel stands; all zeros for one that was never funded."""
        return (await self.channel_states([channel]))[0]

    async def channel_states(self, channels: Sequence[ChannelId]) -> list[ChannelState]:
        """Where many channels stand, in few exchanges."""
        outputs = await self._read_many([(self.hub, encode_channel(channel)) for channel in channels])
        return _decoded(lambda: [decode_channel(output) for output in outputs])

    async def channel_epoch(self, channel: ChannelId, *, block: int | None = None) -> int:
        """How often a channel was closed: after the newest block, or after the one with this number."""
        tag = "latest" if block is None else hex(block)
        output = hex_bytes(await self.client.call(*self._read(self.hub, encode_epoch(channel), tag)))
        # Before the hub was created there was nothing there, so no channel either.
        return _decoded(lambda: decode_word(output or bytes(32)))

    async def balance_uusd(self, owner: Address) -> int:
        """An account's free balance at the hub."""
        return await self._read_word(self.hub, encode_balances(owner))

    async def token_balance_uusd(self, owner: Address) -> int:
        """An account's tokens, outside the hub."""
        return await self._read_word(self.token, encode_balance_of(owner))

    async def allowance_uusd(self, owner: Address) -> int:
        """How many of an account's tokens the hub may still take by `deposit`."""
        return await self._read_word(self.token, encode_allowance(owner, self.hub))

    async def balance_wei(self, owner: Address) -> int:
        """What an account has to pay for gas with."""
        return hex_int(await self.client.call("eth_getBalance", [_hex(owner), "latest"]))

    async def holdings(self, owner: Address) -> Holdings:
        """All that an account has, in one question."""
        wei, tokens, free = await self.client.batch(
            [
                ("eth_getBalance", [_hex(owner), "latest"]),
                self._read(self.token, encode_balance_of(owner)),
                self._read(self.hub, encode_balances(owner)),
            ]
        )
        token, at_hub = hex_bytes(_result(tokens)), hex_bytes(_result(free))
        return Holdings(
            wei=hex_int(_result(wei)),
            token_uusd=_decoded(lambda: decode_word(token)),
            free_uusd=_decoded(lambda: decode_word(at_hub)),
        )

    async def nonce(self, owner: Address) -> int:
        """An account's count of mined transactions: the lowest nonce that is free on chain."""
        return hex_int(await self.client.call("eth_getTransactionCount", [_hex(owner), "latest"]))

    async def claims_between(self, first_block: int, last_block: int, *, payee: Address) -> list[ClaimedEvent]:
        """The vouchers of a payee's channels that counted in these blocks, both included, in order."""
        wanted = {
            "address": _hex(self.hub),
            "fromBlock": hex(first_block),
            "toBlock": hex(last_block),
            "topics": [_hex(CLAIMED_TOPIC), None, _hex(payee.rjust(32, b"\0"))],
        }
        logs = await self.client.call("eth_getLogs", [wanted])
        return _decoded(lambda: decode_claims({"logs": logs}, self.hub))

    async def _read_word(self, to: Address, data: bytes) -> int:
        (output,) = await self._read_many([(to, data)])
        return _decoded(lambda: decode_word(output))

    async def _read_many(self, reads: Sequence[tuple[Address, bytes]]) -> list[bytes]:
        answers = await self.client.batch([self._read(to, data) for to, data in reads])
        return [hex_bytes(_result(answer)) for answer in answers]

    @staticmethod
    def _read(to: Address, data: bytes, block: str = "latest") -> tuple[str, list[Any]]:
        return "eth_call", [{"to": _hex(to), "data": _hex(data)}, block]

    # Transactions

    async def fees(self) -> Fees:
        """Fees that get a transaction mined soon: room for the base fee to double."""
        block, tip = await self.client.batch(
            [("eth_getBlockByNumber", ["latest", False]), ("eth_maxPriorityFeePerGas", [])]
        )
        return await self._fees(_result(block), tip)

    async def fees_and_usual(self) -> tuple[Fees, int]:
        """Fees as they are now, and the median base fee of the last blocks, in wei."""
        block, tip, history = await self.client.batch(
            [
                ("eth_getBlockByNumber", ["latest", False]),
                ("eth_maxPriorityFeePerGas", []),
                ("eth_feeHistory", [hex(_FEE_BLOCKS), "latest", []]),
            ]
        )
        fees = await self._fees(_result(block), tip)
        if isinstance(history, RpcError):
            return fees, fees.base_wei  # it keeps none, so nothing is unusual
        known = history
        past = known.get("baseFeePerGas") if isinstance(known, dict) else None
        if not isinstance(past, list) or not past:
            raise NotJsonRpc("the endpoint's history of fees is none; use another endpoint")
        return fees, sorted(map(hex_int, past))[len(past) // 2]

    async def _fees(self, block: Any, tip: Any) -> Fees:
        if not isinstance(block, dict) or "baseFeePerGas" not in block:
            raise ChainUnreachable("the endpoint's blocks have no base fee; a chain with EIP-1559 is needed")
        base_wei = hex_int(block["baseFeePerGas"])
        if isinstance(tip, RpcError):
            # Not every node has the newer call. What the older one says is both together.
            tip = hex(max(0, hex_int(await self.client.call("eth_gasPrice")) - base_wei))
        priority_wei = hex_int(tip)
        return Fees(max_wei=2 * base_wei + priority_wei, priority_wei=priority_wei, base_wei=base_wei)

    def no_gas(self, sender: Address, refusal: RpcError) -> NoGas | None:
        """Our error where a node refuses a transaction since its sender can't pay for gas; None where it is another."""
        text = str(refusal).lower()
        if not any(words in text for words in _NO_GAS):
            return None
        return NoGas(
            f"the account 0x{sender.hex()} has too little of the chain's own coin to pay for gas; send some there, "
            "then try again: nothing is lost meanwhile"
        )

    async def estimate_gas(self, sender: Address, to: Address | None, data: bytes, *, value_wei: int = 0) -> int:
        """Gas for a transaction, with a margin of a fifth.

        Raises:
            RpcError: it would fail now; the message has the contract's reason.
        """
        message = {"from": _hex(sender), "data": _hex(data), "value": hex(value_wei)}
        if to is not None:
            message["to"] = _hex(to)
        gas = hex_int(await self.client.call("eth_estimateGas", [message]))
        return gas + gas * _GAS_MARGIN_PERCENT // 100

    async def prepare(
        self, sender: Address, to: Address | None, data: bytes, *, nonce: int, fees: Fees | None = None
    ) -> UnsignedTx:
        """A transaction ready to sign, its gas estimated.

        Args:
            sender: who will sign it.
            to: the hub or the token; None creates a contract.
            data: calldata; see the `encode_…` functions.
            nonce: the sender's transaction count that it takes; the caller allocates it.
            fees: what to pay; None asks the endpoint.
        """
        chain_id = await self.client.chain_id()
        paid = fees if fees is not None else await self.fees()
        return UnsignedTx(
            chain_id=chain_id,
            nonce=nonce,
            to=to,
            data=data,
            gas=await self.estimate_gas(sender, to, data),
            max_fee_wei=paid.max_wei,
            priority_fee_wei=paid.priority_wei,
        )

    async def send_raw(self, raw: bytes) -> bytes:
        """Send a signed transaction; its hash. Sending the same bytes again is harmless.

        Raises:
            TransactionFailed: its nonce is used up by another transaction, so it can never be mined.
            FeeTooLow: it pays too little to be kept, as fees are now.
            RpcError: the endpoint refused it for another reason.
        """
        tx_hash = transaction_hash(raw)
        try:
            await self.client.call("eth_sendRawTransaction", [_hex(raw)])
        except RpcError as exc:
            text = str(exc).lower()
            if any(words in text for words in _ALREADY_KNOWN):
                return tx_hash
            if "nonce too low" in text or "nonce is too low" in text:
                if await self.client.call("eth_getTransactionByHash", [_hex(tx_hash)]) is not None:
                    return tx_hash
                raise TransactionFailed(
                    "another transaction has used this one's nonce, so this one can never be mined; "
                    "make it anew with the next nonce"
                ) from exc
            if any(words in text for words in _FEE_TOO_LOW):
                raise FeeTooLow(str(exc), code=exc.code) from exc
            raise
        return tx_hash

    async def receipt(self, tx_hash: bytes) -> Receipt | None:
        """The receipt of a transaction, or None where it is not mined (yet)."""
        raw = await self.client.call("eth_getTransactionReceipt", [_hex(tx_hash)])
        if raw is None:
            return None
        if not isinstance(raw, dict) or not isinstance(raw.get("logs"), list):
            raise ChainUnreachable("the endpoint's receipt is not one; use another endpoint")
        gas_used = hex_int(raw.get("gasUsed"))
        return Receipt(
            hash=tx_hash,
            block=hex_int(raw.get("blockNumber")),
            ok=hex_int(raw.get("status")) == 1,
            gas_used=gas_used,
            fee_wei=gas_used * hex_int(raw.get("effectiveGasPrice")),
            raw=raw,
        )

    async def receipt_and_depth(self, tx_hash: bytes) -> tuple[Receipt | None, int]:
        """The receipt of a transaction, and how many blocks it lies in or under, its own included; 0 where there is
        none."""
        found = await self.receipt(tx_hash)
        return found, 0 if found is None else max(1, await self.block_number() - found.block + 1)

    async def wait_receipt(self, tx_hash: bytes, timeout_s: float, *, confirmations: int = 1) -> Receipt:
        """Wait until a transaction is mined.

        Args:
            tx_hash: the transaction's hash, 32 bytes.
            timeout_s: how long, at most.
            confirmations: how many blocks it has to lie in or under, its own included.

        Raises:
            TransactionFailed: it was mined and reverted.
            ReceiptTimeout: it was not mined in time.
        """
        pause_s = _POLL_FIRST_S
        with trio.move_on_after(timeout_s):
            while True:
                found = await self.receipt(tx_hash)
                if found is not None and (
                    confirmations <= 1 or await self.block_number() - found.block + 1 >= confirmations
                ):
                    if not found.ok:
                        raise TransactionFailed(
                            f"transaction 0x{tx_hash.hex()} reverted in block {found.block}; its gas is spent, "
                            "nothing else has changed: read the state again before another try"
                        )
                    return found
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, _POLL_MOST_S)
        raise ReceiptTimeout(
            f"transaction 0x{tx_hash.hex()} was not mined within {timeout_s:g} s; send the same bytes again "
            "and wait longer"
        )

    async def transact(
        self, private_key: coincurve.PrivateKey, to: Address, data: bytes, *, timeout_s: float = 60.0
    ) -> Receipt:
        """Prepare, sign, send and wait, with the nonce that the chain has; not durable.

        For tools and tests. A node that pays keeps its transactions on disk before it sends them.
        """
        sender = address_of(private_key.public_key)
        tx = await self.prepare(sender, to, data, nonce=await self.nonce(sender))
        signed = sign_transaction(tx, private_key)
        return await self.wait_receipt(await self.send_raw(signed.raw), timeout_s)

    def decode_claims(self, receipt: Receipt) -> list[ClaimedEvent]:
        """The vouchers that counted in a transaction."""
        return _decoded(lambda: decode_claims(receipt.raw, self.hub))

    def decode_checkpoints(self, receipt: Receipt) -> list[CheckpointEvent]:
        """The batches in a transaction, and which of their rows were skipped."""
        return _decoded(lambda: decode_checkpoints(receipt.raw, self.hub))


@dataclass(frozen=True, slots=True, kw_only=True)
class DevInfo:
    """What a development chain says of itself."""

    chain_id: int
    hub: Address
    token: Address


async def dev_info(client: ChainClient) -> DevInfo:
    """Ask a development chain for its contracts.

    Raises:
        RpcError: it is another kind of chain.
        ChainUnreachable: see `ChainClient.call`.
    """
    raw = await client.call("dev_info")
    return _decoded(
        lambda: DevInfo(
            chain_id=int(raw["chain_id"]),
            hub=Address(hex_bytes(raw["hub"])),
            token=Address(hex_bytes(raw["token"])),
        )
    )


async def faucet(client: ChainClient, address: Address, *, wei: int = 10**18, token_uusd: int = 0) -> None:
    """Have a development chain send money to an account: ether for gas, and test tokens.

    Raises:
        RpcError: it is another kind of chain, or the amount is above what the faucet gives at once.
        ChainUnreachable: see `ChainClient.call`.
    """
    await client.call("dev_faucet", [_hex(address), hex(wei), hex(token_uusd)])


def _result(answer: Any) -> Any:
    """One answer of a batch; raised where it is an error."""
    if isinstance(answer, RpcError):
        raise answer
    return answer


def _head(block: Any) -> Head:
    if not isinstance(block, dict):
        raise NotJsonRpc("the endpoint has no newest block; is it an Ethereum node, and done with its start?")
    return Head(number=hex_int(block.get("number")), timestamp_s=hex_int(block.get("timestamp")))


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _decoded(decode: Callable[[], _T]) -> _T:
    try:
        return decode()
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        raise ChainUnreachable(
            f"the answer is not what a hub or its token gives ({exc}); check both addresses and the URL"
        ) from exc
