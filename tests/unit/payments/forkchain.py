"""A chain for attacks: py-evm with the committed bytecode behind JSON-RPC, that takes blocks back, lets somebody go
first, loses transactions, and makes blocks as virtual time passes."""

from __future__ import annotations

import bisect
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from p2pcompute.chain._artifacts import load_artifact, token_creation
from p2pcompute.chain._devchain_evm import DevChain, Genesis, Mined, TransactionRefused
from p2pcompute.chain._devchain_reads import Allowance
from p2pcompute.chain._devchain_rpc import DevRpc
from p2pcompute.chain._hub import encode_transfer
from p2pcompute.chain._tx import UnsignedTx, sign_transaction
from p2pcompute.errors import ChainUnreachable
from p2pcompute_protocols._evm import keccak256
from p2pcompute_protocols.ids import Address

__all__ = ["BLOCK_S", "CHAIN_ID", "SEES_BACK", "TOKENS", "Endpoint", "ForkNode"]

CHAIN_ID = 1234
BLOCK_S = 12
SEES_BACK = 13
"""Blocks that are worth making: nothing here looks at more depth, so longer silences have no more of them."""

TOKENS = Path(__file__).parents[2] / "contracts"
_GAS = 3_000_000
_WEI = 10**30


class ForkChain(DevChain):
    """A `DevChain` that forgets its newest blocks."""

    def take_back(self, depth: int) -> list[Mined]:
        """Forget so many blocks; the transactions that were in them."""
        keep = max(1, len(self._headers) - depth)
        gone = [item for block in self._blocks[keep:] for item in block]
        for item in gone:
            del self._mined[item.hash]
        for header in self._headers[keep:]:
            del self._numbers[header.hash]
        del self._headers[keep:], self._blocks[keep:]
        kept = bisect.bisect_left(self._log_blocks, keep)
        del self._logs[kept:], self._log_blocks[kept:]
        return gone


class ForkNode:
    """What `DevRpc` wants of a node, with a token of some kind and a hub for it.

    Args:
        now_s: the chain's clock, UNIX seconds.
        owners: who has ether for gas.
        token: "plain", or the name of a contract under tests/contracts.
        hub_code: what stands in the hub's place.
        bank: whose the tokens are.

    Attributes:
        first: (name, key, calldata) to be mined before the next transaction of `victim`.
        lose: how many of the next transactions are lost.
        changes: rises whenever a contract may say something else than before.
        taken: what of these was done.
    """

    pool = None  # transactions are mined as they come

    def __init__(
        self,
        now_s: Callable[[], int],
        owners: Sequence[Any],
        *,
        token: str = "plain",
        hub_code: bytes | None = None,
        bank: Any,
    ) -> None:
        self._now_s = now_s
        self._bank = bank
        self._plain = token == "plain"
        addresses = [bank.address, *(owner.address for owner in owners)]
        genesis = Genesis(
            chain_id=CHAIN_ID, timestamp_s=now_s(), balances_wei=tuple((address, _WEI) for address in addresses)
        )
        self.chain = ForkChain(genesis)
        self.first: list[tuple[str, Any, bytes]] = []
        self.victim = Address(bytes(20))
        self.lose = 0
        self.changes = 0
        self.taken: Counter[str] = Counter()
        code = (
            token_creation(bank.address, 10**15)
            if self._plain
            else bytes.fromhex(json.loads((TOKENS / f"{token}.json").read_text())["bytecode"][2:])
        )
        self.token = self._create(code)
        self.hub = self._create((hub_code or load_artifact("ChannelHub").bytecode) + self.token.rjust(32, b"\0"))
        self.faucet_address = bank.address
        self.deployed = self.chain.head
        self._rpc = DevRpc(self)  # type: ignore[arg-type]

    def _create(self, code: bytes) -> Address:
        mined = self.transact(self._bank, None, code)
        assert mined.created is not None
        return mined.created

    def mint(self, owner: Address, amount_uusd: int) -> None:
        """Tokens for an account."""
        data = (
            encode_transfer(owner, amount_uusd)
            if self._plain
            else keccak256(b"mint(address,uint256)")[:4] + owner.rjust(32, b"\0") + amount_uusd.to_bytes(32, "big")
        )
        assert self.transact(self._bank, self.token, data).ok

    # As others see it

    def send(self, raw: bytes) -> bytes:
        """Mine a transaction, behind those of whoever wants to be first; or lose it, and say that it was taken."""
        tx_hash = keccak256(raw)
        if self.chain.mined(tx_hash) is not None:
            raise TransactionRefused("already known")
        if self.lose:
            self.lose -= 1
            self.taken["lost transaction"] += 1
            return tx_hash
        if self.first and self.chain.decode(raw).sender == self.victim:
            first, self.first = self.first, []
            for name, key, data in first:
                self.taken[name] += self.transact(key, self.hub, data).ok
        self._mine([raw])
        return tx_hash

    def faucet(self, address: Address, wei: int, token_uusd: int) -> tuple[Mined, ...]:
        raise ValueError("there is no faucet")

    def advance(self, seconds: int) -> int:
        raise ValueError("its clock is the test's")

    def answer(self, body: bytes) -> bytes:
        """What the endpoint says to a body of JSON-RPC."""
        return self._rpc.answer(body)

    # As those that attack use it

    def transact(self, key: Any, to: Address | None, data: bytes) -> Mined:
        """A transaction of `key`'s in a block of its own, whether it reverts or not."""
        tx = UnsignedTx(
            chain_id=CHAIN_ID,
            nonce=self.chain.state(self.chain.head).get_nonce(key.address),
            to=to,
            data=data,
            gas=_GAS,
            max_fee_wei=100 * self.chain.next_base_fee_wei(),
            priority_fee_wei=0,
        )
        (mined,) = self._mine([sign_transaction(tx, key.key).raw])
        return mined

    def _mine(self, raws: Sequence[bytes]) -> tuple[Mined, ...]:
        self.changes += 1
        return self.chain.mine(raws, max(self._now_s(), self.chain.header(self.chain.head).timestamp))

    def catch_up(self) -> None:
        """The blocks of the time that has passed: as many as anybody can tell from fewer."""
        head = self.chain.header(self.chain.head)
        missing = (self._now_s() - head.timestamp) // BLOCK_S
        if missing <= 0:
            return
        busy = any(self.chain.transactions(n) for n in range(max(1, self.chain.head - SEES_BACK), self.chain.head + 1))
        for left in range(min(missing, SEES_BACK if busy else 1) - 1, -1, -1):
            self.chain.mine([], max(head.timestamp, self._now_s() - left * BLOCK_S))

    def reorganise(self, depth: int, keep: Callable[[Mined], bool]) -> int:
        """Take blocks back, put others into their place, and into the first of those what is to `keep`. How many
        transactions are gone."""
        self.catch_up()
        depth = min(depth, self.chain.head - self.deployed)
        before = self.chain.head
        self.changes += 1
        gone = self.chain.take_back(depth)
        lost = 0
        for item in gone:
            try:
                if not keep(item):
                    raise TransactionRefused("left out")
                self._mine([item.tx.encode()])
            except TransactionRefused:  # or one before it, of the same account, was
                lost += 1
        while self.chain.head < before:
            self._mine([])
        return lost

    def call(self, to: Address, data: bytes) -> bytes:
        """What a contract says in the newest block."""
        return self.chain.call(
            sender=Address(bytes(20)),
            to=to,
            data=data,
            value_wei=0,
            gas=1_000_000,
            number=self.chain.head,
            allowance=Allowance(call_gas=1_000_000),
        )


class Endpoint:
    """JSON-RPC to a `ForkNode`, for one client; it can be down."""

    def __init__(self, node: ForkNode) -> None:
        self._node = node
        self.down = False

    async def exchange(self, body: bytes) -> bytes:
        """As `ChainClient` wants it."""
        await trio.lowlevel.checkpoint()
        if self.down:
            raise ChainUnreachable("the endpoint is down")
        self._node.catch_up()
        return self._node.answer(body)
