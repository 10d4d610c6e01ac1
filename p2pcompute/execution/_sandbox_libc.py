"""The few libc calls that the standard library lacks, through ctypes, with errno turned into `OSError`."""

from __future__ import annotations

import ctypes
import os
from typing import Any

__all__ = ["libc_call", "libc_prctl", "libc_syscall"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _word(value: Any) -> Any:
    # A bare int is passed as a C int: a pointer or a 64-bit mask would lose its upper half.
    return ctypes.c_ulong(value) if isinstance(value, int) else value


def libc_syscall(number: int, *args: Any) -> int:
    """``syscall(2)``. Raises `OSError`."""
    ctypes.set_errno(0)
    return _check(int(_libc.syscall(ctypes.c_long(number), *map(_word, args))), f"syscall {number}")


def libc_prctl(option: int, *args: Any) -> int:
    """``prctl(2)``. Raises `OSError`."""
    ctypes.set_errno(0)
    return _check(int(_libc.prctl(ctypes.c_int(option), *map(_word, args))), f"prctl {option}")


def libc_call(name: str, *args: Any) -> int:
    """Any libc function that returns an int and sets errno. Raises `OSError`."""
    ctypes.set_errno(0)
    return _check(int(getattr(_libc, name)(*args)), name)
