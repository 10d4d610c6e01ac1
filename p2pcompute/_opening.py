"""Opening a node's real parts: profile, keys, ledger, chain, libp2p. `node.compose_node` puts them together."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import trio

from p2pcompute._ahead import KEPT_WORKERS, open_pool
from p2pcompute._books import RequesterLedgerBooks
from p2pcompute._chain_choice import choose_chain, hub_of, keep_choice, open_choice
from p2pcompute._fast_proof import kept_proof
from p2pcompute._funds import AccountFunds
from p2pcompute._log import log_event
from p2pcompute._profile import NetworkDir, Profile, home_dir, read_json, write_json
from p2pcompute._stakes import open_stake_parts
from p2pcompute.blobs import BlobServer
from p2pcompute.checking import EvidenceStore
from p2pcompute.errors import ChainError, ConfigError, NoProviderError, ProfileInUse
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.identity import AskPassword, Keyring, NodeKey, WalletKey, password_from_environment
from p2pcompute.market import AdBoard, AdRecordValidator, AdService, Discovery
from p2pcompute.node import NodeServices
from p2pcompute.overlay import Overlay, Requests, open_libp2p
from p2pcompute.payments import Outbox, Payer
from p2pcompute.storage import Ledger, open_ledger, open_watch_store
from p2pcompute.tasks import Coordinator
from p2pcompute.tasks._coordinator import HOW_TO_GET_ONE
from p2pcompute_protocols import channel
from p2pcompute_protocols._binding import SignerBinding, bind_signer
from p2pcompute_protocols.ads import Device
from p2pcompute_protocols.ids import PeerId

if TYPE_CHECKING:
    from pathlib import Path

    from p2pcompute.execution import Benchmark, FastFindings, WorkerPool
    from p2pcompute.execution import Device as Facts
    from p2pcompute.execution._program_files import InstalledProgram

__all__ = ["measure_device", "open_services", "prove_fast", "wire_services"]

_log = logging.getLogger("p2pcompute.node")

_BINDING_MS: Final = 30 * 24 * 3_600_000
_BINDING_LEFT_MS: Final = 7 * 24 * 3_600_000  # renewed when less is left, so that a deadline lies within it
_SCORE_LIFETIME_S: Final = 24 * 3_600  # a machine that was busy when it was measured is measured again


@asynccontextmanager
async def open_services(
    *,
    profile: str | Profile,
    network: str,
    bootstrap: Sequence[str],
    chain: str | None,
    hub: str | None = None,
    token: str | None = None,
    listen: Sequence[str],
    now_ms: Callable[[], int],
    registry: str | None = None,
    password: AskPassword = password_from_environment,
) -> AsyncGenerator[tuple[NodeServices, Callable[[], int]]]:
    """The parts of a node on a real network; see `open_node` for arguments and errors."""
    directory = NetworkDir.named(network)
    place = Profile.named(profile) if isinstance(profile, str) else profile
    choice = choose_chain(place, network, chain=chain, hub=hub, token=token)
    peers = _peers(directory, bootstrap)
    if choice is None and peers:
        raise ConfigError(
            "peers are named and no chain is: name the network's with --chain, P2PCOMPUTE_CHAIN or chain=…; "
            "`p2pcompute status` shows it where a node of it runs"
        )
    if choice is None:
        raise NoProviderError(
            f"No provider fits: no network {network!r} is running here. {_how_to_get_one(directory, network)}"
        )
    async with AsyncExitStack() as stack:
        connected = await stack.enter_async_context(open_choice(choice))
        spare = isinstance(profile, str) and connected.place.development
        place, ledger = await _open_profile(stack, place, now_ms, ephemeral=spare)
        key = NodeKey.load_or_create(place.node_key)
        keys = await trio.to_thread.run_sync(Keyring(place.path).open, password)
        await ledger.bind_chain(connected.terms)
        keep_choice(place, choice.url, connected.place)
        by = f"joining the network by {len(peers)} known" if peers else "opening the network; nobody else is known yet"
        log_event(_log, "starting", by, step="network")
        overlay = await stack.enter_async_context(
            open_libp2p(
                key,
                listen=listen,
                record_validator=AdRecordValidator(network=network, now_ms=now_ms),
                bootstrap=[address for address in peers if not address.endswith(f"/p2p/{key.peer_id}")],
            )
        )
        stack.enter_context(directory.announce_node(key.peer_id, overlay.addresses))
        services = wire_services(
            key=key,
            wallet=keys.signer,
            account=keys.account,
            overlay=overlay,
            ledger=ledger,
            hub=hub_of(connected, keys.account, clock_ms=now_ms),
            network=network,
            now_ms=now_ms,
            open_pool=open_pool,
            measure=measure_device,
            known_device=lambda: known_device(len(os.sched_getaffinity(0))),
            guess_milli=1_000 * len(os.sched_getaffinity(0)),
            cores=len(os.sched_getaffinity(0)),
            fund_wallet=AccountFunds(connected, keys.account, ledger).ensure,
            evidence=EvidenceStore(directory=place.evidence, run_sync=trio.to_thread.run_sync),
        )
        services.retired = keys.retired
        services.chain_url, services.test_money = choice.endpoint, connected.place.development
        services.blob_directory = place.path / "inputs"
        services.coordinator.advice = partial(_how_to_get_one, directory, network)
        services.open_device_pool, services.measure_on = _open_device_pool, measure_device
        services.prove_fast = prove_fast
        services.watch_store = partial(open_watch_store, place.path)
        services.stake = open_stake_parts(connected, keys.account, place, registry=registry, now_ms=now_ms)
        try:
            await services.outbox.look()
        except ChainError as exc:
            _log.warning("a transaction of an earlier run is still under way and is sent again later: %s", exc)
        yield services, now_ms


def _how_to_get_one(directory: NetworkDir, network: str) -> str:
    """What to do where there is no provider; to wait, where one of this machine is about to be one."""
    starting = directory.starting()
    if starting:
        return (
            f"`p2pcompute up` is starting here (process {starting[0]}) and lends once it has measured this machine: "
            "run this again in some seconds. No money has moved."
        )
    named = "" if network == "local" else f" --network {network}"
    return HOW_TO_GET_ONE.replace("`p2pcompute up`", f"`p2pcompute up{named}`")


def _peers(directory: NetworkDir, bootstrap: Sequence[str]) -> list[str]:
    found = [*bootstrap]
    found += [address for address in os.environ.get("P2PCOMPUTE_BOOTSTRAP", "").split(",") if address]
    for node in directory.nodes():
        found += node.addresses[:1]
    return list(dict.fromkeys(found))[:16]


async def _open_profile(
    stack: AsyncExitStack, place: Profile, now_ms: Callable[[], int], *, ephemeral: bool
) -> tuple[Profile, Ledger]:
    """The profile and its ledger; one that is gone afterwards where another process has it open and `ephemeral` is
    allowed. Money that is worth something must not end up there."""
    try:
        return place, await stack.enter_async_context(open_ledger(place.path, clock_ms=now_ms))
    except ProfileInUse:
        if not ephemeral:
            raise
        used, place = place, stack.enter_context(Profile.ephemeral())
        _log.info("another process has the profile %s open; using one that is gone afterwards", used.path.name)
        return place, await stack.enter_async_context(open_ledger(place.path, clock_ms=now_ms))


def wire_services(
    *,
    key: NodeKey,
    wallet: WalletKey,
    overlay: Overlay,
    ledger: Ledger,
    hub: Any,
    network: str,
    now_ms: Callable[[], int],
    open_pool: Callable[[int, bool], Any],
    measure: Callable[[Any], Awaitable[Device]],
    known_device: Callable[[], Device | None],
    guess_milli: int,
    fund_wallet: Callable[[int], Awaitable[None]],
    account: WalletKey | None = None,
    open_program_pool: Callable[[InstalledProgram, str | None, int, bool], Any] | None = None,
    cores: int = 1,
    evidence: EvidenceStore | None = None,
) -> NodeServices:
    """Connect given parts to each other; the same for real and for simulated ones.

    `open_program_pool` opens the workers of a program, with the directory that they may read, and so many in reserve;
    real ones where None. `cores` is what `guess_milli` is of. `account` holds the money, and is the account of `hub`;
    `wallet` itself where None.
    """
    account = wallet if account is None else account

    def bind() -> SignerBinding:
        now = now_ms()
        return bind_signer(
            network, key.peer_id, wallet, owner=account.address, sequence=now, expires_ms=now + _BINDING_MS
        )

    def binding() -> SignerBinding:
        if payer.binding.expires_ms - now_ms() < _BINDING_LEFT_MS:
            payer.binding = bind()  # an order comes before each hello to a new provider
        return payer.binding

    outbox = Outbox(ledger=ledger, hub=hub)
    requests = Requests(overlay)

    async def dial(peer: PeerId) -> Any:
        return await overlay.open_stream(peer, channel.PROTOCOL_ID)

    payer = Payer(ledger=ledger, hub=hub, outbox=outbox, wallet=wallet, binding=bind(), dial=dial)
    board = AdBoard(network=network, now_ms=now_ms)
    books = RequesterLedgerBooks(ledger, payer, fund_wallet)
    blobs = BlobServer()
    blobs.register(overlay)
    coordinator = Coordinator(
        overlay=overlay,
        blobs=blobs,
        requests=requests,
        network=network,
        signer=key,
        chain=hub.terms,
        binding=binding,
        board=board,
        discovery=Discovery(overlay=overlay, requests=requests, board=board, network=network, now_ms=now_ms),
        books=books,
        now_ms=now_ms,
        is_banned=books.banned.__contains__,
        evidence=evidence,
    )
    return NodeServices(
        key=key,
        wallet=wallet,
        account=account,
        overlay=overlay,
        requests=requests,
        ledger=ledger,
        hub=hub,
        outbox=outbox,
        binding=binding,
        payer=payer,
        board=board,
        ad_service=AdService(overlay=overlay, requests=requests, board=board, network=network, now_ms=now_ms),
        books=books,
        coordinator=coordinator,
        open_pool=open_pool,
        open_program_pool=open_program_pool or _open_program_pool,
        measure=measure,
        known_device=known_device,
        guess_milli=guess_milli,
        cores=cores,
        fund_wallet=fund_wallet,
        blobs=blobs,
    )


def _open_device_pool(device: str, allow_unsandboxed: bool) -> WorkerPool:
    """Workers on a GPU, ``cuda:0`` and so on. Raises `ConfigError`, `CudaNotInstalled` or `NoCudaDevice`."""
    from p2pcompute.execution import SandboxPolicy, WorkerPool, device_worker
    from p2pcompute.execution._pool import MAX_WORKERS

    return WorkerPool(
        threads=1,
        spare=1,
        keep=KEPT_WORKERS,
        max_sessions=MAX_WORKERS,
        policy=SandboxPolicy(allow_unsandboxed=allow_unsandboxed),
        program=device_worker(device),
    )


def _open_program_pool(program: InstalledProgram, data: str | None, spare: int, allow_unsandboxed: bool) -> WorkerPool:
    from p2pcompute.execution import SandboxPolicy, WorkerPool
    from p2pcompute.execution._pool import MAX_WORKERS
    from p2pcompute.execution._pool_program import program_worker

    return WorkerPool(
        threads=1,
        spare=spare,
        keep=1,  # one in reserve has imported it already
        max_sessions=MAX_WORKERS,
        policy=SandboxPolicy(allow_unsandboxed=allow_unsandboxed),
        program=program_worker(program, data=data),
    )


def known_device(threads: int, measured: Benchmark | None = None, *, slot: str = "cpu") -> Device | None:
    """`threads` of this machine's CPU, or the GPU that `slot` names, with the scores of an earlier measurement; None
    where there was none.

    `measured` is a new one; it is kept for the next time.
    """
    place = _kept_at(threads, slot)
    if place is None:
        return None
    facts, path, machine = place
    if measured is not None:
        write_json(path, {"machine": machine, "scores": measured.scores, "measured_s": int(time.time())})
    note = read_json(path)
    scores = _scores(note.get("scores")) if note is not None and note.get("machine") == machine else None
    measured_s = None if note is None else note.get("measured_s")
    if not scores or not isinstance(measured_s, int) or not 0 <= time.time() - measured_s < _SCORE_LIFETIME_S:
        return None
    return Device(
        kind=facts.kind,
        name="".join(c for c in facts.name if c.isprintable())[:48] or facts.kind,
        slots=1,
        memory_bytes=facts.memory_bytes,
        score_milli=dict(scores)[1],
        scores=scores,
    )


def _kept_at(threads: int, slot: str) -> tuple[Facts, Path, str] | None:
    """A device, the file of its measurement, and what that is of; None where there is no such device."""
    from p2pcompute.execution import probe_devices

    facts = next((device for device in probe_devices() if device.slot == slot), None)
    if facts is None:
        return None
    path = home_dir() / ("device.json" if slot == "cpu" else f"device-{slot.replace(':', '')}.json")
    # Another compiler, or the BLAS that NumPy brings, may compute other bits: what was measured and tested with the
    # last one says nothing of it.
    packages = "/".join(f"{package} {version(package)}" for package in ("numba", "llvmlite", "numpy"))
    machine = f"{facts.name}/{facts.cores}/{threads}/{LANGUAGE_VERSION}/{packages}"
    if slot != "cpu":
        machine += f"/numba-cuda {version('numba-cuda')}/driver {facts.driver}"
    return facts, path, machine


async def prove_fast(pool: WorkerPool, slot: str = "cpu") -> FastFindings:
    """How near this device's fast mode is to strict mode, tested in a worker where that is not known yet.

    Raises:
        FastSelfTestError: it is too far off.
    """
    from p2pcompute.execution import fast_self_test

    place = _kept_at(pool.threads, slot)

    async def test() -> FastFindings:
        log_event(_log, "starting", "testing fast mode (once a day)", step="fast mode")
        return await fast_self_test(pool)

    return await test() if place is None else await kept_proof(place[1], place[2], test)


def _scores(noted: object) -> tuple[tuple[int, int], ...] | None:
    """What a file says of scores; None where it is not what `known_device` writes."""
    if not isinstance(noted, list):
        return None
    pairs: dict[int, int] = {}
    for pair in noted:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n < 2**63 for n in pair)):
            return None
        pairs[pair[0]] = pair[1]
    return tuple(sorted(pairs.items()))[:16] if 1 in pairs else None


async def measure_device(pool: WorkerPool, slot: str = "cpu") -> Device:
    """The CPU of this machine, or the GPU whose workers `pool` has, and its scores, tested and measured in workers
    where they are not known yet.

    Raises:
        SelfTestError: it computes other bits than the kernel language defines.
    """
    from p2pcompute.execution import benchmark, self_test

    known = known_device(pool.threads, slot=slot)
    if known is None:
        log_event(_log, "starting", "testing and measuring this machine (once a day)", step="measuring")
        await self_test(pool)
        known = known_device(pool.threads, await benchmark(pool), slot=slot)
    if known is None:
        raise ConfigError(f"the measurement of this machine can't be kept in {home_dir()}; check its permissions")
    return known
