"""What a private sample can find: chances, how many samples they take, and what those cost.

Of `elements` of which `faked` are wrong, `samples` distinct ones are run again. If either set is drawn at random and
does not know the other, the chance that none is met is hypergeometric, whatever the other set looks like:

    C(elements - faked, samples) / C(elements, samples)

So what `draw_threads` does with runs of neighbours changes nothing for faults that are spread at random. Someone who
places them knows the rule but not the draw. At least three quarters of the samples are a simple random sample of what
lies outside of the runs, so the worst placement is met at least as well as by three quarters as many samples.

Sources: W. Feller, An Introduction to Probability Theory and Its Applications, vol. 1, II.6; chunks are independent,
because each is drawn on its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from p2pcompute.errors import ConfigError

__all__ = ["chance_over_chunks", "chance_to_catch", "cost_share", "faked_elements", "samples_for"]


def _miss(elements: int, faked: int, samples: int) -> float:
    """The chance that no sample meets a faked element: a product of as many factors as the smaller of the two has."""
    few, many = sorted((faked, samples))
    if few + many > elements:
        return 0.0
    return math.exp(math.fsum(math.log1p(-many / (elements - place)) for place in range(few)))


def _check(elements: int, samples: int) -> None:
    if elements < 1 or samples < 0:
        raise ConfigError(f"{samples} samples of {elements} elements; write 0 or more samples of 1 or more elements")


def faked_elements(elements: int, share: float) -> int:
    """How many elements a provider alters that alters `share` of them: one at least, if any.

    Raises:
        ConfigError: `share` is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"a share of {share}; write one from 0 to 1")
    return min(elements, max(1, round(share * elements))) if share else 0


def chance_to_catch(elements: int, faked: int, samples: int) -> float:
    """The chance that at least one of `samples` distinct elements is faked; 0.0 to 1.0, hypergeometric.

    Args:
        elements: of a chunk that own a row.
        faked: how many of them are wrong.
        samples: how many are run again; all of them where there are more samples than elements.

    Raises:
        ConfigError: a number is negative, or there are more faked elements than elements.
    """
    _check(elements, samples)
    if not 0 <= faked <= elements:
        raise ConfigError(f"{faked} faked of {elements} elements; write a number from 0 to {elements}")
    return 1.0 - _miss(elements, faked, min(samples, elements))


def chance_over_chunks(chunks: Iterable[tuple[int, int]], samples: int) -> float:
    """The chance that a task's samples meet a faked element in at least one of its chunks.

    Args:
        chunks: (elements, faked) of each chunk.
        samples: of each chunk.

    Raises:
        ConfigError: as `chance_to_catch`.
    """
    logs: list[float] = []
    for elements, faked in chunks:
        missed = 1.0 - chance_to_catch(elements, faked, samples)
        if missed == 0.0:
            return 1.0
        logs.append(math.log(missed))
    return -math.expm1(math.fsum(logs))


def samples_for(elements: int, share: float, chance: float, *, chunks: int = 1) -> int:
    """The fewest samples a chunk with which faults are caught with at least `chance`.

    Args:
        elements: of each chunk.
        share: of the elements of every chunk that is faked, above 0 and at most 1; one element of each at least.
        chance: above 0, at most 1.
        chunks: how many chunks the task has.

    Raises:
        ConfigError: an argument is out of its range.
    """
    _check(elements, 0)
    if not 0 < chance <= 1 or not share or chunks < 1:
        raise ConfigError("write a share and a chance above 0 and at most 1, and 1 or more chunks")
    faked = faked_elements(elements, share)
    low, high = 0, elements  # `high` samples are enough: they are all
    while high - low > 1:
        middle = (low + high) // 2
        missed = _miss(elements, faked, middle)
        if missed**chunks <= 1.0 - chance:
            high = middle
        else:
            low = middle
    return high


def cost_share(elements: int, samples: int) -> float:
    """What checking a chunk costs, as a share of computing it: elements run again for each that was computed.

    Raises:
        ConfigError: as `chance_to_catch`.
    """
    _check(elements, samples)
    return min(samples, elements) / elements
