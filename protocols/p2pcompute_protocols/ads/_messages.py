"""Capability ads: what a provider signs and gossips, and how ads are asked for directly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from .._binding import SignerBinding
from ..errors import LocalProtocolError, WireCode
from ..limits import (
    MAX_AD_BYTES,
    MAX_AD_LIFETIME_MS,
    MAX_ADDRESSES,
    MAX_ADS_PER_REPLY,
    MAX_BUCKETS,
    MAX_DEVICES,
    MAX_FEATURES,
    MAX_NAME,
    MAX_OPTIONS,
    MAX_RESOURCES,
    MAX_SLOTS,
    MAX_TEXT,
)
from ..money import ChainTerms
from ..wire import (
    Array,
    Bytes,
    Choice,
    Flag,
    Nested,
    Peer,
    Record,
    Text,
    Uint,
    UintMap,
    optional,
    record,
    wire,
)

__all__ = [
    "AD_KIND",
    "MESSAGES",
    "PROTOCOL_ID",
    "SHARDS",
    "AdBatch",
    "AdQuery",
    "AdRefusal",
    "Availability",
    "CapabilityAd",
    "Device",
    "PricedOption",
    "bucket_key",
    "gossip_topic",
    "record_key",
    "shard_of",
]

PROTOCOL_ID: Final = "/p2pcompute/ads/2"
AD_KIND: Final = "ad"
SHARDS: Final = 16


@record
class Device(Record):
    """One device that runs chunks. Scores are measured: 1000 is one reference core in strict f32."""

    extensible = True
    kind: str = wire(1, Choice("cpu", "cuda"))
    name: str = wire(2, Text(MAX_NAME))
    slots: int = wire(3, Uint(1, MAX_SLOTS))
    memory_bytes: int = wire(4, Uint())
    score_milli: int = wire(5, Uint(1))
    scores: tuple[tuple[int, int], ...] = wire(6, UintMap(MAX_RESOURCES))


@record
class PricedOption(Record):
    """A way to buy: the price of one unit of work in a mode; `max_window` bounds chunks on credit."""

    extensible = True
    work: int = wire(1, Uint(1, 3))  # 1 chunk, 2 tick, 3 round
    fp: str = wire(2, Choice("strict", "fast"))
    price_pusd: int = wire(3, Uint())
    max_window: int = wire(4, Uint(1, 256))


@record
class Availability(Record):
    """When the machine may be used; what is not said is not limited."""

    extensible = True
    idle_only: bool = wire(1, Flag())
    draining: bool = wire(2, Flag())
    until_ms: int | None = optional(3, Uint(), default=None)
    thermal_percent: int | None = optional(4, Uint(0, 100), default=None)
    battery_percent: int | None = optional(5, Uint(0, 100), default=None)


@record
class CapabilityAd(Record):
    """What a provider sells. Only the signed ad is trusted; provider records in the DHT are hints."""

    extensible = True
    version: int = wire(1, Uint(1, 1))
    peer_id: str = wire(2, Peer())
    sequence: int = wire(3, Uint())
    issued_ms: int = wire(4, Uint())
    expires_ms: int = wire(5, Uint())
    addresses: tuple[str, ...] = wire(6, Array(Text(256, 1), MAX_ADDRESSES))
    devices: tuple[Device, ...] = wire(7, Array(Nested(Device), MAX_DEVICES, 1))
    resources: tuple[tuple[int, int], ...] = wire(8, UintMap(MAX_RESOURCES))  # 1 GPUs, 2 CPUs, 3 memory, 4 disk
    features: tuple[str, ...] = wire(9, Array(Text(MAX_NAME, 1), MAX_FEATURES))
    options: tuple[PricedOption, ...] = wire(10, Array(Nested(PricedOption), MAX_OPTIONS, 1))
    language: tuple[str, ...] = wire(11, Array(Text(MAX_NAME, 1), 8, 1))
    chain: ChainTerms = wire(12, Nested(ChainTerms))
    binding: SignerBinding = wire(13, Nested(SignerBinding))
    availability: Availability = wire(14, Nested(Availability))
    region: str | None = optional(15, Text(MAX_NAME), default=None)

    def validate(self) -> None:
        if not self.issued_ms < self.expires_ms <= self.issued_ms + MAX_AD_LIFETIME_MS:
            raise LocalProtocolError("an ad expires within an hour after it was issued", code=WireCode.EXPIRED)
        if self.binding.peer_id != self.peer_id:
            raise LocalProtocolError("the ad's binding is of another peer", code=WireCode.WRONG_PEER)

    @property
    def buckets(self) -> tuple[str, ...]:
        """The names under which the DHT holds hints to this ad."""
        kinds = sorted({device.kind for device in self.devices})
        return tuple(f"{kind}/{fp}" for kind in kinds for fp in sorted({o.fp for o in self.options}))[:MAX_BUCKETS]


@record
class AdQuery(Record):
    """Ask a peer for ads that it holds; all filters that are given must fit."""

    TYPE = 1
    limit: int = wire(1, Uint(1, MAX_ADS_PER_REPLY))
    kind: str | None = optional(2, Choice("cpu", "cuda"), default=None)
    fp: str | None = optional(3, Choice("strict", "fast"), default=None)
    peer_id: str | None = optional(4, Peer(), default=None)


@record
class AdBatch(Record):
    """The answer: signed ads, in envelopes; `more` says that the limit cut some off."""

    TYPE = 2
    ads: tuple[bytes, ...] = wire(1, Array(Bytes(1, MAX_AD_BYTES), MAX_ADS_PER_REPLY))
    more: bool = wire(2, Flag())


@record
class AdRefusal(Record):
    """The peer does not answer this query."""

    TYPE = 3
    code: int = wire(1, Uint(1, 255))
    detail: str = wire(2, Text(MAX_TEXT))


MESSAGES: Final[Mapping[int, type[Record]]] = {1: AdQuery, 2: AdBatch, 3: AdRefusal}


def shard_of(peer_id: str) -> int:
    """The gossip shard of a peer's ads."""
    return hashlib.sha256(peer_id.encode()).digest()[0] % SHARDS


def gossip_topic(network: str, shard: int) -> str:
    """The gossip topic of a shard."""
    return f"p2pcompute/{network}/ads/1/{shard}"


def bucket_key(network: str, bucket: str, shard: int, epoch: int) -> bytes:
    """The DHT key of a bucket: H(network ‖ bucket ‖ shard ‖ epoch), 32 bytes; an epoch is an hour."""
    return hashlib.sha256(f"p2pcompute/ads/1\0{network}\0{bucket}\0{shard}\0{epoch}".encode()).digest()


def record_key(network: str, peer_id: str) -> bytes:
    """The DHT key of a peer's own signed ad: H(network ‖ peer ID), 32 bytes."""
    return hashlib.sha256(f"p2pcompute/ad-record/1\0{network}\0{peer_id}".encode()).digest()
