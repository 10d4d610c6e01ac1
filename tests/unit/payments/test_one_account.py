"""What is lost where two nodes are paid on one account: why a machine takes an owner into one profile only."""

from __future__ import annotations

from collections.abc import Callable

from p2pcompute.storage import InlineExecutor, open_ledger
from p2pcompute_protocols.channel import VoucherAck

from .conftest import NOW_MS, World
from .test_consents import offer

Run = Callable[..., None]


def test_one_voucher_pays_two_nodes_of_an_account_and_is_claimed_once(run: Run) -> None:
    """A channel names the account that is paid, and no node: each of the two takes the voucher for its own."""

    async def body(world: World) -> None:
        await world.payer.open_channels(world.need(1_000))
        first = world.payee_ledger
        async with open_ledger(None, executor=InlineExecutor(), clock_ms=lambda: NOW_MS) as second:
            for ledger in (first, second):
                world.compose(world.payer_ledger, ledger, world.nursery)
                task = await world.agree()
                for index in range(5):
                    await ledger.record_receipt(world.receipt(task, index), sign=world.sign_receipt)
                assert isinstance(await offer(world, 5), VoucherAck)
                row = await ledger.channel_in(world.channel)
                assert row is not None
                assert (row.owed_uusd, row.unpaid_pusd) == (5, 0)
            await world.settler.checkpoint()
            assert world.chain.free[world.account.address] == 5  # for work of 10
        world.payee_ledger = first

    run(body)
