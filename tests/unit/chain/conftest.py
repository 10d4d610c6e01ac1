"""A hub on a chain in this process: no sockets, no files, py-evm and the committed artefacts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import coincurve
import pytest

from p2pcompute.chain._artifacts import load_artifact, token_creation
from p2pcompute.chain._devchain_evm import CallFailed, DevChain, Genesis, Mined
from p2pcompute.chain._devchain_json import receipt_json
from p2pcompute.chain._devchain_reads import Allowance
from p2pcompute.chain._hub import (
    ChannelState,
    CheckpointEvent,
    ClaimedEvent,
    ClaimRow,
    FundRow,
    decode_channel,
    decode_checkpoints,
    decode_claims,
    decode_word,
    encode_approve,
    encode_balance_of,
    encode_balances,
    encode_channel,
    encode_claim,
    encode_deposit,
    encode_fund,
    encode_transfer,
)
from p2pcompute.chain._hub_signed import TokenDomain
from p2pcompute.chain._tx import UnsignedTx, sign_transaction
from p2pcompute_protocols.channel._voucher import (
    Domain,
    Voucher,
    address_of,
    channel_id,
    keccak256,
    sign_voucher,
)
from p2pcompute_protocols.ids import Address, ChannelId

from .weakened import Compiler

CHAIN_ID = 1234
SUPPLY_UUSD = 2**200


@dataclass
class Account:
    """A key and its address."""

    key: coincurve.PrivateKey
    address: Address


class HubBench:
    """A chain with a token and a hub, and short ways to use them.

    `hub_bytecode` puts another contract in the hub's place; `token_code` another token in the token's, with all
    that creates it.
    """

    def __init__(self, hub_bytecode: bytes | None = None, token_code: bytes | None = None) -> None:
        self.bank = self.account("bank")
        genesis = Genesis(chain_id=CHAIN_ID, timestamp_s=1_000_000, balances_wei=((self.bank.address, 10**30),))
        self.chain = DevChain(genesis)
        self.now_s = 1_000_000
        self.hub_bytecode = hub_bytecode or load_artifact("ChannelHub").bytecode
        self.token = self.create(token_code or token_creation(self.bank.address, SUPPLY_UUSD))
        self.hub = self.create(self.hub_bytecode + self.token.rjust(32, b"\0"))

    @staticmethod
    def account(name: str) -> Account:
        key = coincurve.PrivateKey(keccak256(name.encode()))
        return Account(key, address_of(key.public_key))

    def create(self, code: bytes) -> Address:
        mined = self.send(self.bank, None, code)
        assert mined.ok
        assert mined.created is not None
        return mined.created

    def send(self, sender: Account, to: Address | None, data: bytes, *, value_wei: int = 0) -> Mined:
        """Mine one transaction; gas is for nothing, so that accounts need no ether."""
        header = self.chain.header(self.chain.head)
        state = self.chain.state(self.chain.head)
        fee_wei = self.chain.next_base_fee_wei()
        gas = 6_000_000
        if sender is not self.bank and state.get_balance(sender.address) < gas * fee_wei * 2:
            self.send(self.bank, sender.address, b"", value_wei=10**20)
            return self.send(sender, to, data, value_wei=value_wei)
        tx = UnsignedTx(
            chain_id=CHAIN_ID,
            nonce=state.get_nonce(sender.address),
            to=to,
            data=data,
            gas=gas,
            max_fee_wei=fee_wei,
            priority_fee_wei=0,
            value_wei=value_wei,
        )
        (mined,) = self.chain.mine([sign_transaction(tx, sender.key).raw], max(self.now_s, header.timestamp))
        return mined

    def do(self, sender: Account, data: bytes, *, to: Address | None = None) -> Mined:
        """A transaction to the hub (or `to`) that has to go through."""
        mined = self.send(sender, to or self.hub, data)
        assert mined.ok, self.reason(sender, data, to=to)
        return mined

    def reason(self, sender: Account, data: bytes, *, to: Address | None = None) -> str:
        """Why a transaction reverts, or "" where it does not."""
        try:
            self.call(to or self.hub, data, sender=sender.address)
        except CallFailed as exc:
            return exc.output[68 : 68 + int.from_bytes(exc.output[36:68], "big")].decode() or str(exc)
        return ""

    def call(self, to: Address, data: bytes, *, sender: Address = Address(bytes(20))) -> bytes:  # noqa: B008
        if self.chain.header(self.chain.head).timestamp < self.now_s:
            self.chain.mine([], self.now_s)  # so that the call sees the time that a transaction would
        return self.chain.call(
            sender=sender,
            to=to,
            data=data,
            value_wei=0,
            gas=10_000_000,
            number=self.chain.head,
            allowance=Allowance(call_gas=10_000_000),
        )

    def balance(self, owner: Account, *, hub: Address | None = None) -> int:
        return decode_word(self.call(hub or self.hub, encode_balances(owner.address)))

    def tokens(self, owner: Address) -> int:
        return decode_word(self.call(self.token, encode_balance_of(owner)))

    def channel(self, payer: Account, payee: Account, signer: Account) -> ChannelState:
        return decode_channel(self.call(self.hub, encode_channel(self.id(payer, payee, signer))))

    @staticmethod
    def id(payer: Account, payee: Account, signer: Account) -> ChannelId:
        return channel_id(payer.address, payee.address, signer.address)

    def give(self, owner: Account, amount_uusd: int) -> None:
        """Tokens, outside the hub."""
        self.do(self.bank, encode_transfer(owner.address, amount_uusd), to=self.token)

    def deposit(self, owner: Account, amount_uusd: int, *, hub: Address | None = None) -> None:
        """Free balance at the hub, out of the bank's tokens."""
        to = hub or self.hub
        self.give(owner, amount_uusd)
        self.do(owner, encode_approve(to, amount_uusd), to=self.token)
        self.do(owner, encode_deposit(amount_uusd, owner.address), to=to)

    def fund(self, payer: Account, payee: Account, signer: Account, amount_uusd: int) -> None:
        row = FundRow(payee=payee.address, signer=signer.address, amount_uusd=amount_uusd)
        self.do(payer, encode_fund([row]))

    def open(self, payer: Account, payee: Account, signer: Account, amount_uusd: int) -> None:
        self.deposit(payer, amount_uusd)
        self.fund(payer, payee, signer, amount_uusd)

    def domain(self, hub: Address | None = None) -> Domain:
        return Domain(chain_id=CHAIN_ID, contract=hub or self.hub)

    def token_domain(self) -> TokenDomain:
        return TokenDomain(name="test USD", version="1", chain_id=CHAIN_ID, contract=self.token)

    def row(
        self,
        payer: Account,
        payee: Account,
        signer: Account,
        amount_uusd: int,
        *,
        memo: bytes = bytes(32),
        signed_by: Account | None = None,
        domain: Domain | None = None,
    ) -> ClaimRow:
        """A row for `claim`, signed by the channel's signer, or by somebody else, or for somewhere else."""
        voucher = Voucher(channel=self.id(payer, payee, signer), amount_uusd=amount_uusd, memo=memo)
        signature = sign_voucher(domain or self.domain(), voucher, (signed_by or signer).key)
        return ClaimRow.of(voucher, signature, payer=payer.address, signer=signer.address)

    def claim(
        self, payee: Account, rows: list[ClaimRow], *, sender: Account | None = None
    ) -> tuple[list[ClaimedEvent], CheckpointEvent]:
        """Submit rows; what counted, and what the batch came to."""
        return self.claim_raw(encode_claim(payee.address, rows), sender=sender)

    def claim_raw(self, data: bytes, *, sender: Account | None = None) -> tuple[list[ClaimedEvent], CheckpointEvent]:
        mined = self.do(sender or self.bank, data)
        receipt: dict[str, Any] = receipt_json(mined, self.chain.header(mined.block))
        (checkpoint,) = decode_checkpoints(receipt, self.hub)
        return decode_claims(receipt, self.hub), checkpoint


@pytest.fixture
def bench() -> HubBench:
    return HubBench()


@pytest.fixture
def bench_type() -> type[HubBench]:
    return HubBench


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    made = Compiler()
    yield made
    made.close()
