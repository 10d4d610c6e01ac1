"""What the kernel language holds: its version, its bounds and its names. docs/strict.md says what they mean.

Both sides read this: the requester when it normalises a function, the provider when it admits the text.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ARITHMETIC",
    "AXES",
    "BUILTINS",
    "CASTS",
    "CUDA_CALLS",
    "CUDA_DIMS",
    "CUDA_TRIPLES",
    "DTYPES",
    "LANGUAGE_VERSION",
    "MATH_CALLS",
    "MATH_CONSTANTS",
    "MAX_ARRAY_AXES",
    "MAX_EXPANDED_NODES",
    "MAX_FUNCTIONS",
    "MAX_INSTANCES",
    "MAX_LOCALS",
    "MAX_NAME_LENGTH",
    "MAX_NESTING",
    "MAX_NODES",
    "MAX_PARAMS",
    "MAX_POWER",
    "MAX_SOURCE_BYTES",
    "MAX_TREE_DEPTH",
    "MAX_TUPLE",
    "NUMPY_CALLS",
    "RANDOM_CALLS",
    "RESERVED",
]

LANGUAGE_VERSION: Final = "strict-1"

MAX_SOURCE_BYTES: Final = 65_536
MAX_NODES: Final = 5_000  # statements and expressions
MAX_NESTING: Final = 32  # blocks in blocks and brackets in brackets, together
MAX_TREE_DEPTH: Final = 128  # any chain: the terms of one sum, the arms of one elif ladder
MAX_FUNCTIONS: Final = 32
MAX_PARAMS: Final = 32
MAX_LOCALS: Final = 256
MAX_NAME_LENGTH: Final = 64
MAX_TUPLE: Final = 32
MAX_ARRAY_AXES: Final = 4
MAX_POWER: Final = 64
MAX_EXPANDED_NODES: Final = 100_000  # with every call replaced by the function's body, as an inliner would
MAX_INSTANCES: Final = 64  # functions after one copy is made for each combination of argument types

DTYPES: Final = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
)

AXES: Final = ("x", "y", "z")
CUDA_TRIPLES: Final = frozenset({"threadIdx", "blockIdx", "blockDim", "gridDim"})
CUDA_DIMS: Final = frozenset({"grid", "gridsize"})
CUDA_CALLS: Final = CUDA_DIMS | CUDA_TRIPLES

# name -> number of arguments
MATH_CALLS: Final = {
    "sqrt": 1,
    "floor": 1,
    "ceil": 1,
    "fabs": 1,
    "isnan": 1,
    "isinf": 1,
    "isfinite": 1,
}
MATH_CONSTANTS: Final = frozenset({"inf", "nan"})
CASTS: Final = frozenset(DTYPES) - {"bool"} | {"bool_"}
NUMPY_CALLS: Final = CASTS | {"sqrt", "floor", "ceil", "fabs"}
RANDOM_CALLS: Final = {"philox": 6, "uniform": 3}
BUILTINS: Final = frozenset({"int", "float", "bool", "min", "max", "abs", "len", "range"})

RESERVED: Final = BUILTINS | {"cuda", "math", "np", "random"}

ARITHMETIC: Final = "+ - * / // % ** & | ^ << >>"
