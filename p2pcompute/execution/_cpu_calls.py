"""Compiled functions that are called by address, with arguments that lie in memory.

A thread that takes part in a launch calls the kernel from compiled code: it needs no interpreter, whose lock another
thread may hold, and what Python says of the arguments is said once, by the thread that asks. A *record* has them:
eight bytes for a scalar, and for an array its address and its shape. An *entry* is a function of the same signature
for all kernels, which takes the record apart: ``entry(counters, portion, stop, record)``, the first and the last of
them addresses, is not zero where the kernel has raised.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.np.arrayobj import populate_array

from p2pcompute.execution._api import Array

__all__ = ["COUNTERS", "Entry", "entry_type"]

COUNTERS: Final = 8
"""Elements of the counters, which are the first argument of each kernel."""

_WORD: Final = ir.IntType(64)
_FORMATS: Final = {types.boolean: "?7x", types.uint64: "Q", types.float32: "f4x", types.float64: "d"}  # or "q"


def entry_type() -> Any:
    """LLVM's type of an entry."""
    return ir.FunctionType(ir.IntType(32), [_WORD] * 4)


class Entry:
    """The entry of one compiled function, whose arguments are counters, two numbers, and what the record has.

    Args:
        function: numba's, compiled for `kinds`; it returns nothing.
        kinds: numba's types of all of its arguments; arrays are in C order.
    """

    def __init__(self, function: Any, kinds: Sequence[Any]) -> None:
        compiled = function.overloads[tuple(kinds)]
        native = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        name = f"entry.{compiled.fndesc.llvm_func_name}"  # one engine has the code of all
        library = _library(name, compiled.target_context, native, kinds)
        self._code = (function, compiled, library)  # it goes with its last user
        self.address: int = library.get_pointer_to_function(name)
        formats = [f"{1 + kind.ndim}q" if _is_array(kind) else _FORMATS.get(kind, "q") for kind in kinds[3:]]
        self._record = struct.Struct(f"={''.join(formats)}")

    def records(self, values: Sequence[Any], work: Sequence[Array]) -> Array:
        """A record for each of several threads, which differ in what they work in.

        Args:
            values: all arguments behind the first three but `work`; arrays of their dtype, in C order.
            work: the last arguments, one row of each for each thread.

        Returns:
            int64, one row for each thread, or a single one where there is no `work`. The arrays are the caller's to
            keep.
        """
        words: list[Any] = []
        for value in values:
            if isinstance(value, np.ndarray):
                words += (value.__array_interface__["data"][0], *value.shape)
            else:
                words.append(value)
        records = np.empty((len(work[0]) if work else 1, self._record.size // 8), np.int64)
        for thread, record in enumerate(records):
            for array in work:
                words += (array.__array_interface__["data"][0] + thread * array.strides[0], array.shape[1])
            self._record.pack_into(record.data, 0, *words)
            del words[len(words) - 2 * len(work) :]
        return records


def _is_array(kind: Any) -> bool:
    return isinstance(kind, types.Array)


def _library(name: str, context: Any, native: int, kinds: Sequence[Any]) -> Any:
    """The code of an entry of the function at address `native`."""
    library = context.codegen().create_library(name)
    module = library.create_ir_module(name)
    function = ir.Function(module, entry_type(), name=name)
    builder = ir.IRBuilder(function.append_basic_block())
    counters, portion, stop, record = function.args
    words = builder.inttoptr(record, _WORD.as_pointer())
    place = 0

    def word() -> Any:
        nonlocal place
        place += 1
        return builder.load(builder.gep(words, [ir.Constant(_WORD, place - 1)]))

    def array(kind: Any, address: Any, shape: Sequence[Any]) -> Any:
        size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
        strides: list[Any] = [ir.Constant(_WORD, size)]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        made = context.make_array(kind)(context, builder)
        data = builder.inttoptr(address, made.data.type)
        populate: Any = populate_array
        populate(made, data=data, shape=list(shape), strides=strides, itemsize=size, meminfo=None)
        return made._getvalue()

    def scalar(kind: Any, value: Any) -> Any:
        if kind is types.boolean:
            return builder.icmp_unsigned("!=", value, ir.Constant(_WORD, 0))
        wanted = context.get_value_type(kind)
        if isinstance(wanted, ir.IntType):
            return builder.trunc(value, wanted) if wanted.width < _WORD.width else value
        bits = ir.IntType(32 if isinstance(wanted, ir.FloatType) else 64)
        return builder.bitcast(builder.trunc(value, bits) if bits.width < _WORD.width else value, wanted)

    given = [array(kinds[0], counters, [ir.Constant(_WORD, COUNTERS)]), portion, stop]
    for kind in kinds[3:]:
        if _is_array(kind):
            address = word()
            given.append(array(kind, address, [word() for _ in range(kind.ndim)]))
        else:
            given.append(scalar(kind, word()))
    signature = context.call_conv.get_function_type(types.none, kinds)
    callee = builder.inttoptr(ir.Constant(_WORD, native), signature.as_pointer())
    status, _ = context.call_conv.call_function(builder, callee, types.none, kinds, given)
    builder.ret(status.code)
    library.add_ir_module(module)
    with global_compiler_lock:
        library.finalize()
    return library
