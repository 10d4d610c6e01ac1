"""How a provider sends a chunk's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from p2pcompute._dialogue import Dialogue
from p2pcompute_protocols.task import DATA_BYTES, ResultData, ResultStart

__all__ = ["send_result"]

_SMALL_BYTES: Final = 64 * 1024


async def send_result(
    dialogue: Dialogue, start: ResultStart, outputs: Sequence[bytes], moved: Callable[[int], None]
) -> None:
    """Send `start` and what it announces; a small output in one write with it. `moved` is told of what has gone.

    Nobody else may speak on the stream meanwhile. Raises as `Dialogue.send`.
    """
    if len(outputs) == 1 and start.size <= _SMALL_BYTES:
        await dialogue.send(start, ResultData(data=outputs[0]))
        return
    await dialogue.send(start)
    # A piece at a time, so that a large output is not held twice.
    for output in outputs:
        for at in range(0, len(output), DATA_BYTES):
            await dialogue.send(ResultData(data=output[at : at + DATA_BYTES]))
            moved(DATA_BYTES)
