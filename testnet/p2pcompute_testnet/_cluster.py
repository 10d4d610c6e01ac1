"""Providers on this machine, each a process of its own that runs `p2pcompute up`, as a user would.

Every node has its own home directory, session and log. Nothing of a cluster outlives it: leaving the context ends
the nodes in order, a node that dawdles is killed, and an owner that is killed takes its nodes along (`_leash`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from p2pcompute.errors import ConfigError

__all__ = ["UP", "Cluster", "NodeProcess", "NodeSpec", "NodeStartError", "open_cluster"]

UP: Final = (sys.executable, "-c", "import sys; from p2pcompute_cli.main import main; sys.exit(main())", "up")
_LEASH: Final = (sys.executable, "-m", "p2pcompute_testnet._leash")
_START_S: Final = 120.0
_STOP_S: Final = 2.0
_MAX_LINE: Final = 1 << 16
_TAIL_LINES: Final = 12
_DEVICE: Final = "device.json"  # in a node's home


class NodeStartError(ConfigError):
    """A node of the cluster did not get ready; the message ends with the last lines of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """A provider to start: its name and what it is told.

    Attributes:
        name: of its profile, its directory and its log: 1 to 32 of a-z, 0-9 and -.
        price: for an hour of a reference core.
        threads: processor threads of its worker.
        fault: how it cheats, as `p2pcompute up --fault` takes it; None for an honest one.
    """

    name: str
    price: str = "0.05 USD"
    threads: int = 1
    fault: str | None = None


@dataclass(slots=True, kw_only=True)
class NodeProcess:
    """One running node.

    Attributes:
        spec: what it was told.
        home: its P2PCOMPUTE_HOME.
        log: the file that holds what it wrote, JSON events and warnings.
        facts: what its "ready" event said: peer_id, addresses, device, wallet, chain and more.
        events: every event after that, oldest first.
        exit_code: once it has ended; negative for a signal, as in `subprocess`.
        killed: whether `kill` was called.
    """

    spec: NodeSpec
    home: Path
    log: Path
    process: trio.Process
    facts: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    killed: bool = False
    _ready: trio.Event = field(default_factory=trio.Event)
    _gone: trio.Event = field(default_factory=trio.Event)
    _reading: trio.CancelScope = field(default_factory=lambda: trio.CancelScope(shield=True))

    @property
    def peer_id(self) -> str:
        """Its peer ID; "" before it is ready."""
        return str(self.facts.get("peer_id", ""))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its multiaddrs; none before it is ready."""
        return tuple(str(address) for address in self.facts.get("addresses", ()))

    @property
    def exit_code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.returncode

    def tail(self) -> str:
        """The last lines of its log."""
        with suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:])
        return ""

    async def wait_ready(self) -> None:
        """Return once it has said that it is ready.

        Raises:
            NodeStartError: it ended before that, or takes too long.
        """
        with trio.move_on_after(_START_S) as patience:
            async with trio.open_nursery() as nursery:
                for event in (self._ready, self._gone):
                    nursery.start_soon(_wait_then_cancel, event, nursery.cancel_scope)
        if self._ready.is_set():
            return
        how = f"was not ready after {_START_S:g} s" if patience.cancelled_caught else "ended before it was ready"
        raise NodeStartError(f"the node {self.spec.name} {how}; its log, {self.log}, ends with:\n{self.tail()}")

    async def wait_gone(self) -> None:
        """Return once it has ended and all of its output was read."""
        await self._gone.wait()

    def kill(self) -> None:
        """SIGKILL to it and all in its process group, as a crash or a power cut would be. Does not wait."""
        self.killed = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def hold(self) -> None:
        """Stop its process (SIGSTOP) until `release`, as a machine that is asleep."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP)

    def release(self) -> None:
        """Let it go on."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)

    async def stop(self, grace_s: float = _STOP_S) -> None:
        """End it with SIGTERM: it claims what it earned and leaves; killed where that takes over `grace_s` seconds."""
        if self.process.returncode is None:
            self.process.terminate()
            self.release()  # a held one would not hear of it
        with trio.move_on_after(grace_s):
            await self.process.wait()
        if self.process.returncode is None:
            self.kill()
        with trio.CancelScope(shield=True):  # killed processes end at once
            await self.process.wait()

    def stop_reading(self) -> None:
        """Read no more of what it says."""
        self._reading.cancel()

    def close(self) -> None:
        """Close our ends of its pipes; it has ended."""
        for pipe in (self.process.stdin, self.process.stdout):
            if isinstance(pipe, trio.lowlevel.FdStream):
                pipe.close()

    async def follow(self, on_event: Callable[[NodeProcess, dict[str, Any]], None] | None) -> None:
        """Read its events until it ends; `on_event` gets each."""
        stdout = self.process.stdout
        assert stdout is not None
        rest = b""
        # Shielded: when the cluster is cancelled, what its nodes say last is still read. `stop_reading` ends it.
        with self._reading, self.log.open("ab", buffering=0) as log:
            async for data in stdout:
                log.write(data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line, on_event)
                rest = rest[-_MAX_LINE:]
        await self.process.wait()
        self._gone.set()

    def _take(self, line: bytes, on_event: Callable[[NodeProcess, dict[str, Any]], None] | None) -> None:
        try:
            event: Any = json.loads(line)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        if event.get("event") == "ready":
            self.facts = event
            self._ready.set()
        else:
            self.events.append(event)
        if on_event is not None:
            on_event(self, event)


async def _wait_then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


@dataclass(slots=True, kw_only=True)
class Cluster:
    """The nodes of one network on this machine. Made by `open_cluster`."""

    directory: Path
    logs: Path
    network: str
    chain_url: str
    command: Sequence[str]
    nursery: trio.Nursery
    on_event: Callable[[NodeProcess, dict[str, Any]], None] | None = None
    nodes: list[NodeProcess] = field(default_factory=list)

    async def start(self, specs: Sequence[NodeSpec], *, bootstrap: Sequence[str] = ()) -> list[NodeProcess]:
        """Start nodes side by side; returns once all are ready.

        All are on one machine, so the first one measures it, alone, and the others take its word.

        Args:
            specs: the nodes.
            bootstrap: multiaddrs of peers that they join by.

        Raises:
            NodeStartError: one of them did not get ready.
        """
        if len(specs) > 1 and self._measurement() is None:
            first = await self._start_together(specs[:1], bootstrap)
            return [*first, *await self._start_together(specs[1:], bootstrap)]
        return await self._start_together(specs, bootstrap)

    async def _start_together(self, specs: Sequence[NodeSpec], bootstrap: Sequence[str]) -> list[NodeProcess]:
        started = [await self.launch(spec, bootstrap=bootstrap) for spec in specs]
        failures: list[NodeStartError] = []

        async def wait(node: NodeProcess) -> None:
            try:
                await node.wait_ready()
            except NodeStartError as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for node in started:
                nursery.start_soon(wait, node)
        if failures:
            raise failures[0]
        return started

    async def launch(self, spec: NodeSpec, *, bootstrap: Sequence[str] = ()) -> NodeProcess:
        """Start one node and don't wait for it; a node of that name that ran before goes on with its ledger."""
        home = self.directory / spec.name
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(parents=True, exist_ok=True)
        measured = self._measurement()
        if measured is not None and not (home / _DEVICE).exists():
            shutil.copy(measured, home / _DEVICE)
        log = self.logs / f"{spec.name}.log"
        options = ["--json", "--profile", spec.name, "--network", self.network, "--chain", self.chain_url]
        options += ["--price", spec.price, "--threads", str(spec.threads)]
        for address in bootstrap:
            options += ["--bootstrap", address]
        if spec.fault is not None:
            options += ["--fault", spec.fault]
        with log.open("ab") as stderr:
            process = await trio.lowlevel.open_process(
                [*_LEASH, *self.command, *options],
                stdin=subprocess.PIPE,  # the leash: held, never written to
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(os.environ, home),
                start_new_session=True,  # a Ctrl-C at the terminal reaches the owner, who stops nodes in order
            )
        node = NodeProcess(spec=spec, home=home, log=log, process=process)
        self.nodes = [*(other for other in self.nodes if other.spec.name != spec.name), node]
        self.nursery.start_soon(node.follow, self.on_event)
        return node

    def _measurement(self) -> Path | None:
        """What a node of this cluster has found out about this machine."""
        return next((path for node in self.nodes if (path := node.home / _DEVICE).exists()), None)

    async def stop(self, grace_s: float = _STOP_S) -> None:
        """End all nodes at the same time; see `NodeProcess.stop`."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(node.stop, grace_s)


def _environment(base: Mapping[str, str], home: Path) -> dict[str, str]:
    """The environment of a node: ours, without what would make it part of another network."""
    kept = {name: value for name, value in base.items() if not name.startswith("P2PCOMPUTE_")}
    return {**kept, "P2PCOMPUTE_HOME": os.fspath(home), "PYTHONUNBUFFERED": "1"}


@asynccontextmanager
async def open_cluster(
    directory: Path,
    *,
    logs: Path | None = None,
    chain_url: str,
    network: str = "local",
    command: Sequence[str] = UP,
    on_event: Callable[[NodeProcess, dict[str, Any]], None] | None = None,
    grace_s: float = _STOP_S,
) -> AsyncGenerator[Cluster]:
    """A cluster without nodes; all that are started end with the context, within `grace_s` seconds and a little.

    Args:
        directory: gets a directory for each node; an absolute path.
        logs: gets a log for each node; `directory` / "logs" where None.
        chain_url: the chain that they settle on.
        network: the network's ID.
        command: what runs a node; it gets the options of `p2pcompute up`.
        on_event: gets each event that a node writes; must not block.
        grace_s: how long nodes may take to claim what they earned when the context is left; then they are killed.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        cluster = Cluster(
            directory=directory,
            logs=logs if logs is not None else directory / "logs",
            network=network,
            chain_url=chain_url,
            command=command,
            nursery=nursery,
            on_event=on_event,
        )
        try:
            yield cluster
        except BaseException as exc:  # noqa: BLE001  raised again below, outside of the nursery's group
            failure = exc
        with trio.CancelScope(shield=True):
            await cluster.stop(grace_s)
            with trio.move_on_after(1):  # what a node wrote last ends with it, or with whoever has inherited its pipe
                for node in cluster.nodes:
                    await node.wait_gone()
        for node in cluster.nodes:
            node.stop_reading()
        nursery.cancel_scope.cancel()
    for node in cluster.nodes:
        node.close()
    if failure is not None:
        raise failure
