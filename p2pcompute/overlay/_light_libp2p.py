"""py-libp2p without what a node of ours never uses of it.

`import libp2p.peer.id` runs ``libp2p/__init__.py`` first, as Python does for every package around a module, and that
imports all transports, securities and muxers that libp2p has: QUIC, WebSocket, WebRTC, secio, relays and what those
stand on. We use TCP only, and have our own Noise, TLS and Yamux. So the packages here are put into `sys.modules` before
anything of libp2p is imported, as their own module objects with their own loaders, and their ``__init__`` runs when
somebody asks for a name that only it can give: `from libp2p import new_host` works as ever, in a node's process too.
`importlib.util.LazyLoader` is the same idea, but runs a package's code at the first look at its ``__path__``, so with
the first module of it.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
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
    # The one thing that libp2p's own `__init__` does and that its modules need.
    from libp2p.utils.logging import setup_logging

    setup_logging()
