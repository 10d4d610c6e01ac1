"""Mutants of bytes for decoders: how many of each, by which seed, and how they are made.

`make fuzz-nightly` tries ten times as many, by another seed each day. What fails prints its mutant, and the same
`P2PCOMPUTE_MUTANT_SEED` finds it again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["MUTANTS", "SEED", "mutants"]

MUTANTS: Final = int(os.environ.get("P2PCOMPUTE_MUTANTS", "100000"))  # of each decoder
SEED: Final = int(os.environ.get("P2PCOMPUTE_MUTANT_SEED", "20261122"))

# Heads of CBOR items: longer forms than are needed, without end, negative, tags, floats, null.
_HEADS: Final = bytes.fromhex("00 17 18 1b 20 40 5b 5f 60 78 80 9b 9f a0 bf c2 d8 f4 f6 f9 fb ff".replace(" ", ""))


def mutants(originals: Sequence[bytes], count: int = MUTANTS, *, heads: bytes = _HEADS) -> Iterator[bytes]:
    """`count` mutants of `originals` in turn, each with one to four changes, half of them among the first 64 bytes.

    Args:
        heads: bytes that mean something to the decoder, to be put in the place of others.
    """
    chance = random.Random(SEED)
    bits = chance.getrandbits
    kinds = len(originals)
    for number in range(count):
        mutant = bytearray(originals[number % kinds])
        for _ in range((1, 1, 2, 4)[bits(2)]):
            drawn = bits(64)  # one draw for all that a change needs
            size = len(mutant)
            at = (drawn >> 16 & 0xFFFFF) % (size + 1)
            if drawn & 8:
                at = min(at % 64, size)
            value, length = drawn >> 36 & 0xFF, 1 + (drawn >> 44 & 7)
            kind = drawn & 7
            if kind <= 1 and at < size:
                mutant[at] ^= 1 << (value & 7)
            elif kind == 2 and at < size:
                mutant[at] = value
            elif kind == 3 and at < size:
                mutant[at] = heads[value % len(heads)]
            elif kind == 4:
                mutant[at:at] = (drawn >> 48).to_bytes(2, "big")[: 1 + (length & 1)]
            elif kind == 5:
                del mutant[at : at + length]
            elif kind == 6:
                begin = (drawn >> 47) % (size + 1)
                mutant[at:at] = mutant[begin : begin + 2 * length]
            elif value < 64:
                del mutant[at:]
            else:  # two stretches change places
                mutant[at : at + 2 * length] = mutant[at + length : at + 2 * length] + mutant[at : at + length]
        yield bytes(mutant)
