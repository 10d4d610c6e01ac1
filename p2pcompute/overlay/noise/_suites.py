"""The two cipher suites, and Noise's symmetric state over them (Noise Protocol Framework rev. 34, §5).

`CHACHAPOLY` is libp2p's. `AESGCM` is spoken between nodes of ours only, which is four times as fast on a
processor with AES instructions; docs/adr/0015 says why it is as safe here.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import aead

from ._errors import BadMessage, OutOfNonces

__all__ = ["AESGCM", "CHACHAPOLY", "KEY_BYTES", "LAST_NONCE", "TAG_BYTES", "Aead", "Suite", "SymmetricState"]

KEY_BYTES = 32
TAG_BYTES = 16
LAST_NONCE = 2**64 - 2  # 2^64 - 1 is kept for rekeying (§5.1)

Aead: TypeAlias = aead.ChaCha20Poly1305 | aead.AESGCM


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A Noise protocol name and what its cipher functions are."""

    name: bytes
    nonce: struct.Struct  # of 12 bytes: four zeros and the counter, little-endian for ChaCha20 and big-endian for GCM
    aead: type[Aead]


CHACHAPOLY: Final = Suite(
    name=b"Noise_XX_25519_ChaChaPoly_SHA256", nonce=struct.Struct("<4xQ"), aead=aead.ChaCha20Poly1305
)
AESGCM: Final = Suite(name=b"Noise_XX_25519_AESGCM_SHA256", nonce=struct.Struct(">4xQ"), aead=aead.AESGCM)


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """HKDF with two outputs (§4.3)."""
    key = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(key, b"\x01", "sha256")
    return first, hmac.digest(key, first + b"\x02", "sha256")


class SymmetricState:
    """Chaining key, handshake hash and the key of the moment (§5.2)."""

    __slots__ = ("_aead", "_chaining_key", "_nonce", "_suite", "hash")

    def __init__(self, suite: Suite, prologue: bytes = b"") -> None:
        self._suite = suite
        name = suite.name
        self.hash = name.ljust(32, b"\0") if len(name) <= 32 else hashlib.sha256(name).digest()
        self._chaining_key = self.hash
        self._aead: Aead | None = None
        self._nonce = 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        """Bind `data` into everything that follows."""
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        """Go on with a key that also depends on `material`, a shared secret."""
        self._chaining_key, key = _hkdf(self._chaining_key, material)
        self._aead = self._suite.aead(key)
        self._nonce = 0

    def _next_nonce(self) -> bytes:
        if self._nonce > LAST_NONCE:
            raise OutOfNonces("a handshake key has no nonce left")
        nonce = self._suite.nonce.pack(self._nonce)
        self._nonce += 1
        return nonce

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """What stands for `plaintext` in a message: itself as long as there is no key."""
        sealed = plaintext
        if self._aead is not None:
            sealed = self._aead.encrypt(self._next_nonce(), plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        """The opposite. Raises BadMessage where it does not authenticate."""
        plaintext = sealed
        if self._aead is not None:
            try:
                plaintext = self._aead.decrypt(self._next_nonce(), sealed, self.hash)
            except InvalidTag:
                raise BadMessage("a handshake message does not authenticate") from None
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The two transport keys: initiator to responder, and back."""
        return _hkdf(self._chaining_key, b"")
