"""The benchmark on a real worker: its figures are positive, and an ad's scores follow from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from p2pcompute import _opening, execution
from p2pcompute.errors import ExecutionError
from p2pcompute.execution import SandboxPolicy
from p2pcompute.execution import _probe as probe
from p2pcompute.execution._bench import Benchmark, Timed, benchmark
from p2pcompute.execution._pool import open_pool
from p2pcompute.execution._pool_process import WorkerProcess, WorkerProgram
from p2pcompute.execution._pool_session import WorkerSession, WorkResult
from p2pcompute.execution._probe import time_score
from p2pcompute_cli.main import cli
from p2pcompute_protocols.ads import Device

pytestmark = pytest.mark.net


def test_scores_are_thousandths_of_their_references() -> None:
    result = Benchmark(
        threads=2,
        score_milli=1_500,
        strict_f32_ops_per_s=3_750_000_000,
        memory_bytes_per_s=20_000_000_000,
        gemm_flops=500_000_000,
        reply_us=100.0,
        copy_bytes_per_s=None,
        gpu=None,
        took_s=2.0,
    )
    assert result.scores == ((1, 1_500), (2, 2_000), (3, 500))
    copied = replace(result, copy_bytes_per_s=24_500_000_000)
    assert copied.scores == (*result.scores, (4, 24_500))
    assert replace(result, copy_bytes_per_s=5).scores[3] == (4, 1)


def ran(wall_ns: int, device_ns: int) -> WorkResult:
    return WorkResult(outputs=(), cpu_ns=1, wall_ns=wall_ns, device_ns=device_ns)


def test_what_a_gpu_computes_and_what_it_copies_are_two_figures() -> None:
    """The launch takes half a millisecond at best, in a run that is not the shortest; what is beside it takes 1.4, of
    which a tenth any run takes."""
    timed = Timed.least([ran(2_000_000, 600_000), ran(2_050_000, 500_000), ran(2_400_000, 900_000)])
    assert timed.compute_ns == 500_000
    assert timed.rest_ns == 1_400_000
    assert timed.copied_per_s(32 << 20, beside_ns=100_000) == (32 << 20) * 10**9 // 1_300_000


def test_a_processor_copies_nothing() -> None:
    alone = Timed.least([ran(2_000_000, 0), ran(3_000_000, 0)])
    assert (alone.compute_ns, alone.copied_per_s(32 << 20, beside_ns=0)) == (2_000_000, None)


def test_bytes_of_a_triad_are_those_that_move_while_it_is_timed() -> None:
    """Two arrays read and one written; the zeroing of the output is a fourth, where the clock runs then."""
    assert Timed.least([ran(2_000, 1_000)]).triad_per_s(1_000) == 12_000 * 10**9 // 1_000
    assert Timed.least([ran(2_000, 0)]).triad_per_s(1_000) == 16_000 * 10**9 // 2_000


def test_a_worker_is_measured_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One: another that starts meanwhile takes of what is measured, and halves the figures of two cores."""
    said: list[str] = []
    started: list[dict[str, Any]] = []
    start = WorkerProcess.start

    async def counted(**options: Any) -> WorkerProcess:
        started.append(options)
        return await start(**options)

    monkeypatch.setattr(WorkerProcess, "start", counted)

    async def main() -> Benchmark:
        async with open_pool(threads=1, spare=1) as pool:
            return await benchmark(pool, progress=said.append)

    result = trio.run(main)
    assert len(started) == 1
    assert result.threads == 1
    assert [key for key, _ in result.scores] == [1, 2, 3]
    assert all(value > 0 for _, value in result.scores)
    assert result.reply_us > 0
    assert result.copy_bytes_per_s is None
    assert len(said) == 3


def test_the_ad_says_how_fast_results_come_from_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The toy device stands for a GPU: measured, kept for the next start, and in the ad as other peers read it."""
    gpu = probe.Device(kind="cuda", name="toy", cores=0, memory_bytes=2**30, slot="cuda:0")
    monkeypatch.setattr(execution, "probe_devices", lambda: [gpu])
    monkeypatch.setattr(_opening, "version", lambda package: "0" if package == "numba-cuda" else version(package))
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    program = WorkerProgram(module="toy_device_worker", roots=(str(Path(__file__).parent / "hostile"),))

    async def main() -> Benchmark:
        async with open_pool(threads=1, spare=0, policy=SandboxPolicy(bwrap="never"), program=program) as pool:
            return await benchmark(pool)

    result = trio.run(main)
    assert result.copy_bytes_per_s is not None
    _opening.known_device(1, result, slot="cuda:0")
    device = _opening.known_device(1, slot="cuda:0")
    assert device is not None
    said = dict(Device.decode(device.encode()).scores)
    assert list(said) == [1, 2, 3, 4]
    assert said[4] == result.copy_bytes_per_s // 1_000_000 > 0


class _Forgetful:
    """A session of a machine whose memory has lost a bit by the second time."""

    runs = 0

    def __init__(self, *, bad_from: float) -> None:
        self._bad_from = bad_from

    async def run_blocks(self, _first: int, count: int, *, timeout_s: float) -> WorkResult:
        await trio.lowlevel.checkpoint()
        self.runs += 1
        row = b"\x01" if self.runs >= self._bad_from else b"\x00"
        return WorkResult(outputs=(row * 256 * count,), cpu_ns=1, wall_ns=30_000_000)


@pytest.mark.parametrize("bad_from", [math.inf, 2, 3, 8])
def test_a_machine_that_forgets_bits_is_not_measured(bad_from: float) -> None:
    session: Any = _Forgetful(bad_from=bad_from)
    if bad_from == math.inf:
        assert trio.run(time_score, session).score > 0
        return
    with pytest.raises(ExecutionError, match="different bits the second time"):
        trio.run(time_score, session)


@pytest.mark.parametrize(("budget_s", "rounds", "replies"), [(math.inf, 5, 200), (0, 2, 20), (-1, 2, 20)])
def test_no_more_than_the_least_is_repeated_beyond_the_budget(
    budget_s: float, rounds: int, replies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    run_blocks = WorkerSession.run_blocks

    async def run(session: WorkerSession, first: int, count: int, *, timeout_s: float) -> WorkResult:
        counted.append(count)
        return await run_blocks(session, first, count, timeout_s=timeout_s)

    monkeypatch.setattr(WorkerSession, "run_blocks", run)

    async def main() -> Benchmark:
        async with open_pool(threads=1) as pool:
            return await benchmark(pool, budget_s=budget_s)

    assert trio.run(main).gemm_flops > 0
    assert counted.count((1 << 23) // 128) == rounds  # of the triad
    assert counted[-replies - rounds :] == [384 * 384 // 128] * rounds + [1] * replies


@pytest.mark.parametrize(("until", "rounds"), [(math.inf, 3), (0.0, 1)])
def test_the_score_s_rounds_end_with_the_budget(until: float, rounds: int) -> None:
    counts: list[int] = []

    class Session(_Forgetful):
        async def run_blocks(self, _first: int, count: int, *, timeout_s: float) -> WorkResult:
            counts.append(count)
            return await super().run_blocks(_first, count, timeout_s=timeout_s)

    session: Any = Session(bad_from=math.inf)
    trio.run(partial(time_score, session, until=until))
    assert counts.count(80) == rounds  # of 150 ms, where 16 blocks take 30


def test_the_command_says_it_for_people_and_for_programs() -> None:
    answer = CliRunner().invoke(cli, ["bench", "--threads", "1", "--json"])
    assert answer.exit_code == 0, answer.output
    fields = json.loads(answer.stdout)
    assert fields["scores"]["1"] == fields["score_milli"] > 0
    assert fields["gpu"] is None
