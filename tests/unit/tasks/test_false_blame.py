"""What an honest requester meets at a provider that errs, or does again since it lost something, is not its fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pcompute.errors import ExecutionError, KernelError
from p2pcompute.node import Node
from p2pcompute.testing import _simulation
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.task import Assign, Cancel, Notice, ResultData, ResultStart

from ..market._harness import Market, Z, compute, in_memory
from ..market._rogues import Rogue, open_rogue
from ._attacks import Forgiven, check_standing, play, refused


class Faulty:
    """A back end that fails at the first kernel, with `error`."""

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error

    def __getattr__(self, name: str) -> Any:
        return getattr(_simulation._backend(), name)

    def compile(self, *args: Any) -> Any:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return _simulation._backend().compile(*args)


@pytest.mark.parametrize(
    "error", [KernelError("numba does not compile this kernel"), ExecutionError("no device")], ids=["refuses", "fails"]
)
def test_a_kernel_that_only_this_back_end_refuses(error: Exception) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(backend=Faulty(error)))
        async with open_rogue(market, connect=(provider,)) as honest:
            opened = await honest.open_task(provider)
            with pytest.raises(RemoteProtocolError, match=r"Refused|ChunkError"):
                await opened.start()
            check_standing(provider, honest.key.peer_id, Forgiven.OURS)
        requester = await market.node(connect=(provider,))
        assert np.array_equal(await compute(requester), Z)

    in_memory(scenario)


def test_a_chunk_that_is_assigned_again_for_its_lost_result() -> None:
    async def again(rogue: Rogue, provider: Node) -> None:
        opened = await rogue.open_task(provider)
        await opened.start()
        for _ in range(2):
            await opened.dialogue.send(Assign(index=0))
            while not isinstance(said := await opened.dialogue.receive(stall_s=60), ResultData):
                assert isinstance(said, Notice | ResultStart)
        await opened.dialogue.send(Cancel(index=0))  # it has crossed the answer
        await opened.stream.reset()

    play(again, Forgiven.CROSSED, price="0 USD")


def test_a_task_that_is_opened_again_behind_a_cut_line() -> None:
    async def again(rogue: Rogue, provider: Node) -> None:
        opened = await rogue.open_task(provider)
        await opened.start()
        await refused((await opened.again(provider)).dialogue, WireCode.REPLAYED)
        await opened.stream.reset()

    play(again, Forgiven.CROSSED)
