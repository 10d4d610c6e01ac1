"""The CUDA back end around its kernels: what it refuses, how it launches, and what happens where there is no device."""

from __future__ import annotations

import gc
import importlib.metadata
import re
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.errors import ExecutionError, KernelError, KernelTypeError
from p2pcompute.execution import _cuda_compile as compile_module
from p2pcompute.execution import _cuda_device as device_module
from p2pcompute.execution import probe_devices
from p2pcompute.execution._api import Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._cuda_compile import CudaCompiler, CudaNotInstalled, check_installed, link_cubin
from p2pcompute.execution._cuda_device import CudaDevice, NoCudaDevice, find_devices, open_device
from p2pcompute.execution._ptx_lint import PtxRefused, find_faults
from p2pcompute.execution._worker_launches import TARGET_NS, Pace, in_launches
from p2pcompute.kernel import Binding, kernel, out

from .ptx_machine import Machine

Array = np.ndarray[Any, Any]


@kernel
def saxpy(result, a, x, y):
    i = cuda.grid(1)
    result[i] = a * x[i] + y[i]


@kernel
def place(result, n):
    x, y = cuda.grid(2)
    result[y, x] = (y * 1_000_003 + x) ^ n


@pytest.fixture
def binding() -> Binding:
    x, y = np.random.default_rng(1).standard_normal((2, 300), dtype=np.float32)
    return saxpy[10, 32].bind(out(x.shape, x.dtype), np.float32(1.1), x, y)


def run(backend: CpuBackend | CudaBackend, binding: Binding, first: int, blocks: int) -> Array:
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    rows = np.zeros(blocks * binding.launch.threads_per_block, binding.layout.outputs[0].dtype)
    compiled.run_blocks(first, blocks, binding.values, [rows])
    return rows


# Fused operations: the reason for the lint


def fusing(monkeypatch: pytest.MonkeyPatch, gpu: CudaBackend, machine: Machine) -> CudaBackend:
    """A back end whose compiler is asked for nothing: NVVM's defaults."""
    backend = CudaBackend(machine)
    nvvm = backend._compiler._nvvm
    compile_ir = nvvm.compile_ir
    monkeypatch.setattr(nvvm, "compile_ir", lambda modules, *, arch, **_: compile_ir(modules, arch=arch, opt=3))
    return backend


def test_the_compilers_defaults_fuse_and_the_lint_refuses_them(
    monkeypatch: pytest.MonkeyPatch, gpu: CudaBackend, machine: Machine, binding: Binding
) -> None:
    backend = fusing(monkeypatch, gpu, machine)
    with pytest.raises(PtxRefused, match=re.compile(r"fma\.rn\.f32.*rounded together")):
        backend.compile(binding.source, binding.launch, binding.specs)


def test_without_the_lint_a_fused_kernel_gives_other_bits(
    monkeypatch: pytest.MonkeyPatch, cpu: CpuBackend, gpu: CudaBackend, machine: Machine, binding: Binding
) -> None:
    due = run(cpu, binding, 0, 10)
    assert run(gpu, binding, 0, 10).tobytes() == due.tobytes()
    backend = fusing(monkeypatch, gpu, machine)
    monkeypatch.setattr("p2pcompute.execution._cuda.check_ptx", lambda ptx, **_: None)
    fused = run(backend, binding, 0, 10)
    assert 0 < np.count_nonzero(fused != due) < 300
    assert np.allclose(fused, due, rtol=1e-5, atol=1e-6)


@kernel
def lower_half(result, x):
    i = cuda.grid(1)
    result[i] = x[i] if x[i] < 0.0 else 0.0  # noqa: FURB136 - the form that NVVM knows


def test_a_choice_is_not_made_a_min(monkeypatch: pytest.MonkeyPatch, cpu: CpuBackend, gpu: CudaBackend) -> None:
    """NVVM makes this one a min.f32, which may give either zero where its operands are both."""
    x = np.array([-0.0, 0.0, -1.0, 1.0, np.nan], dtype=np.float32)
    binding = lower_half[1, 5].bind(out(5, np.float32), x)
    due = run(cpu, binding, 0, 1)
    choices = [Machine(lambda width, k=k: k) for k in (0, 1)]  # type: ignore[misc]
    assert [run(CudaBackend(machine), binding, 0, 1).tobytes() for machine in choices] == [due.tobytes()] * 2
    monkeypatch.setattr(compile_module, "_EXTREME", re.compile("(?!)"))
    with pytest.raises(PtxRefused, match=r"min\.f32.*between zeros"):
        CudaBackend(choices[0]).compile(binding.source, binding.launch, binding.specs)
    monkeypatch.setattr("p2pcompute.execution._cuda.check_ptx", lambda ptx, **_: None)
    found = [run(CudaBackend(machine), binding, 0, 1) for machine in choices]
    assert sorted(np.signbit(values[0]) for values in found) == [False, True]
    assert all(values[1:].tobytes() == due[1:].tobytes() for values in found)


def test_inexact_library_functions_are_refused_before_they_are_compiled(gpu: CudaBackend) -> None:
    import math

    from numba import types

    compiler = CudaCompiler((8, 0))
    cuda_module = compiler.cuda

    def sines(x):  # type: ignore[no-untyped-def]
        x[cuda_module.grid(1)] = math.sin(x[0])

    with pytest.raises(KernelError, match="__nv_sinf of libdevice, which is inexact"):
        compiler.ptx(sines, [types.Array(types.float32, 1, "C")], 128)


def test_what_does_not_compile_is_a_kernel_error(gpu: CudaBackend) -> None:
    from numba import types

    def untyped(x):  # type: ignore[no-untyped-def]
        x[0] = "text"

    with pytest.raises(KernelError, match="numba-cuda does not compile this kernel"):
        CudaCompiler((8, 0)).ptx(untyped, [types.Array(types.float32, 1, "C")], 128)


# Compiling


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)])
def test_ptx_and_machine_code_for_each_generation(
    gpu: CudaBackend, binding: Binding, capability: tuple[int, int]
) -> None:
    backend = CudaBackend(capability=capability)
    program = backend.ptx(binding.source, binding.launch, binding.specs)
    for ptx, entry in ((program.blocks_ptx, "run_blocks"), (program.threads_ptx, "run_threads")):
        assert f".target sm_{capability[0]}{capability[1]}" in ptx
        assert f".entry {entry}(" in ptx
        assert "mul.rn.f32" in ptx
        assert "add.rn.f32" in ptx
        assert find_faults(ptx) == []
    assert link_cubin(program.blocks_ptx, capability)[:4] == b"\x7fELF"


def test_broken_ptx_does_not_link(gpu: CudaBackend, binding: Binding) -> None:
    ptx = gpu.ptx(binding.source, binding.launch, binding.specs).blocks_ptx
    with pytest.raises(KernelError, match="does not link"):
        link_cubin(ptx.replace("mul.rn.f32", "mul.nr.f32"), (8, 0))


def test_another_size_of_the_same_kernel_is_not_compiled_again(gpu: CudaBackend, binding: Binding) -> None:
    x = np.zeros(77, np.float32)
    other = saxpy[3, 31].bind(out(77, np.float32), np.float32(2), x, x)
    one = gpu.compile(binding.source, binding.launch, binding.specs)
    two = gpu.compile(other.source, other.launch, other.specs)
    assert one._program is two._program  # type: ignore[attr-defined]
    large = saxpy[1, 512].bind(out(77, np.float32), np.float32(2), x, x)  # fewer registers for each thread
    assert ".maxntid 512," in gpu.ptx(large.source, large.launch, large.specs).blocks_ptx


def test_a_digest_of_another_text_does_not_pass(gpu: CudaBackend, binding: Binding) -> None:
    import dataclasses

    gpu.compile(binding.source, binding.launch, binding.specs)
    forged = dataclasses.replace(binding.source, text=binding.source.text.replace("+", "-"))
    with pytest.raises(KernelError):
        gpu.compile(forged, binding.launch, binding.specs)


def test_row_shapes(gpu: CudaBackend, cpu: CpuBackend, binding: Binding) -> None:
    given = (binding.source, binding.launch, binding.specs)
    assert gpu.row_shapes(*given) == cpu.row_shapes(*given) == [()]


# Running


def test_long_runs_are_launched_in_parts(cpu: CpuBackend, gpu: CudaBackend, binding: Binding) -> None:
    machine = Machine()
    backend = CudaBackend(machine, blocks_a_launch=3)
    assert run(backend, binding, 1, 8).tobytes() == run(cpu, binding, 1, 8).tobytes()
    assert machine.launches == [("run_blocks", (n, 1, 1), (32, 1, 1)) for n in (3, 3, 2)]
    assert machine.allocations == 0


def test_a_run_in_launches_gives_the_same_bits(cpu: CpuBackend, gpu: CudaBackend, binding: Binding) -> None:
    """As a worker runs a chunk: parts of it, one after the other, as its pace says."""
    compiled = gpu.compile(binding.source, binding.launch, binding.specs)
    rows = np.zeros(320, np.float32)
    parts: list[int] = []

    def launch(start: int, count: int) -> None:
        compiled.run_blocks(start, count, binding.values, [rows[start * 32 : (start + count) * 32]])
        parts.append(count)

    pace = Pace()
    pace.took(1, TARGET_NS // 2)
    in_launches(10, launch, pace, lambda _: True)
    assert len(parts) > 1
    assert sum(parts) == 10
    assert rows.tobytes() == run(cpu, binding, 0, 10).tobytes()


class Counting(Machine):
    """Counts what is copied to it."""

    uploads = 0

    def upload(self, address: int, values: Array) -> None:
        self.uploads += 1
        super().upload(address, values)


def test_inputs_that_nobody_can_write_stay_on_the_device(gpu: CudaBackend, binding: Binding) -> None:
    machine = Counting()
    backend = CudaBackend(machine)
    values = [np.array(value) if np.ndim(value) else value for value in binding.values]
    for value in values:
        if np.ndim(value):
            value.flags.writeable = False
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    first, again = np.zeros(64, np.float32), np.zeros(64, np.float32)
    compiled.run_blocks(0, 2, values, [first])
    assert machine.uploads == 3  # two inputs, and the rows
    compiled.run_blocks(0, 2, values, [again])
    assert machine.uploads == 4
    assert first.tobytes() == again.tobytes()
    assert machine.allocations == 2
    # With another array in its place nothing of the old one is used.
    values[2] = values[2] + np.float32(1)
    compiled.run_blocks(0, 2, values, [again])
    assert first.tobytes() != again.tobytes()
    del compiled
    gc.collect()
    assert machine.allocations == 0


def test_what_may_change_is_copied_each_time(gpu: CudaBackend, binding: Binding) -> None:
    machine = Counting()
    compiled = CudaBackend(machine).compile(binding.source, binding.launch, binding.specs)
    values = [np.array(value) if np.ndim(value) else value for value in binding.values]
    rows = np.zeros(64, np.float32)
    compiled.run_blocks(0, 2, values, [rows])
    before = rows.tobytes()
    values[2] += np.float32(1)
    compiled.run_blocks(0, 2, values, [rows])
    assert rows.tobytes() != before
    assert machine.allocations == 0


def test_places_far_out_in_the_largest_launch(cpu: CpuBackend, gpu: CudaBackend) -> None:
    launch = Launch(grid=(2**31 - 1, 500, 1), block=(1, 1, 1), dims=2)
    source = place.source
    specs = (
        OutputSpec(dtype="int64", shape=(500, 2**31 - 1)),
        place[(1, 1), (1, 1)].bind(out((1, 1), np.int64), 5).specs[1],
    )
    first = launch.blocks - 40
    rows = [np.zeros(40, np.int64) for _ in range(4)]
    for backend, (whole, single) in zip((cpu, gpu), (rows[:2], rows[2:]), strict=True):
        compiled = backend.compile(source, launch, specs)
        compiled.run_blocks(first, 40, [np.int64(5)], [whole])
        compiled.run_threads(np.arange(first, first + 40), [np.int64(5)], [single])
    assert rows[0][-1] == (499 * 1_000_003 + 2**31 - 2) ^ 5
    assert all(row.tobytes() == rows[0].tobytes() for row in rows)


def test_nothing_to_do(gpu: CudaBackend, machine: Machine, binding: Binding) -> None:
    compiled = gpu.compile(binding.source, binding.launch, binding.specs)
    before = len(machine.launches)
    compiled.run_blocks(3, 0, binding.values, [np.zeros(0, np.float32)])
    compiled.run_threads(np.zeros(0, np.int64), binding.values, [np.zeros(0, np.float32)])
    assert len(machine.launches) == before
    assert machine.allocations == 0


def test_wrong_arguments(gpu: CudaBackend, machine: Machine, binding: Binding) -> None:
    compiled = gpu.compile(binding.source, binding.launch, binding.specs)
    a, x, y = binding.values
    rows = np.zeros(320, np.float32)
    with pytest.raises(ValueError, match="not in a launch of 10"):
        compiled.run_blocks(5, 6, binding.values, [rows])
    with pytest.raises(ValueError, match="not linear ids"):
        compiled.run_threads(np.array([320]), binding.values, [rows[:1]])
    with pytest.raises(ValueError, match="2 arguments and 1 outputs"):
        compiled.run_blocks(0, 10, (a, x), [rows])
    with pytest.raises(ValueError, match=r"y is float64\(300,\), not float32\(300,\)"):
        compiled.run_blocks(0, 10, (a, x, y.astype(np.float64)), [rows])
    with pytest.raises(ValueError, match="rows of result: float32"):
        compiled.run_blocks(0, 10, binding.values, [rows[:-1]])
    with pytest.raises(ValueError, match="rows of result: float32"):
        compiled.run_blocks(0, 10, binding.values, [np.zeros(640, np.float32)[::2]])
    assert machine.allocations == 0
    with pytest.raises(KernelTypeError, match="takes 4 arguments"):
        gpu.compile(binding.source, binding.launch, binding.specs[:3])


def test_memory_is_given_back_when_a_launch_fails(gpu: CudaBackend, binding: Binding) -> None:
    machine = Machine(most_instructions=20)
    with pytest.raises(Exception, match="more than 20 instructions"):
        run(CudaBackend(machine), binding, 0, 10)
    assert machine.allocations == 0


def test_code_for_a_newer_device_is_not_run(gpu: CudaBackend, machine: Machine, binding: Binding) -> None:
    with pytest.raises(ExecutionError, match=r"has capability \(8, 0\), and kernels are compiled for \(9, 0\)"):
        run(CudaBackend(machine, capability=(9, 0)), binding, 0, 10)


# Devices


def test_a_device_of_this_machine_or_an_error_that_says_so(cpu: CpuBackend, gpu: CudaBackend, binding: Binding) -> None:
    devices = find_devices()
    assert [d.name for d in probe_devices() if d.kind == "cuda"] == [device.name for device in devices]
    if devices:
        backend = CudaBackend(devices[0])
        assert run(backend, binding, 0, 10).tobytes() == run(cpu, binding, 0, 10).tobytes()
        return
    for attempt in (CudaBackend, open_device, lambda: run(CudaBackend(capability=(8, 0)), binding, 0, 10)):
        with pytest.raises(NoCudaDevice, match="no CUDA device"):
            attempt()


class Driver:
    """As much of a driver as finding devices needs."""

    def __init__(self, status: int, count: int) -> None:
        self.status, self.count = status, count

    def cuInit(self, flags: int) -> tuple[int]:
        return (self.status,)

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return 0, self.count


@pytest.mark.parametrize(
    ("status", "ordinal", "message"),
    [(100, 0, "the driver answers 100"), (0, 0, "no CUDA device 0: the driver shows 0"), (0, -1, "no CUDA device -1")],
)
def test_a_driver_without_a_device(
    monkeypatch: pytest.MonkeyPatch, gpu: CudaBackend, status: int, ordinal: int, message: str
) -> None:
    monkeypatch.setattr(device_module, "import_module", lambda name: Driver(status, 0))
    with pytest.raises(NoCudaDevice, match=message):
        open_device(ordinal)
    assert find_devices() == []


def test_bindings_that_do_not_load(monkeypatch: pytest.MonkeyPatch, gpu: CudaBackend) -> None:
    def broken(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(device_module, "import_module", broken)
    with pytest.raises(CudaNotInstalled, match="does not load"):
        open_device()
    assert find_devices() == []


def test_the_interpreter_is_a_device() -> None:
    machine: CudaDevice = Machine()
    address = machine.allocate(16)
    values = np.arange(4, dtype=np.int32)
    machine.upload(address, values)
    back = np.zeros(4, np.int32)
    machine.download(address, back)
    assert back.tolist() == [0, 1, 2, 3]
    machine.release(address)


# What is installed. These need none of it.


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({}, "numba-cuda is not installed; run: pip install 'p2pcompute"),
        ({"numba-cuda": "0.31.0"}, "numba-cuda 0.31.0 is installed and 0.30.4 is needed"),
        ({"numba-cuda": "0.30.4"}, "cuda-bindings is not installed"),
        ({"numba-cuda": "0.30.4", "cuda-bindings": "13.5.0"}, "cuda-core is not installed"),
    ],
)
def test_missing_packages(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], message: str) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    for attempt in (check_installed, CudaBackend, lambda: CudaCompiler((8, 0)), lambda: link_cubin("", (8, 0))):
        with pytest.raises(CudaNotInstalled, match=re.escape(message)):
            attempt()
    assert find_devices() == []
    assert [device.kind for device in probe_devices()] == ["cpu"]


def test_the_simulator_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.30.4")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    with pytest.raises(CudaNotInstalled, match="simulator"):
        check_installed()
    assert find_devices() == []
