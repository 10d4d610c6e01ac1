"""Time and memory of `import p2pcompute` against a bare interpreter, each in fresh processes; prints JSON.

python benchmarks/import_time.py [--runs 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

STATEMENTS = {
    "bare": "pass",
    "import p2pcompute": "import p2pcompute",
    "p2pcompute.kernel": "import p2pcompute as p2p; p2p.kernel",
    "p2pcompute.open_node": "import p2pcompute as p2p; p2p.open_node",
}
_PROGRAM = """
import time
began = time.perf_counter()
{statement}
spent = time.perf_counter() - began
with open("/proc/self/status") as status:
    rss_kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
print(spent, rss_kib)
"""


def measure(statement: str, runs: int) -> dict[str, float]:
    """Median time of `statement` in milliseconds, and of the process's resident memory after it in MiB."""
    times: list[float] = []
    memory: list[int] = []
    for _ in range(runs + 1):
        program = _PROGRAM.format(statement=statement)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
        spent, rss_kib = done.stdout.split()
        times.append(float(spent) * 1000)
        memory.append(int(rss_kib))
    # The first run fills the disk cache and writes bytecode.
    return {
        "ms": round(statistics.median(times[1:]), 2),
        "rss_mib": round(statistics.median(memory[1:]) / 1024, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    results = {name: measure(statement, runs) for name, statement in STATEMENTS.items()}
    sys.stdout.write(json.dumps({"runs": runs, "python": sys.version.split()[0], **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
