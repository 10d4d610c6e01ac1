"""Barriers: where they may stand, and how a kernel falls into what its threads do each and what their block does.

A barrier is reached by all threads of a block or by none. So each test and each range around one is *uniform*: made of
values that are the same for all threads of the block, in control flow that is. Which variables are uniform is found
by taking all for it and dropping those of which it is not sure, until no more fall.

What is uniform is done once for the block; what lies between is cut into *segments*, each run by all threads. A
segment ends at a barrier, and wherever the block's own control flow begins or ends.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from p2pcompute.errors import KernelError
from p2pcompute.execution import _language as lang
from p2pcompute.execution._guard_function import Function

__all__ = ["Barrier", "BlockPlan", "Part", "Segment", "Whole", "is_barrier", "plan_block"]

_MAX_SEGMENTS: Final = 256
_HEADS: Final = 1 << 20


@dataclass(slots=True, eq=False)
class Segment:
    """Statements that each thread runs by itself. `number` counts them; `last` says that nothing follows, so that a
    thread may return in it."""

    number: int
    statements: list[ast.stmt]
    last: bool = False


@dataclass(slots=True, eq=False)
class Whole:
    """A statement of the block: its control flow around segments, or an assignment of a uniform value."""

    statement: ast.stmt


@dataclass(slots=True, eq=False)
class Barrier:
    """A barrier. `number` counts them."""

    number: int


Part = Segment | Whole | Barrier


@dataclass(slots=True, kw_only=True)
class BlockPlan:
    """How a kernel is run by blocks.

    Attributes:
        parts: for each list of statements that is not within a segment, by its id, what it falls into.
        segments: all of them, by number.
        barriers: how many there are; `barrier_numbers` has each one's number by its statement's id.
        block_names: variables that the block holds once.
        uniform: variables that are the same for all threads; those not in `block_names` each thread holds.
        together: pairs of segments (numbers) between which no barrier need lie, both ways around.
        again: segments that may follow themselves without a barrier.
        after: for each barrier, the segments that may follow without another barrier.
        loops: ids of the loops that are not within a segment.
    """

    parts: dict[int, list[Part]] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    barriers: int = 0
    barrier_numbers: dict[int, int] = field(default_factory=dict)
    block_names: frozenset[str] = frozenset()
    uniform: frozenset[str] = frozenset()
    together: frozenset[tuple[int, int]] = frozenset()
    again: frozenset[int] = frozenset()
    after: list[frozenset[int]] = field(default_factory=list)
    loops: frozenset[int] = frozenset()


def is_barrier(node: ast.AST) -> bool:
    """Whether `node` is the statement ``cuda.syncthreads()``."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="cuda"), attr="syncthreads"))):
            return True
        case _:
            return False


def plan_block(kernel: Function, inputs: frozenset[str]) -> BlockPlan:
    """Check the barriers of an admitted kernel and cut it into segments.

    Args:
        kernel: the kernel.
        inputs: its parameters that it never stores into.

    Raises:
        KernelError: threads of one block may part before a barrier.
    """
    uniformity = _Uniformity(kernel, inputs)
    uniformity.settle()
    return _Cutter(kernel, uniformity).run()


def _targets(node: ast.stmt) -> list[ast.expr]:
    match node:
        case ast.Assign(targets=targets):
            found: list[ast.expr] = []
            for target in targets:
                found += target.elts if isinstance(target, ast.Tuple) else [target]
            return found
        case ast.AugAssign(target=target) | ast.For(target=target):
            return [target]
        case _:
            return []


class _Uniformity:
    """Which variables are the same for all threads of a block. `varying` only grows."""

    def __init__(self, kernel: Function, inputs: frozenset[str]) -> None:
        self.kernel = kernel
        self.readable = inputs | {array.name for array in kernel.scratch.values() if array.kind == "const"}
        self.varying: set[str] = set()
        self.parting: dict[int, ast.stmt] = {}  # loops whose threads leave one by one -> where
        self.parted: dict[int, ast.stmt] = {}  # returns and barriers that not all threads need reach -> why
        self.gone: ast.stmt | None = None

    def settle(self) -> None:
        while True:
            before = (len(self.varying), len(self.parting))
            self.parted = {}
            self.gone = None
            self.block(self.kernel.node.body, None, [])
            if before == (len(self.varying), len(self.parting)):
                break

    def block(self, body: Sequence[ast.stmt], why: ast.stmt | None, loops: list[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement, why or self.gone, loops)

    def statement(self, node: ast.stmt, why: ast.stmt | None, loops: list[ast.stmt]) -> None:
        """`why`: the statement at which threads part, if they may have."""
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=elements)], value=ast.Tuple(elts=values)) if why is None:
                for target, value in zip(elements, values, strict=True):
                    if isinstance(target, ast.Name) and not self.uniform(value):
                        self.varying.add(target.id)
            case ast.Assign(value=value) | ast.AugAssign(value=value):
                same = why is None and self.uniform(value)
                for target in _targets(node):
                    if isinstance(target, ast.Name) and not same:
                        self.varying.add(target.id)
            case ast.If(test=test, body=body, orelse=orelse):
                inner = why if self.uniform(test) else why or node
                self.block(body, inner, loops)
                self.block(orelse, inner, loops)
            case ast.While(test=test, body=body):
                inner = why or self.parting.get(id(node)) or (None if self.uniform(test) else node)
                self.block(body, inner, [*loops, node])
            case ast.For(target=ast.Name(id=name), iter=iterated, body=body):
                inner = why or self.parting.get(id(node)) or (None if self.uniform(iterated) else node)
                if inner is not None:
                    self.varying.add(name)
                self.block(body, inner, [*loops, node])
            case ast.Break() | ast.Continue() if why is not None:
                self.parting.setdefault(id(loops[-1]), why)
            case ast.Return() if why is not None:
                self.parted[id(node)] = why
                self.gone = self.gone or node
                for loop in loops:
                    self.parting.setdefault(id(loop), node)
            case _ if is_barrier(node) and why is not None:
                self.parted[id(node)] = why
            case _:
                pass

    def uniform(self, node: ast.expr) -> bool:
        """Whether an expression is the same for all threads, where they are all at it."""
        match node:
            case ast.Name(id=name):  # or an array, for a device function
                return name not in self.varying and (name not in self.kernel.scratch or name in self.readable)
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr=triple)):
                return triple != "threadIdx"
            case ast.Attribute() | ast.Constant():
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id="cuda"), attr="grid" | "gridsize" as attr)):
                return attr == "gridsize"
            case ast.Call(args=arguments):
                return all(self.uniform(argument) for argument in arguments)
            case ast.Subscript(value=ast.Attribute()):
                return True  # a length
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                return name in self.readable and self.uniform(index)
            case _:
                return all(self.uniform(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))


class _Cutter:
    def __init__(self, kernel: Function, uniformity: _Uniformity) -> None:
        self.kernel = kernel
        self.uniformity = uniformity
        self.varying = uniformity.varying
        self.plan = BlockPlan()
        self.structured: set[int] = set()

    def run(self) -> BlockPlan:
        node, plan = self.kernel.node, self.plan
        plan.uniform = self.kernel.names - self.varying
        self.find_structure(node.body)
        self.check(node)
        tail = max((at + 1 for at, statement in enumerate(node.body) if id(statement) in self.structured), default=0)
        leaves = any(isinstance(inner, ast.Return) for part in node.body[tail:] for inner in ast.walk(part))
        self.tail = {id(statement) for statement in node.body[tail:]} if leaves else set[int]()
        self.settle_names()
        self.cut(node.body)
        if len(plan.segments) > _MAX_SEGMENTS:
            raise self.refuse(node, f"more than {_MAX_SEGMENTS} parts between barriers", "split the kernel")
        last = plan.parts[id(node.body)][-1:]
        if leaves and last and isinstance(last[0], Segment):
            last[0].last = True
        plan.loops = frozenset(
            id(inner)
            for inner in ast.walk(node)
            if isinstance(inner, ast.For | ast.While) and id(inner) in self.structured
        )
        _Flow(plan).run(node.body)
        return plan

    def refuse(self, node: ast.AST, reason: str, instead: str) -> KernelError:
        return KernelError(reason, line=getattr(node, "lineno", 0), filename=self.kernel.filename, instead=instead)

    def find_structure(self, body: Sequence[ast.stmt]) -> bool:
        """Mark the statements that hold a barrier or a return that all threads take, and the breaks and continues of
        loops that do. Returns whether there is one."""
        found = False
        for statement in body:
            match statement:
                case ast.If(body=inner, orelse=orelse):
                    one = self.find_structure(inner)
                    here = self.find_structure(orelse) or one
                case ast.While(body=inner) | ast.For(body=inner):
                    here = self.find_structure(inner)
                    if here:
                        self.mark_exits(inner)
                case ast.Return():
                    here = id(statement) not in self.uniformity.parted
                case _:
                    here = is_barrier(statement) or id(statement) in self.structured
            if here:
                self.structured.add(id(statement))
            found = found or here
        return found

    def mark_exits(self, body: Sequence[ast.stmt]) -> bool:
        """Mark breaks and continues of the loop whose body this is, and what they stand in."""
        found = False
        for statement in body:
            here = isinstance(statement, ast.Break | ast.Continue)
            if isinstance(statement, ast.If):
                here = self.mark_exits(statement.body)
                here = self.mark_exits(statement.orelse) or here
            if here:
                self.structured.add(id(statement))
            found = found or here
        return found

    def check(self, node: ast.FunctionDef) -> None:
        barriers = [inner for inner in ast.walk(node) if is_barrier(inner)]
        if len(barriers) > lang.MAX_BARRIERS:
            raise self.refuse(barriers[-1], f"more than {lang.MAX_BARRIERS} barriers", "write them into a loop")
        for inner in sorted(barriers, key=lambda barrier: getattr(barrier, "lineno", 0)):
            why = self.uniformity.parted.get(id(inner))
            if isinstance(why, ast.Return):
                raise self.refuse(
                    inner,
                    f"a thread may have returned (line {why.lineno}) when others wait at cuda.syncthreads()",
                    "put the loads and stores under an if, and let all threads of a block reach its barriers",
                )
            if why is not None:
                raise self.refuse(
                    inner,
                    f"threads of a block part (line {why.lineno}) before cuda.syncthreads()",
                    "take the barrier out of the if or loop, and put only loads and stores under what differs from "
                    "thread to thread",
                )
        last = max((at for at, statement in enumerate(node.body) if id(statement) in self.structured), default=-1)
        for at, statement in enumerate(node.body):
            for inner in ast.walk(statement):
                if isinstance(inner, ast.Return) and id(inner) in self.uniformity.parted and at <= last:
                    raise self.refuse(
                        inner,
                        "a thread returns here while others of its block go on",
                        "put what follows under an if: single threads return only behind the last barrier, and in no "
                        "block that holds one",
                    )

    def settle_names(self) -> None:
        """The block holds a variable once if it makes all assignments to it."""
        names = set(self.plan.uniform)
        while True:
            self.names = frozenset(names)
            mine = {
                name for statement in self.thread_statements(self.kernel.node.body) for name in _assigned(statement)
            }
            if not mine & names:
                break
            names -= mine
        self.plan.block_names = self.names

    def thread_statements(self, body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
        """Statements, in lists that are the block's, that threads run each."""
        for statement in body:
            if id(statement) in self.structured:
                match statement:
                    case ast.If(body=inner, orelse=orelse):
                        yield from self.thread_statements(inner)
                        yield from self.thread_statements(orelse)
                    case ast.While(body=inner) | ast.For(body=inner):
                        yield from self.thread_statements(inner)
                    case _:
                        pass
            elif not self.is_whole(statement):
                yield statement

    def is_whole(self, node: ast.stmt) -> bool:
        """Whether a statement only assigns uniform values to variables that the block may hold."""
        if id(node) in self.tail:
            return False
        match node:
            case ast.Assign(value=value) | ast.AugAssign(value=value):
                return self.is_own(value) and all(
                    isinstance(target, ast.Name) and target.id in self.names for target in _targets(node)
                )
            case ast.If(test=test, body=body, orelse=orelse):
                return self.is_own(test) and all(self.is_whole(inner) for inner in (*body, *orelse))
            case ast.While(test=test, body=body):
                return self.is_own(test) and all(self.is_whole(inner) for inner in body)
            case ast.For(target=ast.Name(id=name), iter=iterated, body=body):
                return name in self.names and self.is_own(iterated) and all(self.is_whole(inner) for inner in body)
            case ast.Pass() | ast.Break() | ast.Continue():
                return True
            case _:
                return False

    def is_own(self, value: ast.expr) -> bool:
        return self.uniformity.uniform(value) and not (_read(value) & self.kernel.names) - self.names

    def cut(self, body: Sequence[ast.stmt]) -> None:
        plan = self.plan
        parts: list[Part] = []
        open_: list[ast.stmt] = []

        def close() -> None:
            if open_:
                segment = Segment(number=len(plan.segments), statements=list(open_))
                plan.segments.append(segment)
                parts.append(segment)
                open_.clear()

        for statement in body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
                target = statement.targets[0]
                if isinstance(target, ast.Name) and target.id in self.kernel.scratch:
                    continue  # a declaration
            if id(statement) in self.structured:
                close()
                if is_barrier(statement):
                    parts.append(Barrier(plan.barriers))
                    plan.barrier_numbers[id(statement)] = plan.barriers
                    plan.barriers += 1
                    continue
                parts.append(Whole(statement))
                match statement:
                    case ast.If(body=inner, orelse=orelse):
                        self.cut(inner)
                        self.cut(orelse)
                    case ast.While(body=inner) | ast.For(body=inner):
                        self.cut(inner)
                    case _:
                        pass
            elif isinstance(statement, ast.Pass):
                pass
            elif self.is_whole(statement):
                # It goes before the statements of the open segment, unless one of them reads what it changes.
                changed = set(_assigned(statement))
                if any(changed & _read(inner) for inner in open_):
                    close()
                parts.append(Whole(statement))
            else:
                open_.append(statement)
        close()
        plan.parts[id(body)] = parts


class _Flow:
    """Which segments may follow one another without a barrier: control flow between them, on numbers."""

    def __init__(self, plan: BlockPlan) -> None:
        self.plan = plan
        # segments by number, barriers by -1 - number, and a node for each loop's head, from _HEADS on
        self.edges: dict[int, set[int]] = {}
        self.heads = _HEADS
        self.loops: list[tuple[set[int], set[int]]] = []  # where its breaks and its continues come from

    def run(self, body: list[ast.stmt]) -> None:
        plan = self.plan
        self.walk(body, set())
        pairs: set[tuple[int, int]] = set()
        again: set[int] = set()
        for segment in plan.segments:
            pairs.add((segment.number, segment.number))
            following = self.reach(segment.number)
            if segment.number in following:
                again.add(segment.number)
            for other in following:
                pairs |= {(segment.number, other), (other, segment.number)}
        plan.together = frozenset(pairs)
        plan.again = frozenset(again)
        plan.after = [frozenset(self.reach(-1 - number)) for number in range(plan.barriers)]

    def reach(self, start: int) -> set[int]:
        found: set[int] = set()
        stack = [start]
        while stack:
            for following in self.edges.get(stack.pop(), ()):
                if following >= 0 and following not in found:
                    found.add(following)
                    stack.append(following)
        return {number for number in found if number < _HEADS}

    def link(self, sources: set[int], to: int) -> None:
        for source in sources:
            self.edges.setdefault(source, set()).add(to)

    def walk(self, body: list[ast.stmt], entry: set[int]) -> set[int]:
        """Link what is in `body` behind `entry`; returns what is last."""
        ends = entry
        for part in self.plan.parts.get(id(body), []):
            match part:
                case Segment(number=number):
                    self.link(ends, number)
                    ends = {number}
                case Barrier(number=number):
                    self.link(ends, -1 - number)
                    ends = {-1 - number}
                case Whole(statement=statement):
                    ends = self.whole(statement, ends)
        return ends

    def whole(self, statement: ast.stmt, ends: set[int]) -> set[int]:
        match statement:
            case ast.If(body=body, orelse=orelse) if id(body) in self.plan.parts:
                return self.walk(body, ends) | self.walk(orelse, ends)
            case ast.While(body=body) | ast.For(body=body) if id(body) in self.plan.parts:
                head, self.heads = self.heads, self.heads + 1
                self.link(ends, head)
                self.loops.append((set(), set()))
                once = self.walk(body, {head})
                breaks, continues = self.loops.pop()
                self.link(once | continues, head)
                return {head} | breaks
            case ast.Break():
                if self.loops:
                    self.loops[-1][0].update(ends)
                return set()
            case ast.Continue():
                if self.loops:
                    self.loops[-1][1].update(ends)
                return set()
            case ast.Return():
                return set()
            case _:
                return ends


def _assigned(node: ast.stmt) -> list[str]:
    return [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)]


def _read(node: ast.AST) -> set[str]:
    """Names that are read; ``a += 1`` reads a."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
            found.add(inner.id)
        elif isinstance(inner, ast.AugAssign) and isinstance(inner.target, ast.Name):
            found.add(inner.target.id)
    return found
