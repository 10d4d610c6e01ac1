"""The loops around a lowered kernel for a processor: over blocks and their threads, and over single items.

They are what a compiler has to vectorise, so they are as somebody would write them by hand. Where a kernel asks for
nothing but its place in the grid, the threads of all blocks of one axis are one loop. Where it is short and has more
axes, the loop along x has a length that stands in the text: numba's LLVM does not vectorise one of 16 turns unless it
knows that there are 16. Kernels with loops of their own gain nothing by that and would take twice as long to compile.
"""

from __future__ import annotations

import re

from p2pcompute.execution._api import Launch
from p2pcompute.execution._lower import Lowered
from p2pcompute.execution._lower_block import BlockCode, BlockMemory
from p2pcompute.execution._lower_split import is_split

__all__ = ["memory", "program_text"]

_LOOP = re.compile(r"^ *(for|while) ", re.MULTILINE)
_SHORT = 60  # lines


def memory(lowered: Lowered) -> tuple[BlockMemory, ...]:
    """The arrays that a run works in, behind all other arguments of ``run_blocks`` and ``run_threads``. One run at a
    time may use them; what is in them does not matter."""
    if lowered.block is not None:
        return lowered.block.memory
    return tuple(BlockMemory(name=f"l_{array.name}", dtype=array.dtype, size=array.size) for array in lowered.locals)


def program_text(lowered: Lowered, launch: Launch) -> str:
    """The whole program: device functions, the body, ``run_blocks`` and ``run_threads``.

    Their arguments are ``first, blocks`` or ``threads`` (linear ids), then block size, grid size and extent along each
    axis, then the kernel's arguments and its `memory`. Of the launch the text depends on the block's size alone, and
    on that only where it says so.
    """
    dims = lowered.dims
    geometry = ", ".join(f"{letter}_{axis}" for letter in "dne" for axis in range(dims))
    arguments = ", ".join([*lowered.arguments, *(array.name for array in memory(lowered))])
    head = f"{geometry}, {arguments}"
    functions = [code for _, code in lowered.functions]
    if lowered.block is not None:
        return "\n".join([*functions, *_block_parts(lowered.block, launch, head, arguments)])
    run = _flat(head, arguments) if _by_grid(lowered) else _nested(lowered, launch, head, arguments)
    return "\n".join([*functions, lowered.body, run, _threads(dims, head, arguments)])


def _by_grid(lowered: Lowered) -> bool:
    """Whether the kernel has one axis and asks for its place in the grid only, not in the block."""
    lines = [line for line in lowered.body.splitlines()[1:] if line != " g0 = b_0 * d_0 + t_0"]
    return lowered.dims == 1 and not re.search(r"\b[tb]_0\b", "\n".join(lines))


def _flat(head: str, arguments: str) -> str:
    return (
        f"def run_blocks(first, blocks, {head}):\n start = first * d_0\n"
        f" for j in range(min(blocks * d_0, e_0 - start)):\n"
        f"  body(start + j, 0, d_0, n_0, uint64(j), {arguments})\n"  # so 0 * d_0 + (start + j) is its place
    )


def _nested(lowered: Lowered, launch: Launch, head: str, arguments: str) -> str:
    dims = lowered.dims
    places = ", ".join(f"{letter}_{axis}" for letter in "tbdn" for axis in range(dims))
    size = " * ".join(f"d_{axis}" for axis in range(dims))
    code = _start(head, dims)
    row = "0"
    for axis in reversed(range(1, dims)):
        code += f"{' ' * (1 + dims - axis)}for t_{axis} in range(min(d_{axis}, e_{axis} - b_{axis} * d_{axis})):\n"
        row = f"t_{axis}" if row == "0" else f"({row} * d_{axis} + t_{axis})"
    row = f"({row} * d_0 + t_0)" if dims > 1 else "t_0"
    body = f"body({places}, uint64(k * ({size}) + {row}), {arguments})\n"
    deep = " " * (1 + dims)
    rest = f"{deep}for t_0 in range(min(d_0, e_0 - b_0 * d_0)):\n{deep} {body}"
    text = lowered.body
    # Loads from split inputs are so short that LLVM would unroll the 16 turns, and then finds no vectors in them.
    split = any(is_split(parameter.spec) for parameter in lowered.parameters)
    if split or _LOOP.search(text) or text.count("\n") > _SHORT or lowered.functions:
        code += rest
    else:
        width = launch.block[0]
        code += f"{deep}if d_0 == {width} and b_0 * {width} + {width} <= e_0:\n{deep} for t_0 in range({width}):\n"
        code += f"{deep}  {body}{deep}else:\n"
        code += "".join(f" {line}\n" for line in rest.splitlines())
    return code + _step(dims)


def _threads(dims: int, head: str, arguments: str) -> str:
    places = ", ".join(f"{letter}_{axis}" for letter in "tbdn" for axis in range(dims))
    size = " * ".join(f"d_{axis}" for axis in range(dims))
    decode = "".join(
        f"  {place}_{axis} = {rest} % {of}_{axis}\n  {rest} = {rest} // {of}_{axis}\n"
        if axis < dims - 1
        else f"  {place}_{axis} = {rest}\n"
        for place, rest, of in (("b", "q", "n"), ("t", "w", "d"))
        for axis in range(dims)
    )
    inside = " and ".join(f"b_{axis} * d_{axis} + t_{axis} < e_{axis}" for axis in range(dims))
    return (
        f"def run_threads(threads, {head}):\n for k in range(threads.shape[0]):\n"
        f"  q = threads[k] // ({size})\n  w = threads[k] % ({size})\n{decode}"
        f"  if {inside}:\n   body({places}, uint64(k), {arguments})\n"
    )


def _block_parts(code: BlockCode, launch: Launch, head: str, arguments: str) -> list[str]:
    """The same where a block is what is run: by a run of blocks, and by single ones. Its size stands in the text."""
    dims = launch.dims
    sizes = [str(launch.block[axis]) for axis in range(dims)]
    places = ", ".join([*(f"b_{axis}" for axis in range(dims)), *sizes, *(f"n_{axis}" for axis in range(dims))])
    call = f"  block({places}, k, {arguments})\n"
    blocks = f"{_start(head, dims)}{call}{_step(dims)}"
    decode = "".join(
        f"  b_{axis} = q % n_{axis}\n  q = q // n_{axis}\n" if axis < dims - 1 else f"  b_{axis} = q\n"
        for axis in range(dims)
    )
    items = f"def run_threads(threads, {head}):\n for k in range(threads.shape[0]):\n  q = threads[k]\n{decode}{call}"
    return [*(text for _, text in code.functions), code.block, blocks, items]


def _start(head: str, dims: int) -> str:
    """The loop over blocks: places of the first one are divided out, those of the others counted."""
    code = f"def run_blocks(first, blocks, {head}):\n q = first\n"
    for axis in range(dims - 1):
        code += f" b_{axis} = q % n_{axis}\n q = q // n_{axis}\n"
    return code + f" b_{dims - 1} = q\n for k in range(blocks):\n"


def _step(dims: int) -> str:
    code = "  b_0 += 1\n"
    for axis in range(dims - 1):
        deep = "  " + " " * axis
        code += f"{deep}if b_{axis} == n_{axis}:\n{deep} b_{axis} = 0\n{deep} b_{axis + 1} += 1\n"
    return code
