"""The twelve bytes before everything (spec.md, "Framing")."""

from __future__ import annotations

import struct
from typing import Final

__all__ = [
    "ACK",
    "DATA",
    "FIN",
    "GO_AWAY",
    "GO_AWAY_INTERNAL_ERROR",
    "GO_AWAY_NORMAL",
    "GO_AWAY_PROTOCOL_ERROR",
    "HEADER",
    "PING",
    "RST",
    "SYN",
    "VERSION",
    "WINDOW_UPDATE",
]

HEADER: Final = struct.Struct("!BBHII")  # version, type, flags, stream ID, length
VERSION: Final = 0

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

GO_AWAY_NORMAL: Final = 0
GO_AWAY_PROTOCOL_ERROR: Final = 1
GO_AWAY_INTERNAL_ERROR: Final = 2
