"""Hypothesis strategies for every record, made from its wire types; and walks over the maps that records become."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from p2pcompute_protocols import (
    ads,
    blob,
    channel,
    dispute,
    evidence,
    merkle,
    negotiation,
    stake,
    task,
    watch,
    wire,
    work,
)
from p2pcompute_protocols._split import EDGES, launch_window_bytes
from p2pcompute_protocols.ids import peer_id_from_public_key
from p2pcompute_protocols.limits import (
    MAX_AD_LIFETIME_MS,
    MAX_BLOB_BYTES,
    MAX_CREDIT_WINDOW,
    MAX_HALO,
    MAX_ORDER_LIFETIME_MS,
    MAX_OUTPUT_BYTES,
    MAX_WINDOW_BYTES,
    UINT64_MAX,
)
from p2pcompute_protocols.task import ReceiptPayload
from p2pcompute_protocols.wire import Record

__all__ = [
    "PAYLOADS",
    "PROTOCOLS",
    "Node",
    "extension_values",
    "field",
    "nodes",
    "records",
    "rule_of",
    "with_extensions",
]

PROTOCOLS: dict[str, dict[int, type[Record]]] = {
    "ads": dict(ads.MESSAGES),
    "negotiation": dict(negotiation.MESSAGES),
    "task": dict(task.MESSAGES),
    "blob": dict(blob.MESSAGES),
    "channel": dict(channel.MESSAGES),
    "watch": dict(watch.MESSAGES),
    "stake": dict(stake.MESSAGES),
    "merkle": {},
    "dispute": dict(dispute.MESSAGES),
    "evidence": {},
}
# What travels inside of envelopes, in files, or in other records.
PAYLOADS: dict[str, list[type[Record]]] = {
    "ads": [ads.CapabilityAd],
    "negotiation": [
        negotiation.OrderPayload,
        negotiation.BidPayload,
        negotiation.RefusalPayload,
        negotiation.Terms,
    ],
    "task": [ReceiptPayload, task.ReceiptsPayload, task.BatchedReceipt, task.Holder],
    "blob": [],
    "channel": [],
    "watch": [watch.WatchedVoucher],
    "stake": [stake.PledgedTerms, stake.ArbiterCard, stake.PledgeFile, stake.SignedReceipt],
    "merkle": [merkle.InclusionProof],
    "dispute": [dispute.RoundsPayload, dispute.StateClaim],
    "evidence": [evidence.EvidenceFile, evidence.Accusation],
}

_CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"))
_SMALL = 40  # strategies stay short; the tests of bounds go to the edges on their own


def rule_of(cls: type[Record]) -> str:
    """The name of a record's rule in the CDDL."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


def _text(low: int, high: int) -> st.SearchStrategy[str]:
    fits = st.text(_CHARACTERS, min_size=low, max_size=min(high, _SMALL))
    return fits.filter(lambda s: low <= len(s.encode()) <= high)


def _pairs(high: int) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    numbers = st.integers(0, UINT64_MAX)
    return st.dictionaries(numbers, numbers, max_size=min(high, 4)).map(lambda d: tuple(sorted(d.items())))


def field(of: Any) -> st.SearchStrategy[Any]:
    """Values that a wire type takes."""
    match of:
        case wire.Uint():
            return st.integers(of.low, of.high)
        case wire.Bytes():
            high = of.low if of.high < 0 else of.high
            return st.binary(min_size=of.low, max_size=min(high, of.low + _SMALL))
        case wire.Text():
            return _text(of.low, of.high)
        case wire.Choice():
            return st.sampled_from(of.values)
        case wire.Flag():
            return st.booleans()
        case wire.Peer():
            return st.binary(min_size=32, max_size=32).map(peer_id_from_public_key)
        case wire.Array():
            return st.lists(field(of.item), min_size=of.low, max_size=min(of.high, max(of.low, 3))).map(tuple)
        case wire.UintMap():
            return _pairs(of.high)
        case wire.Nested():
            return records(of.cls)
        case wire.OneOf():
            return st.one_of([records(cls) for cls in of._by_tag.values()])
        case _:
            raise TypeError(f"no strategy for {of!r}")


Values = dict[str, Any]


def _extents(budget: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(1, max(1, int(budget**0.25))), min_size=1, max_size=4).map(tuple)


def _scalar(draw: Any, v: Values) -> None:
    size = work.DTYPES[v["dtype"]]
    v["value"] = draw(st.binary(min_size=size, max_size=size))


def _array(draw: Any, v: Values) -> None:
    v["shape"] = draw(_extents(MAX_BLOB_BYTES // 8 // 32))


def _out(draw: Any, v: Values) -> None:
    v["shape"] = draw(_extents(2**30))
    if v["reduce"] is not None and not work.can_reduce(v["reduce"], v["dtype"]):
        v["reduce"] = None


def _split(draw: Any, v: Values) -> None:
    v["shape"] = shape = draw(_extents(2**16))
    v["tile"] = tuple(draw(st.integers(1, n)) for n in shape)
    v["axes"] = tuple(draw(st.permutations(range(draw(st.integers(1, min(3, len(shape))))))))
    v["halo"] = tuple(draw(st.integers(0, MAX_HALO)) for _ in v["axes"])


def _launch(draw: Any, v: Values) -> None:
    dims = v["dims"]
    v["grid"] = tuple(draw(st.integers(1, 2**13)) if axis < dims else 1 for axis in range(3))
    v["block"] = tuple(draw(st.integers(1, 10)) if axis < dims else 1 for axis in range(3))


def _along(arg: Any, dims: int) -> Any:
    """A split argument that runs along all axes of the launch; None where it has too few."""
    if not isinstance(arg, work.SplitArg):
        return arg
    if len(arg.shape) < dims:
        return None
    return dataclasses.replace(arg, axes=tuple(range(dims)), halo=(arg.halo * dims)[:dims])


def _chunk_work(draw: Any, v: Values) -> None:
    v["kernel"] = dataclasses.replace(v["kernel"], size=draw(st.integers(1, 65_536)))
    args = [_along(arg, v["launch"].dims) for arg in v["args"][:3]]
    v["args"] = (*(arg for arg in args if arg is not None), draw(records(work.OutArg)))
    blocks = v["launch"].blocks
    v["blocks_per_chunk"] = draw(st.integers(max(1, -(-blocks // 1_048_576)), 2**40))


def _program_work(draw: Any, v: Values) -> None:
    items = v["items"] = draw(st.integers(1, 2**12))
    outs = [a for a in v["args"][:3] if isinstance(a, work.OutArg)] + [draw(records(work.OutArg))]
    rest = [
        dataclasses.replace(a, axes=(0,), halo=a.halo[:1]) if isinstance(a, work.SplitArg) else a
        for a in v["args"][:3]
        if not isinstance(a, work.OutArg)
    ]
    v["args"] = (*rest, *(dataclasses.replace(out, shape=(items, *out.shape[1:3]), reduce=None) for out in outs[:2]))
    row_bytes = sum(arg.nbytes // items for arg in v["args"] if isinstance(arg, work.OutArg))
    v["items_per_chunk"] = draw(st.integers(1, max(1, min(items, MAX_OUTPUT_BYTES // row_bytes))))


def _next(draw: Any, v: Values) -> None:
    if (v["shape"] is None) != (v["reduce"] is None):
        v["shape"] = v["reduce"] = None


def _round_launch(draw: Any, v: Values) -> None:
    v["kernel"] = dataclasses.replace(v["kernel"], size=draw(st.integers(1, 65_536)))
    v["args"] = (*v["args"][:3], draw(records(work.NextArg)))
    v["splits"] = tuple(
        draw(_round_splits(place, v["launch"].dims))
        for place, arg in enumerate(v["args"])
        if isinstance(arg, work.ArrayArg | work.StateArg) and draw(st.booleans())
    )


def _round_split(draw: Any, v: Values) -> None:
    v["axes"] = tuple(draw(st.permutations(range(len(v["axes"])))))
    v["halo"] = tuple(draw(st.integers(0, MAX_HALO)) for _ in v["axes"])


@st.composite
def _round_splits(draw: Any, place: int, dims: int, most: int = MAX_HALO) -> work.RoundSplit:
    return work.RoundSplit(
        arg=place,
        axes=tuple(draw(st.permutations(range(dims)))),
        halo=tuple(draw(st.integers(0, most)) for _ in range(dims)),
        edge=draw(st.sampled_from(EDGES)),
    )


def _windows_within(draw: Any, state: Any, launch: Any, args: Any) -> tuple[work.RoundSplit, ...]:
    """Splits of some of the arrays that a launch reads, as many as a bound on their windows leaves."""
    found: list[work.RoundSplit] = []
    left = MAX_WINDOW_BYTES // 3
    for place, arg in enumerate(args):
        array = state[arg.array] if isinstance(arg, work.StateArg) else arg
        if not isinstance(array, work.ArrayArg) or len(array.shape) < launch.dims or draw(st.booleans()):
            continue
        split = draw(_round_splits(place, launch.dims, 9))
        size = launch_window_bytes(launch, work.DTYPES[array.dtype], array.shape, split.axes, split.halo)
        if size <= left:
            left -= size
            found.append(split)
    return tuple(found)


def _round_work(draw: Any, v: Values) -> None:
    """Each array of the state is given once: by the launches in turn, the last one gives the rest."""
    count = draw(st.integers(1, 3))
    digests = iter(range(256))

    def distinct(array: Any) -> Any:
        return dataclasses.replace(array, digest=bytes([next(digests)]) + array.digest[1:])

    v["state"] = tuple(
        distinct(array) for array in draw(st.lists(records(work.ArrayArg), min_size=count, max_size=count))
    )
    launches = []
    taken = 0
    for place, launch in enumerate(v["launches"][:count]):
        more = count - taken if place == min(len(v["launches"]), count) - 1 else 1
        given = [work.NextArg(array=taken + n) for n in range(more)]
        taken += more
        if draw(st.booleans()):
            dtype = v["state"][given[0].array].dtype
            operation = "or" if dtype == "bool" else "max"
            given[0] = work.NextArg(array=given[0].array, shape=draw(_extents(2**30)), reduce=operation)
        rest = [
            distinct(arg) if isinstance(arg, work.ArrayArg) else arg
            for arg in launch.args[:3]
            if not isinstance(arg, work.NextArg) and not (isinstance(arg, work.StateArg) and arg.array >= count)
        ]
        kernel = dataclasses.replace(launch.kernel, digest=bytes([next(digests)]) + launch.kernel.digest[1:])
        splits = _windows_within(draw, v["state"], launch.launch, rest)
        launches.append(dataclasses.replace(launch, kernel=kernel, args=(*rest, *given), splits=splits))
    v["launches"] = tuple(launches)
    v["rounds_per_chunk"] = draw(st.integers(1, v["rounds"]))
    v["first"] = draw(st.integers(0, 2**31 - v["rounds"] - 1))


def _sized(draw: Any, v: Values) -> None:
    # Drawn digests are all but always distinct; shrinking makes them equal, which valid work may not have.
    seen: set[bytes] = {v["kernel"].digest} if "kernel" in v else set()
    args: list[Any] = []
    for n, arg in enumerate(v["args"]):
        name = {work.ArrayArg: "digest", work.SplitArg: "manifest"}.get(type(arg))
        if name and getattr(arg, name) in seen:
            arg = dataclasses.replace(arg, **{name: bytes([n]) + getattr(arg, name)[1:]})
            if getattr(arg, name) in seen:
                continue
        if name:
            seen.add(getattr(arg, name))
        args.append(arg)
    v["args"] = tuple(args)


def _both(*fixes: Callable[[Any, Values], None]) -> Callable[[Any, Values], None]:
    def fix(draw: Any, v: Values) -> None:
        for each in fixes:
            each(draw, v)

    return fix


def _times(early: str, late: str, span: int) -> Callable[[Any, Values], None]:
    def fix(draw: Any, v: Values) -> None:
        v[early] = draw(st.integers(0, 2**62))
        v[late] = v[early] + draw(st.integers(1, span))

    return fix


def _standing(draw: Any, v: Values) -> None:
    v["standing"] = draw(st.booleans())
    left_out = v["standing"] and draw(st.booleans())
    v["work"] = None if left_out else draw(field(work.WORK))


def _mode(draw: Any, v: Values) -> None:
    tolerance = draw(records(negotiation.Tolerance)) if v["fp"] == "fast" else None
    v["check"] = dataclasses.replace(v["check"], tolerance=tolerance)


def _windows(draw: Any, v: Values) -> None:
    v["max_window"] = draw(st.integers(v["credit_window"], MAX_CREDIT_WINDOW))


def _own_binding(whose: str, binding: str) -> Callable[[Any, Values], None]:
    def fix(draw: Any, v: Values) -> None:
        v[binding] = dataclasses.replace(v[binding], peer_id=v[whose])

    return fix


def _two_peers(draw: Any, v: Values) -> None:
    v["provider"] = draw(field(wire.Peer()).filter(lambda p: p != v["requester"]))


def _receipt(draw: Any, v: Values) -> None:
    if v["code"]:
        v["output"], v["units"] = bytes(32), 0


def _notice(draw: Any, v: Values) -> None:
    v["window"] = draw(st.integers(1, MAX_CREDIT_WINDOW)) if v["kind"] == "window" else None


def _inclusion(draw: Any, v: Values) -> None:
    v["index"] = draw(st.integers(0, v["leaves"] - 1))
    due = merkle._path_length(v["index"], v["leaves"])
    v["path"] = tuple(draw(st.lists(st.binary(min_size=32, max_size=32), min_size=due, max_size=due)))


def _sync(draw: Any, v: Values) -> None:
    held = v["amount_uusd"] > 0
    v["memo"] = draw(st.binary(min_size=32, max_size=32)) if held else None
    v["signature"] = draw(st.binary(min_size=65, max_size=65)) if held else None


def _named(draw: Any, v: Values) -> None:
    if not v["receipts"]:
        v["receipts"] = v["first"] = None
    elif v["first"] is None:
        v["first"] = draw(st.integers(0, 2**20 - 1))


def _given(draw: Any, v: Values) -> None:
    v["vouchers"] = tuple({one.place: one for one in sorted(v["vouchers"], key=lambda one: one.place)}.values())
    v["more"] = v["more"] and bool(v["vouchers"])


def _terms(draw: Any, v: Values) -> None:
    count = len(v["arbiters"])
    accounts = st.lists(st.binary(min_size=20, max_size=20), min_size=count + 2, max_size=count + 2, unique=True)
    v["provider"], v["requester"], *arbiters = draw(accounts)
    v["arbiters"], v["threshold"] = tuple(sorted(arbiters)), draw(st.integers(1, count))


def _card(draw: Any, v: Values) -> None:
    v["binding"] = dataclasses.replace(v["binding"], signer=v["binding"].owner)


def _cards(draw: Any, v: Values) -> None:
    v["cards"] = tuple(bytes([n]) * draw(st.integers(1, 9)) for n in range(len(v["terms"].arbiters)))


def _rounds(draw: Any, v: Values) -> None:
    v["out"] = None if v["state"] is None else draw(st.integers(0, 31).filter(lambda n: n != v["state"]))


def _accusation(draw: Any, v: Values) -> None:
    rounds = v["kind"] == "round"
    v["index"] = None if rounds else draw(st.integers(0, 1_048_575))
    v["round"] = draw(st.integers(0, 1_048_575)) if rounds else None
    v["item"] = draw(st.none() | st.integers(0, UINT64_MAX)) if v["kind"] == "result" else None
    count = 2 if v["kind"] == "equivocation" else 1
    digests = st.binary(min_size=32, max_size=32)
    v["statements"] = tuple(draw(st.lists(digests, min_size=count, max_size=count, unique=True)))


def _have(draw: Any, values: Values) -> None:
    pieces = len(values["leaves"])
    values["held"] = blob.bitmap(draw(st.sets(st.integers(0, pieces - 1))), pieces)


# What `validate` asks for across fields.
_FIXES: dict[type[Record], Callable[[Any, Values], None]] = {
    work.ScalarArg: _scalar,
    work.ArrayArg: _array,
    work.OutArg: _out,
    work.SplitArg: _split,
    work.LaunchSpec: _launch,
    work.ChunkWork: _both(_chunk_work, _sized),
    work.ProgramWork: _both(_program_work, _sized),
    work.NextArg: _next,
    work.RoundLaunch: _round_launch,
    work.RoundSplit: _round_split,
    work.RoundWork: _round_work,
    ads.CapabilityAd: _both(_times("issued_ms", "expires_ms", MAX_AD_LIFETIME_MS), _own_binding("peer_id", "binding")),
    negotiation.OrderPayload: _both(_times("created_ms", "expires_ms", MAX_ORDER_LIFETIME_MS), _standing, _mode),
    negotiation.BidPayload: _windows,
    negotiation.Terms: _both(
        _times("created_ms", "deadline_ms", 2**40),
        _standing,
        _mode,
        _windows,
        _two_peers,
        _own_binding("requester", "payer"),
    ),
    ReceiptPayload: _receipt,
    task.Notice: _notice,
    blob.BlobHave: _have,
    channel.ChannelSync: _sync,
    channel.VoucherFrame: _named,
    watch.WatchGiven: _given,
    stake.PledgedTerms: _terms,
    stake.ArbiterCard: _card,
    stake.Pledge: _cards,
    stake.PledgeFile: _cards,
    merkle.InclusionProof: _inclusion,
    dispute.RoundsPayload: _rounds,
    evidence.Accusation: _accusation,
}


@st.composite
def _record(draw: Any, cls: type[Record]) -> Record:
    values: Values = {}
    for _, name, of, is_optional in cls._plan:
        absent = is_optional and draw(st.booleans())
        values[name] = None if absent else draw(field(of))
    if cls in _FIXES:
        _FIXES[cls](draw, values)
    return cls(**values)


def records(cls: type[Record]) -> st.SearchStrategy[Record]:
    """Valid records of a class, most of them small."""
    return _record(cls)


@dataclasses.dataclass(frozen=True)
class Node:
    """A record's map inside of a message's: `path` leads to it from the outermost map."""

    path: tuple[int, ...]
    cls: type[Record]
    raw: dict[int, Any]


def nodes(cls: type[Record], raw: object, path: tuple[int, ...] = ()) -> Iterator[Node]:
    """A record's map and those of all records inside of it; what is too broken to be walked is passed over."""
    if not isinstance(raw, dict):
        return
    yield Node(path, cls, raw)
    for key, _, of, _ in cls._plan:
        if key in raw:
            yield from _inside(of, raw[key], (*path, key))


def _inside(of: Any, raw: Any, path: tuple[int, ...]) -> Iterator[Node]:
    match of:
        case wire.Nested():
            yield from nodes(of.cls, raw, path)
        case wire.Array() if isinstance(raw, list):
            for n, item in enumerate(raw):
                yield from _inside(of.item, item, (*path, n))
        case wire.OneOf() if isinstance(raw, list) and len(raw) == 2 and type(raw[0]) is int:
            if raw[0] in of._by_tag:
                yield from nodes(of._by_tag[raw[0]], raw[1], (*path, 1))
        case _:
            pass


extension_values = st.recursive(
    st.integers(0, UINT64_MAX) | st.binary(max_size=8) | st.text(_CHARACTERS, max_size=8) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, UINT64_MAX), inner, max_size=3).map(lambda d: dict(sorted(d.items())))
    ),
    max_leaves=6,
)


@st.composite
def with_extensions(draw: Any, cls: type[Record], raw: dict[int, Any]) -> dict[int, Any]:
    """The same map with unknown keys in some of its extensible records; changes `raw`."""
    for node in list(nodes(cls, raw)):
        if node.cls.extensible:
            keys = draw(st.lists(st.integers(wire.EXTENSION_KEYS, UINT64_MAX), max_size=2, unique=True))
            for key in sorted(keys):
                node.raw[key] = draw(extension_values)
    return raw
