"""What lives in this process, each by itself: what was there before a test may end while it runs."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress

import trio


def open_files() -> set[object]:
    """(descriptor, what it leads to) of each open file."""
    files: set[object] = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            files.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return files


def threads() -> set[object]:
    """The threads, but for those of Trio that wait for work; one that works bears the name of its work."""
    return {it for it in threading.enumerate() if not re.fullmatch(r"Trio thread \d+", it.name)}


def tasks() -> set[object]:
    """All tasks of the running loop."""
    found: set[object] = set()
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root is not None else []
    while waiting:
        task = waiting.pop()
        found.add(task)
        waiting.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return found
