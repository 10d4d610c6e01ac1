"""Asking a peer for ads: one query, one answer, as often as the stream lasts."""

from __future__ import annotations

import enum
from typing import Final

from ..connection import Connection, Role, Table
from ..limits import MAX_AD_BYTES, MAX_ADS_PER_REPLY
from ._messages import MESSAGES, AdBatch, AdQuery, AdRefusal

__all__ = ["TABLE", "AdsConnection", "AdsState"]


class AdsState(enum.Enum):
    """Who speaks next."""

    IDLE = "idle"
    ASKED = "asked"


_S = AdsState
TABLE: Final[Table[AdsState]] = {
    Role.REQUESTER: {_S.IDLE: {AdQuery: _S.ASKED}},
    Role.PROVIDER: {_S.ASKED: {AdBatch: _S.IDLE, AdRefusal: _S.IDLE}},
}


class AdsConnection(Connection[AdsState]):
    """Queries for ads over one stream."""

    messages = MESSAGES
    table = TABLE
    start = _S.IDLE
    final = frozenset({_S.IDLE})
    max_frame_bytes = MAX_AD_BYTES * MAX_ADS_PER_REPLY + 1024
