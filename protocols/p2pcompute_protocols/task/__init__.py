"""The task stream and its receipts: `protocols/task/README.md` is the specification."""

from ._batch import (
    BatchedReceipt as BatchedReceipt,
)
from ._batch import (
    ReceiptBatch as ReceiptBatch,
)
from ._batch import (
    open_batch as open_batch,
)
from ._batch import (
    open_batched as open_batched,
)
from ._batch import (
    seal_batch as seal_batch,
)
from ._batch import (
    stands_in_batch as stands_in_batch,
)
from ._calls import (
    CallInputs as CallInputs,
)
from ._calls import (
    standing_work as standing_work,
)
from ._held import (
    Held as Held,
)
from ._messages import (
    BATCH_BYTES as BATCH_BYTES,
)
from ._messages import (
    DATA_BYTES as DATA_BYTES,
)
from ._messages import (
    MESSAGES as MESSAGES,
)
from ._messages import (
    PROTOCOL_ID as PROTOCOL_ID,
)
from ._messages import (
    RECEIPT_KIND as RECEIPT_KIND,
)
from ._messages import (
    Assign as Assign,
)
from ._messages import (
    BlobData as BlobData,
)
from ._messages import (
    BlobStart as BlobStart,
)
from ._messages import (
    Call as Call,
)
from ._messages import (
    CallArg as CallArg,
)
from ._messages import (
    Cancel as Cancel,
)
from ._messages import (
    ChunkError as ChunkError,
)
from ._messages import (
    Closed as Closed,
)
from ._messages import (
    Finish as Finish,
)
from ._messages import (
    GetState as GetState,
)
from ._messages import (
    Holder as Holder,
)
from ._messages import (
    Notice as Notice,
)
from ._messages import (
    Open as Open,
)
from ._messages import (
    Opened as Opened,
)
from ._messages import (
    Ready as Ready,
)
from ._messages import (
    ReceiptPayload as ReceiptPayload,
)
from ._messages import (
    ReceiptsPayload as ReceiptsPayload,
)
from ._messages import (
    Refused as Refused,
)
from ._messages import (
    ResultData as ResultData,
)
from ._messages import (
    Results as Results,
)
from ._messages import (
    ResultStart as ResultStart,
)
from ._messages import (
    Share as Share,
)
from ._messages import (
    StateData as StateData,
)
from ._messages import (
    StateGone as StateGone,
)
from ._messages import (
    StateStart as StateStart,
)
from ._receipt import (
    open_proven_receipt as open_proven_receipt,
)
from ._receipt import (
    open_receipt as open_receipt,
)
from ._receipt import (
    receipts_tree as receipts_tree,
)
from ._receipt import (
    seal_receipt as seal_receipt,
)
from ._state import (
    TABLE as TABLE,
)
from ._state import (
    TaskConnection as TaskConnection,
)
from ._state import (
    TaskState as TaskState,
)
from ._tiles import (
    HeldTiles as HeldTiles,
)
