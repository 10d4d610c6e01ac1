"""The provider's side of inputs that spread: what it gets from other holders, gives to them, and keeps on disk.

Only what an agreement names is fetched, and only what has been paid for is on the disk: a stranger can fill neither.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute.blobs import (
    BlobCache,
    BlobFetch,
    BlobName,
    BlobServer,
    CachedBlob,
    FetchFailed,
    HeldBlob,
    Source,
    WrongRoot,
    digest_of,
)
from p2pcompute.errors import StorageError
from p2pcompute_protocols.blob import count_pieces, piece_span
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.task import Share
from p2pcompute_protocols.wire import Record

from ._inputs import SHARED_BYTES, InputContent, TaskInputs

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay

__all__ = ["BlobExchange", "TaskBlobs"]

_log = logging.getLogger("p2pcompute.tasks")

_AT_ONCE: Final = 2  # inputs of one task that are fetched at a time


@dataclass(slots=True, kw_only=True)
class BlobExchange:
    """What all tasks of a provider share. `cache` is None where nothing is kept on disk."""

    overlay: Overlay
    server: BlobServer
    cache: BlobCache | None = None


class TaskBlobs:
    """The inputs of one task, as far as they are shared; a context, inside of that of its `TaskInputs`.

    Args:
        exchange: what is shared by all tasks; None where inputs come on the task stream only.
        inputs: where they go.
        sizes: bytes of each input, by digest.
        requester: whose task it is.
        known: whether it has paid before; only then is anything written to the disk while it comes.
        took: called with the bytes of each piece that has come, and so is held; may raise what ends the task.
    """

    def __init__(
        self,
        exchange: BlobExchange | None,
        inputs: TaskInputs,
        sizes: dict[bytes, int],
        requester: PeerId,
        *,
        known: bool,
        took: Callable[[int], None],
    ) -> None:
        self._exchange = exchange
        self._inputs = inputs
        self._sizes = sizes
        self._requester = requester
        self._cache = exchange.cache if exchange is not None else None
        self._known = known
        self._took = took
        self._stack = ExitStack()
        self._found: dict[bytes, tuple[CachedBlob, HeldBlob]] = {}  # a part of it is here
        self._offered: set[bytes] = set()
        self._fetches: dict[bytes, BlobFetch] = {}
        self._late: dict[bytes, _Keeper] = {}  # of those that are kept only once they are paid for
        self._turns = trio.CapacityLimiter(_AT_ONCE)
        self._hearing: trio.CancelScope | None = None

    @property
    def fetches(self) -> bool:
        """Whether inputs may come from other peers."""
        return self._exchange is not None

    @property
    def under_way(self) -> bool:
        """Whether some are coming."""
        return bool(self._fetches)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def look(self) -> None:
        """Take what earlier tasks of this requester have left on disk. What is damaged there is fetched anew.

        Raises:
            ExecutionError: memory runs out.
        """
        cache = self._cache
        if cache is None:
            return
        for digest, size in self._sizes.items():
            if digest in self._inputs.had or size < SHARED_BYTES:
                continue
            shared = cache.in_use(self._requester, digest)
            file = await cache.find(self._requester, digest, size)
            if file is not None and shared and len(file.pieces) < count_pieces(size):
                file.close()  # another task of its is getting it, and would not know of what we write
                file = None
            if file is None:
                continue
            cached = self._stack.enter_context(cache.use(self._requester, file))
            self._took(sum(piece_span(index, size)[1] for index in cached.pieces))
            held = HeldBlob(cached.name, self._inputs.room(digest, size))
            await cached.fill(held)
            if held.is_complete and await digest_of(held.content, size) == digest:
                self._inputs.adopt(digest)
            elif held.is_complete:
                _log.warning("a kept input is not what it was kept as; it is dropped")
                cache.drop(self._requester, digest)
                self._inputs.give_up(digest)
            else:
                self._found[digest] = (cached, held)

    async def hear(self, dialogue: Dialogue, *, stall_s: float) -> Record | None:
        """The requester's next message; None once an input has come from elsewhere."""
        with trio.CancelScope() as self._hearing:
            return await dialogue.receive(stall_s=None if self.under_way else stall_s)
        return None

    def share(self, message: Share, nursery: trio.Nursery | None) -> None:
        """The requester says that this input is shared. It is offered to others, and fetched in `nursery` where it is
        not here."""
        assert self._exchange is not None  # the connection lets no Share come otherwise
        digest = message.digest
        sources = [Source(peer=PeerId(holder.peer), addresses=holder.addresses) for holder in message.holders]
        if (fetch := self._fetches.get(digest)) is not None:
            for source in sources:
                fetch.add(source)
            return
        if digest in self._offered:
            return  # it has come: who else has it does not matter
        self._offered.add(digest)
        name = BlobName(digest=digest, size=self._sizes[digest], root=message.root)
        if whole := self._inputs.whole[digest]:
            held = HeldBlob(name, InputContent(whole), complete=True)
            self._stack.enter_context(self._exchange.server.offer(held, message.ticket))
            return
        assert nursery is not None  # what is not here is said to be needed, so it is shared before Ready
        cached, held = self._take_found(name)
        self._stack.enter_context(self._exchange.server.offer(held, message.ticket))
        now = self._known or cached is not None  # what is here in part has been paid for before
        keeper = _Keeper(self._cache if now else None, self._requester, held, cached, self._stack, self._took)
        if not now:
            self._late[digest] = keeper
        fetch = BlobFetch(self._exchange.overlay, held, message.ticket, stored=keeper.put)
        fetch.add(Source(peer=self._requester, origin=True))
        for source in sources:
            fetch.add(source)
        self._fetches[digest] = fetch
        nursery.start_soon(self._run, digest, fetch)

    async def keep(self) -> None:
        """The task is over, and its requester has paid: what came of its inputs goes to the disk, where it did not
        while they came because nobody knew that yet."""
        for keeper in self._late.values():
            keeper.start(self._cache)
            for index in sorted(keeper.held.pieces):
                await keeper.keep(index, keeper.held.read(index))

    def _take_found(self, name: BlobName) -> tuple[CachedBlob | None, HeldBlob]:
        """What has come of it before, where that is of the same root."""
        found = self._found.pop(name.digest, None)
        if found is not None and found[1].name == name:
            return found
        if found is not None:
            self._inputs.give_up(name.digest)
        return None, HeldBlob(name, self._inputs.room(name.digest, name.size))

    async def _run(self, digest: bytes, fetch: BlobFetch) -> None:
        try:
            async with self._turns:
                await fetch.run()
        except WrongRoot as exc:
            if self._cache is not None:
                self._cache.drop(self._requester, digest)
            raise RemoteProtocolError(str(exc), code=WireCode.BAD_DIGEST) from exc
        except FetchFailed as exc:
            raise LocalProtocolError(str(exc), code=WireCode.STALLED) from exc
        self._inputs.adopt(digest)
        del self._fetches[digest]
        if self._hearing is not None:
            self._hearing.cancel()


class _Keeper:
    """Writes the pieces of one input to the disk as they come, as long as that goes well."""

    def __init__(
        self,
        cache: BlobCache | None,
        owner: PeerId,
        held: HeldBlob,
        cached: CachedBlob | None,
        stack: ExitStack,
        took: Callable[[int], None],
    ) -> None:
        self.held = held
        self._cache = cache
        self._owner = owner
        self._cached = cached
        self._stack = stack
        self._took = took
        self._making = trio.Lock()

    async def put(self, index: int, data: bytes | memoryview) -> None:
        self._took(len(data))
        await self.keep(index, data)

    def start(self, cache: BlobCache | None) -> None:
        """From now on it is kept there."""
        self._cache = cache

    async def keep(self, index: int, data: bytes | memoryview) -> None:
        """Write a piece, where that is wanted and goes."""
        if self._cache is None:
            return
        try:
            async with self._making:
                if self._cached is None:
                    assert self.held.leaves is not None  # they come before any piece
                    file = await self._cache.create(self._owner, self.held.name, self.held.leaves)
                    self._cached = self._stack.enter_context(self._cache.use(self._owner, file))
                await self._cached.put(index, data)
        except StorageError as exc:
            # The task needs memory only. What is lost is that the next one, or this one after a restart, has it here.
            _log.warning("an input is not kept on disk: %s", exc)
            self._cache = None
