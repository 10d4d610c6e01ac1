"""What each kind of event does to the tables: SQL with named parameters, and nothing else.

A write to the ledger is one or more events. Each is appended to `events` and applied by the statements here, in one
transaction, so replaying the log into an empty database gives the same tables again. A kind that was ever written
keeps its statements for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["REDUCERS", "ROWS"]

_SEEN = "INSERT INTO peers (peer, first_seen_ms) VALUES (:peer, :now_ms) ON CONFLICT (peer) DO NOTHING"
_PAID = (
    "INSERT INTO peers (peer, first_seen_ms, paid_uusd) VALUES (:peer, :now_ms, :gained_uusd)"
    " ON CONFLICT (peer) DO UPDATE SET paid_uusd = paid_uusd + excluded.paid_uusd"
)

ROWS: Final[Mapping[str, tuple[str, ...]]] = {
    "receipts_issued": ("idx", "digest", "units", "pusd", "envelope"),
    "works_rooted": ("nth", "idx", "digest", "units", "pusd", "envelope", "sampled"),
}
"""Of kinds that have many rows under ``rows``: what each of them holds. The first statement is run for each row, with
what the event has beside them; those behind it once, after all rows."""

REDUCERS: Final[Mapping[str, tuple[str, ...]]] = {
    "chain_bound": ("INSERT INTO home (id, chain_id, hub, token) VALUES (1, :chain_id, :hub, :token)",),
    "agreed": (
        (
            "INSERT INTO agreements (task, role, peer, channel, raw, price_pusd, ceiling_uusd, created_ms, deadline_ms)"
            " VALUES (:task, :role, :peer, :channel, :raw, :price_pusd, :ceiling_uusd, :now_ms, :deadline_ms)"
        ),
        _SEEN,
    ),
    "agreement_closed": ("UPDATE agreements SET state = :state, reason = :reason WHERE task = :task",),
    "channel_in_opened": (
        "INSERT INTO channels_in (channel, payer, signer, peer) VALUES (:channel, :payer, :signer, :peer)",
    ),
    "receipt_issued": (
        (
            "INSERT INTO receipts_issued (task, idx, code, digest, units, pusd, envelope)"
            " VALUES (:task, :idx, :code, :digest, :units, :pusd, :envelope)"
        ),
        "UPDATE agreements SET total_pusd = total_pusd + :pusd WHERE task = :task",
        (
            "UPDATE channels_in SET owed_pusd = owed_pusd + :pusd, issued = issued + (:code = 0)"
            " WHERE channel = :channel"
        ),
    ),
    # As "receipt_issued", for several results of a task; `pusd` and `count` are of all together.
    "receipts_issued": (
        (
            "INSERT INTO receipts_issued (task, idx, code, digest, units, pusd, envelope)"
            " VALUES (:task, :idx, 0, :digest, :units, :pusd, :envelope)"
        ),
        "UPDATE agreements SET total_pusd = total_pusd + :pusd WHERE task = :task",
        "UPDATE channels_in SET owed_pusd = owed_pusd + :pusd, issued = issued + :count WHERE channel = :channel",
    ),
    "voucher_taken": (
        (
            "UPDATE channels_in SET best_uusd = :amount_uusd, memo = :memo, signature = :signature, peer = :peer"
            " WHERE channel = :channel"
        ),
        _PAID,
    ),
    "owed_rebased": (
        "UPDATE channels_in SET owed_pusd = owed_pusd + :pusd, base_pusd = base_pusd + :pusd WHERE channel = :channel",
    ),
    "chain_read_in": (
        (
            "UPDATE channels_in SET deposit_uusd = :deposit_uusd, claimed_uusd = :claimed_uusd,"
            " close_at_s = :close_at_s WHERE channel = :channel"
        ),
    ),
    "consent_given": (
        (
            "INSERT INTO consents (channel, epoch, amount_uusd, deadline_s, signature)"
            " VALUES (:channel, :epoch, :amount_uusd, :deadline_s, :signature) ON CONFLICT (channel) DO UPDATE SET"
            " epoch = :epoch, amount_uusd = :amount_uusd, deadline_s = :deadline_s, signature = :signature"
        ),
    ),
    "consent_ended": ("DELETE FROM consents WHERE channel = :channel",),
    "channel_out_opened": ("INSERT INTO channels_out (channel, payee, peer) VALUES (:channel, :payee, :peer)",),
    "channel_out_peer": ("UPDATE channels_out SET peer = :peer WHERE channel = :channel",),
    "work_accepted": (
        (
            "INSERT INTO receipts_held (task, idx, code, digest, units, pusd, envelope, verdict, sampled)"
            " VALUES (:task, :idx, 0, :digest, :units, :pusd, :envelope, 'accepted', :sampled)"
        ),
        "UPDATE agreements SET total_pusd = total_pusd + :pusd WHERE task = :task",
        "UPDATE channels_out SET accepted_pusd = accepted_pusd + :pusd WHERE channel = :channel",
    ),
    # As "work_accepted", which older ledgers have: the receipt is also the next leaf of its channel's tree.
    "work_rooted": (
        (
            "INSERT INTO receipts_held (task, idx, code, digest, units, pusd, envelope, verdict, sampled, leaf)"
            " VALUES (:task, :idx, 0, :digest, :units, :pusd, :envelope, 'accepted', :sampled,"
            " (SELECT leaves FROM channels_out WHERE channel = :channel))"
        ),
        "UPDATE agreements SET total_pusd = total_pusd + :pusd WHERE task = :task",
        ("UPDATE channels_out SET accepted_pusd = accepted_pusd + :pusd, leaves = leaves + 1 WHERE channel = :channel"),
    ),
    # As "work_rooted", for several receipts, which are the next leaves in the order of `nth`, from 0.
    "works_rooted": (
        (
            "INSERT INTO receipts_held (task, idx, code, digest, units, pusd, envelope, verdict, sampled, leaf)"
            " VALUES (:task, :idx, 0, :digest, :units, :pusd, :envelope, 'accepted', :sampled,"
            " (SELECT leaves FROM channels_out WHERE channel = :channel) + :nth)"
        ),
        "UPDATE agreements SET total_pusd = total_pusd + :pusd WHERE task = :task",
        (
            "UPDATE channels_out SET accepted_pusd = accepted_pusd + :pusd, leaves = leaves + :count"
            " WHERE channel = :channel"
        ),
    ),
    "voucher_rooted": (
        "UPDATE channels_out SET signed_leaves = :leaves, signed_peaks = :peaks WHERE channel = :channel",
    ),
    "receipts_told": (
        "UPDATE channels_out SET told_leaves = signed_leaves, told_peaks = signed_peaks WHERE channel = :channel",
    ),
    # As "voucher_taken", with receipts that its memo is the root of.
    "voucher_covered": (
        (
            "UPDATE channels_in SET best_uusd = :amount_uusd, memo = :memo, signature = :signature, peer = :peer,"
            " leaves = :leaves, peaks = :peaks, rooted_leaves = :leaves WHERE channel = :channel"
        ),
        _PAID,
        "INSERT INTO covers (channel, first, refs) VALUES (:channel, :first, :refs)",
    ),
    # The chain says of the channel that more, or less, of its best voucher counts than did.
    "voucher_counts_more": (_PAID,),
    "voucher_counts_less": ("UPDATE peers SET paid_uusd = max(0, paid_uusd - :lost_uusd) WHERE peer = :peer",),
    "memo_rooted": ("UPDATE channels_in SET rooted_leaves = :leaves WHERE channel = :channel",),
    "work_rejected": (
        (
            "INSERT INTO receipts_held (task, idx, code, digest, units, pusd, envelope, verdict, sampled, reason)"
            " VALUES (:task, :idx, :code, :digest, :units, 0, :envelope, 'rejected', :sampled, :reason)"
        ),
    ),
    "voucher_signed": (
        (
            "UPDATE channels_out SET voucher_uusd = :amount_uusd, memo = :memo, signature = :signature"
            " WHERE channel = :channel"
        ),
    ),
    "accepted_rebased": (
        (
            "UPDATE channels_out SET accepted_pusd = accepted_pusd + :pusd, base_pusd = base_pusd + :pusd"
            " WHERE channel = :channel"
        ),
    ),
    "voucher_acked": (
        "UPDATE channels_out SET acked_uusd = :amount_uusd WHERE channel = :channel",
        _SEEN,
        "UPDATE peers SET earned_uusd = earned_uusd + :gained_uusd WHERE peer = :peer",
    ),
    "chain_read_out": (
        "UPDATE channels_out SET deposit_uusd = :deposit_uusd, claimed_uusd = :claimed_uusd WHERE channel = :channel",
    ),
    "tx_queued": (
        "INSERT INTO outbox (id, sender, nonce, kind, hash, raw) VALUES (:id, :sender, :nonce, :kind, :hash, :raw)",
    ),
    "tx_row": ("INSERT INTO outbox_rows (id, channel, uusd) VALUES (:id, :channel, :uusd)",),
    "tx_state": ("UPDATE outbox SET state = :state, detail = :detail WHERE id = :id",),
    "claimed": ("UPDATE channels_in SET claimed_uusd = max(claimed_uusd, :claimed_uusd) WHERE channel = :channel",),
    "peer_failed": (_SEEN, "UPDATE peers SET failures = failures + 1 WHERE peer = :peer"),
    "peer_banned": (_SEEN, "UPDATE peers SET banned = :reason WHERE peer = :peer"),
    "credit_charged": (
        (
            "INSERT INTO credit (peer, subnet, hour, pusd) VALUES (:peer, :subnet, :hour, :pusd)"
            " ON CONFLICT (peer, subnet, hour) DO UPDATE SET pusd = pusd + excluded.pusd"
        ),
    ),
    "credit_set": ("UPDATE credit SET pusd = :pusd WHERE peer = :peer AND subnet = :subnet AND hour = :hour",),
    "credit_pruned": ("DELETE FROM credit WHERE hour < :hour OR pusd = 0",),
}
