"""`p2pcompute bench`: what this machine's ad will say of its speed, and more."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from ._shared import common_options, fail, hush_logs, json_line

if TYPE_CHECKING:
    from p2pcompute.execution import Benchmark

__all__ = ["bench"]

_ENOUGH_S = 2.5  # of the command, after which nothing is repeated: the whole is to take less than three


@click.command(
    epilog="""\b
Examples:
  p2pcompute bench
  p2pcompute bench --threads 1 --json | jq .score_milli

Measured in a sandboxed worker, as strangers' kernels run. Close what else runs: the figures are of this moment.
In --json, `scores` are the ad's, each in thousandths of its reference: 1 strict arithmetic, 2 memory, 3 matrix product,
4 a GPU's results on their way to the host (1000 is 1 GB/s).
"""
)
@click.option("--threads", type=click.IntRange(1, 1024), help="processor threads of the worker [all cores]")
@click.option(
    "--device", metavar="SLOT", default="cpu", show_default=True, help="what to measure: cpu, or a GPU (cuda:0)"
)
@common_options
def bench(threads: int | None, device: str, as_json: bool, debug: bool) -> None:
    """Measure this machine as its ad will say it."""
    started = time.perf_counter()
    import trio

    from p2pcompute.execution import benchmark, device_worker, open_pool

    hush_logs(debug)
    if device != "cpu" and threads is not None:
        raise click.UsageError("--threads is for the processor")
    cores = threads or (len(os.sched_getaffinity(0)) if device == "cpu" else 1)

    def progress(what: str) -> None:
        if not as_json:
            click.echo(f"measuring {what} …", err=True)

    async def main() -> Benchmark:
        progress("with a worker that starts")
        async with open_pool(threads=cores, program=device_worker(device)) as pool:
            return await benchmark(pool, progress=progress, budget_s=_ENOUGH_S - (time.perf_counter() - started))

    try:
        result = trio.run(main)
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    result = replace(result, took_s=time.perf_counter() - started)
    if as_json:
        json_line(**asdict(result), device=device, scores=dict(result.scores))
        return
    copies = result.copy_bytes_per_s
    rows = (
        ("device", device),
        ("threads", str(result.threads)),
        ("score", f"{result.score_milli / 1000:.2f} reference cores; prices are for an hour of one"),
        ("strict float32", f"{result.strict_f32_ops_per_s / 1e9:.2f} Gop/s"),
        ("memory", f"{result.memory_bytes_per_s / 1e9:.1f} GB/s"),
        ("matrix product", f"{result.gemm_flops / 1e9:.2f} Gflop/s, naive and strict"),
        ("reply", f"{result.reply_us:.0f} µs from an order to a result of one block"),
        *([("PCIe", f"{copies / 1e9:.1f} GB/s of results to the host")] if copies is not None else []),
        ("GPU", result.gpu or "none: no NVIDIA driver answers here"),
        ("took", f"{result.took_s:.1f} s"),
    )
    for name, text in rows:
        click.echo("  " + click.style(f"{name:<16}", fg="cyan") + text)
