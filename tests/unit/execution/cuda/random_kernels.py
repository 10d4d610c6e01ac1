"""Writes kernels at random: every operator and conversion of the language between values of all types, in branches
and loops. A seed gives the same kernel for ever."""

from __future__ import annotations

from random import Random

from p2pcompute.execution._api import KernelSource
from p2pcompute.execution._language_capture import source_digest

__all__ = ["INPUTS", "OUTPUTS", "random_kernel"]

INPUTS = ("int64", "int64", "float32", "float32", "float64")
"""Dtypes of its inputs, each ``(threads,)``."""
OUTPUTS = (("int64", (2,)), ("float32", (2,)), ("float64", ()))
"""Dtypes and rows of its outputs."""

_INTS = ("a", "b", "i", "0", "1", "-1", "3", "7", "63", "64", "255", "-128", "2147483648", "9223372036854775807")
_SINGLES = ("x", "y", "x", "y", "0.0", "-0.0", "1.5", "0.1", "1e30", "-2.5", "3.0", "1e-40", "16777217.0")
_DOUBLES = ("z", "z", "np.float64(0.1)")
_TO_INT = ("int", "np.int8", "np.uint16", "np.int32", "np.uint32", "math.floor", "math.ceil")
_OF_FLOAT = ("math.sqrt", "np.floor", "np.ceil", "abs", "math.fabs", "np.rint", "np.trunc")
_ORDER = ("<", "<=", ">", ">=", "==", "!=")


class _Writer:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def int64(self, depth: int) -> str:
        if depth <= 0:
            return self.pick(*_INTS)
        less, chance = depth - 1, self.random.random()
        if chance < 0.5:
            symbol = self.pick("+", "-", "*", "//", "%", "&", "|", "^", "<<", ">>")
            return f"({self.int64(less)} {symbol} {self.int64(less)})"
        if chance < 0.6:
            return f"({self.pick('-', '~')}{self.int64(less)})"
        if chance < 0.7:
            return f"{self.pick('min', 'max')}({self.int64(less)}, {self.int64(less)})"
        if chance < 0.8:
            return f"({self.int64(less)} if {self.truth(less)} else {self.int64(less)})"
        if chance < 0.9:
            return f"{self.pick(*_TO_INT)}({self.single(less)})"
        return f"abs({self.int64(less)})"

    def single(self, depth: int) -> str:
        if depth <= 0:
            return self.pick(*_SINGLES)
        less, chance = depth - 1, self.random.random()
        if chance < 0.55:
            return f"({self.single(less)} {self.pick('+', '-', '*', '/', '//', '%')} {self.single(less)})"
        if chance < 0.62:
            return f"(-{self.single(less)})"
        if chance < 0.72:
            return f"{self.pick('min', 'max')}({self.single(less)}, {self.single(less)})"
        if chance < 0.76:  # what looks like min, max and abs
            value, zero = self.pick("x", "y"), self.pick("0.0", "-0.0", "1.5")
            arms = [value, self.pick(zero, f"-{value}")]
            self.random.shuffle(arms)
            return f"({arms[0]} if {value} {self.pick(*_ORDER)} {zero} else {arms[1]})"
        if chance < 0.8:
            return f"({self.single(less)} if {self.truth(less)} else {self.single(less)})"
        if chance < 0.88:
            return f"{self.pick(*_OF_FLOAT)}({self.single(less)})"
        if chance < 0.94:
            return f"np.float32({self.int64(less)})"
        return (
            f"{self.single(less)} ** {self.random.randint(0, 5)}"
            if chance < 0.97
            else f"np.float32({self.double(less)})"
        )

    def double(self, depth: int) -> str:
        if depth <= 0:
            return self.pick(*_DOUBLES)
        less, chance = depth - 1, self.random.random()
        if chance < 0.6:
            other = self.double(less) if self.random.random() < 0.5 else self.single(less)
            return f"({self.double(less)} {self.pick('+', '-', '*', '/', '//', '%')} {other})"
        if chance < 0.8:
            return f"({self.double(less)} if {self.truth(less)} else {self.double(less)})"
        return f"math.sqrt({self.double(less)})"

    def truth(self, depth: int) -> str:
        low, chance = min(depth, 1), self.random.random()
        if chance < 0.6 or depth <= 0:
            kind = self.random.choice((self.int64, self.single, self.double))
            return f"({kind(low)} {self.pick(*_ORDER)} {self.random.choice((kind, kind, self.single))(low)})"
        if chance < 0.75:
            return f"(not {self.truth(depth - 1)})"
        if chance < 0.9:
            return f"({self.truth(depth - 1)} {self.pick('and', 'or')} {self.truth(depth - 1)})"
        return f"{self.pick('math.isnan', 'math.isinf', 'math.isfinite')}({self.single(low)})"

    def statement(self) -> list[str]:
        chance = self.random.random()
        if chance < 0.25:
            return [f"{self.pick('a', 'b')} = {self.int64(3)}"]
        if chance < 0.5:
            return [f"{self.pick('x', 'y')} = {self.single(3)}"]
        if chance < 0.6:
            return [f"z = {self.double(2)}"]
        if chance < 0.8:
            branch = [f"if {self.truth(2)}:", f" a = {self.int64(2)}", f" x = {self.single(2)}"]
            return [*branch, "else:", f" y = {self.single(2)}"]
        loop = [f"for n in range({self.random.randint(1, 6)}):", f" x = {self.single(2)}", f" a = a + {self.int64(2)}"]
        return [*loop, f" if {self.truth(1)}:", f"  {self.pick('break', 'continue', 'b = n')}"]


def random_kernel(seed: int) -> KernelSource:
    """The kernel of a seed: `OUTPUTS`, then `INPUTS`."""
    writer = _Writer(seed)
    lines = ["i = cuda.grid(1)", *(f"{name} = {name}0[i]" for name in "abxyz")]
    for _ in range(writer.random.randint(4, 8)):
        lines += writer.statement()
    lines += [f"p[i, 0] = {writer.int64(1)}", "p[i, 1] = a ^ b", "q[i, 0] = x", "q[i, 1] = y", "r[i] = z"]
    text = "def kernel(p, q, r, a0, b0, x0, y0, z0):\n" + "".join(f" {line}\n" for line in lines)
    return KernelSource(text=text, entry="kernel", digest=source_digest("kernel", text))
