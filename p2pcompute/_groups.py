"""Out of trio's exception groups, the one error that a caller wants to see."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import trio

__all__ = ["nursery_beside", "single_error"]


@contextmanager
def single_error(*kinds: type[Exception]) -> Generator[None]:
    """Raise a group's most telling error in place of the group: the first of the earliest of `kinds` that it holds.

    Where the group holds anything else as well, a bug or a cancellation, that passes and the expected errors beside it
    are dropped: who is cancelled does not report what broke meanwhile.
    """
    chosen: Exception | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        _, rest = group.split(kinds)
        if rest is not None:
            raise rest from None
        for kind in kinds:
            matching = group.subgroup(kind)
            if matching is not None:
                leaf: BaseException = matching
                while isinstance(leaf, BaseExceptionGroup):
                    leaf = leaf.exceptions[0]
                assert isinstance(leaf, Exception)
                chosen = leaf
                break
    if chosen is not None:
        context = chosen.__context__
        try:
            raise chosen
        finally:  # a traceback would first show the whole group, in which the error is, as what it came from
            chosen.__context__ = context


@asynccontextmanager
async def nursery_beside() -> AsyncGenerator[trio.Nursery]:
    """A nursery for what runs beside a block, and is cancelled when the block ends. An error of the block comes out as
    it is, not in an exception group."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # noqa: BLE001  raised again below, outside of the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
