"""Records: what is said after the handshake, without I/O (libp2p/specs noise, "Wire Format").

A record is two bytes of length, big-endian, and up to 65,535 of ciphertext with its tag. Sealing and opening go from
one buffer into another that is used again and again, since allocating costs as much as the cipher.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from cryptography.exceptions import InvalidTag

from ._errors import BadMessage, NoiseError, OutOfNonces
from ._suites import LAST_NONCE, TAG_BYTES, Suite

__all__ = [
    "BUFFER_BYTES",
    "LENGTH_BYTES",
    "MAX_CIPHERTEXT",
    "MAX_EMPTY_RECORDS",
    "MAX_PLAINTEXT",
    "MAX_RECORD_BYTES",
    "Data",
    "Opener",
    "Sealer",
    "cut",
    "record_bytes",
]

LENGTH_BYTES = 2
MAX_CIPHERTEXT = 65_535
MAX_PLAINTEXT = MAX_CIPHERTEXT - TAG_BYTES
MAX_RECORD_BYTES = LENGTH_BYTES + MAX_CIPHERTEXT
BUFFER_BYTES = 16 * MAX_RECORD_BYTES  # so many leave in one system call
GATHER_BYTES = 16 * 1024  # what is shorter shares a record with its neighbours
MAX_EMPTY_RECORDS = 64  # in a row; they carry nothing and cost us a tag each

Data: TypeAlias = bytes | bytearray | memoryview


def record_bytes(plaintext: int) -> int:
    """How long the record around so many bytes is."""
    return LENGTH_BYTES + plaintext + TAG_BYTES


def cut(parts: Sequence[Data]) -> list[Data]:
    """`parts`, one behind the other, as the plaintexts of records.

    What fits into one record is one. Otherwise the long parts make whole records without being copied, and the short
    ones (a frame's header, the end of a long part) are put together.
    """
    views = [memoryview(part) for part in parts]
    if sum(view.nbytes for view in views) <= MAX_PLAINTEXT:
        if len(parts) == 1:
            return [parts[0]] if views[0].nbytes else []
        joined = b"".join(parts)
        return [joined] if joined else []
    records: list[Data] = []
    short: list[memoryview] = []
    gathered = 0

    def finish() -> None:
        nonlocal gathered
        if gathered:
            records.append(short[0] if len(short) == 1 else b"".join(short))
            short.clear()
            gathered = 0

    for view in views:
        rest = view if view.format == "B" and view.ndim == 1 else view.cast("B")
        if len(rest) > GATHER_BYTES:
            finish()
            while len(rest) > GATHER_BYTES:
                records.append(rest[:MAX_PLAINTEXT])
                rest = rest[MAX_PLAINTEXT:]
        if gathered + len(rest) > MAX_PLAINTEXT:
            finish()
        if rest:
            short.append(rest)
            gathered += len(rest)
    finish()
    return records


class Sealer:
    """Seals what we send."""

    __slots__ = ("_aead", "_pack", "count")

    def __init__(self, suite: Suite, key: bytes) -> None:
        self._aead = suite.aead(key)
        self._pack = suite.nonce.pack
        self.count = 0  # of records, which is the next nonce

    def seal_into(self, plaintext: Data, out: memoryview) -> int:
        """Write the record around `plaintext` to the beginning of `out`; how long it is.

        Raises OutOfNonces once 2^64 - 1 records were sealed: a nonce that came twice would give the key away.
        """
        length = len(plaintext) + TAG_BYTES
        if length > MAX_CIPHERTEXT:
            raise ValueError(f"a record holds {MAX_PLAINTEXT} bytes, not {len(plaintext)}")
        if self.count > LAST_NONCE:
            raise OutOfNonces("this connection has sent as many records as it may; dial again")
        end = LENGTH_BYTES + length
        self._aead.encrypt_into(self._pack(self.count), plaintext, None, out[LENGTH_BYTES:end])
        out[0] = length >> 8
        out[1] = length & 255
        self.count += 1
        return end

    def seal(self, parts: Iterable[Data]) -> bytes:
        """The records around `parts`, for tests and small things."""
        sealed = bytearray()
        for plaintext in cut(list(parts)):
            record = bytearray(record_bytes(len(plaintext)))
            self.seal_into(plaintext, memoryview(record))
            sealed += record
        return bytes(sealed)


class Opener:
    """Opens what the peer sends. After an error it refuses everything."""

    __slots__ = ("_aead", "_broken", "_empty", "_pack", "count")

    def __init__(self, suite: Suite, key: bytes) -> None:
        self._aead = suite.aead(key)
        self._pack = suite.nonce.pack
        self._empty = 0
        self._broken: NoiseError | None = None
        self.count = 0

    def missing(self, data: Data) -> int:
        """How many bytes `data` lacks to be a whole record, or 2 where even its length is not known."""
        if len(data) < LENGTH_BYTES:
            return LENGTH_BYTES
        return max(0, LENGTH_BYTES + (data[0] << 8 | data[1]) - len(data))

    def open_into(self, data: memoryview, out: memoryview) -> tuple[int, int]:
        """Open every whole record in `data`, one plaintext behind the other, into `out`, which is as long as `data`.

        Returns how many bytes of `data` were opened, and how many of `out` are written.

        Raises:
            BadMessage: a record does not authenticate, is shorter than its tag, or is one empty record too many.
            OutOfNonces: 2^64 - 1 records were opened.
        """
        if self._broken is not None:
            raise self._broken
        try:
            return self._open_into(data, out)
        except NoiseError as exc:
            self._broken = exc
            raise

    def _open_into(self, data: memoryview, out: memoryview) -> tuple[int, int]:
        at, written, available = 0, 0, len(data)
        pack, decrypt_into = self._pack, self._aead.decrypt_into
        while available - at >= LENGTH_BYTES:
            length = data[at] << 8 | data[at + 1]
            if length < TAG_BYTES:
                raise BadMessage("a record that is shorter than its tag")
            end = at + LENGTH_BYTES + length
            if end > available:
                break
            if self.count > LAST_NONCE:
                raise OutOfNonces("the peer has sent as many records as it may")
            size = length - TAG_BYTES
            try:
                decrypt_into(pack(self.count), data[at + LENGTH_BYTES : end], None, out[written : written + size])
            except InvalidTag:
                raise BadMessage("a record does not authenticate") from None
            self.count += 1
            if size:
                self._empty = 0
                written += size
            else:
                self._empty += 1
                if self._empty > MAX_EMPTY_RECORDS:
                    raise BadMessage(f"more than {MAX_EMPTY_RECORDS} empty records in a row")
            at = end
        return at, written
