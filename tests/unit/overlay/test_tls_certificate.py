"""Certificates of libp2p's TLS: its own test vectors, and every lie that a certificate can tell."""

from __future__ import annotations

import datetime
import random
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.security.tls.certificate import verify_certificate_chain

from p2pcompute.overlay._tls_certificate import EXTENSION, SIGNED_PREFIX, UNREADABLE, identity_of, make_certificate
from p2pcompute.overlay.noise import BadIdentity
from p2pcompute_protocols.ids import peer_id_from_public_key

from .._mutants import MUTANTS, SEED
from ._noise_parts import signing_key

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)

# libp2p/specs, tls/tls.md, "Test vectors"
ED25519 = bytes.fromhex(
    "308201ae30820156a0030201020204499602d2300a06082a8648ce3d040302302031123010060355040a13096c69627032702e696f310a"
    "300806035504051301313020170d3735303130313133303030305a180f34303936303130313133303030305a302031123010060355040a"
    "13096c69627032702e696f310a300806035504051301313059301306072a8648ce3d020106082a8648ce3d030107034200040c901d423c"
    "831ca85e27c73c263ba132721bb9d7a84c4f0380b2a6756fd601331c8870234dec878504c174144fa4b14b66a651691606d8173e55bd37"
    "e381569ea37c307a3078060a2b0601040183a25a0101046a3068042408011220a77f1d92fedb59dddaea5a1c4abd1ac2fbde7d7b879ed3"
    "64501809923d7c11b90440d90d2769db992d5e6195dbb08e706b6651e024fda6cfb8846694a435519941cac215a8207792e42849cccc6c"
    "d8136c6e4bde92a58c5e08cfd4206eb5fe0bf909300a06082a8648ce3d0403020346003043021f50f6b6c52711a881778718238f650c9f"
    "b48943ae6ee6d28427dc6071ae55e702203625f116a7a454db9c56986c82a25682f7248ea1cb764d322ea983ed36a31b77"
)
ECDSA = bytes.fromhex(
    "308201f63082019da0030201020204499602d2300a06082a8648ce3d040302302031123010060355040a13096c69627032702e696f310a"
    "300806035504051301313020170d3735303130313133303030305a180f34303936303130313133303030305a302031123010060355040a"
    "13096c69627032702e696f310a300806035504051301313059301306072a8648ce3d020106082a8648ce3d030107034200040c901d423c"
    "831ca85e27c73c263ba132721bb9d7a84c4f0380b2a6756fd601331c8870234dec878504c174144fa4b14b66a651691606d8173e55bd37"
    "e381569ea381c23081bf3081bc060a2b0601040183a25a01010481ad3081aa045f0803125b3059301306072a8648ce3d020106082a8648"
    "ce3d03010703420004bf30511f909414ebdd3242178fd290f093a551cf75c973155de0bb5a96fedf6cb5d52da7563e794b512f66e60c7f"
    "55ba8a3acf3dd72a801980d205e8a1ad29f2044730450220064ea8124774caf8f50e57f436aa62350ce652418c019df5d98a3ac666c938"
    "6a022100aa59d704a931b5f72fb9222cb6cc51f954d04a4e2e5450f8805fe8918f71eaae300a06082a8648ce3d04030203470030440220"
    "799395b0b6c1e940a7e4484705f610ab51ed376f19ff9d7c16757cfbf61b8d4302206205c03fbb0f95205c779be86581d3e31c01871ad5"
    "d1f3435bcf375cb0e5088a"
)
SECP256K1 = bytes.fromhex(
    "308201ba3082015fa0030201020204499602d2300a06082a8648ce3d040302302031123010060355040a13096c69627032702e696f310a"
    "300806035504051301313020170d3735303130313133303030305a180f34303936303130313133303030305a302031123010060355040a"
    "13096c69627032702e696f310a300806035504051301313059301306072a8648ce3d020106082a8648ce3d030107034200040c901d423c"
    "831ca85e27c73c263ba132721bb9d7a84c4f0380b2a6756fd601331c8870234dec878504c174144fa4b14b66a651691606d8173e55bd37"
    "e381569ea38184308181307f060a2b0601040183a25a01010471306f0425080212210206dc6968726765b820f050263ececf7f71e49558"
    "92776c0970542efd689d2382044630440220145e15a991961f0d08cd15425bb95ec93f6ffa03c5a385eedc34ecf464c7a8ab022026b310"
    "9b8a3f40ef833169777eb2aa337cfb6282f188de0666d1bcec2a4690dd300a06082a8648ce3d0403020349003046022100e1a217eeef9e"
    "c9204b3f774a08b70849646b6a1e6b8b27f93dc00ed58545d9fe022100b00dafa549d0f03547878338c7b15e7502888f6d45db387e5ae6"
    "b5d46899cef0"
)
MISMATCH = bytes.fromhex(
    "308201f73082019da0030201020204499602d2300a06082a8648ce3d040302302031123010060355040a13096c69627032702e696f310a"
    "300806035504051301313020170d3735303130313133303030305a180f34303936303130313133303030305a302031123010060355040a"
    "13096c69627032702e696f310a300806035504051301313059301306072a8648ce3d020106082a8648ce3d030107034200040c901d423c"
    "831ca85e27c73c263ba132721bb9d7a84c4f0380b2a6756fd601331c8870234dec878504c174144fa4b14b66a651691606d8173e55bd37"
    "e381569ea381c23081bf3081bc060a2b0601040183a25a01010481ad3081aa045f0803125b3059301306072a8648ce3d020106082a8648"
    "ce3d03010703420004bf30511f909414ebdd3242178fd290f093a551cf75c973155de0bb5a96fedf6cb5d52da7563e794b512f66e60c7f"
    "55ba8a3acf3dd72a801980d205e8a1ad29f204473045022100bb6e03577b7cc7a3cd1558df0da2b117dfdcc0399bc2504ebe7de6f65cad"
    "e72802206de96e2a5be9b6202adba24ee0362e490641ac45c240db71fe955f2c5cf8df6e300a06082a8648ce3d04030203480030450221"
    "00e847f267f43717358f850355bdcabbefb2cfbf8a3c043b203a14788a092fe8db022027c1d04a2d41fd6b57a7e8b3989e470325de4406"
    "e52e084e34a3fd56eef0d0df"
)


def parsed(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def encoded(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def test_the_specifications_vectors() -> None:
    identity = identity_of(parsed(ED25519), NOW)
    assert peer_id_from_public_key(identity) == "12D3KooWM6CgA9iBFZmcYAHA6A2qvbAxqfkmrYiRQuz3XEsk4Ksv"
    for other in (ECDSA, SECP256K1):  # good certificates, of peers that we don't speak with
        with pytest.raises(BadIdentity, match="no Ed25519 identity"):
            identity_of(parsed(other), NOW)
    with pytest.raises(BadIdentity):
        identity_of(parsed(MISMATCH), NOW)


def test_ours_is_what_libp2p_takes() -> None:
    key = create_new_key_pair()
    certificate, _ = make_certificate(
        key.public_key.to_bytes(), key.private_key.sign, datetime.datetime.now(datetime.UTC)
    )
    assert verify_certificate_chain([certificate]).to_bytes() == key.public_key.to_bytes()
    assert identity_of(certificate, datetime.datetime.now(datetime.UTC)) == key.public_key.to_bytes()


def made(
    key: Any = None,
    *,
    signed: bytes | None = None,
    by: str = "peer",
    extension: bytes | None = None,
    critical: bool = False,
    hash_: Any = hashes.SHA256(),  # noqa: B008 - it has no state
    begin: datetime.datetime = NOW - DAY,
    end: datetime.datetime = NOW + DAY,
    signer: Any = None,
    more: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    without: bool = False,
) -> x509.Certificate:
    """A certificate that is right but for what the arguments say."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject_key = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    host = signing_key(by)
    signature = host.sign(SIGNED_PREFIX + subject_key if signed is None else signed).signature
    value = b"\x30\x68\x04\x24\x08\x01\x12\x20" + bytes(host.verify_key) + b"\x04\x40" + signature
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
    builder = x509.CertificateBuilder(
        issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=1,
        not_valid_before=begin, not_valid_after=end,
    )  # fmt: skip
    if not without:
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, extension or value), critical=critical)
    for item, important in more:
        builder = builder.add_extension(item, critical=important)
    return builder.sign(signer or key, hash_)


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")


@pytest.mark.parametrize(
    "certificate",
    [
        made(),
        made(critical=True),
        made(more=((UNKNOWN, False), (x509.BasicConstraints(ca=False, path_length=None), True))),
        made(ed25519.Ed25519PrivateKey.generate(), hash_=None),
        made(ec.generate_private_key(ec.SECP384R1()), hash_=hashes.SHA384()),
        made(rsa.generate_private_key(65537, 2048)),
        made(begin=NOW, end=NOW),
    ],
    ids=["plain", "critical", "others", "Ed25519", "P-384", "RSA", "now"],
)
def test_what_others_may_send_is_taken(certificate: x509.Certificate) -> None:
    assert identity_of(certificate, NOW) == bytes(signing_key("peer").verify_key)


OTHER = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    "certificate",
    [
        made(begin=NOW + DAY, end=NOW + 2 * DAY),
        made(begin=NOW - 2 * DAY, end=NOW - DAY),
        made(without=True),
        made(more=((UNKNOWN, True),)),
        made(signed=b""),
        made(signed=SIGNED_PREFIX),
        made(signer=OTHER),
        made(OTHER, signer=ec.generate_private_key(ec.SECP256R1())),
        made(hash_=hashes.SHA224()),
        made(dsa.generate_private_key(2048)),
        made(rsa.generate_private_key(65537, 1024)),
        made(extension=b"\x30\x00"),
        made(extension=b"\x05\x00"),
    ],
    ids=[
        "not yet", "no more", "no extension", "unknown and critical", "nothing signed", "no key signed",
        "not by itself", "by another", "weak hash", "DSA", "short RSA", "empty", "null",
    ],
)  # fmt: skip
def test_a_certificate_that_lies_is_refused(certificate: x509.Certificate) -> None:
    with pytest.raises(BadIdentity):
        identity_of(certificate, NOW)


def test_the_extension_of_another_is_refused() -> None:
    """Mallory has seen Bob's certificate, and puts Bob's words into one over a key that Mallory has."""
    bob = made(by="bob")
    stolen = bob.extensions.get_extension_for_oid(EXTENSION).value
    assert isinstance(stolen, x509.UnrecognizedExtension)
    with pytest.raises(BadIdentity, match="does not verify"):
        identity_of(made(extension=stolen.value), NOW)


def test_there_is_one_encoding_of_what_is_signed() -> None:
    certificate = made()
    extension = certificate.extensions.get_extension_for_oid(EXTENSION).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    good = extension.value
    for other in (
        good + b"\0",
        b"\x30\x81" + good[1:],
        good[:-1],
        b"\x31" + good[1:],
        good[:4] + b"\x08\x02" + good[6:],
    ):
        with pytest.raises(BadIdentity):
            identity_of(made(OTHER, extension=other), NOW)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_mutants_of_a_certificate_name_its_identity_for_another_key() -> None:
    """A changed certificate is refused, or does not parse. Nothing signed is left out of the signature."""
    chance = random.Random(SEED)
    original = encoded(made())
    refused = unreadable = 0
    for _ in range(MUTANTS):
        data = bytearray(original)
        for _ in range(chance.randrange(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if data == original:
            continue
        try:
            certificate = parsed(bytes(data))
        except UNREADABLE:
            unreadable += 1
            continue
        try:
            identity_of(certificate, NOW)
        except BadIdentity:
            refused += 1
        else:  # an ECDSA signature has a second form, over the same words
            assert certificate.tbs_certificate_bytes == parsed(original).tbs_certificate_bytes
    assert refused > 100
    assert unreadable > 100
