"""The way money goes, over HTTP: on our development chain, and on anvil."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import coincurve
import pytest
import trio

from p2pcompute.chain import (
    ClaimRow,
    FundRow,
    encode_approve,
    encode_claim,
    encode_deposit,
    encode_finalize,
    encode_fund,
    encode_request_close,
    encode_withdraw,
)
from p2pcompute.errors import RpcError
from p2pcompute_protocols.channel._voucher import Voucher, address_of, channel_id, keccak256, sign_voucher

pytestmark = pytest.mark.net


def key(name: str) -> coincurve.PrivateKey:
    return coincurve.PrivateKey(keccak256(name.encode()))


def test_money_goes_from_payer_to_payee(evm: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
    payer, payee, signers = key("payer"), key("payee"), [key(f"signer {i}") for i in range(10)]
    payer_address, payee_address = address_of(payer.public_key), address_of(payee.public_key)
    signer_addresses = [address_of(signer.public_key) for signer in signers]

    async def main() -> None:
        async with evm() as chain:
            client, hub = chain.rpc, chain.hub
            for address in (payer_address, payee_address):
                await chain.give(address, 50_000_000)
            assert await hub.token_balance_uusd(payer_address) == 50_000_000
            assert await hub.balance_wei(payee_address) == 10**18

            await hub.transact(payer, hub.token, encode_approve(hub.hub, 30_000_000))
            assert await hub.allowance_uusd(payer_address) == 30_000_000
            await hub.transact(payer, hub.hub, encode_deposit(30_000_000, payer_address))
            rows = [FundRow(payee=payee_address, signer=s, amount_uusd=1_000_000) for s in signer_addresses]
            await hub.transact(payer, hub.hub, encode_fund(rows))
            assert await hub.balance_uusd(payer_address) == 20_000_000

            domain = await hub.domain()
            channels = [channel_id(payer_address, payee_address, s) for s in signer_addresses]
            claims = []
            for i, (channel, signer) in enumerate(zip(channels, signers, strict=True)):
                # The last voucher goes above its deposit; the first one's signature is another's.
                amount_uusd = 5_000_000 if i == 9 else 1000 * (i + 1)
                voucher = Voucher(channel=channel, amount_uusd=amount_uusd, memo=bytes([i]) * 32)
                signature = sign_voucher(domain, voucher, signers[1] if i == 0 else signer)
                claims.append(ClaimRow.of(voucher, signature, payer=payer_address, signer=signer_addresses[i]))
            receipt = await hub.transact(payee, hub.hub, encode_claim(payee_address, claims))
            events = hub.decode_claims(receipt)
            assert [event.channel for event in events] == channels[1:]
            assert [event.credited_uusd for event in events] == [*range(2000, 10_000, 1000), 1_000_000]
            assert [event.memo for event in events] == [bytes([i]) * 32 for i in range(1, 10)]
            (checkpoint,) = hub.decode_checkpoints(receipt)
            assert checkpoint.payee == payee_address
            assert checkpoint.skipped == (0,)
            total = sum(event.credited_uusd for event in events)
            assert checkpoint.credited_uusd == total == await hub.balance_uusd(payee_address)
            assert await hub.claims_between(0, receipt.block, payee=payee_address) == events
            assert await hub.claims_between(0, receipt.block - 1, payee=payee_address) == []

            states = await hub.channel_states(channels)
            assert states[0].claimed_uusd == 0
            assert states[9].claimed_uusd == states[9].deposit_uusd == 1_000_000

            await hub.transact(payee, hub.hub, encode_withdraw(total, payee_address))
            assert await hub.token_balance_uusd(payee_address) == 50_000_000 + total

            # Closing: the payer has to wait for a day, the payee does not.
            request = encode_request_close(payee_address, signer_addresses[0])
            await hub.transact(payer, hub.hub, request)
            finalize = encode_finalize(payer_address, payee_address, signer_addresses[0])
            with pytest.raises(RpcError, match="too early"):
                await hub.transact(payer, hub.hub, finalize)
            await client.call("evm_increaseTime", [86_401])  # one more: anvil's blocks have a time of their own
            await hub.transact(payer, hub.hub, finalize)
            cooperative = encode_finalize(payer_address, payee_address, signer_addresses[1])
            await hub.transact(payee, hub.hub, cooperative)
            assert await hub.balance_uusd(payer_address) == 20_000_000 + 1_000_000 + 998_000

    trio.run(main)
