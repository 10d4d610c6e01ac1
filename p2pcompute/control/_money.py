"""What a running node, or a profile without one, answers about its money. Amounts are integers of micro-USD."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.errors import ConfigError
from p2pcompute.payments import Wallet
from p2pcompute.storage import ChannelInRow, ChannelOutRow, Ledger, ReceiptRow
from p2pcompute_protocols.envelope import open_envelope
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import Address, ChannelId
from p2pcompute_protocols.limits import MAX_CHUNKS
from p2pcompute_protocols.task import RECEIPT_KIND, ReceiptPayload

from ._stakes import STAKE_ANSWERS, STAKE_ON_CHAIN

if TYPE_CHECKING:
    from p2pcompute.stake import Staking

__all__ = ["BOOK_ANSWERS", "MONEY_ANSWERS", "ON_CHAIN", "Books", "MoneyOnChain", "parse_address"]

_MOST_RECEIPTS: Final = 10_000
_DEFAULT_RECEIPTS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Whose money, where, and what the ledger says of it; the chain is not asked.

    Attributes:
        ledger: of the profile.
        network: the network's name.
        account: whose money it is.
        chain_url: scheme, host and port of an endpoint; None where none is known.
        chain_id, hub: None where the ledger is not tied to a chain yet: then it has no channels.
    """

    ledger: Ledger
    network: str
    account: Address
    chain_url: str | None
    chain_id: int | None
    hub: bytes | None

    def where(self) -> dict[str, Any]:
        """Network, account and chain, as every answer names them."""
        hub = None if self.hub is None else "0x" + self.hub.hex()
        return {
            "network": self.network,
            "account": "0x" + self.account.hex(),
            "chain": {"url": self.chain_url, "chain_id": self.chain_id, "hub": hub},
        }

    async def closing(self) -> Mapping[ChannelId, int]:
        """When channels can be closed for which that was asked, as far as it is known; see `Wallet.closing`."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyOnChain(Books):
    """Money that can be moved. `staking` opens the account's stake."""

    wallet: Wallet
    staking: Callable[[], Awaitable[Staking]] | None = None

    async def closing(self) -> Mapping[ChannelId, int]:
        """See `Wallet.closing`."""
        return await self.wallet.closing()


def parse_address(text: object) -> Address:
    """An account as people write it: 0x and 40 hexadecimal digits.

    Digits in both cases are a checksum (EIP-55), which has to hold; in one case there is none.

    Raises:
        ConfigError: it is none, or its checksum does not hold.
    """
    if isinstance(text, str) and text.startswith("0x") and len(text) == 42:
        digits = text[2:]
        try:
            address = Address(bytes.fromhex(digits))
        except ValueError:
            address = Address(b"")
        if len(address) == 20:  # fromhex skips blanks
            if digits not in (digits.lower(), digits.upper(), _checksummed(digits.lower())):
                raise ConfigError(f"the checksum of {text} does not hold: a digit is wrong; copy the account again")
            return address
    raise ConfigError(f"{text!r} is no account; write 0x and 40 hexadecimal digits")


def _checksummed(digits: str) -> str:
    """Lower-case digits in EIP-55's cases."""
    from p2pcompute_protocols._keccak import keccak256

    marks = keccak256(digits.encode("ascii")).hex()
    return "".join(digit.upper() if int(mark, 16) >= 8 else digit for digit, mark in zip(digits, marks, strict=False))


def _amount(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise ConfigError(f"{value!r} is no amount; write a positive integer of micro-USD")
    return value


async def _wallet(money: MoneyOnChain, _: Mapping[str, Any]) -> dict[str, Any]:
    return {**money.where(), **asdict(await money.wallet.balances())}


def _incoming(row: ChannelInRow) -> dict[str, Any]:
    return {
        "channel": row.channel.hex(),
        "direction": "in",
        "peer": row.peer,
        "account": "0x" + row.payer.hex(),
        "deposit_uusd": row.deposit_uusd,
        "voucher_uusd": row.best_uusd,
        "claimed_uusd": row.claimed_uusd,
        "unclaimed_uusd": row.unclaimed_uusd,
        "worked_uusd": row.owed_uusd,
        "close_at_s": row.close_at_s,
        "rooted_receipts": row.rooted_leaves,
    }


def _outgoing(row: ChannelOutRow, close_at_s: int) -> dict[str, Any]:
    return {
        "channel": row.channel.hex(),
        "direction": "out",
        "peer": row.peer,
        "account": "0x" + row.payee.hex(),
        "deposit_uusd": row.deposit_uusd,
        "voucher_uusd": row.voucher_uusd,
        "claimed_uusd": row.claimed_uusd,
        "unclaimed_uusd": max(0, row.voucher_uusd - row.claimed_uusd),
        "worked_uusd": row.accepted_uusd,
        "close_at_s": close_at_s,
        "rooted_receipts": row.signed_leaves,
    }


async def _channels(money: Books, _: Mapping[str, Any]) -> dict[str, Any]:
    incoming, outgoing = await money.ledger.channels_in(), await money.ledger.channels_out()
    closing = await money.closing()
    rows = [*map(_incoming, incoming), *(_outgoing(row, closing.get(row.channel, 0)) for row in outgoing)]
    return {**money.where(), "channels": rows}


async def _receipts(money: Books, fields: Mapping[str, Any]) -> dict[str, Any]:
    limit = str(fields.get("limit", _DEFAULT_RECEIPTS))
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= _MOST_RECEIPTS:
        raise ConfigError(f"limit is {limit!r}; write 1 to {_MOST_RECEIPTS}")
    found = await money.ledger.receipt_log(limit=int(limit))
    return {
        **money.where(),
        "receipts": [
            {
                "agreed_ms": row.agreed_ms,
                "role": row.role,
                "peer": row.peer,
                "task": row.receipt.task.hex(),
                "index": row.receipt.index,
                "code": row.receipt.code,
                "units": row.receipt.units,
                "pusd": row.receipt.pusd,
                "verdict": row.receipt.verdict,
                "sampled": row.receipt.sampled,
                "digest": row.receipt.digest.hex(),
                "reason": row.receipt.reason or _said(row.receipt, money.network),
            }
            for row in found
        ],
    }


def _said(receipt: ReceiptRow, network: str) -> str:
    """Why a chunk failed here, in the words of the receipt that this node has signed."""
    if not receipt.code:
        return ""
    try:
        envelope = open_envelope(receipt.envelope, kind=RECEIPT_KIND, network=network)
        return ReceiptPayload.decode(envelope.payload).detail or ""
    except LocalProtocolError:
        return ""


async def _proof(money: Books, fields: Mapping[str, Any]) -> dict[str, Any]:
    task = await money.ledger.task_named(str(fields.get("task", "")))
    index = str(fields.get("index", ""))
    if not index.isascii() or not index.isdigit() or int(index) >= MAX_CHUNKS:
        raise ConfigError(f"{index!r} is no chunk; write its number, 0 to {MAX_CHUNKS - 1}")
    asked = str(fields.get("root", ""))
    try:
        root = bytes.fromhex(asked.removeprefix("0x"))
    except ValueError:
        root = b"?"
    if len(root) not in (0, 32):
        raise ConfigError(f"{asked!r} is no root; write the 64 digits of the memo in the hub's event Claimed")
    proof = await money.ledger.prove_receipt(task, int(index), root=root or None)
    return {
        **money.where(),
        "task": task.hex(),
        "index": int(index),
        "channel": proof.channel.hex(),
        "root": proof.root.hex(),
        "leaf": proof.proof.index,
        "leaves": proof.proof.leaves,
        "path": [digest.hex() for digest in proof.proof.path],
        "receipt": proof.envelope.hex(),
    }


async def _settle(money: MoneyOnChain, _: Mapping[str, Any]) -> dict[str, Any]:
    return {"settled_uusd": await money.wallet.settle(), **await _wallet(money, {})}


async def _fund(money: MoneyOnChain, fields: Mapping[str, Any]) -> dict[str, Any]:
    amount_uusd = _amount(fields.get("amount_uusd"))
    await money.wallet.fund(amount_uusd)
    return {"funded_uusd": amount_uusd, **await _wallet(money, {})}


async def _withdraw(money: MoneyOnChain, fields: Mapping[str, Any]) -> dict[str, Any]:
    asked = fields.get("amount_uusd")
    to = parse_address(fields.get("to"))
    taken = await money.wallet.withdraw(to, None if asked is None else _amount(asked))
    return {"withdrawn_uusd": taken, "to": "0x" + to.hex(), **await _wallet(money, {})}


async def _close(money: MoneyOnChain, fields: Mapping[str, Any]) -> dict[str, Any]:
    closed = await money.wallet.close(str(fields.get("channel", "")))
    return {**asdict(closed), "channel": closed.channel.hex(), **await _wallet(money, {})}


BOOK_ANSWERS: Final[Mapping[tuple[str, str], Callable[[Books, Mapping[str, Any]], Awaitable[dict[str, Any]]]]] = {
    ("GET", "/channels"): _channels,
    ("GET", "/receipts"): _receipts,
    ("GET", "/proof"): _proof,
}
"""Those of `MONEY_ANSWERS` for which a ledger is enough."""

MONEY_ANSWERS: Final[
    Mapping[tuple[str, str], Callable[[MoneyOnChain, Mapping[str, Any]], Awaitable[dict[str, Any]]]]
] = {
    ("GET", "/wallet"): _wallet,
    **BOOK_ANSWERS,
    ("POST", "/settle"): _settle,
    ("POST", "/fund"): _fund,
    ("POST", "/withdraw"): _withdraw,
    ("POST", "/close"): _close,
    **STAKE_ANSWERS,
}
"""Routes about money: ``/fund`` takes ``amount_uusd``, ``/withdraw`` takes ``to`` and ``amount_uusd`` (all that is free
where it is left out), ``/close`` takes ``channel`` (the first 8 digits of its ID, or more), ``/receipts`` takes
``limit``, ``/proof`` takes ``task`` (likewise), ``index`` and, to prove against another voucher than the newest,
``root``; those of `STAKE_ANSWERS` come on top."""

ON_CHAIN: Final = frozenset({"/wallet", "/channels", "/settle", "/fund", "/withdraw", "/close"}) | STAKE_ON_CHAIN
"""Those of them that wait for the chain."""
