"""A payee that is away, and one that has lost its disk: a tower claims for the one and gives back to the other."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute._dialogue import Dialogue
from p2pcompute.errors import ChainUnreachable, DiskFull
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.payments import (
    Approve,
    Deposit,
    Fund,
    FundRow,
    Outbox,
    SettlePolicy,
    Settler,
    TowerRefused,
    VoucherKeeping,
    Watchtower,
)
from p2pcompute.payments import _watchtower as watchtower_module
from p2pcompute.storage import InlineExecutor, WatchStore, open_ledger, open_watch_store
from p2pcompute_protocols._binding import SignerBinding, bind_signer
from p2pcompute_protocols.channel import channel_id
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.watch import (
    WatchConnection,
    WatchedVoucher,
    WatchFetch,
    WatchGiven,
    WatchHello,
    WatchKeep,
    WatchKept,
    WatchRefusal,
    WatchWelcome,
)

Run = Callable[..., None]
TOWER = WalletKey(b"T" * 32)
TOWER_NODE = NodeKey(b"t" * 32)
NOW_MS = 1_000_000
DAY_S = 86_400


class Tower:
    """A watchtower on the chain of a world, and the payee's way to it."""

    def __init__(self, world: Any, store: WatchStore, pair: Any, watch_for: tuple[str, ...]) -> None:
        self.world, self.store, self._pair = world, store, pair
        self.now_ms = NOW_MS
        self.outbox = Outbox(ledger=world.payer_ledger, hub=world.chain.hub(TOWER.address))
        self.tower = Watchtower(
            shelf=store,
            hub=world.chain.hub(TOWER.address),
            outbox=self.outbox,
            network="test",
            watch_for=watch_for,
            policy=SettlePolicy(cap_uusd=0),
            clock_ms=lambda: self.now_ms,
        )

    def binding(self, **changes: Any) -> SignerBinding:
        fields: dict[str, Any] = {"sequence": 1, "expires_ms": 10**13}
        return bind_signer("test", self.world.provider.peer_id, self.world.account, **(fields | changes))

    def connect(self, peer: str | None = None) -> Any:
        who = peer or self.world.provider.peer_id
        client, server = self._pair(who, TOWER_NODE.peer_id)
        self.world.nursery.start_soon(self._serve, server)
        return client

    async def _serve(self, server: Any) -> None:
        await self.tower.serve_watch(server)
        await server.aclose()

    def keeping(self, ledger: Any) -> VoucherKeeping:
        async def dial() -> Any:
            await trio.lowlevel.checkpoint()
            return self.connect()

        return VoucherKeeping(
            ledger=ledger,
            hub=self.world.chain.hub(self.world.account.address),
            binding=self.binding,
            dial=dial,
            peer_id=self.world.provider.peer_id,
            name="tower",
        )

    async def say(self, *messages: Any, peer: str | None = None, binding: SignerBinding | None = None) -> list[Any]:
        """What the tower answers to a hello and to these."""
        stream = self.connect(peer)
        dialogue = Dialogue(WatchConnection(Role.REQUESTER), stream)
        heard = []
        hello = WatchHello(chain=self.world.chain.terms, owner=binding or self.binding())
        for message in (hello, *messages):
            await dialogue.send(message)
            heard.append(await dialogue.receive(stall_s=100))
        await stream.aclose()
        return heard

    def close(self, channel: Any, close_at_s: int) -> None:
        state = self.world.chain.channels[channel]
        self.world.chain.channels[channel] = dataclasses.replace(state, close_at_s=close_at_s)


@asynccontextmanager
async def open_tower(
    world: Any, pair: Any, directory: Path | None = None, watch_for: tuple[str, ...] | None = None
) -> AsyncGenerator[Tower]:
    async with open_watch_store(directory, executor=InlineExecutor()) as store:
        yield Tower(world, store, pair, (world.provider.peer_id,) if watch_for is None else watch_for)


async def paid(world: Any, units: int = 5) -> None:
    task = await world.agree()
    await world.payer.open_channels(world.need(1_000))
    await world.work(task, 0, units=units)
    assert await world.channel_out().pay() == units


def test_a_tower_claims_for_who_is_away(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        async with open_tower(world, pair) as tower:
            assert await tower.keeping(world.payee_ledger).push() == 1
            assert await tower.tower.round() == 0
            close_at_s = NOW_MS // 1000 + DAY_S
            tower.close(world.channel, close_at_s)
            assert await tower.tower.round() == 0  # half of the day is the owner's
            tower.now_ms = (close_at_s - DAY_S // 2 - 1) * 1000
            assert await tower.tower.round() == 0
            tower.now_ms = (close_at_s - DAY_S // 2) * 1000
            assert await tower.tower.round() == 1
            assert world.chain.free[world.account.address] == 5  # the owner's, whoever claims
            assert world.chain.free.get(TOWER.address, 0) == 0
            assert world.chain.nonces[TOWER.address] == 1
            assert await tower.tower.round() == 0
            assert await tower.store.every() == []  # claimed in full: nothing to watch any more
            # Without a tower the money would have gone back to the payer; the owner finds it at the hub.
            assert await world.settler.checkpoint() == {}
            assert (await world.payee_ledger.channel_in(world.channel)).claimed_uusd == 5

    run(body)


def test_who_has_lost_its_ledger_gets_the_newest_vouchers_back(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        async with open_tower(world, pair) as tower:
            keeping = tower.keeping(world.payee_ledger)
            await keeping.push()
            task = await world.agree()
            await world.work(task, 0, units=4)
            await world.channel_out().pay()
            assert await keeping.push() == 1
            assert await keeping.push() == 0  # nothing is new
            async with open_ledger(None, executor=InlineExecutor(), clock_ms=lambda: NOW_MS) as fresh:
                assert await tower.keeping(fresh).restore() == 1
                row = await fresh.channel_in(world.channel)
                assert row is not None
                assert (row.best_uusd, row.payer, row.deposit_uusd) == (9, world.wallet.address, 1_000)
                assert row.unpaid_pusd == 0
                assert await tower.keeping(fresh).restore() == 0
                hub = world.chain.hub(world.account.address)
                settler = Settler(ledger=fresh, hub=hub, outbox=Outbox(ledger=fresh, hub=hub), cap_uusd=0)
                assert await settler.checkpoint() == {world.channel: 9}
                # The payer has no history by it: a tower's word would be enough to make one.
                assert await fresh.peer(world.requester.peer_id) is None
                await fresh.verify(full=True)

    run(body)


def test_it_runs_by_itself(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        async with open_tower(world, pair) as tower, trio.open_nursery() as nursery:
            await nursery.start(tower.tower.serve)
            await nursery.start(tower.keeping(world.payee_ledger).serve)
            await trio.sleep(1)
            tower.close(world.channel, NOW_MS // 1000 + 1_000)
            await trio.sleep(700)
            assert world.chain.free[world.account.address] == 5
            nursery.cancel_scope.cancel()

    run(body)


def test_what_fails_for_now_is_tried_again(run: Run, pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        async with open_tower(world, pair, watch_for=()) as tower, trio.open_nursery() as nursery:
            hub = tower.tower._hub
            channel = hub.channel

            async def down(_: Any) -> Any:
                raise ChainUnreachable("no answer")

            await nursery.start(tower.keeping(world.payee_ledger).serve)
            await trio.sleep(1)
            assert "does not watch for you" in caplog.text
            tower.tower._watch_for = frozenset([world.provider.peer_id])
            await trio.sleep(60)
            assert len(await tower.store.every()) == 1
            hub.channel = down  # type: ignore[method-assign]
            await nursery.start(tower.tower.serve)
            tower.close(world.channel, NOW_MS // 1000 + 1_000)
            await trio.sleep(1)
            assert "could not be looked after" in caplog.text
            hub.channel = channel  # type: ignore[method-assign]
            await trio.sleep(700)
            assert world.chain.free[world.account.address] == 5
            nursery.cancel_scope.cancel()

    run(body)


def test_who_is_welcome(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        async def refused(tower: Tower, **options: Any) -> int:
            (answer,) = await tower.say(**options)
            assert isinstance(answer, WatchRefusal)
            return answer.code

        stranger = NodeKey(b"s" * 32)
        async with open_tower(world, pair) as tower:
            (welcome,) = await tower.say()
            assert welcome == WatchWelcome(kept=0, room=1_024)
            # Somebody else's binding; one of our peer for another's account; one that is over.
            assert await refused(tower, peer=stranger.peer_id) == WireCode.WRONG_PEER
            other = bind_signer(
                "test", world.provider.peer_id, world.wallet, sequence=1, expires_ms=10**13, owner=world.account.address
            )
            assert await refused(tower, binding=other) == WireCode.WRONG_PEER
            assert await refused(tower, binding=tower.binding(expires_ms=NOW_MS)) == WireCode.EXPIRED
            own = bind_signer("test", stranger.peer_id, WalletKey(b"s" * 32), sequence=1, expires_ms=10**13)
            assert await refused(tower, peer=stranger.peer_id, binding=own) == WireCode.NO_CAPACITY
            world.chain.terms = dataclasses.replace(world.chain.terms, chain_id=5)
            hello = WatchHello(chain=world.chain.terms, owner=tower.binding())
            world.chain.terms = dataclasses.replace(world.chain.terms, chain_id=31337)
            stream = tower.connect()
            dialogue = Dialogue(WatchConnection(Role.REQUESTER), stream)
            await dialogue.send(hello)
            answer = await dialogue.receive(stall_s=10)
            assert isinstance(answer, WatchRefusal)
            assert answer.code == WireCode.CHAIN_MISMATCH
        async with open_tower(world, pair, watch_for=("0x" + world.account.address.hex(),)) as by_account:
            assert isinstance((await by_account.say())[0], WatchWelcome)
        async with open_tower(world, pair, watch_for=()) as nobodys:
            with pytest.raises(TowerRefused, match="NO_CAPACITY, this tower does not watch for you"):
                await nobodys.keeping(world.payee_ledger).restore()

    run(body)


def voucher(world: Any, amount: int, *, signer: WalletKey | None = None, forged: bool = False) -> WatchedVoucher:
    key = signer or world.wallet
    channel = channel_id(world.wallet.address, world.account.address, key.address)
    return WatchedVoucher(
        payer=world.wallet.address,
        signer=key.address,
        amount_uusd=amount,
        memo=bytes(32),
        signature=world.voucher(amount, channel=channel, key=WalletKey(b"F" * 32) if forged else key),
    )


def test_what_is_kept(run: Run, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: Any) -> None:
        async with open_tower(world, pair) as tower:
            keeps = [WatchKeep(voucher=voucher(world, amount)) for amount in (5, 9, 7, 9)]
            assert (await tower.say(*keeps))[1:] == [WatchKept(amount_uusd=n) for n in (5, 9, 9, 9)]
            for wrong, code in (
                (voucher(world, 10, forged=True), WireCode.BAD_SIGNATURE),
                (dataclasses.replace(voucher(world, 10), amount_uusd=11), WireCode.BAD_SIGNATURE),
                (dataclasses.replace(voucher(world, 10), payer=b"x" * 20), WireCode.BAD_SIGNATURE),
                (dataclasses.replace(voucher(world, 10), signature=bytes(65)), WireCode.BAD_SIGNATURE),
                (voucher(world, 2**63), WireCode.OVERSIZED),
            ):
                _, answer, given = await tower.say(WatchKeep(voucher=wrong), WatchFetch())
                assert answer.code == code
                assert [one.amount_uusd for one in given.vouchers] == [9]
            assert tower.tower.refused[WireCode.BAD_SIGNATURE] == 4
            # Room is counted in channels.
            monkeypatch.setattr(watchtower_module, "MAX_WATCHED", 2)
            others = [WatchKeep(voucher=voucher(world, 1, signer=WalletKey(bytes([n]) * 32))) for n in (1, 2)]
            _, first, second = await tower.say(*others)
            assert isinstance(first, WatchKept)
            assert second.code == WireCode.NO_CAPACITY
            assert isinstance((await tower.say(WatchKeep(voucher=voucher(world, 12))))[1], WatchKept)

    run(body)


def test_channels_that_find_no_room_keep_no_newer_vouchers_back(
    run: Run, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        monkeypatch.setattr(watchtower_module, "MAX_WATCHED", 1)
        ledger = world.payee_ledger
        async with open_tower(world, pair) as tower:
            keeping = tower.keeping(ledger)
            assert await keeping.push() == 1
            for n in range(1, 31):  # of strangers, each worth something, before and behind the other by their IDs
                key = WalletKey(bytes([n]) * 32)
                channel = channel_id(world.wallet.address, world.account.address, key.address)
                await ledger.open_channel_in(
                    channel, payer=world.wallet.address, signer=key.address, peer=world.requester.peer_id
                )
                await ledger.set_chain_in(channel, deposit_uusd=100, claimed_uusd=0, close_at_s=0)
                signature = world.voucher(100, channel=channel, key=key)
                await ledger.take_voucher(
                    channel, amount_uusd=100, memo=bytes(32), signature=signature, peer=world.requester.peer_id
                )
            task = await world.agree()
            await world.work(task, 0, units=4)
            await world.channel_out().pay()
            for _ in range(2):
                with pytest.raises(TowerRefused, match="NO_CAPACITY"):
                    await keeping.push()
                assert [row.amount_uusd for row in await tower.store.every()] == [9]

    run(body)


def test_a_full_disk_is_said(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        async with open_tower(world, pair) as tower:

            async def full(*_: Any, **__: Any) -> Any:
                raise DiskFull("no room")

            tower.store.put = full  # type: ignore[method-assign]
            _, answer = await tower.say(WatchKeep(voucher=voucher(world, 5)))
            assert answer.code == WireCode.INTERNAL

    run(body)


def test_bad_vouchers_without_end_end_the_stream(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        async with open_tower(world, pair) as tower:
            bad = WatchKeep(voucher=voucher(world, 10, forged=True))
            answers = await tower.say(*[bad] * 16)
            assert all(isinstance(answer, WatchRefusal) for answer in answers[1:])
            with pytest.raises(trio.BrokenResourceError):
                await tower.say(*[bad] * 17)

    run(body)


def test_page_by_page(run: Run, pair: Any, tmp_path: Path) -> None:
    """More than one answer holds; and all of it is there after a start."""

    async def body(world: Any) -> None:
        outbox = world.payer_outbox
        await outbox.run(Approve(amount_uusd=1_000))
        await outbox.run(Deposit(amount_uusd=1_000))
        keys = [WalletKey((n + 1).to_bytes(32, "big")) for n in range(150)]
        payee = world.account.address
        rows = [FundRow(payee=payee, signer=key.address, amount_uusd=2) for key in keys]
        await outbox.run(Fund(rows=tuple(rows)))
        async with open_tower(world, pair, tmp_path) as tower:
            await tower.say(*[WatchKeep(voucher=voucher(world, 2, signer=key)) for key in keys])
        async with open_tower(world, pair, tmp_path) as tower:
            (welcome, given) = await tower.say(WatchFetch())
            assert welcome.kept == 150
            assert isinstance(given, WatchGiven)
            assert (len(given.vouchers), given.more) == (64, True)
            assert await tower.keeping(world.payee_ledger).restore() == 150
            assert len(await world.settler.checkpoint()) == 150
            assert world.chain.free[payee] == 300
            assert await tower.tower.round() == 0
            assert await tower.store.every() == []

    run(body)


@pytest.mark.parametrize("trick", ["forged", "unfunded", "old", "others"])
def test_a_tower_that_lies_gives_nothing(run: Run, pair: Any, trick: str) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        lies = {
            "forged": voucher(world, 900, forged=True),
            "unfunded": voucher(world, 900, signer=WalletKey(b"U" * 32)),
            "old": voucher(world, 3),
            "others": dataclasses.replace(voucher(world, 900), payer=b"x" * 20),
        }
        client, server = pair(world.provider.peer_id, TOWER_NODE.peer_id)

        async def lie() -> None:
            dialogue = Dialogue(WatchConnection(Role.PROVIDER), server)
            await dialogue.receive()
            await dialogue.send(WatchWelcome(kept=1, room=0))
            await dialogue.receive()
            await dialogue.send(WatchGiven(vouchers=(lies[trick],), more=False))

        async with open_tower(world, pair) as tower:
            keeping = tower.keeping(world.payee_ledger)

            async def dial() -> Any:
                await trio.lowlevel.checkpoint()
                return client

            keeping._dial = dial
            world.nursery.start_soon(lie)
            assert await keeping.restore() == 0
            (row,) = await world.payee_ledger.channels_in()
            assert row.best_uusd == 5

    run(body)


def test_a_tower_without_end_is_left(run: Run, pair: Any) -> None:
    async def body(world: Any) -> None:
        client, server = pair(world.provider.peer_id, TOWER_NODE.peer_id)
        pages = 0

        async def give_for_ever() -> None:
            nonlocal pages
            dialogue = Dialogue(WatchConnection(Role.PROVIDER), server)
            await dialogue.receive()
            await dialogue.send(WatchWelcome(kept=1, room=0))
            while isinstance(await dialogue.receive(), WatchFetch):
                vouchers = tuple(
                    WatchedVoucher(
                        payer=(pages * 64 + n).to_bytes(20, "big"),
                        signer=b"s" * 20,
                        amount_uusd=1,
                        memo=bytes(32),
                        signature=bytes(65),
                    )
                    for n in range(64)
                )
                pages += 1
                await dialogue.send(WatchGiven(vouchers=vouchers, more=True))

        async with open_tower(world, pair) as tower:
            keeping = tower.keeping(world.payee_ledger)

            async def dial() -> Any:
                await trio.lowlevel.checkpoint()
                return client

            keeping._dial = dial
            world.nursery.start_soon(give_for_ever)
            assert await keeping.restore() == 0
            assert pages == 17

    run(body)


def test_the_store_forgets_only_what_was_seen(tmp_path: Path) -> None:
    account, payer, signer = (Address(bytes([n]) * 20) for n in (1, 2, 3))

    async def main() -> None:
        async with open_watch_store(tmp_path) as store:
            assert await store.put(account, payer, signer, 5, bytes(32), bytes(65), room=1) == 5
            await store.forget(account, payer, signer, up_to_uusd=4)
            assert await store.count(account) == 1
            assert await store.put(account, signer, payer, 5, bytes(32), bytes(65), room=1) is None
            await store.forget(account, payer, signer, up_to_uusd=5)
            assert await store.every() == []
        assert (tmp_path / "watched.sqlite3").stat().st_mode & 0o077 == 0

    trio.run(main)
