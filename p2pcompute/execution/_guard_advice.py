"""What the guard says of what a text must not hold, and what to write instead.

The same advice as at the decorator (`_language_advice`), for a text that never was at one. Nothing here runs for a
kernel that is admitted, and nothing is looked up in a module: names come from strangers.
"""

from __future__ import annotations

import ast
from collections.abc import Container, Mapping
from typing import Final

from p2pcompute.execution import _language as lang
from p2pcompute.execution._language_advice import BEYOND_THE_BLOCK, instead_of, of_cuda

__all__ = ["of_a_call", "of_an_attribute", "of_another_count", "of_node", "of_value"]

_REMEDY: Final = {
    "Import": "import at the top of the file; a kernel takes cuda, math, np and p2pcompute.random",
    "ImportFrom": "import at the top of the file; a kernel takes cuda, math, np and p2pcompute.random",
    "Lambda": "write a @p2pcompute.device function",
    "FunctionDef": "write a @p2pcompute.device function outside the kernel",
    "ListComp": "write a for loop over range()",
    "GeneratorExp": "write a for loop over range()",
    "JoinedStr": "kernels hold numbers only",
    "List": "use scalars, or an input array",
    "Tuple": "a tuple stands only in an assignment to as many names, or in return",
    "NamedExpr": "assign on a line of its own",
    "Starred": "write the arguments out",
    "Slice": "loop over the elements",
    "Try": "nothing in a kernel raises",
    "Raise": "nothing in a kernel raises; store a flag in an output",
    "Assert": "nothing in a kernel raises; store a flag in an output",
    "AnnAssign": "drop the annotation",
    "Global": "a kernel's names are its own",
    "Nonlocal": "a kernel's names are its own",
    "Expr": "nothing in the language has an effect but an assignment",
    "SetComp": "write a for loop over range()",
    "DictComp": "write a for loop over range()",
    "Dict": "use scalars, or an input array",
    "Set": "use scalars, or an input array",
    "With": "a kernel opens nothing",
    "Delete": "nothing needs to be freed",
    "AugAssign": "assign to a variable or to an element of an output",
    "Attribute": "assign to a variable or to an element of an output",
    "ClassDef": "hold parts in scalars, and write @p2pcompute.device functions",
    "AsyncFunctionDef": "write a @p2pcompute.device function outside the kernel",
    "Match": "write if and elif",
    "Await": "a kernel waits for nothing but cuda.syncthreads()",
    "Yield": "store into an output: out[i] = ...",
    "YieldFrom": "store into an output: out[i] = ...",
    "AsyncFor": "write a for loop over range()",
    "AsyncWith": "a kernel opens nothing",
    "TryStar": "nothing in a kernel raises",
    "TypeAlias": "numbers have the types of docs/strict.md",
    "Is": "compare with == and <",
    "IsNot": "compare with == and <",
    "In": "compare with each: v == a or v == b",
    "NotIn": "compare with each: v != a and v != b",
    "MatMult": "write a for loop over the products",
}
# Calls that Python and NumPy have with other arguments.
_CALLED_OTHERWISE: Final = {
    "log": "write math.log(a) / math.log(b), math.log2(a) or math.log10(a)",
    "min": "write min(a, b); over an array, loop over range()",
    "max": "write max(a, b); over an array, loop over range()",
    "int": "write int(a)",
    "round": "write round(a), or np.rint(a * 100) / 100 for two digits",
    "uniform": "write random.uniform(seed, index, dim)",
}
# What ast calls otherwise than people do.
_SPELLED: Final = {
    "ListComp": "a list comprehension",
    "SetComp": "a set comprehension",
    "DictComp": "a dict comprehension",
    "GeneratorExp": "a generator expression",
    "JoinedStr": "an f-string",
    "NamedExpr": "the walrus operator :=",
    "AnnAssign": "an annotated assignment",
    "ImportFrom": "an import",
    "Import": "an import",
    "FunctionDef": "a function within a function",
    "Starred": "unpacking with a star",
    "Lambda": "lambda",
    "List": "a list",
    "Tuple": "a tuple here",
    "Dict": "a dict",
    "Set": "a set",
    "Slice": "a slice",
    "Expr": "a line that stores nothing",
    "Try": "try",
    "Raise": "raise",
    "Assert": "assert",
    "With": "with",
    "Delete": "del",
    "Global": "global",
    "Nonlocal": "nonlocal",
    "Await": "await",
    "Yield": "yield",
    "YieldFrom": "yield from",
    "ClassDef": "a class",
    "AsyncFunctionDef": "an async function",
    "AsyncFor": "async for",
    "AsyncWith": "async with",
    "Match": "match",
    "TryStar": "try",
    "TypeAlias": "a type alias",
    "Is": "is",
    "IsNot": "is not",
    "In": "in",
    "NotIn": "not in",
    "MatMult": "the matrix product @",
    "AugAssign": "this assignment",
    "Attribute": "an attribute here",
}
_CONSTANTS: Final = {
    "pi": "3.141592653589793",
    "e": "2.718281828459045",
    "tau": "6.283185307179586",
    "inf": "math.inf",
    "nan": "math.nan",
}
_RANDOM: Final = {"uniform": "random.uniform(seed, thread, k)", "philox": "random.philox(a, b, c, d, e, f)"}
_ARRAYS: Final = {
    "shared": "declare name = cuda.shared.array((16, 16), np.float32)",
    "local": "declare name = cuda.local.array(8, np.float32)",
    "const": "declare name = cuda.const.array((2,), np.float32, (0.5, 1.5))",
}


def of_node(node: ast.AST, otherwise: str = "docs/strict.md has what there is") -> tuple[str, str]:
    """A kind of statement, expression or operator that the language has not."""
    kind = type(node).__name__
    return f"{_SPELLED.get(kind, kind)} is not in the kernel language", _REMEDY.get(kind, otherwise)


def of_another_count(name: str, low: int, high: int) -> str:
    """What to write instead of a call with other arguments than the `low` to `high` that `name` takes."""
    return _CALLED_OTHERWISE.get(name) or f"write {name}({', '.join('abcdefgh'[: max(low, 1) if high else 0])})"


def of_value(name: str, functions: Container[str]) -> tuple[str, str]:
    """A name that stands as a value and is no variable."""
    if name in ("cuda", "math", "np", "random"):
        return f"{name} is a module and no value", f"write what of {name} is meant: {name}.name(a)"
    if name in functions or name in lang.BUILTINS:
        return f"{name} is a function and no value", f"call it where its value is wanted: {name}(...)"
    return f"{name} is not known here", "assign it first, or pass it as an argument"


def of_a_call(node: ast.expr, own: Container[str]) -> tuple[str, str] | None:
    """The call of `node`, which the language has not, in a function whose names are `own`; None where what is wrong is
    not what is called."""
    match node:
        case ast.Name(id=name) if name not in own:
            if remedy := _of_word(name):
                return f"{name} is not in the kernel language", remedy
            return None
        case ast.Attribute(value=ast.Name(id="cuda" | "math" | "np" | "random" as module), attr=name):
            return None if _spelled(module, name) else _of_member(module, name)
        case _:
            return _of_path(node, own)


def of_an_attribute(node: ast.Attribute, own: Container[str]) -> tuple[str, str] | None:
    """An attribute that stands without a call, likewise; None where it is one of an array or another value."""
    match node.value:
        case ast.Name(id="cuda" | "math" | "np" | "random" as module):
            reason, instead = _of_member(module, node.attr)
            if call := _spelled(module, node.attr):
                instead = f"call it where its value is wanted: {call}"
            return reason.replace(f"{module}.", "the attribute ", 1) if call else reason, instead
        case _:
            return _of_path(node, own)


def _of_word(name: str) -> str:
    """What to write instead of a function that is called by a name alone."""
    if name == "pow":
        return "write a ** b, or math.pow(a, b)"
    if name in ("syncthreads", "selp"):
        return _of_member("cuda", name)[1]
    for module in ("cuda", "math", "np", "random"):
        if call := _spelled(module, name):
            return f"write {call}"
    return instead_of(name) or of_cuda(name, "")


def _of_member(module: str, name: str) -> tuple[str, str]:
    """Of a module that the language has."""
    reason = f"{module}.{name} is not in the kernel language"
    if module == "cuda":
        if name in lang.CUDA_TRIPLES:
            return f"cuda.{name} is no function", f"write cuda.{name}.x"
        if name in _ARRAYS:
            return f"cuda.{name} is no value", _ARRAYS[name]
        if name == "atomic":
            return "cuda.atomic is no value", "write cuda.atomic.add(array, index, value) as a statement"
        if name == "syncthreads":
            return "cuda.syncthreads gives no value", "write cuda.syncthreads() on a line of its own"
        return reason, "write one if test else other" if name == "selp" else of_cuda(name)
    if module == "random":
        return reason, f"there are {' and '.join(_RANDOM.values())}"
    if name in _CONSTANTS:
        return reason, f"write {_CONSTANTS[name]}"
    if module == "np" and name == "random":
        return reason, f"write {_RANDOM['uniform']}"
    if module == "np" and name in ("abs", "absolute"):
        return reason, "write abs(a)"
    if module == "np" and name in lang.NUMPY_SPELLINGS:
        return reason, f"write {_spelled('math', lang.NUMPY_SPELLINGS[name])}"
    other = _spelled("np" if module == "math" else "math", name)
    return reason, instead_of(name) or (f"write {other}" if other else _there_are())


def _of_path(node: ast.expr, own: Container[str]) -> tuple[str, str] | None:
    """What hangs on a name that nobody gave a meaning, with calls between: ``cg.this_grid().sync()``."""
    path: list[str] = []
    called = False
    while isinstance(node, ast.Attribute | ast.Call):
        if isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        else:
            called = True
            node = node.func
    if not isinstance(node, ast.Name) or node.id in own or not path:
        return None
    root, first = node.id, path[-1]
    if root not in lang.RESERVED:
        if root == "cg":
            return f"cg.{first} is not in the kernel language", BEYOND_THE_BLOCK
        return f"{root} is not known here", "a kernel's text knows cuda, math, np, random and what it defines"
    if root in lang.BUILTINS or _spelled(root, first) or first in lang.CUDA_TRIPLES or (called and len(path) < 2):
        return None
    return _of_member(root, first)


def _spelled(module: str, name: str) -> str:
    """The call of a function that `module` has in the language; nothing where it has none of that name."""
    if module == "cuda":
        if name in lang.CUDA_DIMS:
            return f"cuda.{name}(1)"
        return f"cuda.{name}(a)" if name in lang.BIT_CALLS else ""
    if module == "random":
        return _RANDOM.get(name, "")
    counts: Mapping[str, int] = lang.MATH_CALLS if module == "math" else lang.NUMPY_CALLS
    count = counts.get(name, 1 if module == "np" and name in lang.CASTS else 0)
    return f"{module}.{name}({', '.join('ab'[:count])})" if count else ""


def _there_are() -> str:
    functions = f"np.{', '.join(sorted(lang.NUMPY_CALLS))} and math.{', '.join(sorted(lang.MATH_CALLS))}"
    return f"there are the dtypes of np, {functions}"
