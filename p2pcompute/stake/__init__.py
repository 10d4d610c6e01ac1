"""Stakes: having one, putting it at risk for a task, and verdicts that take it.

The contract and what is signed for it are in `docs/contracts.md`; what is said between nodes in
`protocols/stake/README.md`. Nothing here touches the disk, and of the chain only what `Registry` reads and what an
account's transactions do.
"""

from ._accuse import Accuser as Accuser
from ._accuse import NoVerdict as NoVerdict
from ._accuse import Slashed as Slashed
from ._accuse import open_pledge as open_pledge
from ._accuse import open_strict_receipt as open_strict_receipt
from ._arbiter import Arbiter as Arbiter
from ._pledges import Pledges as Pledges
from ._registry import Registry as Registry
from ._registry import read_from as read_from
from ._requester import PledgeRefused as PledgeRefused
from ._requester import StakeDesk as StakeDesk
from ._requester import StakeTooLow as StakeTooLow
from ._requester import StakeWish as StakeWish
from ._requester import TaskStake as TaskStake
from ._service import StakeService as StakeService
from ._staking import AccountCalls as AccountCalls
from ._staking import StakeStatus as StakeStatus
from ._staking import Staking as Staking
