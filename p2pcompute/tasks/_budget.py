"""What one task, or several together, may cost."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from p2pcompute.errors import BudgetError
from p2pcompute_protocols.money import PUSD_PER_UUSD

__all__ = ["TaskBudget"]

_UNITS_PER_HOUR: Final = 3_600_000_000  # microseconds


class TaskBudget:
    """The budget of one task, which the accounts of all its providers share. Without a limit until `start`.

    Attributes:
        accepted_pusd: what was accepted so far, in pico-USD, by those below as well.
        parent: a budget that this one is a part of. What is accepted here counts there too, and has to fit there;
            nothing of it is set aside before, so several may draw on it at the same time.
    """

    def __init__(self) -> None:
        self._limit_pusd: int | None = None
        self._name = ""
        self._raise = ""
        self.accepted_pusd = 0
        self.parent: TaskBudget | None = None

    def start(self, budget_uusd: int, *, name: str = "the task's budget", how: str = "raise it") -> None:
        """From here on `budget_uusd` micro-USD may be accepted in all.

        Args:
            budget_uusd: the limit.
            name: what the user knows it as.
            how: says how it is raised.
        """
        self._limit_pusd = budget_uusd * PUSD_PER_UUSD
        self._name, self._raise = name, how

    def _levels(self) -> Generator[TaskBudget]:
        level: TaskBudget | None = self
        while level is not None:
            yield level
            level = level.parent

    def _left_pusd(self) -> int | None:
        return None if self._limit_pusd is None else self._limit_pusd - self.accepted_pusd

    def _tightest(self) -> TaskBudget | None:
        """Of this and those that it is a part of, the one with the least left; None without any limit."""
        limited = [level for level in self._levels() if level._limit_pusd is not None]
        return min(limited, key=lambda level: level._left_pusd() or 0, default=None)

    @property
    def left_uusd(self) -> int | None:
        """What may still be accepted, in whole micro-USD; None where nothing limits it."""
        tightest = self._tightest()
        return None if tightest is None else max(0, (tightest._left_pusd() or 0) // PUSD_PER_UUSD)

    def shortage(self) -> str:
        """Which budget is the shortest, how much of it is left, and how to raise it: the end of an error's message."""
        level = self._tightest()
        assert level is not None, "nothing is short without a limit"
        assert level._limit_pusd is not None
        text = f"{level._name} is {level._limit_pusd / PUSD_PER_UUSD / 1e6:.6f} USD"
        if level.accepted_pusd:
            text += f", of which {max(0, level._left_pusd() or 0) / PUSD_PER_UUSD / 1e6:.6f} USD are left"
        return f"{text}; {level._raise}"

    def check_price(self, pusd: int) -> None:
        """Before any work is compiled and timed: where nothing is left, it takes a provider that works for nothing.

        Args:
            pusd: what the cheapest one takes for a unit.

        Raises:
            BudgetError: it takes something; says how much an hour.
        """
        if pusd and self.left_uusd == 0:
            hour_usd = pusd * _UNITS_PER_HOUR / PUSD_PER_UUSD / 1e6
            raise BudgetError(
                f"{self.shortage()}: the cheapest provider takes {hour_usd:.4f} USD for an hour of a reference core. "
                "Nothing was paid for this task."
            )

    def take(self, pusd: int) -> None:
        """Accept `pusd` more.

        Raises:
            BudgetError: that would pass this budget, or one that it is a part of; says which. Nothing is taken.
        """
        for level in self._levels():
            if level._limit_pusd is not None and level.accepted_pusd + pusd > level._limit_pusd:
                raise BudgetError(
                    f"{level._name} of {level._limit_pusd / PUSD_PER_UUSD / 1e6:.6f} USD is used up; {level._raise} "
                    "and run the task again"
                )
        for level in self._levels():
            level.accepted_pusd += pusd

    def give_back(self, pusd: int) -> None:
        """It was not accepted after all."""
        for level in self._levels():
            level.accepted_pusd -= pusd
