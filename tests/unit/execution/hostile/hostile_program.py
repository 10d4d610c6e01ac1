"""A program that tries to get out, one way for each item; installed as an allow-listed one by the tests.

Each attack returns what it got, or raises OSError where it was refused; some end the process. `where` is the path of a
directory of the test, as bytes: it holds ``node.key``, and its name is the number of a TCP port that listens.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import subprocess
import sys
import threading
from typing import Any

GOT_THROUGH, REFUSED = 1, 2


def read_key_of_the_node(where: str) -> object:
    with open(os.path.join(where, "node.key")) as file:
        return file.read()


def read_passwd(where: str) -> object:
    with open("/etc/passwd") as file:
        return file.read()


def list_home(where: str) -> object:
    return os.listdir(where)


def write_new_file(where: str) -> object:
    with open(os.path.join(where, "new"), "w") as file:
        return file.write("x")


def write_into_itself(where: str) -> object:
    with open(__file__, "a") as file:
        return file.write("\n")


def remove_file(where: str) -> object:
    os.close(os.open(os.path.join(where, "victim"), os.O_CREAT | os.O_WRONLY))
    os.remove(os.path.join(where, "victim"))
    return True


def tcp_connect(where: str) -> object:
    with socket.create_connection(("127.0.0.1", int(os.path.basename(where))), timeout=5) as out:
        return out.send(b"x")


def udp_send(where: str) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        return out.sendto(b"x", ("127.0.0.1", 9))


def make_a_unix_socket(where: str) -> object:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as out:
        return out.fileno()


def start_a_thread(where: str) -> object:
    thread = threading.Thread(target=os.getpid)
    thread.start()
    thread.join()
    return True


def fork(where: str) -> object:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)


def run_a_program(where: str) -> object:
    return subprocess.run([sys.executable, "-c", "pass"], check=True)


def signal_the_parent(where: str) -> object:
    os.kill(os.getppid(), 0)
    return True


def load_native_code_that_forks(where: str) -> object:
    child = ctypes.CDLL(None, use_errno=True).fork()
    if child == 0:
        os._exit(0)
    if child < 0:
        raise OSError(ctypes.get_errno(), "fork")
    return os.waitpid(child, 0)


def map_6_gib(where: str) -> object:
    with mmap.mmap(-1, 6 << 30) as memory:
        return len(memory)


ATTACKS = (
    read_key_of_the_node,
    read_passwd,
    list_home,
    write_new_file,
    write_into_itself,
    remove_file,
    tcp_connect,
    udp_send,
    make_a_unix_socket,
    start_a_thread,
    fork,
    run_a_program,
    signal_the_parent,
    load_native_code_that_forks,
    map_6_gib,
)


def attack(index: int, verdict: Any, where: Any) -> None:
    """Try one; the verdict is `GOT_THROUGH` or `REFUSED`."""
    verdict[...] = GOT_THROUGH
    try:
        ATTACKS[index](bytes(where).decode())
    except OSError:
        verdict[...] = REFUSED


def careless(index: int, out: Any, how: int) -> object:
    """What a program does wrong without meaning harm."""
    if how == 0:
        raise KeyError("weights")
    if how == 1:
        return "a value"
    if how == 2:
        sys.exit(3)
    if how == 3:
        while True:
            pass
    out[...] = hash("the order of a set of texts hangs on this") % 1000
    return None


def scribble(index: int, out: Any, given: Any) -> None:
    """Write into an input, by every door that NumPy has."""
    given.flags.writeable = True
    given[0] = 1
