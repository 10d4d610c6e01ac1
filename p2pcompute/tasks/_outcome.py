"""What a task has come to, for those who want to know when it has ended, whether it is complete or not."""

from __future__ import annotations

from p2pcompute_protocols.ids import TaskId

__all__ = ["TaskOutcome"]


class TaskOutcome:
    """Filled by the coordinator while a task runs.

    Attributes:
        done: the chunks that came, were checked and hold; set when the task has ended.
    """

    def __init__(self) -> None:
        self.done: frozenset[int] = frozenset()
        self._paid: dict[TaskId, int] = {}

    def paid(self, agreement: TaskId, uusd: int) -> None:
        """The provider of an agreement has acknowledged so much of it in all."""
        self._paid[agreement] = uusd

    @property
    def paid_uusd(self) -> int:
        """Micro-USD of vouchers that were acknowledged, of all agreements together."""
        return sum(self._paid.values())
