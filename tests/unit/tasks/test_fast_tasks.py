"""Tasks in fast mode between whole nodes: what is agreed, found, compared, and who is caught."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._groups import single_error
from p2pcompute._matmul import _work
from p2pcompute.checking import DEFAULT_TOLERANCE
from p2pcompute.errors import ConfigError, KernelTypeError, NoProviderError, P2PComputeError, UnstableKernel
from p2pcompute.events import LiarCaught
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain
from p2pcompute_protocols import task
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.negotiation import CheckPolicy
from p2pcompute_protocols.task import Assign, ChunkError, Notice

from ..market._rogues import Rogue
from ._attacks import Forgiven, play, refused


@p2p.kernel
def wave(out, a, x, y):
    i = cuda.grid(1)
    if i < out.size:
        total = y[i]
        for _k in range(8):
            total = total * a + x[i] * y[i]
        out[i] = total


X = np.random.default_rng(1).random(4_096, dtype=np.float32)
Y = np.random.default_rng(2).random(4_096, dtype=np.float32)
ARGS = (p2p.out(X.shape, X.dtype), np.float32(0.75), X, Y)


def strict() -> np.ndarray[Any, Any]:
    total = Y.copy()
    for _ in range(8):
        total = total * np.float32(0.75) + X * Y
    return total


Fault = Callable[[bytes, int], bytes]


def run(
    *faults: Fault | None, kernel: Any = wave, args: tuple[Any, ...] = ARGS, provides: Any = None, **options: Any
) -> tuple[Any, list[Any]]:
    """The result of a task with a provider for each of `faults`, and its events."""
    events: list[Any] = []

    async def main() -> Any:
        network, chain = MemoryNetwork(latency_s=0.01), simulated_chain()
        async with AsyncExitStack() as stack:
            node = await stack.enter_async_context(open_simulated_node(network, chain))
            providers = [await stack.enter_async_context(open_simulated_node(network, chain)) for _ in faults]
            async with trio.open_nursery() as nursery:
                for provider, fault in zip(providers, faults, strict=True):
                    await node.services.overlay.connect(provider.addresses[0])
                    await nursery.start(partial(_serve, provider, fault, provides or {}))
                try:
                    chosen = {"fp": "fast", "chunks": 8, **options}
                    return await node.run(kernel, *args, on_event=events.append, **chosen)
                finally:
                    nursery.cancel_scope.cancel()

    with single_error(P2PComputeError):
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0)), events
    raise AssertionError("unreachable")


async def _serve(provider: Any, fault: Fault | None, options: dict[str, Any], *, task_status: Any) -> None:
    await provider.serve(**{"fault": fault, **options}, task_status=task_status)


def floats(change: Callable[[np.ndarray[Any, Any]], Any]) -> Fault:
    def fault(output: bytes, _index: int) -> bytes:
        values = np.frombuffer(output, np.float32).copy()
        return np.asarray(change(values), np.float32).tobytes()

    return fault


def test_a_task_in_fast_mode_comes_near() -> None:
    found, events = run(None)
    assert np.allclose(found, strict(), rtol=1e-4, atol=1e-6)
    assert not [event for event in events if isinstance(event, LiarCaught)]


ALTERED: list[tuple[str, Callable[[np.ndarray[Any, Any]], Any], dict[str, float]]] = [
    ("zeros", np.zeros_like, {}),
    ("half precision", lambda v: v.astype(np.float16), {}),
    ("bfloat16", lambda v: (v.view(np.uint32) & 0xFFFF0000).view(np.float32), {}),
    ("more than the tolerance", lambda v: v * np.float32(1 + 3e-4), {}),
    ("NaNs", lambda v: np.full_like(v, np.nan), {}),
    ("infinities", lambda v: np.full_like(v, np.inf), {}),
    ("a narrower tolerance passed", lambda v: v * np.float32(1 + 5e-5), {"rtol": 1e-5}),
]


@pytest.mark.parametrize(("what", "change", "options"), ALTERED, ids=[case[0] for case in ALTERED])
def test_who_delivers_something_else_is_caught(
    what: str, change: Callable[[np.ndarray[Any, Any]], Any], options: dict[str, float]
) -> None:
    found, events = run(floats(change), None, **options)
    assert [event for event in events if isinstance(event, LiarCaught)], what
    assert np.allclose(found, strict(), rtol=1e-4, atol=1e-6)


def test_bias_within_the_tolerance_is_not_caught() -> None:
    # What somebody gains who uses all of it: docs/fast.md says so, and this is how much it is.
    found, events = run(floats(lambda v: v * np.float32(1 + 9e-5)))
    assert not [event for event in events if isinstance(event, LiarCaught)]
    bias = float(np.mean(found.astype(np.float64) / strict().astype(np.float64) - 1))
    assert 8e-5 < bias < 1e-4


def test_a_strict_agreement_takes_no_fast_results() -> None:
    near = floats(lambda v: np.nextafter(v, np.float32(9)))
    found, events = run(near, None, fp="strict")
    assert [event for event in events if isinstance(event, LiarCaught)]
    assert np.array_equal(found, strict())
    assert not [event for event in run(near)[1] if isinstance(event, LiarCaught)]


@pytest.mark.parametrize("sold", ["strict", "fast"])
def test_nobody_sells_the_mode(sold: str) -> None:
    asked = "fast" if sold == "strict" else "strict"
    with pytest.raises(NoProviderError, match="No provider fits") as caught:
        run(None, provides={"fp": sold}, fp=asked)
    assert ('fp="strict" may' in str(caught.value)) == (asked == "fast")
    run(None, provides={"fp": sold}, fp=sold)


def test_fast_mode_has_a_price_of_its_own() -> None:
    def price(fp: str) -> int:
        events = run(None, provides={"fast_price": "0.36 USD", "price": "0.72 USD"}, fp=fp)[1]
        return next(event.price_pusd for event in events if hasattr(event, "price_pusd"))

    assert price("fast") * 2 == price("strict") == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fp": "quick"}, 'write "strict" or "fast"'),
        ({"fp": "strict", "rtol": 1e-4}, "equal to the bit"),
        ({"fp": "strict", "atol": 0.0}, "equal to the bit"),
        ({"rtol": math.nan}, "from 1.42e-14 to 0.0625"),
        ({"rtol": -1e-4}, "from 1.42e-14"),
        ({"rtol": 1.0}, "to 0.0625"),
        ({"rtol": "1e-4"}, "write a number"),
        ({"rtol": True}, "write a number"),
        ({"atol": math.inf}, "from 0 on"),
        ({"atol": -1}, "from 0 on"),
        ({"rtol": 1e-9}, "float32 can't keep"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(None, **options)


def test_an_atol_that_hides_everything() -> None:
    with pytest.raises(UnstableKernel, match="zeros would pass") as caught:
        run(None, atol=1e30)
    assert "No money has moved" in str(caught.value)


@p2p.kernel
def remains(out, x, y):
    i = cuda.grid(1)
    if i < out.size:
        # What rounding has left of y: nothing, where sums may be taken in any order.
        out[i] = ((x[i] + y[i]) - x[i] - y[i]) * np.float32(1e6)


def test_a_kernel_that_is_made_of_rounding_is_refused_before_anybody_is_paid() -> None:
    with pytest.raises(UnstableKernel, match="hangs on rounding") as caught:
        run(None, kernel=remains, args=(ARGS[0], X, Y))
    assert "No money has moved" in str(caught.value)
    run(None, kernel=remains, args=(ARGS[0], X, Y), fp="strict")


def test_a_kernel_that_is_made_of_rounding_is_refused_where_its_inputs_are_split() -> None:
    # The samples are of chunks whose windows are made here: elsewhere there would be zeros, and nothing to round.
    with pytest.raises(UnstableKernel, match="hangs on rounding"):
        run(None, kernel=remains, args=(ARGS[0], *(p2p.split(one, tile=(64,)) for one in (X, Y))), chunks=32)


@p2p.kernel
def flips(out, hits, x):
    i = cuda.grid(1)
    if i < out.size:
        total = np.float32(0.0)
        for k in range(64):
            total += x[(i + k) % x.size]
        hits[i] = 1 if total > np.float32(32.0) else 0
        out[i] = total


def test_a_branch_that_rounding_decides() -> None:
    # Sums of 64 in another order now and then lie on the other side of 32: such a thread counts for nobody.
    x = (np.random.default_rng(5).integers(0, 2**20, 4_096) / 2**20).astype(np.float32)
    outs = p2p.out(x.shape, np.float32), p2p.out(x.shape, np.int32)
    (_, hits), events = run(None, kernel=flips, args=(*outs, x))
    assert not [event for event in events if isinstance(event, LiarCaught)]
    due = np.array([np.sum(np.roll(x, -i)[:64], dtype=np.float64) for i in range(x.size)])
    clear = np.abs(due - 32) > 1e-3
    assert np.array_equal(hits[clear] == 1, due[clear] > 32)
    assert clear.mean() > 0.99


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_quorum_compares_values(faulty: int) -> None:
    wobble = floats(lambda v: v * np.float32(1 + 2e-5))
    found, events = run(wobble, None, check="quorum", samples=0)
    assert not [event for event in events if isinstance(event, LiarCaught)]
    assert np.allclose(found, strict(), rtol=1e-4, atol=1e-6)

    def one_element(values: np.ndarray[Any, Any]) -> Any:
        values[7] += np.float32(0.01)
        return values

    faults = [floats(one_element), None]
    found, events = run(*(faults if faulty == 0 else faults[::-1]), check="quorum", samples=0)
    assert [event for event in events if isinstance(event, LiarCaught)]
    assert np.allclose(found, strict(), rtol=1e-4, atol=1e-6)


# Products of matrices


def matrices() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(9)
    return rng.standard_normal((192, 300), np.float32), rng.standard_normal((300, 256), np.float32)


def multiply(*faults: Fault | None, **options: Any) -> tuple[Any, list[Any]]:
    """As `run`, for a product of matrices."""
    a, b = matrices()
    work, args, chosen = _work(a, b, {"fp": "fast", **options})
    return run(*faults, kernel=work, args=args, **chosen)


def test_a_product_of_matrices() -> None:
    a, b = matrices()
    due = a.astype(np.float64) @ b
    found, events = multiply(None, None)
    assert found.dtype == np.float32
    assert np.abs(found - due).max() < 1e-3
    assert not [event for event in events if isinstance(event, LiarCaught)]
    exact, _ = multiply(None, fp="strict")
    total = np.zeros(due.shape, np.float32)
    for k in range(300):
        total += a[:, k, None] * b[None, k]
    assert np.array_equal(exact, total)


PRODUCTS: list[tuple[str, Callable[[np.ndarray[Any, Any]], Any]]] = [
    ("zeros", np.zeros_like),
    ("half precision", lambda v: v.astype(np.float16)),
    ("one element of a chunk", lambda v: np.where(np.arange(v.size) == 1_234, v + np.float32(0.01), v)),
    ("two rows swapped", lambda v: v.reshape(-1, 256)[[1, 0, *range(2, v.size // 256)]].ravel()),
]


@pytest.mark.parametrize(("what", "change"), PRODUCTS, ids=[case[0] for case in PRODUCTS])
def test_a_product_that_is_wrong_is_caught_without_samples(
    what: str, change: Callable[[np.ndarray[Any, Any]], Any]
) -> None:
    a, b = matrices()
    found, events = multiply(floats(change), None, samples=1)
    assert [event for event in events if isinstance(event, LiarCaught)], what
    assert np.abs(found - a.astype(np.float64) @ b).max() < 1e-3


def test_matrices_that_have_no_product() -> None:
    a, b = matrices()
    for left, right, words in (
        (b, a.T[:5], "have no product"),
        (a[0], b, "have no product"),
        (a[:0], b, "have no product"),
        (a.astype(np.float64), b, "a product of float64 and float32"),
        (a.astype(np.int32), b.astype(np.int32), "a product of int32"),
    ):
        with pytest.raises(KernelTypeError, match=words):
            _work(left, right, {})


@pytest.mark.parametrize("fp", ["fast", "strict"])
def test_a_chunk_that_comes_out_otherwise_the_second_time(fp: str) -> None:
    # One chunk has one receipt. In strict mode a second result is a fault of the machine; in fast mode it may happen.
    calls: list[int] = []

    def wobbles(output: bytes, index: int) -> bytes:
        calls.append(index)
        if calls.count(0) != 2 or index:
            return output
        values = np.frombuffer(output, np.float32).copy()
        values[0] = np.nextafter(values[0], np.float32(9))
        return values.tobytes()

    tolerance = DEFAULT_TOLERANCE if fp == "fast" else None
    check = CheckPolicy(kind="sample", per_chunk=256, tolerance=tolerance)

    async def asks_twice(rogue: Rogue, provider: Any) -> None:
        opened = await rogue.open_task(provider, fp=fp, check=check)
        await opened.start()
        await opened.dialogue.send(Assign(index=0))
        assert await opened.result() == 0
        await opened.dialogue.send(Assign(index=0))
        if fp == "strict":
            await refused(opened.dialogue, WireCode.INTERNAL)
            return
        while not isinstance(error := await opened.dialogue.receive(stall_s=60), ChunkError):
            assert isinstance(error, Notice)
        _, payload = task.open_receipt(
            error.receipt, network="simulated", provider=provider.peer_id, task=opened.agreement.task_id, index=0
        )
        assert payload.code == WireCode.EXECUTION_FAILED
        await opened.stream.reset()  # the task went on until then

    play(asks_twice, Forgiven.OURS, price="0 USD", fault=wobbles)
