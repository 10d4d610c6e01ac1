"""Gossipsub's control messages, with bounds on what one neighbour can make us do with them."""

from __future__ import annotations

import logging
from typing import Any

from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.utils import safe_bytes_from_hex

from p2pcompute_protocols.ids import peer_id_from_bytes

from ._defence import Defence

__all__ = ["LimitedGossipSub"]

_log = logging.getLogger(__name__)


class LimitedGossipSub(GossipSub):
    """A router that answers only so many control messages.

    libp2p's copies a message into its answer as often as an IWANT names it: 20 bytes that are sent cost 64 KiB of
    memory, so that one RPC of a quarter of a megabyte takes most of a gigabyte.
    """

    def __init__(self, defence: Defence, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._defence = defence

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        control = rpc.control
        listed = [*(part.messageIDs for part in control.ihave), *(part.messageIDs for part in control.iwant)]
        listed += [part.messageIDs for part in control.idontwant]
        entries = sum(max(1, len(names)) for names in listed) + len(control.graft) + len(control.prune)
        if self._defence.may_control_gossip(peer_id_from_bytes(sender_peer_id.to_bytes()), entries):
            await super().handle_rpc(rpc, sender_peer_id)
        else:
            _log.debug("dropping %d control messages of %s", entries, sender_peer_id)

    async def handle_iwant(self, iwant_msg: rpc_pb2.ControlIWant, sender_peer_id: ID) -> None:
        # One ID has many spellings: hex in either case, with spaces, or raw.
        named = {decoded: name for name in iwant_msg.messageIDs if (decoded := safe_bytes_from_hex(name)) is not None}
        peer = peer_id_from_bytes(sender_peer_id.to_bytes())
        answered = [name for name in named.values() if self._defence.may_ask_for_gossip(peer)]
        if answered:
            await super().handle_iwant(rpc_pb2.ControlIWant(messageIDs=answered), sender_peer_id)
