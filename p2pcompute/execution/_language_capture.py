"""From a decorated Python function to normalised source: what goes over the wire is text that needs nothing else.

Comments, docstrings, annotations and decorators go; scalars from globals and closures are written out as literals, and
arrays as constant ones that the kernel declares and hands to the functions that read them; modules get one spelling
(``cuda``, ``math``, ``np``, ``random``) whatever the user imported them as; called device functions come along, callees
first. numba is never imported: its names are recognised by where they come from.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from p2pcompute.errors import KernelError
from p2pcompute.execution._api import KernelSource
from p2pcompute.execution._language import (
    BUILTINS,
    CASTS,
    CUDA_CALLS,
    DTYPES,
    MATH_CALLS,
    MAX_ARRAY_AXES,
    MAX_CONST_ELEMENTS,
    MAX_FUNCTIONS,
    NUMPY_CALLS,
    NUMPY_SPELLINGS,
    RESERVED,
)
from p2pcompute.execution._language_advice import missing, of_cuda, why
from p2pcompute.execution._language_tuples import returned, spread
from p2pcompute.execution._tree import literal_integer

__all__ = ["Captured", "capture", "source_digest"]

_CUDA_MODULES = ("p2pcompute.cuda", "numba.cuda", "numba_cuda", "numba_cuda_mlir")
_NUMBA = ("numba.", "numba_cuda")
_NUMBA_TYPES = "numba.core.types"
_RANDOM_MODULE = "p2pcompute.random"
_MISSING = object()
# These have names of their own; they are left as they are, and the guard refuses them with the line.
_OWN_NAMES = (
    ast.Lambda,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """A kernel's source, and the same tree with the lines and files that its author knows."""

    source: KernelSource
    tree: ast.Module
    filenames: Mapping[str, str]  # function name in the source -> file that it was written in


def source_digest(entry: str, text: str) -> bytes:
    """SHA-256 over entry, NUL, text, all UTF-8."""
    return hashlib.sha256(entry.encode() + b"\0" + text.encode()).digest()


def capture(function: Callable[..., Any], *, unwrap_device: Callable[[object], Any]) -> Captured:
    """Normalise `function` and all device functions that it calls.

    Args:
        function: a plain Python function whose source can be read.
        unwrap_device: gives the Python function behind a device-function object, or None for any other object.

    Raises:
        KernelError: the source can't be read, or a name stands for something that can't travel.
    """
    return _Capture(unwrap_device).run(function)


class _Capture:
    def __init__(self, unwrap_device: Callable[[object], Any]) -> None:
        self.unwrap_device: Callable[[object], Any] = lambda value: unwrap_device(value) or _written(value)
        self.names: dict[types.FunctionType, str] = {}
        self.open: set[types.FunctionType] = set()
        self.done: list[tuple[types.FunctionType, ast.FunctionDef]] = []
        self.taken: set[str] = set()
        self.made: set[str] = set()  # variables that no author wrote: no function may have their names
        self.arrays: dict[int, tuple[str, np.ndarray[Any, Any]]] = {}  # global arrays: their names in all functions
        self.reads: dict[str, list[int]] = {}  # function -> those that it reads, its callees' included
        self.returned: dict[str, int | None] = {}

    def run(self, function: Callable[..., Any]) -> Captured:
        entry = _plain(function)
        self._reserve_locals(entry, set())
        self.visit(entry, at=None)
        body: list[ast.stmt] = [node for _, node in self.done]
        tree = ast.Module(body=body, type_ignores=[])
        ast.fix_missing_locations(tree)
        try:
            text = ast.unparse(tree) + "\n"
        except RecursionError:
            raise KernelError(
                "the kernel is nested too deeply",
                line=entry.__code__.co_firstlineno,
                filename=entry.__code__.co_filename,
                instead="split the expression over several statements",
            ) from None
        name = self.names[entry]
        source = KernelSource(text=text, entry=name, digest=source_digest(name, text))
        files = {self.names[function]: function.__code__.co_filename for function, _ in self.done}
        return Captured(source=source, tree=tree, filenames=files)

    def _reserve_locals(self, function: types.FunctionType, seen: set[types.FunctionType]) -> None:
        """No function may get a name that is a local variable anywhere, so that renaming never captures one."""
        if function in seen or len(seen) > MAX_FUNCTIONS:
            return
        seen.add(function)
        code = function.__code__
        self.taken.update(code.co_varnames, code.co_cellvars)
        for name in code.co_names + code.co_freevars:
            value = _lookup(function, name)
            inner = None if value is _MISSING else self.unwrap_device(value)
            if inner is not None:
                self._reserve_locals(inner, seen)

    def visit(self, function: types.FunctionType, *, at: tuple[str, int] | None) -> str:
        """Take `function` in and return its name in the normalised source."""
        if function in self.open:
            where, line = at if at is not None else (function.__code__.co_filename, 0)
            raise KernelError(
                f"{function.__name__} calls itself",
                line=line,
                filename=where,
                instead="write a loop: recursion has no bound",
            )
        if function in self.names:
            return self.names[function]
        self.open.add(function)
        node = _parse(function)
        normalise = _Normalise(self, function)
        node = normalise.function(node)
        self.made |= spread(node, normalise.locals | self.taken, self.length)
        self.give(node, normalise, is_entry=at is None)
        name = function.__name__
        count = 1
        while name in self.taken or name in self.made or name in RESERVED:
            count += 1
            name = f"{function.__name__}_{count}"
        self.taken.add(name)
        node.name = name
        self.names[function] = name
        self.reads[name] = list(normalise.reads)
        self.returned[name] = returned(node)
        self.open.discard(function)
        self.done.append((function, node))
        return name

    def length(self, node: ast.expr) -> int | None:
        """How many values a call gives, where it is known to give several."""
        match node:
            case ast.Call(func=ast.Name(id=name)):
                return self.returned.get(name)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="cuda"), attr="grid" | "gridsize"),
                args=[ast.Constant(value=int() as axes)],
            ):
                return axes if axes > 1 else None
            case ast.Call(func=ast.Attribute(value=ast.Name(id="random"), attr="philox")):
                return 4
            case _:
                return None

    def array(self, name: str, value: np.ndarray[Any, Any]) -> int:
        """Take in an array from outside, under one name in all functions."""
        key = id(value)
        if key not in self.arrays:
            count, own = 1, name
            while own in self.taken or own in RESERVED:
                count += 1
                own = f"{name}_{count}"
            self.taken.add(own)
            self.arrays[key] = own, value
        return key

    def give(self, node: ast.FunctionDef, normalise: _Normalise, *, is_entry: bool) -> None:
        """Arrays from outside are declared by the kernel, and parameters of the other functions."""
        declared: list[ast.stmt] = []
        for key, where in normalise.reads.items():
            name, value = self.arrays[key]
            if is_entry:
                made = normalise.written_out(where, value)
                target = ast.copy_location(ast.Name(id=name, ctx=ast.Store()), where)
                declared.append(ast.copy_location(ast.Assign(targets=[target], value=made), where))
            else:
                node.args.args.append(ast.copy_location(ast.arg(arg=name), where))
        node.body = [*declared, *node.body]


def _written(value: object) -> Any:
    """The Python function behind one that its author has decorated with numba.cuda, or None."""
    inner = getattr(value, "py_func", None)
    if not isinstance(inner, types.FunctionType) or not type(value).__module__.startswith(_NUMBA):
        return None
    return None if (inner.__module__ or "").startswith(_NUMBA) else inner


def _plain(function: Callable[..., Any]) -> types.FunctionType:
    function = _written(function) or function
    if not isinstance(function, types.FunctionType):
        raise KernelError(
            f"a {type(function).__name__} is no kernel", instead="decorate a plain function: def name(out, ...)"
        )
    return function


def _parse(function: types.FunctionType) -> ast.FunctionDef:
    code = function.__code__
    first, filename = code.co_firstlineno, code.co_filename
    if function.__name__ == "<lambda>":
        raise KernelError("a lambda is no kernel", line=first, filename=filename, instead="write it with def")
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        raise KernelError(
            f"the source of {function.__name__} can't be read",
            line=first,
            filename=filename,
            instead="put it in a file",
        ) from None
    text = "".join(lines)
    shift = first - 1
    if text[:1].isspace():  # defined inside something: give the parser a block to put it in
        text = "if 1:\n" + text
        shift -= 1
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise KernelError(
            f"the source of {function.__name__} can't be parsed on its own: {error}",
            line=first,
            filename=filename,
            instead="put the function at the top level of a file",
        ) from None
    ast.increment_lineno(tree, shift)
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef) and node.name == function.__name__:
            raise KernelError("an async function is no kernel", line=node.lineno, filename=filename, instead="use def")
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            return node
    raise KernelError(
        f"no def {function.__name__} in its source",
        line=first,
        filename=filename,
        instead="write it with def in a file",
    )


def _lookup(function: types.FunctionType, name: str) -> Any:
    free = function.__code__.co_freevars
    if name in free and function.__closure__ is not None:
        try:
            return function.__closure__[free.index(name)].cell_contents
        except ValueError:  # not bound yet
            return _MISSING
    if name in function.__globals__:
        return function.__globals__[name]
    return getattr(builtins, name, _MISSING)


class _Normalise(ast.NodeTransformer):
    def __init__(self, owner: _Capture, function: types.FunctionType) -> None:
        self.owner = owner
        self.fn = function
        code = function.__code__
        self.locals = set(code.co_varnames) | set(code.co_cellvars)
        self.reads: dict[int, ast.expr] = {}  # arrays from outside, by id, and where each is first named

    def refuse(self, node: ast.expr | ast.stmt, reason: str, instead: str = "") -> KernelError:
        return KernelError(reason, line=node.lineno, filename=self.fn.__code__.co_filename, instead=instead)

    def function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list = []
        node.returns = None
        node.type_comment = None
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
                argument.type_comment = None
        body = node.body
        if (
            isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            body = body[1:] or [ast.copy_location(ast.Pass(), body[0])]
        try:
            node.body = [self.visit(statement) for statement in body]
        except RecursionError:
            raise self.refuse(node, "the kernel is nested too deeply", "split the expression") from None
        return node

    def visit(self, node: ast.AST) -> Any:
        return node if isinstance(node, _OWN_NAMES) else super().visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        plain = ast.Assign(targets=[node.target], value=node.value)
        return self.visit(ast.copy_location(plain, node))  # type: ignore[no-any-return]

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if not isinstance(node.ctx, ast.Load) or node.id in self.locals:
            return node
        value = _lookup(self.fn, node.id)
        if value is _MISSING:
            return node  # the guard refuses unknown names, and knows the line
        return self.value(node, node.id, value)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        path: list[str] = []
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            path.append(root.attr)
            root = root.value
        if not isinstance(root, ast.Name) or root.id in self.locals:
            self.generic_visit(node)
            return node
        value = _lookup(self.fn, root.id)
        if value is _MISSING:
            return node
        path.reverse()
        spelled = root.id
        while path and isinstance(value, types.ModuleType):
            if value.__name__.startswith(_CUDA_MODULES):
                return self.cuda(node, spelled, path)
            spelled += "." + path[0]
            value = getattr(value, path[0], _MISSING)
            if value is _MISSING:
                raise self.refuse(node, f"{spelled} does not exist", missing(spelled))
            path.pop(0)
        result = self.value(node, spelled, value)
        for attribute in path:
            result = ast.Attribute(value=result, attr=attribute, ctx=ast.Load())
        return ast.copy_location(result, node)

    def cuda(self, node: ast.expr, spelled: str, path: list[str]) -> ast.expr:
        if path[0] not in CUDA_CALLS:
            raise self.refuse(node, f"{spelled}.{path[0]} is not in the kernel language", of_cuda(path[0]))
        return _dotted(node, "cuda", *path)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        """``x[i][j]`` is ``x[i, j]``."""
        numbers = self.outside(node.value)
        if isinstance(numbers, tuple):
            return self.element(node, numbers)
        self.generic_visit(node)
        base = node.value
        if isinstance(base, ast.Subscript) and isinstance(base.value, ast.Name):
            indices = [
                part
                for index in (base.slice, node.slice)
                for part in (index.elts if isinstance(index, ast.Tuple) else [index])
            ]
            node.value, node.slice = base.value, _at(node, ast.Tuple(elts=indices, ctx=ast.Load()))
        return node

    def element(self, node: ast.Subscript, numbers: tuple[Any, ...]) -> ast.expr:
        """A number of a tuple from outside, at a place that is known."""
        place = (
            self.outside(node.slice)
            if isinstance(node.slice, ast.Name | ast.Attribute)
            else literal_integer(node.slice)
        )
        spelled = ast.unparse(node.value)
        if not isinstance(place, int) or not -len(numbers) <= place < len(numbers):
            raise self.refuse(
                node,
                f"the place in {spelled} is not a number from 0 to {len(numbers) - 1} that stands in the text",
                f"make {spelled} a NumPy array: those may be read at any place",
            )
        return self.value(node, f"{spelled}[{place}]", numbers[place])

    def visit_For(self, node: ast.For) -> ast.stmt:
        """A loop over numbers that stand in the text counts them: ``for step in (8, 4, 2, 1)``."""
        self.generic_visit(node)
        numbers = node.iter
        if not isinstance(numbers, ast.Tuple | ast.List) or not isinstance(node.target, ast.Name):
            return node
        if not numbers.elts or not all(_is_number(element) for element in numbers.elts):
            return node
        counter = "k_" if node.target.id == "_" else node.target.id  # no name begins with __
        while counter in self.locals or counter in self.owner.taken or counter in self.fn.__globals__:
            counter += "_"
        self.locals.add(counter)
        self.owner.made.add(counter)
        chosen = numbers.elts[-1]
        for place, element in reversed(list(enumerate(numbers.elts[:-1]))):
            test = ast.Compare(
                left=ast.Name(id=counter, ctx=ast.Load()), ops=[ast.Eq()], comparators=[ast.Constant(value=place)]
            )
            chosen = ast.IfExp(test=test, body=element, orelse=chosen)
        first = ast.Assign(targets=[node.target], value=_at(numbers, chosen), lineno=node.lineno)
        node.target = _at(node.target, ast.Name(id=counter, ctx=ast.Store()))
        node.iter = _at(
            numbers,
            ast.Call(
                func=ast.Name(id="range", ctx=ast.Load()), args=[ast.Constant(value=len(numbers.elts))], keywords=[]
            ),
        )
        node.body = [ast.copy_location(first, node), *node.body]
        return node

    def visit_Return(self, node: ast.Return) -> ast.stmt:
        """``return None`` is ``return``."""
        if isinstance(node.value, ast.Constant) and node.value.value is None:
            node.value = None
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if len(node.args) == 2 and not node.keywords and self.outside(node.func) is pow:
            base, exponent = (self.visit(argument) for argument in node.args)
            return ast.copy_location(ast.BinOp(left=base, op=ast.Pow(), right=exponent), node)
        if isinstance(node.func, ast.Name | ast.Attribute):
            node.func = self.visit(node.func)
        match node.func:
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr="const"), attr="array_like"):
                return self.constant_array(node)
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr="shared" | "local"), attr="array"):
                self.positional(node, ("shape", "dtype"))
                node.args = [self.shape_or_dtype(argument) for argument in node.args]
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr="atomic")):
                self.positional(node, ("ary", "idx", "val"))
            case ast.Attribute(value=ast.Name(id="cuda"), attr="selp") if len(node.args) == 3 and not node.keywords:
                test, one, other = (self.visit(argument) for argument in node.args)
                return ast.copy_location(ast.IfExp(test=test, body=one, orelse=other), node)
            case _:
                pass
        match node:
            case ast.Call(func=ast.Name(id="len"), args=[ast.expr() as inner]) if not node.keywords:
                if isinstance(numbers := self.outside(inner), tuple):
                    return _at(node, _number(len(numbers)))
            case _:
                pass
        node.args = [self.visit(argument) for argument in node.args]
        for keyword in node.keywords:
            keyword.value = self.visit(keyword.value)
        if isinstance(node.func, ast.Name):
            for key in self.owner.reads.get(node.func.id, ()):  # what the function reads from outside
                self.reads.setdefault(key, node)
                node.args.append(_dotted(node, self.owner.arrays[key][0]))
        return node

    def positional(self, node: ast.Call, names: tuple[str, ...]) -> None:
        """Give arguments that came by keyword their places; what does not fit is left to the guard."""
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        wanted = names[len(node.args) :]
        if node.keywords and set(given) == set(wanted):
            node.args = [*node.args, *(given[name] for name in wanted)]
            node.keywords = []

    def shape_or_dtype(self, node: ast.expr) -> ast.expr:
        """A global tuple of integers, written out; anything else as it is."""
        value = self.outside(node)
        if isinstance(value, tuple) and all(isinstance(part, int | np.integer) for part in value):
            return _at(node, ast.Tuple(elts=[_number(int(part)) for part in value], ctx=ast.Load()))
        return node

    def outside(self, node: ast.expr) -> Any:
        """What a name, or an attribute of modules and objects, means outside the function; or nothing."""
        path: list[str] = []
        while isinstance(node, ast.Attribute):
            path.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in self.locals:
            return _MISSING
        value = _lookup(self.fn, node.id)
        for attribute in path:
            value = getattr(value, attribute, _MISSING) if isinstance(value, types.ModuleType) else _MISSING
        return value

    def constant_array(self, node: ast.Call) -> ast.expr:
        """``cuda.const.array_like(TABLE)`` with the content of TABLE written out."""
        self.positional(node, ("ary",))
        value = self.outside(node.args[0]) if len(node.args) == 1 and not node.keywords else _MISSING
        if not isinstance(value, np.ndarray):
            raise self.refuse(
                node, "cuda.const.array_like takes one array from outside the kernel", "name a global NumPy array"
            )
        return self.written_out(node, value)

    def written_out(self, node: ast.expr, value: np.ndarray[Any, Any]) -> ast.expr:
        """The declaration of a constant array with this content."""
        if value.dtype.name not in DTYPES or not 1 <= value.ndim <= MAX_ARRAY_AXES or not value.size:
            raise self.refuse(
                node,
                f"no constant array is of {value.dtype} and shape {value.shape}",
                f"take one of 1 to {MAX_ARRAY_AXES} axes, with an element, of {', '.join(DTYPES)}",
            )
        if value.size > MAX_CONST_ELEMENTS:
            raise self.refuse(
                node,
                f"a constant array of {value.size} elements, more than {MAX_CONST_ELEMENTS}",
                "pass the array as an argument",
            )
        elements = [
            ast.Constant(value=part) if isinstance(part, bool) else _number(part) for part in value.ravel().tolist()
        ]
        shape = ast.Tuple(elts=[ast.Constant(value=length) for length in value.shape], ctx=ast.Load())
        dtype = _dotted(node, "np", "bool_" if value.dtype.name == "bool" else value.dtype.name)
        made = ast.Call(
            func=_dotted(node, "cuda", "const", "array"),
            args=[shape, dtype, ast.Tuple(elts=elements, ctx=ast.Load())],
            keywords=[],
        )
        return _at(node, made)

    def value(self, node: ast.expr, spelled: str, value: Any) -> ast.expr:
        """The node that stands for what a global or closure name means."""
        constant = _literal(value)
        if constant is not None:
            return _at(node, constant)
        if type(value) is np.ndarray and 0 < value.size <= MAX_CONST_ELEMENTS and value.ndim:
            # Of an element of a tuple, TABLES[0], the name is TABLES_0.
            key = self.owner.array(spelled.rpartition(".")[2].replace("[", "_").rstrip("]").replace("-", ""), value)
            self.reads.setdefault(key, node)
            return _dotted(node, self.owner.arrays[key][0])
        if isinstance(value, tuple) and value and all(_literal(part) is not None for part in value):
            parts = [part for part in map(_literal, value) if part is not None]
            return _at(node, ast.Tuple(elts=parts, ctx=ast.Load()))
        inner = self.owner.unwrap_device(value)
        if inner is not None:
            name = self.owner.visit(inner, at=(self.fn.__code__.co_filename, node.lineno))
            return _dotted(node, name)
        module = getattr(value, "__module__", None) or ""
        name = getattr(value, "__name__", "") or getattr(value, "_name", "") or getattr(value, "name", "")
        if not isinstance(name, str) or not isinstance(module, str):
            module, name = "", ""
        if isinstance(value, types.ModuleType):
            raise self.refuse(
                node, f"{spelled} is a module and no value", f"write what of {spelled} is meant: {spelled}.name(a)"
            )
        if module.startswith(_CUDA_MODULES) and name in CUDA_CALLS:
            return _dotted(node, "cuda", name)
        if module.startswith(_NUMBA_TYPES) and name in CASTS | {"bool"}:  # numba.float32 and the like
            return _dotted(node, "np", "bool_" if name == "bool" else name)
        if module == "math" and not (name not in MATH_CALLS and missing(name) != missing("")):
            return _dotted(node, "math", name)
        if module == "numpy" and name in NUMPY_SPELLINGS:
            return _dotted(node, "math", NUMPY_SPELLINGS[name])
        if module == "numpy" and name in CASTS | NUMPY_CALLS.keys() | {"bool"}:
            return _dotted(node, "np", {"bool": "bool_"}.get(name, name))
        if module == "numpy" and name == "absolute":
            return _dotted(node, "abs")
        if module == _RANDOM_MODULE:
            return _dotted(node, "random", name)
        if name in BUILTINS and getattr(builtins, name) is value:
            return _dotted(node, name)
        raise self.refuse(node, *why(spelled, value))


def _is_number(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
    return isinstance(inner, ast.Constant) and isinstance(inner.value, int | float)


def _dotted(like: ast.expr, root: str, *path: str) -> ast.expr:
    result: ast.expr = ast.Name(id=root, ctx=ast.Load())
    for attribute in path:
        result = ast.Attribute(value=result, attr=attribute, ctx=ast.Load())
    return _at(like, result)


def _at(like: ast.expr, node: ast.expr) -> ast.expr:
    for inner in ast.walk(node):
        if isinstance(inner, ast.expr):
            ast.copy_location(inner, like)
    return node


def _literal(value: Any) -> ast.expr | None:
    """A scalar as the expression that gives it back, or None for what is no scalar."""
    if isinstance(value, np.generic):
        match value.dtype.name:
            case "bool":
                return ast.Constant(value=bool(value))
            case "float32" | "float64" | "uint64" as dtype:  # the cast says the type that the number alone does not
                cast = ast.Attribute(value=ast.Name(id="np", ctx=ast.Load()), attr=dtype, ctx=ast.Load())
                return ast.Call(func=cast, args=[_number(value.item())], keywords=[])
            case _:
                return _number(value.item()) if value.dtype.kind in "iu" else None
    if isinstance(value, bool):
        return ast.Constant(value=value)
    if isinstance(value, int):
        return _number(int(value))
    if isinstance(value, float):
        return _number(float(value))
    return None


def _number(value: float) -> ast.expr:
    if value != value:
        return ast.Attribute(value=ast.Name(id="math", ctx=ast.Load()), attr="nan", ctx=ast.Load())
    if value < 0 or (value == 0 and str(value)[0] == "-"):
        return ast.UnaryOp(op=ast.USub(), operand=_number(-value))
    if value == float("inf") and isinstance(value, float):
        return ast.Attribute(value=ast.Name(id="math", ctx=ast.Load()), attr="inf", ctx=ast.Load())
    return ast.Constant(value=value)
