"""Leaving our vouchers with a watchtower, and getting back what this ledger has lost."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import trio

from p2pcompute._dialogue import FRAME_TIMEOUT_S, STREAM_FAULTS, Dialogue
from p2pcompute.errors import ChainError, ChannelChanged, ChannelClosing, DiskFull, PaymentError, VoucherRefused
from p2pcompute_protocols._binding import SignerBinding
from p2pcompute_protocols.channel import Domain, channel_id
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import Address, ChannelId, PeerId
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

from ._api import Hub, PayeeLedger, Stream, payee_view, read_in
from ._payee import MAX_LEDGER_UUSD
from ._watchtower import MAX_WATCHED, is_signed

__all__ = ["TowerRefused", "VoucherKeeping"]

PUSH_S: Final = 30.0  # between two looks at what is new
_ANSWER_S: Final = 30.0
_MOST_REFUSALS: Final = 8  # in one dialogue: a tower leaves whoever goes on
_log = logging.getLogger("p2pcompute.payments")


class TowerRefused(PaymentError):
    """The watchtower does not watch for us, or has no room for more; name another one with --watchtower."""


class VoucherKeeping:
    """Leaves the newest voucher of each channel with one watchtower.

    Args:
        ledger: the payee's.
        hub: the payee's view of the hub.
        binding: ties the payee's account to this node; the account is its owner and its signer.
        dial: opens a stream of the watch protocol to the tower.
        peer_id: our own: what is given back is booked under it, for a tower's word is not enough to give a payer a
            history.
        name: of the tower, for people.
    """

    def __init__(
        self,
        *,
        ledger: PayeeLedger,
        hub: Hub,
        binding: Callable[[], SignerBinding],
        dial: Callable[[], Awaitable[Stream]],
        peer_id: PeerId,
        name: str,
    ) -> None:
        self._ledger = ledger
        self._hub = hub
        self._binding = binding
        self._dial = dial
        self._peer_id = peer_id
        self._name = name
        self._domain = Domain(chain_id=hub.terms.chain_id, contract=Address(hub.terms.hub))
        self._left: dict[ChannelId, int] = {}

    async def restore(self) -> int:
        """Take back the vouchers that are better than ours. The channels.

        Each is verified as any voucher is, and counts only where there is money on chain behind it.

        Raises:
            TowerRefused: it does not watch for us.
            StreamError, RemoteProtocolError: it can't be reached, or broke the protocol.
            ChainError: the endpoint.
        """
        stream = await self._dial()
        try:
            dialogue = await self._greet(stream)
            taken, after, seen = 0, None, 0
            while seen <= MAX_WATCHED:  # a tower that gives for ever is left
                await dialogue.send(WatchFetch(after=after))
                given = await dialogue.expect(WatchGiven, stall_s=_ANSWER_S)
                for voucher in given.vouchers:
                    taken += await self._take(voucher)
                seen += len(given.vouchers)
                if not given.more:
                    break
                after = given.vouchers[-1].place
            return taken
        finally:
            await _close(stream)

    async def _take(self, voucher: WatchedVoucher) -> bool:
        payer, signer, account = Address(voucher.payer), Address(voucher.signer), self._hub.account
        channel = channel_id(payer, account, signer)
        row = await self._ledger.channel_in(channel)
        amount = voucher.amount_uusd
        if amount > MAX_LEDGER_UUSD or (row is not None and row.held_uusd >= amount):
            return False
        if not is_signed(self._domain, account, voucher):
            _log.warning("the watchtower %s gave back a voucher that nobody has signed", self._name)
            return False
        state = await payee_view(self._hub, channel)
        if min(amount, state.deposit_uusd) <= state.claimed_uusd:
            return False
        if row is None:
            row = await self._ledger.open_channel_in(channel, payer=payer, signer=signer, peer=self._peer_id)
        row = await read_in(self._ledger, self._hub, channel)
        try:
            await self._ledger.take_voucher(
                channel, amount_uusd=amount, memo=voucher.memo, signature=voucher.signature, peer=row.peer, checked=row
            )
        except (ChannelChanged, ChannelClosing, VoucherRefused):
            return False
        return True

    async def push(self) -> int:
        """Leave what is new since the last time: of channels that the tower has first, then those that are worth most.
        The vouchers that the tower has taken.

        Raises:
            TowerRefused: also where it refuses a voucher; it has got the others then, unless it refused too many.
            StreamError, RemoteProtocolError: as `restore`.
        """
        rows = [
            row
            for row in await self._ledger.channels_in()
            if row.unclaimed_uusd > 0 and row.best_uusd > self._left.get(row.channel, 0)
        ]
        if not rows:
            return 0
        # Anybody can open channels to us: those that find no room may not keep newer vouchers of others back.
        rows.sort(key=lambda row: (row.channel not in self._left, -row.unclaimed_uusd))
        refusals: list[WatchRefusal] = []
        stream = await self._dial()
        try:
            dialogue = await self._greet(stream)
            for row in rows:
                assert row.memo is not None
                assert row.signature is not None
                voucher = WatchedVoucher(
                    payer=row.payer,
                    signer=row.signer,
                    amount_uusd=row.best_uusd,
                    memo=row.memo,
                    signature=row.signature,
                )
                await dialogue.send(WatchKeep(voucher=voucher))
                answer = await dialogue.expect(WatchKept, WatchRefusal, stall_s=_ANSWER_S)
                if isinstance(answer, WatchKept):
                    self._left[row.channel] = row.best_uusd
                    continue
                refusals.append(answer)
                if len(refusals) == _MOST_REFUSALS:
                    break
            if refusals:
                raise _refused(self._name, refusals[0])
            return len(rows)
        finally:
            await _close(stream)

    async def _greet(self, stream: Stream) -> Dialogue:
        dialogue = Dialogue(WatchConnection(Role.REQUESTER), stream, send_s=FRAME_TIMEOUT_S)
        await dialogue.send(WatchHello(chain=self._hub.terms, owner=self._binding()))
        answer = await dialogue.expect(WatchWelcome, WatchRefusal, stall_s=_ANSWER_S)
        if isinstance(answer, WatchRefusal):
            raise _refused(self._name, answer)
        return dialogue

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Take back once what this ledger has lost, then leave what is new every 30 s, until cancelled."""
        task_status.started()
        restored = False
        while True:
            try:
                if not restored:
                    found = await self.restore()
                    restored = True
                    if found:
                        _log.warning(
                            "the watchtower %s gave back %d vouchers that this ledger had lost", self._name, found
                        )
                await self.push()
            except (ChainError, DiskFull, PaymentError, RemoteProtocolError, *STREAM_FAULTS) as exc:
                _log.warning("the watchtower %s has not got the newest vouchers, trying again: %s", self._name, exc)
            await trio.sleep(PUSH_S)


def _refused(name: str, refusal: WatchRefusal) -> TowerRefused:
    try:
        code = WireCode(refusal.code).name
    except ValueError:
        code = str(refusal.code)
    return TowerRefused(f"the watchtower {name} refused: {code}, {refusal.detail or 'no reason given'}")


async def _close(stream: Stream) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(1):
        try:
            await stream.aclose()
        except STREAM_FAULTS:
            return
