"""Execution against what it is measured by: kernels by hand, BLAS, bare copies, the clock. Prints a table, or JSON.

    python benchmarks/execution.py [--quick] [--json] [--write] [--rounds 15]

All is run in turn in one process tree, 15 times or more, and the least time of each counts, so that a busy machine
spoils ratios little.
`--write` puts the figures into docs/benchmarks/execution.md and benchmarks/results/execution.json; `make
bench-execution` does that. Two to three minutes on two idle cores; progress goes to standard error. `--quick` is
for tests: two kernels and few rounds, and no figure that means anything.

Figures of other benchmarks are copied below these, not measured, where `benchmarks/results/checking.json` holds some
(`checking_power.py --write` makes it; the page says so): a list of
``{"figure", "value", "unit", "reach", "ok"}``, as here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import trio
from _common import Figure, arguments, cores, processor, report, say
from _common import at_most as figure
from execution_hand import libm_functions, make, strict_functions
from execution_kernel_speed import Case, alternate, cases, unchecked_backend
from execution_page import page
from execution_workers import guard_ms, measure_workers

from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cpu_loops import program_text
from p2pcompute.execution._guard import admit
from p2pcompute.execution._lower import lower

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "execution.json"
OTHERS = (HERE / "results" / "checking.json",)
PAGE = HERE.parent / "docs" / "benchmarks" / "execution.md"
SPEND_S = 5.0  # on a kernel at least, after it is compiled
QUICK = ("SAXPY", "tiled GEMM")
REACH = {"proved": 1.1, "affine": 1.3, "data": 2.0}


def kernels(options: argparse.Namespace, threads: int) -> Iterator[Figure]:
    """Each kernel beside the same by hand; the product of matrices beside BLAS too."""
    numba.set_num_threads(threads)
    strict, libm = make(strict_functions()), make(libm_functions())
    with CpuBackend(threads) as backend, unchecked_backend(threads) as unchecked:
        for case in cases(0.06 if options.quick else 1.0):
            if options.quick and case.name not in QUICK:
                continue
            say(f"{case.name}: compiling, then {options.rounds} rounds")
            spend_s = 0.0 if options.quick else SPEND_S
            yield from _kernel(case, backend, unchecked, strict, libm, options.rounds, spend_s)


def _kernel(
    case: Case,
    backend: CpuBackend,
    unchecked: CpuBackend,
    strict: dict[str, Any],
    libm: dict[str, Any],
    rounds: int,
    spend_s: float,
) -> Iterator[Figure]:
    binding, rows = case.binding, case.rows()
    text = program_text(lower(admit(binding.source), binding.launch, binding.specs), binding.launch)
    tests = len(re.findall(r"\bload[1-4]\(", text))
    ours = backend.compile(binding.source, binding.launch, binding.specs)
    outputs = case.outputs_in(rows)
    variants: dict[str, Any] = {
        "ours": lambda: ours.run_blocks(0, binding.launch.blocks, binding.values, rows),
        "hand": lambda: strict[case.hand](*outputs, *case.arguments),
    }
    if tests and not case.leaves:
        bare = unchecked.compile(binding.source, binding.launch, binding.specs)
        variants["bare"] = lambda: bare.run_blocks(0, binding.launch.blocks, binding.values, rows)
    if case.libm:
        variants["libm"] = lambda: libm[case.hand](*outputs, *case.arguments)
    if case.blas is not None:
        variants["blas"] = case.blas
    best = alternate(variants, rounds, spend_s)
    variants["ours"]()
    mine = [whole.tobytes() for whole in case.whole(rows)]
    for row in rows:
        row.fill(0)
    variants["hand"]()
    for found, theirs in zip(mine, outputs, strict=True):
        if found != theirs.tobytes():
            raise AssertionError(f"{case.name}: the loop by hand with our functions gives other bits")
    name = f"{case.name}, back end / by hand"
    if "bare" in best:
        yield figure(f"{name}, without index tests", best["bare"] / best["hand"], "ratio", REACH["proved"])
    if tests:
        title = "affine" if case.indices == "affine" else "by data"
        yield figure(f"{name}, indices {title}", best["ours"] / best["hand"], "ratio", REACH[case.indices])
    else:
        yield figure(name, best["ours"] / best["hand"], "ratio", REACH["proved"])
    if case.libm:
        yield figure(f"{name} with libm", best["ours"] / best["libm"], "ratio")
    yield figure(f"{case.name}, back end", best["ours"] * 1000, "ms")
    if case.blas is not None:
        yield figure("strict GEMM of side 1024, float32 / NumPy's BLAS", best["ours"] / best["blas"], "ratio", 5.0)
        yield figure("NumPy's BLAS, the same product", best["blas"] * 1000, "ms")


def workers(options: argparse.Namespace, threads: int) -> Iterator[Figure]:
    """What lies between a node and its worker, and the guard before it."""
    quick = options.quick
    say("the guard")
    guard = guard_ms(3 if quick else 50)
    small, large, end_ms = trio.run(
        lambda: measure_workers(
            threads,
            small_rounds=50 if quick else 5000,
            large_rounds=1 if quick else options.rounds,
            nbytes=1 << (20 if quick else 26),
            kills=1 if quick else 5,
            progress=say,
        )
    )
    yield figure("chunk that does nothing, to a warm worker and back, median", small.median_us, "µs", 100.0)
    yield figure("the same, least", small.best_us, "µs")
    name = f"{large.nbytes >> 20} MiB in and {large.nbytes >> 20} MiB out"
    yield figure(f"{name} / loop by hand and needful copies", large.worker_s / large.copies_s, "ratio", 2.0)
    yield figure(name, large.worker_s * 1000, "ms")
    yield figure("guard on a kernel of 100 lines, processor time", guard, "ms", 5.0)
    yield figure("end of an endless kernel after the grace period, process gone, median", end_ms, "ms", 100.0)


def others() -> Iterator[Figure]:
    """Figures that other benchmarks have left."""
    for path in OTHERS:
        if path.exists():
            for entry in json.loads(path.read_text()):
                yield Figure(**{key: entry.get(key) for key in ("figure", "value", "unit", "reach", "ok")})


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = arguments(__doc__, quick="few kernels and rounds")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    options.rounds = 2 if options.quick else max(1, min(options.rounds, 1000))
    threads = cores()
    began, load = time.perf_counter(), os.getloadavg()[0]
    figures = [*kernels(options, threads), *workers(options, threads)]
    if not options.quick:
        figures += others()
    machine = (
        f"{processor()}, {threads} cores; Python {platform.python_version()}, numba {numba.__version__}, "
        f"NumPy {np.__version__}; load average at the start {load:.1f}, {options.rounds} rounds, "
        f"{time.perf_counter() - began:.0f} s"
    )
    report(figures, options, results=RESULTS, page_at=PAGE, page=partial(page, machine=machine))


if __name__ == "__main__":
    main()
