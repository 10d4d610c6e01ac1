"""Importing the package costs next to nothing, and its public names are what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import pytest

import p2pcompute

HEAVY = ("numpy", "trio", "numba", "llvmlite", "libp2p", "multiaddr", "eth", "eth_abi", "eth_account", "httpx", "nacl")


def names_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500)
    return set(json.loads(done.stdout))


def modules_after(statement: str) -> set[str]:
    return {name.partition(".")[0] for name in names_after(statement)}


def test_the_package_pulls_nothing_heavy() -> None:
    loaded = modules_after("import p2pcompute")
    assert "p2pcompute" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "statement",
    [
        "import p2pcompute as p2p; p2p.kernel",
        "from p2pcompute import cuda",
        "import p2pcompute as p2p; p2p.NoProviderError; p2p.errors",
        "from p2pcompute import events",
        "import p2pcompute.testing",
    ],
)
def test_parts_do_not_pull_the_compiler_or_the_network(statement: str) -> None:
    assert not modules_after(statement) & {"numba", "llvmlite", "libp2p", "eth", "eth_account"}


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert list(p2pcompute.__all__) == sorted(set(p2pcompute.__all__))
    assert set(dir(p2pcompute)) == set(p2pcompute.__all__)
    for name in p2pcompute.__all__:
        value = getattr(p2pcompute, name)
        assert value is not None
        if name != "__version__":
            assert getattr(value, "__doc__", None), name


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = p2pcompute.nothing


def test_every_public_name_can_be_imported_first() -> None:
    names = [name for name in p2pcompute.__all__ if not name.startswith("_")]
    code = "; ".join(f"from p2pcompute import {name}" for name in names)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=500)


def test_the_simulation_is_exported_by_testing() -> None:
    import p2pcompute.testing as testing

    for name in testing.__all__:
        assert getattr(testing, name) is not None
    with pytest.raises(AttributeError):
        _ = testing.nothing


def test_every_event_that_can_be_watched_has_a_public_name() -> None:
    from p2pcompute import events

    for union in (events.TaskEvent, events.ProviderEvent):
        for event in get_args(union):
            assert getattr(events, event.__name__) is event
            assert event.__name__ in events.__all__


UNUSED = {
    "libp2p.transport.websocket",
    "libp2p.transport.quic.transport",
    "libp2p.stream_muxer.mplex.stream",
    "libp2p.security.secio",
    "libp2p.security.noise",
    "libp2p.security.insecure",
    "libp2p.host.basic_host",
    "libp2p.host.routed_host",
    "libp2p.relay.circuit_v2.protocol",
    "libp2p.bitswap.client",
    "zeroconf",
    "miniupnpc",
    "requests",
    "urllib3",
    "trio_websocket",
    "wsproto",
    "noise",
    "aiortc",
    "aioquic",
    "OpenSSL",
    "dns",
    "asyncio",
    "psutil",
    "prometheus_client",
    "http.server",
    "libp2p.crypto.rsa",
    "libp2p.transport.quic.config",
    "numpy.random",
    "p2pcompute._requester",
    "numba",
    "llvmlite",
    "eth",
    "eth_account",
}


def test_a_node_pulls_nothing_of_libp2p_that_it_replaces_or_never_uses() -> None:
    statement = "import p2pcompute_cli._up, p2pcompute._opening, p2pcompute.node, p2pcompute._local_chain"
    names = names_after(statement)
    assert "libp2p.network.swarm" in names
    assert not names & UNUSED


def test_all_of_libp2p_is_there_for_whoever_asks_for_it() -> None:
    code = """
import sys
from p2pcompute.overlay import open_libp2p
libp2p = sys.modules["libp2p"]
assert "new_host" not in vars(libp2p)
import libp2p.transport.tcp.tcp
from libp2p import new_host, __version__
import libp2p.security.tls
from libp2p.security.tls import TLSTransport
from libp2p.relay import CircuitV2Protocol
assert type(libp2p) is type(sys), type(libp2p)
assert new_host() is not None
for name in ("libp2p", "libp2p.transport"):
    try:
        sys.modules[name].nothing
    except AttributeError as exc:
        assert "no attribute 'nothing'" in str(exc), exc
    else:
        raise AssertionError(name)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=500)


def test_hashing_loads_no_parser_of_c() -> None:
    code = """
import sys
from p2pcompute.identity import WalletKey
from p2pcompute_protocols._evm import keccak256
assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
assert keccak256(b"a" * 1000) != keccak256(b"a" * 1001)
assert not {"pycparser", "cffi", "Crypto"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=500)


def test_what_was_put_off_is_loaded_when_it_is_used() -> None:
    code = """
import sys
from p2pcompute.overlay import open_libp2p
late = ("psutil", "dns", "aioquic", "prometheus_client", "multiaddr.resolvers", "libp2p.transport.quic.stream")
assert not {*late} & {*sys.modules}, {*late} & {*sys.modules}

import multiaddr.utils
assert isinstance(multiaddr.utils.get_network_addrs(4), list) and "psutil" in sys.modules

import trio
from multiaddr import Multiaddr
from libp2p.transport.tcp.tcp import DNSResolver
found = trio.run(DNSResolver().resolve, Multiaddr("/ip4/127.0.0.1/tcp/1"))
assert found == [Multiaddr("/ip4/127.0.0.1/tcp/1")] and "dns" in sys.modules

from libp2p.metrics.swarm import SwarmMetrics
SwarmMetrics().conn_incoming.labels(peer_id="x").inc()
from libp2p.rcmgr.manager import create_prometheus_exporter
assert create_prometheus_exporter(enable_server=False) is not None

from libp2p.crypto.serialization import deserialize_private_key, deserialize_public_key
assert "libp2p.crypto.rsa" not in sys.modules
from libp2p.crypto.rsa import create_new_key_pair
pair = create_new_key_pair()
assert deserialize_public_key(pair.public_key.serialize()) == pair.public_key
assert deserialize_private_key(pair.private_key.serialize()).get_public_key() == pair.public_key

from libp2p.transport.quic.stream import QUICStream
assert QUICStream.__module__ == "libp2p.transport.quic.stream"
from libp2p.transport.quic.config import QUICTransportConfig
assert QUICTransportConfig.__module__ == "libp2p.transport.quic.config"
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=500)


def test_a_client_of_a_chain_pulls_no_command_of_httpx() -> None:
    code = """
import sys, trio
from p2pcompute.chain import ChainClient

async def main():
    async with ChainClient("http://127.0.0.1:1", expected_chain_id=1):
        pass

trio.run(main)
assert "httpx" in sys.modules and not {"rich", "pygments", "click"} & {*sys.modules}
import httpx._main
assert "rich" in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=500)


def test_libp2p_that_was_there_before_is_left_alone() -> None:
    code = """
import libp2p
before = libp2p.new_host
from p2pcompute.overlay import open_libp2p
import sys
assert sys.modules["libp2p"] is libp2p and libp2p.new_host is before and type(libp2p) is type(sys)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=500)


def test_a_package_whose_code_fails_says_so_each_time_it_is_asked() -> None:
    code = """
import sys
from p2pcompute.overlay._light_libp2p import import_lightly
import_lightly()
import libp2p.transport
loader = libp2p.__spec__.loader
run, type(loader).exec_module = type(loader).exec_module, lambda self, module: 1 / 0
for _ in range(2):
    try:
        libp2p.new_host
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("it was there")
type(loader).exec_module = run
assert libp2p.new_host is not None
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=500)
