"""Transactions that wait for the development chain's next block, where it makes blocks by the clock.

As with any node, what waits is kept in memory only: a crash forgets it, and whoever sent it sends it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ._devchain_evm import BLOCK_GAS_LIMIT, DevChain, TransactionRefused

__all__ = ["Pool"]

_MOST: Final = 4_096
_MOST_OF_ONE: Final = 64  # of one sender's, as go-ethereum has it for those beyond its next nonce
_RISE_PERCENT: Final = 10


class Pool:
    """What waits, by sender and nonce.

    Args:
        chain: decodes and checks.
    """

    def __init__(self, chain: DevChain) -> None:
        self._chain = chain
        self._by_sender: dict[bytes, dict[int, tuple[Any, bytes]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_sender.values()))

    def get(self, tx_hash: bytes) -> Any | None:
        """The transaction with this hash, as py-evm has it."""
        return next((tx for tx, _ in self._all() if tx.hash == tx_hash), None)

    def _all(self) -> Iterator[tuple[Any, bytes]]:
        for waiting in self._by_sender.values():
            yield from waiting.values()

    def next_nonce(self, sender: bytes, mined: int) -> int:
        """The nonce after those that are mined and that wait without a gap."""
        waiting = self._by_sender.get(sender, {})
        while mined in waiting:
            mined += 1
        return mined

    def add(self, raw: bytes) -> None:
        """Take a transaction.

        Raises:
            TransactionRefused: it is malformed, known, can never be mined, does not outbid another one for its nonce by
                a tenth, or there is no room.
        """
        tx = self._chain.decode(raw)
        state = self._chain.state(self._chain.head)
        nonce: int = state.get_nonce(tx.sender)
        if tx.nonce < nonce:
            raise TransactionRefused(f"nonce too low: next nonce {nonce}, tx nonce {tx.nonce}")
        if tx.gas < tx.intrinsic_gas:
            raise TransactionRefused(f"intrinsic gas too low: have {tx.gas}, want {tx.intrinsic_gas}")
        most_wei, tip_wei = _fees(tx)
        have_wei, want_wei = state.get_balance(tx.sender), most_wei * tx.gas + tx.value
        if have_wei < want_wei:
            raise TransactionRefused(f"insufficient funds for gas * price + value: have {have_wei} want {want_wei}")
        waiting = self._by_sender.get(tx.sender, {})
        if tx.nonce in waiting:
            other, other_raw = waiting[tx.nonce]
            if other_raw == raw:
                raise TransactionRefused("already known")
            least = 100 + _RISE_PERCENT
            if any(new * 100 < old * least for new, old in zip((most_wei, tip_wei), _fees(other), strict=True)):
                raise TransactionRefused("replacement transaction underpriced")
        elif len(self) >= _MOST or len(waiting) >= _MOST_OF_ONE:
            raise TransactionRefused("txpool is full")
        self._by_sender.setdefault(tx.sender, {})[tx.nonce] = (tx, raw)

    def drop(self, tx: Any) -> None:
        """Forget a transaction."""
        waiting = self._by_sender.get(tx.sender, {})
        waiting.pop(tx.nonce, None)
        if not waiting:
            self._by_sender.pop(tx.sender, None)

    def choose(self) -> list[tuple[Any, bytes]]:
        """Those for the next block: of each sender in nonce order and without a gap, the best tips first, as far as
        they pay its base fee and fit into it. Forgets what can't be mined any more."""
        state = self._chain.state(self._chain.head)
        base_wei = self._chain.next_base_fee_wei()
        for tx in [tx for tx, _ in self._all() if tx.nonce < state.get_nonce(tx.sender)]:
            self.drop(tx)
        nonces = {sender: state.get_nonce(sender) for sender in self._by_sender}
        chosen: list[tuple[Any, bytes]] = []
        room = BLOCK_GAS_LIMIT
        while True:
            fronts = [
                self._by_sender[sender][nonce] for sender, nonce in nonces.items() if nonce in self._by_sender[sender]
            ]
            fitting = [item for item in fronts if _fees(item[0])[0] >= base_wei and item[0].gas <= room]
            if not fitting:
                return chosen
            best = max(fitting, key=lambda item: min(_fees(item[0])[1], _fees(item[0])[0] - base_wei))
            chosen.append(best)
            nonces[best[0].sender] += 1
            room -= best[0].gas


def _fees(tx: Any) -> tuple[int, int]:
    """What it pays for a unit of gas at most, and to the block's producer at most."""
    if (tx.type_id or 0) == 2:
        return tx.max_fee_per_gas, tx.max_priority_fee_per_gas
    return tx.gas_price, tx.gas_price
