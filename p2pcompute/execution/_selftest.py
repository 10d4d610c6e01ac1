"""Does this machine compute the bits that the language defines? Asked before a node sells.

A provider that computes other bits than everybody else is taken for a liar, so a broken core, an overclocked memory
or a compiler that contracts operations costs it its standing. The kernel below puts edge values through the
arithmetic of floats and int64, least and greatest, square roots, floor, shifts, conversions, comparisons and Philox,
and the digest of what comes out is known.

It asks nothing of the mathematical functions, counts of bits, uint64, rounding but floor, shared arrays, barriers,
atomic operations and combined outputs: those take seconds to compile, at the first start of a day. They are held
against known digests and models by the tests (`_golden`).
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._pool import WorkerPool

__all__ = ["DIGEST", "FLOATS", "INTEGERS", "OUTPUTS", "SOURCE", "SelfTestError", "self_test"]

_TIMEOUT_S: Final = 60.0

FLOATS: Final = (
    "0x0.0p+0", "-0x0.0p+0", "0x1.0p+0", "-0x1.0p+0", "0x1.8p+0", "-0x1.8p+0", "0x1.0p-1", "0x1.555556p-2",
    "0x1.99999ap-4", "-0x1.99999ap-4", "0x1.921fb6p+1", "0x1.0p+23", "0x1.000002p+23", "0x1.fffffep+30", "0x1.0p+31",
    "-0x1.0p+31", "0x1.0p+32", "0x1.0p+63", "-0x1.0p+63", "0x1.0p+64", "0x1.fffffep+127", "-0x1.fffffep+127",
    "0x1.0p-126", "0x1.0p-149", "-0x1.0p-149", "0x1.fffffcp-127", "inf", "-inf", "nan", "0x1.000002p+0",
    "0x1.fffffep-1", "0x1.234566p+10",
)  # fmt: skip
"""Operands, each exact as float32."""

INTEGERS: Final = (
    0, 1, -1, 2, -2, 3, 7, -7, 31, 32, 63, 64, 65, 127, 128, 255, 256, 2**24 + 1, 2**31 - 1, 2**31, -(2**31),
    -(2**31) - 1, 2**32, 2**53 + 1, -(2**53) - 1, 10**18, 2**62, 2**63 - 512, 2**63 - 1, -(2**63), -(2**63) + 1,
    3_000_000_000,
)  # fmt: skip
"""Operands, each an int64."""

_TEXT: Final = """def self_test(f, d, n, x, y, z):
    i = cuda.grid(1)
    if i < 1024:
        a = x[i % 32]
        b = x[i // 32]
        f[i, 0] = a + b
        f[i, 1] = a - b
        f[i, 2] = a * b
        f[i, 3] = a / b
        f[i, 4] = a // b
        f[i, 5] = a % b
        f[i, 6] = min(a, b)
        f[i, 7] = max(a, b)
        f[i, 8] = a * b + a
        f[i, 9] = math.sqrt(a)
        f[i, 10] = np.floor(a)
        f[i, 11] = random.uniform(7, i, 3)
        c = y[i % 32]
        e = y[i // 32]
        d[i, 0] = c + e
        d[i, 1] = c * e
        d[i, 2] = c / e
        d[i, 3] = c * e - c
        d[i, 4] = math.sqrt(c)
        d[i, 5] = c // e
        p = z[i % 32]
        q = z[i // 32]
        n[i, 0] = p + q
        n[i, 1] = p * q
        n[i, 2] = p // q
        n[i, 3] = p % q
        n[i, 4] = p << q
        n[i, 5] = p >> q
        n[i, 6] = int(a)
        n[i, 7] = np.int32(c)
        n[i, 8] = np.uint8(a)
        n[i, 9] = int(np.float32(p) < a) + 2 * int(a <= b) + 4 * int(a == b)
        k0, k1, k2, k3 = random.philox(p, q, i, 0, 3, 4)
        n[i, 10] = k0 ^ k3
        n[i, 11] = k1 + k2
"""

SOURCE: Final = KernelSource(text=_TEXT, entry="self_test", digest=source_digest("self_test", _TEXT))
OUTPUTS: Final = (
    OutputSpec(dtype="float32", shape=(1024, 12)),
    OutputSpec(dtype="float64", shape=(1024, 6)),
    OutputSpec(dtype="int64", shape=(1024, 12)),
)
_LAUNCH: Final = Launch(grid=(8, 1, 1), block=(128, 1, 1), dims=1)

DIGEST: Final = "4e05281cd5f582195d0200786b5945d7d18b6f5bddd4e398855b952720e117f4"
"""SHA-256 over the three outputs, little-endian."""


class SelfTestError(ExecutionError):
    """This machine computes other bits than the language defines. It must not sell."""


async def self_test(pool: WorkerPool) -> None:
    """Compute the test in a worker of `pool`, in a session of its own; about a second, nearly all of it compiling.

    Raises:
        SelfTestError: a bit differs; says what to do. And what a session raises.
    """
    floats = np.array([float.fromhex(text) for text in FLOATS])
    inputs = {3: floats.astype(np.float32), 4: floats, 5: np.array(INTEGERS, dtype=np.int64)}
    args: list[ArgSpec] = [*OUTPUTS]
    args += [InputSpec(dtype=content.dtype.name, shape=content.shape) for content in inputs.values()]
    async with pool.session() as session:
        await session.compile(SOURCE, _LAUNCH, args, inputs)
        result = await session.run_blocks(0, _LAUNCH.blocks, timeout_s=_TIMEOUT_S)
    digest = hashlib.sha256(b"".join(result.outputs)).hexdigest()
    if digest != DIGEST:
        raise SelfTestError(
            "this machine computes other bits than the kernel language defines, and would be taken for a liar: check "
            "its memory, take back any overclocking and reinstall numba and llvmlite in their pinned versions "
            f"(self-test {digest[:16]}, expected {DIGEST[:16]})"
        )
