"""Random kernels whose threads work together, against a slow model of the rules: Python generators as threads.

The model finds barriers that not all threads reach, and stores that meet; such a kernel must have been refused. Of an
admitted one the code has to give what the model gives. Most run as the plain Python that the code also is, some
compiled.
"""

from __future__ import annotations

import ast
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from p2pcompute.errors import KernelError
from p2pcompute.execution import _block_epochs, _block_races, _guard_block
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._lower import Lowered, lower
from p2pcompute.execution._lower_scratch import constants
from p2pcompute.execution._rows import Layout
from p2pcompute.execution._strict import helpers

BLOCKS, ROW = 2, 12
X = np.array([3, -1, 4, 1, -5, 9, 2, 6, 5, -3, 5, 8])


class Writer:
    """Writes a kernel of the names below. Most of its stores go to the thread's own element, so that many are taken."""

    def __init__(self, random: Random, threads: int) -> None:
        self.random = random
        self.threads = threads
        self.lines: list[str] = []
        self.loops = 0
        own = ["tx", "tx", f"{threads - 1} - tx", "tx + 1", f"(tx + 2) % {threads}", "tx * 2", "tx + n"]
        self.own = {name: random.choice(own) for name in ("sm", "sn")}

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def uniform(self, depth: int = 2) -> str:
        if depth == 0 or self.random.random() < 0.4:
            return self.pick("0", "1", "2", "3", "n", "u", "w", "cuda.blockIdx.x", "x[cuda.blockIdx.x]")
        left, right = self.uniform(depth - 1), self.uniform(depth - 1)
        return self.pick(f"({left} + {right})", f"({left} - {right})", f"({left} & {right})", f"mix({left}, {right})")

    def varying(self, depth: int = 2) -> str:
        if depth == 0 or self.random.random() < 0.3:
            return self.pick("tx", "i", "a", "b", "c", "u", "n", str(self.random.randint(-3, 9)))
        left, right = self.varying(depth - 1), self.varying(depth - 1)
        return self.pick(
            f"({left} + {right}) % 1021",
            f"({left} - {right})",
            f"({left} * {right}) % 997",
            f"({left} ^ {right})",
            f"({left} if {self.test()} else {right})",
            f"max({left}, {right})",
            f"mix({left}, {right})",
            f"x[{left}]",
            f"sm[{left}]",
            f"sn[{left}]",
            f"sm[{self.own['sm']}]",
            f"sn[{self.own['sn']}]",
            "sm[(tx + 1) % 4]",
            f"mine[{left}]",
        )

    def test(self) -> str:
        left, right = self.varying(0), self.varying(0)
        return self.pick(f"{left} < {right}", f"{left} == {right}", f"{left} & 1", f"tx < {self.random.randint(0, 8)}")

    def statement(self, indent: str, depth: int = 2) -> None:
        """What a thread does by itself."""
        kind = self.random.randrange(13)
        name = self.pick("sm", "sn")
        if kind <= 2:
            self.lines.append(f"{indent}{self.pick('a', 'b', 'c')} = {self.varying()}")
        elif kind <= 5:
            counted = self.pick("tx + u", "tx ^ w", "tx * u", f"tx + {self.threads} * (u & 1)", "tx * w + u")
            where = self.random.choice([self.own[name]] * 6 + [counted] * 2 + [self.varying()])
            self.lines.append(f"{indent}{name}[{where}] {self.pick('=', '+=')} {self.varying()} % 1013")
        elif kind == 6:
            self.lines.append(f"{indent}mine[{self.varying(1)}] = {self.varying()}")
        elif kind == 7:
            self.lines.append(
                f"{indent}cuda.atomic.{self.pick('add', 'add', 'max')}(h, {self.varying(1)}, {self.varying(1)})"
            )
        elif kind == 8:
            self.lines.append(f"{indent}{self.pick(f'a = h[{self.varying(1)}]', f'out[i] += {self.varying()}')}")
        elif kind == 9:
            self.lines.append(f"{indent}{self.pick('blk[bx, tx]', 'blk[bx, tx + 1]')} = {self.varying()}")
        elif depth == 0:
            self.lines.append(f"{indent}c += {self.varying(1)} % 7")
        elif kind == 10:
            self.lines.append(f"{indent}for k{self.loops} in range({self.pick('3', 'tx', 'n', 'u')}):")
            self.loops += 1
            self.statement(indent + "    ", depth - 1)
            if self.random.random() < 0.3:
                self.lines.append(f"{indent}    if {self.test()}:\n{indent}        break")
        else:
            self.lines.append(f"{indent}if {self.test()}:")
            self.statement(indent + "    ", depth - 1)
            if kind == 12:
                self.lines.append(f"{indent}else:")
                self.statement(indent + "    ", depth - 1)

    def together(self, indent: str, depth: int) -> None:
        """What the block does."""
        self.lines.append(f"{indent}pass")
        for _ in range(self.random.randint(1, 4)):
            kind = self.random.randrange(12)
            if kind <= 4 or (depth == 0 and kind >= 8):
                self.statement(indent)
            elif kind <= 6:
                self.lines.append(f"{indent}cuda.syncthreads()")
            elif kind == 7:
                self.lines.append(f"{indent}{self.pick('u', 'w')} = {self.uniform()} & 3")
            elif kind == 8:
                self.lines.append(f"{indent}if {self.uniform()}:")
                self.together(indent + "    ", depth - 1)
                if self.random.random() < 0.5:
                    self.lines.append(f"{indent}else:")
                    self.together(indent + "    ", depth - 1)
            elif kind == 9:
                counter = f"m{self.loops}"
                self.loops += 1
                self.lines.append(f"{indent}for {counter} in range({self.uniform(1)} & 3):")
                self.together(indent + "    ", depth - 1)
                if self.random.random() < 0.4:
                    self.lines.append(
                        f"{indent}    if {self.uniform()}:\n{indent}        {self.pick('break', 'continue')}"
                    )
                    self.together(indent + "    ", 0)
            elif kind == 10:
                counter = f"m{self.loops}"
                self.loops += 1
                self.lines.append(f"{indent}{counter} = {self.uniform()} & 3\n{indent}while {counter} > 0:")
                self.lines.append(f"{indent}    {counter} -= 1")
                self.together(indent + "    ", depth - 1)
            elif self.random.random() < 0.3:
                self.lines.append(f"{indent}if {self.pick(self.uniform(), self.test())}:\n{indent}    return")

    def text(self) -> str:
        self.together("    ", 2)
        self.together("    ", 2)
        if self.random.random() < 0.3:
            self.lines.append(f"    if {self.test()}:\n        return")
        return (
            "def mix(p, q):\n    if p > q:\n        return p % 11\n    return q - p % 5\n"
            "def work(out, blk, x, n):\n"
            f"    sm = cuda.shared.array({self.threads + 2}, np.int64)\n"
            f"    sn = cuda.shared.array({2 * self.threads}, np.int64)\n"
            "    h = cuda.shared.array(4, np.int64)\n"
            "    mine = cuda.local.array(3, np.int64)\n"
            "    i = cuda.grid(1)\n    tx, bx = cuda.threadIdx.x, cuda.blockIdx.x\n"
            "    if n > 5:\n        u = 0\n        w = 0\n"  # they begin as zeros
            "    if n > 5:\n        a = 0\n        b = 0\n        c = 0\n"
            + "\n".join(self.lines)
            + "\n    out[i] += a + 3 * b + 5 * c + u + sm[tx] + mine[1]\n    if tx == 0:\n        blk[bx, 11] = w\n"
        )


class Meeting(Exception):
    """Threads part before a barrier, or meet in an element."""


class Memory:
    """An array that a block shares: what was there at the last barrier, and what each thread stored since."""

    def __init__(self, size: int) -> None:
        self.base = [0] * size
        self.clear()

    def clear(self) -> None:
        self.stored: dict[int, tuple[int, int]] = {}
        self.atomic: list[tuple[str, int, int]] = []
        self.loaded = False

    def barrier(self) -> None:
        kinds = {kind for kind, _, _ in self.atomic}
        if len(kinds) > 1 or (kinds and (self.stored or self.loaded)):
            raise Meeting
        for element, (_, value) in self.stored.items():
            self.base[element] = value
        for kind, element, value in self.atomic:
            self.base[element] = self.base[element] + value if kind == "add" else max(self.base[element], value)
        self.clear()


class View:
    """An array as one thread sees it."""

    def __init__(self, memory: Memory, thread: int) -> None:
        self.memory = memory
        self.thread = thread

    def place(self, index: Any) -> int:
        return int(index[1] if isinstance(index, tuple) else index)

    def __getitem__(self, index: Any) -> int:
        at = self.place(index)
        if not 0 <= at < len(self.memory.base):
            return 0
        self.memory.loaded = True
        thread, value = self.memory.stored.get(at, (-1, 0))
        return value if thread == self.thread else self.memory.base[at]

    def __setitem__(self, index: Any, value: int) -> None:
        at = self.place(index)
        if 0 <= at < len(self.memory.base):
            if self.memory.stored.get(at, (self.thread, 0))[0] != self.thread:
                raise Meeting
            self.memory.stored[at] = (self.thread, int(value))


class Input:
    def __getitem__(self, at: int) -> int:
        return int(X[at]) if 0 <= at < len(X) else 0


class Named:
    def __init__(self, **names: Any) -> None:
        self.__dict__.update(names)


class _Yields(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        if "syncthreads" in ast.unparse(node):
            return ast.Expr(value=ast.Yield(value=None))
        return node


def model(text: str, threads: int, n: int) -> tuple[list[int], list[list[int]]]:
    """What the rules give. Raises `Meeting` where they have no answer."""
    tree = ast.fix_missing_locations(_Yields().visit(ast.parse(text)))
    work = tree.body[1]
    names = sorted(
        {node.id for node in ast.walk(work) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    )
    zeros = ast.parse("\n".join(f"{name} = 0" for name in names) + "\nif 0: yield").body
    work.body = zeros + work.body
    code = compile(ast.fix_missing_locations(tree), "<model>", "exec")
    out: list[int] = []
    rows: list[list[int]] = []
    for block in range(BLOCKS):
        shared = [Memory(threads + 2), Memory(2 * threads), Memory(4)]
        blk = Memory(ROW)
        mine = [Memory(1) for _ in range(threads)]
        running: dict[int, Any] = {}
        for thread in range(threads):
            views = {id(memory): View(memory, thread) for memory in shared}
            arrays = iter(shared)

            def atomic(kind: str) -> Any:
                def operate(view: View, at: int, value: int) -> None:
                    if 0 <= at < len(view.memory.base):
                        view.memory.atomic.append((kind, at, value))

                return operate

            cuda = Named(
                grid=lambda _, place=block * threads + thread: place,
                threadIdx=Named(x=thread),
                blockIdx=Named(x=block),
                shared=Named(array=lambda *_, arrays=arrays, views=views: views[id(next(arrays))]),
                local=Named(array=lambda size, _, thread=thread: View(Memory(size), thread)),
                atomic=Named(add=atomic("add"), max=atomic("max")),
            )
            space: dict[str, Any] = {"cuda": cuda, "np": np}
            exec(code, space)

            class Own:
                """out[i]: a thread's own element."""

                def __init__(self, memory: Memory) -> None:
                    self.memory = memory

                def __getitem__(self, _: int) -> int:
                    return self.memory.base[0]

                def __setitem__(self, _: int, value: int) -> None:
                    self.memory.base[0] = value

            running[thread] = space["work"](Own(mine[thread]), View(blk, thread), Input(), n)
        while running:
            ended = [thread for thread, generator in running.items() if next(generator, "end") == "end"]
            for memory in (*shared, blk):
                memory.barrier()
            if ended and len(ended) < len(running):
                # Some wait at a barrier that the others have left the kernel before.
                raise Meeting
            for thread in ended:
                del running[thread]
        out += [memory.base[0] for memory in mine]
        rows.append(blk.base)
    return out, rows


def lowered(text: str, threads: int, n: int) -> tuple[Lowered, KernelSource, Launch, tuple[ArgSpec, ...]]:
    source = KernelSource(text=text, entry="work", digest=source_digest("work", text))
    admitted = admit(source)
    launch = Launch(grid=(BLOCKS, 1, 1), block=(threads, 1, 1), dims=1)
    specs: tuple[ArgSpec, ...] = (
        OutputSpec(dtype="int64", shape=(BLOCKS * threads,)),
        OutputSpec(dtype="int64", shape=(BLOCKS, ROW)),
        InputSpec(dtype="int64", shape=X.shape),
        ScalarSpec(dtype="int64", value=np.int64(n)),
    )
    Layout.of_admitted(admitted, launch, specs)
    return lower(admitted, launch, specs), source, launch, specs


def _wrapped(bits: Any) -> int:
    value = int(bits) & (2**64 - 1)
    return value - 2**64 if value >= 2**63 else value


def interpret(code: Lowered, threads: int, n: int, *, backwards: bool = False) -> tuple[list[int], list[list[int]]]:
    """Run the code as the plain Python that it is; `backwards` the last thread of each segment first."""
    assert code.block is not None
    names: dict[str, Any] = {**helpers(lambda function: function), "np": np, **constants(code)}
    names.update(int64=_wrapped, uint64=lambda value: int(value) & (2**64 - 1))
    for _, text in (*code.functions, *code.block.functions):
        exec(text, names)
    order = "range(d_0 - 1, -1, -1)" if backwards else "range(d_0)"
    assert "for t_0 in range(d_0):" in code.block.block
    exec(code.block.block.replace("for t_0 in range(d_0):", f"for t_0 in {order}:"), names)
    out, rows = np.zeros(BLOCKS * threads, np.int64), np.zeros((BLOCKS, ROW), np.int64)
    # What is left in it from another block does not count.
    memory = [
        np.full(threads * each.size if each.by_thread else each.size, 77, each.dtype) for each in code.block.memory
    ]
    for block in range(BLOCKS):
        given = {"s_out_0": BLOCKS * threads, "s_blk_0": BLOCKS, "s_blk_1": ROW, "p_out": out, "p_blk": rows}
        given |= {"p_x": X, "p_n": n}
        names["block"](block, threads, BLOCKS, block, *(given[name] for name in code.arguments), *memory)
    return out.tolist(), rows.tolist()


def side_by_side(code: Lowered, threads: int, n: int) -> tuple[list[int], list[list[int]]]:
    """Run the code for a machine that runs threads side by side: generators, which change at barriers."""

    def add(array: Any, at: int, value: int) -> None:
        array[at] += value

    def most(array: Any, at: int, value: int) -> None:
        array[at] = max(array[at], value)

    names: dict[str, Any] = {**helpers(lambda function: function), "np": np, **constants(code)}
    names.update(int64=_wrapped, uint64=lambda value: int(value) & (2**64 - 1), atomic_add=add, atomic_max=most)
    for _, text in code.functions:
        exec(text, names)
    exec(code.body.replace("syncthreads()", "yield"), names)
    last = code.body.split("(", 1)[1].split(")", 1)[0].split(", ")
    out, rows = np.zeros(BLOCKS * threads, np.int64), np.zeros((BLOCKS, ROW), np.int64)
    for block in range(BLOCKS):
        given: dict[str, Any] = {"s_out_0": BLOCKS * threads, "s_blk_0": BLOCKS, "s_blk_1": ROW, "p_out": out}
        given |= {"p_blk": rows, "p_x": X, "p_n": n, "b_0": block, "d_0": threads, "n_0": BLOCKS, "k": block}
        # What the block shares is not zero before the code makes it so.
        given |= {name: np.full(2 * threads + 4, 77, np.int64) for name in last if name[:2] in ("m_", "w_")}
        given["o"] = np.array(code.block.vectors, np.uint64).ravel()
        running = []
        for thread in range(threads):
            given |= {"t_0": thread, "r": block * threads + thread, "l_mine": np.full(3, 77, np.int64)}
            running.append(names["body"](*(given[name] for name in last)))
        while running:
            running = [generator for generator in running if next(generator, "end") != "end"]
    return out.tolist(), rows.tolist()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.sampled_from([3, 4, 8]), st.integers(-1, 3))
def test_the_code_gives_what_the_rules_say(random: Random, threads: int, n: int) -> None:
    text = Writer(random, threads).text()
    try:
        code = lowered(text, threads, n)[0]
    except KernelError:
        assume(False)
        return
    try:
        due = model(text, threads, n)
    except Meeting:
        raise AssertionError(f"taken, and its threads meet or part:\n{text}") from None
    assert interpret(code, threads, n) == due, text
    assert interpret(code, threads, n, backwards=True) == due, text
    assert side_by_side(code, threads, n) == due, text


def test_most_of_these_kernels_are_taken() -> None:
    taken = 0
    for seed in range(60):
        try:
            lowered(Writer(Random(seed), 4).text(), 4, 2)
            taken += 1
        except KernelError:
            pass
    assert taken >= 20


@pytest.mark.parametrize("seed", range(0, 40, 10))
def test_compiled_code_gives_it_too(seed: int) -> None:
    while True:  # from the seed on, the first that is taken
        text = Writer(Random(seed), 8).text()
        try:
            _, source, launch, specs = lowered(text, 8, 3)
            break
        except KernelError:
            seed += 1
    rows, blk = np.zeros((BLOCKS, 8), np.int64), np.zeros((BLOCKS, ROW), np.int64)
    compiled = CpuBackend().compile(source, launch, specs)
    compiled.run_blocks(0, BLOCKS, [X, np.int64(3)], [rows, blk])
    assert (rows.ravel().tolist(), blk.tolist()) == model(text, 8, 3), text


FRAME = """def work(out, blk, x, n):
    sm = cuda.shared.array(8, np.int64)
    i = cuda.grid(1)
    tx, bx = cuda.threadIdx.x, cuda.blockIdx.x
"""
END = "    out[i] = sm[tx]\n    blk[bx, tx] = sm[tx]\n"


def results(lines: str) -> set[str]:
    """What the code of a kernel gives, threads in one order and in the other."""
    code = lowered(FRAME + lines + END, 8, 3)[0]
    return {str(interpret(code, 8, 3, backwards=backwards)) for backwards in (False, True)}


def exchanges(random: Random) -> str:
    """A kernel in which each turn of loops in loops changes who touches what; some have races."""
    partner = random.choice(["tx ^ j", "(tx + j) % 8", "tx + j", "7 - tx", "tx * 2 % 8 + j % 2", "2 * j * tx"])
    test = random.choice(["p > tx", "p > tx and tx & k == 0", "tx < j", "tx % (2 * j) == 0", "p != tx"])
    change = random.choice(["sm[tx], sm[p] = sm[p], sm[tx]", "sm[p] += sm[tx]", "sm[tx] += sm[p]", "sm[p] = k"])
    barrier, other = random.choice([(12, 8), (12, 8), (12, 4), (8, 12)])
    lines = [
        "    sm[tx] = x[i]",
        "    cuda.syncthreads()",
        "    k = 2",
        "    while k <= 8:",
        "        j = k // 2",
        "        while j > 0:",
        f"            p = {partner}",
        f"            if {test}:",
        f"                {change}",
        *([" " * barrier + "cuda.syncthreads()"] if barrier == 12 else []),
        "            j //= 2",
        *([" " * barrier + "cuda.syncthreads()"] if barrier == 8 else []),
        *(["        sm[7 - tx] += k", " " * other + "cuda.syncthreads()"] if random.random() < 0.4 else []),
        "        k *= 2",
        *(["    cuda.syncthreads()"] if random.random() < 0.6 else []),
    ]
    return "\n".join(lines) + "\n"


def test_what_is_gone_through_turn_by_turn_has_one_result() -> None:
    taken = 0
    for seed in range(300):
        lines = exchanges(Random(seed))
        try:
            found = results(lines)
        except KernelError:
            continue
        assert len(found) == 1, lines
        taken += 1
    assert taken > 60


def test_without_the_look_at_each_epoch_a_race_has_two_results(monkeypatch: pytest.MonkeyPatch) -> None:
    race = (
        "    sm[tx] = x[i]\n    cuda.syncthreads()\n    for k in range(3):\n        for j in range(k + 1):\n"
        "            sm[tx ^ j] += tx\n            if k == 2:\n                sm[tx // 2] = tx\n"
        "            cuda.syncthreads()\n"
    )
    with pytest.raises(KernelError, match="store to one element"):
        results(race)
    monkeypatch.setattr(_block_epochs._Epochs, "apart", lambda *_: True)
    assert len(results(race)) == 2


def test_without_the_proof_that_stores_do_not_meet_a_race_has_two_results(monkeypatch: pytest.MonkeyPatch) -> None:
    race = "    sm[tx % 3] = tx\n    cuda.syncthreads()\n"
    with pytest.raises(KernelError, match="store to one element"):
        results(race)
    monkeypatch.setattr(_block_races._Finder, "check_single", lambda *_: None)
    assert len(results(race)) == 2


def test_without_the_snapshot_a_race_has_two_results(monkeypatch: pytest.MonkeyPatch) -> None:
    race = "    sm[tx] = x[i]\n    cuda.syncthreads()\n    sm[tx] += sm[7 - tx]\n    cuda.syncthreads()\n"
    assert len(results(race)) == 1
    monkeypatch.setattr(_block_races._Finder, "mark", lambda *_: None)
    assert len(results(race)) == 2


def test_without_the_proof_of_uniformity_threads_would_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    part = "    if x[i] > 3:\n        cuda.syncthreads()\n    sm[tx] = n\n"
    with pytest.raises(KernelError, match="threads of a block part"):
        results(part)
    monkeypatch.setattr(_guard_block._Cutter, "check", lambda *_: None)
    lowered(FRAME + part + END, 8, 3)  # taken, though
    with pytest.raises(Meeting):
        model("def mix():\n    return 0\n" + FRAME + part + END, 8, 3)
