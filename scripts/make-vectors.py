#!/usr/bin/env python3
"""Write protocols/*/vectors.json.

python scripts/make-vectors.py            writes the files
python scripts/make-vectors.py --check    exits with 1 where a file is not what this script would write
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.unit.protocols.vectors import build


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = [(p, text) for p, text in build().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path, text in stale:
        if not check:
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{'stale' if check else 'written'}: protocols/{path.parent.name}/{path.name}\n")
    return 1 if stale and check else 0


if __name__ == "__main__":
    raise SystemExit(main())
