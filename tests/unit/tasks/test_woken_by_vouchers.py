"""What computes chunks is woken by a voucher where it waits for one, or has a larger window to tell of."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.tasks._provider_session import Session
from p2pcompute_protocols.task import TaskState


@pytest.mark.parametrize(
    ("queued", "window", "woken"),
    [((), 8, False), ((3,), 8, True), ((), 16, True)],
    ids=["nothing to do", "a chunk waits", "the window grew"],
)
def test_a_voucher_wakes_whoever_waits_for_it(queued: tuple[int, ...], window: int, woken: bool) -> None:
    async def wait_changed() -> None:
        if account.seen:
            await trio.sleep_forever()
        account.seen, account.window = True, window

    account: Any = SimpleNamespace(window=8, seen=False, wait_changed=wait_changed)
    session: Any = Session.__new__(Session)
    session.wake, session.queue, session._notice = trio.Event(), deque(queued), None
    session.connection = SimpleNamespace(state=TaskState.RUNNING)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session._notify_window, account)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert session.wake.is_set() == woken
    assert (session._notice is not None) == (window != 8)
