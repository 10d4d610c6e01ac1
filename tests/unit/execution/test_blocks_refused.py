"""Attacks on kernels whose threads work together: barriers that not all threads reach, and races, however hidden."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import lower
from p2pcompute.execution._rows import Layout

HEAD = """def device(a, b):
    return a + b
def work(out, blocks, x, n):
    sm = cuda.shared.array(64, np.int32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
"""
TAIL = "    out[i] = 1\n    if tx == 0:\n        blocks[cuda.blockIdx.x, 0] = 1\n"


def source(lines: str, *, head: str = HEAD, tail: str = TAIL) -> KernelSource:
    text = head + "".join(f"    {line}\n" for line in lines.split("\n")) + tail
    return KernelSource(text=text, entry="work", digest=source_digest("work", text))


def lowered(lines: str, threads: int = 32, n: int = 5, **parts: str) -> Any:
    admitted = admit(source(lines, **parts))
    launch = Launch(grid=(4, 1, 1), block=(threads, 1, 1), dims=1)
    specs = (
        OutputSpec(dtype="int64", shape=(4 * threads,)),
        OutputSpec(dtype="int64", shape=(4, 100)),
        InputSpec(dtype="int64", shape=(100,)),
        ScalarSpec(dtype="int64", value=np.int64(n)),
    )
    Layout.of_admitted(admitted, launch, specs)
    return lower(admitted, launch, specs)


def test_the_frame_of_these_tests_is_lowered() -> None:
    assert lowered("cuda.syncthreads()").block is not None


DIVERGENT = {
    "under a thread's test": "if tx < 3:\n    cuda.syncthreads()",
    "in an else": "if tx < 3:\n    pass\nelse:\n    cuda.syncthreads()",
    "under what was assigned under a thread's test": "c = 0\nif tx < 3:\n    c = 1\nif c:\n    cuda.syncthreads()",
    "under what a loop carries": "a = b = c = 0\nfor k in range(9):\n    if c:\n        cuda.syncthreads()\n    c = b\n"
    "    b = a\n    a = tx",
    "through a device function": "if device(n, tx):\n    cuda.syncthreads()",
    "through a load by thread": "if x[i]:\n    cuda.syncthreads()",
    "through a load by a load by thread": "if x[x[tx]]:\n    cuda.syncthreads()",
    "through shared memory": "sm[tx] = tx\nif sm[0]:\n    cuda.syncthreads()",
    "through a local array": "mine = n + tx\nif mine:\n    cuda.syncthreads()",
    "through an output": "out[i] = tx\nif out[i]:\n    cuda.syncthreads()",
    "through a block's output": "if blocks[cuda.blockIdx.x, 0]:\n    cuda.syncthreads()",
    "through arithmetic that gives zero": "if tx - tx:\n    cuda.syncthreads()",
    "through a conditional": "c = 1 if tx else 0\nif c:\n    cuda.syncthreads()",
    "through a tuple": "a, b = tx, n\na, b = b, a\nif b:\n    cuda.syncthreads()",
    "in a range by thread": "for k in range(tx):\n    cuda.syncthreads()",
    "in a range whose bound varies": "m = n\nfor k in range(tx):\n    m = k\n"
    "for k in range(m):\n    cuda.syncthreads()",
    "in a while by thread": "m = tx\nwhile m > 0:\n    m -= 1\n    cuda.syncthreads()",
    "behind a break": "for k in range(n):\n    if tx == k:\n        break\n    cuda.syncthreads()",
    "before a break": "for k in range(n):\n    cuda.syncthreads()\n    if tx == k:\n        break",
    "behind a continue": "for k in range(n):\n    if tx == k:\n        continue\n    cuda.syncthreads()",
    "by steps counted before a break": "m = 0\nfor k in range(n):\n    if tx == k:\n        break\n    m += 1\n"
    "if m == 3:\n    cuda.syncthreads()",
    "by the counter of a loop that some leave": "for k in range(n):\n    if tx == k:\n        break\nif k == 3:\n"
    "    cuda.syncthreads()",
    "behind a return": "if tx == 5:\n    return\ncuda.syncthreads()",
    "behind a return in a loop": "for k in range(n):\n    cuda.syncthreads()\n    if tx == k:\n        return",
    "behind a return of a guard": "if i < out.size:\n    pass\nelse:\n    return\ncuda.syncthreads()",
    "by what is assigned behind a return": "c = 0\nif tx == 5:\n    for k in range(3):\n        c = c + 1\n"
    "while c < 3:\n    cuda.syncthreads()\n    c += 1",
    "under a random number by thread": "if random.uniform(1, tx, 0) < 0.5:\n    cuda.syncthreads()",
    "under a global place": "if cuda.grid(1) < 40:\n    cuda.syncthreads()",
}


@pytest.mark.parametrize("name", DIVERGENT)
def test_a_barrier_that_not_all_threads_need_reach(name: str) -> None:
    with pytest.raises(KernelError, match=r"cuda.syncthreads\(\)|others of its block") as caught:
        admit(source(DIVERGENT[name]))
    assert caught.value.line > 6
    assert caught.value.instead


UNIFORM = {
    "under an argument": "if n > 3:\n    cuda.syncthreads()",
    "under a block's place": "if cuda.blockIdx.x > 3:\n    cuda.syncthreads()",
    "under an input by block": "if x[cuda.blockIdx.x]:\n    cuda.syncthreads()",
    "in a loop that all leave": "for k in range(n):\n    if k == 3:\n        break\n    cuda.syncthreads()",
    "behind a return of all": "if n < 3:\n    return\ncuda.syncthreads()",
    "by what all count": "m = 0\nfor k in range(3):\n    m = m + n\n    sm[tx] = k\nwhile m > 0:\n"
    "    m //= 2\n    cuda.syncthreads()",
    "by a tuple": "a, b = tx, n\nif b:\n    cuda.syncthreads()",
    "behind a loop that threads leave": "for k in range(n):\n    if tx == k:\n        break\ncuda.syncthreads()",
    "behind a random number": "c = random.uniform(1, n, 0) < 0.5\nif c:\n    cuda.syncthreads()",
}


@pytest.mark.parametrize("name", UNIFORM)
def test_a_barrier_that_all_threads_reach(name: str) -> None:
    assert lowered(UNIFORM[name]).block is not None


def test_a_thread_that_returns_while_its_block_goes_on() -> None:
    with pytest.raises(KernelError, match="others of its block go on"):
        admit(source("if n:\n    cuda.syncthreads()\n    if tx == 3:\n        return\nsm[tx] = 1"))
    # Where no barrier follows any thread may.
    assert lowered("for k in range(n):\n    if k == 3:\n        return\n    if tx == k:\n        return").block


RACES = {
    "one element": "sm[0] = tx",
    "one element by arithmetic": "sm[tx - tx] = tx",
    "one element by an alias": "a = tx // 2\nb = a * 2\nsm[b] = 1",
    "one element of the last": "sm[min(tx, 30)] = 1",
    "neighbours": "sm[tx] = 1\nsm[tx + 1] = 2",
    "neighbours in a loop": "for k in range(2):\n    sm[tx + k] = k",
    "by data": "sm[x[i]] = 1",
    "by data that is a permutation": "sm[x[tx]] = 1",
    "by a variable of two values": "a = tx\nif n:\n    a = 0\nsm[a] = 1",
    "by a variable that counts": "a = tx\nwhile a < 64:\n    sm[a] = 1\n    a += 31",
    "by the block's place": "sm[cuda.blockIdx.x] = 1",
    "by a product that is zero": "sm[tx * (n - 5)] = 1",
    "modulo": "sm[tx % 31] = 1",
    "shifted away": "sm[tx >> 1] = 1",
    "in both arms": "if tx < 16:\n    sm[tx] = 1\nelse:\n    sm[tx - 16] = 1",
    "under a test by data": "if x[i]:\n    sm[0] = 1",
    "around a loop of the block": "for k in range(n):\n    sm[tx] = 1\n    cuda.syncthreads()\n    sm[tx + 1] = 1",
    "over a barrier that need not be": "sm[tx] = 1\nif x[0]:\n    cuda.syncthreads()\nsm[tx + 1] = 2",
    "over a loop that need not run": "sm[tx] = 1\nfor k in range(x[0]):\n    cuda.syncthreads()\nsm[tx + 1] = 2",
    "in a block's output": "blocks[cuda.blockIdx.x, 7] = tx",
    "in a block's output by data": "blocks[cuda.blockIdx.x, x[i]] = tx",
    "a load of a block's output": "v = blocks[cuda.blockIdx.x, 32 - tx]\nblocks[cuda.blockIdx.x, 1 + tx] = v",
    "an atomic operation and a store": "sm[tx] = 1\ncuda.atomic.add(sm, 0, 1)",
    "an atomic operation and a load": "cuda.atomic.add(sm, 0, 1)\nout[i] = sm[0]",
    "two atomic operations": "cuda.atomic.add(sm, 0, 1)\ncuda.atomic.max(sm, 0, 1)",
    "an atomic operation and a load around a loop": "for k in range(n):\n    v = sm[0]\n    cuda.syncthreads()\n"
    "    cuda.atomic.add(sm, 0, v)",
    "by what a loop changes behind it": "u = 1\nfor m in range(n):\n    sm[tx * u] = 1\n"
    "    cuda.syncthreads()\n    u = 0",
    "by what a condition changes": "u = 1\nif n > 2:\n    u = 0\nsm[tx * u] = 1",
    "by what the other arm changes": "u = 1\nif n > 2:\n    pass\nelse:\n    u = 2\nsm[tx * (u - 1)] = 1",
    "by what one thread changes": "u = 1\nif tx == 3:\n    u = 0\nsm[tx * u] = 1",
    "by what is counted until a break": "u = 0\nfor m in range(3):\n    if m == n - 4:\n        break\n"
    "    u += 1\nsm[tx * (u - 1)] = 1",
    "by what is counted with a continue": "u = 0\nfor m in range(3):\n    if m == 1:\n        continue\n"
    "    u += 1\nsm[tx * (u - 2)] = 1",
    "in the last turn": "u = 3\nwhile u > 0:\n    u -= 1\n    sm[tx * u] = 1\n    cuda.syncthreads()",
    "behind the last turn": "u = 3\nwhile u > 0:\n    u -= 1\nsm[tx * u] = 1",
    "by the counter of the loop around": "u = 1\nfor m in range(3):\n    u = m\n    sm[tx * u] = 1\n"
    "    cuda.syncthreads()",
    "by a counter of an earlier loop": "m = 2\nu = 5\nfor m in range(3):\n    u = m - 1\nsm[tx * (u - 1)] = 1",
    "by an exchange": "a, b = 0, 1\na, b = b, a\nsm[tx * b] = 1",
    "in one turn, and in each": "for m in range(3):\n    sm[tx] = 1\n    if tx == m:\n        sm[tx + 1] = 2\n"
    "    cuda.syncthreads()",
    "in one turn of loops in loops": "k = 2\nwhile k <= 32:\n    j = k // 2\n    while j > 0:\n"
    "        sm[tx ^ j] += sm[tx]\n        if j == 4 and k == 8:\n            sm[tx // 2] = 1\n"
    "        cuda.syncthreads()\n        j //= 2\n    k *= 2",
    "between the turns of loops in loops": "k = 2\nwhile k <= 32:\n    j = k // 2\n    while j > 0:\n"
    "        if tx ^ j > tx:\n            sm[tx], sm[tx ^ j] = sm[tx ^ j], sm[tx]\n        j //= 2\n"
    "    cuda.syncthreads()\n    k *= 2",
    "an exchange that both make": "j = 16\nwhile j > 0:\n    sm[tx], sm[tx ^ j] = sm[tx ^ j], sm[tx]\n"
    "    cuda.syncthreads()\n    j //= 2",
    "behind the last turn by another thread": "d = 32\no = 1\nwhile d > 0:\n    cuda.syncthreads()\n    if tx < d:\n"
    "        sm[o * (2 * tx + 2) - 1] += sm[o * (2 * tx + 1) - 1]\n    o *= 2\n    d >>= 1\n"
    "if tx == 1:\n    sm[63] = 0",
    "a load behind the last turn": "d = 32\no = 1\nwhile d > 0:\n    cuda.syncthreads()\n    if tx < d:\n"
    "        sm[o * (2 * tx + 2) - 1] += sm[o * (2 * tx + 1) - 1]\n    o *= 2\n    d >>= 1\nout[i] = sm[63]",
    "in turns whose number is the block's": "j = cuda.blockIdx.x\nwhile j > 0:\n    if tx ^ j > tx:\n"
    "        sm[tx], sm[tx ^ j] = sm[tx ^ j], sm[tx]\n    cuda.syncthreads()\n    j //= 2",
    "in turns by data": "j = x[0]\nwhile j > 0:\n    if tx ^ j > tx:\n        sm[tx], sm[tx ^ j] = sm[tx ^ j], sm[tx]\n"
    "    cuda.syncthreads()\n    j //= 2",
    "by a counter that is a float": "for k in range(16777217, 16777218):\n    sm[tx * (int(k) - 16777216)] = 1\n"
    "    cuda.syncthreads()\nk = 0.5",
    "an atomic operation in one turn": "for k in range(3):\n    for j in range(k + 1):\n        if j == 2:\n"
    "            cuda.atomic.add(sm, tx, 1)\n        sm[tx ^ j] = k\n        cuda.syncthreads()",
    "a load of one of several": "for k in range(2):\n    sm[tx * 2 + k] = sm[63 - tx] + k",
}


@pytest.mark.parametrize("name", RACES)
def test_a_race_is_refused(name: str) -> None:
    with pytest.raises(
        KernelTypeError, match=r"store to one element|no barrier between|another thread may store"
    ) as caught:
        lowered(RACES[name])
    assert caught.value.line > 6
    assert caught.value.instead


FREE = {
    "own": "sm[tx] = 1\nsm[tx] += 2",
    "own through the middle": "sm[tx + 1] = 1\nsm[1 + tx] += 2",
    "own in reverse": "sm[31 - tx] = sm[tx]",
    "two halves": "sm[tx] = 1\nsm[tx + 32] = 2",
    "strided": "for k in range(tx, 64, 32):\n    sm[k] = 1",
    "one thread": "if tx == 7:\n    sm[x[0]] = 1\n    sm[x[1]] = 2",
    "one thread by two tests": "if tx < n and tx > n - 2:\n    sm[0] = 1",
    "out of range": "sm[tx * 64] = 1",
    "a barrier between": "sm[tx] = 1\ncuda.syncthreads()\nsm[tx + 1] = 2",
    "a step each": "for k in range(n):\n    sm[tx * 1 + k] = 1\n    cuda.syncthreads()",
    "others, as they were": "sm[tx] += sm[tx ^ 1]",
    "others by data": "sm[tx] += sm[x[i]]",
    "several own, and others by data": "sm[2 * tx] = sm[x[i]]\nsm[2 * tx + 1] = 3",
    "halved": "s = 16\nwhile s > 0:\n    if tx < s:\n        sm[tx] += sm[tx + s]\n    cuda.syncthreads()\n    s //= 2",
    "doubled": "s = 1\nwhile s < 32:\n    k = 2 * s * tx\n    if k < 32:\n        sm[k] += sm[k + s]\n"
    "    cuda.syncthreads()\n    s *= 2",
    "counted by a for": "s = 1\nfor k in range(4):\n    sm[tx * s] = 1\n    cuda.syncthreads()\n    s = s * 2",
    "before the last turn": "u = 3\nwhile u > 1:\n    u -= 1\nsm[tx * u] = 1",
    "in one turn, and in each": "for m in range(3):\n    sm[tx] = 1\n    if tx == m:\n        sm[tx] = 2\n"
    "    cuda.syncthreads()",
    "over a barrier under an argument": "sm[tx] = 1\nif n:\n    cuda.syncthreads()\nsm[tx + 1] = 2",
    "never": "for k in range(0):\n    sm[0] = 1",
    "by exchanges in loops in loops": "k = 2\nwhile k <= 32:\n    j = k // 2\n    while j > 0:\n        p = tx ^ j\n"
    "        if p > tx and (sm[tx] > sm[p]) == ((tx & k) == 0):\n            sm[tx], sm[p] = sm[p], sm[tx]\n"
    "        cuda.syncthreads()\n        j //= 2\n    k *= 2",
    "by exchanges in for loops": "for k in range(1, 6):\n    for j in range(k - 1, -1, -1):\n"
    "        p = tx ^ (1 << j)\n        if p > tx and sm[p] < sm[tx]:\n            t = sm[tx]\n"
    "            sm[tx] = sm[p]\n            sm[p] = t\n"
    "        cuda.syncthreads()",
    "up and down a tree": "d = 32\no = 1\nwhile d > 0:\n    cuda.syncthreads()\n    if tx < d:\n"
    "        sm[o * (2 * tx + 2) - 1] += sm[o * (2 * tx + 1) - 1]\n    o *= 2\n    d >>= 1\n"
    "if tx == 0:\n    sm[63] = 0\n"
    "d = 1\nwhile d < 64:\n    o >>= 1\n    cuda.syncthreads()\n    if tx < d:\n        t = sm[o * (2 * tx + 1) - 1]\n"
    "        sm[o * (2 * tx + 1) - 1] = sm[o * (2 * tx + 2) - 1]\n        sm[o * (2 * tx + 2) - 1] += t\n    d *= 2",
    "by a thread's own in turns that are left": "for k in range(9):\n    if k == n:\n        break\n    if k == 1:\n"
    "        cuda.syncthreads()\n        continue\n    if k % 2:\n        sm[tx ^ k] = k\n    cuda.syncthreads()\n"
    "    sm[tx + k] = k\n    cuda.syncthreads()",
    "atomic operations by data": "cuda.atomic.add(sm, x[i], x[i])\ncuda.atomic.add(sm, tx, 1)",
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_no_race_is_taken(name: str) -> None:
    assert lowered(FREE[name]).block is not None


def test_a_race_depends_on_the_geometry_at_hand() -> None:
    lowered("sm[tx % 32] = 1", threads=32)
    with pytest.raises(KernelTypeError, match="threads 0 and 32"):
        lowered("sm[tx % 32] = 1", threads=33)
    lowered("sm[tx * n] = 1", n=1)
    with pytest.raises(KernelTypeError, match="store to one element"):
        lowered("sm[tx * n] = 1", n=0)


STATEMENTS = {
    "an atomic's result": ("v = cuda.atomic.add(sm, 0, 1)", "result"),
    "an atomic's result in a sum": ("v = 1 + cuda.atomic.add(sm, 0, 1)", "result"),
    "an unknown atomic": ("cuda.atomic.exch(sm, 0, 1)", "atomic"),
    "compare and swap": ("cuda.atomic.cas(sm, 0, 1, 2)", "atomic"),
    "an atomic on an output": ("cuda.atomic.add(out, i, 1)", "no shared array"),
    "an atomic on an input": ("cuda.atomic.add(x, i, 1)", "no shared array"),
    "an atomic on an expression": ("cuda.atomic.add(sm[0], 0, 1)", "no shared array"),
    "two arguments": ("cuda.atomic.add(sm, 0)", "atomic"),
    "a barrier's value": ("v = cuda.syncthreads()", "syncthreads"),
    "a barrier with an argument": ("cuda.syncthreads(1)", "arguments"),
    "another barrier": ("cuda.syncwarp()", "cuda.syncwarp is not in the kernel language"),
    "65 barriers": ("cuda.syncthreads()\n" * 64 + "cuda.syncthreads()", "64"),
    "300 parts": ("if n:\n    return\nsm[tx] = 1\n" * 299 + "sm[tx] = 1", "parts"),
    "too much": ("b = cuda.shared.array(64 * 191 + 1, np.int32)", "49156 bytes"),
    "2^40": ("b = cuda.shared.array(1099511627776, np.int8)", "bytes"),
    "two owners": ("out[cuda.blockIdx.x] = 1", "by the thread's place and by the block's"),
    "half a place": ("blocks[tx, 0] = 1", "another thread's"),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_what_is_not_in_the_language(name: str) -> None:
    lines, word = STATEMENTS[name]
    with pytest.raises(KernelError) as caught:
        admit(source(lines))
    assert word in str(caught.value)


def test_barriers_and_atomics_stay_in_the_kernel() -> None:
    for line in ("cuda.syncthreads()", "cuda.atomic.add(a, 0, 1)"):
        head = HEAD.replace("    return a + b", f"    {line}\n    return a + b")
        with pytest.raises(KernelError, match="device function"):
            admit(source("pass", head=head))


def test_atomics_are_of_integers() -> None:
    with pytest.raises(KernelTypeError, match="float32"):
        lowered("cuda.atomic.add(sm, 0, 1.5)")
    for dtype in ("float32", "int16", "bool_"):
        with pytest.raises(KernelError, match="atomic operation on"):
            admit(source("cuda.atomic.add(sm, 0, 1)", head=HEAD.replace("np.int32", f"np.{dtype}")))


def test_the_code_grows_no_faster_than_the_text() -> None:
    """Loops in loops, each with barriers, and as many variables as there may be: nothing is written out twice."""
    nest = "\n".join(
        "    " * depth + line
        for depth in range(15)
        for line in (f"for k{depth} in range(n):", "    cuda.syncthreads()")
    )
    variables = "\n".join(f"v{k} = tx + {k}" for k in range(200))
    ends = "\n".join(f"sm[tx] += v{k}" + ("\ncuda.syncthreads()" if k % 5 == 0 else "") for k in range(200))
    code = lowered(f"{nest}\n{variables}\n{ends}").block
    assert len(code.block) < 300_000


def test_what_is_worked_out_of_indices_is_bounded() -> None:
    """A million values of each of thousands of expressions would take minutes: at some point they are unknown."""
    index = "tx * k"
    for _ in range(6):
        index = f"({index} + k) % 1009"
    loads = "".join(f"    v = sm[{index}]\n" for _ in range(150))
    assert lowered(f"for k in range(1000):\n{loads}    sm[tx] = v", threads=64).block is not None
    with pytest.raises(KernelTypeError, match="not known"):
        lowered(f"for k in range(1000):\n{loads}    sm[tx] = v", threads=1024)
    turns = "for a in range(100000):\n    for b in range(100000):\n        sm[(tx * a + b) % 63] = 1\n"
    turns += "        cuda.syncthreads()"
    with pytest.raises(KernelTypeError, match="not known"):
        lowered(turns, threads=1024)
