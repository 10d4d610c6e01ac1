"""A market in virtual time with a stake registry: the contract itself, on py-evm in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coincurve
import trio

from p2pcompute._stakes import StakeParts, make_accuser
from p2pcompute.chain import RegistryPlace, StakeState
from p2pcompute.checking import PLEDGE_SUFFIX
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.node import Node
from p2pcompute.stake import Accuser, Registry, Staking, open_pledge
from p2pcompute.tasks import LiarCaught
from p2pcompute.testing._simulation import SIMULATED_EPOCH_MS
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.stake import PledgeFile

from ..chain.conftest import CHAIN_ID, Account, HubBench
from ..chain.registry_bench import MIN_UUSD, PER_CORE_UUSD, RegistryBench
from ..market._harness import Market, Watch, compute, in_memory
from ..tasks._scenarios import altered_rows

__all__ = ["MIN_UUSD", "Court", "in_court"]


@dataclass(frozen=True, slots=True)
class BenchCalls:
    """Transactions of a node's account on the chain in this process."""

    bench: HubBench
    signer: Account

    @property
    def account(self) -> Address:
        return self.signer.address

    async def tokens_uusd(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.bench.tokens(self.signer.address)

    async def call(self, to: Address, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.bench.do(self.signer, data, to=to)


@dataclass(slots=True)
class Court:
    """The market and the registry."""

    market: Market
    bench: HubBench
    contract: RegistryBench
    tmp_path: Path
    owners: bool = False  # whether everybody's money is another key's than the one that signs vouchers
    registry: Registry = field(init=False)
    nodes: int = 0

    def __post_init__(self) -> None:
        self.bench.now_s = SIMULATED_EPOCH_MS // 1000
        terms = ChainTerms(chain_id=CHAIN_ID, hub=bytes(self.bench.hub), token=bytes(self.bench.token), decimals=6)
        self.market.chain = type(self.market.chain)(terms)
        place = RegistryPlace(registry=self.contract.address, min_stake_uusd=MIN_UUSD, per_core_uusd=PER_CORE_UUSD)

        async def read(data: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            return self.bench.call(self.contract.address, data)

        self.registry = Registry(place=place, chain=terms, read=read)

    def calls(self, node: Node) -> BenchCalls:
        account = node.services.account
        return BenchCalls(self.bench, Account(coincurve.PrivateKey(account.private_key), account.address))

    def staking(self, node: Node) -> Staking:
        assert node.services.stake is not None

        async def now_s() -> int:
            await trio.lowlevel.checkpoint()
            return self.bench.now_s

        return Staking(
            registry=self.registry,
            account=self.calls(node),
            receipt_key=node.services.stake.receipt_key,
            now_s=now_s,
        )

    async def stake(self, node: Node, amount_uusd: int = MIN_UUSD) -> None:
        self.bench.give(self.calls(node).signer, amount_uusd)
        await self.staking(node).stake(amount_uusd, cores=-(-amount_uusd // PER_CORE_UUSD))

    async def state(self, node: Node) -> StakeState:
        return await self.registry.state(node.services.account.address)

    async def stakes(self, node: Node) -> int:
        return (await self.state(node)).stake_uusd

    def wait(self, seconds: int) -> None:
        """Time passes on the chain alone."""
        self.bench.now_s += seconds

    async def node(self, *, owner: WalletKey | None = None, **options: Any) -> Node:
        if owner is None and self.owners:
            owner = WalletKey.generate()
        opened = await self.market.node(owner=owner, **options)
        opened.services.stake = self.parts()
        return opened

    def parts(self) -> StakeParts:
        async def registry() -> Registry:
            await trio.lowlevel.checkpoint()
            return self.registry

        async def now_s() -> int:
            await trio.lowlevel.checkpoint()
            return self.bench.now_s

        return StakeParts(open_registry=registry, receipt_key=WalletKey.generate(), now_s=now_s)

    async def arbiter(self, *, staked: bool = True, **options: Any) -> Node:
        """A node that judges."""
        opened = await self.node(**options)
        if staked:
            await self.stake(opened)
        await self.market._nurseries[opened.peer_id].start(opened.arbitrate)
        return opened

    async def arbiters(self, count: int) -> list[Node]:
        return [await self.arbiter() for _ in range(count)]

    async def provider(self, arbiters: list[Node], *, staked_uusd: int = MIN_UUSD, **options: Any) -> Node:
        """A node that serves, accepts these arbiters and has a stake; `owner` holds its money where it is given."""
        opened = await self.node(owner=options.pop("owner", None))
        if staked_uusd:
            await self.stake(opened, staked_uusd)
        accepted = {"arbiters": [one.peer_id for one in arbiters], **options}
        await self.market._nurseries[opened.peer_id].start(self.market._serve, opened, accepted)
        return opened

    async def liar(self, arbiters: list[Node], **options: Any) -> Node:
        return await self.provider(arbiters, fault=altered_rows, price="0.01 USD", **options)

    async def requester(self, *connect: Node, owner: WalletKey | None = None) -> Node:
        self.nodes += 1
        evidence = self.tmp_path / f"evidence-{self.nodes}"
        return await self.node(connect=connect, evidence=evidence, key=NodeKey.generate(), owner=owner)

    def accuser(self, node: Node) -> Accuser:
        return dataclasses.replace(make_accuser(node), account=self.calls(node))

    async def caught(self, requester: Node, arbiters: list[Node], **options: Any) -> tuple[bytes, PledgeFile]:
        """Run work at a liar: what was kept of it, evidence and pledge. Others may do the work in its place."""
        watch = Watch()
        named = [one.addresses[0] for one in arbiters]
        await compute(requester, watch=watch, arbiters=named, max_providers=2, **options)
        return kept(next(event.evidence for event in watch.of(LiarCaught)))


def kept(evidence: str) -> tuple[bytes, PledgeFile]:
    """The two files that were kept of a liar."""
    path = Path(evidence)
    return path.read_bytes(), open_pledge(path.with_suffix(PLEDGE_SUFFIX).read_bytes())


def in_court(tmp_path: Path, scenario: Callable[[Court], Awaitable[None]], *, owners: bool = False) -> None:
    """Play a scenario in virtual time."""

    async def play(market: Market) -> None:
        bench = HubBench()
        await scenario(Court(market, bench, RegistryBench(bench), tmp_path, owners))

    in_memory(play)
