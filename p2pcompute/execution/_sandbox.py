"""The lock that a worker puts on itself before it sees a stranger's kernel.

It comes in two steps. `enter_early` runs first, while the process has one thread: no new privileges, no
capabilities, Landlock, death with the parent. Imports and the warm-up follow, inside it. `enter_late` comes last:
resource limits and the seccomp filter, which reaches all threads. After it there is no way back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from p2pcompute.errors import ConfigError, SandboxError
from p2pcompute.execution._sandbox_landlock import landlock_abi, restrict_filesystem_and_net
from p2pcompute.execution._sandbox_libc import libc_call, libc_prctl
from p2pcompute.execution._sandbox_seccomp import install_filter, seccomp_available

__all__ = [
    "Layers",
    "SandboxPolicy",
    "WorkerLimits",
    "close_other_descriptors",
    "enter_early",
    "enter_late",
    "require_sandbox",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What one worker may use.

    Attributes:
        memory_bytes: address space of the worker (RLIMIT_AS), with its interpreter (about 1.5 GiB of it, hardly
            any of it resident), inputs and outputs. At least 2 GiB.
        cpu_s: processor seconds over the worker's whole life, or None for no such limit (runs have their own
            time-outs in wall time).
        input_bytes: all input arrays of one compiled kernel together.
        session_input_bytes: all different input arrays that one session ever passes, since a hostile worker can
            keep what it was given; then the tenant needs a new session.
        output_bytes: all output arrays of one run together.
        open_files: descriptors.
        nice: how far the worker steps back behind the node itself, 0 to 19.
    """

    memory_bytes: int = 6 * _GIB
    cpu_s: int | None = None
    input_bytes: int = 2 * _GIB
    session_input_bytes: int = 4 * _GIB
    output_bytes: int = 1 * _GIB
    open_files: int = 160
    nice: int = 5

    def __post_init__(self) -> None:
        if self.memory_bytes < 2 * _GIB:
            raise ConfigError("memory_bytes must be 2 GiB or more: the worker's interpreter maps that much")
        if self.cpu_s is not None and self.cpu_s < 1:
            raise ConfigError("cpu_s must be 1 or more, or None")
        if min(self.input_bytes, self.output_bytes) < 1 or self.input_bytes + self.output_bytes > self.memory_bytes:
            raise ConfigError("input_bytes and output_bytes must be positive and fit into memory_bytes together")
        if self.session_input_bytes < self.input_bytes:
            raise ConfigError("session_input_bytes must be input_bytes or more")
        if not 96 <= self.open_files <= 4096:
            raise ConfigError("open_files must be 96 to 4096")
        if not 0 <= self.nice <= 19:
            raise ConfigError("nice must be 0 to 19")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """Which layers a worker must have.

    Attributes:
        bwrap: "auto" puts bubblewrap around the worker where it works, "require" insists, "never" leaves it out.
        allow_unsandboxed: run strangers' kernels even where Landlock or seccomp is missing. What is there is used.
    """

    bwrap: Literal["auto", "require", "never"] = "auto"
    allow_unsandboxed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What is in force in a worker, as the worker says before it sees anything of a stranger.

    Attributes:
        landlock_abi: 0 is none.
        seccomp: whether the filter is on.
        bwrap: whether bubblewrap is around it.
    """

    landlock_abi: int
    seccomp: bool
    bwrap: bool = field(default=False)


def require_sandbox(policy: SandboxPolicy) -> None:
    """Raise `SandboxError` where this machine can't lock a worker and the policy does not let that pass."""
    if sys.platform != "linux":
        raise SandboxError(f"workers need Linux, this is {sys.platform}; run the node in a Linux machine or container")
    if policy.allow_unsandboxed:
        return
    if landlock_abi() == 0:
        raise SandboxError(
            "this kernel has no Landlock: use Linux 5.13 or newer with landlock among the LSMs (boot parameter "
            "lsm=landlock,...), or accept the risk with allow_unsandboxed"
        )
    if not seccomp_available():
        raise SandboxError(
            f"no seccomp filter for this kernel on {platform.machine()}: use x86_64 or aarch64 with "
            "CONFIG_SECCOMP_FILTER, "
            "or accept the risk with allow_unsandboxed"
        )


def close_other_descriptors(keep: Sequence[int]) -> None:
    """Close every descriptor above 2 but `keep`."""
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def enter_early(readable: Sequence[str], *, parent: int, policy: SandboxPolicy, devices: Sequence[str] = ()) -> int:
    """The first step; call it before anything starts a thread.

    Args:
        readable: files and directories that may be read from here on.
        parent: the process ID that must be our parent still; we die with it. 0 inside a new PID namespace.
        policy: whether a missing Landlock passes.
        devices: device nodes that may be driven. With some, Landlock has to be there: nothing else tells them from the
            machine's files.

    Returns the Landlock ABI in force, 0 for none. Raises `SandboxError`.
    """
    try:
        libc_prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    except OSError as error:
        raise SandboxError(f"the worker can't be tied to its node: {error}") from error
    if os.getppid() != parent:  # the node died before we asked to be told
        os._exit(1)
    os.chdir("/")
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as knob:
        knob.write("1000")  # when memory runs out the kernel takes the worker, not the node
    _drop_capabilities()
    try:
        libc_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc_prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except OSError as error:
        raise SandboxError(f"prctl refused: {error}") from error
    if landlock_abi() == 0 and policy.allow_unsandboxed and not devices:
        return 0
    return restrict_filesystem_and_net(readable, devices)


def _drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            libc_prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError:  # EPERM: not ours to drop, no_new_privs covers it; EINVAL: past the kernel's last one
            break
    with contextlib.suppress(OSError):
        libc_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    try:
        libc_call("capset", header, ctypes.create_string_buffer(24))
    except OSError as error:
        raise SandboxError(f"the worker can't drop its capabilities: {error}") from error


def _set_limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def enter_late(
    limits: WorkerLimits, *, policy: SandboxPolicy, allow_threads: bool = False, device: bool = False
) -> bool:
    """The second and last step; all threads that the worker needs must run already unless `allow_threads`. `device`:
    the process drives a GPU, whose driver may start threads and has its own calls.

    Returns whether the seccomp filter is on. Raises `SandboxError`.
    """
    try:
        set_limits(limits, device=device)
    except (OSError, ValueError) as error:
        raise SandboxError(f"the worker's resource limits can't be set: {error}") from error
    if not seccomp_available() and policy.allow_unsandboxed:
        return False
    install_filter(allow_threads=allow_threads or device, device=device)
    _prove_locked()
    return True


def set_limits(limits: WorkerLimits, *, device: bool = False) -> None:
    """Resource limits and niceness. RLIMIT_NPROC is not among them: it counts all processes of the user, so a
    busy user's worker would not start; the filter refuses new threads instead. A GPU's driver reserves addresses for
    all of its memory and more, so with a `device` what is written to privately is bounded (RLIMIT_DATA), stacks of
    threads included, and not the address space."""
    _set_limit(resource.RLIMIT_DATA if device else resource.RLIMIT_AS, limits.memory_bytes)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_FSIZE, 0)
    _set_limit(resource.RLIMIT_MEMLOCK, 0)
    _set_limit(resource.RLIMIT_MSGQUEUE, 0)
    _set_limit(resource.RLIMIT_NOFILE, limits.open_files)
    if limits.cpu_s is not None:
        _set_limit(resource.RLIMIT_CPU, limits.cpu_s)
    if limits.nice:
        os.nice(limits.nice)


def _prove_locked() -> None:
    """Try two harmless things that the lock has to refuse; a lock that lets them through is none."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except OSError as error:
        if error.errno != errno.EPERM:
            raise SandboxError(f"the seccomp filter answers oddly: {error}") from error
    else:
        raise SandboxError("the seccomp filter lets a socket be made")
