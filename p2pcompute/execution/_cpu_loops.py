"""The loops around a lowered kernel for a processor: over blocks and their threads, and over single items.

They are what a compiler has to vectorise, so they are as somebody would write them by hand. Where a kernel asks for
nothing but its place in the grid, the threads of all blocks of one axis are one loop. Where it is short and has more
axes, a line of a block is a loop of a length that LLVM knows: it does not vectorise one of 16 turns unless it knows
that there are 16. Lines of neighbouring blocks follow each other, since they lie so in the inputs, and a few lines of a
block, since they lie so in the output: by single lines a stencil takes up to twice as long, a transposition thrice.
Where the kernel has code for the threads within its border (`Lowered.inner`), lines of blocks have that, if all of
their threads may; what is left is a hundredth of a large launch. Kernels with loops of their own gain nothing by lines
and would take twice as long to compile; those with split inputs have plain loops as well.

Threads share the work by a counter: each portion is taken where the loops begin (`_cpu_crew`).
"""

from __future__ import annotations

import re
import textwrap

from p2pcompute.execution._api import Launch
from p2pcompute.execution._lower import Lowered
from p2pcompute.execution._lower_block import BlockCode, BlockMemory
from p2pcompute.execution._lower_split import is_split

__all__ = ["LINES", "is_lined", "memory", "program_text"]

_LOOP = re.compile(r"^ *(for|while) ", re.MULTILINE)
_SHORT = 60  # lines
LINES = 4  # of a block that are run together; with 2 and with 8 most kernels are slower
_RUN = 4096  # threads at most that a run has along its first axis: what they load is still near for the next line


def memory(lowered: Lowered) -> tuple[BlockMemory, ...]:
    """The arrays that a run works in, behind all other arguments of ``run_blocks`` and ``run_threads``. One run at a
    time may use them; what is in them does not matter."""
    if lowered.block is not None:
        return lowered.block.memory
    return tuple(BlockMemory(name=f"l_{array.name}", dtype=array.dtype, size=array.size) for array in lowered.locals)


def is_lined(lowered: Lowered) -> bool:
    """Whether the program's text calls ``across``: the `_cpu_intrinsics.across` of the code for inner threads, or of
    the body where there is no such code, for the lines of the launch's blocks."""
    # Loads from split inputs are so short that LLVM would find no vectors in a line of them.
    if lowered.block is not None or any(is_split(parameter.spec) for parameter in lowered.parameters):
        return False
    text = lowered.body
    simple = not lowered.functions and not _LOOP.search(text) and text.count("\n") <= _SHORT
    return simple and not _by_grid(lowered)


def program_text(lowered: Lowered, launch: Launch) -> str:
    """The whole program: device functions, the body, ``run_blocks`` and ``run_threads``.

    Their arguments are ``counters, portion, stop`` (of blocks or of ids, see `Crew.run`), ``first`` or ``threads``
    (linear ids), then block size, grid size and extent along each axis, the places from which and below which threads
    are inner ones, then the kernel's arguments and its `memory`. Of the launch the text depends on the block's size
    alone, and on that only where it says so.
    """
    dims = lowered.dims
    geometry = ", ".join(f"{letter}_{axis}" for letter in "nelh" for axis in range(dims))
    geometry = ", ".join([*(f"d_{axis}" for axis in range(dims)), geometry])
    arguments = ", ".join([*lowered.arguments, *(array.name for array in memory(lowered))])
    head = f"{geometry}, {arguments}"
    functions = [code for _, code in lowered.functions]
    if lowered.block is not None:
        return "\n".join([*functions, *_block_parts(lowered.block, launch, head, arguments)])
    run = _flat(lowered, head, arguments) if _by_grid(lowered) else _nested(lowered, launch, head, arguments)
    bodies = [lowered.body]
    if lowered.inner is not None:
        bodies.append(lowered.inner.body.replace("def body(", "def inner(", 1))
    return "\n".join([*functions, *bodies, run, _threads(dims, head, arguments)])


def _by_grid(lowered: Lowered) -> bool:
    """Whether the kernel has one axis and asks for its place in the grid only, not in the block."""
    lines = [text for text in lowered.body.splitlines()[1:] if text != " g0 = b_0 * d_0 + t_0"]
    return lowered.dims == 1 and not re.search(r"\b[tb]_0\b", "\n".join(lines))


def _flat(lowered: Lowered, head: str, arguments: str) -> str:
    def loop(function: str, start: str, stop: str) -> str:
        return (
            f"  for j in range({start}, {stop}):\n"
            f"   {function}(start + j, 0, d_0, n_0, uint64(j), {arguments})\n"  # so 0 * d_0 + (start + j) is its place
        )

    code = (
        f"{_taking('run_blocks', 'first', head)}"
        f"  start = first * d_0\n  at *= d_0\n  end = max(at, min(end * d_0, e_0 - start))\n"
    )
    if lowered.inner is None:
        code += loop("body", "at", "end")
    else:
        code += "  low = min(max(at, l_0 - start), end)\n  high = max(low, min(h_0 - start, end))\n"
        code += loop("body", "at", "low") + loop("inner", "low", "high") + loop("body", "high", "end")
    return code


def _nested(lowered: Lowered, launch: Launch, head: str, arguments: str) -> str:
    """Runs of neighbouring blocks. First the blocks from `low` to below `high` whose threads all have the code for
    most of them, one line of all these blocks after the other; then block by block what is left."""
    dims, lined, inner = lowered.dims, is_lined(lowered), lowered.inner is not None
    within = [f"l_{axis} <= b_{axis} * d_{axis} + t_{axis} < h_{axis}" for axis in range(1, dims)] if inner else []
    size = " * ".join(f"d_{axis}" for axis in range(dims))
    line = "".join(
        f" + {' * '.join([f't_{axis}', *(f'd_{lower}' for lower in range(axis))])}" for axis in range(1, dims)
    )

    def call(function: str, *before: str, block: str, thread: str) -> str:
        places = [thread, *(f"t_{axis}" for axis in range(1, dims))]
        places += [f"b_0 + {block}", *(f"b_{axis}" for axis in range(1, dims))]
        places += [f"{letter}_{axis}" for letter in "dn" for axis in range(dims)]
        row = f"uint64((k + {block}) * ({size}){line} + {thread})"
        return f"{function}({', '.join([*before, *places, row])}, {arguments})\n"

    def lines(code: str, lowest: int = 1) -> str:
        for axis in range(lowest, dims):
            code = _in(f"for t_{axis} in range(min(d_{axis}, e_{axis} - b_{axis} * d_{axis}))", code)
        return code

    def across(blocks: str, first: str) -> str:
        """Lines of so many blocks from `first` on: a few lines of each together where that many are within."""
        one = call("across", blocks, block=first, thread="0")
        single = _in(f"if {' and '.join(within)}", one) if within else one
        if dims == 1 or launch.block[1] < LINES:
            return lines(single)
        together = [f"t_1 + {LINES} <= c"]
        if inner:
            together += [*within[1:], "l_1 <= b_1 * d_1 + t_1", f"b_1 * d_1 + t_1 + {LINES} <= h_1"]
        some = one.replace("across", "across_lines", 1) + f"t_1 += {LINES}\n"
        code = _in(f"if {' and '.join(together)}", some) + _in("else", f"{single}t_1 += 1\n")
        code = "t_1 = 0\nc = min(d_1, e_1 - b_1 * d_1)\n" + _in("while t_1 < c", code)
        return lines(code, 2)

    rest = _in("for t_0 in range(min(d_0, e_0 - (b_0 + z) * d_0))", call("body", block="z", thread="t_0"))
    code = f"m = min(n_0 - b_0, end - k, {max(1, _RUN // launch.block[0]) if lined else 1})\n"
    if lined and not inner:
        code += "whole = min(max(0, e_0 // d_0 - b_0), m)\n"
    if inner:
        block_within = [f"l_{axis} <= b_{axis} * d_{axis} <= h_{axis} - d_{axis}" for axis in range(1, dims)]
        code += "low = min(max(0, (l_0 + d_0 - 1) // d_0 - b_0), m)\nhigh = min(max(low, h_0 // d_0 - b_0), m)\n"
        if lined:
            code += across("high - low", "low")
        else:
            most = _in("for t_0 in range(d_0)", call("inner", block="z", thread="t_0"))
            most = _in("for z in range(low, high)", most)
            code += lines(_in(f"if {' and '.join(within)}", most) if within else most)
        rest = lines(_in(f"if not ({' and '.join(['low <= z < high', *within])})", rest))
        passed = _in(f"if {' and '.join(['low == z < high', *block_within])}", "z = high\n")
        code += "z = 0\n" + _in("while z < m", passed + _in("else", rest + "z += 1\n"))
    elif lined:
        code += across("whole", "0") + _in("for z in range(whole, m)", lines(rest))
    else:
        code += _in("for z in range(m)", lines(rest))
    sizes = "".join(f" d_{axis} = int64({launch.block[axis]})\n" for axis in range(dims)) if lined else ""
    return _start(head, dims, sizes) + textwrap.indent(code, "   ") + _step(dims)


def _in(head: str, code: str) -> str:
    return f"{head}:\n{textwrap.indent(code, ' ')}"


def _threads(dims: int, head: str, arguments: str) -> str:
    places = ", ".join(f"{letter}_{axis}" for letter in "tbdn" for axis in range(dims))
    size = " * ".join(f"d_{axis}" for axis in range(dims))
    decode = "".join(
        f"   {place}_{axis} = {rest} % {of}_{axis}\n   {rest} = {rest} // {of}_{axis}\n"
        if axis < dims - 1
        else f"   {place}_{axis} = {rest}\n"
        for place, rest, of in (("b", "q", "n"), ("t", "w", "d"))
        for axis in range(dims)
    )
    inside = " and ".join(f"b_{axis} * d_{axis} + t_{axis} < e_{axis}" for axis in range(dims))
    return (
        f"{_taking('run_threads', 'threads', head)}  for k in range(at, end):\n"
        f"   q = threads[k] // ({size})\n   w = threads[k] % ({size})\n{decode}"
        f"   if {inside}:\n    body({places}, uint64(k), {arguments})\n"
    )


def _block_parts(code: BlockCode, launch: Launch, head: str, arguments: str) -> list[str]:
    """The same where a block is what is run: by a run of blocks, and by single ones. Its size stands in the text."""
    dims = launch.dims
    sizes = [str(launch.block[axis]) for axis in range(dims)]
    places = ", ".join([*(f"b_{axis}" for axis in range(dims)), *sizes, *(f"n_{axis}" for axis in range(dims))])
    call = f"   block({places}, k, {arguments})\n"
    blocks = f"{_start(head, dims)}   m = 1\n{call}{_step(dims)}"
    decode = "".join(
        f"   b_{axis} = q % n_{axis}\n   q = q // n_{axis}\n" if axis < dims - 1 else f"   b_{axis} = q\n"
        for axis in range(dims)
    )
    items = f"{_taking('run_threads', 'threads', head)}  for k in range(at, end):\n   q = threads[k]\n{decode}{call}"
    return [*(text for _, text in code.functions), code.block, blocks, items]


def _taking(name: str, what: str, head: str, known: str = "") -> str:
    """The head of a function that takes portions until there are none: from ``at`` to below ``end``."""
    return (
        f"def {name}(counters, portion, stop, {what}, {head}):\n{known} while True:\n"
        f"  at = take(counters, portion)\n  if at >= stop:\n   break\n  end = min(at + portion, stop)\n"
    )


def _start(head: str, dims: int, known: str = "") -> str:
    """The loop over blocks: places of the first one are divided out, those of the others counted."""
    code = f"{_taking('run_blocks', 'first', head, known)}  q = first + at\n"
    for axis in range(dims - 1):
        code += f"  b_{axis} = q % n_{axis}\n  q = q // n_{axis}\n"
    return code + f"  b_{dims - 1} = q\n  k = at\n  while k < end:\n"


def _step(dims: int) -> str:
    code = "   k += m\n   b_0 += m\n"
    for axis in range(dims - 1):
        deep = "   " + " " * axis
        code += f"{deep}if b_{axis} == n_{axis}:\n{deep} b_{axis} = 0\n{deep} b_{axis + 1} += 1\n"
    return code
