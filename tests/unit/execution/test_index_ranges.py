"""Bounds of indices: what is proved holds for every thread, and what does not hold is not proved."""

from __future__ import annotations

import ast
import contextlib
import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._guard import Admitted, admit
from p2pcompute.execution._index_ranges import IndexRanges, index_ranges
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import lower
from p2pcompute.execution._rows import extents

SIZE = 100
LAUNCH = Launch(grid=(4, 1, 1), block=(32, 1, 1), dims=1)  # 28 threads more than elements


def source(body: str) -> KernelSource:
    text = "def f(out, x, y, n):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    return KernelSource(text=text, entry="f", digest=source_digest("f", text))


def specs(x: int = SIZE, n: int = 7) -> list[ArgSpec]:
    return [
        OutputSpec(dtype="int64", shape=(SIZE,)),
        InputSpec(dtype="int64", shape=(x,)),
        InputSpec(dtype="int8", shape=(SIZE, 5)),
        ScalarSpec(dtype="int64", value=np.int64(n)),
    ]


def left_tests(body: str, x: int = SIZE, n: int = 7) -> int:
    """Loads with a test in the lowered code."""
    admitted = admit(source(body))
    return lower(admitted, LAUNCH, specs(x, n)).body.count("load")


@pytest.mark.parametrize(
    "body",
    [
        "i = cuda.grid(1)\nout[i] = x[i]",
        "i = cuda.grid(1)\nif i > 0:\n    out[i] = x[i - 1]",
        "i = cuda.grid(1)\nif i > 0 and i < out.size - 1:\n    out[i] = x[i - 1] + x[i + 1]",
        "i = cuda.grid(1)\nif 0 < i < len(x) - 1:\n    out[i] = x[i - 1] + x[i + 1]",
        "i = cuda.grid(1)\nif i == 0 or i >= x.shape[0] - 1:\n    return\nout[i] = x[i - 1] + x[i + 1]",
        "i = cuda.grid(1)\nif not i + 3 < x.size:\n    out[i] = 0\nelse:\n    out[i] = x[i + 3]",
        "i = cuda.grid(1)\nt = 0\nfor j in range(5):\n    t += y[i, j]\nout[i] = t",
        "i = cuda.grid(1)\nt = 0\nfor j in range(n - 3, -1, -1):\n    t += y[i, j]\nout[i] = t",
        "i = cuda.grid(1)\nt = 0\nfor j in range(2, y.shape[1]):\n    t += y[i, j]\nout[i] = t",
        "i = cuda.grid(1)\nk = x[i]\nif 0 <= k < x.size:\n    out[i] = x[k]",
        "i = cuda.grid(1)\nk = x[i]\nout[i] = x[k] if 0 <= k < 100 else -1",
        "i = cuda.grid(1)\nout[i] = x[max(0, min(x.size - 1, i + n))]",
        "i = cuda.grid(1)\nout[i] = x[(i + 50) % 100] + x[i // 2] + x[i & 63] + x[i >> 1]",
        "i = cuda.grid(1)\nout[i] = x[cuda.threadIdx.x] + x[cuda.blockIdx.x * 2]",
        "i = cuda.grid(1)\nout[i] = y[i, abs(n - 9)]",
        "i = cuda.grid(1)\nout[i] = x[int(y[i, 0] > 3)]",
        "i = cuda.grid(1)\nk = 3\nif x[i] > 5:\n    k = 8\nout[i] = x[k]",
        "i = cuda.grid(1)\nk = i\nwhile k > 0:\n    k -= 1\n    if 0 <= k <= 99:\n        out[i] = x[k]",
    ],
)
def test_what_is_proved_costs_nothing(body: str) -> None:
    assert left_tests(body) == 0


@pytest.mark.parametrize(
    "body",
    [
        "i = cuda.grid(1)\nout[i] = x[i + 1]",
        "i = cuda.grid(1)\nout[i] = x[i - 1]",
        "i = cuda.grid(1)\nif i > 0:\n    i2 = i - 2\n    out[i] = x[i2]",
        # Both operands are evaluated, whatever the first one gives.
        "i = cuda.grid(1)\nif i > 0 and x[i - 1] > 0:\n    out[i] = 1",
        "i = cuda.grid(1)\nif i == 0 or x[i - 1] > 0:\n    out[i] = 1",
        # Only one of two has to hold.
        "i = cuda.grid(1)\nif i > 0 or n > 3:\n    out[i] = x[i - 1]",
        "i = cuda.grid(1)\nif not (i > 0 and i < 50):\n    out[i] = x[i - 1]",
        # What the condition was about has changed, or the place is behind it.
        "i = cuda.grid(1)\nk = x[i]\nif 0 <= k < 100:\n    k += 1\n    out[i] = x[k]",
        "i = cuda.grid(1)\nk = x[i]\nif 0 <= k < 100:\n    out[i] = 1\nelse:\n    out[i] = x[k]",
        "i = cuda.grid(1)\nk = x[i]\nif 0 <= k < 100:\n    out[i] = 1\nout[i] = x[k]",
        "i = cuda.grid(1)\nk = 3\nif x[i] > 5:\n    k = 100\nout[i] = x[k]",
        # A loop may go round.
        "i = cuda.grid(1)\nk = 0\nfor j in range(n):\n    out[i] = x[k]\n    k += 20",
        "i = cuda.grid(1)\nk = 0\nwhile x[i] > k:\n    k += 20\nout[i] = x[k]",
        "i = cuda.grid(1)\nk = 0\nfor j in range(101):\n    out[i] = x[j]",
        "i = cuda.grid(1)\nfor j in range(5, -2, -1):\n    out[i] = y[i, j]",
        "i = cuda.grid(1)\nfor j in range(0, 5, x[i]):\n    out[i] = y[i, j]",
        "i = cuda.grid(1)\nj = 3\nfor j in range(x[i]):\n    out[i] = 0\nout[i] = y[i, j]",
        # Sums and products that wrap are any number; so is a quotient by what may be negative.
        "i = cuda.grid(1)\nk = i + 9223372036854775800\nif k > 0:\n    out[i] = x[k - 9223372036854775800]",
        "i = cuda.grid(1)\nk = x[i]\nif k - 9223372036854775807 > 5:\n    out[i] = x[k]",
        "i = cuda.grid(1)\nk = i * 4611686018427387904 * 4\nout[i] = x[k + i * 2]",
        "i = cuda.grid(1)\nout[i] = x[100 // (n - 8)]",
        "i = cuda.grid(1)\nout[i] = x[abs(x[i])]",
        # A float, and a number of more than 63 bits.
        "i = cuda.grid(1)\nk = 0\nk = x[i] / 2\nout[i] = x[int(k)]",
        "i = cuda.grid(1)\nk = 18446744073709551615\nout[i] = x[k]",
        "i = cuda.grid(1)\nk = 3\nif i < 0:\n    k = 18446744073709551615\nout[i] = x[k - 1]",
    ],
)
def test_what_may_leave_keeps_its_test(body: str) -> None:
    assert left_tests(body) > 0


def test_a_shorter_array_keeps_the_test_and_the_condition_goes() -> None:
    body = "i = cuda.grid(1)\nif i < out.size:\n    out[i] = x[i]"
    assert left_tests(body, x=SIZE) == 0
    assert left_tests(body, x=SIZE - 1) == 1
    assert "if True:" in lower(admit(source(body)), LAUNCH, specs()).body
    assert "if True:" not in lower(admit(source(body.replace("out.size", "x.size"))), LAUNCH, specs(SIZE - 1)).body


def test_conditions_on_arguments_stay_so_that_other_arguments_need_no_other_code() -> None:
    body = "i = cuda.grid(1)\nif n > 3:\n    out[i] = n"
    assert lower(admit(source(body)), LAUNCH, specs(n=7)).body == lower(admit(source(body)), LAUNCH, specs(n=1)).body


# Random kernels, thread by thread in Python with the language's arithmetic, against what is said of them.


class _Writer:
    """Writes random statements over integers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.loops = 0

    def expression(self, depth: int = 2) -> str:
        pick = self.rng.random()
        if depth == 0 or pick < 0.3:
            return self.rng.choice(["i", "a", "b", "c", "k", "n", "3", "1", "0", "-2", "x.size", "cuda.threadIdx.x"])
        one, other = self.expression(depth - 1), self.expression(depth - 1)
        if pick < 0.42:
            return f"x[{one}]"
        if pick < 0.47:
            return f"y[{one}, {other}]"
        if pick < 0.55:
            return f"{self.rng.choice(['min', 'max'])}({one}, {other})"
        if pick < 0.6:
            return f"abs({one})"
        if pick < 0.65:
            return f"({one} if {self.condition(0)} else {other})"
        if pick < 0.68:
            return f"({one} << {self.rng.choice(['1', '40', '62'])})"
        return f"({one} {self.rng.choice(['+', '-', '+', '-', '*', '//', '%', '&'])} {other})"

    def condition(self, depth: int = 1) -> str:
        if depth and self.rng.random() < 0.4:
            word = self.rng.choice(["and", "or"])
            found = f"({self.condition(depth - 1)} {word} {self.condition(depth - 1)})"
            return f"(not {found})" if self.rng.random() < 0.3 else found
        sign = self.rng.choice(["<", "<=", ">", ">=", "==", "!="])
        if self.rng.random() < 0.3:
            low, name = self.rng.choice(["0", "-1", "a"]), self.rng.choice("abi")
            return f"({low} <= {name} {sign} {self.expression(1)})"
        return f"({self.rng.choice(['a', 'b', 'c', 'i', 'a + 1', 'b - n', 'x[i]'])} {sign} {self.expression(1)})"

    def block(self, depth: int, indent: str) -> list[str]:
        lines: list[str] = []
        for _ in range(self.rng.randint(1, 4)):
            pick, name = self.rng.random(), self.rng.choice("abcabcabck")
            if depth == 0 or pick < 0.4:
                lines.append(f"{indent}{name} = {self.expression()}")
            elif pick < 0.5:
                lines.append(f"{indent}{name} {self.rng.choice(['+', '-', '*'])}= {self.expression(1)}")
            elif pick < 0.55:
                lines.append(f"{indent}a, b = {self.expression(1)}, {self.expression(1)}")
            elif pick < 0.75:
                lines.append(f"{indent}if {self.condition()}:")
                lines += self.block(depth - 1, indent + "    ")
                if self.rng.random() < 0.5:
                    lines.append(f"{indent}else:")
                    lines += self.block(depth - 1, indent + "    ")
            elif pick < 0.8:
                lines += self.strides(depth, indent)
            elif pick < 0.92:
                bounds = self.rng.choice(["4", "a", "b, n", "0, n, 2", "5, -3, -1", "a, b, c"])
                lines.append(f"{indent}for {self.rng.choice(['j', name])} in range({bounds}):")
                lines += self.loop(depth, indent)
            else:
                lines.append(f"{indent}while {self.condition()}:")
                lines += self.loop(depth, indent)
        return lines

    def strides(self, depth: int, indent: str) -> list[str]:
        """A loop that most threads go through once or not at all."""
        start = self.rng.choice(["i", "i", "i + 1", "i - 9", "i * 40", "min(a, 9) + i"])
        stop = self.rng.choice(["x.size", "x.size", "out.size - 1", "n + 50", "300", "b", "(1 << 62) + (1 << 61)"])
        step = self.rng.choice(["cuda.gridsize(1)", "cuda.gridsize(1)", "100", "99", "n * 40", "c", "1 << 62"])
        if self.rng.random() < 0.5:
            return [f"{indent}for j in range({start}, {stop}, {step}):", *self.loop(depth, indent)]
        lines = [f"{indent}k = {start}", f"{indent}while k {self.rng.choice(['<', '<', '<='])} {stop}:"]
        return [*lines, *self.loop(depth, indent), f"{indent}    k += {step}"]

    def loop(self, depth: int, indent: str) -> list[str]:
        lines = self.block(depth - 1, indent + "    ")
        if self.rng.random() < 0.4:
            word = self.rng.choice(["break", "continue"])
            lines += [f"{indent}    if {self.condition()}:", f"{indent}        {word}"]
        return lines

    def kernel(self) -> str:
        lines = ["i = cuda.grid(1)", *self.block(3, ""), *self.strides(2, "")]
        if self.rng.random() < 0.3:
            lines += [f"if {self.condition()}:", "    return"]
        return "\n".join([*lines, *self.block(2, ""), "out[i] = a + b + c", "a = b = c = k = 0"])


class _Enough(Exception):
    pass


def _wrapped(value: int) -> int:
    return (int(value) + 2**63) % 2**64 - 2**63


_OPERATIONS: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b if b else 0,
    ast.Mod: lambda a, b: a % b if b else 0,
    ast.BitAnd: lambda a, b: a & b,
    ast.LShift: lambda a, b: a << b,
}


class _Instrument(ast.NodeTransformer):
    """Makes plain Python that computes as the language does and tells what it sees."""

    def __init__(self, names: dict[ast.AST, ast.AST]) -> None:
        self.names = names
        self.kept: list[ast.AST] = []

    def told(self, what: str, node: ast.AST, *args: ast.expr) -> ast.expr:
        self.kept.append(self.names[node])
        number = ast.Constant(value=len(self.kept) - 1)
        return ast.Call(func=ast.Name(id=what, ctx=ast.Load()), args=[number, *args], keywords=[])

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if isinstance(node.value, ast.Attribute) or isinstance(node.ctx, ast.Store):
            return node
        inner = [self.visit(part) for part in (node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice])]
        return self.told("load", node.slice, ast.Constant(value=getattr(node.value, "id", "")), *inner)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        inner = ast.Compare(node.left, node.ops, node.comparators)
        self.generic_visit(inner)
        return self.told("compared", node, inner)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.right)
        return self.told("operated", node, left, right)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        target = node.target
        assert isinstance(target, ast.Name)
        value = self.told("operated", node, ast.Name(id=target.id, ctx=ast.Load()), self.visit(node.value))
        return ast.Assign(targets=[target], value=value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        operand = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return ast.UnaryOp(op=node.op, operand=operand)
        return ast.Call(
            func=ast.Name(id="wrapped", ctx=ast.Load()),
            args=[ast.UnaryOp(op=node.op, operand=operand)],
            keywords=[],
        )

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        name = "every" if isinstance(node.op, ast.And) else "some"
        values: list[ast.expr] = [self.visit(value) for value in node.values]
        return ast.Call(
            func=ast.Name(id=name, ctx=ast.Load()), args=[ast.Tuple(elts=values, ctx=ast.Load())], keywords=[]
        )

    def visit_For(self, node: ast.For) -> list[ast.stmt]:
        self.generic_visit(node)
        assert isinstance(node.iter, ast.Call)
        node.iter.func = ast.Name(id="numbers", ctx=ast.Load())
        return self.counted(node)

    def visit_While(self, node: ast.While) -> list[ast.stmt]:
        self.generic_visit(node)
        return self.counted(node)

    def counted(self, node: ast.For | ast.While) -> list[ast.stmt]:
        """The loop, which tells when it begins, goes round and has ended."""
        node.body.insert(0, ast.Expr(value=self.told("turned", node)))
        return [ast.Expr(value=self.told("begun", node)), node, ast.Expr(value=self.told("ended", node))]


def check_threads(
    admitted: Admitted, found: IndexRanges, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]
) -> tuple[int, int]:
    """Run all threads and hold what they do against `found`; how many loads were inside by proof, and how many loops
    had one turn at most."""
    tree = copy.deepcopy(admitted.entry.node)
    instrument = _Instrument(dict(zip(ast.walk(tree), ast.walk(admitted.entry.node), strict=True)))
    module = ast.Module(body=[instrument.visit(tree)], type_ignores=[])
    module.body[0].body[:0] = ast.parse("a = b = c = j = k = 0").body  # type: ignore[attr-defined]
    proved = once = steps = 0
    turns: dict[int, int] = {}

    def tick() -> None:
        nonlocal steps
        steps += 1
        if steps > 300:
            raise _Enough

    def load(number: int, name: str, *index: int) -> int:
        nonlocal proved
        tick()
        array = {"x": x, "y": y}[name]
        key = instrument.kept[number]
        known = found.sites[id(key)]
        for axis, place in enumerate(index):
            interval = known[axis]
            assert interval is None or interval[0] <= place <= interval[1], ast.unparse(admitted.entry.node)
            assert isinstance(key, ast.expr)
            if found.inside(key, axis, array.shape[axis]):
                proved += 1
                assert 0 <= place < array.shape[axis]
        inside = all(0 <= place < length for place, length in zip(index, array.shape, strict=True))
        return int(array[index]) if inside else 0

    def compared(number: int, value: bool) -> bool:
        node = instrument.kept[number]
        assert isinstance(node, ast.Compare)
        assert value or not found.holds(node), ast.unparse(admitted.entry.node)
        return value

    def operated(number: int, one: int, other: int) -> int:
        node = instrument.kept[number]
        assert isinstance(node, ast.BinOp | ast.AugAssign)
        return _wrapped(_OPERATIONS[type(node.op)](int(one), int(other)))

    def numbers(*bounds: int) -> Any:
        every = range(*bounds) if len(bounds) < 3 or bounds[2] else range(0)
        return every if not every or (every[-1] - every[0]) // every.step < 2**63 - 1 else range(0)

    def begun(number: int) -> None:
        turns[id(instrument.kept[number])] = 0

    def turned(number: int) -> None:
        tick()
        key = id(instrument.kept[number])
        turns[key] += 1
        assert turns[key] < 2 or key not in found.once, ast.unparse(admitted.entry.node)

    def ended(number: int) -> None:
        nonlocal once
        key = id(instrument.kept[number])
        assert turns[key] > 0 or not found.once.get(key, False), ast.unparse(admitted.entry.node)
        once += key in found.once

    names: dict[str, Any] = {
        "load": load, "compared": compared, "operated": operated, "numbers": numbers, "begun": begun, "turned": turned,
        "ended": ended, "every": all, "some": any, "wrapped": _wrapped, "abs": lambda value: _wrapped(abs(value)),
    }  # fmt: skip
    exec(compile(ast.fix_missing_locations(module), "<kernel>", "exec"), names)

    class Place:
        def __init__(self, number: int) -> None:
            self.x = number

    class Cuda:
        def __init__(self, place: int) -> None:
            self.place = place
            self.threadIdx = Place(place % 32)

        def grid(self, _: int) -> int:
            return self.place

        def gridsize(self, _: int) -> int:
            return LAUNCH.threads

    for place in range(SIZE):
        steps = 0
        names["cuda"] = Cuda(place)
        with contextlib.suppress(_Enough):
            names["f"](np.zeros(SIZE, np.int64), x, y, 7)
    return proved, once


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_random_kernels_do_only_what_is_said_of_them(first: int) -> None:
    rng = np.random.default_rng(first)
    x = rng.integers(-5, 120, SIZE)
    y = rng.integers(-128, 128, (SIZE, 5)).astype(np.int8)
    proved = once = 0
    for seed in range(first, first + 20):
        admitted = admit(source(_Writer(seed).kernel()))
        args = specs()
        integers = {"i", "j", "k", "a", "b", "c", "n"}  # the random language has no other type
        found = index_ranges(admitted, LAUNCH, args, extents(admitted, LAUNCH, args), integers)
        inside, loops = check_threads(admitted, found, x, y)
        proved, once = proved + inside, once + loops
    assert proved > 100
    assert once > 50
