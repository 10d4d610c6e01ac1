"""Faults that a provider can be given: exactly as many wrong rows as were asked for, each by one unit."""

from __future__ import annotations

import numpy as np
import pytest

from p2pcompute.errors import ConfigError
from p2pcompute.testing._output_faults import lie, parse_fault


@pytest.mark.parametrize("row_bytes", [1, 2, 3, 4, 7, 8, 12])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 1.0])
def test_that_fraction_of_the_rows_differs(row_bytes: int, fraction: float) -> None:
    rows = 1_000
    before = np.random.default_rng(1).integers(0, 256, rows * row_bytes, dtype=np.uint8)
    after = np.frombuffer(lie(fraction, row_bytes)(before.tobytes(), 3), dtype=np.uint8)
    differs = (after != before).reshape(rows, row_bytes).any(axis=1)
    assert int(differs.sum()) == round(fraction * rows)


def test_by_one_unit() -> None:
    pixels = np.full((50, 3), 255, dtype=np.uint8)
    lied = np.frombuffer(parse_fault("lie:1:3")(pixels.tobytes(), 0), dtype=np.uint8).reshape(50, 3)
    assert (lied == [0, 255, 255]).all()  # with wrap-around
    ints = np.array([-1, 0, 255, 2**31 - 1], dtype=np.int32)
    lied = np.frombuffer(parse_fault("lie:1:4")(ints.tobytes(), 0), dtype=np.int32)
    assert lied.tolist() == [0, 1, 256, -(2**31)]
    floats = np.array([1.0, -1.0, 0.0], dtype=np.float64)
    lied = np.frombuffer(parse_fault("lie:1.0:8")(floats.tobytes(), 0), dtype=np.float64)
    away = [np.inf, -np.inf, np.inf]
    assert (lied == np.nextafter(floats, away)).all()


def test_the_same_chunk_lies_the_same_way_and_another_in_another() -> None:
    fault, output = lie(0.02), bytes(5_000)
    assert fault(output, 7) == fault(output, 7)
    assert fault(output, 7) != fault(output, 8)


def test_small_outputs() -> None:
    assert lie(0.001)(b"", 0) == b""
    assert lie(0.5, 8)(b"short", 0) == b"short"
    assert lie(0.000_1, 4)(bytes(7), 0) == b"\x01" + bytes(6)  # at least one row; the rest after it is untouched


@pytest.mark.parametrize(
    "text",
    [
        *("", "lie", "lie:", "lie:x", "lie:0", "lie:-1", "lie:1.5", "lie:nan", "lie:inf"),
        *("truth:1", "lie:1:0", "lie:1:x", "lie:1:2:3", "lie:1:9999999"),
    ],
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="lie:FRACTION"):
        parse_fault(text)
