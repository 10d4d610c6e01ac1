"""Reads the PTX of a kernel and refuses what could give other bits elsewhere, or reach out of the kernel.

A list of what is allowed, not of what is forbidden: an instruction, a modifier or a directive that is not known here
is refused, so that a new compiler cannot bring one in unseen. What is allowed has one result on every device in
NVIDIA's "Parallel Thread Execution ISA" for all operands that a strict kernel gives it: IEEE 754 operations that name
their rounding, two's complement, conversions, comparisons, selection, branches, and loads and stores.

Of a kernel whose threads work together more is allowed, and no more than it needs: the one barrier that all threads of
a block reach, loads and stores of shared variables whose size is known, and operations on integers there whose order
does not show. That its threads do not meet is proved before, from its text (`_block_races`).

Of a kernel in fast mode floats may be fused, approximated, flushed to zero and rounded as the device likes. What could
reach out of the kernel, or show the order of threads, is refused as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from p2pcompute.errors import ExecutionError

__all__ = ["PtxFault", "PtxRefused", "check_ptx", "entry_parameters", "find_faults"]


class PtxRefused(ExecutionError):
    """The compiler made code of a kernel that is not sure to give the same bits everywhere; it is not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PtxFault:
    """One refused statement.

    Attributes:
        line: its line in the PTX, from 1.
        text: the statement.
        rule: the rule's name: "fused", "approximate", "flushing", "unrounded", "saturating", "conversion",
            "extreme", "half", "atomic", "communication", "call", "unknown", "directive".
    """

    line: int
    text: str
    rule: str


_RULES: Final = {
    "fused": "a multiplication and an addition of floats rounded together",
    "approximate": "an approximation, different on each generation of devices",
    "flushing": "subnormal numbers are flushed to zero",
    "unrounded": "a float operation that does not say round to nearest even, so the assembler may fuse it",
    "saturating": "a result clamped to [0, 1]",
    "conversion": "a conversion whose rounding is not the language's",
    "extreme": "min or max of floats, which decides between zeros and NaNs in its own way",
    "half": "16-bit, 8-bit or tensor floats",
    "atomic": "an atomic operation: the order of threads would show",
    "communication": "threads that talk to each other or wait for each other, in a way that this kernel does not need",
    "call": "a call of a function that is not in this PTX, or by address",
    "unknown": "an instruction that is not on the list",
    "directive": "a directive that is not on the list",
}

_INT = r"[su](?:16|32|64)"
_BITS = r"b(?:8|16|32|64)"
_FLOAT = r"f(?:32|64)"
_ANY = rf"(?:[su](?:8|16|32|64)|{_BITS}|{_FLOAT}|pred)"
_SPACE = r"(?:param|global|local)"
_ORDER = r"(?:eq|ne|lt|le|gt|ge|lo|ls|hi|hs|equ|neu|ltu|leu|gtu|geu|num|nan)"

_ALLOWED: Final = re.compile(
    "|".join(
        [
            # floats, each operation rounded by itself
            rf"(?:add|sub|mul|div|sqrt|rcp)\.rn\.{_FLOAT}",
            rf"(?:neg|abs|copysign)\.{_FLOAT}",
            rf"testp\.(?:finite|infinite|number|notanumber|normal|subnormal)\.{_FLOAT}",
            # integers
            rf"(?:add|sub|div|rem|neg|abs|min|max)\.{_INT}",
            r"(?:add|addc|sub|subc)(?:\.cc)?\.[su](?:32|64)",
            rf"(?:mul|mad)\.(?:lo|hi|wide)\.{_INT}",
            rf"(?:and|or|xor|not|cnot)\.(?:{_BITS}|pred)",
            rf"(?:shl|shr)\.(?:{_BITS}|{_INT})",
            r"shf\.[lr]\.(?:wrap|clamp)\.b32",
            r"(?:popc|clz|brev)\.b(?:32|64)",
            rf"(?:bfe|bfind|bfind\.shiftamt)\.{_INT}",
            r"bfi\.b(?:32|64)",
            r"(?:prmt|lop3)\.b32",
            # choice
            rf"(?:setp|set)\.{_ORDER}(?:\.(?:and|or|xor))?(?:\.[su]32)?\.{_ANY}",
            rf"selp\.{_ANY}",
            rf"slct\.{_ANY}\.s32",
            # moves
            rf"mov\.{_ANY}",
            rf"cvta(?:\.to)?\.{_SPACE}\.u64",
            rf"ld\.(?:{_SPACE}|const)(?:\.nc)?(?:\.v[24])?\.{_ANY}",
            rf"ld(?:\.v[24])?\.{_ANY}",
            rf"st(?:\.{_SPACE})?(?:\.v[24])?\.{_ANY}",
            # conversions: between integers, towards zero to an integer, to an integer as a float, and to nearest
            r"cvt\.[su](?:8|16|32|64)\.[su](?:8|16|32|64)",
            rf"cvt\.rzi\.[su](?:8|16|32|64)\.{_FLOAT}",
            r"cvt\.r[nzmp]i\.(?:f32\.f32|f64\.f64)",
            rf"cvt\.rn\.{_FLOAT}\.[su](?:8|16|32|64)",
            r"cvt\.(?:rn\.f32\.f64|f64\.f32)",
            # control
            r"bra(?:\.uni)?",
            r"call(?:\.uni)?",
            r"ret(?:\.uni)?",
            r"exit",
        ]
    )
)
# what a kernel adds in fast mode, modifiers for flushing left out
_FAST: Final = re.compile(
    "|".join(
        [
            rf"fma\.rn\.{_FLOAT}",
            rf"(?:add|sub|mul)\.{_FLOAT}",
            r"(?:div\.(?:approx|full)|(?:sqrt|rcp|rsqrt|sin|cos|ex2|lg2|tanh)\.approx)\.f32",
            r"(?:rcp|rsqrt)\.approx\.f64",
        ]
    )
)
# what a kernel adds whose threads work together
_SHARED: Final = re.compile(rf"(?:ld|st)\.shared(?:\.v[24])?\.{_ANY}")
_ATOMIC: Final = re.compile(
    r"(?:atom|red)(?:\.relaxed)?(?:\.(?:cta|gpu|sys))?\.shared\."
    r"(?:add\.(?:u32|s32|u64)|(?:min|max)\.[su](?:32|64)|(?:and|or|xor)\.b(?:32|64))"
)
_VARIABLE: Final = re.compile(r"(?:\.visible\s+|\.weak\s+)*\.shared\s+\.align\s+\d+\s+\.b8\s+[\w$]+\[[1-9]\d*\]$")
_APPROXIMATE: Final = re.compile(r"(?:sin|cos|tanh|ex2|lg2|rsqrt)\b|.*\.(?:approx|full)\b")
_HALF: Final = re.compile(r".*\.(?:f16x2|f16|bf16x2|bf16|tf32|e4m3\w*|e5m2\w*|e2m1\w*|ue8m0\w*)\b|(?:wmma|mma|wgmma)\b")
_TALK: Final = re.compile(
    r"(?:bar|barrier|shfl|vote|match|activemask|redux|membar|fence|elect|mbarrier|griddepcontrol|nanosleep)\b"
    r"|(?:ld|st)\.(?:volatile|relaxed|acquire|release|weak|shared)\b|cvta(?:\.to)?\.shared\b|mov\b.*%clock"
)

_DIRECTIVE: Final = re.compile(
    r"\.version\s|\.target\s+sm_\w+$|\.address_size\s+64$|\.reg\s|\.pragma\s+\"nounroll\"$"
    r"|\.maxntid\s|\.minnctapersm\s|\.local\s|\.param\s|\.loc\s|\.file\s"
    r"|(?:\.visible\s+|\.weak\s+|\.common\s+)*\.(?:global|const)\s"
    r"|(?:\.visible\s+|\.weak\s+|\.entry\s+|\.func\b)+"
)
_CALL: Final = re.compile(r"call(?:\.uni)?\s+(?:\([^)]*\)\s*,\s*)?([A-Za-z_$][\w$]*)\s*(?:,\s*\([^)]*\))?\s*$")
_PLACE: Final = re.compile(r"%(?:tid|ntid|ctaid|nctaid)\.[xyz]\b")
_END: Final = re.compile(r"[;{}]|\.(?:version|target|address_size|loc|file|maxntid|minnctapersm)\b[^\n;{]*\n|$")
_LABELS: Final = re.compile(r"\s*(?:[$%\w]+:\s*)*")
_BODY: Final = re.compile(r"\.(?:entry|func)\b[^{};]*?([A-Za-z_$][\w$]*)\s*(?:\([^{};]*\))?[^{};()]*\{", re.DOTALL)


def find_faults(ptx: str, *, together: bool = False, fast: bool = False) -> list[PtxFault]:
    """Every statement of a PTX module that is refused, in order.

    Args:
        ptx: the module.
        together: whether the threads of a block work together.
        fast: whether it is of fast mode.
    """
    text = _blank(ptx)
    bodies, registers = set(_BODY.findall(text)), _declared(text)
    faults: list[PtxFault] = []
    for statement in _statements(text):
        fault = _judge(_unflushed(statement) if fast else statement, bodies, registers, fast)
        if together and fault is not None and _is_of_a_block(statement, text):
            fault = None
        if fault is not None:
            faults.append(fault)
    return faults


def check_ptx(ptx: str, *, together: bool = False, fast: bool = False) -> None:
    """Raises `PtxRefused` for a module that holds a refused statement; names the first of them."""
    faults = find_faults(ptx, together=together, fast=fast)
    if faults:
        first = faults[0]
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise PtxRefused(f"line {first.line} of the PTX, {first.text!r}: {_RULES[first.rule]}{more}")


def entry_parameters(ptx: str, entry: str) -> list[str]:
    """The types (``u64``, ``f32``, ...) of an entry's parameters, in order.

    Raises:
        PtxRefused: there is no such entry, or one of its parameters is an array of bytes.
    """
    found = re.search(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", ptx)
    if found is None:
        raise PtxRefused(f"the PTX has no entry {entry}")
    types: list[str] = []
    for text in filter(None, (part.strip() for part in found[1].split(","))):
        declared = re.fullmatch(r"\.param\s+\.([subf]\d+)\s+(?:\.ptr\s+(?:\.global\s+)?\.align\s+\d+\s+)?[\w$]+", text)
        if declared is None:
            raise PtxRefused(f"{entry} has a parameter that is no number: {text}")
        types.append(declared[1])
    return types


def _blank(ptx: str) -> str:
    """The text without its comments; line breaks stay."""
    text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), ptx, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


@dataclass(frozen=True, slots=True)
class _Statement:
    """A directive or an instruction, blanks made one, without label and guard; where it begins in the module."""

    start: int
    line: int
    text: str
    guarded: bool


def _statements(text: str) -> Iterator[_Statement]:
    """All of a module without comments."""
    start = 0
    for end in _END.finditer(text):
        if end[0].startswith("."):
            yield from _one(text, start, end.start())
            yield from _one(text, end.start(), end.end())
        elif end[0] == "{" and _in_braces(text, start, end.start()):
            continue  # the operand {a, b} of a vector, or a table's values
        elif end[0] == "}" and _in_braces(text, start, text.rfind("{", start, end.start())):
            continue
        else:
            yield from _one(text, start, end.start())
        start = end.end()


def _in_braces(text: str, start: int, brace: int) -> bool:
    head = re.sub(r"[$%\w]+:", "", text[start:brace]).strip() if brace >= 0 else ""
    return bool(head) and not re.search(r"\.(?:entry|func)\b", head)


def _one(text: str, start: int, end: int) -> Iterator[_Statement]:
    found = _LABELS.match(text, start, end)
    start = found.end() if found is not None else start
    whole = " ".join(text[start:end].split())
    statement = re.sub(r"^@!?%\w+\s+", "", whole)
    if statement:
        yield _Statement(start, text.count("\n", 0, start) + 1, statement, statement != whole)


def _declared(ptx: str) -> set[str]:
    """Names of registers, of a numbered family without the number."""
    found: set[str] = set()
    for names in re.findall(r"\.reg\s+\.\w+\s+([^;]*);", ptx):
        found |= {name.split("<")[0].strip() for name in names.split(",")}
    return found


def _reads_the_machine(text: str, registers: set[str]) -> bool:
    """Whether a name is neither a declared register nor the thread's place: a clock, a lane, a processor."""
    names = re.findall(r"%\w+", _PLACE.sub("", text))
    return any(name not in registers and name.rstrip("0123456789") not in registers for name in names)


def _is_of_a_block(statement: _Statement, ptx: str) -> bool:
    """Whether a statement is one of those that threads need who work together."""
    text = statement.text
    if text.startswith("."):
        return _VARIABLE.match(text) is not None
    opcode, _, operands = text.partition(" ")
    if opcode == "bar.sync":
        return operands == "0" and not statement.guarded
    if _SHARED.fullmatch(opcode):
        return True
    if not _ATOMIC.fullmatch(opcode):
        return False
    # What was there before depends on which thread came first: nothing may read it.
    result = operands.split(",")[0].strip() if opcode.startswith("atom") else "_"
    return result == "_" or len(re.findall(rf"{re.escape(result)}\b", _function_around(ptx, statement.start))) == 1


def _function_around(ptx: str, at: int) -> str:
    """The text of the function that holds a statement; names of registers are its own."""
    heads = [found.start() for found in _BODY.finditer(ptx)]
    first = max((head for head in heads if head <= at), default=0)
    return ptx[first : min((head for head in heads if head > at), default=len(ptx))]


def _unflushed(statement: _Statement) -> _Statement:
    """The same of an instruction without its modifier for flushing subnormal numbers."""
    if statement.text.startswith("."):
        return statement
    opcode, space, operands = statement.text.partition(" ")
    return replace(statement, text=opcode.replace(".ftz", "") + space + operands)


def _judge(statement: _Statement, bodies: set[str], registers: set[str], fast: bool) -> PtxFault | None:
    text = statement.text

    def fault(rule: str) -> PtxFault:
        return PtxFault(line=statement.line, text=text if len(text) <= 120 else text[:117] + "...", rule=rule)

    if text.startswith("."):
        shared = re.search(r"\.(?:shared|extern|tex|surf|sampler|callprototype|alias|branchtargets)", text)
        return fault("directive") if shared or not _DIRECTIVE.match(text) else None
    opcode = text.split(maxsplit=1)[0]
    name, *modifiers = opcode.split(".")
    floats = any(re.fullmatch(_FLOAT, modifier) for modifier in modifiers)
    if name in ("atom", "red", "cas"):  # of shared memory too, where threads run alone
        return fault("atomic")
    if _TALK.match(opcode) or _reads_the_machine(text, registers):
        return fault("communication")
    if _HALF.match(opcode):
        return fault("half")
    if fast and _FAST.fullmatch(opcode):
        return None
    if _APPROXIMATE.match(opcode):
        return fault("approximate")
    if "ftz" in modifiers:
        return fault("flushing")
    if floats and name in ("fma", "mad"):
        return fault("fused")
    if floats and "sat" in modifiers and name != "cvt":
        return fault("saturating")
    if floats and name in ("min", "max"):
        return fault("extreme")
    if floats and name in ("add", "sub", "mul", "div", "sqrt", "rcp") and "rn" not in modifiers:
        return fault("unrounded")
    if name == "call":
        called = _CALL.match(text)
        return None if called is not None and called[1] in bodies else fault("call")
    if _ALLOWED.fullmatch(opcode):
        return None
    return fault("conversion" if floats and name == "cvt" else "unknown")
