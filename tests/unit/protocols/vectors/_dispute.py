"""Commitments to rounds, claims and the dispute stream."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from p2pcompute_protocols import dispute
from p2pcompute_protocols.merkle import InclusionProof
from p2pcompute_protocols.work import ArrayArg, OutArg

from ._material import (
    DATA,
    NOW,
    PROVIDER,
    STRANGER,
    Json,
    Node,
    bad_message,
    cose,
    edited,
    message,
    plain,
    sha,
    transcript,
    vector,
    work,
)
from ._merkle import path_of, root_of

__all__ = ["ROUNDS", "STATES", "TASK_ID", "a_claim", "dispute_vectors", "rounds_bytes", "rounds_work", "some_rounds"]

TASK_ID: Final = sha(b"an agreement")
ROUNDS: Final = 5
STATES: Final = [DATA, *(sha(bytes([n]))[:16] for n in range(1, ROUNDS + 1))]  # uint8, 16 of them
_DIGESTS: Final = [sha(state) for state in STATES]


def rounds_work() -> Any:
    """The material's work, with an output that can take the place of its input."""
    first, array, _ = work().args
    assert isinstance(array, ArrayArg)
    return work(args=(first, array, OutArg(dtype="uint8", shape=(16,))))


def some_rounds(**changes: object) -> dispute.RoundsPayload:
    made = dispute.RoundsPayload(task=TASK_ID, state=1, out=2, rounds=ROUNDS, root=root_of(_DIGESTS), finished_ms=NOW)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def rounds_bytes(payload: bytes | None = None, node: Node = PROVIDER, **more: object) -> bytes:
    return cose("rounds", payload or some_rounds().encode(), node, **more)  # type: ignore[arg-type]


def a_claim(state: int) -> dispute.StateClaim:
    path = tuple(path_of(state, _DIGESTS))
    return dispute.StateClaim(digest=_DIGESTS[state], proof=InclusionProof(index=state, leaves=ROUNDS + 1, path=path))


def dispute_vectors() -> Json:
    here = {"task": TASK_ID.hex(), "provider": PROVIDER.peer_id}
    made = some_rounds()

    def taken(name: str, of: dispute.RoundsPayload) -> Json:
        return vector(name, "rounds", rounds_bytes(of.encode()), context=here, expect=plain(of))

    def refused(name: str, data: bytes, code: str) -> Json:
        return vector(name, "rounds", data, context=here, code=code)

    raw = rounds_bytes()
    last = dispute.Ask(state=1_048_575)
    accept = [
        taken("a commitment to five rounds", made),
        taken("a commitment to one round", some_rounds(rounds=1)),
        taken("a commitment to as many as there can be", some_rounds(rounds=1_048_575)),
        taken("a commitment over the arguments the other way round", some_rounds(state=2, out=1)),
        taken("a commitment to rounds of work in rounds", some_rounds(state=None, out=None)),
        message("a challenge", dispute.Challenge(task=TASK_ID)),
        message("the first state", dispute.Ask(state=0)),
        message("the last state that there can be", last),
        message("settled", dispute.Settle()),
        message("settled on a round", dispute.Settle(round=3, detail="round 3 differs")),
        message("settled on the first state", dispute.Settle(round=0)),
        message("a commitment in its message", dispute.Commitment(rounds=raw)),
        message("a claim", dispute.Claim(claim=a_claim(3))),
        message("a refusal", dispute.DisputeRefusal(code=9, detail="no rounds of this task")),
    ]
    claim = dispute.Claim(claim=a_claim(3))
    bare = {1: a_claim(3).digest}
    reject = [
        refused("a commitment for another task", rounds_bytes(some_rounds(task=bytes(32)).encode()), "REPLAYED"),
        refused("a commitment of another provider", rounds_bytes(node=STRANGER), "WRONG_PEER"),
        refused("a commitment of another network", rounds_bytes(network="other"), "WRONG_NETWORK"),
        refused("a receipt in place of a commitment", cose("receipt", made.encode(), PROVIDER), "UNSUPPORTED"),
        refused("one bit of the signature changed", raw[:-1] + bytes([raw[-1] ^ 1]), "BAD_SIGNATURE"),
        refused("another root than signed", raw.replace(made.root, bytes(32)), "BAD_SIGNATURE"),
        refused("one argument for both", rounds_bytes(edited(made, k3=1)), "MALFORMED"),
        refused("an input without an output", rounds_bytes(edited(made, k3=None)), "MALFORMED"),
        refused("no rounds", rounds_bytes(edited(made, k4=0)), "OVERSIZED"),
        refused("too many rounds", rounds_bytes(edited(made, k4=1_048_576)), "OVERSIZED"),
        refused("argument 32", rounds_bytes(edited(made, k2=32)), "OVERSIZED"),
        refused("an unknown key", rounds_bytes(edited(made, k7=1)), "MALFORMED"),
        bad_message("a state beyond the last", edited(last, k1=1_048_576), "OVERSIZED"),
        bad_message("a claim without a proof", edited(claim, k1=bare), "MALFORMED"),
        bad_message("a challenge of 31 bytes", edited(dispute.Challenge(task=TASK_ID), k1=bytes(31)), "OVERSIZED"),
        bad_message("a refusal without a reason", edited(dispute.DisputeRefusal(code=1, detail=""), k1=0), "OVERSIZED"),
        bad_message("a message of nobody", b"\xa1\x00\x07", "UNSUPPORTED"),
    ]
    r, v = "requester", "provider"
    opening: list[Any] = [(r, dispute.Challenge(task=TASK_ID)), (v, dispute.Commitment(rounds=raw))]

    def question(state: int) -> list[Any]:
        return [(r, dispute.Ask(state=state)), (v, dispute.Claim(claim=a_claim(state)))]

    wrong = dataclasses.replace(a_claim(3), digest=sha(b"what suits"))
    transcripts = [
        transcript(
            "the third round of five is found",
            [*opening, *question(5), *question(0), *question(2), *question(3), (r, dispute.Settle(round=3))],
        ),
        transcript("nothing is disputed", [*opening, *question(5), (r, dispute.Settle())]),
        transcript(
            "the provider has no rounds",
            [opening[0], (v, dispute.DisputeRefusal(code=9, detail="no rounds of this task"))],
        ),
        transcript(
            "the provider answers no more",
            [*opening, (r, dispute.Ask(state=5)), (v, dispute.DisputeRefusal(code=24, detail="going"))],
        ),
        transcript("a question before the challenge", [(r, dispute.Ask(state=0), "OUT_OF_ORDER")]),
        transcript("a claim that nobody asked for", [*opening, (v, claim, "OUT_OF_ORDER")]),
        transcript("a question beyond the last state", [*opening, (r, dispute.Ask(state=6), "OVERSIZED")]),
        transcript("a claim about another state", [*opening, (r, dispute.Ask(state=2)), (v, claim, "REPLAYED")]),
        transcript(
            "a claim that was not committed to",
            [*opening, (r, dispute.Ask(state=3)), (v, dispute.Claim(claim=wrong), "BAD_DIGEST")],
        ),
        transcript(
            "the commitment of a stranger",
            [opening[0], (v, dispute.Commitment(rounds=rounds_bytes(node=STRANGER)), "WRONG_PEER")],
        ),
        transcript(
            "the commitment of another task",
            [(r, dispute.Challenge(task=bytes(32))), (v, dispute.Commitment(rounds=raw), "REPLAYED")],
        ),
        transcript("a question too many", [*opening, *(question(0) * 32), (r, dispute.Ask(state=0), "OVERSIZED")]),
    ]
    return {"accept": accept, "reject": reject, "transcripts": transcripts}
