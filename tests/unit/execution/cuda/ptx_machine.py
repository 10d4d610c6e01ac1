"""Executes PTX, thread by thread, as NVIDIA's "Parallel Thread Execution ISA" describes it.

It reads what the compiler wrote and nothing else; a few hundred thousand instructions a second are executed. A register
that is read before it is written is an error, and so is an address outside of what was allocated, or one that is not
aligned.

`Machine` is also a device of the back end: memory, code, launches.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np

from .ptx_arith import OpenValue, documented
from .ptx_code import Function, PtxError, Registers, Thread, translate

__all__ = ["Machine", "PtxError"]


class _Unset:
    """A register before it is written. What it can't refuse here is a TypeError."""

    def __bool__(self) -> bool:
        raise PtxError("a register is read before it is written")

    def __eq__(self, other: object) -> bool:
        return bool(self)

    __hash__ = None  # type: ignore[assignment]


_UNSET = _Unset()


class Machine:
    """A device without silicon.

    Args:
        open_value: what is given where the ISA leaves the value open.
        most_instructions: a thread that executes more of them fails.
        capability: what the device says of itself. From (10, 0) on NVVM is built on another LLVM.
    """

    def __init__(
        self,
        open_value: OpenValue = documented,
        *,
        most_instructions: int = 5_000_000,
        capability: tuple[int, int] = (8, 0),
    ) -> None:
        self.name = "PTX interpreter"
        self.capability = capability
        self.memory_bytes = 1 << 40
        self.processors = 1
        self.open_value = open_value
        self.executed = 0
        self.launches: list[tuple[str, tuple[int, int, int], tuple[int, int, int]]] = []
        self.allocations = 0
        self._most = most_instructions
        self._next = 1 << 20
        self._bases: list[int] = []
        self._regions: dict[int, bytearray] = {}

    # memory

    def allocate(self, size: int) -> int:
        self.allocations += 1
        return self.region(size)

    def region(self, size: int) -> int:
        """Memory that is not counted: the code's own."""
        address = self._next
        self._next += (size + 4 * 256) // 256 * 256  # what lies between is nobody's
        self._bases.append(address)
        # fresh memory holds anything
        self._regions[address] = bytearray(self.open_value(8) & 0xFF for _ in range(max(size, 1)))
        return address

    def release(self, address: int) -> None:
        self.allocations -= 1
        self.drop(address)

    def drop(self, address: int) -> None:
        del self._regions[address]
        self._bases.remove(address)

    def upload(self, address: int, values: np.ndarray[Any, Any]) -> None:
        self._regions[address][: values.nbytes] = values.tobytes()

    def download(self, address: int, values: np.ndarray[Any, Any]) -> None:
        data = bytes(self._regions[address][: values.nbytes])
        values[...] = np.frombuffer(data, values.dtype).reshape(values.shape)

    def _place(self, address: int, size: int) -> tuple[bytearray, int]:
        if address % size:
            raise PtxError(f"address {address:#x} is not aligned to {size}")
        index = bisect_right(self._bases, address) - 1
        if index >= 0:
            base = self._bases[index]
            region = self._regions[base]
            if address + size - base <= len(region):
                return region, address - base
        raise PtxError(f"address {address:#x} lies outside of all memory")

    def read(self, address: int, size: int) -> int:
        region, offset = self._place(address, size)
        return int.from_bytes(region[offset : offset + size], "little")

    def write(self, address: int, size: int, value: int) -> None:
        region, offset = self._place(address, size)
        region[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    # code

    def load(self, ptx: str) -> dict[str, Function]:
        return translate(ptx, self)

    def launch(
        self,
        code: dict[str, Function],
        entry: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: bytes,
    ) -> None:
        function = code[entry]
        self.launches.append((entry, grid, block))
        given: dict[str, bytearray] = {}
        for name, offset, size in function.parameters:
            given[name] = bytearray(parameters[offset : offset + size])
            if len(given[name]) != size:
                raise PtxError(f"{entry} takes more parameters than {len(parameters)} bytes")
        axes = "xyz"
        for block_index in np.ndindex(*grid[::-1]):
            for thread_index in np.ndindex(*block[::-1]):
                special = {f"%ntid.{axes[k]}": block[k] for k in range(3)}
                special |= {f"%nctaid.{axes[k]}": grid[k] for k in range(3)}
                special |= {f"%tid.{axes[k]}": thread_index[2 - k] for k in range(3)}
                special |= {f"%ctaid.{axes[k]}": block_index[2 - k] for k in range(3)}
                self.run(function, Thread(self, code, special, given))

    def run(self, function: Function, thread: Thread) -> None:
        """Run one function to its end."""
        if function.depot:
            thread.depot = self.region(function.depot)
        registers: Registers = [_UNSET] * function.registers
        at = 0
        blocks, counts = function.blocks, function.instructions
        limit = self.executed + self._most
        try:
            while at >= 0:
                self.executed += counts[at]
                at = blocks[at](registers, thread)
                if self.executed > limit:
                    raise PtxError(f"more than {self._most} instructions")
        except TypeError as error:
            raise PtxError("a register is read before it is written") from error
        if function.depot:
            self.drop(thread.depot)
