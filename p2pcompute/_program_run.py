"""What is particular to a task that is a program: is it here, how long does an item take, how many are run again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from p2pcompute._profile import home_dir
from p2pcompute.checking import DEFAULT_SAMPLES
from p2pcompute.errors import ConfigError, ExecutionError, NoProviderError, ProgramError
from p2pcompute.execution._program_files import InstalledProgram, look_up
from p2pcompute_protocols.work import ProgramRef

if TYPE_CHECKING:
    from p2pcompute._program import Program
    from p2pcompute._requester import RunOptions
    from p2pcompute.execution import WorkerSession
    from p2pcompute.kernel import Binding

__all__ = [
    "PROGRAM_SETUP_S",
    "allowed_programs",
    "calibrate_program",
    "check_installed",
    "explained",
    "installed_program",
    "is_program",
    "program_ref",
    "program_samples",
]

PROGRAM_SETUP_S: Final = 20.0  # of a provider; its worker may have to be started, and to import the program, first
_SHARE: Final = 8  # one of so many items is run again, where nothing else is said
_LONG_NS: Final = 10_000_000  # a run that takes so long can be timed
_MOST_ITEMS: Final = 262_144
_TIMEOUT_S: Final = 30.0


def is_program(what: object) -> bool:
    """Whether a task is calls of a program."""
    from p2pcompute._program import ConfiguredProgram, Program

    return isinstance(what, Program | ConfiguredProgram)


def installed_program(what: object) -> InstalledProgram | None:
    """How the program that a task calls is installed here; None for kernels, and where it is not."""
    from p2pcompute._program import ConfiguredProgram, Program

    program = what.program if isinstance(what, ConfiguredProgram) else what
    return program.installed if isinstance(program, Program) else None


def program_ref(installed: InstalledProgram) -> ProgramRef:
    """What goes over the wire of a program that is installed here."""
    return ProgramRef(
        distribution=installed.distribution, version=installed.version, name=installed.name, digest=installed.digest
    )


def allowed_programs(names: Iterable[str], data: Mapping[str, str]) -> list[tuple[InstalledProgram, str | None]]:
    """The programs that a provider's owner allows, each once, with the directory that it may read.

    Raises:
        ProgramError: one is not installed, or can't be pinned.
        ConfigError: what it is to read is no directory, or holds this node's own keys.
    """
    found: dict[str, tuple[InstalledProgram, str | None]] = {}
    for name in names:
        program = look_up(name)
        where = None if name not in data else _data_directory(name, data[name])
        if where is not None or program.label not in found:
            found[program.label] = program, where
    return list(found.values())


def _data_directory(name: str, directory: str) -> str:
    """The directory under its real name. It must not hold what makes this node: what a program may read, whoever has
    it run may be told."""
    where = Path(directory).expanduser()
    if not str(directory) or not where.is_dir():
        raise ConfigError(f"the data of the program {name} is to be in {directory}, which is no directory")
    where = where.resolve()
    for own in (home_dir().resolve(), Path.home().resolve()):
        if own.is_relative_to(where):
            raise ConfigError(
                f"the program {name} would read {where}, and {own} is in there; give it a directory of its own"
            )
    if where.is_relative_to(home_dir().resolve()):
        raise ConfigError(f"the program {name} would read {where}, which holds this node's files; give it another one")
    return str(where)


def check_installed(program: Program, options: RunOptions) -> None:
    """Raise ProgramError where a program has to run here, to check results or to be timed, and is not installed."""
    if program.installed is not None:
        return
    if options.checks:
        raise ProgramError(
            f"{program.ref.distribution} is not installed here, so results of its program {program.name} can't be "
            'checked; install the distribution, or trust the providers with check="none"'
        )
    if options.item_s is None:
        raise ProgramError(
            f"{program.ref.distribution} is not installed here, so its program {program.name} can't be timed; say how "
            "many seconds one item takes on a reference core: item_s=…"
        )


def program_samples(samples: int, items: int) -> int:
    """How many of a chunk's `items` are run again: an eighth and one at least, or as many as were asked for."""
    return min(samples, max(1, items // _SHARE) if samples == DEFAULT_SAMPLES else items)


def explained(error: NoProviderError, program: ProgramRef) -> NoProviderError:
    """The same error, and how a program is offered."""
    label = f"{program.distribution}:{program.name}"
    return NoProviderError(
        f"{error} A program runs where the same distribution is installed and its owner allows it: "
        f"`p2pcompute up --allow-program {label}`."
    )


async def calibrate_program(worker: WorkerSession, binding: Binding) -> float:
    """Microseconds that one item takes here, on one thread: one is run, then more, until a run can be timed. Where
    inputs are split they are neighbours, more or less.

    Raises:
        ExecutionError: it does not run here.
    """
    from p2pcompute._split_run import some_items

    rng: np.random.Generator = np.random.default_rng()
    first, items = some_items(binding, rng)
    count = 1

    async def timed(count: int) -> int:
        picked: np.ndarray[Any, Any] = first + np.sort(rng.integers(0, items, size=count, dtype=np.int64))
        return int((await worker.run_threads(picked, timeout_s=_TIMEOUT_S)).wall_ns)

    try:
        await timed(1)  # loads what is loaded on first use
        while (spent_ns := await timed(count)) < _LONG_NS and count < min(items, _MOST_ITEMS):
            count = min(count * 4, items)
    except ExecutionError as exc:
        raise ExecutionError(
            f"the program can't be timed here: {exc}. Where it can't run here, say how many seconds one item takes on "
            "a reference core: item_s=…"
        ) from exc
    return spent_ns / count / 1_000
