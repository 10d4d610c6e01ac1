"""What threads of a block do from one barrier to the next, gone through turn by turn.

`_block_races` takes the turns of a loop together, which needs little and suffices for most kernels. A sort by
exchanges, or a scan up and down a tree, changes in each turn which thread touches what. Where the control flow of the
block is known (it nearly always is: it hangs on sizes, literals and integer arguments), it is gone through here as the
block would, with all threads at once, and each stretch between two barriers, an *epoch*, is looked at by itself.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from p2pcompute.execution._api import ArgSpec, Launch
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._guard_block import Barrier, BlockPlan, Segment, Whole
from p2pcompute.execution._index_values import THREADS, IndexWalk, Site, Values

__all__ = ["Place", "apart_in_each_epoch"]

_MOST_STEPS: Final = 20_000  # statements: a second or two, which only an attack takes
_MOST_TOUCHES: Final = 1 << 25  # of elements by threads, in all: a few seconds, likewise
_MOST_IN_EPOCH: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the text that touches a shared array. `kind`: load, store, pass or the name of an atomic operation."""

    name: str
    kind: str


class _NotKnown(Exception):
    """The block's control flow can't be followed."""


class _Leave(Exception):
    """A break, a continue or a return of the block's."""

    def __init__(self, statement: ast.stmt) -> None:
        super().__init__()
        self.statement = statement


def apart_in_each_epoch(
    admitted: Admitted,
    plan: BlockPlan,
    launch: Launch,
    args: Sequence[ArgSpec],
    integers: Collection[str],
    places: Mapping[int, Place],
    shapes: Mapping[str, Sequence[int]],
) -> frozenset[str]:
    """The arrays of which it is sure that in no epoch two threads touch one element, unless both load it, or both
    change it by one atomic operation.

    Args:
        admitted, plan, launch, args: the kernel and what it is bound to.
        integers: names of variables that are int64 or bool.
        places: touches of the arrays, by the ids of their index expressions, or of the argument that passes an array.
        shapes: the arrays' shapes, by name.
    """
    walk = _Epochs(
        admitted, plan, launch, dict(zip(admitted.entry.params, args, strict=True)), integers, places, shapes
    )
    return walk.run()


class _Epochs(IndexWalk):
    only_needed = True

    def __init__(
        self,
        admitted: Admitted,
        plan: BlockPlan,
        launch: Launch,
        specs: Mapping[str, ArgSpec],
        integers: Collection[str],
        places: Mapping[int, Place],
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        super().__init__(admitted, launch, specs, integers)
        self.plan = plan
        self.places = places
        self.shapes = shapes
        self.everyone: Values = np.ones(launch.threads_per_block, np.bool_)
        self.good = set(shapes)
        self.epoch: list[tuple[Place, Site]] = []
        self.steps = 0
        self.touched = 0

    def run(self) -> frozenset[str]:
        try:
            self.parts(self.entry.node.body)
            self.close()
        except _Leave:  # a return
            self.close()
        except _NotKnown:
            return frozenset()
        return frozenset(self.good)

    def step(self) -> None:
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise _NotKnown

    def parts(self, body: list[ast.stmt]) -> None:
        for part in self.plan.parts[id(body)]:
            match part:
                case Segment(statements=statements):
                    reached = self.everyone
                    for statement in statements:
                        self.step()
                        reached = self.statement(statement, reached)
                case Barrier():
                    self.close()
                case Whole(statement=statement):
                    self.step()
                    self.whole(statement)

    def whole(self, node: ast.stmt) -> None:
        match node:
            case ast.If(test=test, body=body, orelse=orelse) if id(body) in self.plan.parts:
                self.expression(test, self.everyone)
                if self.holds(test):
                    self.parts(body)
                elif orelse:
                    self.parts(orelse)
            case ast.While(test=test, body=body) if id(body) in self.plan.parts:
                while self.holds(test) and self.turn(body):
                    self.step()
            case ast.For(target=ast.Name(id=name), iter=ast.Call(args=bounds), body=body) if (
                id(body) in self.plan.parts
            ):
                numbers = [self.number(bound) for bound in bounds]
                for number in range(*numbers) if len(numbers) < 3 or numbers[2] else ():
                    self.step()
                    if name in self.integers:  # a float would be rounded
                        self.known[name] = np.array([number], np.int64)
                    else:
                        self.known.pop(name, None)
                    if not self.turn(body):
                        break
            case ast.If(test=test, body=body, orelse=orelse):
                true, false = self.truth(test)
                if true.any() == false.any():
                    self.statement(node, self.everyone)
                else:
                    self.expression(test, self.everyone)
                    for statement in body if true.any() else orelse:
                        self.whole(statement)
            case ast.Break() | ast.Continue() | ast.Return():
                raise _Leave(node)
            case _:
                self.statement(node, self.everyone)

    def turn(self, body: list[ast.stmt]) -> bool:
        """One turn of a loop of the block's; whether another may follow."""
        try:
            self.parts(body)
        except _Leave as leave:
            if isinstance(leave.statement, ast.Return):
                raise
            return isinstance(leave.statement, ast.Continue)
        return True

    def holds(self, test: ast.expr) -> bool:
        true, false = self.truth(test)
        if true.any() == false.any():
            raise _NotKnown
        return bool(true.any())

    def number(self, node: ast.expr) -> int:
        value = self.value(node)
        if value is None or value.size != 1:
            raise _NotKnown
        return int(value.reshape(-1)[0])

    def found(self, key: ast.expr, site: Site) -> None:
        """A touch, in this turn."""
        place = self.places.get(id(key))
        if place is not None and place.name in self.good:
            self.epoch.append((place, site))
            if len(self.epoch) > _MOST_IN_EPOCH:
                raise _NotKnown

    def close(self) -> None:
        """A barrier: what was touched since the last one is looked at."""
        here: dict[str, list[tuple[Place, Site]]] = {}
        for place, site in self.epoch:
            here.setdefault(place.name, []).append((place, site))
        self.epoch = []
        for name, touches in here.items():
            if not self.apart(touches, self.shapes[name]):
                self.good.discard(name)

    def apart(self, touches: Sequence[tuple[Place, Site]], shape: Sequence[int]) -> bool:
        kinds = {place.kind for place, _ in touches}
        if len(kinds) == 1 and "store" not in kinds:
            return True  # loads, or one atomic operation
        if not kinds <= {"load", "store", "pass"}:
            return False
        if kinds <= {"load", "pass"}:
            return True
        stored: list[Values] = []
        loaded: list[Values] = []
        anywhere: set[int] = set()  # threads that touch elements that are not known
        for place, site in touches:
            sizes = [site.reached.shape, *(index.shape for index in site.indices if index is not None)]
            self.touched += int(np.prod(np.broadcast_shapes(*sizes), dtype=np.int64))
            if self.touched > _MOST_TOUCHES:
                raise _NotKnown
            pairs = site.touches(shape) if place.kind != "pass" else None
            if pairs is None:
                reached = site.reached.any(axis=tuple(range(1, site.reached.ndim)))
                anywhere |= set(np.flatnonzero(reached).tolist())
            else:
                (stored if place.kind == "store" else loaded).append(pairs)
        mine = _joined(stored)
        if anywhere:  # nobody else may touch the array then
            others = np.unique(np.concatenate([mine, _joined(loaded)]) % THREADS)
            return len(anywhere | set(others.tolist())) == 1
        elements, owners = mine // THREADS, mine % THREADS
        if (elements[1:] == elements[:-1]).any():
            return False
        theirs = _joined(loaded)
        if not elements.size or not theirs.size:
            return True
        at = np.minimum(np.searchsorted(elements, theirs // THREADS), elements.size - 1)
        return not bool(((elements[at] == theirs // THREADS) & (owners[at] != theirs % THREADS)).any())


def _joined(parts: Sequence[Values]) -> Values:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))
