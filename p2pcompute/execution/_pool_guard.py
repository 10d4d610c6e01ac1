"""What ends bubblewrap's processes when the node is killed while they start.

`--die-with-parent` is not enough. Bubblewrap makes a child, in new namespaces, and then tells it to go on; if
it dies by that signal in between, which takes some milliseconds of each start, the child waits for ever: nobody is
left who could tell it, and it has not asked yet to die with its parent.

So there is a process that outlives the node for a moment. All of them are in its group until they are so far that
they die by themselves. It waits for the end of a pipe, which the kernel closes with the node, and kills its group.
"""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Final, Self

from p2pcompute.errors import ExecutionError

__all__ = ["GroupGuard"]

_END_TIMEOUT_S: Final = 5.0


class GroupGuard:
    """A process group that ends with this process, however it ends. A context manager; leaving it takes
    milliseconds, and kills what is in the group still.

    Attributes:
        group: the group's ID, for `subprocess.Popen(process_group=...)`.

    Raises:
        ExecutionError: it can't be started.
    """

    def __init__(self) -> None:
        read, self._write = os.pipe()
        try:
            self._popen = subprocess.Popen(
                ["/bin/sh", "-c", "read line; kill -9 0"],
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                process_group=0,
            )
        except OSError as error:
            os.close(self._write)
            raise ExecutionError(f"the guard of the workers can't be started: {error}") from error
        finally:
            os.close(read)
        self.group: Final = self._popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # It is reaped here and not before: as long as it is not, nobody else gets the group's number.
        os.close(self._write)
        try:
            self._popen.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
