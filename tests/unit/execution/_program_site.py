"""Distributions with programs, laid out on disk as an installer lays out a wheel; nothing is built or downloaded."""

from __future__ import annotations

import base64
import hashlib
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from p2pcompute.execution._program_files import GROUP

__all__ = ["EXAMPLE", "HOSTILE", "install", "install_example", "on_path"]

EXAMPLE = Path(__file__).parents[3] / "examples" / "programs" / "tiny-learner"
HOSTILE = Path(__file__).parent / "hostile" / "hostile_program.py"


def install(
    site: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    programs: Mapping[str, str],
    *,
    requires: tuple[str, ...] = (),
    unlisted: tuple[str, ...] = (),
) -> None:
    """Install a distribution into `site`: its files, metadata, entry points, and the RECORD of all of them.

    `files` are texts by their path, `programs` values of entry points by name, `unlisted` paths that RECORD leaves out.
    """
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    requirements = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    points = "".join(f"{point} = {value}\n" for point, value in programs.items())
    every = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requirements}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/INSTALLER": "test\n",
        f"{info}/entry_points.txt": f"[{GROUP}]\n{points}",
    }
    record = ""
    for path, text in every.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        if path not in unlisted:
            record += f"{path},sha256={digest},{len(text.encode())}\n"
    (site / info / "RECORD").write_text(f"{record}{info}/RECORD,,\n")


def install_example(site: Path, *, version: str | None = None, extra: str = "") -> None:
    """Install the distribution of examples/programs; `version` and `extra` source make another one of it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    source = (EXAMPLE / "tiny_learner" / "__init__.py").read_text()
    install(
        site,
        project["name"],
        version or project["version"],
        {"tiny_learner/__init__.py": source + extra},
        project["entry-points"][GROUP],
        requires=tuple(project["dependencies"]),
    )


def on_path(patch: pytest.MonkeyPatch, site: Path) -> None:
    """Make `site` a directory that distributions are found in, until the test ends."""
    patch.setattr(sys, "path", [*sys.path, str(site)])
