"""`p2p.matmul` on tensor cores: its PTX, executed, is as near as float32's sums are; strangers' kernels have none."""

from __future__ import annotations

import dataclasses
import gc
import re
from typing import Any

import numpy as np
import pytest

from p2pcompute._matmul import product
from p2pcompute.checking import product_tolerance
from p2pcompute.execution import _cuda_product as module
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._cuda_compile import CudaCompiler, link_cubin
from p2pcompute.execution._cuda_product import TensorCode
from p2pcompute.execution._fast_matmul import Product
from p2pcompute.execution._ptx_lint import PtxRefused, check_ptx, find_faults
from p2pcompute.kernel import out

from .ptx_machine import Machine

pytestmark = pytest.mark.timeout(600)

Array = np.ndarray[Any, Any]
DTYPES = ["float32", "float64"]


def compiled(backend: CpuBackend | CudaBackend, a: Array, b: Array, fp: str = "fast") -> Any:
    binding = product[len(a), 1].bind(out((len(a), b.shape[1]), a.dtype), a, b)
    return backend.compile(dataclasses.replace(binding.source, fp=fp), binding.launch, binding.specs)


def times(backend: CpuBackend | CudaBackend, a: Array, b: Array, fp: str = "fast") -> Array:
    found = np.zeros((len(a), b.shape[1]), a.dtype)
    compiled(backend, a, b, fp).run_blocks(0, len(a), [a, b], [found])
    return found


def near(found: Array, strict: Array, rtol: float, atol: float) -> bool:
    least = float(np.finfo(strict.dtype).tiny)
    with np.errstate(all="ignore"):
        one, other = found.astype(np.float64), strict.astype(np.float64)
        close = np.abs(one - other) <= max(atol, least) + rtol * np.abs(other)
    return bool((close | (one == other) | (np.isnan(one) & np.isnan(other))).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 37, 3), (66, 21, 34)])
def test_it_is_as_near_as_what_is_asked_for(
    cpu: CpuBackend, gpu: CudaBackend, dtype: str, shape: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(5)
    m, k, n = shape
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    strict = times(cpu, a, b, "strict")
    assert near(times(gpu, a, b), strict, *product_tolerance(a, b))


def test_three_products_are_needed_for_float32(
    cpu: CpuBackend, gpu: CudaBackend, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the upper parts alone it would be tf32, which is not what is sold."""
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((4, 64)).astype(np.float32), rng.standard_normal((64, 4)).astype(np.float32)
    strict, tolerance = times(cpu, a, b, "strict"), product_tolerance(a, b)
    assert near(times(gpu, a, b), strict, *tolerance)
    text = module._text
    monkeypatch.setattr(module, "_text", lambda dtype: re.sub(r"rest\(\w+, \w+\)", "int32(0)", text(dtype)))
    assert not near(times(CudaBackend(machine), a, b), strict, *tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_what_it_is_in_strict_mode(cpu: CpuBackend, gpu: CudaBackend, dtype: str) -> None:
    kind = np.dtype(dtype).type
    most, tiny = np.finfo(dtype).max, np.finfo(dtype).tiny
    a = np.ones((8, 5), dtype)
    a[0, 1], a[1, 2], a[2, 3] = np.inf, -np.inf, np.nan
    a[3, :2] = np.inf, -np.inf
    a[4, 0], a[5, 1], a[6, 2] = most, -most, kind(tiny) / 4
    a[7] = np.nextafter(kind(1), kind(2))
    b = np.ones((5, 4), dtype)
    b[:, 1], b[:, 2] = np.linspace(-3, 3, 5), 0.5  # 0.5 leaves no rest
    b[0, 3], b[1, 3] = np.inf, 0
    if dtype == "float32":
        a.view(np.uint32)[2, 3] = 0x7F800001  # a NaN in bits that tf32 does not have
    assert near(times(gpu, a, b), times(cpu, a, b, "strict"), 2.0**-20, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_and_single_rows_are_those_of_the_whole(gpu: CudaBackend, machine: Machine, dtype: str) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((20, 9)).astype(dtype), rng.standard_normal((9, 6)).astype(dtype)
    b.flags.writeable = False
    gc.collect()
    before = machine.allocations
    code = compiled(gpu, a, b)
    assert isinstance(code, Product)
    found = np.zeros((20, 6), dtype)
    for first, blocks in ((0, 13), (13, 7)):
        code.run_blocks(first, blocks, [a, b], [found[first : first + blocks]])
    assert near(found, a @ b, 1e-5, 1e-5)
    assert machine.allocations == before + 1  # the right one stays
    rows = np.zeros((4, 6), dtype)
    code.run_threads(np.array([3, 19, 3, 0]), [a, b], [rows])
    assert near(rows, found[[3, 19, 3, 0]], 1e-6, 1e-6)
    del code
    gc.collect()
    assert machine.allocations == before


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_compiles_and_links(gpu: CudaBackend, capability: tuple[int, int], dtype: str) -> None:
    assert gpu is not None  # the packages are there
    ptx = TensorCode(CudaCompiler(capability)).ptx(dtype)
    assert ptx.count("mma.sync.aligned") == {"float32": 24, "float64": 16}[dtype]
    assert {fault.rule for fault in find_faults(ptx, together=True)} == {"half"}
    assert link_cubin(ptx, capability).startswith(b"\x7fELF")


def test_older_devices_run_the_loop(gpu: CudaBackend) -> None:
    a = np.ones((3, 3), np.float32)
    for capability, tensor in (((7, 5), False), ((8, 0), True)):
        assert isinstance(compiled(CudaBackend(capability=capability), a, a), Product) == tensor
    assert not isinstance(compiled(gpu, a, a, "strict"), Product)


def test_strangers_have_no_tensor_cores(gpu: CudaBackend) -> None:
    ptx = TensorCode(CudaCompiler((8, 0))).ptx("float32")
    for together in (False, True):
        with pytest.raises(PtxRefused):
            check_ptx(ptx, together=together, fast=True)


def test_nothing_else_is_let_pass_in_it(gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    text = module._text
    monkeypatch.setattr(module, "_text", lambda dtype: text(dtype) + " cuda.atomic.add(out, 0, zero)\n")
    with pytest.raises(PtxRefused, match=r"atom|red"):
        TensorCode(CudaCompiler((8, 0))).ptx("float32")
