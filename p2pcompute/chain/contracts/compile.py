"""Compile the contracts beside this file, and those that only the tests use. `scripts/compile-contracts.sh` runs it
where vyper is installed.

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
FOR_TESTS = HERE.parents[2] / "tests" / "contracts"


def artifact(path: Path) -> str:
    """The text of one contract's artefact."""
    name, source = path.stem, path.read_bytes()
    vyper = Path(sys.executable).with_name("vyper")

    def ask(*arguments: str) -> list[str]:
        # Relative to its folder, so that no path of this machine gets near the output.
        done = subprocess.run([vyper, *arguments], cwd=path.parent, check=True, capture_output=True, text=True)
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
    """Write the artefacts, or with --check compare them; 1 where one differs. `--only NAME` leaves the others."""
    check = "--check" in sys.argv[1:]
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else None
    stale: list[str] = []
    places = [(source, ARTIFACTS) for source in sorted(HERE.glob("*.vy"))]
    places += [(source, FOR_TESTS) for source in sorted(FOR_TESTS.glob("*.vy"))]
    for source, folder in places:
        if only not in (None, source.stem):
            continue
        path = folder / f"{source.stem}.json"
        text = artifact(source)
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(path.name)
    if stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run scripts/compile-contracts.sh\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
