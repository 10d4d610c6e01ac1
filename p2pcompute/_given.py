"""Shapes, dtypes and names as users write them in calls, checked where they are written."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from p2pcompute._options import OptionError, said
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._language import DTYPES
from p2pcompute_protocols.limits import MAX_BLOB_BYTES

__all__ = ["check_challenge", "contiguous", "dtype_of", "lengths_of", "name_of", "refuse_dtype", "refuse_masked"]


def lengths_of(given: object, what: str, *, instead: str, least: int = 0, most: int = 2**63 - 1) -> tuple[int, ...]:
    """One whole number, or several of them, as a tuple.

    Args:
        given: an int, NumPy's or Python's, or a sequence or an array of such.
        what: what it is, for the error: it is followed by "is" and the value.
        instead: what to write.
        least, most: the range of each.

    Raises:
        KernelTypeError: it is something else, such as a float: a length is never rounded.
    """
    several: Sequence[Any]
    if isinstance(given, np.ndarray):
        several = given.tolist() if given.ndim == 1 else [given]
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray):
        several = given
    else:
        several = [given]
    found: list[int] = []
    for one in several:
        try:
            number = least - 1 if isinstance(one, bool | np.bool_) else operator.index(one)
        except TypeError:
            number = least - 1
        if not least <= number <= most:
            raise KernelTypeError(f"{what} is {said(given)}", instead=instead)
        found.append(number)
    return tuple(found)


def dtype_of(given: object, what: str) -> np.dtype[Any]:
    """A dtype that kernels know, in this machine's byte order.

    Raises:
        KernelTypeError: it is none; `what` begins the sentence, such as "no output has".
    """
    kind: np.dtype[Any] | None = None
    # NumPy takes None for float64, and more that nobody means: structures of fields, say.
    if isinstance(given, str | type | np.dtype):
        try:
            kind = np.dtype(given)
        except (TypeError, ValueError, SyntaxError):
            kind = None
    if kind is None or kind.name not in DTYPES:
        raise KernelTypeError(
            f"{what} the dtype {said(given) if kind is None else kind}", instead=f"use one of {', '.join(DTYPES)}"
        )
    return np.dtype(kind.name)


def check_challenge(provider: object, task: object, digests: object) -> None:
    """Check what a dispute is asked for with.

    Raises:
        OptionError: the provider is no text, the task is no ID, or these are no digests of two states at least.
    """
    if not isinstance(provider, str):
        raise OptionError(f"provider is {said(provider)}; write its peer ID, such as `Round.provider` has it")
    if not isinstance(task, bytes) or len(task) != 32:
        raise OptionError(f"task is {said(task)}; write the 32 bytes of its ID, as the event `Agreed` has them")
    several = list(digests) if isinstance(digests, Sequence) and not isinstance(digests, str | bytes) else []
    if len(several) < 2 or not all(isinstance(one, bytes) and len(one) == 32 for one in several):
        raise OptionError(
            f"digests is {said(digests)}; write a list of 32 bytes for each state, the one before the first round first"
        )


def refuse_masked(value: object, what: str) -> None:
    """Raise KernelTypeError for an array with a mask, such as `errors.Partial` has: kernels would see what is behind
    it."""
    if isinstance(value, np.ma.MaskedArray):
        raise KernelTypeError(
            f"{what} has a mask, which kernels don't know", instead="pass its .filled(value), and the mask by itself"
        )


def refuse_dtype(kind: np.dtype[Any], reason: str) -> None:
    """Raise KernelTypeError, for `reason`, for a dtype that kernels don't know, or in another machine's byte order."""
    if kind.name not in DTYPES:
        raise KernelTypeError(reason, instead=f"use one of {', '.join(DTYPES)}")
    if not kind.isnative:
        raise KernelTypeError(reason, instead=f"pass array.astype(np.{kind.name}), in this machine's byte order")


def contiguous(
    array: np.ndarray[Any, Any], what: str, *, most: int = MAX_BLOB_BYTES, further: str = ""
) -> np.ndarray[Any, Any]:
    """An array in C order: itself, or a copy.

    Args:
        array: any.
        what: what it is, for the error.
        most: bytes that are copied at most: more are sent in no call.
        further: what else to write where it has more.

    Raises:
        KernelTypeError: it has more. What NumPy's broadcasting gives may be larger than all memory.
    """
    if array.nbytes > most and not array.flags.c_contiguous:
        raise KernelTypeError(
            f"{what} has {array.nbytes} bytes and is not in C order: all of it would be copied",
            instead=f"pass a part of it, of at most {most} bytes{further}",
        )
    return np.ascontiguousarray(array)


def name_of(given: object, call: str) -> str:
    """The name of an array of the state, in a call such as ``p2p.new``.

    Raises:
        KernelTypeError: it is no text.
    """
    if not isinstance(given, str) or not given:
        raise KernelTypeError(f"{call} takes a name, not {said(given)}", instead=f'write {call}("x") for the array x')
    return given
