"""What the tests of Noise share: keys from seeds, both sides of a handshake, and another implementation of Noise."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from nacl.signing import SigningKey
from noise.connection import Keypair, NoiseConnection

from p2pcompute.overlay.noise import CHACHAPOLY, Credentials, Handshake, Handshaken, Role, Suite

YAMUX = "/yamux/1.0.0"


def secret(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def x25519(name: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret(name))


def signing_key(name: str) -> SigningKey:
    return SigningKey(secret(name))


def credentials(name: str, muxers: tuple[str, ...] = (YAMUX,)) -> Credentials:
    """Who `name` is: the same in each run."""
    key = signing_key(name)
    return Credentials(
        bytes(key.verify_key),
        lambda message: key.sign(message).signature,
        muxers=muxers,
        static=x25519(f"{name} static"),
    )


def ours(role: Role, suite: Suite = CHACHAPOLY, name: str | None = None, **options: Any) -> Handshake:
    """A side with keys from seeds."""
    name = name or role.value
    options.setdefault("ephemeral", x25519(f"{name} ephemeral"))
    return Handshake(suite, role, credentials(name), **options)


def both(suite: Suite = CHACHAPOLY) -> tuple[Handshake, Handshake]:
    return ours(Role.INITIATOR, suite), ours(Role.RESPONDER, suite)


def shake(initiator: Handshake, responder: Handshake) -> tuple[Handshaken, Handshaken]:
    """Run a handshake that has not begun to its end."""
    responder.receive_data(initiator.data_to_send())
    initiator.receive_data(responder.data_to_send())
    responder.receive_data(initiator.data_to_send())
    assert initiator.result is not None
    assert responder.result is not None
    return initiator.result, responder.result


def theirs(suite: Suite, role: Role, name: str, prologue: bytes = b"") -> NoiseConnection:
    """The same side in the package `noise`, which libp2p uses."""
    connection = NoiseConnection.from_name(suite.name)
    connection.set_keypair_from_private_bytes(Keypair.STATIC, secret(f"{name} static"))
    connection.set_keypair_from_private_bytes(Keypair.EPHEMERAL, secret(f"{name} ephemeral"))
    connection.set_prologue(prologue)
    (connection.set_as_initiator if role is Role.INITIATOR else connection.set_as_responder)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that a fixed ephemeral key is for tests
        connection.start_handshake()
    return connection


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message
