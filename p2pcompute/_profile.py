"""Where a node keeps its files, and how nodes on one machine find each other.

    <home>/profiles/<profile>/     node.key, wallet.key, ledger.sqlite3, control.sock
    <home>/networks/<network>/     chain.json, chain/, nodes/<peer id>.json, starting/<pid>.json
    <home>/device.json             the last measurement of this machine

`<home>` is P2PCOMPUTE_HOME, else XDG_DATA_HOME/p2pcompute, else ~/.local/share/p2pcompute. Running nodes leave a
note under `nodes`, so that a second program on the same machine needs no address; notes of dead processes are
ignored. What is in them is not trusted: a peer proves its ID when it is dialled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ._private_files import make_directories
from .errors import ConfigError

__all__ = ["Announcement", "NetworkDir", "Profile", "home_dir", "write_json"]

_STARTING_S: Final = 600.0  # what was killed while it started has left its note, and others may get its number
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def home_dir() -> Path:
    """The directory of all profiles and networks of this user."""
    if home := os.environ.get("P2PCOMPUTE_HOME"):
        return Path(home)
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "p2pcompute"


def _checked(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a {what} name; use 1 to 32 of a-z, 0-9 and -")
    return name


def write_json(path: Path, value: Any) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a part."""
    make_directories(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where there is none, or it is not one."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True, slots=True)
class Profile:
    """One node's directory."""

    path: Path

    @classmethod
    def named(cls, name: str) -> Profile:
        """The profile of that name under the home directory."""
        return cls(home_dir() / "profiles" / _checked(name, "profile"))

    @classmethod
    @contextmanager
    def ephemeral(cls) -> Generator[Profile]:
        """A profile that is gone afterwards, keys and ledger with it: only for a development chain's money."""
        with tempfile.TemporaryDirectory(prefix="p2pcompute-") as directory:
            yield cls(Path(directory))

    @property
    def node_key(self) -> Path:
        """The Ed25519 network key."""
        return self.path / "node.key"

    @property
    def wallet_key(self) -> Path:
        """The secp256k1 key that signs vouchers and transactions."""
        return self.path / "wallet.key"

    @property
    def receipt_key(self) -> Path:
        """The secp256k1 key that signs for the account's stake, once the stake registry knows it."""
        return self.path / "receipt.key"

    @property
    def evidence(self) -> Path:
        """The directory of what liars have signed; `p2pcompute evidence list` shows it."""
        return self.path / "evidence"

    @property
    def control_socket(self) -> Path:
        """Where a running node answers `p2pcompute status`."""
        return self.path / "control.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A node that runs on this machine."""

    peer_id: str
    addresses: tuple[str, ...]
    pid: int


@dataclass(frozen=True, slots=True)
class NetworkDir:
    """What this machine knows of a network."""

    path: Path

    @classmethod
    def named(cls, name: str) -> NetworkDir:
        """The network of that name under the home directory."""
        return cls(home_dir() / "networks" / _checked(name, "network"))

    @property
    def chain_data(self) -> Path:
        """The embedded development chain's directory."""
        return self.path / "chain"

    def chain_url(self) -> str | None:
        """The embedded chain's endpoint, while the process that runs it lives."""
        note = read_json(self.path / "chain.json")
        if note is None or not _alive(note.get("pid")) or not isinstance(note.get("url"), str):
            return None
        return str(note["url"])

    @contextmanager
    def announce_chain(self, url: str) -> Generator[None]:
        """Let others on this machine find the embedded chain of this process."""
        path = self.path / "chain.json"
        write_json(path, {"url": url, "pid": os.getpid()})
        try:
            yield
        finally:
            note = read_json(path)
            if note is not None and note.get("pid") == os.getpid():
                path.unlink(missing_ok=True)

    def nodes(self) -> list[Announcement]:
        """Nodes of this network that run on this machine."""
        found: list[Announcement] = []
        with contextlib.suppress(OSError):
            for path in sorted((self.path / "nodes").glob("*.json"))[:256]:
                note = read_json(path)
                if note is None:
                    continue
                addresses = note.get("addresses")
                if not _alive(note.get("pid")) or not isinstance(addresses, list):
                    continue
                found.append(
                    Announcement(
                        peer_id=path.stem, addresses=tuple(str(a) for a in addresses[:8]), pid=int(note["pid"])
                    )
                )
        return found

    def starting(self) -> list[int]:
        """The processes on this machine that are about to lend in this network: they measure the machine, say."""
        found: list[int] = []
        with contextlib.suppress(OSError):
            for path in sorted((self.path / "starting").glob("*.json"))[:256]:
                note = read_json(path)
                pid = None if note is None else note.get("pid")
                if isinstance(pid, int) and _alive(pid) and time.time() - path.stat().st_mtime < _STARTING_S:
                    found.append(pid)
        return found

    @contextmanager
    def announce_start(self) -> Generator[None]:
        """Let others on this machine know that this process is about to lend."""
        path = self.path / "starting" / f"{os.getpid()}.json"
        with contextlib.suppress(OSError):  # it helps others, and this process not at all
            write_json(path, {"pid": os.getpid()})
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    @contextmanager
    def announce_node(self, peer_id: str, addresses: tuple[str, ...]) -> Generator[None]:
        """Let others on this machine find this node."""
        path = self.path / "nodes" / f"{peer_id}.json"
        write_json(path, {"addresses": list(addresses), "pid": os.getpid()})
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
