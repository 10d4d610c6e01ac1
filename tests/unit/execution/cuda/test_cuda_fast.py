"""Fast mode on CUDA: what the compiler may do with floats, and what the lint lets pass of it and nothing more."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend, CudaProgram
from p2pcompute.execution._cuda_compile import link_cubin
from p2pcompute.execution._ptx_lint import PtxRefused, check_ptx, find_faults
from p2pcompute.execution._selftest_fast import PARTS, Part
from p2pcompute.kernel import Binding, kernel, out

from .ptx_machine import Machine
from .test_ptx_lint import module

FAST = [
    "fma.rn.f32 %f1, %f2, %f3, %f4;",
    "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;",
    "fma.rn.f64 %fd1, %fd2, %fd3, %fd4;",
    "add.ftz.f32 %f1, %f2, %f3;",
    "mul.rn.ftz.f32 %f1, %f2, %f3;",
    "div.approx.ftz.f32 %f1, %f2, %f3;",
    "div.full.f32 %f1, %f2, %f3;",
    "sqrt.approx.ftz.f32 %f1, %f2;",
    "rcp.approx.ftz.f32 %f1, %f2;",
    "rsqrt.approx.f32 %f1, %f2;",
    "ex2.approx.ftz.f32 %f1, %f2;",
    "lg2.approx.f32 %f1, %f2;",
    "sin.approx.f32 %f1, %f2;",
    "neg.ftz.f32 %f1, %f2;",
    "abs.ftz.f32 %f1, %f2;",
    "setp.lt.ftz.f32 %p1, %f1, %f2;",
    "cvt.rzi.ftz.s64.f32 %rd1, %f1;",
    "cvt.ftz.f64.f32 %fd1, %f1;",
    "cvt.rn.ftz.f32.f64 %f1, %fd1;",
]
NEVER = [
    ("saturating", "add.ftz.sat.f32 %f1, %f2, %f3;"),
    ("unrounded", "add.rz.ftz.f32 %f1, %f2, %f3;"),
    ("fused", "fma.rz.f32 %f1, %f2, %f3, %f4;"),
    ("fused", "fma.rn.sat.f32 %f1, %f2, %f3, %f4;"),
    ("extreme", "min.ftz.f32 %f1, %f2, %f3;"),
    ("half", "fma.rn.f16 %rs1, %rs2, %rs3, %rs4;"),
    ("half", "ex2.approx.ftz.bf16 %rs1, %rs2;"),
    ("half", "wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r1}, [%rd1];"),
    ("atomic", "atom.global.add.f32 %f1, [%rd1], %f2;"),
    ("communication", "bar.sync 0;"),
    ("communication", "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;"),
    ("communication", "mov.u64 %rd1, %clock64;"),
    ("communication", "ld.volatile.global.u32 %r1, [%rd1];"),
    ("call", "call.uni (retval0), __nv_sinf, (param0);"),
    ("conversion", "cvt.rzi.ftz.sat.s32.f32 %r1, %f1;"),
    ("unknown", "trap;"),
]


@pytest.mark.parametrize("statement", FAST)
def test_floats_are_free_in_fast_mode_only(statement: str) -> None:
    assert find_faults(module(statement), fast=True) == []
    with pytest.raises(PtxRefused):
        check_ptx(module(statement))


@pytest.mark.parametrize(("rule", "statement"), NEVER, ids=[f"{rule} {text[:30]}" for rule, text in NEVER])
def test_what_reaches_out_of_the_kernel_is_refused_in_fast_mode_too(rule: str, statement: str) -> None:
    (fault,) = find_faults(module(statement), fast=True)
    assert fault.rule == rule


@kernel
def mixed(result, hits, a, x, far):
    i = cuda.grid(1)
    if i < result.size:
        v = x[i] * a + far[i]
        hits[i] = 1 if math.isnan(v) else 2 if math.isinf(v) else 0
        result[i] = math.sqrt(abs(v)) / (x[i] + np.float32(2.0)) + x[int(far[i])] + math.exp(-x[i])


@pytest.fixture
def binding() -> Binding:
    rng = np.random.default_rng(2)
    x = rng.random(96, dtype=np.float32)
    far = rng.integers(0, 96, 96).astype(np.float32)
    far[:6] = (math.nan, math.inf, -math.inf, 1e30, -5, 96)
    return mixed[3, 32].bind(out(x.shape, x.dtype), out(x.shape, np.int32), np.float32(1.1), x, far)


def ptx(gpu: CudaBackend, binding: Binding, fp: str) -> CudaProgram:
    return gpu.ptx(dataclasses.replace(binding.source, fp=fp), binding.launch, binding.specs)


def test_the_compiler_fuses_and_approximates_in_fast_mode_only(gpu: CudaBackend, binding: Binding) -> None:
    fast, strict = ptx(gpu, binding, "fast").blocks_ptx, ptx(gpu, binding, "strict").blocks_ptx
    for opcode in (r"fma\.rn\.ftz\.f32", r"sqrt\.approx\.ftz\.f32", r"div\.(?:full|approx)\.ftz\.f32"):
        assert re.search(opcode, fast), opcode
        assert not re.search(opcode, strict)
    check_ptx(fast, fast=True)
    with pytest.raises(PtxRefused):
        check_ptx(fast)
    for text in (fast, strict):  # what the index is tested by stands there in both
        assert re.search(r"setp\.\w+\.[su]64", text)


@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (12, 0)])
def test_it_links_for_devices(capability: tuple[int, int], binding: Binding, gpu: CudaBackend) -> None:
    assert gpu is not None  # the packages are there
    backend = CudaBackend(capability=capability)
    program = ptx(backend, binding, "fast")
    for text in (program.blocks_ptx, program.threads_ptx):
        assert link_cubin(text, capability).startswith(b"\x7fELF")


def test_nothing_of_it_reaches_strict_kernels(gpu: CudaBackend, machine: Machine, binding: Binding) -> None:
    def opcodes(program: CudaProgram) -> list[str]:
        return re.findall(r"^\s+(?:@!?%\w+\s+)?([a-z]\S*)\s", program.blocks_ptx + program.threads_ptx, re.MULTILINE)

    before = opcodes(ptx(gpu, binding, "strict"))
    again = CudaBackend(machine)
    assert opcodes(ptx(again, binding, "fast")) != before
    assert opcodes(ptx(again, binding, "strict")) == before
    assert any(opcode.startswith("add.rn.f32") for opcode in before)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.title)
def test_the_fast_self_test_compiles_for_a_device_and_is_strict_where_it_has_to_be(
    gpu: CudaBackend, cpu: CpuBackend, part: Part
) -> None:
    """What fast mode gives there only a device can say; what it is held against is the same."""
    fast = gpu.ptx(dataclasses.replace(part.source, fp="fast"), part.launch, part.specs)
    for text in (fast.blocks_ptx, fast.threads_ptx):
        check_ptx(text, fast=True)
    with pytest.raises(PtxRefused):
        check_ptx(fast.blocks_ptx)
    threads = np.array([0, part.outputs[0].shape[0] - 1])
    found: list[list[bytes]] = []
    for backend in (gpu, cpu):
        rows = [np.zeros((len(threads), *spec.shape[1:]), spec.dtype) for spec in part.outputs]
        backend.compile(part.source, part.launch, part.specs).run_threads(threads, part.inputs, rows)
        found.append([row.tobytes() for row in rows])
    assert found[0] == found[1]
