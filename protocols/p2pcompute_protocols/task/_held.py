"""Which blobs of chunks a provider holds: both sides know it, without a word about it.

What is held follows from the chunks that were assigned and their order, which both sides have seen: a chunk's blobs
come behind its Assign, those that are not held, and the least recently used make room. So none is asked for, none is
sent twice while it is needed, and none can come that nobody needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping

from ..errors import LocalProtocolError, WireCode

__all__ = ["Held"]


class Held(ABC):
    """The blobs of one task's provider: `most_bytes` at most are held at once, and `most` blobs."""

    def __init__(self, most_bytes: int, most: int) -> None:
        self._most_bytes = most_bytes
        self._most = most
        self._bytes = 0
        self._held: OrderedDict[bytes, int] = OrderedDict()  # digest -> size, the least recently used first
        self._used: dict[int, frozenset[bytes]] = {}  # by the chunks that are under way

    @abstractmethod
    def needs(self, index: int) -> dict[bytes, int]:
        """Digest to size of all that a chunk needs, in the order in which they come.

        Raises:
            LocalProtocolError: UNKNOWN_CHUNK, there is no such chunk; OVERSIZED, they are more than a chunk may have;
                BAD_DIGEST, one digest with two sizes.
        """

    @property
    def held(self) -> Mapping[bytes, int]:
        """Digest to size of what is held, or is to come."""
        return self._held

    def fits(self, index: int) -> bool:
        """Whether the chunk may be assigned: its blobs leave room for those of the chunks that are under way."""
        try:
            self._plan(self.needs(index))
        except LocalProtocolError:
            return False
        return True

    def assign(self, index: int) -> dict[bytes, int]:
        """The chunk is assigned: digest to size of the blobs that come now.

        Raises:
            LocalProtocolError: as `needs`; and OVERSIZED, they can't be held beside those of the chunks that are under
                way; nothing has changed.
        """
        needs = self.needs(index)
        missing, gone = self._plan(needs)
        for digest in gone:
            self._bytes -= self._held.pop(digest)
        self._bytes += sum(missing.values())
        for digest, size in needs.items():
            self._held[digest] = size
            self._held.move_to_end(digest)
        self._used[index] = frozenset(needs)
        return missing

    def answered(self, index: int) -> None:
        """The chunk is not under way any more."""
        self._used.pop(index, None)

    def _plan(self, needs: dict[bytes, int]) -> tuple[dict[bytes, int], list[bytes]]:
        """What has to come, and what has to go for it."""
        if any(self._held.get(digest, size) != size for digest, size in needs.items()):
            raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)
        missing = {digest: size for digest, size in needs.items() if digest not in self._held}
        if not missing:
            return missing, []
        over = self._bytes + sum(missing.values()) - self._most_bytes
        many = len(self._held) + len(missing) - self._most
        gone: list[bytes] = []
        if over <= 0 and many <= 0:
            return missing, gone
        used = frozenset[bytes]().union(*self._used.values())
        for digest, size in self._held.items():
            if over <= 0 and many <= 0:
                break
            if digest in needs:
                continue
            if digest in used:
                raise LocalProtocolError("blobs of a chunk that is under way would have to go", code=WireCode.OVERSIZED)
            gone.append(digest)
            over -= size
            many -= 1
        return missing, gone
