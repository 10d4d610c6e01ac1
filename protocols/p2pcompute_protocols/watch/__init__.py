"""Watchtowers: who keeps vouchers for others. `protocols/watch/README.md` is the specification."""

from ._messages import MESSAGES as MESSAGES
from ._messages import PROTOCOL_ID as PROTOCOL_ID
from ._messages import WatchedVoucher as WatchedVoucher
from ._messages import WatchFetch as WatchFetch
from ._messages import WatchGiven as WatchGiven
from ._messages import WatchHello as WatchHello
from ._messages import WatchKeep as WatchKeep
from ._messages import WatchKept as WatchKept
from ._messages import WatchRefusal as WatchRefusal
from ._messages import WatchWelcome as WatchWelcome
from ._state import TABLE as TABLE
from ._state import WatchConnection as WatchConnection
from ._state import WatchState as WatchState
