"""The names that a kernel may take from ``numba.cuda``, without numba: ``from p2pcompute import cuda``.

They mean something inside a function that is decorated with ``@p2pcompute.kernel``, where they are recognised by
name and never called. Outside of one they raise.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = [
    "atomic",
    "blockDim",
    "blockIdx",
    "brev",
    "clz",
    "const",
    "ffs",
    "grid",
    "gridDim",
    "gridsize",
    "local",
    "popc",
    "selp",
    "shared",
    "syncthreads",
    "threadIdx",
]


def _outside(name: str) -> NoReturn:
    raise RuntimeError(
        f"cuda.{name} has a value only inside a kernel; decorate the function with @p2pcompute.kernel and start it "
        "with p2pcompute.run"
    )


def grid(ndim: int) -> Any:
    """The thread's place in the launch: an int for 1, a tuple (x, y) for 2, (x, y, z) for 3."""
    _outside(f"grid({ndim})")


def gridsize(ndim: int) -> Any:
    """Threads of the launch along each axis: an int for 1, a tuple for 2 and 3."""
    _outside(f"gridsize({ndim})")


def popc(x: int) -> int:
    """Bits of `x` that are 1."""
    _outside(f"popc({x})")


def clz(x: int) -> int:
    """Bits of `x` above the highest that is 1; all of them for 0."""
    _outside(f"clz({x})")


def ffs(x: int) -> int:
    """The place of the lowest bit of `x` that is 1, counted from 1; 0 for 0."""
    _outside(f"ffs({x})")


def brev(x: int) -> int:
    """The bits of `x` in reverse order."""
    _outside(f"brev({x})")


def selp(test: bool, a: Any, b: Any) -> Any:
    """``a if test else b``"""
    _outside(f"selp({test}, {a}, {b})")


class _Triple:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def x(self) -> int:
        """Along the fastest axis."""
        _outside(f"{self._name}.x")

    @property
    def y(self) -> int:
        """Along the second axis."""
        _outside(f"{self._name}.y")

    @property
    def z(self) -> int:
        """Along the third axis."""
        _outside(f"{self._name}.z")

    def __repr__(self) -> str:
        return f"<cuda.{self._name}>"


def syncthreads() -> None:
    """Wait until all threads of the block are here; what they stored into shared arrays is seen from then on."""
    _outside("syncthreads()")


class _Memory:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def array(self, shape: int | tuple[int, ...], dtype: Any) -> Any:
        """An array of zeros. Shape and dtype are literals or globals."""
        _outside(f"{self._name}.array({shape}, {dtype})")

    def __repr__(self) -> str:
        return f"<cuda.{self._name}>"


class _Constant:
    __slots__ = ("_name",)

    def __init__(self) -> None:
        self._name = "const"

    def array_like(self, ary: Any) -> Any:
        """The content of a global NumPy array, which becomes a part of the kernel."""
        _outside(f"const.array_like(an array of {type(ary).__name__})")

    def __repr__(self) -> str:
        return "<cuda.const>"


class _Atomic:
    """Integer operations that any number of threads may make on one element at once: of a shared array, or of an output
    that all blocks change, for which `p2pcompute.reduce(op, shape, dtype)` is passed, or `p2pcompute.out` where zero
    changes nothing. An index out of range is dropped. They give nothing back: what they would is the order of threads.
    """

    __slots__ = ("_name",)

    def __init__(self) -> None:
        self._name = "atomic"

    def _outside(self, name: str, *_: Any) -> NoReturn:
        _outside(f"atomic.{name}")

    def add(self, ary: Any, idx: Any, val: Any) -> None:
        """``ary[idx] += val``"""
        self._outside("add", ary, idx, val)

    def max(self, ary: Any, idx: Any, val: Any) -> None:
        """``ary[idx] = max(ary[idx], val)``"""
        self._outside("max", ary, idx, val)

    def min(self, ary: Any, idx: Any, val: Any) -> None:
        """``ary[idx] = min(ary[idx], val)``"""
        self._outside("min", ary, idx, val)

    def and_(self, ary: Any, idx: Any, val: Any) -> None:
        """``ary[idx] &= val``"""
        self._outside("and_", ary, idx, val)

    def or_(self, ary: Any, idx: Any, val: Any) -> None:
        """``ary[idx] |= val``"""
        self._outside("or_", ary, idx, val)

    def xor(self, ary: Any, idx: Any, val: Any) -> None:
        """``ary[idx] ^= val``"""
        self._outside("xor", ary, idx, val)

    def __repr__(self) -> str:
        return "<cuda.atomic>"


threadIdx = _Triple("threadIdx")  # noqa: N816 - the name in numba.cuda
blockIdx = _Triple("blockIdx")  # noqa: N816 - the name in numba.cuda
blockDim = _Triple("blockDim")  # noqa: N816 - the name in numba.cuda
gridDim = _Triple("gridDim")  # noqa: N816 - the name in numba.cuda
shared = _Memory("shared")
local = _Memory("local")
const = _Constant()
atomic = _Atomic()
