"""The synchronous door: one call opens a node, runs a kernel and closes the node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import sniffio
import trio

from .errors import ConfigError, P2PComputeError

if TYPE_CHECKING:
    import numpy as np

    from ._requester import Runnable
    from ._rounds import Steps
    from .node import Node

__all__ = ["iterate", "run"]

T = TypeVar("T")


def run(kernel: Runnable, *args: Any, **options: Any) -> Any:
    """Run a kernel on the network, from synchronous code.

    Args:
        kernel: what `p2p.kernel` made, or ``kernel[blocks, threads]``; or a program: ``p2p.program(name)[items]``.
        args: NumPy arrays, numbers, and `p2p.out(shape, dtype)` for each output, `p2p.inout(array)` for each array that
            is changed in place.
        options: those of `Node.run` (budget, chunks, max_providers, deadline_s, samples, …) and those of `open_node`
            (profile, network, bootstrap, chain, hub, token, listen, registry, password, start_chain).

    Returns:
        The output array, or a tuple of them.

    Raises:
        ConfigError: called from async code (use ``await node.run(…)`` there), or an option is unknown or out of range.
        P2PComputeError: as `Node.run` and `open_node`.

    Ctrl-C ends the task: providers stop and bill nothing more, and KeyboardInterrupt is raised.
    """
    with _plain_interrupt():
        from ._options import NODE_OPTIONS, chosen
        from ._program_run import is_program
        from ._requester import RunOptions, bound, params_of

        _refuse_async("run")
        # What is wrong with the kernel or an option is said before anything is opened.
        node_options = _node_options(options)
        bound(kernel, args, chosen(RunOptions, options, besides=NODE_OPTIONS, params=params_of(kernel)))
        return _with_node(
            lambda node: node.run(kernel, *args, **options), node_options, computes=not is_program(kernel)
        )


def iterate(
    steps: Steps, *, rounds: int, state: Mapping[str, Any], args: Sequence[Any] = (), **options: Any
) -> dict[str, np.ndarray[Any, Any]]:
    """Repeat launches on a state that stays at its provider, from synchronous code.

    Args:
        steps, rounds, state, args: as of `Node.iterate`.
        options: those of `Node.iterate` (budget, rounds_per_chunk, check, …) and those of `open_node`.

    Returns:
        The last state, by name.

    Raises:
        ConfigError: called from async code (use ``await node.iterate(…)`` there), or an option is unknown or out of
            range.
        P2PComputeError: as `Node.iterate` and `open_node`.

    Ctrl-C ends the task, as in `run`.
    """
    with _plain_interrupt():
        from ._options import NODE_OPTIONS, chosen
        from ._rounds import RoundOptions, bind_rounds

        _refuse_async("iterate")
        node_options = _node_options(options)
        chosen(RoundOptions, options, besides=NODE_OPTIONS)
        bind_rounds(steps, rounds, state, args)
        return _with_node(
            lambda node: node.iterate(steps, rounds=rounds, state=state, args=args, **options),
            node_options,
            computes=True,
        )


@contextmanager
def _plain_interrupt() -> Generator[None]:
    """Ctrl-C, whatever was going on, as the caller's line and nothing of what is below it: it may come in the middle of
    an import, of a node that opens, or as one of many errors of tasks that end with it."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


def _node_options(options: dict[str, Any]) -> dict[str, Any]:
    from ._options import NODE_OPTIONS

    return {name: options.pop(name) for name in tuple(options) if name in NODE_OPTIONS}


def _refuse_async(what: str, how: str = "await") -> None:
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return
    instead = (
        f"open a node with `async with p2p.open_node() as node` and use `{how} node.{what}(…)`"
        if library == "trio"
        else f"call it in a thread: `await asyncio.to_thread(p2p.{what}, …)`"
        if how == "await"
        else "use it in a thread: `await asyncio.to_thread(…)` of what has the whole block"
    )
    raise ConfigError(f"p2p.{what} was called from {library} code; {instead}")


def _with_node(call: Callable[[Node], Awaitable[T]], node_options: dict[str, Any], *, computes: bool) -> T:
    """What `call` gives with a node of these options. `computes`: workers of the processor will be needed."""
    from ._ahead import open_pool, workers_ahead

    async def main() -> T:
        # There is one task, so none is made ready for the next.
        async with workers_ahead(open_pool(0, False, refill=False) if computes else None) as ahead:
            open_node = await trio.to_thread.run_sync(_load)  # the worker is started meanwhile
            async with open_node(**node_options) as node:
                node.workers_ahead = ahead
                return await call(node)

    try:
        return trio.run(main)
    except P2PComputeError as exc:
        # Thirty lines of trio and contextlib say nothing about the caller's code, and the message is what helps.
        raise exc.with_traceback(None) from None


def _load() -> Callable[..., AbstractAsyncContextManager[Node]]:
    """`open_node`, with all that it is going to need."""
    from .node import open_node

    import_module("._opening", __package__)

    return open_node
