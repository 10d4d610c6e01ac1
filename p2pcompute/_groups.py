"""Out of trio's exception groups, the one error that a caller wants to see."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["single_error"]


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
