"""The ledger, the channels and the credit book in the shape that tasks ask for."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute.errors import ChannelClosing, DiskFull, InsufficientFunds, P2PComputeError, StreamError, VoucherRefused
from p2pcompute.market import Standing, Standings
from p2pcompute.market._standing import MAX_STRANGERS
from p2pcompute.payments import ChannelNeed, CreditExhausted, CreditWindow
from p2pcompute.payments._credit import Held
from p2pcompute.payments._debts import OLD_DEBT_MS
from p2pcompute.payments._earlier import EarlierWork
from p2pcompute_protocols.channel import channel_id
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.money import PUSD_PER_UUSD, owed_uusd
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import ReceiptBatch, ReceiptPayload

if TYPE_CHECKING:
    from p2pcompute.payments import ChannelOut, CreditBook, Payee, Payer
    from p2pcompute.storage import Ledger
    from p2pcompute.tasks._budget import TaskBudget

__all__ = ["ProviderLedgerBooks", "RequesterLedgerBooks"]

_log = logging.getLogger("p2pcompute.payments")
_LEAST_UNITS: Final = 2_000_000  # two seconds of a reference core
_LEAST_COMPILE_UNITS: Final = 500_000  # what the shortest compilation costs a newcomer: a worker was started for it
_NOT_BEGUN: Final = frozenset({WireCode.CANCELLED, WireCode.CREDIT_EXHAUSTED})  # said of a chunk that cost nothing
_OF_WORKERS: Final = frozenset({WireCode.EXECUTION_FAILED, WireCode.TIMED_OUT})  # said where a worker has failed
_LOW: Final = 4  # a channel that was not funded anew runs low with less than this part of what a task may still cost
_PAY_S: Final = 30.0  # in which a provider takes a voucher
_GATHER_S: Final = 0.05  # agreements made at about the same time are funded in one transaction


def _chunk_pusd(agreement: Agreement) -> int:
    work = agreement.terms.work
    return work.units_per_chunk * agreement.terms.price_pusd if work is not None else 0


class ProviderLedgerBooks:
    """`tasks.ProviderBooks` over the ledger."""

    def __init__(self, ledger: Ledger, payee: Payee, credit: CreditBook, subnet: Callable[[PeerId], str]) -> None:
        self._ledger = ledger
        self._payee = payee
        self._credit = credit
        self._subnet = subnet
        self._begun_pusd: Counter[PeerId] = Counter()  # chunks under way, over all tasks of a peer
        self._accounts: dict[ChannelId, set[_ProviderAccount]] = {}  # of the tasks that run

    async def agreed(self, agreement: Agreement) -> None:  # noqa: ARG002  as the protocol has it
        """Nothing is stored yet: both signatures prove an agreement to whoever is shown it, and agreeing costs a
        stranger nothing. It goes on disk with the first chunk that is charged to its requester's credit."""
        await trio.lowlevel.checkpoint()

    async def open(self, agreement: Agreement) -> _ProviderAccount:
        """The account of a task."""
        row = await self._ledger.agreement(agreement.task_id)
        if row is not None and row.state != "open":
            # Its receipts are issued: computing them again would cost this provider, and its requester nothing.
            raise LocalProtocolError("this task has ended; agree on a new one", code=WireCode.REPLAYED)
        peer = PeerId(agreement.terms.requester)
        known = await self._ledger.peer(peer)
        if known is not None and known.banned:
            raise LocalProtocolError(f"this requester is banned: {known.banned}", code=WireCode.CREDIT_EXHAUSTED)
        chunk_pusd = _chunk_pusd(agreement)
        first = await self._credit.first_window(peer, chunk_pusd=chunk_pusd)
        maximum = agreement.terms.max_window
        payer = agreement.terms.payer
        channel_ = channel_id(Address(payer.owner), Address(agreement.terms.payee), Address(payer.signer))
        channel = await self._ledger.channel_in(channel_)
        try:
            await self._payee.check_open(channel_)
        except ChannelClosing as exc:
            raise LocalProtocolError(str(exc), code=WireCode.CLOSING) from exc
        account = _ProviderAccount(
            ledger=self._ledger,
            payee=self._payee,
            credit=self._credit,
            agreement=agreement,
            channel=channel_,
            stored=row is not None,
            subnet=self._subnet(peer),
            chunk_pusd=chunk_pusd,
            window=CreditWindow(size=min(first, maximum), maximum=maximum),
            earlier=EarlierWork(
                owed_pusd=0 if channel is None else channel.owed_pusd,
                paid_uusd=0 if channel is None else channel.paid_uusd,
            ),
            begun_pusd=self._begun_pusd,
            siblings=self._accounts.setdefault(channel_, set()),
            forget=lambda: self._forget(channel_),
        )
        try:
            await account.look()
        except BaseException:
            account.leave()
            raise
        return account

    def _forget(self, channel: ChannelId) -> None:
        if not self._accounts.get(channel):
            self._accounts.pop(channel, None)


class _ProviderAccount:
    """`tasks.ProviderAccount`: credit is charged before a chunk is computed, money is owed once it is receipted."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        payee: Payee,
        credit: CreditBook,
        agreement: Agreement,
        channel: ChannelId,
        stored: bool,
        subnet: str,
        chunk_pusd: int,
        window: CreditWindow,
        earlier: EarlierWork,
        begun_pusd: Counter[PeerId],
        siblings: set[_ProviderAccount],
        forget: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._payee = payee
        self._credit = credit
        self._agreement = agreement
        self._peer = PeerId(agreement.terms.requester)
        self._channel = channel
        self._stored = stored
        self._subnet = subnet
        self._chunk_pusd = chunk_pusd
        self._window = window
        # What was left unpaid by earlier tasks stays owed and counts against credit, but a voucher that covers only
        # this task's work moves this task on: a requester that lost a result before it could check it owes nothing.
        self._earlier = earlier
        self._siblings = siblings  # the accounts of all tasks that run on this channel
        self._forget = forget
        siblings.add(self)
        self._begun_pusd = begun_pusd
        self._under_way: list[int] = []  # what each chunk that is begun and not receipted was charged
        self._last_pusd = 0  # what the chunk that was receipted last was charged
        self._compile_pusd = 0  # what the compilation under way was charged
        self._last_excess_pusd = 0  # and how much of that was above its price
        self._held = Held()  # charged above what is receipted or under way: what comes next is taken from it
        # Of each unpaid chunk: all that was owed on the channel with it, ascending, and what it has added to that.
        self._owed: deque[tuple[int, int]] = deque()
        self._receipted: set[int] = set()
        self._issued = trio.Event()
        self._waiting = trio.CancelScope()  # around the wait for a voucher
        self._room = window.maximum  # chunks that may be unpaid here before the peer owes as much as it may

    @property
    def window(self) -> int:
        """Chunks on credit, now: no more than what this peer may owe still."""
        return min(self._window.size, self._room)

    @property
    def unpaid(self) -> int:
        """Chunks begun and not covered."""
        return self._window.unpaid

    async def begin(self) -> None:
        """Charge one chunk to the credit of its requester.

        A newcomer is charged at least `_LEAST_UNITS`: what a chunk costs this node is known once it is computed, and
        the units that an order states are the requester's own. What was too much comes back after the receipt.
        """
        await self._begin(1)

    async def begin_many(self, chunks: int) -> bool:
        """As `begin`, for several chunks with one charge; False, and none is begun, where there is no credit for all
        of them."""
        if not self._stored or self._window.room < chunks:
            return False
        try:
            await self._begin(chunks)
        except LocalProtocolError:
            return False
        return True

    async def _begin(self, chunks: int) -> None:
        price_pusd = self._agreement.terms.price_pusd
        # Before anything is awaited: all tasks of a peer share what it may owe.
        self._begun_pusd[self._peer] += self._chunk_pusd * chunks
        # As it is before what is owed is read: what is receipted meanwhile counts twice rather than never.
        others_pusd = self._begun_pusd[self._peer] - self._chunk_pusd * chunks
        try:
            recent_pusd, old_pusd = await self._unpaid_pusd()
            charged = await self._credit.charge(
                self._peer,
                subnet=self._subnet,
                pusd=self._chunk_pusd,
                newcomer_pusd=max(self._chunk_pusd, price_pusd * _LEAST_UNITS),
                unpaid_pusd=recent_pusd + others_pusd,
                old_pusd=old_pusd,
                held=self._held,
                pieces=chunks,
            )
        except CreditExhausted as exc:
            self._end_begun(chunks)
            raise LocalProtocolError(str(exc), code=WireCode.CREDIT_EXHAUSTED) from exc
        except BaseException:
            self._end_begun(chunks)
            raise
        self._under_way.extend([charged] * chunks)
        for _ in range(chunks):
            self._window.start()
        if not self._stored:
            try:
                await self._ledger.add_agreement(self._agreement, role="provider")
            except BaseException as exc:
                with trio.CancelScope(shield=True):
                    await self.drop()
                if isinstance(exc, ChannelClosing):  # consented to since the task was opened
                    raise LocalProtocolError(str(exc), code=WireCode.CLOSING) from exc
                raise
            self._stored = True

    async def look(self) -> None:
        """See how much more the peer may owe. A window beyond that would have it wait for chunks that can't begin."""
        begun_pusd = self._begun_pusd.get(self._peer, 0)
        recent_pusd, old_pusd = await self._unpaid_pusd()
        room_pusd = await self._credit.room_pusd(self._peer, unpaid_pusd=recent_pusd + begun_pusd, old_pusd=old_pusd)
        self._room = self._window.maximum
        if room_pusd is not None and self._chunk_pusd:
            self._room = max(1, self._window.unpaid + room_pusd // self._chunk_pusd)

    async def _unpaid_pusd(self) -> tuple[int, int]:
        """What the peer owes since less than a day, and what for longer."""
        unpaid_pusd = await self._ledger.unpaid_pusd(self._peer, self._channel)
        debts = self._credit.debts
        if not await self._credit.is_known(self._peer):
            # What a newcomer owes counts for the budgets of an hour, and nothing is remembered of strangers.
            return unpaid_pusd, 0
        worked_pusd = 0
        if unpaid_pusd and not debts.knows(self._peer):
            worked_pusd = await self._ledger.work_since_pusd(
                self._peer, self._channel, since_ms=debts.now_ms() - OLD_DEBT_MS
            )
        old_pusd = debts.old_pusd(self._peer, unpaid_pusd=unpaid_pusd, worked_pusd=worked_pusd)
        return unpaid_pusd - old_pusd, old_pusd

    def _end_begun(self, chunks: int = 1) -> None:
        self._begun_pusd[self._peer] -= self._chunk_pusd * chunks
        if self._begun_pusd[self._peer] <= 0:
            del self._begun_pusd[self._peer]

    async def drop(self, *, used_units: int = 0) -> None:
        """A chunk came to nothing, or to far less than it cost: a newcomer's credit is charged what it really used.

        Args:
            used_units: what the chunk has used of this device. Right after `issue`, with no chunk under way, that is
                what the receipted chunk cost; then nothing that it was charged before comes back.
        """
        cost_pusd = used_units * self._agreement.terms.price_pusd
        if self._under_way:
            charged = self._under_way.pop()
            self._end_begun()
            self._window.drop()
        else:
            # Of what is held, what it was charged above its price is used; the rest is still to come.
            cost_pusd = max(self._last_pusd, cost_pusd)
            charged = self._last_pusd + max(0, self._held.pusd - self._last_excess_pusd)
            self._last_pusd = self._last_excess_pusd = self._held.pusd = 0
        await self._credit.settle(self._peer, subnet=self._subnet, charged_pusd=charged, cost_pusd=cost_pusd)

    async def begin_compile(self) -> None:
        """Charge a compilation to the credit of its requester, before it begins; a known peer's when it is over."""
        price_pusd = self._agreement.terms.price_pusd
        try:
            self._compile_pusd = await self._credit.charge(
                self._peer,
                subnet=self._subnet,
                pusd=price_pusd,
                newcomer_pusd=price_pusd * _LEAST_UNITS,
                unpaid_pusd=0,
            )
        except CreditExhausted as exc:
            raise LocalProtocolError(str(exc), code=WireCode.CREDIT_EXHAUSTED) from exc

    async def end_compile(self, *, used_units: int) -> None:
        """It took so much. A quarter of a newcomer's credit at most: the rest is for what was compiled."""
        charged, self._compile_pusd = self._compile_pusd, 0
        least_units = _LEAST_COMPILE_UNITS if charged else 0  # who is known has paid for workers before
        cost_pusd = max(used_units, least_units) * self._agreement.terms.price_pusd
        await self._credit.settle(
            self._peer,
            subnet=self._subnet,
            charged_pusd=charged,
            cost_pusd=min(cost_pusd, self._credit.quarter_pusd),
        )

    async def issue(self, payload: ReceiptPayload, sign: Callable[[ReceiptPayload], bytes]) -> bytes:
        """Store the receipt, and what it earns, then give its envelope.

        Cancellation: none here. What is stored is owed, and has to be known as owed.
        """
        if payload.code in _NOT_BEGUN or (payload.code not in _OF_WORKERS | {0} and not self._stored):
            return sign(payload)  # owed to nobody; a chunk that was never charged leaves nothing on disk
        if payload.code and not self._stored:  # compiling was charged, and came to nothing
            try:
                await self._ledger.add_agreement(self._agreement, role="provider")
            except ChannelClosing:
                return sign(payload)  # under a channel that ends, nothing new is kept
            self._stored = True
        envelope = b""
        with trio.CancelScope(shield=True):
            if payload.code == 0:
                await self._note_paid_debt()
            envelope = await self._ledger.record_receipt(payload, sign=sign)
            if payload.code == 0:
                await self._note_owed([payload])
        return envelope

    async def issue_many(
        self, payloads: Sequence[ReceiptPayload], sign: Callable[[Sequence[ReceiptPayload]], ReceiptBatch]
    ) -> ReceiptBatch | None:
        """As `issue`, for several results under one signature; None, and nothing is done, where one of the chunks has
        a receipt already.

        Cancellation: none here, as in `issue`.
        """
        batch: ReceiptBatch | None = None
        with trio.CancelScope(shield=True):
            await self._note_paid_debt()
            batch = await self._ledger.record_receipts(payloads, sign=sign)
            if batch is not None:
                await self._note_owed(payloads)
        return batch

    async def _note_owed(self, payloads: Sequence[ReceiptPayload]) -> None:
        price_pusd = self._agreement.terms.price_pusd
        self._last_pusd = self._last_excess_pusd = 0
        for payload in payloads:
            if not self._under_way:
                break
            charged = self._under_way.pop()
            self._last_pusd += charged
            self._end_begun()
            self._last_excess_pusd += max(0, charged - payload.units * price_pusd)
        # Not given back: the next chunk needs it, or the task is about to end since this one cost more than was said.
        self._held.pusd += self._last_excess_pusd
        row = await self._ledger.channel_in(self._channel)
        costs: list[int] = []
        for payload in payloads:
            again = payload.index in self._receipted  # asked for a second time: nothing more is owed
            self._receipted.add(payload.index)
            costs.append(0 if again else payload.units * price_pusd)
        owed_pusd = 0 if row is None else row.owed_pusd - sum(costs)
        for cost_pusd in costs:
            owed_pusd += 0 if row is None else cost_pusd
            self._owed.append((owed_pusd, cost_pusd))
        self._issued.set()

    async def _note_paid_debt(self) -> None:
        """What was paid beyond this task's work so far has paid for earlier work, and pays for none to come."""
        row = await self._ledger.channel_in(self._channel)
        if row is not None:
            self._earlier.see(owed_pusd=row.owed_pusd, paid_uusd=row.paid_uusd)

    async def wait_changed(self) -> None:
        """Wait for the voucher that covers the oldest unpaid chunk."""
        while not self._owed:
            self._issued = trio.Event()
            await self._issued.wait()
        paid_uusd = 0
        while paid_uusd < (due_uusd := self._earlier.due_uusd(self._owed[0][0])):
            with trio.CancelScope() as self._waiting:
                paid_uusd = await self._payee.wait_paid(self._channel, due_uusd)
        covered = 0
        while self._owed and self._earlier.due_uusd(self._owed[0][0]) <= paid_uusd:
            self._owed.popleft()
            covered += 1
        self._window.paid(covered)
        await self.look()

    async def close(self) -> None:
        """Mark the agreement as ended."""
        task = self._agreement.task_id
        self.leave()
        while self._under_way:
            await self.drop()
        await self._credit.give_back(self._peer, self._held)
        if self._owed:
            await self._unpaid_pusd()  # it ages from now on
            await self._ledger.close_agreement(task, state="failed", reason="ended with unpaid chunks")
        else:
            await self._ledger.close_agreement(task, state="done")

    def leave(self) -> None:
        """This task takes no more part in its channel. What it leaves unpaid may be lost, and then nobody pays it; the
        other tasks there are not to wait for it."""
        if self in self._siblings:
            self._siblings.remove(self)
            for other in self._siblings:
                other.lose(self._owed)
            self._forget()

    def lose(self, chunks: Iterable[tuple[int, int]]) -> None:
        """Another task on this channel has ended with these chunks unpaid."""
        for owed_pusd, cost_pusd in chunks:
            self._earlier.lose(owed_pusd=owed_pusd, pusd=cost_pusd)
        self._waiting.cancel()  # one of them may be waited for just now


class RequesterLedgerBooks:
    """`tasks.RequesterBooks` over the ledger; `serve` funds channels in the background.

    Args:
        fill: brings the wallet to at least so many micro-USD; asked where channels can't be funded otherwise, because
            more providers came, or more tasks, than the money was meant for.
    """

    def __init__(self, ledger: Ledger, payer: Payer, fill: Callable[[int], Awaitable[None]] | None = None) -> None:
        self._ledger = ledger
        self._payer = payer
        self._needs: list[ChannelNeed] = []
        self._wanted = trio.Event()
        self._next_round = _FundingRound()
        self._fill = fill
        self.banned: set[PeerId] = set()
        self._standings = Standings()

    async def load(self) -> None:
        """Read from the ledger who is banned, who was paid, and who has failed."""
        rows = await self._ledger.peers()
        self.banned.update(row.peer for row in rows if row.banned)
        self._standings.load(rows)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fund channels as agreements come, several in one transaction. Runs until cancelled."""
        await self.load()
        task_status.started()
        while True:
            await self._wanted.wait()
            await trio.sleep(_GATHER_S)
            self._wanted = trio.Event()
            needs, self._needs = self._needs, []
            this_round, self._next_round = self._next_round, _FundingRound()
            try:
                await self._open_channels(needs)
            except P2PComputeError as exc:
                # Those who wait for this round get it, a full disk too; the next need tries again.
                _log.warning("channels can't be funded now: %s", exc)
                this_round.error = exc
            this_round.over.set()

    async def _open_channels(self, needs: list[ChannelNeed]) -> None:
        amount_uusd = sum(need.amount_uusd for need in needs)
        try:
            await self._payer.open_channels(needs, deposit_uusd=amount_uusd)
        except InsufficientFunds:
            if self._fill is None:
                raise
            # A channel covers all open agreements on it, those of other tasks too.
            open_ = [row for row in await self._ledger.open_agreements() if row.role == "requester"]
            await self._fill(sum(row.ceiling_uusd for row in open_))
            await self._payer.open_channels(needs, deposit_uusd=amount_uusd)

    async def open(self, agreement: Agreement, budget: TaskBudget) -> _RequesterAccount:
        """Store the agreement, and ask for its channel to be funded where the provider was paid before.

        A stranger's waits for its first checked chunk: agreeing costs it nothing, and what is put into a channel comes
        back only after the channel's closing delay.
        """
        terms = agreement.terms
        await self._ledger.add_agreement(agreement, role="requester")
        payee, peer = Address(terms.payee), PeerId(terms.provider)
        funding = await self.begin_funding(agreement) if self.standing(peer).paid_uusd else None
        return _RequesterAccount(self, self._ledger, agreement, budget, self._payer.channel(payee, peer), funding)

    async def begin_funding(self, agreement: Agreement) -> _FundingRound:
        """Have the channel funded in the next round, unless it holds enough to begin with."""
        need = _need(agreement, agreement.terms.ceiling_uusd)
        return _FundingRound.needless() if await self._payer.has_room(need) else self.fund(need)

    def fund(self, need: ChannelNeed) -> _FundingRound:
        """Have a channel funded in the next round."""
        self._needs.append(need)
        self._wanted.set()
        return self._next_round

    async def close(self, agreement: Agreement, *, reason: str = "") -> None:
        """Mark the agreement as ended; its channel keeps what was put in."""
        await self._ledger.close_agreement(agreement.task_id, state="failed" if reason else "done", reason=reason[:500])

    async def failed(self, provider: PeerId, reason: str, *, ban: bool) -> None:
        """Remember a provider's failure."""
        self._standings.failed(provider)
        if ban:
            self.banned.add(provider)  # before anything is awaited: other tasks choose providers meanwhile
        await self._ledger.note_failure(provider)
        if ban:
            await self._ledger.ban(provider, reason=reason[:500])

    async def convicted(self, peer: PeerId, reason: str) -> None:
        """Deal no more with a peer that a verdict or its own signatures have found wrong, whoever's task it was.

        Peer IDs cost nothing and can convict themselves: once `MAX_STRANGERS` peers are banned, one that we have never
        paid is only among the strangers that have failed.
        """
        known = self.standing(peer).paid_uusd > 0 or peer in self.banned
        with suppress(DiskFull):  # the verdict that it goes along with matters more than the note
            await self.failed(peer, reason, ban=known or len(self.banned) < MAX_STRANGERS)

    async def why_banned(self, provider: PeerId) -> str:
        """For what it gets no more work; "" where it does."""
        row = await self._ledger.peer(provider)
        return "" if row is None else row.banned or ""

    def standing(self, provider: PeerId) -> Standing:
        """How we stand with a provider."""
        return self._standings.of(provider)

    def paid(self, provider: PeerId, uusd: int) -> None:
        """A provider has acknowledged `uusd` micro-USD more."""
        self._standings.paid(provider, uusd)


def _need(agreement: Agreement, amount_uusd: int) -> ChannelNeed:
    terms = agreement.terms
    return ChannelNeed(payee=Address(terms.payee), peer=PeerId(terms.provider), amount_uusd=amount_uusd)


class _FundingRound:
    """Agreements whose channels are funded together: over, with or without an error. `asked` says whether the chain
    was, so that what the channel holds covers all that its agreements may cost."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.error: P2PComputeError | None = None
        self.asked = True

    @classmethod
    def needless(cls) -> _FundingRound:
        """For a channel that holds enough to begin with."""
        round_ = cls()
        round_.asked = False
        round_.over.set()
        return round_


class _RequesterAccount:
    """`tasks.RequesterAccount`: what one agreement has cost so far."""

    def __init__(
        self,
        books: RequesterLedgerBooks,
        ledger: Ledger,
        agreement: Agreement,
        budget: TaskBudget,
        channel: ChannelOut,
        funding: _FundingRound | None,
    ) -> None:
        self._books = books
        self._ledger = ledger
        self._agreement = agreement
        self._budget = budget
        self._channel = channel
        self._funding = funding
        self._has_room = funding is not None and not funding.asked  # in the channel, without funding it now
        # What may be accepted at once: as long as the channel holds that, nobody waits for the chain.
        self._window_uusd = owed_uusd(agreement.terms.max_window, _chunk_pusd(agreement))
        self._task = TaskId(agreement.task_id)
        self._accepted_pusd = 0
        self.paid_uusd = 0

    async def accept(self, results: Sequence[tuple[bytes, ReceiptPayload, int]]) -> None:
        """Store checked receipts in one transaction, unless that would pass the budget."""
        pusd = sum(payload.units for _, payload, _ in results) * self._agreement.terms.price_pusd
        self._budget.take(pusd)  # before the ledger is awaited: several accounts share the budget
        try:
            receipts = [(payload, receipt) for receipt, payload, _ in results]
            await self._channel.accept(self._task, receipts, sampled=[sampled for _, _, sampled in results])
        except BaseException:
            self._budget.give_back(pusd)
            raise
        self._accepted_pusd += pusd

    async def reject(self, receipt: bytes, payload: ReceiptPayload, reason: str) -> None:
        """Keep a receipt as evidence."""
        await self._ledger.reject_work(payload, receipt, reason=reason[:500])

    async def funded(self) -> None:
        """Ask for the channel's money where that was not done yet, and wait until it is known whether it is there."""
        if self._funding is None:
            self._funding = await self._books.begin_funding(self._agreement)
            self._has_room = not self._funding.asked
        if self._has_room:
            free_uusd = await self._free_uusd()
            self._has_room = free_uusd >= min(self._window_uusd, self._left_uusd)
            if not self._has_room or free_uusd * _LOW < self._left_uusd:
                self._bring_in()
            if self._has_room:
                return  # while the rest comes
        await self._funding.over.wait()

    @property
    def _left_uusd(self) -> int:
        """What the agreement may still cost."""
        return self._agreement.terms.ceiling_uusd - self._accepted_pusd // PUSD_PER_UUSD

    async def _free_uusd(self) -> int:
        """What the channel holds beyond all that was accepted on it, as far as is known."""
        row = await self._ledger.channel_out(self._channel.id)
        return 0 if row is None else row.deposit_uusd - row.accepted_uusd

    def _bring_in(self) -> None:
        """Have the channel funded for all that its open agreements may still cost, unless that was asked for and has
        not failed."""
        if self._funding is None or not self._funding.asked or self._funding.error is not None:
            self._funding = self._books.fund(_need(self._agreement, 0))

    async def pay_earlier(self) -> None:
        """Send a voucher where earlier agreements have left something accepted that the provider holds none for."""
        row = await self._ledger.channel_out(self._channel.id)
        if row is None:
            return
        held_uusd = max(row.acked_uusd, row.claimed_uusd)
        if row.accepted_uusd <= held_uusd:
            return
        paid_uusd = await self._pay() - held_uusd
        if paid_uusd > 0:
            self._books.paid(PeerId(self._agreement.terms.provider), paid_uusd)

    async def pay(self) -> None:
        """Send a voucher for everything accepted on the channel."""
        covered_pusd = self._accepted_pusd
        await self._pay(_PAY_S)
        paid_uusd = -(-covered_pusd // PUSD_PER_UUSD)
        self._books.paid(PeerId(self._agreement.terms.provider), paid_uusd - self.paid_uusd)
        self.paid_uusd = paid_uusd

    async def _pay(self, limit_s: float = math.inf) -> int:
        try:
            return await self._send_voucher(limit_s)
        except InsufficientFunds as exc:
            if self._has_room:  # as was thought; it may have been closed since the chain was asked
                self._has_room = False
                self._bring_in()
                await self.funded()
                return await self._pay(limit_s)  # the chain's time is not the provider's
            # What was there before may be enough; where it is not, say why there is no more.
            if self._funding is None or not self._funding.over.is_set():
                raise
            if self._funding.error is not None:
                raise self._funding.error from None
            # It was there: a payee may close its channel at any time, and that is its affair, not the whole task's.
            raise VoucherRefused(f"the channel was closed while work went on: {exc}") from exc

    async def _send_voucher(self, limit_s: float) -> int:
        with trio.move_on_after(limit_s):
            try:
                return await self._channel.pay()
            except trio.Cancelled:
                # It may be on its way without its answer; the next payment asks on a new stream where we stand.
                with trio.CancelScope(shield=True):
                    await self._channel.aclose()
                raise
        raise StreamError(f"the provider did not take a voucher in {limit_s:g} s")
