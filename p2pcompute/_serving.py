"""The provider's side of a node: measure, advertise, bid, compute, be paid, checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Final

import trio

from p2pcompute._stakes import arbiter_peers, make_pledges, stake_service
from p2pcompute._watching import serve_watching, towers, watched
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.market import AD_LIFETIME_MS, AdService, FixedPricePolicy, NegotiationService
from p2pcompute.payments import CreditBook, CreditPolicy, Payee, SettlePolicy, Settler, subnet_of
from p2pcompute.tasks import Guest, TaskService
from p2pcompute.tasks._fetching import BlobExchange
from p2pcompute.tasks._turns import LINGER_S, Turns
from p2pcompute_protocols import ads, channel, task
from p2pcompute_protocols.ads import Availability, CapabilityAd, Device, PricedOption
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_NAME
from p2pcompute_protocols.money import PUSD_PER_UUSD
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.work import ProgramRef

from ._books import ProviderLedgerBooks
from ._fast_proof import ModesSold, check_tolerance
from ._options import OptionError, callback, flag, one_of, parse_usd, price_per_unit_pusd, said, whole
from ._provider_events import ProviderEvent, WatchedBooks
from ._sizes import DEFAULT_CACHE, parse_size

if TYPE_CHECKING:
    from p2pcompute.execution import WorkerPool
    from p2pcompute.overlay import OverlayStream
    from p2pcompute.tasks._provider import OutputFault

    from .node import Node

__all__ = ["DEFAULT_PRICE", "AllowedProgram", "ProviderOptions", "ProviderRole"]

DEFAULT_PRICE: Final = "0.05 USD"
_DEVICE: Final = re.compile(r"cpu|cuda:(0|[1-9][0-9]?)")
_FAREWELL_S: Final = 0.5  # for telling requesters that this node stops
_MAX_SLOTS: Final = 64
_MAX_TASKS: Final = 62  # a worker each, of the pool's 64; two are left for what this node buys
_MAX_WINDOW: Final = 64  # of chunks of any length; an ad may say up to 256
_MAX_PROGRAMS: Final = 16  # each has a worker in reserve, and a feature in the ad, which holds 32
_NEWCOMERS_MIN_BYTES: Final = 64 * 1024 * 1024  # of inputs that newcomers' tasks may hold on the smallest machine


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions:
    """What a provider sells.

    Attributes:
        price: USD for an hour of a reference core (a device that is twice as fast earns twice as much an hour).
        fp: the floating-point modes that are sold: "strict", "fast" (docs/fast.md) or "both". A machine whose fast
            mode is too far off sells strict mode only, or nothing where "fast" is all that was wanted.
        fast_price: as `price`, for fast mode; None takes the same.
        device: what computes: ``cpu``, or a GPU by its place on the bus, ``cuda:0``.
        slots: chunks computed at once.
        threads: processor threads of each worker; None takes all cores over the slots.
        max_window: chunks that a paying requester may owe at most, whatever their length; more where they are short, up
            to 20 ms of a reference core together (`widest_window`).
        allow_unsandboxed: run strangers' kernels although this kernel has neither Landlock nor seccomp.
        credit: limits of what strangers may owe.
        region: free text for requesters that ask for one.
        programs: programs of installed distributions that requesters may have run, by name or ``distribution:name``;
            none where nothing is said.
        program_data: by the name of a program, written as in `programs`, a directory of this machine that it may read.
        cache: how much of the disk inputs may take that requesters who have paid before have sent, such as "4 GiB"; 0
            keeps none. They are found again after a restart; the least recently used make room.
        fault: alters outputs, for tests and demonstrations of what checking catches.
        claim_above_uusd: unclaimed micro-USD from which a claim is made, whatever gas costs.
        coin_price_uusd: what one of the chain's own coin is worth, in micro-USD; gas is then weighed against what a
            claim brings. None where only `claim_above_uusd` is to count.
        watch_for: peers and accounts (0x…) for whom this node is a watchtower: it keeps their vouchers, and claims
            them, at its own cost for gas, where a channel of theirs closes and they don't.
        watchtowers: multiaddrs of peers that do so for this node; each gets the newest vouchers within half a minute.
        arbiters: peers (IDs or multiaddrs) that this node accepts as arbiters, 16 at most: what they find can take its
            stake. Orders that name others are refused, and all that name any where there is none.
        at_risk: the most that it puts at risk for one task; the least stake of the registry where None.
        on_event: gets every `ProviderEvent` (`p2pcompute.events`); must not block.

    Raises:
        OptionError: one of them is out of its range; says which range it has. Also a ValueError.
    """

    price: str | int | float = DEFAULT_PRICE
    fp: str = "both"
    fast_price: str | int | float | None = None
    device: str = "cpu"
    slots: int = 1
    threads: int | None = None
    max_window: int = 8
    allow_unsandboxed: bool = False
    credit: CreditPolicy = CreditPolicy()  # noqa: RUF009  frozen
    region: str | None = None
    programs: Sequence[str] = ()
    program_data: Mapping[str, str] = field(default_factory=dict[str, str])
    cache: str | int = DEFAULT_CACHE
    fault: OutputFault | None = None
    claim_above_uusd: int = 1_000_000
    coin_price_uusd: int | None = None
    watch_for: Sequence[str] = ()
    watchtowers: Sequence[str] = ()
    arbiters: Sequence[str] = ()
    at_risk: str | int | float | None = None
    on_event: Callable[[ProviderEvent], None] | None = None

    def __post_init__(self) -> None:
        price_per_unit_pusd(self.price)
        one_of(self, "fp", "strict", "fast", "both")
        if self.fast_price is not None:
            if self.fp == "strict":
                raise OptionError('fast_price is given and fp is "strict"; write fp="both", or leave it out')
            price_per_unit_pusd(self.fast_price)
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise OptionError(f"device is {said(self.device)}; write 'cpu', or 'cuda:0' for the first GPU")
        if self.device != "cpu" and (self.programs or self.threads is not None):
            raise OptionError(
                f"programs and threads are of the processor, and this node is to lend {self.device}; serve them from "
                "another node with device 'cpu'"
            )
        whole(self, "slots", 1, _MAX_SLOTS)
        if self.threads is not None:
            whole(self, "threads", 1, 1_024, otherwise=", or None to share all cores")
        whole(self, "max_window", 1, _MAX_WINDOW)
        parse_size(self.cache)
        whole(self, "claim_above_uusd", 0, 2**63 - 1)
        if self.coin_price_uusd is not None:
            whole(self, "coin_price_uusd", 0, 2**63 - 1, otherwise=", or None")
        flag(self, "allow_unsandboxed")
        callback(self, "on_event")
        callback(self, "fault", takes="output bytes and chunk index, which gives bytes")
        credit: object = self.credit
        if not isinstance(credit, CreditPolicy):
            raise OptionError(f"credit is {said(credit)}; write a p2pcompute.payments.CreditPolicy")
        object.__setattr__(self, "watch_for", watched(self.watch_for))
        object.__setattr__(self, "watchtowers", towers(self.watchtowers))
        object.__setattr__(self, "arbiters", arbiter_peers(self.arbiters))
        if self.at_risk is not None:
            parse_usd(self.at_risk)
            if not self.arbiters:
                raise OptionError(
                    f"at_risk is {said(self.at_risk)}, and nobody may take it; name the arbiters that are accepted, or "
                    "leave it out"
                )
        region = self.region
        if region is not None and (
            not isinstance(region, str) or not region.isprintable() or not 1 <= len(region.encode()) <= MAX_NAME
        ):
            raise OptionError(f"region is {said(region)}; write 1 to {MAX_NAME} bytes of printable text, or None")
        programs = self.programs
        if (
            isinstance(programs, str)
            or not isinstance(programs, Sequence)
            or not all(isinstance(name, str) for name in programs)
            or len(programs) > _MAX_PROGRAMS
        ):
            raise OptionError(f"programs is {said(programs)}; write a list of at most {_MAX_PROGRAMS} names")
        object.__setattr__(self, "programs", tuple(programs))
        given: object = self.program_data
        unknown = (
            [said(name) for name in given if name not in programs] if isinstance(given, Mapping) else [said(given)]
        )
        if unknown:
            raise OptionError(
                f"program_data names {', '.join(unknown)}, which is not among the programs allowed "
                f"({', '.join(programs) or 'none'}); name one as it is written there: {{name: directory}}, or "
                "--program-data NAME=DIR"
            )
        for name, directory in self.program_data.items():
            where: object = directory
            if not isinstance(where, str | PathLike):
                raise OptionError(f"program_data has {said(where)} for {name}; write a directory's path as text")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedProgram:
    """The workers of a program that requesters may have run, and the directory that it may read, if any."""

    pool: WorkerPool
    data: str | None


class ProviderRole:
    """Everything that a node does as a provider, composed in one nursery by `serve`."""

    def __init__(
        self,
        node: Node,
        options: ProviderOptions,
        pool: WorkerPool,
        device: Device,
        programs: Mapping[ProgramRef, AllowedProgram],
        sold: ModesSold,
    ) -> None:
        self.node = node
        self.options = options
        self.device = device
        self.programs = programs
        self.price_pusd = price_per_unit_pusd(options.price)
        self.fast_price_pusd = (
            self.price_pusd if options.fast_price is None else price_per_unit_pusd(options.fast_price)
        )
        self.modes = sold.modes
        self.fast_refused = sold.refused  # why fast mode is not sold although it was wanted
        thread_milli = max(1, device.score_milli // pool.threads)
        services = node.services
        self._sessions: set[trio.CancelScope] = set()
        self._stopped = False
        self._no_sessions = trio.Event()
        self.payee = Payee(
            ledger=services.ledger,
            hub=services.hub,
            payee=services.account.address,
            network=node.network,
            signer=services.account,
            clock_ms=node.now_ms,
        )
        self.credit = CreditBook(ledger=services.ledger, policy=options.credit, clock_ms=node.now_ms)
        self.settler = Settler(
            ledger=services.ledger,
            hub=services.hub,
            outbox=services.outbox,
            policy=SettlePolicy(cap_uusd=options.claim_above_uusd, coin_uusd=options.coin_price_uusd),
            clock_ms=node.now_ms,
        )
        books = WatchedBooks(ProviderLedgerBooks(services.ledger, self.payee, self.credit, self._subnet), self.emit)
        self.served = books.totals
        self.tasks = TaskService(
            overlay=services.overlay,
            network=node.network,
            signer=services.key,
            workers=pool,
            books=books,
            computed=books.computed,
            now_ms=node.now_ms,
            slots=Turns(options.slots, linger_s=LINGER_S),
            guest=self._guest,
            max_tasks=min(options.slots * 4, _MAX_TASKS),
            score_milli=device.score_milli,
            thread_milli=thread_milli,
            programs={program: allowed.pool for program, allowed in programs.items()},
            newcomers_bytes=max(_NEWCOMERS_MIN_BYTES, device.memory_bytes // 4),
            fault=options.fault,
            exchange=BlobExchange(overlay=services.overlay, server=services.blobs),
        )
        self.negotiations = NegotiationService(
            requests=services.requests,
            network=node.network,
            signer=services.key,
            now_ms=node.now_ms,
            policy=FixedPricePolicy(
                device=device,
                chain=services.hub.terms,
                payee=services.account.address,
                language=LANGUAGE_VERSION,
                price_pusd=self.price_pusd,
                modes=self.modes,
                fast_price_pusd=self.fast_price_pusd,
                check_tolerance=partial(check_tolerance, findings=sold.findings),
                max_window=options.max_window,
                now_ms=node.now_ms,
                has_room=self.tasks.has_room,
                first_window=self._first_window,
                proven_ms=self._proven_ms,
                programs=frozenset(programs),
                private=frozenset(program for program, allowed in programs.items() if allowed.data is not None),
                thread_milli=thread_milli,
                region=options.region,
                arbiters=options.arbiters,
            ),
            agreed=self._agreed,
        )
        at_risk_uusd = None if options.at_risk is None else parse_usd(options.at_risk)
        self.pledges = make_pledges(node, options.arbiters, at_risk_uusd)

    def emit(self, event: ProviderEvent) -> None:
        """Tell whoever watches this provider."""
        if self.options.on_event is not None:
            self.options.on_event(event)

    async def _agreed(self, agreement: Agreement) -> None:
        await self.tasks.books.agreed(agreement)
        if self.pledges is not None:
            self.pledges.note(agreement)

    def _subnet(self, peer: PeerId) -> str:
        return subnet_of(
            self.node.services.overlay.remote_address(peer) or "",  # not what it says of itself
            peer,
            loopback_is_one_subnet=self.options.credit.loopback_is_one_subnet,
        )

    async def _guest(self, peer: PeerId) -> Guest:
        return Guest(peer=peer, subnet=self._subnet(peer), known=await self.credit.is_known(peer))

    async def _first_window(self, peer: PeerId, chunk_pusd: int) -> int:
        known = await self.node.services.ledger.peer(peer)
        if known is not None and known.banned:
            raise LocalProtocolError("we do not deal with you", code=WireCode.CREDIT_EXHAUSTED)
        return await self.credit.first_window(peer, chunk_pusd=chunk_pusd)

    async def _proven_ms(self, peer: PeerId) -> int | None:
        """For how long this device has computed for the money of `peer`; None for a known one."""
        if await self.credit.is_known(peer):
            return None
        history = await self.node.services.ledger.peer(peer)
        paid_pusd = 0 if history is None else history.paid_uusd * PUSD_PER_UUSD
        return paid_pusd // max(1, self.price_pusd) // max(1, self.device.score_milli)

    def make_ad(self, sequence: int) -> tuple[CapabilityAd, bytes]:
        """This node's signed ad, as things stand now."""
        services, now = self.node.services, self.node.now_ms()
        ad = CapabilityAd(
            version=1,
            peer_id=services.key.peer_id,
            sequence=sequence,
            issued_ms=now,
            expires_ms=now + AD_LIFETIME_MS,
            addresses=services.overlay.addresses[:8],
            devices=(self.device,),
            resources=((2, self.device.slots), (3, self.device.memory_bytes)),
            features=tuple(sorted(program.feature for program in self.programs)),
            options=tuple(
                PricedOption(
                    work=1,
                    fp=mode,
                    price_pusd=self.fast_price_pusd if mode == "fast" else self.price_pusd,
                    max_window=self.options.max_window,
                )
                for mode in self.modes
            ),
            language=(LANGUAGE_VERSION,),
            chain=services.hub.terms,
            binding=services.binding(),
            availability=Availability(idle_only=False, draining=self.tasks.draining),
            region=self.options.region,
        )
        return ad, ads.seal_ad(ad, network=self.node.network, signer=services.key)

    async def serve(self, ad_service: AdService, *, task_status: trio.TaskStatus[None]) -> None:
        """Sell until cancelled; the last checkpoint is `checkpoint`'s."""
        services = self.node.services
        services.overlay.handle(channel.PROTOCOL_ID, self.payee.serve_channel)
        self.tasks.register()
        services.blobs.draining = self.tasks.draining
        await self._open_cache()
        services.overlay.handle(task.PROTOCOL_ID, self._serve_task)
        self.negotiations.register()
        ad_service.make_ad = self.make_ad
        if self.pledges is not None:
            stake_service(self.node).pledges = self.pledges
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(ad_service.sell)
                await nursery.start(self.settler.serve)
                await nursery.start(self.tasks.kept.serve)
                await nursery.start(serve_watching, self.node, self.options)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.tasks.draining = services.blobs.draining = True
            if self.pledges is not None:
                stake_service(self.node).pledges = None
            await ad_service.withdraw()

    async def _open_cache(self) -> None:
        """Inputs of earlier runs are found again; where the directory can't be used, that is said at once."""
        from p2pcompute.blobs import BlobCache

        directory, most_bytes = self.node.services.blob_directory, parse_size(self.options.cache)
        if directory is None or not most_bytes or self.tasks.exchange is None:
            return
        self.tasks.exchange.cache = await BlobCache.open(
            directory, max_bytes=most_bytes, run=self.node.services.blob_run
        )

    async def _serve_task(self, stream: OverlayStream) -> None:
        """One task stream, within a scope that `stop` can cancel."""
        if self._stopped:
            await stream.reset()
            return
        with trio.CancelScope() as scope:
            self._sessions.add(scope)
            try:
                await self.tasks._serve(stream)
            finally:
                self._sessions.discard(scope)
                if not self._sessions:
                    self._no_sessions.set()
        if scope.cancelled_caught:
            await stream.reset()

    async def stop(self) -> None:
        """End every task here: workers are killed, nothing more is billed, and agreements are closed in the ledger."""
        self._stopped = True
        self.node.services.blobs.draining = True
        self.tasks.say_farewell()
        with trio.move_on_after(_FAREWELL_S):
            await self._wait_no_sessions()
        for scope in list(self._sessions):
            scope.cancel()
        await self._wait_no_sessions()

    async def _wait_no_sessions(self) -> None:
        while self._sessions:
            self._no_sessions = trio.Event()
            await self._no_sessions.wait()

    def drain(self, changed: Callable[[], Any]) -> None:
        """Take no more work; what runs goes on."""
        self.tasks.draining = self.node.services.blobs.draining = True
        changed()
