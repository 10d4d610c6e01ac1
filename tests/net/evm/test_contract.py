"""Money from a wallet to a provider's balance: the contract on a real chain, two ledgers, and vouchers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import coincurve
import pytest
import trio

from p2pcompute.chain import HubClient, encode_request_close
from p2pcompute.errors import ConfigError, RpcError, TransactionFailed
from p2pcompute.identity import WalletKey
from p2pcompute.node import wall_clock_ms
from p2pcompute.payments import (
    Approve,
    ChainHub,
    Claim,
    ClaimRow,
    CloseSigned,
    Deposit,
    Finalize,
    Fund,
    FundRow,
    Hub,
    ModelChain,
    Outbox,
    Payee,
    Payer,
    RequestClose,
    Settler,
    Wallet,
    Withdraw,
)
from p2pcompute.storage import InlineExecutor, open_ledger
from p2pcompute_protocols.channel import CloseConsent, Domain, Voucher, channel_id, close_digest, voucher_digest
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.task import open_proven_receipt

pytestmark = pytest.mark.net


Open = Callable[[], AbstractAsyncContextManager[Any]]


def on_chain(world: Any, client: HubClient, terms: ChainTerms, *, live: bool = False) -> None:
    """Put the chain where the world has its model, after `compose`."""
    hubs = [ChainHub(client, terms=terms, private_key=key.private_key) for key in (world.wallet, world.account)]
    world.payer_outbox = Outbox(ledger=world.payer_ledger, hub=hubs[0])
    world.payee_outbox = Outbox(ledger=world.payee_ledger, hub=hubs[1])
    world.payer = Payer(
        ledger=world.payer_ledger,
        hub=hubs[0],
        outbox=world.payer_outbox,
        wallet=world.wallet,
        binding=world.binding(),
        dial=world.dial,
    )
    world.payee = Payee(
        ledger=world.payee_ledger,
        hub=hubs[1],
        payee=world.account.address,
        network="test",
        signer=world.account,
        clock_ms=wall_clock_ms if live else lambda: 1_000_000,
    )
    world.settler = Settler(ledger=world.payee_ledger, hub=hubs[1], outbox=world.payee_outbox, cap_uusd=100)


@asynccontextmanager
async def on_its_own_chain(evm: Open, module: Any, tmp_path: Path) -> AsyncGenerator[tuple[Any, HubClient, ChainTerms]]:
    """The payer and the payee, with tokens on a chain that ends with the context."""
    world = module.World(tmp_path / "nodes")
    with trio.fail_after(300):
        async with evm() as chain:
            for key in (world.wallet, world.account):
                await chain.give(key.address, 50_000)
            terms: ChainTerms = chain.terms
            world.chain.terms = module.TERMS = terms
            world.domain = Domain(chain_id=terms.chain_id, contract=Address(terms.hub))
            yield world, chain.hub, terms


def test_deposit_fund_pay_claim_on_the_contract(evm: Open, payments_world: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with on_its_own_chain(evm, payments_world, tmp_path) as (world, client, terms):
            async with world.open():
                on_chain(world, client, terms)
                await world.payer_ledger.bind_chain(terms)
                task = await world.agree()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(world.payer.open_channels, world.need(1_000))
                    await world.work(task, 0, units=7)
                    await trio.testing.wait_all_tasks_blocked()
                    assert await world.channel_out().pay() == 7  # waits for the funding
                assert await client.balance_uusd(world.wallet.address) == 0
                state = await client.channel_state(world.channel)
                assert (state.deposit_uusd, state.claimed_uusd) == (1_007, 0)
                assert await world.settler.checkpoint() == {world.channel: 7}
                assert await client.balance_uusd(world.account.address) == 7
                # The event has the root over what was accepted; one receipt is proven against it.
                (event,) = await client.claims_between(0, await client.block_number(), payee=world.account.address)
                proof = await world.payee_ledger.prove_receipt(task, 0)
                shown = open_proven_receipt(
                    proof.envelope,
                    proof.proof,
                    event.memo,
                    network="test",
                    provider=world.provider.peer_id,
                    task=task,
                    index=0,
                )
                assert (event.channel, shown.units) == (world.channel, 7)
                await world.work(task, 1, units=3)
                assert await world.channel_out().pay() == 10

                # The payer asks to close; the payee claims at once, and nothing is lost.
                request = encode_request_close(world.account.address, world.wallet.address)
                await client.transact(coincurve.PrivateKey(world.wallet.private_key), client.hub, request)
                await world.settler._refresh(await world.payee_ledger.channel_in(world.channel))
                row = await world.payee_ledger.channel_in(world.channel)
                assert row is not None
                assert row.close_at_s > 0
                assert await world.settler.checkpoint() == {world.channel: 10}
                assert await client.balance_uusd(world.account.address) == 10
            # Both nodes start again: the books are whole, and nothing is sent twice.
            async with world.open():
                on_chain(world, client, terms)
                await world.payer_outbox.settle()
                await world.payee_outbox.settle()
                assert await world.settler.checkpoint() == {}
                assert (await world.payee_ledger.verify(full=True)).channels_in == 1
                assert await client.nonce(world.account.address) == 2
                other = dataclasses.replace(terms, chain_id=1)
                with pytest.raises(ConfigError, match="another profile"):
                    await world.payer_ledger.bind_chain(other)

    trio.run(main)


def test_closed_with_the_payees_consent_on_the_contract(evm: Open, payments_world: Any, tmp_path: Path) -> None:
    """At once, twice over: and a consent that is used is good for nothing on the channel that was opened again."""

    async def main() -> None:
        async with on_its_own_chain(evm, payments_world, tmp_path) as (world, client, terms), world.open():
            on_chain(world, client, terms, live=True)
            payer, payee = world.wallet.address, world.account.address
            wallet = Wallet(
                ledger=world.payer_ledger,
                hub=world.payer.hub,
                outbox=world.payer_outbox,
                ask=lambda row: world.channel_out().ask_close(),
            )
            used: list[Any] = []
            for times in (1, 2):
                task = await world.agree()
                await world.payer.open_channels(world.need(1_000))
                await world.work(task, times, units=7)
                assert await world.channel_out().pay() == 7 * times
                for ledger in (world.payer_ledger, world.payee_ledger):
                    await ledger.close_agreement(task, state="done")
                for consent, signature in used:
                    with pytest.raises((TransactionFailed, RpcError)):
                        await world.payer_outbox.run(
                            CloseSigned(
                                payer=payer,
                                payee=payee,
                                signer=payer,
                                epoch=consent.epoch,
                                amount_uusd=consent.amount_uusd,
                                deadline_s=consent.deadline_s,
                                signature=signature,
                            )
                        )
                used.append(await world.channel_out().ask_close())
                assert used[-1][0].epoch == await client.channel_epoch(world.channel) == times - 1
                closed = await wallet.close(world.channel.hex())
                assert (closed.state, closed.claimed_uusd) == ("closed", 7 * times)
                assert await client.balance_uusd(payee) == 7 * times
                assert await client.channel_epoch(world.channel) == times
                await world.payee.check_open(world.channel)
            assert await client.nonce(payee) == 0
            assert await client.balance_uusd(payer) == 1_007 - 14

    trio.run(main)


def test_the_model_keeps_to_the_contract(evm: Open) -> None:
    """The same calls on both: the same outcomes, claims, balances and channels after each."""
    payer, payee, thief = (WalletKey(bytes([i]) * 32) for i in (1, 2, 3))

    async def play(hubs: list[Hub], domain: Domain) -> list[Any]:
        seen: list[Any] = []
        reopened: list[bool] = []
        channel = channel_id(payer.address, payee.address, payer.address)
        ledgers = [Outbox(ledger=ledger, hub=hub) for ledger, hub in zip(kept, hubs, strict=True)]

        async def do(who: int, call: Any) -> None:
            try:
                outcome = await ledgers[who].run(call)
                seen.append(("ok", outcome.claimed))
            except (TransactionFailed, RpcError):
                # The endpoint refuses at the estimate what the model runs and reverts.
                seen.append("failed")
            seen.extend([(await hub.free_uusd(), await hub.tokens_uusd(), await hub.allowance_uusd()) for hub in hubs])
            seen.append(await hubs[0].channel(channel))

        def row(amount: int, key: WalletKey = payer) -> ClaimRow:
            voucher = Voucher(channel=channel, amount_uusd=amount, memo=bytes(32))
            return ClaimRow(
                payer=payer.address,
                signer=payer.address,
                amount_uusd=amount,
                memo=bytes(32),
                signature=key.sign_digest(voucher_digest(domain, voucher)),
            )

        fund = FundRow(payee=payee.address, signer=payer.address, amount_uusd=60)
        await do(0, Deposit(amount_uusd=100))  # not approved
        await do(0, Approve(amount_uusd=150))
        await do(0, Deposit(amount_uusd=100))
        await do(0, Fund(rows=(fund, fund)))  # 120 of 100
        await do(0, Fund(rows=(fund,)))
        await do(1, Claim(payee=payee.address, rows=(row(10, thief), row(20))))
        await do(1, Claim(payee=payee.address, rows=(row(20), row(15))))  # stale
        await do(1, Claim(payee=payee.address, rows=(row(90),)))  # above the deposit
        await do(0, Fund(rows=(dataclasses.replace(fund, amount_uusd=40),)))
        await do(1, Claim(payee=payee.address, rows=(row(90),)))  # good for the rest
        closing = Finalize(payer=payer.address, payee=payee.address, signer=payer.address)
        await do(0, closing)  # without a request
        await do(1, closing)
        await do(1, closing)  # it is closed
        for epoch, amount, key, left_s in (
            (1, 90, payee, 3_600),  # nothing is on it
            (1, 91, payee, 3_600),  # below what has to be claimed
            (0, 90, payee, 3_600),
            (1, 90, thief, 3_600),
            (1, 90, payee, -3_600),
            (1, 90, payee, 3_600),
            (2, 90, payee, 3_600),
        ):
            consent = CloseConsent(
                channel=channel, epoch=epoch, amount_uusd=amount, deadline_s=int(time.time()) + left_s
            )
            await do(
                0,
                CloseSigned(
                    payer=payer.address,
                    payee=payee.address,
                    signer=payer.address,
                    epoch=epoch,
                    amount_uusd=amount,
                    deadline_s=consent.deadline_s,
                    signature=key.sign_digest(close_digest(domain, consent)),
                ),
            )
            seen.append(await hubs[0].epoch(channel))
            if amount == 90 and left_s > 0 and key is payee and epoch == 1 and not reopened:
                reopened.append(True)
                await do(0, Fund(rows=(dataclasses.replace(fund, amount_uusd=10),)))
        await do(0, RequestClose(payee=payee.address, signer=payer.address))  # and has nothing to ask for
        await do(1, Withdraw(amount_uusd=91, to=payer.address))  # 90 are free
        await do(1, Withdraw(amount_uusd=5, to=Address(bytes(20))))
        await do(1, Withdraw(amount_uusd=5, to=Address(hubs[0].terms.hub)))
        await do(1, Withdraw(amount_uusd=70, to=payer.address))
        await do(1, Withdraw(amount_uusd=20, to=payee.address))
        return seen

    kept: list[Any] = []

    async def main() -> None:
        with trio.fail_after(300):
            async with evm() as chain:
                terms = chain.terms
                domain = Domain(chain_id=terms.chain_id, contract=Address(terms.hub))
                client, model = chain.hub, ModelChain(terms)
                for key in (payer, payee):
                    await chain.give(key.address, 1_000)
                    model.mint(key.address, 1_000)
                results = []
                for hubs in (
                    [ChainHub(client, terms=terms, private_key=key.private_key) for key in (payer, payee)],
                    [model.hub(key.address) for key in (payer, payee)],
                ):
                    kept.clear()
                    async with (
                        open_ledger(None, executor=InlineExecutor()) as first,
                        open_ledger(None, executor=InlineExecutor()) as second,
                    ):
                        kept.extend((first, second))
                        results.append(await play(list(hubs), domain))
                assert results[0] == results[1]
                assert results[1].count("failed") == 14

    trio.run(main)
