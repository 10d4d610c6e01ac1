"""Peers that are driven by hand: they speak every protocol, and say whatever a test wants them to."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute.errors import StreamError
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.market import AdRecordValidator, FixedPricePolicy, NegotiationService, negotiate
from p2pcompute.node import Node
from p2pcompute.overlay import Requests, open_requests
from p2pcompute.tasks._work import chunk_bytes, chunk_work
from p2pcompute.testing import MemoryOverlay, open_memory_overlay, virtual_clock_ms
from p2pcompute_protocols import ads, task
from p2pcompute_protocols._binding import SignerBinding, bind_signer
from p2pcompute_protocols.ads import Availability, CapabilityAd, Device, PricedOption
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.negotiation import Agreement, CheckPolicy, OrderPayload, Requirement
from p2pcompute_protocols.task import (
    Assign,
    BlobData,
    BlobStart,
    Open,
    Opened,
    Ready,
    ReceiptPayload,
    ResultData,
    ResultStart,
    TaskConnection,
)
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import ChunkWork, RoundWork

from ._harness import SIZE, Market, X, Y, Z, axpy

__all__ = [
    "CHUNKS",
    "NETWORK",
    "Rogue",
    "RogueTask",
    "axpy_work",
    "chunk_output",
    "ended",
    "open_rogue",
    "registering",
    "say",
]

NETWORK = "simulated"
CHUNKS = 16
DEVICE = Device(kind="cpu", name="rogue", slots=1, memory_bytes=2**30, score_milli=1_000, scores=())
LARGEST = 2**20

A = TypeVar("A", bound=Callable[..., Any])


def registering(table: dict[str, tuple[A, str]]) -> Callable[[str], Callable[[A], A]]:
    """A decorator that puts attacks into `table` by their names, each with what its victim says of it."""

    def attack(says: str) -> Callable[[A], A]:
        def register(function: A) -> A:
            table[function.__name__] = function, says
            return function

        return register

    return attack


def axpy_work(*, units_per_chunk: int = 10_000) -> tuple[ChunkWork, dict[bytes, bytes]]:
    """The work of the shared kernel, in `CHUNKS` chunks of two blocks."""
    import numpy as np

    import p2pcompute as p2p

    binding = axpy.bind(p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y)
    return chunk_work(binding, blocks_per_chunk=binding.launch.blocks // CHUNKS, units_per_chunk=units_per_chunk)


def chunk_output(index: int) -> bytes:
    """What an honest provider sends for a chunk of the shared kernel."""
    rows = SIZE // CHUNKS
    return Z[index * rows : (index + 1) * rows].tobytes()


async def say(stream: Any, *messages: Record | bytes) -> None:
    """Send messages, or bytes as they are, whatever the protocol says about it."""
    for message in messages:
        data = message if isinstance(message, bytes) else frame(message.encode(), max_bytes=LARGEST)
        await stream.send_all(data)


async def ended(stream: Any) -> float:
    """Read until the other side closes or resets the stream; how many seconds that took."""
    began = trio.current_time()
    try:
        while await stream.receive_some():
            pass
    except StreamError:
        pass
    return trio.current_time() - began


@dataclass(slots=True, kw_only=True)
class Rogue:
    """A peer without a node: an overlay, keys, and functions that make valid messages."""

    market: Market
    key: NodeKey
    wallet: WalletKey
    overlay: MemoryOverlay
    requests: Requests
    agreements: list[Agreement] = field(default_factory=list)

    @property
    def binding(self) -> SignerBinding:
        now = virtual_clock_ms()
        return bind_signer(NETWORK, self.key.peer_id, self.wallet, sequence=now, expires_ms=now + 86_400_000)

    # As a requester

    def order(self, work: ChunkWork | None = None, **changes: Any) -> OrderPayload:
        """A valid order for the shared kernel, but for `changes`."""
        now = virtual_clock_ms()
        fields: dict[str, Any] = {
            "order_id": secrets.token_bytes(16),
            "created_ms": now,
            "expires_ms": now + 60_000,
            "work": work if work is not None else axpy_work()[0],
            "requirement": Requirement(kinds=("cpu",), memory_bytes=0, features=(), min_score_milli=0),
            "max_price_pusd": 2_000,
            "ceiling_uusd": 100_000,
            "chain": self.market.chain.terms,
            "payer": self.binding,
            "check": CheckPolicy(kind="sample", per_chunk=256),
            "fp": "strict",
            "language": LANGUAGE_VERSION,
            "deadline_ms": now + 3_600_000,
            "standing": False,
            "arbiters": (),
        }
        return OrderPayload(**{**fields, **changes})

    async def agree(self, provider: Node, work: ChunkWork | None = None, **changes: Any) -> Agreement:
        """Come to an agreement as any requester would."""
        return await negotiate(
            self.requests,
            provider.peer_id,
            self.order(work, **changes),
            network=NETWORK,
            signer=self.key,
            now_ms=virtual_clock_ms,
        )

    async def open_task(self, provider: Node, work: ChunkWork | None = None, **changes: Any) -> RogueTask:
        """Agree and open a task stream; nothing is said on it yet."""
        chosen, blobs = axpy_work() if work is None else (work, {})
        agreement = await self.agree(provider, chosen, **changes)
        stream = await self.overlay.open_stream(provider.peer_id, task.PROTOCOL_ID)
        return RogueTask(self, agreement, stream, Role.REQUESTER, blobs)

    # As a provider

    def ad(self, **changes: Any) -> CapabilityAd:
        """A valid ad, but for `changes`."""
        now = virtual_clock_ms()
        fields: dict[str, Any] = {
            "version": 1,
            "peer_id": self.key.peer_id,
            "sequence": now,
            "issued_ms": now,
            "expires_ms": now + 600_000,
            "addresses": self.overlay.addresses,
            "devices": (DEVICE,),
            "resources": (),
            "features": (),
            "options": (PricedOption(work=1, fp="strict", price_pusd=1, max_window=8),),
            "language": (LANGUAGE_VERSION,),
            "chain": self.market.chain.terms,
            "binding": self.binding,
            "availability": Availability(idle_only=False, draining=False),
        }
        return CapabilityAd(**{**fields, **changes})

    def sealed_ad(self, **changes: Any) -> bytes:
        return ads.seal_ad(self.ad(**changes), network=NETWORK, signer=self.key)

    def sell(self, handler: Callable[[RogueTask], Awaitable[None]]) -> None:
        """Negotiate like an honest provider, and leave each task stream to `handler`."""

        async def first_window(_peer: str, _pusd: int) -> int:
            return 8

        async def has_room(_peer: str) -> bool:
            return True

        async def agreed(agreement: Agreement) -> None:
            self.agreements.append(agreement)

        async def serve(stream: Any) -> None:
            work, blobs = axpy_work()
            del work
            await handler(RogueTask(self, self.agreements[-1], stream, Role.PROVIDER, blobs))

        NegotiationService(
            requests=self.requests,
            network=NETWORK,
            signer=self.key,
            now_ms=virtual_clock_ms,
            policy=FixedPricePolicy(
                device=DEVICE,
                chain=self.market.chain.terms,
                payee=self.wallet.address,
                language=LANGUAGE_VERSION,
                price_pusd=1,
                max_window=8,
                now_ms=virtual_clock_ms,
                has_room=has_room,
                first_window=first_window,
            ),
            agreed=agreed,
        ).register()
        self.overlay.handle(task.PROTOCOL_ID, serve)


class RogueTask:
    """One task stream of a rogue, on either side of it."""

    def __init__(self, rogue: Rogue, agreement: Agreement, stream: Any, role: Role, blobs: dict[bytes, bytes]) -> None:
        self.rogue = rogue
        self.agreement = agreement
        self.stream = stream
        self.blobs = blobs
        work = agreement.terms.work
        assert isinstance(work, ChunkWork | RoundWork)
        self.work = work
        self.connection = TaskConnection(role)
        self.connection.chunks = work.chunks
        self.connection.chunk_bytes = chunk_bytes(work)
        if isinstance(work, RoundWork):
            self.connection.chunk_rounds = work.rounds_per_chunk
            self.connection.state_arrays = tuple(array.nbytes for array in work.state)
        self.connection.blob_sizes = {digest: size for digest, size in work.inputs.items() if size}
        self.dialogue = Dialogue(self.connection, stream)

    async def say(self, *messages: Record | bytes) -> None:
        await say(self.stream, *messages)

    # As a requester

    async def again(self, provider: Node) -> RogueTask:
        """The same agreement on a stream of its own, and sent there."""
        stream = await self.rogue.overlay.open_stream(provider.peer_id, task.PROTOCOL_ID)
        second = RogueTask(self.rogue, self.agreement, stream, self.connection.role, self.blobs)
        await second.dialogue.send(Open(agreement=self.agreement.raw))
        return second

    async def start(self) -> None:
        """Open, send the inputs, wait for Ready."""
        await self.send_inputs()
        await self.dialogue.expect(Ready)

    async def send_inputs(self) -> None:
        """Open and send the inputs."""
        await self.dialogue.send(Open(agreement=self.agreement.raw))
        opened = await self.dialogue.expect(Opened)
        for digest in opened.need:
            data = self.blobs[digest]
            await self.dialogue.send(BlobStart(digest=digest, size=len(data)), BlobData(data=data))

    async def result(self) -> int:
        """Take one result and give its index."""
        begin = await self.dialogue.expect(ResultStart)
        left = begin.size
        while left:
            left -= len((await self.dialogue.expect(ResultData)).data)
        return begin.index

    # As a provider

    async def ready(self, *before: Record) -> None:
        """Take the inputs and say `before` and Ready, as an honest provider would."""
        await self.dialogue.expect(Open)
        await self.dialogue.send(Opened(need=tuple(self.connection.blob_sizes), slots=1, window=8))
        while self.connection.needed:
            await self.dialogue.expect(BlobStart, BlobData)
        await self.dialogue.send(*before, Ready(compile_ms=1))

    async def assigned(self) -> int:
        """The next chunk to compute."""
        return (await self.dialogue.expect(Assign, stall_s=None)).index

    def receipt(
        self, index: int, output: bytes, *, signer: NodeKey | None = None, digest: bytes | None = None, **changes: Any
    ) -> bytes:
        """A valid receipt over `output`, but for `changes`."""
        fields: dict[str, Any] = {
            "task": self.agreement.task_id,
            "index": index,
            "code": 0,
            "output": hashlib.sha256(output).digest() if digest is None else digest,
            "fp": "strict",
            "units": self.work.units_per_chunk,
            "finished_ms": virtual_clock_ms(),
        }
        payload = ReceiptPayload(**{**fields, **changes})
        return task.seal_receipt(payload, network=NETWORK, signer=signer or self.rogue.key)

    def answer(self, index: int, output: bytes | None = None, **changes: Any) -> list[Record]:
        """The messages of a valid result, but for `changes` of its receipt."""
        data = chunk_output(index) if output is None else output
        receipt = self.receipt(index, data, **changes)
        return [ResultStart(index=index, receipt=receipt, size=len(data)), ResultData(data=data)]


@asynccontextmanager
async def open_rogue(
    market: Market, *, connect: tuple[Node, ...] = (), at: str | None = None, announce: tuple[str, ...] = ()
) -> AsyncGenerator[Rogue]:
    """A rogue on the market's network in memory; `at` is where it is, and `announce` where it says that it is."""
    key = NodeKey.generate()
    validator = AdRecordValidator(network=NETWORK, now_ms=virtual_clock_ms)
    if at is not None:
        market.memory.place(key.peer_id, at)
    async with (
        open_memory_overlay(market.memory, key, record_validator=validator, announce=announce) as overlay,
        open_requests(overlay) as requests,
    ):
        for node in connect:
            await overlay.connect(node.addresses[0])
        yield Rogue(market=market, key=key, wallet=WalletKey.generate(), overlay=overlay, requests=requests)
