"""What the kernel language holds: its version, its bounds and its names. docs/strict.md says what they mean.

Both sides read this: the requester when it normalises a function, the provider when it admits the text.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ARITHMETIC",
    "ATOMICS",
    "ATOMIC_DTYPES",
    "ATOMIC_REDUCED",
    "AXES",
    "BIT_CALLS",
    "BUILTINS",
    "CASTS",
    "CUDA_CALLS",
    "CUDA_DIMS",
    "CUDA_MEMORY",
    "CUDA_TRIPLES",
    "DTYPES",
    "LANGUAGE_VERSION",
    "MATH_CALLS",
    "MATH_CONSTANTS",
    "MATH_FUNCTIONS",
    "MAX_ARRAY_AXES",
    "MAX_BARRIERS",
    "MAX_BLOCKS",
    "MAX_CONST_ELEMENTS",
    "MAX_EXPANDED_NODES",
    "MAX_FUNCTIONS",
    "MAX_INSTANCES",
    "MAX_LOCALS",
    "MAX_LOCAL_BYTES",
    "MAX_LOOPS",
    "MAX_NAME_LENGTH",
    "MAX_NESTING",
    "MAX_NODES",
    "MAX_PARAMS",
    "MAX_POWER",
    "MAX_SHARED_BYTES",
    "MAX_SOURCE_BYTES",
    "MAX_TREE_DEPTH",
    "MAX_TUPLE",
    "MAX_TYPED_NODES",
    "NUMPY_CALLS",
    "NUMPY_SPELLINGS",
    "RANDOM_CALLS",
    "RESERVED",
]

LANGUAGE_VERSION: Final = "strict-3"

MAX_SOURCE_BYTES: Final = 65_536
MAX_NODES: Final = 5_000  # statements and expressions
MAX_LOOPS: Final = 16  # loops in loops
MAX_BLOCKS: Final = 64  # blocks in blocks, each arm of an elif ladder one
MAX_NESTING: Final = 32  # blocks in blocks and brackets in brackets, together
MAX_TREE_DEPTH: Final = 128  # any chain: the terms of one sum
MAX_FUNCTIONS: Final = 32
MAX_PARAMS: Final = 32
MAX_LOCALS: Final = 256
MAX_NAME_LENGTH: Final = 64
MAX_TUPLE: Final = 32
MAX_ARRAY_AXES: Final = 4
MAX_POWER: Final = 64
MAX_EXPANDED_NODES: Final = 100_000  # with every call replaced by the function's body, as an inliner would
MAX_SHARED_BYTES: Final = 48 << 10  # a block; what every CUDA device has
MAX_LOCAL_BYTES: Final = 4 << 10  # a thread
MAX_CONST_ELEMENTS: Final = 1024  # of all constant arrays of a kernel
MAX_BARRIERS: Final = 64  # places in the text
MAX_TYPED_NODES: Final = 250_000  # statements and expressions that typing goes over, each as often as it does
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
CUDA_MEMORY: Final = frozenset({"shared", "local", "const"})
BIT_CALLS: Final = ("popc", "clz", "ffs", "brev")  # of one integer, in as many bits as its width
CUDA_CALLS: Final = CUDA_DIMS | CUDA_TRIPLES | CUDA_MEMORY | {"atomic", "syncthreads", "selp", *BIT_CALLS}

ATOMICS: Final = {"add": "+", "max": "max", "min": "min", "and_": "&", "or_": "|", "xor": "^"}
ATOMIC_REDUCED: Final = {"add": "sum", "max": "max", "min": "min", "and_": "and", "or_": "or", "xor": "xor"}
ATOMIC_DTYPES: Final = ("int32", "uint32", "int64", "uint64")  # what CUDA has atomics for

# name -> number of arguments
MATH_CALLS: Final = {
    "sqrt": 1,
    "floor": 1,
    "ceil": 1,
    "fabs": 1,
    "isnan": 1,
    "isinf": 1,
    "isfinite": 1,
    "trunc": 1,
    "exp": 1,
    "exp2": 1,
    "expm1": 1,
    "log": 1,
    "log2": 1,
    "log10": 1,
    "log1p": 1,
    "sin": 1,
    "cos": 1,
    "tan": 1,
    "asin": 1,
    "acos": 1,
    "atan": 1,
    "atan2": 2,
    "sinh": 1,
    "cosh": 1,
    "tanh": 1,
    "erf": 1,
    "erfc": 1,
    "pow": 2,
    "hypot": 2,
    "cbrt": 1,
    "fmod": 2,
    "copysign": 2,
}
MATH_CONSTANTS: Final = frozenset({"inf", "nan"})
CASTS: Final = frozenset(DTYPES) - {"bool"} | {"bool_"}
# name -> number of arguments, beside the conversions
NUMPY_CALLS: Final = {"sqrt": 1, "floor": 1, "ceil": 1, "fabs": 1, "trunc": 1, "rint": 1, "minimum": 2, "maximum": 2}
# What NumPy has under another name or under the same one: normalised source says math.
NUMPY_SPELLINGS: Final = {
    "exp": "exp",
    "exp2": "exp2",
    "expm1": "expm1",
    "log": "log",
    "log2": "log2",
    "log10": "log10",
    "log1p": "log1p",
    "sin": "sin",
    "cos": "cos",
    "tan": "tan",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arctan2": "atan2",
    "sinh": "sinh",
    "cosh": "cosh",
    "tanh": "tanh",
    "power": "pow",
    "hypot": "hypot",
    "cbrt": "cbrt",
    "fmod": "fmod",
    "copysign": "copysign",
    "isnan": "isnan",
    "isinf": "isinf",
    "isfinite": "isfinite",
}
# Those with a definition for each float type in _strict_math; the rest of the calls are single operations.
MATH_FUNCTIONS: Final = frozenset(MATH_CALLS) - {"sqrt", "floor", "ceil", "fabs", "isnan", "isinf", "isfinite"} | {
    "rint"
}
RANDOM_CALLS: Final = {"philox": 6, "uniform": 3}
BUILTINS: Final = frozenset({"int", "float", "bool", "min", "max", "abs", "round", "len", "range"})

RESERVED: Final = BUILTINS | {"cuda", "math", "np", "random"}

ARITHMETIC: Final = "+ - * / // % ** & | ^ << >>"
