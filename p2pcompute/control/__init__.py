"""The local HTTP API of a running node, and how to ask it.

    async with p2p.open_node() as node, trio.open_nursery() as nursery:
        await nursery.start(serve_control, node, profile.control_socket)

`p2pcompute up` does that. What can be asked: ``GET /status`` (JSON), ``GET /peers`` (JSON), ``GET /metrics``
(Prometheus text), ``POST /drain``, and about money what `MONEY_ANSWERS` says, in JSON. From a shell:
``curl --unix-socket <profile>/control.sock http://node/status``.

Asking imports nothing of what a node is made of; that comes with the names of the serving side.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._client import NoNode as NoNode
from ._client import ask as ask

if TYPE_CHECKING:
    from ._metrics import metrics_text as metrics_text
    from ._money import BOOK_ANSWERS as BOOK_ANSWERS
    from ._money import MONEY_ANSWERS as MONEY_ANSWERS
    from ._money import Books as Books
    from ._money import MoneyOnChain as MoneyOnChain
    from ._money import parse_address as parse_address
    from ._peers import peer_rows as peer_rows
    from ._report import node_status as node_status
    from ._server import Answer as Answer
    from ._server import Fields as Fields
    from ._server import Routes as Routes
    from ._server import serve_control as serve_control
    from ._server import serve_routes as serve_routes

__all__ = [
    "BOOK_ANSWERS",
    "MONEY_ANSWERS",
    "Answer",
    "Books",
    "Fields",
    "MoneyOnChain",
    "NoNode",
    "Routes",
    "ask",
    "metrics_text",
    "node_status",
    "parse_address",
    "peer_rows",
    "serve_control",
    "serve_routes",
]

_LAZY = {
    "BOOK_ANSWERS": "_money",
    "MONEY_ANSWERS": "_money",
    "Answer": "_server",
    "Books": "_money",
    "Fields": "_server",
    "MoneyOnChain": "_money",
    "Routes": "_server",
    "metrics_text": "_metrics",
    "node_status": "_report",
    "parse_address": "_money",
    "peer_rows": "_peers",
    "serve_control": "_server",
    "serve_routes": "_server",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
