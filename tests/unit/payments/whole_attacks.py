"""The adversary's attacks in their sharpest form, and for each what to turn off so that it succeeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from p2pcompute.errors import RpcError
from p2pcompute.payments import ChainHub, Outcome, Payee, Settler, _payee, _payer, _settler
from p2pcompute.payments._api import ChannelIn
from p2pcompute.storage import AmountOutOfRange
from p2pcompute_protocols import _evm
from p2pcompute_protocols.channel import ChannelConnection, VoucherFrame

from . import whole
from .whole import Account
from .whole_acts import RULES, WIRE, Act
from .whole_books import CLOSE_DELAY_S
from .whole_mallory import FORGERIES, ORDER

__all__ = ["ATTACKS", "PHRASES", "SINGLE", "TOURS", "Attack"]

Edit: TypeAlias = tuple[str, str]
DAY, HALF_DAY, ELEVEN_BLOCKS = ("wait", 5), ("wait", 4), ("wait", 6)
PAID: tuple[Act, ...] = (("work", 0), ("pay", 0))
EARNED: tuple[Act, ...] = PAID * 5
"""Vouchers for 25 micro-USD: below what a checkpoint is made for, and more than two windows."""
CLOSED: tuple[Act, ...] = (("ask to close", 0), DAY, ("close", 0))
JOBBED: tuple[Act, ...] = (("job", 1), ("settle", 0))


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A history in which somebody is robbed where a defence is missing.

    Attributes:
        rules: those that have to have done something in it.
        off: turns the defence off in the nodes.
        edits: take the defence out of the contract.
        robbed: what is then found, in full: what the attack is for, and not another fault of the same history.
        raises: as which error.
        token: see `ForkNode`.
    """

    name: str
    acts: tuple[Act, ...]
    rules: tuple[str, ...] = ()
    off: Callable[[pytest.MonkeyPatch], None] | None = None
    edits: tuple[Edit, ...] = ()
    robbed: str = ""
    raises: type[Exception] = AssertionError
    token: str = "plain"


# Defences turned off


async def _as_it_was(_: Settler, row: ChannelIn) -> ChannelIn:
    return row


def _never_looks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Settler, "_refresh", _as_it_was)


def _looks_too_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_settler, "CHECK_S", 1.2 * CLOSE_DELAY_S)


def _believes_at_once(patch: pytest.MonkeyPatch) -> None:
    """A transaction is settled as soon as it is mined."""
    outcome = ChainHub.outcome

    async def final(self: ChainHub, tx_hash: bytes) -> Outcome | None:
        found = await outcome(self, tx_hash)
        return None if found is None else Outcome(ok=found.ok, claimed=found.claimed, final=True)

    patch.setattr(ChainHub, "outcome", final)


def _counts_all_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChainHub, "confirmed_channel", ChainHub.channel)


def _believes_in_twelve(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(whole, "CAREFUL", dataclasses.replace(whole.CAREFUL, whole=12))


def _sends_once(patch: pytest.MonkeyPatch) -> None:
    send, sent = ChainHub.send, set[bytes]()

    async def once(self: ChainHub, raw: bytes) -> None:
        if raw not in sent:
            sent.add(raw)
            await send(self, raw)

    patch.setattr(ChainHub, "send", once)


def _believes_any_signature(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_payee, "recover_signer", lambda *_: Account.of(b"m").address)


def _takes_high_s(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_evm, "_HALF_ORDER", ORDER)


def _takes_any_amount(patch: pytest.MonkeyPatch) -> None:
    """The payee stores what is signed, whatever it held before and whatever the chain says."""
    patch.setattr(ChannelConnection, "check", lambda *_: None)

    async def take(self: Payee, session: Any, message: VoucherFrame) -> None:
        def work(tx: Any) -> None:
            tx.emit(
                "voucher_taken",
                channel=session.channel,
                amount_uusd=message.amount_uusd,
                memo=message.memo,
                signature=message.signature,
                peer=session.peer,
                gained_uusd=0,
            )
            tx.emit("chain_read_in", channel=session.channel, deposit_uusd=2**40, claimed_uusd=0, close_at_s=0)

        await self._ledger._write(work)  # type: ignore[attr-defined]

    patch.setattr(Payee, "_take", take)


def _takes_uncovered(patch: pytest.MonkeyPatch) -> None:
    async def cover(self: Payee, session: Any, row: ChannelIn | None, amount_uusd: int) -> ChannelIn:
        assert row is not None
        return row

    patch.setattr(Payee, "_cover", cover)
    patch.setattr(_payee, "MAX_LEDGER_UUSD", 2**64)


def _adopts_anything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_payer, "recover_signer", lambda *_: Account.of(b"a").address)


_BY = ("ecrecover(digest, v, convert(r, uint256), s) == signer", "signer != empty(address)")

SHORT = "bob is short of 25, which is more than 10"
SHORT_OF_DEPOSIT = "bob is short of 25, which is more than 20"
UNSIGNED = "H7: no more than its signer has signed"
TOO_LARGE = f"amount_uusd of {2**64 - 1} does not fit into the ledger"
"""Behind that defence stands the ledger itself: what is robbed is the node's life, which a stranger's words end."""

ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="close before vouchers are claimed",
        robbed=SHORT,
        acts=(*EARNED, *CLOSED),
        rules=("close",),
        off=_never_looks,
    ),
    Attack(
        name="endpoint down until a tenth of the window is left",
        robbed=SHORT,
        acts=(*EARNED, ("endpoint down", 0), *CLOSED),
        rules=("endpoint down", "close"),
        off=_looks_too_late,
    ),
    Attack(
        name="the refund is mined before the claim",
        robbed=SHORT,
        acts=(*EARNED, ("ask to close", 0), ("first: close", 0), DAY, DAY, ("close", 0)),
        off=_looks_too_late,
    ),
    Attack(
        name="a claim is lost on its way",
        robbed=SHORT,
        acts=(*EARNED, ("lost transaction", 0), *CLOSED),
        rules=("lost transaction", "close"),
        off=_sends_once,
    ),
    Attack(
        name="a claim is taken back",
        robbed=SHORT,
        # A node looks at its start; so the claim is in the newest block.
        acts=(*EARNED, ("ask to close", 0), ("restart", 0), ("reorg", 3), DAY, ("close", 0)),
        rules=("restart", "reorg of 12", "close"),
        off=_believes_at_once,
    ),
    Attack(
        name="a claim in the deepest block that can be taken back",
        robbed=SHORT,
        acts=(
            *EARNED,
            ("ask to close", 0),
            ("restart", 0),
            ELEVEN_BLOCKS,
            ("restart", 0),
            ("reorg", 3),
            DAY,
            ("close", 0),
        ),
        rules=("restart", "reorg of 12", "close"),
        off=_believes_in_twelve,
    ),
    Attack(
        name="a deposit is taken back, and spent elsewhere",
        robbed=SHORT_OF_DEPOSIT,
        acts=(*PAID * 8, ("fund", 2), ELEVEN_BLOCKS, *PAID * 3, ("work", 1), ("reorg", 1), ("withdraw", 0)),
        rules=("reorg of 12", "withdraw"),
        off=_counts_all_at_once,
    ),
    Attack(
        name="a deposit in the deepest block that can be taken back",
        robbed=SHORT_OF_DEPOSIT,
        acts=(*PAID * 8, ("fund", 2), ELEVEN_BLOCKS, *PAID * 3, ("work", 1), ("reorg", 1), ("withdraw", 0)),
        rules=("reorg of 12", "withdraw"),
        off=_believes_in_twelve,
    ),
    Attack(
        name="replay",
        robbed="a voucher counted twice",
        acts=(*PAID * 2, ("replay", 0)),
        rules=("replay",),
        off=_takes_any_amount,
    ),
    Attack(
        name="reorder",
        robbed="an older voucher counted after a newer one",
        acts=(*PAID, ("work", 0), ("reorder", 0)),
        rules=("reorder",),
        off=_takes_any_amount,
    ),
    *(
        Attack(
            name=kind,
            acts=(*PAID, (kind, 0)),
            rules=(kind,),
            off=off,
            robbed=TOO_LARGE if kind == "above 64 bits" else f"{kind}: taken",
            raises=AmountOutOfRange if kind == "above 64 bits" else AssertionError,
        )
        for kind, off in {
            **dict.fromkeys(FORGERIES, _believes_any_signature),
            "malleated": _takes_high_s,
            "below the best": _takes_any_amount,
            "above the deposit": _takes_uncovered,
            "above 64 bits": _takes_uncovered,
            "64 bytes": None,
        }.items()
    ),
    Attack(
        name="a seller shows a voucher that was never signed",
        robbed="ada pays for what she did not accept",
        acts=(("buy", 3), ("seller: forged sync", 0)),
        rules=("buy", "seller: forged sync"),
        off=_adopts_anything,
    ),
    # The contract
    Attack(
        name="a top-up as bait",
        robbed="the events say all of a channel",
        acts=(*EARNED, ("ask to close", 0), HALF_DAY, HALF_DAY, ("bait", 3), *PAID, ("close", 0)),
        rules=("bait",),
        edits=(("~(MAX_AMOUNT | TIME_MASK)", "~MAX_AMOUNT"),),
    ),
    Attack(
        name="rows that spoil a batch",
        robbed="H7: one row spoils a batch",
        acts=(*PAID * 2, ("poison", 0)),
        rules=("poison",),
        edits=(("            skipped |= bit\n", '            assert False, "bad row"\n'),),
    ),
    Attack(
        name="forged rows in a batch", robbed=UNSIGNED, acts=(*PAID * 2, ("poison", 0)), rules=("poison",), edits=(_BY,)
    ),
    Attack(
        name="a stale voucher on chain",
        robbed="H3: claimed never falls",
        acts=(*EARNED, ("work", 0), ("pay", 0), ("wait", 2), ("old voucher", 0)),
        rules=("old voucher",),
        edits=(
            ("good: bool = total > claimed", "good: bool = total > 0"),
            ("self.balances[payee] += credited", "self.balances[payee] = unsafe_add(self.balances[payee], credited)"),
        ),
    ),
    Attack(
        name="a voucher of another hub on chain",
        robbed=UNSIGNED,
        acts=(*PAID * 2, ("poison", 0)),
        rules=("poison",),
        edits=(("VERSION_HASH, chain_id, self", "VERSION_HASH, chain_id, empty(address)"),),
    ),
    Attack(
        name="a voucher of another chain on chain",
        robbed=UNSIGNED,
        acts=(*PAID * 2, ("poison", 0)),
        rules=("poison",),
        edits=(("VERSION_HASH, chain_id, self", "VERSION_HASH, chain_id // chain_id, self"),),
    ),
    Attack(
        name="a stolen voucher",
        robbed=UNSIGNED,
        acts=(*JOBBED, ("stolen voucher", 0)),
        rules=("job", "stolen voucher"),
        edits=(_BY,),
    ),
    Attack(
        name="a seller forges a claim",
        robbed=UNSIGNED,
        acts=(("buy", 3), ("seller: honest", 0), ("seller forges", 7), ("seller claims", 0)),
        rules=("seller forges", "seller claims"),
        edits=(_BY,),
    ),
    Attack(
        name="a voucher above its deposit on chain",
        robbed="H2: no more is claimed than is there",
        acts=(*PAID, ("above the deposit", 0), *EARNED, ("poison", 0)),
        rules=("above the deposit", "poison"),
        edits=(("min(amount, word & MAX_AMOUNT)", "amount"), _BY),
    ),
    Attack(
        name="a third party closes a channel",
        robbed="H6: others close",
        acts=(*PAID, ("close by a third", 0), ("close by a third", 1)),
        rules=("close by a third",),
        edits=(('        assert slot.close_at != 0, "no request to close"\n', ""),),
    ),
    Attack(
        name="a third party closes too early",
        robbed="H6: others close",
        acts=(*PAID, ("ask to close", 0), ("wait", 3), ("close by a third", 0)),
        rules=("close by a third",),
        edits=(('        assert block.timestamp >= slot.close_at, "too early"\n', ""),),
    ),
    Attack(
        name="a consent that nobody signed",
        robbed="H5: no consent, no closing",
        acts=(*PAID, ("forged consent", 0), ("forged consent", 1)),
        rules=("forged consent",),
        edits=(('    assert self._by(payee, self._domain(), struct_hash, r, vs), "not signed by the payee"\n', ""),),
    ),
    Attack(
        name="paid again after closing",
        robbed="the events say all of a channel",
        acts=(*EARNED, *CLOSED, ("fund", 2), ("poison", 4), ("old voucher", 4)),
        rules=("close", "poison"),
        edits=(("claimed=slot.claimed, close_at=0", "claimed=0, close_at=0"),),
    ),
    Attack(
        name="the clock of closing is wound back",
        robbed="H6: the clock is not wound back",
        acts=(*PAID, ("ask to close", 0), ("wait", 2), ("ask to close", 0)),
        rules=("ask to close",),
        edits=(('    assert slot.close_at == 0, "already closing"\n', ""),),
    ),
    Attack(
        name="a token that takes a cut",
        robbed="H1: what is owed is there, and H4: nothing else",
        acts=(*PAID, ("cut", 2), *PAID, ("cut", 3)),
        rules=("cut",),
        token="HostileToken",
        edits=(('    assert staticcall token.balanceOf(self) == before + amount, "token takes a cut"\n', ""),),
    ),
    Attack(
        name="a token that says nothing",
        raises=RpcError,
        robbed="test refused: execution reverted",
        acts=(*PAID, *JOBBED),
        rules=("pay", "settle"),
        token="QuietToken",
        edits=(
            (
                "transferFrom(msg.sender, self, amount, default_return_value=True)",
                "transferFrom(msg.sender, self, amount)",
            ),
        ),
    ),
)

PHRASES: tuple[tuple[Act, ...], ...] = (
    EARNED,
    CLOSED,
    (("ask to close", 0), ("endpoint down", 0), DAY, ("close", 0)),
    (("fund", 2), *EARNED, ("ask to close", 0), HALF_DAY, ("bait", 1), *PAID),
    (("fund", 2), ("wait", 1), *PAID, ("work", 0), ("reorder", 1), ("replay", 0), ("below the best", 0)),
    (*EARNED, ("wait", 2), ("old voucher", 0), ("poison", 3)),
    (*JOBBED, ("stolen voucher", 0)),
    (("ask to close", 0), DAY, ("first: close", 0), *JOBBED * 3, ("restart", 0)),
    (("fund", 2), ("first: ask to close", 0), *JOBBED * 3, ("restart", 0)),
    (("first: top up", 0), *JOBBED * 3, ("restart", 0)),
    (*PAID, ("first: claim", 0), *JOBBED * 3, ("restart", 0)),
    (("lost transaction", 0), *EARNED, ("ask to close", 0), ("wait", 2)),
    (*EARNED, ("fund", 2), ELEVEN_BLOCKS, *PAID, ("reorg", 1), ("withdraw", 0)),
    (*EARNED, ("ask to close", 0), ("restart", 0), ("reorg", 3), ("wait", 3)),
    (*EARNED, ("ask to close", 0), ("restart", 0), ("reorg", 4), ("wait", 2)),
    (("buy", 4), ("seller: honest", 0), ("seller claims", 0), ("seller forges", 3)),
    (("buy", 2), ("seller: old sync", 0), ("buy", 2), ("seller: refuse with more", 0), ("seller claims", 0)),
    (("wire drops", 0), ("wire cuts", 1), ("wire doubles", 2), ("wire swaps", 1), *JOBBED * 2),
    (("cut", 2), ("fund", 0), ("reorg", 5), ("wait", 2)),
)
"""What attacks are made of: random histories are these, in any order and broken off by single acts."""

SINGLE = tuple(rule for rule in RULES if rule != "reorg of 12")


def _all_of(phrases: tuple[tuple[Act, ...], ...]) -> list[Act]:
    return [act for phrase in phrases for act in phrase]


TOURS: tuple[tuple[list[Act], str], ...] = (
    (_all_of(PHRASES[:6]), "QuietToken"),
    (_all_of(PHRASES[6:13]), "plain"),
    (_all_of(PHRASES[13:]), "HostileToken"),
    ([(rule, 1) for rule in SINGLE], "plain"),
    ([("endpoint down", 0), *((f"wire {fault}", 0) for fault in WIRE), *JOBBED * 3, *EARNED, ("poison", 1)], "plain"),
)
"""Histories in which each rule does something, for certain."""
