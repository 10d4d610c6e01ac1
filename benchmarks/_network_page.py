"""The page and the picture that `network.py --write` makes of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _network_figures import MEASURES, Line, Measure, Samples, lines

__all__ = ["page", "picture"]

HEAD = """# The network, side by side

`make bench-network` measures this and writes this page, its picture and `benchmarks/results/network.json`. Each peer is
two processes on loopback, or more where it has workers; one peer runs at a time, and rounds go through all of them in
turn. So a ratio is of the same minutes, and holds where times do not. Processor time is that of all processes of a
side, from the kernel's clocks. `make peer-env PEER=dask` makes the environment of a peer that needs one.

"""

TAIL = """
## What stands beside what

*Driving* is the side that asks or sends, *serving* the other with its workers. *Ours, times as good* is p2pcompute's
figure over the peer's, or the other way round where less is better; below 1 the peer is better. A number is the median
over rounds, with the least and the most behind it. There are three rounds, two of tasks; what takes a peer more than
8 s is done in the first one only.

| peer | what it is here | authenticated, encrypted |
|---|---|---|
| bare TCP, trio | sockets and nothing else: what the machine gives to Python | no |
| py-libp2p as it comes | version 0.8.1 with its own Noise and Yamux, and none of what we mend or replace | yes |
| p2pcompute | the overlay that nodes use; tasks by `open_node`, `serve` and `run` | yes |
| p2pcompute by /noise | the same, as with peers that are not of p2pcompute: Noise with ChaCha20-Poly1305 | yes |
| p2pcompute, request streams | requests with answers, deadlines and limits, as nodes make them | yes |
| js-libp2p | TCP, Noise, Yamux and identify, on Node.js | yes |
| gRPC with TLS | grpcio, one channel, handlers of bytes | the server only |
| Dask with TLS | distributed: scheduler, workers and client with one certificate for all | yes |
| Ray | one machine; for bytes two raylets | no |
| hivemind | its Go daemon, unary handlers | yes |
| multiprocessing.Pool | processes of one program on one machine, by pipes: no network | no |

**256 MiB one way**: the clock runs from the first byte that is sent until the receiver has said how many came. In the
first round it is done once before, unclocked, in blocks of which no two are equal, and the receiver's SHA-256 of them
is compared. libp2p, TCP and gRPC stream it, in pieces of 1 MiB or as they like them; Dask scatters an array straight to
a worker; Ray puts it at one raylet and gets it at the other.

**Requests** are of 200 bytes and so are replies. On streams they have a length in front, and the serving side takes
them apart and answers each. *64 in flight*: on one stream, whoever has its reply asks again, all that have it in one
call; with gRPC they are 64 calls. *On a new stream* includes its opening and negotiation; of bare TCP it is a new
connection. *Connect* begins with an identity that has never connected and ends when both have said who they are, for
libp2p by identify.

**Tasks that do nothing** are a function of one number for Dask, Ray and the pool, an empty request to a handler for
hivemind, and for p2pcompute a kernel whose chunk is a thread that stores one number. *One task* is, for p2pcompute,
one call in a standing agreement: its inputs, of which there are none, a chunk, a signed receipt, and a voucher for
each half of a window. *10,000 at once* are the chunks of one task with one provider, each with a signed receipt, and
paid by vouchers, computed by a locked worker, and unchecked by samples (`check="none"`), since the others check
nothing either; Dask and the pool have one worker for them, and Ray two.

**200 chunks of 20 ms**: compiled code on one core, of two workers; how long it takes alone is measured first, as
processor time, and *ideal* is half of 200 times that. For p2pcompute two providers with one thread each, checked as by
default.

**A cold process** is started and timed until it has printed its first result, with provider or cluster there already;
for p2pcompute a requester with a new profile, and a kernel that nobody has compiled, checked. *Again* is the same
profile and kernel once more. p2pcompute's modules have been compiled to bytecode before, as pip does with what it
installs.

**Memory** is the resident set of the serving side's process; *with its workers* that of all that it started, where
pages that processes share count for each. For p2pcompute it is a provider's, with its ledger and its way to the chain;
the chain itself is a process apart.
"""

_COLOURS = ("#1f6feb", "#8b949e")
_SHOWN = ("bulk", "request", "flight", "crowd", "map", "idle")


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _headline(measure: Measure) -> str:
    return measure.title[0].upper() + measure.title[1:]


def _table(measure: Measure, found: Sequence[Line], titles: Mapping[str, str]) -> list[str]:
    beside = [name for name in ("p99", "all", "drive", "serve") if any(name in line.middle for line in found)]
    heads = {
        "p99": "p99, ms",
        "all": "with its workers, MB",
        "drive": f"driving, CPU ms/{measure.unit}",
        "serve": f"serving, CPU ms/{measure.unit}",
    }
    main = f"{'p50, ' if measure.main.name == 'p50' else ''}{measure.main.unit}"
    head = ["peer", main, "range", *(heads[name] for name in beside), "ours, times as good"]
    rows = [head, ["---"] * len(head)]
    rows += [
        [
            titles[line.peer],
            _number(line.middle[measure.main.name]),
            f"{_number(line.least)} – {_number(line.most)}" if line.rounds > 1 else "once",
            *(_number(line.middle[name]) if name in line.middle else "" for name in beside),
            "" if line.ratio is None else f"{line.ratio:.2f}",
        ]
        for line in found
    ]
    return [f"\n## {_headline(measure)}\n", *(f"| {' | '.join(row)} |" for row in rows)]


def page(
    entries: Sequence[Mapping[str, Any]],
    *,
    samples: Samples,
    titles: Mapping[str, str],
    machine: str,
    absent: Mapping[str, str],
    failures: Sequence[str],
) -> str:
    """Markdown of the figures.

    Args:
        entries: figures as dictionaries.
        samples: what they were made of.
        titles: of the peers.
        machine: where they were taken.
        absent: peers that are left out, and why.
        failures: what did not come to its end.
    """
    out = [HEAD + machine + ".\n", "![Bars of what the tables below have](network.svg)\n"]
    out += [f"{title} is left out: {why}.\n" for title, why in absent.items()]
    out += [f"Without a figure: {failure}.\n" for failure in failures]
    out += ["## What it has to reach\n", "| what | figure | has to be | |", "|---|---|---|---|"]
    for entry in entries:
        if entry["reach"] is None:
            continue
        bound = "at least" if entry["least"] else "at most"
        verdict = "reached" if entry["ok"] else "**missed**"
        unit = "" if entry["unit"] == "ratio" else f" {entry['unit']}"
        value = _number(entry["value"])
        out.append(f"| {entry['figure']} | {value}{unit} | {bound} {entry['reach']:,g} | {verdict} |")
    for measure in MEASURES.values():
        found = lines(measure, samples, list(titles))
        if found:
            out += _table(measure, found, titles)
    return "\n".join(out) + "\n" + TAIL


def picture(samples: Samples, titles: Mapping[str, str]) -> str:
    """An SVG with a panel of bars for each of the main measures; on a scale from nothing, the range as a line."""
    panels = [(measure, lines(measure, samples, list(titles))) for name in _SHOWN for measure in [MEASURES[name]]]
    panels = [(measure, found) for measure, found in panels if found]
    width, wide, row, top, gap = 960, 470, 20, 46, 24
    body: list[str] = []
    heights = [top + row * len(found) + gap for _, found in panels]
    ends = [0, 0]
    for (measure, found), height in zip(panels, heights, strict=True):
        column = 0 if ends[0] <= ends[1] else 1
        body += _panel(measure, found, titles, x=10 + column * wide, y=ends[column], wide=wide - 20, row=row)
        ends[column] += height
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {max(ends) + 10}" '
        'font-family="system-ui, sans-serif" font-size="12">'
    )
    return "\n".join([opening, '<rect width="100%" height="100%" fill="#ffffff"/>', *body, "</svg>\n"])


def _panel(
    measure: Measure, found: Sequence[Line], titles: Mapping[str, str], *, x: int, y: int, wide: int, row: int
) -> list[str]:
    """A panel's title, and a bar for each peer."""
    labels, numbers = 175, 70
    room = wide - labels - numbers
    most = max(line.most for line in found)
    better = "more is better" if measure.main.more else "less is better"
    unit = f"{'p50, ' if measure.main.name == 'p50' else ''}{measure.main.unit}"
    out = [
        f'<text x="{x}" y="{y + 24}" font-weight="600" fill="#1f2328">{_headline(measure)}</text>',
        f'<text x="{x}" y="{y + 39}" font-size="11" fill="#59636e">{unit}; {better}</text>',
    ]
    for number, line in enumerate(found):
        value = line.middle[measure.main.name]
        at = y + 46 + number * row
        long = max(1.0, room * value / most)
        colour = _COLOURS[0] if line.peer in ("ours", "noise", "asked") else _COLOURS[1]
        out += [
            f'<text x="{x + labels - 8}" y="{at + 14}" text-anchor="end" fill="#1f2328">{titles[line.peer]}</text>',
            f'<rect x="{x + labels}" y="{at + 3}" width="{long:.1f}" height="14" fill="{colour}"/>',
        ]
        low, high = (x + labels + room * end / most for end in (line.least, line.most))
        if high - low >= 1:
            out.append(f'<path d="M{low:.1f} {at + 10}H{high:.1f}" stroke="#1f2328" stroke-width="1.5" fill="none"/>')
        out.append(
            f'<text x="{max(x + labels + long, high) + 6:.1f}" y="{at + 14}" fill="#1f2328">{_number(value)}</text>'
        )
    return out
