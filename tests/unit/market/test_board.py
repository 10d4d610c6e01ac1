"""Ads: what the board takes, how many, and who is asked first."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.market import AdBoard, AdRecordValidator, Standing, Standings, fits, rank
from p2pcompute.market import _board as board_module
from p2pcompute.market._ranking import BELIEVED_SCORE_MILLI
from p2pcompute.market._standing import MAX_STRANGERS
from p2pcompute_protocols import ads
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols.ads import Availability, CapabilityAd, Device, PricedOption
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_AD_BYTES
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Requirement

NOW = 1_800_000_000_000
NETWORK = "test"
CHAIN = ChainTerms(chain_id=1, hub=b"\x11" * 20, token=b"\x22" * 20, decimals=6)
CPU = Device(kind="cpu", name="cpu", slots=1, memory_bytes=2**30, score_milli=1_000, scores=())
CUDA = Device(kind="cuda", name="gpu", slots=1, memory_bytes=2**33, score_milli=90_000, scores=())
ANY = Requirement(kinds=("cpu", "cuda"), memory_bytes=0, features=(), min_score_milli=0)


class Seller:
    """Keys, and ads that are valid but for what a test changes."""

    def __init__(self) -> None:
        self.key = NodeKey.generate()
        self.wallet = WalletKey.generate()

    def ad(self, **changes: Any) -> CapabilityAd:
        fields: dict[str, Any] = {
            "version": 1,
            "peer_id": self.key.peer_id,
            "sequence": 1,
            "issued_ms": NOW,
            "expires_ms": NOW + 600_000,
            "addresses": (),
            "devices": (CPU,),
            "resources": (),
            "features": (),
            "options": (PricedOption(work=1, fp="strict", price_pusd=100, max_window=8),),
            "language": ("strict-1",),
            "chain": CHAIN,
            "binding": bind_signer(NETWORK, self.key.peer_id, self.wallet, sequence=1, expires_ms=NOW + 10**9),
            "availability": Availability(idle_only=False, draining=False),
        }
        return CapabilityAd(**{**fields, **changes})

    def raw(self, **changes: Any) -> bytes:
        return ads.seal_ad(self.ad(**changes), network=NETWORK, signer=self.key)


class Clock:
    now_ms = NOW

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> AdBoard:
    return AdBoard(network=NETWORK, now_ms=clock)


@pytest.fixture
def seller() -> Seller:
    return Seller()


def refuses(board: AdBoard, raw: bytes, code: WireCode) -> None:
    before = {entry.raw for entry in board.entries()}
    with pytest.raises(LocalProtocolError) as caught:
        board.put(raw)
    assert caught.value.code == code
    assert not board.accepts(raw)
    assert {entry.raw for entry in board.entries()} == before


def test_the_newest_ad_of_a_peer_wins(board: AdBoard, seller: Seller) -> None:
    old, new = seller.raw(sequence=1), seller.raw(sequence=2)
    assert board.put(old) is not None
    assert board.put(old) is None
    assert board.accepts(new)
    refuses(board, seller.raw(sequence=2, region="moved"), WireCode.REPLAYED)
    refuses(board, old, WireCode.REPLAYED)
    assert [entry.raw for entry in board.entries()] == [new]


def test_an_ad_counts_until_it_expires(board: AdBoard, seller: Seller, clock: Clock) -> None:
    board.put(seller.raw())
    clock.now_ms += 599_999
    assert board.get(seller.key.peer_id) is not None
    clock.now_ms += 1
    assert board.get(seller.key.peer_id) is None
    refuses(board, seller.raw(sequence=2), WireCode.EXPIRED)


def test_an_ad_from_the_future_is_refused(board: AdBoard, seller: Seller) -> None:
    later = NOW + 10 * 60_000
    refuses(board, seller.raw(issued_ms=later, expires_ms=later + 60_000), WireCode.EXPIRED)


def test_an_ad_about_somebody_else_is_refused(board: AdBoard, seller: Seller) -> None:
    other = Seller()
    from p2pcompute_protocols.ads._messages import AD_KIND
    from p2pcompute_protocols.envelope import seal

    forged = seal(AD_KIND, NETWORK, other.key, seller.ad().encode())
    refuses(board, forged, WireCode.WRONG_PEER)


def test_an_ad_with_the_binding_of_somebody_else_is_refused(board: AdBoard, seller: Seller) -> None:
    other = Seller().ad().binding
    # The binding says whose it is; with another name in it, its signature is wrong.
    renamed = dataclasses.replace(other, peer_id=seller.key.peer_id)
    with pytest.raises(LocalProtocolError, match="binding is of another peer"):
        seller.raw(binding=other)
    refuses(board, seller.raw(binding=renamed), WireCode.BAD_SIGNATURE)


def test_an_ad_whose_binding_is_over_is_refused(board: AdBoard, seller: Seller) -> None:
    over = bind_signer(NETWORK, seller.key.peer_id, seller.wallet, sequence=1, expires_ms=NOW)
    refuses(board, seller.raw(binding=over), WireCode.EXPIRED)


def test_every_changed_bit_is_noticed(board: AdBoard, seller: Seller) -> None:
    raw = seller.raw()
    for position in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[position] ^= 1
        assert not board.accepts(bytes(changed))
    assert len(board) == 0


def test_an_ad_of_another_network_is_refused(seller: Seller, clock: Clock) -> None:
    elsewhere = AdBoard(network="other", now_ms=clock)
    refuses(elsewhere, seller.raw(), WireCode.WRONG_NETWORK)


def test_a_huge_ad_is_refused_before_it_is_read(board: AdBoard) -> None:
    refuses(board, bytes(MAX_AD_BYTES + 1), WireCode.OVERSIZED)
    assert not board.accepts(b"")


def test_an_ad_says_nothing_absurd(seller: Seller) -> None:
    for change in (
        {"expires_ms": NOW},
        {"expires_ms": NOW + 3_600_001},
        {"devices": ()},
        {"options": ()},
        {"addresses": ("/ip4/1.2.3.4/tcp/1",) * 9},
        {"sequence": -1},
    ):
        with pytest.raises(LocalProtocolError):
            seller.ad(**change)


def test_a_flood_of_fresh_identities_is_bounded_and_spares_who_is_kept(
    board: AdBoard, seller: Seller, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "MAX_BOARD_ADS", 8)
    board.put(seller.raw())
    board.keep(seller.key.peer_id)
    for _ in range(30):
        # They live longer than anybody else's, so that they would outlast them.
        assert board.accepts(Seller().raw(expires_ms=NOW + 3_600_000))
        assert len(board) <= 8
    assert board.get(seller.key.peer_id) is not None


def test_a_record_of_the_dht_stands_under_its_own_peer_only(seller: Seller, clock: Clock) -> None:
    validator = AdRecordValidator(network=NETWORK, now_ms=clock)
    key = ads.record_key(NETWORK, seller.key.peer_id)
    assert validator.validate(key, seller.raw())
    assert not validator.validate(key, Seller().raw())
    with pytest.raises(LocalProtocolError):
        validator.validate(key, b"noise")
    assert validator.select(key, [seller.raw(sequence=3), seller.raw(sequence=9), seller.raw(sequence=5)]) == 1


FIT = {"fp": "strict", "language": "strict-1", "chain": CHAIN, "max_price_pusd": 100}


@pytest.mark.parametrize(
    ("changes", "requirement", "why"),
    [
        ({"availability": Availability(idle_only=False, draining=True)}, ANY, "draining"),
        ({"chain": dataclasses.replace(CHAIN, token=b"\x33" * 20)}, ANY, "another chain"),
        ({"language": ("strict-0",)}, ANY, "strict-1"),
        ({"region": "eu"}, dataclasses.replace(ANY, region="us"), "not in us"),
        ({"features": ("f64",)}, dataclasses.replace(ANY, features=("f64", "warp")), "lacks warp"),
        ({}, dataclasses.replace(ANY, kinds=("cuda",)), "no cuda device"),
        ({}, dataclasses.replace(ANY, memory_bytes=2**31), "device of that size"),
        ({}, dataclasses.replace(ANY, min_score_milli=1_001), "device of that size"),
        ({"options": (PricedOption(work=2, fp="strict", price_pusd=1, max_window=1),)}, ANY, "does not sell"),
        ({"options": (PricedOption(work=1, fp="fast", price_pusd=1, max_window=1),)}, ANY, "does not sell strict"),
        (
            {"options": (PricedOption(work=1, fp="strict", price_pusd=101, max_window=1),)},
            ANY,
            "an hour and the limit is",
        ),
    ],
)
def test_an_ad_that_does_not_fit_says_why(
    seller: Seller, changes: dict[str, Any], requirement: Requirement, why: str
) -> None:
    found = fits(seller.ad(**changes), requirement, **FIT)
    assert isinstance(found, str)
    assert why in found


def test_the_best_device_and_the_cheapest_option_are_chosen(seller: Seller) -> None:
    cheap = PricedOption(work=1, fp="strict", price_pusd=7, max_window=1)
    dear = PricedOption(work=1, fp="strict", price_pusd=9, max_window=8)
    assert fits(seller.ad(devices=(CPU, CUDA), options=(dear, cheap)), ANY, **FIT) == (CUDA, cheap)


def test_candidates_ascend_by_cost_times_time(board: AdBoard) -> None:
    def sells(score_milli: int, price_pusd: int) -> str:
        seller = Seller()
        device = dataclasses.replace(CPU, score_milli=score_milli)
        option = PricedOption(work=1, fp="strict", price_pusd=price_pusd, max_window=8)
        board.put(seller.raw(devices=(device,), options=(option,)))
        return seller.key.peer_id

    slow_cheap, fast_dear, slow_dear, banned = sells(1_000, 30), sells(4_000, 60), sells(1_000, 90), sells(9_000, 1)
    too_dear = sells(1_000, 101)
    found, reasons = rank(board.entries(), ANY, units=1_000, excluded=lambda peer: peer == banned, **FIT)
    assert [candidate.peer_id for candidate in found] == [fast_dear, slow_cheap, slow_dear]
    assert found[0].cost_pusd == 60_000
    assert found[0].time_us == 250
    assert set(reasons) == {too_dear}


# What is believed when providers are ranked


def ranked(board: AdBoard, **options: Any) -> list[str]:
    found, _ = rank(board.entries(), ANY, units=1_000, excluded=lambda _: False, **FIT, **options)
    return [candidate.peer_id for candidate in found]


def put(board: AdBoard, *, score_milli: int = 1_000, price_pusd: int = 10, slots: int = 1) -> str:
    seller = Seller()
    device = dataclasses.replace(CPU, score_milli=score_milli, slots=slots)
    option = PricedOption(work=1, fp="strict", price_pusd=price_pusd, max_window=8)
    board.put(seller.raw(devices=(device,), options=(option,)))
    return seller.key.peer_id


def test_a_score_is_believed_up_to_a_bound(board: AdBoard) -> None:
    """2^63 would make any price look like nothing."""
    boasts = put(board, score_milli=2**63, price_pusd=100)
    many = put(board, score_milli=10**6, slots=64, price_pusd=99)
    honest = put(board, score_milli=BELIEVED_SCORE_MILLI, price_pusd=98)
    assert ranked(board) == [honest, many, boasts]


def test_a_price_of_nothing_counts_as_the_least_one(board: AdBoard) -> None:
    free = put(board, price_pusd=0)
    fast = put(board, price_pusd=1, score_milli=2_000)
    least = put(board, price_pusd=1)
    assert ranked(board) == [fast, free, least]


def test_chance_decides_between_equals_and_not_the_peer_id(board: AdBoard) -> None:
    sellers = {put(board) for _ in range(24)}  # of 8, two of 16 orders are the same once in 340 runs
    orders = {tuple(ranked(board, salt=bytes([salt]))) for salt in range(16)}
    assert len(orders) == 16
    assert all(set(order) == sellers for order in orders)
    assert ranked(board, salt=b"1") == ranked(board, salt=b"1")


def test_who_was_paid_stands_before_strangers_and_every_fourth_is_one(board: AdBoard) -> None:
    strangers = [put(board, price_pusd=1 + i) for i in range(3)]
    paid = [put(board, price_pusd=50 + i) for i in range(6)]
    standings = Standings()
    for peer in paid:
        standings.paid(PeerId(peer), 5)
    order = ranked(board, standing=standings.of)
    assert order == [paid[0], strangers[0], *paid[1:4], strangers[1], *paid[4:], strangers[2]]


@pytest.mark.parametrize(
    ("proven", "new", "is_newcomers"),
    [
        (1, 0, True),
        (1, 1, False),
        (3, 0, True),
        (3, 1, False),
        (4, 1, True),
        (0, 5, False),
        (6, 2, False),
        (7, 2, True),
    ],
)
def test_the_newcomers_share_holds_over_time(board: AdBoard, proven: int, new: int, is_newcomers: bool) -> None:
    """A place that becomes free goes to whoever has less than its share, not to the proven each time."""
    stranger, paid = put(board, price_pusd=1), put(board, price_pusd=50)
    holders = [PeerId(f"proven {i}") for i in range(proven)] + [PeerId(f"new {i}") for i in range(new)]
    standings = Standings()
    for peer in (PeerId(paid), *holders[:proven]):
        standings.paid(peer, 5)
    order = ranked(board, standing=standings.of, holders=holders)
    assert order == ([stranger, paid] if is_newcomers else [paid, stranger])


def test_a_single_place_is_a_newcomers_where_the_caller_says_so(board: AdBoard) -> None:
    stranger, paid, other = put(board, price_pusd=1), put(board, price_pusd=50), put(board, price_pusd=51)
    standings = Standings()
    for peer in (paid, other):
        standings.paid(PeerId(peer), 5)
    assert ranked(board, standing=standings.of) == [paid, stranger, other]
    assert ranked(board, standing=standings.of, newcomer_first=True) == [stranger, paid, other]
    assert ranked(board, newcomer_first=True) == ranked(board)  # newcomers only


def test_who_failed_since_it_was_paid_stands_behind(board: AdBoard) -> None:
    first, second = put(board, price_pusd=10), put(board, price_pusd=15)
    stranger, failed = put(board, price_pusd=10), put(board, price_pusd=1)
    standings = Standings()
    for peer in (first, second):
        standings.paid(PeerId(peer), 5)
    standings.failed(PeerId(first))
    standings.failed(PeerId(failed))
    assert ranked(board, standing=standings.of) == [second, stranger, first, failed]
    standings.paid(PeerId(first), 1)
    assert ranked(board, standing=standings.of) == [first, stranger, second, failed]


def test_a_connection_is_worth_a_bounded_part(board: AdBoard) -> None:
    cheap, close, dear = put(board, price_pusd=10), put(board, price_pusd=30), put(board, price_pusd=90)
    assert ranked(board, connected=lambda peer: peer in (close, dear)) == [close, cheap, dear]


def test_what_is_remembered_of_strangers_is_bounded() -> None:
    standings = Standings()
    for i in range(2 * MAX_STRANGERS):
        standings.failed(PeerId(f"stranger {i}"))
    assert len(standings._strangers) == MAX_STRANGERS
    assert standings.of(PeerId("stranger 0")) == Standing()
    assert standings.of(PeerId(f"stranger {2 * MAX_STRANGERS - 1}")).failures == 1


def test_a_node_that_leaves_may_say_so_at_once(board: AdBoard, seller: Seller, clock: Clock) -> None:
    gone = Availability(idle_only=False, draining=True)
    assert board.accepts(seller.raw(sequence=1))
    clock.now_ms += 100
    assert not board.accepts(seller.raw(sequence=2))  # too soon
    assert board.accepts(seller.raw(sequence=3, availability=gone))
    # Leaving and coming back in turns is no way around the distance.
    assert not board.accepts(seller.raw(sequence=4, availability=gone))
    assert not board.accepts(seller.raw(sequence=5))
    clock.now_ms += 2_000
    assert board.accepts(seller.raw(sequence=6))
