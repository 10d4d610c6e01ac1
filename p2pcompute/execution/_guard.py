"""The guard: admits a kernel's source, or refuses it with line, reason and what to write instead.

It only ever looks at the syntax tree: nothing is evaluated, imported or compiled. What is not on its list is
refused. It runs at decoration on the author's own tree, and again on the text wherever that arrives.

Admission fixes three things that the rest builds on: names are local variables, parameters, other functions of the
same text or words of the language; an array appears only under a subscript, as ``.size``, ``.shape``, ``.ndim``, in
``len()`` or as the argument of a device function that reads it; and what a kernel stores into is indexed by the
thread's own place (`_guard_index`).
"""

from __future__ import annotations

import ast
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from p2pcompute.errors import KernelError
from p2pcompute.execution import _language as lang
from p2pcompute.execution._api import KernelSource
from p2pcompute.execution._guard_block import BlockPlan, is_barrier, plan_block
from p2pcompute.execution._guard_function import NAME, Function, FunctionCheck
from p2pcompute.execution._guard_index import GridUse, grid_use
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._tree import LEAF, leaves, parts, walk

__all__ = ["Admitted", "AdmittedSources", "Function", "admit", "admit_tree", "by_guard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An admitted source. `functions` come callees first; `grid` says how the kernel is indexed. `plan` is there where
    the threads of a block work together: then a block is the least that can be run by itself."""

    entry: Function
    functions: Mapping[str, Function]
    grid: GridUse
    plan: BlockPlan | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Parameters that the kernel stores into, in the order of its parameters."""
        return tuple(name for name in self.entry.params if name in self.grid.mapping)


def admit(source: KernelSource) -> Admitted:
    """Admit source text from anywhere.

    Raises:
        KernelError: with the line in `source.text`.
    """
    text = source.text
    with by_guard():
        if not NAME.fullmatch(source.entry):
            raise KernelError("the entry's name is no name", instead="name it in letters, digits and _")
        if not text.isascii():
            raise KernelError("the source is not ASCII", instead="normalised source holds names and numbers only")
        if len(text) > lang.MAX_SOURCE_BYTES:
            raise KernelError(f"the source is longer than {lang.MAX_SOURCE_BYTES} bytes", instead="split the kernel")
    if source_digest(source.entry, text) != source.digest:
        raise KernelError("the source is not what its digest says", instead="hash the text as it is sent")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 0
        refused = KernelError(
            f"the source does not parse: {type(error).__name__}: {error}"[:200],
            line=line,
            instead="send what p2pcompute.kernel makes of a function",
        )
        refused.by_guard = isinstance(error, SyntaxError | ValueError)  # the others are about this machine
        raise refused from None
    with by_guard():
        return admit_tree(tree, source.entry, {})


@contextmanager
def by_guard() -> Generator[None]:
    """A `KernelError` in here is about what the language has, wherever a kernel is compiled: it says so."""
    try:
        yield
    except KernelError as error:
        error.by_guard = True
        raise


def admit_tree(tree: ast.Module, entry: str, filenames: Mapping[str, str]) -> Admitted:
    """Admit a module that holds the kernel and its device functions and nothing else.

    Args:
        tree: the module.
        entry: the kernel's name.
        filenames: function name -> file to name in errors; "<kernel>" where there is none.

    Raises:
        KernelError: with the line that the tree carries.
    """
    _check_size(tree, filenames)
    nodes: dict[str, ast.FunctionDef] = {}
    for statement in tree.body:
        if not isinstance(statement, ast.FunctionDef):
            raise KernelError(
                "the source holds more than functions",
                line=getattr(statement, "lineno", 0),
                instead="leave all but the kernel and its device functions out",
            )
        if statement.name in nodes or statement.name in lang.RESERVED:
            raise KernelError(
                f"two meanings for {statement.name}", line=statement.lineno, instead="rename the function"
            )
        nodes[statement.name] = statement
    if len(nodes) > lang.MAX_FUNCTIONS:
        raise KernelError(f"more than {lang.MAX_FUNCTIONS} functions", instead="merge device functions")
    if entry not in nodes:
        raise KernelError(f"the source has no function {entry}", instead="name one that it has")
    functions: dict[str, Function] = {}
    expanded: dict[str, int] = {}
    for name in _callees_first(nodes, filenames):
        check = FunctionCheck(nodes[name], nodes, functions, filenames.get(name, "<kernel>"), is_entry=name == entry)
        function = check.run()
        functions[name] = function
        size = sum(1 + leaves(node) for node in function.nodes) + sum(expanded[callee] for callee in function.calls)
        if size > lang.MAX_EXPANDED_NODES:
            raise KernelError(
                f"{name} with all that it calls is larger than {lang.MAX_EXPANDED_NODES} nodes",
                line=nodes[name].lineno,
                filename=function.filename,
                instead="call device functions from a loop",
            )
        expanded[name] = size
    kernel = functions[entry]
    for function in functions.values():
        if entry in function.calls:
            raise KernelError(
                "a device function calls the kernel",
                line=function.node.lineno,
                filename=function.filename,
                instead="put what both need into a device function of its own",
            )
    grid = grid_use(kernel.node, kernel.nodes, kernel.params, kernel.filename, kernel.scratch)
    together = (
        bool(grid.by_block)
        or any(array.kind == "shared" for array in kernel.scratch.values())
        or any(is_barrier(node) for node in kernel.nodes)
    )
    plan = plan_block(kernel, frozenset(kernel.params) - frozenset(grid.mapping)) if together else None
    return Admitted(entry=kernel, functions=functions, grid=grid, plan=plan)


def _check_size(tree: ast.Module, filenames: Mapping[str, str]) -> None:
    """Bound the tree without recursion, before anything that recurses sees it."""
    count = 0
    for statement in tree.body:
        filename = filenames.get(getattr(statement, "name", ""), "<kernel>")
        stack: list[tuple[ast.AST, int, int, int, int]] = [(statement, 0, 0, 0, 0)]
        while stack:
            node, nesting, depth, blocks, loops = stack.pop()
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.If | ast.For | ast.While):
                blocks += 1
                loops += not isinstance(node, ast.If)
            if isinstance(node, ast.expr | ast.stmt):
                count += 1
            if count > lang.MAX_NODES:
                raise KernelError(
                    f"more than {lang.MAX_NODES} nodes", line=line, filename=filename, instead="split the kernel"
                )
            if nesting > lang.MAX_NESTING or depth > lang.MAX_TREE_DEPTH:
                raise KernelError(
                    f"nested deeper than {lang.MAX_NESTING}"
                    if nesting > lang.MAX_NESTING
                    else f"more than about {lang.MAX_TREE_DEPTH} terms in one chain",
                    line=line,
                    filename=filename,
                    instead="name parts of the expression, or move blocks into a device function",
                )
            if blocks > lang.MAX_BLOCKS or loops > lang.MAX_LOOPS:
                raise KernelError(
                    f"more than {lang.MAX_LOOPS} loops in each other"
                    if loops > lang.MAX_LOOPS
                    else f"more than {lang.MAX_BLOCKS} blocks in each other, or arms of an elif ladder",
                    line=line,
                    filename=filename,
                    instead="move inner ones into a device function",
                )
            for child, flat in _children(node):
                stack.append((child, nesting + (not flat), depth + 1, blocks, loops))


def _children(node: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """Children, and whether one only goes on with a chain (a sum's left side, an elif) and nests nothing."""
    for field in parts(node):
        value = getattr(node, field, None)
        several = value if isinstance(value, list) else [value]
        for child in several:
            if isinstance(child, ast.AST) and not isinstance(child, LEAF):
                left = isinstance(node, ast.BinOp) and field == "left" and isinstance(child, ast.BinOp)
                ladder = (
                    isinstance(node, ast.If) and field == "orelse" and len(several) == 1 and isinstance(child, ast.If)
                )
                yield child, left or ladder


def _called(node: ast.FunctionDef, nodes: Mapping[str, ast.FunctionDef]) -> list[ast.Call]:
    return [
        call
        for call in walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in nodes
    ]


def _callees_first(nodes: Mapping[str, ast.FunctionDef], filenames: Mapping[str, str]) -> list[str]:
    order: list[str] = []
    state: dict[str, bool] = {}  # False: being visited, True: done

    def visit(name: str) -> None:  # as deep as there are functions, which is bounded
        state[name] = False
        for call in _called(nodes[name], nodes):
            callee = call.func.id if isinstance(call.func, ast.Name) else ""
            if callee not in state:
                visit(callee)
            elif not state[callee]:
                raise KernelError(
                    f"{callee} calls itself",
                    line=call.lineno,
                    filename=filenames.get(name, "<kernel>"),
                    instead="write a loop: recursion has no bound",
                )
        state[name] = True
        order.append(name)

    for name in nodes:
        if name not in state:
            visit(name)
    return order


class AdmittedSources:
    """The latest admitted sources of one back end, by digest, so that each is checked once."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._known: OrderedDict[bytes, Admitted] = OrderedDict()

    def admit(self, source: KernelSource) -> Admitted:
        """What `admit` gives, or raises, for this source."""
        known = self._known.get(source.digest)
        # The digest says what the text should be, not what it is.
        if known is not None and source_digest(source.entry, source.text) == source.digest:
            return known
        admitted = admit(source)
        self._known[source.digest] = admitted
        if len(self._known) > self._keep:
            self._known.popitem(last=False)
        return admitted
