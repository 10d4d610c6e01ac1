"""Requests on one kept stream: `protocols/request/README.md` is the specification."""

from ._frames import (
    HEADER_BYTES as HEADER_BYTES,
)
from ._frames import (
    KINDS as KINDS,
)
from ._frames import (
    Ask as Ask,
)
from ._frames import (
    Cancel as Cancel,
)
from ._frames import (
    Drain as Drain,
)
from ._frames import (
    Fault as Fault,
)
from ._frames import (
    Frame as Frame,
)
from ._frames import (
    Limits as Limits,
)
from ._frames import (
    Reply as Reply,
)
from ._sessions import (
    AskingSession as AskingSession,
)
from ._sessions import (
    ServingSession as ServingSession,
)
from ._sessions import (
    StreamOver as StreamOver,
)
from ._state import (
    TABLE as TABLE,
)
from ._state import (
    RequestState as RequestState,
)
