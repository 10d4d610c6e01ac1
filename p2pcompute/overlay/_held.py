"""What a connection holds for its streams, on its peer's account."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ._memory import MemoryAccount

__all__ = ["HeldBytes"]


class HeldBytes:
    """Keeps a connection's account at what its streams hold unread.

    Args:
        unread: gives the bytes that all streams hold.
        streams: gives each stream's bytes and what resets it.
    """

    def __init__(
        self, unread: Callable[[], int], streams: Callable[[], Iterable[tuple[int, Callable[[], None]]]]
    ) -> None:
        self._unread = unread
        self._streams = streams
        self._account: MemoryAccount | None = None

    def charge_to(self, account: MemoryAccount) -> None:
        """From now on; without an account nothing is counted."""
        self._account = account

    def arrived(self) -> None:
        """Something has come. Where the account can't hold it, streams are reset, that with most unread first: they
        are what is not read, and the connection goes on."""
        account = self._account
        if account is None:
            return
        while (more := self._unread() - account.held) > 0:
            if account.try_charge(more):
                return
            unread, reset = max(self._streams(), key=lambda stream: stream[0], default=(0, None))
            if reset is None or not unread:
                return
            reset()
        self.consumed()

    def consumed(self) -> None:
        """Something was read, or thrown away."""
        account = self._account
        if account is not None and account.held > self._unread():
            account.release(account.held - self._unread())

    def close(self) -> None:
        """The connection has ended."""
        if self._account is not None:
            self._account.close()
            self._account = None
