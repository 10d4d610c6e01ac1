"""Tries each escape in a process of its own and tells how it went, one JSON object on standard output.

Run as a program: ``attacks.py '{"readable": [...], "layers": ["landlock", "rlimits", "seccomp"], ...}'``. Each
attack runs in a fork that first puts the named layers on itself, by the functions that a worker uses.
An attack that gets through does no harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

CONFIG: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {"roots": []}
sys.path += CONFIG["roots"]

from p2pcompute.execution._sandbox import SandboxPolicy, WorkerLimits, enter_early, set_limits  # noqa: E402
from p2pcompute.execution._sandbox_libc import libc_call, libc_prctl, libc_syscall  # noqa: E402
from p2pcompute.execution._sandbox_seccomp import install_filter  # noqa: E402

ATTACKS: dict[str, Callable[[], object]] = {}
PARENT_SECRET = ctypes.create_string_buffer(b"the parent's secret")
EXECUTED = 77
X86 = os.uname().machine == "x86_64"


def attack(function: Callable[[], object]) -> Callable[[], object]:
    ATTACKS[function.__name__] = function
    return function


def path(name: str) -> str:
    return os.path.join(CONFIG["home"], name)


@attack
def read_passwd() -> object:
    return open("/etc/passwd").read()


@attack
def read_key_of_the_node() -> object:
    return open(path("node.key")).read()


@attack
def list_home() -> object:
    return os.listdir(CONFIG["home"])


@attack
def read_environment_of_parent() -> object:
    return open(f"/proc/{os.getppid()}/environ", "rb").read()


@attack
def write_new_file() -> object:
    return open(path("new"), "w").close()


@attack
def write_old_file() -> object:
    with open(path("victim"), "a") as file:
        return file.write("x")


@attack
def truncate_file() -> object:
    return os.truncate(path("victim"), 0)


@attack
def remove_file() -> object:
    return os.unlink(path("victim"))


@attack
def make_directory() -> object:
    return os.mkdir(path("dir"))


@attack
def make_symlink() -> object:
    return os.symlink("/etc", path("link"))


@attack
def change_mode() -> object:
    return os.chmod(path("victim"), 0o777)


@attack
def write_into_the_interpreter() -> object:
    name = os.path.join(sys.prefix, "p2pcompute-attack")
    open(name, "w").close()
    return os.unlink(name)


@attack
def tcp_connect() -> object:
    with socket.socket() as s:
        return s.connect(("127.0.0.1", CONFIG["tcp_port"]))


@attack
def tcp_listen() -> object:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.listen()


@attack
def udp_send() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return s.sendto(b"x", ("127.0.0.1", CONFIG["tcp_port"]))


@attack
def unix_connect() -> object:
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect(path("door"))


@attack
def abstract_unix_connect() -> object:
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect("\0" + CONFIG["abstract"])


@attack
def netlink() -> object:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()


@attack
def make_socketpair() -> object:
    return socket.socketpair()


@attack
def send_a_descriptor() -> object:
    return socket.send_fds(CHANNEL, [b"x"], [0])


@attack
def fork() -> object:
    if (pid := os.fork()) == 0:
        os._exit(0)
    return os.waitpid(pid, 0)


@attack
def fork_by_number() -> object:
    if (pid := libc_syscall(56 if X86 else 220, int(signal.SIGCHLD), 0, 0, 0, 0)) == 0:
        os._exit(0)
    return os.waitpid(pid, 0)


@attack
def execute() -> object:
    return os.execv(sys.executable, [sys.executable, "-I", "-c", f"raise SystemExit({EXECUTED})"])


@attack
def many_threads() -> object:
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(100)]
    try:
        for thread in threads:
            thread.start()
    finally:
        done.set()
    return [thread.join() for thread in threads]


@attack
def trace_parent() -> object:
    return libc_call("ptrace", 0x4206, os.getppid(), None, None)  # PTRACE_SEIZE: does not even stop it


@attack
def ask_to_be_traced() -> object:
    return libc_call("ptrace", 0, 0, None, None)


@attack
def signal_parent() -> object:
    return os.kill(os.getppid(), signal.SIGCONT)


@attack
def signal_parent_by_thread() -> object:
    return libc_syscall(234 if X86 else 131, os.getppid(), os.getppid(), int(signal.SIGCONT))


@attack
def signal_parent_by_pidfd() -> object:
    fd = os.pidfd_open(os.getppid())
    return signal.pidfd_send_signal(fd, signal.SIGCONT)


@attack
def read_memory_of_parent() -> object:
    here = ctypes.create_string_buffer(len(PARENT_SECRET))
    vec = struct.Struct("=QQ")
    local = ctypes.create_string_buffer(vec.pack(ctypes.addressof(here), len(here)), 16)
    remote = ctypes.create_string_buffer(vec.pack(ctypes.addressof(PARENT_SECRET), len(here)), 16)
    libc_call("process_vm_readv", os.getppid(), local, 1, remote, 1, 0)
    assert here.value == b"the parent's secret"
    return here.value


@attack
def read_memory_file_of_parent() -> object:
    with open(f"/proc/{os.getppid()}/mem", "rb", buffering=0) as file:
        file.seek(ctypes.addressof(PARENT_SECRET))
        return file.read(8)


@attack
def map_6_gib() -> object:
    return mmap.mmap(-1, 6 << 30).close()


@attack
def fill_the_disk() -> object:
    return os.write(OPEN_FILE, b"x" * 4096)


@attack
def raise_a_limit() -> object:
    return resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@attack
def new_user_namespace() -> object:
    return libc_call("unshare", 0x10000000)


@attack
def join_a_namespace() -> object:
    return libc_call("setns", -1, 0)


@attack
def mount_something() -> object:
    return libc_call("mount", b"none", b"/mnt", b"tmpfs", ctypes.c_ulong(0), None)


@attack
def io_uring() -> object:
    return libc_syscall(425, 8, ctypes.create_string_buffer(120))


@attack
def load_bpf() -> object:
    return libc_syscall(321 if X86 else 280, 0, ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 4, 1), 120), 120)


@attack
def userfault() -> object:
    return libc_syscall(323 if X86 else 282, 1)


@attack
def read_keyring() -> object:
    return libc_syscall(250 if X86 else 219, 0, ctypes.c_long(-3), 1)


@attack
def watch_with_perf() -> object:
    return libc_syscall(298 if X86 else 241, None, 0, -1, -1, 0)


@attack
def make_memfd() -> object:
    return os.memfd_create("x")


@attack
def become_dumpable() -> object:
    return libc_prctl(4, 1, 0, 0, 0)


@attack
def outlive_the_parent() -> object:
    return libc_prctl(1, 0, 0, 0, 0)


@attack
def steer_a_descriptor() -> object:
    # FIOSETOWN: who owns a descriptor gets its signals. Like TIOCSTI, which types into a terminal, it is not listed.
    return fcntl.ioctl(CHANNEL.fileno(), 0x8901, struct.pack("=i", os.getpid()))


@attack
def x32_call() -> object:
    if not X86:
        raise OSError("no such thing on this machine")
    return libc_syscall(0x40000000 | 39)


@attack
def i386_call() -> object:
    if not X86:
        raise OSError("no such thing on this machine")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    entry = ctypes.addressof(ctypes.c_char.from_buffer(page))
    pid = ctypes.CFUNCTYPE(ctypes.c_int)(entry)()
    if pid != os.getpid():
        raise OSError(f"answered {pid}")
    return pid


def _in_other_thread(action: Callable[[], object]) -> object:
    """Let a thread act that was there before the last step of the lock."""
    GO.put(action)
    outcome = BACK.get()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@attack
def read_passwd_in_old_thread() -> object:
    return _in_other_thread(read_passwd)


@attack
def fork_in_old_thread() -> object:
    return _in_other_thread(fork)


class Mailbox:
    """A slot that one thread fills and another empties."""

    def __init__(self) -> None:
        self.full = threading.Semaphore(0)
        self.value: Any = None

    def put(self, value: Any) -> None:
        self.value = value
        self.full.release()

    def get(self) -> Any:
        self.full.acquire()
        return self.value


def _serve_thread() -> None:
    action = GO.get()
    try:
        BACK.put(action())
    except (OSError, RuntimeError) as error:
        BACK.put(error)


GO, BACK = Mailbox(), Mailbox()
CHANNEL, OTHER = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
OPEN_FILE = -1


def attempt(name: str, parent: int) -> None:
    """Inside the fork: put the layers on, try, end with 0 for "got through" and 1 for "refused"."""
    layers = CONFIG["layers"]
    if "landlock" in layers:
        enter_early(CONFIG["readable"], parent=parent, policy=SandboxPolicy())
    threading.Thread(target=_serve_thread, daemon=True).start()
    if "rlimits" in layers:
        set_limits(WorkerLimits())
    if "seccomp" in layers:
        install_filter()
    try:
        ATTACKS[name]()
    except (OSError, MemoryError, RuntimeError):
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Try the attacks named in the configuration and report."""
    global OPEN_FILE
    OPEN_FILE = os.open(path("disk"), os.O_WRONLY | os.O_CREAT, 0o600)
    report: dict[str, str] = {}
    for name in CONFIG["attacks"] or ATTACKS:
        with open(path("victim"), "w") as file:
            file.write("still here")
        for leftover in ("new", "link"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path(leftover))
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(path("dir"))
        parent = os.getpid()
        if (pid := os.fork()) == 0:
            attempt(name, parent)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code in (0, EXECUTED):
            report[name] = "got through"
        elif code == 1:
            report[name] = "refused"
        else:
            report[name] = f"killed by {signal.Signals(-code).name}" if code < 0 else f"status {code}"
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
