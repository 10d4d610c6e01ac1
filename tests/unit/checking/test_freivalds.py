"""Products of matrices: the screen finds what is off, and leaves honest rounding alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute._matmul import product
from p2pcompute._split import split
from p2pcompute.checking import FreivaldsScreen, ProductSampler, Sampler, product_tolerance
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._fast_matmul import ENTRY, TEXT, is_product
from p2pcompute.kernel import out
from p2pcompute_protocols.negotiation import Tolerance

Array = np.ndarray[Any, Any]
M, K, N = 96, 200, 160


def matrices(kind: str, dtype: str = "float32") -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((M, K)), rng.standard_normal((K, N))
    if kind == "positive":
        a, b = np.abs(a), np.abs(b)
    elif kind == "adversarial":  # sums that climb and fall again: what remains is small beside the rounding
        a, b = np.sort(np.abs(a), axis=1), np.abs(b)
        a[:, K // 2 :] *= -1
    elif kind == "uneven":
        a *= 10.0 ** rng.integers(-3, 3, (M, 1))
    return a.astype(dtype), b.astype(dtype)


def tolerance(a: Array, b: Array) -> Tolerance:
    rtol, atol = product_tolerance(a, b, np.random.default_rng(1))
    return Tolerance.of(rtol32=max(rtol, 2**-20), atol32=atol, rtol64=rtol, atol64=atol)


def found(a: Array, b: Array, claimed: Array, seed: int = 0) -> list[int]:
    async def main() -> list[int]:
        screen = FreivaldsScreen(a, b, tolerance=tolerance(a, b), rng=np.random.default_rng(seed))
        return list(await screen.suspects(np.arange(len(a)), claimed))

    return trio.run(main)


def test_the_text_is_the_kernel() -> None:
    binding = product[M, 1].bind(out((M, N), np.float32), *matrices("random"))
    assert (binding.source.text, binding.source.entry) == (TEXT, ENTRY)
    assert is_product(binding.source, binding.specs)
    other = product[M, 1].bind(out((M, N), np.float64), *matrices("random"))
    assert not is_product(other.source, other.specs)  # another type: the text is compiled
    assert not is_product(binding.source, binding.specs[::-1])
    a, b = matrices("random")
    for values in ((split(a), b), (a, split(b))):  # a worker has windows of these, and no matrices
        bound = product[M, 1].bind(out((M, N), np.float32), *values)
        assert not is_product(bound.source, bound.specs)


KINDS = ["random", "positive", "adversarial", "uneven"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_honest_products_pass(kind: str, dtype: str) -> None:
    a, b = matrices(kind, dtype)
    assert found(a, b, a @ b) == []
    # Whatever the order of adding: from both ends, and in blocks.
    assert found(a, b, a[:, ::-1] @ b[::-1]) == []
    halves = a[:, : K // 2] @ b[: K // 2] + a[:, K // 2 :] @ b[K // 2 :]
    assert found(a, b, halves.astype(dtype)) == []


def test_rows_that_are_off_are_found() -> None:
    a, b = matrices("random")
    due = a @ b
    for change in (1e-3, 0.1, np.inf, np.nan, -1e30):
        claimed = due.copy()
        claimed[31, 77] += np.float32(change)
        assert found(a, b, claimed) == [31], change
    swapped = due.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert found(a, b, swapped) == [3, 4]


@pytest.mark.parametrize(
    ("what", "cheat"),
    [
        ("zeros", lambda a, b: np.zeros((M, N), np.float32)),
        ("float16", lambda a, b: (a.astype(np.float16).astype(np.float32)) @ b.astype(np.float16).astype(np.float32)),
        ("bfloat16", lambda a, b: _bfloat(a) @ _bfloat(b)),
        ("a float16 result", lambda a, b: (a @ b).astype(np.float16).astype(np.float32)),
        ("the first half of k", lambda a, b: a[:, : K // 2] @ b[: K // 2]),
        ("the sum of a row in its first place", lambda a, b: _summed(a @ b)),
    ],
)
def test_what_is_cheaper_is_found(what: str, cheat: Any) -> None:
    a, b = matrices("random")
    assert len(found(a, b, np.asarray(cheat(a, b), np.float32))) >= 4, what


def _bfloat(values: Array) -> Array:
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _summed(values: Array) -> Array:
    """What fools a vector of ones: each row's sum is right."""
    made = np.zeros_like(values)
    made[:, 0] = values.sum(axis=1)
    return made


def test_signs_that_are_known_fool_the_residual() -> None:
    # The attack that random signs are there for: with r known, an error is put where it cancels.
    a, b = matrices("random")
    claimed = a @ b
    rng = np.random.default_rng(0)
    signs = rng.integers(0, 2, size=(N, 2)) * 2 - 1
    same = np.flatnonzero((signs == signs[0]).all(axis=1))[1]
    claimed[:, 0] += 1
    claimed[:, same] -= 1
    residual = np.abs((claimed.astype(np.float64) - a.astype(np.float64) @ b) @ signs).max()
    assert residual < 1e-3  # a screen with these signs has nothing to see
    for seed in range(20, 30):  # all rows are off, so the few that are computed again show it in any case
        assert found(a, b, claimed, seed)


def test_the_bound_of_the_analysis_holds_and_is_wide() -> None:
    for kind in KINDS:
        a, b = matrices(kind)
        screen = FreivaldsScreen(a, b, tolerance=tolerance(a, b))
        signs = np.random.default_rng(3).integers(0, 2, (N, 64)) * 2.0 - 1
        error = (a @ b).astype(np.float64) - a.astype(np.float64) @ b.astype(np.float64)
        assert (np.abs(error @ signs).max(axis=1) < screen.bound(a)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_back_end_runs_blas_for_it_in_fast_mode_only(dtype: str) -> None:
    a, b = matrices("random", dtype)
    binding = product[M, 1].bind(out((M, N), dtype), a, b)
    fast_source = dataclasses.replace(binding.source, fp="fast")
    with CpuBackend(2) as backend:
        strict = backend.compile(binding.source, binding.launch, binding.specs)
        fast = backend.compile(fast_source, binding.launch, binding.specs)
        rows = {name: np.zeros((40, N), dtype) for name in ("strict", "fast")}
        strict.run_blocks(16, 40, binding.values, [rows["strict"]])
        fast.run_blocks(16, 40, binding.values, [rows["fast"]])
        due = np.zeros((40, N), dtype)
        for k in range(K):
            due += a[16:56, k, None] * b[None, k]
        assert rows["strict"].tobytes() == due.tobytes()
        assert np.allclose(rows["fast"], due, rtol=1e-4, atol=1e-4)
        assert rows["fast"].tobytes() != rows["strict"].tobytes()
        picked = np.array([90, 3, 41], np.int64)
        some = np.zeros((3, N), dtype)
        fast.run_threads(picked, binding.values, [some])
        assert np.allclose(some, (a @ b)[picked], rtol=1e-4, atol=1e-4)
        for bad in ((-1, 1), (0, M + 1), (M, 1)):
            with pytest.raises(ValueError, match="not in a launch"):
                fast.run_blocks(*bad, binding.values, [np.zeros((max(bad[1], 0), N), dtype)])
        with pytest.raises(ValueError, match="not linear ids"):
            fast.run_threads(np.array([M]), binding.values, [np.zeros((1, N), dtype)])
        with pytest.raises(ValueError, match="are wanted"):
            fast.run_blocks(0, 2, binding.values, [np.zeros((3, N), dtype)])


def test_a_launch_with_more_threads_than_rows() -> None:
    a, b = matrices("random")
    binding = product[4, 32].bind(out((M, N), np.float32), a, b)
    source = dataclasses.replace(binding.source, fp="fast")
    with CpuBackend() as backend:
        fast = backend.compile(source, binding.launch, binding.specs)
        rows = np.zeros((64, N), np.float32)
        fast.run_blocks(2, 2, binding.values, [rows])
    assert np.allclose(rows[:32], (a @ b)[64:], rtol=1e-4, atol=1e-4)
    assert not rows[32:].any()


def test_tolerances_come_from_the_data() -> None:
    a, b = matrices("random")
    rtol, atol = product_tolerance(a, b)
    assert rtol == 2**-20
    assert 1e-6 < atol < 1e-3
    assert product_tolerance(*matrices("random", "float64"))[1] < 1e-12
    assert product_tolerance(a * np.float32(100), b)[1] > 50 * atol
    nothing = np.full((3, 4), np.nan, np.float32)
    assert product_tolerance(nothing, nothing.T)[1] == 0.0


class _Strict:
    """Rows of the strict product, as a worker gives them."""

    def __init__(self, a: Array, b: Array) -> None:
        self.rows = np.zeros((len(a), b.shape[1]), a.dtype)
        for k in range(len(b)):
            self.rows += a[:, k, None] * b[None, k]

    async def run_threads(self, threads: Any, *, timeout_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        return type("Run", (), {"outputs": (self.rows[threads].tobytes(),)})


def test_one_wrong_row_passes_samples_and_not_the_screen() -> None:
    a, b = matrices("random")
    binding = product[M, 1].bind(out((M, N), np.float32), a, b)
    claimed = a @ b
    claimed[50, 9] += np.float32(0.05)

    def check(kind: type[Sampler]) -> bool:
        near = tolerance(a, b)
        sampler = kind(
            _Strict(a, b), binding.layout.outputs, [(N,)], per_chunk=2, rng=np.random.default_rng(4), tolerance=near
        )
        if isinstance(sampler, ProductSampler):
            sampler.screen = FreivaldsScreen(a, b, tolerance=near)
        return trio.run(lambda: sampler.check(0, M, claimed.tobytes())).ok

    assert check(Sampler)  # its two rows are others
    assert not check(ProductSampler)
