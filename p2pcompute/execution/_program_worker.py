"""The worker that runs one allow-listed program: the same lock and channel as a kernel's, another back end.

The distribution is imported between the two steps of the lock: Landlock is on (it reads its own files and writes
nowhere), seccomp not yet. What an import does is its author's and the machine's owner's choice, since a requester has
said nothing by then. Each call of the program runs behind both.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from p2pcompute.errors import ProgramError, SandboxError
from p2pcompute.execution._api import Backend
from p2pcompute.execution._program import ProgramBackend
from p2pcompute.execution._program_files import DATA_VARIABLE, InstalledProgram, is_unchanged
from p2pcompute.execution._worker import run_worker

__all__ = ["load", "main"]


def main(config: Mapping[str, Any]) -> None:
    """Entry point of the process that the pool starts."""
    argument: dict[str, Any] = json.loads(config["argument"])
    if argument["data"] is not None:
        os.environ[DATA_VARIABLE] = argument["data"]
    fields: dict[str, Any] = argument["program"]
    fields["digest"] = bytes.fromhex(fields["digest"])
    program = InstalledProgram(**fields, roots=())
    run_worker(config, functools.partial(_make_backend, program))


def _make_backend(program: InstalledProgram) -> Backend:
    try:
        return ProgramBackend(load(program), program)
    except ProgramError as error:
        raise SandboxError(str(error)) from error


def load(program: InstalledProgram) -> Callable[..., Any]:
    """Import the program and give its function.

    Raises:
        ProgramError: its files are other ones than the node has seen, it can't be imported in here, or it is imported
            from elsewhere.
    """
    if not is_unchanged(program):
        raise ProgramError(
            f"the files of {program.distribution} {program.version} have changed since the node looked at them; start "
            "the node again"
        )
    try:
        module = importlib.import_module(program.module)
        function = functools.reduce(getattr, program.attribute.split("."), module)
    except Exception as error:  # whatever its author's code raises has to reach the node as a word
        raise ProgramError(
            f"the program {program.label} can't be imported in the sandbox, where nothing can be written and no "
            f"network be reached: {type(error).__name__}: {error}"
        ) from error
    origin = os.path.realpath(getattr(module, "__file__", None) or "")
    if not origin.startswith(os.path.join(program.site, "")):
        raise ProgramError(
            f"the program {program.label} is imported from {origin}, and its distribution lies in {program.site}"
        )
    if not callable(function):
        raise ProgramError(f"the program {program.label} is a {type(function).__name__} and no function")
    return function
