"""Arrays that a kernel makes itself: shared by a block, private to a thread, or constant.

They are declared at the top level of the kernel, with a shape and a dtype that stand in the text, so that what they
take is known before anything runs. A constant array's content stands in the text too: it is part of the digest.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2pcompute.errors import KernelError
from p2pcompute.execution import _language as lang
from p2pcompute.execution._tree import walk

__all__ = ["ITEM_BYTES", "Scratch", "is_atomic", "memory_call", "scratch_arrays"]

ITEM_BYTES: Final[Mapping[str, int]] = {
    "bool": 1,
    **{f"{kind}int{bits}": bits // 8 for kind in ("", "u") for bits in (8, 16, 32, 64)},
    "float32": 4,
    "float64": 8,
}
_SPELLING: Final = {
    "shared": "cuda.shared.array((16, 16), np.float32)",
    "local": "cuda.local.array(8, np.float32)",
    "const": "cuda.const.array_like(TABLE) of a global NumPy array",
}
_MOST: Final = 1 << 40
Refuse: TypeAlias = Callable[[ast.AST, str, str], KernelError]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """An array that the kernel declares. `kind` is shared, local or const; `values` is a constant one's content, in
    C order, and empty for the others."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    values: tuple[int | float, ...]
    line: int

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes: of a block for a shared array, of a thread for a local one."""
        return self.size * ITEM_BYTES[self.dtype]


def memory_call(node: ast.AST) -> str:
    """shared, local or const if `node` is a call under ``cuda.`` of that name, else nothing."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr=kind))):
            return kind if kind in lang.CUDA_MEMORY else ""
        case _:
            return ""


def is_atomic(node: ast.AST) -> bool:
    """Whether `node` is a call under ``cuda.atomic``."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr="atomic"))):
            return True
        case _:
            return False


def scratch_arrays(kernel: ast.FunctionDef, refuse: Refuse) -> dict[str, Scratch]:
    """What the kernel declares, by name.

    Raises:
        KernelError: a declaration is not of the one form, or there is more than a block, a thread or the text holds.
    """
    found: dict[str, Scratch] = {}
    for statement in kernel.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name) as target], value=ast.Call() as call) if memory_call(call):
                if name in found or any(argument.arg == name for argument in kernel.args.args):
                    raise refuse(target, f"{name} is an array already", "give each array a name of its own")
                found[name] = _declared(name, call, refuse)
            case _:
                pass
    _check_sizes(kernel, found, refuse)
    seen: set[str] = set()
    for statement in kernel.body if found else ():
        for node in walk(statement):
            if isinstance(node, ast.Name):
                if node.id in found and node.id not in seen and not _declares(statement, node.id):
                    raise refuse(node, f"{node.id} is used before it is declared", "declare arrays at the top")
                if isinstance(node.ctx, ast.Store):
                    seen.add(node.id)
    return found


def _declares(statement: ast.stmt, name: str) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Name(id=target)], value=value):
            return target == name and bool(memory_call(value))
        case _:
            return False


def _check_sizes(kernel: ast.FunctionDef, found: Mapping[str, Scratch], refuse: Refuse) -> None:
    for kind, most, whose in (
        ("shared", lang.MAX_SHARED_BYTES, "a block's shared arrays"),
        ("local", lang.MAX_LOCAL_BYTES, "a thread's local arrays"),
    ):
        taken = sum(array.nbytes for array in found.values() if array.kind == kind)
        if taken > most:
            last = max((array for array in found.values() if array.kind == kind), key=lambda array: array.line)
            raise refuse(
                next(node for node in kernel.body if getattr(node, "lineno", 0) == last.line),
                f"{whose} take {taken} bytes, more than {most}",
                "make them smaller",
            )
    elements = sum(array.size for array in found.values() if array.kind == "const")
    if elements > lang.MAX_CONST_ELEMENTS:
        raise refuse(
            kernel,
            f"constant arrays of {elements} elements, more than {lang.MAX_CONST_ELEMENTS}",
            "pass the array as an argument",
        )


def _declared(name: str, call: ast.Call, refuse: Refuse) -> Scratch:
    kind = memory_call(call)
    wanted = ("array", 3) if kind == "const" else ("array", 2)
    attr = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if attr != wanted[0] or len(call.args) != wanted[1] or call.keywords:
        raise refuse(call, f"cuda.{kind}.{attr} as it stands here is not in the kernel language", _write(kind))
    shape = _shape(call.args[0], kind, refuse)
    match call.args[1]:
        case ast.Attribute(value=ast.Name(id="np"), attr=spelled) if spelled in lang.CASTS:
            dtype = "bool" if spelled == "bool_" else spelled
        case _:
            raise refuse(call.args[1], "the dtype of an array is a name that stands in the text", _write(kind))
    values: tuple[int | float, ...] = ()
    size = math.prod(shape)
    if kind == "const":
        if size > lang.MAX_CONST_ELEMENTS:
            raise refuse(
                call,
                f"a constant array of {size} elements, more than {lang.MAX_CONST_ELEMENTS}",
                "pass the array as an argument",
            )
        elements = call.args[2]
        if not isinstance(elements, ast.Tuple) or len(elements.elts) != size:
            raise refuse(elements, f"a constant array of {size} elements has as many values", _write(kind))
        values = tuple(_value(element, dtype, refuse) for element in elements.elts)
    return Scratch(name=name, kind=kind, dtype=dtype, shape=shape, values=values, line=call.lineno)


def _write(kind: str) -> str:
    return f"write, at the top of the kernel, name = {_SPELLING[kind]}"


def _shape(node: ast.expr, kind: str, refuse: Refuse) -> tuple[int, ...]:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    shape: list[int] = []
    for part in parts:
        length = _integer(part)
        if length is None:
            raise refuse(
                part,
                "the shape of an array is numbers that stand in the text",
                "use literals and globals: a thread's arrays have one size in every launch",
            )
        if not 1 <= length <= _MOST:
            raise refuse(part, f"an array of length {length}", _write(kind))
        shape.append(length)
    if not 1 <= len(shape) <= lang.MAX_ARRAY_AXES:
        raise refuse(node, f"arrays have 1 to {lang.MAX_ARRAY_AXES} axes", _write(kind))
    return tuple(shape)


def _integer(node: ast.expr) -> int | None:
    """A literal integer, or + - * // of such: ``TILE + 2 * RADIUS`` once its globals stand as numbers."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() as value):
            return value if value <= _MOST else None
        case ast.BinOp(left=left, op=op, right=right):
            one, other = _integer(left), _integer(right)
            if one is None or other is None:
                return None
            match op:
                case ast.Add():
                    value = one + other
                case ast.Sub():
                    value = one - other
                case ast.Mult():
                    value = one * other
                case ast.FloorDiv() if other:
                    value = one // other
                case _:
                    return None
            return value if abs(value) <= _MOST else None
        case _:
            return None


def _value(node: ast.expr, dtype: str, refuse: Refuse) -> int | float:
    sign, inner = (-1, node.operand) if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else (1, node)
    match inner:
        case ast.Attribute(value=ast.Name(id="math"), attr="inf" | "nan" as name) if dtype.startswith("float"):
            return sign * float(name)
        case ast.Constant(value=float() as number) if dtype.startswith("float"):
            return sign * number
        case ast.Constant(value=bool() as flag) if dtype == "bool" and sign == 1:
            return int(flag)
        case ast.Constant(value=int() as number) if not isinstance(number, bool) and "int" in dtype:
            value = sign * number
            bits = 8 * ITEM_BYTES[dtype]
            low, high = (0, 1 << bits) if dtype[0] == "u" else (-1 << (bits - 1), 1 << (bits - 1))
            if low <= value < high:
                return value
        case _:
            pass
    raise refuse(node, f"no value of a constant array of dtype {dtype}", _write("const"))
