"""A watchtower: keeps others' vouchers, claims them for their owners, and gives them back.

The hub credits a claim to the channel's payee whoever submits it, so a tower can claim and can't take. It pays the
gas, and gets nothing for it: it watches for those that its operator has named.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

import trio

from p2pcompute._dialogue import FRAME_TIMEOUT_S, STREAM_FAULTS, Dialogue
from p2pcompute.errors import ChainError, DiskFull
from p2pcompute_protocols._binding import verify_binding
from p2pcompute_protocols.channel import Domain, Voucher, channel_id, recover_signer
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.limits import MAX_TEXT, MAX_WATCHED_PER_REPLY
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

from ._api import MAX_BATCH, Claim, ClaimRow, GasMeter, Hub, Stream, payee_view
from ._outbox import Outbox
from ._payee import MAX_LEDGER_UUSD
from ._settle_policy import CLOSE_WINDOW_S, SettlePolicy, rows_due

__all__ = ["MAX_WATCHED", "WatchShelf", "WatchedVoucherRow", "Watchtower"]

MAX_WATCHED: Final = 1_024
"""Channels of one account of which a tower keeps vouchers."""

LOOK_S: Final = 600.0  # between two looks at the channels; a window to claim lasts a day
_OWNERS_PART_S: Final = CLOSE_WINDOW_S // 2  # of the window, in which the owner is let claim itself
_HELLO_S: Final = 10.0
_IDLE_S: Final = 120.0
_MAX_REFUSALS: Final = 16
_log = logging.getLogger("p2pcompute.payments")


class WatchedVoucherRow(Protocol):
    """A voucher that is kept; see `p2pcompute.storage.WatchedRow`."""

    @property
    def account(self) -> Address: ...
    @property
    def payer(self) -> Address: ...
    @property
    def signer(self) -> Address: ...
    @property
    def amount_uusd(self) -> int: ...
    @property
    def memo(self) -> bytes: ...
    @property
    def signature(self) -> bytes: ...


class WatchShelf(Protocol):
    """Where they are kept; see `p2pcompute.storage.WatchStore`."""

    async def put(
        self, account: Address, payer: Address, signer: Address, uusd: int, memo: bytes, signature: bytes, *, room: int
    ) -> int | None: ...
    async def count(self, account: Address) -> int: ...
    async def page(self, account: Address, *, after: bytes, limit: int) -> Sequence[WatchedVoucherRow]: ...
    async def every(self) -> Sequence[WatchedVoucherRow]: ...
    async def forget(self, account: Address, payer: Address, signer: Address, *, up_to_uusd: int) -> None: ...


class _Refuse(Exception):
    """A hello or a voucher is not taken."""

    def __init__(self, code: WireCode, detail: str) -> None:
        self.code = code
        super().__init__(detail)

    def message(self) -> WatchRefusal:
        return WatchRefusal(code=int(self.code), detail=str(self)[:MAX_TEXT])


@dataclass(frozen=True, slots=True)
class _Due:
    """A voucher on a channel that is closing, in the shape that the policy asks for."""

    row: WatchedVoucherRow
    unclaimed_uusd: int
    close_at_s: int


class Watchtower:
    """Watches for others. Register `serve_watch` for `/p2pcompute/watch/1`, and run `serve`.

    Args:
        shelf: where vouchers are kept.
        hub: the view of the account that pays the gas.
        outbox: of the same account.
        network: the overlay network's ID, part of every binding.
        watch_for: peer IDs, and accounts as 0x and 40 hexadecimal digits in lower case; nobody else is welcome.
        policy: what of gas is weighed against what a claim brings; its cap does not count.
        clock_ms: UNIX time in milliseconds.
    """

    def __init__(
        self,
        *,
        shelf: WatchShelf,
        hub: Hub,
        outbox: Outbox,
        network: str,
        watch_for: Collection[str],
        policy: SettlePolicy,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._shelf = shelf
        self._hub = hub
        self._outbox = outbox
        self._network = network
        self._watch_for = frozenset(watch_for)
        self._policy = policy
        self._clock_ms = clock_ms
        self._domain = Domain(chain_id=hub.terms.chain_id, contract=Address(hub.terms.hub))
        self.refused: Counter[WireCode] = Counter()

    # Keeping and giving back

    async def serve_watch(self, stream: Stream) -> None:
        """The handler of the watch protocol: serves one stream to its end, and does not raise for what a peer does.

        Raises:
            StorageError: the store failed or is damaged. A full disk is no such case: vouchers are refused until there
                is room.
        """
        try:
            await self._serve(Dialogue(WatchConnection(Role.PROVIDER), stream, send_s=FRAME_TIMEOUT_S), stream)
        except RemoteProtocolError as exc:
            self.refused[exc.code] += 1
        except STREAM_FAULTS:
            pass

    async def _serve(self, dialogue: Dialogue, stream: Stream) -> None:
        hello = await dialogue.receive(stall_s=_HELLO_S)
        if isinstance(hello, StreamEnded):
            return
        assert isinstance(hello, WatchHello)
        try:
            account = self._greet(str(stream.peer_id), hello)
        except _Refuse as refusal:
            self.refused[refusal.code] += 1
            if refusal.code is WireCode.BAD_SIGNATURE:  # its own; that of a voucher is another's
                stream.blame(RemoteProtocolError(str(refusal), code=refusal.code))
            await dialogue.send(refusal.message())
            return
        kept = await self._shelf.count(account)
        await dialogue.send(WatchWelcome(kept=kept, room=max(0, MAX_WATCHED - kept)))
        refusals = 0
        while refusals < _MAX_REFUSALS:
            message = await dialogue.receive(stall_s=_IDLE_S)
            match message:
                case WatchKeep():
                    try:
                        held = await self._keep(account, message.voucher)
                    except _Refuse as refusal:
                        refusals += 1
                        self.refused[refusal.code] += 1
                        await dialogue.send(refusal.message())
                    else:
                        await dialogue.send(WatchKept(amount_uusd=held))
                case WatchFetch():
                    await dialogue.send(await self._give(account, message.after or b""))
                case _:
                    return

    def _greet(self, peer: str, hello: WatchHello) -> Address:
        if hello.chain != self._hub.terms:
            raise _Refuse(WireCode.CHAIN_MISMATCH, "another chain, hub or token")
        binding = hello.owner
        try:
            verify_binding(binding, network=self._network, peer_id=peer, now_ms=self._clock_ms())
        except LocalProtocolError as exc:
            raise _Refuse(exc.code, str(exc)) from exc
        if binding.owner != binding.signer:
            raise _Refuse(WireCode.WRONG_PEER, "the binding is not signed by the account itself")
        if not self._watch_for & {peer, "0x" + binding.owner.hex()}:
            raise _Refuse(WireCode.NO_CAPACITY, "this tower does not watch for you; ask whoever runs it")
        return Address(binding.owner)

    async def _keep(self, account: Address, voucher: WatchedVoucher) -> int:
        if voucher.amount_uusd > MAX_LEDGER_UUSD:
            raise _Refuse(WireCode.OVERSIZED, "above what this node keeps account of")
        payer, signer = Address(voucher.payer), Address(voucher.signer)
        if not is_signed(self._domain, account, voucher):
            raise _Refuse(WireCode.BAD_SIGNATURE, "not signed by the channel's signer")
        try:
            held = await self._shelf.put(
                account, payer, signer, voucher.amount_uusd, voucher.memo, voucher.signature, room=MAX_WATCHED
            )
        except DiskFull as exc:
            _log.warning("a voucher for 0x%s is not kept: %s", account.hex(), exc)
            raise _Refuse(WireCode.INTERNAL, "no room on this disk; try again later") from exc
        if held is None:
            raise _Refuse(WireCode.NO_CAPACITY, f"{MAX_WATCHED} channels of an account are kept and no more")
        return held

    async def _give(self, account: Address, after: bytes) -> WatchGiven:
        rows = await self._shelf.page(account, after=after, limit=MAX_WATCHED_PER_REPLY + 1)
        vouchers = tuple(
            WatchedVoucher(
                payer=row.payer,
                signer=row.signer,
                amount_uusd=row.amount_uusd,
                memo=row.memo,
                signature=row.signature,
            )
            for row in rows[:MAX_WATCHED_PER_REPLY]
        )
        return WatchGiven(vouchers=vouchers, more=len(rows) > MAX_WATCHED_PER_REPLY)

    # Claiming

    async def round(self) -> int:
        """One look at all channels: claim what is closing, and forget what is claimed. The claimed channels.

        Raises:
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        await self._outbox.look()
        now_s = self._clock_ms() // 1000
        due: dict[Address, list[_Due]] = {}
        for row in await self._shelf.every():
            state = await payee_view(self._hub, channel_id(row.payer, row.account, row.signer))
            if state.claimed_uusd >= row.amount_uusd:
                await self._shelf.forget(row.account, row.payer, row.signer, up_to_uusd=state.claimed_uusd)
                continue
            worth = min(row.amount_uusd, state.deposit_uusd) - state.claimed_uusd
            if worth > 0 and state.close_at_s and state.close_at_s - now_s <= CLOSE_WINDOW_S - _OWNERS_PART_S:
                due.setdefault(row.account, []).append(_Due(row, worth, state.close_at_s))
        quote = await self._hub.gas_quote() if due and isinstance(self._hub, GasMeter) else None
        claimed = 0
        for account, closing in due.items():
            chosen = rows_due(closing, now_s=now_s, policy=self._policy, quote=quote)
            for first in range(0, len(chosen), MAX_BATCH):
                batch = [item.row for item in chosen[first : first + MAX_BATCH]]
                await self._outbox.run(Claim(payee=account, rows=tuple(map(_claim_row, batch))))
                claimed += len(batch)
                _log.info("claimed %d closing channels for 0x%s", len(batch), account.hex())
        return claimed

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """A round every ten minutes, until cancelled. What fails for now is tried again."""
        task_status.started()
        while True:
            try:
                await self.round()
            except (ChainError, DiskFull) as exc:
                _log.warning("channels of others could not be looked after, trying again in %g s: %s", LOOK_S, exc)
            await trio.sleep(LOOK_S)


def is_signed(domain: Domain, account: Address, voucher: WatchedVoucher) -> bool:
    """Whether a voucher of a channel to `account` is its signer's."""
    channel = channel_id(Address(voucher.payer), account, Address(voucher.signer))
    try:
        made = Voucher(channel=channel, amount_uusd=voucher.amount_uusd, memo=voucher.memo)
        return recover_signer(domain, made, voucher.signature) == voucher.signer
    except LocalProtocolError:
        return False


def _claim_row(row: WatchedVoucherRow) -> ClaimRow:
    return ClaimRow(
        payer=row.payer, signer=row.signer, amount_uusd=row.amount_uusd, memo=row.memo, signature=row.signature
    )
