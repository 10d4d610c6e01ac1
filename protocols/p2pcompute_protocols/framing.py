"""Frames: an unsigned LEB128 length (multiformats unsigned-varint, at most 4 bytes) and that many bytes."""

from __future__ import annotations

from .errors import LocalProtocolError, WireCode

__all__ = ["FrameBuffer", "frame"]

_MAX_PREFIX = 4


def frame(payload: bytes, *, max_bytes: int) -> bytes:
    """Prefix `payload` with its length."""
    size = len(payload)
    if not 0 < size <= max_bytes:
        raise LocalProtocolError(f"a frame of {size} bytes; 1 to {max_bytes} are allowed", code=WireCode.OVERSIZED)
    prefix = bytearray()
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + payload


class FrameBuffer:
    """Collects received bytes and gives whole frames; holds at most one frame and one read beyond it."""

    __slots__ = ("_buffer", "_max_bytes", "_start")

    def __init__(self, *, max_bytes: int) -> None:
        self._buffer = bytearray()
        self._start = 0
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Take bytes from the stream."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def pop(self) -> bytes | None:
        """The next whole frame, or None where more bytes are needed.

        Raises:
            LocalProtocolError: an empty frame, one above the bound, or a length that is not the shortest form.
        """
        size = shift = 0
        position = self._start
        for offset in range(_MAX_PREFIX + 1):
            position = self._start + offset
            if offset == _MAX_PREFIX:
                raise LocalProtocolError("a frame's length has more than 4 bytes", code=WireCode.OVERSIZED)
            if position >= len(self._buffer):
                return None
            byte = self._buffer[position]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if byte == 0 and offset:
                    raise LocalProtocolError("a frame's length is not in its shortest form")
                break
        if not 0 < size <= self._max_bytes:
            raise LocalProtocolError(
                f"a frame of {size} bytes; 1 to {self._max_bytes} are allowed", code=WireCode.OVERSIZED
            )
        begin = position + 1
        if len(self._buffer) - begin < size:
            return None
        self._start = begin + size
        return bytes(self._buffer[begin : self._start])
