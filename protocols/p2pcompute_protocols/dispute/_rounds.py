"""Signing a commitment to rounds, and checking claims against it."""

from __future__ import annotations

from collections.abc import Sequence

from ..envelope import Envelope, Signer, open_envelope, seal
from ..errors import LocalProtocolError, WireCode
from ..ids import PeerId, TaskId
from ..merkle import MerkleTree, verify_inclusion
from ..work import ArrayArg, ChunkWork, OutArg, RoundWork
from ._messages import ROUNDS_KIND, RoundsPayload, StateClaim

__all__ = ["check_claim", "check_rounds_fit", "check_rounds_of", "open_rounds", "rounds_tree", "seal_rounds"]


def rounds_tree(digests: Sequence[bytes]) -> MerkleTree:
    """The tree over the digests of the states 0 to *n*, each 32 bytes."""
    return MerkleTree(digests)


def seal_rounds(rounds: RoundsPayload, *, network: str, signer: Signer) -> bytes:
    """The provider's commitment to every state that it went through."""
    return seal(ROUNDS_KIND, network, signer, rounds.encode())


def open_rounds(raw: bytes, *, network: str, provider: PeerId, task: TaskId) -> tuple[Envelope, RoundsPayload]:
    """Verify a provider's commitment for `task`; raises `LocalProtocolError`."""
    envelope = open_envelope(raw, kind=ROUNDS_KIND, network=network, signer=provider)
    rounds = RoundsPayload.decode(envelope.payload)
    if rounds.task != task:
        raise LocalProtocolError("a commitment for another task", code=WireCode.REPLAYED)
    return envelope, rounds


def check_rounds_fit(rounds: RoundsPayload, work: ChunkWork) -> ArrayArg:
    """The input that holds the first state; what a round leaves must be able to take its place.

    Raises:
        LocalProtocolError: MALFORMED, the work has no such arguments or they are unlike each other.
    """
    if rounds.state is None or rounds.out is None:
        raise LocalProtocolError("a commitment to rounds of a launch names an input and an output")
    if max(rounds.state, rounds.out) >= len(work.args):
        raise LocalProtocolError("the commitment names an argument that the work does not have")
    state, out = work.args[rounds.state], work.args[rounds.out]
    if work.splits:
        raise LocalProtocolError("rounds of split inputs", code=WireCode.UNSUPPORTED)
    if not isinstance(state, ArrayArg) or not isinstance(out, OutArg):
        raise LocalProtocolError("a state is an input array, and the next one an output")
    if out != OutArg(dtype=state.dtype, shape=state.shape):  # like it, and nothing more than an array
        raise LocalProtocolError("an output that can't take the state's place")
    return state


def check_rounds_of(rounds: RoundsPayload, work: RoundWork) -> None:
    """Check that a commitment is to rounds of work that is in rounds.

    Raises:
        LocalProtocolError: MALFORMED, it names arguments, or more rounds than there are.
    """
    if rounds.state is not None:
        raise LocalProtocolError("the work itself says what its states are")
    if rounds.rounds > work.rounds:
        raise LocalProtocolError(f"{rounds.rounds} rounds of {work.rounds}")


def check_claim(claim: StateClaim, rounds: RoundsPayload, state: int) -> None:
    """Check that a claim is the committed one of that state.

    Raises:
        LocalProtocolError: REPLAYED, it is of another state or another number of rounds; BAD_DIGEST, it is not what
            was committed to.
    """
    if claim.proof.index != state or claim.proof.leaves != rounds.rounds + 1:
        raise LocalProtocolError(f"a claim about state {claim.proof.index}, not {state}", code=WireCode.REPLAYED)
    verify_inclusion(claim.digest, claim.proof, rounds.root)
