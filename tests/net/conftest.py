"""Processes of the command for tests, which end with the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ._programs import SCRIPT, Program


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """Where the measurement of this machine is kept, so that one test makes it for all, those of other workers too."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if hasattr(pytestconfig, "workerinput") else base) / "device.json"


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
    made = tmp_path / "home" / "device.json"
    if made.exists() and not measured.exists():
        shutil.copy(made, tmp_path / "copy")
        (tmp_path / "copy").replace(measured)  # whole, whoever looks meanwhile
