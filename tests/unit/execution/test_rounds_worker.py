"""Work in rounds in a locked worker: the same states as in this process, and none of them stays behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._rounds import BoundRounds, bind_rounds
from p2pcompute.errors import ExecutionError, KernelError, WorkerDied, WorkerTimeout
from p2pcompute.execution import SandboxPolicy, open_pool
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._ipc import FrameError
from p2pcompute.execution._ipc_rounds import decode_step, encode_step
from p2pcompute.execution._rounds import RoundEngine

from ..tasks._rounds import HILLS, expected_hills, flow_steps

pytestmark = pytest.mark.net

BARE = SandboxPolicy(bwrap="never")
Array = np.ndarray[Any, Any]


@p2p.kernel
def move(new_x, x, shift, round_number):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        new_x[i] = x[(i + round_number) % x.size] + shift[i % shift.size]


@p2p.kernel
def spread(total, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < total.size:
        total[i] = x[i]


@p2p.kernel
def pick(new_x, x, round_number):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        new_x[i] = x[i + round_number]  # out of range from round 1 on: defined as zero


def two_launches(rounds: int = 6) -> BoundRounds:
    steps = [
        p2p.step(move, p2p.new("x"), p2p.state("x"), np.array([1, 2, 3], np.int64), p2p.round_number),
        p2p.step(spread, p2p.new("sum", reduce="sum", shape=700), p2p.state("x")),
    ]
    state = {"x": np.arange(700, dtype=np.int64), "sum": np.zeros(1, np.int64)}
    return bind_rounds(steps, rounds, state, ())


def by_numpy(x: Array, rounds: int) -> tuple[Array, int]:
    for number in range(rounds):
        x = np.roll(x, -number) + np.resize([1, 2, 3], 700)
    return x, int(x.sum())


def test_rounds_in_a_worker_are_those_of_numpy() -> None:
    bound = two_launches()

    async def main() -> None:
        async with open_pool(spare=0, policy=BARE) as pool, pool.session(tenant="one") as session:
            await session.compile_rounds(bound.steps, bound.specs, bound.inputs())
            first = await session.run_rounds(bound.arrays, 0, 4, timeout_s=60)
            then = await session.run_rounds(first.states[-1], 4, 2, timeout_s=60)
        for rounds, (x, total) in enumerate(first.states + then.states, 1):
            due, due_sum = by_numpy(np.arange(700, dtype=np.int64), rounds)
            assert x == due.tobytes()
            assert int.from_bytes(total, "little") == due_sum

    trio.run(main)


def test_split_inputs_of_rounds_in_a_locked_worker_are_those_of_numpy() -> None:
    bound = bind_rounds(flow_steps(), 4, HILLS, ())

    async def main() -> None:
        async with open_pool(spare=0, policy=BARE, threads=2) as pool, pool.session(tenant="one") as session:
            await session.compile_rounds(bound.steps, bound.specs, bound.inputs())
            done = await session.run_rounds(bound.arrays, 0, 4, timeout_s=60)
        for rounds, arrays in enumerate(done.states, 1):
            due = expected_hills(rounds)
            assert [bytes(array) for array in arrays] == [due[name].tobytes() for name in bound.names]

    trio.run(main)


def test_a_step_is_what_its_packet_says_or_is_refused() -> None:
    bound = bind_rounds(flow_steps(), 4, HILLS, ())
    for place, step in enumerate(bound.steps):
        assert decode_step(encode_step(place, bound.specs, step)) == (place, list(bound.specs), step)
    for split in ([], [[0, 1], [1, 1]], [[0, 3], [1, 1], "wrap"], [[0, 1], [1, -1], "wrap"], [[0, 1], [1, 1], 7], 1):
        fields = encode_step(0, bound.specs, bound.steps[0])
        fields[-1][1] = [*fields[-1][1][:2], split]
        with pytest.raises(FrameError):
            decode_step(fields)


def test_a_worker_that_has_held_a_state_is_not_kept_for_its_tenant() -> None:
    bound = two_launches()

    async def main() -> None:
        async with open_pool(spare=0, policy=BARE, keep=2) as pool:
            async with pool.session(tenant="one") as session:
                idle = session.pid
            async with pool.session(tenant="one") as session:
                assert session.pid == idle  # it waits for its tenant where it has held nothing
                await session.compile_rounds(bound.steps, bound.specs, bound.inputs())
                await session.run_rounds(bound.arrays, 0, 1, timeout_s=60)
            async with pool.session(tenant="one") as session:
                assert session.pid != idle

    trio.run(main)


def test_what_does_not_fit_is_refused_and_leaves_the_worker() -> None:
    bound = two_launches()

    async def main() -> None:
        async with open_pool(spare=0, policy=BARE) as pool, pool.session() as session:
            with pytest.raises(ExecutionError, match="compile_rounds first"):
                await session.run_rounds(bound.arrays, 0, 1, timeout_s=60)
            with pytest.raises(KernelError, match="where the state has"):
                await session.compile_rounds(bound.steps, bound.specs[:1] * 2, bound.inputs())
            await session.compile_rounds(bound.steps, bound.specs, bound.inputs())
            with pytest.raises(ValueError, match="not those of a state"):
                await session.run_rounds(bound.arrays[:1], 0, 1, timeout_s=60)
            with pytest.raises(ExecutionError, match="run fewer"):
                await session.run_rounds(bound.arrays, 0, 10**6, timeout_s=60)
            assert len((await session.run_rounds(bound.arrays, 0, 3, timeout_s=60)).states) == 3
            with pytest.raises(WorkerTimeout):
                await session.run_rounds(bound.arrays, 0, 100_000, timeout_s=0.05)
            with pytest.raises(WorkerDied):
                await session.run_rounds(bound.arrays, 0, 1, timeout_s=60)

    trio.run(main)


def test_a_round_number_proves_nothing() -> None:
    bound = bind_rounds(pick, 3, {"x": np.arange(1, 9, dtype=np.int32)}, ())
    with CpuBackend() as backend:
        engine = RoundEngine(backend, bound.specs)
        engine.add(bound.steps[0], ())
        before = [np.frombuffer(bound.arrays[0], np.int32)]
        for number, shift in ((0, 0), (3, 3), (2**31, 8)):
            after = [np.ones(8, np.int32)]
            engine.advance(number, before, after)
            assert after[0].tolist() == [*range(1 + shift, 9), *[0] * shift]
