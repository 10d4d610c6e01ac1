"""Integer atomics on an output that all blocks share, as the language has them: a *part* for each block.

A tutorial's histogram says ``cuda.atomic.add(histogram, bin, 1)`` on an array of the whole launch. What that comes to
does not hang on the order of threads, so each block can count in a shared array of its own, and the counts of all
blocks are combined as any output's are (docs/strict.md, section 13). What is written here is that text, before
anything else sees the kernel: the guard, the wire, workers and back ends know the kernel that comes out and no other.
A text from a stranger is never rewritten, so one that says the first is refused.
"""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pcompute.errors import KernelError
from p2pcompute.execution._guard_scratch import is_atomic, memory_call
from p2pcompute.execution._language import ATOMIC_REDUCED, ATOMICS, MAX_ARRAY_AXES
from p2pcompute.execution._operations import identity
from p2pcompute.execution._tree import FreeNames, function_of, literal_integer, walk

__all__ = ["Part", "Target", "combined", "global_targets", "left_out", "row_shape"]

_AXES: Final = ("z", "y", "x")
_LENGTHS: Final = ("shape", "size", "ndim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parameter that a kernel changes by one atomic operation, from any thread of any block. `axes` counts the
    numbers of its index; `call` is the first of the calls."""

    name: str
    operation: str
    axes: int
    call: ast.Call

    @property
    def reduce(self) -> str:
        """The operation that combines what blocks have."""
        return ATOMIC_REDUCED[self.operation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a block has of a target: an array of this shape and dtype, of those that atomic operations take."""

    operation: str
    shape: tuple[int, ...]
    dtype: str


def row_shape(shape: tuple[int, ...], dims: int) -> tuple[int, ...]:
    """The axes of a block's own row in the output: the target's, or one for all where arrays have too few for both."""
    return shape if dims + len(shape) <= MAX_ARRAY_AXES else (math.prod(shape),)


def global_targets(kernel: ast.FunctionDef, filename: str) -> dict[str, Target]:
    """Parameters of a normalised kernel that atomic operations change, by name. Operations that are written otherwise
    than as a statement of three arguments are left to the guard.

    Raises:
        KernelError: such a parameter is used in another way too; with the line.
    """

    def refuse(node: ast.AST, reason: str, instead: str) -> KernelError:
        return KernelError(reason, line=getattr(node, "lineno", kernel.lineno), filename=filename, instead=instead)

    params = {argument.arg for argument in kernel.args.args}
    nodes = walk(kernel)
    found: dict[str, Target] = {}
    for call in sorted(filter(None, map(_atomic_statement, nodes)), key=lambda call: call.lineno):
        array, index = call.args[0], call.args[1]
        if not isinstance(array, ast.Name) or array.id not in params:
            continue
        this = Target(name=array.id, operation=_operation(call), axes=len(_indices(index)), call=call)
        if not 1 <= this.axes <= MAX_ARRAY_AXES:
            raise refuse(
                call, f"{this.name} has {this.axes} indices", f"arrays have 1 to {MAX_ARRAY_AXES} axes: make two of one"
            )
        first = found.setdefault(this.name, this)
        if first.operation != this.operation:
            raise refuse(
                call,
                f"{this.name} is changed here by cuda.atomic.{this.operation} and by cuda.atomic.{first.operation} "
                f"(line {first.call.lineno}): what comes of both depends on the order of threads",
                "give each operation an array of its own",
            )
        if first.axes != this.axes:
            raise refuse(
                call,
                f"{this.name} has {this.axes} indices here and {first.axes} in line {first.call.lineno}",
                "write one for each of its axes: cuda.atomic.add(a, (i, j), 1)",
            )
    allowed = {
        id(node.args[0]) for node in nodes if isinstance(node, ast.Call) and node.args and is_atomic(node)
    }  # not only statements: that a result is used is for the guard to say
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name() as inner, attr=attr) if attr in _LENGTHS:
                allowed.add(id(inner))
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name() as inner]):
                allowed.add(id(inner))
            case _:
                pass
    others = [node for node in nodes if isinstance(node, ast.Name) and node.id in found and id(node) not in allowed]
    for node in sorted(others, key=lambda node: node.lineno):
        raise refuse(node, *_other_use(node, found[node.id], nodes))
    return found


def _other_use(name: ast.Name, target: Target, nodes: Sequence[ast.AST]) -> tuple[str, str]:
    changed = f"{name.id} is changed by cuda.atomic.{target.operation} (line {target.call.lineno}), and"
    around = next((node for node in nodes if isinstance(node, ast.Subscript) and node.value is name), None)
    if around is None:
        reason = f"{changed} used otherwise here"
        instead = "such an array stands in atomic operations, before .shape and .size, and in len()"
    elif isinstance(around.ctx, ast.Store):
        reason = f"{changed} stored into here"
        instead = (
            "leave the store out, since each element begins as what changes nothing; or give it an output of its own, "
            "by one more parameter"
        )
    else:
        reason = f"{changed} loaded here, where other blocks may still change it"
        instead = (
            f"load it in another kernel, which is passed what this one gives for {name.id}; counts of one block stand "
            "in a cuda.shared.array, and are there behind cuda.syncthreads()"
        )
    return reason, instead


def left_out(tree: ast.Module, entry: str, targets: Mapping[str, Target], filename: str) -> ast.Module:
    """The kernel without its atomic operations on `targets`: what else it does, and along how many axes."""
    parts = {name: Part(operation=one.operation, shape=(1,) * one.axes, dtype="int64") for name, one in targets.items()}
    return _rewritten(tree, entry, parts, None, filename)


def combined(tree: ast.Module, entry: str, parts: Mapping[str, Part], dims: int, filename: str) -> ast.Module:
    """A kernel that counts in shared arrays, and stores them into outputs by blocks when its threads are through.

    The output of a target is indexed by the block's place along all axes of the launch, and then has `row_shape`. It
    is to be combined by the operation that `ATOMIC_REDUCED` names.

    Args:
        tree: a normalised module; it is not changed. Lines of what is added are those of what it is added for.
        entry: the kernel's name.
        parts: for each of its `global_targets`, what a block has of it.
        dims: axes of the launch.
        filename: for errors.

    Raises:
        KernelError: a thread may return where the others can't be waited for; with the line.
    """
    return _rewritten(tree, entry, parts, dims, filename)


def _rewritten(tree: ast.Module, entry: str, parts: Mapping[str, Part], dims: int | None, filename: str) -> ast.Module:
    tree = copy.deepcopy(tree)
    kernel = function_of(tree, entry)
    lines = {name: target.call for name, target in global_targets(kernel, filename).items()}
    free = FreeNames(tree)
    own = {name: free.take("part") for name in parts}
    _Rewrite(parts, own if dims is not None else {}, filename).visit(kernel)
    body = kernel.body
    if any(isinstance(node, ast.Return) for node in walk(kernel)):
        declared = [statement for statement in body if _declares(statement)]
        body = [*declared, *_to_its_end([one for one in body if not _declares(one)], filename)]
    head: list[ast.stmt] = []
    tail: list[ast.stmt] = []
    if dims is not None:
        counter = free.take("k")
        for name, part in parts.items():
            head += _begun(own[name], counter, part, dims, lines[name])
            tail += _stored(name, own[name], counter, part, dims, lines[name])
        if any(isinstance(statement, ast.For) for statement in head):
            head.append(_line("cuda.syncthreads()", next(iter(lines.values()))))
        tail = [_line("cuda.syncthreads()", next(iter(lines.values()))), *tail]
    kernel.body = [*head, *body, *tail] or [_line("pass", kernel)]
    return ast.fix_missing_locations(tree)


def _atomic_statement(node: ast.AST) -> ast.Call | None:
    match node:
        case ast.Expr(value=ast.Call(args=[_, _, _], keywords=[]) as call) if is_atomic(call):
            return call if _operation(call) in ATOMICS else None
        case _:
            return None


def _operation(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _indices(index: ast.expr) -> list[ast.expr]:
    return index.elts if isinstance(index, ast.Tuple) else [index]


def _declares(statement: ast.stmt) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Name()], value=value):
            return bool(memory_call(value))
        case _:
            return False


class _Rewrite(ast.NodeTransformer):
    """Atomic operations on a target go to the block's part, or away where it has none; its lengths become numbers."""

    def __init__(self, parts: Mapping[str, Part], own: Mapping[str, str], filename: str) -> None:
        self._parts = parts
        self._own = own
        self._filename = filename

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        call = _atomic_statement(node)
        self.generic_visit(node)
        match call:
            case ast.Call(args=[ast.Name(id=name) as array, _, _]) if name in self._parts:
                if name not in self._own:
                    return ast.copy_location(ast.Pass(), node)
                array.id = self._own[name]
            case _:
                pass
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(value=ast.Attribute(value=ast.Name(id=name), attr="shape"), slice=place) if (
                name in self._parts
            ):
                shape, axis = self._parts[name].shape, literal_integer(place)
                if axis is None:
                    raise KernelError(
                        "the index of shape is a literal axis",
                        line=node.lineno,
                        filename=self._filename,
                        instead=f"write {name}.shape[0]",
                    )
                if not -len(shape) <= axis < len(shape):
                    raise KernelError(
                        f"{name} has {len(shape)} ax{'e' if len(shape) > 1 else 'i'}s, and no axis {axis}",
                        line=node.lineno,
                        filename=self._filename,
                        instead="an array that atomic operations change has an axis for each number of its index",
                    )
                return ast.copy_location(ast.Constant(value=shape[axis]), node)
            case _:
                self.generic_visit(node)
                return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr="size" | "ndim" | "shape" as attr) if name in self._parts:
                shape = self._parts[name].shape
                if attr != "shape":
                    number = math.prod(shape) if attr == "size" else len(shape)
                    return ast.copy_location(ast.Constant(value=number), node)
                lengths: list[ast.expr] = [ast.Constant(value=length) for length in shape]
                return ast.copy_location(ast.Tuple(elts=lengths, ctx=ast.Load()), node)
            case _:
                self.generic_visit(node)
                return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        match node:
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)]) if name in self._parts:
                return ast.copy_location(ast.Constant(value=self._parts[name].shape[0]), node)
            case _:
                self.generic_visit(node)
                return node


# No thread returns early: all have to come to the barrier at the end.


def _to_its_end(body: list[ast.stmt], filename: str) -> list[ast.stmt]:
    """The same without a return: what follows one stands under the test that did not take it."""
    for at, statement in enumerate(body):
        returns = [node for node in walk(statement) if isinstance(node, ast.Return)]
        if not returns:
            continue
        head, rest = body[:at], body[at + 1 :]
        match statement:
            case ast.Return(value=None):
                return head
            case ast.If(test=test, body=then, orelse=otherwise) if not rest or _ends(then) or _ends(otherwise):
                # What follows stands in the one branch that comes there, and behind the other's return it is dropped.
                one, other = (_to_its_end([*branch, *rest], filename) for branch in (then, otherwise))
                if not one and not other:
                    return head
                if not one:
                    one, other = other, []
                    test = ast.copy_location(ast.UnaryOp(op=ast.Not(), operand=test), test)
                return [*head, ast.copy_location(ast.If(test=test, body=one, orelse=other), statement)]
            case _:
                pass
        for node in returns:
            if node.value is not None:
                raise KernelError(
                    "a kernel returns nothing", line=node.lineno, filename=filename, instead="store into an output"
                )
        looped = isinstance(statement, ast.For | ast.While)
        raise KernelError(
            f"a thread returns {'in a loop' if looped else 'here'}, and what its block has come to is still to be "
            "stored by all of its threads",
            line=returns[0].lineno,
            filename=filename,
            instead="leave the loop by break, and put what follows it under an if"
            if looped
            else "put what follows under an if; a return stands at the end of an if at the top level of the kernel",
        )
    return body


def _ends(body: Sequence[ast.stmt]) -> bool:
    """Whether whoever comes here returns."""
    match body[-1] if body else None:
        case ast.Return():
            return True
        case ast.If(body=then, orelse=otherwise):
            return _ends(then) and _ends(otherwise)
        case _:
            return False


# The lines that are added. Their parts are names and numbers of our own making.


def _begun(own: str, counter: str, part: Part, dims: int, at: ast.AST) -> list[ast.stmt]:
    """The part of a block, with what changes nothing in each element."""
    shape = part.shape[0] if len(part.shape) == 1 else part.shape
    lines = [_line(f"{own} = cuda.shared.array({shape}, np.{part.dtype})", at)]
    if value := int(identity(ATOMIC_REDUCED[part.operation], part.dtype)):
        where = _places(counter, part.shape)
        lines.append(_line(f"{_each(counter, part, dims)}\n    {own}[{where}] = {value}", at))
    return lines


def _stored(name: str, own: str, counter: str, part: Part, dims: int, at: ast.AST) -> list[ast.stmt]:
    """The block's part in its row of the output."""
    block = ", ".join(f"cuda.blockIdx.{axis}" for axis in _AXES[3 - dims :])
    to, where = _places(counter, row_shape(part.shape, dims)), _places(counter, part.shape)
    return [_line(f"{_each(counter, part, dims)}\n    {name}[{block}, {to}] = {own}[{where}]", at)]


def _each(counter: str, part: Part, dims: int) -> str:
    """A loop in which the threads of a block take turns over all elements."""
    thread = "cuda.threadIdx.x"
    if dims > 1:
        thread = f"cuda.threadIdx.y * cuda.blockDim.x + {thread}"
    if dims > 2:
        thread = f"cuda.threadIdx.z * cuda.blockDim.y * cuda.blockDim.x + {thread}"
    threads = " * ".join(f"cuda.blockDim.{axis}" for axis in _AXES[3 - dims :])
    return f"for {counter} in range({thread}, {math.prod(part.shape)}, {threads}):"


def _places(counter: str, shape: tuple[int, ...]) -> str:
    """The index of element number `counter`, in C order."""
    found: list[str] = []
    for axis, length in enumerate(shape):
        step = math.prod(shape[axis + 1 :])
        place = counter if step == 1 else f"{counter} // {step}"
        found.append(f"{place} % {length}" if axis and len(shape) > 1 else place)
    return ", ".join(found)


def _line(text: str, at: ast.AST) -> ast.stmt:
    [statement] = ast.parse(text).body
    for node in ast.walk(statement):
        if isinstance(node, ast.expr | ast.stmt):
            ast.copy_location(node, at)
    return statement
