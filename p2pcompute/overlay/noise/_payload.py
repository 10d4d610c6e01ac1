"""libp2p's handshake payload (libp2p/specs noise): who somebody is, and which muxers they speak.

The protobuf is read by hand, since little of it is there: one encoding of the identity key, no field twice.
Fields that nobody here knows are passed over, for the specification lets others add some.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ._errors import BadIdentity, BadMessage

__all__ = ["IDENTITY_BYTES", "MAX_MUXERS", "MAX_MUXER_BYTES", "STATIC_KEY_PREFIX", "Payload"]

STATIC_KEY_PREFIX = b"noise-libp2p-static-key:"  # what the identity signs, in front of the static key
IDENTITY_BYTES = 32
MAX_MUXERS = 16
MAX_MUXER_BYTES = 128
_ED25519_KEY = b"\x08\x01\x12\x20"  # PublicKey{Type: Ed25519, Data: 32 bytes}, of which there is one encoding
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_IDENTITY_KEY, _IDENTITY_SIGNATURE, _EXTENSIONS = 1, 2, 4
_STREAM_MUXERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What a peer says of itself in its second message.

    `identity` is a raw Ed25519 key of 32 bytes, `signature` of 64 is not checked here, and `muxers` is in order of
    preference: None from a peer that has no early muxer negotiation.
    """

    identity: bytes
    signature: bytes
    muxers: tuple[str, ...] | None = None

    def encode(self) -> bytes:
        """The bytes that say this."""
        encoded = _field(_IDENTITY_KEY, _ED25519_KEY + self.identity) + _field(_IDENTITY_SIGNATURE, self.signature)
        if self.muxers is not None:
            muxers = b"".join(_field(_STREAM_MUXERS, muxer.encode()) for muxer in self.muxers)
            encoded += _field(_EXTENSIONS, muxers)
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Payload:
        """The opposite. Raises BadMessage, and BadIdentity for a key that is not Ed25519."""
        known: dict[int, bytes] = {}
        for number, value in _fields(data):
            if number in (_IDENTITY_KEY, _IDENTITY_SIGNATURE, _EXTENSIONS):
                if value is None or number in known:
                    raise BadMessage("a handshake payload with a field of the wrong type, or twice")
                known[number] = value
        key = known.get(_IDENTITY_KEY, b"")
        signature = known.get(_IDENTITY_SIGNATURE, b"")
        if len(key) != len(_ED25519_KEY) + IDENTITY_BYTES or not key.startswith(_ED25519_KEY):
            raise BadIdentity("the peer has no Ed25519 identity; other keys are not spoken here")
        if len(signature) != 64:
            raise BadIdentity("the peer's signature does not have 64 bytes")
        muxers = _decode_muxers(known[_EXTENSIONS]) if _EXTENSIONS in known else None
        return cls(identity=key[len(_ED25519_KEY) :], signature=signature, muxers=muxers)


def _decode_muxers(extensions: bytes) -> tuple[str, ...] | None:
    muxers: list[str] = []
    for number, value in _fields(extensions):
        if number == _STREAM_MUXERS:
            if value is None or len(value) > MAX_MUXER_BYTES or len(muxers) == MAX_MUXERS:
                raise BadMessage("a handshake payload with strange muxers")
            try:
                muxers.append(value.decode())
            except UnicodeDecodeError:
                raise BadMessage("a handshake payload with a muxer that is no text") from None
    return tuple(muxers) or None


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise BadMessage("a handshake payload that is no protobuf")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Numbers and values; None for a value that is not bytes."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind, length = tag & 7, 0
        if kind == _VARINT:
            _, at = _read_varint(data, at)
        elif kind == _BYTES:
            length, at = _read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise BadMessage("a handshake payload with an unknown kind of field")
        if not tag >> 3 or length > len(data) - at:
            raise BadMessage("a handshake payload that is cut off, or has a field 0")
        yield tag >> 3, data[at : at + length] if kind == _BYTES else None
        at += length
