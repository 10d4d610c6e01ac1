"""What a launcher caps and sees."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute._launch import Launch, allowance, current_launch, default_network, default_profile, launching
from p2pcompute._requester import RunOptions
from p2pcompute.errors import ConfigError
from p2pcompute.tasks import Compiling


class Watching:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.ended: list[BaseException | None] = []

    def node_opened(self, node: Any) -> None:
        raise AssertionError("no node here")

    def task_event(self, event: Any) -> None:
        self.events.append(event)

    def task_ended(self, error: BaseException | None) -> None:
        self.ended.append(error)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "NETWORK", "BUDGET"):
        monkeypatch.delenv(f"P2PCOMPUTE_{name}", raising=False)


def test_without_a_launcher_a_task_has_its_own_budget() -> None:
    options = RunOptions(budget="0.25 USD")
    with allowance(options, lambda: 0) as given:
        assert given.budget == "250000 uusd"
        assert given.on_event is None
    assert current_launch() is None


def test_the_cap_is_over_all_tasks_and_what_is_not_spent_comes_back() -> None:
    launch = Launch(watcher=Watching(), left_uusd=1_000)
    with launching(launch):
        with allowance(RunOptions(budget="600 uusd"), lambda: 250) as first:
            assert first.budget == "600 uusd"
            # A task at the same time gets what is not set aside.
            with allowance(RunOptions(budget="1 USD"), lambda: 400) as second:
                assert second.budget == "400 uusd"
            assert launch.left_uusd == 0
        assert launch.left_uusd == 350
        with allowance(RunOptions(budget="1 USD"), lambda: 350) as third:
            assert third.budget == "350 uusd"
        with allowance(RunOptions(), lambda: 0) as nothing:
            assert nothing.budget == "0 uusd"
    assert current_launch() is None


def test_money_spent_by_a_task_that_fails_is_spent() -> None:
    watching = Watching()
    launch = Launch(watcher=watching, left_uusd=1_000)
    with launching(launch), pytest.raises(KeyError), allowance(RunOptions(), lambda: 700):
        raise KeyError
    assert launch.left_uusd == 300
    assert [type(error) for error in watching.ended] == [KeyError]


def test_the_environment_caps_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_BUDGET", "0.0005 USD")
    for _ in range(2):  # of a plain `python script.py` there is nobody to count over tasks
        with allowance(RunOptions(budget="1 USD"), lambda: 500) as given:
            assert given.budget == "500 uusd"
    monkeypatch.setenv("P2PCOMPUTE_BUDGET", "much")
    with pytest.raises(ConfigError, match="P2PCOMPUTE_BUDGET: 'much'"), allowance(RunOptions(), lambda: 0):
        pass


def test_script_and_launcher_both_see_events() -> None:
    own: list[Any] = []
    watching = Watching()
    with (
        launching(Launch(watcher=watching)),
        allowance(RunOptions(on_event=own.append), lambda: 0) as given,
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
