"""Compile the contracts beside this file. `scripts/compile-contracts.sh` runs it where vyper is installed.

An artefact is JSON: the ABI, both bytecodes, the compiler's version and the SHA-256 of the source.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARTIFACTS = HERE.parent / "artifacts"
CONTRACTS = ("ChannelHub", "TestToken")


def artifact(name: str) -> str:
    """The text of one contract's artefact."""
    source = (HERE / f"{name}.vy").read_bytes()
    vyper = Path(sys.executable).with_name("vyper")

    def ask(*arguments: str) -> list[str]:
        # Relative to HERE, so that no path of this machine gets near the output.
        done = subprocess.run([vyper, *arguments], cwd=HERE, check=True, capture_output=True, text=True)
        return done.stdout.strip().splitlines()

    (version,) = ask("--version")
    abi, bytecode, runtime = ask("-f", "abi,bytecode,bytecode_runtime", f"{name}.vy")
    fields = {
        "contract": name,
        "compiler": f"vyper {version}",
        "source_sha256": hashlib.sha256(source).hexdigest(),
        "abi": json.loads(abi),
        "bytecode": bytecode,
        "bytecode_runtime": runtime,
    }
    return json.dumps(fields, indent=1) + "\n"


def main() -> int:
    """Write the artefacts, or with --check compare them; 1 where one differs."""
    check = "--check" in sys.argv[1:]
    stale: list[str] = []
    for name in CONTRACTS:
        path = ARTIFACTS / f"{name}.json"
        text = artifact(name)
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(path.name)
    if stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run scripts/compile-contracts.sh\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
