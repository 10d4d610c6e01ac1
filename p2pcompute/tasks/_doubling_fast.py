"""Chunks that two providers do in fast mode: their bits differ, so their values are compared.

Two results that are as near to each other as two right ones can be count as one claim. Where they are not, we compute
the chunk strictly, and each is held against that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from p2pcompute.checking import ChunkState
from p2pcompute_protocols.ids import PeerId

from ._doubling import QuorumDesk

__all__ = ["Judge", "NearDesk"]


class Judge(Protocol):
    """Compares outputs of one task's chunks within the tolerance that was agreed."""

    def alike(self, index: int, one: memoryview, other: memoryview) -> bool:
        """Whether two outputs of a chunk may both be right."""
        ...

    async def right(self, index: int, outputs: Sequence[memoryview]) -> list[bool]:
        """Which of these outputs of a chunk are right; it is computed here for that."""
        ...


@dataclass(slots=True, kw_only=True)
class NearDesk(QuorumDesk):
    """A desk at which near results are equal ones; `judge` says what is near."""

    judge: Judge
    _held: dict[int, dict[PeerId, memoryview]] = field(default_factory=dict)  # outputs of chunks that are not settled

    async def _claim(self, provider: PeerId, index: int, output: memoryview) -> bytes:
        own = hashlib.sha256(output).digest()
        settled = self.quorum.digest(index)
        if settled is not None:  # by others, whose outputs are gone: it comes late, and is held against ours
            self._held.pop(index, None)
            return settled if (await self.judge.right(index, [output]))[0] else own
        await trio.lowlevel.checkpoint()
        held = self._held.setdefault(index, {})
        claims = self.quorum.claims(index)
        held[provider] = output
        for other, theirs in held.items():
            if other != provider and other in claims and self.judge.alike(index, theirs, output):
                return claims[other]
        return own

    def _counts_as(self, provider: PeerId, index: int, digest: bytes) -> bytes:
        if self.quorum.state(index) is ChunkState.SETTLED:
            self._held.pop(index, None)
        return self.quorum.claims(index).get(provider, digest)

    async def _rule(self, index: int) -> None:
        held = self._held.get(index, {})
        who = [provider for provider in self.quorum.claims(index) if provider in held]
        right = await self.judge.right(index, [held[provider] for provider in who])
        ours = hashlib.sha256(b"near our own result of chunk %d" % index).digest()  # no output has this digest
        for provider, is_right in zip(who, right, strict=True):
            own = hashlib.sha256(held[provider]).digest()
            self.quorum.amend(provider, index, ours if is_right else own)
        self.quorum.rule(index, ours)
