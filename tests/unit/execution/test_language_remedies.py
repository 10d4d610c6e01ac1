"""What a refusal says to write instead gives what the refused function gives, over its whole range."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard_advice import _CALLED_OTHERWISE
from p2pcompute.execution._language_advice import _INSTEAD_OF, _INSTEAD_OF_CUDA
from p2pcompute.kernel import kernel, out

from .test_tutorials import run

Array = np.ndarray[Any, Any]

# Each name that is replaced by an expression: what it means, as NumPy or arithmetic has it, by a, b, c, low, high, n.
MEANS: dict[str, Callable[..., Any]] = {
    "fma": lambda a, b, c, n: np.float128(a) * b + c,
    "rsqrt": lambda a, b, c, n: 1 / np.sqrt(np.float128(a)),
    "clip": lambda a, b, c, n: np.clip(a, -1, 2),
    "where": lambda a, b, c, n: np.where(c != 0, a, b),
    "sign": lambda a, b, c, n: np.nan_to_num(np.sign(a)),
    "square": lambda a, b, c, n: np.square(a),
    "radians": lambda a, b, c, n: np.radians(np.float64(a)),
    "degrees": lambda a, b, c, n: np.degrees(np.float64(a)),
    "asinh": lambda a, b, c, n: np.arcsinh(np.float128(a)),
    "acosh": lambda a, b, c, n: np.arccosh(np.float128(a)),
    "atanh": lambda a, b, c, n: np.arctanh(np.float128(a)),
    "ldexp": lambda a, b, c, n: np.ldexp(np.float64(a), n),
    "log": lambda a, b, c, n: np.log(np.float128(a)) / np.log(np.float128(b)),
    "round": lambda a, b, c, n: np.round(a, 2),
}
# Where the words beside an expression, or the function itself, end its range.
WITHIN: dict[str, Callable[[Array], Any]] = {
    "asinh": lambda a: ~(np.abs(a) > np.finfo(a.dtype).max / 2),
    "acosh": lambda a: ~(np.abs(a) > np.finfo(a.dtype).max / 2),
    "round": lambda a: ~(np.abs(a) > np.finfo(a.dtype).max / 128),
}


def _expressions() -> dict[str, str]:
    """The remedies that are an expression, by one of the names that they are for."""
    found: dict[str, str] = {}
    pairs = [(set(names), remedy) for names, remedy in (*_INSTEAD_OF, *_INSTEAD_OF_CUDA)]
    pairs += [({name}, _CALLED_OTHERWISE[name].replace("round(a), or ", "")) for name in ("log", "round")]
    for names, remedy in pairs:
        name = next((name for name in names if name in MEANS), min(names))
        words = remedy.removeprefix("write ").split(" ") if remedy.startswith("write ") else []
        for stop in range(len(words), 0, -1):
            said = " ".join(words[:stop]).rstrip(",:;")
            try:
                expression = ast.parse(said, mode="eval").body
            except SyntaxError:
                continue
            if isinstance(expression, ast.Tuple):  # of several the first
                said = ast.unparse(expression.elts[0])
            if not isinstance(expression, ast.Name) and "@" not in said:
                found[name] = said
            break
    return found


def _points(dtype: type) -> Array:
    info = np.finfo(dtype)
    top = int(np.log10(info.max))
    sizes = np.concatenate(
        [
            np.logspace(-top, top, 301),
            1 + np.logspace(float(np.log10(info.eps)), 0, 60),
            np.linspace(0, 1, 60),
            [0.0, info.tiny, info.max / 2, info.max, np.inf, 1e9, 0.125, 2.675, np.nan],
        ]
    )
    with np.errstate(over="ignore"):
        return np.concatenate([sizes, -sizes]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_remedy_is_what_it_stands_for(dtype: type, tmp_path: Path) -> None:
    said = _expressions()
    assert said.pop("divmod", None) == "a // b and a % b"  # below
    assert set(said) == set(MEANS)
    lines = ["import math", "import numpy as np", "import p2pcompute as p2p", "from p2pcompute import cuda", ""]
    lines += ["@p2p.kernel", "def remedies(found, first, second, third, whole):"]
    lines += ["    i = cuda.grid(1)", "    if i < found.shape[0]:", "        a = first[i]", "        b = second[i]"]
    lines += ["        c = third[i]", "        n = whole[i]", "        low = -1", "        high = 2"]
    names = sorted(said)
    lines += [f"        found[i, {place}] = {said[name]}" for place, name in enumerate(names)]
    path = tmp_path / "remedies.py"
    path.write_text("\n".join(lines) + "\n")
    spec = importlib.util.spec_from_file_location("remedies", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    a = _points(dtype)
    rng = np.random.default_rng(5)
    b = np.exp(rng.uniform(1, 10, a.size)).astype(dtype)
    c = np.where(rng.random(a.size) < 0.5, 0, rng.standard_normal(a.size)).astype(dtype)
    n = rng.integers(-2046, 2047, a.size)
    found = run(CpuBackend(1), module.remedies.bind(out((a.size, len(names)), np.float64), a, b, c, n))
    with np.errstate(all="ignore"):
        for place, name in enumerate(names):
            due = MEANS[name](a, b, c, n)
            kept = WITHIN.get(name, lambda a: np.full(a.shape, True))(a) & ~np.isinf(a)
            assert kept.sum() > 700
            if name == "fma":  # two roundings: the sum may be as far from the fused one as its parts are
                size = np.abs(np.float128(a) * b) + np.abs(c)
                kept &= size < float(np.finfo(dtype).max)
                assert np.nanmax((np.abs(found[:, place] - due) / size)[kept]) < np.finfo(dtype).eps
                continue
            if name == "ldexp":  # below the normal numbers it is rounded twice
                kept &= ~((due != 0) & (np.abs(due) < np.finfo(np.float64).tiny))
                np.testing.assert_array_equal(found[kept, place], due[kept])
                continue
            rtol = 4 * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(
                found[kept, place], np.float64(due.astype(dtype)[kept]), rtol=rtol, atol=0, err_msg=said[name]
            )


def test_quotient_and_remainder() -> None:
    assert _expressions()["divmod"] == "a // b and a % b"

    def divides(found, a, b):
        i = cuda.grid(1)
        if i < found.shape[0]:
            found[i, 0] = a[i] // b[i]
            found[i, 1] = a[i] % b[i]

    rng = np.random.default_rng(6)
    a = rng.integers(-(2**62), 2**62, 400) >> rng.integers(0, 60, 400)
    b = rng.integers(1, 2**40, 400) * rng.choice([-1, 1], 400)
    found = run(CpuBackend(1), kernel(divides).bind(out((400, 2), np.int64), a, b))
    np.testing.assert_array_equal(found, np.stack(np.divmod(a, b), axis=1))
