"""The page that `payments.py --write` makes of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["page"]

HEAD = """# Payments: vouchers a second, restarts, gas

`make bench-payments` measures this and writes this page and `benchmarks/results/payments.json`. What a disk takes for
a sync bounds a single channel, so it stands first. Rows take turns in ten rounds, each in a process of its own; the
best one counts, since it is least disturbed, and the median stands beside it. `--directory` says on which disk the
ledgers lie.

"""

TAIL = """
## What is counted

**A voucher** is made (EIP-712, secp256k1), sent over a socket pair, checked (its signer is recovered, and compared with
the one that the payer's binding names), stored by a commit that is synced, and acknowledged. Payers, payees and ledgers
are those of a node; the hub is a model of it, asked once for each channel. Each voucher pays for one more chunk, and
its memo is the root over the receipts of all of them: the payee looks the new one up among those that it has issued and
makes the root itself; a benchmark in which one memo is not reproduced ends with an error.

- *Both ledgers*: the payer's voucher is on its disk before it is sent, and the payee's before it is acknowledged. Those
  are two commits in a row for each voucher. The ack is written at the payer along with what comes next, here the work
  that is accepted then. Payer and provider share one process here, and so one interpreter. Issuing a receipt is a
  commit of its own, and so is accepting it: in sequence they are not counted, at once they are.
- *Payers without ledgers* sign and send, and keep nothing, on a core of their own where there is one. This is how many
  vouchers a provider takes.
- *At once*: what waits while the disk syncs is committed together (group commit).

What is imported is kept out of the garbage collector's rounds, as in a node (`p2pcompute up`).

**The signer is recovered**, though checking against a key that is known would be somewhat faster: the hub recovers it
too, so a signature whose last byte is wrong would pass the check here and be worth nothing there.

**Exact balances**: after all payers have paid at once, each over its own channel, the provider's ledger holds the last
voucher of each, to the micro-USD, and the ledger's rules are checked; the benchmark ends with an error otherwise.

**A restart** opens the ledger, checks its rules, adds up what is unclaimed, as the settler does at first, and answers a
payer's hello with the best voucher. It is a ledger in which each channel has one voucher.

**Gas** is that of `tests/unit/chain/gas.json`, which a test compares with the contracts to the unit. A channel's life
is opening, paying for 10,000 chunks, one claim, and the end.
"""


def page(entries: Sequence[dict[str, Any]], machine: str) -> str:
    """Markdown of the figures; `machine` says where they were taken."""
    lines = ["| what | figure | has to be | |", "|---|---|---|---|"]
    for entry in entries:
        reach = "" if entry["reach"] is None else f"{'at least' if entry['least'] else 'at most'} {entry['reach']:,g}"
        verdict = {None: "", True: "reached", False: "**missed**"}[entry["ok"]]
        lines.append(f"| {entry['figure']} | {entry['value']:,g} {entry['unit']} | {reach} | {verdict} |")
    return f"{HEAD}{machine}.\n\n" + "\n".join(lines) + "\n" + TAIL
