"""Landlock: the worker reads a handful of directories, writes nowhere, dials nobody.

Source: ``Documentation/userspace-api/landlock.rst`` and ``include/uapi/linux/landlock.h`` of Linux.

A Landlock domain binds the *calling thread* and what it starts later, not its sibling threads, so the worker
enters it before any library can start a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from p2pcompute.errors import SandboxError
from p2pcompute.execution._sandbox_libc import libc_prctl, libc_syscall

__all__ = ["MAX_KNOWN_ABI", "landlock_abi", "restrict_filesystem_and_net"]

# The three calls have the same numbers on every architecture.
_SYS_CREATE_RULESET = 444
_SYS_ADD_RULE = 445
_SYS_RESTRICT_SELF = 446

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_FS_WRITE_FILE = 1 << 1
_FS_READ_FILE = 1 << 2
_FS_READ_DIR = 1 << 3
_FS_IOCTL_DEV = 1 << 15
_NET_BIND_TCP = 1 << 0
_NET_CONNECT_TCP = 1 << 1
_SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
_SCOPE_SIGNAL = 1 << 1

MAX_KNOWN_ABI = 7
"""The newest ABI whose rights this module names; a newer kernel is asked for these and no more."""

_PR_SET_NO_NEW_PRIVS = 38


def landlock_abi() -> int:
    """The kernel's Landlock ABI, or 0 where it has none (not built in, or switched off at boot)."""
    try:
        version = libc_syscall(_SYS_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0
    return max(0, version)


def _handled_fs(abi: int) -> int:
    """Every file-system right that `abi` can handle: what is handled and not granted is denied."""
    bits = 13
    if abi >= 2:
        bits = 14  # REFER
    if abi >= 3:
        bits = 15  # TRUNCATE
    if abi >= 5:
        bits = 16  # IOCTL_DEV
    return (1 << bits) - 1


def restrict_filesystem_and_net(readable: Iterable[str], devices: Iterable[str] = ()) -> int:
    """Enter a domain that may read beneath `readable` and may do nothing else to files, TCP, or other processes; but
    for `devices`, device nodes that it may also write and ask (ioctl).

    Paths that do not exist are left out. Returns the ABI in force. Raises `SandboxError` where the kernel has no
    Landlock or refuses the domain.
    """
    abi = landlock_abi()
    if abi == 0:
        raise SandboxError(
            "this kernel has no Landlock; boot one of 5.13 or newer with lsm=landlock, or set allow_unsandboxed"
        )
    net = _NET_BIND_TCP | _NET_CONNECT_TCP if abi >= 4 else 0
    scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if abi >= 6 else 0
    # An older kernel takes a longer struct as long as what it does not know is zero.
    attr = ctypes.create_string_buffer(struct.pack("=QQQ", _handled_fs(abi), net, scoped), 24)
    try:
        ruleset = libc_syscall(_SYS_CREATE_RULESET, attr, 24, 0)
        try:
            for path in readable:
                _allow(ruleset, path)
            for path in devices:
                _allow(ruleset, path, _FS_WRITE_FILE | (_FS_IOCTL_DEV & _handled_fs(abi)))
            libc_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            libc_syscall(_SYS_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise SandboxError(f"Landlock refused the worker's domain: {error}") from error
    return min(abi, MAX_KNOWN_ABI)


def _allow(ruleset: int, path: str, more: int = 0) -> None:
    """Grant reading beneath `path`, and the rights `more`."""
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENOTDIR):  # unreadable to us, so the worker can't need it
            return
        raise
    try:
        rights = more | _FS_READ_FILE | (_FS_READ_DIR if os.path.isdir(path) else 0)
        # struct landlock_path_beneath_attr is packed: u64 access, s32 fd.
        attr = ctypes.create_string_buffer(struct.pack("=Qi", rights, parent), 12)
        libc_syscall(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, attr, 0)
    finally:
        os.close(parent)
