"""Checks of arguments that every implementation of `Overlay` makes."""

from __future__ import annotations

from p2pcompute.errors import RecordRefused

from ._api import (
    KEY_BYTES,
    MAX_GOSSIP_BYTES,
    MAX_PROTOCOL_ID_BYTES,
    MAX_RECORD_BYTES,
    MAX_TOPIC_BYTES,
    GossipTooLarge,
    RecordValidator,
)

__all__ = ["check_gossip", "check_key", "check_protocol", "check_record", "check_topic"]


def check_protocol(protocol: str) -> None:
    """A protocol ID starts with a slash and fits a line of multistream-select."""
    if not protocol.startswith("/") or len(protocol.encode()) > MAX_PROTOCOL_ID_BYTES or "\n" in protocol:
        raise ValueError(f"{protocol!r} is no protocol ID; it looks like /p2pcompute/task/3")


def check_topic(topic: str) -> None:
    """Topics are short: every peer keeps a table of them."""
    if not 0 < len(topic.encode()) <= MAX_TOPIC_BYTES:
        raise ValueError(f"a topic has 1 to {MAX_TOPIC_BYTES} bytes")


def check_gossip(topic: str, data: bytes) -> None:
    """Raise `GossipTooLarge` here, at the publisher: on the way a large message just vanishes."""
    check_topic(topic)
    if len(data) > MAX_GOSSIP_BYTES:
        raise GossipTooLarge(
            f"{len(data)} bytes are more than the {MAX_GOSSIP_BYTES} that gossip carries; "
            f"publish a digest and serve the rest over a stream"
        )


def check_key(key: bytes) -> bytes:
    """DHT keys are SHA-256 digests."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a DHT key has {KEY_BYTES} bytes, this has {len(key)}")
    return key


def check_record(validator: RecordValidator, key: bytes, value: bytes) -> None:
    """Raise `RecordRefused` unless `value` may stand under `key`."""
    check_key(key)
    if len(value) > MAX_RECORD_BYTES:
        raise RecordRefused(f"{len(value)} bytes are more than the {MAX_RECORD_BYTES} of a DHT record")
    try:
        accepted = validator.validate(key, value)
    except Exception as exc:
        raise RecordRefused(f"the record is not valid: {exc}") from exc
    if not accepted:
        raise RecordRefused("the record is not valid under this key")
