"""Blocks, transactions, receipts and events in the shapes of ethereum/execution-apis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._devchain_evm import LogEntry, Mined

__all__ = ["block_json", "data_hex", "log_json", "quantity", "receipt_json", "transaction_json", "waiting_json"]


def quantity(value: int) -> str:
    """An unsigned number: hex without leading zeros."""
    return hex(value)


def data_hex(value: bytes) -> str:
    """Bytes: hex, two digits each."""
    return "0x" + value.hex()


def _bloom(value: int) -> str:
    return data_hex(value.to_bytes(256, "big"))


def log_json(log: LogEntry, header: Any) -> dict[str, Any]:
    """An event; `header` is its block's."""
    return {
        "address": data_hex(log.address),
        "topics": [data_hex(topic) for topic in log.topics],
        "data": data_hex(log.data),
        "blockNumber": quantity(log.block),
        "blockHash": data_hex(header.hash),
        "blockTimestamp": quantity(header.timestamp),
        "transactionHash": data_hex(log.tx_hash),
        "transactionIndex": quantity(log.tx_index),
        "logIndex": quantity(log.log_index),
        "removed": False,
    }


def receipt_json(item: Mined, header: Any) -> dict[str, Any]:
    """A receipt; `header` is its block's."""
    return {
        "type": quantity(item.tx.type_id or 0),
        "status": quantity(int(item.ok)),
        "transactionHash": data_hex(item.hash),
        "transactionIndex": quantity(item.index),
        "blockHash": data_hex(header.hash),
        "blockNumber": quantity(item.block),
        "from": data_hex(item.sender),
        "to": data_hex(item.tx.to) if item.tx.to else None,
        "contractAddress": None if item.created is None else data_hex(item.created),
        "gasUsed": quantity(item.gas_used),
        "cumulativeGasUsed": quantity(item.cumulative_gas),
        "effectiveGasPrice": quantity(item.gas_price_wei),
        "logs": [log_json(log, header) for log in item.logs],
        "logsBloom": _bloom(item.receipt.bloom),
    }


def transaction_json(item: Mined, header: Any) -> dict[str, Any]:
    """A transaction; `header` is its block's."""
    return {
        **_transaction(item.tx),
        "blockHash": data_hex(header.hash),
        "blockNumber": quantity(item.block),
        "transactionIndex": quantity(item.index),
        "gasPrice": quantity(item.gas_price_wei),
    }


def waiting_json(tx: Any) -> dict[str, Any]:
    """A transaction that waits for a block."""
    most_wei = tx.max_fee_per_gas if (tx.type_id or 0) == 2 else tx.gas_price
    nowhere = {"blockHash": None, "blockNumber": None, "transactionIndex": None}
    return {**_transaction(tx), **nowhere, "gasPrice": quantity(most_wei)}


def _transaction(tx: Any) -> dict[str, Any]:
    kind = tx.type_id or 0
    found: dict[str, Any] = {
        "type": quantity(kind),
        "hash": data_hex(tx.hash),
        "nonce": quantity(tx.nonce),
        "from": data_hex(tx.sender),
        "to": data_hex(tx.to) if tx.to else None,
        "value": quantity(tx.value),
        "gas": quantity(tx.gas),
        "input": data_hex(tx.data),
        "chainId": quantity(tx.chain_id),
        "r": quantity(tx.r),
        "s": quantity(tx.s),
        "v": quantity(tx.v if kind == 0 else tx.y_parity),
    }
    if kind:
        found["yParity"] = quantity(tx.y_parity)
        found["accessList"] = [
            {
                "address": data_hex(address),
                "storageKeys": [data_hex(int(slot).to_bytes(32, "big")) for slot in slots],
            }
            for address, slots in tx.access_list
        ]
    if kind == 2:
        found["maxFeePerGas"] = quantity(tx.max_fee_per_gas)
        found["maxPriorityFeePerGas"] = quantity(tx.max_priority_fee_per_gas)
    return found


def block_json(header: Any, transactions: Sequence[Mined], *, full: bool) -> dict[str, Any]:
    """A block with the hashes of its transactions, or with all of each where `full`."""
    return {
        "number": quantity(header.block_number),
        "hash": data_hex(header.hash),
        "parentHash": data_hex(header.parent_hash),
        "sha3Uncles": data_hex(header.uncles_hash),
        "miner": data_hex(header.coinbase),
        "stateRoot": data_hex(header.state_root),
        "transactionsRoot": data_hex(header.transaction_root),
        "receiptsRoot": data_hex(header.receipt_root),
        "logsBloom": _bloom(header.bloom),
        "difficulty": quantity(header.difficulty),
        "gasLimit": quantity(header.gas_limit),
        "gasUsed": quantity(header.gas_used),
        "timestamp": quantity(header.timestamp),
        "extraData": data_hex(header.extra_data),
        "mixHash": data_hex(header.mix_hash),
        "nonce": data_hex(header.nonce),
        "baseFeePerGas": quantity(header.base_fee_per_gas),
        "withdrawalsRoot": data_hex(header.withdrawals_root),
        "withdrawals": [],
        "blobGasUsed": quantity(header.blob_gas_used),
        "excessBlobGas": quantity(header.excess_blob_gas),
        "parentBeaconBlockRoot": data_hex(header.parent_beacon_block_root),
        "requestsHash": data_hex(header.requests_hash),
        "size": quantity(0),
        "uncles": [],
        "transactions": [transaction_json(item, header) if full else data_hex(item.hash) for item in transactions],
    }
