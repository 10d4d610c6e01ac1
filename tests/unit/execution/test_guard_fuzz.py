"""Syntax trees that nobody would write, to the guard and to lowering: a typed refusal with a line and what to write
instead, or a kernel of nothing but what the language has.

Trees are made of every kind of node that this Python's parser knows, and of pieces of admitted kernels that are
exchanged, moved, doubled and left out. A second list of what may stand in an admitted kernel, written here from
docs/strict.md, is held against what the guard lets through; what it lets through is run, with its arrays among sevens.

To look at more than the tests do: ``P2PCOMPUTE_MUTANTS=1000000``, as ``make fuzz-nightly`` has it.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import os
import warnings
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest

from p2pcompute.errors import KernelError
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import Admitted, admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import lower
from p2pcompute.execution._rows import check_launch

COUNT = int(os.environ.get("P2PCOMPUTE_MUTANTS", "60000")) // 20
SEED = int(os.environ.get("P2PCOMPUTE_MUTANT_SEED", "1"))
LAUNCH = Launch(grid=(2, 1, 1), block=(8, 1, 1), dims=1)
SPECS: list[ArgSpec] = [
    OutputSpec(dtype="int64", shape=(16,)),
    InputSpec(dtype="float32", shape=(16,)),
    ScalarSpec(dtype="int64", value=np.int64(3)),
]

SEEDS = [
    """
def f(a, b):
    if a > b:
        return a - b, 1
    return b - a, 2
def k(out, x, n):
    i = cuda.grid(1)
    own = cuda.local.array(4, np.int64)
    table = cuda.const.array((3,), np.float32, (1.0, -2.5, 3.0))
    if i < out.size:
        d, way = f(x[i], table[i % 3])
        for j in range(0, n, 2):
            own[j & 3] += j * way
            if own[j & 3] > 7:
                break
        while d > 1.5:
            d = d / 2 - math.sqrt(abs(d))
        out[i] = own[1] + int(d) + (cuda.popc(i) if way == 1 else len(x))
""",
    """
def push(a, v):
    a[0] = v
def k(out, x, n):
    sm = cuda.shared.array(8, np.int64)
    own = cuda.local.array(2, np.int64)
    tx = cuda.threadIdx.x
    i = cuda.blockIdx.x * cuda.blockDim.x + tx
    sm[tx] = int(x[i] * np.float32(2.5)) ^ n << 1
    cuda.syncthreads()
    s = cuda.blockDim.x // 2
    while s > 0:
        if tx < s:
            sm[tx] += sm[tx + s]
        cuda.syncthreads()
        s //= 2
    push(own, sm[0])
    cuda.syncthreads()
    cuda.atomic.max(sm, 0, tx)
    cuda.syncthreads()
    out[i] = own[0] + sm[0] % (n + 1)
""",
    """
def k(out, x, n):
    i = cuda.grid(1)
    step = cuda.gridsize(1)
    total = 0
    for j in range(i, x.size, step):
        c0, c1, c2, c3 = random.philox(i, j, 0, 0, 1, 2)
        total += c0 & 255 if math.isfinite(x[j]) and not n == 2 else -1
        total = max(min(total, 1000), np.int8(c1))
    a, b = total, n
    out[i] = a - ~b + round(random.uniform(1, i, 2) * 10) + (0 <= i < 9)
""",
]

# Written from docs/strict.md, and not from the guard.
NODES = (
    ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AugAssign, ast.For, ast.While, ast.If,
    ast.Expr, ast.Pass, ast.Break, ast.Continue, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Compare, ast.Call,
    ast.Constant, ast.Attribute, ast.Subscript, ast.Name, ast.Tuple, ast.expr_context, ast.boolop, ast.operator,
    ast.unaryop, ast.cmpop,
)  # fmt: skip
NEVER = (ast.MatMult, ast.Is, ast.IsNot, ast.In, ast.NotIn)
WORDS = """
cuda: grid gridsize threadIdx blockIdx blockDim gridDim shared local const syncthreads atomic popc clz ffs brev
math: sqrt floor ceil fabs trunc isnan isinf isfinite exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan
math: atan2 sinh cosh tanh erf erfc pow hypot cbrt fmod copysign inf nan
np: sqrt floor ceil fabs trunc rint minimum maximum bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32
np: float64
random: philox uniform
"""
ATTRIBUTES: dict[str, set[str]] = {}
for line in WORDS.split("\n")[1:-1]:
    ATTRIBUTES.setdefault(line.split(":")[0], set()).update(line.split()[1:])
BUILTINS = {"int", "float", "bool", "abs", "round", "min", "max", "len", "range"}


def held_against_the_list(found: Admitted) -> None:
    """All that an admitted kernel holds is in the language, its names are its own, and arrays are no values."""
    for function in found.functions.values():
        own = function.names | set(function.scratch) | set(function.params)
        parents = {child: node for node in ast.walk(function.node) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(function.node):
            assert isinstance(node, NODES), ast.dump(node)
            assert not isinstance(node, NEVER)
            if isinstance(node, ast.Constant):
                assert type(node.value) in (int, float, bool)
            elif isinstance(node, ast.Name):
                assert node.id in own | set(ATTRIBUTES) | BUILTINS | set(found.functions)
                assert not node.id.startswith("__")
                parent = parents[node]
                if node.id in ATTRIBUTES and node.id not in own:
                    assert isinstance(parent, ast.Attribute)
                if node.id in function.arrays | set(function.scratch):  # before an index, or in a call by itself
                    declared = isinstance(parent, ast.Assign) and node.id in function.scratch
                    assert declared or isinstance(parent, ast.Subscript | ast.Attribute | ast.Call)
                    assert not isinstance(parent, ast.Subscript) or parent.value is node
            elif isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_")
                match node.value:
                    case ast.Name(id=module) if module in ATTRIBUTES and module not in own:
                        assert node.attr in ATTRIBUTES[module]
                    case ast.Name():
                        assert node.attr in ("size", "ndim", "shape")
                    case ast.Attribute(value=ast.Name(id="cuda")):
                        assert node.attr in {"x", "y", "z", "array", "add", "max", "min", "and_", "or_", "xor"}
                    case _:
                        raise AssertionError(ast.dump(node))
            elif isinstance(node, ast.FunctionDef):
                assert node is function.node
                assert not node.decorator_list
                assert not node.args.defaults


class Maker:
    """Makes trees of every kind of node of this Python's grammar."""

    KINDS: ClassVar = {
        base: [kind for kind in vars(ast).values() if isinstance(kind, type) and issubclass(kind, base)]
        for base in (ast.expr, ast.stmt)
    }
    NAMES = (
        *("out", "x", "n", "i", "own", "table", "sm", "tx", "f", "k", "a", "b", "cuda", "math", "np", "random"),
        *("len", "min", "range", "int", "eval", "__import__", "__builtins__", "open", "self", "j", "grid", "shape"),
    )
    WORDS = (
        *("x", "y", "size", "shape", "ndim", "grid", "sqrt", "float32", "array", "shared", "add", "syncthreads"),
        *("__class__", "ctypes", "base", "T", "load", "philox", "threadIdx", "atomic", "const", "local"),
    )
    VALUES = (0, 1, -1, 3, 2**63, 2**64, 10**30, 1.5, float("inf"), float("nan"), True, None, "s", b"b", 2j, ...)

    def __init__(self, random: Random) -> None:
        self.random = random

    def made(self, kind: type[ast.AST], depth: int) -> ast.AST:
        """A node of this kind, its fields filled by what the grammar has there."""
        node = kind()
        for field in kind._fields:
            setattr(node, field, self.field(kind, field, depth - 1))
        return node

    def expr(self, depth: int) -> ast.expr:
        kinds: list[Any] = [ast.Name, ast.Constant] if depth <= 0 else self.KINDS[ast.expr]
        kind = self.random.choice(kinds)
        if kind is ast.expr:
            kind = ast.Name
        return self.made(kind, depth)  # type: ignore[return-value]

    def stmt(self, depth: int) -> ast.stmt:
        kinds: list[Any] = [ast.Pass, ast.Expr, ast.Assign] if depth <= 0 else self.KINDS[ast.stmt]
        kind = self.random.choice([kind for kind in kinds if kind is not ast.stmt])
        return self.made(kind, depth)  # type: ignore[return-value]

    def exprs(self, depth: int, least: int = 1) -> list[ast.expr]:
        return [self.expr(depth) for _ in range(self.random.randint(least, 3))]

    def field(self, kind: type[ast.AST], field: str, depth: int) -> Any:
        pick = self.random.choice
        match field:
            case "id" | "arg" | "rest":
                return pick(self.NAMES)
            case "name":
                return self.made(ast.Name, 0) if kind.__name__ == "TypeAlias" else pick(self.NAMES)
            case "attr":
                return pick(self.WORDS)
            case "value" if kind is ast.Constant:
                return pick(self.VALUES)
            case "ctx":
                return pick((ast.Load, ast.Store))()
            case "ops":
                return [pick(ast.cmpop.__subclasses__())()]
            case "op":
                bases = {ast.BoolOp: ast.boolop, ast.UnaryOp: ast.unaryop}
                return pick(bases.get(kind, ast.operator).__subclasses__())()  # type: ignore[call-overload]
            case "comparators":
                return [self.expr(depth)]
            case "body" | "orelse" | "finalbody" if issubclass(kind, ast.stmt | ast.ExceptHandler | ast.match_case):
                return [self.stmt(depth) for _ in range(self.random.randint(field == "body", 2))]
            case "args" if kind in (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda):
                return ast.arguments(posonlyargs=[], args=[ast.arg("a")], kwonlyargs=[], kw_defaults=[], defaults=[])
            case "values" | "elts" | "args" | "targets" | "bases":
                return self.exprs(depth)
            case "keys":
                return self.exprs(depth)
            case "keywords":
                return [ast.keyword("key", self.expr(depth))] if self.random.random() < 0.1 else []
            case "generators":
                return [ast.comprehension(target=ast.Name("a", ast.Store()), iter=self.expr(depth), ifs=[], is_async=0)]
            case "handlers":
                return [ast.ExceptHandler(type=self.expr(depth), name=None, body=[ast.Pass()])]
            case "items":
                return [ast.withitem(context_expr=self.expr(depth), optional_vars=None)]
            case "cases":
                return [ast.match_case(pattern=ast.MatchValue(self.expr(depth)), guard=None, body=[ast.Pass()])]
            case "names":
                return [ast.alias("os", None)] if kind in (ast.Import, ast.ImportFrom) else ["a"]
            case "decorator_list" | "type_ignores" | "type_params" | "patterns":
                return []
            case "module":
                return "os"
            case "level" | "simple" | "is_async":
                return 0
            case "conversion":
                return -1
            case "returns" | "type_comment" | "kind" | "cause" | "msg" | "format_spec" | "lower" | "upper" | "step":
                return None
            case _:
                return self.expr(depth)


def mutant(seed: int) -> str:
    """Text of an admitted kernel of which one to three pieces are others."""
    random = Random(seed)
    maker = Maker(random)
    tree = ast.parse(random.choice(SEEDS))
    for _ in range(random.choice((1, 1, 2, 3))):
        places = [
            (node, field, at)
            for node in ast.walk(tree)
            for field, value in ast.iter_fields(node)
            for at in ([None] if isinstance(value, ast.expr) else range(len(value)) if isinstance(value, list) else ())
            if at is None or isinstance(value[at], ast.expr | ast.stmt)
        ]
        node, field, at = random.choice(places)
        value = getattr(node, field)
        old = value if at is None else value[at]
        base = ast.stmt if isinstance(old, ast.stmt) else ast.expr
        alike = [other for other in ast.walk(tree) if isinstance(other, base)]
        new: Any = copy.deepcopy(random.choice(alike))
        if random.random() < 0.5:
            new = maker.stmt(2) if base is ast.stmt else maker.expr(2)
        if at is None:
            setattr(node, field, new)
        elif base is ast.stmt and random.random() < 0.3:
            value.insert(at, new)
        elif base is ast.stmt and len(value) > 1 and random.random() < 0.2:
            del value[at]
        else:
            value[at] = new
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def judged(text: str) -> Admitted | None:
    """What the guard and lowering say: a typed refusal that helps, or a kernel that is held against the list."""
    source = KernelSource(text=text, entry="k", digest=source_digest("k", text))
    refused: KernelError | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            found = admit(source)
        held_against_the_list(found)
        check_launch(found, LAUNCH, SPECS)
        lower(found, LAUNCH, SPECS)
    except KernelError as error:
        refused = error
    if refused is None:
        return found
    assert refused.reason
    assert refused.instead, refused.reason
    assert 0 <= refused.line <= text.count("\n") + 1
    return None


@pytest.mark.parametrize("part", range(4))
def test_mutants_of_kernels(part: int) -> None:
    taken = 0
    count = COUNT // 4
    for seed in range(SEED * 10_000_019 + part * count, SEED * 10_000_019 + (part + 1) * count):
        try:
            text = mutant(seed)
        except (ValueError, AttributeError, TypeError, RecursionError):
            continue  # Python itself can't write it down
        try:
            taken += judged(text) is not None
        except Exception as error:
            raise AssertionError(f"seed {seed}:\n{text}") from error
    assert taken > count // 50  # there are both


def test_the_list_finds_what_a_guard_lets_through() -> None:
    """The second list is one: it refuses what the first would have to."""
    for line in (
        "v = x.ctypes.data",
        "v = [1]",
        "y = x",
        "v = __import__",
        "v = 'text'",
        "v = np.load(1)",
        "v = n @ n",
    ):
        text = f"def k(out, x, n):\n    i = cuda.grid(1)\n    {line}\n    out[i] = 1\n"
        function = ast.parse(text).body[0]
        assert isinstance(function, ast.FunctionDef)
        whole = admit(_source("def k(out, x, n):\n    i = cuda.grid(1)\n    v = x[i]\n    y = n\n    out[i] = 1\n"))
        entry = dataclasses.replace(whole.entry, node=function)
        with pytest.raises(AssertionError):
            held_against_the_list(dataclasses.replace(whole, entry=entry, functions={"k": entry}))


def _source(text: str) -> KernelSource:
    return KernelSource(text=text, entry="k", digest=source_digest("k", text))


def test_what_is_let_through_stays_within_its_arrays() -> None:
    """A few of them compiled: nothing beside an array changes, and threads run alone give what they give together."""
    run = 0
    seed = SEED * 10_000_019
    with CpuBackend(1) as backend:
        while run < 12:
            seed += 1
            try:
                text = mutant(seed)
            except (ValueError, AttributeError, TypeError, RecursionError):
                continue
            if text in map(_unparsed, SEEDS) or "while" in text or judged(text) is None:
                continue  # a loop may have no end
            run += 1
            compiled = backend.compile(_source(text), LAUNCH, SPECS)
            together = "shared" in text or "syncthreads" in text or "out[cuda.blockIdx" in text
            whole = np.full(4096 + 16 + 4096, 7, np.int64)
            out = whole[4096 : 4096 + 16]
            out[:] = 0
            x = np.arange(16, dtype=np.float32)
            rows = out.reshape(2, 8) if together else out
            compiled.run_blocks(0, 2, [x, np.int64(3)], [rows])
            assert (whole[:4096] == 7).all()
            assert (whole[-4096:] == 7).all()
            assert np.array_equal(x, np.arange(16))
            alone = np.zeros_like(rows)
            for item in range(len(rows)):
                compiled.run_threads(np.array([item]), [x, np.int64(3)], [alone[item : item + 1]])
            assert np.array_equal(alone, rows), text


def _unparsed(text: str) -> str:
    return ast.unparse(ast.parse(text)) + "\n"
