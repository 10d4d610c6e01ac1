"""The durable ledger of a node: SQLite, one process, and on disk before anybody else hears of it.

`docs/guarantees.md` says what is written before what leaves the process.
"""

from __future__ import annotations

from ._database import INT64_MAX as INT64_MAX
from ._database import AmountOutOfRange as AmountOutOfRange
from ._database import LedgerFailed as LedgerFailed
from ._executor import Executor as Executor
from ._executor import InlineExecutor as InlineExecutor
from ._executor import ThreadExecutor as ThreadExecutor
from ._ledger import CeilingReached as CeilingReached
from ._ledger import Ledger as Ledger
from ._ledger import ReceiptConflict as ReceiptConflict
from ._ledger import UnknownAgreement as UnknownAgreement
from ._ledger import open_ledger as open_ledger
from ._peers import CreditVerdict as CreditVerdict
from ._roots import Covered as Covered
from ._roots import ReceiptProof as ReceiptProof
from ._rows import AgreementRow as AgreementRow
from ._rows import ChannelInRow as ChannelInRow
from ._rows import ChannelOutRow as ChannelOutRow
from ._rows import ConsentRow as ConsentRow
from ._rows import LoggedReceipt as LoggedReceipt
from ._rows import OutboxRow as OutboxRow
from ._rows import PeerRow as PeerRow
from ._rows import ReceiptRow as ReceiptRow
from ._verify import LedgerReport as LedgerReport
from ._watch_store import WatchedRow as WatchedRow
from ._watch_store import WatchStore as WatchStore
from ._watch_store import open_watch_store as open_watch_store

__all__ = [
    "INT64_MAX",
    "AgreementRow",
    "AmountOutOfRange",
    "CeilingReached",
    "ChannelInRow",
    "ChannelOutRow",
    "ConsentRow",
    "CreditVerdict",
    "Executor",
    "InlineExecutor",
    "Ledger",
    "LedgerFailed",
    "LedgerReport",
    "LoggedReceipt",
    "OutboxRow",
    "PeerRow",
    "ReceiptConflict",
    "ReceiptRow",
    "ThreadExecutor",
    "UnknownAgreement",
    "WatchStore",
    "WatchedRow",
    "open_ledger",
    "open_watch_store",
]
