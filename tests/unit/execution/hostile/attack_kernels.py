"""Kernels of strangers who mean harm, by class. Texts only: what each does where nothing stands in its way, and what
stands there, is in test_attack_kernels.

A kernel is ``k(out, x, n)``: `out` has an element for each of 16 threads, or a row of four where the text says so, `x`
holds 0 to 15 and `n` is 3. ``{secret}`` is the path of a file that holds ``hidden``, and ``{made}`` one that is not
there.
"""

from __future__ import annotations

from typing import Final

__all__ = ["AS_PYTHON", "MEMORY", "ORDER", "STATE", "SUMS", "TOGETHER", "UNDEFINED", "body", "rows"]


def body(*lines: str, head: str = "def k(out, x, n):", end: str = "out[i] = v") -> str:
    """A kernel of these lines behind ``i``, with what it found in ``v``."""
    return (
        "\n".join([head, "    i = cuda.grid(1)", *("    " + line for line in lines), *(["    " + end] * bool(end))])
        + "\n"
    )


def rows(*lines: str) -> str:
    """A kernel whose threads work together: eight of a block, in two blocks."""
    first = ("sm = cuda.shared.array(8, np.int64)", "i = cuda.grid(1)", "tx = cuda.threadIdx.x")
    return "\n".join(["def k(out, x, n):", *("    " + line for line in (*first, *lines)), ""])


# Run as Python, each leaves a mark: 42 in out[0], or the file `made`, or an input that is not what it was.

AS_PYTHON: Final[dict[str, dict[str, str]]] = {
    "imports": {
        "in the body": body("import os", "v = 42 if os.listdir('/') else 0"),
        "of one name": body("from os import getpid", "v = 42 if getpid() else 0"),
        "by a call": body("v = 42 if __import__('os').getpid() else 0"),
        "beside the kernel": "import os\n" + body("v = 42 if os.getpid() else 0"),
        "in a device function": "def f(a):\n    import ctypes\n    return 42 if ctypes.CDLL(None) else 0\n"
        + body("v = f(1)"),
        "out of the builtins": body("v = 42 if __builtins__['__import__']('os').getpid() else 0"),
    },
    "evaluation": {
        "eval": body("v = eval('40 + 2')"),
        "exec": body("exec('import os')", "v = 42"),
        "compile": body("v = eval(compile('42', 'text', 'eval'))"),
        "open": body("v = 42 if open('{secret}').read() == 'hidden' else 0"),
        "a file made": body("v = 42 if open('{made}', 'w') else 0"),
        "globals": body("v = 42 if 'np' in globals() else 0"),
        "getattr": body("v = 42 if getattr(x, 'ctypes') else 0"),
    },
    "attributes": {
        "the class of a number": body("v = 42 if (1).__class__.__base__.__subclasses__() else 0"),
        "the class of an array": body("v = 42 if x.__class__ else 0"),
        "the address of an array": body("v = 42 if x.ctypes.data else 0"),
        "a method that writes a file": body("x.tofile('{made}')", "v = 42"),
        "a module's loader": body("v = 42 if math.__loader__ else 0"),
        "numpy's way to C": body("v = 42 if np.ctypeslib.ctypes.CDLL(None) else 0"),
        "the kernel's own globals": body("v = 42 if k.__globals__['np'] is np else 0"),
        "the frame of a generator": body("v = 42 if (a for a in x).gi_frame.f_back is None else 0"),
    },
    "hidden code": {
        "a lambda": body("v = (lambda: 42)()"),
        "a function within": body("def g(): return 42", "v = g()"),
        "a class within": body("class C: v = 42", "v = C.v"),
        "a comprehension": body("v = [open('{secret}') and 42 for a in (1,)][0]"),
        "an f-string": body("v = 42 if f'{open(\"{secret}\")!r}' else 0"),
        "a default, before anybody calls": body("v = w", head="def k(out, x, n, w=open('{secret}') and 42):"),
        "a decorator, likewise": "@(lambda f: open('{made}', 'w') and f)\n" + body("v = 42"),
        "an annotation, likewise": body("v = 42", head="def k(out, x, n: open('{made}', 'w')):"),
        "in a handler": body("try:", "    v = 1 // 0", "except ZeroDivisionError:", "    v = 42"),
        "in a with": body("with open('{secret}'): v = 42"),
        "in a match": body("match n:", "    case 3: v = 42"),
    },
    "names": {
        "a builtin by letters that look alike": body("v = \uff45val('42')"),
        "a word of the language that changes": body("min = max", "v = min(1, 42)"),
        "a module that changes": body("global random", "random = None", "v = 42"),
        "a name that Python reads": body("v = 42 if __name__ else 0"),
        "a name of the class of numbers": body("__class__ = int", "v = __class__(42.5)"),
    },
    "arrays by other names": {
        "another name": body("y = x", "y[0] = 42", end=""),
        "one of two": body("(x if n else out)[0] = 42", end=""),
        "in a tuple": body("y, m = x, n", "y[0] = 42", end=""),
        "from a device function": "def f(a):\n    return a\n" + body("y = f(x)", "y[0] = 42", end=""),
        "in a device function": "def f(a):\n    a[0] = 42\n    return 1\n" + body("v = f(x)"),
        "all of it": body("x += 42", end=""),
        "a slice": body("x[:] = 42", end=""),
        "by a loop": body("for row in x.reshape((16, 1)): row[0] = 42", end=""),
    },
    "text around the kernel": {
        "a statement": "open('{made}', 'w')\n" + body("v = 42"),
        "a class": "class C:\n    open('{made}', 'w')\n" + body("v = 42"),
        "a function twice": body("v = 0") + body("v = 42"),
        "a coroutine": "async def g(): pass\n" + body("v = 42 if g else 0"),
    },
}

# What the threads of a launch give depends on which of them comes first, or where the launch is cut.

ORDER: Final[dict[str, dict[str, str]]] = {
    "others' rows": {
        "everybody's first": body("out[0] = i", end=""),
        "the neighbour's": body("out[i + 1] = i", end=""),
        "what the neighbour stored": body("v = out[i - 1] + 1"),
        "two to one": body("out[i // 2] = i", end=""),
        "by an argument": body("out[n] = i", end=""),
        "by data": body("out[int(x[i]) // 4] = i", end=""),
        "a place that moves": body("j = i", "j += 1", "out[j] = i", end=""),
        "one of two places": body("out[i if n > i else 0] = i", end=""),
        "through a stride that is none": body("for j in range(i, 16, cuda.blockDim.x): out[j] = i", end=""),
    },
}

STATE: Final[dict[str, dict[str, str]]] = {
    "time and luck": {
        "the clock": body("v = __import__('time').perf_counter_ns()"),
        "random numbers without a seed": body("v = np.random.random()"),
        "an address": body("v = id(out)"),
        "the order of a set of addresses": body("v = hash(object())"),
        "the process": body("np.seen = getattr(np, 'seen', 0) + 1", "v = np.seen"),
    },
}

# Threads that work together: eight of a block, in two blocks.

TOGETHER: Final[dict[str, dict[str, str]]] = {
    "races": {
        "a neighbour's element without a barrier": rows(
            "sm[tx] = i", "out[i] = sm[(tx + 1) % 8] + sm[tx]", "sm[7 - tx] = i"
        ),
        "one element for all": rows("sm[0] = i", "cuda.syncthreads()", "out[i] = sm[0]"),
        "two threads for one": rows("sm[tx // 2] = i", "cuda.syncthreads()", "out[i] = sm[tx]"),
        "by data": rows("sm[int(x[tx]) % 3] = i", "cuda.syncthreads()", "out[i] = sm[tx]"),
        "added to by all": rows("sm[0] = sm[0] * 2 + tx", "cuda.syncthreads()", "out[i] = sm[0]"),
        "where loops overlap": rows("for j in range(tx, 8): sm[j] = i", "cuda.syncthreads()", "out[i] = sm[tx]"),
        "an output of the block": rows("out[cuda.blockIdx.x] = tx"),
    },
    "the order of atomics": {
        "what was there before": rows("v = cuda.atomic.add(sm, 0, 1)", "out[i] = v"),
        "the loser of an exchange": rows("v = cuda.atomic.exch(sm, 0, tx + 1)", "out[i] = v"),
        "a look in between": rows("cuda.atomic.add(sm, 0, 1)", "out[i] = sm[0]"),
        "two kinds at once": rows(
            "cuda.atomic.add(sm, 0, tx)", "cuda.atomic.max(sm, 0, 5)", "cuda.syncthreads()", "out[i] = sm[0]"
        ),
        "floats": rows(
            "fm = cuda.shared.array(1, np.float32)",
            "cuda.atomic.add(fm, 0, np.float32(16777216.0) if tx == 0 else np.float32(1.0))",
            "cuda.syncthreads()",
            "out[i] = int(fm[0])",
        ),
    },
    "barriers for some": {
        "under a thread's test": rows("if tx < 4:", "    cuda.syncthreads()", "out[i] = 1"),
        "after some have left": rows("if tx == 3:", "    return", "cuda.syncthreads()", "out[i] = 1"),
        "in a loop of unlike lengths": rows("for j in range(tx):", "    cuda.syncthreads()", "out[i] = 1"),
        "by data": rows("while sm[0] < x[i]:", "    sm[0] += 1", "    cuda.syncthreads()", "out[i] = 1"),
        "behind a break": rows(
            "for j in range(8):", "    if j == tx:", "        break", "    cuda.syncthreads()", "out[i] = 1"
        ),
    },
}

# Admitted, and harmless: what lies beside an array is neither read nor written. The arrays lie among sevens.

MEMORY: Final[dict[str, dict[str, str]]] = {
    "loads beyond": {
        "behind the end": body("v = x[i + 16]"),
        "before the beginning": body("v = x[i - 16]"),
        "far away": body("v = x[n + 40]"),
        "by data": body("v = x[int(x[i]) + 20]"),
        "a sum that wraps": body("m = 4611686018427387904", "v = x[m + m + m + m - 1 - n]"),
        "of a float": body("v = x[int(x[i] * -1.5) - 1]"),
    },
    "stores beyond": {
        "a local array's end": body("own = cuda.local.array(4, np.int64)", "own[n + 1] = 1", "v = own[0]"),
        "a local array's beginning": body("own = cuda.local.array(4, np.int64)", "own[i - 20] = 1", "v = own[0]"),
        "by data": body("own = cuda.local.array(4, np.int64)", "own[int(x[i])] = 1", "v = own[0]"),
        "a shared array": rows("sm[tx + n * 8] = 1", "cuda.syncthreads()", "out[i] = sm[tx]"),
        "an atomic operation": rows("cuda.atomic.add(sm, n + 8, 1)", "cuda.syncthreads()", "out[i] = sm[tx]"),
        "in a device function": "def f(a, j):\n    a[j] = 1\n    return 1\n"
        + body("own = cuda.local.array(4, np.int64)", "v = f(own, n + 1)"),
    },
}

# An expression of a (int64) and x (float32), and what the language says of it; plain compiled code says otherwise.

UNDEFINED: Final[dict[str, tuple[str, int, float, float]]] = {
    "division by zero": ("a // (a - a)", 5, 0.0, 0),
    "a remainder of zero": ("a % (a - a)", 5, 0.0, 0),
    "the least integer by -1": ("a // (a // abs(a // 2) + 1)", -(2**63), 0.0, -(2**63)),
    "a shift past the width": ("a << (a + 59)", 5, 0.0, 0),
    "a shift by less than nothing": ("a << (0 - a)", 5, 0.0, 0),
    "a float beyond the integers": ("int(x)", 0, 1e30, 2**63 - 1),
    "a NaN as an integer": ("int(x - x)", 0, float("inf"), 0),
    "the floor of too much": ("math.floor(x)", 0, 1e30, 2**63 - 1),
    "a float beyond int32": ("np.int32(x)", 0, 3e9, 2**31 - 1),
    "a float beyond uint8": ("np.uint8(x)", 0, 300.0, 255),
}

# What grows faster than its text.

SUMS: Final[dict[str, str]] = {
    "a tower of powers": "9 ** 9 ** 7",
    "a power of a power": "2 ** (2 ** 20)",
    "a literal of a million digits": "0x" + "f" * 20_000,
}
