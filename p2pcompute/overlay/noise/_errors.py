"""What can go wrong in Noise. None of it can be mended: the connection has to be closed.

NoiseError
├── BadMessage      a handshake message or a record that is malformed or does not authenticate
├── BadIdentity     the handshake authenticates, but nobody that we talk to stands behind it
│   └── WrongPeer   somebody else answers than the one that was dialled
└── OutOfNonces     2^64 - 1 records went one way
"""

from __future__ import annotations

__all__ = ["BadIdentity", "BadMessage", "NoiseError", "OutOfNonces", "WrongPeer"]


class NoiseError(Exception):
    """The connection is no good; the message says why. Close it and dial again."""


class BadMessage(NoiseError):
    """The peer sent what is no Noise message, or what does not authenticate."""


class BadIdentity(NoiseError):
    """The peer has no Ed25519 identity, or did not prove it."""


class WrongPeer(BadIdentity):
    """Somebody else answers than the one that was dialled."""


class OutOfNonces(NoiseError):
    """A key has sealed or opened as many records as it may."""
