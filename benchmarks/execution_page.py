"""The page that `execution.py --write` makes of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["page"]

HEAD = """# Execution: how fast, beside what

`make bench-execution` measures this and writes this page and `benchmarks/results/execution.json`. What is compared is
run in turn, in one process tree, each for 20 ms or once, and the least time of each counts; so ratios hold on a busy
machine too, and absolute times less. (OpenMP's threads hold their cores for some milliseconds after a parallel loop;
so what runs after one by hand has to run more than once.)

The rows of faked elements are not measured here: they are copied from `benchmarks/results/checking.json`, which
`python benchmarks/checking_power.py --write` makes.

"""

TAIL = """
## What stands beside what

**Kernels.** `benchmarks/execution_kernels.py` has them as a user writes them, `execution_hand.py` as somebody writes
them by hand for numba: `njit(parallel=True)` over rows, the inner loop over neighbours in memory, float32 throughout,
no test that the loops make needless, NumPy's error model, arrays that are there already. Both are warm and have as
many threads as there are cores. The back end writes rows in the order of blocks, by hand they lie in the whole array.
SAXPY and the gather take 16 and 4 million elements, options are a million, stencils run over 2048 × 2048, the
Mandelbrot set is 512 × 512 at up to 256 iterations, paths are of 320 × 180 pixels with 8 samples of up to 4 bounces,
and matrices have a side of 1024.
Beyond the caches both sides wait for memory, and how long depends on where pages lie, so stencils have a size that
caches hold.

- *By hand* calls the language's own `exp`, `log`, `erfc`, `sin` and `cos` (`docs/strict.md`), and gives the same bits,
  which is checked in each run. This is what a figure is held against: it leaves nothing that differs but the back end.
  *With libm* is the same loop with the platform's functions, whose bits differ from machine to machine; what the
  definition costs is in there.
- Loads are always tested for leaving their array, and give zero then. Where it is proved from the text and the sizes
  that they don't, no test is in the code; a row without further words is such a kernel. Where tests are left, the row
  *without index tests* is the same code with bare loads, which only this benchmark makes; the row below it is what
  runs. Indices are *affine* (sums of the thread's place and numbers) or *by data*.
- Threads that are not at the border of a launch have code of their own where fewer tests are needed there; the rest of
  a stencil's tests are left at its border only. Both sides write to the same memory, which was written
  to before, and a stencil's arrays begin with a page, as they do in a worker.
- The tiled product is the one of the CUDA programming guide: tiles in shared memory, barriers, one thread an element.
  By hand, tiles are copied into local arrays and multiplied there.
- NumPy's BLAS is free to fuse multiplications with additions and to add in any order; the strict product is not: each
  of its sums goes from the first term to the last and rounds each time.

**A chunk that does nothing** is one block, from the call in the node to the result in the node's own memory: event
loop, packet to the sandboxed worker, run, packet back, copy.

**Needful copies**: the input goes into sealed memory, which is new each time, since what is sealed
stays; the loop reads one array and writes the other; the result goes to memory that the worker can't write, and is the
caller's. They are made with the same system calls, without a worker, and with the loop by hand. The other side of that
ratio is the sealing of a new input, a compilation that finds the kernel compiled already, and the run of all blocks.

**The guard** admits a kernel's text: parsing, the list of what may stand there, how it uses the grid.

**The end of an endless kernel** is what passes from the end of the time that it was given until its process is reaped.
"""


def page(entries: Sequence[dict[str, Any]], machine: str) -> str:
    """Markdown of the figures; `machine` says where they were taken."""
    lines = ["| what | figure | at most | |", "|---|---|---|---|"]
    for entry in entries:
        value = f"{entry['value']:g}" + ("" if entry["unit"] == "ratio" else f" {entry['unit']}")
        reach = "" if entry["reach"] is None else f"{entry['reach']:g}"
        verdict = {None: "", True: "reached", False: "**missed**"}[entry["ok"]]
        lines.append(f"| {entry['figure']} | {value} | {reach} | {verdict} |")
    return f"{HEAD}{machine}.\n\n" + "\n".join(lines) + "\n" + TAIL
