"""What private samples find, and what they cost: exact chances, and tasks with faults injected into real outputs.

A path-dependent Monte Carlo kernel is computed on the CPU back end, chunk by chunk. Each run alters 1 % of the elements
by one unit in the last place (`p2pcompute.testing`'s fault, at other places in each run), and the product's `Sampler`
checks it chunk by chunk on the same back end, until it finds a mismatch. Cost is what was run again of what was
computed, in elements and in processor time, of runs without a fault. Prints tables, or JSON.

python benchmarks/checking_power.py [--count 1000] [--json | --write]

--write puts the tables into docs/checking.md, between its two marks, and what the product's own samples find and cost
into benchmarks/results/checking.json, for the page of `make bench-execution`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.checking import (
    DEFAULT_SAMPLES,
    Sampler,
    chance_over_chunks,
    chance_to_catch,
    cost_share,
    faked_elements,
    samples_for,
)
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.testing._output_faults import lie

SHARES: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.2)
SAMPLES: Final = (32, 64, 128, 256, 512, 1024)
TABLE_ELEMENTS: Final = 131_072
SHARE: Final = 0.01
STEPS: Final = np.int64(256)
PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "checking.md"
RESULTS: Final = Path(__file__).parent / "results" / "checking.json"
BEGIN: Final = "<!-- figures: python benchmarks/checking_power.py --write -->\n"
END: Final = "<!-- end of figures -->\n"


@p2p.kernel
def walk(out: Any, steps: Any, seed: Any) -> None:
    """The highest point of a random walk."""
    i = cuda.grid(1)
    if i < out.size:
        at = np.float32(0.0)
        top = np.float32(0.0)
        for n in range(steps):
            at += p2p.random.uniform(seed, i, n) - np.float32(0.5)
            top = max(top, at)
        out[i] = top


@dataclass(frozen=True, slots=True)
class Rows:
    """What a worker gives for threads."""

    outputs: tuple[bytes, ...]


class Worker:
    """A compiled kernel in this process, with the clock that it has used."""

    def __init__(self, backend: CpuBackend, elements: int) -> None:
        binding = walk.bind(p2p.out((elements,), np.float32), STEPS, np.int64(7))
        self.binding = binding
        self._kernel = backend.compile(binding.source, binding.launch, binding.specs)
        self.spent_ns = 0

    def blocks(self, first: int, count: int) -> bytes:
        """A chunk's output."""
        out = np.zeros((count * self.binding.launch.threads_per_block,), np.float32)
        self._kernel.run_blocks(first, count, self.binding.values, [out])
        return out.tobytes()

    async def run_threads(self, threads: Any, *, timeout_s: float) -> Rows:  # noqa: ARG002  as workers have it
        """Rows of single threads."""
        began = time.process_time_ns()
        out = np.zeros((len(threads),), np.float32)
        self._kernel.run_threads(threads, self.binding.values, [out])
        self.spent_ns += time.process_time_ns() - began
        await trio.lowlevel.checkpoint()
        return Rows((out.tobytes(),))


async def inject(backend: CpuBackend, *, elements: int, chunks: int, samples: int, count: int) -> dict[str, Any]:
    """`count` runs of a task of `chunks` chunks of `elements` each, 1 % of every chunk altered."""
    worker = Worker(backend, elements * chunks)
    size = worker.binding.launch.threads_per_block
    blocks = elements // size
    worker.blocks(0, 1)
    began = time.process_time_ns()
    outputs = [worker.blocks(chunk * blocks, blocks) for chunk in range(chunks)]
    compute_ns = time.process_time_ns() - began
    sampler = Sampler(worker, worker.binding.layout.outputs, [()], per_chunk=samples)
    fault = lie(SHARE, 4)
    caught, at_chunk = 0, 0
    for run in range(count):
        for chunk, honest in enumerate(outputs):
            report = await sampler.check(chunk * elements, elements, fault(honest, run * chunks + chunk))
            if not report.ok:
                caught += 1
                at_chunk += chunk
                break
    sampler.checked = sampler.mismatched = 0
    worker.spent_ns = 0
    for chunk, honest in enumerate(outputs):
        assert (await sampler.check(chunk * elements, elements, honest)).ok  # an honest provider is never accused
    chance = chance_over_chunks([(elements, faked_elements(elements, SHARE))] * chunks, samples)
    return {
        "elements": elements * chunks,
        "chunks": chunks,
        "samples_per_chunk": samples,
        "runs": count,
        "caught": caught,
        "expected": round(chance * count, 1),
        "mean_chunks_computed": round(at_chunk / max(1, caught) + 1, 2),
        "cost_elements": round(sampler.checked / (elements * chunks), 6),
        "cost_time": round(worker.spent_ns / compute_ns, 6),
    }


def table() -> list[dict[str, Any]]:
    """Chances in one chunk, by share and samples."""
    return [
        {
            "samples": samples,
            "cost": cost_share(TABLE_ELEMENTS, samples),
            "chances": [
                chance_to_catch(TABLE_ELEMENTS, faked_elements(TABLE_ELEMENTS, share), samples) for share in SHARES
            ],
        }
        for samples in SAMPLES
    ]


def needed() -> list[dict[str, Any]]:
    """Samples for 99 % against 1 %, by how many chunks the task has, and the smallest chunk at 0.5 %."""
    found: list[dict[str, Any]] = []
    for chunks in (1, 2, 4, 16, 64, 256):
        samples = samples_for(TABLE_ELEMENTS, SHARE, 0.99, chunks=chunks)
        found.append({"chunks": chunks, "samples_per_chunk": samples, "least_elements": math.ceil(samples / 0.005)})
    return found


def show(found: dict[str, Any]) -> str:
    """The tables of docs/checking.md."""
    lines: list[str] = []
    write = lines.append
    write(f"| samples | cost | {' | '.join(f'{share:.1%} faked' for share in SHARES)} |\n")
    write("|---" * (len(SHARES) + 2) + "|\n")
    for row in found["table"]:
        chances = " | ".join(f"{chance:.2%}" for chance in row["chances"])
        write(f"| {row['samples']} | {row['cost']:.3%} | {chances} |\n")
    write("\n| chunks | samples a chunk for 99 % | elements a chunk where they cost 0.5 % |\n|---|---|---|\n")
    for row in found["needed"]:
        write(f"| {row['chunks']} | {row['samples_per_chunk']} | {row['least_elements']:,} |\n")
    write("\n| task | samples a chunk | caught | expected | chunks until then | cost in elements | in time |\n")
    write("|---|---|---|---|---|---|---|\n")
    for row in found["injected"]:
        write(
            f"| {row['chunks']} × {row['elements'] // row['chunks']:,} | {row['samples_per_chunk']} | "
            f"{row['caught']} of {row['runs']} | {row['expected']} | {row['mean_chunks_computed']} | "
            f"{row['cost_elements']:.2%} | {row['cost_time']:.2%} |\n"
        )
    return "".join(lines)


def results(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Figures of one injected task, as the page of execution takes them: each is at most its reach."""
    missed = 100 * (1 - run["caught"] / run["runs"])
    task = f"1 % faked elements in {run['chunks']} chunks of {run['elements'] // run['chunks']:,}"
    return [
        {"figure": name, "value": round(value, 3), "unit": "%", "reach": reach, "ok": value <= reach}
        for name, value, reach in (
            (f"{task}: not found in {run['runs']:,} injected runs", missed, 1.0),
            (f"{task}: what finding them costs of the task", 100 * run["cost_time"], 0.5),
        )
    ]


def main() -> None:
    """Work it out, inject, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000, help="injected runs of each task")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", dest="as_json")
    how.add_argument("--write", action="store_true", help="put the tables into docs/checking.md")
    options = parser.parse_args()
    count = max(1, min(options.count, 100_000))
    one_chunk = samples_for(TABLE_ELEMENTS, SHARE, 0.99)
    spread = samples_for(16_384, SHARE, 0.99, chunks=8)
    with CpuBackend() as backend:
        tasks = (
            (65_536, 8, DEFAULT_SAMPLES),  # what the product draws
            (65_536, 1, DEFAULT_SAMPLES),
            (TABLE_ELEMENTS, 1, one_chunk),  # 99 % in a single chunk
            (16_384, 8, spread),  # 99 % over a task, and no more samples than that takes
        )
        injected = [
            trio.run(lambda n=n, c=c, s=s: inject(backend, elements=n, chunks=c, samples=s, count=count))
            for n, c, s in tasks
        ]
    found = {
        "cores": len(os.sched_getaffinity(0)),
        "shares": SHARES,
        "table_elements": TABLE_ELEMENTS,
        "table": table(),
        "needed": needed(),
        "injected": injected,
    }
    if options.as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    tables = show(found)
    sys.stdout.write(tables)
    if options.write:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
        RESULTS.write_text(json.dumps(results(injected[0]), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
