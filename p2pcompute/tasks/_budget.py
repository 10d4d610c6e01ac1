"""What one task may cost."""

from __future__ import annotations

from p2pcompute.errors import BudgetError
from p2pcompute_protocols.money import PUSD_PER_UUSD

__all__ = ["TaskBudget"]


class TaskBudget:
    """The budget of one task, which the accounts of all its providers share. Without a limit until `start`.

    Attributes:
        accepted_pusd: what was accepted so far, in pico-USD.
    """

    def __init__(self) -> None:
        self._limit_pusd: int | None = None
        self.accepted_pusd = 0

    def start(self, budget_uusd: int) -> None:
        """From here on `budget_uusd` micro-USD may be accepted in all."""
        self._limit_pusd = budget_uusd * PUSD_PER_UUSD

    def take(self, pusd: int) -> None:
        """Accept `pusd` more.

        Raises:
            BudgetError: that would pass the budget; nothing is taken.
        """
        if self._limit_pusd is not None and self.accepted_pusd + pusd > self._limit_pusd:
            raise BudgetError(
                f"the budget of {self._limit_pusd / PUSD_PER_UUSD / 1e6:.6f} USD is used up; raise it and run the "
                "task again"
            )
        self.accepted_pusd += pusd

    def give_back(self, pusd: int) -> None:
        """It was not accepted after all."""
        self.accepted_pusd -= pusd
