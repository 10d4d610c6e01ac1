"""The product of matrices in fast mode: one kernel whose text is known, and BLAS in its place.

In fast mode a back end may run whatever comes near to the strict result. Of this kernel everybody knows what it gives,
so that the library which NumPy has runs for it, in the same locked worker; a node without it compiles the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._language_capture import source_digest

__all__ = ["ENTRY", "TEXT", "Product", "is_product", "product_digest"]

Array: TypeAlias = np.ndarray[Any, Any]

ENTRY: Final = "product"
TEXT: Final = """def product(out, a, b):
    i = cuda.grid(1)
    if i < out.shape[0]:
        for k in range(a.shape[1]):
            s = a[i, k]
            for j in range(out.shape[1]):
                out[i, j] += s * b[k, j]
"""
"""What `p2pcompute._matmul.product` is as text: a thread has a row, and adds in the order of k."""

product_digest: Final = source_digest(ENTRY, TEXT)


def is_product(source: KernelSource, args: Sequence[ArgSpec]) -> bool:
    """Whether this is the known kernel, over float matrices of one type that fit each other."""
    if source.digest != product_digest or source.text != TEXT or len(args) != 3:
        return False
    out, a, b = args
    if not (isinstance(out, OutputSpec) and isinstance(a, InputSpec) and isinstance(b, InputSpec)):
        return False
    if a.split is not None or b.split is not None:  # of which a worker has windows
        return False
    if len(out.shape) != 2 or len(a.shape) != 2 or len(b.shape) != 2 or out.reduce is not None:
        return False
    fits = a.shape[1] == b.shape[0] and out.shape == (a.shape[0], b.shape[1])
    return fits and out.dtype == a.dtype == b.dtype and out.dtype in ("float32", "float64")


class Product:
    """A `CompiledKernel` of the known kernel, on NumPy's BLAS or what else multiplies.

    Args:
        share: calls ``part(start, count)`` for portions that cover ``range(total)``, by several threads at once.
        threads: how many those are.
        multiply: ``multiply(left, right, out)`` puts the product of two matrices into `out`.
    """

    def __init__(
        self,
        launch: Launch,
        out: OutputSpec,
        share: Callable[[int, Callable[[int, int], None]], None],
        threads: int,
        *,
        multiply: Callable[[Array, Array, Array], object] = np.matmul,
    ) -> None:
        self._launch = launch
        self._shape = out.shape
        self._dtype = np.dtype(out.dtype)
        self._share = share
        self._threads = threads
        self._multiply = multiply

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array]) -> None:
        """Rows of whole blocks; see `CompiledKernel`."""
        launch = self._launch
        if first_block < 0 or blocks < 0 or first_block + blocks > launch.blocks:
            raise ValueError(f"blocks {first_block} to {first_block + blocks} are not in a launch of {launch.blocks}")
        first = first_block * launch.threads_per_block
        items = blocks * launch.threads_per_block
        self._run(
            lambda part: args[0][first + part.start : first + part.stop], items, self._shape[0] - first, args, outs
        )

    def run_threads(self, threads: Array, args: Sequence[Any], outs: Sequence[Array]) -> None:
        """Single rows by linear id; see `CompiledKernel`."""
        ids = np.array(threads, dtype=np.int64, order="C", ndmin=1)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= self._launch.threads)):
            raise ValueError(f"threads are not linear ids in a launch of {self._launch.threads}")
        inside = np.flatnonzero(ids < self._shape[0])
        rows = np.zeros((len(inside), self._shape[1]), dtype=self._dtype)
        a = args[0][ids[inside]]
        self._run(lambda part: a[part.start : part.stop], len(inside), len(inside), args, [rows])
        outs[0][inside] = rows

    def _run(
        self, rows: Callable[[slice], Array], items: int, inside: int, args: Sequence[Any], outs: Sequence[Array]
    ) -> None:
        if len(args) != 2 or len(outs) != 1 or outs[0].shape != (items, self._shape[1]):
            raise ValueError(f"rows of {self._dtype}({items}, {self._shape[1]}) are wanted, and two matrices")
        count = max(0, min(items, inside))
        portion = max(1, -(-count // self._threads))  # the library packs its right side for each call: few calls

        def part(start: int, number: int) -> None:
            for at in range(start * portion, min((start + number) * portion, count), portion):
                place = slice(at, min(at + portion, count))
                self._multiply(rows(place), args[1], outs[0][place])

        self._share(-(-count // portion), part)
