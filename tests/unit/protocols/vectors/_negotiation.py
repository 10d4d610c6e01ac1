"""Orders, bids, terms and agreements."""

from __future__ import annotations

import dataclasses
from typing import Final

import cbor2

from p2pcompute_protocols import negotiation
from p2pcompute_protocols.ids import peer_id_to_bytes
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import OutArg, SplitArg

from ._material import (
    CHAIN,
    DATA,
    KERNEL,
    MANIFEST,
    NOW,
    PAYEE,
    PROVIDER,
    REQUESTER,
    STRANGER,
    THIEF,
    Json,
    Node,
    bad_message,
    binding,
    cose,
    edited,
    message,
    plain,
    program_work,
    provider_binding,
    round_work,
    sha,
    split_work,
    transcript,
    vector,
    work,
)

__all__ = ["negotiation_vectors"]


def an_order(**changes: object) -> negotiation.OrderPayload:
    made = negotiation.OrderPayload(
        order_id=b"\x01" * 16,
        created_ms=NOW - 500,
        expires_ms=NOW + 60_000,
        work=work(),
        requirement=negotiation.Requirement(
            kinds=("cuda", "cpu"), memory_bytes=2**20, features=(), min_score_milli=0, region="eu"
        ),
        max_price_pusd=2_000,
        ceiling_uusd=1_000_000,
        chain=CHAIN,
        payer=binding(),
        check=negotiation.CheckPolicy(kind="sample", per_chunk=4),
        fp="strict",
        language="p2p-1",
        deadline_ms=NOW + 3_600_000,
        standing=False,
        arbiters=(STRANGER.peer_id,),
        group_id=b"\x02" * 16,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def a_bid(order: bytes, **changes: object) -> negotiation.BidPayload:
    made = negotiation.BidPayload(
        order_digest=sha(order),
        price_pusd=1_500,
        slots=2,
        credit_window=1,
        max_window=8,
        payee=PAYEE.address,
        score_milli=250_000,
        valid_until_ms=NOW + 30_000,
        chunk_timeout_ms=10_000,
        timeout_payer="provider",
        hold_until_ms=NOW + 20_000,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def some_terms(order: bytes, bid: bytes, **changes: object) -> negotiation.Terms:
    asked, offered = an_order(), a_bid(order)
    made = negotiation.Terms(
        version=1,
        order_digest=sha(order),
        bid_digest=sha(bid),
        requester=REQUESTER.peer_id,
        provider=PROVIDER.peer_id,
        created_ms=NOW,
        deadline_ms=asked.deadline_ms,
        work=asked.work,
        standing=False,
        chain=CHAIN,
        payer=asked.payer,
        payee=offered.payee,
        price_pusd=offered.price_pusd,
        ceiling_uusd=asked.ceiling_uusd,
        credit_window=offered.credit_window,
        max_window=offered.max_window,
        check=asked.check,
        arbiters=asked.arbiters,
        language=asked.language,
        fp=asked.fp,
        chunk_timeout_ms=offered.chunk_timeout_ms,
        timeout_payer=offered.timeout_payer,
        slots=offered.slots,
        group_id=asked.group_id,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


TO_PROVIDER: Final = peer_id_to_bytes(PROVIDER.peer_id)
TO_REQUESTER: Final = peer_id_to_bytes(REQUESTER.peer_id)


def order_bytes(payload: bytes | None = None, **more: object) -> bytes:
    return cose("order", payload or an_order().encode(), REQUESTER, **{"aad": TO_PROVIDER, **more})  # type: ignore[arg-type]


def bid_bytes(payload: bytes | None = None, **more: object) -> bytes:
    return cose("bid", payload or a_bid(order_bytes()).encode(), PROVIDER, **{"aad": TO_REQUESTER, **more})  # type: ignore[arg-type]


def terms_bytes(payload: bytes | None = None, node: Node = REQUESTER, **more: object) -> bytes:
    return cose("terms", payload or some_terms(order_bytes(), bid_bytes()).encode(), node, **more)  # type: ignore[arg-type]


def agreement_bytes(terms: bytes | None = None, node: Node = PROVIDER, **more: object) -> bytes:
    return cose("agreement", terms or terms_bytes(), node, **more)  # type: ignore[arg-type]


def negotiation_vectors() -> Json:
    order, bid, terms = order_bytes(), bid_bytes(), terms_bytes()
    agreement = agreement_bytes()
    made_terms = some_terms(order, bid)
    standing = an_order(standing=True)
    open_ended = an_order(work=None, standing=True)
    quorum = negotiation.CheckPolicy(kind="quorum", per_chunk=0)

    def taken(name: str, op: str, data: bytes, record: Record, **more: object) -> Json:
        return vector(name, op, data, expect=plain(record), **more)

    def refused(name: str, op: str, data: bytes, code: str, **more: object) -> Json:
        return vector(name, op, data, code=code, **more)

    refusal = negotiation.RefusalPayload(order_digest=sha(order), code=13, detail="full", retry_after_ms=500)
    work_map = cbor2.loads(work().encode())
    out_map = work_map[4][-1][1]
    combined = an_order(
        work=work(args=(*work().args, OutArg(dtype="float32", shape=(20, 3), reduce="sum")), chunk_output_bytes=32)
    )
    program_map = cbor2.loads(program_work().encode())
    over_tiles = an_order(work=split_work())
    split_map = cbor2.loads(split_work().encode())
    cut = split_map[4][1][1]
    round_map = cbor2.loads(round_work().encode())
    without_splits = {key: value for key, value in round_map[1][0].items() if key != 5}
    (one_split,) = round_map[1][0][5]
    plane = {1: 2, 2: [4, 1, 1], 3: [4, 1, 1]}
    in_rounds = an_order(work=round_work())
    ordered = an_order(
        work=program_work(),
        requirement=negotiation.Requirement(
            kinds=("cpu",), memory_bytes=0, features=(program_work().program.feature,), min_score_milli=0
        ),
        check=negotiation.CheckPolicy(kind="none", per_chunk=0),
    )
    batch = an_order(
        work=program_work(
            args=(
                *program_work().args,
                SplitArg(
                    dtype="uint8",
                    shape=(20, 6),
                    tile=(4, 6),
                    axes=(0,),
                    halo=(0,),
                    edge="zero",
                    manifest=sha(MANIFEST),
                ),
            )
        )
    )
    tolerance = negotiation.Tolerance.of(rtol32=1e-4, atol32=1e-6, rtol64=1e-9, atol64=0.0)
    fast = negotiation.CheckPolicy(kind="sample", per_chunk=4, tolerance=tolerance)
    check_map = fast.to_map()
    tolerance_map = tolerance.to_map()
    swapped = cose("terms", made_terms.encode(), PROVIDER)
    dearer = order_bytes(an_order(max_price_pusd=1_499).encode())
    accept = [
        taken("an order", "order", order, an_order()),
        taken(
            "an order without a group", "order", order_bytes(an_order(group_id=None).encode()), an_order(group_id=None)
        ),
        taken("an order for a standing agreement", "order", order_bytes(standing.encode()), standing),
        taken("an order for a standing agreement on any work", "order", order_bytes(open_ended.encode()), open_ended),
        taken(
            "an order from a clock two minutes ahead",
            "order",
            order_bytes(an_order(created_ms=NOW + 120_000, expires_ms=NOW + 120_001).encode()),
            an_order(created_ms=NOW + 120_000, expires_ms=NOW + 120_001),
        ),
        taken("an order with an extension", "order", order_bytes(edited(an_order(), k1234={5: [True]})), an_order()),
        taken("an order whose output is combined", "order", order_bytes(combined.encode()), combined),
        taken("an order with a split input", "order", order_bytes(over_tiles.encode()), over_tiles),
        taken(
            "an order for calls of a program",
            "order",
            order_bytes(ordered.encode()),
            ordered,
            feature=program_work().program.feature,
        ),
        taken("an order for calls of a program over a batch in tiles", "order", order_bytes(batch.encode()), batch),
        taken("an order for rounds", "order", order_bytes(in_rounds.encode()), in_rounds),
        taken("a bid", "bid", bid, a_bid(order)),
        taken(
            "a bid that holds nothing",
            "bid",
            bid_bytes(a_bid(order, hold_until_ms=None).encode()),
            a_bid(order, hold_until_ms=None),
        ),
        taken("a refusal", "refusal", cose("refusal", refusal.encode(), PROVIDER, aad=TO_REQUESTER), refusal),
        taken("terms", "terms", terms, made_terms),
        taken(
            "an order whose results are compared",
            "order",
            order_bytes(an_order(check=quorum).encode()),
            an_order(check=quorum),
        ),
        taken(
            "an order in fast mode",
            "order",
            order_bytes(an_order(fp="fast", check=fast).encode()),
            an_order(fp="fast", check=fast),
        ),
        taken("an agreement", "agreement", agreement, made_terms, task_id=sha(agreement).hex()),
        taken("a bid for this order", "bid-answers-order", bid, a_bid(order), context={"order": order.hex()}),
        taken(
            "terms that follow order and bid",
            "terms-follow-bid",
            terms,
            made_terms,
            context={"order": order.hex(), "bid": bid.hex()},
        ),
        vector(
            "the binding of the payer",
            "binding",
            binding().encode(),
            context={"peer_id": REQUESTER.peer_id},
            expect=plain(binding()),
        ),
        message("an order on its way", negotiation.OrderFrame(envelope=order)),
        message("an agreement on its way", negotiation.AcceptFrame(envelope=agreement)),
    ]
    reject = [
        refused(
            "an order for another provider",
            "order",
            order_bytes(aad=peer_id_to_bytes(STRANGER.peer_id)),
            "BAD_SIGNATURE",
        ),
        refused("an order for nobody", "order", order_bytes(aad=b""), "BAD_SIGNATURE"),
        refused(
            "an order of a stranger",
            "order",
            cose("order", an_order().encode(), STRANGER, aad=TO_PROVIDER),
            "WRONG_PEER",
        ),
        refused("an order of another network", "order", order_bytes(network="other"), "WRONG_NETWORK"),
        refused("a bid in place of an order", "order", bid, "UNSUPPORTED"),
        refused(
            "an order that has expired",
            "order",
            order_bytes(an_order(created_ms=NOW - 2, expires_ms=NOW).encode()),
            "EXPIRED",
        ),
        refused(
            "an order from the future",
            "order",
            order_bytes(an_order(created_ms=NOW + 120_001, expires_ms=NOW + 120_002).encode()),
            "EXPIRED",
        ),
        refused(
            "an order that lives more than ten minutes",
            "order",
            order_bytes(edited(an_order(), k3=NOW - 500 + 600_001)),
            "EXPIRED",
        ),
        refused(
            "tick, work tag 2, is reserved", "order", order_bytes(edited(an_order(), k4=[2, work_map])), "UNSUPPORTED"
        ),
        *(
            refused(name, "order", order_bytes(edited(an_order(), k4=[3, {**round_map, **changes}])), code)
            for name, changes, code in (
                ("chunks of more rounds than there are", {5: 21}, "MALFORMED"),
                ("rounds beyond the last number", {3: 2**31 - 1}, "OVERSIZED"),
                ("an array of the state that no launch gives", {2: [*round_map[2], round_map[2][1]]}, "MALFORMED"),
                (
                    "an array of the state that two launches give",
                    {1: [round_map[1][0], round_map[1][0], round_map[1][1]]},
                    "MALFORMED",
                ),
                ("an array that the state does not have", {2: round_map[2][:1]}, "MALFORMED"),
                ("nine launches a round", {1: round_map[1][:1] * 9}, "OVERSIZED"),
                (
                    "a launch that gives nothing",
                    {1: [*round_map[1], {**round_map[1][0], 4: [[3, {1: 0}]]}]},
                    "MALFORMED",
                ),
                ("a launch that says nothing of splits", {1: [without_splits, round_map[1][1]]}, "MALFORMED"),
                *(
                    (name, {1: [{**round_map[1][0], 5: splits}, round_map[1][1]]}, code)
                    for name, splits, code in (
                        ("a split of an argument that there is not", [{**one_split, 1: 4}], "MALFORMED"),
                        ("a split output", [{**one_split, 1: 0}], "MALFORMED"),
                        ("an input that is split twice", [one_split, one_split], "MALFORMED"),
                        ("a split along an axis that the launch does not have", [{**one_split, 2: [1]}], "MALFORMED"),
                        ("a split with two halos for an axis", [{**one_split, 3: [1, 1]}], "MALFORMED"),
                        ("a split with a halo above 2^20", [{**one_split, 3: [2**20 + 1]}], "OVERSIZED"),
                        ("a split with an edge rule that is none", [{**one_split, 4: "mirror"}], "UNSUPPORTED"),
                    )
                ),
                (
                    "an array with fewer axes than its launch",
                    {1: [{**round_map[1][0], 3: plane, 5: [{**one_split, 2: [1, 0], 3: [0, 0]}]}, round_map[1][1]]},
                    "MALFORMED",
                ),
                (
                    "a round whose windows are above 64 MiB",
                    {1: [{**round_map[1][0], 3: {**plane, 1: 1, 2: [2**26, 1, 1]}}, round_map[1][1]]},
                    "OVERSIZED",
                ),
                (
                    "a combined array without a shape",
                    {1: [round_map[1][0], {**round_map[1][1], 4: [[4, {1: 1, 3: "sum"}]]}]},
                    "MALFORMED",
                ),
                (
                    "a state with one digest and two sizes",
                    {2: [round_map[2][0], {**round_map[2][1], 3: sha(DATA)}]},
                    "BAD_DIGEST",
                ),
                (
                    "a state above 64 MiB",
                    {2: [{**round_map[2][0], 2: [2**26]}, {**round_map[2][1], 2: [2**26]}]},
                    "OVERSIZED",
                ),
            )
        ),
        refused("work tag 5 is unknown", "order", order_bytes(edited(an_order(), k4=[5, work_map])), "UNSUPPORTED"),
        *(
            refused(
                name,
                "order",
                order_bytes(
                    edited(
                        an_order(),
                        k4=[1, {**split_map, 4: [*split_map[4][:1], [4, {**cut, **changes}], *split_map[4][2:]]}],
                    )
                ),
                code,
            )
            for name, changes, code in (
                ("a tile that is larger than its array", {3: [21, 6]}, "MALFORMED"),
                ("a tile with fewer axes than its array", {3: [4]}, "MALFORMED"),
                ("a split input along an axis that the launch does not have", {4: [1]}, "MALFORMED"),
                ("a split input along one axis twice", {4: [0, 0], 5: [1, 1]}, "MALFORMED"),
                ("a split input along an axis too many", {4: [0, 1], 5: [1, 1]}, "MALFORMED"),
                ("a split input with a halo too many", {5: [1, 1]}, "MALFORMED"),
                ("a halo of 1048577", {5: [1_048_577]}, "OVERSIZED"),
                ("an unknown edge rule", {6: "mirror"}, "UNSUPPORTED"),
                ("a split input of 4 GiB and a byte", {2: [2**32 + 1, 1], 3: [2**22, 1]}, "OVERSIZED"),
                ("a split input whose extents multiply to 2^160", {2: [2**40] * 4, 3: [1] * 4}, "OVERSIZED"),
                ("a tile of 4 MiB and a byte", {2: [2**22 + 1, 1], 3: [2**22 + 1, 1]}, "OVERSIZED"),
                ("65537 tiles", {2: [65_537, 1], 3: [1, 1]}, "OVERSIZED"),
                ("a manifest that has the kernel's digest", {7: sha(KERNEL)}, "BAD_DIGEST"),
            )
        ),
        refused(
            "a program with an input that is split along more than its items",
            "order",
            order_bytes(
                edited(
                    an_order(),
                    k4=[4, {**program_map, 3: [*program_map[3], [4, {**cut, 4: [0, 1], 5: [1, 1]}]]}],
                )
            ),
            "MALFORMED",
        ),
        *(
            refused(name, "order", order_bytes(edited(an_order(), k4=[4, {**program_map, **changes}])), code)
            for name, changes, code in (
                ("a program without an output", {3: program_map[3][1:3]}, "MALFORMED"),
                ("a program whose output counts something else", {2: 21}, "MALFORMED"),
                ("chunks of more items than there are", {4: 21}, "MALFORMED"),
                (
                    "a program with 64 MiB and a byte a chunk",
                    {2: 1, 3: [[3, {1: "uint8", 2: [1, 2**26 + 1]}]], 4: 1},
                    "OVERSIZED",
                ),
                (
                    "a program in more than 1048576 chunks",
                    {2: 2**20 + 1, 3: [[3, {1: "uint8", 2: [2**20 + 1]}]], 4: 1},
                    "OVERSIZED",
                ),
                (
                    "a program whose inputs have one digest and two sizes",
                    {3: [*program_map[3], [2, {1: "uint8", 2: [17], 3: sha(DATA)}]]},
                    "BAD_DIGEST",
                ),
                (
                    "a program whose output is combined",
                    {3: [[3, {**out[1], 3: "sum"}] if out[0] == 3 else out for out in program_map[3]]},
                    "MALFORMED",
                ),
                ("a program that is not pinned", {1: {1: "soft-steps", 2: "1.2", 3: "step"}}, "MALFORMED"),
                ("a program with a name of 33 bytes", {1: {**program_map[1], 3: "s" * 33}}, "OVERSIZED"),
            )
        ),
        refused("fast mode without a tolerance", "order", order_bytes(edited(an_order(), k11="fast")), "MALFORMED"),
        refused("strict mode with a tolerance", "order", order_bytes(edited(an_order(), k10=check_map)), "MALFORMED"),
        *(
            refused(
                name,
                "order",
                order_bytes(edited(an_order(), k11="fast", k10={**check_map, 3: {**tolerance_map, **changes}})),
                code,
            )
            for name, changes, code in (
                ("a relative tolerance below what float32 can keep", {1: (1003 << 52) - 1}, "OVERSIZED"),
                ("a relative tolerance at which zeros come near", {1: (1019 << 52) + 1}, "OVERSIZED"),
                ("a relative tolerance that is no number", {3: 0x7FF8 << 48}, "OVERSIZED"),
                ("an absolute tolerance of infinity", {2: 0x7FF << 52}, "OVERSIZED"),
                ("an absolute tolerance below zero", {4: (1 << 63) | (1000 << 52)}, "OVERSIZED"),
                ("a tolerance as a float", {2: 1e-6}, "MALFORMED"),
            )
        ),
        refused(
            "an output combined by an unknown operation",
            "order",
            order_bytes(edited(an_order(), k4=[1, {**work_map, 4: [*work_map[4], [3, {**out_map, 3: "mean"}]]}])),
            "UNSUPPORTED",
        ),
        refused(
            "bools that are summed",
            "order",
            order_bytes(
                edited(an_order(), k4=[1, {**work_map, 4: [*work_map[4], [3, {**out_map, 1: "bool", 3: "sum"}]]}])
            ),
            "MALFORMED",
        ),
        refused("an order without work", "order", order_bytes(edited(an_order(), k4=None)), "MALFORMED"),
        refused(
            "work without an output",
            "order",
            order_bytes(edited(an_order(), k4=[1, {**work_map, 4: work_map[4][:2]}])),
            "MALFORMED",
        ),
        refused(
            "one digest with two sizes",
            "order",
            order_bytes(
                edited(an_order(), k4=[1, {**work_map, 4: [*work_map[4], [2, {1: "uint8", 2: [17], 3: sha(DATA)}]]}])
            ),
            "BAD_DIGEST",
        ),
        refused(
            "an input above 64 MiB",
            "order",
            order_bytes(
                edited(
                    an_order(), k4=[1, {**work_map, 4: [*work_map[4], [2, {1: "uint8", 2: [2**26 + 1], 3: bytes(32)}]]}]
                )
            ),
            "OVERSIZED",
        ),
        refused(
            "a block of 1025 threads",
            "order",
            order_bytes(edited(an_order(), k4=[1, {**work_map, 3: {1: 2, 2: [1, 1, 1], 3: [41, 25, 1]}}])),
            "OVERSIZED",
        ),
        refused(
            "more than 1048576 chunks",
            "order",
            order_bytes(edited(an_order(), k4=[1, {**work_map, 3: {1: 1, 2: [2**21 + 1, 1, 1], 3: [1, 1, 1]}}])),
            "OVERSIZED",
        ),
        refused(
            "a scalar of another width than its type",
            "order",
            order_bytes(edited(an_order(), k4=[1, {**work_map, 4: [[1, {1: "float64", 2: b"1234"}], work_map[4][2]]}])),
            "MALFORMED",
        ),
        refused("17 arbiters", "order", order_bytes(edited(an_order(), k15=[TO_PROVIDER] * 17)), "OVERSIZED"),
        refused("an arbiter that is no peer", "order", order_bytes(edited(an_order(), k15=[bytes(38)])), "MALFORMED"),
        refused("an order with a text key", "order", order_bytes(b"\xa1\x61a\x00"), "MALFORMED"),
        refused(
            "a bid for another requester", "bid", bid_bytes(aad=peer_id_to_bytes(STRANGER.peer_id)), "BAD_SIGNATURE"
        ),
        refused(
            "a bid of a stranger", "bid", cose("bid", a_bid(order).encode(), STRANGER, aad=TO_REQUESTER), "WRONG_PEER"
        ),
        refused(
            "a bid whose first window is above the largest", "bid", bid_bytes(edited(a_bid(order), k4=9)), "MALFORMED"
        ),
        refused(
            "a bid for another order",
            "bid-answers-order",
            bid_bytes(a_bid(b"another").encode()),
            "REPLAYED",
            context={"order": order.hex()},
        ),
        refused(
            "a bid above the order's price",
            "bid-answers-order",
            bid_bytes(a_bid(dearer).encode()),
            "MALFORMED",
            context={"order": dearer.hex()},
        ),
        refused(
            "a bid that has lapsed",
            "bid-answers-order",
            bid_bytes(a_bid(order, valid_until_ms=NOW).encode()),
            "EXPIRED",
            context={"order": order.hex()},
        ),
        refused(
            "terms with a lower price than the bid",
            "terms-follow-bid",
            terms_bytes(some_terms(order, bid, price_pusd=1_499).encode()),
            "MALFORMED",
            context={"order": order.hex(), "bid": bid.hex()},
        ),
        refused(
            "terms with another payee",
            "terms-follow-bid",
            terms_bytes(some_terms(order, bid, payee=THIEF.address).encode()),
            "MALFORMED",
            context={"order": order.hex(), "bid": bid.hex()},
        ),
        refused(
            "terms with another check",
            "terms-follow-bid",
            terms_bytes(some_terms(order, bid, check=negotiation.CheckPolicy(kind="none", per_chunk=0)).encode()),
            "MALFORMED",
            context={"order": order.hex(), "bid": bid.hex()},
        ),
        refused("terms of version 2", "terms", terms_bytes(edited(made_terms, k1=2)), "OVERSIZED"),
        refused("terms with an extension", "terms", terms_bytes(edited(made_terms, k1000=1)), "MALFORMED"),
        refused("terms with oneself", "terms", terms_bytes(edited(made_terms, k5=TO_REQUESTER)), "WRONG_PEER"),
        refused("terms with a deadline before they begin", "terms", terms_bytes(edited(made_terms, k7=NOW)), "EXPIRED"),
        refused(
            "terms of somebody else's payer",
            "terms",
            terms_bytes(edited(made_terms, k11=cbor2.loads(provider_binding().encode()))),
            "WRONG_PEER",
        ),
        refused(
            "swapped signatures: the provider inside, the requester outside",
            "agreement",
            agreement_bytes(swapped, REQUESTER),
            "WRONG_PEER",
        ),
        refused("the provider signed both halves", "agreement", agreement_bytes(swapped), "WRONG_PEER"),
        refused("only the requester has signed", "agreement", terms, "UNSUPPORTED"),
        refused("countersigned by a stranger", "agreement", agreement_bytes(node=STRANGER), "WRONG_PEER"),
        refused(
            "terms changed after they were signed",
            "agreement",
            agreement_bytes(terms.replace(PAYEE.address, THIEF.address)),
            "BAD_SIGNATURE",
        ),
        refused(
            "an agreement that names another provider",
            "agreement",
            agreement_bytes(terms_bytes(some_terms(order, bid, provider=STRANGER.peer_id).encode())),
            "WRONG_PEER",
        ),
        refused(
            "an agreement of another network inside",
            "agreement",
            agreement_bytes(terms_bytes(network="other")),
            "WRONG_NETWORK",
        ),
        refused(
            "a binding that was signed for another owner",
            "binding",
            binding(owner=THIEF.address).encode(),
            "BAD_SIGNATURE",
            context={"peer_id": REQUESTER.peer_id},
        ),
        refused(
            "a binding shown by another peer",
            "binding",
            binding().encode(),
            "WRONG_PEER",
            context={"peer_id": STRANGER.peer_id},
        ),
        bad_message("an empty envelope", edited(negotiation.OrderFrame(envelope=b"x"), k1=b""), "OVERSIZED"),
        bad_message(
            "an envelope above the bound", edited(negotiation.OrderFrame(envelope=b"x"), k1=bytes(57_345)), "OVERSIZED"
        ),
    ]
    o, b, p, a = (
        negotiation.OrderFrame(envelope=order),
        negotiation.BidFrame(envelope=bid),
        negotiation.ProposeFrame(envelope=terms),
        negotiation.AcceptFrame(envelope=agreement),
    )
    no = negotiation.RefusalFrame(envelope=cose("refusal", refusal.encode(), PROVIDER, aad=TO_REQUESTER))
    r, v = "requester", "provider"
    transcripts = [
        transcript("an agreement", [(r, o), (v, b), (r, p), (v, a)]),
        transcript("refused, then agreed", [(r, o), (v, no), (r, o), (v, b), (r, p), (v, a)]),
        transcript("refused at the end", [(r, o), (v, b), (r, p), (v, no)]),
        transcript(
            "haggling ends after three orders", [(r, o), (v, b), (r, o), (v, b), (r, o), (v, b), (r, o, "OVERSIZED")]
        ),
        transcript("a bid without an order", [(v, b, "OUT_OF_ORDER")]),
        transcript("terms without a bid", [(r, o), (r, p, "OUT_OF_ORDER")]),
        transcript("a signature without terms", [(r, o), (v, b), (v, a, "OUT_OF_ORDER")]),
        transcript("the requester bids", [(r, o), (r, b, "OUT_OF_ORDER")]),
        transcript("more after the agreement", [(r, o), (v, b), (r, p), (v, a), (r, o, "OUT_OF_ORDER")]),
    ]
    return {"accept": accept, "reject": reject, "transcripts": transcripts}
