"""The benchmarks run: few rounds of each, and no figure is asserted, since speed depends on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.net


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("negotiation.py", "p50_ms"),
        ("network_requests.py", "libp2p"),
        ("task_latency.py", "p50_ms"),
        ("import_time.py", "bare"),
        ("checking_power.py", "injected"),
        ("product_power.py", "injected"),
        ("fast_mode.py", "kernels"),
        ("network_mux.py", "bulk_per_mib"),
        ("network_uploads.py", "two uploads"),
    ],
)
def test_it_prints_its_figures(name: str, field: str) -> None:
    options = [] if name == "import_time.py" else ["--count", "2"]
    if name == "network_mux.py":
        options = ["--mib", "4", "--count", "4"]
    if name == "network_uploads.py":
        options = ["--rounds", "1", "--seconds", "0.2", "--json"]
    if name == "fast_mode.py":
        options = ["--quick", "--rounds", "2", "--json"]
    if name in ("checking_power.py", "product_power.py"):
        options.append("--json")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *options], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert field in json.loads(done.stdout)


def test_rounds_print_what_they_save() -> None:
    options = ("--stars", "64", "--steps", "2", "--chunk", "1")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "rounds.py"), *options],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["tasks"]["receipts"], found["rounds"]["receipts"]) == (2, 2)


def test_execution_prints_figures_and_what_they_have_to_reach() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "execution.py"), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert all(set(one) == {"figure", "value", "unit", "reach", "ok"} for one in figures)
    assert all((one["reach"] is None) == (one["ok"] is None) for one in figures)
    assert sum(one["reach"] is not None for one in figures) == 7


def test_attacks_print_figures_and_what_they_have_to_reach() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "network_attack.py"), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert len(figures) == 8
    assert all(set(one) == {"figure", "value", "unit", "reach", "ok"} for one in figures)
    assert all(one["reach"] is not None for one in figures)


def test_payments_prints_figures_and_what_they_have_to_reach() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "payments.py"), "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert all(set(one) == {"figure", "value", "unit", "reach", "ok"} for one in figures)
    assert all((one["reach"] is None) == (one["ok"] is None) for one in figures)
    assert sum(one["reach"] is not None for one in figures) >= 4
