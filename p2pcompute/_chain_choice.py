"""Which chain a profile uses: what was said now, else in the environment, else what the profile has kept.

A profile belongs to one hub for good (its ledger says so), so what was named once with `--chain` and `--hub` and
passed the comparison is kept in the profile's ``chain.json`` and needn't be said again. Nothing is kept of a
development chain: this machine's is found by its network.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from p2pcompute._profile import NetworkDir, Profile, read_json, write_json
from p2pcompute.chain._endpoint import shown_endpoint
from p2pcompute.errors import ConfigError
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.money import ChainTerms

if TYPE_CHECKING:
    from p2pcompute.chain import ChainClient, HubClient, HubPlace
    from p2pcompute.identity import WalletKey
    from p2pcompute.payments import ChainHub

__all__ = [
    "ChainChoice",
    "ConnectedChain",
    "choose_chain",
    "hub_of",
    "keep_choice",
    "kept_choice",
    "open_choice",
]

LOCAL_CHAIN_IDS: Final = frozenset({1337, 31337})
"""What geth's developer mode, Hardhat and anvil call themselves: nobody takes blocks back there, and an idle one
makes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainChoice:
    """An endpoint and the hub there.

    Attributes:
        url: http or https URL of the endpoint; may hold a key.
        chain_id: the chain that it has to be of; None takes the one that it is of.
        hub: the hub's address; None where the endpoint is a development chain of ours.
        token: the token that the hub has to be of, or None.
    """

    url: str
    chain_id: int | None = None
    hub: Address | None = None
    token: Address | None = None

    @property
    def endpoint(self) -> str:
        """See `shown_endpoint`."""
        return shown_endpoint(self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedChain:
    """An open client, the hub that was found, and the terms that go into orders."""

    rpc: ChainClient
    place: HubPlace
    hub: HubClient
    terms: ChainTerms

    @property
    def is_local(self) -> bool:
        """Whether one machine makes the blocks: no reorganisations, and none while nothing happens."""
        return self.place.development or self.place.chain_id in LOCAL_CHAIN_IDS


def _kept_at(profile: Profile) -> Path:
    return profile.path / "chain.json"


def kept_choice(profile: Profile) -> ChainChoice | None:
    """What the profile has kept; None where it has nothing, or what can't be read.

    Raises:
        ConfigError: there is something, and it is not what `keep_choice` writes.
    """
    note = read_json(_kept_at(profile))
    if note is None:
        return None
    url, chain_id, hub, token = (note.get(name) for name in ("url", "chain_id", "hub", "token"))
    if isinstance(url, str) and type(chain_id) is int and isinstance(hub, str) and isinstance(token, str):
        return ChainChoice(url=url, chain_id=chain_id, hub=account(hub), token=account(token))
    raise ConfigError(f"{_kept_at(profile)} is damaged; move it away and name the chain again with --chain and --hub")


def keep_choice(profile: Profile, url: str, place: HubPlace) -> None:
    """Write down what was found, for the next start; nothing of a development chain."""
    if place.development:
        return
    note = {
        "url": url,
        "chain_id": place.chain_id,
        "hub": "0x" + place.hub.hex(),
        "token": "0x" + place.token.hex(),
    }
    if read_json(_kept_at(profile)) != note:
        write_json(_kept_at(profile), note)
        _kept_at(profile).chmod(0o600)  # the URL's key is worth money to others


def account(text: str) -> Address:
    """An address as people write it. Raises `ConfigError`."""
    from p2pcompute.control import parse_address

    return parse_address(text)


def choose_chain(
    profile: Profile | None, network: str, *, chain: str | None, hub: str | None, token: str | None
) -> ChainChoice | None:
    """The chain to use; None where nothing names one.

    Args:
        profile: whose; None for one that is gone afterwards.
        network: whose development chain on this machine counts last.
        chain, hub, token: what was said: a URL, and addresses as text. P2PCOMPUTE_CHAIN, P2PCOMPUTE_HUB and
            P2PCOMPUTE_TOKEN stand for those that were not.

    Raises:
        ConfigError: an address is none, or a hub is named and no chain.
    """
    kept = None if profile is None else kept_choice(profile)
    url = chain or os.environ.get("P2PCOMPUTE_CHAIN")
    hub_text = hub or os.environ.get("P2PCOMPUTE_HUB")
    token_text = token or os.environ.get("P2PCOMPUTE_TOKEN")
    found = kept
    if url is not None:
        # Another endpoint of the same chain: the hub stays what it was, and the chain ID has to be the same.
        found = ChainChoice(url=url) if kept is None else replace(kept, url=url)
    if hub_text or token_text:
        if found is None:
            raise ConfigError(
                "a hub or a token is named and no chain; name its endpoint: --chain URL, P2PCOMPUTE_CHAIN or chain=…"
            )
        if hub_text:
            found = ChainChoice(url=found.url, hub=account(hub_text))
        if token_text:
            found = replace(found, token=account(token_text))
    if found is None:
        local = NetworkDir.named(network).chain_url()
        found = None if local is None else ChainChoice(url=local)
    return found


@asynccontextmanager
async def open_choice(choice: ChainChoice) -> AsyncGenerator[ConnectedChain]:
    """Connect, find the hub and compare its code.

    Raises:
        NoHub, WrongHub: see `p2pcompute.chain.find_hub`.
        WrongChain: another chain answers there than the profile has kept.
        ChainUnreachable: nothing answers there.
        ConfigError: the URL is none, or the chain's ID is above what a message can hold.
    """
    from p2pcompute.chain import TOKEN_DECIMALS, ChainClient, find_hub

    async with ChainClient(choice.url, expected_chain_id=choice.chain_id) as rpc:
        place = await find_hub(rpc, hub=choice.hub, token=choice.token)
        try:
            terms = ChainTerms(
                chain_id=place.chain_id, hub=bytes(place.hub), token=bytes(place.token), decimals=TOKEN_DECIMALS
            )
        except LocalProtocolError as exc:
            raise ConfigError(f"chain {place.chain_id} can't be named in an order ({exc}); use another one") from exc
        yield ConnectedChain(rpc=rpc, place=place, hub=place.client(rpc), terms=terms)


def hub_of(chain: ConnectedChain, wallet: WalletKey, *, clock_ms: Callable[[], int]) -> ChainHub:
    """The hub as the account of `wallet` sees it, with as many confirmations as the chain asks for."""
    from p2pcompute.payments import AT_ONCE, PUBLIC_CHAIN, ChainHub

    return ChainHub(
        chain.hub,
        terms=chain.terms,
        private_key=wallet.private_key,
        confirmations=AT_ONCE if chain.is_local else PUBLIC_CHAIN,
        free_gas=chain.place.development,
        clock_ms=clock_ms,
    )
