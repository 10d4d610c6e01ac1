"""Arithmetic of PTX on bit patterns, in whole numbers and with explicit rounding: nothing here is the host's float.

A float is an unsigned integer that holds its bits. A finite one is taken apart into a sign, an integer and a power of
two; an operation computes exactly, or exactly enough with a sticky bit, and rounds once. What NVIDIA's "Parallel
Thread Execution ISA" leaves open (which NaN, a division by zero) is asked from `open_value`, so that a caller can
answer differently each time and see whether a kernel's result depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt

OpenValue = Callable[[int], int]  # width in bits -> any value of that width


def documented(width: int) -> int:
    """All bits but the top one: of a float32 the NaN that devices give."""
    return (1 << (width - 1)) - 1


@dataclass(frozen=True, slots=True)
class Format:
    """A binary interchange format of IEEE 754: `digits` counts the hidden one. What follows from the two is worked out
    once: it is asked for some ten times an operation."""

    width: int
    digits: int
    bias: int = field(init=False)
    least: int = field(init=False)  # the exponent of the last place of a subnormal number
    infinity: int = field(init=False)
    sign: int = field(init=False)
    size: int = field(init=False)  # all bits but the sign's
    hidden: int = field(init=False)  # the leading digit's place
    stored: int = field(init=False)  # the digits that are written

    def __post_init__(self) -> None:
        bias = (1 << (self.width - self.digits - 1)) - 1
        derived = {
            "bias": bias,
            "least": 2 - bias - self.digits,
            "infinity": ((1 << (self.width - self.digits)) - 1) << (self.digits - 1),
            "sign": 1 << (self.width - 1),
            "size": (1 << (self.width - 1)) - 1,
            "hidden": 1 << (self.digits - 1),
            "stored": (1 << (self.digits - 1)) - 1,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)


F32 = Format(32, 24)
F64 = Format(64, 53)


def is_nan(f: Format, x: int) -> bool:
    return x & f.size > f.infinity


def is_infinite(f: Format, x: int) -> bool:
    return x & f.size == f.infinity


def is_zero(f: Format, x: int) -> bool:
    return x & f.size == 0


def take_apart(f: Format, x: int) -> tuple[int, int, int]:
    """(sign bit, m, e) of a finite number of the size m * 2**e."""
    exponent = (x & f.size) >> (f.digits - 1)
    if exponent == 0:
        return x & f.sign, x & f.stored, f.least
    return x & f.sign, x & f.stored | f.hidden, exponent + f.least - 1


def put_together(f: Format, sign: int, m: int, e: int, *, sticky: bool = False) -> int:
    """The float nearest to m * 2**e, ties to even. `sticky`: the true size is above that by less than 2**e, and m
    has two digits more than the format at least."""
    if m == 0:
        return sign
    digits, least = f.digits, f.least
    long = m.bit_length()
    if long < digits + 2:
        if sticky:
            raise ArithmeticError("an inexact number has too few digits to be rounded")
        up = digits + 2 - long
        m, e, long = m << up, e - up, digits + 2
    if sticky:
        m, e, long = m << 1 | 1, e - 1, long + 1
    shift = long - digits  # 2 at least
    if shift < least - e:
        shift = least - e
    kept = m >> shift
    rest, half = m - (kept << shift), 1 << (shift - 1)
    e += shift
    if rest > half or (rest == half and kept & 1):
        kept += 1
    if kept >> digits:
        kept, e = kept >> 1, e + 1
    if kept < f.hidden:
        return sign | kept
    bits = (e - least + 1 << (digits - 1)) | kept & f.stored
    return sign | bits if bits < f.infinity else sign | f.infinity


def some_nan(f: Format, open_value: OpenValue, *operands: int) -> int:
    """The NaN of an operation: single precision gives an unspecified one, double precision may keep a payload."""
    value = open_value(f.width)
    if f is F64:
        nans = [x for x in operands if is_nan(f, x)]
        if nans:
            return nans[value % len(nans)] | 1 << (f.digits - 2)
    return value & f.sign | f.infinity | 1 << (f.digits - 2) | value & f.stored


def add(f: Format, a: int, b: int, open_value: OpenValue) -> int:
    if a & f.size >= f.infinity or b & f.size >= f.infinity:
        if is_nan(f, a) or is_nan(f, b):
            return some_nan(f, open_value, a, b)
        if is_infinite(f, a) and is_infinite(f, b) and a != b:
            return some_nan(f, open_value)
        return a if is_infinite(f, a) else b
    (sa, ma, ea), (sb, mb, eb) = take_apart(f, a), take_apart(f, b)
    e = min(eb, ea)
    one, two = ma << (ea - e), mb << (eb - e)
    total = (-one if sa else one) + (-two if sb else two)
    if total == 0:
        return sa & sb  # -0 only from two negative zeros
    return put_together(f, f.sign, -total, e) if total < 0 else put_together(f, 0, total, e)


def sub(f: Format, a: int, b: int, open_value: OpenValue) -> int:
    return add(f, a, b if is_nan(f, b) else b ^ f.sign, open_value)


def mul(f: Format, a: int, b: int, open_value: OpenValue) -> int:
    sign = (a ^ b) & f.sign
    if a & f.size >= f.infinity or b & f.size >= f.infinity:
        if is_nan(f, a) or is_nan(f, b):
            return some_nan(f, open_value, a, b)
        return some_nan(f, open_value) if is_zero(f, a) or is_zero(f, b) else sign | f.infinity
    (_, ma, ea), (_, mb, eb) = take_apart(f, a), take_apart(f, b)
    return put_together(f, sign, ma * mb, ea + eb)


def fma(f: Format, a: int, b: int, c: int, open_value: OpenValue) -> int:
    """One rounding of a * b + c: what a strict kernel must not hold, here to show the difference."""
    if any(is_nan(f, x) or is_infinite(f, x) for x in (a, b, c)):
        return add(f, mul(f, a, b, open_value), c, open_value)
    (sa, ma, ea), (sb, mb, eb), (sc, mc, ec) = take_apart(f, a), take_apart(f, b), take_apart(f, c)
    e = min(ea + eb, ec)
    total = (-1 if sa ^ sb else 1) * ma * mb * (1 << (ea + eb - e)) + (-mc if sc else mc) * (1 << (ec - e))
    if total == 0:
        return sa ^ sb & sc if ma * mb == 0 else 0
    return put_together(f, f.sign if total < 0 else 0, abs(total), e)


def div(f: Format, a: int, b: int, open_value: OpenValue) -> int:
    sign = (a ^ b) & f.sign
    if is_nan(f, a) or is_nan(f, b):
        return some_nan(f, open_value, a, b)
    if is_infinite(f, a):
        return some_nan(f, open_value) if is_infinite(f, b) else sign | f.infinity
    if is_infinite(f, b):
        return sign
    if is_zero(f, b):
        return some_nan(f, open_value) if is_zero(f, a) else sign | f.infinity
    (_, ma, ea), (_, mb, eb) = take_apart(f, a), take_apart(f, b)
    if ma == 0:
        return sign
    up = max(0, f.digits + 2 - ma.bit_length() + mb.bit_length())
    quotient, rest = divmod(ma << up, mb)
    return put_together(f, sign, quotient, ea - eb - up, sticky=rest != 0)


def sqrt(f: Format, a: int, open_value: OpenValue) -> int:
    if is_nan(f, a):
        return some_nan(f, open_value, a)
    if is_zero(f, a):
        return a
    if a & f.sign:
        return some_nan(f, open_value)
    if is_infinite(f, a):
        return a
    _, m, e = take_apart(f, a)
    up = 2 * f.digits + 4
    up += (e - up) % 2  # an even exponent
    m, e = m << up, e - up
    root = isqrt(m)
    return put_together(f, 0, root, e // 2, sticky=root * root != m)


def compare(f: Format, a: int, b: int) -> int | None:
    """-1, 0 or 1; None where they are unordered."""
    x, y = a & f.size, b & f.size
    if x > f.infinity or y > f.infinity:
        return None
    if a & f.sign:
        x = -x
    if b & f.sign:
        y = -y
    return (x > y) - (x < y)


def extreme(f: Format, a: int, b: int, open_value: OpenValue, *, greatest: bool) -> int:
    """min and max: the operand that is a number where the other is a NaN; of two zeros either, as it may be."""
    if is_nan(f, a) and is_nan(f, b):
        return some_nan(f, open_value, a, b)
    if is_nan(f, a) or is_nan(f, b):
        return b if is_nan(f, a) else a
    order = compare(f, a, b)
    if order == 0:
        return (a, b)[open_value(32) & 1]
    return b if (order == -1) == greatest else a


def resize(f: Format, to: Format, a: int, open_value: OpenValue) -> int:
    """cvt between the float formats, to nearest where it is not exact."""
    sign = to.sign if a & f.sign else 0
    if is_nan(f, a):
        return some_nan(to, open_value)
    if is_infinite(f, a):
        return sign | to.infinity
    _, m, e = take_apart(f, a)
    return put_together(to, sign, m, e)


def from_integer(to: Format, value: int) -> int:
    """cvt.rn from an integer."""
    return put_together(to, to.sign if value < 0 else 0, abs(value), 0)


def _whole(m: int, e: int, sign: int, mode: str) -> int:
    """The size of m * 2**e as a whole number: n nearest even, z towards zero, m down, p up."""
    if e >= 0:
        return m << e
    whole, rest = m >> -e, m & ((1 << -e) - 1)
    half = 1 << (-e - 1)
    away = {"n": rest > half or (rest == half and whole & 1), "z": False, "m": rest and sign, "p": rest and not sign}
    return whole + 1 if away[mode] else whole


def to_whole_float(f: Format, a: int, mode: str, open_value: OpenValue) -> int:
    """cvt.r?i.f.f: the float that is an integer; zeros keep their sign."""
    if is_nan(f, a):
        return some_nan(f, open_value, a)
    if is_infinite(f, a):
        return a
    sign, m, e = take_apart(f, a)
    return put_together(f, sign, _whole(m, e, sign, mode), 0)


def to_integer(f: Format, a: int, mode: str, width: int, *, signed: bool) -> int:
    """cvt from a float to an integer, as bits: clamped to its range. A NaN gives 0, or for a double or a 64-bit
    integer only the top bit."""
    if is_nan(f, a):
        return 1 << (width - 1) if f is F64 or width == 64 else 0
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
    sign = a & f.sign
    if is_infinite(f, a):
        value = low if sign else high
    else:
        _, m, e = take_apart(f, a)
        size = _whole(m, e, sign, mode)
        value = min(max(-size if sign else size, low), high)
    return value & ((1 << width) - 1)


def signed(x: int, width: int) -> int:
    """Bits as a number in two's complement."""
    x &= (1 << width) - 1
    return x - (1 << width) if x >> (width - 1) else x


def int_div(x: int, y: int, width: int, open_value: OpenValue, *, is_signed: bool, rest: bool) -> int:
    """div and rem: towards zero. By zero anything comes out, and where the quotient does not fit, too."""
    mask = (1 << width) - 1
    if is_signed:
        x, y = signed(x, width), signed(y, width)
        if y == -1 and x == -(1 << (width - 1)):
            return open_value(width) & mask
    if y == 0:
        return open_value(width) & mask
    quotient = abs(x) // abs(y)
    if (x < 0) != (y < 0):
        quotient = -quotient
    return (x - quotient * y if rest else quotient) & mask


def shift_left(x: int, n: int, width: int) -> int:
    """shl: counts above the width are the width."""
    return (x << min(n, width)) & ((1 << width) - 1)


def shift_right(x: int, n: int, width: int, *, is_signed: bool) -> int:
    """shr: counts above the width are the width; a signed number fills with its sign."""
    return ((signed(x, width) if is_signed else x) >> min(n, width)) & ((1 << width) - 1)


def extract(x: int, position: int, length: int, width: int, *, is_signed: bool) -> int:
    """bfe."""
    position, length = position & 0xFF, length & 0xFF
    top = width - 1
    sign = 0 if not is_signed or length == 0 else x >> min(position + length - 1, top) & 1
    found = 0
    for place in range(width):
        bit = x >> (position + place) & 1 if place < length and position + place <= top else sign
        found |= bit << place
    return found


def insert(x: int, into: int, position: int, length: int, width: int) -> int:
    """bfi."""
    position, length = position & 0xFF, length & 0xFF
    for place in range(length):
        if position + place >= width:
            break
        into = into & ~(1 << (position + place)) | (x >> place & 1) << (position + place)
    return into


def permute(a: int, b: int, selector: int) -> int:
    """prmt in its default mode."""
    source = [(a | b << 32) >> (8 * place) & 0xFF for place in range(8)]
    found = 0
    for place in range(4):
        choice = selector >> (4 * place) & 0xF
        byte = source[choice & 7]
        if choice & 8:
            byte = 0xFF if byte & 0x80 else 0
        found |= byte << (8 * place)
    return found


def logic3(a: int, b: int, c: int, table: int) -> int:
    """lop3."""
    found = 0
    for place in range(32):
        index = (a >> place & 1) << 2 | (b >> place & 1) << 1 | c >> place & 1
        found |= (table >> index & 1) << place
    return found


def funnel(a: int, b: int, n: int, *, left: bool, wrap: bool) -> int:
    """shf: a is the low word and b the high one."""
    n = n & 31 if wrap else min(n, 32)
    if left:
        return (b << n | a >> (32 - n)) & 0xFFFFFFFF
    return (b << (32 - n) | a >> n) & 0xFFFFFFFF
