"""Typing goes over a kernel until no type widens: how often is bounded, whatever a stranger writes."""

from __future__ import annotations

import contextlib
import random

import pytest

from p2pcompute.errors import KernelError
from p2pcompute.execution import _lower
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language import MAX_LOCALS, MAX_NODES, MAX_TYPED_NODES
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import Lowered, lower
from p2pcompute.execution._lower_function import FunctionLowering

LAUNCH = Launch(grid=(1, 1, 1), block=(32, 1, 1), dims=1)


def source(lines: list[str]) -> KernelSource:
    text = "def f(out, x):\n" + "".join(f"    {line}\n" for line in lines)
    return KernelSource(text=text, entry="f", digest=source_digest("f", text))


def specs() -> list[ArgSpec]:
    return [OutputSpec(dtype="float64", shape=(32,)), InputSpec(dtype="float64", shape=(32,))]


def typed(lines: list[str]) -> Lowered:
    return lower(admit(source(lines)), LAUNCH, specs())


def chain(names: int, padding: int) -> list[str]:
    """Each variable takes its type from the next one, which is assigned behind it, and the last one's is found step by
    step: a round carries one step by one variable."""
    lines = ["i = cuda.grid(1)"]
    lines += [f"v{number} = v{number + 1}" for number in range(names)]
    lines.append(f"v{names} = x[i]")
    lines += [f"out[i] = {' + '.join(['v0'] * 40)}"] * padding
    return lines


class Rounds:
    """Counts what typing does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        once = FunctionLowering.top

        def top(lowering: FunctionLowering, body: list[object]) -> None:
            self.count += 1
            once(lowering, body)  # type: ignore[arg-type]

        monkeypatch.setattr(FunctionLowering, "top", top)


def test_a_chain_of_types_through_a_large_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = chain(MAX_LOCALS - 4, 8)
    rounds = Rounds(monkeypatch)
    with pytest.raises(KernelError, match=r"begin each variable .* v = 0.0"):
        typed(lines)
    bounded = rounds.count
    monkeypatch.setattr(_lower, "MAX_TYPED_NODES", 10**9)
    rounds.count = 0
    typed(lines)  # the attack: it is admitted, and gone over hundreds of times
    assert rounds.count > 2 * (MAX_LOCALS - 4) > 2 * bounded


def test_a_register_that_is_shifted_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter of 64 taps that begin with an integer: as long a chain as anybody writes by hand."""
    taps = 64
    lines = ["i = cuda.grid(1)", *(f"v{number} = 0" for number in range(taps)), "total = 0.0", "for k in range(32):"]
    lines += [f"    v{number} = v{number + 1}" for number in range(taps - 1)]
    lines += [f"    v{taps - 1} = x[k]", *(f"    total += v{number} * 0.5" for number in range(taps)), "out[i] = total"]
    rounds = Rounds(monkeypatch)
    assert "v_v0 = (0.0)" in typed(lines).body or "v_v0 = 0.0" in typed(lines).body
    assert rounds.count > taps


@pytest.mark.parametrize("seed", range(20))
def test_random_orders_of_assignments_are_typed_or_refused_within_the_bound(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    names = draw.choice([3, 20, 120, 250])
    lines = chain(names, draw.choice([0, 1, 30]))
    head, middle = lines[:1], lines[1 : names + 2]
    if draw.random() < 0.7:
        draw.shuffle(middle)
    lines = [*head, *(["for k in range(3):"] if seed % 2 else []), *(f"{'    ' * (seed % 2)}{line}" for line in middle)]
    lines.append("out[i] = v0")
    nodes = 0

    def note(program: _lower._Program, function: object) -> None:
        nonlocal nodes
        original(program, function)  # type: ignore[arg-type]
        nodes = max(nodes, program.typed_nodes)

    original = _lower._Program.note_round
    monkeypatch.setattr(_lower._Program, "note_round", note)
    with contextlib.suppress(KernelError):
        typed(lines)
    assert nodes <= MAX_TYPED_NODES + MAX_NODES
