"""What the CPU back end says to LLVM that numba has no words for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

__all__ = ["Unshared", "across", "apart", "take"]


class Unshared(Compiler):
    """numba's compiler, of a function no array argument of which overlaps one that it writes, and that only compiled
    code calls. Without the first word LLVM compares addresses before each short loop, or does not make vectors of it;
    the second saves a tenth of the time."""

    def define_pipelines(self) -> Any:
        """The pipelines as ever, with the flags that numba has for it and no option."""
        self.state.flags.noalias = True
        self.state.flags.no_cpython_wrapper = True
        self.state.flags.no_cfunc_wrapper = True
        return super().define_pipelines()  # type: ignore[no-untyped-call]


def _take(context: Any, counters: Any, count: Any) -> tuple[Any, Any]:  # noqa: ARG001 - numba calls it so
    """``take(counters, count)``: what ``counters[0]`` holds, which `count` is added to, in one step for all threads."""

    def code(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = target.make_array(signature.args[0])(target, builder, values[0]).data
        return builder.atomic_rmw("add", data, values[1], "monotonic")

    return types.int64(counters, types.int64), code


take: Any = intrinsic(_take)


def across(function: Any, width: int, lines: int, *, block: int, row: int, rows: int) -> Any:
    """``across(blocks, 0, ..., b, ..., r, ...)``: call `function` for a few lines of `width` threads in each of so many
    neighbouring blocks: with 0 to `width` - 1 in the place of its first argument, with ``b`` and those that follow for
    argument number `block`, with ``r`` plus `rows` for each block and one for each thread for argument number `row`,
    and the other arguments as they are. How many is `lines`; where they are several they follow each other
    along the second argument.

    Loops as LLVM has them best: that of a line stays a loop until it is a vector, for 16 short turns it would
    unroll, and then find no vectors in what that leaves; that of the blocks it unrolls then. Lines of a block are no
    loop, so what two of them load is loaded once.
    """

    def loop(context: Any, blocks: Any, *kinds: Any) -> tuple[Any, Any]:
        signature: Any = types.Dispatcher(function).get_call_type(context, kinds, {})

        def code(target: Any, builder: Any, given: Any, values: Any) -> Any:
            compiled = function.overloads[tuple(signature.args)]
            target.active_code_library.add_linking_library(compiled.library)
            callee = target.declare_function(builder.module, compiled.fndesc)
            blocks, *arguments = [
                target.cast(builder, value, have, want)
                for value, have, want in zip(values, given.args, (types.int64, *signature.args), strict=True)
            ]
            number = ir.IntType(64)
            first_block, first_row, first_line = arguments[block], arguments[row], arguments[1]

            def each_block(turn: Any) -> None:
                arguments[block] = builder.add(first_block, turn)
                start = builder.add(first_row, builder.mul(turn, number(rows)))
                for line in range(lines):
                    if line:
                        arguments[1] = builder.add(first_line, first_line.type(line))
                    each_line(builder.add(start, number(line * width)))

            def each_line(start: Any) -> None:
                def each_thread(turn: Any) -> None:
                    arguments[0] = turn
                    arguments[row] = builder.add(start, turn)
                    target.call_conv.call_function(builder, callee, signature.return_type, signature.args, arguments)

                _turns(builder, number(width), each_thread, kept=True)

            with builder.if_then(builder.icmp_signed(">", blocks, number(0))):
                _turns(builder, blocks, each_block, kept=False)
            return target.get_dummy_value()

        return types.none(blocks, *kinds), code

    names = ["context", "blocks", *function.py_func.__code__.co_varnames[: function.py_func.__code__.co_argcount]]
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD  # numba asks for the parameters one by one
    loop.__signature__ = inspect.Signature([inspect.Parameter(name, positional) for name in names])  # type: ignore[attr-defined]
    return intrinsic(loop)


def _turns(builder: Any, stop: Any, body: Callable[[Any], None], *, kept: bool) -> None:
    """``body(turn)`` for 0 to `stop` - 1, and for 0 anyhow; `kept`: it is not to be unrolled."""
    start = builder.block
    head, end = builder.append_basic_block("turns"), builder.append_basic_block("turns.end")
    builder.branch(head)
    builder.position_at_end(head)
    turn = builder.phi(stop.type)
    turn.add_incoming(stop.type(0), start)
    body(turn)
    following = builder.add(turn, stop.type(1), flags=("nuw", "nsw"))
    turn.add_incoming(following, builder.block)
    again = builder.cbranch(builder.icmp_signed("<", following, stop), head, end)
    if kept:
        again.set_metadata("llvm.loop", _unrolled_never(builder.module))
    builder.position_at_end(end)


def _unrolled_never(module: Any) -> Any:
    """A loop's metadata: its own id first, as LLVM has it, then that it is not to be unrolled."""
    word = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    made: Any = ir.MDValue(module, [word], name=str(len(module.metadata)))
    made.operands = [made, word]
    return made


def apart(function: Any) -> Any:
    """A function of floats that LLVM does not copy into its callers. numba has no option for that: the call says it."""

    def called(context: Any, kinds: tuple[Any, ...]) -> tuple[Any, Any]:
        signature: Any = types.Dispatcher(function).get_call_type(context, kinds, {})

        def code(target: Any, builder: Any, _signature: Any, values: Any) -> Any:
            compiled = function.overloads[tuple(signature.args)]
            target.active_code_library.add_linking_library(compiled.library)
            callee = target.declare_function(builder.module, compiled.fndesc)
            _, value = target.call_conv.call_function(  # nothing in the language raises: there is no status to look at
                builder, callee, signature.return_type, signature.args, values, attrs=("noinline",)
            )
            return value

        return signature, code

    def one(context: Any, x: Any) -> tuple[Any, Any]:
        return called(context, (x,))

    def two(context: Any, x: Any, y: Any) -> tuple[Any, Any]:
        return called(context, (x, y))

    return intrinsic(one if function.py_func.__code__.co_argcount == 1 else two)
