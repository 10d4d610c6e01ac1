"""Kernels whose threads work together on CUDA, with one defence less each: the interpreter shows what it is for. And
what is at the bounds: shared memory that is full, snapshots that have no room there, every generation of devices.

To look at more random kernels than the tests do, one after each seed:
``PYTHONPATH=. python -m tests.unit.execution.cuda.test_cuda_block_attacks 100 200``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.errors import KernelError
from p2pcompute.execution import _block_races, _cuda, _cuda_text, _guard_block, _lower
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._cuda_compile import link_cubin
from p2pcompute.execution._lower import Lowered
from p2pcompute.execution._ptx_lint import PtxRefused, find_faults
from p2pcompute.kernel import kernel, out

from .. import test_blocks as blocks
from .. import test_blocks_random as random_blocks
from .ptx_machine import Machine, PtxError
from .test_cuda_blocks import assert_same_bits

BLOCKS, ROW, THREADS, N = random_blocks.BLOCKS, random_blocks.ROW, 8, 3
WEIGHTS = np.arange(40.0)
RACE = "    sm[tx] = x[i]\n    cuda.syncthreads()\n    sm[tx] += sm[7 - tx]\n    cuda.syncthreads()\n"


def results(lines: str, seeds: range = range(4)) -> set[str]:
    """What a kernel gives, with its threads in so many orders."""
    text = random_blocks.FRAME + lines + random_blocks.END
    found: set[str] = set()
    _, source, launch, specs = random_blocks.lowered(text, THREADS, N)
    compiled = None
    for seed in seeds:
        machine = Machine(seed=seed)
        if compiled is None:
            backend = CudaBackend(machine)
            compiled = backend.compile(source, launch, specs)
        backend._device = machine
        compiled._program._loaded.clear()  # type: ignore[attr-defined]
        rows, blk = np.zeros((BLOCKS, THREADS), np.int64), np.zeros((BLOCKS, ROW), np.int64)
        compiled.run_blocks(0, BLOCKS, [random_blocks.X, np.int64(N)], [rows, blk])
        found.add(str((rows.tolist(), blk.tolist())))
    return found


def without(monkeypatch: pytest.MonkeyPatch, pattern: str, instead: str) -> None:
    """Leave something out of the text that is compiled."""

    def text(lowered: Lowered) -> str:
        whole, count = re.subn(pattern, instead, _cuda_text.program_text(lowered))
        assert count
        return whole

    monkeypatch.setattr(_cuda, "program_text", text)


def test_all_is_well_with_all_defences(gpu: CudaBackend) -> None:
    assert len(results(RACE)) == 1


def test_without_the_snapshot_a_race_has_many_results(gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_block_races._Finder, "mark", lambda *_: None)
    assert len(results(RACE)) == 4


def test_without_the_barrier_behind_it_a_snapshot_is_taken_of_what_is_stored_meanwhile(
    gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, r"(w_sm\[z\] = m_sm\[z\]\n +z \+= uint64\(size\)\n) +syncthreads\(\)\n", r"\1")
    assert len(results(RACE)) > 1


def test_without_zeroing_memory_holds_anything(gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(results("    pass\n")) == 1
    monkeypatch.setattr(_lower, "in_turn", lambda *_: ["pass"])
    assert len(results("    pass\n")) == 4


def test_without_the_barrier_behind_it_zeroing_meets_the_first_stores(
    gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = "    sm[7 - tx] = x[i]\n    cuda.syncthreads()\n"
    assert len(results(store)) == 1
    without(monkeypatch, r"(m_sm\[z\] = 0\n +z \+= uint64\(size\)\n) +syncthreads\(\)\n", r"\1")
    with pytest.raises(PtxError, match="two threads store to one place"):
        results(store)


def test_without_barriers_threads_find_anything(gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "    sm[tx] = x[i]\n    cuda.syncthreads()\n    n += sm[7 - tx]\n    cuda.syncthreads()\n    sm[tx] = n\n"
    assert len(results(lines)) == 1
    without(monkeypatch, r"\n +syncthreads\(\)(?=\n)", "")
    assert len(results(lines)) == 4


def test_without_the_proof_that_stores_do_not_meet_they_do(gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    race = "    sm[tx % 3] = tx\n    cuda.syncthreads()\n"
    with pytest.raises(KernelError, match="store to one element"):
        results(race)
    monkeypatch.setattr(_block_races._Finder, "check_single", lambda *_: None)
    with pytest.raises(PtxError, match="two threads store to one place"):
        results(race)


def test_without_the_proof_of_uniformity_threads_wait_for_ever(
    gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = "    if x[i] > 3:\n        cuda.syncthreads()\n    sm[tx] = n\n"
    with pytest.raises(KernelError, match="threads of a block part"):
        results(part)
    monkeypatch.setattr(_guard_block._Cutter, "check", lambda *_: None)
    with pytest.raises(PtxError, match=r"different barriers|has ended while others"):
        results(part)


def test_a_kernel_whose_threads_run_alone_may_not_share(gpu: CudaBackend) -> None:
    binding = blocks.block_sum[2, 8].bind(out(2, np.float32), np.zeros(16, np.float32))
    ptx = gpu.ptx(binding.source, binding.launch, binding.specs).blocks_ptx
    assert find_faults(ptx, together=True) == []
    assert {fault.rule for fault in find_faults(ptx)} == {"directive", "communication"}


# Random kernels


def compare(gpu: CudaBackend, seed: int, threads: int, n: int) -> str:
    """The text of the first kernel from the seed on that is taken, if its bits are not what the rules say; or "" ."""
    while True:
        text = random_blocks.Writer(Random(seed), threads).text()
        try:
            _, source, launch, specs = random_blocks.lowered(text, threads, n)
            break
        except KernelError:
            seed += 1
    rows, blk = np.zeros((BLOCKS, threads), np.int64), np.zeros((BLOCKS, ROW), np.int64)
    gpu.compile(source, launch, specs).run_blocks(0, BLOCKS, [random_blocks.X, np.int64(n)], [rows, blk])
    same = (rows.ravel().tolist(), blk.tolist()) == random_blocks.model(text, threads, n)
    return "" if same else f"seed {seed}, {threads} threads, n = {n}\n{text}"


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_random_kernels(gpu: CudaBackend, seed: int) -> None:
    assert compare(gpu, seed, 8, seed % 5 - 1) == ""


@pytest.mark.parametrize("seed", [100, 110, 120])
def test_random_kernels_whose_snapshots_lie_outside(
    gpu: CudaBackend, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_text, "_SHARED_BYTES", 0)
    assert compare(gpu, seed, 4, 3) == ""


@pytest.mark.parametrize("seed", [200, 210])
def test_random_kernels_on_the_newest_generation(gpu: CudaBackend, seed: int) -> None:
    assert compare(CudaBackend(Machine(capability=(12, 0))), seed, 3, 2) == ""


# Bounds


@kernel
def large(result, x):
    """All of shared memory, with arrays that would leave gaps if they lay in this order; two have snapshots."""
    a = cuda.shared.array(1, np.int8)
    b = cuda.shared.array(3000, np.float64)
    c = cuda.shared.array(1, np.int8)
    d = cuda.shared.array(3143, np.float64)
    e = cuda.shared.array(6, np.int8)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    if tx == 0:
        a[0] = 3
        c[0] = 4
    if tx < 6:
        e[tx] = tx
    b[tx] = x[i]
    d[tx * 7] = x[i]
    cuda.syncthreads()
    for _ in range(2):
        b[tx] += b[(tx + 1) % 16]
        d[tx * 7] -= d[(tx + 3) % 16 * 7]
        cuda.syncthreads()
    result[i] = b[tx] + d[tx * 7] * a[0] + c[0] - e[tx % 6]


def test_snapshots_that_have_no_room(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(1).standard_normal(30)
    binding = large[2, 16].bind(out(30, np.float64), x)
    assert_same_bits(cpu, gpu, machine, binding, singles=False)
    assert ".b8 _cudapy_smem" in gpu.ptx(binding.source, binding.launch, binding.specs).blocks_ptx


def test_snapshots_outside_have_a_place_for_each_block_of_a_launch(
    cpu: CpuBackend, gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(2).standard_normal(150, dtype=np.float32)
    binding = blocks.scan_of_one_barrier[19, 8].bind(out(150, np.float32), out(19, np.float32), x)
    monkeypatch.setattr(_cuda_text, "_SHARED_BYTES", 0)
    monkeypatch.setattr(_cuda, "_SNAPSHOT_BYTES", 7 * 512)
    machine = Machine()
    assert_same_bits(cpu, CudaBackend(machine), machine, binding)
    sizes = [(entry, grid[0]) for entry, grid, _ in machine.launches]
    assert sizes == [*(("run_blocks", n) for n in (7, 7, 5, 2)), ("run_threads", 3)]


def test_long_runs_of_blocks_are_launched_in_parts(cpu: CpuBackend, gpu: CudaBackend) -> None:
    x = np.random.default_rng(3).standard_normal(70, dtype=np.float32)
    machine = Machine()
    binding = blocks.block_sum[9, 8].bind(out(9, np.float32), x)
    assert_same_bits(cpu, CudaBackend(machine, blocks_a_launch=2), machine, binding)
    sizes = [(entry, grid[0]) for entry, grid, _ in machine.launches]
    assert sizes == [*(("run_blocks", n) for n in (2, 2, 2, 2, 1, 2)), ("run_threads", 2), ("run_threads", 1)]


@kernel
def everything(result, sums, x, n):
    """All that a kernel of this kind may hold."""
    weights = cuda.const.array_like(WEIGHTS)
    sm = cuda.shared.array((4, 8), np.float32)
    counts = cuda.shared.array(40, np.int64)
    mine = cuda.local.array(5, np.float64)
    i, j = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    sm[ty, tx] = x[j, i]
    cuda.syncthreads()
    for k in range(n):
        sm[ty, tx] += sm[ty, (tx + k) % 8]
        mine[k % 5] += weights[k]
        cuda.atomic.add(counts, int(sm[ty, tx]), 1)
        cuda.syncthreads()
    if tx == 0 and ty == 0:
        for k in range(40):
            sums[cuda.blockIdx.y, cuda.blockIdx.x, k % 3] += counts[k]
    if sm[3 - ty, tx] < 0.0:
        return
    result[j, i] = mine[tx % 5]


GENERATIONS = [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)]


@pytest.mark.parametrize("capability", GENERATIONS)
def test_ptx_and_machine_code_for_each_generation(
    cpu: CpuBackend, gpu: CudaBackend, capability: tuple[int, int]
) -> None:
    machine = Machine(capability=capability)
    backend = CudaBackend(machine)
    x = np.random.default_rng(4).standard_normal((7, 15), dtype=np.float32) * 9
    binding = everything[(2, 2), (8, 4)].bind(out((7, 15), np.float64), out((2, 2, 3), np.int32), x, 4)
    assert_same_bits(cpu, backend, machine, binding, singles=False)
    program = backend.ptx(binding.source, binding.launch, binding.specs)
    for ptx in (program.blocks_ptx, program.threads_ptx):
        assert "bar.sync" in ptx
        assert re.search(r"atom\.(?:relaxed\.\w+\.)?shared\.add\.u64", ptx)
        assert link_cubin(ptx, capability)[:4] == b"\x7fELF"


@pytest.mark.parametrize("capability", GENERATIONS)
def test_all_of_shared_memory_for_each_generation(gpu: CudaBackend, capability: tuple[int, int]) -> None:
    full = large[2, 16].bind(out(30, np.float64), np.zeros(30))
    ptx = CudaBackend(capability=capability).ptx(full.source, full.launch, full.specs).blocks_ptx
    assert link_cubin(ptx, capability)[:4] == b"\x7fELF"


def test_more_shared_memory_than_a_block_has_does_not_link(gpu: CudaBackend) -> None:
    full = large[2, 16].bind(out(30, np.float64), np.zeros(30))
    ptx = gpu.ptx(full.source, full.launch, full.specs).blocks_ptx
    with pytest.raises(KernelError, match="does not link"):
        link_cubin(ptx.replace("[25144]", "[26144]"), (8, 0))


def test_what_reads_the_value_before_an_atomic_operation_is_refused(
    gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of threads would be in the result: were the compiler to bring it out, the lint would see it."""

    def text(lowered: Lowered) -> str:
        whole = _cuda_text.program_text(lowered)
        return re.sub(r"atomic_add\(m_h, (\w+), ", r"m_h[0] = leaking(m_h, \1, ", whole)

    backend = CudaBackend(capability=(8, 0))
    binding = blocks.histogram[3, 100].bind(out((3, blocks.BINS), np.int64), np.zeros(280, np.int64))
    backend._namespace["leaking"] = backend._compiler.jit(leaking(backend._compiler.cuda))
    monkeypatch.setattr(_cuda, "program_text", text)
    with pytest.raises(PtxRefused, match=r"atom.*the order of threads would show"):
        backend.compile(binding.source, binding.launch, binding.specs)


def leaking(module: Any) -> Callable[..., Any]:
    def operate(array, place, value):  # type: ignore[no-untyped-def]
        return module.atomic.add(array, place, value)

    return operate


if __name__ == "__main__":
    backends = [CudaBackend(Machine(capability=capability)) for capability in ((8, 0), (12, 0))]
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        for backend in backends:
            if said := compare(backend, number, (3, 4, 8)[number % 3], number % 5 - 1):
                sys.stdout.write(said + "\n")
