"""Anvil in the shape of the unit tests' `ForkNode`: the same histories on another EVM, in virtual time.

Requests are made in the test's own thread and block it, so virtual time stands still while anvil works. Its blocks get
their times from virtual time.
"""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from p2pcompute.chain._artifacts import load_artifact, token_creation
from p2pcompute.chain._hub import encode_transfer
from p2pcompute.chain._tx import UnsignedTx, contract_address, sign_transaction, transaction_hash
from p2pcompute_protocols._evm import keccak256
from p2pcompute_protocols.ids import Address

from ...unit.payments.forkchain import BLOCK_S, CHAIN_ID, SEES_BACK, TOKENS

__all__ = ["AnvilNode"]

_GAS = 3_000_000
_FEE_WEI = 10**12


@dataclass(frozen=True)
class _Mined:
    ok: bool
    sender: Address
    created: Address | None = None


@dataclass(frozen=True)
class _Header:
    timestamp: int


@dataclass(frozen=True)
class _Log:
    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    tx_hash: bytes


class AnvilNode:
    """See `ForkNode`, of which it has what histories use.

    Args:
        port: where anvil listens; an anvil of its own with chain ID 1234.
    """

    def __init__(
        self,
        now_s: Callable[[], int],
        owners: Sequence[Any],
        *,
        token: str = "plain",
        hub_code: bytes | None = None,
        bank: Any,
        port: int,
    ) -> None:
        self._now_s = now_s
        self._bank = bank
        self._plain = token == "plain"
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._raws: dict[bytes, bytes] = {}
        self.chain = self
        self.first: list[tuple[str, Any, bytes]] = []
        self.victim = Address(bytes(20))
        self.lose = 0
        self.changes = 0
        self.taken: Counter[str] = Counter()
        for account in (bank, *owners):
            self.rpc("anvil_setBalance", "0x" + account.address.hex(), hex(10**30))
        code = (
            token_creation(bank.address, 10**15)
            if self._plain
            else bytes.fromhex(json.loads((TOKENS / f"{token}.json").read_text())["bytecode"][2:])
        )
        self.token = self._create(code)
        self.hub = self._create((hub_code or load_artifact("ChannelHub").bytecode) + self.token.rjust(32, b"\0"))
        self.deployed = self.head

    def close(self) -> None:
        self._http.close()

    def rpc(self, method: str, *params: Any) -> Any:
        answer = json.loads(self._post(self._ask(method, *params)))
        assert "result" in answer, (method, answer)
        return answer["result"]

    def answer(self, body: bytes) -> bytes:
        """What the endpoint says; transactions on their way to it may be lost, or come second."""
        if b"eth_sendRawTransaction" not in body:
            return self._post(body)
        message = json.loads(body)
        raw = bytes.fromhex(message["params"][0][2:])
        if self.lose:
            self.lose -= 1
            self.taken["lost transaction"] += 1
            result = "0x" + transaction_hash(raw).hex()
            return json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        if self.first and self._of_victim(raw):
            first, self.first = self.first, []
            for name, key, data in first:
                self.taken[name] += self.transact(key, self.hub, data).ok
        said = self._post(body)
        if "result" in json.loads(said):
            self._raws[transaction_hash(raw)] = raw
            self._mine()
        return said

    def _post(self, body: bytes) -> bytes:
        self._http.request("POST", "/", body, {"content-type": "application/json"})
        return self._http.getresponse().read()

    @staticmethod
    def _ask(method: str, *params: Any) -> bytes:
        return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()

    def _of_victim(self, raw: bytes) -> bool:
        from eth.vm.forks.prague.transactions import PragueTransactionBuilder

        return bool(PragueTransactionBuilder().decode(raw).sender == self.victim)

    # Blocks

    @property
    def head(self) -> int:
        return int(self.rpc("eth_blockNumber"), 16)

    def header(self, number: int) -> _Header:
        return _Header(int(self.rpc("eth_getBlockByNumber", hex(number), False)["timestamp"], 16))

    def mined(self, tx_hash: bytes) -> _Mined:
        found = self.rpc("eth_getTransactionByHash", "0x" + tx_hash.hex())
        return _Mined(True, Address(bytes.fromhex(found["from"][2:])))

    def logs(self, first: int, last: int) -> list[_Log]:
        found = self.rpc("eth_getLogs", {"fromBlock": hex(first), "toBlock": hex(last)})
        return [
            _Log(
                address=Address(bytes.fromhex(log["address"][2:])),
                topics=tuple(bytes.fromhex(topic[2:]) for topic in log["topics"]),
                data=bytes.fromhex(log["data"][2:]),
                block=int(log["blockNumber"], 16),
                tx_hash=bytes.fromhex(log["transactionHash"][2:]),
            )
            for log in found
        ]

    def _mine(self, at_s: int | None = None) -> None:
        """A block, younger than the one before it by a second at least."""
        last = self.header(self.head).timestamp
        self.rpc("evm_setNextBlockTimestamp", max(at_s or self._now_s(), last + 1))
        self.rpc("evm_mine")
        self.changes += 1

    def catch_up(self) -> None:
        head = self.head
        missing = (self._now_s() - self.header(head).timestamp) // BLOCK_S
        for left in range(min(missing, SEES_BACK) - 1, -1, -1):
            self._mine(self._now_s() - left * BLOCK_S)

    def reorganise(self, depth: int, keep: Callable[[Any], bool]) -> int:
        self.catch_up()
        head = self.head
        depth = min(depth, head - self.deployed)
        gone = [
            (bytes.fromhex(text[2:]), self.mined(bytes.fromhex(text[2:])))
            for number in range(head - depth + 1, head + 1)
            for text in self.rpc("eth_getBlockByNumber", hex(number), False)["transactions"]
        ]
        self.rpc("anvil_reorg", depth, [])
        self.rpc("anvil_dropAllTransactions")
        self.changes += 1
        lost = 0
        for tx_hash, item in gone:
            raw = "0x" + self._raws[tx_hash].hex()
            if keep(item) and "result" in json.loads(self._post(self._ask("eth_sendRawTransaction", raw))):
                self._mine()
            else:
                lost += 1
        return lost

    # Transactions

    def transact(self, key: Any, to: Address | None, data: bytes) -> _Mined:
        nonce = int(self.rpc("eth_getTransactionCount", "0x" + key.address.hex(), "latest"), 16)
        tx = UnsignedTx(
            chain_id=CHAIN_ID,
            nonce=nonce,
            to=to,
            data=data,
            gas=_GAS,
            max_fee_wei=_FEE_WEI,
            priority_fee_wei=0,
        )
        signed = sign_transaction(tx, key.key)
        self._raws[signed.hash] = signed.raw
        self.rpc("eth_sendRawTransaction", "0x" + signed.raw.hex())
        self._mine()
        receipt = self.rpc("eth_getTransactionReceipt", "0x" + signed.hash.hex())
        created = contract_address(key.address, nonce) if to is None else None
        return _Mined(int(receipt["status"], 16) == 1, key.address, created)

    def _create(self, code: bytes) -> Address:
        made = self.transact(self._bank, None, code)
        assert made.ok
        assert made.created is not None
        return made.created

    def mint(self, owner: Address, amount_uusd: int) -> None:
        data = (
            encode_transfer(owner, amount_uusd)
            if self._plain
            else keccak256(b"mint(address,uint256)")[:4] + owner.rjust(32, b"\0") + amount_uusd.to_bytes(32, "big")
        )
        assert self.transact(self._bank, self.token, data).ok

    def call(self, to: Address, data: bytes) -> bytes:
        message = {"to": "0x" + to.hex(), "data": "0x" + data.hex()}
        return bytes.fromhex(self.rpc("eth_call", message, "latest")[2:])
