"""The demonstration: a picture rendered on a market of its own, with a cheat and a crash in it.

An embedded chain, four providers (each a process that runs `p2pcompute up`) and a requester in this process. One
provider alters a few pixels of what it computes; another is killed, with SIGKILL, at work, when half of the chunks
are done. The picture is finished all the same, everyone is paid for what was right and for nothing else, and what
was paid is on chain in the end.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute._profile import Profile
from p2pcompute.chain import ChainClient, DevChainProcess, HubClient, dev_info
from p2pcompute.errors import ConfigError
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.tasks import (
    Agreed,
    ChunkAssigned,
    ChunkDone,
    Compiling,
    LiarCaught,
    ProviderLost,
    ProviderReady,
    ProviderRefused,
    TaskEvent,
    TaskStarted,
)
from p2pcompute_protocols.ids import ChannelId, TaskId
from p2pcompute_protocols.money import owed_uusd

from ._cluster import UP, Cluster, NodeProcess, NodeSpec, open_cluster
from ._live import LiveView, usd
from ._pathtracer import Scene, scene
from ._pathtracer_scene import Picture
from ._picture_check import PictureCheck, check_picture, chunk_count
from ._report import ChainFacts, Outcome, build_report, report_table, write_report
from ._tally import Tally

__all__ = ["DEMO_NETWORK", "DemoOptions", "run_demo"]

DEMO_NETWORK: Final = "demo"
HONEST: Final = ("ada", "ben", "cleo", "dan", "eve", "finn", "gus")
LIAR: Final = "mallory"
_MARK: Final = "p2pcompute-demo"  # a file that says that the directory is ours to empty
_DRAW_S: Final = 0.25
_CHECKPOINT_S: Final = 20.0
_BREAK_OFF_S: Final = 1.0  # for what a demonstration that is broken off leaves: its chain goes with it


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to demonstrate.

    Attributes:
        out: the directory that gets render.png, report.json, logs and the nodes' own directories.
        picture: what to render.
        chunks: how many chunks to ask for.
        providers: how many, the liar included; at least 2, and 3 where one is to be killed.
        kill: whether one is killed half way.
        fault: how the liar lies, as `p2pcompute up --fault` takes it.
        price: of each provider, for an hour of a reference core.
        budget: of the task.
        samples: private samples a chunk.
        pixels: how many to compare with the NumPy reference.
        command: what runs a node.
    """

    out: Path
    picture: Picture = field(default_factory=lambda: Picture(side=8))
    chunks: int = 90
    providers: int = 4
    kill: bool = True
    fault: str = "lie:0.02:3"
    price: str = "0.90 USD"
    budget: str = "0.10 USD"
    samples: int = 512
    pixels: int = 4_096
    command: Sequence[str] = UP

    def __post_init__(self) -> None:
        if not 2 + self.kill <= self.providers <= len(HONEST) + 1:
            raise ConfigError(f"a demonstration takes {2 + self.kill} to {len(HONEST) + 1} providers")


async def run_demo(options: DemoOptions, view: LiveView) -> dict[str, Any]:
    """Run the demonstration and give the report; ``report["ok"]`` says whether everything came out as it should.

    Raises:
        NodeStartError: a provider did not start; says how its log ends.
        P2PComputeError: the task failed.

    Cancellation: all processes end within three seconds.
    """
    directory = _empty(options.out)
    with _home(directory / "nodes" / "requester"):
        demo = _Demo(options, view, directory)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(demo.draw)
            report = await demo.run()
            nursery.cancel_scope.cancel()
    return report


def _empty(out: Path) -> Path:
    """The output directory, without the nodes of an earlier demonstration; its picture stays until there is another."""
    out = out.absolute()
    mark = out / f".{_MARK}"
    if out.exists() and any(out.iterdir()) and not mark.exists():
        raise ConfigError(f"{out} holds other files; name a directory that is empty or does not exist, with --out")
    for name in ("nodes", "chain", "logs"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return out


@contextmanager
def _home(path: Path) -> Generator[None]:
    """The requester's home, for this process; nothing of the user's own nodes is read or written."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("P2PCOMPUTE_")}
    for name in kept:
        del os.environ[name]
    os.environ["P2PCOMPUTE_HOME"] = os.fspath(path)
    try:
        yield
    finally:
        del os.environ["P2PCOMPUTE_HOME"]
        os.environ.update(kept)


class _Demo:
    """One demonstration, from an empty directory to the report."""

    def __init__(self, options: DemoOptions, view: LiveView, directory: Path) -> None:
        self.options = options
        self.view = view
        self.directory = directory
        self.scene: Scene = scene(options.picture)
        self.tally: Tally | None = None
        self.nodes: dict[str, NodeProcess] = {}  # by peer ID
        self.killed: NodeProcess | None = None
        self.killed_at = 0
        self.started_s = 0.0
        self._said_risk = False

    async def draw(self) -> None:
        """Keep the live table up to date."""
        while True:
            self.view.draw(self.tally)
            await trio.sleep(_DRAW_S)

    async def run(self) -> dict[str, Any]:
        """All of it."""
        options, view = self.options, self.view
        begun_s = time.monotonic()
        self._status("starting a development chain, a requester and the providers")
        if not view.is_live:
            view.say(view.status)
        async with DevChainProcess(self.directory / "chain") as chain:
            view.say(f"development chain at {chain.url}")
            async with (
                _open_requester(chain.url) as node,
                open_cluster(
                    self.directory / "nodes",
                    logs=self.directory / "logs",
                    chain_url=chain.url,
                    network=DEMO_NETWORK,
                    command=options.command,
                    grace_s=_BREAK_OFF_S,
                ) as cluster,
            ):
                await self._start(cluster, node)
                setup_s = time.monotonic() - begun_s
                picture = await self._render(node)
                render_s = time.monotonic() - self.started_s
                file = self._save(picture)
                check = await self._check_and_stop(cluster, picture, node.addresses[:1])
                facts = await self._facts(chain.url, node)
                accepted, rejected = await self._receipts(node)
                requeued = node.services.coordinator.requeued
        assert self.tally is not None
        outcome = Outcome(
            tally=self.tally,
            picture=options.picture,
            file=file,
            chain=facts,
            check=check,
            liar=self._peer_of(LIAR),
            fault=options.fault,
            killed=self.killed.peer_id if self.killed is not None else None,
            kill_wanted=options.kill,
            killed_at=self.killed_at,
            requeued=requeued,
            accepted=accepted,
            rejected=rejected,
            per_chunk=options.samples,
            language=LANGUAGE_VERSION,
            exit_codes={node.spec.name: node.exit_code for node in cluster.nodes},
            complete=self.tally.phase == "complete" and self.tally.chunks == chunk_count(self.scene, options.chunks),
            seconds_setup=setup_s,
            seconds_render=render_s,
            seconds_total=time.monotonic() - begun_s,
        )
        report = build_report(outcome)
        write_report(report, self.directory / "report.json")
        view.show(report_table(report))
        return report

    def _status(self, text: str) -> None:
        self.view.status = text
        self.view.draw(self.tally)

    def _peer_of(self, name: str) -> str:
        return next(peer for peer, node in self.nodes.items() if node.spec.name == name)

    async def _start(self, cluster: Cluster, node: p2p.Node) -> None:
        options, view = self.options, self.view
        honest = [NodeSpec(name=name, price=options.price) for name in HONEST[: options.providers - 1]]
        # The liar is in the middle, so that it is nobody's first or last choice because of the order here.
        specs = [*honest[:1], NodeSpec(name=LIAR, price=options.price, fault=options.fault), *honest[1:]]
        started = await cluster.start(specs, bootstrap=node.addresses[:1])
        self.nodes = {each.peer_id: each for each in started}
        for each in started:
            score = each.facts.get("device", {}).get("score_milli", 0) / 1000
            view.say(
                f"{each.spec.name:8} …{each.peer_id[-8:]} ready: {score:.2f} reference cores, {options.price} an hour"
                + (f", and lies ({options.fault})" if each.spec.fault else "")
            )
        self.tally = Tally(
            names={each.peer_id: each.spec.name for each in sorted(started, key=lambda n: n.spec.name)},
            samples=options.samples,
        )

    async def _render(self, node: p2p.Node) -> np.ndarray[Any, Any]:
        options, known = self.options, self.options.picture
        self.view.say(
            f"rendering {known.width} × {known.height}, {known.side**2} samples a pixel; the requester pays "
            f"{options.budget} at most, whatever happens"
        )
        self.started_s = time.monotonic()
        picture: np.ndarray[Any, Any] = await node.run(
            self.scene.kernel,
            *self.scene.args,
            budget=options.budget,
            chunks=options.chunks,
            samples=options.samples,
            max_providers=options.providers,
            on_event=self._on_event,
        )
        self.view.say(f"the picture is complete after {time.monotonic() - self.started_s:.1f} s", style="bold green")
        return picture

    def _on_event(self, event: TaskEvent) -> None:
        assert self.tally is not None
        self.tally.take(event, time.monotonic() - self.started_s)
        self._tell(event, self.tally)
        if isinstance(event, ProviderReady | ProviderRefused | ProviderLost):
            self._line_up(event, self.tally)
        if isinstance(event, ChunkAssigned) and self.options.kill and self.killed is None:
            self._maybe_kill(event, self.tally)

    def _line_up(self, event: ProviderReady | ProviderRefused | ProviderLost, tally: Tally) -> None:
        """Hold whoever has compiled first until all have: a small picture would be done before the last one begins."""
        node = self.nodes.get(event.provider)
        if isinstance(event, ProviderReady) and node is not None:
            node.hold()
            tally.provider(event.provider).state = "waiting"
        if not any(provider.state == "compiling" for provider in tally.providers.values()):
            for peer_id, waiting in self.nodes.items():
                if tally.provider(peer_id).state == "waiting":
                    waiting.release()
                    tally.provider(peer_id).state = "working"

    def _maybe_kill(self, event: ChunkAssigned, tally: Tally) -> None:
        """Half way, kill an honest provider that has just been given another chunk, so that it can't be done yet."""
        victim = self.nodes.get(event.provider)
        provider = tally.provider(event.provider)
        enough = 2 if len(tally.done) * 10 < tally.chunks * 7 else 1
        if (
            len(tally.done) * 2 < tally.chunks
            or victim is None
            or victim.spec.fault is not None
            or len(provider.holds) < enough
        ):
            return
        victim.kill()
        self.killed, self.killed_at = victim, len(tally.done)
        provider.state = "killed"
        provider.last = f"held chunks {', '.join(map(str, sorted(provider.holds)))}"
        self.view.say(
            f"{provider.name} is killed with SIGKILL: it holds chunks {sorted(provider.holds)}, was paid "
            f"{provider.paid_uusd} µUSD",
            style="bold red",
        )

    def _tell(self, event: TaskEvent, tally: Tally) -> None:
        """Say what matters in a line of its own."""
        say = self.view.say
        match event:
            case Compiling():
                self._status("the requester compiles the kernel, times it and prices the order")
                if not self.view.is_live:
                    say(self.view.status)
            case TaskStarted():
                self._status("agreeing with providers, who compile the kernel")
                say(
                    f"{event.chunks} chunks; the work is estimated at {usd(event.estimate_uusd)}, a chunk at "
                    f"{usd(owed_uusd(event.estimate_uusd, 1_000_000) // max(1, event.chunks))}"
                )
            case Agreed():
                name = tally.provider(event.provider).name
                say(f"agreed with {name} in {event.negotiation_ms:.0f} ms; it compiles the kernel")
            case ProviderReady():
                self._say_risk(tally)
                self._status("rendering")
                say(f"{tally.provider(event.provider).name} has compiled it in {event.compile_ms / 1000:.1f} s")
            case ProviderRefused():
                say(f"{tally.provider(event.provider).name} refuses: {event.reason}", style="yellow")
            case LiarCaught():
                name = tally.provider(event.provider).name
                say(
                    f"{name} LIED: {event.mismatched} of {self.options.samples} private samples of chunk {event.index} "
                    f"differ. It gets no money for that window and no more work; {len(event.revoked)} finished chunks "
                    "of it are computed anew",
                    style="bold red",
                )
            case ProviderLost():
                name = tally.provider(event.provider).name
                if event.requeued or tally.provider(event.provider).state != "killed":
                    say(f"{name} is gone; chunks {list(event.requeued)} go to others", style="bold yellow")
            case ChunkDone():
                before, now = (len(tally.done) - 1) * 10 // tally.chunks, len(tally.done) * 10 // tally.chunks
                if now > before:
                    say(f"{len(tally.done)} of {tally.chunks} chunks, {usd(tally.paid_uusd)} paid")
            case _:
                pass

    def _say_risk(self, tally: Tally) -> None:
        """Before the first chunk is given out: what can be lost at most."""
        if not self._said_risk:
            self._said_risk = True
            self.view.say(
                f"at risk from here on: the requester can lose {usd(tally.requester_max_loss_uusd)} at most (a window "
                f"that is wrong where no sample looked, with each provider at once), a provider "
                f"{usd(tally.provider_max_loss_uusd)} at most (a window that is not paid)",
                style="bold",
            )

    def _save(self, picture: np.ndarray[Any, Any]) -> str:
        from PIL import Image

        path = self.directory / "render.png"
        Image.fromarray(picture, "RGB").save(path)
        self.view.say(f"saved {path}")
        return path.name

    async def _check_and_stop(
        self, cluster: Cluster, picture: np.ndarray[Any, Any], bootstrap: Sequence[str]
    ) -> PictureCheck:
        """Compare the picture; meanwhile the killed provider comes back; then all leave and claim what they earned."""
        options, tally, view = self.options, self.tally, self.view
        assert tally is not None
        self._status(f"comparing {options.pixels} pixels and more with the NumPy reference")
        liar = tally.provider(self._peer_of(LIAR))
        lied = liar.revoked | ({liar.caught_at} if liar.caught_at is not None else set())
        suspect = set(lied)
        for provider in tally.providers.values():
            suspect |= provider.requeued
        if self.killed is not None:
            suspect |= tally.provider(self.killed.peer_id).done
            again = await cluster.launch(self.killed.spec, bootstrap=bootstrap)
        else:
            again = None
        check = await check_picture(
            self.scene,
            picture,
            pixels=options.pixels,
            chunks=options.chunks,
            suspect=suspect,
            lied=lied,
            fault=options.fault,
        )
        view.say(
            f"{check.checked} pixels compared with the NumPy reference ({check.suspect} of suspect chunks, "
            f"{check.altered} that the liar had altered): {check.differ} differ",
            style="bold red" if check.differ else "bold green",
        )
        if again is not None:
            self._status(f"{again.spec.name}, killed before, starts again with the ledger that it had")
            await again.wait_ready()
            view.say(f"{again.spec.name} is back, with the vouchers that it held when it was killed")
        self._status("the providers stop, and claim on chain what they earned")
        await cluster.stop(_CHECKPOINT_S)
        view.say("the providers have claimed what they earned, and ended")
        return check

    async def _facts(self, chain_url: str, node: p2p.Node) -> ChainFacts:
        """What the hub holds now, read from the chain itself."""
        acked: dict[str, int] = {}
        claimed: dict[str, int] = {}
        claims: dict[str, int] = {}
        async with ChainClient(chain_url) as client:
            info = await dev_info(client)
            hub = HubClient(client, info.hub, info.token)
            last_block = await hub.block_number()
            for row in await node.services.ledger.channels_out():
                state = await hub.channel_state(ChannelId(row.channel))
                acked[row.peer] = acked.get(row.peer, 0) + row.acked_uusd
                claimed[row.peer] = claimed.get(row.peer, 0) + state.claimed_uusd
                found = await hub.claims_between(0, last_block, payee=row.payee)
                claims[row.peer] = len(found)
        return ChainFacts(
            hub="0x" + bytes(info.hub).hex(),
            chain_id=info.chain_id,
            last_block=last_block,
            acked_uusd=acked,
            claimed_uusd=claimed,
            claims=claims,
        )

    async def _receipts(self, node: p2p.Node) -> tuple[int, int]:
        """Receipts in the requester's ledger: accepted, and rejected."""
        assert self.tally is not None
        verdicts: list[str] = []
        for provider in self.tally.providers.values():
            for task in provider.tasks:
                verdicts += [row.verdict for row in await node.services.ledger.receipts(TaskId(task))]
        return verdicts.count("accepted"), verdicts.count("rejected")


@asynccontextmanager
async def _open_requester(chain_url: str) -> AsyncGenerator[p2p.Node]:
    async with p2p.open_node(profile=Profile.named("requester"), network=DEMO_NETWORK, chain=chain_url) as node:
        yield node
