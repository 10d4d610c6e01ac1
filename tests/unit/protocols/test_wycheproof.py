"""Both signature schemes against Project Wycheproof's vectors: edge cases that implementations get wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import coincurve

from p2pcompute_protocols._evm import address_of_public_key, recover_address
from p2pcompute_protocols.envelope import is_signed
from p2pcompute_protocols.errors import LocalProtocolError

VECTORS = Path(__file__).parent / "wycheproof"
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def rows(name: str) -> list[tuple[int, bool, bytes, bytes, bytes, str]]:
    """Number, whether it is valid, key, message, signature, comment."""
    return [
        (number, result == "valid", bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature), comment)
        for number, result, key, message, signature, comment in json.loads((VECTORS / f"{name}.json").read_text())
    ]


def test_ed25519() -> None:
    found = rows("ed25519")
    assert len(found) == 151
    wrong = [
        (number, comment)
        for number, valid, key, message, signature, comment in found
        if is_signed(message, signature, key) != valid
    ]
    assert wrong == []


def recovers(digest: bytes, signature: bytes, key: bytes) -> list[int]:
    """For which v a signature is one by `key`."""
    owner = address_of_public_key(coincurve.PublicKey(key))
    found = []
    for v in (27, 28):
        try:
            if recover_address(digest, signature + bytes([v])) == owner:
                found.append(v)
        except LocalProtocolError:
            continue
    return found


def test_secp256k1() -> None:
    """A voucher's signature is r, s and v; the vectors have r and s, so each is tried with both v.

    Of the valid ones, those with s in the upper half are refused (EIP-2): they would be a second form of another.
    """
    found = rows("secp256k1_sha256")
    assert len(found) == 252
    wrong, high = [], 0
    for number, valid, key, message, signature, comment in found:
        is_high = int.from_bytes(signature[32:64]) > HALF_ORDER
        high += valid and is_high
        good = recovers(hashlib.sha256(message).digest(), signature, key)
        if len(good) != (1 if valid and not is_high else 0):
            wrong.append((number, comment, good))
    assert wrong == []
    assert high > 10


def test_the_second_form_of_a_good_signature_is_refused() -> None:
    """The attack: order minus s, and the other v, recover the same key where nothing looks at s."""
    tried = 0
    for _, valid, key, message, signature, _ in rows("secp256k1_sha256"):
        if not valid or int.from_bytes(signature[32:]) > HALF_ORDER:
            continue
        digest = hashlib.sha256(message).digest()
        (v,) = recovers(digest, signature, key)
        mirrored = (2 * HALF_ORDER + 1 - int.from_bytes(signature[32:])).to_bytes(32)
        other = signature[:32] + mirrored
        raw = coincurve.PublicKey.from_signature_and_message(other + bytes([1 - (v - 27)]), digest, hasher=None)
        assert raw.format(compressed=False) == key
        assert recovers(digest, other, key) == []
        tried += 1
    assert tried > 50
