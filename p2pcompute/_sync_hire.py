"""Hiring from synchronous code: a node and a hire in a thread of their own, as long as a `with` block is open."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import trio

from ._sync import _node_options, _plain_interrupt, _refuse_async
from .errors import P2PComputeError, TaskError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from ._hired import Hired
    from ._requester import Runnable
    from .node import Node

__all__ = ["HiredHere", "hire"]


class HiredHere:
    """A provider that waits for calls, for synchronous code. Made by `p2pcompute.hire`; threads may share it."""

    def __init__(self, hired: Hired, token: trio.lowlevel.TrioToken) -> None:
        self._hired = hired
        self._token = token

    def run(self, *args: Any) -> Any:
        """Run the kernel with these inputs: arguments, result and errors are those of `Hired.run`."""
        try:
            return trio.from_thread.run(self._hired.run, *args, trio_token=self._token)
        except trio.RunFinishedError:
            raise TaskError("this hire has ended; hire again") from None
        except P2PComputeError as error:
            # What is below of the caller's line says nothing about its code, and the message is what helps.
            raise error.with_traceback(None) from None


@contextmanager
def hire(kernel: Runnable, *args: Any, **options: Any) -> Generator[HiredHere]:
    """Agree once with a provider, and then call a kernel there many times, from synchronous code:

        with p2p.hire(saxpy, p2p.out(y.shape, y.dtype), np.float32(2), x, y, budget="0.01 USD") as hired:
            z = hired.run(np.float32(3), x, y)

    Args:
        kernel, args: as of `Node.hire`.
        options: those of `Node.hire` (budget, chunks, deadline_s, samples, check, …) and those of `open_node`.

    Raises:
        ConfigError: called from async code (use ``async with node.hire(…)`` there), or an option is unknown or out of
            range.
        P2PComputeError: as `Node.hire` and `open_node`.

    The node is in a thread, which ends with the block. Ctrl-C and errors of the block end calls that are under way.
    """
    from ._hired import HireOptions, hireable
    from ._options import NODE_OPTIONS, chosen
    from ._requester import bound, params_of

    with _plain_interrupt():
        _refuse_async("hire", "async with")
        node_options = _node_options(options)
        checked = chosen(HireOptions, options, besides=NODE_OPTIONS, params=params_of(kernel))
        hireable(bound(kernel, args, checked.run_options()))
        with _Portal(lambda node: node.hire(kernel, *args, **options), node_options) as portal:
            yield portal.hired


class _Portal:
    """The thread of one hire."""

    def __init__(
        self, begin: Callable[[Node], AbstractAsyncContextManager[Hired]], node_options: dict[str, Any]
    ) -> None:
        self._begin = begin
        self._node_options = node_options
        self._ready = threading.Event()
        self._left = False
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._failure: BaseException | None = None
        # Launches are context variables, and a new thread would have none.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="p2pcompute hire"
        )
        self.hired: HiredHere

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001  whoever has opened the block gets it
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        from .node import open_node

        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            if self._left:
                return
            async with open_node(**self._node_options) as node, self._begin(node) as hired:
                self.hired = HiredHere(hired, self._token)
                self._ready.set()
                await self._stop.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self._end(self._cancel)
            raise
        if self._failure is not None:
            self._thread.join()
            raise self._failure.with_traceback(None) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(self._cancel if kind is not None else lambda: self._stop.set())
        if kind is None and self._failure is not None:
            raise self._failure.with_traceback(None) from None

    def _cancel(self) -> None:
        self._scope.cancel()

    def _end(self, how: Callable[[], None]) -> None:
        """Have the thread come to its end, and wait for that."""
        self._left = True
        if self._token is not None:
            with suppress(trio.RunFinishedError):  # it may have ended by itself
                self._token.run_sync_soon(how)
        self._thread.join()
