"""Executes PTX as NVIDIA's "Parallel Thread Execution ISA" describes it: the threads of a block one after the other
from barrier to barrier, in another order each time.

It reads what the compiler wrote and nothing else; a few hundred thousand instructions a second are executed. A register
that is read before it is written is an error, and so is an address outside of what was allocated, or one that is not
aligned.

`Machine` is also a device of the back end: memory, code, launches.
"""

from __future__ import annotations

from bisect import bisect_right
from random import Random
from typing import Any

import numpy as np

from .ptx_arith import OpenValue, documented, signed
from .ptx_code import Function, Module, PtxError, Registers, Thread, translate, waiting_at
from .ptx_tensor import multiply

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
        seed: of the order of a block's threads, and of what its shared memory holds before it is written.
    """

    def __init__(
        self,
        open_value: OpenValue = documented,
        *,
        most_instructions: int = 5_000_000,
        capability: tuple[int, int] = (8, 0),
        seed: int = 1,
    ) -> None:
        self.name = "PTX interpreter"
        self.capability = capability
        self.memory_bytes = 1 << 40
        self.processors = 1
        self.open_value = open_value
        self.executed = 0
        self.launches: list[tuple[str, tuple[int, int, int], tuple[int, int, int]]] = []
        self.allocations = 0
        self.order = Random(seed)
        self.most = most_instructions
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

    def clear(self, address: int, size: int) -> None:
        self._regions[address][:size] = bytes(size)

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

    def read(self, address: int, size: int, thread: Thread | None = None) -> int:
        region, offset = self._place(address, size)
        return int.from_bytes(region[offset : offset + size], "little")

    def write(self, address: int, size: int, value: int, thread: Thread | None = None) -> None:
        region, offset = self._place(address, size)
        region[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    # code

    def load(self, ptx: str) -> Module:
        return translate(ptx, self)

    def launch(
        self,
        code: Module,
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
            threads = Block(self, code.shared)
            running: list[Running] = []
            for number, thread_index in enumerate(np.ndindex(*block[::-1])):
                special = {f"%ntid.{axes[k]}": block[k] for k in range(3)}
                special |= {f"%nctaid.{axes[k]}": grid[k] for k in range(3)}
                special |= {f"%tid.{axes[k]}": thread_index[2 - k] for k in range(3)}
                special |= {f"%ctaid.{axes[k]}": block_index[2 - k] for k in range(3)}
                running.append(Running(function, Thread(threads, code, special, dict(given), number=number)))
            threads.run(running)

    def shuffled(self, running: list[Running]) -> list[Running]:
        """The order in which threads run until the next barrier."""
        return self.order.sample(running, len(running))


class Running:
    """A function that is being run by a thread."""

    def __init__(self, function: Function, thread: Thread) -> None:
        self.function = function
        self.thread = thread
        self.registers: Registers = [_UNSET] * function.registers
        self.at = 0
        self.executed = 0
        if function.depot:
            thread.depot = thread.machine.region(function.depot)

    def go(self, most: int) -> int | None:
        """Run to the end, or to the next barrier, which is given."""
        blocks, counts = self.function.blocks, self.function.instructions
        at = self.at
        try:
            while at >= 0:
                self.executed += counts[at]
                at = blocks[at](self.registers, self.thread)
                if self.executed > most:
                    raise PtxError(f"more than {most} instructions")
        except TypeError as error:
            raise PtxError("a register is read before it is written") from error
        following = waiting_at(at)
        if following is not None:
            self.at = following
        elif self.function.depot:
            self.thread.machine.drop(self.thread.depot)
        return following


class Block:
    """The threads of a block and what they share: the machine as they see it.

    Between barriers an element belongs to the thread that stores it. What another loads there in the meantime is an
    open value, and a second one's store an error; so is an element that is touched by atomic operations and otherwise.
    """

    def __init__(self, machine: Machine, shared: list[tuple[int, int]]) -> None:
        self.machine = machine
        self.shared = shared
        self.memory = bytearray(sum(shared[-1]) if shared else 0)
        self.memory[:] = machine.order.randbytes(len(self.memory))  # it holds anything
        # byte -> the thread that stored it since the last barrier: of all memory, and of what the block shares
        self.stored: dict[int, int] = {}
        self.stored_shared: dict[int, int] = {}
        self.touched: dict[int, str] = {}  # byte -> the atomic operation
        self.region = machine.region
        self.drop = machine.drop

    def open_value(self, width: int) -> int:
        return self.machine.open_value(width)

    def run(self, running: list[Running]) -> None:
        """Run all threads to their ends, from barrier to barrier."""
        while running:
            waiting: list[Running] = []
            places: set[int] = set()
            for one in self.machine.shuffled(running):
                before = one.executed
                place = one.go(self.machine.most)
                self.machine.executed += one.executed - before
                if place is not None:
                    waiting.append(one)
                    places.add(place)
            if len(places) > 1:
                raise PtxError("threads of a block wait at different barriers")
            if waiting and len(waiting) < len(running):
                raise PtxError("a thread has ended while others of its block wait")
            if any(one.thread.tensor is not None for one in waiting):  # no barrier: stores are seen later
                multiply(sorted((one.thread for one in waiting), key=lambda thread: thread.number))
            else:
                self.stored.clear()
                self.stored_shared.clear()
                self.touched.clear()
            running = waiting

    def call(self, function: Function, thread: Thread) -> None:
        """Run a function that a thread calls."""
        inner = Running(function, thread)
        if inner.go(self.machine.most) is not None:
            raise PtxError("a barrier in a function that is called")
        self.machine.executed += inner.executed

    # memory

    def read(self, address: int, size: int, thread: Thread) -> int:
        value = self.machine.read(address, size)
        for at in range(address, address + size):
            if self.stored.get(at, thread.number) != thread.number:
                return self.machine.order.getrandbits(8 * size)
        return value

    def write(self, address: int, size: int, value: int, thread: Thread) -> None:
        self.machine.write(address, size, value)
        for at in range(address, address + size):
            if self.stored.setdefault(at, thread.number) != thread.number:
                raise PtxError("two threads store to one place")

    def _place(self, address: int, size: int) -> int:
        if address % size:
            raise PtxError(f"address {address:#x} is not aligned to {size}")
        if not any(low <= address and address + size <= low + length for low, length in self.shared):
            raise PtxError(f"address {address:#x} lies outside of shared memory")
        return address

    def read_shared(self, thread: Thread, address: int, size: int) -> int:
        at = self._place(address, size)
        for byte in range(at, at + size):
            if byte in self.touched:
                raise PtxError("a load of what atomic operations touch")
            if self.stored_shared.get(byte, thread.number) != thread.number:
                return self.machine.order.getrandbits(8 * size)
        return int.from_bytes(self.memory[at : at + size], "little")

    def write_shared(self, thread: Thread, address: int, size: int, value: int) -> None:
        at = self._place(address, size)
        for byte in range(at, at + size):
            if byte in self.touched:
                raise PtxError("a store to what atomic operations touch")
            if self.stored_shared.setdefault(byte, thread.number) != thread.number:
                raise PtxError("two threads store to one place")
        self.memory[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def atomic(self, thread: Thread, operation: str, address: int, size: int, value: int, is_signed: bool) -> None:
        at = self._place(address, size)
        for byte in range(at, at + size):
            if byte in self.stored_shared or self.touched.setdefault(byte, operation) != operation:
                raise PtxError("an atomic operation on what is touched otherwise")
        have = int.from_bytes(self.memory[at : at + size], "little", signed=is_signed)
        given = signed(value, 8 * size) if is_signed else value
        result = {"add": have + given, "and": have & given, "or": have | given, "xor": have ^ given,
                  "min": min(have, given), "max": max(have, given)}[operation]  # fmt: skip
        self.memory[at : at + size] = (result & ((1 << 8 * size) - 1)).to_bytes(size, "little")
