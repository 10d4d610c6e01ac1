"""Functions of 64-bit integers, and of words in memory that several threads see, as machine code.

What the threads of a crew do between two launches is compiled when a worker starts, and numba takes a third of a second
for it, most of it to find out what types things have. Here everything is one integer of 64 bits with a sign, so a
statement is a few instructions and nothing is to be found out: it takes a tenth of that.

A function is Python of names, integers, ``+ - * // % & << >>`` (the quotient rounds towards zero), one comparison,
``and``, ``or``, ``if``, ``while``, ``break``, ``continue`` and ``return``, constants of its module, functions compiled
beside it, and these. All threads see the same order of what is done by them; what a thread did before to other memory
is seen by who sees what it stored. `place` counts words of eight bytes from `address` on.

- ``load(address, place)``
- ``store(address, place, value)``: `value`.
- ``add(address, place, value)``: what was there.
- ``swap(address, place, value)``: what was there.
- ``swap_if(address, place, due, value)``: what was there; `value` is now, if that was `due`.
- ``call_entry(entry, counters, portion, stop, record)``: call an entry (`_cpu_calls`) by its address.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from p2pcompute.execution._cpu_calls import entry_type

__all__ = ["add", "call_entry", "compiled_words", "load", "store", "swap", "swap_if"]

_WORD: Final = ir.IntType(64)
_BYTES: Final = 8  # of a word
_NONE: Final = ir.Constant(_WORD, 0)
_OPERATIONS: Final[Mapping[type[ast.operator], str]] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.FloorDiv: "sdiv",
    ast.Mod: "srem",
    ast.BitAnd: "and_",
    ast.BitOr: "or_",
    ast.LShift: "shl",
    ast.RShift: "ashr",
}
_COMPARISONS: Final[Mapping[type[ast.cmpop], str]] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


def _named(name: str) -> Callable[..., int]:
    def in_python(*_: int) -> int:
        raise NotImplementedError(f"{name} is for functions of words, which are compiled")

    return in_python


load, store, add, swap, swap_if, call_entry = map(_named, ("load", "store", "add", "swap", "swap_if", "call_entry"))


def compiled_words(*functions: Callable[..., Any]) -> list[Callable[..., int]]:
    """Compile functions that may call those before them.

    They are called without the interpreter's lock; they take integers, and give what they return, or 0.

    Raises `ValueError` for what is no function of words.
    """
    context: Any = cpu_target.target_context
    names = [f"words.{function.__module__}.{function.__qualname__}" for function in functions]
    library = context.codegen().create_library(names[-1])
    module = library.create_ir_module(names[-1])
    known: dict[str, ir.Function] = {}
    for name, function in zip(names, functions, strict=True):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        if not isinstance(tree, ast.FunctionDef):
            raise ValueError(f"{name} is no function")
        code = ir.Function(module, ir.FunctionType(_WORD, [_WORD] * len(tree.args.args)), name=name)
        _Function(code, tree, function.__globals__, known).write()
        known[function.__name__] = code
    with global_compiler_lock:
        library.add_ir_module(module)
        library.finalize()
    found: list[Callable[..., int]] = []
    for name, code in zip(names, known.values(), strict=True):
        call: Any = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(code.args))
        found.append(call(library.get_pointer_to_function(name)))
    _libraries.append(library)
    return found


_libraries: Final[list[Any]] = []  # their code is called until the process ends


class _Function:
    def __init__(self, code: Any, tree: ast.FunctionDef, names: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        self._code, self._tree, self._names, self._known = code, tree, names, known
        self._builder: Any = ir.IRBuilder(code.append_basic_block())
        self._variables: dict[str, Any] = {}
        self._loops: list[tuple[Any, Any]] = []  # where each goes on, and where it ends

    def write(self) -> None:
        stored = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name) and _is_stored(node)}
        arguments = [argument.arg for argument in self._tree.args.args]
        for name in (*arguments, *sorted(stored.difference(arguments))):
            self._variables[name] = self._builder.alloca(_WORD)
            self._builder.store(_NONE, self._variables[name])
        for name, value in zip(arguments, self._code.args, strict=True):
            self._builder.store(value, self._variables[name])
        self._block(self._tree.body)
        if not self._builder.block.is_terminated:
            self._builder.ret(_NONE)

    def _block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if self._builder.block.is_terminated:
                raise self._refused(statement, "is never reached")
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.Expr(value=value):
                self._value(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self._builder.store(self._value(value), self._variables[name])
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                was = self._builder.load(self._variables[name])
                self._builder.store(self._operation(op, was, self._value(value)), self._variables[name])
            case ast.Return(value=ast.expr() as value):
                self._builder.ret(self._value(value))
            case ast.Break():
                self._builder.branch(self._loops[-1][1])
            case ast.Continue():
                self._builder.branch(self._loops[-1][0])
            case ast.If(test=test, body=body, orelse=orelse):
                self._if(test, body, orelse)
            case ast.While(test=test, body=body, orelse=[]):
                self._while(test, body)
            case _:
                raise self._refused(node, "is no statement of words")

    def _if(self, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> None:
        then, other, end = (self._code.append_basic_block() for _ in range(3))
        self._builder.cbranch(self._truth(test), then, other)
        for block, statements in ((then, body), (other, orelse)):
            self._builder.position_at_end(block)
            self._block(statements)
            if not self._builder.block.is_terminated:
                self._builder.branch(end)
        self._builder.position_at_end(end)
        if not any(end in block.terminator.operands for block in self._code.blocks if block.is_terminated):
            self._code.blocks.remove(end)
            self._builder.position_at_end(then)  # which has ended, as has what follows here

    def _while(self, test: ast.expr, body: Sequence[ast.stmt]) -> None:
        head, inside, end = (self._code.append_basic_block() for _ in range(3))
        self._builder.branch(head)
        self._builder.position_at_end(head)
        self._builder.cbranch(self._truth(test), inside, end)
        self._builder.position_at_end(inside)
        self._loops.append((head, end))
        self._block(body)
        self._loops.pop()
        if not self._builder.block.is_terminated:
            self._builder.branch(head)
        self._builder.position_at_end(end)

    def _truth(self, node: ast.expr) -> Any:
        """A bit."""
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                return self._builder.icmp_signed(_COMPARISONS[type(op)], self._value(left), self._value(right))
            case ast.BoolOp(op=op, values=[first, *rest]):
                return self._both_or_one(isinstance(op, ast.And), first, rest)
            case ast.Constant(value=True):
                return ir.Constant(ir.IntType(1), 1)
            case _:
                return self._builder.icmp_signed("!=", self._value(node), _NONE)

    def _both_or_one(self, both: bool, first: ast.expr, rest: Sequence[ast.expr]) -> Any:
        bit = self._truth(first)
        if not rest:
            return bit
        more, end = self._code.append_basic_block(), self._code.append_basic_block()
        before = self._builder.block
        self._builder.cbranch(bit, *((more, end) if both else (end, more)))
        self._builder.position_at_end(more)
        second = self._both_or_one(both, rest[0], rest[1:])
        after = self._builder.block
        self._builder.branch(end)
        self._builder.position_at_end(end)
        found = self._builder.phi(ir.IntType(1))
        found.add_incoming(ir.Constant(ir.IntType(1), 0 if both else 1), before)
        found.add_incoming(second, after)
        return found

    def _value(self, node: ast.expr) -> Any:
        """A word."""
        match node:
            case ast.Constant(value=int() as value):
                return ir.Constant(_WORD, int(value))
            case ast.Name(id=name) if name in self._variables:
                return self._builder.load(self._variables[name])
            case ast.Name(id=name) if isinstance(self._names.get(name), int):
                return ir.Constant(_WORD, self._names[name])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self._builder.neg(self._value(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return self._operation(op, self._value(left), self._value(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self._call(node, name, [self._value(arg) for arg in args])
            case _:
                raise self._refused(node, "is no expression of words")

    def _operation(self, op: ast.operator, left: Any, right: Any) -> Any:
        if type(op) not in _OPERATIONS:
            raise self._refused(op, "is no operation of words")
        return getattr(self._builder, _OPERATIONS[type(op)])(left, right)

    def _call(self, node: ast.expr, name: str, values: Sequence[Any]) -> Any:
        builder = self._builder
        if name in self._known:
            return builder.call(self._known[name], values)
        match name, values:
            case "call_entry", [entry, *given]:
                code = builder.inttoptr(entry, entry_type().as_pointer())
                return builder.sext(builder.call(code, given), _WORD)
            case (("load" | "store" | "add" | "swap" | "swap_if"), [address, place, *given]):
                word = builder.gep(builder.inttoptr(address, _WORD.as_pointer()), [place])
                return self._of_memory(name, word, given)
            case _:
                raise self._refused(node, "calls what is no function of words")

    def _of_memory(self, name: str, word: Any, given: Sequence[Any]) -> Any:
        builder = self._builder
        match name, given:
            case "load", []:
                return builder.load_atomic(word, "seq_cst", _BYTES)
            case "store", [value]:
                builder.store_atomic(value, word, "seq_cst", _BYTES)
                return value
            case "swap_if", [due, value]:
                return builder.extract_value(builder.cmpxchg(word, due, value, "seq_cst"), 0)
            case (("add" | "swap"), [value]):
                return builder.atomic_rmw("add" if name == "add" else "xchg", word, value, "seq_cst")
            case _:
                raise ValueError(f"{self._tree.name}: {name} takes other arguments")

    def _refused(self, node: ast.AST, why: str) -> ValueError:
        return ValueError(f"{self._tree.name}: {ast.unparse(node)!r} {why}")


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)
