"""A node's stake: the registry that its chain has, its own account there, and its part in tasks that ask for stakes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from p2pcompute._options import OptionError, parse_usd, said, texts, whole
from p2pcompute._profile import read_json, write_json
from p2pcompute.errors import ChainError, ConfigError, EvidenceError, InsufficientFunds
from p2pcompute.identity import WalletKey
from p2pcompute.payments import ContractCall, Hub, Outbox
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import Address, PeerId, TaskId, public_key_of
from p2pcompute_protocols.limits import MAX_ARBITERS
from p2pcompute_protocols.negotiation import open_agreement

if TYPE_CHECKING:
    from p2pcompute._chain_choice import ConnectedChain
    from p2pcompute._profile import Profile
    from p2pcompute.node import Node
    from p2pcompute.stake import (
        Accuser,
        Pledges,
        Registry,
        Slashed,
        StakeDesk,
        StakeService,
        StakeWish,
        Staking,
        TaskStake,
    )

__all__ = [
    "OutboxCalls",
    "StakeOptions",
    "StakeParts",
    "accuse",
    "arbiter_names",
    "arbiter_peers",
    "check_stakes",
    "make_accuser",
    "make_desk",
    "make_pledges",
    "make_staking",
    "open_stake_parts",
    "prepare_stake",
    "stake_service",
    "stake_wish",
]

RECEIPT_SUFFIX: Final = ".p2preceipt"


@dataclass(slots=True, kw_only=True)
class StakeParts:
    """What a node needs for stakes.

    Attributes:
        open_registry: finds the registry and compares its code; raises `ChainError`.
        receipt_key: signs for the account's stake.
        now_s: the chain's time.
        provide: a faucet, or None.
    """

    open_registry: Callable[[], Awaitable[Registry]]
    receipt_key: WalletKey
    now_s: Callable[[], Awaitable[int]]
    provide: Callable[[int], Awaitable[None]] | None = None
    _registry: Registry | None = None
    _lock: trio.Lock = field(default_factory=trio.Lock)

    async def registry(self) -> Registry:
        """The registry; looked for and compared once."""
        async with self._lock:
            if self._registry is None:
                self._registry = await self.open_registry()
            return self._registry


def open_stake_parts(
    chain: ConnectedChain, wallet: WalletKey, profile: Profile, *, registry: str | None, now_ms: Callable[[], int]
) -> StakeParts:
    """Of an open chain and a profile, which holds the receipt key.

    `registry` is the contract's address as text. P2PCOMPUTE_REGISTRY stands for it, then what the profile has kept of
    this chain; a development chain's is known.

    Raises:
        ConfigError: `registry` is no address.
    """
    from p2pcompute.control import parse_address

    note = profile.path / "registry.json"
    text: object = registry or os.environ.get("P2PCOMPUTE_REGISTRY")
    if not text and not chain.place.development:
        kept = read_json(note) or {}
        text = kept.get("registry") if kept.get("chain_id") == chain.place.chain_id else None
    named = parse_address(text) if text else None

    async def find() -> Registry:
        from p2pcompute.chain import find_registry
        from p2pcompute.stake import Registry, read_from

        place = await find_registry(
            chain.rpc, token=chain.place.token, registry=named, development=chain.place.development
        )
        if not chain.place.development:
            write_json(note, {"chain_id": chain.place.chain_id, "registry": "0x" + place.registry.hex()})
        return Registry(place=place, chain=chain.terms, read=read_from(chain.rpc, place.registry))

    async def now_s() -> int:
        # A chain that makes blocks only for transactions has an old head; one whose clock was set ahead, a new one.
        return max((await chain.hub.head()).timestamp_s, now_ms() // 1000)

    async def from_faucet(amount_uusd: int) -> None:
        from p2pcompute.chain import faucet

        missing = amount_uusd - await chain.hub.token_balance_uusd(wallet.address)
        try:
            await faucet(chain.rpc, wallet.address, wei=10**18, token_uusd=max(0, missing))
        except ChainError as exc:
            raise InsufficientFunds(f"the chain's faucet gives 0x{wallet.address.hex()} nothing: {exc}") from exc

    return StakeParts(
        open_registry=find,
        receipt_key=WalletKey.load_or_create(profile.receipt_key),
        now_s=now_s,
        provide=from_faucet if chain.place.development else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxCalls:
    """What an account does on its chain beside payments, through its outbox."""

    hub: Hub
    outbox: Outbox

    @property
    def account(self) -> Address:
        """Whose transactions these are."""
        return self.hub.account

    async def tokens_uusd(self) -> int:
        """The account's tokens."""
        return await self.hub.tokens_uusd()

    async def call(self, to: Address, data: bytes) -> None:
        """Send a transaction and wait until it is mined; see `Outbox.run` for errors."""
        await self.outbox.run(ContractCall(to=to, data=data))


def _need(parts: StakeParts | None) -> StakeParts:
    if parts is None:
        raise ConfigError("this node knows no stake registry: stakes are on a real chain only")
    return parts


async def make_staking(parts: StakeParts | None, hub: Hub, outbox: Outbox) -> Staking:
    """An account's stake. Raises `ConfigError` or `ChainError`."""
    from p2pcompute.stake import Staking

    parts = _need(parts)
    return Staking(
        registry=await parts.registry(),
        account=OutboxCalls(hub=hub, outbox=outbox),
        receipt_key=parts.receipt_key,
        now_s=parts.now_s,
        provide=parts.provide,
    )


def make_desk(node: Node) -> StakeDesk:
    """What a requester's tasks ask of stakes. Raises `ConfigError`."""
    from p2pcompute.stake import StakeDesk

    services = node.services
    return StakeDesk(
        overlay=services.overlay,
        network=node.network,
        registry=_need(services.stake).registry,
        account=services.account,
        now_ms=node.now_ms,
    )


def make_pledges(node: Node, arbiters: Sequence[str], most_uusd: int | None) -> Pledges | None:
    """A provider's pledges; None where it accepts no arbiters.

    Raises:
        ConfigError: it does, and there is no registry.
    """
    if not arbiters:
        return None
    from p2pcompute.stake import Pledges

    services = node.services
    parts = _need(services.stake)
    return Pledges(
        registry=parts.registry,
        owner=services.account.address,
        key=parts.receipt_key,
        network=node.network,
        arbiters=frozenset(arbiters),
        most_uusd=most_uusd,
        now_ms=node.now_ms,
        receipt=services.ledger.issued_receipt,
    )


def stake_service(node: Node) -> StakeService:
    """What answers this node's stake streams: one, for the provider and the arbiter that it may be."""
    from p2pcompute.stake import StakeService

    if node.stake_service is None:
        node.stake_service = StakeService(overlay=node.services.overlay)
        node.stake_service.register()
    return node.stake_service


def make_accuser(node: Node) -> Accuser:
    """Has proofs carried out, at the cost of this node's account. Raises `ConfigError`."""
    from p2pcompute.stake import Accuser

    services = node.services

    async def provider(task: TaskId, payee: Address) -> PeerId | None:
        row = await services.ledger.agreement(task)
        if row is None or row.role != "requester":
            return None
        agreed = open_agreement(row.raw, network=node.network, requester=services.key.peer_id, provider=row.peer)
        return row.peer if agreed.terms.payee == payee else None

    return Accuser(
        overlay=services.overlay,
        network=node.network,
        registry=_need(services.stake).registry,
        account=OutboxCalls(hub=services.hub, outbox=services.outbox),
        convict=services.books.convicted,
        provider=provider,
    )


async def accuse(node: Node, first: Path, second: Path | None) -> Slashed:
    """See `Node.accuse`."""
    from p2pcompute.checking import PLEDGE_SUFFIX, read_evidence
    from p2pcompute.stake import open_pledge, open_strict_receipt

    accuser = make_accuser(node)
    await node.services.fund_wallet(0)
    if first.suffix == RECEIPT_SUFFIX:
        if second is None:
            raise EvidenceError(f"{first} alone proves nothing; name the other receipt of that chunk as well")
        one, other = (open_strict_receipt(read_evidence(path), name=str(path)) for path in (first, second))
        return await accuser.by_receipts(one, other)
    evidence = read_evidence(first)
    beside = first.with_suffix(PLEDGE_SUFFIX) if second is None else second
    if second is None and not beside.exists():
        raise EvidenceError(
            f"there is no {beside.name} beside {first.name}: the provider has put nothing at risk for that task, so "
            "nothing can be taken from it; `p2pcompute evidence verify` shows the file to whoever wants to see it"
        )
    return await accuser.by_verdict(evidence, open_pledge(read_evidence(beside), name=str(beside)))


# Options


def _names(given: object, name: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(texts(given, name, what="multiaddrs or peer IDs")))
    if len(found) > MAX_ARBITERS:
        raise OptionError(f"{name} has {len(found)} members; write {MAX_ARBITERS} at most")
    return found


def arbiter_names(given: object) -> tuple[str, ...]:
    """Arbiters as a requester writes them: multiaddrs with their peer, or peer IDs. Raises `OptionError`."""
    found = _names(given, "arbiters")
    for text in found:
        if text.startswith("/") and "/p2p/" in text:
            continue
        try:
            public_key_of(PeerId(text))
        except LocalProtocolError as exc:
            raise OptionError(
                f"arbiters names {said(text)}; write a multiaddr with its peer, as `p2pcompute arbiter` shows it"
            ) from exc
    return found


def arbiter_peers(given: object) -> tuple[str, ...]:
    """Arbiters as a provider accepts them: peer IDs; of a multiaddr its peer. Raises `OptionError`."""
    return tuple(dict.fromkeys(name.rpartition("/p2p/")[2] for name in arbiter_names(given)))


class StakeOptions(Protocol):
    """What a task's options say of stakes: see `RunOptions`."""

    @property
    def min_stake(self) -> str | float | None: ...
    @property
    def arbiters(self) -> Sequence[str]: ...
    @property
    def arbiters_needed(self) -> int | None: ...
    @property
    def at_risk(self) -> str | float | None: ...


def check_stakes(options: StakeOptions) -> None:
    """Check them, and put the arbiters into their form. Raises `OptionError`."""
    if options.min_stake is not None:
        parse_usd(options.min_stake)
    object.__setattr__(options, "arbiters", arbiter_names(options.arbiters))
    if options.arbiters_needed is not None:
        whole(options, "arbiters_needed", 1, len(options.arbiters), otherwise=", or None for more than half of them")
    if options.at_risk is not None and (not options.arbiters or not parse_usd(options.at_risk)):
        raise OptionError(
            f"at_risk is {said(options.at_risk)}; write an amount above nothing, and arbiters that may take it"
        )


def stake_wish(options: StakeOptions) -> StakeWish | None:
    """What a task asks of stakes; None where that is nothing. P2PCOMPUTE_MIN_STAKE, P2PCOMPUTE_ARBITERS
    (comma-separated) and P2PCOMPUTE_AT_RISK stand for what its options leave out."""
    from p2pcompute.stake import StakeWish

    min_stake = options.min_stake
    if min_stake is None:
        min_stake = os.environ.get("P2PCOMPUTE_MIN_STAKE") or None
    arbiters = options.arbiters
    if not arbiters:
        arbiters = arbiter_names([name for name in os.environ.get("P2PCOMPUTE_ARBITERS", "").split(",") if name])
    at_risk = options.at_risk
    if at_risk is None:
        at_risk = os.environ.get("P2PCOMPUTE_AT_RISK") or None
    least_uusd = 0 if min_stake is None else parse_usd(min_stake)
    if not arbiters and not least_uusd:
        return None
    return StakeWish(
        min_stake_uusd=least_uusd,
        arbiters=tuple(arbiters),
        threshold=options.arbiters_needed or len(arbiters) // 2 + 1,
        at_risk_uusd=None if at_risk is None else parse_usd(at_risk),
    )


async def prepare_stake(options: StakeOptions, desk: Callable[[], StakeDesk] | None) -> TaskStake | None:
    """What a task asks of its providers' stakes; arbiters are asked for their cards. See `StakeDesk.prepare`."""
    wish = stake_wish(options)
    if wish is None:
        return None
    if desk is None:
        raise OptionError("stakes are not asked for here; leave min_stake and arbiters out")
    return await desk().prepare(wish)
