"""The calls of a standing agreement: what each is given, and which of their arrays the provider holds."""

from __future__ import annotations

import hashlib
from typing import Final

from ..errors import LocalProtocolError, WireCode
from ..limits import MAX_BLOB_BYTES, MAX_CALLS, MAX_CHUNKS, MAX_HELD_INPUT_BYTES, MAX_HELD_INPUTS
from ..work import ArrayArg, ChunkWork, OutArg, ScalarArg, Work
from ._held import Held
from ._messages import Call

__all__ = ["CallInputs", "standing_work"]


def standing_work(work: Work | None) -> ChunkWork:
    """The launch that every call of a standing agreement repeats.

    Raises:
        LocalProtocolError: UNSUPPORTED, an agreement without work, on work of another shape or with split inputs.
    """
    if not isinstance(work, ChunkWork) or work.splits:
        raise LocalProtocolError(
            "a standing agreement is for a kernel's launch, and none of its inputs is split", code=WireCode.UNSUPPORTED
        )
    return work


class CallInputs(Held):
    """The calls of one task, of which the newest are open: their chunks may be assigned.

    The work's own inputs are held as long as the task is open; other arrays come and go as tiles do.

    Attributes:
        made: how many calls were made.
        most: how many there may be in all: their chunks have numbers.
        most_open: how many are open at once.

    Args:
        work: the agreement's.

    Raises:
        LocalProtocolError: as `standing_work`.
    """

    def __init__(self, work: Work | None) -> None:
        super().__init__(MAX_HELD_INPUT_BYTES, MAX_HELD_INPUTS)
        self.work: Final = standing_work(work)
        self.made = 0
        self.most_open = MAX_CALLS
        self.most = MAX_CHUNKS // self.work.chunks
        self._inputs = tuple(arg for arg in self.work.args if not isinstance(arg, OutArg))
        self._stays = self.work.inputs
        self._open: dict[int, tuple[Call, bytes]] = {}  # by number, the oldest first
        self._has_chunk = True  # whether a chunk of the newest call was assigned

    @property
    def open_calls(self) -> int:
        """How many calls are open."""
        return len(self._open)

    def has_room(self) -> bool:
        """Whether another call may be made now: the one that it closes has no chunk under way."""
        oldest = self.made - self.most_open
        return self.made < self.most and not any(index // self.work.chunks == oldest for index in self._used)

    def call(self, message: Call) -> None:
        """A call is made.

        Raises:
            LocalProtocolError: REPLAYED or OUT_OF_ORDER, it is not the next one; OUT_OF_ORDER, no chunk of the last
                one was assigned; MALFORMED, BAD_DIGEST or OVERSIZED, its inputs are not those of the work; OVERSIZED,
                there are too many calls. Nothing has changed then.
        """
        if message.call != self.made:
            code = WireCode.REPLAYED if message.call < self.made else WireCode.OUT_OF_ORDER
            raise LocalProtocolError(f"call {message.call} in place of {self.made}", code=code, certain=True)
        if not self._has_chunk:  # it costs nothing, so there would be no end of them
            raise LocalProtocolError("a call behind one without a chunk", code=WireCode.OUT_OF_ORDER)
        if not self.has_room():
            raise LocalProtocolError("more calls than there may be", code=WireCode.OVERSIZED)
        if len(message.args) != len(self._inputs):
            raise LocalProtocolError(f"{len(message.args)} inputs in place of {len(self._inputs)}")
        sizes: dict[bytes, int] = {}
        for given, due in zip(message.args, self._inputs, strict=True):
            alike = type(given) is type(due) and given.dtype == due.dtype
            if not alike or (isinstance(given, ArrayArg) and isinstance(due, ArrayArg) and given.shape != due.shape):
                raise LocalProtocolError("an input of another type or shape than the work's")
            if isinstance(given, ArrayArg):
                known = self._stays.get(given.digest, self._held.get(given.digest, given.nbytes))
                if sizes.setdefault(given.digest, given.nbytes) != given.nbytes or known != given.nbytes:
                    raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)
        if sum(sizes.values()) > MAX_BLOB_BYTES:
            raise LocalProtocolError("inputs above the bound of a call", code=WireCode.OVERSIZED)
        self._open.pop(self.made - self.most_open, None)
        self._open[self.made] = (message, hashlib.sha256(message.encode()).digest())
        self.made += 1
        self._has_chunk = False

    def assign(self, index: int) -> dict[bytes, int]:
        missing = super().assign(index)
        self._has_chunk = self._has_chunk or index // self.work.chunks == self.made - 1
        return missing

    def of_chunk(self, index: int) -> tuple[Call, bytes]:
        """The call that a chunk belongs to, and the digest that stands for it in receipts.

        Raises:
            LocalProtocolError: UNKNOWN_CHUNK, it was not made, or is open no more.
        """
        found = self._open.get(index // self.work.chunks)
        if found is None:
            text = f"chunk {index} is of no open call"
            raise LocalProtocolError(text, code=WireCode.UNKNOWN_CHUNK, certain=True)
        return found

    def needs(self, index: int) -> dict[bytes, int]:
        return self._arrays(self.of_chunk(index)[0])

    def fits_call(self, call: Call) -> bool:
        """Whether a chunk of a call that is not made yet may be assigned, as `fits`."""
        try:
            self._plan(self._arrays(call))
        except LocalProtocolError:
            return False
        return True

    def _arrays(self, call: Call) -> dict[bytes, int]:
        return {
            arg.digest: arg.nbytes
            for arg in call.args
            if not isinstance(arg, ScalarArg) and arg.digest not in self._stays
        }
