"""Two honest nodes on one real hub, and an adversary that sells to one, buys from the other, holds the wire between
them, and has a hand in the chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import coincurve
import trio
import trio.testing

from p2pcompute.chain import ChainClient, HubClient
from p2pcompute.errors import DialError
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.payments import ChainHub, ChannelNeed, Confirmations, Outbox, Payee, Payer, Settler, _settler
from p2pcompute.storage import InlineExecutor, Ledger, open_ledger
from p2pcompute_protocols._binding import SignerBinding, bind_signer
from p2pcompute_protocols.channel import Domain, channel_id
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import CheckPolicy, Terms, accept_terms, open_agreement, seal_terms
from p2pcompute_protocols.task import ReceiptPayload, seal_receipt

from .conftest import MemoryStream, stream_pair
from .forkchain import CHAIN_ID, Endpoint, ForkNode

__all__ = ["AT_ONCE_UUSD", "CHECK_S", "CHUNK_UUSD", "DEEP", "WINDOW_UUSD", "Account", "Node", "Whole", "short_rounds"]

NETWORK = "test"
GENESIS_S = 1_000_000_000
FAR_MS = 10**14
CHUNK_UUSD = 5
WINDOW_UUSD = 2 * CHUNK_UUSD
"""The credit window: two chunks."""
AT_ONCE_UUSD = 10
"""What counts of a deposit that can still be taken back."""
DEEP = 13
CHECK_S = 1_800.0
CAP_UUSD = 25
START_UUSD = 1_000

CAREFUL = Confirmations(steps=((1, AT_ONCE_UUSD),), whole=DEEP, head_age_s=900, head_back=64)


@contextmanager
def short_rounds() -> Iterator[None]:
    """The settler looks twice an hour and not every 30 s: days pass faster so, and it is the weaker for it."""
    kept, _settler.CHECK_S = _settler.CHECK_S, CHECK_S  # type: ignore[misc]
    try:
        yield
    finally:
        _settler.CHECK_S = kept  # type: ignore[misc]


@dataclass(frozen=True)
class Account:
    """A node's keys, as whoever holds them uses them."""

    node: NodeKey
    wallet: WalletKey
    key: coincurve.PrivateKey

    @classmethod
    def of(cls, letter: bytes) -> Account:
        wallet = WalletKey(letter.upper() * 32)
        return cls(NodeKey(letter.lower() * 32), wallet, coincurve.PrivateKey(wallet.private_key))

    @property
    def address(self) -> Address:
        return self.wallet.address

    @property
    def peer(self) -> PeerId:
        return self.node.peer_id

    def binding(self) -> SignerBinding:
        return bind_signer(NETWORK, self.peer, self.wallet, sequence=1, expires_ms=FAR_MS)


class Tap(MemoryStream):
    """The adversary's hand on the wire: each message may be lost, doubled, swapped with the next or cut in two."""

    whole: Whole
    held: bytes = b""

    async def send_all(self, data: bytes) -> None:
        fault = self.whole.next_fault()
        self.whole.taken["wire " + fault] += bool(fault)
        held, self.held = self.held, b""
        match fault:
            case "drops":
                pass
            case "doubles":
                await super().send_all(data + data)
            case "swaps":
                self.held = data
            case "cuts":
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await super().send_all(data[: len(data) // 2])
                await self.aclose()
                raise trio.BrokenResourceError
            case _:
                await super().send_all(data)
        if held:
            await super().send_all(held)


class Node:
    """An honest node's payments: all of it the product's."""

    nursery: trio.Nursery

    def __init__(self, account: Account, whole: Whole) -> None:
        self.account = account
        self.endpoint = Endpoint(whole.node)
        self._whole = whole

    def compose(self, ledger: Ledger, client: ChainClient, dial: Callable[[PeerId], Any]) -> None:
        whole = self._whole
        self.ledger = ledger
        self.hub = ChainHub(
            HubClient(client, whole.node.hub, whole.node.token),
            terms=whole.terms,
            private_key=self.account.wallet.private_key,
            confirmations=whole.confirmations,
            clock_ms=whole.now_ms,
        )
        self.dial = dial
        self.start()

    def start(self) -> None:
        """As after a restart: only the ledger is as it was."""
        whole = self._whole
        self.outbox = Outbox(ledger=self.ledger, hub=self.hub, timeout_s=60)
        self.payer = Payer(
            ledger=self.ledger,
            hub=self.hub,
            outbox=self.outbox,
            wallet=self.account.wallet,
            binding=self.account.binding(),
            dial=self.dial,
        )
        self.payee = Payee(
            ledger=self.ledger,
            hub=self.hub,
            payee=self.account.address,
            network=NETWORK,
            clock_ms=whole.now_ms,
        )
        self.settler = Settler(
            ledger=self.ledger, hub=self.hub, outbox=self.outbox, cap_uusd=CAP_UUSD, clock_ms=whole.now_ms
        )


class Whole:
    """`ada` buys from `bob` and from the adversary; the adversary buys from `bob`.

    Args:
        token: see `ForkNode`.
        hub_code: see `ForkNode`.
        chain: makes the node; anything in the shape of `ForkNode`.
    """

    def __init__(
        self, token: str = "plain", *, hub_code: bytes | None = None, chain: Callable[..., Any] = ForkNode
    ) -> None:
        self.ada_account, self.bob_account = Account.of(b"a"), Account.of(b"b")
        self.mallory, self.stranger = Account.of(b"m"), Account.of(b"s")
        bank = Account.of(b"k")
        self.bank = bank
        everybody = (self.ada_account, self.bob_account, self.mallory, self.stranger)
        self.node = chain(self.now_s, everybody, token=token, hub_code=hub_code, bank=bank)
        self.token_kind = token
        self.confirmations = CAREFUL
        self.terms = ChainTerms(chain_id=CHAIN_ID, hub=bytes(self.node.hub), token=bytes(self.node.token), decimals=6)
        self.domain = Domain(chain_id=CHAIN_ID, contract=self.node.hub)
        for account in (self.ada_account, self.mallory):
            self.node.mint(account.address, START_UUSD)
        self.taken: Counter[str] = self.node.taken
        self.node.victim = self.bob_account.address
        self.faults: list[str] = []
        self.agreements = 0
        self.ada, self.bob = Node(self.ada_account, self), Node(self.bob_account, self)
        self.serve_mallory: Callable[[MemoryStream], Any] | None = None

    @staticmethod
    def now_s() -> int:
        with suppress(RuntimeError):
            return GENESIS_S + int(trio.current_time())
        return GENESIS_S

    def now_ms(self) -> int:
        return self.now_s() * 1000

    def next_fault(self) -> str:
        return self.faults.pop(0) if self.faults else ""

    # Channels

    def channel(self, payer: Account, payee: Account) -> ChannelId:
        return channel_id(payer.address, payee.address, payer.address)

    @property
    def from_ada(self) -> ChannelId:
        return self.channel(self.ada_account, self.bob_account)

    @property
    def from_mallory(self) -> ChannelId:
        return self.channel(self.mallory, self.bob_account)

    @property
    def to_mallory(self) -> ChannelId:
        return self.channel(self.ada_account, self.mallory)

    # Streams

    async def _dial(self, peer: PeerId) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if peer == self.bob_account.peer:
            client, server = stream_pair(self.ada_account.peer, peer)
            ends = []
            for half in (client, server):
                end = Tap(half._half, half.peer_id)
                end.whole = self
                ends.append(end)
            self.bob.nursery.start_soon(self._serve, self.bob, ends[1])
            return ends[0]
        if peer == self.mallory.peer and self.serve_mallory is not None:
            client, server = stream_pair(self.ada_account.peer, peer)
            self.nursery.start_soon(self.serve_mallory, server)
            return client
        raise DialError("nobody there")

    def connect_mallory(self) -> MemoryStream:
        """The adversary's stream to bob."""
        client, server = stream_pair(self.mallory.peer, self.bob_account.peer)
        self.bob.nursery.start_soon(self._serve, self.bob, server)
        return client

    async def _serve(self, node: Node, stream: MemoryStream) -> None:
        try:
            await node.payee.serve_channel(stream)
        finally:
            await stream.aclose()

    # Lives

    async def _live(self, node: Node, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as node.nursery:
            node.nursery.start_soon(node.settler.serve)
            task_status.started()
            await trio.sleep_forever()

    async def restart(self, node: Node) -> None:
        """End a node wherever it is, and start it with what its ledger has."""
        await self.end(node)
        node.start()
        await self.nursery.start(self._live, node)

    async def end(self, node: Node) -> None:
        node.nursery.cancel_scope.cancel()
        await node.payer.aclose()
        await trio.testing.wait_all_tasks_blocked()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Whole]:
        async with AsyncExitStack() as stack:
            for node in (self.ada, self.bob):
                ledger = await stack.enter_async_context(
                    open_ledger(None, executor=InlineExecutor(), clock_ms=self.now_ms)
                )
                client = await stack.enter_async_context(
                    ChainClient("test", expected_chain_id=CHAIN_ID, exchange=node.endpoint.exchange)
                )
                node.compose(ledger, client, self._dial)
            self.nursery = await stack.enter_async_context(trio.open_nursery())
            for node in (self.ada, self.bob):
                await self.nursery.start(self._live, node)
            yield self
            for node in (self.ada, self.bob):
                await node.payer.aclose()
                await node.ledger.verify(full=True)
            self.nursery.cancel_scope.cancel()

    # Work

    async def agree(self, requester: Account, provider: Account, ledgers: Sequence[tuple[Ledger, str]]) -> TaskId:
        """A task of 400 micro-USD at most, at a micro-USD a unit, in the ledgers of those that keep any."""
        self.agreements += 1
        terms = Terms(
            version=1,
            order_digest=self.agreements.to_bytes(32, "big"),
            bid_digest=b"b" * 32,
            requester=requester.peer,
            provider=provider.peer,
            created_ms=1,
            deadline_ms=FAR_MS,
            standing=True,
            chain=self.terms,
            payer=requester.binding(),
            payee=bytes(provider.address),
            price_pusd=1_000_000,
            ceiling_uusd=400,
            credit_window=1,
            max_window=4,
            check=CheckPolicy(kind="sample", per_chunk=16),
            arbiters=(),
            language="numba-cuda/1",
            fp="strict",
            chunk_timeout_ms=1_000,
            timeout_payer="provider",
            slots=1,
        )
        raw = accept_terms(
            seal_terms(terms, network=NETWORK, signer=requester.node), network=NETWORK, signer=provider.node
        )
        agreement = open_agreement(raw, network=NETWORK, requester=requester.peer, provider=provider.peer)
        for ledger, role in ledgers:
            await ledger.add_agreement(agreement, role=role)  # type: ignore[arg-type]
        return agreement.task_id

    def receipt(self, task: TaskId, index: int, provider: Account, units: int) -> tuple[ReceiptPayload, bytes]:
        payload = ReceiptPayload(
            task=task, index=index, code=0, output=b"o" * 32, fp="strict", units=units, finished_ms=1
        )
        return payload, seal_receipt(payload, network=NETWORK, signer=provider.node)

    def need(self, payee: Account, amount_uusd: int) -> list[ChannelNeed]:
        return [ChannelNeed(payee=payee.address, peer=payee.peer, amount_uusd=amount_uusd)]
