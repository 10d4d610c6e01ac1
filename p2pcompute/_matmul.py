"""`matmul`: a product of matrices on the network, on providers' BLAS in fast mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import cuda
from ._given import refuse_masked
from .errors import KernelTypeError
from .kernel import kernel, out

if TYPE_CHECKING:
    from .kernel import ConfiguredKernel
    from .node import Node

__all__ = ["matmul", "matmul_on", "product"]

_SAMPLES: Final = {"strict": 16, "fast": 2}  # rows of a chunk: in fast mode a screen finds what samples would not


@kernel
def product(out, a, b):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.shape[0]:
        for k in range(a.shape[1]):
            s = a[i, k]
            for j in range(out.shape[1]):
                out[i, j] += s * b[k, j]


def matmul(a: Any, b: Any, **options: Any) -> Any:
    """``a @ b`` on the network, from synchronous code.

    Args:
        a, b: arrays ``(m, k)`` and ``(k, n)`` of float32, or both of float64; 64 MiB together at most.
        options: as of `run`. With ``fp="fast"`` providers use BLAS, and every chunk is checked by Freivalds' algorithm
            beside a few samples (docs/checking.md). `rtol` and `atol` are worked out from the matrices where they are
            left out. `fp` is "strict" where it is left out: sums in the order of k, equal to the bit everywhere.

    Returns:
        The array ``(m, n)``.

    Raises:
        KernelTypeError: these are no such matrices.
        P2PComputeError: as `run`.
    """
    from ._sync import run

    work, args, chosen = _work(a, b, options)
    return run(work, *args, **chosen)


async def matmul_on(node: Node, a: Any, b: Any, **options: Any) -> Any:
    """As `matmul`, on a node that is open."""
    work, args, chosen = _work(a, b, options)
    return await node.run(work, *args, **chosen)


def _work(a: Any, b: Any, options: dict[str, Any]) -> tuple[ConfiguredKernel, tuple[Any, ...], dict[str, Any]]:
    from p2pcompute.checking import product_tolerance

    for name, matrix in (("a", a), ("b", b)):
        refuse_masked(matrix, name)
    left, right = np.asarray(a), np.asarray(b)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or 0 in (*left.shape, *right.shape):
        raise KernelTypeError(
            f"matrices {left.shape} and {right.shape} have no product", instead="pass (m, k) and (k, n), not empty"
        )
    if left.dtype != right.dtype or left.dtype.name not in ("float32", "float64"):
        raise KernelTypeError(
            f"a product of {left.dtype} and {right.dtype}", instead="convert both to float32, or both to float64"
        )
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    chosen = dict(options)
    asked = chosen.get("fp", "strict")
    fp = asked if isinstance(asked, str) else ""  # which is refused as an option
    chosen.setdefault("samples", _SAMPLES.get(fp, 2))
    if fp == "fast" and (chosen.get("rtol") is None or chosen.get("atol") is None):
        rtol, atol = product_tolerance(left, right)
        chosen["rtol"] = rtol if chosen.get("rtol") is None else chosen["rtol"]
        chosen["atol"] = atol if chosen.get("atol") is None else chosen["atol"]
    result = out((left.shape[0], right.shape[1]), left.dtype)
    return product[left.shape[0], 1], (result, left, right), chosen
