"""One worker process as the node holds it: start, one exchange at a time, certain death."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from p2pcompute.errors import ExecutionError, SandboxError, WorkerDied, WorkerProtocolError, WorkerTimeout
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._pool_failure import failure_of, printable
from p2pcompute.execution._sandbox import Layers, SandboxPolicy, WorkerLimits
from p2pcompute.execution._sandbox_bwrap import Bwrap
from p2pcompute.execution._sandbox_devices import DeviceAccess

__all__ = [
    "CANCEL_GRACE_S",
    "CPU_WORKER",
    "Progress",
    "WorkerProcess",
    "WorkerProgram",
    "readable_paths",
    "take",
]

CANCEL_GRACE_S: Final = 0.25
"""How long a worker whose call is cancelled has to come to the end of a launch; then it is killed."""
Progress: TypeAlias = Callable[[int], None]
"""Told how many blocks of a run are done; must not block or raise."""

_START_TIMEOUT_S: Final = 120.0
"""Import and warm-up take 2 s on an idle machine; a crowded small one may need many times that."""
_DEATH_TIMEOUT_S: Final = 10.0
_LAST_WORDS_BYTES: Final = 2000
_PROGRESS_FREE: Final = 8
"""Words of progress that a run may say without regard to time."""
_PROGRESS_LATE: Final = 1_000
"""More of them than can have queued up when a run is asked to stop."""
_WITHOUT_TURN: Final = 16
"""Replies that may be taken one after the other with no turn of the event loop between them."""
_QUICK_NS: Final = 200_000
"""A reply within that may be one that a look would have found: it has slept, and was woken. A look tells."""
_SPIN_NS: Final = 60_000
"""To sleep and to be woken takes as long; longer than this is no wait for the event loop."""
_UNLOOKED: Final = 16
"""Replies that are not looked for after one for which a look was in vain."""
_INFO_BYTES: Final = 4096
_INFO_TIMEOUT_S: Final = 5.0
"""Bubblewrap says whom it has started some milliseconds after its own start."""

# -P and -s leave out the user's site directory, where the packages may well be, and the environment is ours and has no
# PYTHONPATH, so the roots come as an argument. This package is taken from where the node has it, even if another copy
# stands earlier on the path.
_BOOT: Final = (
    "import sys, json, importlib; c = json.loads(sys.argv[1]); "
    "sys.path.insert(0, c['home']); import p2pcompute; del sys.path[0]; "
    "sys.path += [p for p in c['roots'] if p not in sys.path]; "
    "importlib.import_module(c['module']).main(c)"
)

_SYSTEM_PATHS: Final = (
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
    "/sys/devices/system/cpu",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgram:
    """What runs in the process.

    Attributes:
        module: its ``main(config)`` is called.
        roots: more directories to import from, and to read.
        readable: more directories to read, and nothing else.
        argument: more for its configuration, as it understands it.
        access: what it may touch of a device; None for a processor's worker.
        energy: counts the device's millijoules, where something does.
    """

    module: str
    roots: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    argument: str = ""
    access: DeviceAccess | None = None
    energy: Callable[[], int | None] | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """Nodes that it may drive."""
        return () if self.access is None else self.access.nodes


CPU_WORKER: Final = WorkerProgram(module="p2pcompute.execution._worker")


def _import_roots() -> tuple[str, tuple[str, ...]]:
    """The directory of this package, and those that its third-party imports come from."""
    roots: list[str] = []
    for name in ("numpy", "numba", "llvmlite", "cbor2"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SandboxError(f"{name} is not installed; reinstall p2pcompute")
        root = str(Path(spec.origin).resolve().parent.parent)
        if root not in roots:
            roots.append(root)
    return str(Path(__file__).resolve().parents[1]), tuple(roots)


def readable_paths(program: WorkerProgram = CPU_WORKER) -> list[str]:
    """What a worker may read: the interpreter, its libraries and these packages. Nothing of the user's.

    Raises `SandboxError` where that would be the whole machine or the user's home.
    """
    package, roots = _import_roots()
    own = [sys.base_prefix, sys.prefix, sysconfig.get_path("stdlib"), *roots, package, *program.roots]
    paths = list(dict.fromkeys(os.path.realpath(path) for path in own))
    # The environment is found by its own name too, not only by where a link leads.
    paths += [path for path in (sys.prefix, sys.base_prefix) if path not in paths]
    for path in paths:
        if path in ("/", os.path.expanduser("~"), "/home", "/root"):
            raise SandboxError(
                f"Python lies right in {path}, so a worker could read all of it; use a virtual environment"
            )
    device = () if program.access is None else program.access.readable
    return [*_SYSTEM_PATHS, *paths, *program.readable, *device]


def _environment(access: DeviceAccess | None) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "PYTHONHASHSEED": "0",  # sets and dicts of texts have one order in all workers: programs may go through them
        "LANG": "C.UTF-8",
        "NUMBA_NUM_THREADS": "1",  # threads are the back end's own
        "NUMBA_CACHE_DIR": "/nonexistent",  # a cache entry is a pickle
        "NUMBA_DISABLE_INTEL_SVML": "1",  # results must not depend on what else is installed
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",  # each arena takes 64 MiB of the address space
        **dict(() if access is None else access.environment),
    }


_REPLIES: Final = frozenset({ipc.READY, ipc.COMPILED, ipc.DONE, ipc.FAILED, ipc.PROGRESS, ipc.CANCELLED})


def _check_done(packet: list[Any]) -> None:
    try:
        ipc.take_ints(packet[2:], count=(0, 1), low=0, high=ipc.MAX_EXTENT)
    except ipc.FrameError as error:
        raise WorkerProtocolError(f"the worker said more than it should: {error}") from None


async def take(lock: trio.Lock) -> None:
    """Acquire `lock`, at once where it is free: a checkpoint for cancellation, and for scheduling where it waits."""
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()


class WorkerProcess:
    """A live, locked worker. Not for two tasks at once; `WorkerSession` queues."""

    def __init__(
        self, popen: subprocess.Popen[bytes], channel: socket.socket, last_words: int, info: int | None
    ) -> None:
        self._popen = popen
        self._info = None if info is None else trio.lowlevel.FdStream(info)  # until the inner process is known
        self._info_text = b""
        self._raw_channel = channel
        self._channel = trio.socket.from_stdlib_socket(channel)
        self._last_words = last_words
        self._pid = popen.pid
        self._pidfds: list[int] = []
        self._closed = False
        self._killed = False
        self._ready = False
        self._busy = trio.Lock()  # held over an exchange
        self._watch = trio.Lock()  # one task at a time may wait on a pidfd
        self._next_request = 1
        self._grace: trio.CancelScope | None = None  # around the wait for a run that was asked to stop
        self._hurried = False
        self._without_turn = 0  # replies, or looks for them, since the event loop last had a turn for one
        self._is_quick = False  # whether a look may find the next reply
        self._unlooked = 0  # replies that are not looked for, since a look was in vain
        self.delivered = False  # whether the last request went out
        self.layers = Layers(landlock_abi=0, seccomp=False)

    @property
    def pid(self) -> int:
        """The worker's process ID as this process sees it."""
        return self._pid

    @classmethod
    async def start(
        cls,
        *,
        program: WorkerProgram,
        threads: int,
        limits: WorkerLimits,
        policy: SandboxPolicy,
        bwrap: Bwrap | None,
        group: int | None = None,
    ) -> WorkerProcess:
        """Start a process and wait until it is warm and locked. `group` is a `GroupGuard`'s: bubblewrap needs one.

        Raises `SandboxError`, `WorkerDied`, `WorkerTimeout` or `WorkerProtocolError`; the process is gone then.
        Cancellation ends it too.
        """
        readable = readable_paths(program)
        package, roots = _import_roots()
        config: dict[str, Any] = {
            "module": program.module,
            "argument": program.argument,
            "home": os.path.dirname(package),
            "roots": [*roots, *program.roots],
            "readable": readable,
            "parent": 0 if bwrap is not None else os.getpid(),
            "limits": asdict(limits),
            "policy": asdict(policy),
            "threads": threads,
            "devices": list(program.devices),
        }
        worker = _spawn(config, bwrap=bwrap, readable=readable, group=group, access=program.access)
        try:
            with trio.move_on_after(_START_TIMEOUT_S) as scope:
                worker._pidfds.append(os.pidfd_open(worker._popen.pid))
                if bwrap is not None and not await worker._find_inner():
                    raise SandboxError(f"bubblewrap could not start a worker: {await worker._obituary()}")
                await worker._await_ready(policy, bwrapped=bwrap is not None)
            if scope.cancelled_caught:
                raise WorkerTimeout(
                    f"a worker was not ready after {_START_TIMEOUT_S:.0f} s; is the machine overloaded?"
                )
        except BaseException:
            await worker.aclose()
            raise
        return worker

    async def _find_inner(self) -> bool:
        """Learn the PID behind bubblewrap: that is the one to kill and to time. A cancelled call can be repeated."""
        if self._info is None:
            return True
        while b"}" not in self._info_text and len(self._info_text) < _INFO_BYTES:
            piece = await self._info.receive_some(_INFO_BYTES)
            if not piece:
                break
            self._info_text += piece
        self._close_info()
        try:
            pid = int(json.loads(self._info_text)["child-pid"])
            self._pidfds.append(os.pidfd_open(pid))
        except (ValueError, KeyError, OSError):
            return False
        self._pid = pid
        return True

    def _close_info(self) -> None:
        if self._info is not None:
            self._info.close()
            self._info = None

    async def _await_ready(self, policy: SandboxPolicy, *, bwrapped: bool) -> None:
        packet = await self._receive(0)
        if packet[0] == ipc.FAILED:
            raise failure_of(packet)
        try:
            if packet[0] != ipc.READY or len(packet) != 4 or type(packet[3]) is not bool:
                raise ipc.FrameError("not a READY packet")
            abi = ipc.take_int(packet[2], low=0, high=1000)
        except ipc.FrameError as error:
            raise WorkerProtocolError(f"a new worker said nonsense: {error}") from None
        self._ready = True
        self.layers = Layers(landlock_abi=abi, seccomp=packet[3], bwrap=bwrapped)
        if not policy.allow_unsandboxed and (abi == 0 or not packet[3]):
            raise SandboxError("a worker came up without its lock; this should not happen, please report it")

    async def exchange(
        self,
        operation: int,
        fields: Sequence[Any],
        fds: Sequence[int],
        *,
        timeout_s: float,
        progress: Progress | None = None,
        grace_s: float = CANCEL_GRACE_S,
    ) -> list[Any]:
        """Send one request and return the reply's packet, of type COMPILED or DONE; one at a time.

        Raises what a FAILED reply means (`KernelError`, `ExecutionError`), with the worker alive. Raises
        `WorkerTimeout`, `WorkerDied` or `WorkerProtocolError` with it dead. Where it is cancelled the worker is asked
        to stop, and is killed unless it has answered after `grace_s`: `usable` says which it was.
        """
        self.delivered = False  # before the wait: who is cancelled in it has sent nothing
        await take(self._busy)
        try:
            return await self._exchange(operation, fields, fds, timeout_s=timeout_s, progress=progress, grace_s=grace_s)
        finally:
            self._busy.release()

    async def _exchange(
        self,
        operation: int,
        fields: Sequence[Any],
        fds: Sequence[int],
        *,
        timeout_s: float,
        progress: Progress | None,
        grace_s: float,
    ) -> list[Any]:
        request = self._next_request
        self._next_request += 1
        numbers = operation in (ipc.RUN_BLOCKS, ipc.RUN_THREADS, ipc.RUN_ROUNDS)
        frame = (
            ipc.encode_numbers(operation, request, *fields) if numbers else ipc.encode([operation, request, *fields])
        )
        given = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)] if fds else []
        began_ns = time.monotonic_ns()
        try:
            self._refuse_early_reply()
            self.delivered = await self._send(frame, ancillary, wait=False)
            packet = await self._reply_at_once(request) if self.delivered else None
            if packet is None or packet[0] == ipc.PROGRESS:
                with trio.move_on_after(timeout_s) as scope:
                    self.delivered = self.delivered or await self._send(frame, ancillary, wait=True)
                    packet = packet or await self._receive(request)
                    if packet[0] == ipc.PROGRESS:
                        total = int(fields[1]) if operation == ipc.RUN_BLOCKS else 0
                        packet = await self._follow(request, packet, total, began_ns, progress)
                if packet is None or scope.cancelled_caught:
                    raise WorkerTimeout(f"the worker did not answer within {timeout_s:g} s and was killed")
            self._unlooked = max(0, self._unlooked - 1)
            self._is_quick = not self._unlooked and time.monotonic_ns() - began_ns < _QUICK_NS
            due = ipc.COMPILED if operation == ipc.COMPILE else ipc.DONE
            if packet[0] not in (due, ipc.FAILED):
                raise WorkerProtocolError(f"the worker answered operation {operation} with {packet[0]}")
            if packet[0] == ipc.DONE:
                _check_done(packet)
            failure = failure_of(packet) if packet[0] == ipc.FAILED else None
        except trio.Cancelled:
            if self.delivered and not await self._stops(request, grace_s):
                self.kill()
            raise
        except BaseException:
            self.kill()
            raise
        if failure is not None:
            raise failure
        return packet

    async def _follow(
        self, request: int, packet: list[Any], total: int, began_ns: int, progress: Progress | None
    ) -> list[Any]:
        """Take PROGRESS until another reply comes, and give that. The run was asked for at `began_ns`."""
        words, last = 0, 0
        while packet[0] == ipc.PROGRESS:
            words += 1
            try:
                (done,) = ipc.take_list(packet[2:], low=1, high=1)
                last = ipc.take_int(done, low=last + 1, high=total - 1)
            except ipc.FrameError as error:
                raise WorkerProtocolError(f"the worker's progress can't be: {error}") from None
            if words > _PROGRESS_FREE + (time.monotonic_ns() - began_ns) // ipc.PROGRESS_NS:
                raise WorkerProtocolError("the worker tells of its progress more often than it may")
            if progress is not None:
                progress(last)
            packet = await self._receive(request)
        return packet

    async def _stops(self, request: int, grace_s: float) -> bool:
        """Ask for the end of a request that nobody waits for any more; whether it has come in time, and orderly."""
        if self._closed or self._killed or self._hurried:
            return False
        words = 0
        with trio.CancelScope(shield=True, deadline=trio.current_time() + grace_s) as self._grace:
            try:
                await self._channel.sendmsg([ipc.encode_numbers(ipc.CANCEL, request)])
                while words <= _PROGRESS_LATE:
                    packet = await self._receive(request)
                    if packet[0] == ipc.FAILED:
                        failure_of(packet)
                    if packet[0] != ipc.PROGRESS:
                        return bool(packet[0] != ipc.READY)
                    words += 1
            except (ExecutionError, OSError):
                return False
            finally:
                self._grace = None
        return False

    def hurry(self) -> None:
        """From here on a call that is cancelled kills the worker at once, also where it waits for it to stop now."""
        self._hurried = True
        if self._grace is not None:
            self._grace.cancel()

    async def _send(self, frame: bytes, ancillary: list[tuple[int, int, bytes]], *, wait: bool) -> bool:
        """Send without a turn of the event loop, which costs as much as all else that a small chunk needs here; False
        where that would have to `wait` for room, and is not to."""
        try:
            try:
                self._raw_channel.sendmsg([frame], ancillary, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not wait:
                    return False
                await self._channel.sendmsg([frame], ancillary)
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerDied(await self._obituary()) from None
        return True

    async def _reply_at_once(self, request: int) -> list[Any] | None:
        """The reply, if it is there already: a system may give the sender's own core to who is sent something, and a
        small chunk is done before the send returns. Where the last one was quick it is looked for a little longer, and
        after a look in vain not for some replies. Not too often without a turn for the node's other tasks."""
        self._without_turn += 1
        if self._without_turn > _WITHOUT_TURN:
            return None
        found = self._take_frame()
        if found is None and self._is_quick:
            end = time.monotonic_ns() + _SPIN_NS
            while found is None and time.monotonic_ns() < end:
                os.sched_yield()  # on a core that the worker has to share with us it runs now
                found = self._take_frame()
            if found is None:
                self._unlooked = _UNLOOKED
        return None if found is None else await self._decoded(request, *found)

    def _refuse_early_reply(self) -> None:
        try:
            waiting = self._raw_channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:
            return  # the send says it better
        if waiting:
            raise WorkerProtocolError("the worker answered before it was asked")

    async def _receive(self, request: int) -> list[Any]:
        while True:
            await trio.lowlevel.wait_readable(self._raw_channel)
            self._without_turn = 0
            if (found := self._take_frame()) is not None:
                return await self._decoded(request, *found)

    def _take_frame(self) -> tuple[bytes, int] | None:
        """What the worker has sent, with the flags of its receipt; None where that is nothing yet, and an empty one
        where its end is closed."""
        try:
            # No room for descriptors: the kernel drops what comes and says so.
            frame, _, flags, _ = self._raw_channel.recvmsg(ipc.MAX_REPLY_BYTES + 1, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b"", 0
        return frame, flags

    async def _decoded(self, request: int, frame: bytes, flags: int) -> list[Any]:
        if flags & socket.MSG_CTRUNC:
            raise WorkerProtocolError("the worker sent descriptors")
        if not frame:
            raise WorkerDied(await self._obituary())
        if frame == ipc.encode_numbers(ipc.DONE, request):  # the usual one, and no byte of it needs a look
            return [ipc.DONE, request]
        try:
            packet = ipc.decode(frame, limit=ipc.MAX_REPLY_BYTES)
            if type(packet[0]) is not int or packet[0] not in _REPLIES:
                raise ipc.FrameError("it is no reply")
            if type(packet[1]) is not int or packet[1] != request:  # True equals 1
                raise ipc.FrameError(f"it is for another request than {request}")
        except ipc.FrameError as error:
            raise WorkerProtocolError(f"the worker sent a bad packet: {error}") from None
        return packet

    def cpu_ns(self) -> int:
        """Processor time that the worker has used so far, from the kernel; 0 once it is gone."""
        clock = (~self._pid << 3) | 2  # CPUCLOCK_SCHED of another process, as clock_getcpuclockid(3) makes it
        try:
            return time.clock_gettime_ns(clock)
        except OSError:
            return 0

    @property
    def alive(self) -> bool:
        """Whether the process runs. A worker that has just died may still look alive."""
        return not self._closed and self._popen.poll() is None

    @property
    def usable(self) -> bool:
        """Whether requests may still be sent: nobody has killed it."""
        return not self._killed

    def kill(self) -> None:
        """SIGKILL, at once. Idempotent; `aclose` has to follow."""
        self._killed = True
        try:
            if self._pidfds:  # the innermost; bubblewrap reaps it and ends by itself
                signal.pidfd_send_signal(self._pidfds[-1], signal.SIGKILL)
            else:
                self._popen.kill()
        except ProcessLookupError:
            return

    def stop(self) -> bool:
        """SIGSTOP: all its threads stand still until `go_on`, and `kill` ends it as ever. False where it is gone."""
        return self._signal(signal.SIGSTOP)

    def go_on(self) -> bool:
        """SIGCONT, after `stop`. False where it is gone."""
        return self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> bool:
        if not self._pidfds:
            return False
        try:
            signal.pidfd_send_signal(self._pidfds[-1], number)  # the innermost; bubblewrap does nothing but wait
        except ProcessLookupError:
            return False
        return True

    async def _wait(self) -> bool:
        """Wait until the process has ended and is reaped; False if that takes too long."""
        with trio.move_on_after(_DEATH_TIMEOUT_S):
            async with self._watch:
                for pidfd in reversed(self._pidfds):
                    await trio.lowlevel.wait_readable(pidfd)
        if self._popen.poll() is None:  # bubblewrap hangs, or there was no pidfd to wait on
            self._popen.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(1.0)
        return self._popen.poll() is not None

    async def _obituary(self) -> str:
        """Why the worker ended. One that only closed its channel is killed, and called a liar."""
        with trio.move_on_after(2.0):
            await self._wait()
        if self._closed:
            return "the session was left while the worker was at it"
        if self._popen.poll() is None:
            raise WorkerProtocolError("the worker closed its channel and went on running")
        code = self._popen.returncode
        number = -code if code < 0 else code - 128 if code > 128 else 0
        tail = self._said()
        if number == signal.SIGSYS:
            return f"the worker made a system call that only an attack makes, and was killed{tail}"
        if number == signal.SIGKILL:
            return f"the worker was killed, most likely because memory ran out or its processor time was used up{tail}"
        if number:
            return f"the worker crashed with {signal.Signals(number).name}{tail}"
        return f"the worker ended with status {code}{tail}"

    def _said(self) -> str:
        """The end of what the worker wrote to its standard error before it locked itself."""
        if self._ready:
            return ""
        size = os.fstat(self._last_words).st_size
        raw = os.pread(self._last_words, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES))
        said = printable(raw.decode(errors="replace")).strip()
        return f"; it said: {said[-500:]}" if said else ""

    async def aclose(self) -> None:
        """Kill the process, reap it, give all descriptors back. Shielded from cancellation; takes milliseconds."""
        if self._closed:
            return
        self._closed = True
        with trio.CancelScope(shield=True):
            if self._info is not None:
                # Where bubblewrap is killed before it has told its child to go on, the child waits for ever. So the
                # child is what has to be killed, and to be known first.
                with trio.move_on_after(_INFO_TIMEOUT_S):
                    await self._find_inner()
                self._close_info()
            self.kill()
            await self._wait()
            async with self._busy:  # another task's exchange finds out that the worker is gone
                self._channel.close()
        for pidfd in self._pidfds:
            os.close(pidfd)
        self._pidfds.clear()
        os.close(self._last_words)


def _spawn(
    config: Mapping[str, Any],
    *,
    bwrap: Bwrap | None,
    readable: Sequence[str],
    group: int | None,
    access: DeviceAccess | None,
) -> WorkerProcess:
    """Start the process; with bubblewrap, with the pipe that tells the inner PID.

    `trio.lowlevel.open_process` forks in a helper thread, and the signal of "die with your parent" comes when the
    *thread* that forked ends; so the fork is made here, in trio's own thread. It is a vfork of some milliseconds.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    last_words = os.memfd_create("p2pcompute-last-words")
    info_read = info_write = -1
    try:
        pass_fds = [theirs.fileno()]
        if bwrap is not None:
            info_read, info_write = os.pipe()
            pass_fds.append(info_write)
        argv = [
            sys.executable,
            "-P",
            "-s",
            "-B",
            "-W",
            "ignore",
            "-c",
            _BOOT,
            json.dumps({**config, "fd": theirs.fileno()}),
        ]
        if bwrap is not None:
            argv = [*bwrap.command(readable, info_fd=info_write, devices=config["devices"]), *argv]
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=last_words,
            pass_fds=pass_fds,
            env=_environment(access),
            cwd="/",
            # A group can't be joined from another session. Bubblewrap makes a new one for what it starts.
            start_new_session=group is None,
            process_group=group,
        )
    except OSError as error:
        ours.close()
        os.close(last_words)
        if info_read >= 0:
            os.close(info_read)
        raise ExecutionError(f"a worker process can't be started: {error}") from error
    finally:
        theirs.close()
        if info_write >= 0:
            os.close(info_write)
    return WorkerProcess(popen, ours, last_words, info_read if bwrap is not None else None)
