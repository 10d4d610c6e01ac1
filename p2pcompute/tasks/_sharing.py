"""The requester's side of inputs that spread: which ones may, who has them, and serving them while the task runs."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Self

import trio

from p2pcompute.blobs import BlobName, BlobServer, Bytes, HeldBlob, leaves_of
from p2pcompute_protocols.blob import root_of
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_ADDRESSES, MAX_HOLDERS
from p2pcompute_protocols.task import Holder, Share
from p2pcompute_protocols.work import ArrayArg, ChunkWork, Work

if TYPE_CHECKING:
    from p2pcompute._dialogue import Dialogue
    from p2pcompute.overlay import Overlay

__all__ = ["SHARE_BYTES", "Sharing", "shareable"]

SHARE_BYTES: Final = 1024 * 1024  # below that a stream more costs about as much as the input


def shareable(work: Work) -> frozenset[bytes]:
    """The inputs of a work that are worth a stream of their own: arrays that are sent whole."""
    if not isinstance(work, ChunkWork):
        return frozenset()
    arrays = [arg for arg in work.args if isinstance(arg, ArrayArg)]
    return frozenset(arg.digest for arg in arrays if work.inputs.get(arg.digest, 0) >= SHARE_BYTES)


class Sharing:
    """The inputs of one task that its providers may give to each other. Made by `open`.

    Each provider is told of the others, those that are still getting an input as well; so of what a provider needs the
    others mostly have something, and little more than one copy leaves this node.
    """

    def __init__(self, overlay: Overlay, server: BlobServer, blobs: Mapping[bytes, bytes], digests: Collection[bytes]):
        self.digests = frozenset(digests)
        self._overlay = overlay
        self._server = server
        self._blobs = blobs
        self._ticket = secrets.token_bytes(32)
        self._names: dict[bytes, BlobName] = {}
        self._offers = ExitStack()
        self._preparing = trio.Lock()
        self._holders: dict[PeerId, Holder] = {}  # in the order in which they came
        self._changed = trio.Event()

    @classmethod
    @contextmanager
    def open(
        cls, overlay: Overlay, server: BlobServer, blobs: Mapping[bytes, bytes], digests: Collection[bytes]
    ) -> Generator[Self]:
        """Serve these inputs to the task's providers until the context ends."""
        sharing = cls(overlay, server, blobs, digests)
        with sharing._offers:
            yield sharing

    async def _prepare(self) -> None:
        """Hash the pieces, once; while others run."""
        async with self._preparing:
            for digest in self.digests - self._names.keys():
                content, size = Bytes(self._blobs[digest]), len(self._blobs[digest])
                leaves = await leaves_of(content, size)
                name = self._names[digest] = BlobName(digest=digest, size=size, root=root_of(leaves))
                held = HeldBlob(name, content, complete=True, origin=True)
                held.leaves = leaves
                self._offers.enter_context(self._server.offer(held, self._ticket))

    async def begin(self, provider: PeerId, dialogue: Dialogue) -> dict[bytes, set[PeerId]]:
        """Tell a provider of all inputs and their holders, and the others of it from now on. Gives whom it knows of
        each."""
        await self._prepare()
        told: dict[bytes, set[PeerId]] = {}
        for digest in sorted(self.digests):
            others = [holder for peer, holder in self._holders.items() if peer != provider][-MAX_HOLDERS:]
            await dialogue.send(self._share(digest, others))
            told[digest] = {PeerId(holder.peer) for holder in others}
        addresses = [address for address in self._overlay.addresses_of(provider) if len(address.encode()) <= 256]
        addresses = [address for address in addresses if address.endswith(f"/p2p/{provider}")]
        self._holders[provider] = Holder(peer=provider, addresses=tuple(addresses[:MAX_ADDRESSES]))
        self._wake()
        return told

    def end(self, provider: PeerId) -> None:
        """It is no holder any more. Idempotent."""
        self._holders.pop(provider, None)

    async def keep_telling(self, provider: PeerId, dialogue: Dialogue, told: dict[bytes, set[PeerId]]) -> None:
        """Tell a provider that is getting inputs of holders that come, until cancelled."""
        while True:
            changed = self._changed
            for digest, known in told.items():
                new = [holder for peer, holder in self._holders.items() if peer != provider and peer not in known]
                new = new[: MAX_HOLDERS - len(known)]
                if new:
                    known |= {PeerId(holder.peer) for holder in new}
                    await dialogue.send(self._share(digest, new))
            await changed.wait()

    def _share(self, digest: bytes, holders: list[Holder]) -> Share:
        name = self._names[digest]
        return Share(digest=digest, root=name.root, ticket=self._ticket, holders=tuple(holders))

    def _wake(self) -> None:
        event, self._changed = self._changed, trio.Event()
        event.set()
