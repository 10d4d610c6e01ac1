"""The development chain with its journal, its contracts and its faucet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import coincurve

from p2pcompute_protocols.channel._voucher import address_of, keccak256
from p2pcompute_protocols.ids import Address

from ._artifacts import hub_creation, registry_creation, token_creation
from ._devchain_evm import DevChain, Genesis, Mined, TransactionRefused
from ._devchain_journal import Journal, JournalCorrupt
from ._devchain_pool import Pool
from ._hub import encode_transfer
from ._registry import DEFAULT_MIN_STAKE_UUSD, DEFAULT_STAKE_PER_CORE_UUSD
from ._registry_place import REGISTRAR_SECRET, dev_registry
from ._tx import UnsignedTx, contract_address, sign_transaction

__all__ = ["DEV_CHAIN_ID", "DevNode"]

DEV_CHAIN_ID = 2_700_031
"""The development chain's ID: its own, so that nothing signed for it counts anywhere else."""

FAUCET_MAX_WEI = 10**24
FAUCET_MAX_UUSD = 10**15

_JOURNAL_VERSION = 2  # 1 had another hub, which does not understand what is sent today
_SUPPLY_UUSD = 10**21
_FAUCET_WEI = 10**36
_REGISTRAR_WEI = 10**19
_FAUCET_SECRET = keccak256(b"p2pcompute development chain: faucet")  # public; there is nothing to protect


def _now_s() -> int:
    return int(time.time())


class DevNode:
    """A development chain that remembers.

    Everything here blocks: it computes and writes to disk. One caller at a time.

    Args:
        directory: where the journal lies, or None for a chain that forgets (for tests in one process).
        now_s: the clock, UNIX seconds.
        by_interval: transactions wait for `tick`; else each is mined as it comes.

    Attributes:
        chain: the chain itself.
        token: address of the test token, 6 decimals.
        hub: address of the channel hub for it.
        registry: address of the stake registry for it.

    Raises:
        ProfileInUse, ConfigError: see `Journal`.
        JournalCorrupt: the journal is damaged, or was written by another version of the chain.
    """

    def __init__(self, directory: Path | None, *, now_s: Callable[[], int] = _now_s, by_interval: bool = False) -> None:
        self._now_s = now_s
        self._ahead_s = 0
        self._faucet = coincurve.PrivateKey(_FAUCET_SECRET)
        self.faucet_address = address_of(self._faucet.public_key)
        self.token = contract_address(self.faucet_address, 0)
        self.hub = contract_address(self.faucet_address, 1)
        self._registrar = coincurve.PrivateKey(REGISTRAR_SECRET)
        self.registry = dev_registry()
        self._journal = None if directory is None else Journal(directory)
        try:
            entries = self._journal.entries if self._journal else []
            self.chain = self._replay(entries) if entries else self._start()
            if self.chain.head == 0:
                # The chain is new, or was killed between its first two lines.
                self._deploy()
            if not self.chain.state(self.chain.head).get_code(self.registry):
                self._deploy_registry()  # a chain of a version that had none gets it too
        except BaseException:
            self.close()
            raise
        finally:
            if self._journal:
                self._journal.entries = []  # they are in the chain now
        self.pool = Pool(self.chain) if by_interval else None

    # Start

    def _genesis(self, timestamp_s: int, *, with_registrar: bool) -> Genesis:
        balances = [(self.faucet_address, _FAUCET_WEI)]
        if with_registrar:
            balances.append((address_of(self._registrar.public_key), _REGISTRAR_WEI))
        return Genesis(chain_id=DEV_CHAIN_ID, timestamp_s=timestamp_s, balances_wei=tuple(balances))

    def _start(self) -> DevChain:
        timestamp_s = self._now_s()
        if self._journal:
            first = {"journal": _JOURNAL_VERSION, "chain_id": DEV_CHAIN_ID, "genesis_s": timestamp_s, "registrar": True}
            self._journal.append(first)
        return DevChain(self._genesis(timestamp_s, with_registrar=True))

    def _replay(self, entries: Sequence[dict[str, Any]]) -> DevChain:
        first = entries[0]
        if first.get("journal") != _JOURNAL_VERSION or first.get("chain_id") != DEV_CHAIN_ID:
            raise JournalCorrupt(
                "the chain's journal is of another version; move chain.journal away to start a new chain"
            )
        chain = DevChain(self._genesis(int(first["genesis_s"]), with_registrar=first.get("registrar") is True))
        for number, entry in enumerate(entries[1:], start=1):
            if "ahead_s" in entry:
                self._ahead_s = int(entry["ahead_s"])
                continue
            try:
                chain.mine([bytes.fromhex(raw) for raw in entry["txs"]], int(entry["t"]))
                same = chain.header(chain.head).hash.hex() == entry["hash"]
            except (KeyError, ValueError, TypeError, TransactionRefused):
                same = False
            if not same:
                raise JournalCorrupt(
                    f"line {number + 1} of the chain's journal does not give the block that it gave before; "
                    "move chain.journal away to start a new chain"
                )
        return chain

    def _deploy(self) -> None:
        """All contracts in block 1; the registry is left out where its account has nothing yet."""
        creations = (token_creation(self.faucet_address, _SUPPLY_UUSD), hub_creation(self.token))
        raws = [self._sign(None, data, nonce=nonce, gas=4_000_000) for nonce, data in enumerate(creations)]
        if self.chain.state(0).get_balance(address_of(self._registrar.public_key)):
            raws.append(self._registry_creation())
        self._must(self._mine(raws))

    def _deploy_registry(self) -> None:
        """The registry on a chain that was made before there was one. Its account is its own, so that its address
        depends on nothing that was done on the chain before."""
        registrar = address_of(self._registrar.public_key)
        nonce = self.chain.state(self.chain.head).get_nonce(self.faucet_address)
        self._must(self._mine([self._sign(registrar, b"", nonce=nonce, gas=100_000, value_wei=_REGISTRAR_WEI)]))
        self._must(self._mine([self._registry_creation()]))

    def _registry_creation(self) -> bytes:
        data = registry_creation(
            self.token, min_stake_uusd=DEFAULT_MIN_STAKE_UUSD, stake_per_core_uusd=DEFAULT_STAKE_PER_CORE_UUSD
        )
        return self._sign(None, data, nonce=0, gas=4_000_000, key=self._registrar)

    @staticmethod
    def _must(mined: Sequence[Mined]) -> None:
        if not all(item.ok for item in mined):
            raise AssertionError("the contracts in this package do not deploy")

    # Use

    def send(self, raw: bytes) -> bytes:
        """Mine a raw transaction; its hash comes back when it is on disk. By interval, have it wait for the next block.

        Raises:
            TransactionRefused: it can't be mined as it stands, or is on the chain already.
            DiskFull, StorageError: the journal failed; this object is of no more use.
        """
        tx_hash = keccak256(raw)
        if self.chain.mined(tx_hash) is not None:
            raise TransactionRefused("already known")
        if self.pool is None:
            self._mine([raw])
        else:
            self.pool.add(raw)
        return tx_hash

    def tick(self) -> None:
        """Make a block of what waits; an empty one where nothing does.

        Raises:
            DiskFull, StorageError: see `send`.
        """
        chosen = [] if self.pool is None else self.pool.choose()
        while True:
            try:
                self._mine([raw for _, raw in chosen])
                return
            except TransactionRefused:
                # Each could be mined, and all of them together can't: an account pays for one and not for two.
                if len(chosen) == 1 and self.pool is not None:
                    self.pool.drop(chosen[0][0])
                chosen = chosen[: len(chosen) // 2]

    def faucet(self, address: Address, wei: int, token_uusd: int) -> tuple[Mined, ...]:
        """Send development money to an account: ether for gas, and test tokens.

        Raises:
            ValueError: an amount is negative or above what the faucet gives at once.
        """
        if not 0 <= wei <= FAUCET_MAX_WEI:
            raise ValueError(f"wei is not between 0 and {FAUCET_MAX_WEI}")
        if not 0 <= token_uusd <= FAUCET_MAX_UUSD:
            raise ValueError(f"token_uusd is not between 0 and {FAUCET_MAX_UUSD}")
        nonce = self.chain.state(self.chain.head).get_nonce(self.faucet_address)
        raws: list[bytes] = []
        if wei:
            raws.append(self._sign(address, b"", nonce=nonce, gas=100_000, value_wei=wei))
        if token_uusd:
            data = encode_transfer(address, token_uusd)
            raws.append(self._sign(self.token, data, nonce=nonce + len(raws), gas=100_000))
        return self._mine(raws) if raws else ()

    def advance(self, seconds: int) -> int:
        """Set the chain's clock forward for good; how far ahead of the real one it is, in seconds.

        Raises:
            ValueError: not between 0 and ten years.
        """
        if not 0 <= seconds <= 10 * 365 * 86_400:
            raise ValueError("seconds is not between 0 and ten years")
        if self._journal:
            self._journal.append({"ahead_s": self._ahead_s + seconds})
        self._ahead_s += seconds
        self._mine([])  # so that calls see the new time as well
        return self._ahead_s

    def close(self) -> None:
        """Give the journal back. What was acknowledged is on disk already."""
        if self._journal:
            self._journal.close()

    # Within

    def _mine(self, raws: Sequence[bytes]) -> tuple[Mined, ...]:
        timestamp_s = self._now_s() + self._ahead_s
        mined = self.chain.mine(raws, timestamp_s)
        if self._journal:
            header = self.chain.header(self.chain.head)
            self._journal.append({"t": header.timestamp, "txs": [raw.hex() for raw in raws], "hash": header.hash.hex()})
        return mined

    def _sign(
        self,
        to: Address | None,
        data: bytes,
        *,
        nonce: int,
        gas: int,
        value_wei: int = 0,
        key: coincurve.PrivateKey | None = None,
    ) -> bytes:
        tx = UnsignedTx(
            chain_id=DEV_CHAIN_ID,
            nonce=nonce,
            to=to,
            data=data,
            gas=gas,
            max_fee_wei=self.chain.next_base_fee_wei() * 2 + 1,
            priority_fee_wei=0,
            value_wei=value_wei,
        )
        return sign_transaction(tx, key or self._faucet).raw
