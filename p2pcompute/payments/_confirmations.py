"""How deep money has to lie in the chain before it counts, by how much it is.

A block that was just made can be taken back, and a payer that has a hand in that can have its deposit taken back with
it. Waiting for twelve blocks before the first chunk would be slow, and is not needed for small sums: what counts at
once is no more than a stranger may owe anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

__all__ = ["AT_ONCE", "PUBLIC_CHAIN", "Confirmations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmations:
    """Steps of depth and value.

    Attributes:
        steps: (blocks, micro-USD): with so many blocks, the deposit's own included, a channel's unclaimed deposit
            counts up to so much. Both ascend.
        whole: with so many blocks all of it counts, and a transaction of ours can't be taken back any more.
        head_age_s: how old an endpoint's newest block may be; None where blocks are made on demand.
        head_back: by how many blocks an endpoint's head may fall behind one that it has shown before; None for any.

    Raises:
        ValueError: the steps don't ascend.
    """

    steps: tuple[tuple[int, int], ...]
    whole: int
    head_age_s: int | None
    head_back: int | None

    def __post_init__(self) -> None:
        depths = [depth for depth, _ in self.steps] + [self.whole]
        values = [value for _, value in self.steps]
        if depths[0] < 1 or any(a >= b for a, b in pairwise(depths)):
            raise ValueError("depths ascend from 1 on, and `whole` is the deepest")
        if any(value < 0 for value in values) or values != sorted(values):
            raise ValueError("values are not negative and ascend")

    @property
    def depths(self) -> tuple[int, ...]:
        """All depths at which something more counts, the newest first."""
        return (*(depth for depth, _ in self.steps), self.whole)

    def needed(self, open_uusd: int) -> int:
        """The depth at which a deposit of which this much is unclaimed counts in whole."""
        return next((depth for depth, most in self.steps if open_uusd <= most), self.whole)

    def counted(self, deposits_uusd: Sequence[int], claimed_uusd: int) -> int:
        """What of a channel's deposit counts.

        Args:
            deposits_uusd: the total deposit at each of `depths`.
            claimed_uusd: the total claimed; what counts at a depth counts on top of it.
        """
        counts = [deposits_uusd[-1]]
        for deposit, (_, most) in zip(deposits_uusd, self.steps, strict=False):
            counts.append(min(deposit, claimed_uusd + most))
        return max(counts)


AT_ONCE: Final = Confirmations(steps=(), whole=1, head_age_s=None, head_back=None)
"""Of a chain that one machine makes: nobody takes blocks back, and an idle one makes none."""

PUBLIC_CHAIN: Final = Confirmations(steps=((1, 50_000),), whole=13, head_age_s=900, head_back=64)
"""Of every other chain. What lies in or under 13 blocks survives a reorganisation of 12; of what does not, 0.05 USD
counts, which is what one stranger may owe in an hour (`CreditPolicy`). A step between the two would be lost whole."""
