"""Counter-based random numbers: the same function in a kernel and in plain Python.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11). There is no
state: a thread asks for the number at a place, so any thread can be run again by itself.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from ._options import said
from .errors import KernelTypeError

__all__ = ["philox", "uniform"]

_Ints: TypeAlias = int | np.ndarray[Any, Any]
_LOW = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_HALF = np.uint64(32)


def philox(c0: _Ints, c1: _Ints, c2: _Ints, c3: _Ints, k0: _Ints, k1: _Ints) -> tuple[Any, Any, Any, Any]:
    """One block of Philox4x32-10.

    Args:
        c0, c1, c2, c3: the counter's words, integers or arrays of such; of each the low 32 bits count.
        k0, k1: the key's words, likewise.

    Returns:
        Four words from 0 to 2**32 - 1: ints for ints, int64 arrays of the broadcast shape where an argument is an
        array. In a kernel they are int64.

    Raises:
        KernelTypeError: an argument is no integer.
    """
    words = [_word(value) for value in (c0, c1, c2, c3, k0, k1)]
    single = all(np.ndim(word) == 0 for word in words)
    a, b, c, d, key0, key1 = words
    for round_ in range(10):
        r0 = (key0 + np.uint64(round_ * _W0 & 0xFFFFFFFF)) & _LOW
        r1 = (key1 + np.uint64(round_ * _W1 & 0xFFFFFFFF)) & _LOW
        p0, p1 = a * _M0, c * _M1  # 32 x 32 bits: 64 hold it
        a, b, c, d = (p1 >> _HALF) ^ b ^ r0, p1 & _LOW, (p0 >> _HALF) ^ d ^ r1, p0 & _LOW
    if single:
        return int(a), int(b), int(c), int(d)
    shape = np.broadcast_shapes(*(np.shape(word) for word in words))
    w0, w1, w2, w3 = (np.broadcast_to(word, shape).astype(np.int64) for word in (a, b, c, d))
    return w0, w1, w2, w3


def uniform(seed: _Ints, index: _Ints, dim: _Ints) -> Any:
    """A float32 in [0, 1): number `dim` of stream `index` under `seed`.

    The key is (seed low 32 bits, seed high 32 bits); the counter is (index low, index high, (dim >> 2) low,
    (dim >> 2) high), with arguments taken as 64 bits and shifted as unsigned numbers; word ``dim & 3`` of the block,
    shifted right by 8 and times 2**-24, is the number. So dims 4k to 4k+3 come from one block.

    Args:
        seed, index, dim: integers, or arrays that broadcast; taken modulo 2**64.

    Returns:
        np.float32, or a float32 array of the broadcast shape.

    Raises:
        KernelTypeError: an argument is no integer.
    """
    s, i, d = _wide(seed), _wide(index), _wide(dim)
    quad = d >> np.uint64(2)
    words = philox(i, i >> _HALF, quad, quad >> _HALF, s, s >> _HALF)
    chosen = np.choose((d & np.uint64(3)).astype(np.int64), words)
    return (np.asarray(chosen) >> 8).astype(np.float32)[()] * np.float32(2.0**-24)


def _wide(value: _Ints) -> Any:
    if isinstance(value, int):
        return np.uint64(value & 0xFFFFFFFFFFFFFFFF)
    given: Any = value
    if not isinstance(given, np.ndarray | np.generic) or given.dtype.kind not in "iub":
        raise KernelTypeError(
            f"a random number is asked for by {said(given)}", instead="pass integers, or NumPy arrays of integers"
        )
    return np.asarray(given).astype(np.uint64)[()]


def _word(value: _Ints) -> Any:
    return _wide(value) & _LOW
