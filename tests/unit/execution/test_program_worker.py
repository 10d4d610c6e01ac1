"""Programs in real workers: what they give, what they may get wrong, and what they can't get at."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.errors import (
    ExecutionError,
    KernelError,
    KernelTypeError,
    SandboxError,
    WorkerDied,
    WorkerTimeout,
)
from p2pcompute.execution import InputSpec, OutputSpec, SandboxPolicy, ScalarSpec, WorkerPool, WorkerSession, open_pool
from p2pcompute.execution._pool_program import program_worker
from p2pcompute.execution._program import ItemFailed, ProgramBackend, program_launch, program_source
from p2pcompute.execution._program_files import look_up

from ._program_site import EXAMPLE, HOSTILE, install, install_example, on_path
from .hostile import hostile_program

pytestmark = pytest.mark.net

BARE = SandboxPolicy(bwrap="never")
ONE = OutputSpec(dtype="int64", shape=(4,))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the example and the hostile distribution."""
    where = tmp_path / "site"
    install_example(where)
    points = {name: f"hostile_program:{name}" for name in ("attack", "careless", "scribble")}
    install(where, "hostile", "1.0", {"hostile_program.py": HOSTILE.read_text()}, points)
    on_path(monkeypatch, where)
    yield where
    sys.modules.pop("tiny_learner", None)


def pool_of(name: str, *, spare: int = 0) -> Any:
    return open_pool(program=program_worker(look_up(name)), policy=BARE, spare=spare)


@asynccontextmanager
async def loaded(name: str, items: int, args: list[Any], inputs: dict[int, Any]) -> AsyncGenerator[WorkerSession, None]:
    pool: WorkerPool
    async with pool_of(name) as pool, pool.session() as session:
        await session.compile(program_source(look_up(name)), program_launch(items), args, inputs)
        yield session


def network(rng: np.random.Generator) -> list[np.ndarray[Any, Any]]:
    return [
        rng.integers(0, 256, (10, 64), dtype=np.uint8),
        rng.integers(-128, 128, (64, 16), dtype=np.int8),
        rng.integers(-9, 9, 16, dtype=np.int32),
        rng.integers(-128, 128, (16, 5), dtype=np.int8),
        rng.integers(-9, 9, 5, dtype=np.int32),
    ]


def test_a_program_gives_what_its_function_gives(site: Path) -> None:
    arrays = network(np.random.default_rng(4))
    specs: list[Any] = [OutputSpec(dtype="uint8", shape=(10,)), OutputSpec(dtype="int32", shape=(10, 5))]
    specs += [InputSpec(dtype=array.dtype.name, shape=array.shape) for array in arrays]

    async def main() -> None:
        async with loaded("infer", 10, specs, {k + 2: array for k, array in enumerate(arrays)}) as session:
            chunk = (await session.run_blocks(3, 6, timeout_s=20)).outputs
            single = (await session.run_threads(np.array([8, 3]), timeout_s=20)).outputs
        sys.path.insert(0, str(EXAMPLE))
        try:
            from tiny_learner import infer  # type: ignore[import-not-found]
        finally:
            sys.path.remove(str(EXAMPLE))
        labels, scores = np.zeros(10, np.uint8), np.zeros((10, 5), np.int32)
        for index in range(10):
            infer(index, labels[index, ...], scores[index], *arrays)
        assert chunk == (labels[3:9].tobytes(), scores[3:9].tobytes())
        assert single == (labels[[8, 3]].tobytes(), scores[[8, 3]].tobytes())
        assert len(set(labels.tolist())) > 1

    trio.run(main)


def test_the_sandbox_is_that_of_kernels(site: Path) -> None:
    async def main() -> None:
        async with pool_of("infer") as pool, pool.session() as session:
            assert session.layers.landlock_abi > 0
            assert session.layers.seccomp

    trio.run(main)


def test_files_that_have_changed_since_are_not_run(site: Path) -> None:
    worker = program_worker(look_up("infer"))
    with (site / "tiny_learner" / "__init__.py").open("a") as file:
        file.write("\n# another\n")

    async def main() -> None:
        async with open_pool(program=worker, policy=BARE, spare=1):
            raise AssertionError("it was started")

    with pytest.raises(SandboxError, match="have changed since the node looked at them; start the node again"):
        _run(main)


def _run(main: Any) -> None:
    """`trio.run`; the one error of its groups."""
    try:
        trio.run(main)
    except ExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        raise error from None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("import not_there\n", "ModuleNotFoundError: No module named 'not_there'"),
        ("open('/etc/passwd')\n", "PermissionError"),
        ("open(__file__ + 'x', 'w')\n", "PermissionError"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))\n", "PermissionError"),
        ("step = 7\n", "is a int and no function"),
        ("pass\n", "AttributeError"),
    ],
)
def test_what_can_not_be_imported_in_the_sandbox_is_said(
    text: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "soft", "1", {"soft.py": text}, {"step": "soft:step"})
    on_path(monkeypatch, tmp_path)

    async def main() -> None:
        async with pool_of("step", spare=1):
            raise AssertionError("it was started")

    with pytest.raises(SandboxError, match=match):
        _run(main)


def test_a_module_of_the_same_name_from_elsewhere_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RECORD lists the module that the entry point names; another one that comes first would be what is imported."""
    install(tmp_path, "false-json", "1", {"json/__init__.py": "def step(index, out): ..."}, {"step": "json:dumps"})
    on_path(monkeypatch, tmp_path)

    async def main() -> None:
        async with pool_of("step", spare=1):
            raise AssertionError("it was started")

    with pytest.raises(SandboxError, match=r"is imported from .*/json/__init__\.py, and its distribution lies in"):
        _run(main)


def test_errors_of_a_program_name_the_item_and_leave_the_worker_alive(site: Path) -> None:
    async def main() -> None:
        for how, match in ((0, "item 2: KeyError: 'weights'"), (1, "item 2: the program returned a str")):
            scalar = ScalarSpec(dtype="int64", value=np.int64(how))
            async with loaded("careless", 4, [ONE, scalar], {}) as session:
                for _ in range(2):
                    with pytest.raises(ExecutionError, match=match) as caught:
                        await session.run_blocks(2, 2, timeout_s=20)
                    assert type(caught.value) is ExecutionError

    trio.run(main)


def test_a_program_that_ends_the_process_or_never_ends_costs_a_worker(site: Path) -> None:
    async def main() -> None:
        async with loaded("careless", 4, [ONE, ScalarSpec(dtype="int64", value=np.int64(2))], {}) as session:
            with pytest.raises(WorkerDied, match="status 3"):
                await session.run_blocks(0, 1, timeout_s=20)
        async with loaded("careless", 4, [ONE, ScalarSpec(dtype="int64", value=np.int64(3))], {}) as session:
            with pytest.raises(WorkerTimeout):
                await session.run_blocks(0, 1, timeout_s=0.2)

    trio.run(main)


def test_the_hash_of_a_text_is_the_same_in_all_workers(site: Path) -> None:
    """So that a program that goes through a set gives the same bits wherever it runs."""
    given: set[bytes] = set()

    async def main() -> None:
        for _ in range(2):
            async with loaded("careless", 4, [ONE, ScalarSpec(dtype="int64", value=np.int64(4))], {}) as session:
                given.add((await session.run_blocks(0, 1, timeout_s=20)).outputs[0])

    trio.run(main)
    assert len(given) == 1
    here = subprocess.run(
        [sys.executable, "-c", "for _ in 'ab': print(hash('the order of a set of texts hangs on this') % 1000)"],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(here.stdout.split()[0]) != int.from_bytes(given.pop(), "little")  # it does depend on the seed


def test_inputs_can_not_be_written(site: Path) -> None:
    specs = [ONE, InputSpec(dtype="float64", shape=(2,))]

    async def main() -> None:
        async with loaded("scribble", 4, specs, {1: np.zeros(2)}) as session:
            with pytest.raises(ExecutionError, match="ValueError: cannot set WRITEABLE flag"):
                await session.run_blocks(0, 1, timeout_s=20)

    trio.run(main)


def test_calls_that_do_not_fit_are_refused_before_they_run(site: Path) -> None:
    program, scalar = look_up("careless"), ScalarSpec(dtype="int64", value=np.int64(4))

    async def main() -> None:
        async with pool_of("careless") as pool, pool.session() as session:
            for args, match in (
                ([ONE], "does not take an index and 1 arguments: missing a required argument: 'how'"),
                ([ONE, scalar, scalar], "too many positional arguments"),
                ([scalar, scalar], "without an output"),
                ([OutputSpec(dtype="int64", shape=(5,)), scalar], "has the shape .5,. and there are 4 items"),
            ):
                with pytest.raises(KernelTypeError, match=match):
                    await session.compile(program_source(program), program_launch(4), args, {})
            with pytest.raises(KernelError, match=r"has loaded careless of hostile==1\.0 and is asked for infer of"):
                await session.compile(program_source(look_up("infer")), program_launch(4), [ONE, scalar], {})
            await session.compile(program_source(program), program_launch(4), [ONE, scalar], {})

    trio.run(main)


# -- what the sandbox holds --------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory with a key, whose name is the port of a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = tmp_path / str(listener.getsockname()[1])
        where.mkdir()
        (where / "node.key").write_text("secret")
        yield where


def test_no_attack_of_a_program_gets_out(site: Path, home: Path) -> None:
    names = [attack.__name__ for attack in hostile_program.ATTACKS]
    path = np.frombuffer(str(home).encode(), np.uint8)
    specs = [OutputSpec(dtype="int64", shape=(len(names),)), InputSpec(dtype="uint8", shape=path.shape)]
    verdicts: dict[str, str] = {}

    async def main() -> None:
        program = look_up("attack")
        async with open_pool(program=program_worker(program), policy=BARE, spare=1) as pool:
            left = list(range(len(names)))
            while left:
                async with pool.session() as session:
                    await session.compile(program_source(program), program_launch(len(names)), specs, {1: path})
                    while left:
                        index = left.pop(0)
                        try:
                            result = await session.run_blocks(index, 1, timeout_s=30)
                        except WorkerDied as died:
                            verdicts[names[index]] = "killed" if "only an attack makes" in str(died) else str(died)
                            break
                        (code,) = np.frombuffer(result.outputs[0], np.int64)
                        verdicts[names[index]] = "refused" if code == hostile_program.REFUSED else "GOT THROUGH"

    trio.run(main)
    assert set(verdicts) == set(names)
    assert {name: verdict for name, verdict in verdicts.items() if verdict not in ("refused", "killed")} == {}
    for name in ("fork", "start_a_thread", "signal_the_parent", "load_native_code_that_forks"):
        assert verdicts[name] == "killed"


def test_the_attacks_work_where_there_is_no_lock(site: Path, home: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import hostile_program\n"
        "for attack in hostile_program.ATTACKS:\n"
        "    attack(sys.argv[2]); print(attack.__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(site), str(home)], capture_output=True, text=True, timeout=500
    )
    assert done.stdout.split() == [attack.__name__ for attack in hostile_program.ATTACKS], done.stderr


READER = """
import os


def step(index, out):
    where = os.environ["P2PCOMPUTE_PROGRAM_DATA"]
    names = sorted(os.listdir(where))
    with open(os.path.join(where, names[index])) as file:
        out[...] = int(file.read())
"""


def test_a_program_reads_the_directory_that_it_was_given_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "reader", "1", {"reader.py": READER}, {"step": "reader:step"})
    on_path(monkeypatch, tmp_path / "site")
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").write_text("17")
    (data / "b").write_text("4")
    (tmp_path / "secret").write_text("99")
    (data / "c").symlink_to(tmp_path / "secret")
    program = look_up("step")

    async def main() -> None:
        specs = [OutputSpec(dtype="int64", shape=(3,))]
        worker = program_worker(program, data=str(data))
        async with open_pool(program=worker, policy=BARE, spare=0) as pool, pool.session() as session:
            await session.compile(program_source(program), program_launch(3), specs, {})
            result = await session.run_blocks(0, 2, timeout_s=20)
            assert np.frombuffer(result.outputs[0], np.int64).tolist() == [17, 4]
            with pytest.raises(ExecutionError, match="item 2: PermissionError"):
                await session.run_blocks(2, 1, timeout_s=20)
        async with pool_of("step") as pool, pool.session() as session:
            await session.compile(program_source(program), program_launch(3), specs, {})
            with pytest.raises(ExecutionError, match="item 0: KeyError"):
                await session.run_blocks(0, 1, timeout_s=20)

    trio.run(main)


# -- the back end by itself --------------------------------------------------------------------------------------


def test_a_row_is_the_items_own_and_starts_as_zeros() -> None:
    seen: list[tuple[int, tuple[int, ...], Any]] = []

    def step(index: int, row: Any, scale: Any, cell: Any) -> None:
        seen.append((index, row.shape, scale))
        assert not row.any()
        row[:] = index * scale
        cell[...] = index

    program = look_up_stub()
    specs = [
        OutputSpec(dtype="float32", shape=(7, 2)),
        ScalarSpec(dtype="float64", value=np.float64(0.5)),
        OutputSpec(dtype="int8", shape=(7,)),
    ]
    calls = ProgramBackend(step, program).compile(program_source(program), program_launch(7), specs)
    rows, cells = np.zeros((3, 2), np.float32), np.zeros(3, np.int8)
    calls.run_blocks(2, 3, [np.float64(0.5)], [rows, cells])
    assert rows.tolist() == [[1.0, 1.0], [1.5, 1.5], [2.0, 2.0]]
    assert cells.tolist() == [2, 3, 4]
    assert seen[0] == (2, (2,), 0.5)
    for ids in ([7], [-1]):
        with pytest.raises(ValueError, match="items outside of 7"):
            calls.run_threads(np.array(ids), [np.float64(0.5)], [rows[:1], cells[:1]])

    def broken(index: int, row: Any, scale: Any, cell: Any) -> None:
        raise ZeroDivisionError("by zero")

    calls = ProgramBackend(broken, program).compile(program_source(program), program_launch(7), specs)
    with pytest.raises(ItemFailed, match="item 4: ZeroDivisionError: by zero"):
        calls.run_threads(np.array([4]), [np.float64(0.5)], [rows[:1], cells[:1]])


def look_up_stub() -> Any:
    from p2pcompute_protocols.work import ProgramRef

    return ProgramRef(distribution="soft", version="1", name="step", digest=bytes(32))
