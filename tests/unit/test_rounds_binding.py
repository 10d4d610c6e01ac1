"""What users write for rounds: launches and a state that fit together, and words that help where they don't."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._rounds import bind_rounds
from p2pcompute.errors import ConfigError, KernelError
from p2pcompute.execution._api import InputSpec, SplitSpec
from p2pcompute.execution._rounds import ReadState, RoundNumber, WriteState


@p2p.kernel
def step(new_x, x, gain, round_number):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        new_x[i] = x[i] * gain + np.float32(round_number)


@p2p.kernel
def add(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i]


@p2p.kernel
def mix(new_x, x, y):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        new_x[i] = x[i] + y[i]


@p2p.kernel
def after(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i + 1]


X = np.arange(10, dtype=np.float32)
GAIN = np.float32(2)


def test_a_bare_kernel_is_bound_by_the_names_of_its_parameters() -> None:
    bound = bind_rounds(step, 5, {"x": X}, (GAIN,))
    (made,) = bound.steps
    kinds = [type(arg).__name__ for arg in made.args]
    assert kinds == ["WriteState", "ReadState", "ScalarSpec", "RoundNumber"]
    assert bound.names == ("x",)
    assert bound.arrays == (X.tobytes(),)
    assert np.array_equal(bound.result(bound.arrays)["x"], X)


def test_several_launches_name_what_they_take() -> None:
    steps = [
        p2p.step(step, p2p.new("x"), p2p.state("x"), GAIN, p2p.round_number),
        p2p.step(add[1, 16], p2p.new("total", reduce="sum", shape=10), p2p.state("x")),
    ]
    bound = bind_rounds(steps, 5, {"x": X, "total": np.zeros(1, np.float32)}, ())
    assert isinstance(bound.steps[0].args[0], WriteState)
    assert isinstance(bound.steps[0].args[3], RoundNumber)
    assert bound.steps[1].writes == [1]
    assert bound.steps[1].args[1] == ReadState(array=0)
    assert bound.steps[1].launch.block == (16, 1, 1)


def test_inputs_are_split_as_they_say() -> None:
    given = np.arange(10, dtype=np.float32)
    steps = [
        p2p.step(after, p2p.new("x"), p2p.state("x", halo=2, edge="wrap")),
        p2p.step(mix, p2p.new("y"), p2p.state("x", halo=0), p2p.split(given, halo=3, edge="clamp", tile=4)),
    ]
    bound = bind_rounds(steps, 5, {"x": X, "y": X}, ())
    assert bound.steps[0].args[1] == ReadState(array=0, split=SplitSpec(axes=(0,), halo=(2,), edge="wrap"))
    split = SplitSpec(axes=(0,), halo=(3,), edge="clamp")
    assert bound.steps[1].args[2] == InputSpec(dtype="float32", shape=(10,), split=split)
    given[:] = 7  # what is written to it now harms nobody
    assert bound.constants[1][0].tolist() == list(range(10))


def test_an_edge_is_one_of_a_halo() -> None:
    with pytest.raises(KernelError, match="an edge rule and no halo"):
        p2p.state("x", edge="wrap")


CASES: dict[str, tuple[Any, int, dict[str, Any], tuple[Any, ...], str]] = {
    "no rounds": (step, 0, {"x": X}, (GAIN,), "rounds is 0"),
    "too many rounds": (step, 2**20, {"x": X}, (GAIN,), "write a whole number"),
    "no state": (step, 1, {}, (GAIN,), "the state is empty"),
    "a number in the state": (step, 1, {"x": 1.0}, (GAIN,), "NumPy arrays"),
    "an empty array": (step, 1, {"x": X[:0]}, (GAIN,), "one element at least"),
    "a dtype that no kernel has": (step, 1, {"x": X.astype(np.complex64)}, (GAIN,), "complex64"),
    "too few args": (step, 1, {"x": X}, (), "gain is no array of the state"),
    "too many args": (step, 1, {"x": X}, (GAIN, GAIN), "takes 1 of them"),
    "an array that nobody gives": (mix, 1, {"x": X, "y": X}, (), "no launch of a round gives y"),
    "an array that two give": (
        [p2p.step(add, p2p.new("x"), p2p.state("x"))] * 2, 1, {"x": X}, (), "given by two launches"),
    "a name that the state does not have": (p2p.step(add, p2p.new("y"), p2p.state("x")), 1, {"x": X}, (), "has no y"),
    "args beside steps": (p2p.step(add, p2p.new("x"), p2p.state("x")), 1, {"x": X}, (GAIN,), "p2p.step"),
    "a plain output": (
        p2p.step(add, p2p.out(10, np.float32), p2p.state("x")), 1, {"x": X}, (), "is an array of the state"),
    "a combined array of another shape": (
        p2p.step(add, p2p.new("x", reduce="sum", shape=10), p2p.state("x")), 1, {"x": X}, (), r"comes to \(1,\)"),
    "a split input that is too large": (
        mix, 1, {"x": X}, (p2p.split(np.broadcast_to(X[:1], 2**24 + 1)),), "a provider computes all of each round"),
    "a load beyond the halo": (p2p.step(after, p2p.new("x"), p2p.state("x", halo=0)), 1, {"x": X}, (), "compute.state"),
    "a halo for an axis that there is not": (
        p2p.step(after, p2p.new("x"), p2p.state("x", halo=(1, 1))), 1, {"x": X}, (), "halo is"),
    "a halo below zero": (p2p.step(after, p2p.new("x"), p2p.state("x", halo=-1)), 1, {"x": X}, (), "halo is"),
    "an edge that is none": (
        p2p.step(after, p2p.new("x"), p2p.state("x", halo=1, edge="mirror")), 1, {"x": X}, (), "edge is"),
    "a split number": (
        p2p.step(add, p2p.new("x"), p2p.state("x", halo=1)), 1, {"x": np.float32(1)}, (), "NumPy arrays"),
    "a state that the launch stores into": (
        p2p.step(add, p2p.state("x"), p2p.new("x")), 1, {"x": X}, (), "out is an output|stores into"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_said(name: str) -> None:
    steps, rounds, state, args, words = CASES[name]
    with pytest.raises((KernelError, ConfigError), match=words):
        bind_rounds(steps, rounds, state, args)


def test_an_operation_and_a_shape_come_together() -> None:
    for options in ({"reduce": "sum"}, {"shape": 3}):
        with pytest.raises(KernelError, match="shape of its own"):
            p2p.new("x", **options)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="not a kernel"):
        p2p.step(X)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds_per_chunk": 0}, "rounds_per_chunk is 0"),
        ({"check_rounds": 3}, "check_rounds is 3"),
        ({"check": "both"}, 'write "sample"'),
        ({"budget": "much"}, "not an amount"),
        ({"samples": -1}, "samples is -1"),
        ({"device": "tpu"}, "device is"),
    ],
)
def test_options_have_ranges(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        p2p.RoundOptions(**options)


def test_the_synchronous_door_says_what_is_wrong_before_it_opens_anything() -> None:
    with pytest.raises(ConfigError, match="there is no option chunks"):
        p2p.iterate(step, rounds=3, state={"x": X}, args=(GAIN,), chunks=3)
    with pytest.raises(KernelError, match="takes 1 of them"):
        p2p.iterate(step, rounds=3, state={"x": X}, args=(GAIN, GAIN))
