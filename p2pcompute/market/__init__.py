"""The market: ads and the board, finding providers, orders, bids and agreements."""

from ._ads import (
    AD_LIFETIME_MS as AD_LIFETIME_MS,
)
from ._ads import (
    AdRecordValidator as AdRecordValidator,
)
from ._ads import (
    AdService as AdService,
)
from ._ads import (
    Discovery as Discovery,
)
from ._bidding import FixedPricePolicy as FixedPricePolicy
from ._bidding import (
    check_program as check_program,
)
from ._board import (
    AdBoard as AdBoard,
)
from ._board import (
    BoardEntry as BoardEntry,
)
from ._board import (
    fits as fits,
)
from ._negotiate import (
    BidPolicy as BidPolicy,
)
from ._negotiate import (
    NegotiationService as NegotiationService,
)
from ._negotiate import (
    OrderRefused as OrderRefused,
)
from ._negotiate import (
    negotiate as negotiate,
)
from ._ranking import (
    Candidate as Candidate,
)
from ._ranking import (
    rank as rank,
)
from ._standing import (
    Standing as Standing,
)
from ._standing import (
    Standings as Standings,
)
