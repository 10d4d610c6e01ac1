"""The text of a program for CUDA: what a thread does before it calls the lowered body, and what its block shares.

A block of the language is a block of CUDA's. Where its threads work together each calls the body, which waits at
barriers by itself; what they share is CUDA's shared memory. A *snapshot*, from which a thread loads elements that
others may be storing (`_block_races`), lies there too, unless the arrays and their snapshots are together larger than
every device has for a block: then it lies in the device's own memory, with a place for each block of a launch.
"""

from __future__ import annotations

from typing import Final

from p2pcompute.execution._guard_scratch import Scratch
from p2pcompute.execution._lower import Lowered
from p2pcompute.execution._lower_scratch import dtype_name

__all__ = ["program_text", "snapshots_outside"]

_SHARED_BYTES: Final = 48 * 1024  # of a block, without asking the driver for more; docs/strict.md has the same bound
_ALIGNED: Final = 16  # room for what may lie unused before an array


def program_text(lowered: Lowered) -> str:
    """The whole program: device functions, the body, and two entries.

    ``run_blocks(first, start, <geometry>, <arguments>)`` runs the blocks from ``first + start`` on; rows are counted
    from ``first``. ``run_threads`` runs single items, which are threads, ``run_threads(threads, ...)``, or blocks,
    ``run_threads(blocks, start, ...)``. ``<geometry>`` is threads of a block, blocks, and threads that run, along each
    axis. Behind the arguments come ``o``, where the body takes it, and ``z_<name>`` for each of `snapshots_outside`:
    room for each block of the launch.
    """
    entries = _plain(lowered) if lowered.block is None else _together(lowered)
    return "\n".join([code for _, code in lowered.functions] + [lowered.body, *entries])


def snapshots_outside(lowered: Lowered) -> list[Scratch]:
    """Shared arrays whose snapshots lie in the device's memory."""
    if lowered.block is None:
        return []
    shared = [array for array in lowered.scratch if array.kind == "shared"]
    used = sum(array.nbytes for array in shared)
    found: list[Scratch] = []
    for array in shared:
        if array.name in lowered.block.snapshots:
            if used + array.nbytes + _ALIGNED * 2 * len(shared) > _SHARED_BYTES:
                found.append(array)
            else:
                used += array.nbytes
    return found


def _plain(lowered: Lowered) -> tuple[str, str]:
    """Entries of a kernel whose threads each run alone."""
    dims, arguments = lowered.dims, ", ".join(lowered.arguments)
    size = _size(dims)
    inside = " & ".join(f"(b_{axis} * d_{axis} + t_{axis} < e_{axis})" for axis in range(dims))
    made = _locals(lowered)
    local = "".join(f", l_{array.name}" for array in lowered.locals)
    call = f"{made} if {inside}:\n  body({_places(dims)}, "
    blocks = (
        f"def run_blocks(first, start, {_geometry(dims)}, {arguments}):\n{_unsigned(dims)}"
        f" k = uint64(start) + uint64(cuda.blockIdx.x)\n q = uint64(first) + k\n{_decode(dims, 'b', 'q', 'n')}"
        f"{_thread(dims)}{call}k * ({size}) + {_row(dims)}, {arguments}{local})\n"
    )
    threads = (
        f"def run_threads(threads, {_geometry(dims)}, {arguments}):\n{_unsigned(dims)}"
        " k = uint64(cuda.blockIdx.x) * uint64(cuda.blockDim.x) + uint64(cuda.threadIdx.x)\n"
        f" if k >= uint64(threads.shape[0]):\n  return\n"
        f" q = uint64(threads[k]) // ({size})\n w = uint64(threads[k]) % ({size})\n"
        f"{_decode(dims, 'b', 'q', 'n')}{_decode(dims, 't', 'w', 'd')}{call}k, {arguments}{local})\n"
    )
    return blocks, threads


def _together(lowered: Lowered) -> tuple[str, str]:
    """Entries of a kernel whose threads work together: all threads of a block call the body."""
    assert lowered.block is not None
    dims, outside = lowered.dims, snapshots_outside(lowered)
    vectors = ["o"] if lowered.block.vectors else []
    arguments = ", ".join([*lowered.arguments, *vectors, *(f"z_{array.name}" for array in outside)])
    lines, given = _locals(lowered), [f"l_{array.name}" for array in lowered.locals]
    for array in lowered.scratch:
        if array.kind != "shared":
            continue
        room = f"cuda.shared.array({array.size}, {dtype_name(array.dtype)})"
        lines += f" m_{array.name} = {room}\n"
        given.append(f"m_{array.name}")
        if array.name in lowered.block.snapshots:
            if array in outside:
                lines += f" y = int64(cuda.blockIdx.x) * {array.size}\n"
                room = f"z_{array.name}[y : y + {array.size}]"
            lines += f" w_{array.name} = {room}\n"
            given.append(f"w_{array.name}")
    call = ", ".join([_places(dims), f"k * ({_size(dims)}) + {_row(dims)}", "k", *lowered.arguments, *given, *vectors])
    rest = f"{_decode(dims, 'b', 'q', 'n')}{_thread(dims)}{lines} body({call})\n"
    head = f"start, {_geometry(dims)}, {arguments}):\n{_unsigned(dims)} k = uint64(start) + uint64(cuda.blockIdx.x)\n"
    return (
        f"def run_blocks(first, {head} q = uint64(first) + k\n{rest}",
        f"def run_threads(blocks, {head} q = uint64(blocks[k])\n{rest}",
    )


def _geometry(dims: int) -> str:
    return ", ".join(f"{letter}_{axis}" for letter in "dne" for axis in range(dims))


def _size(dims: int) -> str:
    return " * ".join(f"d_{axis}" for axis in range(dims))


def _unsigned(dims: int) -> str:
    # ids and sizes are never negative: unsigned, so that // and % are the machine's
    return "".join(f" {letter}_{axis} = uint64({letter}_{axis})\n" for letter in "dne" for axis in range(dims))


def _thread(dims: int) -> str:
    return "".join(f" t_{axis} = uint64(cuda.threadIdx.{'xyz'[axis]})\n" for axis in range(dims))


def _row(dims: int) -> str:
    row = "t_0"
    for axis in range(1, dims):
        row = f"{row} + t_{axis} * ({_size(axis)})"
    return row


def _decode(dims: int, letter: str, of: str, by: str) -> str:
    return "".join(
        f" {letter}_{axis} = {of} % {by}_{axis}\n {of} = {of} // {by}_{axis}\n"
        if axis < dims - 1
        else f" {letter}_{axis} = {of}\n"
        for axis in range(dims)
    )


def _places(dims: int) -> str:
    return ", ".join(f"int64({letter}_{axis})" for letter in "tbdn" for axis in range(dims))


def _locals(lowered: Lowered) -> str:
    return "".join(f" l_{a.name} = cuda.local.array({a.size}, {dtype_name(a.dtype)})\n" for a in lowered.locals)
