"""What is no number, and names that don't fit a shape, are refused where they stand and in words about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import KernelSource
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest

NO_NUMBERS = {
    "l = [1, 2, 3]; v = l[0]": "a list is not in the kernel language",
    "l = {1: 2}; v = l[1]": "a dict is not in the kernel language",
    "l = [k for k in range(3)]; v = l[0]": "a list comprehension is not in the kernel language",
    "l = 'ab'; v = l[0]": "text is not in the kernel language",
    "z = 1j; v = z.real": "a complex constant is not in the kernel language",
    "z = 1; v = z[0]": "z is no array",
}


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_refused_where_it_is_assigned(text: str) -> None:
    assigned, used = text.split("; ")
    source = f"def kern(out):\n    i = cuda.grid(1)\n    {assigned}\n    {used}\n    out[i] = v\n"
    with pytest.raises(KernelError) as refused:
        admit(KernelSource(text=source, entry="kern", digest=source_digest("kern", source)))
    assert refused.value.reason == NO_NUMBERS[text]
    assert refused.value.line == (4 if "z[0]" in used else 3)


@p2p.kernel
def two_names(result: Any, x: Any) -> None:
    h, w = x.shape
    result[cuda.grid(1)] = h * w


@pytest.mark.parametrize(
    ("shape", "said"),
    [((4,), "x has 1 axis and 2 names stand here"), ((2, 3, 4), "x has 3 axes and 2 names stand here")],
)
def test_names_for_a_shape_of_other_axes(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(KernelTypeError) as refused:
        two_names[1, 4].bind(p2p.out(4, np.int64), np.zeros(shape, np.float32))
    assert refused.value.reason == said
    assert refused.value.instead == "give each axis one name, or write x.shape[0]"
