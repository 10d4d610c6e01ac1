"""The filter's program, run by a small interpreter, so that the tables of both machines are checked on either."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from p2pcompute.errors import SandboxError
from p2pcompute.execution._sandbox_seccomp import build_filter

ALLOW = 0x7FFF0000
KILL = 0x80000000
EPERM = 0x00050000 | errno.EPERM
EACCES = 0x00050000 | errno.EACCES
ENOSYS = 0x00050000 | errno.ENOSYS
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4242
PTHREAD = 0x3D0F00
NEW_PROCESS = 17  # SIGCHLD

# From unistd_64.h and asm-generic/unistd.h.
NUMBERS = {
    "x86_64": {
        "read": 0,
        "mmap": 9,
        "ioctl": 16,
        "fcntl": 72,
        "futex": 202,
        "openat": 257,
        "sendto": 44,
        "recvmsg": 47,
        "sendmsg": 46,
        "socket": 41,
        "clone": 56,
        "clone3": 435,
        "execve": 59,
        "tgkill": 234,
        "kill": 62,
        "prctl": 157,
        "prlimit64": 302,
        "ptrace": 101,
        "memfd_create": 319,
        "ftruncate": 77,
        "pwrite64": 18,
        "chmod": 90,
        "unlinkat": 263,
        "seccomp": 317,
        "setrlimit": 160,
    },
    "aarch64": {
        "read": 63,
        "mmap": 222,
        "ioctl": 29,
        "fcntl": 25,
        "futex": 98,
        "openat": 56,
        "sendto": 206,
        "recvmsg": 212,
        "sendmsg": 211,
        "socket": 198,
        "clone": 220,
        "clone3": 435,
        "execve": 221,
        "tgkill": 131,
        "kill": 129,
        "prctl": 167,
        "prlimit64": 261,
        "ptrace": 117,
        "memfd_create": 279,
        "ftruncate": 46,
        "pwrite64": 68,
        "chmod": 52,  # fchmod
        "unlinkat": 35,
        "seccomp": 277,
        "setrlimit": 164,
    },
}


def verdict(program: bytes, *, arch: int, number: int, args: tuple[int, ...] = ()) -> int:
    """What the kernel's BPF machine would answer."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    insns = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, jt, jf, k = insns[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif code == 0x15:
            at += jt if accumulator == k else jf
        elif code == 0x35:
            at += jt if accumulator >= k else jf
        elif code == 0x54:
            accumulator &= k
        elif code == 0x06:
            return int(k)
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


def ask(machine: str, name: str, *args: int, allow_threads: bool = False) -> int:
    program = build_filter(machine=machine, pid=PID, allow_threads=allow_threads)
    return verdict(program, arch=ARCH[machine], number=NUMBERS[machine][name], args=args)


@pytest.mark.parametrize("machine", list(ARCH))
def test_what_a_worker_needs_is_allowed(machine: str) -> None:
    for name in ("read", "mmap", "futex", "recvmsg"):
        assert ask(machine, name) == ALLOW
    assert ask(machine, "openat", -100 & 0xFFFFFFFF, 1, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    assert ask(machine, "sendto", 3, 1, 1, 0, 0, 0) == ALLOW
    assert ask(machine, "tgkill", PID, PID, 6) == ALLOW
    assert ask(machine, "ioctl", 1, 0x5401) == ALLOW
    assert ask(machine, "fcntl", 1, 1030, 3) == ALLOW
    assert ask(machine, "prlimit64", 0, 7, 0, 1) == ALLOW


@pytest.mark.parametrize("machine", list(ARCH))
def test_what_only_an_attack_calls_kills(machine: str) -> None:
    for name in ("execve", "ptrace", "kill"):
        assert ask(machine, name) == KILL
    assert ask(machine, "tgkill", PID + 1, PID + 1, 6) == KILL
    assert ask(machine, "clone", PTHREAD) == KILL
    assert ask(machine, "clone", NEW_PROCESS) == KILL


@pytest.mark.parametrize("machine", list(ARCH))
def test_with_threads_allowed_there_are_still_no_processes(machine: str) -> None:
    assert ask(machine, "clone", PTHREAD, allow_threads=True) == ALLOW
    assert ask(machine, "clone", NEW_PROCESS, allow_threads=True) == KILL
    assert ask(machine, "clone", PTHREAD | 0x10000000, allow_threads=True) == KILL  # with a new user namespace
    assert ask(machine, "clone3", allow_threads=True) == ENOSYS


@pytest.mark.parametrize("machine", list(ARCH))
def test_everything_else_fails_with_eperm(machine: str) -> None:
    for name in ("socket", "sendmsg", "memfd_create", "ftruncate", "pwrite64", "chmod", "unlinkat", "seccomp"):
        assert ask(machine, name) == EPERM
    assert ask(machine, "setrlimit") == EPERM
    program = build_filter(machine=machine, pid=PID, allow_threads=True)
    for number in (446, 462, 5000, 0x3FFFFFFF):  # landlock, calls to come
        assert verdict(program, arch=ARCH[machine], number=number) == EPERM


@pytest.mark.parametrize("machine", list(ARCH))
def test_arguments_are_looked_at(machine: str) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND):
        assert ask(machine, "openat", 0, 1, flags) == EACCES
    for address in (1, 1 << 32, 0x7FFF_0000_0000):
        assert ask(machine, "sendto", 3, 1, 1, 0, address, 16) == EPERM
        assert ask(machine, "prlimit64", 0, 7, address, 0) == EPERM
    assert ask(machine, "ioctl", 0, 0x5412) == EPERM  # TIOCSTI
    assert ask(machine, "fcntl", 0, 8, PID) == EPERM  # F_SETOWN
    assert ask(machine, "prctl", 4, 1) == EPERM  # PR_SET_DUMPABLE


def test_another_architecture_s_calls_kill() -> None:
    program = build_filter(machine="x86_64", pid=PID, allow_threads=True)
    assert verdict(program, arch=0x40000003, number=0) == KILL  # i386
    assert verdict(program, arch=ARCH["aarch64"], number=63) == KILL
    assert verdict(program, arch=ARCH["x86_64"], number=0x40000000) == KILL  # x32 read
    assert verdict(program, arch=ARCH["x86_64"], number=0xFFFFFFFF) == KILL


def test_an_unknown_machine_has_no_filter() -> None:
    with pytest.raises(SandboxError, match="riscv64"):
        build_filter(machine="riscv64", pid=PID, allow_threads=False)
