"""libp2p's Kademlia DHT with its storage made strict, bounded and fresh."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator

from p2pcompute.errors import RecordRefused

from ._api import KEY_BYTES, RecordValidator
from ._checks import check_record

__all__ = ["KAD_ID", "MAX_PROVIDED_KEYS", "MAX_RECORDS", "MendedDht", "record_name"]

KAD_ID = str(PROTOCOL_ID)
NAMESPACE = "p2pcompute"
MAX_RECORDS = 4096  # 64 MiB of values at most
MAX_PROVIDED_KEYS = 4096  # of up to 20 providers each
QUORUM = 3  # answers that end a look-up; the best of them wins

_V = TypeVar("_V")


def record_name(key: bytes) -> str:
    """The name of our record in libp2p's form."""
    return f"/{NAMESPACE}/{key.hex()}"


class _Records(Validator):
    """A `RecordValidator` in libp2p's form."""

    def __init__(self, inner: RecordValidator) -> None:
        self._inner = inner

    def validate(self, key: str, value: bytes) -> None:
        check_record(self._inner, _raw_key(key), value)

    def select(self, key: str, values: list[bytes]) -> int:
        return self._inner.select(_raw_key(key), values)


def _raw_key(name: str) -> bytes:
    digits = name.rpartition("/")[2]
    if len(digits) != 2 * KEY_BYTES or name != record_name(bytes.fromhex(digits)):
        raise ValueError("not a key of ours")
    return bytes.fromhex(digits)


class _Bounded(dict[bytes, _V]):
    """A dictionary that throws out its oldest key, but for those in `keep`, when it would grow over `limit`."""

    def __init__(self, limit: int, keep: set[bytes]) -> None:
        super().__init__()
        self._limit = limit
        self._keep = keep

    def __setitem__(self, key: bytes, value: _V) -> None:
        super().__setitem__(key, value)
        if len(self) > self._limit:
            del self[next((old for old in self if old not in self._keep and old != key), key)]


class _FreshProviders(ProviderStore):
    """libp2p's own answers from what it holds, so that whoever found one provider finds no other for 48 hours."""

    async def find_providers(self, key: bytes, count: int = 20) -> list[PeerInfo]:
        local = self.providers.pop(key, {})
        try:
            found = await super().find_providers(key, count)
        finally:
            merged = {**local, **self.providers.get(key, {})}
            if merged:
                self.providers[key] = merged
        known = {info.peer_id: info for info in (*found, *self.get_providers(key))}
        return list(known.values())[:count]


class MendedDht(KadDHT):
    """A DHT that stores what its validator accepts, within bounds, and asks the network before it answers.

    By default libp2p's stores any bytes under any key that does not look like "/namespace/key", up to 50,000
    records of 1 MiB and any number of providers; and a node that holds a record, because it read it once, never
    sees a newer one.
    """

    def __init__(self, host: IHost, validator: RecordValidator, inbound_streams: int = 64) -> None:
        super().__init__(
            host,
            DHTMode.SERVER,
            validator=NamespacedValidator({NAMESPACE: _Records(validator)}, strict_validation=True),
            validator_changed=True,  # or it adds /pk and /ipns, which we don't serve
            strict_validation=True,
        )
        self._own_validator = validator
        # Twelve at once by default: room for three strangers, each within its own bound.
        self._inbound_limiter = trio.CapacityLimiter(inbound_streams)
        self.value_store.store = _Bounded[tuple[Any, float]](MAX_RECORDS, self.value_store.local_keys)
        self.provider_store: ProviderStore = _FreshProviders(host, self.peer_routing)
        self.provider_store.providers = _Bounded(MAX_PROVIDED_KEYS, self.provider_store.providing_keys)

    async def find_record(self, key: bytes) -> bytes | None:
        """The best valid value that we hold or the network gives."""
        name, store = record_name(key), self.value_store.store
        held = store.pop(name.encode(), None)
        try:
            found = await self.get_value(name, quorum=QUORUM)
        finally:
            if held is not None and held[1] > time.time():
                newer = store.get(name.encode())
                if newer is None or self._best(key, [newer[0].value, held[0].value]) == held[0].value:
                    store[name.encode()] = held
        values = [value for value in (found, held[0].value if held else None) if value is not None]
        return self._best(key, values)

    def _best(self, key: bytes, values: Sequence[bytes]) -> bytes | None:
        valid = [value for value in values if self._is_valid(key, value)]
        return valid[self._own_validator.select(key, valid)] if valid else None

    def _is_valid(self, key: bytes, value: bytes) -> bool:
        try:
            check_record(self._own_validator, key, value)  # again: a record can expire where it lies
        except RecordRefused:
            return False
        return True
