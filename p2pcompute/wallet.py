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
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from p2pcompute._chain_choice import ChainChoice, choose_chain, hub_of, keep_choice, open_choice
from p2pcompute._launch import default_network, default_profile
from p2pcompute._profile import NetworkDir, Profile
from p2pcompute._stakes import make_staking, open_stake_parts
from p2pcompute._where import check_where, place_of, refuse_other_loops
from p2pcompute.control import Books, MoneyOnChain
from p2pcompute.errors import ChainError, ConfigError
from p2pcompute.identity import AskPassword, Keyring, MoneyKeys, NodeKey, WalletKey, password_from_environment
from p2pcompute.node import _local_chain, wall_clock_ms
from p2pcompute.payments import Balances, ClosedChannel, ContractCall, Outbox, Wallet
from p2pcompute.storage import open_ledger
from p2pcompute_protocols.ids import Address

if TYPE_CHECKING:
    from p2pcompute.payments._api import ChannelOutView
    from p2pcompute_protocols.channel import CloseConsent

__all__ = [
    "Balances",
    "Books",
    "MoneyOnChain",
    "Rotated",
    "Wallet",
    "give_owner",
    "open_books",
    "open_wallet",
    "rotate_signer",
]

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
    password: AskPassword | None = None,
) -> AsyncGenerator[MoneyOnChain]:
    """Open the money of a profile whose node is not running.

    Args:
        profile, network, chain, hub, token, registry: as `open_node` takes them. Where no chain is named and this
            machine has the network's development chain, that one runs while the context is open.
        on_start_chain: gets a line that says so, before it is started.
        password: as `open_node` takes it.
        bootstrap: as `open_node` takes it, to ask payees for their consent to close channels.

    Raises:
        ConfigError: the profile was never used; its ledger is of another chain.
        ProfileInUse: another process has it open; a running node is asked by `p2pcompute wallet`.
        ChainUnreachable, WrongChain, chain.NoHub, chain.WrongHub: as `open_node`.
    """
    refuse_other_loops("open_wallet")
    check_where(network=network, chain=chain, hub=hub, token=token, registry=registry, password=password)
    async with _open(
        _place(profile),
        network,
        chain=chain,
        hub=hub,
        token=token,
        registry=registry,
        on_start_chain=on_start_chain,
        bootstrap=bootstrap,
        password=password_from_environment if password is None else password,
    ) as (money, _):
        yield money


@asynccontextmanager
async def open_books(
    *,
    profile: str | Profile | None = None,
    network: str | None = None,
    chain: str | None = None,
    hub: str | None = None,
    token: str | None = None,
) -> AsyncGenerator[Books]:
    """Open the ledger of a profile whose node is not running, to read it: no chain, and no owner's password, is needed.

    Args:
        profile, network, chain, hub, token: as `open_wallet` takes them. No endpoint is asked and none is started.

    Raises:
        ConfigError: the profile was never used; its ledger is of another hub than is named.
        ProfileInUse: another process has it open.
    """
    refuse_other_loops("open_books")
    check_where(network=network, chain=chain, hub=hub, token=token)
    place = _place(profile)
    network = default_network() if network is None else network
    choice = choose_chain(place, network, chain=chain, hub=hub, token=token)
    owner = Keyring(place.path).owner_address()
    account = WalletKey.load_or_create(place.wallet_key).address if owner is None else owner
    async with open_ledger(place.path, clock_ms=wall_clock_ms) as ledger:
        terms = await ledger.bound_chain()
        if terms is not None and choice is not None and choice.hub not in (None, terms.hub):
            raise ConfigError(
                f"this profile's ledger belongs to the hub 0x{terms.hub.hex()} on chain {terms.chain_id}, not to "
                f"0x{choice.hub.hex()}; name no hub, or its own"
            )
        yield Books(
            ledger=ledger,
            network=network,
            account=account,
            chain_url=None if choice is None else choice.endpoint,
            chain_id=None if terms is None else terms.chain_id,
            hub=None if terms is None else terms.hub,
        )


def finds_chain(profile: str | Profile, network: str, *, chain: str | None, hub: str | None, token: str | None) -> bool:
    """Whether `open_wallet` would use a chain that is named, or runs, and start none. Raises `ConfigError`."""
    return choose_chain(place_of(profile), network, chain=chain, hub=hub, token=token) is not None


def _place(profile: str | Profile | None) -> Profile:
    place = place_of(default_profile() if profile is None else profile)
    if not place.wallet_key.exists():
        raise ConfigError(
            f"there is no profile at {place.path}, so it has no money; --profile or profile=… names another, and "
            "`p2pcompute up` makes one"
        )
    return place


@asynccontextmanager
async def _open(
    place: Profile,
    network: str | None,
    *,
    chain: str | None,
    hub: str | None,
    token: str | None,
    registry: str | None = None,
    on_start_chain: Callable[[str], None] | None = None,
    bootstrap: Sequence[str],
    password: AskPassword,
    checked: bool = True,
) -> AsyncGenerator[tuple[MoneyOnChain, MoneyKeys]]:
    network = default_network() if network is None else network
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
        keys = await trio.to_thread.run_sync(partial(Keyring(place.path).open, password, checked=checked))
        account = hub_of(connected, keys.account, clock_ms=wall_clock_ms)
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
                wallet=keys.signer,
                ledger=ledger,
                hub=account,
                outbox=outbox,
                network=network,
                now_ms=wall_clock_ms,
                peers=_peers(NetworkDir.named(network), bootstrap),
            )

        signers = (keys.signer.address, *keys.retired)
        parts = open_stake_parts(connected, keys.account, place, registry=registry, now_ms=wall_clock_ms)
        yield (
            MoneyOnChain(
                account=account.account,
                wallet=Wallet(ledger=ledger, hub=account, outbox=outbox, ask=ask, signers=signers),
                ledger=ledger,
                network=network,
                chain_url=choice.endpoint,
                chain_id=connected.terms.chain_id,
                hub=connected.terms.hub,
                staking=partial(make_staking, parts, account, outbox),
            ),
            keys,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """What a rotation has done.

    Attributes:
        old, new: the signers' accounts.
        settled_uusd: what claiming has brought.
        closed: the channels of the old signer: closed, or closing where the payee did not agree.
    """

    old: Address
    new: Address
    settled_uusd: int
    closed: tuple[ClosedChannel, ...]


async def rotate_signer(
    *,
    profile: str | Profile | None = None,
    network: str | None = None,
    chain: str | None = None,
    hub: str | None = None,
    token: str | None = None,
    bootstrap: Sequence[str] = (),
    password: AskPassword | None = None,
) -> Rotated:
    """Put a new hot key in the place of a profile's last one: drain, and let the next work open channels anew.

    What was earned is claimed. Channels for which the old key signs are closed, at once where their payees agree and by
    asking the hub otherwise; `p2pcompute close` brings those back a day later. Then the owner names the new key. Killed
    anywhere, the same call goes on: nothing is done twice, and until the owner has named the new key the old one signs.

    Args:
        profile, network, chain, hub, token, bootstrap, password: as `open_wallet` takes them.

    Raises:
        ConfigError: the profile has no owner; what `open_wallet` raises.
        SettlementPending, TransactionFailed, ChainError: see `Outbox.run`; the rotation goes on with the next call.
    """
    check_where(network=network, chain=chain, hub=hub, token=token, password=password)
    place = _place(profile)
    keyring = Keyring(place.path)
    if not keyring.has_owner:
        raise ConfigError(
            "this profile's one key holds its money and signs for it, so it can't be changed under it; make an owner "
            "with `p2pcompute wallet new --profile NAME` and withdraw there"
        )
    async with _open(
        place,
        network,
        chain=chain,
        hub=hub,
        token=token,
        bootstrap=bootstrap,
        password=password_from_environment if password is None else password,
        checked=False,
    ) as (money, keys):
        new = keyring.begin_rotation().address  # on disk before anything else: a crash from here on is gone on from
        settled = await money.wallet.settle()
        closed: list[ClosedChannel] = []
        for row in await money.wallet.reserved():
            try:
                closed.append(await money.wallet.close(row.channel.hex()))
            except ConfigError as exc:
                _log.warning("the channel %s stays as it is: %s", row.channel.hex()[:8], exc)
        keyring.end_rotation(keys.account, now_ms=wall_clock_ms())
        return Rotated(old=keys.signer.address, new=new, settled_uusd=settled, closed=tuple(closed))


async def give_owner(profile: str | Profile, put: Callable[[Keyring], WalletKey]) -> Address:
    """Put an owner's key into a profile that has no channels yet; its money is the owner's from then on.

    Args:
        profile: its name, or a `Profile`; made where it is missing.
        put: `Keyring.create_owner` or `Keyring.import_owner`, with what they take; called in another thread.

    Raises:
        ConfigError: the profile has channels, or may have a stake, which are its hot key's.
        ProfileInUse: a node has it open.
        IdentityError: it has an owner; what `put` raises.
    """
    place = place_of(profile)
    async with open_ledger(place.path, clock_ms=wall_clock_ms) as ledger:
        if await ledger.channels_in() or await ledger.channels_out():
            raise ConfigError(
                f"the channels of the profile {place.path.name} are its own key's, not an owner's; give the owner to "
                "another one with --profile NAME, and bring the money there with `p2pcompute withdraw`"
            )
        if place.wallet_key.exists():
            key = WalletKey.load_or_create(place.wallet_key)
            calls = await ledger.of_kind(key.address, ContractCall.__name__.lower())
            if any(call.state != "failed" for call in calls):
                raise ConfigError(
                    f"the profile {place.path.name} has dealt with the stake registry, and what is there is its own "
                    "key's, not an owner's: `p2pcompute unstake` brings it home. Give the owner to another profile "
                    "with --profile NAME"
                )
        owner = await trio.to_thread.run_sync(put, Keyring(place.path))
        return owner.address
