"""Receipts and the task stream."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import cbor2

from p2pcompute_protocols import task
from p2pcompute_protocols.ids import TaskId
from p2pcompute_protocols.work import ArrayArg, ScalarArg

from ._material import (
    DATA,
    KERNEL,
    MANIFEST,
    NETWORK,
    NOW,
    PROVIDER,
    STRANGER,
    TILES,
    Json,
    Node,
    bad_message,
    cose,
    edited,
    message,
    plain,
    sha,
    split_work,
    transcript,
    vector,
    work,
)
from ._negotiation import agreement_bytes

__all__ = ["task_vectors"]


TASK_ID: Final = sha(b"an agreement")


def a_receipt(**changes: object) -> task.ReceiptPayload:
    made = task.ReceiptPayload(
        task=TASK_ID, index=1, code=0, output=sha(b"12345678"), fp="strict", units=1_000, finished_ms=NOW
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def open_by_code(raw: bytes, index: int) -> task.ReceiptPayload:
    """What the code makes of a receipt."""
    return task.open_receipt(raw, network=NETWORK, provider=PROVIDER.peer_id, task=TaskId(TASK_ID), index=index)[1]


def receipt_bytes(payload: bytes | None = None, node: Node = PROVIDER, **more: object) -> bytes:
    return cose("receipt", payload or a_receipt().encode(), node, **more)  # type: ignore[arg-type]


def batch() -> tuple[list[task.ReceiptPayload], bytes, list[bytes]]:
    """Three receipts, the envelope over their root, and how each is shown; made by hand."""
    made = [a_receipt(index=index, output=sha(b"%d" % index * 8)) for index in (1, 2, 3)]
    leaves = [sha(b"\0" + one.encode()) for one in made]
    pair = sha(b"\1" + leaves[0] + leaves[1])
    root = sha(b"\1" + pair + leaves[2])
    signed = cose("receipts", cbor2.dumps({1: TASK_ID, 2: root, 3: 3}), PROVIDER)
    paths = ([leaves[1], leaves[2]], [leaves[0], leaves[2]], [pair])
    shown = [
        cbor2.dumps({1: one.encode(), 2: {1: at, 2: 3, 3: path}, 3: signed})
        for at, (one, path) in enumerate(zip(made, paths, strict=True))
    ]
    return made, signed, shown


HOLDER: Final = task.Holder(peer=STRANGER.peer_id, addresses=(f"/ip4/192.0.2.7/tcp/4001/p2p/{STRANGER.peer_id}",))


def share(*holders: task.Holder) -> task.Share:
    return task.Share(digest=sha(DATA), root=sha(b"\0" + DATA), ticket=sha(b"ticket"), holders=holders)


ANOTHER: Final = b"0123456789abcdef"


def a_call(number: int, array: bytes = ANOTHER) -> task.Call:
    """Of the work of these vectors: a number and 16 bytes."""
    scalar = ScalarArg(dtype="float32", value=bytes.fromhex("00000040"))
    return task.Call(call=number, args=(scalar, ArrayArg(dtype="uint8", shape=(16,), digest=sha(array))))


def task_vectors() -> Json:
    here = {"task": TASK_ID.hex(), "index": 1, "provider": PROVIDER.peer_id}
    failed = a_receipt(code=21, output=bytes(32), units=0, detail="division by zero")

    def taken(name: str, made: task.ReceiptPayload) -> Json:
        return vector(name, "receipt", receipt_bytes(made.encode()), context=here, expect=plain(made))

    def refused(name: str, data: bytes, code: str) -> Json:
        return vector(name, "receipt", data, context=here, code=code)

    receipt = receipt_bytes()
    digest = sha(DATA)
    batched, signed, shown = batch()
    of_batch = cbor2.loads(shown[0])

    def shown_with(**changes: Any) -> bytes:
        return cbor2.dumps(of_batch | {int(key[1:]): value for key, value in changes.items()})

    for index, raw in enumerate(shown):
        assert open_by_code(raw, index + 1) == batched[index]
    accept = [
        taken("a receipt", a_receipt()),
        taken("a receipt in fast mode", a_receipt(fp="fast")),
        taken("a receipt for a failure", failed),
        taken("a receipt that costs nothing", a_receipt(units=0)),
        vector("a receipt of a batch", "receipt", shown[0], context=here, expect=plain(batched[0])),
        vector(
            "the last receipt of a batch",
            "receipt",
            shown[2],
            context={**here, "index": 3},
            expect=plain(batched[2]),
        ),
        taken("a receipt for a chunk of a call", a_receipt(call=sha(b"a call"))),
        message("open", task.Open(agreement=agreement_bytes())),
        message("opened, with two blobs to come", task.Opened(need=(sha(KERNEL), digest), slots=2, window=1)),
        message("opened, nothing needed", task.Opened(need=(), slots=1, window=1024)),
        message("ready", task.Ready(compile_ms=1_200)),
        message("a refusal with a line", task.Refused(code=15, detail="no recursion", line=7)),
        message("the start of a blob", task.BlobStart(digest=digest, size=16)),
        message("the bytes of a blob", task.BlobData(data=DATA)),
        message("the last chunk that there can be", task.Assign(index=1_048_575)),
        message("chunks side by side", task.Assign(index=3, count=1024)),
        message(
            "results under one signature",
            task.Results(index=1, count=3, finished_ms=NOW, receipts=signed, data=b"111111112222222233333333"),
        ),
        message("a cancel", task.Cancel(index=0)),
        message("the start of a result", task.ResultStart(index=1, receipt=receipt, size=8)),
        message("the bytes of a result", task.ResultData(data=b"12345678")),
        message("a failed chunk", task.ChunkError(index=1, receipt=receipt_bytes(failed.encode()))),
        message("a pause", task.Notice(kind="pause", after_ms=500, detail="the owner is back")),
        message("a larger window", task.Notice(kind="window", window=4)),
        message("opened by one that fetches", task.Opened(need=(digest,), slots=1, window=1, fetches=True)),
        message("an input to share, held by nobody else", share()),
        message("an input to share, and who holds it", share(HOLDER)),
        message("a call", a_call(0)),
        message("a call without inputs", task.Call(call=1_048_575, args=())),
        message("finish", task.Finish(code=0, detail="")),
        message("closed", task.Closed(chunks=3)),
    ]
    reject = [
        refused("a receipt for another chunk", receipt_bytes(a_receipt(index=2).encode()), "REPLAYED"),
        refused("a receipt for another task", receipt_bytes(a_receipt(task=bytes(32)).encode()), "REPLAYED"),
        refused("a receipt of another provider", receipt_bytes(node=STRANGER), "WRONG_PEER"),
        refused("a receipt of another network", receipt_bytes(network="other"), "WRONG_NETWORK"),
        refused("a bid in place of a receipt", cose("bid", a_receipt().encode(), PROVIDER), "UNSUPPORTED"),
        refused(
            "a receipt with one bit of its signature changed", receipt[:-1] + bytes([receipt[-1] ^ 1]), "BAD_SIGNATURE"
        ),
        refused(
            "a receipt with another output than signed", receipt.replace(sha(b"12345678"), bytes(32)), "BAD_SIGNATURE"
        ),
        refused("a failure that costs something", receipt_bytes(edited(failed, k6=1)), "MALFORMED"),
        refused("a failure with an output", receipt_bytes(edited(failed, k4=sha(b""))), "MALFORMED"),
        refused("a receipt with an unknown key", receipt_bytes(edited(a_receipt(), k1000=1)), "MALFORMED"),
        refused("a receipt of an unknown mode", receipt_bytes(edited(a_receipt(), k5="exact")), "UNSUPPORTED"),
        refused("a receipt with units in a float", receipt_bytes(edited(a_receipt(), k6=1.0)), "MALFORMED"),
        refused("a receipt of a batch, for another chunk", shown[1], "REPLAYED"),
        refused("a receipt with the path of another", shown_with(k2=cbor2.loads(shown[1])[2]), "BAD_DIGEST"),
        refused("a receipt in a tree of another size", shown_with(k2={**of_batch[2], 2: 4}), "BAD_DIGEST"),
        refused("a receipt with a path that is too short", shown_with(k2={1: 0, 2: 3, 3: []}), "MALFORMED"),
        refused("another receipt under a signature", shown_with(k1=a_receipt(units=9).encode()), "BAD_DIGEST"),
        refused("a receipt without its path", cbor2.dumps({1: of_batch[1], 3: signed}), "MALFORMED"),
        refused("the envelope of a batch in place of a receipt", signed, "UNSUPPORTED"),
        refused("a single receipt in place of a batch's", shown_with(k3=receipt), "UNSUPPORTED"),
        refused(
            "a batch of another provider",
            shown_with(k3=cose("receipts", cbor2.dumps({1: TASK_ID, 2: bytes(32), 3: 3}), STRANGER)),
            "WRONG_PEER",
        ),
        refused(
            "a batch of another task",
            shown_with(k3=cose("receipts", cbor2.dumps({1: bytes(32), 2: bytes(32), 3: 3}), PROVIDER)),
            "REPLAYED",
        ),
        bad_message("a range of one chunk", edited(task.Assign(index=0, count=2), k2=1), "OVERSIZED"),
        bad_message("a range of 1025 chunks", edited(task.Assign(index=0, count=2), k2=1025), "OVERSIZED"),
        bad_message(
            "results of 192 KiB and a byte",
            edited(task.Results(index=0, count=2, finished_ms=0, receipts=b"r", data=b"12"), k5=bytes(196_609)),
            "OVERSIZED",
        ),
        bad_message("chunk 1048576", edited(task.Assign(index=0), k1=1_048_576), "OVERSIZED"),
        bad_message("a chunk in two encodings", b"\xa2\x00\x04\x01\x18\x01", "MALFORMED"),
        bad_message("a chunk that is true", edited(task.Assign(index=0), k1=True), "MALFORMED"),
        bad_message("a blob above 64 MiB", edited(task.BlobStart(digest=digest, size=1), k2=2**26 + 1), "OVERSIZED"),
        bad_message("an empty blob", edited(task.BlobStart(digest=digest, size=1), k2=0), "OVERSIZED"),
        bad_message("a piece above 256 KiB", edited(task.BlobData(data=b"x"), k1=bytes(262_145)), "OVERSIZED"),
        bad_message("65 blobs", edited(task.Opened(need=(), slots=1, window=1), k1=[digest] * 65), "OVERSIZED"),
        bad_message("a window of 1025", edited(task.Opened(need=(), slots=1, window=1), k3=1025), "OVERSIZED"),
        bad_message(
            "a window notice without a window", edited(task.Notice(kind="window", window=1), k2=None), "MALFORMED"
        ),
        bad_message("a pause with a window", edited(task.Notice(kind="pause"), k2=1), "MALFORMED"),
        bad_message("an unknown notice", edited(task.Notice(kind="pause"), k1="sleep"), "UNSUPPORTED"),
        bad_message("a refusal without a reason", edited(task.Refused(code=1, detail=""), k1=0), "OVERSIZED"),
        bad_message("a ticket of 31 bytes", edited(share(), k3=bytes(31)), "OVERSIZED"),
        bad_message("17 holders", edited(share(), k4=[{1: bytes(38), 2: []}] * 17), "OVERSIZED"),
        bad_message("a holder that is no peer", edited(share(), k4=[{1: bytes(38), 2: []}]), "MALFORMED"),
        refused(
            "a receipt with half a digest of a call", receipt_bytes(edited(a_receipt(), k9=bytes(16))), "OVERSIZED"
        ),
        bad_message("call 1048576", edited(a_call(0), k1=1_048_576), "OVERSIZED"),
        bad_message("a call with an output", edited(a_call(0), k2=[[3, {1: "uint8", 2: [20]}]]), "UNSUPPORTED"),
        bad_message(
            "a call with a scalar of three bytes", edited(a_call(0), k2=[[1, {1: "int32", 2: b"abc"}]]), "MALFORMED"
        ),
        bad_message("a call with 33 inputs", edited(a_call(0), k2=[[1, {1: "int8", 2: b"a"}]] * 33), "OVERSIZED"),
        bad_message("a message of nobody", b"\xa1\x00\x18\x63", "UNSUPPORTED"),
        bad_message("a message without a type", b"\xa1\x01\x00", "MALFORMED"),
        bad_message("cut short", task.BlobData(data=DATA).encode()[:-1], "MALFORMED"),
    ]
    r, v = "requester", "provider"
    outputs = b"12345678"
    opening = [(r, task.Open(agreement=b"agreement")), (v, task.Opened(need=(digest,), slots=1, window=2))]
    blob = [
        (r, task.BlobStart(digest=digest, size=16)),
        (r, task.BlobData(data=DATA[:7])),
        (r, task.BlobData(data=DATA[7:])),
    ]
    running = [*opening, *blob, (v, task.Ready(compile_ms=1))]
    uncompiled = (v, task.ChunkError(index=0, receipt=b"r"))
    result = [(v, task.ResultStart(index=0, receipt=receipt, size=8)), (v, task.ResultData(data=outputs))]
    setup: Json = {
        "chunks": 3,
        "chunk_bytes": 8,
        "last_chunk_bytes": 4,
        "blobs": {digest.hex(): 16, sha(KERNEL).hex(): len(KERNEL)},
    }

    def t(name: str, steps: list[Any]) -> Json:
        return transcript(name, steps, **setup)

    split: Json = {
        "chunks": 5,
        "chunk_bytes": 4,
        "last_chunk_bytes": 4,
        "blobs": {sha(KERNEL).hex(): len(KERNEL), sha(MANIFEST).hex(): len(MANIFEST)},
        "split": {"work": split_work().encode().hex(), "manifests": {"1": MANIFEST.hex()}},
    }

    def tile(number: int) -> list[Any]:
        return [(r, task.BlobStart(digest=sha(TILES[number]), size=24)), (r, task.BlobData(data=TILES[number]))]

    def s(name: str, steps: list[Any]) -> Json:
        whole = [
            opening[0],
            (v, task.Opened(need=(sha(MANIFEST),), slots=1, window=2)),
            (r, task.BlobStart(digest=sha(MANIFEST), size=len(MANIFEST))),
            (r, task.BlobData(data=MANIFEST)),
            (v, task.Ready(compile_ms=1)),
        ]
        return transcript(name, [*whole, *steps], **split)

    a_chunk = [(r, task.Assign(index=0)), *tile(0), *tile(1)]

    def c(name: str, steps: list[Any]) -> Json:
        standing: Json = {
            "chunks": 1_048_575,  # of 349,525 calls of three chunks
            "chunk_bytes": 8,
            "last_chunk_bytes": 4,
            "blobs": {digest.hex(): 16, sha(KERNEL).hex(): len(KERNEL)},
            "standing": {"work": work().encode().hex()},
        }
        return transcript(name, [*running, *steps], **standing)

    another = [(r, task.BlobStart(digest=sha(ANOTHER), size=16)), (r, task.BlobData(data=ANOTHER))]

    def answer(index: int, size: int = 8) -> list[Any]:
        start = task.ResultStart(index=index, receipt=receipt, size=size)
        return [(v, start), (v, task.ResultData(data=bytes(size)))]

    a_call_of_two = [(r, a_call(0)), (r, task.Assign(index=0)), *another, (r, task.Assign(index=2))]
    oddly = a_call(0, b"").args[1]
    assert isinstance(oddly, ArrayArg)
    too_short = dataclasses.replace(a_call(0), args=a_call(0).args[:1])
    reshaped = dataclasses.replace(a_call(0), args=(a_call(0).args[0], dataclasses.replace(oddly, shape=(4, 4))))

    def in_rounds(name: str, steps: list[Any]) -> Json:
        rounds = {"chunks": 3, "chunk_bytes": 64, "last_chunk_bytes": 32, "chunk_rounds": 2, "state_arrays": [3, 2]}
        return transcript(name, steps, **rounds, blobs=setup["blobs"])

    chunk = [
        (r, task.Assign(index=0)),
        (v, task.ResultStart(index=0, receipt=receipt, size=64)),
        (v, task.ResultData(data=bytes(64))),
    ]
    fetching = [opening[0], (v, task.Opened(need=(digest,), slots=1, window=2, fetches=True))]
    there = [opening[0], (v, task.Opened(need=(), slots=1, window=2, fetches=True))]
    closing = [
        (v, task.Ready(compile_ms=1)),
        (v, task.Ready(compile_ms=1)),
        (r, task.Finish(code=0, detail="")),
        (v, task.Closed(chunks=0)),
    ]
    a_pair = (r, task.Assign(index=0, count=2))

    def several(index: int, count: int, size: int) -> tuple[str, task.Results]:
        return (v, task.Results(index=index, count=count, finished_ms=NOW, receipts=signed, data=bytes(size)))

    arrays = (sha(b"abc"), sha(b"de"))
    ask = (r, task.GetState(state=2))
    transcripts = [
        in_rounds(
            "two states of a chunk of rounds, one of which is gone",
            [
                *running,
                *chunk,
                (r, task.GetState(state=1)),
                ask,
                (v, task.StateGone(state=1, code=12, detail="paid")),
                (r, task.Assign(index=1)),
                (v, task.StateStart(state=2, arrays=arrays)),
                (v, task.StateData(data=b"abcd")),
                (v, task.StateData(data=b"e")),
                (v, task.ResultStart(index=1, receipt=receipt, size=64)),
                (v, task.ResultData(data=bytes(64))),
                (r, task.Finish(code=0, detail="")),
                (v, task.Closed(chunks=2)),
            ],
        ),
        in_rounds("rounds out of order", [*running, (r, task.Assign(index=1), "OUT_OF_ORDER")]),
        in_rounds("rounds again", [*running, *chunk, (*chunk[0], "OUT_OF_ORDER")]),
        in_rounds("a state that did not come", [*running, *chunk, (r, task.GetState(state=3), "UNKNOWN_CHUNK")]),
        in_rounds("a state too many", [*running, *chunk, *[ask] * 8, (*ask, "OVERSIZED")]),
        in_rounds(
            "a state that was not asked for",
            [*running, *chunk, (v, task.StateStart(state=1, arrays=arrays), "UNKNOWN_CHUNK")],
        ),
        in_rounds(
            "a state of one array",
            [*running, *chunk, ask, (v, task.StateStart(state=2, arrays=arrays[:1]), "MALFORMED")],
        ),
        in_rounds(
            "more bytes than a state has",
            [
                *running,
                *chunk,
                ask,
                (v, task.StateStart(state=2, arrays=arrays)),
                (v, task.StateData(data=b"abcdef"), "OVERSIZED"),
            ],
        ),
        in_rounds(
            "a chunk inside of a state",
            [
                *running,
                *chunk,
                ask,
                (r, task.Assign(index=1)),
                (v, task.StateStart(state=2, arrays=arrays)),
                (v, task.ResultStart(index=1, receipt=receipt, size=64), "OUT_OF_ORDER"),
            ],
        ),
        c(
            "three calls: with an array of its own, with the same, and with the work's",
            [
                *a_call_of_two,
                *answer(0),
                (r, a_call(1)),
                (r, task.Assign(index=3)),
                *answer(2, 4),
                *answer(3),
                (r, a_call(2, DATA)),
                (r, task.Assign(index=8)),
                (r, task.Cancel(index=8)),
                (v, task.ChunkError(index=8, receipt=receipt)),
                (r, task.Assign(index=8)),
                *answer(8, 4),
                (r, task.Finish(code=0, detail="")),
                (v, task.Closed(chunks=4)),
            ],
        ),
        c("a call again", [*a_call_of_two, (r, a_call(0), "REPLAYED")]),
        c("a call left out", [*a_call_of_two, (r, a_call(2), "OUT_OF_ORDER")]),
        c("a call behind one without a chunk", [*a_call_of_two, (r, a_call(1)), (r, a_call(2), "OUT_OF_ORDER")]),
        c("a call before an array of the last one", [*a_call_of_two[:2], (r, a_call(1), "OUT_OF_ORDER")]),
        c("a chunk before an array of the last one", [*a_call_of_two[:2], (r, task.Assign(index=1), "OUT_OF_ORDER")]),
        c("a chunk of no call", [*a_call_of_two, (r, task.Assign(index=3), "UNKNOWN_CHUNK")]),
        c(
            "a result of no call",
            [*a_call_of_two, (v, task.ResultStart(index=3, receipt=receipt, size=8), "UNKNOWN_CHUNK")],
        ),
        c(
            "the last chunk of a call is shorter",
            [*a_call_of_two, (v, task.ResultStart(index=2, receipt=receipt, size=8), "OVERSIZED")],
        ),
        c(
            "an array that is held",
            [*a_call_of_two, *answer(0), (r, a_call(1)), (r, task.Assign(index=3)), (*another[0], "BAD_DIGEST")],
        ),
        c("other bytes than the array's", [*a_call_of_two[:3], (r, task.BlobData(data=DATA), "BAD_DIGEST")]),
        c("a call with an input too few", [(r, too_short, "MALFORMED")]),
        c("a call with an array of another shape", [(r, reshaped, "MALFORMED")]),
        c(
            "chunks of a call side by side, and their results in one message",
            [
                (r, a_call(0)),
                (r, task.Assign(index=0, count=3)),
                *another,
                several(0, 3, 20),
                (r, a_call(1)),
                (r, task.Assign(index=3, count=2)),
                (r, task.Assign(index=5)),
                *answer(5, 4),
                several(3, 2, 16),
                (*several(3, 2, 16), "UNKNOWN_CHUNK"),
            ],
        ),
        c(
            "results of two calls in one message",
            [
                *a_call_of_two,
                (r, a_call(1)),
                (r, task.Assign(index=3, count=2)),
                several(2, 3, 20),
                (r, task.Finish(code=0, detail="")),
                (v, task.Closed(chunks=3)),
            ],
        ),
        c(
            "results of two calls, as if the last chunk of the first were whole",
            [*a_call_of_two, (r, a_call(1)), (r, task.Assign(index=3)), (*several(2, 2, 16), "OVERSIZED")],
        ),
        c(
            "chunks of two calls side by side",
            [*a_call_of_two, (r, a_call(1)), (r, task.Assign(index=1, count=3), "OUT_OF_ORDER")],
        ),
        c(
            "chunks side by side before an array of the last ones",
            [*a_call_of_two[:2], (r, task.Assign(index=1, count=2), "OUT_OF_ORDER")],
        ),
        t("a call without a standing agreement", [*running, (r, a_call(0), "OUT_OF_ORDER")]),
        t("a state of work that has none", [*running, (r, task.GetState(state=1), "UNKNOWN_CHUNK")]),
        t(
            "a task of three chunks, one of which fails once",
            [
                *running,
                (r, task.Assign(index=0)),
                (r, task.Assign(index=2)),
                *result,
                (r, task.Assign(index=1)),
                (v, task.ResultStart(index=2, receipt=receipt, size=4)),
                (v, task.ResultData(data=b"12")),
                (v, task.ResultData(data=b"34")),
                (v, task.ChunkError(index=1, receipt=receipt)),
                (r, task.Assign(index=1)),
                (v, task.ResultStart(index=1, receipt=receipt, size=8)),
                (v, task.ResultData(data=outputs)),
                (r, task.Finish(code=0, detail="")),
                (v, task.Closed(chunks=3)),
            ],
        ),
        t(
            "chunks side by side, and their results in one message",
            [
                *running,
                (r, task.Assign(index=0, count=3)),
                several(1, 2, 12),
                (*several(1, 2, 12), "UNKNOWN_CHUNK"),
            ],
        ),
        t(
            "results and one by itself",
            [
                *running,
                (r, task.Assign(index=0, count=3)),
                *result,
                several(1, 2, 12),
                (r, task.Finish(code=0, detail="")),
                (v, task.Closed(chunks=3)),
            ],
        ),
        t(
            "results on their way when the requester finishes",
            [
                *running,
                (r, task.Assign(index=0, count=3)),
                (r, task.Finish(code=0, detail="")),
                several(0, 3, 20),
                (v, task.Closed(chunks=3)),
            ],
        ),
        t("results of chunks that were not asked for", [*running, a_pair, (*several(0, 3, 20), "UNKNOWN_CHUNK")]),
        t("results of another size than the work says", [*running, a_pair, (*several(0, 2, 15), "OVERSIZED")]),
        t(
            "results inside of a result",
            [*running, (r, task.Assign(index=0, count=3)), result[0], (*several(1, 2, 12), "OUT_OF_ORDER")],
        ),
        t("chunks side by side beyond the last", [*running, (r, task.Assign(index=1, count=3), "UNKNOWN_CHUNK")]),
        t("one of them is assigned already", [*running, a_pair, (r, task.Assign(index=1, count=2), "REPLAYED")]),
        in_rounds("rounds side by side", [*running, (r, task.Assign(index=0, count=2), "OUT_OF_ORDER")]),
        s("chunks side by side where inputs are split", [(r, task.Assign(index=0, count=2), "OUT_OF_ORDER")]),
        t(
            "a cancel crosses a result",
            [
                *running,
                (r, task.Assign(index=0)),
                *result,
                (r, task.Cancel(index=0)),
                (r, task.Finish(code=23, detail="")),
                (v, task.Closed(chunks=1)),
            ],
        ),
        t(
            "a result on its way when the requester finishes",
            [
                *running,
                (r, task.Assign(index=0)),
                (r, task.Finish(code=0, detail="")),
                *result,
                (v, task.Closed(chunks=1)),
            ],
        ),
        t("what has not compiled", [*opening, *blob, uncompiled, (v, task.Refused(code=21, detail="too slow"))]),
        t("it goes on all the same", [*opening, *blob, uncompiled, (v, task.Ready(compile_ms=1), "OUT_OF_ORDER")]),
        t("not compiled before the blobs came", [*opening, (*uncompiled, "OUT_OF_ORDER")]),
        t(
            "another chunk has not compiled",
            [*opening, *blob, (v, task.ChunkError(index=1, receipt=b"r"), "UNKNOWN_CHUNK")],
        ),
        t("refused at once", [opening[0], (v, task.Refused(code=15, detail="kernel refused", line=1))]),
        t(
            "the provider pauses, resumes and drains",
            [
                *running,
                (v, task.Notice(kind="pause")),
                (v, task.Notice(kind="resume")),
                (v, task.Notice(kind="drain")),
                (r, task.Finish(code=24, detail="")),
                (v, task.Closed(chunks=0)),
            ],
        ),
        t("a chunk before open", [(r, task.Assign(index=0), "OUT_OF_ORDER")]),
        t("a chunk before ready", [*opening, *blob, (r, task.Assign(index=0), "OUT_OF_ORDER")]),
        t("opened before open", [(v, task.Opened(need=(), slots=1, window=1), "OUT_OF_ORDER")]),
        t("ready before the blobs came", [*opening, (v, task.Ready(compile_ms=1), "OUT_OF_ORDER")]),
        t(
            "the provider asks for a blob of another task",
            [opening[0], (v, task.Opened(need=(bytes(32),), slots=1, window=1), "BAD_DIGEST")],
        ),
        t(
            "a blob that was not asked for",
            [*opening, (r, task.BlobStart(digest=sha(KERNEL), size=len(KERNEL)), "BAD_DIGEST")],
        ),
        t(
            "a blob of another size than the work says",
            [*opening, (r, task.BlobStart(digest=digest, size=17), "OVERSIZED")],
        ),
        t("a blob with other bytes", [*opening, blob[0], (r, task.BlobData(data=bytes(16)), "BAD_DIGEST")]),
        t("more bytes than the blob has", [*opening, blob[0], (r, task.BlobData(data=DATA + b"x"), "OVERSIZED")]),
        t("bytes without a blob", [*opening, (r, task.BlobData(data=DATA), "OUT_OF_ORDER")]),
        t("a blob inside of a blob", [*opening, blob[0], (*blob[0], "OUT_OF_ORDER")]),
        t("a blob twice", [*opening, *blob, (*blob[0], "BAD_DIGEST")]),
        t("a chunk beyond the last", [*running, (r, task.Assign(index=3), "UNKNOWN_CHUNK")]),
        t("a chunk twice at once", [*running, (r, task.Assign(index=0)), (r, task.Assign(index=0), "REPLAYED")]),
        t(
            "a result for a chunk that was not asked for",
            [*running, (r, task.Assign(index=1)), (*result[0], "UNKNOWN_CHUNK")],
        ),
        t("a result twice", [*running, (r, task.Assign(index=0)), *result, (*result[0], "UNKNOWN_CHUNK")]),
        t(
            "a failure after the result",
            [
                *running,
                (r, task.Assign(index=0)),
                *result,
                (v, task.ChunkError(index=0, receipt=receipt), "UNKNOWN_CHUNK"),
            ],
        ),
        t(
            "a result of another size than the work says",
            [*running, (r, task.Assign(index=0)), (v, task.ResultStart(index=0, receipt=receipt, size=9), "OVERSIZED")],
        ),
        t(
            "more bytes than the result has",
            [*running, (r, task.Assign(index=0)), result[0], (v, task.ResultData(data=outputs + b"x"), "OVERSIZED")],
        ),
        t(
            "a notice inside of a result",
            [*running, (r, task.Assign(index=0)), result[0], (v, task.Notice(kind="pause"), "OUT_OF_ORDER")],
        ),
        t("closed without finish", [*running, (v, task.Closed(chunks=0), "OUT_OF_ORDER")]),
        t(
            "closed inside of a result",
            [
                *running,
                (r, task.Assign(index=0)),
                (r, task.Finish(code=0, detail="")),
                result[0],
                (v, task.Closed(chunks=0), "OUT_OF_ORDER"),
            ],
        ),
        t(
            "a chunk after finish",
            [*running, (r, task.Finish(code=0, detail="")), (r, task.Assign(index=0), "OUT_OF_ORDER")],
        ),
        s(
            "tiles come behind the chunk that needs them, and once",
            [
                *a_chunk,
                (r, task.Assign(index=1)),
                *tile(2),
                (v, task.ResultStart(index=0, receipt=receipt, size=4)),
                (v, task.ResultData(data=b"1234")),
                (r, task.Assign(index=4)),
                *tile(4),
                *tile(3),
                (r, task.Assign(index=0)),
                (r, task.Finish(code=0, detail="")),
                (v, task.Closed(chunks=1)),
            ],
        ),
        s(
            "a cancel between tiles",
            [
                *a_chunk[:3],
                (r, task.Cancel(index=0)),
                *a_chunk[3:],
                (v, task.ChunkError(index=0, receipt=receipt)),
                (r, task.Finish(code=0, detail="")),
                (v, task.Closed(chunks=0)),
            ],
        ),
        s("a tile before any chunk", [(*tile(0)[0], "BAD_DIGEST")]),
        s("a tile that the chunk does not need", [a_chunk[0], (*tile(2)[0], "BAD_DIGEST")]),
        s("a tile that is held", [*a_chunk, (r, task.Assign(index=1)), (*tile(0)[0], "BAD_DIGEST")]),
        s("a chunk before the last one's tiles", [*a_chunk[:3], (r, task.Assign(index=1), "OUT_OF_ORDER")]),
        s("a tile of another size", [a_chunk[0], (r, task.BlobStart(digest=sha(TILES[0]), size=23), "OVERSIZED")]),
        s("a tile with other bytes", [*a_chunk[:2], (r, task.BlobData(data=bytes([9]) * 24), "BAD_DIGEST")]),
        t("a tile where nothing is split", [*running, (r, task.Assign(index=0)), (*tile(0)[0], "BAD_DIGEST")]),
        t("an input that comes from others", [*fetching, (r, share(HOLDER)), *closing[1:]]),
        t("its holders one after the other", [*fetching, (r, share()), (r, share(HOLDER)), *closing[1:]]),
        t("an input that is there, and may be given to others", [*there, (r, share()), *closing[1:]]),
        t("a share that crosses ready", [*there, (v, task.Ready(compile_ms=1)), (r, share()), *closing[2:]]),
        t("a share for who takes its inputs here", [*opening, (r, share(), "OUT_OF_ORDER")]),
        t(
            "a share of another blob",
            [*fetching, (r, dataclasses.replace(share(), digest=sha(b"another")), "BAD_DIGEST")],
        ),
        t("the same share again", [*fetching, (r, share()), (r, share(), "REPLAYED")]),
        t(
            "another ticket for the same blob",
            [*fetching, (r, share()), (r, dataclasses.replace(share(HOLDER), ticket=bytes(32)), "BAD_DIGEST")],
        ),
        t("a 17th holder", [*fetching, (r, share(*[HOLDER] * 16)), (r, share(HOLDER), "OVERSIZED")]),
        t("a blob that is shared is not sent", [*fetching, (r, share()), (*blob[0], "BAD_DIGEST")]),
        t("a share of what is on its way", [*fetching, blob[0], (r, share(), "OUT_OF_ORDER")]),
        t("a frame of no bytes", [(r, b"\x00", "OVERSIZED")]),
        t("a frame above the bound", [(r, b"\xc1\x80\x10", "OVERSIZED")]),
        t("a frame whose length is not the shortest", [(r, b"\x83\x00\xa1\x00\x04", "MALFORMED")]),
    ]
    return {"accept": accept, "reject": reject, "transcripts": transcripts}
