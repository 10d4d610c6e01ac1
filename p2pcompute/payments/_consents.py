"""The payee's consent to close a channel at once: when it is given, what it forbids, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from p2pcompute._rates import Buckets, Rate, TokenBucket
from p2pcompute.errors import ChainError, ChannelBusy, ChannelClosing, VoucherRefused
from p2pcompute_protocols._binding import WalletSigner
from p2pcompute_protocols.channel import MAX_EPOCH, CloseConsent, Domain, close_digest
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import ChannelId
from p2pcompute_protocols.money import usd

from ._api import ConsentOut, Hub, PayeeLedger, payee_epoch, payee_view
from ._debts import OLD_DEBT_MS

__all__ = ["CONSENT_S", "OVER_S", "Consents", "NoConsent"]

CONSENT_S: Final = 900
"""How long a consent is good: for the payer's claim and its closing, each of which may wait for a block."""
OVER_S: Final = 3_600
"""A consent counts as over so long behind its deadline: the clocks of chains are not ours."""
_LEAST_LEFT_S: Final = 600  # one that is out already is given again while it is good for so long
_CHAIN_READ_S: Final = 0.5  # at most one read of the chain per channel in this time
_MAX_TRACKED: Final = 4_096
_ASKS_OF_CHANNEL: Final = Rate(per_s=1 / 30, burst=4)  # that have the chain asked: a payer asks once for a closing
_ASKS_OF_KNOWN: Final = Rate(per_s=4, burst=64)  # for all channels with a row in the ledger together
_ASKS_OF_STRANGERS: Final = Rate(per_s=1, burst=16)  # for all others: keys cost nothing, so they share what is theirs
_AGAIN: Final = "try again in half a minute"


class NoConsent(Exception):
    """It is not given, with the wire code that says why."""

    def __init__(self, code: WireCode, detail: str) -> None:
        self.code = code
        super().__init__(detail)


class Consents:
    """Gives consents for one payee, and says when a channel is of use again.

    Args:
        ledger: see `PayeeLedger`.
        hub: for how often channels were closed.
        signer: the payee's own key; None gives no consents, but keeps to those that are out.
        domain: of the hub's vouchers and closings.
        clock_ms: UNIX time in milliseconds.
        forget: gets a channel whose consent is over, before vouchers are taken on it again: what was read of the chain
            until then was read of a channel that may have been closed since.
    """

    def __init__(
        self,
        *,
        ledger: PayeeLedger,
        hub: Hub,
        signer: WalletSigner | None,
        domain: Domain,
        clock_ms: Callable[[], int],
        forget: Callable[[ChannelId], None],
    ) -> None:
        self._ledger = ledger
        self._hub = hub
        self._signer = signer
        self._domain = domain
        self._clock_ms = clock_ms
        self._forget = forget
        self._read_at: dict[ChannelId, float] = {}
        self._asked = Buckets[ChannelId](_ASKS_OF_CHANNEL, trio.current_time, capacity=_MAX_TRACKED)
        self._of_known = TokenBucket(_ASKS_OF_KNOWN, 0.0)
        self._of_strangers = TokenBucket(_ASKS_OF_STRANGERS, 0.0)
        self._lock = trio.Lock()

    async def check(self, channel: ChannelId) -> None:
        """Raise `ChannelClosing` where a consent to close the channel is out and may still be used.

        One whose channel was closed, or whose time is over, is taken off the ledger.

        Raises:
            ChannelClosing: it is; or the chain can't be asked whether it still is.
        """
        if await self._ledger.consent(channel) is None:
            return
        async with self._lock:
            await self._check(channel)

    async def _check(self, channel: ChannelId) -> None:
        out = await self._ledger.consent(channel)
        if out is None:
            return  # another task has seen it meanwhile
        if not self._is_late(out):
            self._look_again(channel)
            try:
                closed = await payee_epoch(self._hub, channel) > out.epoch
                state = await payee_view(self._hub, channel) if closed else None
            except ChainError as exc:
                self._read_at.pop(channel, None)
                raise ChannelClosing("we have signed a closing, and the chain can't be asked about it now") from exc
            if state is None:
                raise ChannelClosing(
                    f"we have signed that this channel may be closed at {usd(out.amount_uusd)}; close it and fund "
                    "it again, or wait until the consent is over"
                )
            await self._ledger.set_chain_in(
                channel,
                deposit_uusd=state.deposit_uusd,
                claimed_uusd=state.claimed_uusd,
                close_at_s=state.close_at_s,
            )
        self._forget(channel)
        self._read_at.pop(channel, None)  # the next consent is another one: each costs its payer a closing
        await self._ledger.end_consent(channel, epoch=out.epoch)

    def _is_late(self, out: ConsentOut) -> bool:
        return self._clock_ms() // 1000 > out.deadline_s + OVER_S

    def _look_again(self, channel: ChannelId) -> None:
        now = trio.current_time()
        read_at = self._read_at.pop(channel, None)
        if read_at is not None and now - read_at < _CHAIN_READ_S:
            self._read_at[channel] = read_at
            raise ChannelClosing("the channel was looked up a moment ago; try again shortly")
        if len(self._read_at) >= _MAX_TRACKED:
            # Forgetting the oldest costs one more read of the chain.
            self._read_at.pop(next(iter(self._read_at)))
        self._read_at[channel] = now

    def admit(self, channel: ChannelId, *, known: bool) -> None:
        """Let a request to close have the chain asked.

        Args:
            channel: which it is about.
            known: whether the ledger has a row of it, so that it cost somebody money or credit.

        Raises:
            NoConsent: INTERNAL where there were too many; a payer asks again for that.
        """
        if known and not self._asked.take(channel):
            raise NoConsent(WireCode.INTERNAL, f"the closing of this channel was asked for a moment ago; {_AGAIN}")
        if not (self._of_known if known else self._of_strangers).take(trio.current_time()):
            raise NoConsent(WireCode.INTERNAL, f"others ask to close their channels; {_AGAIN}")

    async def give(self, channel: ChannelId, *, amount_uusd: int) -> ConsentOut:
        """Consent to close a channel that the ledger has, at what is paid on it. It is on disk before it is given.

        Raises:
            NoConsent: with PAYMENT_REQUIRED where work is under way, or unpaid since less than a day, BAD_VOUCHER where
                another amount is paid, CLOSING where one of an earlier epoch is out, INTERNAL where the chain can't be
                asked, or was asked too often, UNSUPPORTED where it can't be signed.
            DiskFull: see there; nothing was signed that anybody has seen.
        """
        signer = self._signer
        if signer is None or signer.address != self._hub.account:
            raise NoConsent(WireCode.UNSUPPORTED, "this node does not have the payee's key at hand")
        now_ms = self._clock_ms()
        now_s = now_ms // 1000
        # A payer owes nothing for a result that it has lost, and we can't tell that from not paying. By then it would
        # have its money without us.
        recent_ms = now_ms - OLD_DEBT_MS
        try:
            await self._ledger.check_consent(channel, amount_uusd=amount_uusd, recent_ms=recent_ms)
        except (ChannelBusy, VoucherRefused) as exc:
            raise _refused(exc) from exc
        self.admit(channel, known=True)
        try:
            epoch = await self._hub.epoch(channel)
        except ChainError as exc:
            raise NoConsent(WireCode.INTERNAL, "the chain can't be asked now; try again later") from exc
        out = await self._ledger.consent(channel)
        if out is not None and out.epoch != epoch:
            try:
                await self.check(channel)
            except ChannelClosing as exc:
                raise NoConsent(WireCode.CLOSING, str(exc)) from exc
        if epoch >= MAX_EPOCH:
            raise NoConsent(WireCode.UNSUPPORTED, "the channel was closed too often to be closed by signature")

        def sign(epoch: int, amount_uusd: int, deadline_s: int) -> bytes:
            consent = CloseConsent(channel=channel, epoch=epoch, amount_uusd=amount_uusd, deadline_s=deadline_s)
            return signer.sign_digest(close_digest(self._domain, consent))

        try:
            return await self._ledger.give_consent(
                channel,
                epoch=epoch,
                amount_uusd=amount_uusd,
                deadline_s=now_s + CONSENT_S,
                renew_before_s=now_s + _LEAST_LEFT_S,
                recent_ms=recent_ms,
                sign=sign,
            )
        except (ChannelBusy, VoucherRefused, ChannelClosing) as exc:
            raise _refused(exc) from exc


def _refused(exc: ChannelBusy | VoucherRefused | ChannelClosing) -> NoConsent:
    if isinstance(exc, ChannelClosing):
        return NoConsent(WireCode.CLOSING, str(exc))
    return NoConsent(WireCode.PAYMENT_REQUIRED if isinstance(exc, ChannelBusy) else WireCode.BAD_VOUCHER, str(exc))
