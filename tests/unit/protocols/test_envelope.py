"""Envelopes against pycose, an independent COSE, and against attackers."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycose.algorithms import EdDSA
from pycose.headers import KID, Algorithm
from pycose.keys import OKPKey
from pycose.keys.curves import Ed25519
from pycose.messages import Sign1Message

from p2pcompute_protocols.envelope import open_envelope, seal
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import peer_id_from_public_key, peer_id_to_bytes
from p2pcompute_protocols.limits import MAX_ENVELOPE_BYTES

from .vectors._material import NETWORK, PROVIDER, STRANGER, cose

TYP, NET = 16, -65537


def their_key(*, secret: bool) -> OKPKey:
    return OKPKey(crv=Ed25519, x=PROVIDER.public_key, d=PROVIDER.seed if secret else b"")


@given(payload=st.binary(max_size=200), aad=st.binary(max_size=60))
@settings(max_examples=50, deadline=None)
def test_pycose_verifies_ours(payload: bytes, aad: bytes) -> None:
    raw = seal("note", NETWORK, PROVIDER, payload, external_aad=aad)
    # CoseMessage.decode wants a list inside of the tag, which cbor2 6 does not give; what it then does is this.
    assert raw[0] == 0xC0 | Sign1Message.cbor_tag
    message = Sign1Message.from_cose_obj(cbor2.loads(raw[1:]), True)
    message.key = their_key(secret=False)
    message.external_aad = aad
    assert message.verify_signature()
    assert message.payload == payload
    assert message.phdr[KID] == peer_id_to_bytes(PROVIDER.peer_id)
    assert message.uhdr == {}
    message.external_aad = aad + b"x"
    assert not message.verify_signature()


@given(payload=st.binary(max_size=200), aad=st.binary(max_size=60))
@settings(max_examples=50, deadline=None)
def test_we_open_what_pycose_made(payload: bytes, aad: bytes) -> None:
    message = Sign1Message(
        phdr={
            Algorithm: EdDSA,
            KID: peer_id_to_bytes(PROVIDER.peer_id),
            TYP: "application/p2pcompute.note+cbor",
            NET: NETWORK,
        },
        payload=payload,
        external_aad=aad,
        key=their_key(secret=True),
    )
    raw = message.encode()
    opened = open_envelope(raw, kind="note", network=NETWORK, signer=PROVIDER.peer_id, external_aad=aad)
    assert opened.payload == payload
    assert raw == seal("note", NETWORK, PROVIDER, payload, external_aad=aad)  # byte for byte
    with pytest.raises(LocalProtocolError) as refused:
        open_envelope(raw, kind="note", network=NETWORK, external_aad=aad + b"x")
    assert refused.value.code is WireCode.BAD_SIGNATURE


def test_a_small_order_key_fools_other_verifiers() -> None:
    # For the key of order 1, R = B and s = 1 are a signature of every message. OpenSSL takes it.
    identity = bytes([1]) + bytes(31)
    forged = bytes([0x58]) + b"\x66" * 31 + bytes([1]) + bytes(31)
    Ed25519PublicKey.from_public_bytes(identity).verify(forged, b"anything at all")
    headers = {
        1: -8,
        4: peer_id_to_bytes(peer_id_from_public_key(identity)),
        TYP: "application/p2pcompute.note+cbor",
        NET: NETWORK,
    }
    raw = cose("note", b"anything at all", PROVIDER, headers=headers, signature=forged)
    with pytest.raises(LocalProtocolError) as refused:
        open_envelope(raw, kind="note", network=NETWORK)
    assert refused.value.code is WireCode.BAD_SIGNATURE


# Header maps that a general decoder reads as the right ones, or that may make it raise anything at all.
GOOD: dict[Any, Any] = {
    1: -8,
    4: peer_id_to_bytes(PROVIDER.peer_id),
    TYP: "application/p2pcompute.note+cbor",
    NET: NETWORK,
}
TAIL = cbor2.dumps(GOOD)[3:]  # after the map's head, key 1 and alg


@pytest.mark.parametrize(
    "protected",
    [
        b"\xa4\xf5\x27" + TAIL,  # True: -8
        b"\xa4\xf9\x3c\x00\x27" + TAIL,  # 1.0: -8
        b"\xa4\xc2\x41\x01\x27" + TAIL,  # 1 as a bignum
        b"\xa4\xd9\xd9\xf7\x01\x27" + TAIL,  # 1 with the self-described tag
        b"\xa4\x01\xc3\x41\x07" + TAIL,  # -8 as a bignum
        b"\xa4\x01\xf9\xc8\x00" + TAIL,  # -8.0
        b"\xa4\x01\xc4\x82\x00\x27" + TAIL,  # -8 as a decimal
        b"\xa5\x01\x27\x01\x27" + TAIL,  # alg twice
        b"\xa5\xf9\x7e\x00\x00\x01\x27" + TAIL,  # NaN as a key
        b"\xbf\x01\x27" + TAIL + b"\xff",  # indefinite
        b"\xa4\x18\x01\x27" + TAIL,  # key in two bytes
        b"\xd8\x1c\xa4\x01\x27" + TAIL,  # a shareable map
        b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that holds itself
        b"\xd8\x1c\xa1\x01\xd8\x1d\x00",  # a map that holds itself
        b"\xa1\xd8\x1c\xa0\x00",  # a map as a key
        b"\xa1\xc1\xfb\x7f\xef\xff\xff\xff\xff\xff\xff\x00",  # a date beyond all dates
        b"\xd8\x23\x62a*",  # a regular expression
        b"\xd8\x1e\x82\x01\x00",  # 1/0
        b"\xc5\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01",  # 2 ** 2 ** 63
        b"\xa4\x01\x27" + TAIL + b"\x00",  # trailing byte
        b"\x81" * 200,
        b"\xf6",
        b"\x80",
        b"",
    ],
    ids=lambda p: p[:12].hex() or "empty",
)
def test_protected_headers_have_one_form(protected: bytes) -> None:
    for signed in (PROVIDER, STRANGER):
        raw = cose("note", b"x", signed, protected=protected)
        with pytest.raises(LocalProtocolError) as refused:
            open_envelope(raw, kind="note", network=NETWORK)
        assert refused.value.code in (WireCode.MALFORMED, WireCode.UNSUPPORTED)


@given(raw=st.binary(max_size=200))
@example(b"\xd2" + b"\x84" * 300)
def test_noise_never_opens(raw: bytes) -> None:
    for data in (raw, b"\xd2\x84" + raw):
        with pytest.raises(LocalProtocolError):
            open_envelope(data, kind="note", network=NETWORK)


@pytest.mark.parametrize("name", ["", "-", "a b", "a/b", "ä", "a" * 65, "a\n", "²"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(LocalProtocolError):
        seal(name, NETWORK, PROVIDER, b"")
    with pytest.raises(LocalProtocolError):
        seal("note", name, PROVIDER, b"")


def test_the_bound_of_an_envelope() -> None:
    overhead = len(seal("note", NETWORK, PROVIDER, bytes(50_000))) - 50_000
    most = MAX_ENVELOPE_BYTES - overhead
    raw = seal("note", NETWORK, PROVIDER, bytes(most))
    assert len(raw) == MAX_ENVELOPE_BYTES
    assert open_envelope(raw, kind="note", network=NETWORK).payload == bytes(most)
    with pytest.raises(LocalProtocolError) as refused:
        seal("note", NETWORK, PROVIDER, bytes(most + 1))
    assert refused.value.code is WireCode.OVERSIZED
