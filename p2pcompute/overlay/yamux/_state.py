"""The life of a stream as a table: state, what happens, next state.

A cell that is not there is an error of whoever did it: of the peer for what is received, ours for what is sent.
That a stream which we opened has not been acknowledged yet changes nothing that may happen to it, so it is no
state of its own.
"""

from __future__ import annotations

from enum import Enum, auto
from types import MappingProxyType
from typing import Final

__all__ = ["TRANSITIONS", "Action", "StreamState"]


class StreamState(Enum):
    OPEN = auto()
    WE_FINISHED = auto()
    PEER_FINISHED = auto()
    OVER = auto()


class Action(Enum):
    SEND_DATA = auto()
    SEND_WINDOW = auto()
    SEND_FIN = auto()
    SEND_RST = auto()
    RECEIVE_DATA = auto()
    RECEIVE_WINDOW = auto()
    RECEIVE_FIN = auto()
    RECEIVE_RST = auto()


_S, _A = StreamState, Action

TRANSITIONS: Final = MappingProxyType(
    {
        _S.OPEN: {
            _A.SEND_DATA: _S.OPEN,
            _A.SEND_WINDOW: _S.OPEN,
            _A.SEND_FIN: _S.WE_FINISHED,
            _A.SEND_RST: _S.OVER,
            _A.RECEIVE_DATA: _S.OPEN,
            _A.RECEIVE_WINDOW: _S.OPEN,
            _A.RECEIVE_FIN: _S.PEER_FINISHED,
            _A.RECEIVE_RST: _S.OVER,
        },
        _S.WE_FINISHED: {
            _A.SEND_WINDOW: _S.WE_FINISHED,
            _A.SEND_RST: _S.OVER,
            _A.RECEIVE_DATA: _S.WE_FINISHED,
            _A.RECEIVE_WINDOW: _S.WE_FINISHED,  # for what we sent before
            _A.RECEIVE_FIN: _S.OVER,
            _A.RECEIVE_RST: _S.OVER,
        },
        _S.PEER_FINISHED: {
            _A.SEND_DATA: _S.PEER_FINISHED,
            _A.SEND_FIN: _S.OVER,
            _A.SEND_RST: _S.OVER,
            _A.RECEIVE_WINDOW: _S.PEER_FINISHED,
            _A.RECEIVE_FIN: _S.PEER_FINISHED,  # saying it twice does no harm
            _A.RECEIVE_RST: _S.OVER,
        },
        _S.OVER: {},  # not kept: frames that cross our end are ignored, as the specification wants
    }
)
