"""Is this machine's fast mode near enough to what strict mode gives? Asked before a node sells fast mode.

What a provider delivers in fast mode is held against the strict result, and one that is too far from it is unpaid and
may be convicted (docs/fast.md). A compiler that takes more liberty than it was given, a mathematical function that is
wrong in some range, or a BLAS that computes in a shorter type would make an honest provider a liar. So it computes
these kernels in both modes first. The strict results have a known digest: what is compared with is right.

Functions and fused operations are held against the tightest tolerance that can be asked for; sums and products of
matrices, whose order is free, against the usual one. How far off the worst element is says which tolerance this
machine can agree to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._fast_matmul import ENTRY, TEXT, product_digest
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._pool import WorkerPool
from p2pcompute.execution._pool_session import WorkerSession

__all__ = ["LEAST_RTOL", "PARTS", "USUAL_RTOL", "FastFindings", "FastSelfTestError", "Part", "fast_self_test", "judge"]

Array: TypeAlias = np.ndarray[Any, Any]

_TIMEOUT_S: Final = 60.0
_COMPILE_S: Final = 120.0  # three seconds where nobody else computes
_COUNT: Final = 512  # elements of each operand
_TERMS: Final = 256  # of a sum
_ROOM: Final = 4.0  # a tolerance has to be so many times the greatest error that was seen: other data have others

LEAST_RTOL: Final = {"float32": 2.0**-20, "float64": 2.0**-46}
"""The tightest tolerance that an agreement can state, relative to the strict result."""

USUAL_RTOL: Final = {"float32": 1e-4, "float64": 1e-9}
"""The tolerance of `fp="fast"` where nothing is said."""

# Operands are positive, an angle is one times a power of two, and no result is a difference of nearly equal numbers:
# its last places would be all that is left, and no machine near another (docs/fast.md). Each of the integers is equal
# in both modes or the mode is broken: a test for NaN that has gone, an index that is not tested any more, a comparison
# with an infinity.
_FUNCTIONS: Final = """def fast_functions(f, d, n, x, y, z):
    i = cuda.grid(1)
    if i < 512:
        a = x[i, 0]
        b = x[i, 1]
        f[i, 0] = math.exp(a * b)
        f[i, 1] = 2.0 + math.sin(b * 1024.0)
        f[i, 2] = math.log(a + 2.0)
        f[i, 3] = math.sqrt(a * b + a)
        f[i, 4] = a / b
        f[i, 5] = 1.0 / math.sqrt(b)
        f[i, 6] = a * a + b
        f[i, 7] = a * b + b * b + a * a
        f[i, 8] = ((a * b + 1.0) * b + a) * b + 2.0
        f[i, 9] = 1.0 / (1.0 + math.exp(-a))
        c = y[i, 0]
        e = y[i, 1]
        d[i, 0] = math.sqrt(c * e + c)
        d[i, 1] = c / e
        d[i, 2] = c * e + e * e + c * c
        d[i, 3] = ((c * e + 1) * e + c) * e + 2
        s = z[i % 4]
        n[i, 0] = int(s != s) + 2 * int(s > 3e38) + 4 * int(s < -3e38)
        n[i, 1] = int(x[i + 512, 0] == 0.0) + 2 * int(x[i - 1000, 1] == 0.0)
        n[i, 2] = int(z[i % 4]) + i * i // 7
        n[i, 3] = int(s * 0.0 == 0.0) + 2 * int(s - s == 0.0)
"""

_SUMS: Final = """def fast_sums(f, d, x, y):
    i = cuda.grid(1)
    if i < 512:
        u = np.float32(0.0)
        v = np.float32(0.0)
        w = np.float32(0.0)
        p = 0.0 * y[i, 0]
        q = 0.0 * y[i, 0]
        for k in range(256):
            a = x[i, 0]
            b = x[(i + k) % 512, 1]
            u += a * b
            v += math.exp(-b)
            w += b / (a + k)
            c = y[i, 0]
            e = y[(i + k) % 512, 1]
            p += c * e
            q += e / (c + k)
        f[i, 0] = u
        f[i, 1] = v
        f[i, 2] = w
        d[i, 0] = p
        d[i, 1] = q
"""


def _source(entry: str, text: str) -> KernelSource:
    return KernelSource(text=text, entry=entry, digest=source_digest(entry, text))


def _operands(count: int, *, seed: int) -> Array:
    """Positive numbers with 48 random bits: columns from 0.25 to 1.25 and from 1 to 3."""
    steps = np.arange(2 * count, dtype=np.uint64) + np.uint64(seed)
    with np.errstate(over="ignore"):
        mixed = (steps + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
    numbers = (mixed >> np.uint64(16)).astype(np.float64) * 2.0**-48
    return np.stack([0.25 + numbers[:count], 1.0 + 2.0 * numbers[count:]], axis=1)


def _specs(outputs: Sequence[OutputSpec], inputs: Sequence[Array]) -> tuple[ArgSpec, ...]:
    return (*outputs, *(InputSpec(dtype=array.dtype.name, shape=array.shape) for array in inputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A kernel of the test.

    Attributes:
        title: what is looked at, for people.
        source: the kernel, in strict mode.
        launch: its geometry.
        outputs: what it gives.
        inputs: what it reads.
        digest: SHA-256 over its strict outputs, little-endian.
        rtol: by dtype, how far off an element may be.
    """

    title: str
    source: KernelSource
    launch: Launch
    outputs: tuple[OutputSpec, ...]
    inputs: tuple[Array, ...]
    digest: str
    rtol: dict[str, float]

    @property
    def specs(self) -> tuple[ArgSpec, ...]:
        """Its arguments."""
        return _specs(self.outputs, self.inputs)


def _parts() -> tuple[Part, ...]:
    wide = _operands(_COUNT, seed=7)
    narrow = wide.astype(np.float32)
    special = np.array([1.5, np.nan, np.inf, -np.inf], dtype=np.float32)
    launch = Launch(grid=(_COUNT // 128, 1, 1), block=(128, 1, 1), dims=1)
    made = [
        Part(
            title="functions and fused operations",
            source=_source("fast_functions", _FUNCTIONS),
            launch=launch,
            outputs=(
                OutputSpec(dtype="float32", shape=(_COUNT, 10)),
                OutputSpec(dtype="float64", shape=(_COUNT, 4)),
                OutputSpec(dtype="int64", shape=(_COUNT, 4)),
            ),
            inputs=(narrow, wide, special),
            digest="",
            rtol=LEAST_RTOL,
        ),
        Part(
            title="sums",
            source=_source("fast_sums", _SUMS),
            launch=launch,
            outputs=(
                OutputSpec(dtype="float32", shape=(_COUNT, 3)),
                OutputSpec(dtype="float64", shape=(_COUNT, 2)),
            ),
            inputs=(narrow, wide),
            digest="",
            rtol=USUAL_RTOL,
        ),
    ]
    product = KernelSource(text=TEXT, entry=ENTRY, digest=product_digest)
    factors = _operands(64 * 96 + 96 * 48, seed=11)[:, 0]
    for dtype in ("float32", "float64"):
        a = factors[: 64 * 96].reshape(64, 96).astype(dtype)
        b = factors[64 * 96 :].reshape(96, 48).astype(dtype)
        made.append(
            Part(
                title=f"p2p.matmul of {dtype}",
                source=product,
                launch=Launch(grid=(1, 1, 1), block=(128, 1, 1), dims=1),
                outputs=(OutputSpec(dtype=dtype, shape=(64, 48)),),
                inputs=(a, b),
                digest="",
                rtol=USUAL_RTOL,
            )
        )
    return tuple(replace(part, digest=digest) for part, digest in zip(made, _DIGESTS, strict=True))


_DIGESTS: Final = (
    "f5429ea0960147d4e7c6f5a6bc30c7d54535aca1a2aff6648c7015028406bfdf",
    "13f438c842bfa72fca6ed8caad6e5801f06c6d36ae250b41ada50dc2f15d5456",
    "8ac3322e30e4c0f87066c3091406b103aea3d83264c4579fbe2e19cf94dcf9eb",
    "a5af347e8559cacc36ba1761728394dafd46995560682e87d5d35c225f62762f",
)

PARTS: Final = _parts()
"""What is computed, in order."""


class FastSelfTestError(ExecutionError):
    """This machine's fast mode is further from the strict results than an agreement allows. It must not sell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastFindings:
    """How far fast mode was off where it was furthest, relative to the strict result.

    Attributes:
        error32, error64: of float32 and float64.
    """

    error32: float
    error64: float

    def least_rtol(self, dtype: str) -> float:
        """The tightest relative tolerance that this machine can agree to for outputs of `dtype`: some room beyond what
        was seen, and never tighter than an agreement can be, nor wider than the usual one, within which it was."""
        error = self.error32 if dtype == "float32" else self.error64
        return min(USUAL_RTOL[dtype], max(LEAST_RTOL[dtype], _ROOM * error))


async def fast_self_test(pool: WorkerPool) -> FastFindings:
    """Compute the test in a worker of `pool`, in both modes, in a session of its own; seconds, nearly all of it
    compiling.

    Raises:
        FastSelfTestError: an element is too far off, or the strict results are not what they should be; says which and
            what to do. And what a session raises.
    """
    worst = {"float32": 0.0, "float64": 0.0}
    async with pool.session() as session:
        for part in PARTS:
            strict = await _computed(session, part, "strict")
            fast = await _computed(session, part, "fast")
            for dtype, error in judge(part, strict, fast).items():
                worst[dtype] = max(worst[dtype], error)
    return FastFindings(error32=worst["float32"], error64=worst["float64"])


async def _computed(session: WorkerSession, part: Part, fp: str) -> list[Array]:
    inputs = {len(part.outputs) + place: content for place, content in enumerate(part.inputs)}
    await session.compile(replace(part.source, fp=fp), part.launch, part.specs, inputs, timeout_s=_COMPILE_S)
    result = await session.run_blocks(0, part.launch.blocks, timeout_s=_TIMEOUT_S)
    # Rows of all threads, those that lie outside of the output at the end.
    return [
        np.frombuffer(content, dtype=spec.dtype).reshape(-1, *spec.shape[1:])[: spec.shape[0]]
        for spec, content in zip(part.outputs, result.outputs, strict=True)
    ]


def judge(part: Part, strict: Sequence[Array], fast: Sequence[Array]) -> dict[str, float]:
    """The greatest relative error of fast outputs, by float dtype.

    Args:
        strict, fast: the outputs of `part` in both modes.

    Raises:
        FastSelfTestError: one is wrong.
    """
    digest = hashlib.sha256(b"".join(array.tobytes() for array in strict)).hexdigest()
    if digest != part.digest:
        raise FastSelfTestError(
            f"in strict mode this machine computes other bits for {part.title} than the kernel language defines, so "
            "that nothing can be held against them: check its memory, take back any overclocking and reinstall numba "
            f"and llvmlite in their pinned versions (self-test {digest[:16]}, expected {part.digest[:16]})"
        )
    worst: dict[str, float] = {}
    for right, given in zip(strict, fast, strict=True):
        dtype = right.dtype.name
        rtol = part.rtol.get(dtype)
        if rtol is None:
            if given.tobytes() != right.tobytes():
                raise FastSelfTestError(_refusal(part, "integers and comparisons are other ones than in strict mode"))
            continue
        wide, near = right.astype(np.float64), given.astype(np.float64)
        with np.errstate(all="ignore"):
            error = float(np.max(np.abs(near - wide) / np.abs(wide)))
        if not error <= rtol:  # nor is a NaN
            raise FastSelfTestError(_refusal(part, f"{dtype} is off by {error:.2g}, and may be by {rtol:.2g}"))
        worst[dtype] = max(worst.get(dtype, 0.0), error)
    return worst


def _refusal(part: Part, what: str) -> str:
    return (
        f"fast mode is too far from strict mode on this machine, for {part.title}: {what}. Sell strict mode only "
        "(--fp strict), or reinstall numba, llvmlite and NumPy in their pinned versions"
    )
