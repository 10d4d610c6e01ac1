"""What a task asks of providers, by its options, and the time that it has to find out what to ask for."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final, Protocol

import trio

from p2pcompute._options import price_per_unit_pusd
from p2pcompute.errors import TaskTimeout
from p2pcompute_protocols.negotiation import Requirement

__all__ = ["asked", "within_deadline"]

_DEFAULT_PRICE_LIMIT_PUSD: Final = 2_778  # 10 USD an hour of a reference core


class _Options(Protocol):
    @property
    def device(self) -> str: ...
    @property
    def max_price(self) -> str | int | float | None: ...


def asked(options: _Options, *features: str) -> tuple[Requirement, int]:
    """The machine that is asked for, and the highest price of a unit in pico-USD.

    Raises:
        ConfigError: `max_price` is no price.
    """
    requirement = Requirement(
        kinds=("cpu", "cuda") if options.device == "any" else (options.device,),
        memory_bytes=0,
        features=features,
        min_score_milli=0,
    )
    if options.max_price is None:
        return requirement, _DEFAULT_PRICE_LIMIT_PUSD
    return requirement, price_per_unit_pusd(options.max_price, at_most=True)


@contextmanager
def within_deadline(deadline_ms: int, now_ms: Callable[[], int], what: str, *, or_else: str = "") -> Generator[None]:
    """The block, in which `what` is compiled and timed here, has until the task's deadline.

    Raises:
        TaskTimeout: it has passed; `or_else` is what may help beside more time.
    """
    try:
        with trio.fail_after(max(0.0, (deadline_ms - now_ms()) / 1000)):
            yield
    except trio.TooSlowError:
        raise TaskTimeout(
            f"the deadline passed while {what} was compiled and timed here; give more time (deadline_s=…){or_else}. No "
            "money has moved."
        ) from None
