"""One side of a peer as `benchmarks/network.py` drives it: JSON lines in, JSON lines out. Standard library only, since
each peer has an environment of its own.

A serving side says ``{"ready": address}`` once it can be reached, and ends when its standard input does. A driving
side says ``{"ready": null}``, then gets a line for each measurement, ``{"do": name, …}``, and answers with one line.
Both end with the process that started them, however that ends.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = [
    "BLOCK",
    "MESSAGE",
    "SPIN_MS",
    "answer",
    "blocks",
    "calibrated",
    "commands",
    "digest_of",
    "dispatch",
    "end_with_parent",
    "ready",
    "sampled",
    "spin",
    "wait_for_end",
]

BLOCK = 1 << 20
MESSAGE = 200  # bytes of a request, and of its reply
SPIN_MS = 20.0
_PR_SET_PDEATHSIG = 1
_TRIES = 10  # of a calibration
_NEAR = 0.15  # of what was wanted


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit(1)


def answer(what: dict[str, Any]) -> None:
    """Write one line to whoever measures."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def ready(address: Any = None, apart: Sequence[int] = ()) -> None:
    """Say that measurements can begin; a serving side says where it is reached, and which processes that it started are
    none of its own when memory is told."""
    answer({"ready": address, "apart": [*apart]})


def commands() -> Iterator[dict[str, Any]]:
    """What is to be measured, line by line, until there is no more."""
    for line in sys.stdin:
        yield json.loads(line)


def dispatch(measures: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer each line by the function of its name."""
    ready()
    for order in commands():
        answer(measures[order.pop("do")](**order))


def wait_for_end() -> None:
    """Return when there is nobody left to serve for."""
    while sys.stdin.readline():
        pass


def sampled(call: Callable[[], Any], *, seconds: float, most: int) -> dict[str, Any]:
    """Milliseconds of calls one after the other: for so long, and so many at most."""
    times = []
    end = time.perf_counter() + seconds
    while len(times) < most:
        began = time.perf_counter()
        call()
        now = time.perf_counter()
        times.append((now - began) * 1000)
        if now > end:
            break
    return {"times_ms": times, "units": len(times)}


def blocks(nbytes: int) -> Iterator[bytes]:
    """`nbytes` in blocks of which no two are equal, so that one that is lost or swapped changes the digest."""
    noise = hashlib.shake_128(b"benchmark").digest(BLOCK - 8)
    for number in range(nbytes // BLOCK):
        yield number.to_bytes(8, "big") + noise


def digest_of(nbytes: int) -> str:
    """What a receiver of `blocks(nbytes)` has to find."""
    found = hashlib.sha256()
    for block in blocks(nbytes):
        found.update(block)
    return found.hexdigest()


def spin(turns: int) -> int:
    """Work for one core that touches no memory, in C, without the interpreter's lock."""
    return hashlib.pbkdf2_hmac("sha256", b"spin", b"", turns)[0]


def calibrated(work: Callable[[int], Any], turns: int, ms: float = SPIN_MS) -> tuple[int, float]:
    """How many turns take `ms` when nothing else runs, and what that many take: the least processor time of several.

    What is compiled need not take twice as long for twice as many turns: a loop that is unrolled by eight has another
    way through it for a number that eight does not divide, which can be eight times as slow. So what comes out is timed
    again, until it is what was wanted.
    """

    def least(count: int) -> float:
        times = []
        for _ in range(5):
            began = time.thread_time()
            work(count)
            times.append(time.thread_time() - began)
        return min(times) * 1000

    taken = least(turns)
    for _ in range(_TRIES):
        turns = max(1, round(turns * ms / max(taken, 1e-6)))
        taken = least(turns)
        if abs(taken - ms) <= _NEAR * ms:
            return turns, taken
    raise RuntimeError(f"{turns} turns take {taken:.3g} ms, and no number of them was found that takes {ms:g} ms")
