"""The EVM chain: the hub contract, a client for any endpoint, and a development chain to run without one.

Importing this package loads none of it: names are looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._artifacts import Artifact, load_artifact
    from ._client import DevInfo, Fees, Head, HubClient, Receipt, ReceiptTimeout, dev_info, faucet
    from ._devchain_process import DevChainProcess
    from ._faults import (
        AnswerTooLarge,
        AnswerTruncated,
        EndpointInsecure,
        EndpointRefused,
        EndpointStatus,
        EndpointTimeout,
        EndpointUnknown,
        FeeTooLow,
        HeadOutOfLine,
        NoGas,
        NotJsonRpc,
        RateLimited,
    )
    from ._hub import (
        CLOSE_DELAY_S,
        MAX_BATCH,
        ChannelState,
        CheckpointEvent,
        ClaimedEvent,
        ClaimRow,
        FundRow,
        decode_checkpoints,
        decode_claims,
        encode_approve,
        encode_claim,
        encode_deposit,
        encode_finalize,
        encode_fund,
        encode_request_close,
        encode_withdraw,
    )
    from ._place import TOKEN_DECIMALS, HubPlace, NoHub, WrongHub, check_token, find_hub
    from ._rpc import ChainClient
    from ._tx import SignedTx, UnsignedTx, contract_address, decode_transaction, sign_transaction, transaction_hash
    from .devchain import DEV_CHAIN_ID, DevChainInfo, serve_devchain

__all__ = [
    "CLOSE_DELAY_S",
    "DEV_CHAIN_ID",
    "MAX_BATCH",
    "TOKEN_DECIMALS",
    "AnswerTooLarge",
    "AnswerTruncated",
    "Artifact",
    "ChainClient",
    "ChannelState",
    "CheckpointEvent",
    "ClaimRow",
    "ClaimedEvent",
    "DevChainInfo",
    "DevChainProcess",
    "DevInfo",
    "EndpointInsecure",
    "EndpointRefused",
    "EndpointStatus",
    "EndpointTimeout",
    "EndpointUnknown",
    "FeeTooLow",
    "Fees",
    "FundRow",
    "Head",
    "HeadOutOfLine",
    "HubClient",
    "HubPlace",
    "NoGas",
    "NoHub",
    "NotJsonRpc",
    "RateLimited",
    "Receipt",
    "ReceiptTimeout",
    "SignedTx",
    "UnsignedTx",
    "WrongHub",
    "check_token",
    "contract_address",
    "decode_checkpoints",
    "decode_claims",
    "decode_transaction",
    "dev_info",
    "encode_approve",
    "encode_claim",
    "encode_deposit",
    "encode_finalize",
    "encode_fund",
    "encode_request_close",
    "encode_withdraw",
    "faucet",
    "find_hub",
    "load_artifact",
    "serve_devchain",
    "sign_transaction",
    "transaction_hash",
]

_MODULES = {
    "_artifacts": ("Artifact", "load_artifact"),
    "_client": ("DevInfo", "Fees", "Head", "HubClient", "Receipt", "ReceiptTimeout", "dev_info", "faucet"),
    "_devchain_process": ("DevChainProcess",),
    "_faults": (
        "AnswerTooLarge",
        "AnswerTruncated",
        "EndpointInsecure",
        "EndpointRefused",
        "EndpointStatus",
        "EndpointTimeout",
        "EndpointUnknown",
        "FeeTooLow",
        "HeadOutOfLine",
        "NoGas",
        "NotJsonRpc",
        "RateLimited",
    ),
    "_place": ("TOKEN_DECIMALS", "HubPlace", "NoHub", "WrongHub", "check_token", "find_hub"),
    "_rpc": ("ChainClient",),
    "_tx": (
        "SignedTx",
        "UnsignedTx",
        "contract_address",
        "decode_transaction",
        "sign_transaction",
        "transaction_hash",
    ),
    "devchain": ("DEV_CHAIN_ID", "DevChainInfo", "serve_devchain"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # What is not listed above is calldata and events, by far the most.
    return getattr(importlib.import_module(f".{_HOME.get(name, '_hub')}", __name__), name)
