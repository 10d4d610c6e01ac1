"""Seccomp: an allow-list of system calls as a classic BPF program, built here and loaded over all threads.

Source: ``Documentation/userspace-api/seccomp_filter.rst`` and ``include/uapi/linux/{seccomp,filter,audit}.h`` of
Linux; the numbers are those of ``unistd_64.h`` (x86-64) and ``asm-generic/unistd.h`` (aarch64).

What is not on the list fails with EPERM, so that a library's harmless probe goes on; what only an attack calls
ends the process on the spot. The list holds no socket, no exec, no fork, no new descriptor that writes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pcompute.errors import SandboxError
from p2pcompute.execution._sandbox_devices import DEVICE_CALLS, DRIVER_IOCTLS, UVM_IOCTLS
from p2pcompute.execution._sandbox_libc import libc_prctl, libc_syscall

__all__ = ["build_filter", "install_filter", "seccomp_available", "seccomp_mode"]

# name: (x86-64, aarch64); None where the architecture has no such call.
_ALLOWED: Final[dict[str, tuple[int | None, int | None]]] = {
    # what a run does most comes first: the program is a linear chain
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "clock_gettime": (228, 113),
    "read": (0, 63),
    "write": (1, 64),
    "recvmsg": (47, 212),
    "recvfrom": (45, 207),
    "poll": (7, None),
    "ppoll": (271, 73),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "lseek": (8, 62),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "getdents64": (217, 61),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "getcwd": (79, 17),
    "dup": (32, 23),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "gettimeofday": (96, 169),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "exit": (60, 93),
    "exit_group": (231, 94),
}

# Nothing that the worker runs has a use for these, not even as a probe.
_HOSTILE: Final[dict[str, tuple[int | None, int | None]]] = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
}

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000

_RET_KILL_PROCESS: Final = 0x80000000
_RET_ERRNO: Final = 0x00050000
_RET_ALLOW: Final = 0x7FFF0000

_LD_ABS: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JEQ: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JGE: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RET: Final = 0x06  # BPF_RET | BPF_K

_OFF_NR: Final = 0
_OFF_ARCH: Final = 4
_OFF_ARGS: Final = 16

# pthread_create of glibc and of musl: a thread of this process and nothing else.
_THREAD_FLAGS: Final = (0x3D0F00, 0x7D0F00)
_OPEN_READ_ONLY: Final = os.O_CLOEXEC | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_PATH | 0o100000 | 0o400000
_IOCTLS: Final = (0x5401, 0x5451, 0x5450)  # TCGETS (isatty), FIOCLEX, FIONCLEX
_FCNTLS: Final = (1030, 1, 2, 3, 1034)  # F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_GET_SEALS
_PRCTLS: Final = (15, 0x53564D41)  # PR_SET_NAME, PR_SET_VMA

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_SECCOMP: Final = 21
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_GET_ACTION_AVAIL: Final = 2
_FILTER_FLAG_TSYNC: Final = 1
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}


@dataclass(frozen=True, slots=True)
class _Insn:
    code: int
    k: int
    jt: int = 0
    jf: int = 0


def _low(arg: int) -> int:
    return _OFF_ARGS + 8 * arg  # both architectures are little-endian


def _one_of(number: int, arg: int, values: Sequence[int], otherwise: int) -> list[_Insn]:
    """Allow `number` when the low word of `arg` is one of `values`."""
    block = [_Insn(_LD_ABS, _low(arg))]
    block += [_Insn(_JEQ, value, len(values) - i, 0) for i, value in enumerate(values)]
    block += [_Insn(_RET, otherwise), _Insn(_RET, _RET_ALLOW)]
    return [_Insn(_JEQ, number, 0, len(block)), *block]


def _only_bits(number: int, arg: int, bits: int, otherwise: int) -> list[_Insn]:
    """Allow `number` when the low word of `arg` has no bit outside `bits`."""
    block = [
        _Insn(_LD_ABS, _low(arg)),
        _Insn(_AND, ~bits & 0xFFFFFFFF),
        _Insn(_JEQ, 0, 1, 0),
        _Insn(_RET, otherwise),
        _Insn(_RET, _RET_ALLOW),
    ]
    return [_Insn(_JEQ, number, 0, len(block)), *block]


def _null(number: int, arg: int, otherwise: int) -> list[_Insn]:
    """Allow `number` when the whole 64-bit `arg` is zero."""
    block = [
        _Insn(_LD_ABS, _low(arg)),
        _Insn(_JEQ, 0, 0, 2),
        _Insn(_LD_ABS, _low(arg) + 4),
        _Insn(_JEQ, 0, 1, 0),
        _Insn(_RET, otherwise),
        _Insn(_RET, _RET_ALLOW),
    ]
    return [_Insn(_JEQ, number, 0, len(block)), *block]


def _ioctls(number: int, device: bool, otherwise: int) -> list[_Insn]:
    """Allow `number` (ioctl) for a few requests; on a device also for those of its driver, whatever their size."""
    requests = (*_IOCTLS, *UVM_IOCTLS) if device else _IOCTLS
    block = [_Insn(_LD_ABS, _low(1))]
    for request in requests:
        block += [_Insn(_JEQ, request, 0, 1), _Insn(_RET, _RET_ALLOW)]
    if device:
        block.append(_Insn(_AND, 0xFFFF))
        for request in DRIVER_IOCTLS:
            block += [_Insn(_JEQ, request, 0, 1), _Insn(_RET, _RET_ALLOW)]
    block.append(_Insn(_RET, otherwise))
    return [_Insn(_JEQ, number, 0, len(block)), *block]


def build_filter(*, machine: str, pid: int, allow_threads: bool, device: bool = False) -> bytes:
    """The filter as an array of ``struct sock_filter``.

    Args:
        machine: "x86_64" or "aarch64", as `platform.machine` says it.
        pid: the only thread group that may be signalled: the worker's own (``abort`` needs that).
        allow_threads: whether ``clone`` may start threads of this process. Processes it may never start.
        device: whether the process drives a GPU: its nodes are opened for writing, which Landlock lets pass for them
            alone, and are asked what `_sandbox_devices` lists.

    Raises `SandboxError` for another machine.
    """
    if machine not in _AUDIT_ARCH:
        raise SandboxError(f"no system call numbers for {machine}; use x86_64 or aarch64, or set allow_unsandboxed")
    column = 0 if machine == "x86_64" else 1

    def number(x86: int, arm: int) -> int:
        return (x86, arm)[column]

    eperm = _RET_ERRNO | errno.EPERM
    program = [_Insn(_LD_ABS, _OFF_ARCH), _Insn(_JEQ, _AUDIT_ARCH[machine], 1, 0), _Insn(_RET, _RET_KILL_PROCESS)]
    program.append(_Insn(_LD_ABS, _OFF_NR))
    if machine == "x86_64":  # x32 shares the arch word and marks its calls in the number
        program += [_Insn(_JGE, _X32_BIT, 0, 1), _Insn(_RET, _RET_KILL_PROCESS)]
    for numbers in _ALLOWED.values():
        allowed = numbers[column]
        if allowed is not None:
            program += [_Insn(_JEQ, allowed, 0, 1), _Insn(_RET, _RET_ALLOW)]
    for numbers in DEVICE_CALLS.values() if device else ():
        allowed = numbers[column]
        if allowed is not None:
            program += [_Insn(_JEQ, allowed, 0, 1), _Insn(_RET, _RET_ALLOW)]
    program += _null(number(44, 206), 4, eperm)  # sendto, without an address: the channel to the node
    opens = _OPEN_READ_ONLY | os.O_RDWR if device else _OPEN_READ_ONLY  # what creates or cuts is in neither
    program += _only_bits(number(257, 56), 2, opens, _RET_ERRNO | errno.EACCES)  # openat
    program += _ioctls(number(16, 29), device, eperm)
    program += _one_of(number(72, 25), 1, _FCNTLS, eperm)  # fcntl
    program += _one_of(number(157, 167), 0, _PRCTLS, eperm)  # prctl
    program += _one_of(number(234, 131), 0, (pid,), _RET_KILL_PROCESS)  # tgkill
    program += _null(number(302, 261), 2, eperm)  # prlimit64, reading only
    threads = _THREAD_FLAGS if allow_threads else ()
    program += _one_of(number(56, 220), 0, threads, _RET_KILL_PROCESS)  # clone
    # clone3 hides its flags behind a pointer; ENOSYS makes libc fall back to clone.
    program += [_Insn(_JEQ, 435, 0, 1), _Insn(_RET, _RET_ERRNO | errno.ENOSYS)]
    for numbers in _HOSTILE.values():
        hostile = numbers[column]
        if hostile is not None:
            program += [_Insn(_JEQ, hostile, 0, 1), _Insn(_RET, _RET_KILL_PROCESS)]
    program.append(_Insn(_RET, eperm))
    return b"".join(struct.pack("=HBBI", i.code, i.jt, i.jf, i.k) for i in program)


class _SockFprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def seccomp_available() -> bool:
    """Whether this kernel takes filters that can end the whole process (Linux 4.14 or newer)."""
    machine = platform.machine()
    if machine not in _SYS_SECCOMP:
        return False
    action = ctypes.create_string_buffer(struct.pack("=I", _RET_KILL_PROCESS), 4)
    try:
        libc_syscall(_SYS_SECCOMP[machine], _SECCOMP_GET_ACTION_AVAIL, 0, action)
    except OSError:
        return False
    return True


def install_filter(*, allow_threads: bool = False, device: bool = False) -> None:
    """Load the filter on every thread of this process. It can't be taken off again. Raises `SandboxError`."""
    machine = platform.machine()
    program = build_filter(machine=machine, pid=os.getpid(), allow_threads=allow_threads, device=device)
    fprog = _SockFprog(len(program) // 8, program)
    try:
        libc_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        stray = libc_syscall(_SYS_SECCOMP[machine], _SECCOMP_SET_MODE_FILTER, _FILTER_FLAG_TSYNC, ctypes.byref(fprog))
    except OSError as error:
        raise SandboxError(f"the kernel refused the seccomp filter: {error}") from error
    if stray:
        raise SandboxError(f"thread {stray} could not be brought under the seccomp filter")


def seccomp_mode() -> int:
    """0 none, 2 a filter is in force; for checks before the lock (inside it the question itself is refused)."""
    return libc_prctl(_PR_GET_SECCOMP, 0, 0, 0, 0)
