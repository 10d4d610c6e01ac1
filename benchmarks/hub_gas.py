"""What each transaction of the hub costs in gas, cold, on the development chain: the table of docs/chains.md.

python benchmarks/hub_gas.py        a minute; other EVMs of the same rules (Prague, Osaka) give the same numbers
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import coincurve
import trio

from p2pcompute.chain import (
    ChainClient,
    ClaimRow,
    DevChainProcess,
    FundRow,
    HubClient,
    dev_info,
    encode_approve,
    encode_claim,
    encode_deposit,
    encode_finalize,
    encode_fund,
    encode_request_close,
    encode_withdraw,
    faucet,
    sign_transaction,
)
from p2pcompute.chain._artifacts import hub_creation
from p2pcompute_protocols.channel import Voucher, channel_id, sign_voucher
from p2pcompute_protocols.channel._voucher import address_of, keccak256
from p2pcompute_protocols.ids import Address


def key(name: str) -> coincurve.PrivateKey:
    return coincurve.PrivateKey(keccak256(name.encode()))


async def measure(client: ChainClient, hub: HubClient) -> list[tuple[str, int]]:
    payer, payee = key("payer"), key("payee")
    owner, earner = address_of(payer.public_key), address_of(payee.public_key)
    signers = [key(f"signer {n}") for n in range(111)]
    found: list[tuple[str, int]] = []

    async def do(name: str, who: coincurve.PrivateKey, data: bytes, to: Address | None = None) -> None:
        receipt = await hub.transact(who, to or hub.hub, data)
        found.append((name, receipt.gas_used))

    for account in (owner, earner):
        await faucet(client, account, token_uusd=50_000_000)
    creation = await hub.prepare(owner, None, hub_creation(hub.token), nonce=await hub.nonce(owner))
    made = await hub.wait_receipt(await hub.send_raw(sign_transaction(creation, payer).raw), 60)
    found.append(("deploy", made.gas_used))
    await do("approve", payer, encode_approve(hub.hub, 50_000_000), hub.token)
    await do("deposit, the first of an account", payer, encode_deposit(20_000_000, owner))
    await do("deposit again", payer, encode_deposit(20_000_000, owner))
    first = 0
    for size in (1, 10, 100):
        batch = signers[first : first + size]
        rows = [FundRow(payee=earner, signer=address_of(one.public_key), amount_uusd=100_000) for one in batch]
        await do(f"fund {size} new", payer, encode_fund(rows))
        first += size
    domain = await hub.domain()

    def claims(batch: list[coincurve.PrivateKey], amount: int) -> bytes:
        rows = []
        for one in batch:
            signer = address_of(one.public_key)
            voucher = Voucher(channel=channel_id(owner, earner, signer), amount_uusd=amount, memo=bytes([7]) * 32)
            rows.append(ClaimRow.of(voucher, sign_voucher(domain, voucher, one), payer=owner, signer=signer))
        return encode_claim(earner, rows)

    await do("claim 1, the first credit of a payee", payee, claims(signers[:1], 10))
    await do("claim 1", payee, claims(signers[:1], 20))
    await do("claim 10", payee, claims(signers[1:11], 10))
    await do("claim 100", payee, claims(signers[11:111], 10))
    signer = address_of(signers[0].public_key)
    await do("request to close", payer, encode_request_close(earner, signer))
    await do("finalize by the payee", payee, encode_finalize(owner, earner, signer))
    await do("withdraw", payee, encode_withdraw(100, earner))
    return found


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with DevChainProcess(Path(directory)) as chain, ChainClient(chain.url) as client:
            info = await dev_info(client)
            for name, gas in await measure(client, HubClient(client, info.hub, info.token)):
                sys.stdout.write(f"{name:<40} {gas:>10,}\n")


if __name__ == "__main__":
    trio.run(main)
