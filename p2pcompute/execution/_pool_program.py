"""The node's side of program workers: what is started for a program that is installed here."""

from __future__ import annotations

import json

from p2pcompute.execution._pool_process import WorkerProgram
from p2pcompute.execution._program_files import InstalledProgram

__all__ = ["program_worker"]


def program_worker(program: InstalledProgram, *, data: str | None = None) -> WorkerProgram:
    """What a pool of workers for `program` starts. They can read what it is imported from, and the directory `data`,
    whose name is in their environment as `DATA_VARIABLE`; nothing more."""
    pinned = {
        "distribution": program.distribution,
        "version": program.version,
        "name": program.name,
        "digest": program.digest.hex(),
        "module": program.module,
        "attribute": program.attribute,
        "site": program.site,
    }
    return WorkerProgram(
        module="p2pcompute.execution._program_worker",
        roots=program.roots,
        readable=() if data is None else (data,),
        argument=json.dumps({"program": pinned, "data": data}),
    )
