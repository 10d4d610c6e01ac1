"""The fast self-test: its strict digests, what it lets pass, and each way in which a fast mode is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import pytest
import trio

from p2pcompute.checking import DEFAULT_TOLERANCE
from p2pcompute.execution import FastFindings, FastSelfTestError, _selftest_fast, fast_self_test, open_pool
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._selftest_fast import LEAST_RTOL, PARTS, USUAL_RTOL, Part, judge
from p2pcompute_protocols.negotiation import MIN_RTOL

Array = np.ndarray[Any, Any]
Results = list[list[Array]]


def computed(fp: str, break_it: Callable[[CpuBackend], None] = lambda _: None) -> Results:
    """The outputs of all parts in one mode."""
    found: Results = []
    with CpuBackend(1) as backend:
        break_it(backend)
        for part in _selftest_fast.PARTS:
            kernel = backend.compile(replace(part.source, fp=fp), part.launch, part.specs)
            rows = [np.zeros((part.launch.threads, *spec.shape[1:]), spec.dtype) for spec in part.outputs]
            kernel.run_blocks(0, part.launch.blocks, part.inputs, rows)
            found.append([row[: spec.shape[0]] for row, spec in zip(rows, part.outputs, strict=True)])
    return found


@pytest.fixture(scope="module")
def strict() -> Results:
    return computed("strict")


@pytest.fixture(scope="module")
def fast() -> Results:
    return computed("fast")


@pytest.mark.timeout(600)
def test_this_machine_passes_with_room(strict: Results, fast: Results) -> None:
    """And fast mode is another mode: what it may reorder it does."""
    for part, right, given in zip(PARTS, strict, fast, strict=True):
        errors = judge(part, right, given)
        assert any(errors.values())
        for dtype, error in errors.items():
            assert error <= part.rtol[dtype] / 2


def test_bounds_are_those_of_agreements() -> None:
    assert LEAST_RTOL == MIN_RTOL
    usual = {dtype: DEFAULT_TOLERANCE.for_dtype(dtype) for dtype in USUAL_RTOL}
    assert {dtype: near[0] for dtype, near in usual.items() if near is not None} == USUAL_RTOL


def test_operands_leave_no_difference_of_nearly_equal_numbers(strict: Results) -> None:
    """Elsewhere an error relative to the result would say nothing of the machine."""
    for right in strict:
        for array in right:
            if array.dtype.kind == "f":
                assert np.isfinite(array).all()
                assert array.min() > 0.05


@pytest.mark.parametrize("part", range(len(PARTS)))
def test_another_bit_in_strict_mode_is_found_before_anything_is_compared(
    part: int, strict: Results, fast: Results
) -> None:
    broken = [array.copy() for array in strict[part]]
    broken[0].view(np.uint8).flat[5] ^= 1
    with pytest.raises(FastSelfTestError, match="other bits"):
        judge(PARTS[part], broken, fast[part])
    assert judge(PARTS[part], strict[part], fast[part])


def halves(array: Array) -> Array:
    """As if computed in float16."""
    return array.astype(np.float16).astype(array.dtype)


def brain(array: Array) -> Array:
    """As if computed in bfloat16."""
    return (array.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).astype(array.dtype)


def not_a_number(array: Array) -> Array:
    return np.where(np.arange(array.size).reshape(array.shape) == 3, np.nan, array).astype(array.dtype)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.title)
@pytest.mark.parametrize("wrong", [halves, brain, np.zeros_like, not_a_number])
def test_shorter_types_zeros_and_nans_are_refused(
    part: Part, wrong: Callable[[Array], Array], strict: Results, fast: Results
) -> None:
    place = PARTS.index(part)
    for output, array in enumerate(fast[place]):
        if array.dtype.kind == "f":
            given = [*fast[place]]
            given[output] = wrong(array)
            with pytest.raises(FastSelfTestError, match=f"{part.title}.*--fp strict"):
                judge(part, strict[place], given)


def test_one_wrong_function_is_named(strict: Results, fast: Results) -> None:
    given = [array.copy() for array in fast[0]]
    given[0][100, 3] *= np.float32(1 + 2**-18)
    with pytest.raises(FastSelfTestError, match="functions and fused operations: float32 is off by 3"):
        judge(PARTS[0], strict[0], given)


def test_a_compiler_that_knows_no_nan_is_refused(strict: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nnan` and `ninf` take the tests for them away, which is what strict mode's meaning of integers is lost by."""
    liberal = {"fastmath": {"contract", "reassoc", "arcp", "afn", "nsz", "nnan", "ninf"}}
    monkeypatch.setattr("p2pcompute.execution._cpu.FAST", liberal)
    monkeypatch.setattr("p2pcompute.execution._fast_cpu.FAST", liberal)
    monkeypatch.setattr(_selftest_fast, "PARTS", PARTS[:1])
    given = computed("fast")
    with pytest.raises(FastSelfTestError, match="integers and comparisons"):
        judge(PARTS[0], strict[0], given[0])


def test_a_function_that_is_off_in_fast_mode_is_refused(strict: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exp of five digits."""
    monkeypatch.setattr(_selftest_fast, "PARTS", PARTS[:1])

    def break_it(backend: CpuBackend) -> None:
        names = backend._fast_namespace()
        exp = names["exp32"]
        off = numba.njit(lambda x: np.float32(exp(x) * np.float32(1.00001)))
        backend._fast = names | {name: off for name in names if name.startswith("exp32")}

    given = computed("fast", break_it)
    with pytest.raises(FastSelfTestError, match="functions and fused operations"):
        judge(PARTS[0], strict[0], given[0])


def test_findings_say_what_can_be_agreed_to() -> None:
    findings = FastFindings(error32=0.0, error64=0.0)
    assert (findings.least_rtol("float32"), findings.least_rtol("float64")) == (2.0**-20, 2.0**-46)
    findings = FastFindings(error32=1e-5, error64=9e-10)
    assert findings.least_rtol("float32") == pytest.approx(4e-5)
    assert findings.least_rtol("float64") == 1e-9


@pytest.mark.net
@pytest.mark.timeout(600)
def test_it_runs_in_a_locked_worker() -> None:
    async def main() -> None:
        async with open_pool(spare=0) as pool:
            findings = await fast_self_test(pool)
            assert 0 < findings.error32 < 1e-4
            assert 0 < findings.error64 < 1e-9

    trio.run(main)


@pytest.mark.net
def test_a_worker_that_is_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held against other digests, this machine is one that computes other bits."""
    monkeypatch.setattr(_selftest_fast, "PARTS", (replace(PARTS[2], digest="0" * 64),))

    async def main() -> None:
        async with open_pool(spare=0) as pool:
            with pytest.raises(FastSelfTestError, match=r"p2p\.matmul of float32"):
                await fast_self_test(pool)

    trio.run(main)
