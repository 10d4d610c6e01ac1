"""Who holds how much of the memory that a node has for what peers send."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Hashable

__all__ = ["MemoryAccount", "MemoryPool", "give_back"]


def give_back() -> None:
    """Have the C library return to the system what it has free: after a flood that is most of what the flood took, in
    holes between what is in use. Takes milliseconds. Nothing where the library can't (only glibc's can)."""
    try:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no such library here
        return
    if trim is not None:
        trim(0)


class MemoryPool:
    """Bytes that are held for peers, shared so that no number of greedy ones leaves nothing for the next.

    Each peer may hold `kept` bytes whatever others do: so much is promised. What it holds beyond that comes from a pool
    of `total` bytes, and there a peer may hold no more than is free once it has it: one greedy peer gets half of the
    pool, two that grow together a third each. (Dynamic thresholds with a factor of one: A. Choudhury and E. Hahne,
    Dynamic Queue Length Thresholds for Shared-Memory Packet Switches, IEEE/ACM Transactions on Networking 6(2), 1998.)

    Args:
        total: bytes of the pool.
        per_peer: the most that one peer may hold in all.
        kept: see above. The bound on everything is ``total + peers * kept``.
    """

    def __init__(self, *, total: int, per_peer: int, kept: int) -> None:
        if total < 0 or kept < 0 or per_peer < kept:
            raise ValueError("a pool has no negative size, and a peer's share is no less than what is kept for it")
        self._total = total
        self._per_peer = per_peer
        self._kept = kept
        self._shared = 0  # what all hold beyond `kept`
        self._held: dict[Hashable, int] = {}
        self._open: Counter[Hashable] = Counter()

    @property
    def held(self) -> int:
        """Bytes that all peers hold together."""
        return sum(self._held.values())

    @property
    def peers(self) -> int:
        """How many peers have an account open."""
        return len(self._open)

    def held_by(self, peer: Hashable) -> int:
        """Bytes that one peer holds."""
        return self._held.get(peer, 0)

    def open(self, peer: Hashable) -> MemoryAccount:
        """An account on the peer's name. It may have several, one for each connection: the bounds hold for the sum."""
        self._open[peer] += 1
        return MemoryAccount(self, peer)

    def _move(self, peer: Hashable, change: int) -> bool:
        held = self._held.get(peer, 0)
        beyond, beyond_after = max(0, held - self._kept), max(0, held + change - self._kept)
        if change > 0 and beyond_after:
            free_after = self._total - self._shared + beyond - beyond_after
            if held + change > self._per_peer or beyond_after > free_after:
                return False
        self._shared += beyond_after - beyond
        self._held[peer] = held + change
        return True

    def _close(self, peer: Hashable) -> None:
        self._open[peer] -= 1
        if not self._open[peer]:
            del self._open[peer]
            self._held.pop(peer, None)  # nothing is left: each account gave back what it held


class MemoryAccount:
    """What one connection holds on its peer's name. Made by `MemoryPool.open`; not for use by several threads."""

    def __init__(self, pool: MemoryPool, peer: Hashable) -> None:
        self._pool = pool
        self._peer = peer
        self._closed = False
        self.held = 0

    def try_charge(self, count: int) -> bool:
        """Hold `count` bytes more, or nothing and False: whoever asked resets what they were for, or does without."""
        if count < 0:
            raise ValueError("release gives bytes back")
        if self._closed or not self._pool._move(self._peer, count):
            return False
        self.held += count
        return True

    def release(self, count: int) -> None:
        """Give back `count` bytes that were charged. Does nothing once closed, when all has been given back."""
        if self._closed:
            return
        if not 0 <= count <= self.held:
            raise ValueError(f"{count} bytes can't be given back where {self.held} are held")
        self._pool._move(self._peer, -count)
        self.held -= count

    def close(self) -> None:
        """Give back all that is held; nothing can be charged any more. Idempotent."""
        if not self._closed:
            self.release(self.held)
            self._closed = True
            self._pool._close(self._peer)
