"""Certificates as libp2p's TLS has them: self-signed, with the identity in an extension (libp2p/specs tls).

What a stranger sends is parsed by `cryptography`, and the extension by comparing it with its only encoding: where the
identity is an Ed25519 key, DER leaves no choice.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtensionOID, NameOID

from p2pcompute_protocols.envelope import is_signed

from .noise import BadIdentity

__all__ = ["EXTENSION", "SIGNED_PREFIX", "UNREADABLE", "identity_of", "make_certificate"]

EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
SIGNED_PREFIX = b"libp2p-tls-handshake:"  # what the identity signs, in front of the certificate's key
_SIGNED_KEY = b"\x30\x68\x04\x24\x08\x01\x12\x20"  # SEQUENCE, OCTET STRING of 36 bytes: PublicKey{Ed25519, 32 bytes}
_SIGNATURE = b"\x04\x40"  # OCTET STRING of 64 bytes
_UNDERSTOOD = {
    EXTENSION,
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
}
_MAX_RSA_BITS = 4096
# What `cryptography` raises for a certificate that is none, here or when it is first read.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.InvalidVersion,
    x509.DuplicateExtension,
)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def make_certificate(
    identity: bytes, sign: Callable[[bytes], bytes], now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate over a new P-256 key, in which `identity` (32 bytes) signs for that key."""
    key = ec.generate_private_key(ec.SECP256R1())
    signature = sign(SIGNED_PREFIX + _subject_key(key.public_key()))
    name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(8))])
    signed_key = _SIGNED_KEY + identity + _SIGNATURE + signature
    certificate = (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .not_valid_before(now - datetime.timedelta(hours=1))  # peers' clocks differ
        .not_valid_after(now + datetime.timedelta(days=365 * 100))
        .add_extension(x509.UnrecognizedExtension(EXTENSION, signed_key), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def identity_of(certificate: x509.Certificate, now: datetime.datetime) -> bytes:
    """The raw Ed25519 key that stands behind a certificate.

    Raises:
        BadIdentity: it is not valid now, not signed by itself, says nothing of an Ed25519 identity, or lies.
    """
    try:
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise BadIdentity("the peer's certificate is not valid today; is one of both clocks wrong?")
        signed_key = _signed_key(certificate)
        if len(signed_key) != len(_SIGNED_KEY) + 32 + len(_SIGNATURE) + 64 or not signed_key.startswith(_SIGNED_KEY):
            raise BadIdentity("the peer has no Ed25519 identity; other keys are not spoken here")
        identity, rest = signed_key[len(_SIGNED_KEY) :][:32], signed_key[len(_SIGNED_KEY) + 32 :]
        key = certificate.public_key()
        if not rest.startswith(_SIGNATURE) or not is_signed(
            SIGNED_PREFIX + _subject_key(key), rest[len(_SIGNATURE) :], identity
        ):
            raise BadIdentity("the identity's signature of the certificate's key does not verify")
        _verify_itself(certificate, key)
    except UNREADABLE as exc:
        raise BadIdentity(f"the peer's certificate is none that we understand: {exc}") from None
    return identity


def _signed_key(certificate: x509.Certificate) -> bytes:
    found = b""
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise BadIdentity("the peer's certificate has a critical extension that nobody here knows")
        if extension.oid == EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension):
            found = extension.value.value
    return found


def _verify_itself(certificate: x509.Certificate, key: object) -> None:
    if not isinstance(certificate.signature_hash_algorithm, (*_HASHES, type(None))):
        raise BadIdentity("the peer's certificate is signed over a weak hash")
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    parameters = certificate.signature_algorithm_parameters
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
        key.verify(signature, signed, parameters)
    elif isinstance(key, ed25519.Ed25519PublicKey) and parameters is None:
        key.verify(signature, signed)
    elif isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
        if not 2048 <= key.key_size <= _MAX_RSA_BITS:
            raise BadIdentity("the peer's certificate has an RSA key that is too short or too long")
        assert certificate.signature_hash_algorithm is not None
        key.verify(signature, signed, parameters, certificate.signature_hash_algorithm)
    else:
        raise BadIdentity("the peer's certificate has a key that nobody here knows")


def _subject_key(key: object) -> bytes:
    """SubjectPublicKeyInfo (RFC 5280 §4.1)."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form)  # type: ignore[attr-defined,no-any-return] # every public key has it
