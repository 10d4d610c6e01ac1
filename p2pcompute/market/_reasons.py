"""Why a provider is not dealt with, and what whoever asked can do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Self

from p2pcompute_protocols.errors import WireCode

__all__ = ["ABOUT_BANS", "Reason", "what_to_do"]

_NO_MONEY: Final = " No money has moved."
ABOUT_BANS: Final = (
    "A ban is of this profile, and no command lifts it: another profile (profile=…, --profile NAME) bans nobody, and "
    "has keys and money of its own. So has a provider that is started with another one."
)
_ADVICE: Final = {
    WireCode.PRICE_TOO_LOW: "Offer more: a higher max_price=… or budget=….",
    WireCode.NO_CAPACITY: "They are busy now: run it again later, or start one more here with `p2pcompute up`.",
    WireCode.UNSUPPORTED: "Ask for less: the refusals say what is not to be had, a mode, a tolerance (rtol=…), "
    "a region, a program, arbiters=… or min_stake=….",
    WireCode.UNFUNDED: "Ask for less at stake with min_stake=…, or leave min_stake and arbiters out.",
    WireCode.OVERSIZED: "Cut the work into smaller chunks with chunks=….",
    WireCode.CREDIT_EXHAUSTED: "They give newcomers no more credit for now; run it again in an hour.",
    WireCode.CHAIN_MISMATCH: "Use the chain of the network that they are on: --chain and --hub, or chain=… and hub=….",
    WireCode.DRAINING: "They are about to stop: run it again when others lend, or start one here with `p2pcompute up`.",
    WireCode.EXPIRED: "Give it more time with deadline_s=…, and see that this machine's clock is right.",
}


class Reason(str):
    """Why a provider is out, in words, with the `WireCode` of it; None where it is no refusal."""

    __slots__ = ("code",)

    code: WireCode | None

    def __new__(cls, text: str, code: WireCode | None = None) -> Self:
        self = super().__new__(cls, text)
        self.code = code
        return self


def what_to_do(reasons: Iterable[str], otherwise: str) -> str:
    """What to do where these were the reasons of all providers that are known.

    Args:
        reasons: those with a code count; each kind of refusal has its own advice.
        otherwise: what to do where there is no such reason: nobody is known, or nobody could be reached.
    """
    codes = {reason.code for reason in reasons if isinstance(reason, Reason) and reason.code in _ADVICE}
    found = [advice for code, advice in _ADVICE.items() if code in codes]
    if not found:
        return otherwise
    return " ".join(found) + _NO_MONEY
