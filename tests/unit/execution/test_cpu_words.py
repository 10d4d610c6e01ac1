"""Functions of words: what they give, compiled, against what Python gives, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.execution._cpu_words import add, compiled_words, load, store, swap, swap_if

SEVEN = 7
NUMBERS = st.integers(-(2**31), 2**31 - 1)


def _mixed(a: int, b: int) -> int:
    c = a * SEVEN - (b & 1023)
    if (a < b and b != 5) or a == b:
        c += b << 2
    else:
        c -= a >> 3
        if c > 100:
            return -c
    while a > 0:
        a = a // 2
        if a == 9:
            break
        if a % 3 == 1:
            continue
        c += 1
    return (c | 1) + b


def _twice(a: int, b: int) -> int:
    return _mixed(a, b) + _mixed(b, a)


def _both(a: int) -> int:
    if a > 3:
        return 1
    else:  # noqa: RET505 - that is what is looked at
        return 2


def _tagged(board: int, place: int) -> int:
    store(board, place, 5)
    was = add(board, place, 4) + swap(board, place, 30)
    if swap_if(board, place, 31, 8) == 30 and swap_if(board, place, 30, 8) == 30:
        add(board, place + 1, was)
    return load(board, place)


def _second(board: int, a: int) -> int:
    if a or add(board, 0, 1):
        return 1
    return 0


mixed, twice, both, tagged, second = compiled_words(_mixed, _twice, _both, _tagged, _second)


@given(NUMBERS, NUMBERS)
def test_compiled_code_gives_what_python_gives(a: int, b: int) -> None:
    assert mixed(a, b) == _mixed(a, b)
    assert twice(a, b) == _twice(a, b)
    assert both(a) == _both(a)


def test_words_in_memory() -> None:
    words = np.zeros(4, np.int64)
    address: int = words.__array_interface__["data"][0]
    assert tagged(address, 1) == 8
    assert words.tolist() == [0, 8, 14, 0]


def test_what_comes_second_is_looked_at_where_it_matters() -> None:
    words = np.zeros(1, np.int64)
    address: int = words.__array_interface__["data"][0]
    assert [second(address, 1), second(address, 0), second(address, 0)] == [1, 0, 1]
    assert words.tolist() == [2]


def test_the_interpreter_runs_meanwhile() -> None:
    """Compiled code has no lock of the interpreter: two threads that wait for each other both end."""
    (meet,) = compiled_words(_meet)
    words = np.zeros(2, np.int64)
    address: int = words.__array_interface__["data"][0]
    other = threading.Thread(target=meet, args=(address, 0), daemon=True)
    other.start()
    meet(address, 1)
    other.join()
    assert words.tolist() == [1, 1]


def _meet(board: int, who: int) -> int:
    store(board, who, 1)
    while load(board, 1 - who) == 0:
        add(board, who, 0)
    return 0


def _floats(a: int) -> float:
    return a * 0.5


def _for(a: int) -> int:
    for _ in range(a):
        a += 1
    return a


def _stranger(a: int) -> int:
    return abs(a)


def _quotient(a: int) -> float:
    return a / 2


def _after(a: int) -> int:
    if a:
        return 1
    else:  # noqa: RET505 - that is what is looked at
        return 2
    return 3


def _two(a: int) -> bool:
    return 0 < a < 3


@pytest.mark.parametrize("function", [_floats, _for, _stranger, _quotient, _after, _two])
def test_what_is_no_function_of_words_is_refused(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=function.__name__):
        compiled_words(function)


def test_in_python_they_are_not_there() -> None:
    with pytest.raises(NotImplementedError, match="load"):
        load(0, 0)
