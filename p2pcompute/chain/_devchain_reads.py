"""What one request body may compute on the development chain, and how several bodies take turns on it.

Gas bounds what a body costs. It does not bound how long others wait for it, nor does it know that nobody waits for
the answer any more: so a read looks up every few thousand instructions, ends where its client has left, and lets
the next one go on where its turn is over. In between, the chain may have grown. A read does not see that: it runs
on the state after one block, which stays as it is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

__all__ = [
    "BODY_GAS",
    "CALL_GAS",
    "Allowance",
    "ClientGone",
    "GasSpent",
    "Turns",
]

CALL_GAS: Final = 3_000_000
"""The most gas of one `eth_call`."""

BODY_GAS: Final = 50_331_648
"""The most gas of all that one body asks for: three times what one transaction may take, since an estimate runs its
transaction more than once."""

TURN_S: Final = 0.02


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class GasSpent(Exception):
    """A body has used up its gas; the text says so."""


class Turns:
    """One thread at a time, first come, first served; whoever takes long goes to the end of the line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()
        self._since_s = 0.0

    @contextmanager
    def turn(self) -> Generator[None]:
        """Wait for the turn, and have it within the block."""
        self._take()
        try:
            yield
        finally:
            self._give()

    def pass_on(self) -> None:
        """Let others go first, where some wait and this turn is over. Only for who has the turn."""
        if self._waiting and time.monotonic() - self._since_s >= TURN_S:
            self._give()
            self._take()

    def _take(self) -> None:
        called = None
        with self._lock:
            if self._taken:
                called = threading.Lock()
                called.acquire()
                self._waiting.append(called)
            self._taken = True
        if called is not None:
            called.acquire()
        self._since_s = time.monotonic()

    def _give(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # it stays taken, by that one
            else:
                self._taken = False


class Allowance:
    """What is left to one body.

    Args:
        gas: for all of its reads and transactions together.
        call_gas: for one `eth_call`.
        turns: whom to make way for; None where there is one caller only.

    Attributes:
        gone: set it, from any thread, when nobody waits for the answer any more.
        gas_left: in units of gas.
    """

    def __init__(self, *, gas: int = BODY_GAS, call_gas: int = CALL_GAS, turns: Turns | None = None) -> None:
        self.gone = threading.Event()
        self.gas = gas
        self.gas_left = gas
        self.call_gas = call_gas
        self._turns = turns

    def look_up(self) -> None:
        """Make way for others.

        Raises:
            ClientGone: there is no need to go on.
        """
        if self._turns is not None:
            self._turns.pass_on()
        if self.gone.is_set():
            raise ClientGone

    def need(self, gas: int) -> None:
        """See that so much gas is left, before it is used.

        Raises:
            GasSpent: it is not.
        """
        if gas > self.gas_left:
            raise GasSpent(
                f"this needs up to {gas} gas, and of the {self.gas} for one request body {max(self.gas_left, 0)} are "
                "left; send it in a body of its own, or name less gas"
            )

    def use(self, gas: int) -> None:
        """Charge gas that was used."""
        self.gas_left -= gas
