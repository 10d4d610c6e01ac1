"""`make repeat` counts runs that fail, says which tests failed in which, and ends with 1 where any did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPEAT = Path(__file__).parents[2] / "scripts" / "repeat.py"
LUCK = """
import os

def test_that_hangs_on_the_order():
    assert os.environ["P2PCOMPUTE_FILE_ORDER"] != "2"

def test_that_hangs_on_nothing():
    pass
"""

pytestmark = pytest.mark.net


def test_a_test_that_fails_in_one_order_is_named_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "test_luck.py").write_text(LUCK)
    into = tmp_path / "runs"
    command = [sys.executable, str(REPEAT), "2", "--into", str(into), "--", str(tmp_path / "test_luck.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 1
    table = (into / "table.txt").read_text()
    assert done.stdout.endswith(table)
    assert "failed 1 of 2 times, in run 2: " in table
    assert "test_that_hangs_on_the_order" in table
    assert table.endswith("1 of 2 runs failed\n")
    assert [line.split()[:3] for line in table.splitlines()[1:3]] == [["1", "2", "0"], ["2", "1", "1"]]
    assert "AssertionError" in (into / "run-002.log").read_text()
    command[2], command[-1] = "1", f"{command[-1]}::test_that_hangs_on_nothing"
    assert subprocess.run(command, capture_output=True, timeout=500, check=False).returncode == 0
