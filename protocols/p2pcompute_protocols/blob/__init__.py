"""Blobs: an input's bytes in pieces, from whoever holds them. `protocols/blob/README.md` is the specification."""

from ._messages import MESSAGES as MESSAGES
from ._messages import PROTOCOL_ID as PROTOCOL_ID
from ._messages import BlobDone as BlobDone
from ._messages import BlobDrop as BlobDrop
from ._messages import BlobDropped as BlobDropped
from ._messages import BlobGet as BlobGet
from ._messages import BlobGone as BlobGone
from ._messages import BlobHave as BlobHave
from ._messages import BlobHeld as BlobHeld
from ._messages import BlobPiece as BlobPiece
from ._messages import BlobWant as BlobWant
from ._pieces import PIECE_BYTES as PIECE_BYTES
from ._pieces import bitmap as bitmap
from ._pieces import count_pieces as count_pieces
from ._pieces import from_bitmap as from_bitmap
from ._pieces import leaves_of as leaves_of
from ._pieces import piece_span as piece_span
from ._pieces import root_of as root_of
from ._state import TABLE as TABLE
from ._state import BlobConnection as BlobConnection
from ._state import BlobState as BlobState
