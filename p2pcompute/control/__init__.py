"""The local HTTP API of a running node, and how to ask it.

    async with p2p.open_node() as node, trio.open_nursery() as nursery:
        await nursery.start(serve_control, node, profile.control_socket)

`p2pcompute up` does that. What can be asked: ``GET /status`` (JSON), ``GET /metrics`` (Prometheus text), ``POST
/drain``, and about money what `MONEY_ANSWERS` says, in JSON. From a shell: ``curl --unix-socket <profile>/control.sock http://node/status``.
"""

from __future__ import annotations

from ._client import NoNode as NoNode
from ._client import ask as ask
from ._metrics import metrics_text as metrics_text
from ._money import MONEY_ANSWERS as MONEY_ANSWERS
from ._money import MoneyOnChain as MoneyOnChain
from ._money import parse_address as parse_address
from ._report import node_status as node_status
from ._server import Answer as Answer
from ._server import Fields as Fields
from ._server import Routes as Routes
from ._server import serve_control as serve_control
from ._server import serve_routes as serve_routes

__all__ = [
    "MONEY_ANSWERS",
    "Answer",
    "Fields",
    "MoneyOnChain",
    "NoNode",
    "Routes",
    "ask",
    "metrics_text",
    "node_status",
    "parse_address",
    "serve_control",
    "serve_routes",
]
