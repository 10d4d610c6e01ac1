"""Which side may send which frame, and when."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from ..connection import Role
from ._frames import Ask, Cancel, Drain, Fault, Frame, Limits, Reply

__all__ = ["TABLE", "RequestState"]


class RequestState(enum.Enum):
    """Where a request stream stands. It is the same for all its requests, which have no states of their own."""

    NEW = "new"  # the provider has not said its limits
    OPEN = "open"
    DRAINING = "draining"  # the provider takes no more; requests may cross that news


_S = RequestState
TABLE: Final[Mapping[Role, Mapping[RequestState, Mapping[type[Frame], RequestState]]]] = {
    Role.REQUESTER: {
        _S.NEW: {Ask: _S.NEW, Cancel: _S.NEW},
        _S.OPEN: {Ask: _S.OPEN, Cancel: _S.OPEN},
        _S.DRAINING: {Ask: _S.DRAINING, Cancel: _S.DRAINING},
    },
    Role.PROVIDER: {
        _S.NEW: {Limits: _S.OPEN},
        _S.OPEN: {Reply: _S.OPEN, Fault: _S.OPEN, Drain: _S.DRAINING},
        _S.DRAINING: {Reply: _S.DRAINING, Fault: _S.DRAINING},
    },
}
