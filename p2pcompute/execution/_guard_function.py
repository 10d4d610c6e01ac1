"""The guard's list: which statements and expressions one function may hold, and what to write instead.

What is not on the list is refused. Nothing is evaluated; constants stay as they are written.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pcompute.errors import KernelError
from p2pcompute.execution import _language as lang
from p2pcompute.execution._guard_advice import of_a_call, of_an_attribute, of_another_count, of_node, of_value
from p2pcompute.execution._guard_scratch import Scratch, is_atomic, memory_call, scratch_arrays
from p2pcompute.execution._language_advice import IN_THE_KERNEL, NO_ARRAY, no_numbers, of_atomic, to_a_global
from p2pcompute.execution._tree import walk

__all__ = ["NAME", "Function", "FunctionCheck"]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BINARY = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr, ast.BitXor,
    ast.LShift, ast.RShift,
)  # fmt: skip
_COMPARE = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function of an admitted source. `arrays` are the parameters that it uses as arrays, `scratch` the arrays
    that it declares. `stores` are the arrays that a device function stores into; one that `gives` nothing is called
    for them only."""

    name: str
    node: ast.FunctionDef
    filename: str
    params: tuple[str, ...]
    arrays: frozenset[str]
    names: frozenset[str]  # parameters and local variables
    calls: tuple[str, ...]  # device functions, once for each call
    nodes: tuple[ast.AST, ...] = field(repr=False)  # of `node`, as `walk` finds them
    scratch: Mapping[str, Scratch] = field(default_factory=dict)
    stores: frozenset[str] = frozenset()
    gives: bool = True


class FunctionCheck:
    """Checks one function."""

    def __init__(
        self,
        node: ast.FunctionDef,
        nodes: Mapping[str, ast.FunctionDef],
        done: Mapping[str, Function],
        filename: str,
        *,
        is_entry: bool,
    ) -> None:
        self.node = node
        self.nodes = nodes
        self.done = done
        self.filename = filename
        self.is_entry = is_entry
        self.calls: list[str] = []
        self.loops = 0
        self.stores: set[str] = set()
        self.may_store: set[int] = set()  # calls that are a statement, or all of its right side

    def refuse(self, node: ast.AST, reason: str, instead: str = "") -> KernelError:
        line = getattr(node, "lineno", self.node.lineno)
        return KernelError(reason, line=line, filename=self.filename, instead=instead)

    def unknown(self, node: ast.AST) -> KernelError:
        return self.refuse(node, *of_node(node))

    def run(self) -> Function:
        node = self.node
        self.params = self._params()
        self.names = set(self.params)
        self.inner = walk(node)
        for inner in self.inner:
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                self.names.add(inner.id)
        if len(self.names) > lang.MAX_LOCALS:
            raise self.refuse(node, f"more than {lang.MAX_LOCALS} variables", "split the function")
        for name in sorted(self.names):
            self._check_name(name)
        self._check_declarations()
        self.scratch = scratch_arrays(node, self.refuse) if self.is_entry else {}
        self.arrays = self._arrays()
        params = frozenset(self.arrays)
        self.arrays |= set(self.scratch)
        self.block(node.body)
        returned = [inner for inner in self.inner if isinstance(inner, ast.Return)]
        if self.is_entry:
            for inner in returned:
                if inner.value is not None:
                    raise self.refuse(inner, "a kernel returns nothing", "store into an output")
        gives = any(inner.value is not None for inner in returned)
        ends = _always_returns(node.body) and all(inner.value is not None for inner in returned)
        if not self.is_entry and (gives or not self.stores) and not ends:
            raise self.refuse(
                node.body[-1],
                f"{node.name} may end without a return of a value",
                "end the function with a return of a value in each case",
            )
        return Function(
            name=node.name,
            node=node,
            filename=self.filename,
            params=self.params,
            arrays=params,
            names=frozenset(self.names - set(self.scratch)),
            calls=tuple(self.calls),
            nodes=tuple(self.inner),
            scratch=self.scratch,
            stores=frozenset(self.stores),
            gives=gives,
        )

    def _params(self) -> tuple[str, ...]:
        node, spec = self.node, self.node.args
        if node.decorator_list or node.returns is not None or getattr(node, "type_params", None):
            raise self.refuse(node, "a normalised function has no decorators or annotations", "leave them out")
        if spec.vararg or spec.kwarg or spec.kwonlyargs or spec.posonlyargs or spec.defaults or spec.kw_defaults:
            raise self.refuse(node, "only plain parameters are taken", "write def name(a, b, c)")
        if any(argument.annotation is not None for argument in spec.args):
            raise self.refuse(node, "a normalised function has no annotations", "leave them out")
        params = tuple(argument.arg for argument in spec.args)
        if len(params) > lang.MAX_PARAMS:
            raise self.refuse(node, f"more than {lang.MAX_PARAMS} parameters", "put scalars into an input array")
        if len(set(params)) != len(params):
            raise self.refuse(node, "two parameters have one name", "rename one of them")
        return params

    def _check_declarations(self) -> None:
        """Arrays are declared at the top level of the kernel, each by an assignment of its own."""
        good: set[int] = set()
        for statement in self.node.body if self.is_entry else []:
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                good.add(id(statement.value))
        for inner in self.inner:
            if (kind := memory_call(inner)) and id(inner) not in good:
                where = "here" if self.is_entry else "in a device function"
                raise self.refuse(
                    inner,
                    f"an array is declared {where}",
                    f"declare it on a line of its own at the top level of the kernel: name = cuda.{kind}...",
                )

    def _check_name(self, name: str) -> None:
        reason = remedy = ""
        if name in lang.RESERVED or name in self.nodes:
            reason, remedy = f"{name} has a meaning of its own in kernels", "rename the variable"
        elif not NAME.fullmatch(name) or len(name) > lang.MAX_NAME_LENGTH:
            reason = "a name is not ASCII or too long"
            remedy = f"use up to {lang.MAX_NAME_LENGTH} letters, digits and _"
        elif name.startswith("__"):
            reason, remedy = f"{name}: names that begin with __ are not taken", "rename the variable"
        if reason:
            named = (node for node in self.inner if isinstance(node, ast.Name) and node.id == name)
            raise self.refuse(next(named, self.node), reason, remedy)

    def _arrays(self) -> set[str]:
        """Parameters that are used as arrays anywhere in the function."""
        found: set[str] = set()
        for inner in self.inner:
            used: list[ast.expr] = []
            if isinstance(inner, ast.Subscript | ast.Attribute):
                used = [inner.value]
            elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name):
                callee = self.done.get(inner.func.id)
                if inner.func.id == "len":
                    used = inner.args
                elif callee is not None:
                    used = [a for a, p in zip(inner.args, callee.params, strict=False) if p in callee.arrays]
            for base in used:
                if isinstance(base, ast.Name) and base.id in self.names and base.id not in self.scratch:
                    if base.id not in self.params:
                        for value in no_numbers(self.inner, base.id):
                            self.expression(value)  # refuses what was assigned, where it was
                        raise self.refuse(base, f"{base.id} is no array", NO_ARRAY)
                    found.add(base.id)
        return found

    # Statements

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call) if (
                name in self.scratch and memory_call(call)
            ):
                pass
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self.target(target, value)
                if not any(isinstance(inner, ast.Subscript) for target in targets for inner in ast.walk(target)):
                    self.may_store.add(id(value))
                self.assigned(value, tuple_ok=all(isinstance(target, ast.Tuple) for target in targets))
            case ast.AugAssign(target=ast.Name() | ast.Subscript() as target, op=op, value=value):
                if not isinstance(op, _BINARY):
                    raise self.unknown(op)
                self.target(target, value)
                if isinstance(op, ast.Pow):
                    self.power(node, value)
                if isinstance(target, ast.Name):
                    self.may_store.add(id(value))
                self.expression(value)
            case ast.If(test=test, body=body, orelse=orelse):
                self.expression(test)
                self.block(body)
                self.block(orelse)
            case ast.While(test=test, body=body, orelse=orelse):
                self.no_else(node, orelse)
                self.expression(test)
                self.loop(body)
            case ast.For(target=target, iter=iterated, body=body, orelse=orelse):
                self.no_else(node, orelse)
                if not isinstance(target, ast.Name):
                    raise self.refuse(target, "a for loop sets one name", "write for k in range(n)")
                self.target(target, None)
                self.range(iterated)
                self.loop(body)
            case ast.Return(value=value):
                if value is not None:
                    self.may_store.add(id(value))
                    self.assigned(value, tuple_ok=True)
            case ast.Break() | ast.Continue():
                if not self.loops:
                    raise self.refuse(
                        node, "break and continue stand only in loops", "write return, or put it into a loop"
                    )
            case ast.Pass():
                pass
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="cuda"), attr="syncthreads")) as call):
                self.only_in_kernel(call, "cuda.syncthreads()")
                self.count(call, "cuda.syncthreads", 0, 0)
                if call.keywords:
                    raise self.refuse(call, "cuda.syncthreads() takes no arguments", "write cuda.syncthreads()")
            case ast.Expr(value=ast.Call() as call) if is_atomic(call):
                self.atomic(call)
            case ast.Expr(value=ast.Call(func=ast.Name(id=name)) as call) if name in self.done:
                if not self.done[name].stores:
                    raise self.refuse(node, f"what {name} gives is not used", "assign it, or leave the call out")
                self.may_store.add(id(call))
                self.call(call, statement=True)
            case ast.Expr(value=value) if not isinstance(value, ast.Constant):
                self.expression(value)  # what is wrong within it says more
                raise self.unknown(node)
            case _:
                raise self.unknown(node)

    def operation(self, node: ast.Call) -> str:
        """Which atomic operation a call is."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name not in lang.ATOMICS:
            raise self.refuse(node, f"cuda.atomic.{name} is not in the kernel language", of_atomic(name, node))
        if not self.is_entry:
            raise self.refuse(node, f"cuda.atomic.{name} in a device function", IN_THE_KERNEL)
        return name

    def atomic(self, node: ast.Call) -> None:
        name = self.operation(node)
        if len(node.args) != 3 or node.keywords:
            raise self.refuse(
                node,
                f"cuda.atomic.{name} takes three arguments by position, not {len(node.args) + len(node.keywords)}",
                f"write cuda.atomic.{name}(array, index, value)",
            )
        array, index, value = node.args
        scratch = self.scratch.get(array.id) if isinstance(array, ast.Name) else None
        if scratch is None or scratch.kind != "shared":
            raise self.refuse(node, "an atomic operation on what is no shared array", to_a_global(name, node))
        if scratch.dtype not in lang.ATOMIC_DTYPES:
            raise self.refuse(
                node,
                f"an atomic operation on {scratch.dtype}",
                f"use {', '.join(lang.ATOMIC_DTYPES)}: sums of floats depend on the order of threads",
            )
        for part in index.elts if isinstance(index, ast.Tuple) else [index]:
            self.expression(part)
        self.expression(value)

    def loop(self, body: list[ast.stmt]) -> None:
        self.loops += 1
        self.block(body)
        self.loops -= 1

    def no_else(self, node: ast.stmt, orelse: list[ast.stmt]) -> None:
        if orelse:
            raise self.refuse(node, "a loop's else is not in the kernel language", "set a flag before break")

    def target(self, node: ast.expr, value: ast.expr | None) -> None:
        match node:
            case ast.Name(id=name):
                if name in self.arrays:
                    raise self.refuse(node, f"{name} is an array and can't be assigned to", f"write {name}[i] = ...")
            case ast.Subscript(value=ast.Name(id=name)) if name in self.arrays:
                if name in self.scratch and self.scratch[name].kind == "const":
                    raise self.refuse(node, f"{name} is constant", "copy it into a cuda.local.array first")
                if not self.is_entry:
                    self.stores.add(name)
                self.index(node)
            case ast.Tuple(elts=elements) if value is not None:
                if not 1 <= len(elements) <= lang.MAX_TUPLE:
                    raise self.refuse(node, f"a tuple has 1 to {lang.MAX_TUPLE} elements", "assign in several steps")
                if isinstance(value, ast.Tuple) and len(value.elts) != len(elements):
                    raise self.refuse(
                        node, f"{len(value.elts)} values for {len(elements)} names", "give each name one value"
                    )
                for element in elements:
                    if isinstance(element, ast.Tuple):
                        raise self.refuse(element, "a tuple in a tuple", "assign in two steps")
                    self.target(element, None)
            case ast.Subscript():
                raise self.refuse(
                    node, "only an output parameter can be stored into", "write out[i] = ... with p2p.out(...)"
                )
            case ast.Attribute():
                raise self.refuse(node, "nothing has attributes to assign to", "store into an output")
            case _:
                raise self.unknown(node)

    def assigned(self, value: ast.expr, *, tuple_ok: bool) -> None:
        """The right side of an assignment or a return, where a tuple may stand."""
        if tuple_ok and isinstance(value, ast.Tuple):
            if not 1 <= len(value.elts) <= lang.MAX_TUPLE:
                raise self.refuse(value, f"a tuple has 1 to {lang.MAX_TUPLE} elements", "assign in several steps")
            for element in value.elts:
                self.expression(element)
        elif tuple_ok and isinstance(value, ast.Attribute) and value.attr == "shape":
            self.array(value.value)
        else:
            self.expression(value)

    def range(self, node: ast.expr) -> None:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
            raise self.refuse(node, "a for loop runs over range() only", "write for k in range(n)")
        if node.keywords or not 1 <= len(node.args) <= 3:
            raise self.refuse(node, "range() takes one to three numbers", "write range(stop), or (start, stop, step)")
        for argument in node.args:
            self.expression(argument)

    # Expressions

    def expression(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=value):
                if isinstance(value, int):
                    if value.bit_length() > 64:
                        raise self.refuse(node, "an integer that 64 bits don't hold", "use a float literal")
                elif not isinstance(value, float):
                    kind = {"NoneType": "None", "ellipsis": "...", "str": "text", "bytes": "text"}
                    instead: dict[type, str] = {
                        complex: "hold the real and the imaginary part in two variables",
                        type(...): "write each index out: x[i, j]",
                    }
                    raise self.refuse(
                        node,
                        f"{kind.get(type(value).__name__, 'a complex constant')} is not in the kernel language",
                        instead.get(type(value), "kernels hold numbers only"),
                    )
            case ast.Name(id=name):
                if name in self.arrays:
                    raise self.refuse(node, f"the array {name} stands alone", f"write {name}[i]: arrays are not values")
                if name not in self.names:
                    raise self.refuse(node, *of_value(name, self.nodes))
            case ast.UnaryOp(operand=operand):
                self.expression(operand)
            case ast.BinOp(left=left, op=op, right=right):
                if not isinstance(op, _BINARY):
                    raise self.refuse(node, *of_node(op, f"there are {lang.ARITHMETIC}"))
                if isinstance(op, ast.Pow):
                    self.power(node, right)
                self.expression(left)
                self.expression(right)
            case ast.BoolOp(values=values):
                for operand in values:
                    self.expression(operand)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                for operator in ops:
                    if not isinstance(operator, _COMPARE):
                        raise self.refuse(node, *of_node(operator, "compare with == and <"))
                for operand in (left, *comparators):
                    self.expression(operand)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                for operand in (test, body, orelse):
                    self.expression(operand)
            case ast.Call():
                self.call(node)
            case ast.Subscript():
                self.index(node)
            case ast.Attribute():
                self.attribute(node)
            case _:
                raise self.unknown(node)

    def power(self, node: ast.AST, exponent: ast.expr) -> None:
        """A literal integer is a count of products; anything else has to be a float, which the types will tell."""
        number = exponent.operand if isinstance(exponent, ast.UnaryOp) else exponent
        if not (isinstance(number, ast.Constant) and isinstance(number.value, int)):
            return
        if number is not exponent or isinstance(number.value, bool) or number.value > lang.MAX_POWER:
            raise self.refuse(
                node,
                f"** takes a literal exponent from 0 to {lang.MAX_POWER}, or a float",
                "write 1 / x ** n, or the exponent as a float",
            )

    def array(self, node: ast.expr) -> str:
        if not (isinstance(node, ast.Name) and node.id in self.arrays):
            raise self.refuse(node, "not the name of an array parameter", "arrays are used by their own names only")
        return node.id

    def index(self, node: ast.Subscript) -> None:
        if isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            self.array(node.value.value)
            axis = node.slice
            if not (
                isinstance(axis, ast.Constant) and type(axis.value) is int and 0 <= axis.value < lang.MAX_ARRAY_AXES
            ):
                raise self.refuse(node, "the index of shape is a literal axis", "write x.shape[0]")
            return
        if isinstance(node.value, ast.Subscript):
            raise self.refuse(node, "an index behind an index", "write x[i, j]")
        self.array(node.value)
        indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if not 1 <= len(indices) <= lang.MAX_ARRAY_AXES:
            raise self.refuse(node, f"arrays have 1 to {lang.MAX_ARRAY_AXES} axes", "reshape the array before the call")
        for index in indices:
            self.expression(index)

    def attribute(self, node: ast.Attribute) -> None:
        match node.value:
            case ast.Attribute(value=ast.Name(id="cuda"), attr=triple):
                if triple in lang.CUDA_TRIPLES and node.attr in lang.AXES:
                    return self.only_in_kernel(node, f"cuda.{triple}.{node.attr}")
                if triple in lang.CUDA_TRIPLES:
                    raise self.refuse(
                        node, f"cuda.{triple}.{node.attr} is not in the kernel language", "there are .x, .y and .z"
                    )
            case ast.Name(id="math") if node.attr in lang.MATH_CONSTANTS:
                return None
            case ast.Name(id=name) if name in self.arrays:
                if node.attr in ("size", "ndim"):
                    return None
                if node.attr == "shape":
                    raise self.refuse(node, "shape as a whole is no number", "write x.shape[0], or h, w = x.shape")
            case _:
                pass
        instead = "arrays have size, shape and ndim"
        match node.value:
            case ast.Name(id="cuda") if node.attr in lang.CUDA_TRIPLES:
                raise self.refuse(node, f"cuda.{node.attr} as a whole is no number", f"write cuda.{node.attr}.x")
            case ast.Name(id=name) if name not in self.arrays and node.attr in ("real", "imag"):
                instead = "hold the real and the imaginary part in two variables"
            case _:
                pass
        reason = f"the attribute {node.attr} is not in the kernel language"
        raise self.refuse(node, *(of_an_attribute(node, self.names | self.nodes.keys()) or (reason, instead)))

    def only_in_kernel(self, node: ast.expr, what: str) -> None:
        if not self.is_entry:
            raise self.refuse(node, f"{what} in a device function", "take it in the kernel and pass it as an argument")

    def pass_array(self, node: ast.Call, argument: ast.Name, callee: Function, param: str) -> None:
        """An array as the argument of a device function."""
        array = self.scratch.get(argument.id)
        if param not in callee.stores:
            return  # read-only there, whatever it does with it
        if id(node) not in self.may_store:
            raise self.refuse(
                node,
                f"{callee.name} stores into an array within an expression",
                f"call it by itself: value = {callee.name}(...)",
            )
        if not self.is_entry:
            self.stores.add(argument.id)
        elif array is None or array.kind != "local":
            kind = f"the {array.kind} array" if array is not None else "the argument"
            raise self.refuse(
                argument,
                f"{callee.name} stores into {kind} {argument.id}",
                "device functions store into a cuda.local.array of the kernel only; return the value and store it in "
                "the kernel",
            )

    def uncalled(self, node: ast.Call) -> tuple[str, str] | None:
        """Reason and remedy, where what is called is not in the language at all."""
        return of_a_call(node.func, self.names | self.nodes.keys())

    def call(self, node: ast.Call, *, statement: bool = False) -> None:
        if node.keywords:
            reason = "keyword arguments are not in the kernel language"
            raise self.refuse(node, *(self.uncalled(node) or (reason, "pass them by position")))
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                raise self.refuse(argument, *(self.uncalled(node) or of_node(argument)))
        match node.func:
            case ast.Name(id=name) if name in self.nodes:
                callee = self.done[name]
                self.calls.append(name)
                self.count(node, name, len(callee.params), len(callee.params))
                for argument, param in zip(node.args, callee.params, strict=True):
                    if isinstance(argument, ast.Name) and argument.id in self.arrays:
                        self.pass_array(node, argument, callee, param)
                        continue
                    if param in callee.arrays:
                        raise self.refuse(
                            argument, f"{name} takes an array here", "pass an array parameter by its name"
                        )
                    self.expression(argument)
                if not callee.gives and not statement:
                    raise self.refuse(node, f"{name} gives no value", "call it on a line of its own")
                return
            case ast.Name(id="len"):
                self.count(node, "len", 1, 1)
                self.array(node.args[0])
                return
            case ast.Name(id="min" | "max" as name):
                self.count(node, name, 2, lang.MAX_TUPLE)
            case ast.Name(id="int" | "float" | "bool" | "abs" | "round" as name):
                self.count(node, name, 1, 1)
            case ast.Name(id="range"):
                raise self.refuse(node, "range() stands only in a for statement", "write for k in range(n)")
            case ast.Attribute(value=ast.Name(id="math"), attr=name) if name in lang.MATH_CALLS:
                self.count(node, name, lang.MATH_CALLS[name], lang.MATH_CALLS[name])
            case ast.Attribute(value=ast.Name(id="np"), attr=name) if name in lang.NUMPY_CALLS:
                self.count(node, name, lang.NUMPY_CALLS[name], lang.NUMPY_CALLS[name])
            case ast.Attribute(value=ast.Name(id="np"), attr=name) if name in lang.CASTS:
                self.count(node, name, 1, 1)
            case ast.Attribute(value=ast.Name(id="random"), attr=name) if name in lang.RANDOM_CALLS:
                self.count(node, name, lang.RANDOM_CALLS[name], lang.RANDOM_CALLS[name])
            case ast.Attribute(value=ast.Name(id="cuda"), attr=name) if name in lang.CUDA_DIMS:
                self.only_in_kernel(node, f"cuda.{name}")
                self.count(node, name, 1, 1)
                axes = node.args[0]
                if not (isinstance(axes, ast.Constant) and type(axes.value) is int and 1 <= axes.value <= 3):
                    raise self.refuse(
                        node, f"cuda.{name} takes the literal 1, 2 or 3", f"write the number: cuda.{name}(1)"
                    )
                return
            case ast.Attribute(value=ast.Name(id="cuda"), attr=name) if name in lang.BIT_CALLS:
                self.count(node, f"cuda.{name}", 1, 1)
            case ast.Attribute() if is_atomic(node):
                self.operation(node)
                raise self.refuse(
                    node, "the result of an atomic operation depends on the order of threads", "write it as a statement"
                )
            case ast.Name(id=name):
                reason, instead = f"the call of {name}", "call @p2pcompute.device functions and the language's own only"
                raise self.refuse(node, *(self.uncalled(node) or (reason, instead)))
            case _:
                method = f".{node.func.attr}()" if isinstance(node.func, ast.Attribute) else "the call of an expression"
                reason = f"{method} is not in the kernel language"
                instead = "call @p2pcompute.device functions by name; np.float32(x) and its like convert numbers"
                raise self.refuse(node, *(self.uncalled(node) or (reason, instead)))
        for argument in node.args:
            self.expression(argument)

    def count(self, node: ast.Call, name: str, low: int, high: int) -> None:
        if not low <= len(node.args) <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            raise self.refuse(
                node,
                f"{name} takes {wanted} argument{'s' * (high != 1)}, not {len(node.args)}",
                of_another_count(name, low, high),
            )


def _always_returns(body: list[ast.stmt]) -> bool:
    last = body[-1]
    if isinstance(last, ast.Return):
        return last.value is not None
    if isinstance(last, ast.If):
        return bool(last.orelse) and _always_returns(last.body) and _always_returns(last.orelse)
    return False
