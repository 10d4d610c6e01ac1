"""Rounds that a provider commits itself to, and finding the first that is wrong: `protocols/dispute/README.md`."""

from ._messages import (
    MESSAGES as MESSAGES,
)
from ._messages import (
    PROTOCOL_ID as PROTOCOL_ID,
)
from ._messages import (
    Ask as Ask,
)
from ._messages import (
    Challenge as Challenge,
)
from ._messages import (
    Claim as Claim,
)
from ._messages import (
    Commitment as Commitment,
)
from ._messages import (
    DisputeRefusal as DisputeRefusal,
)
from ._messages import (
    RoundsPayload as RoundsPayload,
)
from ._messages import (
    Settle as Settle,
)
from ._messages import (
    StateClaim as StateClaim,
)
from ._rounds import (
    check_claim as check_claim,
)
from ._rounds import (
    check_rounds_fit as check_rounds_fit,
)
from ._rounds import (
    check_rounds_of as check_rounds_of,
)
from ._rounds import (
    open_rounds as open_rounds,
)
from ._rounds import (
    rounds_tree as rounds_tree,
)
from ._rounds import (
    seal_rounds as seal_rounds,
)
from ._state import (
    TABLE as TABLE,
)
from ._state import (
    DisputeConnection as DisputeConnection,
)
from ._state import (
    DisputeState as DisputeState,
)
