"""What the CPU back end says to LLVM that numba has no words for."""

from __future__ import annotations

import inspect
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

__all__ = ["Unshared", "across", "apart", "finished", "take"]

_DONE = 8  # element of the counters that is in another cache line than the first: those who take don't wait for it
_SIZE = 8  # bytes of an int64


class Unshared(Compiler):
    """numba's compiler, of a function no array argument of which overlaps one that it writes. Without that word LLVM
    compares addresses before each short loop, or does not make vectors of it."""

    def define_pipelines(self) -> Any:
        """The pipelines as ever, with the flag that numba has for it and no option."""
        self.state.flags.noalias = True
        return super().define_pipelines()  # type: ignore[no-untyped-call]


def _take(context: Any, counters: Any, count: Any) -> tuple[Any, Any]:  # noqa: ARG001 - numba calls it so
    """``take(counters, count)``: what ``counters[0]`` holds, which `count` is added to, in one step for all threads."""

    def code(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = target.make_array(signature.args[0])(target, builder, values[0]).data
        return builder.atomic_rmw("add", data, values[1], "monotonic")

    return types.int64(counters, types.int64), code


def _finished(context: Any, counters: Any, count: Any) -> tuple[Any, Any]:  # noqa: ARG001 - numba calls it so
    """``finished(counters, count)``: add to what is done; what it was before. All that this thread stored before is
    seen by who reads the sum here."""

    def code(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = target.make_array(signature.args[0])(target, builder, values[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [ir.Constant(ir.IntType(64), _DONE)]), values[1], "acq_rel")

    return types.int64(counters, types.int64), code


take: Any = intrinsic(_take)
finished: Any = intrinsic(_finished)


def across(function: Any, width: int, row: int) -> Any:
    """``across(0, ..., first, ...)``: call `function` with 0 to `width` - 1 in the place of its first argument, and
    with `first` plus that for argument number `row`, the other arguments as they are.

    A loop that LLVM leaves a loop until it makes vectors: one of 16 short turns it would unroll, and then find no
    vectors in what that leaves.
    """

    def loop(context: Any, *kinds: Any) -> tuple[Any, Any]:
        signature: Any = types.Dispatcher(function).get_call_type(context, kinds, {})

        def code(target: Any, builder: Any, given: Any, values: Any) -> Any:
            compiled = function.overloads[tuple(signature.args)]
            target.active_code_library.add_linking_library(compiled.library)
            callee = target.declare_function(builder.module, compiled.fndesc)
            arguments = [
                target.cast(builder, value, have, want)
                for value, have, want in zip(values, given.args, signature.args, strict=True)
            ]
            number = ir.IntType(64)
            start = builder.block
            head, end = builder.append_basic_block("across"), builder.append_basic_block("across.end")
            builder.branch(head)
            builder.position_at_end(head)
            turn = builder.phi(number)
            turn.add_incoming(ir.Constant(number, 0), start)
            arguments[0] = turn
            arguments[row] = builder.add(arguments[row], turn)
            target.call_conv.call_function(builder, callee, signature.return_type, signature.args, arguments)
            following = builder.add(turn, ir.Constant(number, 1))
            turn.add_incoming(following, builder.block)
            again = builder.cbranch(builder.icmp_unsigned("<", following, ir.Constant(number, width)), head, end)
            again.set_metadata("llvm.loop", _kept(builder.module))
            builder.position_at_end(end)
            return target.get_dummy_value()

        return types.none(*kinds), code

    names = ["context", *function.py_func.__code__.co_varnames[: function.py_func.__code__.co_argcount]]
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD  # numba asks for the parameters one by one
    loop.__signature__ = inspect.Signature([inspect.Parameter(name, positional) for name in names])  # type: ignore[attr-defined]
    return intrinsic(loop)


def _kept(module: Any) -> Any:
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
