"""The alphabet: what the adversary does, what the honest nodes do meanwhile, and how a history ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import trio
import trio.testing

from p2pcompute.chain import (
    encode_approve,
    encode_claim,
    encode_deposit,
    encode_finalize,
    encode_request_close,
)
from p2pcompute.chain._devchain_evm import Mined
from p2pcompute.errors import P2PComputeError
from p2pcompute.storage import CeilingReached
from p2pcompute_protocols._evm import keccak256
from p2pcompute_protocols.channel import (
    ChannelSync,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
)
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import TaskId

from .conftest import MemoryStream
from .forkchain import BLOCK_S
from .whole import AT_ONCE_UUSD, CHUNK_UUSD, DEEP, START_UUSD, WINDOW_UUSD, Node, Whole
from .whole_books import CLOSE_DELAY_S
from .whole_mallory import BROKEN, FORGERIES, Mallory, Wire

__all__ = ["RULES", "Act", "Adversary", "play"]

Act: TypeAlias = tuple[str, int]
OUTAGE_S = CLOSE_DELAY_S * 9 // 10
"""As long as an endpoint is down at most; a tenth of the window to close is left then, and it stays up so long."""
REORG_PAUSE_S = 3_600
WIRE = ("drops", "doubles", "swaps", "cuts")
FIRST = ("ask to close", "close", "top up", "claim")
MANNERS = ("honest", "no answer", "old sync", "forged sync", "wrong ack", "refuse", "refuse with more", "hang up")
WAITS_S = (60, 600, 3_600, 6 * 3_600, 12 * 3_600, CLOSE_DELAY_S, 11 * BLOCK_S)

RULES = (
    "work",
    "pay",
    *FORGERIES,
    "replay",
    "reorder",
    "drop",
    "fund",
    "bait",
    "withdraw",
    "ask to close",
    "close",
    "close by a third",
    "forged consent",
    *(f"first: {what}" for what in FIRST),
    "poison",
    "old voucher",
    "stolen voucher",
    "job",
    "settle",
    *(f"wire {fault}" for fault in WIRE),
    "buy",
    *(f"seller: {manner}" for manner in MANNERS),
    "seller claims",
    "seller forges",
    "wait",
    "reorg of 12",
    "reorg",
    "endpoint down",
    "lost transaction",
    "cut",
    "restart",
)
"""Every rule. A rule is counted where it did something, not where it was asked for."""


class Adversary(Mallory):
    """Mallory as ada's payee too, with a hand on the chain; and what the honest do meanwhile."""

    def __init__(self, whole: Whole) -> None:
        super().__init__(whole)
        self.seen: list[VoucherFrame] = []  # of ada's, as a seller
        self.manner = "honest"
        self.bought = 0  # by ada of mallory
        self.up_since_s = -CLOSE_DELAY_S
        self.reorg_at_s = -CLOSE_DELAY_S
        self.taken_back = False
        self.voucher = 0
        self.order = self.sold = TaskId(bytes(32))
        whole.serve_mallory = self.sell

    # As ada's payee

    async def sell(self, stream: MemoryStream) -> None:
        wire = Wire(stream)
        whole = self.whole
        try:
            hello = await wire.hear()
            if self.manner == "hang up" or hello is None:
                return
            best = (self.seen[0] if self.manner == "old sync" else self.seen[-1]) if self.seen else None
            if self.manner == "forged sync":
                best = self.frame_of(390, channel=whole.to_mallory)
            await wire.say(
                ChannelSync(amount_uusd=0)
                if best is None
                else ChannelSync(amount_uusd=best.amount_uusd, memo=best.memo, signature=best.signature)
            )
            while isinstance(message := await wire.hear(), VoucherFrame):
                self.seen.append(message)
                match self.manner:
                    case "no answer":
                        await trio.sleep_forever()
                    case "wrong ack":
                        await wire.say(VoucherAck(amount_uusd=message.amount_uusd + 500))
                    case "refuse":
                        await wire.say(VoucherRefusal(code=int(WireCode.UNFUNDED), detail="more", best_uusd=0))
                    case "refuse with more":
                        await wire.say(
                            VoucherRefusal(
                                code=int(WireCode.BAD_VOUCHER), detail="more", best_uusd=2**60, deposit_uusd=0
                            )
                        )
                    case _:
                        await wire.say(VoucherAck(amount_uusd=message.amount_uusd))
        except BROKEN:
            pass
        finally:
            await stream.aclose()

    async def buy(self, how: int) -> None:
        """Ada accepts work of mallory's; that is what she owes."""
        whole = self.whole
        units = how % 9 + 1
        made = whole.receipt(self.sold, self.chunks, whole.mallory, units)
        self.chunks += 1
        with suppress(CeilingReached):
            await whole.ada.payer.channel(whole.mallory.address, whole.mallory.peer).accept(
                self.sold, [made], sampled=1
            )
            self.bought += units
            self.count("buy")

    async def pay_seller(self, manner: str) -> None:
        whole = self.whole
        self.manner = manner
        channel = whole.ada.payer.channel(whole.mallory.address, whole.mallory.peer)
        await channel.aclose()
        with suppress(P2PComputeError):
            with trio.move_on_after(600):
                held = await channel.pay()
                assert held <= self.bought, "ada pays for what she did not accept"
        self.count(f"seller: {manner}")

    async def seller_claims(self, how: int) -> None:
        if self.seen:
            voucher = self.seen[how % len(self.seen)]
            rows = [self.row(voucher, self.whole.ada_account)]
            self.count("seller claims", self.transact(encode_claim(self.whole.mallory.address, rows)))

    async def seller_forges(self, how: int) -> None:
        whole = self.whole
        amount = how % 390 + 1
        forged = [
            self.frame_of(amount, channel=whole.to_mallory),
            self.frame_of(amount, channel=whole.to_mallory, by=whole.stranger),
        ]
        if self.seen:
            forged.append(dataclasses.replace(self.seen[-1], amount_uusd=self.seen[-1].amount_uusd + amount))
        before = (await self.books()).claimed[whole.to_mallory]
        rows = [self.row(one, whole.ada_account) for one in forged]
        assert self.transact(encode_claim(whole.mallory.address, rows))
        assert (await self.books()).claimed[whole.to_mallory] == before, "a forged voucher counted"
        self.count("seller forges")

    # What the honest do

    async def job(self, how: int) -> None:
        """Ada buys of bob, and accepts what he did."""
        whole = self.whole
        for _ in range(how % 4 + 1):
            if await whole.bob.payee.unpaid_pusd(whole.from_ada) > (WINDOW_UUSD - CHUNK_UUSD) * 1_000_000:
                return
            payload, envelope = whole.receipt(self.order, self.chunks, whole.bob_account, CHUNK_UUSD)
            try:
                await whole.bob.ledger.record_receipt(payload, sign=lambda _, made=envelope: made)
            except CeilingReached:
                return
            self.chunks += 1
            self.done["ada"] += CHUNK_UUSD
            channel = whole.ada.payer.channel(whole.bob_account.address, whole.bob_account.peer)
            await channel.accept(self.order, [(payload, envelope)], sampled=1)
            self.count("job")

    async def settle(self, _: int) -> None:
        whole = self.whole
        with suppress(P2PComputeError), trio.move_on_after(600):
            await whole.ada.payer.channel(whole.bob_account.address, whole.bob_account.peer).pay()
            self.count("settle")

    # What happens

    async def wait(self, how: int) -> None:
        await trio.sleep(WAITS_S[how % len(WAITS_S)])
        self.count("wait")

    async def reorg(self, how: int) -> None:
        """Blocks are taken back: with all in them, or without mallory's, or without anybody else's."""
        whole = self.whole
        now_s = whole.now_s()
        if now_s - self.reorg_at_s < REORG_PAUSE_S:
            return
        self.reorg_at_s = now_s
        depth = 12 if how % 2 else how % 12 + 1
        keep: Callable[[Mined], bool] = (
            lambda _: False,
            lambda item: item.sender == whole.mallory.address,
            lambda item: item.sender != whole.mallory.address,
        )[how // 2 % 3]
        before = (await self.books()).deposit[whole.from_mallory]
        lost = whole.node.reorganise(depth, keep)
        self.taken_back |= (await self.books()).deposit[whole.from_mallory] < before
        self.count("reorg of 12" if depth == 12 else "reorg", lost > 0)

    async def endpoint_down(self, how: int) -> None:
        """A node can't reach the chain; no longer than until a tenth of the window to close is left."""
        whole = self.whole
        node = (whole.bob, whole.ada)[how % 4 == 3]
        if node.endpoint.down or whole.now_s() - self.up_since_s < CLOSE_DELAY_S - OUTAGE_S:
            return
        node.endpoint.down = True
        self.up_since_s = whole.now_s() + OUTAGE_S
        self.count("endpoint down")

        async def come_back() -> None:
            await trio.sleep(OUTAGE_S)
            node.endpoint.down = False

        whole.nursery.start_soon(come_back)

    async def lose(self, _: int) -> None:
        self.whole.node.lose = 1

    async def cut(self, how: int) -> None:
        """The token begins to take a cut of each transfer, or ends it."""
        whole = self.whole
        if whole.token_kind != "HostileToken":
            return
        bps = (0, 100, 5_000, 10_000)[how % 4]
        data = keccak256(b"set_cut(uint256)")[:4] + bps.to_bytes(32, "big")
        assert self.transact(data, whole.bank, whole.node.token)
        self.count("cut", bps > 0)
        # Somebody tries to bring tokens in meanwhile.
        self.transact(encode_approve(whole.node.hub, 40), to=whole.node.token)
        self.transact(encode_deposit(40, whole.mallory.address))

    async def restart(self, how: int) -> None:
        await self.whole.restart((self.whole.bob, self.whole.ada)[how % 2])
        await self.hang_up()
        self.count("restart")

    # All of it

    async def begin(self) -> None:
        """Both of ada's channels and mallory's account at the hub have money, deep in the chain."""
        whole = self.whole
        bob, ada = whole.bob.ledger, whole.ada.ledger
        self.task = await whole.agree(whole.mallory, whole.bob_account, [(bob, "provider")])
        self.order = await whole.agree(whole.ada_account, whole.bob_account, [(bob, "provider"), (ada, "requester")])
        self.sold = await whole.agree(whole.ada_account, whole.mallory, [(ada, "requester")])
        await whole.ada.payer.open_channels(
            [*whole.need(whole.bob_account, 1), *whole.need(whole.mallory, 1)], deposit_uusd=START_UUSD
        )
        assert self.transact(encode_approve(whole.node.hub, START_UUSD), to=whole.node.token)
        assert self.transact(encode_deposit(START_UUSD // 2, whole.mallory.address))
        assert self.transact(self.fund_data(40))
        await trio.sleep(DEEP * BLOCK_S)

    async def act(self, name: str, how: int) -> None:
        acts: dict[str, Callable[[int], Awaitable[None]]] = {
            "work": self.work,
            "pay": self.pay,
            "replay": self.replay,
            "reorder": self.reorder,
            "drop": self.drop,
            "fund": self.fund,
            "bait": self.bait,
            "withdraw": self.withdraw,
            "ask to close": self.ask_to_close,
            "close": self.close,
            "close by a third": self.close_by_a_third,
            "forged consent": self.forged_consent,
            "poison": self.poison,
            "old voucher": self.old_voucher,
            "stolen voucher": self.stolen_voucher,
            "job": self.job,
            "settle": self.settle,
            "buy": self.buy,
            "seller claims": self.seller_claims,
            "seller forges": self.seller_forges,
            "wait": self.wait,
            "reorg": self.reorg,
            "endpoint down": self.endpoint_down,
            "lost transaction": self.lose,
            "cut": self.cut,
            "restart": self.restart,
        }
        head, _, tail = name.partition(" ")
        if name in FORGERIES:
            await self.forgery(name)
        elif head == "first:":
            await self.first(tail)
        elif head == "seller:":
            await self.pay_seller(tail)
        elif head == "wire":
            self.whole.faults.extend([""] * (how % 3) + [tail])
        else:
            await acts[name](how)

    async def check(self) -> None:
        """What holds after every act."""
        whole = self.whole
        books = await self.books()
        out = await whole.ada.ledger.channel_out(whole.from_ada)
        into = await whole.bob.ledger.channel_in(whole.from_ada)
        assert out is not None
        assert self.voucher <= out.voucher_uusd <= out.accepted_uusd <= self.done["ada"]
        self.voucher = out.voucher_uusd
        if into is not None:
            assert into.best_uusd <= out.voucher_uusd
            assert out.acked_uusd <= into.best_uusd
        assert books.claimed[whole.from_ada] <= out.voucher_uusd
        sold = await whole.ada.ledger.channel_out(whole.to_mallory)
        assert sold is None or sold.voucher_uusd <= sold.accepted_uusd <= self.bought
        assert books.claimed[whole.to_mallory] <= self.bought

    async def end(self) -> None:
        """The adversary lets go, and everything is settled: what is everybody short of?"""
        whole = self.whole
        await self.hang_up()
        whole.faults.clear()
        whole.node.first.clear()
        whole.node.lose = 0
        for node in (whole.ada, whole.bob):
            node.endpoint.down = False
            await whole.restart(node)
        if whole.token_kind == "HostileToken":
            await self.cut(0)
        ada = whole.ada
        await self.settled(ada)
        await ada.payer.open_channels([*whole.need(whole.bob_account, 1), *whole.need(whole.mallory, 1)])
        await trio.sleep(DEEP * BLOCK_S)
        channel = ada.payer.channel(whole.bob_account.address, whole.bob_account.peer)
        assert await channel.pay() == self.done["ada"]
        await self.settled(whole.bob)
        await whole.bob.settler.checkpoint()
        await self.settled(whole.bob)
        await self.check()
        books = await self.books()
        assert books.claimed[whole.from_ada] == self.done["ada"], "bob is not paid by who pays"
        short = self.done["mallory"] - books.claimed[whole.from_mallory]
        allowed = WINDOW_UUSD + (AT_ONCE_UUSD if self.taken_back else 0)
        assert short <= allowed, f"bob is short of {short}, which is more than {allowed}"
        bobs = books.claimed[whole.from_ada] + books.claimed[whole.from_mallory]
        assert books.free[whole.bob_account.address] == bobs, "bob has what was claimed"
        # Ada takes back what is left, and mallory too.
        for payee in (whole.bob_account, whole.mallory):
            self.transact(encode_request_close(payee.address, whole.ada_account.address), whole.ada_account)
        await trio.sleep(CLOSE_DELAY_S + BLOCK_S)
        for payee in (whole.bob_account, whole.mallory):
            address = whole.ada_account.address
            self.transact(encode_finalize(address, payee.address, address), whole.ada_account)
        books = await self.books()
        paid = self.done["ada"] + books.claimed[whole.to_mallory]
        assert books.claimed[whole.to_mallory] <= self.bought
        assert books.free[whole.ada_account.address] == books.brought[whole.ada_account.address] - paid, "ada's money"

    async def settled(self, node: Node) -> None:
        """Rounds until nothing of a node's is under way."""
        for _ in range(4):
            await node.settler.round()
            await trio.sleep(DEEP * BLOCK_S)


async def play(whole: Whole, acts: Sequence[Act]) -> None:
    """One history, checked after each act and at its end."""
    async with whole.open():
        adversary = Adversary(whole)
        await adversary.begin()
        for name, how in acts:
            await adversary.act(name, how)
            await trio.sleep(1)
            await trio.testing.wait_all_tasks_blocked()
            await adversary.check()
        await adversary.end()
