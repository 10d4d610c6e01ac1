"""`p2pcompute testnet up N`: providers on this machine's network until Ctrl-C, each a process of its own."""

from __future__ import annotations

import json
import math
import shlex
import signal
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import trio
from rich.console import Console

from p2pcompute._local_chain import serve_local_chain
from p2pcompute._profile import NetworkDir, home_dir

from ._cluster import NodeProcess, NodeSpec, open_cluster
from ._testnet_view import TestnetView

__all__ = ["TestnetOptions", "run_testnet"]

_CLAIM_S: Final = 20.0  # for the last checkpoint of each provider, on a machine that is busy with all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class TestnetOptions:
    """What to run.

    Attributes:
        providers: how many.
        directory: their homes and logs; under P2PCOMPUTE_HOME where None.
        network: the network's name on this machine. Where one of that name runs already, they join it.
        price: for an hour of a reference core.
        threads: processor threads of each.
        as_json: one JSON object a line instead of text.
    """

    providers: int
    directory: Path | None = None
    network: str = "local"
    price: str = "0.05 USD"
    threads: int = 1
    as_json: bool = False

    __test__ = False  # pytest would take the name for a test's


class _Voice:
    """Says what happens: as lines above the live table, or as JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str, **event: Any) -> None:
        """One thing, as a line and as an event; without fields it is for people only."""
        if not self.as_json:
            self.console.print(text)
        elif event:
            click.echo(json.dumps(event))

    def on_event(self, node: NodeProcess, event: dict[str, Any]) -> None:
        """What a node wrote."""
        if self.as_json:
            click.echo(json.dumps({"node": node.spec.name, **event}))
            return
        match event.get("event"):
            case "task-started":
                self.say(f"{node.spec.name}: a task of …{str(event.get('requester', ''))[-8:]} has begun")
            case "task-ended":
                chunks = event.get("chunks", 0)
                self.say(f"{node.spec.name}: it has ended, {chunks} chunk{'' if chunks == 1 else 's'} done")
            case "checkpoint":
                claimed = event.get("channels", 0) != 0
                self.say(f"{node.spec.name}: {'claimed on chain what it earned' if claimed else 'claimed nothing'}")
            case _:
                pass  # "ready" is said for all of them; how each one stops is in its log


async def _tell_of_its_end(node: NodeProcess, voice: _Voice, announced: ExitStack) -> None:
    await node.wait_gone()
    announced.close()  # nobody finds it any more
    code = node.exit_code
    how = f"with exit code {code}"
    if code is not None and code < 0:
        known = {number.value: number.name for number in signal.Signals}  # not those of real time
        how = f"by {known.get(-code, f'signal {-code}')}"
    voice.say(
        f"{node.spec.name} has ended {how}; its log is {node.log}",
        node=node.spec.name,
        event="node-ended",
        exit_code=code,
        log=str(node.log),
    )


async def _serve_chain(here: NetworkDir, scope: trio.CancelScope, *, task_status: trio.TaskStatus[str]) -> None:
    with scope:
        await serve_local_chain(here, task_status=task_status)


@asynccontextmanager
async def _until_left(scope: trio.CancelScope) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        scope.cancel()


async def run_testnet(options: TestnetOptions) -> None:
    """Run until cancelled, or until every provider has ended.

    The chain and the providers are announced on this machine, so that `python yourfile.py`, `p2pcompute run` and
    further `p2pcompute up` find them without an address.

    Raises:
        NodeStartError: a provider did not get ready; says where its log is.
        ChainUnreachable: the development chain did not start.

    Cancellation: providers claim what they earned and end, within three seconds on a machine that is not busy; who
    takes more than twenty is killed.
    """
    here = NetworkDir.named(options.network)
    voice = _Voice(as_json=options.as_json)
    directory = (options.directory or home_dir() / "testnet" / options.network).absolute()
    chain = trio.CancelScope()
    async with trio.open_nursery() as nursery, _until_left(chain):
        url: str = await nursery.start(_serve_chain, here, chain)
        chain.shield = True  # providers that stop claim there
        voice.say(f"chain {url}", event="chain", url=url)
        async with open_cluster(
            directory,
            chain_url=url,
            network=options.network,
            on_event=voice.on_event,
            grace_s=_CLAIM_S,
        ) as cluster:
            width = int(math.log10(options.providers)) + 1
            specs = [
                NodeSpec(name=f"node-{number:0{width}d}", price=options.price, threads=options.threads)
                for number in range(1, options.providers + 1)
            ]
            # The first one knows nobody; the others join by it, and find each other through it.
            first = await cluster.start(specs[:1], bootstrap=[a for n in here.nodes() for a in n.addresses[:1]])
            rest = await cluster.start(specs[1:], bootstrap=first[0].addresses[:1]) if specs[1:] else []
            with ExitStack() as stack:
                announced: dict[str, ExitStack] = {}
                for node in (*first, *rest):
                    announced[node.peer_id] = stack.enter_context(ExitStack())
                    announced[node.peer_id].enter_context(here.announce_node(node.peer_id, node.addresses))
                    voice.say(f"{node.spec.name}  {node.addresses[0]}")
                ready = "the provider is" if options.providers == 1 else f"{options.providers} providers are"
                where = "" if options.network == "local" else f"P2PCOMPUTE_NETWORK={options.network} "
                voice.say(
                    f"{ready} ready; logs are in {cluster.logs}. In another terminal:\n"
                    f"    {where}python yourfile.py        {where}p2pcompute run yourfile.py\n"
                    f"    P2PCOMPUTE_HOME={shlex.quote(str(first[0].home))} p2pcompute status --profile "
                    f"{first[0].spec.name}\n"
                    "Ctrl-C stops them all",
                    event="testnet-ready",
                    providers=options.providers,
                    logs=str(cluster.logs),
                    network=options.network,
                )
                async with trio.open_nursery() as showing:
                    if not options.as_json:
                        showing.start_soon(TestnetView(nodes=(*first, *rest), console=voice.console).run)
                    async with trio.open_nursery() as waiting:
                        for node in (*first, *rest):
                            waiting.start_soon(_tell_of_its_end, node, voice, announced[node.peer_id])
                    showing.cancel_scope.cancel()
    click.echo("every provider has ended; their logs say why", err=True)
