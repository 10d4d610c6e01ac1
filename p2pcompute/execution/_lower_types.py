"""The five scalar types of the language and how a value of one becomes a value of another.

Types form a chain, bool < int64 < uint64 < float32 < float64, and where two meet the wider one stands. The code that
comes out says every conversion, so that no result depends on the typing rules of the compiler behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

__all__ = [
    "ArrayType",
    "Expr",
    "Scalar",
    "Type",
    "as_type",
    "from_dtype",
    "join",
    "store_code",
    "to_dtype",
    "truth",
    "wrapping",
    "zero",
]


class Scalar(IntEnum):
    """A scalar type; the order is the chain's."""

    BOOL = 0
    INT = 1
    UINT = 2
    F32 = 3
    F64 = 4

    @property
    def is_float(self) -> bool:
        """Whether it is float32 or float64."""
        return self >= Scalar.F32

    @property
    def title(self) -> str:
        """The name in messages."""
        return ("bool", "int64", "uint64", "float32", "float64")[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayType:
    """An array. One that the kernel declares has a `kind` (shared, local or const) and a `shape`, a constant one its
    `name`: code of device functions that it is passed to is its own."""

    dtype: str
    ndim: int
    kind: str = ""
    shape: tuple[int, ...] = ()
    name: str = ""


Type: TypeAlias = Scalar | tuple[Scalar, ...] | ArrayType


@dataclass(frozen=True, slots=True)
class Expr:
    """Code for a scalar, its type and, for a literal, its value: a literal takes the type that it is asked for."""

    code: str
    type: Scalar
    literal: int | float | None = None


_NARROW_INTS: Final = frozenset({"int8", "int16", "int32", "uint8", "uint16", "uint32"})


def from_dtype(dtype: str) -> Scalar:
    """The type of an element once it is loaded."""
    match dtype:
        case "bool":
            return Scalar.BOOL
        case "uint64":
            return Scalar.UINT
        case "float32":
            return Scalar.F32
        case "float64":
            return Scalar.F64
        case _:
            return Scalar.INT


def join(one: Scalar, other: Scalar) -> Scalar:
    """The wider of two types."""
    return max(one, other)


def zero(kind: Scalar) -> str:
    """Code for the zero of a type."""
    return ("False", "0", "uint64(0)", "float32(0.0)", "0.0")[kind]


def wrapping(symbol: str, one: str, other: str, kind: Scalar) -> str:
    """Code for ``+``, ``-`` or ``*`` between two values of `kind`. Of int64 it is done in uint64, where it wraps:
    numba tells LLVM that signed arithmetic never overflows, so what is computed from a sum that did would be anything.
    """
    if kind is Scalar.INT:
        return f"int64(uint64({one}) {symbol} uint64({other}))"
    return f"({one} {symbol} {other})"


def _float(value: float, kind: Scalar) -> str:
    if value != value:
        return "NAN32" if kind is Scalar.F32 else "NAN64"
    if value in (float("inf"), float("-inf")):
        name = "INF32" if kind is Scalar.F32 else "INF64"
        return name if value > 0 else f"(-{name})"
    return f"float32({value!r})" if kind is Scalar.F32 else f"({value!r})"


def as_type(value: Expr, kind: Scalar) -> str:
    """Code for `value` as `kind`. Narrowing from float to integer truncates, saturates and gives 0 for a NaN."""
    have = value.type
    if isinstance(value.literal, float) and kind.is_float:
        return _float(value.literal, kind)
    if have is kind:
        return value.code
    match kind:
        case Scalar.BOOL:
            return truth(value)
        case Scalar.INT:
            return f"to_int64({value.code})" if have.is_float else f"int64({value.code})"
        case Scalar.UINT:
            if have.is_float:
                return f"to_uint64({value.code})"
            return f"uint64({value.code})" if have is Scalar.INT else f"uint64(int64({value.code}))"
        case Scalar.F32 | Scalar.F64:
            code = f"int64({value.code})" if have is Scalar.BOOL else value.code
            return f"{'float32' if kind is Scalar.F32 else 'float64'}({code})"


def truth(value: Expr) -> str:
    """Code for ``bool(value)``: not equal to zero, so a NaN is true."""
    if value.type is Scalar.BOOL:
        return value.code
    return f"({value.code} != {zero(value.type)})"


def to_dtype(value: Expr, dtype: str) -> Expr:
    """`value` as the language's type with the range of `dtype`: integers wrap, floats saturate."""
    kind = from_dtype(dtype)
    if dtype in _NARROW_INTS:
        if value.type.is_float:
            return Expr(f"to_{dtype}({value.code})", Scalar.INT)
        return Expr(f"int64({dtype}({as_type(value, Scalar.INT)}))", Scalar.INT)
    return Expr(as_type(value, kind), kind)


def store_code(value: Expr, dtype: str) -> str:
    """Code for `value` as an element of an array of `dtype`; a NaN becomes the one NaN of the language."""
    stored = to_dtype(value, dtype)
    match dtype:
        case "float32":
            return f"nan32({stored.code})"
        case "float64":
            return f"nan64({stored.code})"
        case "bool":
            return stored.code
        case _:
            return f"{dtype}({stored.code})"
