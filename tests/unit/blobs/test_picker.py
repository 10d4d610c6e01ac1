"""Which piece is asked for next: rare ones first, the requester's link spared, slow holders passed by."""

from __future__ import annotations

import math
import random

import pytest

from p2pcompute._options import OptionError
from p2pcompute._sizes import parse_size
from p2pcompute.blobs._picker import Picker, SourceState


def picker(count: int, *sources: SourceState, done: set[int] | None = None) -> Picker:
    made = Picker(count, set() if done is None else done, rng=random.Random(1), now=0.0)
    made.sources.extend(sources)
    return made


def peer(*held: int) -> SourceState:
    return SourceState(origin=False, held=set(held))


def origin(count: int) -> SourceState:
    return SourceState(origin=True, held=set(range(count)))


def test_every_piece_is_asked_for_once() -> None:
    one, two = peer(*range(8)), peer(*range(8))
    chooser = picker(8, one, two)
    asked = [chooser.pick(source, 0.0) for source in (one, two) * 4]
    assert sorted(index for index in asked if index is not None) == list(range(8))
    assert chooser.pick(one, 0.0) is None


def test_what_few_hold_comes_first() -> None:
    one, two, three = peer(0, 1, 2), peer(0, 1), peer(0, 1)
    assert picker(3, one, two, three).pick(one, 0.0) == 2


def test_the_origin_is_asked_for_what_nobody_else_has() -> None:
    first, other = origin(4), peer(0, 1, 2)
    chooser = picker(4, first, other)
    assert chooser.pick(first, 0.0) == 3
    assert chooser.pick(first, 0.0) is None
    assert chooser.look_again_s(first, 0.0) == 2.0
    assert chooser.pick(first, 2.0) in {0, 1, 2}  # the other one gives nothing


def test_what_waits_at_the_origin_is_taken_from_who_has_it_now() -> None:
    first, other = origin(2), peer()
    chooser = picker(2, first, other)
    assert {chooser.pick(first, 0.0), chooser.pick(first, 0.0)} == {0, 1}
    other.held.add(1)
    assert chooser.pick(other, 0.0) is None
    assert 0 < chooser.look_again_s(other, 0.0) < 0.1
    assert chooser.pick(other, 0.1) == 1
    assert chooser.is_needless(first, 1)
    assert not chooser.is_needless(first, 0)
    assert not chooser.is_needless(other, 1)


def test_a_slow_holder_loses_what_is_under_way() -> None:
    slow, fast = peer(0), peer(0)
    fast.piece_s = 0.1
    chooser = picker(1, slow, fast)
    assert chooser.pick(slow, 0.0) == 0
    assert chooser.pick(fast, 0.5) is None
    assert chooser.look_again_s(fast, 0.5) == 1.0
    assert chooser.pick(fast, 1.0) == 0
    third = peer(0)
    chooser.sources.append(third)
    assert chooser.pick(third, 100.0) is None  # two are enough
    assert chooser.look_again_s(third, 100.0) == math.inf


def test_who_is_lost_is_asked_for_nothing_and_others_get_its_pieces() -> None:
    gone, left = peer(0, 1), peer(0, 1)
    done: set[int] = set()
    chooser = picker(2, gone, left, done=done)
    index = chooser.pick(gone, 0.0)
    assert index is not None
    chooser.lost(gone)
    assert {chooser.pick(left, 0.0), chooser.pick(left, 0.0)} == {0, 1}
    chooser.came(left, index, 3.0)
    assert chooser.progress_s == 3.0
    done.add(index)
    chooser.came(left, index, 9.0)  # once more
    assert chooser.progress_s == 3.0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2 GiB", 2**31),
        ("1.5GiB", 3 * 2**29),
        ("500 MB", 500_000_000),
        ("0", 0),
        (0, 0),
        (2**24, 2**24),
        ("1 tib", 2**40),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "much", "-1 GiB", "1 GiBB", "1 MiB", True, None, 1.5, 2**60, "9" * 15 + " TiB", "1e9"]
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(OptionError, match="size"):
        parse_size(text)
