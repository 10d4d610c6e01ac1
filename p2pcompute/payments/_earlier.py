"""What a provider can't tell of work that it did before a task: whether its requester has it, and is going to pay.

A result that is lost on its way is owed in the provider's books and in nobody else's. So a task waits only for money
that its requester is bound to send: for what it is known to have accepted of earlier work, and for the task's own.
Vouchers are whole micro-USD, rounded up. From one of *P* follows that more than *P* - 1 was accepted, and no more than
that: a lost result that costs less than a micro-USD hides in the rounding, and no debt is to be seen.
"""

from __future__ import annotations

from p2pcompute_protocols.money import PUSD_PER_UUSD

__all__ = ["EarlierWork"]


class EarlierWork:
    """Work on a channel from before a task, or of others that ended beside it; a plain object.

    Args:
        owed_pusd: all that is receipted on the channel now, in pico-USD.
        paid_uusd: all that is paid on it.
    """

    __slots__ = ("_accepted_pusd", "_before_pusd", "_begun_pusd")

    def __init__(self, *, owed_pusd: int, paid_uusd: int) -> None:
        self._begun_pusd = self._before_pusd = owed_pusd
        self._accepted_pusd = 0  # of it, at the least
        self.see(owed_pusd=owed_pusd, paid_uusd=paid_uusd)

    @property
    def left_out_pusd(self) -> int:
        """What of it may never be paid, and is not waited for."""
        return self._before_pusd - self._accepted_pusd

    def see(self, *, owed_pusd: int, paid_uusd: int) -> None:
        """So much is receipted and paid by now: what was paid beyond all later work has paid for earlier work, and
        pays for none to come."""
        since_pusd = owed_pusd - self._before_pusd
        accepted_pusd = (paid_uusd - 1) * PUSD_PER_UUSD + 1 - since_pusd
        self._accepted_pusd = max(self._accepted_pusd, min(accepted_pusd, self._before_pusd))

    def lose(self, *, owed_pusd: int, pusd: int) -> None:
        """Another task on the channel has ended with a chunk unpaid, which counts as earlier work from now on.

        Args:
            owed_pusd: all that was receipted on the channel with it.
            pusd: what it costs.
        """
        if owed_pusd > self._begun_pusd:  # else it was there before, and is counted
            self._before_pusd += pusd

    def due_uusd(self, owed_pusd: int) -> int:
        """What has to be paid on the channel for all work of the task up to where `owed_pusd` were receipted."""
        return -(-max(0, owed_pusd - self.left_out_pusd) // PUSD_PER_UUSD)
