"""One blob on disk: a header of fixed length, with the leaf hash of each piece and a bit for each one that is here,
and then the pieces where they belong.

What the header says is only a hint: each piece is hashed when it is read. So nothing is synced, and a power cut, a
full disk or a bad sector costs the pieces that it hit.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Final

from p2pcompute._private_files import open_private
from p2pcompute.errors import ConfigError, DiskFull, StorageError
from p2pcompute_protocols.blob import bitmap, count_pieces, from_bitmap, piece_span, root_of
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.limits import MAX_BLOB_BYTES, MAX_PIECES
from p2pcompute_protocols.merkle import leaf_hash

from ._held import BlobName

__all__ = ["HEADER_BYTES", "BlobFile"]

_MAGIC: Final = b"p2pcompute blob1"
_FIXED: Final = struct.Struct(">16s32s32sQ")  # magic, digest, root, size
_LEAVES_AT: Final = _FIXED.size
_BITS_AT: Final = _LEAVES_AT + 32 * MAX_PIECES
HEADER_BYTES: Final = 12 * 1024
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _storage_error(path: Path, exc: OSError) -> StorageError:
    if exc.errno in _FULL:
        return DiskFull(f"{path.parent} has no room for an input; give `up` a smaller --cache, or make room")
    return StorageError(f"{path} can't be used ({exc.strerror}); see `p2pcompute doctor`")


class BlobFile:
    """An open file of one blob. Its calls block; `close` gives the descriptor back.

    Attributes:
        name: of the blob.
        leaves: the leaf hash of each piece.
        pieces: those that are said to be here; `read` finds out.
    """

    def __init__(self, path: Path, fd: int, name: BlobName, leaves: tuple[bytes, ...], pieces: set[int]) -> None:
        self.path = path
        self.name = name
        self.leaves = leaves
        self.pieces = pieces
        self._fd = fd

    @staticmethod
    def nbytes(size: int) -> int:
        """What the file of a blob of `size` bytes takes."""
        return HEADER_BYTES + size

    @classmethod
    def create(cls, path: Path, name: BlobName, leaves: tuple[bytes, ...]) -> BlobFile:
        """A new file with room for all of the blob, in the place of what was there.

        Raises:
            DiskFull: there is no room; nothing is left of it. StorageError: it can't be made.
        """
        try:
            path.unlink(missing_ok=True)
            fd, _ = open_private(path)
        except OSError as exc:
            raise _storage_error(path, exc) from exc
        except ConfigError as exc:
            raise StorageError(str(exc)) from exc
        made = cls(path, fd, name, leaves, set())
        try:
            head = _FIXED.pack(_MAGIC, name.digest, name.root, name.size) + b"".join(leaves)
            os.posix_fallocate(fd, 0, cls.nbytes(name.size))
            os.pwrite(fd, head, 0)
        except OSError as exc:
            made.close()
            path.unlink(missing_ok=True)
            raise _storage_error(path, exc) from exc
        return made

    @classmethod
    def open(cls, path: Path) -> BlobFile | None:
        """The file that is there; None where it is none of ours, or damaged in its header."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            made = cls._parse(path, fd)
        except (OSError, LocalProtocolError, struct.error, ValueError):
            made = None
        if made is None:
            os.close(fd)
        return made

    @classmethod
    def _parse(cls, path: Path, fd: int) -> BlobFile | None:
        magic, digest, root, size = _FIXED.unpack(os.pread(fd, _FIXED.size, 0))
        if magic != _MAGIC or not 1 <= size <= MAX_BLOB_BYTES or os.fstat(fd).st_size != cls.nbytes(size):
            return None
        count = count_pieces(size)
        raw = os.pread(fd, 32 * count, _LEAVES_AT)
        leaves = tuple(raw[at : at + 32] for at in range(0, len(raw), 32))
        if len(raw) != 32 * count or root_of(leaves) != root:
            return None
        pieces = from_bitmap(os.pread(fd, -(-count // 8), _BITS_AT), count)
        return cls(path, fd, BlobName(digest=digest, size=size, root=root), leaves, pieces)

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Put a piece that was checked into its place.

        Raises:
            DiskFull, StorageError: it is not there; what was before is.
        """
        try:
            os.pwrite(self._fd, data, HEADER_BYTES + piece_span(index, self.name.size)[0])
            self.pieces.add(index)
            os.pwrite(self._fd, bitmap(self.pieces, len(self.leaves)), _BITS_AT)
        except OSError as exc:
            self.pieces.discard(index)
            raise _storage_error(self.path, exc) from exc

    def read(self, index: int) -> bytes | None:
        """A piece, if it is here and hashes to its leaf; one that does not is forgotten."""
        if index not in self.pieces:
            return None
        at, size = piece_span(index, self.name.size)
        try:
            data = os.pread(self._fd, size, HEADER_BYTES + at)
        except OSError:
            data = b""
        if leaf_hash(data) != self.leaves[index]:
            self.pieces.discard(index)
            return None
        return data

    def touch(self) -> None:
        """It was used now: it is among the last to make room."""
        os.utime(self._fd)

    def close(self) -> None:
        """Give the descriptor back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
