"""Products of matrices checked without being computed: Freivalds' algorithm in floating point.

For C = A B and a vector r of random signs, C r and A (B r) are equal, and cost n^2 where the product costs n^3. An
error that lies in C shows in a row's residual as a sum of its elements with signs that whoever made it did not know,
R. Freivalds, "Probabilistic machines can use less running time", IFIP Congress 1977. In floating point an honest
residual is not zero but the sum of rounding errors: for a row a of A, with u the unit roundoff and k the inner size,
|residual| <= t * sqrt(k) * u * |a| * |B| (Euclidean and Frobenius norms) but with probability 2 exp(-t^2 / 2), by
Hoeffding's inequality over the signs and the probabilistic analysis of N. J. Higham and T. Mary ("A new approach to
probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019).

That bound holds for all data and is wide for most. So it convicts nobody here, and is not all that is looked at: the
rows with the largest residuals, for their size, are computed again in binary64; those of them that are off, and all
beyond the bound, go to the strict sample, which alone decides. So a false alarm costs a row, and what escapes has to
be smaller than the rounding of honest rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import trio

from p2pcompute_protocols.negotiation import MIN_RTOL, Tolerance

from ._sampling import DeliveredChunk, Rows, Sampler, Threads

__all__ = ["FreivaldsScreen", "ProductSampler", "product_tolerance"]

ROUNDS: Final = 2
ROWS_AGAIN: Final = 8
_T: Final = 7.0  # 2 exp(-t^2 / 2) is 5e-11 for a row and a round
_PIECE: Final = 1 << 20  # elements of B between two looks at the clock of everybody else
_WIDER: Final = 4.0
_SAMPLE: Final = 4  # of the longest rows, and as many by chance
_MOST_STRICT: Final = 64  # rows that one chunk sends to the strict sample


class FreivaldsScreen:
    """Finds the rows of a product that are most likely to be wrong.

    Args:
        a, b: the matrices, float32 or float64.
        tolerance: of the agreement.
        rounds: random vectors a chunk; `again`: rows a chunk that are computed again in binary64.
        rng: seeded by the operating system where None.
    """

    def __init__(
        self,
        a: Rows,
        b: Rows,
        *,
        tolerance: Tolerance,
        rounds: int = ROUNDS,
        again: int = ROWS_AGAIN,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._a = a
        self._b = b.astype(np.float64)  # once: every chunk goes over it twice
        self._size = float(np.linalg.norm(self._b)) or 1.0
        self._roundoff = float(np.finfo(a.dtype).eps) / 2
        near = tolerance.for_dtype(a.dtype.name)
        if near is None:
            raise ValueError(f"matrices of {a.dtype} have no rounding to be screened for")
        self._rtol, self._atol = near
        self._rounds = rounds
        self._again = again
        self._rng = np.random.default_rng() if rng is None else rng

    def bound(self, rows: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What an honest residual of each of these rows of `a` stays within, all but surely."""
        wide = rows.astype(np.float64, copy=False)
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        return np.asarray(_T * math.sqrt(self._b.shape[0]) * self._roundoff * norms * self._size + 1e-300)

    async def suspects(self, ids: Threads, claimed: Rows) -> Threads:
        """Positions in `ids` of the rows that the strict sample has to decide on.

        Args:
            ids: rows of the product that were delivered.
            claimed: what was delivered for them, ``(len(ids), n)``.
        """
        if not len(ids):
            return np.empty(0, dtype=np.int64)
        rows = self._a[ids].astype(np.float64)
        with np.errstate(all="ignore"):
            signs = self._rng.integers(0, 2, size=(self._b.shape[1], self._rounds)).astype(np.float64) * 2 - 1
            residual = claimed.astype(np.float64) @ signs - rows @ await self._times(signs)
            share = np.abs(residual).max(axis=1) / self.bound(rows)
        share[~np.isfinite(share)] = np.inf  # a NaN or an infinity: only the strict sample can tell whose it is
        order = np.argsort(-share, kind="stable")
        beyond = order[share[order] > 1][:_MOST_STRICT]
        near = order[: self._again]
        near = near[np.isfinite(share[near])]
        off = await self._off(rows[near], claimed[near])
        return np.unique(np.concatenate([beyond, near[off]])).astype(np.int64)

    async def _times(self, right: Rows) -> Rows:
        """``B @ right``, a piece at a time: nobody else of this thread waits for all of it."""
        step = max(1, _PIECE // max(1, self._b.shape[1]))
        parts: list[Rows] = []
        for at in range(0, self._b.shape[0], step):
            parts.append(self._b[at : at + step] @ right)
            await trio.lowlevel.checkpoint()
        return np.concatenate(parts)

    async def _off(self, rows: Rows, claimed: Rows) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of these rows are off by half of the tolerance, of what binary64 gives for them."""
        step = max(1, _PIECE // max(1, self._b.shape[1]))
        total = np.zeros(claimed.shape, dtype=np.float64)
        left = rows.astype(np.float64, copy=False)
        with np.errstate(all="ignore"):
            for at in range(0, self._b.shape[0], step):
                total += left[:, at : at + step] @ self._b[at : at + step]
                await trio.lowlevel.checkpoint()
            wide = (self._atol + self._rtol * np.abs(total)) / 2  # the other half is for the strict result's own error
            near = np.abs(claimed.astype(np.float64) - total) <= wide
        return np.asarray(~near.all(axis=1))


class ProductSampler(Sampler):
    """A sampler that also draws the rows which a screen finds."""

    screen: FreivaldsScreen

    async def _pick(self, chunk: DeliveredChunk, delivered: Sequence[Rows]) -> Threads:
        drawn = await super()._pick(chunk, delivered)
        inside, rows = chunk.inside, delivered[0]
        if inside is None:
            inside = np.arange(chunk.first_thread, chunk.first_thread + chunk.threads, dtype=np.int64)
        else:
            rows = rows[inside - chunk.first_thread]
        return np.union1d(drawn, inside[await self.screen.suspects(inside, rows)])


def product_tolerance(a: Rows, b: Rows, rng: np.random.Generator | None = None) -> tuple[float, float]:
    """(rtol, atol) that fit the product of these matrices: `atol` is four times the largest rounding error of the
    strict result in eight rows, the four longest and four by chance, so that another order of adding has room.

    Cancellation makes small elements of large sums, and how large depends on the data: no factor of an element's own
    size would be right for all.
    """
    rng = np.random.default_rng() if rng is None else rng
    rtol = MIN_RTOL[a.dtype.name]
    with np.errstate(all="ignore"):
        norms = np.nan_to_num(np.linalg.norm(a.astype(np.float64), axis=1), nan=0.0, posinf=0.0)
        longest = np.argsort(-norms, kind="stable")[:_SAMPLE]
        rows = a[np.union1d(longest, rng.integers(0, len(a), size=_SAMPLE))]
        strict = np.zeros((len(rows), b.shape[1]), dtype=a.dtype)
        exact = np.zeros(strict.shape, dtype=np.longdouble)
        for k in range(b.shape[0]):
            strict += rows[:, k, None] * b[None, k]
            exact += rows[:, k, None].astype(np.longdouble) * b[None, k]
        error = np.abs(strict - exact).astype(np.float64)
        size = np.abs(exact).astype(np.float64)
    roundoff = float(np.finfo(a.dtype).eps) / 2
    fine = np.isfinite(error) & np.isfinite(size)
    worst = max(float(error[fine].max()), roundoff * float(size[fine].max())) if fine.any() else 0.0
    return rtol, min(_WIDER * worst, float(np.finfo(np.float64).max))
