"""The development chain as a service and as a program: `python -m p2pcompute.chain.devchain --data-dir D`.

It is an Ethereum chain for one machine: it mines each transaction at once, or by the clock, costs nothing, keeps what
it has acknowledged through crashes, and comes with a channel hub, a test token and a faucet. Several processes can
share it. It guards nothing of value: whoever can reach its port can use it.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from p2pcompute.errors import ConfigError, P2PComputeError, PortInUse, StorageError
from p2pcompute_protocols.ids import Address

from ._devchain_http import HttpLimits, serve_http_connections
from ._devchain_node import DEV_CHAIN_ID, DevNode
from ._devchain_reads import Allowance, ClientGone, Turns
from ._devchain_rpc import DevRpc

__all__ = ["DEV_CHAIN_ID", "DevChainInfo", "main", "serve_devchain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevChainInfo:
    """A development chain that serves.

    Attributes:
        url: its JSON-RPC endpoint.
        chain_id: its chain ID.
        hub: address of the channel hub.
        token: address of the test token.
    """

    url: str
    chain_id: int
    hub: Address
    token: Address


async def serve_devchain(
    data_dir: Path | str,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    block_time_s: float | None = None,
    limits: HttpLimits | None = None,
    task_status: trio.TaskStatus[DevChainInfo] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a development chain until cancelled.

    Each request body has a worker thread, and they take turns: one at a time, and a read makes way for others from
    time to time. On cancellation a block that is running is left to itself: it was not acknowledged, and may or may
    not be on the chain at the next start. Reads end within a moment, as they do when their client leaves.

    Args:
        data_dir: where its journal lies; a directory serves one chain at a time.
        host: the address to listen on.
        port: the TCP port, or 0 for any that is free.
        block_time_s: seconds between two blocks; transactions wait for the next one, and what waits is forgotten by a
            crash, as on other chains. None mines each as it comes.
        limits: bounds for clients.
        task_status: gets a `DevChainInfo` as soon as requests are answered.

    Raises:
        PortInUse: the port is taken.
        ProfileInUse: another chain runs from this directory.
        ConfigError: the directory or the address can't be used.
        StorageError: the journal is damaged, or can't be written any more.
    """
    listeners = await _listen(host, port)
    try:
        by_interval = block_time_s is not None
        node = await trio.to_thread.run_sync(partial(DevNode, Path(data_dir), by_interval=by_interval))
    except BaseException:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
        raise
    try:
        rpc = DevRpc(node)
        limits = limits or HttpLimits()
        turns = Turns()
        threads = trio.CapacityLimiter(2 * limits.connections)  # one for each that is served at all

        token = trio.lowlevel.current_trio_token()
        failures: list[StorageError] = []

        async with trio.open_nursery() as nursery:

            async def answer(body: bytes) -> bytes:
                allowance = Allowance(turns=turns)

                def work() -> bytes:
                    with turns.turn():
                        allowance.look_up()
                        if failures:
                            raise ClientGone
                        try:
                            return rpc.answer(body, allowance)
                        except StorageError as exc:
                            # What is in memory is ahead of the disk now: nothing more may be answered out of it,
                            # be it that this client has left and nobody waits for this thread.
                            failures.append(exc)
                            with suppress(trio.RunFinishedError):
                                trio.from_thread.run_sync(nursery.cancel_scope.cancel, trio_token=token)
                            raise ClientGone from exc

                try:
                    return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=threads)
                except ClientGone:
                    await trio.sleep_forever()
                    raise AssertionError("unreachable") from None
                finally:
                    allowance.gone.set()

            async def mine_by_interval(seconds: float) -> None:
                def work() -> None:
                    with turns.turn():
                        try:
                            if not failures:
                                node.tick()
                        except StorageError as exc:
                            failures.append(exc)

                while not failures:
                    await trio.sleep(seconds)
                    await trio.to_thread.run_sync(work)
                nursery.cancel_scope.cancel()

            if block_time_s is not None:
                nursery.start_soon(mine_by_interval, block_time_s)
            await nursery.start(partial(serve_http_connections, listeners, answer, limits=limits))
            bound = listeners[0].socket.getsockname()
            shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
            task_status.started(
                DevChainInfo(
                    url=f"http://{shown}:{bound[1]}",
                    chain_id=DEV_CHAIN_ID,
                    hub=node.hub,
                    token=node.token,
                )
            )
        if failures:
            raise failures[0]
    finally:
        node.close()


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is taken; use the chain that runs there, or give another --port "
                "(0 takes any that is free)"
            ) from exc
        raise ConfigError(f"can't listen on {host} port {port} ({exc}); give another --host") from exc


def _announce(path: Path, url: str) -> None:
    """Write the URL so that a reader finds all of it or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(url + "\n")
    os.replace(temporary, path)


async def _run(arguments: argparse.Namespace) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            info = await nursery.start(
                partial(serve_devchain, block_time_s=arguments.block_time),
                arguments.data_dir,
                arguments.host,
                arguments.port,
            )
            if arguments.announce is not None:
                _announce(arguments.announce, info.url)
            sys.stdout.write(info.url + "\n")
            sys.stdout.flush()
            if arguments.until_stdin_closes:
                nursery.start_soon(_stop_at_end_of_stdin, nursery.cancel_scope)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break


async def _stop_at_end_of_stdin(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        while await stdin.receive_some(1024):
            pass
    scope.cancel()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3_600:
        raise argparse.ArgumentTypeError("write 0.05 to 3600 seconds")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m p2pcompute.chain.devchain", description="An Ethereum chain for one machine."
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="where the chain is kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 takes any that is free (0)")
    parser.add_argument("--block-time", type=_seconds, metavar="SECONDS", help="mine by the clock (at once)")
    parser.add_argument("--announce", type=Path, help="file that gets the URL when the chain is ready")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="stop when whoever holds the other end of stdin ends"
    )
    arguments = parser.parse_args(argv)
    try:
        trio.run(_run, arguments)
    except BaseExceptionGroup as group:
        known, other = group.split(P2PComputeError)
        if known is None or other is not None:
            raise
        error: BaseException = known
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code if isinstance(error, P2PComputeError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
