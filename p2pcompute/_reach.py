"""Asking the payee of a channel for its consent to close it: finding its node, and a stream to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from p2pcompute.errors import DialError, OverlayError, VoucherRefused
from p2pcompute.market import AdBoard, AdRecordValidator, Discovery
from p2pcompute.payments import Payer
from p2pcompute_protocols import channel
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols.ids import PeerId

if TYPE_CHECKING:
    from p2pcompute.identity import NodeKey, WalletKey
    from p2pcompute.node import NodeServices
    from p2pcompute.overlay import Overlay
    from p2pcompute.payments import Hub, Outbox
    from p2pcompute.payments._api import ChannelOutView
    from p2pcompute.payments._closing import AskClose
    from p2pcompute.storage import Ledger
    from p2pcompute_protocols.channel import CloseConsent

__all__ = ["ask_from_node", "ask_without_node", "asking", "reach"]

_OTHER_KEY: Final = "a key of before signs on this channel, and its payee answers to that one only"
REACH_S: Final = 15.0  # for finding a peer and connecting to it
_BINDING_MS: Final = 3_600_000


async def reach(discovery: Discovery, peer: PeerId, *, hints: Sequence[str] = ()) -> None:
    """Connect to a peer: by what is known of it, by `hints`, else by the ad that it has left in the DHT.

    Raises:
        DialError: it is not to be found, or at none of its addresses, in `REACH_S`.
    """
    overlay, board = discovery.overlay, discovery.board

    async def at(addresses: Sequence[str]) -> bool:
        for address in addresses:
            # Neither a note nor an ad may send us to somebody else.
            if address.endswith(f"/p2p/{peer}"):
                try:
                    await overlay.connect(address)
                except OverlayError:
                    continue
                return True
        return False

    with trio.move_on_after(REACH_S):
        if peer in overlay.peers() or await at((*hints, *overlay.addresses_of(peer))):
            return
        entry = board.get(peer)
        if entry is None and await discovery._from_dht(peer):
            entry = board.get(peer)
        if entry is not None and await at(entry.ad.addresses):
            return
    raise DialError(f"{peer} is not to be reached; try again when it is back")


async def ask_from_node(
    payer: Payer, discovery: Discovery, row: ChannelOutView, *, hints: Sequence[str] = ()
) -> tuple[CloseConsent, bytes]:
    """Ask as a node that runs; raises what `ChannelOut.ask_close` does, and DialError."""
    if payer.channel_id(row.payee) != row.channel:
        raise VoucherRefused(_OTHER_KEY)
    await reach(discovery, row.peer, hints=hints)
    return await payer.channel(row.payee, row.peer).ask_close()


def asking(services: NodeServices, *, network: str, now_ms: Callable[[], int]) -> AskClose:
    """How a node that runs asks the payees of its channels."""
    discovery = Discovery(
        overlay=services.overlay, requests=services.requests, board=services.board, network=network, now_ms=now_ms
    )
    return partial(ask_from_node, services.payer, discovery)


async def ask_without_node(
    row: ChannelOutView,
    *,
    key: NodeKey,
    wallet: WalletKey,
    ledger: Ledger,
    hub: Hub,
    outbox: Outbox,
    network: str,
    now_ms: Callable[[], int],
    peers: Sequence[str],
) -> tuple[CloseConsent, bytes]:
    """Be on the network for as long as asking takes; raises what `ask_from_node` does.

    Args:
        row: the channel.
        key: of the profile's node, to which `wallet` is bound.
        wallet: signs the channel's vouchers.
        ledger, hub, outbox: of the channel's payer.
        network: the network's ID.
        now_ms: UNIX time in milliseconds.
        peers: multiaddrs to join by, and where the payee may be.
    """
    from p2pcompute.overlay import open_libp2p, open_requests

    if channel.channel_id(hub.account, row.payee, wallet.address) != row.channel:
        raise VoucherRefused(_OTHER_KEY)
    validator = AdRecordValidator(network=network, now_ms=now_ms)
    others = [address for address in peers if not address.endswith(f"/p2p/{key.peer_id}")]
    consent: tuple[CloseConsent, bytes] | None = None
    async with (
        open_libp2p(key, listen=(), record_validator=validator, bootstrap=others) as overlay,
        open_requests(overlay) as requests,
    ):
        now = now_ms()
        binding = bind_signer(
            network, key.peer_id, wallet, owner=hub.account, sequence=now, expires_ms=now + _BINDING_MS
        )
        board = AdBoard(network=network, now_ms=now_ms)
        discovery = Discovery(overlay=overlay, requests=requests, board=board, network=network, now_ms=now_ms)
        payer = Payer(ledger=ledger, hub=hub, outbox=outbox, wallet=wallet, binding=binding, dial=_dialler(overlay))
        try:
            consent = await ask_from_node(payer, discovery, row, hints=others)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await payer.aclose()
    assert consent is not None
    return consent


def _dialler(overlay: Overlay) -> Callable[[PeerId], Any]:
    async def dial(peer: PeerId) -> Any:
        return await overlay.open_stream(peer, channel.PROTOCOL_ID)

    return dial
