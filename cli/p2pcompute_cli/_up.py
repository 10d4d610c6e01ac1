"""`p2pcompute up`: lend this machine."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from ._logs import log_options
from ._passwords import owner_password, password_option
from ._shared import checked_addresses, common_options, fail, network_options, registry_option, seconds, usd
from ._up_says import Voice

if TYPE_CHECKING:
    import trio

    from p2pcompute import Node
    from p2pcompute._ahead import WorkersAhead
    from p2pcompute._serving import ProviderRole
    from p2pcompute.execution import Layers, WorkerPool
    from p2pcompute.identity import AskPassword

__all__ = ["up"]


def _price(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    from p2pcompute._options import OptionError, price_per_unit_pusd

    if value is None:
        return None
    try:
        price_per_unit_pusd(value)
    except OptionError as exc:
        raise click.BadParameter(str(exc)) from exc
    return value


def _size(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    from p2pcompute._options import OptionError
    from p2pcompute._sizes import parse_size

    try:
        parse_size(int(value) if value.isdecimal() else value)
    except OptionError as exc:
        raise click.BadParameter(str(exc)) from exc
    return value


def _towers(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from p2pcompute._options import OptionError

    if not value:
        return value
    from p2pcompute._watching import towers

    try:
        return towers(value)
    except OptionError as exc:
        raise click.BadParameter(str(exc)) from exc


def _coin_price(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    from p2pcompute._options import parse_usd

    if value is None:
        return None
    try:
        return parse_usd(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


def _amount_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """An amount that goes on as text."""
    _coin_price(ctx, param, value)
    return value


@click.command(
    epilog="""\b
Examples:
  p2pcompute up
  p2pcompute up --price "0.08 USD" --region eu-west --threads 4
  p2pcompute up --profile second --listen /ip4/192.0.2.7/tcp/4001
  p2pcompute up --allow-program tiny-learner:infer
  p2pcompute up --network mynet --bootstrap /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…
  p2pcompute up --network mynet --chain https://rpc.example --hub 0x… --coin-price "3000 USD"

Ctrl-C stops billing, ends the tasks, claims what was earned and leaves; a second one leaves at once.
"""
)
@network_options
@password_option
@click.option(
    "--listen",
    metavar="MULTIADDR",
    multiple=True,
    default=("/ip4/127.0.0.1/tcp/0",),
    show_default=True,
    callback=checked_addresses,
    help="where to listen; may be repeated",
)
@click.option(
    "--price",
    metavar="AMOUNT",
    default="0.05 USD",
    show_default=True,
    callback=_price,
    help="for an hour of a reference core; rounded up to steps of 0.0036 USD",
)
@click.option(
    "--coin-price",
    metavar="AMOUNT",
    callback=_coin_price,
    help="what one of the chain's own coin is worth, such as '3000 USD': gas is then weighed against what a claim "
    "brings [only the amount unclaimed counts]",
)
@click.option(
    "--fp",
    type=click.Choice(["strict", "fast", "both"]),
    default="both",
    show_default=True,
    help="floating-point modes to sell: results equal to the bit, or near within a tolerance, which come sooner",
)
@click.option("--fast-price", metavar="AMOUNT", callback=_price, help="as --price, for fast mode [the same]")
@click.option(
    "--device",
    metavar="SLOT",
    default="cpu",
    show_default=True,
    help="what computes: cpu, or a GPU (cuda:0 for the first; `p2pcompute doctor` lists them)",
)
@click.option("--slots", type=click.IntRange(1, 64), default=1, show_default=True, help="chunks computed at once")
@click.option("--threads", type=click.IntRange(1, 1024), help="processor threads a slot [all cores over the slots]")
@click.option("--region", metavar="NAME", help="for requesters that ask for one")
@click.option(
    "--max-window",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="chunks that a requester who pays may owe",
)
@click.option(
    "--cache",
    metavar="SIZE",
    default="1 GiB",
    show_default=True,
    callback=_size,
    help="how much of the disk inputs of requesters who pay may take, so that they are not sent again: 16 MiB at "
    "least; 0 keeps none",
)
@click.option(
    "--allow-program",
    "allow_programs",
    metavar="[DIST:]NAME",
    multiple=True,
    help="let requesters run this program of a distribution that is installed here; may be repeated. `p2pcompute "
    "programs` lists them",
)
@click.option(
    "--program-data",
    metavar="NAME=DIR",
    multiple=True,
    help="a directory that an allowed program may read; may be repeated",
)
@click.option(
    "--allow-unsandboxed",
    is_flag=True,
    help="run strangers' kernels although this kernel has neither Landlock nor seccomp to lock them in: they could "
    "read your files and use your network",
)
@click.option(
    "--watch-for",
    metavar="PEER|ACCOUNT",
    multiple=True,
    help="be a watchtower for them: keep their vouchers, and claim them where a channel of theirs closes and they "
    "don't. This node pays the gas; may be repeated",
)
@click.option(
    "--watchtower",
    "watchtowers",
    metavar="MULTIADDR",
    multiple=True,
    callback=_towers,
    help="a peer that keeps this node's vouchers and was told to; may be repeated",
)
@click.option(
    "--arbiter",
    "arbiters",
    metavar="PEER",
    multiple=True,
    help="accept this peer as an arbiter: what it finds can take this account's stake (`p2pcompute stake`), at most "
    "--at-risk for one task; may be repeated [none: orders that name arbiters are refused]",
)
@click.option(
    "--at-risk",
    metavar="AMOUNT",
    callback=_amount_text,
    help="the most put at risk for one task [the least stake that counts]",
)
@registry_option
@click.option("--fault", metavar="lie:FRACTION[:ROWBYTES]", hidden=True)
@log_options
@common_options
def up(**options: Any) -> None:
    """Lend this machine: run a provider until Ctrl-C.

    Where no chain is named, kept in the profile or running for the network, an embedded development chain is started,
    with test money that is worth nothing. Whoever runs `p2pcompute up` next on this machine joins it.
    """
    import trio

    from p2pcompute._profile import Profile

    as_json, debug = options.pop("as_json"), options.pop("debug")
    settings = Settings(as_json=as_json, debug=debug, **options)
    voice = Voice(as_json=as_json, log_format=settings.log_format, log_level=settings.log_level, debug=debug)
    voice.set_up()
    try:
        # Before signals are caught: Ctrl-C has to end the prompt.
        password = owner_password(Profile.named(settings.profile).path, settings.password_file)
        trio.run(_main, settings, voice, password)
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug, advice=_advice(exc, settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of `up`."""

    profile: str
    network: str
    bootstrap: tuple[str, ...]
    chain: str | None
    hub: str | None
    token: str | None
    listen: tuple[str, ...]
    price: str
    coin_price: int | None
    fp: str
    fast_price: str | None
    device: str
    slots: int
    threads: int | None
    region: str | None
    max_window: int
    cache: str
    allow_programs: tuple[str, ...]
    program_data: tuple[str, ...]
    allow_unsandboxed: bool
    watch_for: tuple[str, ...]
    watchtowers: tuple[str, ...]
    arbiters: tuple[str, ...]
    at_risk: str | None
    registry: str | None
    fault: str | None
    password_file: str | None
    log_format: str
    log_level: str | None
    as_json: bool
    debug: bool


def _advice(error: BaseException, settings: Settings) -> str:
    from p2pcompute.errors import ProfileInUse

    from ._shared import whole_error

    if isinstance(whole_error(error), ProfileInUse):
        name = settings.profile
        return (
            f". `p2pcompute status --profile {name}` shows it; `p2pcompute up --profile {name}-2` lends with keys and "
            "a ledger of its own"
        )
    return ""


class _Stopper:
    """Ends what is going on at the first signal, in order, and the process at the second."""

    def __init__(self, voice: Voice) -> None:
        import trio

        self.scope = trio.CancelScope()  # what the first signal cancels
        self.asked = False
        self._voice = voice

    async def watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        import trio

        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self.asked:
                    os._exit(130)  # children see our end: the chain by its stdin, workers by PR_SET_PDEATHSIG
                self.asked = True
                self._voice.say("stopping", "stopping: no more work, then one checkpoint; again to leave at once")
                self.scope.cancel()


def _own_workers(settings: Settings) -> WorkerPool | None:
    """The workers that `Node.serve` is going to ask for."""
    from p2pcompute._ahead import open_pool

    if settings.device != "cpu":
        return None
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.slots)
    return open_pool(threads, settings.allow_unsandboxed)


def _load() -> None:
    """Import what a node needs.

    What is imported stays: the garbage collector, which goes through all of it some ten times meanwhile, is told so.
    """
    gc.disable()
    try:
        for module in ("p2pcompute._opening", "p2pcompute._serving", "p2pcompute.control"):
            import_module(module)
        gc.freeze()
    finally:
        gc.enable()


async def _main(settings: Settings, voice: Voice, password: AskPassword) -> None:
    import trio

    from p2pcompute._ahead import workers_ahead
    from p2pcompute._profile import NetworkDir

    stopper = _Stopper(voice)
    voice.say("starting", "starting", step="process")
    with ExitStack() as starting:
        starting.enter_context(NetworkDir.named(settings.network).announce_start())
        async with workers_ahead(_own_workers(settings)) as ahead, trio.open_nursery() as nursery:
            await nursery.start(stopper.watch)
            nursery.start_soon(trio.to_thread.run_sync, _load)  # while the chain and the worker start
            async with _chain(settings, stopper) as url:
                if not stopper.asked:
                    with stopper.scope:
                        await _lend(settings, voice, url, stopper, starting, password, ahead)
            nursery.cancel_scope.cancel()
    voice.say("stopped", "stopped")


@asynccontextmanager
async def _chain(settings: Settings, stopper: _Stopper) -> AsyncGenerator[str]:
    """The chain's URL; where none is named this machine's own, which lives until everything else has ended."""
    import trio

    from p2pcompute._chain_choice import kept_choice
    from p2pcompute._local_chain import serve_local_chain
    from p2pcompute._profile import NetworkDir, Profile

    named = settings.chain or os.environ.get("P2PCOMPUTE_CHAIN")
    kept = None if named else kept_choice(Profile.named(settings.profile))
    if named or kept is not None:
        yield named or (kept.url if kept is not None else "")
        return
    directory = NetworkDir.named(settings.network)
    async with trio.open_nursery() as nursery:
        url = ""
        with stopper.scope:
            url = await nursery.start(serve_local_chain, directory)
        stopper.scope = trio.CancelScope()
        yield url
        nursery.cancel_scope.cancel()


async def _lend(
    settings: Settings,
    voice: Voice,
    chain: str,
    stopper: _Stopper,
    starting: ExitStack,
    password: AskPassword,
    ahead: WorkersAhead | None,
) -> None:
    import trio

    import p2pcompute as p2p
    from p2pcompute._profile import Profile
    from p2pcompute.chain._endpoint import shown_endpoint
    from p2pcompute.testing._output_faults import parse_fault

    for address in settings.listen:
        if address.startswith(("/ip4/0.0.0.0/", "/ip6/::/")) and not settings.as_json:
            click.echo(
                f"warning: others are told to dial {address}, which no other machine can; name this machine's own "
                "address with --listen",
                err=True,
            )
    fault = parse_fault(settings.fault) if settings.fault else None
    data = {name: directory for name, _, directory in (text.partition("=") for text in settings.program_data)}
    profile = Profile.named(settings.profile)
    async with p2p.open_node(
        profile=profile,
        network=settings.network,
        bootstrap=settings.bootstrap,
        chain=chain,
        hub=settings.hub,
        token=settings.token,
        listen=settings.listen,
        registry=settings.registry,
        password=password,
    ) as node:
        node.workers_ahead = ahead
        started = time.monotonic()
        async with trio.open_nursery() as nursery:
            role = await nursery.start(
                partial(
                    node.serve,
                    price=settings.price,
                    coin_price_uusd=settings.coin_price,
                    fp=settings.fp,
                    fast_price=settings.fast_price,
                    device=settings.device,
                    slots=settings.slots,
                    threads=settings.threads,
                    region=settings.region,
                    max_window=settings.max_window,
                    cache=settings.cache,
                    programs=settings.allow_programs,
                    program_data=data,
                    allow_unsandboxed=settings.allow_unsandboxed,
                    watch_for=settings.watch_for,
                    watchtowers=settings.watchtowers,
                    arbiters=settings.arbiters,
                    at_risk=settings.at_risk,
                    fault=fault,
                    on_event=voice.show,
                )
            )
            stopper.scope = nursery.cancel_scope
            starting.close()
            await nursery.start(_control, node, profile)
            _ready(settings, voice, node, role, shown_endpoint(chain), await node.sandbox_layers())
            if settings.arbiters:
                await _warn_of_stake(node, settings.profile)
            await trio.sleep_forever()
        if voice.to_people:
            click.echo(f"lent for {seconds(time.monotonic() - started)}", err=True)


async def _warn_of_stake(node: Node, profile: str) -> None:
    """Say what is missing where arbiters are accepted and nothing is there that they could take."""
    from p2pcompute.errors import ChainError

    try:
        status = await (await node.staking()).status()
    except ChainError as exc:
        click.echo(f"warning: orders that name arbiters are refused: {exc}", err=True)
        return
    if not status.active or not status.at_risk_uusd:
        click.echo(
            "warning: orders that name arbiters are refused until something is at stake: "
            f"`p2pcompute stake '{status.min_stake_uusd / 1e6:g} USD' --profile {profile}`",
            err=True,
        )


async def _control(node: Node, profile: Any, *, task_status: trio.TaskStatus[None]) -> None:
    from p2pcompute.control import serve_control

    await serve_control(node, profile.control_socket, task_status=task_status)


def _ready(settings: Settings, voice: Voice, node: Node, role: ProviderRole, chain: str, layers: Layers | None) -> None:
    terms, wallet = node.services.hub.terms, node.services.account.address
    hub, credit = "0x" + bytes(terms.hub).hex(), role.options.credit
    facts = {
        "peer_id": node.peer_id,
        "addresses": list(node.addresses),
        "network": node.network,
        "profile": settings.profile,
        "device": {"kind": role.device.kind, "name": role.device.name, "score_milli": role.device.score_milli},
        "slots": role.device.slots,
        "price_pusd": role.price_pusd,
        "fast_price_pusd": role.fast_price_pusd,
        "modes": list(role.modes),
        "programs": [
            {"name": program.name, "distribution": program.distribution, "version": program.version}
            for program in role.programs
        ],
        "sandbox": None if layers is None else asdict(layers),
        "chain": {"url": chain, "chain_id": terms.chain_id, "hub": hub},
        "wallet": "0x" + wallet.hex(),
        "strangers_may_owe_uusd_an_hour": credit.provider_uusd,
        "one_stranger_may_owe_uusd": credit.peer_uusd,
        "pid": os.getpid(),
    }
    score = role.device.score_milli / 1000
    rows = [
        ("peer", node.peer_id),
        *(("address", address) for address in node.addresses),
        ("device", f"{role.device.name}: {score:.2f} reference cores a slot, slots: {role.device.slots}"),
        ("price", f"{usd(role.price_pusd * 3_600)} an hour of a reference core; full, {usd(_full_hour(role))} an hour"),
        ("modes", _modes_text(role)),
        *(("program", f"{p.distribution}:{p.name} {p.version}, files {p.digest.hex()[:16]}") for p in role.programs),
        ("sandbox", _sandbox_text(layers)),
        (
            "chain",
            f"{chain}, id {terms.chain_id}, hub {hub}"
            + (" (development chain: test money)" if node.services.test_money else ""),
        ),
        ("wallet", "0x" + wallet.hex()),
        (
            "at risk",
            f"strangers can owe you {usd(credit.provider_uusd)} of unpaid work an hour, one {usd(credit.peer_uusd)}",
        ),
    ]
    if settings.fault:
        rows.append(("FAULT", f"{settings.fault}: this node alters its results, and will be caught"))
    voice.ready(rows, node.network, facts)


def _modes_text(role: ProviderRole) -> str:
    dearer = role.fast_price_pusd != role.price_pusd and "fast" in role.modes
    refused = f"; NOT fast: {role.fast_refused}" if role.fast_refused else ""
    dear = f", fast for {usd(role.fast_price_pusd * 3_600)} an hour" if dearer else ""
    return " and ".join(role.modes) + dear + refused


def _sandbox_text(layers: Layers | None) -> str:
    if layers is None:
        return "not known yet: no worker is in reserve; ask `p2pcompute doctor`"
    names = [f"Landlock (ABI {layers.landlock_abi})"] if layers.landlock_abi else []
    names += ["seccomp allow-list"] if layers.seccomp else []
    names += ["bubblewrap"] if layers.bwrap else []
    missing = [] if layers.landlock_abi else ["Landlock"]
    missing += [] if layers.seccomp else ["seccomp"]
    text = ", ".join([*names, "resource limits"])
    return text + (f"; NOT IN FORCE: {', '.join(missing)}" if missing else "")


def _full_hour(role: ProviderRole) -> int:
    return role.price_pusd * 3_600 * role.device.score_milli * role.device.slots // 1000
