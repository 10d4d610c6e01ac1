"""The synchronous door: one call opens a node, runs a kernel and closes the node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sniffio
import trio

from .errors import ConfigError, P2PComputeError

if TYPE_CHECKING:
    from ._requester import Runnable

__all__ = ["run"]

_NODE_OPTIONS = frozenset({"bootstrap", "chain", "listen", "network", "profile"})


def run(kernel: Runnable, *args: Any, **options: Any) -> Any:
    """Run a kernel on the network, from synchronous code.

    Args:
        kernel: what `p2p.kernel` made, or ``kernel[blocks, threads]``; or a program: ``p2p.program(name)[items]``.
        args: NumPy arrays, numbers, and `p2p.out(shape, dtype)` for each output.
        options: those of `Node.run` (budget, chunks, max_providers, deadline_s, samples, …) and those of `open_node`
            (profile, network, bootstrap, chain, listen).

    Returns:
        The output array, or a tuple of them.

    Raises:
        ConfigError: called from async code (use ``await node.run(…)`` there), or an option is unknown or out of range.
        P2PComputeError: as `Node.run` and `open_node`.

    Ctrl-C ends the task: providers stop and bill nothing more, and KeyboardInterrupt is raised.
    """
    from ._requester import RunOptions, bound, chosen
    from .node import open_node

    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        pass
    else:
        instead = (
            "open a node with `async with p2p.open_node() as node` and use `await node.run(…)`"
            if library == "trio"
            else "call it in a thread: `await asyncio.to_thread(p2p.run, …)`"
        )
        raise ConfigError(f"p2p.run was called from {library} code; {instead}")
    # What is wrong with the kernel or an option is said before anything is opened.
    node_options = {name: options.pop(name) for name in tuple(options) if name in _NODE_OPTIONS}
    bound(kernel, args, chosen(RunOptions, options))

    async def main() -> Any:
        async with open_node(**node_options) as node:
            return await node.run(kernel, *args, **options)

    try:
        return trio.run(main)
    except P2PComputeError as exc:
        # Thirty lines of trio and contextlib say nothing about the caller's code, and the message is what helps.
        raise exc.with_traceback(None) from None
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None
