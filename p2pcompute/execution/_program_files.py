"""Which program is installed here: found by its entry point, and pinned by the files of its distribution.

A program is a function of an installed distribution, under a name in the entry-point group `GROUP`. Its identity is
(distribution, version, name, digest of the files); the digest is that of protocols/negotiation, ProgramRef. Nothing
in here imports the program: a node knows programs by their files, and only workers run them.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Final

from p2pcompute.errors import ProgramError

__all__ = [
    "DATA_VARIABLE",
    "GROUP",
    "InstalledProgram",
    "content_digest",
    "installed_programs",
    "is_unchanged",
    "look_up",
    "normalised",
]

GROUP: Final = "p2pcompute.programs"
DATA_VARIABLE: Final = "P2PCOMPUTE_PROGRAM_DATA"
"""Where a program finds the directory that the owner of the machine gives it to read, if any."""
_DOMAIN: Final = b"p2pcompute program 1\0"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")  # it stands in a feature of an ad
_REQUIREMENT: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)([^;]*)(;.*)?")
_MAX_VERSION: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledProgram:
    """A program as it is installed here.

    Attributes:
        distribution: normalised name of its distribution, of which `version` is installed.
        name: of its entry point.
        digest: 32 bytes, SHA-256 over the distribution's files.
        module, attribute: what the entry point names.
        site: the directory that the distribution is installed in.
        roots: the directories that it and what it requires are imported from.
    """

    distribution: str
    version: str
    name: str
    digest: bytes
    module: str
    attribute: str
    site: str
    roots: tuple[str, ...]

    @property
    def label(self) -> str:
        """How it is written down: ``distribution:name``."""
        return f"{self.distribution}:{self.name}"


def normalised(distribution: str) -> str:
    """A distribution's name in its one spelling (PyPA, "Name normalization")."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def look_up(what: str) -> InstalledProgram:
    """The one program that is installed under a name, or under ``distribution:name``.

    Raises:
        ProgramError: there is none, there are several, or its files can't be pinned; says what to do.
    """
    wanted, _, name = what.rpartition(":")
    found = [
        (distribution, point)
        for distribution, point in _points()
        if point.name == name and (not wanted or _name_of(distribution) == normalised(wanted))
    ]
    if not found:
        known = sorted({f"{_name_of(distribution)}:{point.name}" for distribution, point in _points()})
        has = f"there are {', '.join(known[:8])}" if known else "no installed distribution has programs"
        raise ProgramError(
            f"no program {what} is installed here; {has}. Install the distribution that has it under "
            f'[project.entry-points."{GROUP}"]'
        )
    if len(found) > 1:
        names = ", ".join(sorted(f"{_name_of(distribution)}:{point.name}" for distribution, point in found))
        raise ProgramError(f"several distributions have a program {name}: write one of {names}")
    return _describe(*found[0])


def installed_programs() -> list[InstalledProgram | ProgramError]:
    """All programs that are installed here, by name; an error stands for one that can't be used."""
    found: list[tuple[str, InstalledProgram | ProgramError]] = []
    for distribution, point in _points():
        try:
            found.append((point.name, _describe(distribution, point)))
        except ProgramError as error:
            found.append((point.name, error))
    return [program for _, program in sorted(found, key=lambda pair: pair[0])]


def is_unchanged(program: InstalledProgram) -> bool:
    """Whether the same version, with the same files, still lies where `program` was found."""
    for distribution in metadata.distributions(path=[program.site]):
        if _name_of(distribution) == program.distribution and distribution.version == program.version:
            return content_digest(distribution, module=program.module) == program.digest
    return False


def content_digest(distribution: metadata.Distribution, *, module: str) -> bytes:
    """SHA-256 over a distribution's files as they lie on the disk, whatever RECORD says of them.

    Covered is what RECORD lists inside of the site directory, but for compiled Python and for all of ``*.dist-info``
    except ``entry_points.txt``. Requirements are not: what they give is the author's business.

    Args:
        distribution: the installed distribution.
        module: the program's module, which has to be among the files.

    Raises:
        ProgramError: there is no RECORD, a file is missing, or the module is not listed: it was installed to be
            edited in place, or by other means than a wheel.
    """
    label = f"{_name_of(distribution)} {distribution.version}"
    record = distribution.read_text("RECORD")
    if record is None:
        raise ProgramError(
            f"{label} has no RECORD of its files; install it from a wheel, with pip or another installer"
        )
    paths = sorted({row[0] for row in csv.reader(record.splitlines()) if row and _is_covered(row[0])}, key=str.encode)
    stem = module.replace(".", "/")
    if not any(
        path in (f"{stem}.py", f"{stem}/__init__.py") or (path.startswith(f"{stem}.") and path.endswith(".so"))
        for path in paths
    ):
        raise ProgramError(
            f"the RECORD of {label} does not list the module {module}, so nobody can tell what it is; install the "
            "distribution itself, not for editing in place"
        )
    digest = hashlib.sha256(_DOMAIN)
    site = _site_of(distribution)
    for path in paths:
        try:
            content = (site / path).read_bytes()
        except OSError as error:
            raise ProgramError(f"{path} of {label} can't be read: {error.strerror}; install it again") from error
        name = path.encode()
        digest.update(len(name).to_bytes(4, "big") + name + hashlib.sha256(content).digest())
    return digest.digest()


def _is_covered(path: str) -> bool:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or path.endswith(".pyc"):
        return False
    return not parts[0].endswith(".dist-info") or parts[1:] == ("entry_points.txt",)


def _points() -> Iterator[tuple[metadata.Distribution, metadata.EntryPoint]]:
    """Each distribution once, as it would be imported: the first of a name on the path."""
    seen: set[str] = set()
    for distribution in metadata.distributions():
        name = _name_of(distribution)
        if name in seen:
            continue
        seen.add(name)
        for point in distribution.entry_points:
            if point.group == GROUP:
                yield distribution, point


def _name_of(distribution: metadata.Distribution) -> str:
    name = distribution.metadata["Name"]
    return normalised(name) if isinstance(name, str) else ""


def _site_of(distribution: metadata.Distribution) -> Path:
    return Path(str(distribution.locate_file(""))).resolve()


def _describe(distribution: metadata.Distribution, point: metadata.EntryPoint) -> InstalledProgram:
    name = _name_of(distribution)
    if not _NAME.fullmatch(point.name):
        raise ProgramError(
            f"{name} calls a program {point.name!r}; a name has at most 32 letters, digits, dots, hyphens or _"
        )
    version = distribution.metadata["Version"]  # None where it is missing, whatever the types say
    if not isinstance(version, str) or not 1 <= len(version) <= _MAX_VERSION or not 1 <= len(name) <= _MAX_VERSION:
        raise ProgramError(
            f"the distribution {name!r} of the program {point.name} has no name and version of 1 to {_MAX_VERSION} "
            "characters; install it again"
        )
    if not point.attr:
        raise ProgramError(f"{name}:{point.name} names the module {point.value} and no function; write module:function")
    return InstalledProgram(
        distribution=name,
        version=version,
        name=point.name,
        digest=content_digest(distribution, module=point.module),
        module=point.module,
        attribute=point.attr,
        site=str(_site_of(distribution)),
        roots=_roots(distribution),
    )


def _roots(distribution: metadata.Distribution) -> tuple[str, ...]:
    """Where the distribution and all that it requires lie."""
    roots: dict[str, None] = {}
    seen: set[str] = set()
    open_ = [distribution]
    while open_:
        this = open_.pop()
        if (name := _name_of(this)) in seen:
            continue
        seen.add(name)
        roots[str(_site_of(this))] = None
        for required in _required(this.requires or ()):
            try:
                open_.append(metadata.distribution(required))
            except metadata.PackageNotFoundError:
                continue  # for another system, or missing: then the import says so
    return tuple(roots)


def _required(requirements: Iterable[str]) -> Iterator[str]:
    for text in requirements:
        match = _REQUIREMENT.match(text)
        if match is not None and "extra" not in (match[3] or ""):
            yield match[1]
