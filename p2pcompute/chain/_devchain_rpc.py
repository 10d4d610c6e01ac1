"""JSON-RPC 2.0 over a `DevNode`: bytes in, bytes out, whatever the bytes are.

Sources: the JSON-RPC 2.0 specification; ethereum/execution-apis for names, shapes and error codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from p2pcompute_protocols.ids import Address

from ._devchain_evm import CALL_GAS_LIMIT, CallFailed, LogEntry, Mined, TransactionRefused
from ._devchain_json import block_json, data_hex, log_json, quantity, receipt_json, transaction_json, waiting_json
from ._devchain_node import DevNode
from ._devchain_reads import Allowance, GasSpent

__all__ = ["MAX_ANSWER_BYTES", "MAX_BATCH_REQUESTS", "MAX_LOGS", "DevRpc", "RpcFault"]

MAX_BATCH_REQUESTS = 100
MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""How long an answer may get. What comes after that in a batch is not done, and is told so."""
MAX_LOGS = 10_000
MAX_FEE_HISTORY = 1024
MAX_BRACKETS = 8192
"""The most brackets in one body. It bounds how deep they can lie in each other, whatever the recursion limit is."""

_PARSE_ERROR, _INVALID_REQUEST, _NO_METHOD, _INVALID_PARAMS, _SERVER = -32700, -32600, -32601, -32602, -32000
_LIMIT, _REVERTED = -32005, 3
_TIP_WEI = 1_000_000

_ERROR_STRING = bytes.fromhex("08c379a0")  # Error(string)


class RpcFault(Exception):
    """What becomes an error object in the answer."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class DevRpc:
    """Answers requests. It blocks; one caller at a time, save where a read's `Allowance` lets others in between.

    Args:
        node: the chain.
    """

    def __init__(self, node: DevNode) -> None:
        self._node = node
        self._chain = node.chain
        self._methods: dict[str, tuple[int, int, Callable[..., Any]]] = {
            # name: (fewest parameters, most, function)
            "web3_clientVersion": (0, 0, lambda: "p2pcompute-devchain/1"),
            "net_version": (0, 0, lambda: str(self._chain.genesis.chain_id)),
            "net_listening": (0, 0, lambda: True),
            "eth_syncing": (0, 0, lambda: False),
            "eth_accounts": (0, 0, list),
            "eth_chainId": (0, 0, lambda: quantity(self._chain.genesis.chain_id)),
            "eth_blockNumber": (0, 0, lambda: quantity(self._chain.head)),
            "eth_gasPrice": (0, 0, lambda: quantity(self._chain.next_base_fee_wei() + _TIP_WEI)),
            "eth_maxPriorityFeePerGas": (0, 0, lambda: quantity(_TIP_WEI)),
            "eth_feeHistory": (2, 3, self._fee_history),
            "eth_getBalance": (1, 2, self._balance),
            "eth_getTransactionCount": (1, 2, self._nonce),
            "eth_getCode": (1, 2, self._code),
            "eth_getStorageAt": (2, 3, self._storage),
            "eth_getTransactionByHash": (1, 1, self._transaction),
            "eth_getTransactionReceipt": (1, 1, self._receipt),
            "eth_getBlockByNumber": (1, 2, self._block_by_number),
            "eth_getBlockByHash": (1, 2, self._block_by_hash),
            "eth_getLogs": (1, 1, self._logs),
            "evm_increaseTime": (1, 1, self._increase_time),
            "dev_faucet": (2, 3, self._faucet),
            "dev_info": (0, 0, self._info),
        }
        self._metered: dict[str, tuple[int, int, Callable[..., Any]]] = {
            # their first parameter is the body's allowance
            "eth_call": (1, 2, self._call),
            "eth_estimateGas": (1, 2, self._estimate),
            "eth_sendRawTransaction": (1, 1, self._send_raw),
        }

    def answer(self, body: bytes, allowance: Allowance | None = None) -> bytes:
        """The answer to one HTTP body: a request, or a batch of at most MAX_BATCH_REQUESTS.

        Never raises for what the body holds. A request that would go over the body's gas, or come after
        MAX_ANSWER_BYTES, is answered with an error of code -32005.

        Args:
            body: what was posted.
            allowance: what the body may compute; a new one by default.

        Raises:
            StorageError: the journal failed; the chain must not go on.
            ClientGone: see `Allowance`. What was done until then stays done.
        """
        allowance = allowance or Allowance()
        try:
            if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
                raise ValueError
            message = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return _dump(_error(None, RpcFault(_PARSE_ERROR, "not JSON")))
        if not isinstance(message, list):
            return self._one(message, allowance)
        if not message:
            return _dump(_error(None, RpcFault(_INVALID_REQUEST, "empty batch")))
        if len(message) > MAX_BATCH_REQUESTS:
            text = f"batch too large: at most {MAX_BATCH_REQUESTS} requests"
            return _dump(_error(None, RpcFault(_INVALID_REQUEST, text)))
        answers: list[bytes] = []
        room = MAX_ANSWER_BYTES
        for request in message:
            allowance.look_up()
            answer = self._one(request, allowance, full=room <= 0)
            if answer:
                room -= len(answer)
                answers.append(answer)
        return b"[" + b",".join(answers) + b"]" if answers else b""

    def _one(self, request: Any, allowance: Allowance, *, full: bool = False) -> bytes:
        request_id: Any = None
        try:
            if not isinstance(request, dict):
                raise RpcFault(_INVALID_REQUEST, "a request is an object")
            request_id = request.get("id")
            if not _is_id(request_id):
                request_id = None
                raise RpcFault(_INVALID_REQUEST, "an id is a string or a number")
            name, params = request.get("method"), request.get("params", [])
            if request.get("jsonrpc") != "2.0" or not isinstance(name, str):
                raise RpcFault(_INVALID_REQUEST, 'a request has "jsonrpc": "2.0" and a method')
            metered = self._metered.get(name)
            method = metered or self._methods.get(name)
            if method is None:
                raise RpcFault(_NO_METHOD, f"the method {name[:64]} does not exist here")
            if not isinstance(params, list):
                raise RpcFault(_INVALID_PARAMS, "params is not a list")
            fewest, most, function = method
            if not fewest <= len(params) <= most:
                raise RpcFault(_INVALID_PARAMS, f"{name} takes {fewest} to {most} parameters")
            if full:
                raise RpcFault(_LIMIT, f"the answer has {MAX_ANSWER_BYTES} bytes already: ask for less at once")
            result = function(allowance, *params) if metered else function(*params)
        except RpcFault as fault:
            return _dump(_error(request_id, fault))
        except GasSpent as exc:
            return _dump(_error(request_id, RpcFault(_LIMIT, str(exc))))
        except RecursionError:
            return _dump(_error(request_id, RpcFault(_SERVER, "the call went too deep for this chain")))
        if "id" not in request:
            return b""  # a notification: done, and not answered
        return _dump({"jsonrpc": "2.0", "id": request_id, "result": result})

    # State

    def _balance(self, address: Any, block: Any = "latest") -> str:
        return quantity(self._state(block).get_balance(_address(address)))

    def _nonce(self, address: Any, block: Any = "latest") -> str:
        owner = _address(address)
        nonce = self._state(block).get_nonce(owner)
        pool = self._node.pool if block == "pending" else None
        return quantity(nonce if pool is None else pool.next_nonce(owner, nonce))

    def _code(self, address: Any, block: Any = "latest") -> str:
        return data_hex(self._state(block).get_code(_address(address)))

    def _storage(self, address: Any, slot: Any, block: Any = "latest") -> str:
        value = self._state(block).get_storage(_address(address), _number(slot, "slot"))
        return data_hex(int(value).to_bytes(32, "big"))

    def _state(self, block: Any) -> Any:
        return self._chain.state(self._block_number(block))

    def _call(self, allowance: Allowance, message: Any, block: Any = "latest") -> str:
        wanted = self._message(message, allowance.call_gas)
        try:
            return data_hex(self._chain.call(**wanted, number=self._block_number(block), allowance=allowance))
        except CallFailed as exc:
            raise _call_fault(exc) from exc

    def _estimate(self, allowance: Allowance, message: Any, block: Any = "latest") -> str:
        wanted = self._message(message, CALL_GAS_LIMIT)
        try:
            return quantity(self._chain.estimate(**wanted, number=self._block_number(block), allowance=allowance))
        except CallFailed as exc:
            raise _call_fault(exc) from exc

    def _message(self, message: Any, most_gas: int) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise RpcFault(_INVALID_PARAMS, "a call is an object")
        to, data, gas = message.get("to"), message.get("input", message.get("data")), message.get("gas")
        return {
            "sender": _address(message["from"]) if message.get("from") else Address(bytes(20)),
            "to": None if to is None else _address(to),
            "data": b"" if data is None else _bytes(data, "data"),
            "value_wei": _number(message.get("value", "0x0"), "value"),
            "gas": most_gas if gas is None else _number(gas, "gas"),
        }

    # Transactions

    def _send_raw(self, allowance: Allowance, raw: Any) -> str:
        allowance.need(1)  # the last one may go over it, since one that pays is not broken off
        try:
            tx_hash = self._node.send(_bytes(raw, "transaction"))
            mined = self._chain.mined(tx_hash)
            allowance.use(0 if mined is None else mined.gas_used)
            return data_hex(tx_hash)
        except TransactionRefused as exc:
            raise RpcFault(_SERVER, str(exc)) from exc

    def _found(self, tx_hash: Any) -> Mined | None:
        return self._chain.mined(_bytes(tx_hash, "hash", 32))

    def _transaction(self, tx_hash: Any) -> dict[str, Any] | None:
        item = self._found(tx_hash)
        if item is None:
            waiting = None if self._node.pool is None else self._node.pool.get(_bytes(tx_hash, "hash", 32))
            return None if waiting is None else waiting_json(waiting)
        return transaction_json(item, self._chain.header(item.block))

    def _receipt(self, tx_hash: Any) -> dict[str, Any] | None:
        item = self._found(tx_hash)
        return None if item is None else receipt_json(item, self._chain.header(item.block))

    # Blocks

    def _block_number(self, block: Any) -> int:
        if isinstance(block, dict):  # EIP-1898
            block = block.get("blockHash", block.get("blockNumber"))
        if block in ("latest", "pending", "safe", "finalized", None):
            return self._chain.head
        if block == "earliest":
            return 0
        if isinstance(block, str) and len(block) == 66:
            number = self._chain.number_of(_bytes(block, "block hash", 32))
        else:
            number = _number(block, "block number")
        if number is None or number > self._chain.head:
            raise RpcFault(_SERVER, "header not found")
        return number

    def _block(self, number: int, full: Any) -> dict[str, Any]:
        if not isinstance(full, bool):
            raise RpcFault(_INVALID_PARAMS, "the second parameter is true or false")
        return block_json(self._chain.header(number), self._chain.transactions(number), full=full)

    def _block_by_number(self, number: Any, full: Any = False) -> dict[str, Any] | None:
        try:
            found = self._block_number(number)
        except RpcFault as fault:
            if fault.code == _SERVER:
                return None
            raise
        return self._block(found, full)

    def _block_by_hash(self, block_hash: Any, full: Any = False) -> dict[str, Any] | None:
        number = self._chain.number_of(_bytes(block_hash, "block hash", 32))
        return None if number is None else self._block(number, full)

    def _fee_history(self, count: Any, newest: Any, percentiles: Any = None) -> dict[str, Any]:
        wanted = count if type(count) is int else _number(count, "block count")
        last = self._block_number(newest)
        ranks = [] if percentiles is None else percentiles
        if not isinstance(ranks, list) or len(ranks) > 100:
            raise RpcFault(_INVALID_PARAMS, "the third parameter is a list of at most 100 percentiles")
        first = max(last - min(max(wanted, 0), MAX_FEE_HISTORY) + 1, 0)
        headers = [self._chain.header(number) for number in range(first, last + 1)]
        fees = [header.base_fee_per_gas for header in headers]
        fees.append(
            self._chain.header(last + 1).base_fee_per_gas
            if last < self._chain.head
            else self._chain.next_base_fee_wei()
        )
        answer: dict[str, Any] = {
            "oldestBlock": quantity(first),
            "baseFeePerGas": [quantity(fee) for fee in fees],
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
        }
        if ranks:
            answer["reward"] = [[quantity(_TIP_WEI)] * len(ranks) for _ in headers]
        return answer

    # Events

    def _logs(self, wanted: Any) -> list[dict[str, Any]]:
        if not isinstance(wanted, dict):
            raise RpcFault(_INVALID_PARAMS, "a filter is an object")
        if wanted.get("blockHash") is not None:
            first = last = self._block_number(wanted["blockHash"])
        else:
            first = self._block_number(wanted.get("fromBlock", "latest"))
            to_block = wanted.get("toBlock", "latest")
            try:
                last = self._block_number(to_block)
            except RpcFault as fault:
                if fault.code != _SERVER:
                    raise
                last = self._chain.head  # a range may end in the future
        addresses = _alternatives(wanted.get("address"), lambda item: _address(item))
        topics = wanted.get("topics") or []
        if not isinstance(topics, list) or len(topics) > 4:
            raise RpcFault(_INVALID_PARAMS, "topics is a list of at most 4")
        by_place = [_alternatives(topic, lambda item: _bytes(item, "topic", 32)) for topic in topics]
        found: list[dict[str, Any]] = []
        for log in self._chain.logs(first, last):
            if _fits(log, addresses, by_place):
                if len(found) == MAX_LOGS:
                    raise RpcFault(_LIMIT, f"more than {MAX_LOGS} events: ask for fewer blocks")
                found.append(log_json(log, self._chain.header(log.block)))
        return found

    # What only this chain has

    def _faucet(self, address: Any, wei: Any, token_uusd: Any = 0) -> dict[str, Any]:
        amounts = [
            item if type(item) is int else _number(item, name)
            for item, name in ((wei, "wei"), (token_uusd, "token_uusd"))
        ]
        try:
            mined = self._node.faucet(_address(address), *amounts)
        except ValueError as exc:
            raise RpcFault(_INVALID_PARAMS, str(exc)) from exc
        except TransactionRefused as exc:
            raise RpcFault(_SERVER, str(exc)) from exc
        hashes = [data_hex(item.hash) for item in mined]
        return {"blockNumber": quantity(self._chain.head), "transactions": hashes}

    def _increase_time(self, seconds: Any) -> str:
        amount = seconds if type(seconds) is int else _number(seconds, "seconds")
        try:
            return quantity(self._node.advance(amount))
        except ValueError as exc:
            raise RpcFault(_INVALID_PARAMS, str(exc)) from exc

    def _info(self) -> dict[str, Any]:
        return {
            "chain_id": self._chain.genesis.chain_id,
            "hub": data_hex(self._node.hub),
            "token": data_hex(self._node.token),
            "faucet": data_hex(self._node.faucet_address),
        }


def _dump(answer: Any) -> bytes:
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode("ascii")


def _no_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which no JSON has."""
    raise ValueError(name)


def _is_id(value: Any) -> bool:
    """Whether it can be sent back as it came: 1e400 is read as infinity, and there is no JSON for that."""
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _error(request_id: Any, fault: RpcFault) -> dict[str, Any]:
    error: dict[str, Any] = {"code": fault.code, "message": str(fault)}
    if fault.data is not None:
        error["data"] = fault.data
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def _call_fault(exc: CallFailed) -> RpcFault:
    if not exc.reverted:
        return RpcFault(_SERVER, str(exc))
    reason = _revert_reason(exc.output)
    message = f"execution reverted: {reason}" if reason else "execution reverted"
    return RpcFault(_REVERTED, message, data_hex(exc.output))


def _revert_reason(output: bytes) -> str:
    if not output.startswith(_ERROR_STRING) or len(output) < 68:
        return ""
    size = int.from_bytes(output[36:68], "big")
    return output[68 : 68 + min(size, 1024)].decode("utf-8", "replace")


def _bytes(value: Any, what: str, size: int | None = None) -> bytes:
    try:
        if not isinstance(value, str) or value[:2] != "0x" or not value.isascii() or " " in value:
            raise ValueError
        raw = bytes.fromhex(value[2:])
    except ValueError:
        raise RpcFault(_INVALID_PARAMS, f"{what} is not hex with 0x in front") from None
    if size is not None and len(raw) != size:
        raise RpcFault(_INVALID_PARAMS, f"{what} does not have {size} bytes")
    return raw


def _address(value: Any) -> Address:
    return Address(_bytes(value, "address", 20))


def _number(value: Any, what: str) -> int:
    if isinstance(value, str) and value[:2] == "0x" and 2 < len(value) <= 66 and value[2:].isalnum():
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise RpcFault(_INVALID_PARAMS, f"{what} is not an unsigned number in hex with 0x in front")


def _alternatives(value: Any, read: Callable[[Any], bytes]) -> frozenset[bytes] | None:
    """None stands for anything; a list for any of its items."""
    if value is None or value == []:
        return None
    items = value if isinstance(value, list) else [value]
    if len(items) > 1000:
        raise RpcFault(_INVALID_PARAMS, "at most 1000 alternatives")
    return frozenset(read(item) for item in items)


def _fits(log: LogEntry, addresses: frozenset[bytes] | None, topics: Sequence[frozenset[bytes] | None]) -> bool:
    if addresses is not None and log.address not in addresses:
        return False
    if len(topics) > len(log.topics):
        return False
    return all(wanted is None or topic in wanted for wanted, topic in zip(topics, log.topics, strict=False))
