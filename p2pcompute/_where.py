"""Where a node or a wallet is opened: profile, network, addresses and chain, as users write them."""

from __future__ import annotations

from pathlib import Path

import sniffio

from p2pcompute._options import OptionError, said, texts
from p2pcompute._profile import Profile
from p2pcompute.errors import ConfigError

__all__ = ["check_where", "multiaddrs", "place_of", "refuse_other_loops"]


def refuse_other_loops(what: str) -> None:
    """Raise ConfigError where the caller's event loop is not trio's."""
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        library = "trio"  # which says itself that it does not run
    if library != "trio":
        raise ConfigError(
            f"{what} is for trio and was opened from {library}; start it with trio.run, or call p2p.run in a thread: "
            "`await asyncio.to_thread(p2p.run, …)`"
        )


def place_of(profile: str | Profile) -> Profile:
    """The profile of that name.

    Raises:
        ConfigError: it is no name.
    """
    given: object = profile
    if isinstance(given, Profile):
        return given
    if not isinstance(given, str):
        directory = "; P2PCOMPUTE_HOME says where profiles lie" if isinstance(given, Path) else ""
        raise OptionError(f"profile is {said(given)}; write its name, such as 'requester'{directory}")
    return Profile.named(given)


def check_where(
    *,
    network: object,
    chain: object,
    hub: object,
    token: object,
    registry: object = None,
    start_chain: object = False,
    password: object = None,
) -> None:
    """Check that these are texts, the last but one a bool and the last a function; what they say is looked at where
    it is used.

    Raises:
        OptionError: one of them is something else; with what to write.
    """
    for name, value, write in (
        ("network", network, "the network's ID, such as 'local'"),
        ("chain", chain, "the JSON-RPC URL of its endpoint, such as 'http://127.0.0.1:8545'"),
        ("hub", hub, "the contract's address as text: 0x and 40 hexadecimal digits"),
        ("token", token, "the contract's address as text: 0x and 40 hexadecimal digits"),
        ("registry", registry, "the contract's address as text: 0x and 40 hexadecimal digits"),
    ):
        if value is not None and not isinstance(value, str):
            raise OptionError(f"{name} is {said(value)}; write {write}, or None")
    if not isinstance(start_chain, bool):
        raise OptionError(f"start_chain is {said(start_chain)}; write True or False")
    if password is not None and not callable(password):
        raise OptionError(
            "password is no function; write one without arguments that gives the text, such as "
            "p2pcompute.identity.password_from_environment"
        )


def multiaddrs(given: object, name: str) -> tuple[str, ...]:
    """Addresses; a text by itself is taken for a list of one.

    Raises:
        OptionError: they are something else.
    """
    # Of this machine for `listen`, and not 0.0.0.0: it is what others are told to dial.
    example = f"'/ip4/192.0.2.7/tcp/4001{'' if name == 'listen' else '/p2p/12D3Koo…'}'"
    found = texts(given, name, what=f"multiaddrs, such as {example}")
    for text in found:
        if not text.startswith("/"):
            raise OptionError(f"{name} names {said(text)}; write a multiaddr, such as {example}")
    return found
