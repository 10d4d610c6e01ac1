"""Processes of the command for tests, which end with the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ._programs import SCRIPT, Program


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the measurement of this machine is kept, so that one test makes it for all."""
    return tmp_path_factory.mktemp("measured") / "device.json"


@pytest.fixture
def start(tmp_path: Path, measured: Path) -> Iterator[Callable[..., Program]]:
    """Starts commands that share one home; `orbit.py` lies beside it."""
    programs: list[Program] = []

    def make(*args: str, **environment: str) -> Program:
        programs.append(Program(tmp_path / "home", *args, **environment))
        return programs[-1]

    (tmp_path / "orbit.py").write_text(SCRIPT)
    (tmp_path / "home").mkdir(mode=0o700)
    if measured.exists():
        shutil.copy(measured, tmp_path / "home")
    yield make
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
        program.end()
    if (tmp_path / "home" / "device.json").exists():
        shutil.copy(tmp_path / "home" / "device.json", measured)
