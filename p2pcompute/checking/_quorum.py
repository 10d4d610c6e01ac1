"""Two providers do the same chunk, and their digests are compared: a plain object without I/O, clock or randomness.

Which chunks are done twice is drawn in private, before anything is given out; a provider can't tell a second copy from
a first. Equal digests settle a chunk, and both providers are paid. Unlike ones go to an arbiter: ourselves, who compute
the whole chunk, or a third provider, where two of three decide and we do where all differ. Providers of one *kin* (one
owner, as far as can be told: the same subnet) never do one chunk together, since they would agree on anything.

What settles a chunk is one of

    two equal digests of providers that are not kin     both are right, whoever says otherwise is wrong
    our own digest                                      whoever says so is right, all others are wrong

and from then on every later result of it is judged at once. Two colluding providers that are not known to be kin can
agree on a lie; samples, which are ours, still find it, and `convict` then takes back what they settled.

Source: replication in BOINC (D. P. Anderson, "BOINC: A Platform for Volunteer Computing", Journal of Grid Computing 18,
2020); results are equal to the bit here, so comparing them takes no tolerance and no equal machines.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from p2pcompute.errors import ConfigError
from p2pcompute_protocols.ids import PeerId

__all__ = ["ChunkState", "Quorum", "Ruling", "draw_doubled"]

_COPIES: Final = 2
_WITH_ARBITER: Final = 3


class ChunkState(enum.Enum):
    """Where a chunk that is done twice stands."""

    OPEN = "open"  # fewer results than it takes
    DISPUTED = "disputed"  # the results differ: a third provider's, or ours, decides
    OURS = "ours"  # nobody but we can decide
    SETTLED = "settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What is known of a chunk after something came.

    Attributes:
        index: the chunk.
        state: where it stands now. `OURS` asks for our own digest: `rule`.
        right: who claimed the digest that settled it: each is paid. Empty unless settled.
        wrong: who claimed another one: none is paid. Empty unless settled.
    """

    index: int
    state: ChunkState
    right: tuple[PeerId, ...] = ()
    wrong: tuple[PeerId, ...] = ()


@dataclass(slots=True)
class _Chunk:
    state: ChunkState = ChunkState.OPEN
    holders: set[PeerId] = field(default_factory=set)  # computing it now
    claims: dict[PeerId, bytes] = field(default_factory=dict)
    gone: set[PeerId] = field(default_factory=set)  # who claimed something whose bytes are lost
    digest: bytes | None = None  # what settled it
    by_us: bool = False


def draw_doubled(chunks: int, share: float, rng: np.random.Generator | None = None) -> frozenset[int]:
    """Draw the chunks that are done twice: `share` of them, rounded up, each as likely as another.

    Args:
        chunks: how many there are.
        share: from 0 to 1.
        rng: seeded by the operating system where None.

    Raises:
        ConfigError: `share` is out of its range.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"a share of {share}; write one from 0 to 1")
    rng = np.random.default_rng() if rng is None else rng
    count = min(chunks, -int(-share * chunks // 1))
    return frozenset(int(index) for index in rng.choice(chunks, size=count, replace=False))


class Quorum:
    """Decides for each doubled chunk who may have it, who is right, and who is paid.

    Args:
        doubled: the chunks that are done twice, `draw_doubled`. All others are none of its business.
        arbiter: "self", we compute a disputed chunk, or "provider", a third one does.
        kin: names the owner of a provider as far as that can be told; equal names never share a chunk.
    """

    def __init__(
        self,
        doubled: Sequence[int] | frozenset[int],
        *,
        arbiter: Literal["self", "provider"] = "self",
        kin: Callable[[PeerId], Hashable] = lambda provider: provider,
    ) -> None:
        self._chunks = {index: _Chunk() for index in sorted(doubled)}
        self._arbiter = arbiter
        self._kin = kin
        self._convicted: set[PeerId] = set()

    def __contains__(self, index: int) -> bool:
        return index in self._chunks

    @property
    def doubled(self) -> frozenset[int]:
        """The chunks that are done twice."""
        return frozenset(self._chunks)

    def state(self, index: int) -> ChunkState:
        """Where a doubled chunk stands."""
        return self._chunks[index].state

    def digest(self, index: int) -> bytes | None:
        """What a doubled chunk's output is, once it is settled."""
        return self._chunks[index].digest

    def claims(self, index: int) -> dict[PeerId, bytes]:
        """Who said what of a doubled chunk."""
        return dict(self._chunks[index].claims)

    def wants(self, index: int) -> int:
        """How many more providers a doubled chunk is to be given to."""
        chunk = self._chunks[index]
        if chunk.state in (ChunkState.SETTLED, ChunkState.OURS):
            return 0
        due = _COPIES if chunk.state is ChunkState.OPEN else _WITH_ARBITER
        return max(0, due - len(self._present(chunk)))

    @staticmethod
    def _present(chunk: _Chunk) -> set[PeerId]:
        return chunk.holders | (chunk.claims.keys() - chunk.gone)

    def bars(self, provider: PeerId, index: int) -> bool:
        """Whether a doubled chunk is kept from this provider: it was convicted, or has or had the chunk itself, or its
        kin has. A settled one is kept from the convicted only: its result is judged at once."""
        chunk = self._chunks[index]
        if provider in self._convicted:
            return True
        if chunk.state is ChunkState.SETTLED:
            return False
        return self._kin(provider) in {self._kin(other) for other in self._present(chunk)}

    def may_take(self, provider: PeerId, index: int) -> bool:
        """Whether a doubled chunk is to be given to this provider: it is wanted, and nothing bars it."""
        return bool(self.wants(index)) and not self.bars(provider, index)

    def seconds(self, provider: PeerId, *, refused: Callable[[int], bool] = lambda _: False) -> int | None:
        """The first chunk that somebody else has begun and that wants this provider too; `refused` says of which
        it is known that it can't have them."""
        for index, chunk in self._chunks.items():
            if self._present(chunk) and self.may_take(provider, index) and not refused(index):
                return index
        return None

    def assign(self, provider: PeerId, index: int) -> None:
        """The chunk was given to a provider."""
        self._chunks[index].holders.add(provider)

    def drop(self, provider: PeerId, index: int) -> None:
        """The provider has it no more. What it claimed, if anything, still speaks for or against it, but the bytes are
        lost, and others may have the chunk."""
        if index in self._chunks:
            chunk = self._chunks[index]
            chunk.holders.discard(provider)
            if provider in chunk.claims:
                chunk.gone.add(provider)

    def ruling(self, index: int) -> Ruling:
        """What is known of a doubled chunk now."""
        return self._ruling(index)

    def came(self, provider: PeerId, index: int, digest: bytes) -> Ruling:
        """A provider's result: its receipt is right, and its samples, if any, were equal.

        A provider that gives a second result keeps its first claim: two would be fraud, which its receipts show.
        """
        chunk = self._chunks[index]
        chunk.holders.discard(provider)
        chunk.claims.setdefault(provider, digest)
        chunk.gone.discard(provider)
        if chunk.state is ChunkState.SETTLED:
            return self._ruling(index)
        agreed = self._agreed(chunk)
        if agreed is not None:
            return self._settle(index, agreed)
        if len(chunk.claims) >= _COPIES:
            third = self._arbiter == "provider" and len(chunk.claims) < _WITH_ARBITER
            chunk.state = ChunkState.DISPUTED if third else ChunkState.OURS
        return self._ruling(index)

    def _agreed(self, chunk: _Chunk) -> bytes | None:
        """The digest that two providers claim which are not kin."""
        kin_of: dict[bytes, set[Hashable]] = {}
        for provider, digest in chunk.claims.items():
            kin_of.setdefault(digest, set()).add(self._kin(provider))
        return next((digest for digest, names in kin_of.items() if len(names) >= _COPIES), None)

    def ask_us(self, index: int) -> Ruling:
        """No other provider is to be had for it: we decide, unless it is settled."""
        chunk = self._chunks[index]
        if chunk.state is not ChunkState.SETTLED:
            chunk.state = ChunkState.OURS
        return self._ruling(index)

    def amend(self, provider: PeerId, index: int, digest: bytes) -> None:
        """In fast mode: what a provider claimed of a chunk that is not settled counts as `digest`, which stands for
        all that comes near."""
        claims = self._chunks[index].claims
        if provider in claims:
            claims[provider] = digest

    def rule(self, index: int, digest: bytes) -> Ruling:
        """Our own digest of the whole chunk. It settles it, whoever has agreed on what."""
        self._chunks[index].by_us = True
        return self._settle(index, digest)

    def convict(self, provider: PeerId) -> list[int]:
        """A provider was caught lying, here or elsewhere: what it said counts no more, and it is given nothing more.

        Returns:
            The chunks that were settled with its word and are open again. What we have computed, and what two others
            agree on, stays settled.
        """
        self._convicted.add(provider)
        reopened: list[int] = []
        for index, chunk in self._chunks.items():
            chunk.holders.discard(provider)
            claimed = chunk.claims.pop(provider, None)
            chunk.gone.discard(provider)
            if claimed is None or chunk.by_us:
                continue
            if chunk.state is not ChunkState.SETTLED:
                if len(chunk.claims) < _COPIES:
                    chunk.state = ChunkState.OPEN
            elif claimed == chunk.digest and self._agreed(chunk) is None:
                chunk.state, chunk.digest = ChunkState.OPEN, None
                chunk.gone.update(chunk.claims)  # who was right with it may compute it again, and be right again
                reopened.append(index)
        return reopened

    def _settle(self, index: int, digest: bytes) -> Ruling:
        chunk = self._chunks[index]
        chunk.state, chunk.digest = ChunkState.SETTLED, digest
        return self._ruling(index)

    def _ruling(self, index: int) -> Ruling:
        chunk = self._chunks[index]
        if chunk.state is not ChunkState.SETTLED:
            return Ruling(index=index, state=chunk.state)
        return Ruling(
            index=index,
            state=chunk.state,
            right=tuple(who for who, digest in chunk.claims.items() if digest == chunk.digest),
            wrong=tuple(who for who, digest in chunk.claims.items() if digest != chunk.digest),
        )
