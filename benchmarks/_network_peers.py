"""Who stands beside whom in `network.py`: programs, environments, and what each of them can be asked for."""

from __future__ import annotations

import compileall
import datetime
import importlib.util
import ipaddress
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PEERS", "Peer", "command_of", "compile_ours", "environment", "missing"]

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".peers"
WIRE = ("bulk", "request", "stream", "flight", "connect")
TASKS = ("task", "crowd", "map")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One of those that are compared.

    Attributes:
        title: as tables have it.
        program: the folder under `peers` that has its program.
        wire: what is measured of its transport, in one pair of processes.
        tasks: what is measured of it as a runner of tasks, in another.
        cold: whether a new process that runs one task is timed.
        idle: whether its memory is told.
        own: whether it has an environment of its own.
        needs: a module of ours without which it can't be.
        arguments: for both of its sides.
    """

    name: str
    title: str
    program: str
    wire: Sequence[str] = ()
    tasks: Sequence[str] = ()
    cold: bool = False
    idle: bool = True
    own: bool = True
    needs: str = "p2pcompute"
    arguments: Sequence[str] = field(default=())


_LIST = (
    Peer(name="raw", title="bare TCP, trio", program="raw", wire=WIRE, own=False),
    Peer(name="stock", title="py-libp2p as it comes", program="stock", wire=WIRE, own=False),
    Peer(name="ours", title="p2pcompute", program="ours", wire=WIRE, tasks=TASKS, cold=True, own=False),
    Peer(
        name="noise",
        title="p2pcompute by /noise",
        program="ours",
        wire=("bulk", "connect"),
        idle=False,
        own=False,
        needs="p2pcompute.overlay._upgrader",
        arguments=("noise",),
    ),
    Peer(
        name="asked",
        title="p2pcompute, request streams",
        program="ours",
        wire=("request", "flight"),
        idle=False,
        own=False,
        needs="p2pcompute.overlay._requests",
        arguments=("asked",),
    ),
    Peer(name="js", title="js-libp2p", program="js", wire=WIRE),
    Peer(name="grpc", title="gRPC with TLS", program="grpc", wire=("bulk", "request", "flight", "connect")),
    Peer(name="dask", title="Dask with TLS", program="dask", wire=("bulk",), tasks=TASKS, cold=True),
    Peer(name="ray", title="Ray", program="ray", wire=("bulk",), tasks=TASKS, cold=True),
    Peer(name="hivemind", title="hivemind", program="hivemind", wire=("bulk", "request", "flight", "task", "crowd")),
    Peer(name="pool", title="multiprocessing.Pool", program="pool", tasks=TASKS, idle=False, own=False),
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _LIST}


def missing(peer: Peer) -> str | None:
    """What there is to do before it can stand beside ours; None where it can."""
    if peer.own and not (ENVIRONMENTS / peer.program / ".made").exists():
        return f"its environment is made by `make peer-env PEER={peer.program}`"
    if importlib.util.find_spec(peer.needs) is None:
        return f"this version has no {peer.needs}"
    return None


def command_of(peer: Peer) -> list[str]:
    """What starts a side of it, less what the side is to do."""
    place = ENVIRONMENTS / peer.program
    if peer.program == "js":
        # Node looks for packages beside the program
        shutil.copy(PROGRAMS / "js" / "peer.mjs", place / "peer.mjs")
        return ["node", str(place / "peer.mjs")]
    python = str(place / "bin" / "python") if peer.own else sys.executable
    return [python, str(PROGRAMS / peer.program / "peer.py")]


def compile_ours() -> None:
    """Make bytecode of our packages, as pip has done with the others' when it installed them: an import from a checkout
    would compile them in each process anew where the environment says that none is written."""
    for name in ("p2pcompute", "p2pcompute_protocols"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        compileall.compile_dir(Path(spec.origin).parent, quiet=1)


def environment(folder: Path) -> dict[str, str]:
    """What sides get in their environment: a certificate for those that speak TLS, and a home for nodes of ours."""
    certificate, key = _certificate(folder)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {
        "P2PCOMPUTE_HOME": str(home),
        "P2PCOMPUTE_BENCHMARK_CERTIFICATE": str(certificate),
        "P2PCOMPUTE_BENCHMARK_KEY": str(key),
        "P2PCOMPUTE_BENCHMARK_TOKEN": secrets.token_hex(32),
    }


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for loopback that signs itself: Ed25519 is not known to all that are compared, so P-256."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    at, key_at = folder / "certificate.pem", folder / "key.pem"
    at.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_at.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return at, key_at
