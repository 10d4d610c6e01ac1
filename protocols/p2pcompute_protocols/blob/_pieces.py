"""How a blob is cut into pieces, the tree over them, and the bitmap that says which of them somebody holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from ..errors import LocalProtocolError
from ..ids import Digest
from ..merkle import EMPTY_ROOT, leaf_hash, node_hash

__all__ = ["PIECE_BYTES", "bitmap", "count_pieces", "from_bitmap", "leaves_of", "piece_span", "root_of"]

PIECE_BYTES: Final = 256 * 1024  # of every piece but the last


def count_pieces(size: int) -> int:
    """Into how many pieces a blob of `size` bytes is cut."""
    return -(-size // PIECE_BYTES)


def piece_span(index: int, size: int) -> tuple[int, int]:
    """Where piece `index` of a blob of `size` bytes begins, and how many bytes it has."""
    at = index * PIECE_BYTES
    return at, min(PIECE_BYTES, size - at)


def leaves_of(data: bytes | memoryview) -> tuple[bytes, ...]:
    """The leaf hash of each piece: SHA-256 of a zero byte and the piece, as in `p2pcompute_protocols.merkle`."""
    view = memoryview(data)
    return tuple(leaf_hash(bytes(view[at : at + PIECE_BYTES])) for at in range(0, len(view), PIECE_BYTES))


def root_of(leaves: Sequence[bytes]) -> Digest:
    """The root of the tree over these leaf hashes: that of `MerkleTree` over the pieces (RFC 9162 §2.1)."""
    level = list(leaves)
    while len(level) > 1:
        above = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        if len(level) & 1:
            above.append(level[-1])
        level = above
    return Digest(level[0]) if level else EMPTY_ROOT


def bitmap(held: Iterable[int], pieces: int) -> bytes:
    """A bit for each piece: piece 0 is the lowest bit of the first byte. What is behind the last piece is zero."""
    bits = bytearray(-(-pieces // 8))
    for index in held:
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def from_bitmap(bits: bytes, pieces: int) -> set[int]:
    """The pieces whose bits are set.

    Raises:
        LocalProtocolError: it is longer or shorter than the pieces ask for, or has bits behind the last one.
    """
    if len(bits) != -(-pieces // 8) or (pieces & 7 and bits[-1] >> (pieces & 7)):
        raise LocalProtocolError(f"a bitmap of {len(bits)} bytes that does not fit {pieces} pieces")
    return {index for index in range(pieces) if bits[index >> 3] >> (index & 7) & 1}
