"""Payments on a chain that takes blocks back, drops transactions, doubles its fees or is not there: what is owed comes
in, to within what a stranger may owe. Each defence that can be turned off is shown to be what holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import coincurve
import pytest
import trio

from p2pcompute.chain import ChainClient, decode_transaction, encode_finalize, encode_request_close, encode_withdraw
from p2pcompute.chain._hub import encode_transfer
from p2pcompute.errors import ChainUnreachable
from p2pcompute.payments import (
    AT_ONCE,
    PUBLIC_CHAIN,
    ChainHub,
    Confirmations,
    SettlementPending,
    SettlePolicy,
)
from p2pcompute_protocols.channel import Domain
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import Address

pytestmark = pytest.mark.net

OpenAnvil = Callable[..., AbstractAsyncContextManager[Any]]
DAY_S = 86_400
SLOW = Confirmations(steps=PUBLIC_CHAIN.steps, whole=PUBLIC_CHAIN.whole, head_age_s=None, head_back=64)


class Clock:
    """What the payee's node takes for the time."""

    def __init__(self) -> None:
        self.now_s = 0

    def ms(self) -> int:
        return self.now_s * 1000


@asynccontextmanager
async def playing(
    evm: Any,
    module: Any,
    *,
    confirmations: Confirmations = SLOW,
    policy: SettlePolicy | None = None,
    exchange: Any = None,
    tokens_uusd: int = 50_000_000,
) -> AsyncGenerator[Any]:
    """A payer and a payee on `evm`. The payee goes through `exchange`, where one is given."""
    world = module.World()
    world.clock = Clock()
    world.clock.now_s = await evm.now_s()
    world.chain.terms = module.TERMS = evm.terms
    world.domain = Domain(chain_id=evm.terms.chain_id, contract=Address(evm.terms.hub))
    for key in (world.wallet, world.account):
        await evm.give(key.address, tokens_uusd)
    async with world.open(), ChainClient(evm.url, exchange=exchange) as payee_rpc:
        world.payer_hub, world.payee_hub = hubs = tuple(
            ChainHub(
                client,
                terms=evm.terms,
                private_key=key.private_key,
                confirmations=confirmations,
                free_gas=False,
                clock_ms=world.clock.ms,
            )
            for client, key in ((evm.hub, world.wallet), (evm.place.client(payee_rpc), world.account))
        )
        world.compose(
            world.payer_ledger,
            world.payee_ledger,
            world.nursery,
            hubs=hubs,
            policy=policy,
            clock_ms=world.clock.ms,
            timeout_s=300,
        )
        world.states = lambda: world.payee_ledger._database.connection.execute(
            "SELECT nonce, state FROM outbox ORDER BY id"
        ).fetchall()
        yield world
        await world.payer_ledger.verify(full=True)
        await world.payee_ledger.verify(full=True)


async def owe(world: Any, uusd: int, *, deposit_uusd: int | None = None) -> Any:
    """Work for so much, on a channel that is funded."""
    task = await world.agree(ceiling_uusd=20_000_000)
    await world.payer.open_channels(world.need(deposit_uusd or uusd))
    await world.work(task, 0, units=uusd)
    return task


async def until_refused(evm: Any, world: Any, scope: trio.CancelScope) -> None:
    """Cancel a payment once the payee has refused it for want of a deposit."""
    while not world.payee.counters.refused[WireCode.UNFUNDED]:
        await evm.now_s()
    world.payee.counters.refused.clear()
    scope.cancel()


async def earn(evm: Any, world: Any, uusd: int) -> None:
    """Vouchers for so much, held by the payee, deep enough in the chain."""
    await owe(world, uusd)
    await evm.mine(12)
    assert await world.channel_out().pay() == uusd


async def transact(evm: Any, key: Any, data: bytes, *, to: Address | None = None) -> None:
    await evm.hub.transact(coincurve.PrivateKey(key.private_key), to or evm.hub.hub, data)


async def ask_to_close(evm: Any, world: Any) -> None:
    await transact(evm, world.wallet, encode_request_close(world.account.address, world.wallet.address))


def play(body: Callable[[], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(300):
            await body()

    trio.run(main)


def test_vouchers_become_money(evm: Callable[[], AbstractAsyncContextManager[Any]], payments_world: Any) -> None:
    """The same on our development chain and on another node."""

    async def body() -> None:
        async with evm() as chain, playing(chain, payments_world, confirmations=AT_ONCE) as world:
            await owe(world, 7)
            assert await world.channel_out().pay() == 7
            assert await world.settler.checkpoint() == {world.channel: 7}
            assert await chain.hub.balance_uusd(world.account.address) == 7
            assert world.states() == [(0, "mined")]
            assert await world.settler.round() == {}
            assert await chain.hub.nonce(world.account.address) == 1

    play(body)


def test_a_claim_that_is_taken_back_is_made_again(anvil: OpenAnvil, payments_world: Any) -> None:
    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await earn(chain, world, 700_000)
            account = world.account.address
            assert await world.settler.round() == {world.channel: 700_000}
            assert world.states() == [(0, "sent")]  # mined, and not deep enough to be believed
            await chain.mine(11)
            assert await world.settler.round() == {}
            await chain.reorg(12)
            assert await chain.hub.balance_uusd(account) == 0
            await world.settler.round()  # the same bytes again
            await chain.mine(13)
            await world.settler.round()
            assert await chain.hub.balance_uusd(account) == 700_000
            assert world.states() == [(0, "mined")]
            row = await world.payee_ledger.channel_in(world.channel)
            assert row.claimed_uusd == 700_000

    play(body)


@pytest.mark.parametrize("defended", [True, False])
def test_a_deposit_that_is_taken_back_costs_a_window(anvil: OpenAnvil, payments_world: Any, defended: bool) -> None:
    """The payer has a hand in a reorganisation, and spends its deposit a second time in it."""

    async def body() -> None:
        confirmations = SLOW if defended else AT_ONCE
        async with anvil() as chain, playing(chain, payments_world, confirmations=confirmations) as world:
            await chain.mine(20)
            task = await world.agree(ceiling_uusd=20_000_000)
            await world.payer.open_channels(world.need(8_000_000))
            for index, units in enumerate((40_000, 40_000, 2_000_000)):
                await world.work(task, index, units=units)
                async with trio.open_nursery() as nursery:
                    if defended and index:
                        nursery.start_soon(until_refused, chain, world, nursery.cancel_scope)
                    await world.channel_out().pay()
                    nursery.cancel_scope.cancel()
            spent = await chain.hub.nonce(world.wallet.address)
            await chain.reorg(12)
            assert await chain.hub.nonce(world.wallet.address) < spent
            assert (await chain.hub.channel_state(world.channel)).deposit_uusd == 0
            away = encode_transfer(Address(b"\x07" * 20), await chain.hub.token_balance_uusd(world.wallet.address))
            await transact(chain, world.wallet, away, to=chain.hub.token)
            for _ in range(2):  # both sides go on: what they believed of the chain is read again
                assert await world.settler.round() == {}
                await world.payer.refresh(world.channel)
            lost = (await world.payee_ledger.channel_in(world.channel)).best_uusd
            assert lost == (40_000 if defended else 2_080_000)

    play(body)


def test_an_honest_payers_deposit_comes_back(anvil: OpenAnvil, payments_world: Any) -> None:
    """All three transactions are gone; their nonces are free again, and the same bytes fit."""

    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await chain.mine(20)
            await owe(world, 40_000)
            assert await world.channel_out().pay() == 40_000
            deposit = (await chain.hub.channel_state(world.channel)).deposit_uusd
            await chain.reorg(12)
            assert (await chain.hub.channel_state(world.channel)).deposit_uusd == 0
            assert await chain.hub.nonce(world.wallet.address) == 0
            assert await world.payer_outbox.look() == 3
            await chain.mined(world.wallet.address, 3)
            assert (await chain.hub.channel_state(world.channel)).deposit_uusd == deposit
            assert await chain.hub.nonce(world.wallet.address) == 3
            await chain.mine(13)
            assert await world.payer_outbox.look() == 0
            assert await world.settler.checkpoint() == {world.channel: 40_000}

    play(body)


def test_a_voucher_waits_for_its_deposit_to_be_deep(anvil: OpenAnvil, payments_world: Any) -> None:
    """The payer pays as soon as it counts, without giving up on its provider."""

    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await owe(world, 12_000_000)
            async with trio.open_nursery() as nursery:

                async def mine() -> None:
                    with trio.CancelScope() as refused:
                        await until_refused(chain, world, refused)
                    await chain.mine(13)

                nursery.start_soon(mine)
                assert await world.channel_out().pay() == 12_000_000

    play(body)


def test_an_endpoint_that_is_down_until_a_tenth_of_the_window_is_left(anvil: OpenAnvil, payments_world: Any) -> None:
    down = False

    async def body() -> None:
        async with anvil() as chain, ChainClient(chain.url) as relay:

            async def exchange(content: bytes) -> bytes:
                if down:
                    raise ChainUnreachable("the endpoint is down")
                return await relay._send(content)

            async with playing(chain, payments_world, exchange=exchange) as world:
                await earn(chain, world, 50)  # below what a checkpoint would be made for
                nonlocal down
                down = True
                await ask_to_close(chain, world)
                for _ in range(9):
                    await chain.pass_time(DAY_S // 10)
                    world.clock.now_s = await chain.now_s()
                    with pytest.raises(ChainUnreachable):
                        await world.settler.round()
                down = False
                assert await world.settler.round() == {world.channel: 50}
                await chain.pass_time(DAY_S // 10 + 1)
                await transact(
                    chain,
                    world.wallet,
                    encode_finalize(world.wallet.address, world.account.address, world.wallet.address),
                )
                assert await chain.hub.balance_uusd(world.account.address) == 50

    play(body)


def test_a_fee_spike_is_waited_for_and_then_paid(anvil: OpenAnvil, payments_world: Any) -> None:
    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await earn(chain, world, 500_000)  # far above the cap
            await chain.mine(30)
            await chain.base_fee(200)
            world.clock.now_s = await chain.now_s()
            assert await world.settler.round() == {}
            assert await world.settler.last_checkpoint() == {}
            await chain.base_fee(200)
            await ask_to_close(chain, world)
            for _ in range(7):
                await chain.pass_time(DAY_S // 10)
                await chain.base_fee(200)
                world.clock.now_s = await chain.now_s()
                assert await world.settler.round() == {}
            await chain.pass_time(DAY_S // 10)
            await chain.base_fee(200)
            world.clock.now_s = await chain.now_s()
            assert await world.settler.round() == {world.channel: 500_000}
            assert await chain.hub.balance_uusd(world.account.address) == 500_000

    play(body)


async def settles_nothing(world: Any) -> None:
    """A round that nobody mines; it is not waited for as long as for what has to be mined."""
    outbox = world.payee_outbox
    patience_s, outbox._timeout_s = outbox._timeout_s, 1.0
    with pytest.raises(SettlementPending):
        await world.settler.round()
    outbox._timeout_s = patience_s


def test_a_transaction_that_pays_too_little_is_outbid(anvil: OpenAnvil, payments_world: Any) -> None:
    """Sent before the spike, it would lie there until the channel is closed. It is not signed anew for another nonce:
    that could be mined as well."""

    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await earn(chain, world, 500_000)
            await chain.rpc.call("evm_setAutomine", [False])
            await settles_nothing(world)
            (first,) = await world.payee_ledger.unsettled(world.account.address)
            await chain.rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(500 * 10**9)])
            await chain.mine()
            assert await chain.hub.receipt(first.hash) is None
            await ask_to_close_unmined(chain, world)
            await chain.rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(500 * 10**9)])
            await chain.pass_time(DAY_S * 9 // 10)
            world.clock.now_s = await chain.now_s()
            await settles_nothing(world)
            (second,) = await world.payee_ledger.unsettled(world.account.address)
            assert (second.nonce, second.rows) == (first.nonce, first.rows)
            old, new = decode_transaction(first.raw), decode_transaction(second.raw)
            assert old.data == new.data
            assert new.max_fee_wei > 500 * 10**9 > old.max_fee_wei
            await chain.mine()
            await world.settler.round()
            assert await chain.hub.balance_uusd(world.account.address) == 500_000
            assert await chain.hub.nonce(world.account.address) == 1
            await chain.mine(13)
            await world.settler.round()
            assert world.states() == [(0, "failed"), (0, "mined")]

    play(body)


async def ask_to_close_unmined(chain: Any, world: Any) -> None:
    """As `ask_to_close`, where blocks are only made when asked for."""
    from p2pcompute.chain import sign_transaction

    data = encode_request_close(world.account.address, world.wallet.address)
    key = coincurve.PrivateKey(world.wallet.private_key)
    tx = await chain.hub.prepare(
        world.wallet.address, chain.hub.hub, data, nonce=await chain.hub.nonce(world.wallet.address)
    )
    await chain.hub.send_raw(sign_transaction(tx, key).raw)
    await chain.mine()
    assert (await chain.hub.channel_state(world.channel)).close_at_s


def test_the_earlier_of_two_for_one_nonce_may_be_the_one_that_is_mined(anvil: OpenAnvil, payments_world: Any) -> None:
    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await earn(chain, world, 500_000)
            await chain.rpc.call("evm_setAutomine", [False])
            await settles_nothing(world)
            (first,) = await world.payee_ledger.unsettled(world.account.address)
            # A crash between the two: the second one is on disk and was never sent.
            await chain.base_fee(500)
            tx_hash, raw = await world.payee_hub.raised(first.raw)
            await world.payee_ledger.replace_tx(first.id, tx_hash=tx_hash, raw=raw)
            await chain.base_fee(1)
            await chain.hub.send_raw(first.raw)  # as any node may that has kept it
            await chain.mine(13)
            assert await chain.hub.receipt(first.hash) is not None
            await world.settler.round()
            assert await world.payee_ledger.unsettled(world.account.address) == []
            assert (await world.payee_ledger.channel_in(world.channel)).claimed_uusd == 500_000
            assert await chain.hub.nonce(world.account.address) == 1

    play(body)


def test_a_dropped_transaction_is_sent_again(anvil: OpenAnvil, payments_world: Any) -> None:
    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await earn(chain, world, 500_000)
            await chain.rpc.call("evm_setAutomine", [False])
            await settles_nothing(world)
            (queued,) = await world.payee_ledger.unsettled(world.account.address)
            assert await chain.rpc.call("anvil_dropTransaction", ["0x" + queued.hash.hex()])
            await chain.mine()
            assert await chain.hub.nonce(world.account.address) == 0
            assert await world.payee_outbox.look() == 1
            await chain.mine(13)
            assert await world.payee_outbox.look() == 0
            assert await chain.hub.balance_uusd(world.account.address) == 500_000

    play(body)


def test_a_request_to_close_before_a_claim_takes_nothing_from_it(anvil: OpenAnvil, payments_world: Any) -> None:
    """The payer sees the claim wait, and pays more to be mined first."""

    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await earn(chain, world, 500_000)
            await chain.rpc.call("evm_setAutomine", [False])
            await settles_nothing(world)
            await front_run(chain, world)
            block = await chain.rpc.call("eth_getBlockByNumber", ["latest", True])
            senders = [tx["from"] for tx in block["transactions"]]
            assert senders == ["0x" + key.address.hex() for key in (world.wallet, world.account)]
            assert await chain.hub.balance_uusd(world.account.address) == 500_000
            assert (await chain.hub.channel_state(world.channel)).close_at_s > 0

    play(body)


async def front_run(chain: Any, world: Any) -> None:
    from p2pcompute.chain import Fees, sign_transaction

    data = encode_request_close(world.account.address, world.wallet.address)
    tx = await chain.hub.prepare(
        world.wallet.address,
        chain.hub.hub,
        data,
        nonce=await chain.hub.nonce(world.wallet.address),
        fees=Fees(max_wei=300 * 10**9, priority_wei=200 * 10**9),
    )
    await chain.hub.send_raw(sign_transaction(tx, coincurve.PrivateKey(world.wallet.private_key)).raw)
    await chain.mine()


@pytest.mark.parametrize("defended", [True, False])
def test_a_claim_has_to_come_before_the_window_ends(anvil: OpenAnvil, payments_world: Any, defended: bool) -> None:
    """Whoever claims only when the refund is due can be front-run by it; the settler claims when it is asked for."""

    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await earn(chain, world, 50)
            await ask_to_close(chain, world)
            if defended:
                assert await world.settler.round() == {world.channel: 50}
            await chain.pass_time(DAY_S + 1)
            finalize = encode_finalize(world.wallet.address, world.account.address, world.wallet.address)
            await transact(chain, world.wallet, finalize)
            world.clock.now_s = await chain.now_s()
            await world.settler.round()
            assert await chain.hub.balance_uusd(world.account.address) == (50 if defended else 0)

    play(body)


def test_money_that_is_withdrawn_twice_in_a_reorganisation_is_money_once(anvil: OpenAnvil, payments_world: Any) -> None:
    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await earn(chain, world, 700_000)
            await world.settler.round()
            account = world.account.address
            before = await chain.hub.token_balance_uusd(account)
            await transact(chain, world.account, encode_withdraw(700_000, account))
            await chain.reorg(12)
            await world.settler.round()
            await chain.mine(13)
            await world.settler.round()
            # The withdrawal went with its block: it was sent past the outbox, so nobody sends it again.
            free, tokens = await chain.hub.balance_uusd(account), await chain.hub.token_balance_uusd(account)
            assert free + tokens == before + 700_000

    play(body)


def test_refusals_of_what_is_not_deep_enough_say_what_counts(anvil: OpenAnvil, payments_world: Any) -> None:
    async def body() -> None:
        async with anvil() as chain, playing(chain, payments_world) as world:
            await owe(world, 8_000_000)
            assert (await world.payee_hub.confirmed_channel(world.channel)).deposit_uusd == 50_000
            await chain.mine(11)
            assert (await world.payee_hub.confirmed_channel(world.channel)).deposit_uusd == 50_000
            await chain.mine()
            assert (await world.payee_hub.confirmed_channel(world.channel)).deposit_uusd == 20_000_000
            assert await world.channel_out().pay() == 8_000_000

    play(body)
