"""Each escape is tried from inside the lock, and again with one layer off, to see that the attack itself works."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from p2pcompute.execution._pool_process import readable_paths

pytestmark = pytest.mark.net

HOSTILE = Path(__file__).parent / "hostile"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HOSTILE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    argv, sys.argv = sys.argv, ["attacks.py"]
    try:
        spec.loader.exec_module(module)
    finally:
        sys.argv = argv
    module.CHANNEL.close()
    module.OTHER.close()
    return module


ALL = list(load("attacks").ATTACKS)
Attack = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """Run attacks under some layers against a home, a listener and two unix sockets of this test."""
    home = tmp_path_factory.mktemp("home")
    (home / "node.key").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as door:
        door.bind(str(home / "door"))
        door.listen(100)
        with socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind("\0" + f"p2pcompute-{home}")
            abstract.listen(100)

            def run(layers: list[str], attacks: list[str] | None = None) -> dict[str, str]:
                config = {
                    "roots": [path for path in sys.path if path],
                    "readable": readable_paths(),
                    "layers": layers,
                    "attacks": attacks,
                    "home": str(home),
                    "tcp_port": tcp.getsockname()[1],
                    "abstract": f"p2pcompute-{home}",
                }
                argv = [sys.executable, "-I", "-B", str(HOSTILE / "attacks.py"), json.dumps(config)]
                done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=500)
                return dict(json.loads(done.stdout))

            yield run


@pytest.fixture(scope="module")
def locked(attack: Attack) -> dict[str, str]:
    return attack(["landlock", "rlimits", "seccomp"])


@pytest.mark.parametrize("name", ALL)
def test_no_attack_gets_out_of_the_lock(locked: dict[str, str], name: str) -> None:
    assert locked[name] in ("refused", "killed by SIGSYS")


def test_an_attack_that_no_library_makes_by_accident_ends_the_worker(locked: dict[str, str]) -> None:
    for name in ("fork", "execute", "trace_parent", "signal_parent", "io_uring", "load_bpf", "userfault", "x32_call"):
        assert locked[name] == "killed by SIGSYS" or (name == "x32_call" and locked[name] == "refused")


def test_the_attacks_work_where_there_is_no_lock(attack: Attack) -> None:
    """These need no privilege anywhere, so they show that the attacking program can succeed."""
    names = [
        "read_passwd",
        "read_key_of_the_node",
        "list_home",
        "read_environment_of_parent",
        "write_new_file",
        "write_old_file",
        "truncate_file",
        "remove_file",
        "make_directory",
        "make_symlink",
        "change_mode",
        "tcp_connect",
        "tcp_listen",
        "udp_send",
        "unix_connect",
        "abstract_unix_connect",
        "netlink",
        "make_socketpair",
        "send_a_descriptor",
        "fork",
        "fork_by_number",
        "execute",
        "many_threads",
        "ask_to_be_traced",
        "signal_parent",
        "signal_parent_by_thread",
        "signal_parent_by_pidfd",
        "map_6_gib",
        "fill_the_disk",
        "raise_a_limit",
        "steer_a_descriptor",
        "make_memfd",
        "become_dumpable",
        "outlive_the_parent",
        "read_passwd_in_old_thread",
        "fork_in_old_thread",
    ]
    assert attack([], names) == dict.fromkeys(names, "got through")


@pytest.mark.parametrize(
    ("without", "names"),
    [
        ("landlock", ["read_passwd", "read_key_of_the_node", "list_home", "read_passwd_in_old_thread"]),
        # Landlock does not know modes, UDP, path-named unix sockets, processes, threads or memory.
        ("seccomp", ["change_mode", "udp_send", "unix_connect", "fork", "many_threads", "make_memfd"]),
        ("rlimits", ["map_6_gib", "fill_the_disk"]),
    ],
)
def test_each_layer_holds_what_no_other_does(attack: Attack, without: str, names: list[str]) -> None:
    layers = [layer for layer in ("landlock", "rlimits", "seccomp") if layer != without]
    assert attack(layers, names) == dict.fromkeys(names, "got through")


def test_landlock_alone_holds_files_and_tcp(attack: Attack) -> None:
    """So files stay safe should a call have slipped into the filter's list."""
    names = [
        "read_passwd",
        "read_key_of_the_node",
        "write_new_file",
        "write_old_file",
        "truncate_file",
        "remove_file",
        "make_directory",
        "make_symlink",
        "write_into_the_interpreter",
        "read_memory_of_parent",
        "read_memory_file_of_parent",
        "trace_parent",
        "mount_something",
        "read_passwd_in_old_thread",
    ]
    assert attack(["landlock"], names) == dict.fromkeys(names, "refused")
