"""The watch stream: vouchers left with a tower, and given back."""

from __future__ import annotations

import cbor2

from p2pcompute_protocols import channel, watch
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols.ids import Address

from ._material import (
    CHAIN,
    NETWORK,
    NOW,
    PAYEE,
    PAYER,
    PROVIDER,
    THIEF,
    Json,
    Wallet,
    bad_message,
    edited,
    message,
    plain,
    provider_binding,
    transcript,
    vector,
)

__all__ = ["watch_vectors"]


def _kept(amount: int, *, payer: Wallet = PAYER) -> watch.WatchedVoucher:
    domain = channel.Domain(chain_id=CHAIN.chain_id, contract=Address(CHAIN.hub))
    made = channel.Voucher(
        channel=channel.channel_id(payer.address, PAYEE.address, payer.address), amount_uusd=amount, memo=bytes(32)
    )
    return watch.WatchedVoucher(
        payer=payer.address,
        signer=payer.address,
        amount_uusd=amount,
        memo=bytes(32),
        signature=payer.sign_digest(channel.voucher_digest(domain, made)),
    )


def watch_vectors() -> Json:
    hello = watch.WatchHello(chain=CHAIN, owner=provider_binding())
    low, high = sorted((_kept(5), _kept(7, payer=THIEF)), key=lambda one: one.place)
    five = _kept(5)
    welcome = watch.WatchWelcome(kept=0, room=3)
    given = watch.WatchGiven(vouchers=(low, high), more=False)
    no = watch.WatchRefusal(code=13, detail="not for you")
    accept = [
        vector(
            "the binding of the owner",
            "binding",
            provider_binding().encode(),
            context={"peer_id": PROVIDER.peer_id},
            expect=plain(provider_binding()),
        ),
        message("hello", hello),
        message("keep", watch.WatchKeep(voucher=five)),
        message("fetch from the first", watch.WatchFetch()),
        message("fetch from behind one", watch.WatchFetch(after=five.place)),
        message("welcome", welcome),
        message("kept", watch.WatchKept(amount_uusd=5)),
        message("the largest amount on the wire", watch.WatchKept(amount_uusd=2**64 - 1)),
        message("nothing to give", watch.WatchGiven(vouchers=(), more=False)),
        message("two vouchers", given),
        message("a voucher, and there are more", watch.WatchGiven(vouchers=(low,), more=True)),
        message("a refusal", no),
    ]
    raw_low, raw_high = cbor2.loads(low.encode()), cbor2.loads(high.encode())
    reject = [
        bad_message("a voucher of nothing", edited(watch.WatchKeep(voucher=five), k1={**raw_low, 3: 0}), "OVERSIZED"),
        bad_message("an amount above uint64", edited(watch.WatchKept(amount_uusd=5), k1=2**64), "MALFORMED"),
        bad_message(
            "a payer of 19 bytes", edited(watch.WatchKeep(voucher=five), k1={**raw_low, 1: bytes(19)}), "OVERSIZED"
        ),
        bad_message(
            "a signature of 64 bytes", edited(watch.WatchKeep(voucher=five), k1={**raw_low, 5: bytes(64)}), "OVERSIZED"
        ),
        bad_message("after one address only", edited(watch.WatchFetch(after=bytes(40)), k1=bytes(20)), "OVERSIZED"),
        bad_message("vouchers that descend", edited(given, k1=[raw_high, raw_low]), "MALFORMED"),
        bad_message("one channel twice", edited(given, k1=[raw_low, raw_low]), "MALFORMED"),
        bad_message("more behind nothing", edited(given, k1=[], k2=True), "MALFORMED"),
        bad_message(
            "65 vouchers",
            edited(given, k1=[{**raw_low, 1: n.to_bytes(20, "big")} for n in range(65)]),
            "OVERSIZED",
        ),
        bad_message("a refusal without a reason", edited(no, k1=0), "OVERSIZED"),
        bad_message("an extension where there are none", edited(welcome, k1000=1), "MALFORMED"),
        vector(
            "a binding that has expired",
            "binding",
            bind_signer(NETWORK, PROVIDER.peer_id, PAYEE, sequence=1, expires_ms=NOW).encode(),
            context={"peer_id": PROVIDER.peer_id},
            code="EXPIRED",
        ),
    ]
    r, v = "requester", "provider"
    keep, kept = watch.WatchKeep(voucher=five), watch.WatchKept(amount_uusd=5)
    opened = [(r, hello), (v, welcome)]
    transcripts = [
        transcript(
            "a voucher is kept, and given back",
            [
                *opened,
                (r, keep),
                (v, kept),
                (r, watch.WatchFetch()),
                (v, watch.WatchGiven(vouchers=(five,), more=False)),
            ],
        ),
        transcript("a better one was there", [*opened, (r, keep), (v, watch.WatchKept(amount_uusd=6))]),
        transcript(
            "page by page",
            [
                *opened,
                (r, watch.WatchFetch()),
                (v, watch.WatchGiven(vouchers=(low,), more=True)),
                (r, watch.WatchFetch(after=low.place)),
                (v, watch.WatchGiven(vouchers=(high,), more=False)),
            ],
        ),
        transcript(
            "no room, then another question",
            [*opened, (r, keep), (v, no), (r, watch.WatchFetch()), (v, watch.WatchGiven(vouchers=(), more=False))],
        ),
        transcript("a refused hello", [(r, hello), (v, no)]),
        transcript("a voucher before hello", [(r, keep, "OUT_OF_ORDER")]),
        transcript("a voucher before the welcome", [(r, hello), (r, keep, "OUT_OF_ORDER")]),
        transcript("two vouchers at once", [*opened, (r, keep), (r, keep, "OUT_OF_ORDER")]),
        transcript(
            "less is kept than was sent", [*opened, (r, keep), (v, watch.WatchKept(amount_uusd=4), "OUT_OF_ORDER")]
        ),
        transcript(
            "the same page again",
            [
                *opened,
                (r, watch.WatchFetch(after=high.place)),
                (v, watch.WatchGiven(vouchers=(high,), more=False), "OUT_OF_ORDER"),
            ],
        ),
        transcript("vouchers that nobody asked for", [*opened, (v, given, "OUT_OF_ORDER")]),
        transcript("the tower says hello", [(v, hello, "OUT_OF_ORDER")]),
        transcript("a frame above the bound", [(r, b"\x81\x80\x04", "OVERSIZED")]),
    ]
    return {"accept": accept, "reject": reject, "transcripts": transcripts}
