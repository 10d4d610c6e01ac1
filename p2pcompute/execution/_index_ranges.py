"""Bounds of a kernel's integers, worked out from its text and what it is bound to: which loads surely stay inside.

An interval for each integer variable at each place, from the launch, the arguments, ranges of loops and the conditions
that the place stands under (Cousot and Cousot, "Abstract interpretation", 1977, without widening: what a loop assigns
is any number within it). What is proved needs no test in the code; a load of which nothing is proved keeps its own.
Nothing here decides what a kernel gives.

Operands of ``and`` and ``or`` are not taken to stand under each other: lowered code evaluates both.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2pcompute.execution._api import ArgSpec, InputSpec, Launch, ScalarSpec
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._guard_places import grid_axis
from p2pcompute.execution._language import AXES

__all__ = ["IndexRanges", "Interval", "Reach", "index_ranges"]

Interval: TypeAlias = tuple[int, int]
Known: TypeAlias = dict[str, Interval]

_MIN: Final = -(2**63)
_MAX: Final = 2**63 - 1
_ANY: Final = (_MIN, _MAX)
_BOOL: Final = (0, 1)
_NEAR: Final = 2**62  # so far from a place no sum has wrapped
_ELEMENTS: Final[Mapping[str, Interval]] = {
    "bool": _BOOL,
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": _ANY,
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
}
_SWAPPED: Final[Mapping[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq,
}  # fmt: skip
_OPPOSITE: Final[Mapping[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reach:
    """How far from the thread's own place an index of a split input lies, as far as is known.

    Attributes:
        sure: it is at least and at most so far.
        written: it is made from the place, by what is added to it.
        attained: both ends of `sure` are met by each thread that comes there.
    """

    sure: Interval | None
    written: bool
    attained: bool


class IndexRanges:
    """What is known: of every index in the kernel, and of its comparisons. Made by `index_ranges`.

    `reaches` has for each index expression of a split input the `Reach` of its leading indices. `once` has the ids of
    loops by strides that no thread goes through twice, and of each whether every thread that comes there does once.
    """

    def __init__(self) -> None:
        self.sites: dict[int, tuple[Interval | None, ...]] = {}
        self.always: dict[int, bool] = {}
        self.never: dict[int, bool] = {}
        self.compared: dict[int, tuple[Interval | None, ...]] = {}
        self.reaches: dict[int, tuple[Reach, ...]] = {}
        self.once: dict[int, bool] = {}

    def inside(self, key: ast.expr, axis: int, length: int) -> bool:
        """Whether index number `axis` of the index expression `key` (``node.slice``) is surely from 0 to `length`."""
        found = self.sites.get(id(key))
        interval = found[axis] if found is not None and axis < len(found) else None
        return interval is not None and interval[0] >= 0 and interval[1] < length

    def holds(self, node: ast.Compare) -> bool:
        """Whether a comparison of what differs from thread to thread is surely true."""
        return self.always.get(id(node), False)

    def fails(self, node: ast.Compare) -> bool:
        """Whether it is surely false; asked of a part of a launch only (`index_ranges`)."""
        return self.never.get(id(node), False)


def index_ranges(
    admitted: Admitted,
    launch: Launch,
    args: Sequence[ArgSpec],
    extents: tuple[int, int, int],
    integers: Collection[str],
    within: Sequence[Interval] | None = None,
) -> IndexRanges:
    """Go through the kernel once.

    Args:
        admitted, launch, args: the kernel and what it is bound to.
        extents: for each grid axis, how many places along it run.
        integers: names of variables that are int64 or bool.
        within: for each grid axis the first and the last place of the threads that are asked about; all that run
            without it.
    """
    specs = dict(zip(admitted.entry.params, args, strict=True))
    walk = _Walk(admitted, launch, specs, extents, frozenset(integers), within)
    walk.block(admitted.entry.node.body)
    return walk.found


class _Walk:
    def __init__(
        self,
        admitted: Admitted,
        launch: Launch,
        specs: Mapping[str, ArgSpec],
        extents: tuple[int, int, int],
        integers: frozenset[str],
        within: Sequence[Interval] | None,
    ) -> None:
        self.found = IndexRanges()
        self.within = within
        self.scratch = admitted.entry.scratch
        self.grid = admitted.grid.variables
        self.launch = launch
        self.specs = specs
        self.extents = extents
        self.integers = integers
        self.known: Known = {}  # also under name@axis: how far from the thread's place along a grid axis
        self.splits = {
            name: spec.split for name, spec in specs.items() if isinstance(spec, InputSpec) and spec.split is not None
        }
        self.counters: frozenset[str] = frozenset()  # of loops around, each of whose turns comes to what is looked at
        for name, spec in specs.items():
            if not isinstance(spec, ScalarSpec) or spec.varies:
                continue
            if name in integers and spec.dtype in _ELEMENTS:
                self.known[name] = (int(spec.value), int(spec.value))

    # Statements

    def block(self, body: Sequence[ast.stmt]) -> bool:
        """Go through statements; whether what comes behind them may be reached."""
        through = True
        for statement in body:
            if not self.statement(statement):
                through = False
        return through

    def statement(self, node: ast.stmt) -> bool:
        match node:
            case ast.Assign(targets=targets, value=value):
                self.expression(value)
                intervals = self.several(value)
                parts = value.elts if isinstance(value, ast.Tuple) else [value]
                moved = [self.distances(part) for part in parts]
                for target in targets:
                    elements = target.elts if isinstance(target, ast.Tuple) else [target]
                    for place, element in enumerate(elements):
                        self.target(element, intervals[place] if len(intervals) == len(elements) else None)
                        if len(moved) == len(elements):
                            self.note_distances(element, moved[place])
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                self.expression(value)
                sum_ = ast.BinOp(left=ast.Name(id=name, ctx=ast.Load()), op=op, right=value)
                away = self.distances(sum_)
                self.target(target, self.value(sum_))
                self.note_distances(target, away)
            case ast.AugAssign(target=target, value=value):
                self.expression(value)
                self.target(target, None)
            case ast.If(test=test, body=body, orelse=orelse):
                return self.branch(test, body, orelse)
            case ast.While():
                self.while_loop(node)
            case ast.For(target=ast.Name(id=name), iter=ast.Call(args=bounds)):
                self.range_loop(node, name, bounds)
            case ast.Return(value=value):
                if value is not None:
                    self.expression(value)
                return False
            case ast.Break() | ast.Continue():
                return False
            case ast.Expr(value=ast.Call(args=arguments)):  # a barrier, or an atomic operation
                for argument in arguments[1:]:
                    self.expression(argument)
            case _:
                pass
        return True

    def branch(self, test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> bool:
        self.expression(test)
        before, counters = dict(self.known), self.counters
        self.counters = frozenset()
        self.narrow(test, True)
        one_through = self.block(body)
        one, self.known = self.known, before
        self.narrow(test, False)
        other_through = self.block(orelse)
        if one_through and other_through:
            both = self.known.keys() & one.keys()
            self.known = {name: _hull(one[name], self.known[name]) for name in both}
        elif one_through:
            self.known = one
        self.counters = counters
        return one_through or other_through

    def while_loop(self, node: ast.While) -> None:
        entry = dict(self.known)
        self.forget(node.body)
        before, counters = dict(self.known), self.counters
        self.counters = frozenset()
        self.expression(node.test)
        if (walked := _steps(node)) is not None:
            name, stop, step = walked
            start = entry.get(name)
            limits = self.value(stop), self.value(step)  # each time around: nothing of what the body sets is known
            if start is not None and limits[0] is not None and limits[1] is not None:
                wraps = start[1] + limits[1][1] > _MAX  # then it goes on from below
                if not wraps and self.at_most_once(node, start, limits[0], limits[1]) and not self.splits:
                    self.known = entry
        self.narrow(node.test, True)
        self.block(node.body)
        self.known, self.counters = before, counters

    def at_most_once(self, node: ast.While | ast.For, start: Interval, stop: Interval, step: Interval) -> bool:
        """Whether a loop from `start`, which differs from thread to thread, to below `stop` has one turn at most. (What
        is refused of split inputs is decided as in any loop.)"""
        if not (start[0] < start[1] and step[0] > 0 and stop[1] - start[0] <= step[0]) or _exits(node.body):
            return False
        self.found.once[id(node)] = start[1] < stop[0]
        return True

    def range_loop(self, node: ast.For, name: str, bounds: Sequence[ast.expr]) -> None:
        body = node.body
        for bound in bounds:
            self.expression(bound)
        numbers = [self.value(bound) or _ANY for bound in bounds]
        start, stop = ((0, 0), numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
        step = numbers[2] if len(numbers) == 3 else (1, 1)
        away = [self.distances(bound) for bound in bounds[:2]]
        entry = dict(self.known)
        self.forget(body)
        self.drop(name)
        before, counters = dict(self.known), self.counters
        if not (step[0] > 0 and start[1] < stop[0]):  # it may have no turn
            self.counters = frozenset()
        if self.at_most_once(node, start, stop, step) and not self.splits:
            self.known = entry
            self.drop(name)
            if name in self.integers:
                self.known[name] = (start[0], max(start[0], min(start[1], stop[1] - 1)))
        elif name in self.integers:
            if len(away) == 2 and step[0] > 0:
                for axis in away[0].keys() & away[1].keys():
                    low = away[0][axis][0]
                    self.known[f"{name}@{axis}"] = (low, max(low, away[1][axis][1] - 1))
            if step == (1, 1) and start[0] == start[1] < stop[0] == stop[1] and not _leaves(body, name):
                self.counters |= {name}
            if step[0] > 0:
                self.known[name] = (start[0], max(start[0], stop[1] - 1))
            elif step[1] < 0:
                self.known[name] = (min(start[1], stop[0] + 1), start[1])
        self.block(body)
        self.known, self.counters = before, counters

    def target(self, target: ast.expr, value: Interval | None) -> None:
        if isinstance(target, ast.Subscript):
            self.expression(target.slice)
            self.record(target.slice)
        elif isinstance(target, ast.Name):
            self.drop(target.id)
            if value is not None and target.id in self.integers:
                self.known[target.id] = value

    def drop(self, name: str) -> None:
        """Nothing is known of a variable."""
        for key in (name, *(f"{name}@{axis}" for axis in range(3))):
            self.known.pop(key, None)

    def forget(self, body: Sequence[ast.stmt]) -> None:
        """What is assigned in `body` may be any number."""
        for statement in body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    self.drop(node.id)

    # Conditions

    def narrow(self, test: ast.expr, true: bool) -> None:
        """Take into account that `test` is true, or is not."""
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.narrow(operand, not true)
            case ast.BoolOp(op=word, values=values) if isinstance(word, ast.And) is true:
                for value in values:  # all are true, or none is
                    self.narrow(value, true)
            case ast.Compare(left=left, ops=ops, comparators=comparators) if true or len(ops) == 1:
                for op, one, other in zip(ops, [left, *comparators], comparators, strict=False):
                    kind = type(op) if true else _OPPOSITE[type(op)]
                    self.bound(one, kind, other)
                    self.bound(other, _SWAPPED[kind], one)
            case _:
                pass

    def bound(self, node: ast.expr, kind: type[ast.cmpop], other: ast.expr) -> None:
        """``node kind other`` is true: bound the name in `node`, which may stand beside a number that is added."""
        limit = self.value(other)
        moved: Interval = (0, 0)
        match node:
            case ast.BinOp(left=ast.Name() as name, op=ast.Add() | ast.Sub() as op, right=right):
                have, by = self.value(name), self.value(right)
                if have is None or by is None:
                    return
                moved = (-by[1], -by[0]) if isinstance(op, ast.Sub) else by
                if _sure((have[0] + moved[0], have[1] + moved[1])) == _ANY:
                    return  # the sum may wrap
            case ast.Name() as name:
                pass
            case _:
                return
        if limit is None or (name.id not in self.integers and name.id not in self.grid):
            return
        low, high = self.value(name) or _ANY
        if kind in (ast.Lt, ast.LtE, ast.Eq):
            high = min(high, limit[1] - (kind is ast.Lt) - moved[0])
        if kind in (ast.Gt, ast.GtE, ast.Eq):
            low = max(low, limit[0] + (kind is ast.Gt) - moved[1])
        if kind is ast.NotEq and limit[0] == limit[1] and moved[0] == moved[1]:
            low += low == limit[0] - moved[0]
            high -= high == limit[0] - moved[0]
        if low <= high:  # else it is not reached
            self.known[name.id] = (low, high)

    # Expressions

    def expression(self, node: ast.expr) -> None:
        """Note the loads and comparisons in an expression."""
        match node:
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.expression(test)
                before, counters = dict(self.known), self.counters
                self.counters = frozenset()
                self.narrow(test, True)
                self.expression(body)
                self.known = dict(before)
                self.narrow(test, False)
                self.expression(orelse)
                self.known, self.counters = before, counters
                return
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                self.record(index)
                if name in self.splits:
                    self.record_reach(name, index)
            case ast.Compare():
                self.comparison(node)
            case _:
                pass
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.expression(child)

    def record(self, index: ast.expr) -> None:
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        intervals = tuple(self.value(part) for part in parts)
        self.found.sites[id(index)] = _hulls(self.found.sites.get(id(index)), intervals)

    def comparison(self, node: ast.Compare) -> None:
        key, found = id(node), self.found
        operands = tuple(self.value(operand) for operand in (node.left, *node.comparators))
        found.compared[key] = _hulls(found.compared.get(key), operands)
        if any(one is None for one in operands) or all(one is not None and one[0] == one[1] for one in operands):
            outcomes: list[bool | None] = [None]  # the same for all threads stays: other arguments need no other code
        else:
            outcomes = [
                None if one is None or other is None else _outcome(op, one, other)
                for op, one, other in zip(node.ops, operands, operands[1:], strict=False)
            ]
        found.always[key] = all(outcomes) and found.always.get(key, True)
        if self.within is not None:
            found.never[key] = any(outcome is False for outcome in outcomes) and found.never.get(key, True)

    # Distances from the thread's place

    def record_reach(self, name: str, index: ast.expr) -> None:
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        found: list[Reach] = []
        for part, axis in zip(parts, self.splits[name].axes, strict=False):
            moved = self.moved(part, axis)
            found.append(
                Reach(
                    sure=self.distance(part, axis),
                    written=moved is not None,
                    attained=moved is not None and self.linear(part) is not None,
                )
            )
        have = self.found.reaches.get(id(index))
        if have is not None:
            found = [
                Reach(
                    sure=None if one.sure is None or other.sure is None else _hull(one.sure, other.sure),
                    written=one.written and other.written,
                    attained=one.attained and one == other,
                )
                for one, other in zip(have, found, strict=True)
            ]
        self.found.reaches[id(index)] = tuple(found)

    def distances(self, node: ast.expr) -> dict[int, Interval]:
        """For each grid axis from whose place `node` is made, how far from it it lies."""
        if not self.splits:
            return {}
        found = {axis: self.moved(node, axis) for axis in range(self.launch.dims)}
        return {axis: away for axis, away in found.items() if away is not None}

    def note_distances(self, target: ast.expr, away: Mapping[int, Interval]) -> None:
        if isinstance(target, ast.Name) and target.id in self.integers:
            self.known.update({f"{target.id}@{axis}": interval for axis, interval in away.items()})

    def distance(self, node: ast.expr, axis: int) -> Interval | None:
        """How far from the thread's place along a grid axis `node` lies."""
        moved, value, place = self.moved(node, axis), self.value(node), self.place("grid", axis)
        if value is None or place is None:
            return moved
        far = value[0] - place[1], value[1] - place[0]
        return far if moved is None else (max(far[0], moved[0]), min(far[1], moved[1]))

    def moved(self, node: ast.expr, axis: int) -> Interval | None:
        """The same of an integer that is made from the place."""
        found = self._moved(node, axis)
        return None if found is None or not -_NEAR < found[0] <= found[1] < _NEAR else found

    def _moved(self, node: ast.expr, axis: int) -> Interval | None:
        if grid_axis(node, self.grid) == axis:
            return 0, 0
        match node:
            case ast.Name(id=name) if name in self.integers:
                return self.known.get(f"{name}@{axis}")
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                for one, other in ((left, right), (right, left)):
                    away, by = self.moved(one, axis), self.value(other)
                    if away is not None and by is not None:
                        return away[0] + by[0], away[1] + by[1]
                return None
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                away, by = self.moved(left, axis), self.value(right)
                return None if away is None or by is None else (away[0] - by[1], away[1] - by[0])
            case ast.IfExp(body=body, orelse=orelse):
                if_so, else_so = self.moved(body, axis), self.moved(orelse, axis)
                return None if if_so is None or else_so is None else _hull(if_so, else_so)
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=arguments):
                several = [self.distance(argument, axis) for argument in arguments]
                if all(self.moved(argument, axis) is None for argument in arguments):
                    return None
                return self.builtin(name, several)
            case _:
                return None

    def linear(self, node: ast.expr) -> frozenset[str] | None:
        """The counters that are added to a place, each once; None where there is anything else but numbers."""
        match node:
            case ast.Constant(value=int()):
                return frozenset()
            case ast.Name(id=name) if name in self.counters:
                return frozenset({name})
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
                one, other = self.linear(left), self.linear(right)
                return None if one is None or other is None or one & other else one | other
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.linear(operand)
            case _:
                return frozenset() if grid_axis(node, self.grid) is not None else None

    # Values

    def several(self, node: ast.expr) -> list[Interval | None]:
        """Intervals of the values that a right side gives."""
        match node:
            case ast.Tuple(elts=elements):
                return [self.value(element) for element in elements]
            case ast.Attribute(value=ast.Name(id=name), attr="shape"):
                return [(length, length) for length in self.shape(name) or ()]
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="cuda"), attr=attr), args=[ast.Constant(value=int() as count)]
            ) if count > 1:
                return [self.place(attr, axis) for axis in range(count)]
            case _:
                return [self.value(node)]

    def value(self, node: ast.expr) -> Interval | None:
        """The interval of an int64 or bool expression; None for any other."""
        found = self._value(node)
        return None if found is None else _sure(found)

    def _value(self, node: ast.expr) -> Interval | None:
        if not isinstance(node, ast.Name):
            axis = grid_axis(node, self.grid)
            if axis is not None:
                return self.place("grid", axis)
        match node:
            case ast.Constant(value=bool() | int() as number):
                return (int(number), int(number)) if number <= _MAX else None
            case ast.Name(id=name):
                if name in self.known:
                    return self.known[name]
                if name in self.grid:
                    return self.place("grid", self.grid[name])
                return _ANY if name in self.integers else None
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr=triple), attr=axis_name):
                return self.place(triple, AXES.index(axis_name))
            case ast.Attribute(value=ast.Name(id=name), attr="size" | "ndim" as attr) if name != "cuda":
                shape = self.shape(name)
                if shape is None:
                    return None
                total = 1
                for length in shape:
                    total *= length
                return (len(shape), len(shape)) if attr == "ndim" else (total, total)
            case ast.Subscript(value=ast.Attribute(value=ast.Name(id=name)), slice=ast.Constant(value=int() as place)):
                shape = self.shape(name)
                return None if shape is None or place >= len(shape) else (shape[place], shape[place])
            case ast.Subscript(value=ast.Name(id=name)):
                return self.element(name)
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)]):
                shape = self.shape(name)
                return None if shape is None else (shape[0], shape[0])
            case ast.Call(func=ast.Attribute(value=ast.Name(id="cuda"), attr="gridsize")):
                return self.place("gridsize", 0)
            case ast.Call(func=ast.Name(id="int" | "abs" | "min" | "max" as name), args=arguments):
                return self.builtin(name, [self.value(argument) for argument in arguments])
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not() as op, operand=operand):
                value = self.value(operand)
                if isinstance(op, ast.Not):
                    return _BOOL
                return value if value is None or isinstance(op, ast.UAdd) else (-value[1], -value[0])
            case ast.BinOp(left=left, op=op, right=right):
                one, other = self.value(left), self.value(right)
                return None if one is None or other is None else _binary(op, one, other)
            case ast.Compare() | ast.BoolOp():
                return _BOOL
            case ast.IfExp(body=body, orelse=orelse):
                one, other = self.value(body), self.value(orelse)
                return None if one is None or other is None else _hull(one, other)
            case _:
                return None

    def element(self, name: str) -> Interval | None:
        array = self.scratch.get(name)
        if array is not None:
            return _ELEMENTS.get(array.dtype)
        spec = self.specs.get(name)
        return None if spec is None or isinstance(spec, ScalarSpec) else _ELEMENTS.get(spec.dtype)

    def shape(self, name: str) -> tuple[int, ...] | None:
        if name in self.scratch:
            return self.scratch[name].shape
        spec = self.specs.get(name)
        return None if spec is None or isinstance(spec, ScalarSpec) else spec.shape

    def place(self, what: str, axis: int) -> Interval | None:
        """A number of the launch."""
        block, grid = self.launch.block[axis], self.launch.grid[axis]
        match what:
            case "grid":
                if self.within is not None:
                    return self.within[axis]
                return 0, max(0, min(self.extents[axis], block * grid) - 1)
            case "threadIdx":
                return 0, block - 1
            case "blockIdx":
                return 0, grid - 1
            case "blockDim":
                return block, block
            case "gridDim":
                return grid, grid
            case "gridsize":
                return block * grid, block * grid
            case _:
                return None

    def builtin(self, name: str, values: Sequence[Interval | None]) -> Interval | None:
        numbers = [value for value in values if value is not None]
        if len(numbers) != len(values):
            return None
        low, high = numbers[0]
        if name == "abs":
            if low == _MIN:
                return _ANY
            return (0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
        for other in numbers[1:]:
            low = min(low, other[0]) if name == "min" else max(low, other[0])
            high = min(high, other[1]) if name == "min" else max(high, other[1])
        return low, high


def _leaves(body: Sequence[ast.stmt], counter: str) -> bool:
    """Whether a loop may end early, or counts otherwise than it says."""
    nodes = [node for statement in body for node in ast.walk(statement)]
    return any(
        isinstance(node, ast.Break | ast.Continue | ast.Return)
        or (isinstance(node, ast.Name) and node.id == counter and isinstance(node.ctx, ast.Store))
        for node in nodes
    )


def _steps(node: ast.While) -> tuple[str, ast.expr, ast.expr] | None:
    """Of ``while name < stop:`` with ``name += step`` in each turn the three, where nothing else is done to `name`."""
    match node.test:
        case ast.Compare(left=ast.Name(id=name), ops=[ast.Lt()], comparators=[stop]):
            inner = [one for statement in node.body for one in ast.walk(statement)]
            stores = [one for one in inner if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]
            stores = [one for one in stores if one.id == name]
            for statement in node.body if len(stores) == 1 else ():
                match statement:
                    case ast.AugAssign(target=ast.Name(id=stepped), op=ast.Add(), value=step) if stepped == name:
                        return name, stop, step
                    case _:
                        pass
        case _:
            pass
    return None


def _exits(body: Sequence[ast.stmt]) -> bool:
    """Whether a ``break`` or a ``continue`` of the loop whose body this is stands in it."""
    return any(
        isinstance(statement, ast.Break | ast.Continue)
        or (isinstance(statement, ast.If) and (_exits(statement.body) or _exits(statement.orelse)))
        for statement in body
    )


def _sure(interval: Interval) -> Interval:
    """Where arithmetic may have wrapped, any number."""
    return interval if interval[0] >= _MIN and interval[1] <= _MAX else _ANY


def _hull(one: Interval, other: Interval) -> Interval:
    return min(one[0], other[0]), max(one[1], other[1])


def _hulls(have: tuple[Interval | None, ...] | None, also: tuple[Interval | None, ...]) -> tuple[Interval | None, ...]:
    if have is None:
        return also
    return tuple(
        None if one is None or other is None else _hull(one, other) for one, other in zip(have, also, strict=True)
    )


def _outcome(op: ast.cmpop, one: Interval, other: Interval) -> bool | None:
    """What a comparison of any two numbers of these intervals gives, if it is the same for all."""
    match op:
        case ast.Lt():
            return True if one[1] < other[0] else False if one[0] >= other[1] else None
        case ast.LtE():
            return True if one[1] <= other[0] else False if one[0] > other[1] else None
        case ast.Gt():
            return _outcome(ast.Lt(), other, one)
        case ast.GtE():
            return _outcome(ast.LtE(), other, one)
        case ast.Eq() if one[1] < other[0] or other[1] < one[0]:
            return False
        case ast.NotEq() if one[1] < other[0] or other[1] < one[0]:
            return True
        case _:
            return None


def _binary(op: ast.operator, one: Interval, other: Interval) -> Interval | None:
    match op:
        case ast.Add():
            return one[0] + other[0], one[1] + other[1]
        case ast.Sub():
            return one[0] - other[1], one[1] - other[0]
        case ast.Mult():
            corners = [a * b for a in one for b in other]
            return min(corners), max(corners)
        case ast.FloorDiv() if other[0] > 0:
            corners = [a // b for a in one for b in other]
            return min(corners), max(corners)
        case ast.Mod() if other[0] > 0:
            return one if one[0] >= 0 and one[1] < other[0] else (0, other[1] - 1)
        case ast.BitAnd() if one[0] >= 0 or other[0] >= 0:
            return 0, min(side[1] for side in (one, other) if side[0] >= 0)
        case ast.LShift() if other[0] == other[1] and 0 <= other[0] < 63:
            return one[0] << other[0], one[1] << other[0]
        case ast.RShift() if other[0] == other[1] and 0 <= other[0] < 64:
            return one[0] >> other[0], one[1] >> other[0]
        case ast.FloorDiv() | ast.Mod() | ast.BitAnd() | ast.BitOr() | ast.BitXor() | ast.LShift() | ast.RShift():
            return _ANY
        case _:
            return None  # true division and powers
