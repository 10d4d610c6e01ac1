"""What Freivalds' algorithm finds in products of matrices, and what it costs: errors injected into real products.

A chunk of 256 rows of a float32 product is computed by BLAS. Each run adds errors of one size, with random signs, to
elements at random, and the product's screen (`p2pcompute.checking.FreivaldsScreen`) says which rows it would have
computed strictly; a run counts as caught where one of those is off by more than the tolerance of the agreement, which
is worked out from the matrices as `p2p.matmul` does it. Sizes are in units of its `atol`. Prints tables, or JSON.

python benchmarks/product_power.py [--count 1000] [--json | --write]

--write puts the tables into docs/checking.md, between its two marks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # what is timed beside each other takes one thread each

import numpy as np
import trio

from p2pcompute.checking import FreivaldsScreen, outside, product_tolerance
from p2pcompute_protocols.negotiation import Tolerance

Array: TypeAlias = np.ndarray[Any, Any]

ROWS: Final = 256
SIDE: Final = 512
ALTERED: Final = ((1, "1 element"), (13, "0.01 %"), (131, "0.1 %"), (1_311, "1 %"), (13_107, "10 %"))
SPEND_S: Final = 10.0
SIZES: Final = (0.5, 1.5, 2.0, 4.0, 16.0, 256.0)
PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "checking.md"
BEGIN: Final = "<!-- figures: python benchmarks/product_power.py --write -->\n"
END: Final = "<!-- end of figures of products -->\n"


def rounded(values: Array, bits: int) -> Array:
    """float32 with so many bits of significand, rounded to nearest."""
    drop = 24 - bits
    raw = values.view(np.uint32).astype(np.uint64) + (1 << (drop - 1))
    return ((raw >> drop) << drop).astype(np.uint32).view(np.float32)


CHEATS: Final[tuple[tuple[str, Callable[[Array, Array], Array]], ...]] = (
    ("zeros", lambda a, b: np.zeros((len(a), b.shape[1]), np.float32)),
    ("bfloat16 inputs", lambda a, b: rounded(a, 8) @ rounded(b, 8)),
    ("float16 or TF32 inputs", lambda a, b: rounded(a, 11) @ rounded(b, 11)),
    ("a float16 result", lambda a, b: (a @ b).astype(np.float16).astype(np.float32)),
    ("inputs of 16 bits", lambda a, b: rounded(a, 16) @ rounded(b, 16)),
    ("inputs of 20 bits", lambda a, b: rounded(a, 20) @ rounded(b, 20)),
    ("the last term of each sum left out", lambda a, b: a[:, :-1] @ b[:-1]),
)


def strict_product(a: Array, b: Array) -> Array:
    """What the kernel gives in strict mode: sums in the order of k, each operation rounded."""
    total = np.zeros((len(a), b.shape[1]), a.dtype)
    for k in range(len(b)):
        total += a[:, k, None] * b[None, k]
    return total


async def power(count: int) -> dict[str, Any]:
    """Runs with injected errors, and with each cheat."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((ROWS, SIDE), np.float32)
    b = rng.standard_normal((SIDE, SIDE), np.float32)
    rtol, atol = product_tolerance(a, b, rng)
    tolerance = Tolerance.of(rtol32=rtol, atol32=atol, rtol64=2.0**-46, atol64=0.0)
    screen = FreivaldsScreen(a, b, tolerance=tolerance)
    honest, strict = a @ b, strict_product(a, b)
    ids = np.arange(ROWS)

    async def caught(claimed: Array) -> bool:
        rows = await screen.suspects(ids, claimed)
        return bool(outside(claimed[rows], strict[rows], tolerance).any())

    alarms = sum([await caught(honest) for _ in range(count)])
    injected: list[dict[str, Any]] = []
    for number, name in ALTERED:
        found: list[int] = []
        for size in SIZES:
            hits = 0
            for _ in range(count):
                claimed = honest.copy()
                places = rng.choice(claimed.size, number, replace=False)
                claimed.ravel()[places] += (rng.integers(0, 2, number) * 2 - 1) * np.float32(size * atol)
                hits += await caught(claimed)
            found.append(hits)
        injected.append({"altered": name, "caught": found})
    cheats = [
        {
            "cheat": name,
            "off": float(np.abs(cheat(a, b) - strict).max() / atol),
            "caught": sum([await caught(cheat(a, b)) for _ in range(min(count, 200))]),
            "runs": min(count, 200),
        }
        for name, cheat in CHEATS
    ]
    return {
        "rows": ROWS,
        "side": SIDE,
        "runs": count,
        "atol": atol,
        "rms": float(np.sqrt(np.mean(honest**2))),
        "honest_error": float(np.abs(honest - strict).max() / atol),
        "false_alarms": alarms,
        "sizes": SIZES,
        "injected": injected,
        "cheats": cheats,
    }


async def cost(side: int, rows: int) -> dict[str, Any]:
    """The time of a check beside the time of what is checked."""
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((rows, side), (side, side)))
    tolerance = Tolerance.of(rtol32=2.0**-20, atol32=1.0, rtol64=2.0**-46, atol64=0.0)
    screen = FreivaldsScreen(a, b, tolerance=tolerance)
    product_s, check_s = [], []
    claimed = a @ b
    end = time.perf_counter() + SPEND_S
    while len(check_s) < 3 or time.perf_counter() < end:  # on a busy machine, until each was left alone once
        began = time.perf_counter()
        np.matmul(a, b, out=claimed)
        product_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        await screen.suspects(np.arange(rows), claimed)
        check_s.append(time.perf_counter() - began)
    few = strict_product(a[:1], b)
    began = time.perf_counter()
    few = strict_product(a[:4], b)
    strict_s = (time.perf_counter() - began) / len(few) * rows
    return {
        "side": side,
        "rows": rows,
        "blas_ms": min(product_s) * 1e3,
        "check_ms": min(check_s) * 1e3,
        "of_blas": min(check_s) / min(product_s),
        "of_strict": min(check_s) / strict_s,
    }


def show(found: dict[str, Any]) -> str:
    """The tables of docs/checking.md."""
    lines: list[str] = []
    write = lines.append
    write(f"| errors of | {' | '.join(f'{size:g} × atol' for size in found['sizes'])} |\n")
    write("|---" * (len(found["sizes"]) + 1) + "|\n")
    for row in found["injected"]:
        shares = " | ".join(f"{hits / found['runs']:.1%}" for hits in row["caught"])
        write(f"| {row['altered']} | {shares} |\n")
    write(
        f"\n{found['runs']:,} runs for each figure, of a chunk of {found['rows']} rows of a product of side "
        f"{found['side']}; `atol` was {found['atol']:.2g}, where elements have {found['rms']:.3g} (root mean square), "
        f"and the honest result used {found['honest_error']:.0%} of it. {found['false_alarms']} of {found['runs']:,} "
        "honest chunks were held against their provider.\n"
    )
    write("\n| cheat | largest error, × atol | caught |\n|---|---|---|\n")
    for row in found["cheats"]:
        write(f"| {row['cheat']} | {row['off']:.3g} | {row['caught']} of {row['runs']} |\n")
    write("\n| side | rows of a chunk | BLAS | check | of BLAS | of the strict product |\n|---|---|---|---|---|---|\n")
    for row in found["costs"]:
        write(
            f"| {row['side']:,} | {row['rows']:,} | {row['blas_ms']:.1f} ms | {row['check_ms']:.1f} ms | "
            f"{row['of_blas']:.0%} | {row['of_strict']:.1%} |\n"
        )
    return "".join(lines)


def main() -> None:
    """Inject, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000, help="runs for each figure")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", dest="as_json")
    how.add_argument("--write", action="store_true", help="put the tables into docs/checking.md")
    options = parser.parse_args()
    count = max(1, min(options.count, 100_000))
    found = trio.run(power, count)
    shapes = ((512, 512), (1_024, 1_024), (2_048, 512), (2_048, 2_048)) if count >= 100 else ((128, 128),)
    found["costs"] = [trio.run(cost, side, rows) for side, rows in shapes]
    if options.as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    tables = show(found)
    sys.stdout.write(tables)
    if options.write:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
