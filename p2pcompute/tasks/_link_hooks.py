"""What a link to one provider tells whoever distributes the work, and what it asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import trio

from p2pcompute.checking import SampleReport
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import PeerId

__all__ = ["CheckChunks", "CheckedOutput", "LinkHooks", "one_by_one"]

CheckChunks: TypeAlias = Callable[[Sequence[tuple[int, memoryview]]], Awaitable[Sequence[SampleReport]]]
"""Given chunks and their outputs, what their samples have shown, in the same order."""

CheckedOutput: TypeAlias = tuple[int, memoryview, SampleReport]
"""A chunk's index, its output, and what its samples have shown."""


def one_by_one(check: Callable[[int, memoryview], Awaitable[SampleReport]]) -> CheckChunks:
    """Check chunks each by itself."""

    async def check_chunks(chunks: Sequence[tuple[int, memoryview]]) -> list[SampleReport]:
        return [await check(index, output) for index, output in chunks]

    return check_chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkHooks:
    """What a link tells the coordinator.

    Attributes:
        check: of chunks that came, in the order in which they came; one at a time unless `checks_together`. None where
            nobody looks at any.
        done: gets the index, the output and what was found of chunks that were checked, in the order in which they
            came.
        sample_every: of so many chunks one is sampled.
    """

    ready: Callable[[PeerId, int], None]
    assigned: Callable[[PeerId, int], None]
    check: CheckChunks | None
    done: Callable[[PeerId, Sequence[CheckedOutput]], Awaitable[None]]
    failed: Callable[[PeerId, int, WireCode, str], None]
    paid: Callable[[PeerId, int], None]
    changed: Callable[[], trio.Event]  # set when the scheduler may have something new
    sample_every: int = 1
    checks_together: bool = False
