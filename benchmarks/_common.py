"""What benchmarks share: figures held against what they have to reach, progress, arguments, results on disk."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Figure", "arguments", "at_least", "at_most", "cores", "plain", "processor", "report", "say"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line: what, how much, and what it has to reach; `least` says whether that is a lower bound.

    Without `reach` it only tells.
    """

    figure: str
    value: float
    unit: str
    reach: float | None = None
    ok: bool | None = None
    least: bool = False


def at_least(name: str, value: float, unit: str, reach: float | None = None) -> Figure:
    """The more the better."""
    rounded = float(f"{value:.3g}")
    return Figure(
        figure=name, value=rounded, unit=unit, reach=reach, ok=None if reach is None else rounded >= reach, least=True
    )


def at_most(name: str, value: float, unit: str, reach: float | None = None, *, digits: int = 3) -> Figure:
    """The less the better."""
    rounded = float(f"{value:.{digits}g}")
    return Figure(figure=name, value=rounded, unit=unit, reach=reach, ok=None if reach is None else rounded <= reach)


def say(what: str) -> None:
    """Progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stderr.flush()


def cores() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The processor's name, as Linux has it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def arguments(doc: str | None, *, quick: str) -> argparse.ArgumentParser:
    """A parser of --quick, --json and --write; `quick` says what is left out for tests."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}, for tests")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="write the page and the results")
    return parser


def plain(figure: Figure) -> dict[str, Any]:
    """A figure as results on disk have it."""
    return {name: value for name, value in asdict(figure).items() if name != "least"}


def report(
    figures: Sequence[Figure],
    options: argparse.Namespace,
    *,
    results: Path,
    page_at: Path,
    page: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Print the figures as a table or as JSON, and write results and page where asked to.

    Args:
        figures: what was measured.
        options: of `arguments`.
        results: the JSON file of the figures.
        page_at: the page's file.
        page: makes its text, from figures as dictionaries with all their fields.
    """
    entries = [plain(one) for one in figures]
    if options.write:
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
        page_at.parent.mkdir(exist_ok=True)
        page_at.write_text(page([asdict(one) for one in figures]))
    if options.json:
        sys.stdout.write(json.dumps(entries, ensure_ascii=False) + "\n")
        return
    for one in figures:
        bound = "at least" if one.least else "at most"
        held = "" if one.reach is None else f"  ({bound} {one.reach:g}: {'yes' if one.ok else 'NO'})"
        sys.stdout.write(f"{one.value:10g} {one.unit:10} {one.figure}{held}\n")
