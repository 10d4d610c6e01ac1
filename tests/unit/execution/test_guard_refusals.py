"""What the guard refuses, on text as it arrives from a stranger: each with its line, and without evaluating it."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution import _language as lang
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._guard import Admitted, admit
from p2pcompute.execution._language_advice import _INSTEAD_OF, _INSTEAD_OF_CUDA, of_cuda
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import lower
from p2pcompute.execution._rows import check_launch


def source(text: str, entry: str = "k") -> KernelSource:
    return KernelSource(text=text, entry=entry, digest=source_digest(entry, text))


def admitted(text: str, entry: str = "k") -> Admitted:
    return admit(source(text, entry))


def body(*lines: str, head: str = "def k(out, x, n):") -> str:
    """A kernel with `lines` from line 3 on."""
    return "\n".join([head, "    i = cuda.grid(1)", *("    " + line for line in lines), "    out[i] = x[i]", ""])


def test_the_frame_of_these_tests_is_admitted() -> None:
    assert admitted(body("pass")).outputs == ("out",)


REFUSED = {
    "import": "import os",
    "from import": "from os import system",
    "builtin import": "v = __import__(1)",
    "open": "v = open(n)",
    "eval": "v = eval(n)",
    "exec": "v = exec(n)",
    "getattr": "v = getattr(x, n)",
    "globals": "v = globals()",
    "print": "v = print(n)",
    "class of an array": "v = x.__class__",
    "class of a number": "v = (1).__class__",
    "dict of numpy": "v = np.__dict__",
    "numpy's ctypes": "v = np.ctypeslib",
    "numpy call": "v = np.load(n)",
    "numpy array": "v = np.zeros(n)",
    "math call": "v = math.gamma(n)",
    "math without a call": "v = math.sqrt",
    "cuda call": "v = cuda.jit(n)",
    "cuda barrier": "v = cuda.syncthreads()",
    "cuda shared": "v = cuda.shared.array(16, n)",
    "cuda atomic": "v = cuda.atomic.add(out, i, 1)",
    "cuda axis": "v = cuda.threadIdx.w",
    "cuda alone": "v = cuda",
    "grid of a variable": "v = cuda.grid(n)",
    "grid of four": "v = cuda.grid(4)",
    "array pointer": "v = x.ctypes",
    "array method": "v = x.sum()",
    "array base": "v = x.base[0]",
    "lambda": "v = lambda: 1",
    "called lambda": "v = (lambda a: a)(1)",
    "list": "v = [1, 2]",
    "set": "v = {1, 2}",
    "dict": "v = {1: 2}",
    "list comprehension": "v = [a for a in range(3)]",
    "generator": "v = sum(a for a in range(3))",
    "string": "v = 'text'",
    "bytes": "v = b'text'",
    "f-string": "v = f'{n}'",
    "docstring": "'text'",
    "none": "v = None",
    "ellipsis": "v = ...",
    "complex": "v = 1j",
    "tuple alone": "v = (1, 2)",
    "tuple in an expression": "v = (1, 2)[0] + 1",
    "starred": "a, *b = 1, 2",
    "starred call": "v = min(*n)",
    "keyword": "v = min(1, 2, key=n)",
    "walrus": "v = (w := 1)",
    "conditional array": "v = (x if n else x)[0]",
    "array renamed": "y = x",
    "array in a tuple": "a, b = x, n",
    "array compared": "v = x == x",
    "array in arithmetic": "v = x + 1",
    "array negated": "v = -x",
    "array assigned": "x = 1",
    "array as a loop variable": "for x in range(3): pass",
    "local indexed": "v = n + 1; w = v[0]",
    "index of an index": "v = x[0][0]",
    "slice": "v = x[0:2]",
    "ellipsis index": "v = x[...]",
    "five indices": "v = x[0, 0, 0, 0, 0]",
    "shape alone": "v = x.shape",
    "shape at a variable": "v = x.shape[n]",
    "shape at -1": "v = x.shape[-1]",
    "try": "try: pass\n    except: pass",
    "with": "with n: pass",
    "raise": "raise n",
    "assert": "assert n",
    "del": "del n",
    "global": "global g",
    "nonlocal": "nonlocal g",
    "yield": "yield n",
    "await": "v = await n",
    "match": "match n:\n        case 1: pass",
    "nested function": "def g(): return 1",
    "nested class": "class C: pass",
    "call as a statement": "abs(n)",
    "annotation": "v: int = 1",
    "for else": "for a in range(3): pass\n    else: pass",
    "while else": "while n: pass\n    else: pass",
    "for over an array": "for a in x: pass",
    "for over two names": "for a, b in range(3): pass",
    "range alone": "v = range(3)",
    "break outside": "break",
    "continue outside": "continue",
    "a value returned": "return n",
    "matrix product": "v = n @ n",
    "is": "v = n is n",
    "in": "v = n in n",
    "unknown name": "v = undefined",
    "unknown call": "v = undefined(1)",
    "call of a parameter": "v = n(1)",
    "call of a call": "v = abs(n)(1)",
    "the kernel calls itself": "v = k(out, x, n)",
    "giant power": "v = 10 ** 10 ** 999",
    "negative power": "v = n ** -1",
    "large power": "v = n ** 65",
    "power of a truth": "v = n ** True",
    "augmented power": "n **= 1_000_000_000",
    "one argument for pow": "v = math.pow(n)",
    "two arguments for exp": "v = math.exp(n, 2)",
    "one argument for minimum": "v = np.minimum(n)",
    "numpy's spelling": "v = np.exp(n)",
    "numpy's own": "v = np.arcsin(n)",
    "rint of math": "v = math.rint(n)",
    "integer of 65 bits": "v = 0x1_0000_0000_0000_0000",
    "reserved name": "cuda = 1",
    "builtin name": "min = 1",
    "dunder name": "__v = 1",
    "private dunder": "__class__ = 1",
    "attribute assigned": "x.size = 1",
    "unpacked wrongly": "a, b = 1, 2, 3",
    "nested unpacking": "a, (b, c) = 1, n",
    "too few arguments": "v = math.sqrt()",
    "too many arguments": "v = abs(1, 2)",
    "one argument for min": "v = min(n)",
    "len of a number": "v = len(1)",
    "len of a scalar": "v = len(i)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(KernelError) as caught:
        admitted(body(REFUSED[name]))
    assert caught.value.reason
    assert caught.value.instead
    # Python's parser itself refuses nothing here; break and the like are found by the guard, at their lines.
    assert caught.value.line in (1, 3, 4), str(caught.value)


TOLD = {
    "v = [a for a in range(3)]": "a list comprehension is not in the kernel language; write a for loop over range()",
    "v = f'{n}'": "an f-string is not in the kernel language; kernels hold numbers only",
    "v = (a := n)": "the walrus operator := is not in the kernel language; assign on a line of its own",
    "v = x[i].astype(n)": ".astype() is not in the kernel language; call @p2pcompute.device functions by name; "
    "np.float32(x) and its like convert numbers",
    "v = {n: n}": "a dict is not in the kernel language; use scalars, or an input array",
    "assert n": "assert is not in the kernel language; nothing in a kernel raises; store a flag in an output",
    "out[0] = n": "out[0] may be another thread's element; store each thread's own value, out[i] = ..., and pass "
    "p2pcompute.reduce(op, shape, dtype), which combines them, in place of p2pcompute.out; or store one for each "
    "block, out[cuda.blockIdx.x] = ..., and add them up behind the call",
    "out[int(x[i])] += 1": "out[int(x[i])] may be another thread's element; to count or combine at places that data "
    'gives, write cuda.atomic.add(out, int(x[i]), value) as a statement, and pass p2pcompute.reduce("sum", shape, '
    "np.int64) for out; to move elements, let each thread load the one that comes to its own place",
    "v = out[int(x[i])]": "out[int(x[i])] may be another thread's element; what other threads store is not loaded: for "
    "what was there before, take one more parameter, for which the array is passed as an input, and load it from "
    "there, given[int(x[i])]",
    "out[cuda.threadIdx.x] = n": "out[cuda.threadIdx.x] may be another thread's element; threadIdx is the same in "
    "every block: what a block has found goes into a parameter of its own, found[cuda.blockIdx.x] = ..., for which "
    "p2pcompute.out(blocks, dtype) is passed",
}


_WARPS = "pass values through a cuda.shared.array, with cuda.syncthreads() between: warps differ by device"
_GRIDS = "blocks do not wait for each other: start another kernel on what this one gives"
TOLD |= {
    "v = cuda.laneid": f"cuda.laneid is not in the kernel language; {_WARPS}",
    "v = cuda.shfl_down_sync(1, n, delta=1)": f"cuda.shfl_down_sync is not in the kernel language; {_WARPS}",
    "cuda.threadfence()": f"cuda.threadfence is not in the kernel language; {_GRIDS}",
    "cg.this_grid().sync()": f"cg.this_grid is not in the kernel language; {_GRIDS}",
    "cuda.cg.this_grid().sync()": f"cuda.cg is not in the kernel language; {_GRIDS}",
    "print('i', i, end='')": "print is not in the kernel language; store what you want to see into an output",
    "abs(n)": "a line that stores nothing is not in the kernel language; nothing in the language has an effect but an "
    "assignment",
    "yield n": "yield is not in the kernel language; store into an output: out[i] = ...",
    "v = sqrt(n)": "sqrt is not in the kernel language; write math.sqrt(a)",
    "v = math.sqrt": "the attribute sqrt is not in the kernel language; call it where its value is wanted: "
    "math.sqrt(a)",
    "v = math.pi": "math.pi is not in the kernel language; write 3.141592653589793",
    "v = np.arctan2(n, n)": "np.arctan2 is not in the kernel language; write math.atan2(a, b)",
    "v = np.random.rand()": "np.random is not in the kernel language; write random.uniform(seed, thread, k)",
    "v = np.sqrt(n, out=n)": "keyword arguments are not in the kernel language; pass them by position",
    "v = cuda.selp(n, 1, 2)": "cuda.selp is not in the kernel language; write one if test else other",
    "v = cuda.syncthreads()": "cuda.syncthreads gives no value; write cuda.syncthreads() on a line of its own",
    "v = numpy.sqrt(n)": "numpy is not known here; a kernel's text knows cuda, math, np, random and what it defines",
}


@pytest.mark.parametrize("line", TOLD)
def test_what_is_refused_is_called_as_people_call_it(line: str) -> None:
    with pytest.raises(KernelError) as caught:
        admitted(body(line))
    assert str(caught.value).endswith(f":3: {TOLD[line]}")


@pytest.mark.parametrize(("names", "remedy"), _INSTEAD_OF_CUDA)
def test_of_cuda_the_guard_advises_what_the_decorator_does(names: set[str], remedy: str) -> None:
    """However the name stands there; the decorator's words are `of_cuda`'s."""
    for name in names:
        assert of_cuda(name) == remedy
        for line in (f"v = cuda.{name}", f"v = cuda.{name}(n)", f"cuda.{name}(n)", f"v = cuda.{name}.more(key=n)"):
            with pytest.raises(KernelError) as caught:
                admitted(body(line))
            assert (caught.value.reason, caught.value.instead) == (f"cuda.{name} is not in the kernel language", remedy)


@pytest.mark.parametrize(("names", "remedy"), _INSTEAD_OF)
def test_of_functions_the_guard_advises_what_the_decorator_does(names: set[str], remedy: str) -> None:
    for name in names:
        for line in (f"v = {name}(n)", f"{name}(n)", f"v = np.{name}(n)", f"v = math.{name}"):
            with pytest.raises(KernelError) as caught:
                admitted(body(line))
            assert caught.value.instead == remedy


def test_a_name_of_the_texts_own_is_no_function_of_others() -> None:
    for text in (body("v = sum(n)", head="def k(out, x, n, sum):"), device("return v", call="out[i] = f(n).sum(n)")):
        with pytest.raises(KernelError) as caught:
            admitted(text)
        assert caught.value.instead.startswith("call @p2pcompute.device functions")


OTHERS_ROWS = {
    "another index": "out[n] = 1",
    "the neighbour's": "out[i + 1] = 1",
    "a constant": "out[0] = 1",
    "read elsewhere": "v = out[i - 1]",
    "read through another name": "j = i + 0; v = out[j]",
    "index moved": "i = i + 1; out[i] = 2",
    "index moved in place": "i += 1; out[i] = 2",
    "index as a loop variable": "for i in range(3): out[i] = 2",
    "index unpacked again": "i, j = 1, 2; out[i] = 2",
    "another stride": "for j in range(i, n, cuda.blockDim.x): out[j] = 1",
    "a stride along another axis": "for j in range(i, n, cuda.gridDim.y * cuda.blockDim.y): out[j] = 1",
    "a stride of two numbers": "for j in range(i, n, cuda.gridDim.x * cuda.gridDim.x): out[j] = 1",
    "a stride from elsewhere": "for j in range(i + 1, n, cuda.gridsize(1)): out[j] = 1",
    "a stride from nowhere": "for j in range(n, cuda.gridsize(1)): out[j] = 1",
    "a stride and another loop": "for j in range(i, n, cuda.gridsize(1)): out[j] = 1\n    for j in range(3): pass",
    "a stride and an assignment": "for j in range(i, n, cuda.gridsize(1)): j = 0; out[j] = 1",
    "behind a stride": "for j in range(i, n, cuda.gridsize(1)): pass\n    out[j] = 1",
    "a while by another stride": "j = cuda.grid(1)\n    while j < n: out[j] = 1; j += cuda.blockDim.x",
    "a while that goes back": "j = cuda.grid(1)\n    while j < n: out[j] = 1; j -= cuda.gridsize(1)",
    "a while from elsewhere": "j = n\n    while j < n: out[j] = 1; j += cuda.gridsize(1)",
    "a while that starts again": "j = cuda.grid(1)\n    while j < n: out[j] = 1; j += cuda.gridsize(1); j = 3",
    "behind a while": "j = cuda.grid(1)\n    while j < n: j += cuda.gridsize(1)\n    out[j] = 1",
    "names along two axes": "a = cuda.threadIdx.y; j = cuda.blockIdx.x * cuda.blockDim.x + a; out[j] = 1",
    "a name that changes": "a = cuda.threadIdx.x; j = cuda.blockIdx.x * cuda.blockDim.x + a; a = n; out[j] = 1",
    "a name that is not set yet": "j = cuda.blockIdx.x * cuda.blockDim.x + a; a = cuda.threadIdx.x; out[j] = 1",
    "a name of the same statement": "a, j = cuda.grid(1), a; out[j] = 1",
    "tiles along two axes": "out[cuda.blockIdx.x * 16 + cuda.threadIdx.y] = 1",
    "tiles of a variable": "out[cuda.blockIdx.x * n + cuda.threadIdx.x] = 1",
    "tiles of nothing": "out[cuda.blockIdx.x * 0 + cuda.threadIdx.x] = 1",
    "tiles and one more": "out[cuda.blockIdx.x * 16 + cuda.threadIdx.x + 1] = 1",
    "in another place": "out[n, i] = 1",
    "thread without block": "out[cuda.threadIdx.x] = 1",
    "block without thread": "out[cuda.blockIdx.x] = 1",
    "mixed axes": "out[cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.x] = 1",
    "other sum": "out[cuda.blockIdx.x * cuda.gridDim.x + cuda.threadIdx.x] = 1",
    "difference": "out[cuda.blockIdx.x * cuda.blockDim.x - cuda.threadIdx.x] = 1",
    "rounded": "j = i // 2; out[j] = 1",
    "conditional": "j = i if n else 0; out[j] = 1",
}


@pytest.mark.parametrize("name", OTHERS_ROWS)
def test_a_thread_touches_only_its_own_row(name: str) -> None:
    with pytest.raises(KernelError, match=r"another thread's|assigned|by the block's") as caught:
        admitted(body(OTHERS_ROWS[name]))
    assert caught.value.instead


def test_what_to_write_instead_of_anothers_row() -> None:
    for line, remedy in {
        "out[n] = 1": "i = cuda.grid(1)",
        "out[0] = 1": "p2pcompute.reduce",
        "out[2 * i] = 1": "write out[i, 0] and out[i, 1]",
        "cuda.atomic.add(out, 0, 1)": "p2pcompute.reduce",
    }.items():
        with pytest.raises(KernelError) as caught:
            admitted(body(line))
        assert remedy in caught.value.instead
    flat = "def k(out, w):\n    x, y = cuda.grid(2)\n    out[y * w + x] = 1\n"
    with pytest.raises(KernelError) as caught:
        admitted(flat)
    assert "write out[y, x]" in caught.value.instead


def test_index_assigned_in_a_branch() -> None:
    text = "def k(out, n):\n    if n:\n        i = cuda.grid(1)\n    out[i] = 1\n"
    with pytest.raises(KernelError, match="another thread's"):
        admitted(text)  # i would be 0 in every thread where n is 0


def test_index_used_before_it_is_assigned() -> None:
    text = "def k(out, n):\n    out[i] = 1\n    i = cuda.grid(1)\n"
    with pytest.raises(KernelError, match="another thread's"):
        admitted(text)


def test_all_grid_axes_have_to_index_an_output() -> None:
    for line in ("out[x] = 1", "out[y] = 1", "out[x, x] = 1", "out[y, n] = 1", "out[n, y, x] = 1"):
        with pytest.raises(KernelError):
            admitted(f"def k(out, n):\n    x, y = cuda.grid(2)\n    {line}\n")
    assert admitted("def k(out, n):\n    x, y = cuda.grid(2)\n    out[y, x] = 1\n").grid.mapping == {"out": (1, 0)}
    assert admitted("def k(out, n):\n    x, y = cuda.grid(2)\n    out[x, y, n] = 1\n").grid.mapping == {"out": (0, 1)}


def test_one_output_in_two_orders() -> None:
    with pytest.raises(KernelError, match="two orders") as caught:
        admitted("def k(out):\n    x, y = cuda.grid(2)\n    out[y, x] = 1\n    out[x, y] = 2\n")
    assert caught.value.line == 4


def test_two_outputs_over_different_axes() -> None:
    with pytest.raises(KernelError, match="different numbers"):
        admitted("def k(a, b):\n    x, y = cuda.grid(2)\n    a[y, x] = 1\n    b[x] = 2\n")


def test_grid_of_different_sizes() -> None:
    with pytest.raises(KernelError, match="different numbers"):
        admitted("def k(a):\n    i = cuda.grid(1)\n    x, y = cuda.grid(2)\n    a[y, x] = 1\n")


def test_a_kernel_that_stores_nothing() -> None:
    with pytest.raises(KernelError, match="stores nothing"):
        admitted("def k(x):\n    v = x[cuda.grid(1)]\n")


def device(*lines: str, call: str = "out[i] = f(x[i])", head: str = "def f(v):") -> str:
    return "\n".join(
        [head, *("    " + line for line in lines), "def k(out, x, n):", "    i = cuda.grid(1)", f"    {call}", ""]
    )


DEVICES = {
    "stores": device("v[0] = 1", "return 1", call="out[i] = f(x)"),
    "takes the grid": device("return cuda.grid(1)"),
    "takes its thread": device("return cuda.threadIdx.x"),
    "returns nothing": device("return"),
    "may not return": device("if v:", "    return 1"),
    "returns an array": device("v[0]", "return v", call="out[i] = f(x)"),
    "calls itself": device("return f(v)"),
    "calls the kernel": device("return k(v, v, v)"),
    "gets the output": device("return v[0]", call="out[i] = f(out)"),
    "gets an expression for an array": device("return v[0]", call="out[i] = f(x[i])"),
    "gets a conditional array": device("return v[0]", call="out[i] = f(x if n else x)"),
    "gets too few": device("return v", call="out[i] = f()"),
    "gets too many": device("return v", call="out[i] = f(n, n)"),
    "is a value": device("return v", call="out[i] = f"),
    "has a default": device("return v", head="def f(v=1):"),
    "takes any number": device("return v", head="def f(*v):"),
    "takes a keyword": device("return v", head="def f(*, v):"),
    "takes by position only": device("return v", head="def f(v, /):"),
    "is annotated": device("return v", head="def f(v: int):"),
    "is decorated": "@cuda\n" + device("return v"),
    "is async": device("return v", head="async def f(v):"),
    "has one name twice": device("return v", head="def f(v, v):"),
    "has the name of a local": device("return v", call="f = 1; out[i] = f"),
    "is defined twice": "def f(v):\n    return v\n" + device("return v"),
    "has a reserved name": device("return v", head="def abs(v):"),
    "stands beside a statement": "import os\n" + device("return v"),
    "stands beside a class": "class C: pass\n" + device("return v"),
}


@pytest.mark.parametrize("name", DEVICES)
def test_device_functions(name: str) -> None:
    with pytest.raises(KernelError) as caught:
        admitted(DEVICES[name])
    assert caught.value.instead


def test_device_function_of_the_frame_is_admitted() -> None:
    assert list(admitted(device("return v")).functions) == ["f", "k"]


def test_mutual_recursion() -> None:
    with pytest.raises(KernelError, match="calls itself"):
        admitted("def f(v):\n    return g(v)\ndef g(v):\n    return f(v)\n" + body("n = f(n)"))


# Sizes


def quickly(text: str) -> KernelError:
    begun = time.process_time()
    with pytest.raises(KernelError) as caught:
        admitted(text)
    assert time.process_time() - begun < 20  # not a speed test: evaluating any of these would take years or all memory
    return caught.value


def test_nesting() -> None:
    for text in (
        body("v = " + "(1 + " * 40 + "1" + ")" * 40),
        body("v = " + "(" * 5000 + "1" + ")" * 5000),
        body("v = " + "-" * 40 + "n"),
        body("v = " + "-" * 50_000 + "n"),
        body("v = " + "not " * 10_000 + "n"),
        body("v = " + "x[" * 40 + "0" + "]" * 40),
        body("v = n" + ".a" * 20_000),
        body("v = " + " + ".join(["n"] * 200)),
        body("v = " + " + ".join(["n"] * 15_000)),
        body("v = " + "1 if n else (" * 40 + "1" + ")" * 40),
        body(*("    " * depth + "if n:" for depth in range(40)), "    " * 40 + "pass"),
    ):
        quickly(text)


def test_a_long_sum_and_a_long_ladder_are_not_nested() -> None:
    ladder = ["if n == 0:", "    v = 0"]
    for k in range(1, 60):
        ladder += [f"elif n == {k}:", f"    v = {k}"]
    admitted(body("v = " + " + ".join(["n"] * 100), *ladder))


def test_numbers_are_not_evaluated() -> None:
    quickly(body("v = 9 ** 9 ** 9 ** 99"))
    quickly(body("v = " + "9" * 5000))
    quickly(body("v = " + "0x" + "f" * 5000))
    admitted(body("v = 1 << (1 << 40)", "w = 2 ** 64 * 2 ** 64"))  # these wrap when they run


def test_size_of_the_source() -> None:
    quickly(body("v = 1" + " " * lang.MAX_SOURCE_BYTES))
    quickly(body(*["v = n + n + n"] * 1500))
    quickly(body(*[f"v{k} = 1" for k in range(300)]))
    quickly("def k(" + ", ".join(f"a{k}" for k in range(40)) + "):\n    a0[cuda.grid(1)] = 1\n")
    quickly("".join(f"def f{k}(v):\n    return v\n" for k in range(40)) + body("pass"))
    quickly(body("v" * 100 + " = 1"))


def test_calls_that_multiply() -> None:
    chain = "def f0(v):\n    return v + v * v\n"
    chain += "".join(f"def f{k}(v):\n    return f{k - 1}(v) + f{k - 1}(v)\n" for k in range(1, 20))
    error = quickly(chain + body("v = f19(n)"))
    assert "nodes" in error.reason


def test_text_that_does_not_parse() -> None:
    for text in (
        "def k(:",
        "def k():\n\tpass\n        pass",
        "\0",
        "",
    ):
        with pytest.raises(KernelError):
            admitted(text)
    for text in ("def k(out):\n    out[cuda.grid(1)] = '\ud800'\n", body("pass  # \u03b1")):
        with pytest.raises(KernelError, match="ASCII"):
            admit(KernelSource(text=text, entry="k", digest=bytes(32)))


def test_digest_and_entry() -> None:
    text = body("pass")
    with pytest.raises(KernelError, match="digest"):
        admit(KernelSource(text=text, entry="k", digest=bytes(32)))
    with pytest.raises(KernelError, match="no function"):
        admitted(text, entry="other")
    with pytest.raises(KernelError, match="no name"):
        admitted(text, entry="k()")


# Types and launches


ONE = Launch(grid=(4, 1, 1), block=(32, 1, 1), dims=1)
OUT, IN, N = (
    OutputSpec(dtype="float32", shape=(100,)),
    InputSpec(dtype="float32", shape=(100,)),
    ScalarSpec(dtype="int64", value=3),
)


def typed(text: str, *args: ArgSpec, launch: Launch = ONE) -> None:
    kernel = admitted(text)
    check_launch(kernel, launch, args)
    lower(kernel, launch, args)


MISTYPED = {
    "float index": "v = x[0.5]",
    "float index of a variable": "v = x[x[i]]",
    "two indices for one axis": "v = x[0, 0]",
    "axis that is not there": "v = x.shape[1]",
    "bits of a float": "v = x[i] & 1",
    "shift of a float": "v = x[i] << 1",
    "shift by a float": "v = n << x[i]",
    "inverted float": "v = ~x[i]",
    "range of a float": "for a in range(x[i]): pass",
    "random at a float": "v = random.uniform(1, 2, x[i])",
    "grid of two as one": "v = cuda.gridsize(2)",
    "four numbers as one": "v = random.philox(1, 2, 3, 4, 5, 6)",
    "four numbers for two names": "a, b = random.philox(1, 2, 3, 4, 5, 6)",
    "one number for two names": "a, b = x[i]",
    "shape for two names": "a, b = x.shape",
}


@pytest.mark.parametrize("name", MISTYPED)
def test_types(name: str) -> None:
    with pytest.raises(KernelTypeError) as caught:
        typed(body(MISTYPED[name]), OUT, IN, N)
    assert caught.value.line == 3


def test_a_parameter_that_is_no_array_is_none_whatever_is_passed() -> None:
    typed(body("pass"), OUT, IN, IN)  # n is not used at all
    for line in ("v = n", "n = 1", "n += 1", "v = -n", "for n in range(3): pass", "v = n if n else n", "n, v = 1, 2"):
        with pytest.raises(KernelTypeError, match="array"):
            typed(body(line), OUT, IN, IN)


def test_device_functions_return_as_many_values_everywhere() -> None:
    with pytest.raises(KernelTypeError, match="different numbers"):
        typed(device("if v:", "    return 1, 2", "return 1"), OUT, IN, N)
    with pytest.raises(KernelTypeError, match="different numbers"):
        typed(device("if v:", "    return 1", "return 1, 2"), OUT, IN, N)


def test_arguments_and_geometry() -> None:
    text = body("v = n")
    typed(text, OUT, IN, N)
    two = Launch(grid=(4, 4, 1), block=(32, 1, 1), dims=2)
    cases: list[tuple[list[ArgSpec], Launch]] = [
        ([OUT, IN], ONE),
        ([IN, IN, N], ONE),
        ([OUT, OUT, N], ONE),
        ([OUT, N, N], ONE),
        ([N, IN, N], ONE),
        ([OUT, InputSpec(dtype="float16", shape=(1,)), N], ONE),
        ([OUT, InputSpec(dtype="float32", shape=()), N], ONE),
        ([OUT, InputSpec(dtype="float32", shape=(1,) * 5), N], ONE),
        ([OUT, InputSpec(dtype="float32", shape=(-1,)), N], ONE),
        ([OUT, InputSpec(dtype="float32", shape=(2**40, 2)), N], ONE),
        ([OUT, IN, N], two),
        ([OUT, IN, N], Launch(grid=(0, 1, 1), block=(32, 1, 1), dims=1)),
        ([OUT, IN, N], Launch(grid=(1, 1, 1), block=(2048, 1, 1), dims=1)),
        ([OUT, IN, N], Launch(grid=(1, 2, 1), block=(32, 1, 1), dims=1)),
        ([OUT, IN, N], Launch(grid=(2**31 - 1, 1, 1), block=(1024, 1, 1), dims=1)),
    ]
    for args, launch in cases:
        with pytest.raises(KernelTypeError):
            typed(text, *args, launch=launch)
    with pytest.raises(KernelTypeError, match="fewer axes"):
        typed("def k(out):\n    x, y = cuda.grid(2)\n    out[y, x] = 1\n", OUT, launch=two)


def test_types_that_multiply() -> None:
    devices = "def f0(a, b, c, d):\n    return a + b + c + d\n"
    values = ["n", "1.0", "np.float64(n)", "(n > 0)", "np.uint64(n)"]
    calls = [f"v = f0({a}, {b}, {c}, n)" for a in values for b in values for c in values]
    with pytest.raises(KernelError, match="combinations of types"):
        typed(devices + body(*calls), OUT, IN, N)


def test_every_refusal_says_what_to_write_instead() -> None:
    """Of all places that refuse a kernel: none leaves its last words out."""
    import p2pcompute.execution as package

    places = 0
    for path in sorted(Path(package.__path__[0]).glob("_*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            said = len(call.args) > 1 or any(word.arg == "instead" for word in call.keywords)
            if name in ("KernelError", "KernelTypeError") and not path.name.startswith("_pool"):
                places += 1
                assert said, f"{path.name}:{call.lineno}"
            elif name == "refuse" and not any(isinstance(argument, ast.Starred) for argument in call.args):
                places += 1
                of_a_node = isinstance(call.func, ast.Attribute) or path.name == "_guard_scratch.py"
                assert len(call.args) > 1 + of_a_node, f"{path.name}:{call.lineno}"
    assert places > 100
