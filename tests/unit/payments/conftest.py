"""A payer and a payee with their ledgers, a model of the hub, and streams in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import cbor2
import pytest
import trio
import trio.testing

from p2pcompute.errors import DialError
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.overlay._blame import is_offence
from p2pcompute.payments import (
    ChannelNeed,
    ChannelOut,
    CloseSigned,
    Hub,
    ModelChain,
    ModelHub,
    Outbox,
    Payee,
    Payer,
    SettlePolicy,
    Settler,
)
from p2pcompute.payments._outbox import MINED_TIMEOUT_S
from p2pcompute.storage import InlineExecutor, Ledger, open_ledger
from p2pcompute_protocols._binding import SignerBinding, bind_signer
from p2pcompute_protocols.channel import CloseConsent, Domain, Voucher, voucher_digest
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Agreement, CheckPolicy, Terms, accept_terms, open_agreement, seal_terms
from p2pcompute_protocols.task import ReceiptBatch, ReceiptPayload, seal_batch, seal_receipt

NETWORK = "test"
NOW_MS = 1_000_000
FAR_MS = 10**13
TERMS = ChainTerms(chain_id=31337, hub=b"h" * 20, token=b"t" * 20, decimals=6)


class MemoryStream:
    """One end of a stream in memory, with the peer's ID; `on_send` sees bytes before they leave."""

    def __init__(self, half: trio.StapledStream[Any, Any], peer: PeerId) -> None:
        self._half = half
        self.peer_id = peer
        self.sent = bytearray()
        self.on_send: Callable[[bytes], None] = lambda _: None
        self.blamed: list[ProtocolError] = []

    async def send_all(self, data: bytes) -> None:
        self.on_send(data)
        self.sent += data
        await self._half.send_all(data)

    async def receive_some(self, max_bytes: int = 65_536) -> bytes:
        return bytes(await self._half.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._half.aclose()

    def blame(self, exc: ProtocolError) -> None:
        if is_offence(exc):
            self.blamed.append(exc)


def stream_pair(left: PeerId, right: PeerId) -> tuple[MemoryStream, MemoryStream]:
    """Two ends; the first is held by `left` and talks to `right`."""
    a, b = trio.testing.memory_stream_pair()
    return MemoryStream(a, right), MemoryStream(b, left)


class RaisingHub(ModelHub):
    """A hub that outbids its own transactions where they offer less than `fee`; the chain itself asks for none."""

    fee = 0

    async def raised(self, raw: bytes) -> tuple[bytes, bytes] | None:
        await trio.lowlevel.checkpoint()
        *call, offered = [*cbor2.loads(raw), 0][:5]
        if offered >= self.fee:
            return None
        higher = cbor2.dumps([*call, self.fee], canonical=True)
        return hashlib.sha256(higher).digest(), higher


class World:
    """One requester, one provider, one chain. `open` opens both nodes; it can be left and opened again."""

    raising_hub = RaisingHub

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self.requester, self.provider = NodeKey(b"r" * 32), NodeKey(b"p" * 32)
        self.wallet, self.account = WalletKey(b"R" * 32), WalletKey(b"P" * 32)
        self.chain = ModelChain(TERMS)
        self.chain.mint(self.wallet.address, 10_000_000)
        self.domain = Domain(chain_id=TERMS.chain_id, contract=Address(TERMS.hub))
        self.reachable = True
        self.now_ms = NOW_MS  # the payee's clock
        self.agreements = 0

    def binding(self, **changes: Any) -> SignerBinding:
        fields: dict[str, Any] = {"sequence": 1, "expires_ms": FAR_MS}
        return bind_signer(NETWORK, self.requester.peer_id, self.wallet, **(fields | changes))

    def voucher(
        self, amount: int, *, channel: ChannelId | None = None, domain: Domain | None = None, key: Any = None
    ) -> bytes:
        """A signature over a voucher, to attack with."""
        voucher = Voucher(channel=channel or self.channel, amount_uusd=amount, memo=bytes(32))
        signer = key if key is not None else self.wallet
        return bytes(signer.sign_digest(voucher_digest(domain or self.domain, voucher)))

    @property
    def channel(self) -> ChannelId:
        return self.payer.channel_id(self.account.address)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[World]:
        left = self.directory / "payer" if self.directory else None
        right = self.directory / "payee" if self.directory else None
        async with (
            open_ledger(left, executor=InlineExecutor(), clock_ms=lambda: NOW_MS) as payer_ledger,
            open_ledger(right, executor=InlineExecutor(), clock_ms=lambda: NOW_MS) as payee_ledger,
            trio.open_nursery() as nursery,
        ):
            self.compose(payer_ledger, payee_ledger, nursery)
            yield self
            await self.payer.aclose()
            nursery.cancel_scope.cancel()

    def compose(
        self,
        payer_ledger: Ledger,
        payee_ledger: Ledger,
        nursery: trio.Nursery,
        *,
        hubs: tuple[Hub, Hub] | None = None,
        policy: SettlePolicy | None = None,
        clock_ms: Callable[[], int] | None = None,
        timeout_s: float = MINED_TIMEOUT_S,
    ) -> None:
        """Put both nodes together; `hubs` are the payer's and the payee's, the model's where there are none."""
        self.payer_ledger, self.payee_ledger = payer_ledger, payee_ledger
        self.nursery = nursery
        payer_hub, payee_hub = hubs or (self.chain.hub(self.wallet.address), self.chain.hub(self.account.address))
        self.payer_outbox = Outbox(ledger=payer_ledger, hub=payer_hub, timeout_s=timeout_s)
        self.payee_outbox = Outbox(ledger=payee_ledger, hub=payee_hub, timeout_s=timeout_s)
        self.payer = Payer(
            ledger=payer_ledger,
            hub=payer_hub,
            outbox=self.payer_outbox,
            wallet=self.wallet,
            binding=self.binding(),
            dial=self.dial,
        )
        self.payee = Payee(
            ledger=payee_ledger,
            hub=payee_hub,
            payee=self.account.address,
            network=NETWORK,
            signer=self.account,
            clock_ms=clock_ms or (lambda: self.now_ms),
        )
        self.settler = Settler(
            ledger=payee_ledger,
            hub=payee_hub,
            outbox=self.payee_outbox,
            policy=policy or SettlePolicy(cap_uusd=100),
            clock_ms=clock_ms or (lambda: self.now_ms),
        )
        self.streams: list[tuple[MemoryStream, MemoryStream]] = []

    async def dial(self, peer: PeerId) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if not self.reachable:
            raise DialError("nobody there")
        assert peer == self.provider.peer_id
        return self.connect()

    def connect(self) -> MemoryStream:
        client, server = stream_pair(self.requester.peer_id, self.provider.peer_id)
        self.streams.append((client, server))
        self.nursery.start_soon(self._serve, server)
        return client

    async def _serve(self, server: MemoryStream) -> None:
        await self.payee.serve_channel(server)
        await server.aclose()

    def channel_out(self) -> ChannelOut:
        return self.payer.channel(self.account.address, self.provider.peer_id)

    def closing(self, consent: CloseConsent, signature: bytes) -> CloseSigned:
        """The transaction that closes the channel by the payee's consent."""
        return CloseSigned(
            payer=self.wallet.address,
            payee=self.account.address,
            signer=self.wallet.address,
            epoch=consent.epoch,
            amount_uusd=consent.amount_uusd,
            deadline_s=consent.deadline_s,
            signature=signature,
        )

    def need(self, amount: int) -> list[ChannelNeed]:
        return [ChannelNeed(payee=self.account.address, peer=self.provider.peer_id, amount_uusd=amount)]

    async def agree(
        self,
        *,
        price_pusd: int = 1_000_000,
        ceiling_uusd: int = 1_000,
        stored: bool = True,
        deadline_ms: int = FAR_MS,
    ) -> TaskId:
        """An agreement in both ledgers."""
        self.agreements += 1
        terms = Terms(
            version=1,
            order_digest=self.agreements.to_bytes(32, "big"),
            bid_digest=b"b" * 32,
            requester=self.requester.peer_id,
            provider=self.provider.peer_id,
            created_ms=1,
            deadline_ms=deadline_ms,
            standing=True,
            chain=TERMS,
            payer=self.binding(),
            payee=bytes(self.account.address),
            price_pusd=price_pusd,
            ceiling_uusd=ceiling_uusd,
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
            seal_terms(terms, network=NETWORK, signer=self.requester), network=NETWORK, signer=self.provider
        )
        agreement: Agreement = open_agreement(
            raw, network=NETWORK, requester=self.requester.peer_id, provider=self.provider.peer_id
        )
        self.last_agreement = agreement
        await self.payer_ledger.add_agreement(agreement, role="requester")
        if stored:
            await self.payee_ledger.add_agreement(agreement, role="provider")
        return agreement.task_id

    def receipt(self, task: TaskId, index: int, *, units: int = 1, output: bytes = b"o" * 32) -> ReceiptPayload:
        return ReceiptPayload(task=task, index=index, code=0, output=output, fp="strict", units=units, finished_ms=1)

    def sign_batch(self, receipts: Sequence[ReceiptPayload]) -> ReceiptBatch:
        return seal_batch(receipts, network=NETWORK, signer=self.provider)

    def sign_receipt(self, receipt: ReceiptPayload) -> bytes:
        return seal_receipt(receipt, network=NETWORK, signer=self.provider)

    async def work(self, task: TaskId, index: int, *, units: int = 1) -> None:
        """The provider does a chunk and the requester accepts it."""
        receipt = self.receipt(task, index, units=units)
        envelope = await self.payee_ledger.record_receipt(receipt, sign=self.sign_receipt)
        await self.channel_out().accept(task, [(receipt, envelope)], sampled=1)


@pytest.fixture
def make_world() -> Callable[..., World]:
    return World


@pytest.fixture
def pair() -> Callable[..., tuple[MemoryStream, MemoryStream]]:
    return stream_pair


@pytest.fixture
def run() -> Callable[..., None]:
    """Run a body in an open world, in virtual time."""

    def run(body: Callable[[World], Any], *, directory: Path | None = None, world: World | None = None) -> None:
        async def main() -> None:
            opened: AbstractAsyncContextManager[World] = (world or World(directory)).open()
            async with opened as inside:
                await body(inside)
                await inside.payer_ledger.verify(full=True)
                await inside.payee_ledger.verify(full=True)

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    return run
