"""Noise as libp2p speaks it, without I/O: ``Noise_XX_25519_{ChaChaPoly,AESGCM}_SHA256``.

`Handshake` brings two peers to a `Handshaken`; `Sealer` and `Opener` then make and open records with its keys. Nothing
here reads a clock, a socket or libp2p. Sources: the Noise Protocol Framework, revision 34, and libp2p/specs, noise and
connections/inlined-muxer-negotiation. docs/adr/0014 says why this is our own.
"""

from ._errors import BadIdentity, BadMessage, NoiseError, OutOfNonces, WrongPeer
from ._handshake import MAX_MESSAGE_BYTES, TABLE, Credentials, Handshake, Handshaken, Role, State, Step, Token
from ._payload import Payload
from ._records import (
    BUFFER_BYTES,
    MAX_EMPTY_RECORDS,
    MAX_PLAINTEXT,
    MAX_RECORD_BYTES,
    Data,
    Opener,
    Sealer,
    cut,
    record_bytes,
)
from ._suites import AESGCM, CHACHAPOLY, LAST_NONCE, Suite

__all__ = [
    "AESGCM",
    "BUFFER_BYTES",
    "CHACHAPOLY",
    "LAST_NONCE",
    "MAX_EMPTY_RECORDS",
    "MAX_MESSAGE_BYTES",
    "MAX_PLAINTEXT",
    "MAX_RECORD_BYTES",
    "TABLE",
    "BadIdentity",
    "BadMessage",
    "Credentials",
    "Data",
    "Handshake",
    "Handshaken",
    "NoiseError",
    "Opener",
    "OutOfNonces",
    "Payload",
    "Role",
    "Sealer",
    "State",
    "Step",
    "Suite",
    "Token",
    "WrongPeer",
    "cut",
    "record_bytes",
]
