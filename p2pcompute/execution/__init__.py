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
    from p2pcompute.execution._pool import WorkerPool, open_pool
    from p2pcompute.execution._pool_memory import SharedInput
    from p2pcompute.execution._pool_session import CompileInfo, WorkerSession, WorkResult
    from p2pcompute.execution._sandbox import Layers, SandboxPolicy, WorkerLimits

__all__ = [
    "ArgSpec",
    "Backend",
    "CompileInfo",
    "CompiledKernel",
    "InputSpec",
    "KernelSource",
    "Launch",
    "Layers",
    "OutputSpec",
    "SandboxPolicy",
    "ScalarSpec",
    "SharedInput",
    "WorkResult",
    "WorkerLimits",
    "WorkerPool",
    "WorkerSession",
    "open_pool",
]

_HOME = {
    "ArgSpec": "_api",
    "Backend": "_api",
    "CompileInfo": "_pool_session",
    "CompiledKernel": "_api",
    "InputSpec": "_api",
    "KernelSource": "_api",
    "Launch": "_api",
    "Layers": "_sandbox",
    "OutputSpec": "_api",
    "SandboxPolicy": "_sandbox",
    "ScalarSpec": "_api",
    "SharedInput": "_pool_memory",
    "WorkResult": "_pool_session",
    "WorkerLimits": "_sandbox",
    "WorkerPool": "_pool",
    "WorkerSession": "_pool_session",
    "open_pool": "_pool",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
