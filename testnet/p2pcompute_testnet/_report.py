"""What the demonstration found out: ``report.json`` and the table that people read.

``report.json`` is one JSON object. Amounts are whole micro-USD, times are seconds unless the name says ms.

    ok                          bool: every check below passed
    checks                      list of {name, ok, detail}
    version, language, python, platform, cores
    picture                     {width, height, spp, depth, file}
    chunks                      how many the picture was cut into
    requeued_chunks             how often a chunk was given out again: held by who was killed or lied, revoked, or late
    killed_peer                 {peer_id, name, at_chunk, requeued: [index], paid_uusd, unpaid_uusd,
                                claimed_on_chain_uusd}; claimed after it was started again with the ledger it had
    liar                        {peer_id, name, fault, caught, chunk, mismatched, revoked, paid_uusd}
    providers                   list of {peer_id, name, fate, chunks, price_pusd, earned_uusd, claimed_on_chain_uusd,
                                claims, negotiation_ms, compile_ms}; chunks are those that count in the end, earned is
                                what the requester holds acknowledged vouchers for, claims are claims on chain
    receipts                    what the requester's ledger holds: accepted (paid or payable); see receipts_rejected
    receipts_rejected           the same, receipts kept as evidence and never paid
    samples                     {checked, mismatched, per_chunk}
    reference                   {pixels_checked, of_suspect_chunks, altered_by_the_liar, differ}: the picture against
                                NumPy
    paid_uusd, estimate_uusd, budget_uusd
    requester_max_loss_uusd     the most that it could have lost, with all providers together, at any moment
    provider_max_loss_uusd      the same for one provider
    negotiation_ms              {min, max} from order to agreement
    seconds_setup               until all nodes were ready
    seconds_to_first_chunk      from the call to the first checked chunk, compiling everywhere included
    seconds_render              from the call to the whole picture
    seconds_total               the whole demonstration
    hub_address, last_block, chain_id
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import p2pcompute

from ._live import usd
from ._pathtracer_scene import Picture
from ._picture_check import PictureCheck
from ._tally import ProviderTally, Tally

__all__ = ["ChainFacts", "Outcome", "build_report", "report_table", "write_report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFacts:
    """What the chain says after all nodes have stopped, by peer ID."""

    hub: str
    chain_id: int
    last_block: int
    acked_uusd: Mapping[str, int]  # acknowledged vouchers, from the requester's ledger
    claimed_uusd: Mapping[str, int]
    claims: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that the report is made of.

    Attributes:
        tally: the requester's events, counted.
        liar, killed: peer IDs; `killed` is None where nobody was.
        killed_at: how many chunks were done then.
        requeued: how often a chunk was given out again.
        accepted, rejected: receipts in the requester's ledger.
        exit_codes: of the providers that ended in order, by name.
        complete: every chunk was delivered.
    """

    tally: Tally
    picture: Picture
    file: str
    chain: ChainFacts
    check: PictureCheck
    liar: str
    fault: str
    killed: str | None
    kill_wanted: bool
    killed_at: int
    requeued: int
    accepted: int
    rejected: int
    per_chunk: int
    language: str
    exit_codes: Mapping[str, int | None]
    complete: bool
    seconds_setup: float
    seconds_render: float
    seconds_total: float


def _checks(outcome: Outcome) -> list[dict[str, Any]]:
    tally, chain = outcome.tally, outcome.chain
    liar = tally.provider(outcome.liar)
    honest = _living(outcome)
    killed = tally.provider(outcome.killed) if outcome.killed is not None else None
    found = [
        (
            "the picture is complete",
            outcome.complete,
            f"{len(tally.done)} of {tally.chunks} chunks",
        ),
        (
            "it equals the NumPy reference",
            outcome.check.checked > 0 and outcome.check.differ == 0,
            f"{outcome.check.differ} of {outcome.check.checked} pixels differ",
        ),
        (
            "the liar was caught",
            liar.state == "lied" and not liar.done,
            f"{liar.name}: {liar.mismatched} samples differ" if liar.mismatched else f"{liar.name} was not caught",
        ),
        (
            "it was not paid for that window, nor for anything after it",
            liar.paid_when_caught_uusd is not None
            and outcome.rejected > 0
            and chain.acked_uusd.get(outcome.liar, 0) == liar.paid_when_caught_uusd,
            f"{usd(chain.acked_uusd.get(outcome.liar, 0))} paid, {outcome.rejected} receipts rejected",
        ),
        (
            "everyone else claimed on chain what it earned",
            bool(honest) and all(_claimed(outcome, p) == _earned(outcome, p) > 0 for p in honest),
            ", ".join(f"{p.name} {_claimed(outcome, p)} of {_earned(outcome, p)} µUSD" for p in honest) or "nobody",
        ),
        (
            "every node that was stopped ended in order",
            all(code == 0 for code in outcome.exit_codes.values()),
            ", ".join(f"{name}: exit code {code}" for name, code in outcome.exit_codes.items() if code) or "all",
        ),
    ]
    if outcome.kill_wanted:
        found.append(
            (
                "a provider was killed at work and its chunks went to others",
                killed is not None and bool(killed.requeued) and not killed.requeued - set(tally.done),
                "nobody was killed"
                if killed is None
                else f"{killed.name}: {len(killed.requeued)} chunks; {killed.owed_uusd(tally.units_per_chunk)} µUSD of "
                "its work came too late to be paid",
            )
        )
    if killed is not None:
        found.append(
            (
                "the killed one came back and claimed what it was paid before",
                _claimed(outcome, killed) == _earned(outcome, killed),
                f"{_claimed(outcome, killed)} of {_earned(outcome, killed)} µUSD",
            )
        )
    return [{"name": name, "ok": bool(ok), "detail": detail} for name, ok, detail in found]


def _living(outcome: Outcome) -> list[ProviderTally]:
    return [p for p in outcome.tally.providers.values() if p.peer_id not in (outcome.liar, outcome.killed)]


def _earned(outcome: Outcome, provider: ProviderTally) -> int:
    return outcome.chain.acked_uusd.get(provider.peer_id, 0)


def _claimed(outcome: Outcome, provider: ProviderTally) -> int:
    return outcome.chain.claimed_uusd.get(provider.peer_id, 0)


def _fate(outcome: Outcome, provider: ProviderTally) -> str:
    if provider.peer_id == outcome.killed:
        return "killed"
    return {"lied": "caught lying", "lost": "lost", "refused": "refused"}.get(provider.state, "honest")


def build_report(outcome: Outcome) -> dict[str, Any]:
    """The report, as the module's docstring says."""
    tally, chain, check, picture = outcome.tally, outcome.chain, outcome.check, outcome.picture
    checks = _checks(outcome)
    liar = tally.provider(outcome.liar)
    killed = tally.provider(outcome.killed) if outcome.killed is not None else None
    negotiations = [p.negotiation_ms for p in tally.providers.values() if p.negotiation_ms is not None]
    return {
        "ok": all(entry["ok"] for entry in checks),
        "checks": checks,
        "version": p2pcompute.__version__,
        "language": outcome.language,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "picture": {
            "width": picture.width,
            "height": picture.height,
            "spp": picture.side**2,
            "depth": picture.depth,
            "file": outcome.file,
        },
        "chunks": tally.chunks,
        "requeued_chunks": outcome.requeued,
        "killed_peer": None
        if killed is None
        else {
            "peer_id": killed.peer_id,
            "name": killed.name,
            "at_chunk": outcome.killed_at,
            "requeued": sorted(killed.requeued),
            "paid_uusd": _earned(outcome, killed),
            "unpaid_uusd": killed.owed_uusd(tally.units_per_chunk),
            "claimed_on_chain_uusd": _claimed(outcome, killed),
        },
        "liar": {
            "peer_id": liar.peer_id,
            "name": liar.name,
            "fault": outcome.fault,
            "caught": liar.state == "lied",
            "chunk": liar.caught_at,
            "mismatched": liar.mismatched,
            "revoked": sorted(liar.revoked),
            "paid_uusd": _earned(outcome, liar),
        },
        "providers": [
            {
                "peer_id": p.peer_id,
                "name": p.name,
                "fate": _fate(outcome, p),
                "chunks": len(p.done),
                "price_pusd": p.price_pusd,
                "earned_uusd": _earned(outcome, p),
                "claimed_on_chain_uusd": _claimed(outcome, p),
                "claims": chain.claims.get(p.peer_id, 0),
                "negotiation_ms": None if p.negotiation_ms is None else round(p.negotiation_ms, 1),
                "compile_ms": p.compile_ms,
            }
            for p in tally.providers.values()
        ],
        "receipts": outcome.accepted,
        "receipts_rejected": outcome.rejected,
        "samples": {"checked": tally.checked, "mismatched": tally.mismatched, "per_chunk": outcome.per_chunk},
        "reference": {
            "pixels_checked": check.checked,
            "of_suspect_chunks": check.suspect,
            "altered_by_the_liar": check.altered,
            "differ": check.differ,
        },
        "paid_uusd": sum(chain.acked_uusd.values()),
        "estimate_uusd": tally.estimate_uusd,
        "budget_uusd": tally.ceiling_uusd,
        "requester_max_loss_uusd": tally.requester_max_loss_uusd,
        "provider_max_loss_uusd": tally.provider_max_loss_uusd,
        "negotiation_ms": {
            "min": round(min(negotiations), 1) if negotiations else None,
            "max": round(max(negotiations), 1) if negotiations else None,
        },
        "seconds_setup": round(outcome.seconds_setup, 2),
        "seconds_to_first_chunk": None if tally.first_done_s is None else round(tally.first_done_s, 2),
        "seconds_render": round(outcome.seconds_render, 2),
        "seconds_total": round(outcome.seconds_total, 2),
        "hub_address": chain.hub,
        "chain_id": chain.chain_id,
        "last_block": chain.last_block,
    }


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write ``report.json``."""
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def report_table(report: Mapping[str, Any]) -> RenderableType:
    """The report for people."""
    providers = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("provider", "what became of it", "chunks", "paid µUSD", "claimed on chain", "peer ID"):
        right = name in ("chunks", "paid µUSD", "claimed on chain")
        providers.add_column(name, justify="right" if right else "left", no_wrap=name != "what became of it")
    for row in report["providers"]:
        bad = row["fate"] in ("caught lying", "killed", "lost")
        providers.add_row(
            row["name"],
            Text(_fate_text(report, row), style="red" if bad else "green"),
            str(row["chunks"]),
            str(row["earned_uusd"]),
            str(row["claimed_on_chain_uusd"]),
            f"…{row['peer_id'][-8:]}",
        )
    total = sum(row["claimed_on_chain_uusd"] for row in report["providers"])
    counted = sum(row["chunks"] for row in report["providers"])
    providers.add_row("together", "", str(counted), str(report["paid_uusd"]), str(total), "", style="bold")
    facts = Table.grid(padding=(0, 2))
    for label, text in _facts(report):
        facts.add_row(Text(label, style="cyan"), text)
    checks = Table.grid(padding=(0, 2))
    for entry in report["checks"]:
        mark = Text("yes", style="bold green") if entry["ok"] else Text("NO", style="bold red")
        checks.add_row(mark, entry["name"], Text(entry["detail"], style="dim"))
    return Group("", facts, "", providers, "", checks, "")


def _fate_text(report: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    killed = report["killed_peer"]
    if row["fate"] == "killed" and killed is not None:
        return f"killed at chunk {killed['at_chunk']}, came back"
    if row["fate"] == "caught lying":
        return f"lied in chunk {report['liar']['chunk']}, caught"
    return str(row["fate"])


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    picture, samples, reference = report["picture"], report["samples"], report["reference"]
    first = report["seconds_to_first_chunk"]
    shown = (
        f"{picture['width']} × {picture['height']}, {picture['spp']} samples a pixel, up to {picture['depth']} "
        f"bounces: {picture['file']}"
    )
    took = f"{report['seconds_render']:.1f} s from the call to the picture"
    if first is not None:
        took += f", first chunk after {first:.1f} s"
    chunks = (
        f"{report['chunks']}, {report['requeued_chunks']} given out again; {report['receipts']} receipts accepted, "
        f"{report['receipts_rejected']} rejected"
    )
    checked = (
        f"{samples['checked']} private samples, {samples['mismatched']} wrong; {reference['pixels_checked']} pixels of "
        f"the result against NumPy, {reference['differ']} wrong"
    )
    money = (
        f"{usd(report['paid_uusd'])} paid of {usd(report['budget_uusd'])} at most; at risk were at most "
        f"{usd(report['requester_max_loss_uusd'])} for the requester, {usd(report['provider_max_loss_uusd'])} for a "
        "provider"
    )
    return [
        ("picture", shown),
        ("time", f"{took}; {report['seconds_total']:.1f} s in all"),
        ("chunks", chunks),
        ("checked", checked),
        ("money", money),
        ("chain", f"hub {report['hub_address']}, block {report['last_block']}"),
    ]
