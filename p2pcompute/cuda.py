"""The names that a kernel may take from ``numba.cuda``, without numba: ``from p2pcompute import cuda``.

They mean something inside a function that is decorated with ``@p2pcompute.kernel``, where they are recognised by
name and never called. Outside of one they raise.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["blockDim", "blockIdx", "grid", "gridDim", "gridsize", "threadIdx"]


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


threadIdx = _Triple("threadIdx")  # noqa: N816 - the name in numba.cuda
blockIdx = _Triple("blockIdx")  # noqa: N816 - the name in numba.cuda
blockDim = _Triple("blockDim")  # noqa: N816 - the name in numba.cuda
gridDim = _Triple("gridDim")  # noqa: N816 - the name in numba.cuda
