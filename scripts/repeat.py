"""Runs the tests again and again, each time in another order and with other examples, to find those that hang on luck.

    scripts/repeat.py 20 [--into build/repeat] [-- what pytest is given]

Run by `make repeat N=20 TESTS="tests/unit/tasks"`. Hypothesis is seeded with the run's number, and the files of tests
come in an order drawn from it (`tests/conftest.py`), so run 7 can be had again: the head of its log says how. It stops
at no failure; each run leaves a log and a JUnit report, and at the end there is a table. Exit status 1 where anything
failed, or a run ended otherwise than by passing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the tests. `failed` are the tests that failed, by name; `status` is pytest's exit status."""

    number: int
    status: int
    passed: int
    skipped: int
    failed: tuple[str, ...]
    took_s: float

    @property
    def ok(self) -> bool:
        return self.status == 0 and not self.failed


def play(number: int, into: Path, given: list[str]) -> Run:
    """Run the tests once; what they say goes to a file."""
    log, report = into / f"run-{number:03}.log", into / f"run-{number:03}.xml"
    report.unlink(missing_ok=True)
    options = [f"--hypothesis-seed={number}", f"--junitxml={report}", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *given]
    # examples that failed in one run are not tried first in the next: each stands for itself
    own = {
        "P2PCOMPUTE_FILE_ORDER": str(number),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(into / f"run-{number:03}.examples"),
    }
    began = time.monotonic()
    with log.open("w") as out:
        out.write(f"P2PCOMPUTE_FILE_ORDER={number} {shlex.join(command)}\n")
        out.flush()
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, stdout=out, stderr=out, check=False)
    took_s = time.monotonic() - began
    passed, skipped, failed = counted(report)
    return Run(number=number, status=done.returncode, passed=passed, skipped=skipped, failed=failed, took_s=took_s)


def counted(report: Path) -> tuple[int, int, tuple[str, ...]]:
    """How many passed, how many were left out, and which failed; nothing where pytest came to no report."""
    if not report.exists():
        return 0, 0, ()
    passed, skipped, failed = 0, 0, set[str]()
    for case in ET.parse(report).getroot().iter("testcase"):
        found = {child.tag for child in case}
        if found & {"failure", "error"}:
            failed.add(f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}")
        elif "skipped" in found:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, tuple(sorted(failed))


def table(runs: list[Run]) -> str:
    """A line a run, and after them how often each test failed."""
    lines = [f"{'run':>4} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}  status"]
    lines += [
        f"{run.number:>4} {run.passed:>7} {len(run.failed):>7} {run.skipped:>8} {run.took_s:>8.0f}  {run.status}"
        for run in runs
    ]
    often = Counter(name for run in runs for name in run.failed)
    for name, times in often.most_common():
        where = ", ".join(str(run.number) for run in runs if name in run.failed)
        lines.append(f"failed {times} of {len(runs)} times, in run {where}: {name}")
    bad = sum(not run.ok for run in runs)
    lines.append(f"{bad} of {len(runs)} runs failed" if bad else f"all of {len(runs)} runs passed")
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=int, help="how often; run 1 is seeded with 1")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "repeat", help="where logs and reports go")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    if options.times < 1:
        parser.error("write how often to run them, 1 or more")
    into = options.into.resolve()
    into.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    for number in range(1, options.times + 1):
        run = play(number, into, words[end + 1 :])
        runs.append(run)
        said = "passed" if run.ok else f"{len(run.failed)} failed, status {run.status}"
        say(f"run {number} of {options.times}: {said}, {run.took_s:.0f} s")
    text = table(runs)
    (into / "table.txt").write_text(text + "\n")
    say(text)
    return 0 if all(run.ok for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
