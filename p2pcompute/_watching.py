"""A provider's part in watchtowers: being one, and leaving vouchers with others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio

from p2pcompute._options import OptionError, said
from p2pcompute.payments import SettlePolicy, VoucherKeeping, Watchtower
from p2pcompute.storage import InlineExecutor, open_watch_store
from p2pcompute_protocols import watch
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import PeerId, public_key_of

if TYPE_CHECKING:
    from p2pcompute._serving import ProviderOptions
    from p2pcompute.node import Node
    from p2pcompute_protocols._binding import SignerBinding

__all__ = ["serve_watching", "towers", "watched"]

_MOST_WATCHED: Final = 64  # each may leave 1024 vouchers of 200 bytes
_MOST_TOWERS: Final = 8
_BINDING_MS: Final = 3_600_000


def _texts(given: object, name: str, most: int) -> tuple[str, ...]:
    if (
        isinstance(given, str)
        or not isinstance(given, Sequence)
        or not all(isinstance(item, str) for item in given)
        or len(given) > most
    ):
        raise OptionError(f"{name} is {said(given)}; write a list of at most {most} texts")
    return tuple(dict.fromkeys(given))


def watched(given: object) -> tuple[str, ...]:
    """Peers and accounts to watch for, as they are compared. Raises `OptionError`."""
    from p2pcompute.control import parse_address
    from p2pcompute.errors import ConfigError

    found: list[str] = []
    for text in _texts(given, "watch_for", _MOST_WATCHED):
        try:
            if text.startswith("0x"):
                text = "0x" + parse_address(text).hex()
            else:
                public_key_of(PeerId(text))
        except (ConfigError, LocalProtocolError) as exc:
            raise OptionError(
                f"watch_for names {text!r} ({exc}); write a peer ID (12D3Koo…) or an account (0x and 40 digits)"
            ) from exc
        found.append(text)
    return tuple(found)


def towers(given: object) -> tuple[str, ...]:
    """Multiaddrs of watchtowers. Raises `OptionError`."""
    found = _texts(given, "watchtowers", _MOST_TOWERS)
    for text in found:
        try:
            public_key_of(PeerId(text.rpartition("/p2p/")[2] if text.startswith("/") else ""))
        except LocalProtocolError as exc:
            raise OptionError(
                f"watchtowers names {said(text)} ({exc}); write a multiaddr with its peer, such as "
                "/ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…"
            ) from exc
    return found


async def serve_watching(
    node: Node, options: ProviderOptions, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Be a watchtower for those that `options` name, and leave vouchers with the towers that they name, until
    cancelled.

    Raises:
        LedgerFailed: the disk under the tower's store failed.
    """
    services = node.services
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        if options.watch_for:
            in_memory = partial(open_watch_store, None, executor=InlineExecutor())
            shelf = await stack.enter_async_context((services.watch_store or in_memory)())
            tower = Watchtower(
                shelf=shelf,
                hub=services.hub,
                outbox=services.outbox,
                network=node.network,
                watch_for=options.watch_for,
                policy=SettlePolicy(cap_uusd=0, coin_uusd=options.coin_price_uusd),
                clock_ms=node.now_ms,
            )
            services.overlay.handle(watch.PROTOCOL_ID, tower.serve_watch)
            nursery.start_soon(shelf.wait_failed)
            await nursery.start(tower.serve)
        for address in options.watchtowers:
            await nursery.start(_keeping(node, address).serve)
        task_status.started()
        await trio.sleep_forever()
    raise AssertionError("unreachable")


def _keeping(node: Node, address: str) -> VoucherKeeping:
    services = node.services

    def bind() -> SignerBinding:
        # By the account itself, which is another key than the one that signs vouchers where there is an owner.
        now = node.now_ms()
        return bind_signer(
            node.network, services.key.peer_id, services.account, sequence=now, expires_ms=now + _BINDING_MS
        )

    async def dial() -> Any:
        peer = await services.overlay.connect(address)
        return await services.overlay.open_stream(peer, watch.PROTOCOL_ID)

    return VoucherKeeping(
        ledger=services.ledger,
        hub=services.hub,
        binding=bind,
        dial=dial,
        peer_id=services.key.peer_id,
        name=f"…{address[-8:]}",
    )
