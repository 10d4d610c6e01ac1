"""Order, bid, agreement: `protocols/negotiation/README.md` is the specification."""

from ._agreement import (
    Agreement as Agreement,
)
from ._agreement import (
    accept_terms as accept_terms,
)
from ._agreement import (
    check_bid_answers_order as check_bid_answers_order,
)
from ._agreement import (
    check_terms_follow_bid as check_terms_follow_bid,
)
from ._agreement import (
    open_agreement as open_agreement,
)
from ._agreement import (
    open_bid as open_bid,
)
from ._agreement import (
    open_order as open_order,
)
from ._agreement import (
    open_refusal as open_refusal,
)
from ._agreement import (
    open_terms as open_terms,
)
from ._agreement import (
    seal_bid as seal_bid,
)
from ._agreement import (
    seal_order as seal_order,
)
from ._agreement import (
    seal_refusal as seal_refusal,
)
from ._agreement import (
    seal_terms as seal_terms,
)
from ._agreement import (
    task_id_of as task_id_of,
)
from ._messages import (
    MESSAGES as MESSAGES,
)
from ._messages import (
    PROTOCOL_ID as PROTOCOL_ID,
)
from ._messages import (
    AcceptFrame as AcceptFrame,
)
from ._messages import (
    BidFrame as BidFrame,
)
from ._messages import (
    BidPayload as BidPayload,
)
from ._messages import (
    CheckPolicy as CheckPolicy,
)
from ._messages import (
    OrderFrame as OrderFrame,
)
from ._messages import (
    OrderPayload as OrderPayload,
)
from ._messages import (
    ProposeFrame as ProposeFrame,
)
from ._messages import (
    RefusalFrame as RefusalFrame,
)
from ._messages import (
    RefusalPayload as RefusalPayload,
)
from ._messages import (
    Requirement as Requirement,
)
from ._messages import (
    Terms as Terms,
)
from ._state import (
    TABLE as TABLE,
)
from ._state import (
    NegotiationConnection as NegotiationConnection,
)
from ._state import (
    NegotiationState as NegotiationState,
)
from ._tolerance import (
    MAX_RTOL as MAX_RTOL,
)
from ._tolerance import (
    MIN_RTOL as MIN_RTOL,
)
from ._tolerance import (
    Tolerance as Tolerance,
)
from ._window import (
    widest_window as widest_window,
)
