"""Contracts without one of their defences, compiled with the compiler of `scripts/compile-contracts.sh`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CONTRACTS = ROOT / "p2pcompute/chain/contracts"
VYPER_PYTHON = ROOT / ".venv-vyper/bin/python"
WHICH = ROOT / "scripts/compile-contracts.sh"
KEPT = ROOT / "build/weakened"

needs_compiler = pytest.mark.skipif(
    not VYPER_PYTHON.exists(), reason="no compiler: run scripts/compile-contracts.sh --venv"
)


@dataclass(frozen=True)
class Case:
    """An attack, and what to replace in the source so that it succeeds."""

    attack: Callable[[Any], bool]
    without: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return self.attack.__name__


SERVE = """
import json, sys, vyper
for line in sys.stdin:
    code = vyper.compile_code(json.loads(line), output_formats=["bytecode"])["bytecode"]
    print(code, flush=True)
"""


class Compiler:
    """A process that has loaded the compiler, started when it is first needed; each test waits for its own contract.

    What was compiled once is kept in `build/weakened`, by its source and by the script that says which compiler it is:
    the same source is the same contract, and compiling it is most of what such a test takes.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def without(self, contract: str, case: Case) -> bytes:
        """The bytecode of a contract without a defence."""
        source = (CONTRACTS / f"{contract}.vy").read_text()
        for old, new in case.without:
            assert old in source
            source = source.replace(old, new)
        name = hashlib.sha256(b"\0".join((WHICH.read_bytes(), SERVE.encode(), source.encode()))).hexdigest()
        kept = KEPT / f"{name}.hex"
        if not kept.exists():
            KEPT.mkdir(parents=True, exist_ok=True)
            partial = KEPT / f".{name}.{os.getpid()}"
            partial.write_text(self._compiled(source).hex())
            partial.replace(kept)
        return bytes.fromhex(kept.read_text())

    def _compiled(self, source: str) -> bytes:
        if self._process is None:
            self._process = subprocess.Popen(
                [VYPER_PYTHON, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(source) + "\n")
        self._process.stdin.flush()
        code = self._process.stdout.readline()
        assert code, "the compiler refused it"
        return bytes.fromhex(code.strip()[2:])

    def close(self) -> None:
        if self._process is not None:
            with self._process:
                assert self._process.stdin is not None
                self._process.stdin.close()
