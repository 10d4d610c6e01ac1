"""The faults of tests/mutants still fit the code that they are planted in. Whether tests find them: `make mutants`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planted_faults", ROOT / "scripts/mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


mutants = _program()


@pytest.mark.parametrize("mutant", mutants.read(ROOT / "tests/mutants"), ids=lambda mutant: mutant.name)
def test_each_fault_fits_its_file_once_and_names_tests_that_are_there(mutant: Any) -> None:
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutants.plant(mutant, source) != source
    for test in mutant.tests:
        file, *names = test.partition("[")[0].split("::")
        tests = (ROOT / file).read_text(encoding="utf-8")
        assert all(f"def {name}(" in tests or f"class {name}" in tests for name in names), test


@pytest.mark.parametrize(
    ("source", "replace"),
    [
        ("def run():\n    work()\n", ""),  # a body that is gone
        ("def run():\n    work()\n    work()\n", "    pass\n"),
        ("def run():\n    pass\n", "    pass\n"),
    ],
)
def test_a_fault_that_does_not_fit_is_rubbish(source: str, replace: str) -> None:
    mutant = mutants.Mutant(name="", file="a.py", search="    work()\n", replace=replace, tests=("t",))
    with pytest.raises(mutants.Rubbish):
        mutants.plant(mutant, source)
