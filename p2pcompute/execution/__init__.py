"""Runs strangers' kernels: the kernel language, its back ends, and the sandboxed workers that they run in.

Importing this package loads neither numba nor NumPy; the names below come in when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pcompute.execution._api import (
        ArgSpec,
        Backend,
        CompiledKernel,
        InputSpec,
        KernelSource,
        Launch,
        OutputSpec,
        ScalarSpec,
    )
    from p2pcompute.execution._bench import Benchmark, benchmark
    from p2pcompute.execution._doctor import Fact, doctor_facts
    from p2pcompute.execution._pool import WorkerPool, open_pool
    from p2pcompute.execution._pool_cuda import device_worker
    from p2pcompute.execution._pool_memory import SharedInput
    from p2pcompute.execution._pool_session import CompileInfo, WorkerSession, WorkResult
    from p2pcompute.execution._probe import Device, Score, measure_score, probe_devices
    from p2pcompute.execution._sandbox import Layers, SandboxPolicy, WorkerLimits
    from p2pcompute.execution._selftest import SelfTestError, self_test
    from p2pcompute.execution._selftest_fast import FastFindings, FastSelfTestError, fast_self_test

__all__ = [
    "ArgSpec",
    "Backend",
    "Benchmark",
    "CompileInfo",
    "CompiledKernel",
    "Device",
    "Fact",
    "FastFindings",
    "FastSelfTestError",
    "InputSpec",
    "KernelSource",
    "Launch",
    "Layers",
    "OutputSpec",
    "SandboxPolicy",
    "ScalarSpec",
    "Score",
    "SelfTestError",
    "SharedInput",
    "WorkResult",
    "WorkerLimits",
    "WorkerPool",
    "WorkerSession",
    "benchmark",
    "device_worker",
    "doctor_facts",
    "fast_self_test",
    "measure_score",
    "open_pool",
    "probe_devices",
    "self_test",
]

_HOME = {
    "ArgSpec": "_api",
    "Backend": "_api",
    "Benchmark": "_bench",
    "CompileInfo": "_pool_session",
    "CompiledKernel": "_api",
    "Device": "_probe",
    "Fact": "_doctor",
    "FastFindings": "_selftest_fast",
    "FastSelfTestError": "_selftest_fast",
    "InputSpec": "_api",
    "KernelSource": "_api",
    "Launch": "_api",
    "Layers": "_sandbox",
    "OutputSpec": "_api",
    "SandboxPolicy": "_sandbox",
    "ScalarSpec": "_api",
    "Score": "_probe",
    "SelfTestError": "_selftest",
    "SharedInput": "_pool_memory",
    "WorkResult": "_pool_session",
    "WorkerLimits": "_sandbox",
    "WorkerPool": "_pool",
    "WorkerSession": "_pool_session",
    "benchmark": "_bench",
    "device_worker": "_pool_cuda",
    "doctor_facts": "_doctor",
    "fast_self_test": "_selftest_fast",
    "measure_score": "_probe",
    "open_pool": "_pool",
    "probe_devices": "_probe",
    "self_test": "_selftest",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
