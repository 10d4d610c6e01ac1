"""What somebody new gets wrong in a call ends with an error of ours that says what to write, before anything opens."""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._given import check_challenge
from p2pcompute._hired import _fitting
from p2pcompute._options import NODE_OPTIONS, AmountError, OptionError, UnknownOption, parse_usd, said
from p2pcompute._rounds import bind_rounds
from p2pcompute.errors import ConfigError, KernelError, KernelTypeError, NotCalled, P2PComputeError, ProgramError
from p2pcompute.execution._api import InputSpec, ScalarSpec
from p2pcompute.wallet import open_wallet


@p2p.kernel
def saxpy(out, a, x, y):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]


@p2p.kernel
def turn(out, x):  # type: ignore[no-untyped-def]
    c, r = cuda.grid(2)
    if r < out.shape[0] and c < out.shape[1]:
        out[r, c] = x[c, r]


@p2p.kernel
def decay(new_x, x, gain):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        new_x[i] = x[i] * gain


@p2p.kernel
def in_place(x, v):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < x.size:
        x[i] = v[i]


@p2p.kernel
def row_sums(x):  # type: ignore[no-untyped-def]
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        x[cuda.blockIdx.x] += 1


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


def plain() -> None: ...


X = np.ones(8, np.float32)
HALF: Any = 4.5
SIGNATURE: Any = "void(f4[:])"
ONE: Any = np.int64(1)
FOUR: Any = np.int32(4)
SQUARE = np.ones((2, 2), np.float32)
GOOD = (p2p.out(8, np.float32), np.float32(2), X, X)
WRONG: dict[str, Any] = {
    "None": None, "True": True, "-1": -1, "1.5": 1.5, "nan": float("nan"), "inf": float("inf"), "text": "abc",
    "no text": "", "bytes": b"x", "no tuple": (), "tuple": (1, 2, 3, 4), "floats": [1.5], "texts": ["a"],
    "Nones": [None], "dict": {"a": 1}, "object": object(), "rude": Rude(), "function": plain, "type": int,
    "array": X, "empty array": X[:0], "array of texts": np.array(["s"]), "array of objects": np.array([None]),
    "array without axes": np.array(1.0), "2**70": 2**70, "5000 digits": 10**5000, "complex": 1j, "set": {1, 2},
    "iterator": iter([]), "module": trio, "kernel": saxpy, "geometry": saxpy[1, 1], "output": GOOD[0],
    "decimal": decimal.Decimal("sNaN"),
}  # fmt: skip


def at(kernel: Any, place: int) -> Callable[[Any], object]:
    return lambda v: p2p.run(kernel, *GOOD[:place], v, *GOOD[place + 1 :])


def hired(*args: Any, **options: Any) -> object:
    return p2p.hire(*args, **options).__enter__()


def hired_at(place: int) -> Callable[[Any], object]:
    return lambda v: hired(saxpy, *GOOD[:place], v, *GOOD[place + 1 :])


def called(spec: Any) -> Callable[[Any], object]:
    """As `Hired.run` looks at an input."""
    return lambda v: _fitting(1, spec, v)


def named(name: str, call: Callable[..., object], *args: Any) -> Callable[[Any], object]:
    return lambda v: call(*args, **{name: v})


def calls() -> Iterator[tuple[str, Callable[[Any], object]]]:
    """Every public function with one argument left open."""
    yield "kernel", p2p.kernel
    yield "device", p2p.device
    yield "out(shape)", lambda v: p2p.out(v, "f4")
    yield "out(dtype)", lambda v: p2p.out(5, v)
    yield "reduce(operation)", lambda v: p2p.reduce(v, 5, "f4")
    yield "reduce(shape)", lambda v: p2p.reduce("sum", v, "f4")
    yield "reduce(dtype)", lambda v: p2p.reduce("sum", 5, v)
    yield "inout(array)", p2p.inout
    yield "split(array)", p2p.split
    yield "split(halo)", lambda v: p2p.split(X, halo=v)
    yield "split(edge)", lambda v: p2p.split(X, edge=v)
    yield "split(tile)", lambda v: p2p.split(X, tile=v)
    yield "state", p2p.state
    yield "new", p2p.new
    yield "new(reduce)", lambda v: p2p.new("x", reduce=v, shape=5)
    yield "new(shape)", lambda v: p2p.new("x", reduce="sum", shape=v)
    yield "step", p2p.step
    yield "program", p2p.program
    yield "program(version)", lambda v: p2p.program("a:b", version=v, digest="00" * 32)
    yield "program(digest)", lambda v: p2p.program("a:b", version="1", digest=v)
    yield "kernel[]", lambda v: saxpy[v]
    yield "kernel[v, 1]", lambda v: saxpy[v, 1]
    yield "kernel[1, v]", lambda v: saxpy[1, v]
    yield "kernel()", saxpy
    yield "kernel[]()", saxpy[1, 1]
    yield "launch_for", saxpy.launch_for
    yield "philox", lambda v: p2p.random.philox(1, v, 1, 1, 1, 1)
    yield "uniform", lambda v: p2p.random.uniform(1, v, 1)
    yield "run(kernel)", lambda v: p2p.run(v, *GOOD)
    for place in range(len(GOOD)):
        yield f"run({place})", at(saxpy, place)
        yield f"run[]({place})", at(saxpy[1, 8], place)
    yield "matmul(a)", lambda v: p2p.matmul(v, SQUARE)
    yield "matmul(b)", lambda v: p2p.matmul(SQUARE, v)
    yield "iterate(steps)", lambda v: p2p.iterate(v, rounds=3, state={"x": X}, args=(2.0,))
    yield "iterate(a step)", lambda v: p2p.iterate([v], rounds=3, state={"x": X})
    yield "iterate(rounds)", lambda v: p2p.iterate(decay, rounds=v, state={"x": X}, args=(2.0,))
    yield "iterate(state)", lambda v: p2p.iterate(decay, rounds=3, state=v, args=(2.0,))
    yield "iterate(an array)", lambda v: p2p.iterate(decay, rounds=3, state={"x": v}, args=(2.0,))
    yield "iterate(args)", lambda v: p2p.iterate(decay, rounds=3, state={"x": X}, args=v)
    yield "iterate(an arg)", lambda v: p2p.iterate(decay, rounds=3, state={"x": X}, args=(v,))
    for name in sorted({field.name for field in fields(p2p.RunOptions)} | NODE_OPTIONS):
        yield f"run({name}=)", named(name, p2p.run, saxpy, *GOOD)
        yield f"matmul({name}=)", named(name, p2p.matmul, SQUARE, SQUARE)
    yield "hire(kernel)", lambda v: hired(v, *GOOD)
    for place in range(len(GOOD)):
        yield f"hire({place})", hired_at(place)
    for name in sorted({field.name for field in fields(p2p.HireOptions)} | NODE_OPTIONS):
        yield f"hire({name}=)", named(name, hired, saxpy, *GOOD)
    for dtype in ("float32", "int8", "uint64", "bool"):
        yield f"hired.run({dtype})", called(ScalarSpec(dtype=dtype, value=np.zeros(1, dtype)[0]))
    yield "hired.run(array)", called(InputSpec(dtype="int32", shape=(8,)))
    for kind in (p2p.RunOptions, p2p.RoundOptions, p2p.HireOptions, p2p.ProviderOptions):
        for field in fields(kind):
            yield f"{kind.__name__}({field.name}=)", named(field.name, kind)


CALLS = dict(calls())


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    for name in ("PROFILE", "NETWORK", "BOOTSTRAP", "CHAIN", "HUB", "TOKEN", "BUDGET"):
        monkeypatch.delenv(f"P2PCOMPUTE_{name}", raising=False)


@pytest.mark.parametrize("call", CALLS)
def test_no_wrong_argument_ends_in_a_bare_error(call: str) -> None:
    """Anything but our own errors comes out of here, and fails the test; what is right goes through, or ends where
    there is no network."""
    messages: list[str] = []
    for value in WRONG.values():
        if value is True and call.endswith("(start_chain=)"):
            continue  # which is right, and would start one
        try:
            CALLS[call](value)
        except P2PComputeError as error:
            messages.append(str(error))
    assert len(messages) > len(WRONG) // 2
    assert all(0 < len(message) < 1_000 for message in messages)


def test_the_geometry_of_numba_is_told_to_go_through_run() -> None:
    with pytest.raises(NotCalled, match=r"start it with p2pcompute\.run\(saxpy\[10, 32\], \.\.\.\)"):
        saxpy[10, 32](GOOD[0], 2.0, X, X)
    with pytest.raises(TypeError, match=r"run\(turn\[\(2, 1\), \(16, 8\)\], \.\.\.\)"):
        turn[(2, 1), (16, 8)](out=None)
    with pytest.raises(TypeError, match=r"start saxpy with p2pcompute\.run\(saxpy, \.\.\.\)"):
        saxpy(out=None)


def test_a_tile_and_a_halo_of_one_axis_are_numbers() -> None:
    assert p2p.split(X, tile=4).tile == (4,)
    assert p2p.split(X, tile=FOUR, halo=ONE).halo == 1
    with pytest.raises(KernelTypeError, match="tile is 4; write 2 numbers, one for each axis"):
        p2p.split(SQUARE, tile=4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: p2p.out(5, "flaot"), "no output has the dtype 'flaot'; use one of bool, int8"),
        (lambda: p2p.out(5, None), "no output has the dtype None"),
        (lambda: p2p.out(HALF, "f4"), "shape is 4.5; give a length for each axis, whole numbers"),
        (lambda: p2p.out([2, HALF], "f4"), "shape is .2, 4.5.; give a length"),
        (lambda: p2p.random.uniform(HALF, 0, 0), "asked for by 4.5; pass integers"),
        (lambda: p2p.new("x", reduce="mean", shape=8), "not combined by 'mean'; use one of sum"),
        (lambda: p2p.run(in_place, X, X), r"stores into x, which is an input; pass p2pcompute\.inout\(x\)"),
        (lambda: p2p.run(in_place, p2p.inout(X[:0]), X[:0]), r"x has the shape \(0,\); pass at least one element"),
        (lambda: p2p.run(in_place, p2p.out(0, "f4"), X), r"x has the shape \(0,\); ask for at least one element"),
        (lambda: p2p.run(in_place, p2p.inout(X), X[:0]), r"v has the shape \(0,\); pass at least one element"),
        (lambda: p2p.run(saxpy, p2p.new("x"), 2.0, X, X), r"out is a New: p2p\.new\('x'\)"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_write(given: Callable[[], object], words: str) -> None:
    with pytest.raises(KernelTypeError, match=words):
        given()


SWAPPED = np.ones(8, ">f4")
ENDLESS = np.broadcast_to(np.float32(1), (2**20, 2**20))  # of four bytes
LARGE = np.zeros(2**24 + 1, np.float32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: p2p.inout(SWAPPED), r">f4 can't be changed in place; pass array\.astype\(np\.float32\)"),
        (lambda: p2p.split(SWAPPED), r">f4 can't be split; pass array\.astype\(np\.float32\)"),
        (lambda: saxpy.bind(GOOD[0], 2.0, SWAPPED, X), r"x is of dtype >f4; pass array\.astype\(np\.float32\)"),
        (lambda: bind_rounds(decay, 3, {"x": SWAPPED}, (0.5,)), r"is of dtype >f4; pass array\.astype\(np\.float32\)"),
        (
            lambda: p2p.inout(ENDLESS),
            "has 4398046511104 bytes and is not in C order: .* at most 67108864 .*inout.*split",
        ),
        (lambda: p2p.split(ENDLESS), "has 4398046511104 bytes and is not in C order: .* at most 4294967296"),
        (lambda: turn.bind(p2p.out((2, 2), "f4"), ENDLESS), "x has 4398046511104 bytes and is not in C order"),
        (lambda: bind_rounds(decay, 3, {"x": ENDLESS}, (0.5,)), "state's x has 4398046511104 bytes"),
        (lambda: p2p.inout(GOOD[0]), r"p2pcompute\.out\(\.\.\.\) holds nothing.* pass it without p2pcompute\.inout"),
        (lambda: p2p.split(p2p.inout(X)), r"write p2pcompute\.inout\(p2pcompute\.split\(array\)\)"),
        (
            lambda: p2p.run(in_place, p2p.inout(LARGE), X),
            r"67108900 bytes; send at most 67108864 .* p2pcompute\.inout\(p2pcompute\.split\(x\)\)",
        ),
        (lambda: p2p.run(in_place, p2p.inout(X), LARGE), r"67108900 bytes; .* p2pcompute\.split\(v, halo=\.\.\.\)"),
        (lambda: p2p.run(row_sums[LARGE.size, 8], p2p.inout(LARGE)), r"67108868 bytes; send .*, in several calls$"),
    ],
)
def test_an_array_that_is_not_taken_is_told_in_what_form_it_would_be(given: Callable[[], object], words: str) -> None:
    with pytest.raises(KernelTypeError, match=words):
        given()


def test_a_dtype_is_this_machines() -> None:
    assert p2p.out(5, ">f4").dtype == np.dtype("=f4")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buget": 1}, "no option buget; there are budget, .*hub.*; is it budget that you mean"),
        ({"hubb": 1}, "is it hub that you mean"),
        ({"a": 2.0}, "arguments of a kernel go by place: write a without a name"),
    ],
)
def test_an_unknown_option_is_told_what_there_is(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownOption, match=words):
        p2p.run(saxpy, *GOOD, **options)
    if "a" not in options:
        with pytest.raises(UnknownOption, match=words):
            p2p.iterate(decay, rounds=1, state={"x": X}, args=(2.0,), **options)


def test_what_opens_a_node_is_what_the_synchronous_door_takes() -> None:
    assert frozenset(inspect.signature(p2p.open_node).parameters) == NODE_OPTIONS
    with pytest.raises(ConfigError, match="a hub or a token is named and no chain"):
        p2p.run(saxpy, *GOOD, profile="nobody", network="nowhere", hub="0x" + "11" * 20)


def test_an_option_of_a_node_is_sent_there() -> None:
    from p2pcompute._options import chosen

    with pytest.raises(UnknownOption, match=r"profile is for open_node: `async with p2p\.open_node\(profile=…\)"):
        chosen(p2p.RunOptions, {"profile": "x"})


def test_one_address_is_a_list_of_one() -> None:
    from p2pcompute._where import multiaddrs

    assert multiaddrs("/ip4/192.0.2.7/tcp/1", "bootstrap") == ("/ip4/192.0.2.7/tcp/1",)
    assert multiaddrs(["/a", "/b"], "bootstrap") == ("/a", "/b")
    with pytest.raises(OptionError, match=r"bootstrap names 'example.org:4001'; write a multiaddr, such as '/ip4/"):
        multiaddrs("example.org:4001", "bootstrap")
    # And it is one that reaches the part that looks for a chain to go with it.
    with pytest.raises(ConfigError, match="peers are named and no chain is"):
        p2p.run(saxpy, *GOOD, profile="nobody", network="nowhere", bootstrap="/ip4/192.0.2.7/tcp/1")


def test_a_wallet_is_opened_by_the_same_words() -> None:
    async def opened(**where: Any) -> None:
        async with open_wallet(**where):
            pass

    for name in ("profile", "network", "chain", "hub", "token"):
        with pytest.raises(OptionError, match=f"{name} is 5; write"):
            trio.run(partial(opened, **{name: 5}))


@pytest.mark.parametrize(
    ("steps", "state", "args", "words"),
    [
        (decay, {"x": X}, 2.0, r"args is 2.0; pass a tuple of the values, such as args=\(dt,\)"),
        (decay, {"x": X}, X, "args is an array of shape"),
        (decay, {"x": X}, (), r"gain is no array of the state \(x\), and args has only 0 values; add the value"),
        (decay, {"x": X}, (1.0, 2.0), "takes 1 of them; pass one for each of gain"),
        (in_place, {"x": X}, (X,), "in_place stores into x, .*; call the parameter new_x: it starts as zeros"),
        (saxpy, {"x": X}, (2.0, X), "saxpy stores into out, .*; call the parameter new_x"),
        (p2p.step(in_place, p2p.inout(X), X), {"x": X}, (),
         r"x is given p2pcompute\.inout, and no launch of a round .*; store into an output .*p2p\.new\(\"x\"\)"),
        (decay, {"x": X}, (p2p.inout(X),), "gain is given p2pcompute.inout"),
        (p2p.step(saxpy, X, 2.0, X, X), {"x": X}, (), r"stores into out, .*; pass p2p\.new\(\"x\"\) for it"),
        (p2p.step(saxpy, p2p.new("x"), 2.0, p2p.new("x"), X), {"x": X}, (),
         r"never stores into x, which is given p2p\.new\('x'\); pass p2p\.state\(\"x\"\)"),
        (p2p.step(saxpy, p2p.new("x"), [2.0], X, X), {"x": X}, (), r"a is a list: \[2\.0\]; .*p2p\.round_number"),
        ([decay, "x"], {"x": X}, (), "'x' is not a kernel"),
        ([], {"x": X}, (), "there are no steps"),
        (decay, [X], (2.0,), 'pass state={"x": array}'),
        (decay, {1: X}, (2.0,), "the state has 1 for a name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_round_is_said_in_its_own_words(steps: Any, state: Any, args: Any, words: str) -> None:
    with pytest.raises(KernelTypeError, match=words) as caught:
        bind_rounds(steps, 3, state, args)
    assert "p2pcompute.out(" not in str(caught.value)  # which no round takes


def test_the_options_of_rounds_are_checked_as_those_of_a_run() -> None:
    options = p2p.RoundOptions(samples=np.int64(3), deadline_s=np.float32(2.5))  # type: ignore[arg-type]
    assert type(options.samples) is int
    assert type(options.deadline_s) is float
    with pytest.raises(OptionError, match=r"deadline_s is nan; write seconds from now, more than 0 and at most 604800"):
        p2p.RoundOptions(deadline_s=float("nan"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"fp": "fast", "rtol": 1},
            "rtol is 1; write a number from 1.42e-14 to 0.0625, or None; float32 outputs",
        ),
        ({"fp": "fast", "atol": -1}, "atol is -1; write a number from 0 on, or None"),
        ({"rtol": 1e-3}, 'strict results are equal to the bit: leave it out, or ask for fp="fast"'),
    ],
)
def test_a_tolerance_says_its_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        p2p.RunOptions(**options)


@pytest.mark.parametrize("amount", ["0,01 USD", "1,5", "12,34 USD", "1,0000", ",5", "1.5,000"])
def test_a_decimal_comma_is_no_thousands(amount: str) -> None:
    """0,01 USD read as 1 USD would be a hundred times the budget that was meant."""
    with pytest.raises(AmountError, match="has a comma that parts no thousands"):
        parse_usd(amount)


@pytest.mark.parametrize(("amount", "uusd"), [("1,000 USD", 10**9), ("12,345.5", 12_345_500_000), ("-0", 0)])
def test_thousands_may_be_parted(amount: str, uusd: int) -> None:
    assert parse_usd(amount) == uusd


@pytest.mark.parametrize("amount", ["1e400", "1e9999999", "9" * 5_000, ["1"], b"1", True, None])
def test_what_is_no_amount_of_money_is_said_in_time(amount: Any) -> None:
    with pytest.raises(AmountError, match=r"0\.01 USD") as caught:
        parse_usd(amount)
    assert "micro" not in str(caught.value)


def test_a_number_of_more_digits_than_python_writes_is_no_amount() -> None:
    with pytest.raises(AmountError, match="a int is not an amount"):
        parse_usd(10**5000)


def test_a_value_is_named_in_a_part_of_a_line() -> None:
    assert said("a\nb") == r"'a\nb'"
    assert said(X) == "an array of shape (8,) and dtype float32"
    assert said(Rude()) == "a Rude"
    assert said(10**5000) == "a int"
    assert len(said("x" * 1_000)) == 80


def test_programs_are_not_called_either() -> None:
    with contextlib.suppress(ProgramError):  # none is installed under this name
        p2p.program("no such program")
    made = p2p.Program(p2p.program("a:b", version="1", digest="00" * 32).ref, None)
    with pytest.raises(NotCalled, match=r"start b with p2pcompute\.run\(b\[items\], \.\.\.\)"):
        made(X, n=3)
    with pytest.raises(NotCalled, match=r"start it with p2pcompute\.run\(b\[3\], \.\.\.\)"):
        made[3](X)


def test_a_decorator_has_no_parentheses() -> None:
    """numba's take signatures and options there."""
    for given, words in (
        (lambda: p2p.kernel(), r"@p2p\.kernel\(\) has parentheses; write @p2p\.kernel without them"),
        (lambda: p2p.kernel(SIGNATURE, plain), r"@p2p\.kernel\('void\(f4\[:\]\)', <function plain"),
        (lambda: p2p.kernel(fastmath=True), r"@p2p\.kernel\(fastmath=…\) .* said to p2p\.run, such as fp=\"fast\""),
        (lambda: p2p.device(inline=True), r"@p2p\.device\(inline=…\) has parentheses"),
    ):
        with pytest.raises(KernelError, match=words):
            given()


def test_a_configured_kernel_is_no_device_function() -> None:
    with pytest.raises(KernelError, match="is no device function"):
        p2p.device(saxpy[1, 1])


@pytest.mark.parametrize(
    "given",
    [
        lambda masked: p2p.run(saxpy, GOOD[0], 2.0, masked, X),
        lambda masked: p2p.split(masked),
        lambda masked: p2p.iterate(decay, rounds=3, state={"x": masked}, args=(2.0,)),
        lambda masked: p2p.iterate(decay, rounds=3, state={"x": X}, args=(masked,)),
        lambda masked: p2p.matmul(SQUARE, masked.reshape(2, 4)),
    ],
)
def test_what_is_behind_a_mask_is_not_computed_with(given: Callable[[Any], object]) -> None:
    """What a failed task leaves is masked; given to the next one its zeros would count."""
    masked = np.ma.masked_array(X, mask=X > 0)
    with pytest.raises(KernelTypeError, match=r"has a mask, which kernels don't know; pass its \.filled\(value\)"):
        given(masked)


def test_a_node_and_a_wallet_are_for_trio() -> None:
    async def node() -> None:
        async with p2p.open_node(profile="nobody", network="nowhere"):
            pass

    async def wallet() -> None:
        async with open_wallet(profile="nobody"):
            pass

    for opened, name in ((node, "open_node"), (wallet, "open_wallet")):
        with pytest.raises(ConfigError, match=rf"{name} is for trio and was opened from asyncio; .*asyncio\.to_thread"):
            asyncio.run(opened())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"provider": 5}, "provider is 5; write its peer ID"),
        ({"task": "ab" * 32}, "task is 'abab.*; write the 32 bytes of its ID"),
        ({"task": b"t"}, "write the 32 bytes"),
        ({"digests": None}, "digests is None; write a list of 32 bytes"),
        ({"digests": [b"d" * 32]}, "write a list of 32 bytes"),
        ({"digests": [b"d" * 32, "d"]}, "write a list of 32 bytes"),
    ],
)
def test_a_dispute_is_asked_for_with_digests(changes: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {"provider": "12D3Koo", "task": b"t" * 32, "digests": [b"d" * 32] * 2}
    check_challenge(**good)
    with pytest.raises(OptionError, match=words):
        check_challenge(**good | changes)
