"""What this machine has to lend: its devices, and how fast they are at strict arithmetic."""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._api import KernelSource, Launch, OutputSpec
from p2pcompute.execution._cuda_device import CudaFailure, driver_is_here, find_devices
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._nvml import list_gpus
from p2pcompute.execution._pool import WorkerPool
from p2pcompute.execution._pool_session import WorkerSession

__all__ = [
    "REFERENCE_CORE_OPS_PER_S",
    "Device",
    "Score",
    "compile_score",
    "measure_score",
    "probe_devices",
    "time_score",
]

REFERENCE_CORE_OPS_PER_S: Final = 2_500_000_000
"""One reference core does this many strict float32 operations of the benchmark in a second: score 1000.

The benchmark iterates ``x = a * x * (1 - x)`` in four independent chains per thread, three operations each, with
every operation rounded by itself as strict mode demands. A thread of a common server of the early 2020s comes near
it. The number is a definition and never changes; machines are compared by it.
"""

_STEPS: Final = 2_000
_OPS_PER_THREAD: Final = _STEPS * 4 * 3
_BLOCK: Final = 64
_MAX_BLOCKS: Final = 1 << 20
_ROUND_S: Final = 0.15
_ROUNDS: Final = 3
_TIMEOUT_S: Final = 60.0

_TEXT: Final = f"""def logistic(out):
    i = cuda.grid(1)
    if i < out.size:
        a = np.float32(3.7)
        one = np.float32(1.0)
        x = np.float32(i % 1000) * np.float32(0.0009) + np.float32(0.05)
        y = x * np.float32(0.5)
        z = x * np.float32(0.25)
        w = x * np.float32(0.125)
        for k in range({_STEPS}):
            x = a * x * (one - x)
            y = a * y * (one - y)
            z = a * z * (one - z)
            w = a * w * (one - w)
        out[i] = x + y + z + w
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device that can run kernels.

    Attributes:
        kind: "cpu" or "cuda".
        name: the maker's name for it.
        cores: processor threads that this process may use; a container's quota counts. Of a GPU, its
            multiprocessors where the driver was asked, else 0.
        memory_bytes: memory that it may use; a container's limit counts. Of a GPU, its own.
        slot: what names it here: cpu, cuda:0, cuda:1, … in the order of the bus.
        driver: of a GPU, its driver's version where that is known.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    cores: int
    memory_bytes: int
    slot: str = "cpu"
    driver: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How fast a worker is.

    Attributes:
        score: thousandths of a reference core, all its threads together.
        ops_per_s: strict float32 operations a second, the best of some rounds.
    """

    score: int
    ops_per_s: int


def probe_devices(*, root: Path = Path("/")) -> list[Device]:
    """The devices of this machine: its CPU, always first, then its GPUs, as NVIDIA's management library lists them, or
    else as the CUDA driver shows them, where the ``cuda`` extra is installed. Reads ``/proc`` and ``/sys`` beneath
    `root`.

    Where a file is missing or odd the answer of the standard library stands in; nothing is raised.
    """
    cpu = Device(kind="cpu", name=_cpu_name(root), cores=_cores(root), memory_bytes=_memory(root))
    return [cpu, *_cuda_devices()]


def _cuda_devices() -> list[Device]:
    listed = [
        Device(
            kind="cuda",
            name=gpu.name,
            cores=0,
            memory_bytes=gpu.memory_bytes,
            slot=f"cuda:{place}",
            driver=gpu.driver,
        )
        for place, gpu in enumerate(list_gpus())
    ]
    if listed or not driver_is_here():
        return listed
    try:
        return [
            Device(
                kind="cuda",
                name=device.name,
                cores=device.processors,
                memory_bytes=device.memory_bytes,
                slot=f"cuda:{place}",
            )
            for place, device in enumerate(find_devices())
        ]
    except CudaFailure:  # a driver that answers and then fails is as good as none
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _cpu_name(root: Path) -> str:
    fields: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            fields.setdefault(key.strip().lower(), " ".join(value.split()))
    if "model name" in fields:
        return fields["model name"]
    part = " ".join(fields[key] for key in ("cpu implementer", "cpu part") if key in fields)  # arm has no model name
    return f"{platform.machine()} {part}".strip()


def _cores(root: Path) -> int:
    usable = len(os.sched_getaffinity(0))
    quota, _, period = _read(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if not period:
        quota = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    limit, unit = _number(quota), _number(period)
    if limit > 0 and unit > 0:
        usable = min(usable, max(1, limit // unit))
    return usable


def _memory(root: Path) -> int:
    total = 0
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            total = _number(line.split()[1]) * 1024
    total = total or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _number(_read(root / name))
        if limit > 0:
            total = min(total, limit)
    return total


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 20 else 0


async def measure_score(pool: WorkerPool) -> Score:
    """Time the benchmark in a worker of `pool`, in a session of its own; about half a second of work beside the
    compilation.

    Raises `ExecutionError` where the machine does not compute the same bits twice, and what a session raises.
    """
    async with pool.session() as session:
        await compile_score(session)
        return await time_score(session)


async def compile_score(session: WorkerSession) -> None:
    """The first half of `measure_score`, in a session that is there."""
    launch = Launch(grid=(_MAX_BLOCKS, 1, 1), block=(_BLOCK, 1, 1), dims=1)
    output = OutputSpec(dtype="float32", shape=(_MAX_BLOCKS * _BLOCK,))
    source = KernelSource(text=_TEXT, entry="logistic", digest=source_digest("logistic", _TEXT))
    await session.compile(source, launch, [output], {})


async def time_score(session: WorkerSession, *, until: float = math.inf) -> Score:
    """The other half, where nothing else was compiled meanwhile. Once `until` of `time.perf_counter` has passed, no
    round begins but the first."""
    blocks, wall_ns = 16, 0
    while blocks < _MAX_BLOCKS:  # until a run is long enough to be timed
        wall_ns = await _round(session, blocks)
        if wall_ns > _ROUND_S * 1e9 / 8:
            break
        blocks = min(_MAX_BLOCKS, blocks * 4)
    blocks = max(1, min(_MAX_BLOCKS, int(blocks * _ROUND_S * 1e9 / max(wall_ns, 1))))
    best_ns = await _round(session, blocks)
    for _ in range(_ROUNDS - 1):
        if time.perf_counter() < until:
            best_ns = min(best_ns, await _round(session, blocks))
    ops_per_s = int(blocks * _BLOCK * _OPS_PER_THREAD * 1e9 / best_ns)
    return Score(score=max(1, round(ops_per_s * 1000 / REFERENCE_CORE_OPS_PER_S)), ops_per_s=ops_per_s)


async def _round(session: WorkerSession, blocks: int) -> int:
    result = await session.run_blocks(0, blocks, timeout_s=_TIMEOUT_S)
    rows = result.outputs[0]
    size = len(rows) // blocks
    for block in range(0, blocks, max(1, blocks // 7)):  # of which nothing has to be compiled, as of single threads
        again = await session.run_blocks(block, 1, timeout_s=_TIMEOUT_S)
        if again.outputs[0] != rows[block * size : (block + 1) * size]:
            raise ExecutionError(
                "this machine computed different bits the second time; do not lend it: check its memory"
            )
    return max(1, result.wall_ns)
