"""Programs as users name them: `program` finds one, ``program[items]`` is what is run.

    infer = p2p.program("infer")
    label, scores = p2p.run(infer[n], p2p.out(n, np.uint8), p2p.out((n, 5), np.int32), images, weights)

A program is a function of a distribution that is installed where it runs, under a name in the entry-point group
``p2pcompute.programs``; docs/programs.md says how to write one. It is pinned: a provider runs the same files, or
refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from p2pcompute._inout import InOut
from p2pcompute._options import said
from p2pcompute._program_run import program_ref
from p2pcompute._split import Split
from p2pcompute.errors import KernelTypeError, NotCalled, ProgramError
from p2pcompute.execution._api import ArgSpec, InputSpec, SplitSpec
from p2pcompute.execution._program import program_launch, program_layout, program_source
from p2pcompute.execution._program_files import InstalledProgram, installed_programs, look_up, normalised
from p2pcompute.kernel import Binding, Out, _argument
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.work import ProgramRef

__all__ = ["ConfiguredProgram", "Program", "program"]


def program(what: str | Callable[..., Any], *, version: str | None = None, digest: str | None = None) -> Program:
    """A program that is installed here, or one that is named by what it is pinned to.

    Args:
        what: its name, ``distribution:name``, or the function that the entry point names.
        version: with `digest`, of a program that need not be installed here: `what` is ``distribution:name`` then.
            Its results can't be checked here, so `run` takes it with ``check="none"`` only. Of one that is installed,
            what it has to be.
        digest: of its files, 64 hex digits, as ``p2pcompute programs`` shows it where it is installed.

    Raises:
        ProgramError: there is none, there are several, it is not the one that `version` and `digest` name, or its
            files can't be pinned.
    """
    given: object = what
    if not isinstance(given, str) and not callable(given):
        raise ProgramError(f"{said(what)} names no program; write its name, such as p2p.program('infer')")
    for part, text in (("version", version), ("digest", digest)):
        if text is not None and not isinstance(text, str):
            raise ProgramError(f"{part} is {said(text)}; write it as text, as `p2pcompute programs` shows it")
    if (version is None) != (digest is None):
        raise ProgramError("a program is pinned by version and digest together; give both, or none")
    name = what if isinstance(what, str) else _name_of(what)
    if version is None or digest is None:
        installed = look_up(name)
        return Program(program_ref(installed), installed)
    wanted = _pinned(name, version, digest)
    try:
        found = look_up(name)
    except ProgramError:
        return Program(wanted, None)
    if program_ref(found) != wanted:
        raise ProgramError(
            f"{name} {version} with files {digest[:16]} is asked for, and {found.version} with files "
            f"{found.digest.hex()[:16]} is installed here; install the one that is asked for, or leave out version and "
            "digest"
        )
    return Program(wanted, found)


def _pinned(name: str, version: str, digest: str) -> ProgramRef:
    distribution, _, point = name.rpartition(":")
    try:
        if not distribution:
            raise ProgramError(f"{name} is pinned and has no distribution; write distribution:name")
        return ProgramRef(
            distribution=normalised(distribution), version=version, name=point, digest=bytes.fromhex(digest)
        )
    except (ValueError, LocalProtocolError) as error:
        raise ProgramError(
            f"{name} can't be pinned so: {error}; a digest has 64 hex digits, as `p2pcompute programs` shows it"
        ) from None


def _name_of(function: Callable[..., Any]) -> str:
    where = (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
    for found in installed_programs():
        if isinstance(found, InstalledProgram) and (found.module, found.attribute) == where:
            return found.label
    raise ProgramError(
        f"no installed distribution names {where[0]}:{where[1]} as a program; add it to "
        '[project.entry-points."p2pcompute.programs"] of its pyproject.toml, and install that'
    )


class Program:
    """A program. Made by `program`.

    Attributes:
        ref: what it is pinned to: distribution, version, name and digest of the files.
        installed: how it is installed here; None where it is not.
    """

    def __init__(self, ref: ProgramRef, installed: InstalledProgram | None) -> None:
        self.ref = ref
        self.installed = installed
        self.name: str = ref.name
        self.__name__ = ref.name

    def __repr__(self) -> str:
        pinned = f"{self.ref.distribution}:{self.name} {self.ref.version}, files {self.ref.digest.hex()[:16]}"
        return f"<p2pcompute.program {pinned}{'' if self.installed else ', not installed here'}>"

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Programs are not called: says how to start one."""
        raise NotCalled(
            f"{self.name} is a program", instead=f"start {self.name} with p2pcompute.run({self.name}[items], ...)"
        )

    def __getitem__(self, items: int) -> ConfiguredProgram:
        """The program, for the items 0 to `items` - 1."""
        if isinstance(items, bool) or not isinstance(items, int | np.integer) or not 1 <= items <= 2**40:
            raise KernelTypeError(f"{said(items)} is no number of items", instead="give a whole number from 1")
        return ConfiguredProgram(self, int(items))

    def bind(self, *args: Any) -> Binding:
        """Bind arguments; as many items as the first output has rows."""
        _refuse_inout(args)
        rows = next((value.shape[0] for value in args if isinstance(value, Out)), None)
        if rows is None:
            raise KernelTypeError(
                f"{self.name} has no output", instead="pass p2pcompute.out(shape, dtype) for each output"
            )
        return self[max(rows, 1)].bind(*args)


@dataclass(frozen=True, slots=True)
class ConfiguredProgram:
    """A program and how many items it is called for: ``program[items]``."""

    program: Program
    items: int

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Programs are not called: says how to start one."""
        this = f"{self.program.name}[{self.items}]"
        raise NotCalled(f"{this} is a program with its items", instead=f"start it with p2pcompute.run({this}, ...)")

    def bind(self, *args: Any) -> Binding:
        """Bind arguments. Python's floats are float64, as in the program's own code, and its ints int64. The first axis
        of an array in `p2pcompute.split` counts the items.

        Raises:
            KernelTypeError: one of them is neither an array, a number nor an output, or an output has not as many rows
                as there are items.
        """
        _refuse_inout(args)
        specs: list[ArgSpec] = []
        values: list[Any] = []
        for place, value in enumerate(args, 1):
            if isinstance(value, Out) and value.reduce is not None:
                raise KernelTypeError(
                    f"argument {place} is to be combined, and outputs of programs are not",
                    instead="pass p2pcompute.out(shape, dtype) and combine what comes back",
                )
            if isinstance(value, Split):
                specs.append(_split_items(place, value))
                values.append(value)
                continue
            spec, taken = _argument(f"argument {place}", np.float64(value) if isinstance(value, float) else value)
            specs.append(spec)
            if taken is not None:
                values.append(taken)
        launch = program_launch(self.items)
        return Binding(
            source=program_source(self.program.ref),
            launch=launch,
            specs=tuple(specs),
            values=tuple(values),
            layout=program_layout(launch, specs),
            program=self.program.ref,
        )


def _refuse_inout(args: tuple[Any, ...]) -> None:
    for place, value in enumerate(args, 1):
        if isinstance(value, InOut):
            raise KernelTypeError(
                f"argument {place} is p2pcompute.inout, and programs change nothing in place",
                instead="pass the array, and p2pcompute.out(shape, dtype) for what comes back",
            )


def _split_items(place: int, value: Split) -> InputSpec:
    """What a program is bound to for a split argument."""
    halo = value.halo if isinstance(value.halo, tuple) else (value.halo,)
    if any(halo[1:]):
        raise KernelTypeError(
            f"argument {place} has the halo {halo}, and an item has a place along the first axis only",
            instead="give the other axes a halo of 0: each item has all of them",
        )
    return InputSpec(
        dtype=value.array.dtype.name,
        shape=value.array.shape,
        split=SplitSpec(axes=(0,), halo=halo[:1], edge=value.edge),
    )
