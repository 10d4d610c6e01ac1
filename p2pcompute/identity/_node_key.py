"""The Ed25519 key that names a node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from nacl.signing import SigningKey

from p2pcompute.errors import IdentityError
from p2pcompute_protocols.ids import PeerId, peer_id_from_public_key

from ._keyfile import SECRET_BYTES, load_or_create_secret

__all__ = ["NodeKey"]

_KIND = "p2pcompute node key v1"


class NodeKey:
    """An Ed25519 key (RFC 8032). Its public half is the node's peer ID.

    It shows itself only as its peer ID and can't be pickled or copied, so that it does not slip into a log, a
    message to a worker or a crash report.

    Attributes:
        peer_id: the libp2p peer ID, "12D3Koo…".
        public_key: the raw public key, 32 bytes.
    """

    __slots__ = ("_signing_key", "peer_id", "public_key")

    peer_id: PeerId
    public_key: bytes

    def __init__(self, seed: bytes) -> None:
        """Take a 32-byte seed. Most callers want `load_or_create` or `generate`."""
        if len(seed) != SECRET_BYTES:
            raise IdentityError(f"an Ed25519 seed has {SECRET_BYTES} bytes, this has {len(seed)}")
        self._signing_key = SigningKey(seed)
        self.public_key = bytes(self._signing_key.verify_key)
        self.peer_id = peer_id_from_public_key(self.public_key)

    @classmethod
    def generate(cls) -> NodeKey:
        """A fresh key that is stored nowhere."""
        return cls(os.urandom(SECRET_BYTES))

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> NodeKey:
        """The key in `path`; made on first use with mode 0600.

        Two processes that race to make it get the same key. Blocks for one fsync where the key is made.

        Raises:
            IdentityError: the file is malformed, readable by others, or belongs to somebody else.
        """
        seed = load_or_create_secret(Path(path), kind=_KIND, create=lambda: os.urandom(SECRET_BYTES))
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""
        return bytes(self._signing_key.sign(message).signature)

    def reveal_seed(self) -> bytes:
        """The 32-byte seed itself. Only the overlay asks for it, to give libp2p its own form of the key."""
        return bytes(self._signing_key)

    def __repr__(self) -> str:
        return f"<NodeKey {self.peer_id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a NodeKey is not pickled or copied; pass the path of its file")
