"""Stakes: what a provider puts at risk, and what arbiters make of evidence. `protocols/stake/README.md` is the
specification."""

from ._card import ArbiterCard as ArbiterCard
from ._card import OpenCard as OpenCard
from ._card import open_card as open_card
from ._card import seal_card as seal_card
from ._messages import MESSAGES as MESSAGES
from ._messages import PIECE_BYTES as PIECE_BYTES
from ._messages import PROTOCOL_ID as PROTOCOL_ID
from ._messages import Accuse as Accuse
from ._messages import CardGiven as CardGiven
from ._messages import CardQuery as CardQuery
from ._messages import EvidenceEnd as EvidenceEnd
from ._messages import EvidencePiece as EvidencePiece
from ._messages import Pledge as Pledge
from ._messages import Pledged as Pledged
from ._messages import PledgedTerms as PledgedTerms
from ._messages import PledgeFile as PledgeFile
from ._messages import Proceed as Proceed
from ._messages import SignedReceipt as SignedReceipt
from ._messages import StakeRefusal as StakeRefusal
from ._messages import StrictGiven as StrictGiven
from ._messages import StrictQuery as StrictQuery
from ._messages import VerdictGiven as VerdictGiven
from ._state import TABLE as TABLE
from ._state import StakeConnection as StakeConnection
from ._state import StakeState as StakeState
