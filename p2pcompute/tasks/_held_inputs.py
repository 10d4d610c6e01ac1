"""What the inputs of newcomers' tasks hold at a provider, all together: memory and descriptors are one process's."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from p2pcompute_protocols.errors import WireCode

from ._inputs import SHARED_BYTES
from ._places import Guest
from ._refusing import RefuseError

if TYPE_CHECKING:
    from ._provider import TaskService

__all__ = ["HeldInputs"]

_NEWCOMER_LARGE: Final = 8  # inputs in shared memory of a newcomer's task


class HeldInputs:
    """The inputs of one task, `sizes` in bytes, as long as the context is open; what earlier tasks have left here
    counts as well. Those of known peers are not counted.

    Entering raises:
        RefuseError: they are too large or too many, or all newcomers' together are.
    """

    def __init__(self, service: TaskService, guest: Guest, sizes: Iterable[int]) -> None:
        self._service = service
        self._known = guest.known
        self._sizes = list(sizes)
        self._held = 0

    def __enter__(self) -> Self:
        if self._known:
            return self
        if sum(size >= SHARED_BYTES for size in self._sizes) > _NEWCOMER_LARGE:
            raise RefuseError(
                WireCode.OVERSIZED, f"a newcomer's task has {_NEWCOMER_LARGE} inputs of a MiB and more at most"
            )
        most = self._service.newcomers_bytes
        if sum(self._sizes) > most:
            raise RefuseError(WireCode.OVERSIZED, f"newcomers' inputs have {most} bytes at most")
        self._check(sum(self._sizes))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._service.newcomers_hold -= self._held
        self._held = 0

    def add(self, size: int) -> None:
        """So much more has come, or has gone. Not before: what is announced costs nobody anything.

        Raises:
            RefuseError: the inputs of newcomers take all that they may.
        """
        if not self._known:
            if size > 0:
                self._check(size)
            self._service.newcomers_hold += size
            self._held += size

    def _check(self, size: int) -> None:
        if self._service.newcomers_hold + size > self._service.newcomers_bytes:
            raise RefuseError(WireCode.NO_CAPACITY, "the inputs of newcomers take all that they may; try later")
