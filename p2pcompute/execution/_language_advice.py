"""What to write instead of names that Python, NumPy, numba and CUDA have and the kernel language has not."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from p2pcompute.execution._language import ATOMIC_REDUCED, ATOMICS, MATH_CALLS, MAX_CONST_ELEMENTS

__all__ = [
    "BEYOND_THE_BLOCK", "IN_THE_KERNEL", "NO_ARRAY", "in_place", "instead_of", "missing", "no_numbers",
    "of_a_fraction", "of_atomic", "of_cuda",
    "of_floats", "to_a_global", "why",
]  # fmt: skip

IN_THE_KERNEL: Final = (
    "write it in the kernel's own text: there it is known which array it changes; a device function returns the index "
    "or the value for it"
)
NO_ARRAY: Final = "only parameters and declared arrays can be indexed; hold parts in scalars"

BEYOND_THE_BLOCK: Final = "blocks do not wait for each other: start another kernel on what this one gives"

_LONGEST: Final = 100  # of a line that is shown: a message is for people, and a stranger's source may be long

_OF_CUDA = (
    "of cuda there are grid, gridsize, threadIdx, blockIdx, blockDim, gridDim, shared, local, const, syncthreads, "
    "atomic, popc, clz, ffs, brev and selp"
)
_OF_RANDOM = "use p2pcompute.random.uniform(seed, thread, k) for a thread's number k"
_WARP = {
    "laneid", "warpsize", "syncwarp", "activemask", "lanemask_lt", "shfl_sync", "shfl_up_sync", "shfl_down_sync",
    "shfl_xor_sync", "all_sync", "any_sync", "eq_sync", "ballot_sync", "match_any_sync", "match_all_sync",
    "vote_sync_intrinsic", "reduce_add_sync",
}  # fmt: skip
_INSTEAD_OF_CUDA = (
    (_WARP, "pass values through a cuda.shared.array, with cuda.syncthreads() between: warps differ by device"),
    ({"fma"}, "write a * b + c: each is rounded by itself, on every machine"),
    (
        {"syncthreads_count", "syncthreads_and", "syncthreads_or"},
        "count in a cuda.shared.array with cuda.atomic.add, and read it behind cuda.syncthreads()",
    ),
    (
        {"threadfence", "threadfence_block", "threadfence_system", "cg", "this_grid"},
        BEYOND_THE_BLOCK,
    ),
    ({"to_device", "device_array", "device_array_like", "mapped_array", "pinned_array"}, "pass NumPy arrays to run"),
    ({"nanosleep", "clock", "clock64", "globaltimer"}, "nothing in a kernel depends on time"),
    ({"random"}, _OF_RANDOM),
    ({"rsqrt"}, "write 1 / math.sqrt(a)"),
    ({"libdevice"}, "use the functions of math: they have one definition on every machine"),
    ({"fp16"}, "use float32"),
    ({"declare_device", "CUSource", "LTOIR", "PTXSource"}, "write a @p2pcompute.device function"),
)
# Neither loses what is small to a 1, nor squares what is large.
_ASINH = (
    "write math.copysign(math.log1p(abs(a) + abs(a) * (abs(a) / (1 + math.hypot(a, 1)))), a): "
    "right for abs(a) below half of the greatest float"
)
_ACOSH = "write math.log1p(a - 1 + math.sqrt(a - 1) * math.sqrt(a + 1)): right for a below half of the greatest float"
_INSTEAD_OF = (
    ({"complex", "complex64", "complex128"}, "hold the real and the imaginary part in two variables"),
    ({"print"}, "store what you want to see into an output"),
    ({"sum", "any", "all", "sorted", "enumerate", "zip", "reversed", "map"}, "write a for loop over range()"),
    ({"float16", "half"}, "use float32"),
    ({"clip"}, "write min(max(a, low), high)"),
    ({"where"}, "write a if c else b"),
    ({"sign"}, "write (a > 0) - (a < 0): 0 for a NaN"),
    ({"square"}, "write a * a"),
    ({"divmod"}, "write a // b and a % b"),
    ({"radians", "deg2rad"}, "write a * 0.017453292519943295"),  # pi / 180 beside no variable is a float32
    ({"degrees", "rad2deg"}, "write a * 57.29577951308232"),
    ({"logical_and", "logical_or", "logical_not"}, "write and, or, not"),
    ({"dot", "matmul", "inner", "vdot"}, "write a for loop over the products"),
    ({"mean", "average", "prod", "cumsum", "argmax", "argmin", "count_nonzero"}, "write a for loop over range()"),
    ({"zeros", "empty", "ones", "full", "array", "arange"}, "declare name = cuda.local.array(8, np.float32)"),
    ({"asinh", "arcsinh"}, _ASINH),
    ({"acosh", "arccosh"}, _ACOSH),
    ({"atanh", "arctanh"}, "write 0.5 * (math.log1p(a) - math.log1p(-a))"),
    (
        {"ldexp"},  # of an integer exp2 is a float32; in one step its range ends before that of the result
        "write a * math.exp2(np.float64(n // 2)) * math.exp2(np.float64(n - n // 2)): n from -2046 to 2046",
    ),
    ({"fma"}, "write a * b + c: each is rounded by itself, on every machine"),
)


def in_place(function: ast.FunctionDef, name: str) -> tuple[int, str]:
    """The line in which a kernel first stores into its input `name`, 0 where none is found, and what to write."""
    lines = [
        node.lineno
        for node in ast.walk(function)
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    ]
    return min(lines, default=0), (
        f"pass p2pcompute.inout({name}): the changed array comes back, and {name} itself stays as it is; or "
        "p2pcompute.out(shape, dtype) for what is only stored"
    )


def to_a_global(operation: str, call: ast.Call) -> str:
    """What to write instead of an atomic operation with three arguments on what is no shared array, in a text that was
    not rewritten (`_language_atomics`)."""
    return _of_each(ATOMIC_REDUCED[operation], call) or (
        "collect in a cuda.shared.array, and store its elements into an output by blocks behind a barrier; blocks are "
        "added up behind the call, or with p2pcompute.reduce(op, shape, dtype) in place of p2pcompute.out"
    )


def of_atomic(name: str, call: ast.Call) -> str:
    """What to write instead of an atomic operation that numba has and the language has not."""
    if name == "sub" and len(call.args) == 3:
        array, index, value = map(ast.unparse, (*call.args[:2], ast.UnaryOp(ast.USub(), call.args[2])))
        if max(map(len, (array, index, value))) <= _LONGEST:
            return f"write cuda.atomic.add({array}, {index}, {value})"
    if name in ("cas", "compare_and_swap", "exch"):
        return (
            "no thread waits for another or sees whose turn it was: combine values with cuda.atomic.add, max, min, "
            "and_, or_ or xor"
        )
    if name in ("nanmax", "nanmin"):
        return f"write cuda.atomic.{name[3:]}(array, index, value): it takes integers, which are no NaN"
    return f"write cuda.atomic.add(array, index, value); there are {', '.join(ATOMICS)}"


def of_a_fraction(value: ast.expr) -> str:
    """What to write instead of a float as the value of an atomic operation on integers."""
    if len(ast.unparse(value)) > _LONGEST:
        value = ast.Name("value")
    scaled = ast.unparse(ast.BinOp(value, ast.Mult(), ast.Constant(65536)))
    return (
        f"write int({ast.unparse(value)}), which drops the fraction; for a fixed point int({scaled}), divided by "
        "65536 behind the call"
    )


def of_floats(operation: str, call: ast.Call) -> str:
    """What to write instead of an atomic operation on an array of floats; `operation` as `p2pcompute.reduce` names
    it."""
    array, index, value = map(ast.unparse, call.args)
    integers = f'p2pcompute.reduce("{operation}", shape, np.int64) for {array}'
    if isinstance(call.args[2], ast.Constant) and isinstance(call.args[2].value, int):
        return f"count in integers: pass {integers}"
    if operation == "sum" and max(map(len, (array, index, value))) <= _LONGEST and not _of_each(operation, call):
        scaled = ast.unparse(ast.BinOp(call.args[2], ast.Mult(), ast.Constant(65536)))
        return (
            f"add integers of a fixed point, cuda.atomic.add({array}, {index}, int({scaled})), with {integers}, and "
            "divide by 65536 behind the call"
        )
    return _of_each(operation, call) or (
        f"change integers, with {integers}; or store each thread's value into its own row of an output, and pass "
        f'p2pcompute.reduce("{operation}", shape, dtype) for it'
    )


def _of_each(reduce: str, call: ast.Call) -> str:
    """Where all threads change one element: each one's value by itself."""
    array, index, value = map(ast.unparse, call.args)
    if max(map(len, (array, index, value))) > _LONGEST or not isinstance(call.args[0], ast.Name):
        return ""
    if not isinstance(call.args[1], ast.Constant):
        return ""
    return (
        f"store each thread's value by itself, {array}[i] = {value} with i = cuda.grid(1), and pass "
        f'p2pcompute.reduce("{reduce}", n, dtype) for {array}, n being how many values there are: threads behind them '
        "store nothing, and values are combined in a fixed order"
    )


def of_cuda(name: str, otherwise: str = _OF_CUDA) -> str:
    """What to write instead of a name of the module cuda; `otherwise` where nothing is known of that name."""
    if name in MATH_CALLS:
        return f"write math.{name}({'a, b' if MATH_CALLS[name] == 2 else 'a'})"
    return next((remedy for names, remedy in _INSTEAD_OF_CUDA if name in names), otherwise)


def instead_of(name: str) -> str:
    """What to write instead of a function or type of Python, NumPy or math; nothing where nothing is known of it."""
    if name.startswith("xoroshiro128p"):
        return _OF_RANDOM
    return next((remedy for names, remedy in _INSTEAD_OF if name in names), "")


def why(spelled: str, value: Any) -> tuple[str, str]:
    """Why what a name from outside means is not taken, and what to write instead."""
    if isinstance(value, np.ndarray) and not value.ndim:
        return f"{spelled} is an array without an axis", "name a number: np.float32(1) in place of np.array(1)"
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
        return f"{spelled} is a {type(value).__name__}", "name a plain array: np.array(a)"
    if isinstance(value, np.ndarray):
        return (
            f"{spelled} is an array from outside the kernel of {value.size} elements",
            f"pass it as an argument: constant arrays have 1 to {MAX_CONST_ELEMENTS} elements",
        )
    if isinstance(value, types.FunctionType) and not getattr(value, "__name__", "").startswith("xoroshiro128p"):
        return f"{spelled} is not a device function", "decorate it with @p2pcompute.device"
    if isinstance(value, str | bytes):
        return f"{spelled} is text", "kernels hold numbers only"
    name = getattr(value, "__name__", None) or getattr(value, "name", "")
    if isinstance(name, str) and name.startswith("xoroshiro128p"):
        return f"{spelled} keeps a state", _OF_RANDOM
    if isinstance(name, str) and (remedy := instead_of(name)):
        return f"{spelled} is not in the kernel language", remedy
    if isinstance(value, list | tuple | dict | set):
        return f"{spelled} is a {type(value).__name__}", "pass an array, or name each number by itself"
    if isinstance(value, type) and issubclass(value, BaseException):
        return f"{spelled} is not in the kernel language", "nothing in a kernel raises; store a flag in an output"
    if value is None:
        return f"{spelled} is None", "kernels hold numbers only"
    return (
        f"{spelled} is not in the kernel language",
        "use arithmetic, the functions of math, p2pcompute.random or a @p2pcompute.device function",
    )


def missing(spelled: str) -> str:
    """What to write where a module has no such name, but newer ones or NumPy's older ones had."""
    return instead_of(spelled.rpartition(".")[2]) or "look its name up in docs/strict.md"


def no_numbers(nodes: Iterable[ast.AST], name: str) -> Iterator[ast.expr]:
    """What `name` is assigned among `nodes` that may be no value of the language: a constant, a list and its like."""
    kinds = ast.Constant | ast.List | ast.Set | ast.Dict | ast.ListComp
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, kinds):
            yield from (node.value for to in node.targets if isinstance(to, ast.Name) and to.id == name)
