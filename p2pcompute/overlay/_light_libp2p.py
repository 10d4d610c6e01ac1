"""py-libp2p without what a node of ours never uses of it.

`import libp2p.peer.id` runs ``libp2p/__init__.py`` first, as Python does for every package around a module, and that
imports all transports, securities and muxers that libp2p has: QUIC, WebSocket, WebRTC, secio, relays and what those
stand on. We use TCP only, and have our own Noise, TLS and Yamux. So the packages here are put into `sys.modules` before
anything of libp2p is imported, as their own module objects with their own loaders, and their ``__init__`` runs when
somebody asks for a name that only it can give: `from libp2p import new_host` works as ever, in a node's process too.
`importlib.util.LazyLoader` is the same idea, but runs a package's code at the first look at its ``__path__``, so with
the first module of it.

Some of its modules import at their top what a node of ours needs seldom or never: aioquic with OpenSSL for the type of
a function, dnspython with asyncio for names in the DNS, Prometheus's client with an HTTP server, RSA, psutil, 10 MB
in all.
They are imported while stand-ins are there under those names, and get what they asked for when they use it.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

__all__ = ["import_lightly"]

# Parents first. Each was looked at: nothing that we use needs what its ``__init__`` does, but for `setup_logging`.
_LATER: Final = (
    "libp2p",
    "libp2p.transport",
    "libp2p.security",
    "libp2p.security.tls",
    "libp2p.relay",
    "libp2p.relay.circuit_v2",
    "libp2p.bitswap",
)

_EXPORTER: Final = "libp2p.rcmgr.prometheus_exporter"
_RSA: Final = "libp2p.crypto.rsa"
_WITH_STAND_INS: Final = (
    "libp2p.custom_types",
    "libp2p.rcmgr",
    "multiaddr.utils",
    "libp2p.network.swarm",
    "libp2p.transport.tcp.tcp",
    "libp2p.utils.dns_utils",
    "libp2p.records.pubkey",
    "libp2p.records.utils",
)


class _Package(ModuleType):
    """A package whose ``__init__`` has not run yet."""

    def __getattr__(self, name: str) -> Any:
        with _lock:
            if type(self) is _Package and self.__name__ not in _running:
                _run(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


_once: Final = threading.Lock()  # a node's modules are imported in a thread, and perhaps by its main one as well
_lock: Final = threading.RLock()
_running: Final[set[str]] = set()  # their code may look at names that it has not made yet


def _run(package: _Package) -> None:
    assert package.__spec__ is not None
    assert package.__spec__.loader is not None
    _running.add(package.__name__)
    try:
        package.__spec__.loader.exec_module(package)
    finally:
        _running.discard(package.__name__)
    setattr(package, "__class__", ModuleType)  # noqa: B010 - its type does not say that it can be


class _LateResolver:
    """multiaddr's resolver, which is loaded when it is used; the swarm makes one and asks it nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("multiaddr.resolvers").DNSResolver(), name)


def _late(module: str, name: str) -> Callable[..., Any]:
    """What makes one of these; its module is loaded for the first."""

    def make(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **options)

    return make


class _LateKey:
    """A kind of key in libp2p's tables of how each is read."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def from_bytes(self, data: bytes) -> Any:
        """The key; its module is loaded for the first."""
        return getattr(importlib.import_module(self._module), self._name).from_bytes(data)


class _Late(ModuleType):
    """A module that others keep by its name, and that is loaded when they use it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _of(name: str, **names: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(names)
    return module


@contextmanager
def _standing_in(*modules: ModuleType) -> Generator[None]:
    """These are there in place of those of their names, where those are not, as long as the context is open."""
    placed = [module for module in modules if module.__name__ not in sys.modules]
    sys.modules.update({module.__name__: module for module in placed})
    try:
        yield
    finally:
        for module in placed:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


def import_lightly() -> None:
    """Have libp2p's packages run their ``__init__`` only when a name of it is asked for. Idempotent; does nothing to
    packages that are imported already."""
    with _once:
        if "libp2p" in sys.modules:
            return
        for name in _LATER:
            parent, _, child = name.rpartition(".")
            spec = importlib.util.find_spec(name)
            if spec is None or spec.loader is None:
                raise ImportError(f"py-libp2p has no package {name}; is it the release that is pinned?", name=name)
            module = importlib.util.module_from_spec(spec)
            module.__class__ = _Package
            sys.modules[name] = module
            if parent:
                setattr(sys.modules[parent], child, module)
    importlib.import_module("multiaddr")
    with _standing_in(
        # for types of arguments
        _of("libp2p.transport.quic.stream", QUICStream=type("QUICStream", (), {})),
        _of("libp2p.transport.quic.config", QUICTransportConfig=type("QUICTransportConfig", (), {})),
        _of(
            _EXPORTER,
            PrometheusExporter=object,
            create_prometheus_exporter=_late(_EXPORTER, "create_prometheus_exporter"),
        ),
        _of("prometheus_client", Counter=_late("prometheus_client", "Counter")),
        _of(_RSA, RSAPublicKey=_LateKey(_RSA, "RSAPublicKey"), RSAPrivateKey=_LateKey(_RSA, "RSAPrivateKey")),
        _of("multiaddr.resolvers", DNSResolver=_LateResolver),
        _Late("psutil"),
    ):
        for name in _WITH_STAND_INS:
            importlib.import_module(name)
    # The one thing that libp2p's own `__init__` does and that its modules need.
    from libp2p.utils.logging import setup_logging

    setup_logging()
