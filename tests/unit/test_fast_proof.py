"""What a node sells of fast mode hangs on what it has proved on itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import _opening, cuda
from p2pcompute._fast_proof import check_tolerance, kept_proof, modes_sold
from p2pcompute._matmul import matmul_on
from p2pcompute.checking import DEFAULT_TOLERANCE
from p2pcompute.errors import NoProviderError
from p2pcompute.execution import FastFindings, FastSelfTestError
from p2pcompute.execution._fast_matmul import TEXT
from p2pcompute.node import Node
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.negotiation import Tolerance
from p2pcompute_protocols.work import BlobRef, ChunkWork, LaunchSpec, OutArg

FINE = FastFindings(error32=1e-7, error64=1e-15)
TIGHT = Tolerance.of(rtol32=2.0**-20, atol32=0.0, rtol64=2.0**-46, atol64=0.0)


@p2p.kernel
def scaled(out: Any, a: Any, x: Any) -> None:
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + 1.0


async def proved(_pool: Any, _slot: str) -> FastFindings:
    await trio.lowlevel.checkpoint()
    return FINE


async def too_far(_pool: Any, _slot: str) -> FastFindings:
    await trio.lowlevel.checkpoint()
    raise FastSelfTestError("fast mode is too far from strict mode on this machine")


def test_both_becomes_strict_where_the_test_fails_and_fast_alone_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pool: Any = None
        sold = await modes_sold("both", proved, pool, "cpu")
        assert (sold.modes, sold.findings, sold.refused) == (("strict", "fast"), FINE, "")
        sold = await modes_sold("both", too_far, pool, "cpu")
        assert (sold.modes, sold.findings) == (("strict",), None)
        assert "too far" in sold.refused
        with pytest.raises(FastSelfTestError, match="too far"):
            await modes_sold("fast", too_far, pool, "cpu")
        assert (await modes_sold("strict", too_far, pool, "cpu")).modes == ("strict",)  # nobody asks
        assert (await modes_sold("both", None, pool, "cpu")).modes == ("strict", "fast")

    trio.run(main)
    assert "fast mode is not sold" in caplog.text


@pytest.mark.parametrize("package", ["numba", "llvmlite", "numpy"])
def test_what_was_found_with_another_package_says_nothing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _opening._kept_at(1, "cpu")
    installed = _opening.version
    monkeypatch.setattr(_opening, "version", lambda name: "0.0" if name == package else installed(name))
    after = _opening._kept_at(1, "cpu")
    assert before is not None
    assert after is not None
    assert before[2] != after[2]


def work(*dtypes: str) -> ChunkWork:
    return ChunkWork(
        kernel=BlobRef(digest=bytes(32), size=10),
        entry="scaled",
        launch=LaunchSpec(grid=(4, 1, 1), block=(64, 1, 1), dims=1),
        args=tuple(OutArg(dtype=dtype, shape=(256,)) for dtype in dtypes),
        blocks_per_chunk=1,
        chunk_output_bytes=256,
        units_per_chunk=1,
    )


def test_a_tolerance_that_this_machine_is_not_sure_of_is_refused() -> None:
    """Without the findings it would be agreed to, and what is delivered be wrong."""
    rough = FastFindings(error32=1e-6, error64=1e-15)
    check_tolerance(work("float32"), TIGHT, None)
    check_tolerance(work("float32", "int32"), TIGHT, FINE)
    with pytest.raises(LocalProtocolError, match=r"rtol of 4e-06 for float32, and 9\.5e-07") as caught:
        check_tolerance(work("float32"), TIGHT, rough)
    assert caught.value.code == WireCode.UNSUPPORTED
    check_tolerance(work("float64", "int32"), TIGHT, rough)  # nothing of it is float32
    check_tolerance(work("float32"), DEFAULT_TOLERANCE, rough)
    check_tolerance(work("float32"), None, rough)  # strict mode

    with_atol = Tolerance.of(rtol32=2.0**-20, atol32=1e-4, rtol64=2.0**-46, atol64=0.0)
    product = replace(
        work("float32"), entry="product", kernel=BlobRef(digest=hashlib.sha256(TEXT.encode()).digest(), size=len(TEXT))
    )
    check_tolerance(product, with_atol, rough)
    for asked, tolerance in (
        (product, TIGHT),
        (replace(product, entry="other"), with_atol),
        (work("float32"), with_atol),
    ):
        with pytest.raises(LocalProtocolError, match="rtol of 4e-06"):
            check_tolerance(asked, tolerance, rough)


def test_findings_are_kept_with_the_measurement_that_they_belong_to(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    asked: list[str] = []

    async def found() -> FastFindings:
        asked.append("found")
        await trio.lowlevel.checkpoint()
        return FINE

    async def fails() -> FastFindings:
        asked.append("failed")
        await trio.lowlevel.checkpoint()
        raise FastSelfTestError("too far")

    async def main() -> None:
        assert await kept_proof(path, "this", found) == FINE
        assert not path.exists()  # where nothing was measured nothing is kept
        note = {"machine": "this", "scores": [[1, 1000]], "measured_s": 5}
        path.write_text(json.dumps(note))
        with pytest.raises(FastSelfTestError):
            await kept_proof(path, "this", fails)
        assert json.loads(path.read_text()) == note  # a failure is not kept
        assert await kept_proof(path, "this", found) == FINE
        assert json.loads(path.read_text()) == {**note, "fast": [1e-7, 1e-15]}
        asked.clear()
        assert await kept_proof(path, "this", fails) == FINE
        assert not asked
        assert await kept_proof(path, "another compiler", found) == FINE
        assert asked == ["found"]
        for odd in ([1e-7], [1e-7, -1.0], ["a", 1.0], [True, 0.5], 3, None, [float("nan"), 0.0]):
            path.write_text(json.dumps({**note, "fast": odd}))
            asked.clear()
            assert await kept_proof(path, "this", found) == FINE
            assert asked == ["found"]

    trio.run(main)


def test_who_fails_is_not_asked_for_fast_mode_and_sells_strict() -> None:
    x = np.arange(256, dtype=np.float32)

    async def computes(node: Node, **options: Any) -> Any:
        return await node.run(scaled, p2p.out(x.shape, x.dtype), np.float32(3), x, chunks=2, **options)

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with (
            open_simulated_node(network, chain) as provider,
            open_simulated_node(network, chain) as node,
            trio.open_nursery() as nursery,
        ):
            provider.services.prove_fast = too_far
            await node.services.overlay.connect(provider.addresses[0])
            role = await nursery.start(provider.serve)
            assert role.modes == ("strict",)
            assert "too far" in role.fast_refused
            assert {option.fp for option in role.make_ad(1)[0].options} == {"strict"}
            with pytest.raises(NoProviderError):
                await computes(node, fp="fast")
            assert np.array_equal(await computes(node), 3 * x + 1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def beside_a_rough_provider(scenario: Callable[[Node], Awaitable[None]]) -> None:
    """Play it on a node that knows one provider, whose fast mode is off by 1e-6 in float32."""

    async def rough(_pool: Any, _slot: str) -> FastFindings:
        await trio.lowlevel.checkpoint()
        return FastFindings(error32=1e-6, error64=1e-15)

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with (
            open_simulated_node(network, chain) as provider,
            open_simulated_node(network, chain) as node,
            trio.open_nursery() as nursery,
        ):
            provider.services.prove_fast = rough
            await node.services.overlay.connect(provider.addresses[0])
            await nursery.start(provider.serve)
            await scenario(node)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_order_that_is_too_tight_for_a_machine_is_refused_with_the_tolerance_that_would_do() -> None:
    x = np.arange(256, dtype=np.float32)

    async def scenario(node: Node) -> None:
        out = p2p.out(x.shape, x.dtype)
        with pytest.raises(NoProviderError, match="rtol of 4e-06 for float32"):
            await node.run(scaled, out, np.float32(3), x, chunks=2, fp="fast", rtol=1e-6, atol=1e-6)
        given = await node.run(scaled, out, np.float32(3), x, chunks=2, fp="fast", rtol=1e-5, atol=1e-6)
        assert np.allclose(given, 3 * x + 1)

    beside_a_rough_provider(scenario)


def test_a_product_of_matrices_is_compared_by_its_atol() -> None:
    """`p2p.matmul` asks for the least rtol that there is, which few machines are sure of, and for an atol that fits the
    matrices; it is sold nonetheless."""
    rng = np.random.default_rng(7)
    a, b = (rng.standard_normal((48, 48)).astype(np.float32) for _ in range(2))

    async def scenario(node: Node) -> None:
        assert np.abs(await matmul_on(node, a, b, fp="fast") - a.astype(np.float64) @ b).max() < 1e-3

    beside_a_rough_provider(scenario)
