#!/usr/bin/env python3
"""Have Mythril look for what it knows in the contracts, as they lie on chain after their deployment.

    python3 -m venv .venv-mythril && .venv-mythril/bin/pip install mythril
    .venv/bin/python scripts/analyse-contracts.py .venv-mythril/bin/myth [SECONDS]

Mythril 0.24 knows the EVM up to London, and takes the jump table of Vyper's optimiser for a jump to anywhere. So it is
given the same sources, compiled for London and without optimisation; the storage lock of London is the one difference
in what they do. docs/contracts.md answers what it finds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.unit.chain.conftest import HubBench
from tests.unit.chain.registry_bench import RegistryBench

ROOT = Path(__file__).resolve().parents[1]
VYPER = ROOT / ".venv-vyper/bin/vyper"


def compiled(name: str, folder: Path) -> bytes:
    """The creation code for London, not optimised."""
    source = (ROOT / f"p2pcompute/chain/contracts/{name}.vy").read_text(encoding="utf-8")
    for old, new in (("evm-version cancun", "evm-version london"), ("optimize gas", "optimize none")):
        if source.count(old) != 1:
            raise SystemExit(f"{name}.vy has no pragma {old}")
        source = source.replace(old, new)
    path = folder / f"{name}.vy"
    path.write_text(source, encoding="utf-8")
    done = subprocess.run([VYPER, "-f", "bytecode", path], check=True, capture_output=True, text=True)
    return bytes.fromhex(done.stdout.strip().removeprefix("0x"))


def main() -> int:
    """The program; the worst of Mythril's exit codes."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    seconds = sys.argv[2] if len(sys.argv) > 2 else "600"
    worst = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = HubBench(compiled("ChannelHub", folder))
        registry = RegistryBench(bench, compiled("StakeRegistry", folder))
        for name, address in (("ChannelHub", bench.hub), ("StakeRegistry", registry.address)):
            path = folder / f"{name}.bin"
            path.write_text(bench.chain.state(bench.chain.head).get_code(address).hex())
            sys.stdout.write(f"{name}, {path.stat().st_size // 2} bytes\n")
            sys.stdout.flush()
            bounds = ("-t", "1", "--execution-timeout", seconds, "--solver-timeout", "5000")
            done = subprocess.run([sys.argv[1], "analyze", "-f", path, "--bin-runtime", *bounds], check=False)
            worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
