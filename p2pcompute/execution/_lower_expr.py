"""Expressions: from the admitted tree to typed code in the subset of Python that numba compiles.

Docs/strict.md is the contract; each method here is one paragraph of it. The language is pure and total (nothing in
it raises or has an effect), so an operand may be evaluated early or not at all.

Code of an expression holds no branch: numba loses the type of what lies on the stack across one. What branches is
emitted as statements before the one that the expression stands in, and leaves its result in a temporary.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Protocol

from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._guard_places import grid_axis
from p2pcompute.execution._language import (
    AXES,
    BIT_CALLS,
    BUILTINS,
    CASTS,
    DTYPES,
    MATH_FUNCTIONS,
    MAX_POWER,
    RANDOM_CALLS,
)
from p2pcompute.execution._lower_types import (
    ArrayType,
    Expr,
    Scalar,
    Type,
    as_type,
    from_dtype,
    join,
    to_dtype,
    truth,
    wrapping,
    zero,
)

__all__ = ["ArrayUse", "ExpressionLowering"]

_SYMBOLS: Mapping[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_LOOK = "docs/strict.md has what there is"
_MOST_BRACKETS = 64  # in the code of one expression; Python's parser takes 200 within each other
_DTYPE_OF_CAST = {"bool_": "bool"} | {name: name for name in DTYPES}


class ArrayUse(Protocol):
    """What an expression must know about the arrays around it."""

    def load(self, name: str, kind: ArrayType, indices: list[Expr], axes: list[int | None], key: ast.expr) -> str:
        """Code for the element of an array, or zero where the indices are out of range."""
        ...

    def axis_length(self, name: str, axis: int) -> str:
        """Code for ``name.shape[axis]``."""
        ...

    def always(self, node: ast.Compare) -> bool:
        """Whether a comparison is known to be true."""
        ...

    def never(self, node: ast.Compare) -> bool:
        """Whether it is known to be false."""
        ...

    def call(self, name: str, node: ast.Call, types: tuple[Type, ...]) -> tuple[str, Scalar | tuple[Scalar, ...]]:
        """The compiled name and the result's type of a device function."""
        ...

    def bits(self, node: ast.expr) -> int:
        """How many bits an integer has where they are counted."""
        ...

    def passed(self, name: str) -> list[str]:
        """Code for an array as an argument of a device function."""
        ...


class ExpressionLowering:
    """Lowers the expressions of one function. `types` holds what is known of its names so far; a name that is not
    in it has the narrowest type, and passes are repeated until nothing widens."""

    def __init__(
        self, arrays: ArrayUse, types: dict[str, Type], grid: Mapping[str, int], dims: int, filename: str
    ) -> None:
        self.arrays = arrays
        self.types = types
        self.grid = grid
        self.dims = dims
        self.filename = filename
        self.temps = 0
        self.lines: list[str] = []
        self.depth = 1

    def temp(self) -> str:
        """A fresh name."""
        self.temps += 1
        return f"t{self.temps}"

    def emit(self, line: str) -> None:
        """Add a statement before the one that is being lowered."""
        self.lines.append(" " * self.depth + line)

    def held(self, value: Expr) -> Expr:
        """The same value under a name, so that its code may be written more than once."""
        if value.code.isidentifier() or value.literal is not None:
            return value
        name = self.temp()
        self.emit(f"{name} = {value.code}")
        return Expr(name, value.type)

    def apart(self, node: ast.expr) -> tuple[Expr, list[str]]:
        """Lower `node` one level deeper, and keep the statements that it needs back."""
        outer, self.lines = self.lines, []
        self.depth += 1
        value = self.scalar(node)
        self.depth -= 1
        inner, self.lines = self.lines, outer
        return value, inner

    def refuse(self, node: ast.AST, reason: str, instead: str = "") -> KernelTypeError:
        """The error for `node`, to be raised."""
        return KernelTypeError(reason, line=getattr(node, "lineno", 0), filename=self.filename, instead=instead)

    def scalar(self, node: ast.expr) -> Expr:
        """Lower an expression that is one number."""
        return self.shallow(self._scalar(node))

    def shallow(self, value: Expr) -> Expr:
        """The same value under a name, where its code has so many brackets that Python's parser might refuse more."""
        return self.held(value) if value.code.count("(") + value.code.count("[") > _MOST_BRACKETS else value

    def _scalar(self, node: ast.expr) -> Expr:
        match node:
            case ast.Constant(value=value):
                return _literal(value)
            case ast.Name(id=name):
                kind = self.types.get(name, Scalar.BOOL)
                if not isinstance(kind, Scalar):
                    raise self.refuse(node, f"{name} is an array here", f"write {name}[i]")
                return Expr(f"v_{name}", kind)
            case ast.UnaryOp(op=op, operand=operand):
                return self.unary(op, operand)
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)):
                return self.power(self.scalar(left), power)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(node, op, self.scalar(left), self.scalar(right))
            case ast.BoolOp(op=op, values=values):
                return self.logic(isinstance(op, ast.And), values)
            case ast.Compare():
                return self.compare(node)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.choice(test, body, orelse)
            case ast.Subscript(value=ast.Attribute(value=ast.Name(id=name)), slice=ast.Constant(value=int() as axis)):
                if axis >= self.array(node, name).ndim:
                    raise self.refuse(
                        node, f"{name} has no axis {axis}", f"it has axes 0 to {self.array(node, name).ndim - 1}"
                    )
                return Expr(self.arrays.axis_length(name, axis), Scalar.INT)
            case ast.Subscript(value=ast.Name(id=name)):
                kind = self.array(node, name)
                indices = self.indices(node, name, kind)
                code = self.arrays.load(name, kind, indices, self.index_axes(node), node.slice)
                return widen(code, kind.dtype)
            case ast.Attribute():
                return self.attribute(node)
            case ast.Call():
                code, kinds = self.call(node)
                if isinstance(kinds, tuple):
                    raise self.refuse(node, "this gives several values", "assign them to as many names first")
                return Expr(code, kinds)
            case _:
                raise self.refuse(node, f"{type(node).__name__} is not in the kernel language", _LOOK)

    def several(self, node: ast.expr) -> list[Expr] | tuple[str, tuple[Scalar, ...]] | None:
        """Lower what stands for several values: a list of expressions, or code for one tuple. None for a scalar."""
        match node:
            case ast.Tuple(elts=elements):
                return [self.scalar(element) for element in elements]
            case ast.Attribute(value=ast.Name(id=name), attr="shape"):
                axes = range(self.array(node, name).ndim)
                return [Expr(self.arrays.axis_length(name, axis), Scalar.INT) for axis in axes]
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="cuda"), attr="grid" | "gridsize" as attr),
                args=[ast.Constant(value=int() as count)],
            ) if count > 1:
                return [self.grid_value(attr, axis) for axis in range(count)]
            case ast.Call():
                code, kinds = self.call(node)
                return (code, kinds) if isinstance(kinds, tuple) else None
            case _:
                return None

    def array(self, node: ast.AST, name: str) -> ArrayType:
        """The type of an array parameter."""
        kind = self.types.get(name)
        if not isinstance(kind, ArrayType):
            raise self.refuse(node, f"{name} is used as an array and a scalar was passed", "pass a NumPy array")
        return kind

    def indices(self, node: ast.Subscript, name: str, kind: ArrayType) -> list[Expr]:
        """Lower the indices of a subscript."""
        nodes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if len(nodes) != kind.ndim:
            raise self.refuse(
                node, f"{name} has {kind.ndim} axes and is indexed by {len(nodes)}", "give one index for each axis"
            )
        found = [self.scalar(index) for index in nodes]
        for index, expr in zip(nodes, found, strict=True):
            if expr.type.is_float:
                raise self.refuse(index, f"an index of type {expr.type.title}", "convert it: int(...)")
        return found

    def index_axes(self, node: ast.Subscript) -> list[int | None]:
        """For each index, the grid axis whose place it surely is."""
        nodes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return [grid_axis(index, self.grid) for index in nodes]

    def unary(self, op: ast.unaryop, operand: ast.expr) -> Expr:
        """``-``, ``+``, ``~`` and ``not``."""
        if isinstance(op, ast.USub) and isinstance(operand, ast.Constant) and not isinstance(operand.value, bool):
            number = operand.value
            if isinstance(number, float) or (isinstance(number, int) and number <= 2**63):
                return _literal(-number)
        value = self.scalar(operand)
        if isinstance(op, ast.Not):
            return Expr(f"(not {truth(value)})", Scalar.BOOL)
        kind = max(value.type, Scalar.INT)
        code = as_type(value, kind)
        if isinstance(op, ast.UAdd):
            return Expr(code, kind)
        if isinstance(op, ast.Invert):
            if kind.is_float:
                raise self.refuse(operand, f"~ of a {kind.title}", "convert it: int(...)")
            return Expr(f"(~{code})", kind)
        if kind.is_float:
            return Expr(f"(-{code})", kind)
        return Expr(wrapping("-", zero(kind), code, kind), kind)

    def logic(self, conjunction: bool, values: list[ast.expr]) -> Expr:
        """``and`` and ``or``: bools. Operands that cost something are left out once the result is known."""
        total = truth(self.scalar(values[0]))
        for node in values[1:]:
            operand, lines = self.apart(node)
            if not lines and not _calls(node):
                both = f"({total} {'&' if conjunction else '|'} {truth(operand)})"
                total = self.shallow(Expr(both, Scalar.BOOL)).code
                continue
            name = self.temp()
            self.emit(f"{name} = {total}")
            self.emit(f"if {name}:" if conjunction else f"if not {name}:")
            self.lines += lines
            self.lines.append(" " * (self.depth + 1) + f"{name} = {truth(operand)}")
            total = name
        return Expr(total, Scalar.BOOL)

    def choice(self, test: ast.expr, body: ast.expr, orelse: ast.expr) -> Expr:
        """``a if c else b``, in the wider of the two types."""
        condition = truth(self.scalar(test))
        one, one_lines = self.apart(body)
        other, other_lines = self.apart(orelse)
        kind = join(one.type, other.type)
        name = self.temp()
        self.emit(f"if {condition}:")
        self.lines += [*one_lines, " " * (self.depth + 1) + f"{name} = {as_type(one, kind)}"]
        self.emit("else:")
        self.lines += [*other_lines, " " * (self.depth + 1) + f"{name} = {as_type(other, kind)}"]
        return Expr(name, kind)

    def power(self, value: Expr, power: int) -> Expr:
        """``x ** n``: the square of ``x ** (n // 2)``, times x where n is odd."""
        kind = max(value.type, Scalar.INT)
        if power == 0:
            return Expr(as_type(_literal(1), kind), kind)
        base = self.held(Expr(as_type(value, kind), kind))
        result = base
        for bit in bin(power)[3:]:
            half = self.held(result)
            result = Expr(wrapping("*", half.code, half.code, kind), kind)
            if bit == "1":
                result = Expr(wrapping("*", result.code, base.code, kind), kind)
        return result

    def binary(self, node: ast.AST, op: ast.operator, left: Expr, right: Expr) -> Expr:
        """An operator between two numbers."""
        kind = max(left.type, right.type, Scalar.INT)
        if isinstance(op, ast.Pow):
            if not kind.is_float:
                raise self.refuse(
                    node,
                    f"** between integers takes a literal exponent from 0 to {MAX_POWER}",
                    "write float(x) ** n, or a loop",
                )
            return self.function("math", "pow", [left, right])
        symbol = _SYMBOLS[type(op)]
        match op:
            case ast.Add() | ast.Sub() | ast.Mult():
                return Expr(wrapping(symbol, as_type(left, kind), as_type(right, kind), kind), kind)
            case ast.Div():
                kind = max(kind, Scalar.F32)
                return Expr(f"({as_type(left, kind)} / {as_type(right, kind)})", kind)
            case ast.FloorDiv() | ast.Mod():
                helper = "div" if isinstance(op, ast.FloorDiv) else "mod"
                prefix = "f" if kind.is_float else "u" if kind is Scalar.UINT else "i"
                return Expr(f"{prefix}{helper}({as_type(left, kind)}, {as_type(right, kind)})", kind)
            case _:
                pass
        if kind.is_float:
            raise self.refuse(
                node, f"{symbol} between {left.type.title} and {right.type.title}", "convert to int first"
            )
        if isinstance(op, ast.LShift | ast.RShift):
            return self.shift(symbol, left, right)
        if left.type is right.type is Scalar.BOOL:
            kind = Scalar.BOOL
        return Expr(f"({as_type(left, kind)} {symbol} {as_type(right, kind)})", kind)

    def shift(self, symbol: str, left: Expr, right: Expr) -> Expr:
        """A shift. A count below 0 or above 63 shifts all bits out."""
        kind = max(left.type, Scalar.INT)
        code = as_type(left, kind)
        if isinstance(right.literal, int) and 0 <= right.literal < 64:
            count = f"uint64({right.literal})" if kind is Scalar.UINT else str(right.literal)
            if kind is Scalar.INT:
                code = f"int64({code})"  # of two literals Python would make one that is no int64
            return Expr(f"({code} {symbol} {count})", kind)
        prefix = "u" if kind is Scalar.UINT else "i"
        return Expr(f"{prefix}{'shl' if symbol == '<<' else 'shr'}({code}, {as_type(right, Scalar.UINT)})", kind)

    def compare(self, node: ast.Compare) -> Expr:
        """A comparison, chained or not. Each pair is compared in the wider of its two types."""
        if self.arrays.always(node):
            return Expr("True", Scalar.BOOL)
        if self.arrays.never(node):
            return Expr("False", Scalar.BOOL)
        parts: list[str] = []
        left = self.scalar(node.left)
        for place, (op, comparator) in enumerate(zip(node.ops, node.comparators, strict=True)):
            right = self.scalar(comparator)
            if place < len(node.ops) - 1:
                right = self.held(right)
            parts.append(_comparison(_SYMBOLS[type(op)], left, right))
            left = right
        return Expr("(" + " & ".join(parts) + ")", Scalar.BOOL)

    def attribute(self, node: ast.Attribute) -> Expr:
        """``cuda.threadIdx.x``, ``math.inf``, ``x.size``, ``x.ndim``."""
        match node:
            case ast.Attribute(value=ast.Attribute(attr=triple), attr=axis):
                return self.grid_value(triple, AXES.index(axis))
            case ast.Attribute(value=ast.Name(id="math"), attr=name):
                return _literal(float(name))
            case ast.Attribute(value=ast.Name(id=name), attr=attr):
                kind = self.array(node, name)
                if attr == "ndim":
                    return Expr(str(kind.ndim), Scalar.INT, kind.ndim)
                lengths = [self.arrays.axis_length(name, axis) for axis in range(kind.ndim)]
                return Expr("(" + " * ".join(lengths) + ")", Scalar.INT)
            case _:
                raise self.refuse(node, f"the attribute {node.attr}", _LOOK)

    def grid_value(self, what: str, axis: int) -> Expr:
        """A number of the launch; an axis that the launch does not have is 0 for a place and 1 for a size."""
        letter = {"grid": "g", "threadIdx": "t_", "blockIdx": "b_", "blockDim": "d_", "gridDim": "n_"}.get(what, "")
        if axis >= self.dims:
            return _literal(0 if what in ("grid", "threadIdx", "blockIdx") else 1)
        if what == "gridsize":
            return Expr(f"(d_{axis} * n_{axis})", Scalar.INT)
        return Expr(f"{letter}{axis}", Scalar.INT)

    def call(self, node: ast.Call) -> tuple[str, Scalar | tuple[Scalar, ...]]:
        """A call: code and what it gives."""
        match node.func:
            case ast.Attribute(value=ast.Name(id="cuda"), attr=name) if name in BIT_CALLS:
                counted = self.count_bits(name, node.args[0])
                return counted.code, counted.type
            case ast.Attribute(value=ast.Name(id="cuda"), attr=attr):
                found = self.grid_value(attr, 0)
                argument = node.args[0]
                if isinstance(argument, ast.Constant) and argument.value != 1:
                    raise self.refuse(
                        node, f"cuda.{attr}({argument.value!r}) gives several values", "write x, y = cuda.grid(2)"
                    )
                return found.code, found.type
            case ast.Attribute(value=ast.Name(id="random"), attr=name):
                arguments = ", ".join(self.integer(argument) for argument in node.args)
                result: Scalar | tuple[Scalar, ...] = Scalar.F32 if name == "uniform" else (Scalar.INT,) * 4
                return f"{name}({arguments})", result
            case ast.Attribute(value=ast.Name(id="np"), attr=name) if name in CASTS:
                cast = to_dtype(self.scalar(node.args[0]), _DTYPE_OF_CAST[name])
                return cast.code, cast.type
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                value = self.function(module, name, [self.scalar(argument) for argument in node.args])
                return value.code, value.type
            case ast.Name(id="len"):
                name = node.args[0].id if isinstance(node.args[0], ast.Name) else ""
                self.array(node, name)
                return self.arrays.axis_length(name, 0), Scalar.INT
            case ast.Name(id="min" | "max" as name):
                value = self.scalar(node.args[0])
                for argument in node.args[1:]:
                    value = self.extreme(name, value, self.scalar(argument))
                return value.code, value.type
            case ast.Name(id=name) if name in BUILTINS:
                value = self.builtin(name, self.scalar(node.args[0]))
                return value.code, value.type
            case ast.Name(id=name):
                return self.device(name, node)
            case _:
                raise self.refuse(node, "this call", _LOOK)

    def integer(self, node: ast.expr) -> str:
        """Code for an argument that has to be an integer."""
        value = self.scalar(node)
        if value.type.is_float:
            raise self.refuse(node, f"an integer is wanted, not a {value.type.title}", "convert it: int(...)")
        return as_type(value, Scalar.INT)

    def device(self, name: str, node: ast.Call) -> tuple[str, Scalar | tuple[Scalar, ...]]:
        """The call of a device function, compiled for these types of arguments."""
        codes: list[str] = []
        types: list[Type] = []
        for argument in node.args:
            kind = self.types.get(argument.id) if isinstance(argument, ast.Name) else None
            if isinstance(argument, ast.Name) and isinstance(kind, ArrayType):
                codes += self.arrays.passed(argument.id)
                types.append(kind)
            else:
                value = self.scalar(argument)
                codes.append(as_type(value, value.type))
                types.append(value.type)
        target, result = self.arrays.call(name, node, tuple(types))
        return f"{target}({', '.join(codes)})", result

    def count_bits(self, name: str, node: ast.expr) -> Expr:
        """``cuda.popc``, ``clz``, ``ffs`` and ``brev``."""
        value = self.scalar(node)
        if value.type.is_float:
            raise self.refuse(node, f"cuda.{name} of a {value.type.title}", "convert it: np.uint32(...)")
        bits = self.arrays.bits(node)
        if name == "brev":
            bits = max(bits, 32)
        code = as_type(value, Scalar.UINT)
        if bits < 64:
            code = f"({code} & uint64({(1 << bits) - 1}))"
        if name == "brev":
            code = f"brev({code})"
            return Expr(code, Scalar.UINT) if bits == 64 else Expr(f"int64({code} >> uint64(32))", Scalar.INT)
        code = f"{name}({code})"
        return Expr(wrapping("-", code, str(64 - bits), Scalar.INT) if name == "clz" else code, Scalar.INT)

    def extreme(self, name: str, one: Expr, other: Expr) -> Expr:
        """``min`` and ``max`` as Python has them: the second where it is less (greater), else the first."""
        kind = join(one.type, other.type)
        return Expr(f"{name}imum({as_type(one, kind)}, {as_type(other, kind)})", kind)

    def builtin(self, name: str, value: Expr) -> Expr:
        """``int``, ``float``, ``bool``, ``abs`` and ``round``."""
        if name == "bool":
            return Expr(truth(value), Scalar.BOOL)
        if name == "float":
            kind = max(value.type, Scalar.F32)
            return Expr(as_type(value, kind), kind)
        if name == "round" and value.type.is_float:
            value = self.function("np", "rint", [value])
        if name in ("int", "round"):
            kind = Scalar.INT if value.type.is_float else max(value.type, Scalar.INT)
            return Expr(as_type(value, kind), kind)
        kind = max(value.type, Scalar.INT)
        if kind.is_float:
            return Expr(f"fabs({as_type(value, kind)})", kind)
        if kind is Scalar.UINT:
            return value
        return Expr(f"iabs({as_type(value, kind)})", kind)

    def function(self, module: str, name: str, values: list[Expr]) -> Expr:
        """``math`` and ``np`` functions."""
        value = values[0]
        if name in ("minimum", "maximum"):
            kind = join(value.type, values[1].type)
            codes = ", ".join(as_type(argument, kind) for argument in values)
            return Expr(f"{'least' if name == 'minimum' else 'greatest'}({codes})", kind)
        if module == "math" and name in ("floor", "ceil", "trunc") and not value.type.is_float:
            kind = max(value.type, Scalar.INT)
            return Expr(as_type(value, kind), kind)
        kind = max(Scalar.F32, *(argument.type for argument in values))
        code = ", ".join(as_type(argument, kind) for argument in values)
        if name in MATH_FUNCTIONS:
            width = "32" if kind is Scalar.F32 else "64"
            result = Expr(f"{name}{'_' if name[-1].isdigit() else ''}{width}({code})", kind)
            return Expr(as_type(result, Scalar.INT), Scalar.INT) if (module, name) == ("math", "trunc") else result
        if name in ("sqrt", "fabs"):
            return Expr(f"{name}({code})", kind)
        if name in ("floor", "ceil"):
            rounded = Expr(f"{name}({code})", kind)
            return Expr(as_type(rounded, Scalar.INT), Scalar.INT) if module == "math" else rounded
        known = self.held(Expr(code, kind)).code
        if name == "isnan":
            return Expr(f"({known} != {known})", Scalar.BOOL)
        finite = f"(({known} - {known}) == {zero(kind)})"  # 0 for finite, NaN for the others
        if name == "isfinite":
            return Expr(finite, Scalar.BOOL)
        return Expr(f"((not {finite}) & ({known} == {known}))", Scalar.BOOL)


def _calls(node: ast.expr) -> bool:
    """Whether a device function, a mathematical one or a random number is in it: what is worth leaving out."""
    for inner in ast.walk(node):
        match inner:
            case ast.Call(func=ast.Name(id=name)) if name not in BUILTINS:
                return True
            case ast.Call(func=ast.Attribute(attr=name)) if name in RANDOM_CALLS or name in MATH_FUNCTIONS:
                return True
            case ast.BinOp(op=ast.Pow(), right=right) if not isinstance(right, ast.Constant):
                return True
            case _:
                pass
    return False


def widen(code: str, dtype: str) -> Expr:
    """An element of `dtype` as a value of the language."""
    kind = from_dtype(dtype)
    return Expr(f"int64({code})" if kind is Scalar.INT and dtype != "int64" else code, kind)


def _literal(value: object) -> Expr:
    if isinstance(value, bool):
        return Expr(str(value), Scalar.BOOL)
    if isinstance(value, int):
        if value >= 2**63:
            return Expr(f"uint64({value})", Scalar.UINT, value)
        return Expr(f"({value})" if value < 0 else str(value), Scalar.INT, value)
    assert isinstance(value, float)
    return Expr(as_type(Expr("", Scalar.F32, value), Scalar.F32), Scalar.F32, value)


def _comparison(symbol: str, left: Expr, right: Expr) -> str:
    kind = max(left.type, right.type, Scalar.INT)
    if {left.type, right.type} == {Scalar.INT, Scalar.UINT}:  # by value: -1 is less than any uint64
        if left.type is Scalar.INT:
            return f"(compare_iu({left.code}, {right.code}) {symbol} 0)"
        return f"(0 {symbol} compare_iu({right.code}, {left.code}))"
    return f"({as_type(left, kind)} {symbol} {as_type(right, kind)})"
