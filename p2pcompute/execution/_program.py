"""Programs in the place of kernels: a back end that calls an installed function, once for each item.

A program is called as ``function(index, *arguments)``. `index` is the item's, from 0; the arguments stand in the order
of the call: a NumPy scalar, a read-only array, or for each output the item's own row, a zeroed array of the output's
shape without its first axis, that the function writes (``row[...] = value`` where it has no axes). It returns None.
The first axis of a split input runs along the items. An item gets its own row of it, read-only, a NumPy scalar where
that has no axes; with a halo the rows from so many before its own to so many behind it, beyond the array by the edge
rule.

So an item takes a thread's place in the rest of the house: it is what is placed, sampled and compared by itself, and a
block holds one. In a kernel's source stand the program's distribution, version, name and digest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import ArgSpec, Array, CompiledKernel, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._rows import Layout
from p2pcompute.execution._split import check_window, split_fault

__all__ = ["ItemFailed", "ProgramBackend", "ProgramIdentity", "program_launch", "program_layout", "program_source"]


class ProgramIdentity(Protocol):
    """What a program is pinned by: a `ProgramRef` of the protocols, or an `InstalledProgram`."""

    @property
    def distribution(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> bytes: ...


class ItemFailed(Exception):
    """A program raised; says for which item, and what."""


def program_source(program: ProgramIdentity) -> KernelSource:
    """What a worker is asked to run, in a kernel's form."""
    return KernelSource(
        text=f"{program.distribution}=={program.version}", entry=program.name, digest=bytes(program.digest)
    )


def program_launch(items: int) -> Launch:
    """A launch of so many items: blocks of one."""
    return Launch(grid=(items, 1, 1), block=(1, 1, 1), dims=1)


def program_layout(launch: Launch, args: Sequence[ArgSpec]) -> Layout:
    """Where the items' rows lie.

    Raises:
        KernelTypeError: there is no output, or one whose first axis does not count the items.
    """
    outputs = tuple(spec for spec in args if isinstance(spec, OutputSpec))
    items = launch.blocks
    if not outputs:
        raise KernelTypeError("a program without an output", instead="pass p2pcompute.out(shape, dtype) for each")
    for spec in outputs:
        if not spec.shape or spec.shape[0] != items:
            raise KernelTypeError(
                f"an output has the shape {spec.shape} and there are {items} items",
                instead=f"give it {items} rows: the first axis counts the items",
            )
    return Layout(
        launch=launch,
        outputs=outputs,
        mappings=((0,),) * len(outputs),
        extents=(items, 1, 1),
        by_block=(False,) * len(outputs),
    )


class ProgramBackend:
    """Runs one program, that was loaded before.

    Args:
        function: what is called.
        program: what it is; asked for anything else, this back end refuses.
    """

    name = "program"

    def __init__(self, function: Callable[..., Any], program: ProgramIdentity) -> None:
        self._function = function
        self._source = program_source(program)

    def compile(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> CompiledKernel:
        """Check that the call fits. Raises `KernelError`, `KernelTypeError`."""
        self._layout(source, launch, args)
        for place, spec in enumerate(args, 1):
            if isinstance(spec, InputSpec) and spec.split is not None and (fault := split_fault(spec, 1)):
                raise KernelTypeError(f"argument {place} can't be split so: {fault}", instead="split its first axis")
        try:
            inspect.signature(self._function).bind(0, *args)
        except TypeError as error:
            raise KernelTypeError(
                f"the program {source.entry} does not take an index and {len(args)} arguments: {error}",
                instead="pass what its function takes behind the index, in that order",
            ) from None
        except ValueError:
            pass  # a function of C that does not say what it takes
        return _Calls(self._function, launch, args)

    def row_shapes(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> list[tuple[int, ...]]:
        """For each output, the shape of one item's row."""
        return self._layout(source, launch, args).row_shapes

    def items_per_block(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> int:
        """Items of one block: one."""
        return self._layout(source, launch, args).items_per_block

    def _layout(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> Layout:
        if (source.text, source.entry, source.digest) != (self._source.text, self._source.entry, self._source.digest):
            raise KernelError(
                f"this worker has loaded {self._source.entry} of {self._source.text} and is asked for {source.entry} "
                f"of {source.text}",
                instead="install the same distribution on both sides",
            )
        if launch != program_launch(launch.blocks):
            raise KernelTypeError("a program has items, and no other geometry", instead="start it as program[items]")
        return program_layout(launch, args)


class _Calls:
    def __init__(self, function: Callable[..., Any], launch: Launch, args: Sequence[ArgSpec]) -> None:
        self._function = function
        self._items = launch.blocks
        self._outputs = [place for place, spec in enumerate(args) if isinstance(spec, OutputSpec)]
        self._given = [place for place, spec in enumerate(args) if not isinstance(spec, OutputSpec)]
        self._inputs = frozenset(place for place, spec in enumerate(args) if isinstance(spec, InputSpec))
        self._splits = {
            place: spec for place, spec in enumerate(args) if isinstance(spec, InputSpec) and spec.split is not None
        }

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array]) -> None:
        """Items [first_block, first_block + blocks); see `CompiledKernel`."""
        self._run(range(first_block, first_block + blocks), args, outs)

    def run_threads(self, threads: Array, args: Sequence[Any], outs: Sequence[Array]) -> None:
        """Single items by index; see `CompiledKernel`."""
        self._run(threads.tolist(), args, outs)

    def _run(self, items: Sequence[int], args: Sequence[Any], outs: Sequence[Array]) -> None:
        if items and not 0 <= min(items) <= max(items) < self._items:
            raise ValueError(f"items outside of {self._items}")
        if not items:
            return
        arguments: list[Any] = [None] * (len(self._outputs) + len(self._given))
        windows: list[tuple[int, int, int, Array]] = []
        for place, value in zip(self._given, args, strict=True):
            if place in self._splits:
                spec = self._splits[place]
                assert spec.split is not None
                check_window(f"argument {place + 1}", spec, value, ((min(items), max(items) + 1), (0, 1), (0, 1)))
                values = value.values.view()
                values.flags.writeable = False
                windows.append((place, value.origin[0], spec.split.halo[0], values))
                continue
            if place in self._inputs:
                value = value.view()
                value.flags.writeable = False
            arguments[place] = value
        for row, index in enumerate(items):
            for place, origin, halo, values in windows:
                at = index - origin
                arguments[place] = values[at - halo : at + halo + 1] if halo else values[at]
            for place, out in zip(self._outputs, outs, strict=True):
                arguments[place] = out[row, ...]
            self._call(index, arguments)

    def _call(self, index: int, arguments: list[Any]) -> None:
        try:
            given = self._function(index, *arguments)
        except (MemoryError, KernelError):
            raise
        except Exception as error:
            raise ItemFailed(f"item {index}: {type(error).__name__}: {error}") from error
        if given is not None:
            raise ItemFailed(
                f"item {index}: the program returned a {type(given).__name__}; it has to write into the rows of its "
                "outputs and to return None"
            )
