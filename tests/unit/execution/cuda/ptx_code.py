"""PTX as Python: each basic block of a function becomes a Python function over the bits in the registers.

The instructions do what NVIDIA's "Parallel Thread Execution ISA" says of them, with the arithmetic of `ptx_arith`. What
is not known here is an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import ptx_arith as arith
from .ptx_arith import F32, F64

Registers = list[Any]
Block = Callable[[Registers, "Thread"], int]
Machine = Any  # what has the memory and runs threads, in ptx_machine

_RETURN = -1
_WAITING = -2  # less the number of the next basic block: the thread stands at a barrier


class PtxError(Exception):
    """The code does what PTX does not allow, or what this machine does not know."""


@dataclass(slots=True)
class Function:
    """A function or an entry, translated."""

    name: str
    parameters: list[tuple[str, int, int]]  # name, offset, size
    results: list[tuple[str, int]]
    registers: int
    depot: int
    blocks: list[Block] = field(default_factory=list)
    instructions: list[int] = field(default_factory=list)


class Module(dict[str, Function]):
    """The functions of a module, and its shared variables: offset and size of each."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: list[tuple[int, int]] = []


def waiting_at(ended: int) -> int | None:
    """Of what a basic block gives, the next one where it ended at a barrier."""
    return _WAITING - ended if ended <= _WAITING else None


@dataclass(slots=True)
class Thread:
    """What one thread sees beside its registers. `number` counts the threads of a block."""

    machine: Machine
    module: dict[str, Function]
    special: dict[str, int]
    params: dict[str, bytearray]
    depot: int = 0
    number: int = 0
    tensor: tuple[str, list[list[int]], list[int], Registers] | None = (
        None  # what it stands at a product of a warp with
    )


def strip(ptx: str) -> str:
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", ptx, flags=re.DOTALL))


_ORDERS = {"eq": (0,), "ne": (-1, 1), "lt": (-1,), "le": (-1, 0), "gt": (1,), "ge": (0, 1)}
_WIDTH = {"pred": 1} | {f"{kind}{width}": width for kind in "usbf" for width in (8, 16, 32, 64)}


def translate(ptx: str, machine: Machine) -> Module:
    """All functions of a module; its variables get memory of the machine, and shared ones places in a block's."""
    text = strip(ptx)
    module = Module()
    symbols: dict[str, int] = {}
    head = re.compile(
        r"\.(entry|func)\s*(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?\s*((?:\.\w+[^{};\n]*\s*)*)\{", re.DOTALL
    )
    at = 0
    while found := head.search(text, at):
        _globals(text[at : found.start()], machine, symbols)
        _shared(text[at : found.start()], module, symbols)
        end, depth = found.end(), 1
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        module[found[3]] = _Translation(found, text[found.end() : end - 1], symbols).function
        at = end
    _globals(text[at:], machine, symbols)
    return module


def _globals(text: str, machine: Machine, symbols: dict[str, int]) -> None:
    for found in re.finditer(
        r"\.(?:global|const)\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?(?:\s*=\s*\{([^}]*)\}|\s*=\s*([^;{]+))?\s*;",
        text,
    ):
        size = _WIDTH[found[1]] // 8
        count = int(found[3] or 1)
        address = machine.region(size * count)
        values = [_immediate(part.strip()) for part in (found[4] or found[5] or "").split(",") if part.strip()]
        for place in range(count):  # a variable without a value starts as zero
            machine.write(address + size * place, size, values[place] if place < len(values) else 0)
        symbols[found[2]] = address


def _shared(text: str, module: Module, symbols: dict[str, int]) -> None:
    for found in re.finditer(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?\s*;", text):
        size = _WIDTH[found[2]] // 8 * int(found[4] or 1)
        offset = sum(module.shared[-1]) + 64 if module.shared else 0  # what lies between is nobody's
        offset += -offset % max(int(found[1]), 1)
        module.shared.append((offset, size))
        symbols[found[3]] = offset


def _parameters(text: str | None) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    offset = 0
    for part in (text or "").split(","):
        if not part.strip():
            continue
        declared = re.fullmatch(
            r"\s*\.(?:param|reg)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+\.align\s+\d+\s+)?([\w$%]+)(?:\[(\d+)\])?\s*",
            part,
        )
        if declared is None:
            raise PtxError(f"parameter {part!r}")
        unit = _WIDTH[declared[2]] // 8
        size, align = unit * int(declared[4] or 1), int(declared[1] or unit)
        offset += -offset % align
        found.append((declared[3], offset, size))
        offset += size
    return found


def _immediate(text: str) -> int:
    if text.startswith(("0f", "0F", "0d", "0D")):
        return int(f"0x{text[2:]}", 0)  # the bits of a float
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    return sign * int(digits.rstrip("U"), 0)


class _Translation:
    """One function: its statements as Python functions, one for each basic block."""

    def __init__(self, head: re.Match[str], body: str, symbols: dict[str, int]) -> None:
        self.symbols = symbols
        self.index: dict[str, int] = {}
        self.widths: dict[str, int] = {}
        depot = 0
        statements: list[tuple[str | None, str]] = []  # (label, None) or instructions
        for raw in re.split(r";|(?<=:)\s", re.sub(r"\{\s*(?=\.reg)|^\s*\}\s*$", "", body, flags=re.MULTILINE)):
            text = " ".join(raw.split()).lstrip("} ")
            while label := re.match(r"([$\w%]+):\s*", text):
                statements.append((label[1], ""))
                text = text[label.end() :]
            if declared := re.match(r"\.reg \.(\w+) (.*)$", text):
                for name in declared[2].split(","):
                    several = re.fullmatch(r"\s*(%[\w]+)<(\d+)>\s*", name)
                    names = [f"{several[1]}{k}" for k in range(int(several[2]))] if several else [name.strip()]
                    for one in names:
                        self.index.setdefault(one, len(self.index))  # a block in braces may declare a name again
                        self.widths[one] = _WIDTH[declared[1]]
            elif local := re.match(r"\.local \.align \d+ \.b8 ([\w$]+)\[(\d+)\]$", text):
                depot = int(local[2])
                self.depot_name = local[1]
            elif text and not text.startswith((".pragma", ".loc", ".maxntid", ".minnctapersm")):
                statements.append((None, text))
        self.function = Function(
            name=head[3],
            parameters=_parameters(head[4]),
            results=[(name, size) for name, _, size in _parameters(head[2])],
            registers=len(self.index),
            depot=depot,
        )
        self._assemble(statements)

    def _assemble(self, statements: list[tuple[str | None, str]]) -> None:
        groups: list[list[str]] = [[]]
        labels: dict[str, int] = {}
        for label, text in statements:
            if label is not None:
                if groups[-1]:
                    groups.append([])
                labels[label] = len(groups) - 1
                continue
            groups[-1].append(text)
            if re.match(r"(@!?%\w+ )?(bra|ret|exit|bar|mma)\b", text):
                groups.append([])
        names: dict[str, Any] = {
            "arith": arith, "F32": F32, "F64": F64, "PtxError": PtxError, "signed": arith.signed, "call": _call,
        }  # fmt: skip
        for place, group in enumerate(groups):
            lines = [f"def block{place}(R, T):"]
            ended = False
            self.place = place
            for text in group:
                guard = re.match(r"@(!?)(%\w+) ", text)
                code = self._statement(text[guard.end() :] if guard else text, labels)
                if guard and text[guard.end() :].startswith(("bar", "mma")):
                    raise PtxError("a barrier that not all threads need reach")
                if guard:
                    lines.append(f" if {'not ' if guard[1] else ''}{self._get(guard[2])}:")
                    lines += [f"  {line}" for line in code]
                else:
                    lines += [f" {line}" for line in code]
                    ended = code[-1].startswith("return")
            if not ended:
                lines.append(f" return {place + 1 if place + 1 < len(groups) else _RETURN}")
            exec(compile("\n".join(lines), f"<{self.function.name}>", "exec"), names)
            self.function.blocks.append(names[f"block{place}"])
            self.function.instructions.append(max(1, len(group)))

    # operands

    def _get(self, operand: str, width: int | None = None) -> str:
        """Code for the value of an operand; of a register wider than `width`, the low part."""
        if operand in self.index:
            code = f"R[{self.index[operand]}]"
            if width is not None and width < self.widths[operand]:
                return f"({code} & {(1 << width) - 1})"
            return code
        if operand.startswith("%"):
            if re.fullmatch(r"%(?:tid|ntid|ctaid|nctaid)\.[xyz]", operand):
                return f"T.special[{operand!r}]"
            raise PtxError(f"register {operand}")
        if operand == getattr(self, "depot_name", None):
            return "T.depot"
        if operand in self.symbols:
            return str(self.symbols[operand])
        value = _immediate(operand)
        return str(value & ((1 << (width or 64)) - 1))

    def _set(self, operand: str, code: str) -> str:
        return f"R[{self.index[operand]}] = {code}"

    def _at(self, base: str, offset: int) -> str:
        """Code for an address: a sum that wraps."""
        return f"({self._get(base)} + {offset} & {(1 << 64) - 1})" if offset else f"{self._get(base)} + 0"

    def _address(self, text: str) -> tuple[str, int]:
        found = re.fullmatch(r"\[\s*([\w$%.]+?)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        if found is None:
            raise PtxError(f"address {text}")
        return found[1], int(found[2] or 0)

    # instructions

    def _statement(self, text: str, labels: dict[str, int]) -> list[str]:
        opcode, _, rest = text.partition(" ")
        name, *mods = opcode.split(".")
        args = [part.strip() for part in re.split(r",(?![^{(\[]*[})\]])", rest)] if rest.strip() else []
        match name:
            case "bra":
                return [f"return {labels[args[0]]}"]
            case "ret" | "exit":
                return [f"return {_RETURN}"]
            case "bar":
                if text != "bar.sync 0":
                    raise PtxError(f"barrier {text!r}")
                return [f"return {_WAITING - self.place - 1}"]
            case "mma":
                result, *operands = [re.findall(r"[%\w]+", arg) for arg in args]
                values = ", ".join(f"[{', '.join(self._get(one) for one in arg)}]" for arg in operands)
                places = [self.index[one] for one in result]
                given = f"({'.'.join(mods)!r}, [{values}], {places}, R)"
                return [f"T.tensor = {given}", f"return {_WAITING - self.place - 1}"]
            case "atom" | "red":
                return self._atomic(name, mods, args)
            case "call":
                return self._called(rest)
            case "ld":
                return self._load(mods, args)
            case "st":
                return self._store(mods, args)
            case "":
                if found := re.fullmatch(r"\.param (?:\.align \d+ )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?", text):
                    return [f"T.params[{found[2]!r}] = bytearray({_WIDTH[found[1]] // 8 * int(found[3] or 1)})"]
            case _:
                handler: Callable[[list[str], list[str]], list[str]] | None = getattr(self, f"_do_{name}", None)
                if handler is not None:
                    return handler(mods, args)
        raise PtxError(f"instruction {text!r}")

    def _called(self, rest: str) -> list[str]:
        found = re.fullmatch(r"(?:\(([^)]*)\)\s*,\s*)?([\w$]+)\s*(?:,\s*\(([^)]*)\))?", rest.strip())
        if found is None:
            raise PtxError(f"call {rest}")
        results = [name.strip() for name in (found[1] or "").split(",") if name.strip()]
        given = [name.strip() for name in (found[3] or "").split(",") if name.strip()]
        return [f"call(T, {found[2]!r}, {results!r}, {given!r})"]

    def _load(self, mods: list[str], args: list[str]) -> list[str]:
        kind = mods[-1]
        width = _WIDTH[kind]
        base, offset = self._address(args[1])
        targets = re.findall(r"[%\w]+", args[0])
        code: list[str] = []
        held = self._at(base, offset) if "param" not in mods else ""
        if held:
            code.append(f"at = {held}")
        for place, target in enumerate(targets):
            step = place * width // 8
            if "param" in mods:
                low = offset + step
                value = f"int.from_bytes(T.params[{base!r}][{low}:{low + width // 8}], 'little')"
            elif "shared" in mods:
                value = f"T.machine.read_shared(T, at + {step}, {width // 8})"
            else:
                value = f"T.machine.read(at + {step}, {width // 8}, T)"
            if kind[0] == "s" and self.widths[target] > width:
                value = f"signed({value}, {width}) & {(1 << self.widths[target]) - 1}"
            code.append(self._set(target, value))
        return code

    def _store(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        base, offset = self._address(args[0])
        code: list[str] = []
        for place, source in enumerate(part.strip() for part in args[1].strip("{}").split(",")):
            step = offset + place * width // 8
            value = self._get(source, width)
            if "param" in mods:
                code.append(
                    f"T.params[{base!r}][{step}:{step + width // 8}] = ({value}).to_bytes({width // 8}, 'little')"
                )
            elif "shared" in mods:
                code.append(f"T.machine.write_shared(T, {self._at(base, step)}, {width // 8}, {value})")
            else:
                code.append(f"T.machine.write({self._at(base, step)}, {width // 8}, {value}, T)")
        return code

    def _atomic(self, name: str, mods: list[str], args: list[str]) -> list[str]:
        if mods[0] == "relaxed" and mods[1] in ("cta", "gpu", "sys"):
            mods = mods[2:]
        operations = {"add": ("u32", "s32", "u64"), "and": ("b32", "b64"), "or": ("b32", "b64"), "xor": ("b32", "b64")}
        kinds = operations | dict.fromkeys(("min", "max"), ("u32", "s32", "u64", "s64"))
        if len(mods) != 3 or mods[0] != "shared" or mods[2] not in kinds.get(mods[1], ()):
            raise PtxError(f"{name} {mods}")
        *result, place, operand = args
        width = _WIDTH[mods[2]]
        base, offset = self._address(place)
        given = f"{self._at(base, offset)}, {width // 8}, {self._get(operand, width)}"
        code = [f"T.machine.atomic(T, {mods[1]!r}, {given}, {mods[2][0] == 's'})"]
        if result and result[0] != "_":  # what was there before is the order of threads
            code.append(self._set(result[0], f"T.machine.open_value({width})"))
        return code

    def _do_mov(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[0]]
        if args[0].startswith("{"):
            parts = re.findall(r"%\w+", args[0])
            part = width // len(parts)
            return [f"at = {self._get(args[1])}"] + [
                self._set(p, f"(at >> {part * k}) & {(1 << part) - 1}") for k, p in enumerate(parts)
            ]
        if args[1].startswith("{"):
            parts = [part.strip() for part in args[1].strip("{}").split(",")]
            part = width // len(parts)
            return [self._set(args[0], " | ".join(f"{self._get(p, part)} << {part * k}" for k, p in enumerate(parts)))]
        if mods[0] == "pred":
            return [self._set(args[0], f"bool({self._get(args[1], 1)})")]
        return [self._set(args[0], f"{self._get(args[1], width)} + 0")]  # + 0: an unwritten register fails here

    def _do_cvta(self, mods: list[str], args: list[str]) -> list[str]:
        return [self._set(args[0], self._get(args[1]) + " + 0")]  # all spaces lie in one

    def _float(self, mods: list[str]) -> str:
        if {"ftz", "approx", "sat", "NaN", "xorsign"} & set(mods):
            raise PtxError(f"modifiers {mods}")
        return mods[-1].upper()

    def _arithmetic(self, name: str, mods: list[str], args: list[str], integer: str) -> list[str]:
        kind = mods[-1]
        width = _WIDTH[kind]
        a, b = self._get(args[1], width), self._get(args[2], width)
        if kind[0] == "f":
            if mods[0] != "rn":
                raise PtxError(f"{name} without a rounding")
            f = self._float(mods)
            return [self._set(args[0], f"arith.{name}({f}, {a}, {b}, T.machine.open_value)")]
        if mods[:-1]:
            raise PtxError(f"{name} {mods}")
        return [self._set(args[0], f"({a} {integer} {b}) & {(1 << width) - 1}")]

    def _do_add(self, mods: list[str], args: list[str]) -> list[str]:
        return self._arithmetic("add", mods, args, "+")

    def _do_sub(self, mods: list[str], args: list[str]) -> list[str]:
        return self._arithmetic("sub", mods, args, "-")

    def _product(self, mods: list[str], args: list[str], plus: str | None) -> list[str]:
        part, kind = mods
        width = _WIDTH[kind]
        a, b = self._get(args[1], width), self._get(args[2], width)
        if kind[0] == "s" and part != "lo":
            a, b = f"signed({a}, {width})", f"signed({b}, {width})"
        result = 2 * width if part == "wide" else width
        code = f"({a} * {b})" if part != "hi" else f"({a} * {b} >> {width})"
        if plus is not None:
            code = f"({code} + {self._get(plus, result)})"
        return [self._set(args[0], f"{code} & {(1 << result) - 1}")]

    def _do_mul(self, mods: list[str], args: list[str]) -> list[str]:
        if mods[-1][0] == "f":
            return self._arithmetic("mul", mods, args, "*")
        return self._product(mods, args, None)

    def _do_mad(self, mods: list[str], args: list[str]) -> list[str]:
        if mods[-1][0] == "f":
            raise PtxError("mad of floats")
        return self._product(mods, args[:3], args[3])

    def _do_fma(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        given = ", ".join(self._get(arg, width) for arg in args[1:])
        return [self._set(args[0], f"arith.fma({self._float(mods)}, {given}, T.machine.open_value)")]

    def _quotient(self, mods: list[str], args: list[str], *, rest: bool) -> list[str]:
        kind = mods[-1]
        width = _WIDTH[kind]
        given = f"{self._get(args[1], width)}, {self._get(args[2], width)}, {width}, T.machine.open_value"
        return [self._set(args[0], f"arith.int_div({given}, is_signed={kind[0] == 's'}, rest={rest})")]

    def _do_div(self, mods: list[str], args: list[str]) -> list[str]:
        if mods[-1][0] == "f":
            return self._arithmetic("div", mods, args, "/")
        return self._quotient(mods, args, rest=False)

    def _do_rem(self, mods: list[str], args: list[str]) -> list[str]:
        return self._quotient(mods, args, rest=True)

    def _do_sqrt(self, mods: list[str], args: list[str]) -> list[str]:
        if mods[0] != "rn":
            raise PtxError("sqrt without a rounding")
        return [self._set(args[0], f"arith.sqrt({self._float(mods)}, {self._get(args[1])}, T.machine.open_value)")]

    def _do_rcp(self, mods: list[str], args: list[str]) -> list[str]:
        if mods[0] != "rn":
            raise PtxError("rcp without a rounding")
        f = F32 if mods[-1] == "f32" else F64
        one = f.bias << (f.digits - 1)
        value = self._get(args[1])
        return [self._set(args[0], f"arith.div({self._float(mods)}, {one}, {value}, T.machine.open_value)")]

    def _do_neg(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        value = self._get(args[1], width)
        if mods[-1][0] == "f":
            self._float(mods)
            return [self._set(args[0], f"{value} ^ {1 << (width - 1)}")]
        return [self._set(args[0], f"-{value} & {(1 << width) - 1}")]

    def _do_abs(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        value = self._get(args[1], width)
        if mods[-1][0] == "f":
            self._float(mods)
            return [self._set(args[0], f"{value} & {(1 << (width - 1)) - 1}")]
        return [self._set(args[0], f"abs(signed({value}, {width})) & {(1 << width) - 1}")]

    def _do_copysign(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        sign = 1 << (width - 1)
        return [self._set(args[0], f"{self._get(args[1])} & {sign} | {self._get(args[2])} & {sign - 1}")]

    def _extreme(self, name: str, mods: list[str], args: list[str]) -> list[str]:
        kind = mods[-1]
        width = _WIDTH[kind]
        if kind[0] == "f":
            given = f"{self._float(mods)}, {self._get(args[1])}, {self._get(args[2])}, T.machine.open_value"
            return [self._set(args[0], f"arith.extreme({given}, greatest={name == 'max'})")]
        a, b = self._get(args[1], width), self._get(args[2], width)
        if kind[0] == "s":
            a, b = f"signed({a}, {width})", f"signed({b}, {width})"
        return [self._set(args[0], f"{name}({a}, {b}) & {(1 << width) - 1}")]

    def _do_min(self, mods: list[str], args: list[str]) -> list[str]:
        return self._extreme("min", mods, args)

    def _do_max(self, mods: list[str], args: list[str]) -> list[str]:
        return self._extreme("max", mods, args)

    def _bitwise(self, symbol: str, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        return [self._set(args[0], f"{self._get(args[1], width)} {symbol} {self._get(args[2], width)}")]

    def _do_and(self, mods: list[str], args: list[str]) -> list[str]:
        return self._bitwise("&", mods, args)

    def _do_or(self, mods: list[str], args: list[str]) -> list[str]:
        return self._bitwise("|", mods, args)

    def _do_xor(self, mods: list[str], args: list[str]) -> list[str]:
        return self._bitwise("^", mods, args)

    def _do_not(self, mods: list[str], args: list[str]) -> list[str]:
        if mods[-1] == "pred":
            return [self._set(args[0], f"not {self._get(args[1])}")]
        width = _WIDTH[mods[-1]]
        return [self._set(args[0], f"{self._get(args[1], width)} ^ {(1 << width) - 1}")]

    def _do_shl(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        given = f"{self._get(args[1], width)}, {self._get(args[2], 32)}, {width}"
        return [self._set(args[0], f"arith.shift_left({given})")]

    def _do_shr(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        given = f"{self._get(args[1], width)}, {self._get(args[2], 32)}, {width}, is_signed={mods[-1][0] == 's'}"
        return [self._set(args[0], f"arith.shift_right({given})")]

    def _do_shf(self, mods: list[str], args: list[str]) -> list[str]:
        given = ", ".join(self._get(arg, 32) for arg in args[1:])
        way = f"left={mods[0] == 'l'}, wrap={mods[1] == 'wrap'}"
        return [self._set(args[0], f"arith.funnel({given}, {way})")]

    def _do_bfe(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        given = f"{self._get(args[1], width)}, {self._get(args[2], 32)}, {self._get(args[3], 32)}, {width}"
        return [self._set(args[0], f"arith.extract({given}, is_signed={mods[-1][0] == 's'})")]

    def _do_bfi(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        given = [self._get(args[1], width), self._get(args[2], width), self._get(args[3], 32), self._get(args[4], 32)]
        return [self._set(args[0], f"arith.insert({', '.join(given)}, {width})")]

    def _do_prmt(self, mods: list[str], args: list[str]) -> list[str]:
        if mods != ["b32"]:
            raise PtxError(f"prmt {mods}")
        return [self._set(args[0], f"arith.permute({', '.join(self._get(arg, 32) for arg in args[1:])})")]

    def _do_lop3(self, mods: list[str], args: list[str]) -> list[str]:
        return [self._set(args[0], f"arith.logic3({', '.join(self._get(arg, 32) for arg in args[1:])})")]

    def _do_popc(self, mods: list[str], args: list[str]) -> list[str]:
        return [self._set(args[0], f"{self._get(args[1])}.bit_count()")]

    def _do_clz(self, mods: list[str], args: list[str]) -> list[str]:
        return [self._set(args[0], f"{_WIDTH[mods[-1]]} - {self._get(args[1])}.bit_length()")]

    def _do_brev(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        return [self._set(args[0], f"int(format({self._get(args[1])}, '0{width}b')[::-1], 2)")]

    def _do_selp(self, mods: list[str], args: list[str]) -> list[str]:
        width = _WIDTH[mods[-1]]
        a, b = self._get(args[1], width), self._get(args[2], width)
        return [self._set(args[0], f"({a} if {self._get(args[3])} else {b}) + 0")]

    def _comparison(self, order: str, kind: str, a: str, b: str) -> str:
        width = _WIDTH[kind]
        one, other = self._get(a, width), self._get(b, width)
        if kind[0] == "f":
            given = f"arith.compare({kind.upper()}, {one}, {other})"
            if order in ("num", "nan"):
                return f"({given} is {'not ' if order == 'num' else ''}None)"
            found: tuple[int | None, ...] = _ORDERS[order[:2]]
            return f"({given} in {(*found, None) if order[2:] == 'u' else found})"
        if kind[0] == "s" and order in ("lt", "le", "gt", "ge"):
            one, other = f"signed({one}, {width})", f"signed({other}, {width})"
        symbol = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
                  "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}[order]  # fmt: skip
        return f"({one} {symbol} {other})"

    def _do_setp(self, mods: list[str], args: list[str]) -> list[str]:
        order, kind = mods[0], mods[-1]
        test = self._comparison(order, kind, args[1], args[2])
        with_other = {"and": "and", "or": "or", "xor": "!="}.get(mods[1]) if len(mods) == 3 else None
        one, _, other = args[0].partition("|")
        lines: list[str] = []
        for target, code in ((one, test), (other, f"(not {test})")):
            if target:
                if with_other:
                    guard = args[3]
                    said = f"(not {self._get(guard[1:])})" if guard.startswith("!") else self._get(guard)
                    code = f"({code} {with_other} {said})"
                lines.append(self._set(target, code))
        return lines

    def _do_set(self, mods: list[str], args: list[str]) -> list[str]:
        if len(mods) != 3 or mods[1] not in ("u32", "s32"):
            raise PtxError(f"set {mods}")
        return [self._set(args[0], f"0xFFFFFFFF if {self._comparison(mods[0], mods[2], args[1], args[2])} else 0")]

    def _do_testp(self, mods: list[str], args: list[str]) -> list[str]:
        f, value = mods[1].upper(), self._get(args[1])
        test = {
            "notanumber": f"arith.is_nan({f}, {value})",
            "number": f"not arith.is_nan({f}, {value})",
            "infinite": f"arith.is_infinite({f}, {value})",
            "finite": f"not (arith.is_nan({f}, {value}) or arith.is_infinite({f}, {value}))",
        }[mods[0]]
        return [self._set(args[0], test)]

    def _do_cvt(self, mods: list[str], args: list[str]) -> list[str]:
        *how, to, have = mods
        width, source = _WIDTH[to], self._get(args[1], _WIDTH[have])
        room = self.widths[args[0]]
        if to[0] == "f" and have[0] == "f":
            opened = "T.machine.open_value"
            if to == have:
                (mode,) = how
                if not re.fullmatch(r"r[nzmp]i", mode):
                    raise PtxError(f"cvt {mods}")
                return [self._set(args[0], f"arith.to_whole_float({to.upper()}, {source}, {mode[1]!r}, {opened})")]
            if how != (["rn"] if to == "f32" else []):
                raise PtxError(f"cvt {mods}")
            return [self._set(args[0], f"arith.resize({have.upper()}, {to.upper()}, {source}, {opened})")]
        if to[0] == "f":
            if how != ["rn"]:
                raise PtxError(f"cvt {mods}")
            value = f"signed({source}, {_WIDTH[have]})" if have[0] == "s" else source
            return [self._set(args[0], f"arith.from_integer({to.upper()}, {value})")]
        if have[0] == "f":
            (mode,) = how
            if not re.fullmatch(r"r[nzmp]i", mode):
                raise PtxError(f"cvt {mods}")
            given = f"{have.upper()}, {source}, {mode[1]!r}, {width}, signed={to[0] == 's'}"
            value = f"arith.to_integer({given})"
        else:
            if how:
                raise PtxError(f"cvt {mods}")
            value = f"signed({source}, {_WIDTH[have]})" if have[0] == "s" else source
            value = f"{value} & {(1 << width) - 1}"
        if to[0] == "s" and room > width:  # a register wider than the type: the sign goes on
            value = f"signed({value}, {width}) & {(1 << room) - 1}"
        return [self._set(args[0], value)]


def _call(thread: Thread, name: str, results: list[str], given: list[str]) -> None:
    function = thread.module.get(name)
    if function is None:
        raise PtxError(f"a call of {name}, which is not in the module")
    params: dict[str, bytearray] = {
        own: bytearray(thread.params[theirs]) for (own, _, _), theirs in zip(function.parameters, given, strict=True)
    }
    params |= {own: bytearray(size) for own, size in function.results}
    inner = Thread(thread.machine, thread.module, thread.special, params, number=thread.number)
    thread.machine.call(function, inner)
    for (own, _), theirs in zip(function.results, results, strict=True):
        thread.params[theirs] = params[own]
