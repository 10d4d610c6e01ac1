"""Contracts without one of their defences, compiled with the compiler of `scripts/compile-contracts.sh`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CONTRACTS = ROOT / "p2pcompute/chain/contracts"
VYPER_PYTHON = ROOT / ".venv-vyper/bin/python"

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


COMPILE_ALL = """
import json, sys, vyper
sources = json.load(sys.stdin)
json.dump([vyper.compile_code(s, output_formats=["bytecode"])["bytecode"] for s in sources], sys.stdout)
"""


def compile_weakened(contract: str, cases: Sequence[Case]) -> dict[str, bytes]:
    """The bytecode of a contract without each of its defences, by the attack's name."""
    sources = []
    for case in cases:
        source = (CONTRACTS / f"{contract}.vy").read_text()
        for old, new in case.without:
            assert old in source
            source = source.replace(old, new)
        sources.append(source)
    done = subprocess.run(
        [VYPER_PYTHON, "-c", COMPILE_ALL], input=json.dumps(sources), capture_output=True, text=True, check=True
    )
    return {case.name: bytes.fromhex(code[2:]) for case, code in zip(cases, json.loads(done.stdout), strict=True)}
