"""Requesters and providers with real ledgers, for `payments.py`: made up agreements, a model of the hub."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import coincurve
import trio

from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.payments import ChannelNeed, ChannelOnChain, ModelChain, Outbox, Payee, Payer, Settler
from p2pcompute.storage import Ledger, open_ledger
from p2pcompute_protocols._binding import SignerBinding, bind_signer
from p2pcompute_protocols.channel import (
    ChannelConnection,
    ChannelHello,
    ChannelSync,
    Domain,
    ReceiptRef,
    Voucher,
    VoucherAck,
    VoucherFrame,
    channel_id,
    recover_signer,
    voucher_digest,
)
from p2pcompute_protocols.connection import NEED_DATA, Role
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.merkle import Frontier
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Agreement, CheckPolicy, Terms, accept_terms, open_agreement, seal_terms
from p2pcompute_protocols.task import ReceiptPayload

__all__ = ["Provider", "Requester", "open_pair", "open_provider", "open_requester", "restart_s", "signer_s"]

NETWORK = "bench"
FAR_MS = 10**13
TERMS = ChainTerms(chain_id=31337, hub=b"h" * 20, token=b"t" * 20, decimals=6)
DOMAIN = Domain(chain_id=TERMS.chain_id, contract=Address(TERMS.hub))
CEILING_UUSD = 1_000_000
ENVELOPE = bytes(200)
"""As long as a signed receipt."""


def key(kind: bytes, number: int) -> bytes:
    """A private key."""
    return kind + number.to_bytes(32 - len(kind), "big")


def receipt_for(task: TaskId, index: int) -> ReceiptPayload:
    """The receipt of a chunk."""
    return ReceiptPayload(task=task, index=index, code=0, output=b"o" * 32, fp="strict", units=1, finished_ms=1)


class Stream:
    """One end of a socket pair, and who is at the other."""

    def __init__(self, half: trio.socket.SocketType, peer: PeerId) -> None:
        self._half = half
        self.peer_id = peer

    async def send_all(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += await self._half.send(data[sent:] if sent else data)

    async def receive_some(self, max_bytes: int = 65_536) -> bytes:
        return bytes(await self._half.recv(max_bytes))

    async def aclose(self) -> None:
        self._half.close()
        await trio.lowlevel.checkpoint()

    def blame(self, exc: ProtocolError) -> None:
        raise exc


def stream_pair(left: PeerId, right: PeerId) -> tuple[Stream, Stream]:
    """Two ends; the first is held by `left`."""
    ends = [trio.socket.from_stdlib_socket(end) for end in socket.socketpair()]
    return Stream(ends[0], right), Stream(ends[1], left)


class Provider:
    """One ledger, and accounts that are paid into it."""

    def __init__(self, ledger: Ledger, nursery: trio.Nursery, channels: int) -> None:
        self.ledger = ledger
        self.nursery = nursery
        self.chain = ModelChain(TERMS)
        self.node = NodeKey(key(b"provider", 0))
        self.accounts = [WalletKey(key(b"account", number)) for number in range(max(1, channels))]
        self.payees = [
            Payee(
                ledger=ledger,
                hub=self.chain.hub(account.address),
                payee=account.address,
                network=NETWORK,
                clock_ms=lambda: 1,
            )
            for account in self.accounts
        ]

    def connect(self, requester: PeerId, at: int) -> Stream:
        """A stream to the account `at`."""
        client, server = stream_pair(requester, self.node.peer_id)
        self.nursery.start_soon(self._serve, self.payees[at], server)
        return client

    async def _serve(self, payee: Payee, server: Stream) -> None:
        await payee.serve_channel(server)
        await server.aclose()

    async def issue(self, task: TaskId, index: int) -> bytes:
        """One more chunk is done, and its receipt is signed; in no time here."""
        return await self.ledger.record_receipt(receipt_for(task, index), sign=lambda _: ENVELOPE)

    async def check(self, amounts: list[int]) -> None:
        """Raise where the balances differ."""
        rows = await self.ledger.channels_in()
        if sorted(row.best_uusd for row in rows) != sorted(amounts):
            raise AssertionError(f"{[row.best_uusd for row in rows]} are held, not {amounts}")
        if any(row.rooted_leaves != row.best_uusd for row in rows):
            raise AssertionError("a memo is not the root over what was paid for")
        await self.ledger.verify()

    async def take_from_others(self, each: int, directory: Path) -> float:
        """A process of payers without ledgers signs and sends `each` vouchers on every account's channel.

        Returns:
            the time that it takes, by that process's clock.
        """
        node, wallet = bare_payer()
        binding = bind_signer(NETWORK, node.peer_id, wallet, sequence=1, expires_ms=FAR_MS)
        for account in self.accounts:
            channel = channel_id(wallet.address, account.address, wallet.address)
            fund(self.chain, channel)
            terms = agreement_with(node, binding, self.node, account.address, 0)
            await self.ledger.add_agreement(terms, role="provider")
            async with trio.open_nursery() as nursery:
                for index in range(each + 1):
                    nursery.start_soon(self.issue, terms.task_id, index)
        path = directory / "payers.sock"
        with trio.socket.socket(trio.socket.AF_UNIX) as server:
            await server.bind(str(path))
            server.listen(len(self.accounts))
            command = [sys.executable, __file__, str(path), str(len(self.accounts)), str(each)]
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
            for payee in self.payees:
                half, _ = await server.accept()  # the payers come one after the other, in the accounts' order
                self.nursery.start_soon(self._serve, payee, Stream(half, node.peer_id))
            assert process.stdout is not None
            said = b"".join([part async for part in process.stdout])
            if await process.wait() != 0:
                raise AssertionError("the payers' process failed")
        path.unlink()
        await self.check([each + 1] * len(self.accounts))
        return float(said)


def bare_payer() -> tuple[NodeKey, WalletKey]:
    """Whose vouchers those are."""
    return NodeKey(key(b"requester", 0)), WalletKey(key(b"wallet", 0))


async def pay_from_here(path: str, channels: int, each: int) -> float:
    """The other process: sign, send, hear the ack, on all channels at once; the time that it takes."""
    node, wallet = bare_payer()
    binding = bind_signer(NETWORK, node.peer_id, wallet, sequence=1, expires_ms=FAR_MS)
    payers = []
    for number in range(channels):
        account = WalletKey(key(b"account", number)).address
        half = trio.socket.socket(trio.socket.AF_UNIX)
        await half.connect(path)
        stream = Stream(half, node.peer_id)
        task = agreement_with(node, binding, NodeKey(key(b"provider", 0)), account, 0).task_id
        payers.append(_BarePayer(stream, channel_id(wallet.address, account, wallet.address), wallet, task))
        await payers[-1].greet(binding, account)
    for payer in payers:
        await payer.pay(1)  # the first reads the chain
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for payer in payers:
            nursery.start_soon(payer.pay_up_to, each + 1)
    spent = time.perf_counter() - began
    for payer in payers:
        await payer.stream.aclose()
    return spent


class _BarePayer:
    """Signs, sends and hears the ack, and keeps nothing but the tree of receipts."""

    def __init__(self, stream: Stream, channel: ChannelId, wallet: WalletKey, task: TaskId) -> None:
        self.stream, self._channel, self._wallet, self._task = stream, channel, wallet, task
        self._tree = Frontier()
        self._connection = ChannelConnection(Role.REQUESTER)

    async def greet(self, binding: SignerBinding, payee: Address) -> None:
        await self._ask(ChannelHello(chain=TERMS, payer=binding, payee=payee), ChannelSync)

    async def pay(self, amount_uusd: int) -> None:
        first, self._tree = self._tree.leaves, self._tree.grown([ENVELOPE])
        voucher = Voucher(channel=self._channel, amount_uusd=amount_uusd, memo=self._tree.root)
        signature = self._wallet.sign_digest(voucher_digest(DOMAIN, voucher))
        refs = (ReceiptRef(task=self._task, index=first),)
        frame = VoucherFrame(
            amount_uusd=amount_uusd, memo=voucher.memo, signature=signature, first=first, receipts=refs
        )
        await self._ask(frame, VoucherAck)

    async def pay_up_to(self, amount_uusd: int) -> None:
        for amount in range(2, amount_uusd + 1):
            await self.pay(amount)

    async def _ask(self, message: Any, kind: type) -> None:
        await self.stream.send_all(self._connection.send(message))
        while (answer := self._connection.next_event()) is NEED_DATA:
            self._connection.receive_data(await self.stream.receive_some())
        if not isinstance(answer, kind):
            raise AssertionError(f"{answer}")


def fund(chain: ModelChain, channel: ChannelId) -> None:
    """Money on a channel, from nowhere."""
    chain.channels[channel] = ChannelOnChain(deposit_uusd=CEILING_UUSD, claimed_uusd=0, close_at_s=0)


def agreement_with(node: NodeKey, binding: SignerBinding, provider: NodeKey, payee: Address, number: int) -> Agreement:
    """What the requester `number` and the provider have agreed on: the same bytes in every process."""
    terms = Terms(
        version=1,
        order_digest=key(b"order", number),
        bid_digest=payee.ljust(32, b"b"),
        requester=node.peer_id,
        provider=provider.peer_id,
        created_ms=1,
        deadline_ms=FAR_MS,
        standing=True,
        chain=TERMS,
        payer=binding,
        payee=payee,
        price_pusd=1_000_000,
        ceiling_uusd=CEILING_UUSD,
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
    raw = accept_terms(seal_terms(terms, network=NETWORK, signer=node), network=NETWORK, signer=provider)
    return open_agreement(raw, network=NETWORK, requester=node.peer_id, provider=provider.peer_id)


class Requester:
    """One ledger, and channels to each of a provider's accounts."""

    def __init__(self, ledger: Ledger, provider: Provider, number: int) -> None:
        self.ledger, self.provider, self.number = ledger, provider, number
        self.node, self.wallet = NodeKey(key(b"requester", number)), WalletKey(key(b"wallet", number))
        hub = provider.chain.hub(self.wallet.address)
        self.binding = bind_signer(NETWORK, self.node.peer_id, self.wallet, sequence=1, expires_ms=FAR_MS)
        self._at = 0
        self.payers = [
            Payer(
                ledger=ledger,
                hub=hub,
                outbox=Outbox(ledger=ledger, hub=hub),
                wallet=self.wallet,
                binding=self.binding,
                dial=self._dialler(at),
            )
            for at in range(len(provider.accounts))
        ]
        self.tasks: list[TaskId] = []

    def _dialler(self, at: int) -> Any:
        async def dial(_: PeerId) -> Stream:
            await trio.lowlevel.checkpoint()
            return self.provider.connect(self.node.peer_id, at)

        return dial

    async def agree(self) -> None:
        """An agreement on each channel, money on it, and one voucher paid."""
        for at, account in enumerate(self.provider.accounts):
            agreement = agreement_with(self.node, self.binding, self.provider.node, account.address, self.number)
            self.tasks.append(agreement.task_id)
            await self.ledger.add_agreement(agreement, role="requester")
            await self.provider.ledger.add_agreement(agreement, role="provider")
            channel = channel_id(self.wallet.address, account.address, self.wallet.address)
            fund(self.provider.chain, channel)
            await self.payers[at].open_channels(
                [ChannelNeed(payee=account.address, peer=self.provider.node.peer_id, amount_uusd=1)]
            )

    async def accept(self, at: int, index: int) -> None:
        """One more chunk is done, checked and accepted, for one micro-USD."""
        envelope = await self.provider.issue(self.tasks[at], index)
        await self.ledger.accept_work(self.tasks[at], [(receipt_for(self.tasks[at], index), envelope)], sampled=1)

    async def pay(self, at: int) -> int:
        """Pay for it."""
        payer = self.payers[at]
        return await payer.channel(self.provider.accounts[at].address, self.provider.node.peer_id).pay()


@asynccontextmanager
async def open_provider(directory: Path, *, channels: int) -> AsyncGenerator[Provider]:
    """A provider with accounts, each of which has one channel."""
    async with open_ledger(directory / "provider") as ledger, trio.open_nursery() as nursery:
        yield Provider(ledger, nursery, channels)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_pair(directory: Path, *, channels: int) -> AsyncGenerator[tuple[Requester, Provider]]:
    """A requester and a provider, with so many channels between them; warm."""
    async with (
        open_provider(directory, channels=channels) as provider,
        open_ledger(directory / "requester") as ledger,
    ):
        requester = Requester(ledger, provider, 0)
        await requester.agree()
        yield requester, provider
        for payer in requester.payers:
            await payer.aclose()


async def open_requester(
    directory: Path,
    number: int,
    provider: Provider,
    *,
    task_status: trio.TaskStatus[Requester] = trio.TASK_STATUS_IGNORED,
) -> None:
    """One more requester, for as long as it is not cancelled."""
    async with open_ledger(directory) as ledger:
        requester = Requester(ledger, provider, number)
        await requester.agree()
        task_status.started(requester)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await requester.payers[0].aclose()


async def restart_s(directory: Path, channels: int, rounds: int) -> float:
    """Fill a ledger with channels that hold a voucher each, then time a start: ledger, checks, settler, one sync."""
    wallet, account, node = WalletKey(key(b"wallet", 0)), WalletKey(key(b"account", 0)), NodeKey(key(b"requester", 0))
    first = channel_id(wallet.address, account.address, wallet.address)
    names = [first, *(ChannelId(key(b"channel", number)) for number in range(1, channels))]
    async with open_ledger(directory / "provider") as ledger, trio.open_nursery() as nursery:
        limit = trio.CapacityLimiter(500)

        async def fill(channel: ChannelId) -> None:
            async with limit:
                await ledger.open_channel_in(channel, payer=wallet.address, signer=wallet.address, peer=node.peer_id)
                await ledger.set_chain_in(channel, deposit_uusd=CEILING_UUSD, claimed_uusd=0, close_at_s=0)
                await ledger.take_voucher(
                    channel, amount_uusd=5, memo=bytes(32), signature=bytes(65), peer=node.peer_id
                )

        for channel in names:
            nursery.start_soon(fill, channel)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        async with open_provider(directory, channels=1) as provider:
            hub = provider.chain.hub(account.address)
            settler = Settler(
                ledger=provider.ledger, hub=hub, outbox=Outbox(ledger=provider.ledger, hub=hub), cap_uusd=10**9
            )
            if await settler.exposure_uusd() != 5 * channels:
                raise AssertionError("vouchers are missing")
            binding = bind_signer(NETWORK, node.peer_id, wallet, sequence=1, expires_ms=FAR_MS)
            payer = _BarePayer(provider.connect(node.peer_id, 0), first, wallet, TaskId(bytes(32)))
            await payer.greet(binding, account.address)
            times.append(time.perf_counter() - began)
            await payer.stream.aclose()
    return min(times)


def signer_s(count: int) -> tuple[float, float, float]:
    """Seconds for signing a voucher, for recovering its signer, and for checking it against a known key."""
    wallet = WalletKey(key(b"wallet", 0))
    channel = ChannelId(bytes(32))
    public = coincurve.PrivateKey(key(b"wallet", 0)).public_key
    signed = []
    began = time.perf_counter()
    for amount in range(1, count + 1):
        voucher = Voucher(channel=channel, amount_uusd=amount)
        signed.append((voucher, wallet.sign_digest(voucher_digest(DOMAIN, voucher))))
    sign = (time.perf_counter() - began) / count
    began = time.perf_counter()
    for voucher, signature in signed:
        if recover_signer(DOMAIN, voucher, signature) != wallet.address:
            raise AssertionError("another signer")
    recover = (time.perf_counter() - began) / count
    began = time.perf_counter()
    for voucher, signature in signed:
        der = coincurve.ecdsa.cdata_to_der(
            coincurve.ecdsa.recoverable_convert(coincurve.ecdsa.deserialize_recoverable(signature[:64] + b"\0"))
        )
        if not public.verify(der, voucher_digest(DOMAIN, voucher), hasher=None):
            raise AssertionError("another signer")
    verify = (time.perf_counter() - began) / count
    return sign, recover, verify


if __name__ == "__main__":
    gc.freeze()
    sys.stdout.write(str(trio.run(pay_from_here, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
