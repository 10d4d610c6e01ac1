"""The secp256k1 key that signs vouchers and claims, the owner of a node's money on chain."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from coincurve import PrivateKey

from p2pcompute.errors import IdentityError
from p2pcompute_protocols._evm import address_of_public_key
from p2pcompute_protocols.ids import Address

from ._keyfile import SECRET_BYTES, load_or_create_secret

__all__ = ["WalletKey"]

_KIND = "p2pcompute wallet key v1"


class WalletKey:
    """A secp256k1 key and the EVM account that it owns.

    Like `NodeKey` it shows only what is public, and can't be pickled or copied.

    Attributes:
        address: the account: the last 20 bytes of the Keccak-256 of the uncompressed public key.
    """

    __slots__ = ("_key", "address")

    address: Address

    def __init__(self, secret: bytes) -> None:
        """Take a 32-byte secret, an integer in 1 … n-1. Most callers want `load_or_create` or `generate`."""
        if len(secret) != SECRET_BYTES:
            raise IdentityError(f"a secp256k1 secret has {SECRET_BYTES} bytes, this has {len(secret)}")
        try:
            self._key = PrivateKey(secret)
        except ValueError:
            raise IdentityError("not a secp256k1 secret: it is 0 or not below the group order") from None
        self.address = address_of_public_key(self._key.public_key)

    @classmethod
    def generate(cls) -> WalletKey:
        """A fresh key that is stored nowhere."""
        return cls(PrivateKey().secret)

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> WalletKey:
        """The key in `path`; made on first use with mode 0600. See `NodeKey.load_or_create`.

        Raises:
            IdentityError: the file is malformed, readable by others, or belongs to somebody else.
        """
        return cls(load_or_create_secret(Path(path), kind=_KIND, create=lambda: PrivateKey().secret))

    @property
    def private_key(self) -> bytes:
        """The 32-byte secret, for signing hub transactions. Never log it."""
        return self._key.secret

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign a 32-byte digest: r ‖ s ‖ v, 65 bytes, s in the lower half (EIP-2), v 27 or 28."""
        if len(digest) != 32:
            raise ValueError(f"a digest has 32 bytes, this has {len(digest)}")
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([27 + signature[64]])

    def __repr__(self) -> str:
        return f"<WalletKey 0x{self.address.hex()}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a WalletKey is not pickled or copied; pass the path of its file")
