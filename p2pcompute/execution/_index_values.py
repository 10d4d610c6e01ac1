"""Which elements of its own arrays a kernel's threads touch, worked out for all threads of a block before it runs.

An index is known where it is made of threadIdx, sizes, literals, integer arguments, counters of loops over known
ranges, and variables that hold such. A loop that changes variables for all threads alike, as in ``s //= 2``, is gone
through. All else is unknown, and taken for any value. Conditions count likewise: what a thread surely does not reach,
it does not touch.

Values are int64 arrays whose first axis is the block's threads, with one more axis for each loop around.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from p2pcompute.execution._api import ArgSpec, Launch, ScalarSpec
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._guard_scratch import is_atomic
from p2pcompute.execution._language import AXES

__all__ = ["THREADS", "IndexWalk", "Site", "Values", "index_values"]

Values: TypeAlias = np.ndarray[Any, Any]
THREADS: Final = 1024  # of a block at most
_MOST: Final = 1 << 20  # values of one index: threads times steps of the loops around it
_ALL: Final = 1 << 29  # values of all expressions: a few seconds, which only an attack takes
_BOUND: Final = 1 << 40  # numbers beyond are taken for unknown, so that nothing here wraps
_LOOP_STEPS: Final = 1 << 16
_TURNS: Final = 256  # of a loop that is gone through
_EFFORT: Final = 50_000  # assignments in all of them
_NODES: Final = 1_000_000  # of the expressions that are worked out there: a few seconds, likewise
_TWO: Final = np.zeros(2, np.int64)
_ENDS = ast.Return | ast.Break | ast.Continue


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place that indexes an array. `indices`: values for each axis, or None where unknown. `reached`: whether
    each thread may come there, in each step. All have as many axes as `reached`, and broadcast. `loops`: ids of the
    loops that the axes behind the first stand for, `turns` how many each has; an axis on which nothing depends has the
    length 1."""

    indices: tuple[Values | None, ...]
    reached: Values
    loops: tuple[int, ...]
    turns: tuple[int, ...]

    def depends(self) -> set[int]:
        """The loops in whose turns different elements may be touched, or by different threads."""
        shapes = [self.reached.shape, *(index.shape for index in self.indices if index is not None)]
        return {loop for axis, loop in enumerate(self.loops, start=1) if any(shape[axis] > 1 for shape in shapes)}

    def touches(self, shape: Sequence[int], apart: Collection[int] = ()) -> Values | None:
        """What is touched within `shape`, as sorted numbers ``element * 1024 + thread``; None where that is unknown.

        Args:
            shape: lengths of the last axes that are indexed.
            apart: ids of loops; elements touched in different steps of them count as different ones.
        """
        element: Values = np.zeros((1,) * self.reached.ndim, np.int64)
        inside = self.reached
        size = 1
        for index, length in zip(self.indices[len(self.indices) - len(shape) :], shape, strict=True):
            if index is None:
                return None
            element = element * length + index
            inside = inside & (index >= 0) & (index < length)
            size *= length
        for axis, loop in enumerate(self.loops, start=1):
            if loop in apart:
                steps = self.turns[axis - 1]
                step = np.arange(steps).reshape((-1,) + (1,) * (inside.ndim - 1 - axis))
                if not _fit(element, step):
                    return None
                element, size = element * steps + step, size * steps
        if size >= _BOUND:
            return None
        threads = np.arange(inside.shape[0]).reshape((-1,) + (1,) * (inside.ndim - 1))
        if np.prod(np.broadcast_shapes(element.shape, inside.shape), dtype=np.int64) > _MOST:
            return None
        element, inside, threads = np.broadcast_arrays(element, inside, threads)
        return np.unique(element[inside] * THREADS + threads[inside])

    def within(self, shape: Sequence[int]) -> bool:
        """Whether every touch surely lies within `shape`."""
        for index, length in zip(self.indices, shape, strict=True):
            if index is None or bool((self.reached & ((index < 0) | (index >= length))).any()):
                return False
        return True


def index_values(
    admitted: Admitted, launch: Launch, args: Sequence[ArgSpec], integers: Collection[str]
) -> dict[int, Site]:
    """What is known of every index into an array by name in the kernel.

    Args:
        admitted, launch, args: the kernel and what it is bound to.
        integers: names of variables that are int64 or bool.

    Returns:
        By the ids of the index expressions (``node.slice``; for an atomic operation its second argument). What is in
        none of the launch's threads reached is left out.
    """
    walk = IndexWalk(admitted, launch, dict(zip(admitted.entry.params, args, strict=True)), integers)
    walk.block(admitted.entry.node.body, np.ones(launch.threads_per_block, np.bool_))
    return walk.sites


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """A loop whose turns are known: how many, what variables are in each, and what they are behind the last."""

    turns: int
    values: Mapping[str, list[int]]
    last: Mapping[str, Values]


class IndexWalk:
    """Goes through a kernel's statements with what is known of its variables. `only_needed`: whether a load counts
    only where its value is needed, as that of ``b`` in ``a and b`` is not where a is false; code may load it there."""

    only_needed = False

    def __init__(
        self, admitted: Admitted, launch: Launch, specs: Mapping[str, ArgSpec], integers: Collection[str]
    ) -> None:
        self.entry = admitted.entry
        self.launch = launch
        self.specs = specs
        self.sites: dict[int, Site] = {}
        self.known: dict[str, Values] = {}
        self.depth = 1
        self.loops: list[int] = []
        self.lengths: list[int] = []
        self.integers = integers
        self.effort = 0
        self.nodes = 0
        self.computed = 0
        places = np.arange(launch.threads_per_block, dtype=np.int64)
        self.threads: list[Values] = []
        for axis in range(3):
            places, inside = np.divmod(places, launch.block[axis])
            self.threads.append(inside)
        for name, spec in specs.items():
            if not isinstance(spec, ScalarSpec) or spec.varies or spec.dtype in ("uint64", "float32", "float64"):
                continue
            if name in integers and abs(int(spec.value)) < _BOUND:
                self.known[name] = np.array([int(spec.value)], np.int64)

    # Statements

    def block(self, body: Sequence[ast.stmt], reached: Values) -> None:
        for statement in body:
            reached = self.statement(statement, reached)

    def statement(self, node: ast.stmt, reached: Values) -> Values:
        """Walk one statement; returns where threads may be behind it."""
        match node:
            case ast.Assign(targets=targets, value=value):
                self.expression(value, reached)
                parts = value.elts if isinstance(value, ast.Tuple) else [value]
                found = [self.value(part) for part in parts]  # all are read before one is written
                for target in targets:
                    if isinstance(target, ast.Tuple):
                        for place, element in enumerate(target.elts):
                            self.target(element, found[place] if len(found) == len(target.elts) else None, reached)
                    else:
                        self.target(target, found[0], reached)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                self.expression(value, reached)
                have = ast.Name(id=name, ctx=ast.Load())
                self.target(target, self.value(ast.BinOp(left=have, op=op, right=value)), reached)
            case ast.AugAssign(target=target, value=value):
                self.expression(value, reached)
                self.touch(target, reached)
            case ast.If(test=test, body=body, orelse=orelse):
                self.expression(test, reached)
                true, false = self.truth(test)
                before = dict(self.known)
                self.block(body, self.narrow(reached, true))
                self.known = dict(before)
                self.block(orelse, self.narrow(reached, false))
                self.known = before
                self.forget([*body, *orelse])
                if isinstance(body[-1], _ENDS):
                    reached = self.narrow(reached, false)
                if orelse and isinstance(orelse[-1], _ENDS):
                    reached = self.narrow(reached, true)
            case ast.While(test=test, body=body):
                self.while_loop(node, test, body, reached)
            case ast.For(target=ast.Name(id=name), iter=ast.Call(args=bounds), body=body):
                for bound in bounds:
                    self.expression(bound, reached)
                self.loop(node, name, bounds, body, reached)
            case ast.Expr(value=ast.Call(args=arguments) as call):  # a barrier, an atomic operation, a device function
                if is_atomic(call):
                    self.record(arguments[1], reached)
                self.expression(call, reached)
            case _:
                pass
        return reached

    def target(self, target: ast.expr, value: Values | None, reached: Values) -> None:
        if not isinstance(target, ast.Name):
            self.touch(target, reached)
        elif value is not None and target.id in self.integers:
            self.known[target.id] = value
        else:
            self.known.pop(target.id, None)

    def forget(self, body: Sequence[ast.stmt]) -> None:
        """What is assigned in `body` is not known."""
        for name in _stored(body):
            self.known.pop(name, None)

    def narrow(self, reached: Values, test: Values) -> Values:
        dims = max(reached.ndim, test.ndim)
        reached, test = _deep(reached, dims), _deep(test, dims)
        if test.all() or not _fit(reached, test):
            return reached  # more than is reached does no harm
        return reached & test

    def while_loop(self, node: ast.stmt, test: ast.expr, body: list[ast.stmt], reached: Values) -> None:
        counted = self.counted(body, test=test)
        self.forget(body)
        self.expression(test, reached)
        if counted is None:
            self.block(body, self.narrow(reached, self.truth(test)[0]))
            self.forget(body)
        else:
            self.turns(node, counted, body, reached)

    def turns(self, node: ast.stmt, counted: _Counted, body: list[ast.stmt], reached: Values) -> None:
        """Walk the body of a loop whose turns are known, with an axis for them."""
        if counted.turns:
            self.depth += 1
            self.loops.append(id(node))
            self.lengths.append(counted.turns)
            for name, values in counted.values.items():
                self.known[name] = np.array(values, np.int64).reshape((1,) * (self.depth - 1) + (-1,))
            self.block(body, _deep(reached, self.depth))
            self.loops.pop()
            self.lengths.pop()
            self.depth -= 1
        self.forget(body)
        if not _leaves(body):
            self.known.update(counted.last)

    def counted(self, body: list[ast.stmt], *, test: ast.expr | None = None, turns: int = 0) -> _Counted | None:
        """Go through a loop's turns with the variables that it changes the same way for all threads: ``s //= 2``.

        The loop ends when `test` fails, or after `turns`. None where that is not known, or there are no such variables.
        """
        before = self.known
        changed = _stored(body)
        base = {name: value for name, value in before.items() if name not in changed}
        updates: list[tuple[str, ast.expr]] = []
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    updates.append((name, value))
                case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                    have = ast.Name(id=name, ctx=ast.Load())
                    updates.append((name, ast.BinOp(left=have, op=op, right=value)))
                case _:
                    nested = _stored([statement])
                    changed -= nested  # under a condition, or in a loop of its own
        names = {
            name
            for name, _ in updates
            if name in changed and name in self.integers and before.get(name, _TWO).size == 1
        }
        try:
            while names and not _leaves(body, ast.Continue):
                found = self.go_through(base, {name: before[name] for name in names}, updates, test, turns)
                if not isinstance(found, str):
                    return found
                names.discard(found)
                if not found:
                    break
        finally:
            self.known = before
        return None

    def go_through(
        self,
        base: Mapping[str, Values],
        state: dict[str, Values],
        updates: Sequence[tuple[str, ast.expr]],
        test: ast.expr | None,
        turns: int,
    ) -> _Counted | str:
        """The turns, or the name of a variable that is not known in one of them, or nothing where the end is not."""
        values: dict[str, list[int]] = {name: [] for name in state}
        self.known = {**base, **state}
        looked_at = [update for name, update in updates if name in values] + ([] if test is None else [test])
        nodes = sum(1 for expression in looked_at for _ in ast.walk(expression))
        for turn in range(_TURNS + 1):
            self.nodes += nodes
            if self.nodes > _NODES:
                return ""
            if test is None:
                ended = turn == turns
            else:
                true, false = self.truth(test)
                ended = not true.any()
                if not ended and false.any():
                    return ""
            if ended:
                last = {name: self.known[name] for name in values}
                return _Counted(turns=turn, values=values, last=last)
            for name, list_ in values.items():
                list_.append(int(self.known[name].reshape(-1)[0]))
            for name, update in updates:
                self.effort += 1
                if name in values:
                    value = self.value(update)
                    if value is None or value.size != 1:
                        return name
                    self.known[name] = value.reshape(-1)
            if self.effort > _EFFORT:
                return ""
        return ""

    def loop(self, node: ast.stmt, name: str, bounds: list[ast.expr], body: list[ast.stmt], reached: Values) -> None:
        values = [self.value(bound) for bound in bounds]
        start, step = np.array([0]), np.array([1])
        steps = None
        if all(value is not None for value in values):
            numbers = [value for value in values if value is not None]
            if len(numbers) > 1:
                start = numbers[0]
            stop = numbers[0] if len(numbers) == 1 else numbers[1]
            if len(numbers) == 3:
                step = numbers[2]
            start, stop, step = (_deep(number, self.depth) for number in (start, stop, step))
            safe = np.where(step == 0, 1, step)
            steps = np.where(step == 0, 0, np.maximum(0, -((start - stop) // safe)))
        most = -1 if steps is None else int(steps.max(initial=0))
        inner: list[ast.stmt] = list(body)
        single = name in self.integers and name not in _stored(inner)
        known = steps is not None and single and most <= _LOOP_STEPS and steps.size * most <= _MOST
        counted = None
        self.known.pop(name, None)
        if steps is not None and steps.size == 1 and 0 < most <= _TURNS:
            counted = self.counted(inner, turns=most)
        self.forget(inner)
        if steps is not None and known and most > 0:
            count = np.arange(most, dtype=np.int64)
            self.depth += 1
            self.loops.append(id(node))
            self.lengths.append(most)
            self.known[name] = start[..., None] + count * step[..., None]
            if counted is not None:
                for other, values_ in counted.values.items():
                    self.known[other] = np.array(values_, np.int64).reshape((1,) * (self.depth - 1) + (-1,))
            self.block(inner, self.narrow(_deep(reached, self.depth), count < steps[..., None]))
            self.loops.pop()
            self.lengths.pop()
            self.depth -= 1
        elif most != 0:
            self.block(inner, reached)
        self.forget(inner)
        self.known.pop(name, None)
        if counted is not None and not _leaves(inner):
            self.known.update(counted.last)

    # Expressions

    def expression(self, node: ast.expr, reached: Values) -> None:
        """Find the loads in an expression."""
        match node:
            case ast.IfExp(test=test, body=body, orelse=orelse):
                true, false = self.truth(test)
                self.expression(test, reached)
                self.expression(body, self.narrow(reached, true))
                self.expression(orelse, self.narrow(reached, false))
            case ast.Subscript():
                self.touch(node, reached)
            case ast.BoolOp(op=op, values=values) if self.only_needed:
                for value in values:
                    self.expression(value, reached)
                    true, false = self.truth(value)
                    reached = self.narrow(reached, true if isinstance(op, ast.And) else false)
            case ast.Call(func=ast.Name(id=name), args=arguments) if name != "len":
                for argument in arguments:
                    self.expression(argument, reached)
                    if isinstance(argument, ast.Name) and argument.id in self.entry.scratch:  # a device function has it
                        self.record(argument, reached)
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.expression(child, reached)

    def touch(self, node: ast.expr, reached: Values) -> None:
        if isinstance(node, ast.Subscript):
            self.expression(node.slice, reached)
            if isinstance(node.value, ast.Name):
                self.record(node.slice, reached)

    def record(self, index: ast.expr, reached: Values) -> None:
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        found = [self.value(part) for part in parts]
        dims = self.depth
        deep = tuple(None if value is None else _deep(value, dims) for value in found)
        shape = np.broadcast_shapes(_deep(reached, dims).shape, *(value.shape for value in deep if value is not None))
        if np.prod(shape, dtype=np.int64) > _MOST:
            deep = (None,) * len(parts)
        reached = _deep(reached, self.depth)
        self.found(index, Site(indices=deep, reached=reached, loops=tuple(self.loops), turns=tuple(self.lengths)))

    def found(self, key: ast.expr, site: Site) -> None:
        """Take in what is known of a touch of an array. Called once for each, but twice where a loop is gone through
        in two ways: the last word counts."""
        self.sites[id(key)] = site

    def truth(self, node: ast.expr) -> tuple[Values, Values]:
        """Where a condition may be true, and where it may be false."""
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self.truth(value) for value in values]
                true, false = parts[0]
                for other_true, other_false in parts[1:]:
                    dims = max(true.ndim, false.ndim, other_true.ndim, other_false.ndim)
                    true, false, other_true, other_false = (
                        _deep(one, dims) for one in (true, false, other_true, other_false)
                    )
                    if not _fit(true, false, other_true, other_false):
                        return np.array([True]), np.array([True])
                    if isinstance(op, ast.And):
                        true, false = true & other_true, false | other_false
                    else:
                        true, false = true | other_true, false & other_false
                return true, false
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                true, false = self.truth(operand)
                return false, true
            case _:
                value = self.value(node)
                if value is None:
                    return np.array([True]), np.array([True])
                return value != 0, value == 0

    def value(self, node: ast.expr) -> Values | None:
        """The values of an integer or bool expression over threads and steps, or None."""
        if self.computed > _ALL:
            return None
        found = self._value(node)
        self.computed += 0 if found is None else found.size
        if found is None or found.size > _MOST or (found.size and np.abs(found).max() >= _BOUND):
            return None
        return found

    def _value(self, node: ast.expr) -> Values | None:
        match node:
            case ast.Constant(value=bool() | int() as number):
                return np.array([number], np.int64) if abs(number) < _BOUND else None
            case ast.Name(id=name):
                return self.known.get(name)
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr=triple), attr=axis):
                return self.place(triple, AXES.index(axis))
            case ast.Attribute(value=ast.Name(id=name), attr="size" | "ndim" as attr) if name != "cuda":
                shape = self.shape(name)
                return None if shape is None else np.array([len(shape) if attr == "ndim" else _product(shape)])
            case ast.Subscript(value=ast.Attribute(value=ast.Name(id=name)), slice=ast.Constant(value=int() as place)):
                shape = self.shape(name)
                return None if shape is None or place >= len(shape) else np.array([shape[place]], np.int64)
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)]):
                shape = self.shape(name)
                return None if shape is None else np.array([shape[0]], np.int64)
            case ast.Call(func=ast.Name(id="int" | "abs" | "min" | "max" as name), args=arguments):
                return self.builtin(name, arguments)
            case ast.UnaryOp(op=op, operand=operand):
                value = self.value(operand)
                if value is None or isinstance(op, ast.Invert):
                    return None
                if isinstance(op, ast.Not):
                    return np.where(value == 0, 1, 0)
                if isinstance(op, ast.USub):
                    return np.negative(value)
                return value
            case ast.BinOp(left=left, op=op, right=right):
                one, other = self.value(left), self.value(right)
                return None if one is None or other is None else _binary(op, *_aligned(one, other))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self.compare(left, ops, comparators)
            case ast.BoolOp():
                true, false = self.truth(node)
                return None if (true & false).any() else true.astype(np.int64)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                true, false = self.truth(test)
                one, other = self.value(body), self.value(orelse)
                if one is None or other is None or (true & false).any():
                    return None
                dims = max(true.ndim, one.ndim, other.ndim)
                true, one, other = _deep(true, dims), _deep(one, dims), _deep(other, dims)
                return np.where(true, one, other) if _fit(true, one, other) else None
            case _:
                return None

    def place(self, triple: str, axis: int) -> Values | None:
        match triple:
            case "threadIdx":
                return self.threads[axis]
            case "blockDim":
                return np.array([self.launch.block[axis]], np.int64)
            case "gridDim":
                return np.array([self.launch.grid[axis]], np.int64)
            case _:
                return None

    def shape(self, name: str) -> tuple[int, ...] | None:
        if name in self.entry.scratch:
            return self.entry.scratch[name].shape
        spec = self.specs.get(name)
        return None if spec is None or isinstance(spec, ScalarSpec) else spec.shape

    def builtin(self, name: str, arguments: list[ast.expr]) -> Values | None:
        values = [self.value(argument) for argument in arguments]
        numbers = [value for value in values if value is not None]
        if len(numbers) != len(values):
            return None
        result = numbers[0]
        if name == "abs":
            return np.abs(result)
        for other in numbers[1:]:
            result, other = _aligned(result, other)
            if not _fit(result, other):
                return None
            result = np.minimum(result, other) if name == "min" else np.maximum(result, other)
        return result

    def compare(self, left: ast.expr, ops: list[ast.cmpop], comparators: list[ast.expr]) -> Values | None:
        values = [self.value(operand) for operand in (left, *comparators)]
        numbers = [value for value in values if value is not None]
        if len(numbers) != len(values):
            return None
        dims = max(number.ndim for number in numbers)
        numbers = [_deep(number, dims) for number in numbers]
        if not _fit(*numbers):
            return None
        result: Values = np.ones((1,) * dims, np.bool_)
        for op, one, other in zip(ops, numbers, numbers[1:], strict=False):
            match op:
                case ast.Lt():
                    pair = one < other
                case ast.LtE():
                    pair = one <= other
                case ast.Gt():
                    pair = one > other
                case ast.GtE():
                    pair = one >= other
                case ast.Eq():
                    pair = one == other
                case _:
                    pair = one != other
            result = result & pair
        return result.astype(np.int64)


def _fit(*values: Values) -> bool:
    """Whether values of as many axes stay within bounds together."""
    return int(np.prod(np.broadcast_shapes(*(value.shape for value in values)), dtype=np.int64)) <= _MOST


def _deep(value: Values, dims: int) -> Values:
    """With axes of length 1 for the loops further in."""
    return value.reshape(value.shape + (1,) * (dims - value.ndim))


def _aligned(one: Values, other: Values) -> tuple[Values, Values]:
    dims = max(one.ndim, other.ndim)
    return _deep(one, dims), _deep(other, dims)


def _binary(op: ast.operator, one: Values, other: Values) -> Values | None:
    if not _fit(one, other):
        return None
    match op:
        case ast.Add():
            return one + other
        case ast.Sub():
            return one - other
        case ast.Mult():
            if float(np.abs(one).max(initial=0)) * float(np.abs(other).max(initial=0)) >= _BOUND:
                return None
            return one * other
        case ast.FloorDiv():
            return np.where(other == 0, 0, one // np.where(other == 0, 1, other))
        case ast.Mod():
            return np.where(other == 0, 0, one % np.where(other == 0, 1, other))
        case ast.BitAnd():
            return one & other
        case ast.BitOr():
            return one | other
        case ast.BitXor():
            return one ^ other
        case ast.LShift() | ast.RShift():
            if other.size and (other.min() < 0 or other.max() > 20):
                return None
            return one << other if isinstance(op, ast.LShift) else one >> other
        case _:
            return None


def _product(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _stored(body: Sequence[ast.stmt]) -> set[str]:
    """Names that are assigned in a list of statements."""
    return {
        inner.id
        for statement in body
        for inner in ast.walk(statement)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
    }


def _leaves(body: Sequence[ast.stmt], *kinds: type[ast.stmt]) -> bool:
    """Whether there is a break, or one of `kinds`, that may be this loop's. Those of loops in it count too."""
    wanted = kinds or (ast.Break,)
    return any(isinstance(inner, wanted) for statement in body for inner in ast.walk(statement))
