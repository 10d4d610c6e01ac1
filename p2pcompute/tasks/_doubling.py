"""Chunks that two providers do: second copies are given out first, and results wait for each other before they count.

`checking.Quorum` decides who is right; here is when anybody is given what, and who waits for whom. A result that waits
keeps its provider unpaid, so nobody waits long: where no other provider can have the chunk, or patience ends, we
compute it whole. Two hardly ever wait for each other, since whoever is free takes a second copy before anything new.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from p2pcompute.checking import ChunkState, Quorum, SampleReport
from p2pcompute_protocols.ids import PeerId

from ._scheduler import ChunkScheduler, Running

__all__ = ["DoublingScheduler", "QuorumDesk"]


class DoublingScheduler(ChunkScheduler):
    """A scheduler that gives doubled chunks to two providers, which the quorum chooses."""

    def __init__(self, chunks: int, quorum: Quorum) -> None:
        super().__init__(chunks)
        self.quorum = quorum

    def _is_kept_from(self, provider: PeerId, index: int) -> bool:
        if super()._is_kept_from(provider, index):
            return True
        return index in self.quorum and self.quorum.bars(provider, index)

    def take(self, provider: PeerId, now: float) -> int | None:
        """The next chunk for `provider`: a second copy where one is wanted, else as ever."""
        index = self.quorum.seconds(provider, refused=lambda at: provider in self._refused.get(at, ()))
        if index is None:
            index = super().take(provider, now)
        else:
            if index in self._pending:  # whoever had it is gone
                self._pending.remove(index)
                heapq.heapify(self._pending)
            self._running.setdefault(index, Running()).since[provider] = now
        if index is not None and index in self.quorum:
            self.quorum.assign(provider, index)
        return index

    def fail(self, index: int, provider: PeerId, *, for_good: bool) -> None:
        """A chunk came back without a result, or its provider is gone."""
        super().fail(index, provider, for_good=for_good)
        self.quorum.drop(provider, index)

    def revoke(self, provider: PeerId) -> list[int]:
        """A provider lied: everything of it goes back, and so does what was settled by its word."""
        mine = super().revoke(provider)
        for index in self.quorum.convict(provider):
            if self._done.pop(index, None) is not None:
                heapq.heappush(self._pending, index)
                self.requeued += 1
                mine.append(index)
        return sorted(mine)


@dataclass(slots=True, kw_only=True)
class QuorumDesk:
    """Where results of doubled chunks wait until it is known who is right.

    Attributes:
        quorum: decides.
        sample: draws private samples of a chunk's output, before anything is compared.
        recompute: gives SHA-256 of the whole chunk, computed by us.
        others: whether another provider than this one may still give its result of a chunk.
        blame: somebody whose result is not here any more was wrong.
        wake: something has changed: look again.
        patience_s: how long a result waits for another one.
        decided: a chunk was computed here to judge a provider's result; says why.
    """

    quorum: Quorum
    sample: Callable[[int, memoryview], Awaitable[SampleReport]]
    recompute: Callable[[int], Awaitable[bytes]]
    others: Callable[[PeerId, int], bool]
    blame: Callable[[PeerId, int], Awaitable[None]]
    wake: Callable[[], None]
    patience_s: float
    decided: Callable[[PeerId, int, str], None] = lambda *_: None
    decided_here: int = 0  # chunks that we have computed
    _changed: dict[int, trio.Event] = field(default_factory=dict)
    _deciding: dict[int, trio.Lock] = field(default_factory=dict)
    _waiting: set[tuple[PeerId, int]] = field(default_factory=set)

    async def check(self, provider: PeerId, index: int, output: memoryview) -> SampleReport:
        """Check a result: by samples, and where the chunk is doubled, by another provider's or our own.

        Returns:
            As for samples; where the quorum is against it, one more was checked and differed.
        """
        report = await self.sample(index, output)
        if not report.ok or index not in self.quorum:
            return report
        digest = await self._claim(provider, index, output)
        self._waiting.add((provider, index))
        try:
            ruling = self.quorum.came(provider, index, digest)
            self._tell(index)
            until = trio.current_time() + self.patience_s
            while ruling.state is not ChunkState.SETTLED:
                alone = not self.others(provider, index)
                if ruling.state is ChunkState.OURS:
                    await self._decide(provider, index, "the results of two providers differ")
                elif alone:
                    await self._decide(provider, index, "no second provider is to be had for it")
                elif trio.current_time() >= until:
                    await self._decide(provider, index, f"no second result came in {self.patience_s:.0f} s")
                else:
                    with trio.move_on_at(min(until, trio.current_time() + 1.0)):  # others may be lost without a word
                        await self._changed.setdefault(index, trio.Event()).wait()
                ruling = self.quorum.ruling(index)
        finally:
            self._waiting.discard((provider, index))
        for who in ruling.wrong:
            if who != provider and (who, index) not in self._waiting:
                await self.blame(who, index)
        wrong = self.quorum.digest(index) != self._counts_as(provider, index, digest)
        return SampleReport(checked=report.checked + 1, mismatched=int(wrong))

    def _tell(self, index: int) -> None:
        self._changed.pop(index, trio.Event()).set()
        self.wake()

    async def _decide(self, provider: PeerId, index: int, reason: str) -> None:
        """Compute the chunk ourselves, once, and rule."""
        async with self._deciding.setdefault(index, trio.Lock()):
            if self.quorum.state(index) is ChunkState.SETTLED:
                return
            self.quorum.ask_us(index)
            await self._rule(index)
            self.decided_here += 1
            self.decided(provider, index, reason)
        self._tell(index)

    async def _claim(self, provider: PeerId, index: int, output: memoryview) -> bytes:  # noqa: ARG002  of fast mode
        """What stands for a result where results are compared."""
        await trio.lowlevel.checkpoint()
        return hashlib.sha256(output).digest()

    def _counts_as(self, provider: PeerId, index: int, digest: bytes) -> bytes:  # noqa: ARG002  of fast mode
        """The same at the end."""
        return digest

    async def _rule(self, index: int) -> None:
        self.quorum.rule(index, await self.recompute(index))
