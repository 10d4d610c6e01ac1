"""The ledger's tables, and how an older ledger becomes a newer one.

`MIGRATIONS[n]` brings a ledger from version n to n + 1; `PRAGMA user_version` holds the version. Migrations only
go forward, each in one transaction. Tables are STRICT: SQLite turns an integer that overflows into a float
without a word, and a strict table refuses the float.

Every table but `events` can be rebuilt from `events`: it is the log of what happened, and `_reducers.py` says
what each kind of event does to the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["DERIVED_TABLES", "MIGRATIONS"]

_V1: Final = """
CREATE TABLE events (
    seq   INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    kind  TEXT NOT NULL,
    body  BLOB NOT NULL
) STRICT;

-- Channel IDs say nothing of chain and hub, so a ledger belongs to one of them for good.
CREATE TABLE home (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    chain_id INTEGER NOT NULL CHECK (chain_id > 0),
    hub      BLOB NOT NULL CHECK (length(hub) = 20),
    token    BLOB NOT NULL CHECK (length(token) = 20)
) STRICT;

CREATE TABLE agreements (
    task         BLOB PRIMARY KEY CHECK (length(task) = 32),
    role         TEXT NOT NULL CHECK (role IN ('requester', 'provider')),
    peer         TEXT NOT NULL,
    channel      BLOB NOT NULL CHECK (length(channel) = 32),
    raw          BLOB NOT NULL,
    price_pusd   INTEGER NOT NULL CHECK (price_pusd >= 0),
    ceiling_uusd INTEGER NOT NULL CHECK (ceiling_uusd >= 0),
    total_pusd   INTEGER NOT NULL DEFAULT 0 CHECK (total_pusd >= 0),
    state        TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'failed')),
    reason       TEXT NOT NULL DEFAULT '',
    created_ms   INTEGER NOT NULL,
    deadline_ms  INTEGER NOT NULL
) STRICT;
CREATE INDEX agreements_open ON agreements (channel) WHERE state = 'open';

-- The key is the line that a provider must never cross: two results (code 0) for one index would be proof of fraud
-- against it.
CREATE TABLE receipts_issued (
    task     BLOB NOT NULL REFERENCES agreements (task),
    idx      INTEGER NOT NULL CHECK (idx >= 0),
    code     INTEGER NOT NULL CHECK (code >= 0),
    digest   BLOB NOT NULL CHECK (length(digest) = 32),
    units    INTEGER NOT NULL CHECK (units >= 0),
    pusd     INTEGER NOT NULL CHECK (pusd >= 0),
    envelope BLOB NOT NULL,
    PRIMARY KEY (task, idx, code)
) STRICT;

CREATE TABLE receipts_held (
    task     BLOB NOT NULL REFERENCES agreements (task),
    idx      INTEGER NOT NULL CHECK (idx >= 0),
    code     INTEGER NOT NULL CHECK (code >= 0),
    digest   BLOB NOT NULL CHECK (length(digest) = 32),
    units    INTEGER NOT NULL CHECK (units >= 0),
    pusd     INTEGER NOT NULL CHECK (pusd >= 0),
    envelope BLOB NOT NULL,
    verdict  TEXT NOT NULL CHECK (verdict IN ('accepted', 'rejected')),
    sampled  INTEGER NOT NULL DEFAULT 0 CHECK (sampled >= 0),
    reason   TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX one_accepted ON receipts_held (task, idx) WHERE verdict = 'accepted';
CREATE UNIQUE INDEX one_rejected ON receipts_held (task, idx, envelope) WHERE verdict = 'rejected';

CREATE TABLE channels_in (
    channel      BLOB PRIMARY KEY CHECK (length(channel) = 32),
    payer        BLOB NOT NULL CHECK (length(payer) = 20),
    signer       BLOB NOT NULL CHECK (length(signer) = 20),
    peer         TEXT NOT NULL,
    owed_pusd    INTEGER NOT NULL DEFAULT 0 CHECK (owed_pusd >= 0),
    base_pusd    INTEGER NOT NULL DEFAULT 0 CHECK (base_pusd >= 0),
    best_uusd    INTEGER NOT NULL DEFAULT 0 CHECK (best_uusd >= 0),
    memo         BLOB CHECK (memo IS NULL OR length(memo) = 32),
    signature    BLOB CHECK (signature IS NULL OR length(signature) = 65),
    deposit_uusd INTEGER NOT NULL DEFAULT 0 CHECK (deposit_uusd >= 0),
    claimed_uusd INTEGER NOT NULL DEFAULT 0 CHECK (claimed_uusd >= 0),
    close_at_s   INTEGER NOT NULL DEFAULT 0 CHECK (close_at_s >= 0),
    CHECK ((best_uusd > 0) = (signature IS NOT NULL) AND (best_uusd > 0) = (memo IS NOT NULL))
) STRICT;

CREATE TABLE channels_out (
    channel       BLOB PRIMARY KEY CHECK (length(channel) = 32),
    payee         BLOB NOT NULL CHECK (length(payee) = 20),
    peer          TEXT NOT NULL,
    accepted_pusd INTEGER NOT NULL DEFAULT 0 CHECK (accepted_pusd >= 0),
    base_pusd     INTEGER NOT NULL DEFAULT 0 CHECK (base_pusd >= 0),
    voucher_uusd  INTEGER NOT NULL DEFAULT 0 CHECK (voucher_uusd >= 0),
    memo          BLOB CHECK (memo IS NULL OR length(memo) = 32),
    signature     BLOB CHECK (signature IS NULL OR length(signature) = 65),
    acked_uusd    INTEGER NOT NULL DEFAULT 0 CHECK (acked_uusd BETWEEN 0 AND voucher_uusd),
    deposit_uusd  INTEGER NOT NULL DEFAULT 0 CHECK (deposit_uusd >= 0),
    claimed_uusd  INTEGER NOT NULL DEFAULT 0 CHECK (claimed_uusd >= 0),
    CHECK ((voucher_uusd > 0) = (signature IS NOT NULL) AND (voucher_uusd > 0) = (memo IS NOT NULL))
) STRICT;

CREATE TABLE outbox (
    id     INTEGER PRIMARY KEY,
    sender BLOB NOT NULL CHECK (length(sender) = 20),
    nonce  INTEGER NOT NULL CHECK (nonce >= 0),
    kind   TEXT NOT NULL,
    hash   BLOB NOT NULL CHECK (length(hash) = 32),
    raw    BLOB NOT NULL,
    state  TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'mined', 'failed')),
    detail TEXT NOT NULL DEFAULT ''
) STRICT;
-- Only of those under way: a development chain that is set back takes the same nonces, and the same bytes, again.
CREATE UNIQUE INDEX outbox_nonce ON outbox (sender, nonce) WHERE state IN ('pending', 'sent');

CREATE TABLE outbox_rows (
    id      INTEGER NOT NULL REFERENCES outbox (id),
    channel BLOB NOT NULL CHECK (length(channel) = 32),
    uusd    INTEGER NOT NULL CHECK (uusd >= 0),
    PRIMARY KEY (id, channel)
) STRICT, WITHOUT ROWID;

CREATE TABLE peers (
    peer          TEXT PRIMARY KEY,
    first_seen_ms INTEGER NOT NULL,
    paid_uusd     INTEGER NOT NULL DEFAULT 0 CHECK (paid_uusd >= 0),
    earned_uusd   INTEGER NOT NULL DEFAULT 0 CHECK (earned_uusd >= 0),
    failures      INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    banned        TEXT
) STRICT;

CREATE TABLE credit (
    peer   TEXT NOT NULL,
    subnet TEXT NOT NULL,
    hour   INTEGER NOT NULL,
    pusd   INTEGER NOT NULL CHECK (pusd >= 0),
    PRIMARY KEY (peer, subnet, hour)
) STRICT, WITHOUT ROWID;
CREATE INDEX credit_hour ON credit (hour, subnet);
"""

_CONSENTS: Final = """
-- What a payee has signed so that a channel may be closed at once. One of an epoch that is over is not kept.
CREATE TABLE consents (
    channel     BLOB PRIMARY KEY CHECK (length(channel) = 32),
    epoch       INTEGER NOT NULL CHECK (epoch >= 0),
    amount_uusd INTEGER NOT NULL CHECK (amount_uusd >= 0),
    deadline_s  INTEGER NOT NULL CHECK (deadline_s >= 0),
    signature   BLOB NOT NULL CHECK (length(signature) = 65)
) STRICT;
"""

# Roots over receipts. `leaf` is the number of an accepted receipt in its channel's tree. `signed` is the tree under the
# last voucher, `told` what of it the payee has acknowledged, `rooted_leaves` how much of it stands behind the best
# voucher that we hold, 0 where its memo is not reproduced. Peaks are those of `merkle.Frontier`, refs 40 bytes each:
# task and, big-endian, index.
_ROOTS: Final = """
ALTER TABLE receipts_held ADD COLUMN leaf INTEGER;
ALTER TABLE channels_out ADD COLUMN leaves INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels_out ADD COLUMN signed_leaves INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels_out ADD COLUMN signed_peaks BLOB NOT NULL DEFAULT x'';
ALTER TABLE channels_out ADD COLUMN told_leaves INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels_out ADD COLUMN told_peaks BLOB NOT NULL DEFAULT x'';
ALTER TABLE channels_in ADD COLUMN leaves INTEGER NOT NULL DEFAULT 0;
ALTER TABLE channels_in ADD COLUMN peaks BLOB NOT NULL DEFAULT x'';
ALTER TABLE channels_in ADD COLUMN rooted_leaves INTEGER NOT NULL DEFAULT 0;

CREATE TABLE covers (
    channel BLOB NOT NULL REFERENCES channels_in (channel),
    first   INTEGER NOT NULL CHECK (first >= 0),
    refs    BLOB NOT NULL CHECK (length(refs) > 0 AND length(refs) % 40 = 0),
    PRIMARY KEY (channel, first)
) STRICT, WITHOUT ROWID;
"""

# How many results were receipted on a channel: a tree over them has no more leaves, whatever its payer names.
_ISSUED: Final = """
ALTER TABLE channels_in ADD COLUMN issued INTEGER NOT NULL DEFAULT 0 CHECK (issued >= 0);
UPDATE channels_in SET issued = counted.issued FROM (
    SELECT a.channel AS channel, count(*) AS issued FROM receipts_issued r JOIN agreements a ON a.task = r.task
    WHERE r.code = 0 GROUP BY a.channel
) AS counted WHERE counted.channel = channels_in.channel;
"""

MIGRATIONS: Final[Sequence[str]] = (_V1, _CONSENTS, _ROOTS, _ISSUED)

DERIVED_TABLES: Final = (
    "home",
    "agreements",
    "receipts_issued",
    "receipts_held",
    "channels_in",
    "channels_out",
    "covers",
    "outbox",
    "outbox_rows",
    "peers",
    "credit",
    "consents",
)
