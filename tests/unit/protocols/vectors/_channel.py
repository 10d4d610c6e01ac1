"""Vouchers and the channel stream."""

from __future__ import annotations

import cbor2

from p2pcompute_protocols import channel
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols.ids import Address

from ._material import (
    CHAIN,
    NETWORK,
    NOW,
    PAYEE,
    PAYER,
    REQUESTER,
    THIEF,
    Json,
    Wallet,
    bad_message,
    binding,
    edited,
    message,
    plain,
    sha,
    transcript,
    vector,
)

__all__ = ["channel_vectors"]

DEADLINE_S = 1_800_000_000


def channel_vectors() -> Json:
    domain = channel.Domain(chain_id=CHAIN.chain_id, contract=Address(CHAIN.hub))
    channel_id = channel.channel_id(PAYER.address, PAYEE.address, PAYER.address)

    def signed(
        amount: int,
        memo: bytes = bytes(32),
        *,
        wallet: Wallet = PAYER,
        where: channel.Domain = domain,
        to: bytes = channel_id,
    ) -> bytes:
        made = channel.Voucher(channel=to, amount_uusd=amount, memo=memo)  # type: ignore[arg-type]
        return wallet.sign_digest(channel.voucher_digest(where, made))

    def context(amount: int, memo: bytes = bytes(32)) -> Json:
        return {
            "chain_id": CHAIN.chain_id,
            "hub": CHAIN.hub.hex(),
            "payer": PAYER.address.hex(),
            "payee": PAYEE.address.hex(),
            "signer": PAYER.address.hex(),
            "amount_uusd": amount,
            "memo": memo.hex(),
        }

    def taken(name: str, amount: int, memo: bytes = bytes(32)) -> Json:
        made = channel.Voucher(channel=channel_id, amount_uusd=amount, memo=memo)
        return vector(
            name,
            "voucher",
            signed(amount, memo),
            context=context(amount, memo),
            expect={
                "signer": PAYER.address.hex(),
                "channel": channel_id.hex(),
                "digest": channel.voucher_digest(domain, made).hex(),
            },
        )

    def refused(name: str, signature: bytes, code: str = "BAD_VOUCHER", amount: int = 5) -> Json:
        return vector(name, "voucher", signature, context=context(amount), code=code)

    def agreed(amount: int, epoch: int, *, wallet: Wallet = PAYEE, where: channel.Domain = domain) -> bytes:
        made = channel.CloseConsent(channel=channel_id, epoch=epoch, amount_uusd=amount, deadline_s=DEADLINE_S)
        return wallet.sign_digest(channel.close_digest(where, made))

    def consent_context(amount: int, epoch: int, deadline_s: int = DEADLINE_S) -> Json:
        who = {key: value for key, value in context(amount).items() if key != "memo"}
        return {**who, "epoch": epoch, "deadline_s": deadline_s}

    def consented(name: str, amount: int, epoch: int) -> Json:
        made = channel.CloseConsent(channel=channel_id, epoch=epoch, amount_uusd=amount, deadline_s=DEADLINE_S)
        return vector(
            name,
            "consent",
            agreed(amount, epoch),
            context=consent_context(amount, epoch),
            expect={
                "closer": PAYEE.address.hex(),
                "channel": channel_id.hex(),
                "digest": channel.close_digest(domain, made).hex(),
            },
        )

    def no_consent(name: str, signature: bytes, *, code: str = "BAD_SIGNATURE", **changes: int) -> Json:
        fields = {**consent_context(5, 1), **changes}
        return vector(name, "consent", signature, context=fields, code=code)

    good = signed(5)
    n = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    high = good[:32] + (n - int.from_bytes(good[32:64], "big")).to_bytes(32, "big") + bytes([55 - good[64]])
    hello = channel.ChannelHello(chain=CHAIN, payer=binding(), payee=PAYEE.address)

    def voucher(amount: int) -> channel.VoucherFrame:
        return channel.VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=signed(amount))

    def covering(first: int | None, *chunks: int) -> channel.VoucherFrame:
        refs = tuple(channel.ReceiptRef(task=sha(b"task"), index=chunk) for chunk in chunks)
        memo = sha(b"receipts")
        return channel.VoucherFrame(amount_uusd=5, memo=memo, signature=signed(5, memo), first=first, receipts=refs)

    covered = covering(7, 3, 0, 2**20 - 1)
    nothing = channel.ChannelSync(amount_uusd=0)
    held = channel.ChannelSync(amount_uusd=7, memo=bytes(32), signature=signed(7))
    no = channel.VoucherRefusal(code=20, detail="the deposit is 4", best_uusd=0, deposit_uusd=4)
    consent = agreed(5, 1)
    high_consent = consent[:32] + (n - int.from_bytes(consent[32:64], "big")).to_bytes(32, "big")
    high_consent += bytes([55 - consent[64]])
    close = channel.CloseAsk(amount_uusd=7)
    closed = channel.ConsentFrame(epoch=1, deadline_s=DEADLINE_S, signature=agreed(7, 1))
    busy = channel.VoucherRefusal(code=18, detail="work is under way", best_uusd=7)
    accept = [
        taken("a voucher", 5),
        taken("the smallest voucher", 1),
        taken("a voucher of nothing", 0),
        taken("the largest amount on the wire", 2**64 - 1),
        taken("the largest amount on chain", 2**96 - 1),
        taken("a voucher with a memo", 5, sha(b"receipts")),
        consented("a consent to close a channel", 5, 1),
        consented("a consent to close one on which nothing was paid, for the first time", 0, 0),
        consented("the last consent that a channel can have", 5, 2**24 - 2),
        vector(
            "the binding of the payer",
            "binding",
            binding().encode(),
            context={"peer_id": REQUESTER.peer_id},
            expect=plain(binding()),
        ),
        message("hello", hello),
        message("a sync that holds nothing", nothing),
        message("a sync that holds a voucher", held),
        message("a voucher on its way", voucher(5)),
        message("a voucher that names receipts", covered),
        message("a voucher that names as many receipts as it may", covering(0, *range(512))),
        message("an ack", channel.VoucherAck(amount_uusd=5)),
        message("a refusal", no),
        message("a request to close at once", close),
        message("a consent on its way", closed),
        message("a refusal that does not know the deposit", channel.VoucherRefusal(code=19, detail="", best_uusd=3)),
    ]
    other_hub = channel.Domain(chain_id=CHAIN.chain_id, contract=Address(b"\xac" * 20))
    other_chain = channel.Domain(chain_id=1, contract=Address(CHAIN.hub))
    other_channel = channel.channel_id(PAYER.address, THIEF.address, PAYER.address)
    to_thief = channel.CloseConsent(channel=other_channel, epoch=1, amount_uusd=5, deadline_s=DEADLINE_S)
    elsewhere = PAYEE.sign_digest(channel.close_digest(domain, to_thief))
    reject = [
        refused("another amount than signed", good, amount=6),
        refused("signed by a thief", signed(5, wallet=THIEF)),
        refused("signed by the payee", signed(5, wallet=PAYEE)),
        refused("a voucher for another payee", signed(5, to=other_channel)),
        refused("a voucher for another hub", signed(5, where=other_hub)),
        refused("a voucher for another chain", signed(5, where=other_chain)),
        refused("another memo than signed", signed(5, sha(b"x"))),
        refused("a high s: the second form of a good signature", high),
        refused("v is 0", good[:64] + b"\x00"),
        refused("v is 29", good[:64] + b"\x1d"),
        refused("64 bytes", good[:64]),
        refused("66 bytes", good + b"\0"),
        refused("r is 0", bytes(32) + good[32:]),
        refused("s is 0", good[:32] + bytes(32) + good[64:]),
        refused("r is the group order", n.to_bytes(32, "big") + good[32:]),
        no_consent("a consent signed by the payer", agreed(5, 1, wallet=PAYER)),
        no_consent("a consent for another hub", agreed(5, 1, where=other_hub)),
        no_consent("a consent for another chain", agreed(5, 1, where=other_chain)),
        no_consent("a consent of another epoch", agreed(5, 0)),
        no_consent("a consent at another total", agreed(4, 1)),
        no_consent("a consent with another deadline", consent, deadline_s=DEADLINE_S + 1),
        no_consent("a consent of another channel", elsewhere),
        no_consent("a voucher in the place of a consent", good),
        no_consent("a consent with a high s", high_consent),
        no_consent("an epoch that no closing has", consent, epoch=2**24 - 1, code="OVERSIZED"),
        no_consent("a deadline above 40 bits", consent, deadline_s=2**40, code="OVERSIZED"),
        bad_message("an epoch that no closing has, on its way", edited(closed, k1=2**24 - 1), "OVERSIZED"),
        bad_message("a deadline above 40 bits, on its way", edited(closed, k2=2**40), "OVERSIZED"),
        bad_message("an amount above uint64", edited(voucher(5), k1=2**64), "MALFORMED"),
        bad_message("a negative amount", edited(voucher(5), k1=-1), "MALFORMED"),
        bad_message("an amount in text", edited(voucher(5), k1="5"), "MALFORMED"),
        bad_message("a signature of 64 bytes on its way", edited(voucher(5), k3=bytes(64)), "OVERSIZED"),
        bad_message("receipts without the number of the first", edited(covered, k4=None), "MALFORMED"),
        bad_message("the number of the first of no receipts", edited(covered, k5=None), "MALFORMED"),
        bad_message("an empty list of receipts", edited(covered, k5=[]), "MALFORMED"),
        bad_message(
            "more receipts than one voucher may name",
            edited(covered, k5=[{1: sha(b"task"), 2: chunk} for chunk in range(513)]),
            "OVERSIZED",
        ),
        bad_message("a receipt of a task of 31 bytes", edited(covered, k5=[{1: bytes(31), 2: 0}]), "OVERSIZED"),
        bad_message("a first one beyond the largest tree", edited(covered, k4=2**20), "OVERSIZED"),
        bad_message("a sync above zero without its voucher", b"\xa2\x00\x11\x01\x07", "MALFORMED"),
        bad_message("a sync of zero with a voucher", edited(held, k1=0), "MALFORMED"),
        bad_message("a refusal without a reason", edited(no, k1=0), "OVERSIZED"),
        bad_message("chain 0", edited(hello, k1={**cbor2.loads(CHAIN.encode()), 1: 0}), "OVERSIZED"),
        bad_message("an extension where there are none", edited(voucher(5), k1000=1), "MALFORMED"),
        bad_message("hello twice in one frame", hello.encode() * 2, "MALFORMED"),
        vector(
            "a binding that has expired",
            "binding",
            bind_signer(NETWORK, REQUESTER.peer_id, PAYER, sequence=1, expires_ms=NOW).encode(),
            context={"peer_id": REQUESTER.peer_id},
            code="EXPIRED",
        ),
    ]
    r, v = "requester", "provider"
    transcripts = [
        transcript(
            "two vouchers",
            [
                (r, hello),
                (v, nothing),
                (r, voucher(5)),
                (v, channel.VoucherAck(amount_uusd=5)),
                (r, voucher(6)),
                (v, channel.VoucherAck(amount_uusd=6)),
            ],
        ),
        transcript(
            "the payee shows what it holds, and the payer goes on from there",
            [(r, hello), (v, held), (r, voucher(8)), (v, channel.VoucherAck(amount_uusd=8))],
        ),
        transcript(
            "a refused voucher, then a better one",
            [
                (r, hello),
                (v, nothing),
                (r, voucher(5)),
                (v, no),
                (r, voucher(4)),
                (v, channel.VoucherAck(amount_uusd=4)),
            ],
        ),
        transcript("a refused hello", [(r, hello), (v, no)]),
        transcript("a voucher before hello", [(r, voucher(5), "OUT_OF_ORDER")]),
        transcript("a voucher before the sync", [(r, hello), (r, voucher(5), "OUT_OF_ORDER")]),
        transcript(
            "two vouchers at once", [(r, hello), (v, nothing), (r, voucher(5)), (r, voucher(6), "OUT_OF_ORDER")]
        ),
        transcript(
            "a voucher that goes back",
            [
                (r, hello),
                (v, nothing),
                (r, voucher(5)),
                (v, channel.VoucherAck(amount_uusd=5)),
                (r, voucher(4), "BAD_VOUCHER"),
            ],
        ),
        transcript(
            "a voucher that stands still",
            [
                (r, hello),
                (v, nothing),
                (r, voucher(5)),
                (v, channel.VoucherAck(amount_uusd=5)),
                (r, voucher(5), "BAD_VOUCHER"),
            ],
        ),
        transcript("a voucher below what the payee holds", [(r, hello), (v, held), (r, voucher(7), "BAD_VOUCHER")]),
        transcript(
            "an ack for more than was sent",
            [(r, hello), (v, nothing), (r, voucher(5)), (v, channel.VoucherAck(amount_uusd=6), "OUT_OF_ORDER")],
        ),
        transcript(
            "an ack without a voucher",
            [(r, hello), (v, nothing), (v, channel.VoucherAck(amount_uusd=0), "OUT_OF_ORDER")],
        ),
        transcript("closed with the payee's consent", [(r, hello), (v, held), (r, close), (v, closed)]),
        transcript(
            "refused a consent, the payer pays, and asks again",
            [
                (r, hello),
                (v, held),
                (r, close),
                (v, busy),
                (r, voucher(8)),
                (v, channel.VoucherAck(amount_uusd=8)),
                (r, channel.CloseAsk(amount_uusd=8)),
                (v, closed),
            ],
        ),
        transcript(
            "a closing below what is held", [(r, hello), (v, held), (r, channel.CloseAsk(amount_uusd=6), "BAD_VOUCHER")]
        ),
        transcript("a closing before the sync", [(r, hello), (r, close, "OUT_OF_ORDER")]),
        transcript("a voucher behind a closing", [(r, hello), (v, held), (r, close), (r, voucher(8), "OUT_OF_ORDER")]),
        transcript(
            "a voucher behind a consent",
            [(r, hello), (v, held), (r, close), (v, closed), (r, voucher(8), "OUT_OF_ORDER")],
        ),
        transcript("a consent that nobody asked for", [(r, hello), (v, held), (v, closed, "OUT_OF_ORDER")]),
        transcript("the payee says hello", [(v, hello, "OUT_OF_ORDER")]),
        transcript("a frame above the bound", [(r, b"\x81\x80\x04", "OVERSIZED")]),
    ]
    return {"accept": accept, "reject": reject, "transcripts": transcripts}
