"""What a running node, or a profile without one, answers about its stake. Amounts are integers of micro-USD."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.errors import ConfigError

if TYPE_CHECKING:
    from p2pcompute.stake import StakeStatus, Staking

    from ._money import MoneyOnChain

__all__ = ["STAKE_ANSWERS", "STAKE_ON_CHAIN"]


async def _staking(money: MoneyOnChain) -> Staking:
    if money.staking is None:
        raise ConfigError("this node knows no stake registry: stakes are on a real chain only")
    return await money.staking()


def _said(money: MoneyOnChain, status: StakeStatus) -> dict[str, Any]:
    shown = asdict(status)
    for name in ("registry", "receipt_key"):
        shown[name] = None if shown[name] is None else "0x" + shown[name].hex()
    return {**money.where(), **shown}


def _amount(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise ConfigError(f"{value!r} is no amount; write a positive integer of micro-USD")
    return value


async def _status(money: MoneyOnChain, _: Mapping[str, Any]) -> dict[str, Any]:
    return _said(money, await (await _staking(money)).status())


async def _stake(money: MoneyOnChain, fields: Mapping[str, Any]) -> dict[str, Any]:
    cores = fields.get("cores")
    if cores is not None and (isinstance(cores, bool) or not isinstance(cores, int)):
        raise ConfigError(f"cores is {cores!r}; write a number of reference cores")
    amount_uusd = _amount(fields.get("amount_uusd"))
    status = await (await _staking(money)).stake(amount_uusd, cores=cores)
    return {"staked_uusd": amount_uusd, **_said(money, status)}


async def _unstake(money: MoneyOnChain, fields: Mapping[str, Any]) -> dict[str, Any]:
    asked = fields.get("amount_uusd")
    staking = await _staking(money)
    before = await staking.status()
    status = await staking.unstake(None if asked is None else _amount(asked))
    came_uusd = before.stake_uusd - status.stake_uusd + before.credit_uusd - status.credit_uusd
    return {"came_uusd": came_uusd, **_said(money, status)}


STAKE_ANSWERS: Final[
    Mapping[tuple[str, str], Callable[[MoneyOnChain, Mapping[str, Any]], Awaitable[dict[str, Any]]]]
] = {("GET", "/stake"): _status, ("POST", "/stake"): _stake, ("POST", "/unstake"): _unstake}
"""Routes about the stake: POST ``/stake`` takes ``amount_uusd`` and ``cores``, ``/unstake`` ``amount_uusd`` (all that
is staked where it is left out)."""

STAKE_ON_CHAIN: Final = frozenset({"/stake", "/unstake"})
"""Those of them that wait for the chain."""
