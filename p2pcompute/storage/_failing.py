"""The word that the disk under a store failed, for whoever is to end the node then."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn

import trio

from ._database import Database, LedgerFailed

__all__ = ["Failing"]


class Failing:
    """Tells of a `LedgerFailed` that passes through it, whoever it is raised to and whatever they make of it.

    A handler ends its own stream with it, and the node would go on with a store that takes nothing any more.
    """

    __slots__ = ("_database", "_failed")

    def __init__(self, database: Database) -> None:
        self._database = database
        self._failed = trio.Event()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, LedgerFailed):
            self._failed.set()

    async def wait(self) -> NoReturn:
        """Wait until the disk fails.

        Raises:
            LedgerFailed: it has.
        """
        await self._failed.wait()
        raise LedgerFailed(self._database.failure)
