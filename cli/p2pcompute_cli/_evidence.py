"""`p2pcompute evidence`: check a file that shows who lied, and list those that this profile keeps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._shared import common_options, count, fail, hush_logs, json_line, profile_option, short_peer

if TYPE_CHECKING:
    from p2pcompute.checking import Verdict

__all__ = ["evidence"]


@click.group(
    epilog="A requester that catches a provider lying writes a file; anybody who is given it can check it. Nobody has "
    "to be believed: the parties' signatures are in it, and what is disputed is computed again. "
    "`p2pcompute evidence COMMAND --help` has examples."
)
def evidence() -> None:
    """Check files that show who lied, and list those kept here."""


@evidence.command(
    short_help="Compute what FILE disputes again; say who is wrong.",
    epilog="""\b
Examples:
  p2pcompute evidence verify 3f9c01d2a4b5e6f7-chunk-3.p2pevidence
  p2pcompute evidence verify case.p2pevidence --blob input.bin
  p2pcompute evidence verify case.p2pevidence --json | jq -r .wrong

Exit code 0: it is the provider that has signed something false. 1: it is the accuser, or it can't be told here.
A file that is no evidence says nothing of anybody, and is an error with a code of its own.
""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--blob",
    "blobs",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="an input that the file only names; may be repeated",
)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(1, 86_400), default=300.0, show_default=True, help="seconds"
)
@common_options
def verify(file: Path, blobs: tuple[Path, ...], timeout_s: float, as_json: bool, debug: bool) -> None:
    """Compute what FILE disputes again, in a locked worker, and say who is wrong."""
    import trio

    from p2pcompute.checking import verify_evidence

    hush_logs(debug)
    try:
        given = [_blob(path) for path in blobs]
        found = trio.run(partial(verify_evidence, file, blobs=given, timeout_s=timeout_s))
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    if as_json:
        json_line(file=str(file), **found.as_dict())
    else:
        _show(found)
    if found.wrong != "provider":
        raise click.exceptions.Exit(1)


def _blob(path: Path) -> bytes:
    from p2pcompute.errors import EvidenceError
    from p2pcompute_protocols.limits import MAX_BLOB_BYTES

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BLOB_BYTES + 1)
    except OSError as exc:
        raise EvidenceError(f"{path} can't be read ({exc.strerror}); check its permissions") from exc
    if len(data) > MAX_BLOB_BYTES:
        raise EvidenceError(f"{path} has more than {MAX_BLOB_BYTES} bytes, which no input has")
    return data


def _show(found: Verdict) -> None:
    colour = {"provider": "red", "accuser": "red", "undecided": "yellow"}[found.wrong]
    head = "undecided" if found.wrong == "undecided" else f"the {found.wrong} is wrong"
    click.echo(click.style(head, fg=colour, bold=True) + f": {found.reason}")
    what = f"chunk {found.index}" if found.index is not None else f"round {found.round}"
    rows = [
        ("disputed", f"{found.kind}, {what} of task {found.task.hex()}"),
        ("provider", found.provider),
        ("accuser", found.accuser),
    ]
    for name, value in (("claimed", found.claimed), ("computed", found.computed), ("signature", found.signature)):
        if value is not None:
            rows.append((name, f"SHA-256 {value.hex()}"))
    for name, text in rows:
        click.echo(f"  {name:<10} {text}")


@evidence.command(
    name="list",
    short_help="List the files that this profile keeps.",
    epilog="\b\nExamples:\n  p2pcompute evidence list\n  p2pcompute evidence list --json | jq -r .evidence[].file",
)
@partial(profile_option, default="requester")
@common_options
def list_(profile: str, as_json: bool, debug: bool) -> None:
    """List what this profile keeps, without computing anything."""
    from p2pcompute._profile import Profile

    hush_logs(debug)
    try:
        rows = _rows(Profile.named(profile).evidence)
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    if as_json:
        json_line(profile=profile, evidence=rows)
        return
    for row in rows:
        if "error" in row:
            click.echo(f"{row['file']}  {row['error']}")
            continue
        what = f"chunk {row['index']}" if row["index"] is not None else f"round {row['round']}"
        click.echo(f"{row['file']}  {row['kind']} of {what} against {short_peer(row['provider'])}")
    click.echo(
        f"{count(len(rows), 'file')}; check one with `p2pcompute evidence verify FILE`"
        if rows
        else f"profile {profile} keeps no evidence"
    )


def _rows(directory: Path) -> list[dict[str, Any]]:
    from p2pcompute.checking import EvidenceStore, read_evidence
    from p2pcompute.errors import EvidenceError
    from p2pcompute.storage import InlineExecutor
    from p2pcompute_protocols.errors import LocalProtocolError
    from p2pcompute_protocols.evidence import open_evidence

    rows: list[dict[str, Any]] = []
    for path in EvidenceStore(directory=directory, run_sync=InlineExecutor()).files():
        row: dict[str, Any] = {"file": str(path)}
        try:
            found = open_evidence(read_evidence(path))
        except (EvidenceError, LocalProtocolError) as exc:
            row["error"] = f"no evidence: {exc}"
        else:
            row |= {
                "kind": found.accusation.kind,
                "task": found.agreement.task_id.hex(),
                "index": found.accusation.index,
                "round": found.accusation.round,
                "provider": found.provider,
                "accuser": found.accuser,
                "created_ms": found.accusation.created_ms,
                "missing": [digest.hex() for digest in found.missing],
            }
        rows.append(row)
    return rows
