"""Probing devices and the doctor's facts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from p2pcompute.execution import (
    SandboxPolicy,
    WorkerLimits,
    _doctor,
    _probe,
    _selftest_fast,
    doctor_facts,
    measure_score,
    open_pool,
    probe_devices,
)


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_has_a_cpu() -> None:
    device, *_ = probe_devices()
    assert device.kind == "cpu"
    assert device.name
    assert 1 <= device.cores <= len(os.sched_getaffinity(0))
    assert device.memory_bytes > 1 << 26


def test_a_container_s_quota_and_limit_count(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        proc__cpuinfo="processor\t: 0\nmodel name\t: Fast   CPU (R)\n\nprocessor\t: 1\nmodel name\t: Other\n",
        proc__meminfo="MemTotal:       16000000 kB\nMemFree: 5 kB\n",
        sys__fs__cgroup__cpu_DOT_max="100000 100000\n",
        sys__fs__cgroup__memory_DOT_max="4096000000\n",
    )
    device, *_ = probe_devices(root=root)
    assert (device.name, device.cores, device.memory_bytes) == ("Fast CPU (R)", 1, 4_096_000_000)


@pytest.mark.parametrize("quota", ["max 100000\n", "garbage", "", "-1 -1", "50000"])
def test_no_quota_or_an_odd_one_is_none(tmp_path: Path, quota: str) -> None:
    root = machine(
        tmp_path,
        sys__fs__cgroup__cpu_DOT_max=quota,
        sys__fs__cgroup__memory_DOT_max="max\n",
        proc__meminfo="MemTotal: 1000 kB\n",
        proc__cpuinfo="CPU implementer : 0x41\nCPU part : 0xd0c\n",
    )
    device, *_ = probe_devices(root=root)
    assert device.cores == len(os.sched_getaffinity(0))
    assert device.memory_bytes == 1_024_000
    assert device.name.endswith("0x41 0xd0c")


def test_an_empty_proc_is_no_error(tmp_path: Path) -> None:
    device, *_ = probe_devices(root=tmp_path)
    assert device.name
    assert device.memory_bytes > 0


@pytest.mark.net
def test_the_score_counts_reference_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_probe, "_ROUND_S", 0.01)

    async def main() -> None:
        async with open_pool(spare=0) as pool:
            score = await measure_score(pool)
            assert score.ops_per_s > 0
            assert score.score == max(1, round(score.ops_per_s / 2_500_000))

    trio.run(main)


@pytest.mark.net
def test_the_doctor_starts_a_worker_and_says_what_locks_it() -> None:
    facts = {fact.name: fact for fact in trio.run(doctor_facts)}
    assert [name for name in facts if not name.startswith("cuda:")] == [
        "python",
        "numba",
        "cpu",
        "gpu",
        "landlock",
        "seccomp",
        "bubblewrap",
        "rlimits",
        "worker",
        "fast mode",
    ]
    assert facts["gpu"].detail.startswith("cuda:0" if len(probe_devices()) > 1 else "none: ")
    assert all(fact.ok for fact in facts.values() if fact.needed)
    assert "seccomp on" in facts["worker"].detail
    assert "agrees to tolerances from" in facts["fast mode"].detail
    assert all(fact.advice for fact in facts.values() if not fact.ok)


@pytest.mark.net
def test_the_doctor_says_that_fast_mode_is_too_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the doctor a machine whose strict bits are others is one with which nothing can be compared."""
    part = _selftest_fast.PARTS[2]
    monkeypatch.setattr(_selftest_fast, "PARTS", (dataclasses.replace(part, digest="0" * 64),))
    fact = trio.run(_doctor._fast_mode, "cpu", WorkerLimits(), SandboxPolicy())
    assert (fact.name, fact.ok, fact.needed) == ("fast mode", False, False)
    assert part.title in fact.detail
    assert "strict mode" in fact.advice


def test_the_doctor_says_what_is_missing_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor, "landlock_abi", lambda: 0)
    monkeypatch.setattr(_doctor, "seccomp_available", lambda: False)
    monkeypatch.setenv("PATH", "/nonexistent")
    huge = 1 << 59
    limits = WorkerLimits(memory_bytes=2 * huge, input_bytes=huge, session_input_bytes=huge)

    async def main() -> None:
        facts = {fact.name: fact for fact in await doctor_facts(limits=limits, start_worker=False)}
        for name, word in (
            ("landlock", "lsm="),
            ("seccomp", "CONFIG_SECCOMP"),
            ("cpu", "lower"),
            ("bubblewrap", "install"),
        ):
            assert not facts[name].ok
            assert word in facts[name].advice
        assert facts["landlock"].needed
        assert not facts["bubblewrap"].needed
        policy = SandboxPolicy(bwrap="require")
        facts = {fact.name: fact for fact in await doctor_facts(policy=policy, start_worker=False)}
        assert facts["bubblewrap"].needed
        policy = SandboxPolicy(bwrap="never")
        facts = {fact.name: fact for fact in await doctor_facts(policy=policy, start_worker=False)}
        assert facts["bubblewrap"].ok

    trio.run(main)


def test_a_machine_that_can_not_lock_a_worker_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from p2pcompute.execution import _sandbox

    monkeypatch.setattr(_sandbox, "landlock_abi", lambda: 0)
    facts = {fact.name: fact for fact in trio.run(doctor_facts)}
    assert not facts["worker"].ok
    assert "no Landlock" in facts["worker"].detail


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, p2pcompute.execution\n"
        "heavy = {'numba', 'numpy', 'llvmlite', 'trio', 'cbor2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from p2pcompute.execution import *\n"
        "assert 'numba' not in sys.modules\n"
        "try: p2pcompute.execution.nothing\n"
        "except AttributeError: pass\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=500)
