"""Signed agreements and receipts to put into ledgers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols.ids import TaskId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Agreement, CheckPolicy, Terms, accept_terms, open_agreement, seal_terms
from p2pcompute_protocols.task import ReceiptBatch, ReceiptPayload, seal_batch, seal_receipt

NETWORK = "test"
CHAIN = ChainTerms(chain_id=31337, hub=b"h" * 20, token=b"t" * 20, decimals=6)


@dataclass(frozen=True)
class Deal:
    """A requester, a provider, and what they agreed."""

    requester: NodeKey
    provider: NodeKey
    payer: WalletKey
    payee: WalletKey
    agreement: Agreement

    def receipt(self, index: int, *, units: int = 10, code: int = 0, output: bytes = b"o" * 32) -> ReceiptPayload:
        return ReceiptPayload(
            task=self.agreement.task_id,
            index=index,
            code=code,
            output=output if code == 0 else bytes(32),
            fp="strict",
            units=units if code == 0 else 0,
            finished_ms=1,
        )

    def sign(self, receipt: ReceiptPayload) -> bytes:
        return seal_receipt(receipt, network=NETWORK, signer=self.provider)

    def sign_batch(self, receipts: Sequence[ReceiptPayload]) -> ReceiptBatch:
        return seal_batch(receipts, network=NETWORK, signer=self.provider)

    @property
    def task(self) -> TaskId:
        return self.agreement.task_id


@pytest.fixture
def make_deal() -> Callable[..., Deal]:
    def make(**changes: Any) -> Deal:
        requester, provider = NodeKey(b"r" * 32), NodeKey(b"p" * 32)
        payer, payee = WalletKey(b"R" * 32), WalletKey(b"P" * 32)
        fields: dict[str, Any] = {
            "version": 1,
            "order_digest": b"d" * 32,
            "bid_digest": b"b" * 32,
            "requester": requester.peer_id,
            "provider": provider.peer_id,
            "created_ms": 1,
            "deadline_ms": 10**13,
            "standing": True,
            "chain": CHAIN,
            "payer": bind_signer(NETWORK, requester.peer_id, payer, sequence=1, expires_ms=10**13),
            "payee": bytes(payee.address),
            "price_pusd": 300_000,
            "ceiling_uusd": 1_000,
            "credit_window": 1,
            "max_window": 4,
            "check": CheckPolicy(kind="sample", per_chunk=16),
            "arbiters": (),
            "language": "numba-cuda/1",
            "fp": "strict",
            "chunk_timeout_ms": 1_000,
            "timeout_payer": "provider",
            "slots": 1,
        }
        raw = accept_terms(
            seal_terms(Terms(**(fields | changes)), network=NETWORK, signer=requester),
            network=NETWORK,
            signer=provider,
        )
        agreement = open_agreement(raw, network=NETWORK, requester=requester.peer_id, provider=provider.peer_id)
        return Deal(requester=requester, provider=provider, payer=payer, payee=payee, agreement=agreement)

    return make


@pytest.fixture
def deal(make_deal: Callable[..., Deal]) -> Deal:
    return make_deal()
