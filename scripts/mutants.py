#!/usr/bin/env python3
"""Plant faults, one at a time, in a copy of the tree, and see that the tests find them.

python scripts/mutants.py                 all of tests/mutants/*.toml
python scripts/mutants.py --only hub      those with this in their name or file
python scripts/mutants.py --list          their names

A row of such a file:

    [[mutant]]
    name = "a stale voucher counts again"           # what is wrong then
    file = "p2pcompute/chain/contracts/ChannelHub.vy"
    search = "total > claimed"                      # stands in the file once
    replace = "total > 0"
    tests = ["tests/unit/chain/test_hub.py::test_…"]  # every one of these has to fail

It exits with 1 where a mutant lives: where one of its tests passes, or where it is not a fault but rubbish (it does
not compile, or a test can't be collected). Before all others the tests run on the tree as it is, and have to pass.
Contracts are compiled anew for a mutant of theirs, with the compiler of scripts/compile-contracts.sh. Property tests
run with a fixed seed.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAILED = re.compile(r"^FAILED (.+?)(?: - .*)?$", re.MULTILINE)
ERROR = re.compile(r"^ERROR (.*)$", re.MULTILINE)


class Rubbish(Exception):
    """A mutant that is not a fault that a test could find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted fault."""

    name: str
    file: str
    search: str
    replace: str
    tests: tuple[str, ...]


def read(folder: Path) -> list[Mutant]:
    """All rows of all files, with what is wrong with one of them as a `Rubbish`."""
    found: list[Mutant] = []
    for path in sorted(folder.glob("*.toml")):
        for row in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            if set(row) != {"name", "file", "search", "replace", "tests"} or not row["tests"]:
                raise Rubbish(f"{path.name}: a mutant has name, file, search, replace and tests: {row.get('name')}")
            found.append(Mutant(**{**row, "tests": tuple(row["tests"])}))
    names = [mutant.name for mutant in found]
    if len(set(names)) < len(names):
        raise Rubbish(f"two mutants have one name: {sorted({n for n in names if names.count(n) > 1})}")
    return found


def plant(mutant: Mutant, source: str) -> str:
    """The source with the fault in it; a `Rubbish` where it does not fit into it once, or is no Python then."""
    if source.count(mutant.search) != 1:
        raise Rubbish(f"{mutant.file} holds the text {source.count(mutant.search)} times, not once")
    planted = source.replace(mutant.search, mutant.replace)
    if mutant.file.endswith(".py"):
        try:
            ast.parse(planted)
        except SyntaxError as exc:
            raise Rubbish(f"{mutant.file} is no Python any more: {exc}") from exc
    return planted


class Copy:
    """A copy of the tree to plant faults in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        compiler = ROOT / ".venv-vyper"
        if not compiler.exists():
            raise SystemExit("no compiler of contracts: run scripts/compile-contracts.sh --venv")
        (folder / ".venv-vyper").symlink_to(compiler)
        paths = [folder, *(folder / name for name in ("protocols", "cli", "testnet"))]
        self._env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
        self._env["P2PCOMPUTE_NO_SHRINK"] = "1"  # that there is a counterexample is all that is asked
        where = self._python(
            "-c", "import p2pcompute, p2pcompute_protocols as q; print(p2pcompute.__file__, q.__file__)"
        )
        if where.stdout.count(str(folder)) != 2:
            raise SystemExit(f"the tests would import another tree than the copy: {where.stdout}{where.stderr}")

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=self._env, capture_output=True, text=True, check=False
        )

    def run(self, tests: Sequence[str]) -> tuple[set[str], str]:
        """The tests that failed, and all that pytest said."""
        options = ("-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "--hypothesis-seed=0")
        done = self._python("-m", "pytest", *options, *tests)
        if done.returncode not in (0, 1) or ERROR.search(done.stdout):
            raise Rubbish(f"pytest could not run the tests:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return set(FAILED.findall(done.stdout)), done.stdout

    def survived(self, mutant: Mutant) -> list[str]:
        """The tests that have not noticed."""
        path = self.folder / mutant.file
        source = path.read_text(encoding="utf-8")
        try:
            path.write_text(plant(mutant, source), encoding="utf-8")
            self._compile(mutant)
            failed, _ = self.run(mutant.tests)
        finally:
            path.write_text(source, encoding="utf-8")
        return [test for test in mutant.tests if not any(_is(found, test) for found in failed)]

    def _compile(self, mutant: Mutant) -> None:
        """The artefact of a contract; `survived` puts the source back, and this is called for the next one anew."""
        if not mutant.file.endswith(".vy"):
            self._restore()
            return
        compile_py = self.folder / "p2pcompute/chain/contracts/compile.py"
        name = Path(mutant.file).stem
        command = [str(self.folder / ".venv-vyper/bin/python"), str(compile_py), "--only", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Rubbish(f"it does not compile:\n{done.stderr[-1500:]}")
        self._restore(but=name)

    def _restore(self, but: str = "") -> None:
        for path in (ROOT / "p2pcompute/chain/artifacts").glob("*.json"):
            if path.stem != but:
                shutil.copy2(path, self.folder / "p2pcompute/chain/artifacts" / path.name)


def _is(found: str, test: str) -> bool:
    """Whether a failure is one of `test`, which may name a file, a function, or one of its cases."""
    return found == test or found.startswith((f"{test}[", f"{test}::"))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """The program; 1 where a mutant lives."""
    parser = argparse.ArgumentParser(description="Plant faults and see that tests find them.")
    parser.add_argument("--only", default="", help="mutants with this in their name or file")
    parser.add_argument("--list", action="store_true", help="only print their names")
    arguments = parser.parse_args(argv)
    mutants = [m for m in read(ROOT / "tests/mutants") if arguments.only in m.name or arguments.only in m.file]
    if arguments.list or not mutants:
        _say("\n".join(f"{m.file}: {m.name}" for m in mutants) or "no such mutant")
        return 0 if mutants else 1
    alive = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        copy = Copy(Path(temporary).resolve())
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        _say(f"{len(tests)} tests on the tree as it is")
        failed, said = copy.run(tests)
        if failed:
            _say(said)
            return 1
        for number, mutant in enumerate(mutants, start=1):
            try:
                survivors = copy.survived(mutant)
                verdict = f"ALIVE, unnoticed by {', '.join(survivors)}" if survivors else "killed"
            except Rubbish as exc:
                survivors, verdict = [mutant.name], f"RUBBISH: {exc}"
            alive += bool(survivors)
            _say(f"{number}/{len(mutants)} {Path(mutant.file).name}: {mutant.name}: {verdict}")
    _say(f"{len(mutants) - alive} of {len(mutants)} mutants killed")
    return 1 if alive else 0


if __name__ == "__main__":
    raise SystemExit(main())
