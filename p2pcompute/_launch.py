"""What a launcher of scripts, such as `p2pcompute run`, sets for every node and task of the script that it runs.

Defaults travel in environment variables, so that a plain ``python script.py`` takes the same ones:
P2PCOMPUTE_PROFILE, P2PCOMPUTE_NETWORK, P2PCOMPUTE_BOOTSTRAP, P2PCOMPUTE_CHAIN, and P2PCOMPUTE_BUDGET, the most that
one task may cost whatever the script says. The cap over all tasks, and who watches, travel in a context variable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from p2pcompute._options import parse_usd
from p2pcompute.errors import ConfigError
from p2pcompute.tasks._budget import TaskBudget

if TYPE_CHECKING:
    from p2pcompute._requester import RunOptions
    from p2pcompute._rounds import RoundOptions
    from p2pcompute.node import Node
    from p2pcompute.tasks import TaskEvent

__all__ = ["Launch", "Watcher", "allowance", "current_launch", "default_network", "default_profile", "launching"]


class Watcher(Protocol):
    """Sees what a script does; none of these may block."""

    def node_opened(self, node: Node) -> None:
        """A node is open."""
        ...

    def task_event(self, event: TaskEvent) -> None:
        """Something happened in the task that runs."""
        ...

    def task_ended(self, error: BaseException | None) -> None:
        """The task that ran has ended."""
        ...


class Launch:
    """One script's run.

    Attributes:
        watcher: who watches it.
        cap_uusd: what all tasks together may cost; None for no cap.
        budget: the same, which the budget of each task is a part of.

    Args:
        left_uusd: the cap over all tasks in micro-USD; None for none.
    """

    def __init__(self, *, watcher: Watcher, left_uusd: int | None = None) -> None:
        self.watcher = watcher
        self.cap_uusd = left_uusd
        self.budget = TaskBudget()
        if left_uusd is not None:
            self.budget.start(left_uusd, name="the script's budget", how="raise it (p2pcompute run --budget)")

    @property
    def left_uusd(self) -> int | None:
        """What is left of the cap over all tasks; None where there is none."""
        return self.budget.left_uusd


OptionsT = TypeVar("OptionsT", bound="RunOptions | RoundOptions")
_LAUNCH: ContextVar[Launch | None] = ContextVar("p2pcompute_launch", default=None)


def current_launch() -> Launch | None:
    """The launch that this code runs in; None where the script was started without a launcher."""
    return _LAUNCH.get()


@contextmanager
def launching(launch: Launch) -> Generator[None]:
    """Nodes and tasks of the block, and of trio, asyncio and `to_thread` code in it, belong to `launch`."""
    token = _LAUNCH.set(launch)
    try:
        yield
    finally:
        _LAUNCH.reset(token)


def default_profile() -> str:
    """The profile where the code names none; another one than that of `p2pcompute up`, which has its own open."""
    return os.environ.get("P2PCOMPUTE_PROFILE") or "requester"


def default_network() -> str:
    """The network where the code names none."""
    return os.environ.get("P2PCOMPUTE_NETWORK") or "local"


@contextmanager
def allowance(options: OptionsT, budget: TaskBudget) -> Generator[OptionsT]:
    """The options of one task with its budget cut to what environment and launch leave, and `budget` started.

    Nothing of the launch's is set aside: a task in a loop over another one's chunks would find nothing left. `budget`
    becomes a part of it instead, so that no tasks at the same time can spend it twice.

    Raises:
        ConfigError: P2PCOMPUTE_BUDGET is not an amount.
    """
    launch = _LAUNCH.get()
    budget_uusd = parse_usd(options.budget)
    budget.start(budget_uusd)
    if limit := os.environ.get("P2PCOMPUTE_BUDGET"):
        try:
            limit_uusd = parse_usd(limit)
        except ValueError as exc:
            raise ConfigError(f"P2PCOMPUTE_BUDGET: {exc}") from exc
        # A launcher sets its own cap there too, for child processes: here it counts over all tasks, which is tighter.
        is_launchers = launch is not None and launch.cap_uusd == limit_uusd
        if limit_uusd < budget_uusd and not is_launchers:
            budget.start(limit_uusd, name="P2PCOMPUTE_BUDGET")
    if launch is not None:
        budget.parent = launch.budget
    error: BaseException | None = None
    try:
        yield replace(options, budget=f"{budget.left_uusd} uusd", on_event=_both(options.on_event, launch))
    except BaseException as exc:
        error = exc
        raise
    finally:
        if launch is not None:
            launch.watcher.task_ended(error)


def _both(first: Callable[[TaskEvent], None] | None, launch: Launch | None) -> Callable[[TaskEvent], None] | None:
    if launch is None:
        return first
    watch = launch.watcher.task_event
    if first is None:
        return watch

    def both(event: TaskEvent) -> None:
        first(event)
        watch(event)

    return both
