"""Workers that drive a device: what their lock lets through, what they tell, and what is said where there is none.

No GPU is needed: the lists are data, the filter is run by an interpreter, and any device node can stand for a GPU's.
"""

from __future__ import annotations

import errno
import os
import sys
import types
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute import cuda
from p2pcompute._rounds import bind_rounds
from p2pcompute.errors import ConfigError, ExecutionError, SandboxError, WorkerDied
from p2pcompute.execution import KernelSource, Launch, OutputSpec, SandboxPolicy, WorkerSession, open_pool
from p2pcompute.execution import _nvml as nvml
from p2pcompute.execution import _pool_cuda as pool_cuda
from p2pcompute.execution import _sandbox as sandbox
from p2pcompute.execution._cuda_compile import CudaNotInstalled
from p2pcompute.execution._cuda_device import NoCudaDevice
from p2pcompute.execution._pool_process import WorkerProgram, readable_paths
from p2pcompute.execution._sandbox_bwrap import Bwrap
from p2pcompute.execution._sandbox_devices import (
    DRIVER_IOCTLS,
    UVM_IOCTLS,
    DeviceAccess,
    driver_directories,
    nvidia_access,
)
from p2pcompute.execution._sandbox_seccomp import build_filter
from p2pcompute.kernel import kernel

from .test_sandbox_seccomp import ALLOW, ARCH, EACCES, EPERM, KILL, NUMBERS, PID, PTHREAD, verdict

HOSTILE = str(Path(__file__).parent / "hostile")
BARE = SandboxPolicy(bwrap="never")
LAUNCH = Launch(grid=(1, 1, 1), block=(64, 1, 1), dims=1)
OUT = OutputSpec(dtype="int64", shape=(64,))
O_CREAT, O_TRUNC, O_RDWR, O_WRONLY, O_CLOEXEC = 0o100, 0o1000, 2, 1, 0o2000000
ACCESS = DeviceAccess(nodes=("/dev/zero",), readable=("/dev/full",), environment=(("TOY_DEVICE", "7"),))


def ask(machine: str, name: str, *args: int, device: bool) -> int:
    program = build_filter(machine=machine, pid=PID, allow_threads=device, device=device)
    return verdict(program, arch=ARCH[machine], number=NUMBERS[machine][name], args=args)


def request(number: int, *, size: int = 32, direction: int = 3, kind: int = ord("F")) -> int:
    """An ioctl's number as asm-generic/ioctl.h makes it."""
    return direction << 30 | size << 16 | kind << 8 | number


@pytest.mark.parametrize("machine", list(ARCH))
def test_a_device_opens_some_calls_and_only_for_its_worker(machine: str) -> None:
    open_and_write = (0, 0, O_RDWR | O_CLOEXEC)
    for size in (8, 32, 4095):  # the size of what is passed differs by version of the driver
        assert ask(machine, "ioctl", 9, request(0x2A, size=size), device=True) == ALLOW
        assert ask(machine, "ioctl", 9, request(0x2A, size=size), device=False) == EPERM
    assert ask(machine, "ioctl", 9, 33, device=True) == ALLOW
    assert ask(machine, "ioctl", 9, 33, device=False) == EPERM
    assert ask(machine, "openat", *open_and_write, device=True) == ALLOW
    assert ask(machine, "openat", *open_and_write, device=False) == EACCES
    assert ask(machine, "clone", PTHREAD, device=True) == ALLOW
    assert ask(machine, "clone", PTHREAD, device=False) == KILL


@pytest.mark.parametrize("machine", list(ARCH))
@pytest.mark.parametrize(
    "forbidden",
    [
        request(0x35),  # RM_SHARE: with another process
        request(0x54),  # contexts of graphics
        request(0x57),
        request(217),  # memory as a descriptor for other devices
        request(0x2A, kind=ord("T")),
        0x5412,  # TIOCSTI
        0x30000001,  # UVM_INITIALIZE: done before the lock
        29,  # UVM's peer access
    ],
)
def test_what_a_kernel_has_no_use_for_stays_shut(machine: str, forbidden: int) -> None:
    assert ask(machine, "ioctl", 9, forbidden, device=True) == EPERM


@pytest.mark.parametrize("machine", list(ARCH))
def test_a_device_makes_no_hole_elsewhere(machine: str) -> None:
    """Files are not made or cut, and what only attacks call still ends the process."""
    for flags in (O_RDWR | O_CREAT, O_RDWR | O_TRUNC, O_WRONLY | O_CREAT):
        assert ask(machine, "openat", 0, 0, flags, device=True) == EACCES
    assert ask(machine, "clone", 17, device=True) == KILL
    for name in ("execve", "kill", "ptrace"):
        assert ask(machine, name, device=True) == KILL
    for name in ("socket", "sendmsg", "memfd_create", "ftruncate", "pwrite64", "unlinkat", "setrlimit"):
        assert ask(machine, name, device=True) == EPERM


def test_the_requests_are_words_of_their_own() -> None:
    assert len(set(DRIVER_IOCTLS)) == len(DRIVER_IOCTLS)
    assert all(number >> 8 == ord("F") for number in DRIVER_IOCTLS)
    assert len(set(UVM_IOCTLS)) == len(UVM_IOCTLS)
    # No plain ioctl of terminals or files is among them: FIONREAD and its like begin at 0x5401, FIBMAP is 1.
    assert all(2 < number < 0x5401 for number in UVM_IOCTLS)


def test_a_gpu_is_its_nodes_and_nothing_else() -> None:
    access = nvidia_access(minor=3, visible="GPU-1234", libraries=["/usr/lib/x86_64-linux-gnu"])
    assert access.nodes == ("/dev/nvidia3", "/dev/nvidiactl", "/dev/nvidia-uvm")
    environment = dict(access.environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1234"
    assert environment["CUDA_CACHE_DISABLE"] == "1"
    assert environment["LD_LIBRARY_PATH"] == "/usr/lib/x86_64-linux-gnu"
    assert not {"/", "/dev", "/proc", "/sys", "/etc", "/home", "/tmp"} & set(access.readable)
    program = WorkerProgram(module="any", access=access)
    assert set(access.readable) <= set(readable_paths(program))
    assert not set(access.readable) & set(readable_paths()) - {"/usr/lib/x86_64-linux-gnu"}


def test_bubblewrap_is_handed_the_nodes_as_devices() -> None:
    bwrap = Bwrap(path="/usr/bin/bwrap", version="0.8.0", disable_userns=True)
    command = bwrap.command(["/usr/lib", "/sys/devices", "/proc/meminfo"], info_fd=None, devices=["/dev/nvidia0"])
    words = " ".join(command)
    assert "--dev-bind-try /dev/nvidia0 /dev/nvidia0" in words
    assert "--ro-bind-try /sys/devices /sys/devices" in words
    assert words.index("--dev /dev") < words.index("/dev/nvidia0")
    assert "dev-bind" not in " ".join(bwrap.command(["/usr/lib"], info_fd=None))


def test_the_driver_is_found_where_it_lies(tmp_path: Path) -> None:
    assert driver_directories(root=str(tmp_path)) == []
    usual, odd = tmp_path / "usr/lib64", tmp_path / "opt/nvidia"
    for place in (usual, odd):
        place.mkdir(parents=True)
        (place / "libcuda.so.1").touch()
    assert driver_directories(root=str(tmp_path)) == [str(usual)]
    assert driver_directories(search=f"relative:{odd}::{tmp_path}", root=str(tmp_path)) == [str(odd), str(usual)]


# -- processes -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def worker(
    entry: str, *, access: DeviceAccess | None = ACCESS, energy: Any = None
) -> AsyncGenerator[WorkerSession, None]:
    program = WorkerProgram(module="toy_device_worker", roots=(HOSTILE,), access=access, energy=energy)
    async with open_pool(spare=0, policy=BARE, program=program) as pool, pool.session() as session:
        await session.compile(KernelSource(text="", entry=entry, digest=bytes(32)), LAUNCH, [OUT], {})
        yield session


def reach(access: DeviceAccess | None) -> list[int]:
    found: list[int] = []

    async def main() -> None:
        async with worker("Reach", access=access) as session:
            result = await session.run_blocks(0, 1, timeout_s=60)
            found.extend(np.frombuffer(result.outputs[0], dtype=np.int64)[:10].tolist())

    trio.run(main)
    return found


@pytest.mark.net
def test_a_worker_drives_its_device_and_writes_nowhere_else() -> None:
    found = reach(ACCESS)
    assert found[0] == 0
    assert found[1:5] == [errno.EACCES] * 4  # what it may read, what all may read, what is cut, what is made
    assert found[5] == errno.ENOTTY  # the request has got through to a node that knows nothing of it
    assert found[6:8] == [errno.EPERM] * 2
    assert found[8] == errno.EACCES
    assert found[9] == 7


@pytest.mark.net
def test_without_a_device_all_of_that_is_shut() -> None:
    found = reach(None)
    assert found[:5] == [errno.EACCES] * 5
    assert found[5:8] == [errno.EPERM] * 3
    assert found[9] == 0


@pytest.mark.net
def test_device_time_and_energy_come_with_the_result() -> None:
    counter = iter(range(5_000, 10_000, 700))

    async def main() -> None:
        async with worker("Tick", energy=lambda: next(counter)) as session:
            for _ in range(2):
                result = await session.run_blocks(0, 1, timeout_s=60)
                assert (result.device_ns, result.energy_mj) == (1_000, 700)
                assert result.wall_ns > 0
        async with worker("Tick", energy=lambda: None) as session:
            assert (await session.run_blocks(0, 1, timeout_s=60)).energy_mj is None
        async with worker("Tick", access=None) as session:
            assert (await session.run_blocks(0, 1, timeout_s=60)).energy_mj is None

    trio.run(main)


@kernel
def Tick(new_x: Any, x: Any) -> None:
    i = cuda.grid(1)
    new_x[i] = x[i]


@pytest.mark.net
def test_device_time_and_energy_of_rounds_come_with_their_states() -> None:
    counter = iter(range(5_000, 10_000, 700))
    bound = bind_rounds(Tick[1, 64], 9, {"x": np.zeros(64, np.int64)}, ())

    async def main() -> None:
        async with worker("Tick", energy=lambda: next(counter)) as session:
            await session.compile_rounds(bound.steps, bound.specs, bound.inputs())
            for rounds in (1, 3):
                result = await session.run_rounds(bound.arrays, 0, rounds, timeout_s=60)
                assert (result.device_ns, result.energy_mj) == (1_000 * rounds, 700)
        async with worker("Tick", access=None) as session:
            await session.compile_rounds(bound.steps, bound.specs, bound.inputs())
            assert (await session.run_rounds(bound.arrays, 0, 1, timeout_s=60)).energy_mj is None

    trio.run(main)


@pytest.mark.net
def test_a_worker_whose_device_is_lost_ends() -> None:
    async def main() -> None:
        async with worker("Fault") as session:
            with pytest.raises(ExecutionError, match="illegal address"):
                await session.run_blocks(0, 1, timeout_s=60)
            with pytest.raises(WorkerDied):
                await session.run_blocks(0, 1, timeout_s=60)

    trio.run(main)


def test_a_device_needs_landlock_whatever_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a worker that may open for writing could open anything. Nothing of the lock is put on here."""
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: 0)
    monkeypatch.setattr(sandbox, "libc_prctl", lambda *_: 0)
    monkeypatch.setattr(sandbox, "_drop_capabilities", lambda: None)
    monkeypatch.setattr(os, "chdir", lambda _: None)
    monkeypatch.setattr(sandbox, "open", _no_file, raising=False)
    monkeypatch.setattr(sandbox, "restrict_filesystem_and_net", _refuses)
    policy = SandboxPolicy(allow_unsandboxed=True)
    parent = os.getppid()
    assert sandbox.enter_early([], parent=parent, policy=policy) == 0
    with pytest.raises(SandboxError, match="no Landlock"):
        sandbox.enter_early([], parent=parent, policy=policy, devices=["/dev/nvidia0"])


def _no_file(*_: object) -> object:
    raise FileNotFoundError


def _refuses(*_: object) -> int:
    raise SandboxError("this kernel has no Landlock")


# -- which device --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuda", "cuda:", "cuda:-1", "cuda:01", "cuda:100", "gpu", "CPU", "cuda:0 "])
def test_a_device_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="write cpu, or cuda:0"):
        pool_cuda.cuda_ordinal(name)


def test_names_of_devices() -> None:
    assert [pool_cuda.cuda_ordinal(name) for name in ("cpu", "cuda:0", "cuda:17")] == [None, 0, 17]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages of the extra are here, and nothing else of CUDA's."""
    monkeypatch.setattr(pool_cuda, "check_installed", lambda: None)
    monkeypatch.setattr(pool_cuda, "list_gpus", list)
    monkeypatch.setattr(pool_cuda, "driver_directories", lambda **_: ["/usr/lib64"])
    monkeypatch.setattr(os.path, "exists", lambda path: str(path).startswith("/dev/nvidia"))


@pytest.mark.usefixtures("installed")
def test_a_missing_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_cuda, "driver_directories", lambda **_: [])
    with pytest.raises(NoCudaDevice, match="no NVIDIA driver here"):
        pool_cuda.device_worker("cuda:0")


@pytest.mark.usefixtures("installed")
def test_a_missing_node_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/nvidia-uvm")
    with pytest.raises(NoCudaDevice, match="/dev/nvidia-uvm is missing; load the driver's modules"):
        pool_cuda.device_worker("cuda:0")


@pytest.mark.usefixtures("installed")
def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = nvml.Gpu(uuid="GPU-a", minor=2, name="H100", memory_bytes=80, driver="580.1")
    monkeypatch.setattr(pool_cuda, "list_gpus", lambda: [gpu])
    monkeypatch.setattr(pool_cuda, "energy_meter", lambda _: None)
    with pytest.raises(NoCudaDevice, match="no CUDA device 1: the driver lists cuda:0 H100"):
        pool_cuda.device_worker("cuda:1")
    assert pool_cuda.device_worker("cuda:0").devices == ("/dev/nvidia2", "/dev/nvidiactl", "/dev/nvidia-uvm")


@pytest.mark.usefixtures("installed")
def test_without_the_library_the_order_of_the_bus_counts() -> None:
    program = pool_cuda.device_worker("cuda:1")
    assert program.energy is None
    assert program.access is not None
    assert program.devices[0] == "/dev/nvidia1"
    assert dict(program.access.environment)["CUDA_VISIBLE_DEVICES"] == "1"


def test_missing_packages_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CudaNotInstalled("numba-cuda is not installed; run: pip install 'p2pcompute[cuda]'")

    monkeypatch.setattr(pool_cuda, "check_installed", missing)
    with pytest.raises(CudaNotInstalled, match="pip install"):
        pool_cuda.device_worker("cuda:0")
    assert pool_cuda.device_worker("cpu").devices == ()


# -- NVIDIA's management library -------------------------------------------------------------------------------------


class _NVMLError(Exception):
    pass


def test_without_the_library_or_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # an import of it fails
    assert nvml.list_gpus() == []
    assert nvml.energy_meter("GPU-a") is None

    def init() -> None:
        raise _NVMLError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(NVMLError=_NVMLError, nvmlInit=init))
    assert nvml.list_gpus() == []
    assert nvml.energy_meter("GPU-a") is None


def test_a_library_that_fails_later_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise _NVMLError("Not Supported")

    library = types.SimpleNamespace(
        NVMLError=_NVMLError,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"580.1",
        nvmlDeviceGetCount=fails,
        nvmlDeviceGetHandleByUUID=lambda _: 1,
        nvmlDeviceGetTotalEnergyConsumption=fails,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert nvml.list_gpus() == []
    assert nvml.energy_meter("GPU-a") is None
