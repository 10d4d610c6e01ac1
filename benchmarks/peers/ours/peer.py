"""p2pcompute: the streams that nodes use (`streams.py`), requests on them (`asked.py`), and tasks (`tasks.py`).

Each role loads its own: a process that is timed from its start imports what a user's would, and no more.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from side import end_with_parent


def main() -> None:
    """`serve wire [asked]`, `drive ADDRESS wire [noise|asked]`; `serve tasks`, `drive ADDRESS tasks`; and
    `cold ADDRESS tasks first|again`."""
    end_with_parent()
    what, *rest = sys.argv[1:]
    if "tasks" in rest:
        import tasks

        if what == "serve":
            tasks.serve(*rest[1:])
        elif what == "drive":
            tasks.drive(rest[0])
        else:
            tasks.cold(rest[-1])
    elif "asked" in rest:
        import asked
        from streams import open_overlay

        trio.run(asked.serve, open_overlay) if what == "serve" else trio.run(asked.drive, open_overlay, rest[0])
    else:
        from streams import drive_streams, serve_streams

        if what == "serve":
            trio.run(serve_streams)
        else:
            trio.run(partial(drive_streams, rest[0], as_stranger="noise" in rest))


if __name__ == "__main__":
    main()
