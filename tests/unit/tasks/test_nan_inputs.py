"""NaNs of all kinds as inputs of a task: what comes back is the one NaN of docs/strict.md, and nobody is blamed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.overlay import Subject
from p2pcompute.tasks import ChunkDone, LiarCaught, ProviderLost

from ..market._harness import SIZE, Market, Watch, in_memory

# Quiet and signalling, with and without a payload, of either sign. As bits: a NaN that is calculated with turns quiet.
PAYLOADS: dict[str, tuple[type, list[int], int]] = {
    "float32": (np.uint32, [0x7FC00000, 0xFFC00000, 0x7FC12345, 0x7F800001, 0xFFBFFFFF, 0xFFFFFFFF], 0x7FC00000),
    "float64": (
        np.uint64,
        [
            0x7FF8000000000000,
            0xFFF8000000000000,
            0x7FF8000012345678,
            0x7FF0000000000001,
            0xFFF7FFFFFFFFFFFF,
            0xFFFFFFFFFFFFFFFF,
        ],
        0x7FF8000000000000,
    ),
}


def inputs(dtype: str) -> Any:
    """Numbers, and in every third place the next one of the NaNs."""
    unsigned, payloads, _ = PAYLOADS[dtype]
    values = np.arange(SIZE, dtype=dtype)
    bits = values.view(unsigned)
    bits[::3] = np.resize(np.array(payloads, unsigned), bits[::3].size)
    return values


def with_the_one_nan(values: Any) -> bytes:
    """The bytes of these values, with all NaNs made that one."""
    unsigned, _, one = PAYLOADS[str(values.dtype)]
    bits = values.view(unsigned).copy()
    bits[np.isnan(values)] = one
    return bytes(bits.tobytes())


@p2p.kernel
def copied(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i]


@p2p.kernel
def negated_in_place(a):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < a.size and i % 2 == 0:
        a[i] = -a[i]


def negated(x: Any) -> Any:
    changed = x.copy()
    changed[::2] = -changed[::2]
    return changed


@pytest.mark.parametrize("check", ["sample", "quorum"])
@pytest.mark.parametrize("dtype", PAYLOADS)
@pytest.mark.parametrize("way", ["out", "inout", "split", "inout of split", "sum", "max"])
def test_what_comes_back_is_the_one_nan_and_nobody_is_blamed(way: str, dtype: str, check: str) -> None:
    x = inputs(dtype)
    sent = x.tobytes()
    calls: dict[str, tuple[Any, tuple[Any, ...], Any]] = {
        "out": (copied, (p2p.out(SIZE, x.dtype), x), x),
        "inout": (negated_in_place, (p2p.inout(x),), negated(x)),
        "split": (copied, (p2p.out(SIZE, x.dtype), p2p.split(x, tile=256)), x),
        "inout of split": (negated_in_place, (p2p.inout(p2p.split(x, tile=256)),), negated(x)),
        "sum": (copied, (p2p.reduce("sum", SIZE, x.dtype), x), np.full((), np.nan, x.dtype)),
        "max": (copied, (p2p.reduce("max", SIZE, x.dtype), x), np.full((), np.nan, x.dtype)),
    }
    kernel, arguments, expected = calls[way]

    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(2)]
        node = await market.node(connect=tuple(providers))
        watch = Watch()
        found = await node.run(kernel, *arguments, chunks=4, check=check, on_event=watch)
        assert np.asarray(found).tobytes() == with_the_one_nan(np.asarray(expected))
        assert x.tobytes() == sent
        assert len(watch.of(ChunkDone)) >= 4
        assert not watch.of(LiarCaught)
        assert not watch.of(ProviderLost)
        for one, other in [(node, provider) for provider in providers] + [(provider, node) for provider in providers]:
            overlay: Any = one.services.overlay
            assert overlay.bans.score(Subject("peer", other.peer_id)) == 0
        assert not any(node.services.books.standing(provider.peer_id).failures for provider in providers)
        assert not node.services.books.banned

    in_memory(scenario)
