"""What holds for every test, and the order of the files.

With pytest-xdist a file's tests stay with one worker (``--dist=loadfile``), so a run ends when the last file does: the
longest come first. ``file_seconds.json`` has what each file took once; only their order counts, so it is seldom worth
writing anew. ``P2PCOMPUTE_WRITE_FILE_SECONDS=1`` does that at the end of a run, and ``P2PCOMPUTE_FILE_ORDER=<seed>``
puts the files into an order drawn from the seed, to find tests that hang on one another (``make repeat``).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says what else the machine is doing, not whether the code is right: speed is measured in
# benchmarks/. Without this an example of more than 200 ms fails, and so does slow drawing of examples.
settings.register_profile("p2pcompute", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("p2pcompute")

FILE_SECONDS = Path(__file__).with_name("file_seconds.json")
UNKNOWN_S = 30.0  # of a file that is not listed: early, since one that comes last may hold up the end


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort whole files; the tests of a file keep their order. Each worker comes to the same."""
    seed = os.environ.get("P2PCOMPUTE_FILE_ORDER")
    if seed is not None:
        files = sorted({_file(item.nodeid) for item in items})
        random.Random(seed).shuffle(files)
        place = {file: number for number, file in enumerate(files)}
        items.sort(key=lambda item: place[_file(item.nodeid)])
    elif FILE_SECONDS.exists():
        seconds: dict[str, float] = json.loads(FILE_SECONDS.read_text())
        items.sort(key=lambda item: -seconds.get(_file(item.nodeid), UNKNOWN_S))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sets up logging for all of it, on a stream that ends with the test."""
    loggers = logging.getLogger(), logging.getLogger("p2pcompute")
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        for handler in list(logger.handlers):
            if handler not in handlers:
                logger.removeHandler(handler)


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: the collector of garbage need not go through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("P2PCOMPUTE_WRITE_FILE_SECONDS") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Stopwatch())


class _Stopwatch:
    """What each file takes, of all workers, where one process hears of all of them."""

    def __init__(self) -> None:
        self._took_s: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took_s[_file(report.nodeid)] += report.duration

    def pytest_sessionfinish(self) -> None:
        rows = {file: round(took, 1) for file, took in sorted(self._took_s.items())}
        FILE_SECONDS.write_text(json.dumps(rows, indent=0) + "\n")
