"""Group commit: the transactions that wait while the disk syncs are committed together, by one sync.

A sync takes from a tenth of a millisecond to several, and holds for whatever was written before it. Whoever comes
while one is under way waits for it, and then all of them are one SQLite transaction; one that raises is undone alone
(`Database.write_all`). So a ledger takes more transactions a second the more channels there are, and each caller still
gets its answer only after the sync that covers its own.

Source: DeWitt et al., "Implementation Techniques for Main Memory Database Systems", SIGMOD 1984 (group commit).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import trio

from ._database import Database, Transaction
from ._executor import BriefExecutor, Executor

__all__ = ["MAX_GROUP", "GroupCommit"]

MAX_GROUP: Final = 128
"""The most transactions in one commit: what comes after them should not wait long."""
_ALONE: Final = 8
"""Transactions in a row to which nobody came; then so many, and no more, are written without waiting for others."""

T = TypeVar("T")


class _Waiting:
    """A transaction of one caller."""

    __slots__ = ("leads", "outcome", "taken", "turn", "work")

    def __init__(self, work: Callable[[Transaction], Any]) -> None:
        self.work = work
        self.turn = trio.Event()
        self.taken = False  # it is being written: from here on it can't be cancelled
        self.leads = False  # it is to write those that wait, itself the first
        self.outcome: Any = None


class GroupCommit:
    """Runs transactions on a database in the order in which they came, as many at a time as are there.

    There is no task or thread behind it: of those that wait, the first writes for all.

    Args:
        database: where to.
        executor: where its calls run.
        clock_ms: UNIX time in milliseconds.
    """

    def __init__(self, database: Database, executor: Executor, clock_ms: Callable[[], int]) -> None:
        self._database = database
        self._executor = executor
        self._brief = executor.brief if isinstance(executor, BriefExecutor) else None
        self._clock_ms = clock_ms
        self._waiting: deque[_Waiting] = deque()
        self._riders: dict[object, Callable[[Transaction], Any]] = {}
        self._busy = False
        self._alone = 0  # how often in a row nobody else came in the turn that was left to others
        self._at_once = 0  # how often none was left since

    def ride(self, key: object, work: Callable[[Transaction], Any]) -> None:
        """Have `work` written along with the next transaction, whoever's that is: only for what nobody relies on
        being on disk. It costs no sync of its own.

        Args:
            key: a later one with the same key takes its place.
            work: is undone alone, and forgotten, where it raises; a full disk leaves it for the next time.
        """
        self._riders.pop(key, None)
        self._riders[key] = work

    @property
    def riding(self) -> bool:
        """Whether something waits for the next transaction."""
        return bool(self._riders)

    async def __call__(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction, and return what it gives once that is on disk.

        Cancellation: while it waits, and then nothing was done; once it is being written its outcome is delivered.

        Raises:
            whatever `work` raises, and then nothing of it was written; what `Database` raises.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        mine = _Waiting(work)
        self._waiting.append(mine)
        if self._busy:
            await self._wait(mine)
        else:
            self._busy = mine.leads = True
        if mine.leads:
            await self._lead()
        if isinstance(mine.outcome, BaseException):
            raise mine.outcome
        return cast("T", mine.outcome)

    async def _wait(self, mine: _Waiting) -> None:
        try:
            await mine.turn.wait()
        except trio.Cancelled:
            if not mine.taken:
                self._waiting.remove(mine)
                if mine.leads:
                    self._pass_on()
                raise
            with trio.CancelScope(shield=True):
                await mine.turn.wait()

    async def _lead(self) -> None:
        if self._alone < _ALONE or self._at_once >= _ALONE:
            # Whoever is about to come in this turn of the event loop is taken along.
            await trio.lowlevel.cancel_shielded_checkpoint()
            self._alone = self._alone + 1 if len(self._waiting) == 1 else 0
            self._at_once = 0
        else:
            self._at_once += 1
        group = [self._waiting.popleft() for _ in range(min(MAX_GROUP, len(self._waiting)))]
        for one in group:
            one.taken = True
        riders, self._riders = self._riders, {}
        works = [*riders.values(), *(one.work for one in group)]
        run = self._executor if self._brief is None or len(group) > 1 else self._brief
        now_ms = self._clock_ms()
        outcomes: list[Any] = []
        try:
            with trio.CancelScope(shield=True):
                outcomes = await run(lambda: self._database.write_all(works, now_ms))
            del outcomes[: len(riders)]
        except BaseException as exc:  # noqa: BLE001  each of them has to hear of it, the leader too
            # Nothing of any of them is there. Each gets an error of its own: tasks add to what they raise.
            outcomes = [exc, *(_another(exc) for _ in group[1:])]
            self._riders = riders | self._riders
        for one, outcome in zip(group, outcomes, strict=True):
            one.outcome = outcome
            one.turn.set()
        self._pass_on()

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting[0].leads = True
            self._waiting[0].turn.set()
        else:
            self._busy = False


def _another(exc: BaseException) -> BaseException:
    other = copy.copy(exc)
    other.__cause__ = exc
    return other
