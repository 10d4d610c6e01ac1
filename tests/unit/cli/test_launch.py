"""What a launcher caps and sees."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute._launch import Launch, allowance, current_launch, default_network, default_profile, launching
from p2pcompute._requester import RunOptions
from p2pcompute.errors import BudgetError, ConfigError
from p2pcompute.tasks import Compiling
from p2pcompute.tasks._budget import TaskBudget
from p2pcompute_protocols.money import PUSD_PER_UUSD

from ..market._harness import Market, X, Y, Z, axpy, compute, in_memory


class Watching:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.ended: list[BaseException | None] = []

    def node_opened(self, node: Any) -> None:
        raise AssertionError("no node is opened here")

    def task_event(self, event: Any) -> None:
        self.events.append(event)

    def task_ended(self, error: BaseException | None) -> None:
        self.ended.append(error)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "NETWORK", "BUDGET"):
        monkeypatch.delenv(f"P2PCOMPUTE_{name}", raising=False)


def test_without_a_launcher_a_task_has_its_own_budget() -> None:
    options, budget = RunOptions(budget="0.25 USD"), TaskBudget()
    with allowance(options, budget) as given:
        assert given.budget == "250000 uusd"
        assert given.on_event is None
        budget.take(250_000 * PUSD_PER_UUSD)
        with pytest.raises(BudgetError, match=r"the task's budget of 0\.250000 USD is used up; raise it and run"):
            budget.take(1)
    assert current_launch() is None


def test_the_cap_is_over_all_tasks_and_nothing_is_set_aside() -> None:
    launch = Launch(watcher=Watching(), left_uusd=1_000)
    with launching(launch):
        first, second = TaskBudget(), TaskBudget()
        with allowance(RunOptions(budget="1 USD"), first) as options:
            assert options.budget == "1000 uusd"
            first.take(250 * PUSD_PER_UUSD)
            # A task within it finds what is left.
            with allowance(RunOptions(budget="600 uusd"), second) as options:
                assert options.budget == "600 uusd"
                second.take(400 * PUSD_PER_UUSD)
                assert launch.left_uusd == 350
                # Whichever of the two comes first has it; together they have no more than the cap.
                first.take(350 * PUSD_PER_UUSD)
                for budget in (first, second):
                    with pytest.raises(BudgetError, match=r"the script's budget of 0\.001000 USD .*run --budget"):
                        budget.take(1)
                first.give_back(100 * PUSD_PER_UUSD)
                second.take(100 * PUSD_PER_UUSD)
                assert (first.accepted_pusd, second.accepted_pusd) == (500 * PUSD_PER_UUSD, 500 * PUSD_PER_UUSD)
        with allowance(RunOptions(), TaskBudget()) as nothing:
            assert nothing.budget == "0 uusd"
    assert current_launch() is None


def test_an_error_says_which_budget_is_short() -> None:
    launch = Launch(watcher=Watching(), left_uusd=1_000)
    with launching(launch):
        small, large = TaskBudget(), TaskBudget()
        with allowance(RunOptions(budget="300 uusd"), small), allowance(RunOptions(), large):
            assert small.shortage() == "the task's budget is 0.000300 USD; raise it"
            large.take(900 * PUSD_PER_UUSD)
            left = r"the script's budget is 0\.001000 USD, of which 0\.000100 USD are left; raise it \(p2pcompute run"
            assert re.match(left, small.shortage())
            small.take(100 * PUSD_PER_UUSD)
            with pytest.raises(BudgetError, match="the script's budget"):
                small.take(1)


def test_money_spent_by_a_task_that_fails_is_spent() -> None:
    watching = Watching()
    launch, budget = Launch(watcher=watching, left_uusd=1_000), TaskBudget()

    def fail() -> None:
        with launching(launch), allowance(RunOptions(), budget):
            budget.take(700 * PUSD_PER_UUSD)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert launch.left_uusd == 300
    assert [type(error) for error in watching.ended] == [KeyError]


def test_the_environment_caps_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_BUDGET", "0.0005 USD")
    for _ in range(2):  # of a plain `python script.py` there is nobody to count over tasks
        budget = TaskBudget()
        with allowance(RunOptions(budget="1 USD"), budget) as given:
            assert given.budget == "500 uusd"
            budget.take(500 * PUSD_PER_UUSD)
            with pytest.raises(BudgetError, match=r"P2PCOMPUTE_BUDGET of 0\.000500 USD"):
                budget.take(1)
    with launching(Launch(watcher=Watching(), left_uusd=500)):  # as `p2pcompute run --budget` does
        budget = TaskBudget()
        with allowance(RunOptions(budget="1 USD"), budget):
            assert budget.shortage().startswith("the script's budget")
    monkeypatch.setenv("P2PCOMPUTE_BUDGET", "much")
    with pytest.raises(ConfigError, match="P2PCOMPUTE_BUDGET: 'much'"), allowance(RunOptions(), TaskBudget()):
        pass


def test_a_task_in_a_loop_over_anothers_chunks_has_what_is_left() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=2)
        requester = await market.node(connect=(provider,))
        launch = Launch(watcher=Watching(), left_uusd=1_000_000)
        rounds = 0
        with launching(launch):
            call = (axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y)
            async for _ in requester.map(*call, chunks=4, budget="1 USD"):
                assert np.array_equal(await compute(requester), Z)
                rounds += 1
        assert rounds == 4
        assert launch.left_uusd is not None
        assert 0 < 1_000_000 - launch.left_uusd <= await market.spent_uusd(requester)

    in_memory(scenario)


def test_script_and_launcher_both_see_events() -> None:
    own: list[Any] = []
    watching = Watching()
    with (
        launching(Launch(watcher=watching)),
        allowance(RunOptions(on_event=own.append), TaskBudget()) as given,
    ):
        assert given.on_event is not None
        given.on_event(Compiling())
    assert own == watching.events == [Compiling()]
    assert watching.ended == [None]


def test_defaults_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (default_profile(), default_network()) == ("requester", "local")
    monkeypatch.setenv("P2PCOMPUTE_PROFILE", "mine")
    monkeypatch.setenv("P2PCOMPUTE_NETWORK", "ours")
    assert (default_profile(), default_network()) == ("mine", "ours")
