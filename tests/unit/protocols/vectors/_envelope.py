"""COSE_Sign1 envelopes."""

from __future__ import annotations

import hashlib

import cbor2
import nacl.bindings

from p2pcompute_protocols.ids import peer_id_from_public_key, peer_id_to_bytes

from ._material import NETWORK, PROVIDER, REQUESTER, STRANGER, Json, L, cose, sha, vector

__all__ = ["envelope_vectors"]

_ORDER_1 = bytes([1]) + bytes(31)
_ORDER_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")


def _signature_with(r: int, point: bytes, signed: bytes) -> bytes:
    """What the provider's own key makes with `point` added to R: s is right for the R that is written down."""
    secret = bytearray(hashlib.sha512(PROVIDER.seed).digest()[:32])
    secret[0] &= 248
    secret[31] = secret[31] & 127 | 64
    if r:
        base = nacl.bindings.crypto_scalarmult_ed25519_base_noclamp(r.to_bytes(32, "little"))
        point = nacl.bindings.crypto_core_ed25519_add(base, point)
    challenge = int.from_bytes(hashlib.sha512(point + PROVIDER.public_key + signed).digest(), "little")
    return point + ((r + challenge * int.from_bytes(secret, "little")) % L).to_bytes(32, "little")


def envelope_vectors() -> Json:
    kid = peer_id_to_bytes(PROVIDER.peer_id)
    typ = "application/p2pcompute.note+cbor"
    headers = {1: -8, 4: kid, 16: typ, -65537: NETWORK}
    good = cose("note", b"hello", PROVIDER)
    for_requester = peer_id_to_bytes(REQUESTER.peer_id)

    def taken(name: str, data: bytes, payload: bytes, **context: object) -> Json:
        expect = {"signer": PROVIDER.peer_id, "payload": payload.hex(), "digest": sha(data).hex()}
        return vector(name, "envelope", data, context={"kind": "note", **context}, expect=expect)

    def refused(name: str, data: bytes, code: str, **context: object) -> Json:
        return vector(name, "envelope", data, context={"kind": "note", **context}, code=code)

    def other(**changed: object) -> bytes:
        return cose("note", b"hello", PROVIDER, **changed)  # type: ignore[arg-type]

    s = int.from_bytes(good[-32:], "little")
    longest = 57_344 - len(cose("note", bytes(50_000), PROVIDER)) + 50_000
    signed = cbor2.dumps(["Signature1", cbor2.dumps(headers), b"", b"hello"])
    base_point = bytes([0x58]) + b"\x66" * 31
    weak = {**headers, 4: peer_id_to_bytes(peer_id_from_public_key(_ORDER_1))}
    long_alg = cbor2.dumps(headers)
    accept = [
        taken("a payload", good, b"hello"),
        taken("an empty payload", cose("note", b"", PROVIDER), b""),
        taken("one byte", cose("note", b"\0", PROVIDER), b"\0"),
        taken("a payload of 23 bytes", cose("note", bytes(23), PROVIDER), bytes(23)),
        taken("a payload of 24 bytes", cose("note", bytes(24), PROVIDER), bytes(24)),
        taken("a payload of 256 bytes", cose("note", bytes(256), PROVIDER), bytes(256)),
        taken("the signer is asked for", good, b"hello", signer=PROVIDER.peer_id),
        taken(
            "external_aad: the requester's peer ID",
            cose("note", b"hello", PROVIDER, aad=for_requester),
            b"hello",
            external_aad=for_requester.hex(),
        ),
        taken(
            "a kind of 64 characters",
            cose("k" * 64, b"hello", PROVIDER),
            b"hello",
            kind="k" * 64,
        ),
        taken("a network of 64 characters", cose("note", b"x", PROVIDER, network="n" * 64), b"x", network="n" * 64),
        taken("a network of one character", cose("note", b"x", PROVIDER, network="1"), b"x", network="1"),
        taken("an envelope in an envelope", cose("note", good, PROVIDER), good),
        taken("hyphens in names", cose("a-b", b"x", PROVIDER, network="c-1"), b"x", kind="a-b", network="c-1"),
    ]
    reject = [
        refused("nothing", b"", "MALFORMED"),
        refused("cut short", good[:-1], "MALFORMED"),
        refused("a byte too many", good + b"\0", "MALFORMED"),
        refused("above the bound", cose("note", bytes(longest + 1), PROVIDER), "OVERSIZED"),
        refused("without the tag", good[1:], "MALFORMED"),
        refused("another tag (COSE_Mac0)", other(tag=b"\xd1"), "MALFORMED"),
        refused("the tag in two bytes", other(tag=b"\xd8\x12"), "MALFORMED"),
        refused("an unprotected header", other(unprotected={4: kid}), "MALFORMED"),
        refused("unprotected is an array", other(unprotected=[]), "MALFORMED"),
        refused("an indefinite array", b"\xd2\x9f" + good[2:] + b"\xff", "MALFORMED"),
        refused("three parts", b"\xd2" + cbor2.dumps([long_alg, {}, b"hello"]), "MALFORMED"),
        refused("a detached payload", b"\xd2" + cbor2.dumps([long_alg, {}, None, bytes(64)]), "MALFORMED"),
        refused("no protected header", other(protected=b""), "MALFORMED"),
        refused("an empty protected header", other(protected=b"\xa0"), "MALFORMED"),
        refused("headers in another order", other(headers=dict(reversed(headers.items()))), "MALFORMED"),
        refused("a header too many", other(headers={**headers, 3: 0}), "MALFORMED"),
        refused("a header too few", other(headers={k: headers[k] for k in (1, 4, 16)}), "MALFORMED"),
        refused("true for the key 1", other(headers={True: -8, 4: kid, 16: typ, -65537: NETWORK}), "MALFORMED"),
        refused("1.0 for the key 1", other(headers={1.0: -8, 4: kid, 16: typ, -65537: NETWORK}), "MALFORMED"),
        refused("alg in two bytes", other(protected=b"\xa4\x01\x38\x07" + long_alg[3:]), "MALFORMED"),
        refused("an indefinite header", other(protected=b"\xbf" + long_alg[1:] + b"\xff"), "MALFORMED"),
        refused("a huge header", other(protected=bytes(257)), "OVERSIZED"),
        refused("alg ES256", other(headers={**headers, 1: -7}), "UNSUPPORTED"),
        refused("alg true", other(headers={**headers, 1: True}), "UNSUPPORTED"),
        refused("another kind", cose("order", b"hello", PROVIDER), "UNSUPPORTED"),
        refused("another network", cose("note", b"hello", PROVIDER, network="other"), "WRONG_NETWORK"),
        refused("another signer than asked for", good, "WRONG_PEER", signer=STRANGER.peer_id),
        refused("a kid that is no peer ID", other(headers={**headers, 4: kid[1:]}), "MALFORMED"),
        refused("a kid that is text", other(headers={**headers, 4: "me"}), "MALFORMED"),
        refused("the kid of somebody else", cose("note", b"hello", STRANGER, headers=headers), "BAD_SIGNATURE"),
        refused("another payload", good.replace(b"hello", b"hallo"), "BAD_SIGNATURE"),
        refused("a signature with one bit changed", good[:-1] + bytes([good[-1] ^ 1]), "BAD_SIGNATURE"),
        refused("a signature of 63 bytes", other(signature=bytes(63)), "BAD_SIGNATURE"),
        refused("a signature of zeros", other(signature=bytes(64)), "BAD_SIGNATURE"),
        refused(
            "s + L: a second form of a good signature", good[:-32] + (s + L).to_bytes(32, "little"), "BAD_SIGNATURE"
        ),
        refused(
            "a small-order key, for which R = B, s = 1 fits every message",
            other(headers=weak, signature=base_point + bytes([1]) + bytes(31)),
            "BAD_SIGNATURE",
        ),
        refused(
            "R is of small order, with the s that fits it",
            other(signature=_signature_with(0, _ORDER_1, signed)),
            "BAD_SIGNATURE",
        ),
        refused(
            "R has a part of small order, which fits with the cofactor only",
            other(signature=_signature_with(7, _ORDER_8, signed)),
            "BAD_SIGNATURE",
        ),
        refused(
            "for the requester, shown to a stranger",
            cose("note", b"hello", PROVIDER, aad=for_requester),
            "BAD_SIGNATURE",
            external_aad=peer_id_to_bytes(STRANGER.peer_id).hex(),
        ),
        refused(
            "for the requester, shown to everybody",
            cose("note", b"hello", PROVIDER, aad=for_requester),
            "BAD_SIGNATURE",
        ),
    ]
    return {"accept": accept, "reject": reject}
