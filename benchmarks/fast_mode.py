"""Fast mode beside strict mode: the same kernels on the same back end, in turn, in one run.

    python benchmarks/fast_mode.py [--rounds 15] [--quick] [--json | --write]

Only ratios of one run mean anything. `--write` puts the table into docs/fast.md, between its two marks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Final, TypeAlias

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # threads are the back end's own

import numpy as np
from execution_kernel_speed import Case, alternate, cases

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._matmul import product
from p2pcompute.checking import DEFAULT_TOLERANCE, outside
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import Binding

Array: TypeAlias = np.ndarray[Any, Any]

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "fast.md"
BEGIN: Final = "<!-- figures: python benchmarks/fast_mode.py --write -->\n"
END: Final = "<!-- end of figures -->\n"
WANTED: Final = ("SAXPY", "Mandelbrot", "Black-Scholes", "GEMM")


@p2p.kernel
def waves(out: Any, x: Any) -> None:
    """Sines and cosines."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = math.sin(x[i]) * math.cos(np.float32(3.0) * x[i])


@p2p.kernel
def dots(out: Any, x: Any, y: Any) -> None:
    """A sum of products for each row."""
    i = cuda.grid(1)
    if i < out.size:
        total = np.float32(0.0)
        for k in range(x.shape[1]):
            total += x[i, k] * y[i, k]
        out[i] = total


def measured(binding: Binding, backend: CpuBackend, rounds: int) -> dict[str, float]:
    """The least seconds of both modes, and the share of elements that are off by more than the usual tolerance."""
    layout = binding.layout
    items = binding.launch.blocks * layout.items_per_block
    found: dict[str, list[Array]] = {}
    variants: dict[str, Any] = {}
    for fp in ("strict", "fast"):
        found[fp] = [
            np.zeros((items, *row), spec.dtype) for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
        ]
        compiled = backend.compile(dataclasses.replace(binding.source, fp=fp), binding.launch, binding.specs)
        variants[fp] = lambda c=compiled, o=found[fp]: c.run_blocks(0, binding.launch.blocks, binding.values, o)
    for rows in (*found["strict"], *found["fast"]):
        rows[...] = 0
    for variant in variants.values():
        variant()
    off = max(
        float(outside(fast, strict, DEFAULT_TOLERANCE).mean())
        for fast, strict in zip(found["fast"], found["strict"], strict=True)
    )
    return {**alternate(variants, rounds, 0.0), "outside": off}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small sizes, for tests")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", dest="as_json")
    how.add_argument("--write", action="store_true", help="put the table into docs/fast.md")
    options = parser.parse_args()
    scale = 0.02 if options.quick else 0.25
    rng = np.random.default_rng(3)
    n, side = (1 << 14, 96) if options.quick else (1 << 21, 768)
    rows = max(1, n >> 8)
    a, b = (rng.standard_normal((side, side), np.float32) for _ in range(2))
    x, y = (rng.random((rows, 1 << 8), np.float32) for _ in range(2))
    chosen: list[Case] = [case for case in cases(scale) if any(name in case.name for name in WANTED)]
    works: dict[str, Binding] = {case.name: case.binding for case in chosen}
    works["sines and cosines"] = waves.bind(p2p.out(n, np.float32), rng.uniform(-9, 9, n).astype(np.float32))
    works["sums of 256 products"] = dots.bind(p2p.out(rows, np.float32), x, y)
    works[f"p2p.matmul, side {side}"] = product[side, 1].bind(p2p.out((side, side), np.float32), a, b)
    lines = ["| kernel | strict | fast | strict / fast | outside of the usual tolerance |\n", "|---|---|---|---|---|\n"]
    figures: dict[str, dict[str, float]] = {}
    with CpuBackend() as backend:
        for name, binding in works.items():
            found = figures[name] = measured(binding, backend, options.rounds)
            lines.append(
                f"| {name} | {found['strict'] * 1e3:.2f} ms | {found['fast'] * 1e3:.2f} ms | "
                f"{found['strict'] / found['fast']:.2f} | {found['outside']:.2%} |\n"
            )
    if options.as_json:
        sys.stdout.write(json.dumps({"kernels": figures}) + "\n")
        return
    table = "".join(lines)
    sys.stdout.write(table)
    if options.write:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
