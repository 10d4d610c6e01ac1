"""Races: what threads of a block do to one array between two barriers has to have one result, whatever their order.

Between barriers, of each array that they share:

- an element is stored by at most one thread. This is proved here, for the geometry at hand, or the kernel is refused;
- a thread that loads an element sees what it stored itself, and of others what was there at the last barrier;
- an element is touched by atomic operations of one kind, or by loads and stores.

A kernel without races can't tell this from CUDA. Where a thread may load what another stores, the load is marked: it
reads a *snapshot* that is taken at the barrier, unless the element is one that the thread itself may have stored.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._api import ArgSpec, Launch, OutputSpec
from p2pcompute.execution._block_epochs import Place, apart_in_each_epoch
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._guard_block import BlockPlan
from p2pcompute.execution._guard_scratch import is_atomic
from p2pcompute.execution._index_values import THREADS, Site, Values

__all__ = ["Races", "find_races"]

_MOST_OWN: Final = 4  # elements that one thread may store where others load them
_MOST_TOUCHES: Final = 1 << 21
_MOST_ELEMENTS: Final = 1 << 20
_NONE: Final = (1 << 64) - 1


@dataclass(slots=True, kw_only=True)
class Races:
    """What the code needs to know.

    Attributes:
        own: for each marked load, by the id of its index expression, the vectors of elements that its thread may
            have stored.
        vectors: vectors of elements, one for each thread of the block; 2^64 - 1 where there is none.
        marked: arrays that are read so.
        refresh: for each barrier, the arrays of which it takes a snapshot. Before the first one a snapshot holds the
            zeros that the array began with.
    """

    own: dict[int, tuple[int, ...]] = field(default_factory=dict)
    vectors: list[tuple[int, ...]] = field(default_factory=list)
    marked: frozenset[str] = frozenset()
    refresh: list[frozenset[str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Touch:
    """One place in the text. `kind`: load, store, pass (to a device function, which loads anywhere) or the name of an
    atomic operation."""

    name: str
    kind: str
    key: ast.expr
    segment: int
    line: int


def find_races(
    admitted: Admitted,
    plan: BlockPlan,
    sites: Mapping[int, Site],
    launch: Launch,
    args: Sequence[ArgSpec],
    integers: Collection[str],
) -> Races:
    """Prove that the stores of a block's threads don't meet, and mark the loads that do.

    Raises:
        KernelTypeError: two threads may meet in an element; with the line.
    """
    return _Finder(admitted, plan, sites, launch, args, integers).run()


class _Finder:
    def __init__(
        self,
        admitted: Admitted,
        plan: BlockPlan,
        sites: Mapping[int, Site],
        launch: Launch,
        args: Sequence[ArgSpec],
        integers: Collection[str],
    ) -> None:
        self.admitted = admitted
        self.launch = launch
        self.args = args
        self.integers = integers
        dims = launch.dims
        self.filename = admitted.entry.filename
        self.plan = plan
        self.sites = sites
        self.races = Races()
        self.shapes: dict[str, tuple[int, ...]] = {
            array.name: array.shape for array in admitted.entry.scratch.values() if array.kind == "shared"
        }
        self.outputs: set[str] = set()
        for name, spec in zip(admitted.entry.params, args, strict=True):
            if name in admitted.grid.by_block and isinstance(spec, OutputSpec):
                self.shapes[name] = spec.shape[dims:]
                self.outputs.add(name)
        self.total = 0
        self.counted: frozenset[int] = frozenset()
        self.flat: dict[int, Values] = {}  # of stores
        self.keyed: dict[int, Values] = {}
        self.marked: dict[str, set[int]] = {}  # array -> segments with marked loads
        self.apart_by_epochs: frozenset[str] | None = None

    def run(self) -> Races:
        touches: dict[str, list[_Touch]] = {name: [] for name in self.shapes}
        for segment in self.plan.segments:
            for statement in segment.statements:
                for touch in self.touches(statement, segment.number):
                    touches[touch.name].append(touch)
        for name, found in touches.items():
            marked, own, vectors = dict(self.marked), dict(self.races.own), list(self.races.vectors)
            try:
                self.array(name, found)
            except KernelTypeError:
                if self.apart_by_epochs is None:
                    self.apart_by_epochs = self.go_through(touches)
                if name not in self.apart_by_epochs:
                    raise
                self.marked, self.races.own, self.races.vectors = marked, own, vectors
        for following in self.plan.after:
            self.races.refresh.append(frozenset(name for name, segments in self.marked.items() if segments & following))
        self.races.marked = frozenset(self.marked)
        return self.races

    def go_through(self, touches: Mapping[str, Sequence[_Touch]]) -> frozenset[str]:
        """The arrays that need no snapshot, and of which no two threads touch an element, in any turn of any loop."""
        places: dict[int, Place] = {}
        for touch in (touch for found in touches.values() for touch in found):
            if touch.kind != "load" or id(touch.key) not in places:  # x[i] += 1 is both: as a store it meets more
                places[id(touch.key)] = Place(name=touch.name, kind=touch.kind)
        return apart_in_each_epoch(self.admitted, self.plan, self.launch, self.args, self.integers, places, self.shapes)

    def touches(self, statement: ast.stmt, segment: int) -> Iterator[_Touch]:
        for node in ast.walk(statement):
            match node:
                case ast.Subscript(value=ast.Name(id=name), slice=key, ctx=ctx) if name in self.shapes:
                    yield _Touch(name, "store" if isinstance(ctx, ast.Store) else "load", key, segment, node.lineno)
                case ast.AugAssign(target=ast.Subscript(value=ast.Name(id=name), slice=key)) if name in self.shapes:
                    yield _Touch(name, "load", key, segment, node.lineno)
                case ast.Call(func=ast.Attribute(attr=kind), args=[ast.Name(id=name), key, _]) if is_atomic(node):
                    yield _Touch(name, kind, key, segment, node.lineno)
                case ast.Call(func=ast.Name(id=called), args=arguments) if called != "len":
                    for argument in arguments:
                        if isinstance(argument, ast.Name) and argument.id in self.shapes:
                            yield _Touch(argument.id, "pass", argument, segment, node.lineno)
                case _:
                    pass

    def refuse(self, line: int, reason: str, instead: str) -> KernelTypeError:
        return KernelTypeError(reason, line=line, filename=self.filename, instead=instead)

    def meets(self, one: _Touch, other: _Touch) -> bool:
        """Whether no barrier need lie between two places."""
        return (one.segment, other.segment) in self.plan.together

    def array(self, name: str, found: Sequence[_Touch]) -> None:
        stores = [touch for touch in found if touch.kind == "store"]
        loads = [touch for touch in found if touch.kind == "load"]
        passes = [touch for touch in found if touch.kind == "pass"]
        atomics = [touch for touch in found if touch.kind not in ("load", "store", "pass")]
        for touch in atomics:
            for other in found:
                if other.kind != touch.kind and self.meets(touch, other):
                    raise self.refuse(
                        other.line,
                        f"{name} is touched here and by cuda.atomic.{touch.kind} (line {touch.line}), with no barrier "
                        "between",
                        "put cuda.syncthreads() between them",
                    )
        for touch in passes:
            for store in stores:
                if self.meets(touch, store):
                    raise self.refuse(
                        touch.line,
                        f"a device function loads from {name}, and threads store there (line {store.line}) with no "
                        "barrier between",
                        "put cuda.syncthreads() between them, or pass elements by their values",
                    )
        sites = [self.sites[id(touch.key)] for touch in found if id(touch.key) in self.sites]
        # All places of an array have to count turns alike.
        self.counted = frozenset(self.plan.loops & {loop for site in sites for loop in site.depends()})
        for touch in stores:
            site = self.sites.get(id(touch.key))
            if site is not None and site.touches(self.shapes[name], self.apart(touch.segment)) is None:
                self.counted = frozenset()
        for touch in stores:
            self.known(touch)
        segments: dict[int, list[_Touch]] = {}
        for touch in stores:
            segments.setdefault(touch.segment, []).append(touch)
        union = {number: _joined(self.keyed[id(store.key)] for store in here) for number, here in segments.items()}
        flat = {number: _joined(self.flat[id(store.key)] for store in here) for number, here in segments.items()}
        for number, here in segments.items():
            self.check_single(union[number], here[-1])
            for later, there in segments.items():
                if later > number and (number, later) in self.plan.together:
                    self.check_single(_joined([flat[number], flat[later]]), there[-1])
        for touch in loads:
            near = [number for number in segments if (touch.segment, number) in self.plan.together]
            own = {touch.segment: self.apart(touch.segment)}
            if any(self.foreign(touch, union[n] if n in own else flat[n], own.get(n, frozenset())) for n in near):
                self.mark(touch, [store for n in near for store in segments[n]])

    def apart(self, segment: int) -> frozenset[int]:
        """Loops of the block whose steps a barrier surely separates, as far as one segment goes."""
        return frozenset() if segment in self.plan.again else self.counted

    def known(self, touch: _Touch) -> None:
        site, shape = self.sites.get(id(touch.key)), self.shapes[touch.name]
        if site is None:  # never reached
            self.flat[id(touch.key)] = self.keyed[id(touch.key)] = np.zeros(0, np.int64)
            return
        flat = site.touches(shape)
        keyed = site.touches(shape, self.apart(touch.segment))
        if flat is None or keyed is None:
            # One thread alone may store anywhere.
            threads = np.flatnonzero(site.reached.any(axis=tuple(range(1, site.reached.ndim))))
            if threads.size <= 1 and math.prod(shape) <= _MOST_ELEMENTS:
                flat = keyed = np.arange(math.prod(shape), dtype=np.int64) * THREADS + threads[:1].sum()
        self.total += 0 if flat is None or keyed is None else flat.size + keyed.size
        if flat is None or keyed is None or self.total > _MOST_TOUCHES:
            raise self.refuse(
                touch.line,
                f"two threads of a block may store to one element of {touch.name}: which ones they are is not known "
                "from the text",
                "index it by cuda.threadIdx, literals, integer arguments and counters of loops over such; integers are "
                "added up anywhere by cuda.atomic.add(array, index, value)",
            )
        self.flat[id(touch.key)], self.keyed[id(touch.key)] = flat, keyed

    def check_single(self, touched: Values, at: _Touch) -> None:
        elements = touched // THREADS
        twice = np.flatnonzero(elements[1:] == elements[:-1])
        if twice.size:
            first = int(twice[0])
            raise self.refuse(
                at.line,
                f"threads {int(touched[first] % THREADS)} and {int(touched[first + 1] % THREADS)} of a block store to "
                f"one element of {at.name}, with no barrier between",
                "put cuda.syncthreads() between the stores, or let one thread store it: if cuda.threadIdx.x == 0",
            )

    def foreign(self, load: _Touch, stored: Values, apart: frozenset[int]) -> bool:
        """Whether a load may find what another thread stores, where steps of the loops `apart` are apart."""
        site = self.sites.get(id(load.key))
        if site is None:  # never reached
            return False
        touched = site.touches(self.shapes[load.name], apart)
        if touched is None:
            return True
        elements, owners = stored // THREADS, stored % THREADS
        place = np.searchsorted(elements, touched // THREADS)
        place = np.minimum(place, max(elements.size - 1, 0))
        return bool(
            elements.size and ((elements[place] == touched // THREADS) & (owners[place] != touched % THREADS)).any()
        )

    def mark(self, load: _Touch, stores: Sequence[_Touch]) -> None:
        instead = "put cuda.syncthreads() between the store and the load"
        if load.name in self.outputs:
            raise self.refuse(
                load.line, f"what is loaded from {load.name} another thread may store (line {stores[0].line})", instead
            )
        everything = _joined(self.flat[id(store.key)] for store in stores)
        self.check_single(everything, stores[-1])
        vectors: list[tuple[int, ...]] = []
        for store in stores:
            touched = self.flat[id(store.key)]
            if not touched.size:
                continue
            threads = touched % THREADS
            if np.unique(threads).size != threads.size:
                raise self.refuse(
                    load.line,
                    f"what is loaded from {load.name} another thread may store, and it stores several elements "
                    f"(line {store.line})",
                    instead,
                )
            elements = [_NONE] * self.sites[id(store.key)].reached.shape[0]
            for pair in touched.tolist():
                elements[pair % THREADS] = pair // THREADS
            if tuple(elements) not in vectors:
                vectors.append(tuple(elements))
        if not vectors:  # nobody stores
            return
        if len(vectors) > _MOST_OWN:
            raise self.refuse(
                load.line, f"what is loaded from {load.name} another thread may store, in too many places", instead
            )
        for vector in vectors:
            if vector not in self.races.vectors:
                self.races.vectors.append(vector)
        self.races.own[id(load.key)] = tuple(self.races.vectors.index(vector) for vector in vectors)
        self.marked.setdefault(load.name, set()).add(load.segment)


def _joined(parts: Iterable[Values]) -> Values:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))
