"""Results that are checked in one run of the requester's worker: how many, and which report is whose."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pcompute.checking import SampleReport, SampleRuns
from p2pcompute.tasks._coordinator import Coordinator
from p2pcompute.tasks._link import LiarError, Link
from p2pcompute.tasks._scheduler import ChunkScheduler
from p2pcompute_protocols.ids import PeerId


def link_that(check_s: float) -> tuple[Link, list[int], list[tuple[int, bytes]]]:
    """A link without a provider, whose checks take so long a chunk and find whatever is not b"good"; how many are
    checked at once, and what is handed over."""
    groups: list[int] = []
    done: list[tuple[int, bytes]] = []

    async def check(chunks: Sequence[tuple[int, Any]]) -> list[SampleReport]:
        groups.append(len(chunks))
        await trio.sleep(check_s * len(chunks))
        return [SampleReport(checked=1, mismatched=int(bytes(output[:4]) != b"good")) for _, output in chunks]

    async def deliver(_: Any, chunks: Sequence[tuple[int, Any, SampleReport]]) -> None:
        await trio.lowlevel.checkpoint()
        done.extend((index, bytes(output[:4])) for index, output, _ in chunks)

    link: Any = Link.__new__(Link)
    link.hooks = SimpleNamespace(check=check, done=deliver, checks_together=True)
    link.connection = SimpleNamespace(outstanding=set[int]())
    link._runs, link._check_s, link.window = SampleRuns(1), None, 256
    link._checked, link._unchecked, link.rejected, link.lie = [], 0, [], None
    link.provider, link._pay_now, link._wake = "p", trio.Event(), trio.Event()
    return link, groups, done


def came(index: int, output: bytes) -> Any:
    return SimpleNamespace(index=index, output=memoryview(output), receipt=b"", payload=None)


async def checked(link: Any, chunks: list[Any]) -> None:
    send, receive = trio.open_memory_channel[list[Any]](len(chunks))
    for chunk in chunks:
        send.send_nowait([chunk])
    send.close()
    await link._check(receive)


def test_a_lie_does_not_hide_behind_the_same_chunk_done_right() -> None:
    async def main() -> None:
        link, _, done = link_that(0.0)
        link._check_s = 0.0
        with pytest.raises(LiarError):
            await checked(link, [came(3, b"bad!"), came(3, b"good")])
        assert not done

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("check_s", "most"), [(0.0, 64), (0.01, 20), (0.15, 1), (20.0, 1)])
def test_no_more_are_checked_at_once_than_some_tenths_of_a_second_allow(check_s: float, most: int) -> None:
    async def main() -> None:
        link, groups, done = link_that(check_s)
        await checked(link, [came(index, b"good") for index in range(130)])
        assert [index for index, _ in done] == list(range(130))
        assert groups[0] == 1  # nothing is known yet
        assert max(groups) in (most, most - 1)  # what a check has taken is a difference of times

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_large_outputs_are_checked_one_by_one() -> None:
    async def main() -> None:
        link, groups, _ = link_that(0.0)
        await checked(link, [came(index, b"good" + bytes(3 << 20)) for index in range(4)])
        assert groups == [1] * 4

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("outstanding", "window", "groups", "first_s"),
    [
        (1, 256, [3, 1], 0.005),  # 5 ms behind the first result, and what came then is checked
        (0, 256, [1, 1, 1, 1], 0.0),  # the task waits for its end
        (1, 4, [2, 1, 1], 0.002),  # the provider waits for a voucher
        (1, 1, [1, 1, 1, 1], 0.0),
    ],
)
def test_a_check_waits_for_what_comes_with_a_result_unless_somebody_waits(
    outstanding: int, window: int, groups: list[int], first_s: float
) -> None:
    """Results that come after 0, 2, 4 and 102 ms."""

    async def main() -> None:
        link, found, done = link_that(0.0)
        untyped: Any = link
        untyped.connection.outstanding, untyped._check_s, untyped.window = set(range(outstanding)), 0.0, window
        deliver, times = untyped.hooks.done, list[float]()

        async def noted(*what: Any) -> None:
            times.append(trio.current_time() - began)
            await deliver(*what)

        untyped.hooks.done = noted
        send, receive = trio.open_memory_channel[list[Any]](4)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link._check, receive)
            for index, pause_s in enumerate((0.0, 0.002, 0.002, 0.098)):
                await trio.sleep(pause_s)
                send.send_nowait([came(index, b"good")])
            send.close()
        assert (found, len(done)) == (groups, 4)
        assert times[0] == pytest.approx(first_s)

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("together", "deliveries"), [(True, [[3, 4]]), (False, [[3], [4]])])
def test_of_a_chunk_that_came_twice_the_first_is_delivered(together: bool, deliveries: list[list[int]]) -> None:
    """Both are right, and both were checked at once."""

    async def main() -> None:
        given: list[list[int]] = []
        events: list[int] = []

        async def deliver(chunks: Sequence[tuple[int, Any]], _: Any) -> None:
            await trio.lowlevel.checkpoint()
            given.append([index for index, _ in chunks])
            assert bytes(chunks[0][1]) == b"first"

        state: Any = SimpleNamespace(
            scheduler=ChunkScheduler(8),
            deliver=deliver,
            deliver_together=together,
            emit=lambda event: events.append(event.index),
            wake=lambda: None,
            desk=None,
            check=None,
        )
        request: Any = SimpleNamespace(check=SimpleNamespace(per_chunk=0), splits=None, sample_every=1)
        agreement: Any = SimpleNamespace(terms=SimpleNamespace(provider="p"), task_id=b"")
        untyped: Any = Coordinator
        hooks = untyped._hooks(None, request, state, agreement)
        report = SampleReport(checked=0, mismatched=0)
        outputs = [(3, b"first"), (3, b"again"), (4, b"first")]
        await hooks.done(PeerId("p"), [(index, memoryview(output), report) for index, output in outputs])
        assert (given, events, state.scheduler.done) == (deliveries, [3, 4], 2)

    trio.run(main, clock=MockClock(autojump_threshold=0))
