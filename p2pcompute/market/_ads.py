"""Making ads known and finding them: gossip shards, the DHT's hints, and asking peers directly."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import trio
from trio import TaskStatus

from p2pcompute._exchange import one_message
from p2pcompute.errors import OverlayError
from p2pcompute_protocols import ads
from p2pcompute_protocols.ads import AdBatch, AdQuery, AdsConnection, CapabilityAd
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_ADS_PER_REPLY

from ._board import GOSSIP_SPACING_MS, AdBoard

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay, Requests

__all__ = ["AD_LIFETIME_MS", "AD_REFRESH_S", "AdRecordValidator", "AdService", "Discovery"]

_log = logging.getLogger("p2pcompute.market")

AD_LIFETIME_MS: Final = 10 * 60 * 1000
AD_REFRESH_S: Final = 120.0  # an unchanged ad is sent anew so often
# Gossip reaches only who is in the mesh by then, and a node that has just started is hardly in it yet.
_FIRST_REFRESHES_S: Final = (2.5, 10.0, 30.0)
_EPOCH_MS: Final = 3_600_000
_QUERY_S: Final = 5.0
_WITHDRAW_S: Final = 0.3
_SPACING_S: Final = GOSSIP_SPACING_MS / 1000 + 0.5  # between our own ads, or others drop the later one
_DHT_TIMEOUT_S: Final = 8.0
_RANDOM: Final = secrets.SystemRandom()


@dataclass(slots=True, kw_only=True)
class AdService:
    """Gossips this node's ad, fills the board from others', and answers direct queries.

    `make_ad` builds the signed ad for a sequence number, or gives None while the node sells nothing.
    """

    overlay: Overlay
    requests: Requests
    board: AdBoard
    network: str
    now_ms: Callable[[], int]
    make_ad: Callable[[int], tuple[CapabilityAd, bytes]] | None = None
    _changed: trio.Event = field(default_factory=trio.Event)
    _raw: bytes | None = None
    _sequence: int = 0

    def changed(self) -> None:
        """Say that the ad is out of date: it is built and sent anew at once."""
        self._changed.set()

    def topic(self, peer: PeerId) -> str:
        """Where the ads of `peer` are gossiped."""
        return ads.gossip_topic(self.network, ads.shard_of(peer))

    async def serve(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Listen to others' ads and answer queries, until cancelled."""
        self.requests.serve_inline(ads.PROTOCOL_ID, self._answer)
        async with trio.open_nursery() as nursery:
            for shard in range(ads.SHARDS):  # all: a topic costs a node less than a tenth of a millisecond a second
                await nursery.start(self._listen, ads.gossip_topic(self.network, shard))
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def sell(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Make this node's ad known, until cancelled; `make_ad` must be set. Needs `serve` beside it.

        Started once the ad is on the board, where direct queries find it.
        """
        self._sign()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._advertise)
            nursery.start_soon(self._provide)
            task_status.started()
            await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def withdraw(self) -> None:
        """Tell the others, once, what `make_ad` says now: for a node that stops selling. Takes a moment at most."""
        self._sign()
        assert self._raw is not None
        with trio.CancelScope(shield=True), trio.move_on_after(_WITHDRAW_S):
            try:
                await self.overlay.publish(self.topic(self.overlay.peer_id), self._raw)
            except OverlayError as exc:
                _log.info("the ad could not be withdrawn: %s", exc)

    def _sign(self) -> CapabilityAd:
        assert self.make_ad is not None
        # Wall-clock milliseconds rise over restarts too, so a sequence needs no file. Where the clock is set back,
        # or the board holds what an earlier process of ours has gossiped, the next number is taken.
        held = self.board.get(self.overlay.peer_id)
        self._sequence = max(self.now_ms(), self._sequence + 1, 0 if held is None else held.ad.sequence + 1)
        ad, raw = self.make_ad(self._sequence)
        self._raw = raw
        self.board.keep(self.overlay.peer_id)
        self.board.put(raw)
        return ad

    async def _listen(self, topic: str, *, task_status: TaskStatus[None]) -> None:
        def worth_passing_on(publisher: PeerId, data: bytes) -> bool:
            del publisher  # the ad's own signature says who it is about
            # Our own comes by here on its way out, and is on the board already.
            return data == self._raw or self.board.accepts(data)

        async with self.overlay.subscribe(topic, worth_passing_on) as messages:
            task_status.started()
            async for _ in messages:
                pass  # the validator has put it on the board

    async def _advertise(self) -> None:
        for count in itertools.count():
            self._changed = trio.Event()
            if count:
                self._sign()
            assert self._raw is not None
            sent_s = trio.current_time()
            try:
                await self.overlay.publish(self.topic(self.overlay.peer_id), self._raw)
            except OverlayError as exc:
                _log.warning("the ad could not be gossiped: %s", exc)
            pause_s = _FIRST_REFRESHES_S[count] if count < len(_FIRST_REFRESHES_S) else AD_REFRESH_S
            with trio.move_on_after(pause_s):
                await self._changed.wait()
            await trio.sleep_until(max(trio.current_time() + 0.05, sent_s + _SPACING_S))  # changes at once make one ad

    async def _provide(self) -> None:
        """Keep provider records for this node's buckets in the DHT."""
        while True:
            ad = self._own_ad()
            epoch = self.now_ms() // _EPOCH_MS
            if ad is not None:
                entry = self.board.get(self.overlay.peer_id)
                if entry is not None:
                    with trio.move_on_after(_DHT_TIMEOUT_S):
                        try:
                            await self.overlay.dht_put(ads.record_key(self.network, ad.peer_id), entry.raw)
                        except OverlayError as exc:
                            _log.info("the ad is not in the DHT yet: %s", exc)
                for bucket in ad.buckets:
                    with trio.move_on_after(_DHT_TIMEOUT_S):
                        try:
                            await self.overlay.dht_provide(ads.bucket_key(self.network, bucket, 0, epoch))
                        except OverlayError as exc:
                            _log.info("no provider record for %s yet: %s", bucket, exc)
            # Peers come after the start; the first records may have found nobody to hold them.
            await trio.sleep(20 if len(self.overlay.peers()) < 3 else AD_REFRESH_S)

    def _own_ad(self) -> CapabilityAd | None:
        entry = self.board.get(self.overlay.peer_id)
        return None if entry is None else entry.ad

    def _answer(self, peer: PeerId, body: bytes) -> bytes:
        del peer  # everybody may ask
        connection = AdsConnection(Role.PROVIDER)
        query = one_message(connection, body)
        assert isinstance(query, AdQuery)  # the table has no other
        return connection.send(self._pick(query))

    def _pick(self, query: AdQuery) -> AdBatch:
        """Our own ad, if it fits, and of the others as many as there is room for.

        Which of them, chance says: any order that others know of could be used by a flood of identities to have
        their ads told and nobody else's.
        """
        own: list[bytes] = []
        others: list[bytes] = []
        for entry in self.board.entries():
            if _matches(entry.ad, query):
                (own if entry.peer_id == self.overlay.peer_id else others).append(entry.raw)
        room = query.limit - len(own)
        picked = others if len(others) <= room else _RANDOM.sample(others, room)
        return AdBatch(ads=(*own, *picked), more=len(picked) < len(others))


def _matches(ad: CapabilityAd, query: AdQuery) -> bool:
    return (
        (query.peer_id is None or ad.peer_id == query.peer_id)
        and (query.kind is None or any(device.kind == query.kind for device in ad.devices))
        and (query.fp is None or any(option.fp == query.fp for option in ad.options))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdRecordValidator:
    """Which DHT records this network has: signed ads under the key of the peer that they are about, the newest wins."""

    network: str
    now_ms: Callable[[], int]

    def validate(self, key: bytes, value: bytes) -> bool:
        """Whether `value` is a valid ad of the peer whose key this is."""
        _, ad = ads.open_ad(value, network=self.network, now_ms=self.now_ms())
        return key == ads.record_key(self.network, ad.peer_id)

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        """The ad with the highest sequence; one that has expired since, or never was valid, is behind all others."""
        del key

        def sequence(value: bytes) -> int:
            try:
                return ads.open_ad(value, network=self.network, now_ms=self.now_ms())[1].sequence
            except LocalProtocolError:
                return -1

        return max(range(len(values)), key=[sequence(value) for value in values].__getitem__)


@dataclass(slots=True, kw_only=True)
class Discovery:
    """Finds ads where the board has too few: asks connected peers, then the DHT's providers."""

    overlay: Overlay
    requests: Requests
    board: AdBoard
    network: str
    now_ms: Callable[[], int]

    async def ask(self, peer: PeerId, query: AdQuery) -> int:
        """Ask one peer; the number of ads that were new to us. Errors of the peer count as none."""
        new = 0
        try:
            connection = AdsConnection(Role.REQUESTER)
            answer = await self.requests.ask(peer, ads.PROTOCOL_ID, connection.send(query), timeout_s=_QUERY_S)
            batch = one_message(connection, answer)
            for raw in batch.ads if isinstance(batch, AdBatch) else ():
                try:
                    new += self.board.put(raw) is not None
                except LocalProtocolError as exc:
                    _log.debug("%s passed on an ad that is refused: %s", peer, exc)
        except (OverlayError, ProtocolError) as exc:
            if isinstance(exc, RemoteProtocolError):
                self.overlay.blame(peer, exc)
            _log.debug("no ads from %s: %s", peer, exc)
        return new

    async def refresh(self, *, kinds: tuple[str, ...], fp: str, enough: Callable[[], bool], timeout_s: float) -> bool:
        """Fill the board until `enough()`, everybody was asked, or `timeout_s` seconds have passed, which is False."""
        with trio.move_on_after(timeout_s) as limit:
            query = AdQuery(limit=MAX_ADS_PER_REPLY, fp=fp)
            await self._each(self.overlay.peers(), lambda peer: self.ask(peer, query))
            if enough():
                return True
            epoch = self.now_ms() // _EPOCH_MS
            hinted: dict[PeerId, tuple[str, ...]] = {}
            for kind in kinds:
                key = ads.bucket_key(self.network, f"{kind}/{fp}", 0, epoch)
                try:
                    for info in await self.overlay.dht_find_providers(key):
                        hinted[info.peer_id] = info.addresses
                except OverlayError as exc:
                    _log.debug("the DHT has no providers of %s: %s", kind, exc)

            async def fetch(peer: PeerId) -> int:
                for address in hinted[peer]:
                    try:
                        await self.overlay.connect(address)
                        break
                    except OverlayError:
                        continue
                return await self.ask(peer, AdQuery(limit=1, peer_id=peer)) or await self._from_dht(peer)

            unknown = frozenset(peer for peer in hinted if self.board.get(peer) is None)
            await self._each(unknown, fetch)
        return not limit.cancelled_caught

    async def _from_dht(self, peer: PeerId) -> int:
        """The signed ad that a peer which can't be asked has left in the DHT."""
        try:
            raw = await self.overlay.dht_get(ads.record_key(self.network, peer))
            return 0 if raw is None else int(self.board.put(raw) is not None)
        except (OverlayError, LocalProtocolError) as exc:
            _log.debug("no ad of %s in the DHT: %s", peer, exc)
            return 0

    async def _each(self, peers: frozenset[PeerId], ask: Callable[[PeerId], Awaitable[int]]) -> None:
        async def one(peer: PeerId) -> None:
            await ask(peer)

        async with trio.open_nursery() as nursery:
            for peer in sorted(peers)[:MAX_ADS_PER_REPLY]:
                nursery.start_soon(one, peer)
