"""A profile's money without its node: what was earned is claimed, brought in and taken out.

    async with open_wallet(profile="default") as money:
        await money.wallet.settle()
        await money.wallet.withdraw(to)

A running node has the same as `Node.money`, and `p2pcompute wallet` and its like ask it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from p2pcompute._chain_choice import ChainChoice, choose_chain, hub_of, keep_choice, open_choice
from p2pcompute._launch import default_network, default_profile
from p2pcompute._profile import NetworkDir, Profile
from p2pcompute._stakes import make_staking, open_stake_parts
from p2pcompute._where import check_where, place_of
from p2pcompute.control import MoneyOnChain
from p2pcompute.errors import ChainError, ConfigError
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.node import _local_chain, wall_clock_ms
from p2pcompute.payments import Balances, Outbox, Wallet
from p2pcompute.storage import open_ledger

if TYPE_CHECKING:
    from p2pcompute.payments._api import ChannelOutView
    from p2pcompute_protocols.channel import CloseConsent

__all__ = ["Balances", "MoneyOnChain", "Wallet", "open_wallet"]

_log = logging.getLogger("p2pcompute.payments")


@asynccontextmanager
async def open_wallet(
    *,
    profile: str | Profile | None = None,
    network: str | None = None,
    chain: str | None = None,
    hub: str | None = None,
    token: str | None = None,
    registry: str | None = None,
    on_start_chain: Callable[[str], None] | None = None,
    bootstrap: Sequence[str] = (),
) -> AsyncGenerator[MoneyOnChain]:
    """Open the money of a profile whose node is not running.

    Args:
        profile, network, chain, hub, token, registry: as `open_node` takes them. Where no chain is named and this
            machine has the network's development chain, that one runs while the context is open.
        on_start_chain: gets a line that says so, before it is started.
        bootstrap: as `open_node` takes it, to ask payees for their consent to close channels.

    Raises:
        ConfigError: the profile was never used; its ledger is of another chain.
        ProfileInUse: another process has it open; a running node is asked by `p2pcompute wallet`.
        ChainUnreachable, WrongChain, chain.NoHub, chain.WrongHub: as `open_node`.
    """
    profile = default_profile() if profile is None else profile
    network = default_network() if network is None else network
    place = place_of(profile)
    check_where(network=network, chain=chain, hub=hub, token=token)
    if not place.wallet_key.exists():
        raise ConfigError(
            f"there is no profile at {place.path}, so it has no money; --profile names another, and `p2pcompute up` "
            "makes one"
        )
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(place.path, clock_ms=wall_clock_ms))
        choice = choose_chain(place, network, chain=chain, hub=hub, token=token)
        if choice is None:
            if on_start_chain is not None:
                on_start_chain(
                    f"no chain is named and none runs here: starting this machine's development chain of the network "
                    f"{network!r} meanwhile"
                )
            choice = ChainChoice(url=await stack.enter_async_context(_local_chain(network)))
        connected = await stack.enter_async_context(open_choice(choice))
        await ledger.bind_chain(connected.terms)
        keep_choice(place, choice.url, connected.place)
        key = WalletKey.load_or_create(place.wallet_key)
        account = hub_of(connected, key, clock_ms=wall_clock_ms)
        outbox = Outbox(ledger=ledger, hub=account)
        try:
            await outbox.look()
        except ChainError as exc:
            _log.warning("a transaction of an earlier run is still under way and is sent again later: %s", exc)

        async def ask(row: ChannelOutView) -> tuple[CloseConsent, bytes]:
            from p2pcompute._opening import _peers
            from p2pcompute._reach import ask_without_node

            return await ask_without_node(
                row,
                key=NodeKey.load_or_create(place.node_key),
                wallet=key,
                ledger=ledger,
                hub=account,
                outbox=outbox,
                network=network,
                now_ms=wall_clock_ms,
                peers=_peers(NetworkDir.named(network), bootstrap),
            )

        parts = open_stake_parts(connected, key, place, registry=registry, now_ms=wall_clock_ms)
        yield MoneyOnChain(
            wallet=Wallet(ledger=ledger, hub=account, outbox=outbox, ask=ask),
            ledger=ledger,
            network=network,
            chain_url=choice.url,
            chain_id=connected.terms.chain_id,
            hub=connected.terms.hub,
            staking=partial(make_staking, parts, account, outbox),
        )
