"""What a machine offers for running strangers' kernels, in facts that `p2pcompute doctor` prints."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from dataclasses import dataclass

import trio

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._cuda_compile import CudaNotInstalled, check_installed
from p2pcompute.execution._pool import open_pool
from p2pcompute.execution._pool_cuda import device_worker
from p2pcompute.execution._pool_process import readable_paths
from p2pcompute.execution._probe import probe_devices
from p2pcompute.execution._sandbox import Layers, SandboxPolicy, WorkerLimits
from p2pcompute.execution._sandbox_bwrap import probe_bwrap
from p2pcompute.execution._sandbox_devices import driver_directories
from p2pcompute.execution._sandbox_landlock import landlock_abi
from p2pcompute.execution._sandbox_seccomp import seccomp_available
from p2pcompute.execution._selftest_fast import FastSelfTestError, fast_self_test

__all__ = ["Fact", "doctor_facts"]

_GIB = 1 << 30
_ABI_OF_TCP = 4
_ABI_OF_SCOPES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        ok: whether it is as it should be. A fact that is not ok need not stop the node: see `needed`.
        detail: what was found.
        advice: what to do, or "" where nothing has to be done.
        needed: whether workers can't run without it (unless the policy allows that).
    """

    name: str
    ok: bool
    detail: str
    advice: str = ""
    needed: bool = True


async def doctor_facts(
    *, limits: WorkerLimits | None = None, policy: SandboxPolicy | None = None, start_worker: bool = True
) -> list[Fact]:
    """Look at everything that workers rest on, and start some to see what they compute (8 s or so, most of it
    compiling; `start_worker=False` leaves it out).

    Never raises for what it finds; cancellation ends the worker.
    """
    limits = limits or WorkerLimits()
    policy = policy or SandboxPolicy()
    facts = [_interpreter(), _numba(), _device(limits), *_gpus()]
    facts += [_landlock(), _seccomp(), await _bwrap(policy), _rlimits(limits)]
    if start_worker:
        facts.append(await _worker(limits, policy))
        facts.append(await _fast_mode("cpu", limits, policy))
        for slot in [device.slot for device in probe_devices() if device.kind == "cuda"]:
            facts.append(await _gpu_worker(slot, limits, policy))
            facts.append(await _fast_mode(slot, limits, policy))
    return facts


def _interpreter() -> Fact:
    try:
        readable_paths()
    except ExecutionError as error:
        return Fact(name="python", ok=False, detail=str(error), advice="install p2pcompute into a virtual environment")
    return Fact(name="python", ok=True, detail=f"{platform.python_version()} in {sys.prefix}")


def _numba() -> Fact:
    try:
        versions = {name: importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")}
    except importlib.metadata.PackageNotFoundError as error:
        return Fact(name="numba", ok=False, detail=f"{error.name} is missing", advice="reinstall p2pcompute")
    return Fact(name="numba", ok=True, detail=", ".join(f"{name} {version}" for name, version in versions.items()))


def _device(limits: WorkerLimits) -> Fact:
    device = probe_devices()[0]
    detail = f"{device.name}, {device.cores} threads, {device.memory_bytes / _GIB:.1f} GiB"
    short = device.memory_bytes < limits.input_bytes + limits.output_bytes
    advice = "lower input_bytes and output_bytes of the worker limits below this memory" if short else ""
    return Fact(name="cpu", ok=not short, detail=detail, advice=advice, needed=False)


def _gpus() -> list[Fact]:
    """A line for each GPU, or one that says that there is none."""
    found = [device for device in probe_devices() if device.kind == "cuda"]
    try:
        check_installed()
    except CudaNotInstalled as error:
        if not found and not driver_directories(search=os.environ.get("LD_LIBRARY_PATH", "")):
            return [Fact(name="gpu", ok=True, detail="none: there is no NVIDIA driver here", needed=False)]
        return [
            Fact(
                name="gpu",
                ok=False,
                detail=", ".join(device.name for device in found) or "there is an NVIDIA driver",
                advice=f"to lend it: {error}",
                needed=False,
            )
        ]
    if not found:
        advice = "optional: install NVIDIA's driver; kernels are compiled for CUDA without it, and not run"
        return [Fact(name="gpu", ok=False, detail="none: no NVIDIA driver answers", advice=advice, needed=False)]
    facts: list[Fact] = []
    for device in found:
        detail = f"{device.slot}: {device.name}, {device.memory_bytes / _GIB:.1f} GiB"
        try:
            device_worker(device.slot)
        except ExecutionError as error:
            facts.append(Fact(name="gpu", ok=False, detail=detail, advice=str(error), needed=False))
        else:
            detail += f"; lend it with `p2pcompute up --device {device.slot}`"
            facts.append(Fact(name="gpu", ok=True, detail=detail, needed=False))
    return facts


def _landlock() -> Fact:
    abi = landlock_abi()
    if abi == 0:
        return Fact(
            name="landlock",
            ok=False,
            detail=f"not in this kernel ({platform.release()})",
            advice="use Linux 5.13 or newer and put landlock among the LSMs (boot parameter lsm=landlock,...)",
        )
    holds = "files"
    if abi >= _ABI_OF_TCP:
        holds += ", TCP"
    if abi >= _ABI_OF_SCOPES:
        holds += ", abstract sockets, signals"
    return Fact(name="landlock", ok=True, detail=f"ABI {abi}: {holds}")


def _seccomp() -> Fact:
    if seccomp_available():
        return Fact(name="seccomp", ok=True, detail=f"allow-list for {platform.machine()}")
    return Fact(
        name="seccomp",
        ok=False,
        detail=f"no filter for {platform.machine()} on this kernel",
        advice="use x86_64 or aarch64 with CONFIG_SECCOMP_FILTER; in a container, leave prctl and seccomp allowed",
    )


async def _bwrap(policy: SandboxPolicy) -> Fact:
    needed = policy.bwrap == "require"
    if policy.bwrap == "never":
        return Fact(name="bubblewrap", ok=True, detail="switched off by the policy", needed=False)
    try:
        bwrap, note = await probe_bwrap(sys.executable, readable_paths())
    except ExecutionError as error:
        bwrap, note = None, str(error)
    advice = "" if bwrap else "optional: install bubblewrap and allow user namespaces for a second wall"
    return Fact(name="bubblewrap", ok=bwrap is not None, detail=note, advice=advice, needed=needed)


def _rlimits(limits: WorkerLimits) -> Fact:
    short: list[str] = []
    wanted = (
        ("address space", resource.RLIMIT_AS, limits.memory_bytes),
        ("open files", resource.RLIMIT_NOFILE, limits.open_files),
    )
    for name, which, value in wanted:
        _, hard = resource.getrlimit(which)
        if hard not in (resource.RLIM_INFINITY, -1) and hard < value:
            short.append(f"{name}: {hard} of {value}")
    if short:
        detail = "the hard limit is too low for " + "; ".join(short)
        return Fact(name="rlimits", ok=False, detail=detail, advice="raise it (ulimit -H, limits.conf, LimitAS=)")
    cpu = f"{limits.cpu_s} s" if limits.cpu_s else "no end"
    detail = f"address space {limits.memory_bytes / _GIB:.1f} GiB, processor time {cpu}, no files, no core"
    return Fact(name="rlimits", ok=True, detail=detail)


async def _worker(limits: WorkerLimits, policy: SandboxPolicy) -> Fact:
    started = trio.current_time()
    try:
        layers = await _start_and_look(limits, policy)
    except ExecutionError as error:
        return Fact(name="worker", ok=False, detail=str(error), advice="mend what is named above, then ask again")
    took = trio.current_time() - started
    detail = (
        f"warm and locked in {took:.1f} s: Landlock ABI {layers.landlock_abi}, "
        f"seccomp {'on' if layers.seccomp else 'OFF'}, "
        f"bubblewrap {'on' if layers.bwrap else 'off'}, as {'root' if os.geteuid() == 0 else 'user'}"
    )
    locked = layers.seccomp and layers.landlock_abi > 0
    advice = "" if locked else "strangers' kernels run without a lock here; lend to people you trust only"
    return Fact(name="worker", ok=locked, detail=detail, advice=advice)


async def _gpu_worker(slot: str, limits: WorkerLimits, policy: SandboxPolicy) -> Fact:
    started = trio.current_time()
    try:
        await _start_and_look(limits, policy, slot)
    except ExecutionError as error:
        advice = "this GPU can't be lent until that is mended; the processor can"
        return Fact(name=f"{slot} worker", ok=False, detail=str(error), advice=advice, needed=False)
    detail = f"warm and locked in {trio.current_time() - started:.1f} s, and computes what it should"
    return Fact(name=f"{slot} worker", ok=True, detail=detail, needed=False)


async def _fast_mode(slot: str, limits: WorkerLimits, policy: SandboxPolicy) -> Fact:
    name = "fast mode" if slot == "cpu" else f"{slot} fast mode"
    try:
        async with open_pool(spare=0, limits=limits, policy=policy, program=device_worker(slot)) as pool:
            found = await fast_self_test(pool)
    except FastSelfTestError as error:
        advice = (
            "nothing has to be done to lend in strict mode; `p2pcompute up` sells no fast mode until this is mended"
        )
        return Fact(name=name, ok=False, detail=str(error), advice=advice, needed=False)
    except ExecutionError as error:
        return Fact(name=name, ok=False, detail=f"not tested: {error}", advice="mend the worker first", needed=False)
    detail = (
        f"off by {found.error32:.1g} in float32 and {found.error64:.1g} in float64 at most; agrees to tolerances from "
        f"{found.least_rtol('float32'):.1g} and {found.least_rtol('float64'):.1g} on"
    )
    return Fact(name=name, ok=True, detail=detail, needed=False)


async def _start_and_look(limits: WorkerLimits, policy: SandboxPolicy, slot: str = "cpu") -> Layers:
    program = device_worker(slot)
    async with open_pool(spare=0, limits=limits, policy=policy, program=program) as pool, pool.session() as session:
        return session.layers
