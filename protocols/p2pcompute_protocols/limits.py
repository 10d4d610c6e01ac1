"""Every bound of the protocols has a name here and a row in the spec of the protocol that it bounds.

Bytes unless the name says otherwise. A sender that would pass a bound gets `LocalProtocolError`; a peer that
does is cut off with `WireCode.OVERSIZED` before anything is allocated for it.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "INITIAL_REQUESTS",
    "INITIAL_REQUEST_BYTES",
    "MAX_ADDRESSES",
    "MAX_ADS_PER_REPLY",
    "MAX_AD_BYTES",
    "MAX_AD_LIFETIME_MS",
    "MAX_ARBITERS",
    "MAX_ARGS",
    "MAX_BATCH_CHUNKS",
    "MAX_BLOB_BYTES",
    "MAX_BUCKETS",
    "MAX_CALLS",
    "MAX_CARD_BYTES",
    "MAX_CBOR_DEPTH",
    "MAX_CBOR_ITEMS",
    "MAX_CHUNKS",
    "MAX_CHUNK_TILES",
    "MAX_CLOCK_SKEW_MS",
    "MAX_COVERED",
    "MAX_CREDIT_WINDOW",
    "MAX_DATA_FRAME_BYTES",
    "MAX_DEVICES",
    "MAX_DIMS",
    "MAX_DISPUTE_QUESTIONS",
    "MAX_ENVELOPE_BYTES",
    "MAX_EVIDENCE_BLOBS",
    "MAX_EVIDENCE_BYTES",
    "MAX_FEATURES",
    "MAX_FRAME_BYTES",
    "MAX_HALO",
    "MAX_HELD_INPUTS",
    "MAX_HELD_INPUT_BYTES",
    "MAX_HELD_TILE_BYTES",
    "MAX_HOLDERS",
    "MAX_INFLIGHT_CHUNKS",
    "MAX_KERNEL_BYTES",
    "MAX_LAUNCHES",
    "MAX_LEAVES",
    "MAX_NAME",
    "MAX_NEGOTIATION_ROUNDS",
    "MAX_OPTIONS",
    "MAX_ORDER_LIFETIME_MS",
    "MAX_OUTPUT_BYTES",
    "MAX_PIECES",
    "MAX_PIECES_ASKED",
    "MAX_PROGRAM_NAME",
    "MAX_PROOF_DIGESTS",
    "MAX_REQUESTS",
    "MAX_REQUEST_BODY_BYTES",
    "MAX_REQUEST_BYTES",
    "MAX_REQUEST_MS",
    "MAX_RESOURCES",
    "MAX_SLOTS",
    "MAX_SPLIT_BYTES",
    "MAX_STATES_PER_CHUNK",
    "MAX_TEXT",
    "MAX_TILES",
    "MAX_TILE_BYTES",
    "MAX_WATCHED_PER_REPLY",
    "MAX_WINDOW_BYTES",
    "SHORT_WINDOW_UNITS",
    "UINT64_MAX",
    "UINT96_MAX",
]

UINT64_MAX: Final = 2**64 - 1
UINT96_MAX: Final = 2**96 - 1  # amounts on chain; on the wire amounts are uint64 micro-USD

# Encoding
MAX_CBOR_DEPTH: Final = 10
MAX_CBOR_ITEMS: Final = 4_096
MAX_TEXT: Final = 1_024
MAX_NAME: Final = 64
MAX_FRAME_BYTES: Final = 64 * 1024  # one control message
MAX_DATA_FRAME_BYTES: Final = 256 * 1024 + 64  # one frame of a task stream: a piece of a blob and its header
MAX_ENVELOPE_BYTES: Final = 56 * 1024

# Request streams
INITIAL_REQUESTS: Final = 8  # unanswered requests that every provider takes, before it has said how many
INITIAL_REQUEST_BYTES: Final = 64 * 1024  # of their bodies together
MAX_REQUESTS: Final = 4_096
MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024  # of the bodies of unanswered requests together
MAX_REQUEST_BODY_BYTES: Final = 1024 * 1024  # of one request, or of its answer
MAX_REQUEST_MS: Final = 600_000  # how long a requester may want to wait

# Time
MAX_CLOCK_SKEW_MS: Final = 120_000
MAX_AD_LIFETIME_MS: Final = 3_600_000
MAX_ORDER_LIFETIME_MS: Final = 600_000

# Ads
MAX_AD_BYTES: Final = 8 * 1024
MAX_ADS_PER_REPLY: Final = 64
MAX_ADDRESSES: Final = 8
MAX_DEVICES: Final = 32
MAX_OPTIONS: Final = 16
MAX_FEATURES: Final = 32
MAX_RESOURCES: Final = 16
MAX_BUCKETS: Final = 8
MAX_SLOTS: Final = 1_024

# Negotiation
MAX_NEGOTIATION_ROUNDS: Final = 3
MAX_ARBITERS: Final = 16
MAX_ARGS: Final = 32
MAX_DIMS: Final = 4
MAX_LAUNCHES: Final = 8  # of a round
MAX_PROGRAM_NAME: Final = 32  # its name has to fit into a feature of an ad

# Tasks
MAX_BLOB_BYTES: Final = 64 * 1024 * 1024
MAX_OUTPUT_BYTES: Final = 64 * 1024 * 1024  # all outputs of one chunk
MAX_KERNEL_BYTES: Final = 64 * 1024
MAX_CHUNKS: Final = 1_048_576
MAX_INFLIGHT_CHUNKS: Final = 1024
MAX_BATCH_CHUNKS: Final = 256  # in one message, under one signature
MAX_CREDIT_WINDOW: Final = 1024  # chunks
SHORT_WINDOW_UNITS: Final = 20_000  # of work, that may be unpaid whatever an ad's window for chunks of any length is
MAX_CALLS: Final = 256  # of a standing agreement, the newest ones, whose chunks may be assigned
MAX_HELD_INPUTS: Final = 4_096  # arrays of calls that a provider holds for a task
MAX_HELD_INPUT_BYTES: Final = 128 * 1024 * 1024  # of all of them together
MAX_STATES_PER_CHUNK: Final = 8  # that may be asked for, for each chunk of rounds that came

# Blobs
MAX_PIECES: Final = 256  # of one blob: MAX_BLOB_BYTES in pieces of 256 KiB
MAX_PIECES_ASKED: Final = 16  # asked for and not answered, on one stream
MAX_HOLDERS: Final = 16  # of one blob, that a requester names to a provider

# Split inputs
MAX_SPLIT_BYTES: Final = 4 * 1024 * 1024 * 1024  # of one array
MAX_TILE_BYTES: Final = 4 * 1024 * 1024
MAX_TILES: Final = 65_536  # of one array
MAX_HALO: Final = 1_048_576  # elements
MAX_CHUNK_TILES: Final = 1_024  # that a chunk needs, of all its arrays
MAX_HELD_TILE_BYTES: Final = 64 * 1024 * 1024  # of all tiles that a provider holds for a task
MAX_WINDOW_BYTES: Final = 64 * 1024 * 1024  # the boxes around all that a chunk reads, of all its arrays

MAX_WATCHED_PER_REPLY: Final = 64  # vouchers in one WatchGiven
MAX_CARD_BYTES: Final = 1024  # an arbiter's card, in its envelope; sixteen of them go into one frame

# Proofs and disputes
MAX_LEAVES: Final = MAX_CHUNKS
MAX_COVERED: Final = 512  # receipts that one voucher adds to its root
MAX_PROOF_DIGESTS: Final = 20  # of one of MAX_LEAVES
MAX_DISPUTE_QUESTIONS: Final = 32  # two, and one for each halving
# Each input of a kernel, its source, and a chunk's tiles. Of a round there are fewer: of each launch the inputs and the
# source, the state, its digests, and two lists of digests.
MAX_EVIDENCE_BLOBS: Final = MAX_ARGS + 1 + MAX_CHUNK_TILES
MAX_EVIDENCE_BYTES: Final = 2 * MAX_BLOB_BYTES + 256 * 1024  # inputs, the state of a round, and what is signed
