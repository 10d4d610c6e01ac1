"""Signed envelopes: COSE_Sign1 (RFC 9052 §4.2) with Ed25519 (RFC 9053 §2.2).

The protected header holds, in this order: 1 alg (-8, EdDSA), 4 kid (the signer's 38-byte peer ID), 16 typ
(RFC 9596, "application/p2pcompute.KIND+cbor") and -65537 (private use) the network ID. The unprotected header is
empty. So stored evidence says by itself what it is, of which network, and who signed. `external_aad` binds what
the bytes do not hold, for example the recipient of an order.

Ed25519 signatures are checked strictly by libsodium (RFC 8032 §5.1.7, small-order keys and s ≥ L refused).
"""

from __future__ import annotations

import dataclasses
import hashlib
from functools import lru_cache
from typing import Final, Protocol, cast

import cbor2
import nacl.bindings
import nacl.exceptions

from . import cbor
from .errors import LocalProtocolError, WireCode
from .ids import Digest, PeerId, peer_id_from_bytes, peer_id_to_bytes, public_key_of
from .limits import MAX_ENVELOPE_BYTES, MAX_NAME

__all__ = ["Envelope", "Signer", "is_signed", "open_envelope", "seal"]

_ALG, _KID, _TYP, _NETWORK = 1, 4, 16, -65537
_EDDSA: Final = -8
_TAG_BYTE: Final = b"\xd2"  # tag 18, COSE_Sign1; loads() would freeze what is inside of a tag
_MAX_PROTECTED_BYTES: Final = 256  # of two names of MAX_NAME, a peer ID and the fixed parts: 227
_REMEMBERED: Final = 256  # headers: those of one peer, kind and network are alike
_TYP_PREFIX, _TYP_SUFFIX = "application/p2pcompute.", "+cbor"


class Signer(Protocol):
    """Whoever holds an Ed25519 node key."""

    @property
    def peer_id(self) -> PeerId: ...
    def sign(self, message: bytes) -> bytes:
        """A 64-byte Ed25519 signature."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A verified envelope: `payload` was signed by `signer` as `kind` on `network`; `raw` are its bytes."""

    kind: str
    network: str
    signer: PeerId
    payload: bytes
    raw: bytes

    @property
    def digest(self) -> Digest:
        """SHA-256 of the whole envelope."""
        return Digest(hashlib.sha256(self.raw).digest())


def _sig_structure(protected: bytes, external_aad: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, external_aad, payload])


@lru_cache(_REMEMBERED)
def _protected(kind: str, network: str, kid: bytes) -> bytes:
    for name, value in (("kind", kind), ("network", network)):
        if not 1 <= len(value) <= MAX_NAME or not value.isascii() or not value.replace("-", "").isalnum():
            raise LocalProtocolError(f"{name} must be 1 to {MAX_NAME} ASCII letters, digits and hyphens")
    return cbor2.dumps({_ALG: _EDDSA, _KID: kid, _TYP: f"{_TYP_PREFIX}{kind}{_TYP_SUFFIX}", _NETWORK: network})


def seal(kind: str, network: str, signer: Signer, payload: bytes, *, external_aad: bytes = b"") -> bytes:
    """Sign `payload` and return the envelope's bytes.

    Raises:
        LocalProtocolError: a malformed kind or network, or an envelope over MAX_ENVELOPE_BYTES.
    """
    protected = _protected(kind, network, peer_id_to_bytes(signer.peer_id))
    signature = signer.sign(_sig_structure(protected, external_aad, payload))
    raw = _TAG_BYTE + cbor2.dumps([protected, {}, payload, signature])
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise LocalProtocolError(
            f"an envelope of {len(raw)} bytes; at most {MAX_ENVELOPE_BYTES}", code=WireCode.OVERSIZED
        )
    return raw


def _parse(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Protected header, payload and signature."""
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise LocalProtocolError(
            f"an envelope of {len(raw)} bytes; at most {MAX_ENVELOPE_BYTES}", code=WireCode.OVERSIZED
        )
    if raw[:1] != _TAG_BYTE:
        raise LocalProtocolError("not a tagged COSE_Sign1")
    parts = cbor.decode(raw[1:], max_bytes=MAX_ENVELOPE_BYTES)
    if type(parts) is not list or len(parts) != 4:
        raise LocalProtocolError("a COSE_Sign1 has four parts")
    protected, unprotected, payload, signature = parts
    if type(protected) is not bytes or type(payload) is not bytes or type(signature) is not bytes:
        raise LocalProtocolError("protected header, payload and signature are byte strings")
    if type(unprotected) is not dict or unprotected:
        raise LocalProtocolError("the unprotected header must be empty")
    return protected, payload, signature


@lru_cache(_REMEMBERED)
def _signer_of(protected: bytes, kind: str, network: str) -> PeerId:
    """Whom a protected header of an envelope of this kind and network names. Raises as `open_envelope`."""
    if len(protected) > _MAX_PROTECTED_BYTES:
        raise LocalProtocolError("the protected header holds more than it may", code=WireCode.OVERSIZED)
    # Negative keys are outside of our subset of CBOR. What cbor2 gives here only serves to say what is wrong: the
    # header's bytes must be those that this node would have written.
    try:
        headers: object = cbor2.loads(protected, max_depth=2, allow_indefinite=False, allow_duplicate_keys=False)
    except (cbor2.CBORError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError) as exc:
        raise LocalProtocolError(f"not CBOR: {type(exc).__name__}") from None
    headers = cast("dict[int, object]", headers) if type(headers) is dict else {}
    if list(headers) != [_ALG, _KID, _TYP, _NETWORK]:
        raise LocalProtocolError("the protected header holds alg, kid, typ and network, in this order")
    if type(headers[_ALG]) is not int or headers[_ALG] != _EDDSA:
        raise LocalProtocolError("the algorithm must be EdDSA (-8)", code=WireCode.UNSUPPORTED)
    kid, typ, net = headers[_KID], headers[_TYP], headers[_NETWORK]
    if type(kid) is not bytes or type(typ) is not str or type(net) is not str:
        raise LocalProtocolError("a protected header has the wrong type")
    if typ != f"{_TYP_PREFIX}{kind}{_TYP_SUFFIX}":
        raise LocalProtocolError(
            f"expected an envelope of kind {kind!r}, got {typ[:MAX_NAME]!r}", code=WireCode.UNSUPPORTED
        )
    if net != network:
        raise LocalProtocolError(
            f"an envelope of network {net[:MAX_NAME]!r} on {network!r}", code=WireCode.WRONG_NETWORK
        )
    who = peer_id_from_bytes(kid)
    if protected != _protected(kind, network, kid):
        raise LocalProtocolError("the protected header is not in its deterministic form")
    return who


def open_envelope(
    raw: bytes,
    *,
    kind: str,
    network: str,
    signer: PeerId | None = None,
    external_aad: bytes = b"",
) -> Envelope:
    """Verify an envelope that must be of this kind and network, and by `signer` where that is given.

    Raises:
        LocalProtocolError: with the code that says why: MALFORMED, OVERSIZED, WRONG_NETWORK, WRONG_PEER,
            UNSUPPORTED (another kind or algorithm) or BAD_SIGNATURE.
    """
    protected, payload, signature = _parse(raw)
    who = _signer_of(protected, kind, network)
    if signer is not None and who != signer:
        raise LocalProtocolError(f"signed by {who}, not by {signer}", code=WireCode.WRONG_PEER)
    if not is_signed(_sig_structure(protected, external_aad, payload), signature, public_key_of(who)):
        raise LocalProtocolError("the signature does not verify", code=WireCode.BAD_SIGNATURE)
    return Envelope(kind=kind, network=network, signer=who, payload=payload, raw=raw)


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether `signature` is an Ed25519 signature (RFC 8032) of 64 bytes over `message` by a key of 32 bytes.

    libsodium's check is strict: one encoding of S and R, no key or R of small order.
    """
    try:
        if len(signature) != nacl.bindings.crypto_sign_BYTES:
            return False
        nacl.bindings.crypto_sign_open(signature + message, public_key)
    except (nacl.exceptions.BadSignatureError, ValueError):
        return False
    return True
