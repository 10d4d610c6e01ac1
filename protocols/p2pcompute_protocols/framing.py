"""Frames: an unsigned LEB128 length (multiformats unsigned-varint, at most 4 bytes) and that many bytes."""

from __future__ import annotations

from .errors import LocalProtocolError, WireCode

__all__ = ["FrameBuffer", "frame"]

_MAX_PREFIX = 4


def frame(payload: bytes, *, max_bytes: int, bulk: bytes | memoryview = b"") -> bytes:
    """Prefix `payload`, and `bulk` behind it, with their length."""
    size = len(payload) + len(bulk)
    if not 0 < size <= max_bytes:
        raise LocalProtocolError(f"a frame of {size} bytes; 1 to {max_bytes} are allowed", code=WireCode.OVERSIZED)
    prefix = bytearray()
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return b"".join((prefix, payload, bulk))


class FrameBuffer:
    """Collects received bytes and gives whole frames; holds at most one frame and one read beyond it.

    Of a large frame the rest may be taken elsewhere, once it has begun (`begun`, `take_begun`).

    Attributes:
        heard: bytes of the stream so far; those that went elsewhere whoever takes them adds.
    """

    __slots__ = ("_buffer", "_max_bytes", "_start", "heard")

    def __init__(self, *, max_bytes: int) -> None:
        self._buffer = bytearray()
        self._start = 0
        self._max_bytes = max_bytes
        self.heard = 0

    def __len__(self) -> int:
        return len(self._buffer) - self._start

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the stream."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data
        self.heard += len(data)

    def pop(self) -> bytes | None:
        """The next whole frame, or None where more bytes are needed.

        Raises:
            LocalProtocolError: an empty frame, one above the bound, or a length that is not the shortest form.
        """
        found = self._next()
        if found is None:
            return None
        begin, size = found
        if len(self._buffer) - begin < size:
            return None
        self._start = begin + size
        with memoryview(self._buffer) as view:
            return bytes(view[begin : self._start])

    def begun(self, at_most: int) -> tuple[int, bytes] | None:
        """The size of a frame whose length has come, and up to `at_most` of its first bytes. Raises as `pop`."""
        found = self._next()
        if found is None:
            return None
        begin, size = found
        return size, bytes(self._buffer[begin : begin + min(size, at_most)])

    def take_begun(self) -> bytes:
        """What has come of a frame that has begun and is not whole; who takes that takes the rest as well."""
        found = self._next()
        assert found is not None
        begin, size = found
        assert len(self._buffer) - begin < size  # so there is nothing behind it
        taken = bytes(self._buffer[begin:])
        self._buffer.clear()
        self._start = 0
        return taken

    def _next(self) -> tuple[int, int] | None:
        """Where the next frame begins behind its length, and its size."""
        size = shift = 0
        position, end = self._start, len(self._buffer)
        while True:
            if shift == 7 * _MAX_PREFIX:
                raise LocalProtocolError("a frame's length has more than 4 bytes", code=WireCode.OVERSIZED)
            if position >= end:
                return None
            byte = self._buffer[position]
            position += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise LocalProtocolError("a frame's length is not in its shortest form")
                break
            shift += 7
        if not 0 < size <= self._max_bytes:
            raise LocalProtocolError(
                f"a frame of {size} bytes; 1 to {self._max_bytes} are allowed", code=WireCode.OVERSIZED
            )
        return position, size
