"""A worker that was taken over: it comes up as an honest one does and then breaks the rules in one way.

A test makes a module whose ``main`` calls `run` with the name of a lie.
"""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any

import cbor2

READY, COMPILE, RUN_BLOCKS, RUN_THREADS, COMPILED, DONE, FAILED, CANCEL, PROGRESS, CANCELLED = range(10)
NULL = os.open("/dev/null", os.O_RDONLY)


def _packet(*fields: Any) -> bytes:
    return bytes(cbor2.dumps(list(fields), canonical=True))


# Claimed row shapes of the only output, whose shape is (1024, 3).
ROWS: dict[str, Any] = {
    "rows_too_many": [[], []],
    "rows_none": [],
    "rows_not_a_tail": [[4]],
    "rows_whole_and_more": [[7, 1024, 3]],
    "rows_negative": [[-3]],
    "rows_huge": [[1 << 62]],
    "rows_of_text": ["3"],
    "rows_bool": [[True]],
    "rows_map": [{1: 2}],
    "rows_deep": [[[[[[[[[[3]]]]]]]]]],
}
# Claimed items of a block.
ITEMS: dict[str, Any] = {"items_none": 0, "items_two": 2, "items_many": 1 << 40, "items_text": "1", "items_bool": True}


class Liar:
    def __init__(self, fd: int, lie: str) -> None:
        self.channel = socket.socket(fileno=fd)
        self.lie = lie
        self.rows: Any = ROWS.get(lie, [[]])
        self.arena = -1

    def receive(self) -> tuple[list[Any], list[int]]:
        frame, fds, _, _ = socket.recv_fds(self.channel, 1 << 20, 64)
        if not frame:
            os._exit(0)
        return cbor2.loads(frame), fds

    def send(self, *fields: Any) -> None:
        self.channel.send(_packet(*fields))

    def run(self) -> None:
        if self.lie.startswith("start_"):
            getattr(self, self.lie)()
        self.send(READY, 0, 7, True)
        while True:
            packet, fds = self.receive()
            request = packet[1]
            if packet[0] == COMPILE:
                if self.lie == "progress_of_a_compilation":
                    self.send(PROGRESS, request, 1)
                if self.lie.startswith("compile_"):
                    getattr(self, self.lie)(request)
                self.send(COMPILED, request, self.rows, ITEMS.get(self.lie, math.prod(packet[6])))
                if self.lie == "result_without_request":
                    self.send(DONE, request + 1)
                if self.lie == "progress_without_request":
                    self.send(PROGRESS, request + 1, 1)
            elif packet[0] == CANCEL:
                continue
            else:
                if fds:
                    self.arena = fds[0]
                getattr(self, self.lie)(request)
                self.send(DONE, request)

    # while starting
    def start_garbage(self) -> None:
        self.channel.send(b"\xff\x00 what?")

    def start_unlocked(self) -> None:
        self.send(READY, 0, 0, False)

    def start_wrong_packet(self) -> None:
        self.send(DONE, 0)

    def start_odd_ready(self) -> None:
        self.send(READY, 0, -1, "yes")

    def start_fail(self) -> None:
        self.send(FAILED, 0, 3, "no lock\x1b[2J to be had", 0, "", "")

    def start_silent_death(self) -> None:
        os._exit(3)

    def start_last_words(self) -> None:
        os.write(2, b"x" * 100_000 + b"ImportError: no \x1b]0;numba")
        os._exit(1)

    def start_never(self) -> None:
        signal.pause()

    # while compiling
    def compile_failed_oddly(self, request: int) -> None:
        self.send(FAILED, request, 0, 5, [], None, {})

    def compile_failed_unknown_kind(self, request: int) -> None:
        self.send(FAILED, request, 9, "x", 0, "", "")

    def compile_failed_at_length(self, request: int) -> None:
        self.send(FAILED, request, 0, "x" * 10_000, 0, "", "")

    def compile_stalls(self, request: int) -> None:
        signal.pause()

    # while running
    def honest(self, request: int) -> None:
        pass

    def result_without_request(self, request: int) -> None:
        pass

    def progress_without_request(self, request: int) -> None:
        pass

    def progress_of_a_compilation(self, request: int) -> None:
        pass

    def progress_flood(self, request: int) -> None:
        for done in range(1, 16):
            self.send(PROGRESS, request, done)
        signal.pause()

    def progress_flood_of_one(self, request: int) -> None:
        while True:
            self.send(PROGRESS, request, 1)

    def progress_backwards(self, request: int) -> None:
        self.send(PROGRESS, request, 2)
        self.send(PROGRESS, request, 1)

    def progress_of_nothing(self, request: int) -> None:
        self.send(PROGRESS, request, 0)

    def progress_of_all(self, request: int) -> None:
        self.send(PROGRESS, request, 16)

    def progress_of_more(self, request: int) -> None:
        self.send(PROGRESS, request, 1 << 62)

    def progress_of_text(self, request: int) -> None:
        self.send(PROGRESS, request, "half")

    def progress_bool(self, request: int) -> None:
        self.send(PROGRESS, request, True)

    def progress_twice_as_long(self, request: int) -> None:
        self.send(PROGRESS, request, 1, 2)

    def progress_empty(self, request: int) -> None:
        self.send(PROGRESS, request)

    def progress_of_another(self, request: int) -> None:
        self.send(PROGRESS, request + 1, 1)

    def done_early(self, request: int) -> None:
        self.send(PROGRESS, request, 3)

    def cancelled_unasked(self, request: int) -> None:
        self.send(CANCELLED, request)

    def cancelled_unasked_after_progress(self, request: int) -> None:
        self.send(PROGRESS, request, 1)
        self.send(CANCELLED, request)

    def done_in_the_past(self, request: int) -> None:
        self.send(DONE, request, -1)

    def done_on_two_devices(self, request: int) -> None:
        self.send(DONE, request, 1, 2)

    # when a run is to stop
    def _until_cancelled(self, request: int) -> None:
        self.send(PROGRESS, request, 1)
        packet, _ = self.receive()
        if packet != [CANCEL, request]:
            os._exit(9)

    def cancel_ignored(self, request: int) -> None:
        self._until_cancelled(request)
        signal.pause()

    def cancel_flooded(self, request: int) -> None:
        self._until_cancelled(request)
        while True:
            self.send(PROGRESS, request, 2)

    def cancel_with_nonsense(self, request: int) -> None:
        self._until_cancelled(request)
        self.channel.send(b"\xff")

    def cancel_of_another(self, request: int) -> None:
        self._until_cancelled(request)
        self.send(CANCELLED, request + 1)

    def cancel_as_a_start(self, request: int) -> None:
        self._until_cancelled(request)
        self.send(READY, request, 7, True)

    def cancel_failed_oddly(self, request: int) -> None:
        self._until_cancelled(request)
        self.send(FAILED, request, 0, 5, [], None, {})

    def cancel_and_leave(self, request: int) -> None:
        self._until_cancelled(request)
        os._exit(5)

    def cancel_twice(self, request: int) -> None:
        self._until_cancelled(request)
        self.send(CANCELLED, request)
        self.send(CANCELLED, request)

    def wrong_id(self, request: int) -> None:
        self.send(DONE, request + 1)

    def negative_id(self, request: int) -> None:
        self.send(DONE, -request)

    def id_true(self, request: int) -> None:
        self.send(DONE, True)  # equal to 1, and no integer

    def wrong_operation(self, request: int) -> None:
        self.send(COMPILED, request, [[3]], 1)

    def unknown_operation(self, request: int) -> None:
        self.send(77, request)

    def more_fields(self, request: int) -> None:
        self.send(DONE, request, b"surprise")

    def garbage(self, request: int) -> None:
        self.channel.send(os.urandom(100) + b"\xff")

    def not_canonical(self, request: int) -> None:
        self.channel.send(b"\x9f\x05" + cbor2.dumps(request) + b"\xff")

    def nested(self, request: int) -> None:
        self.channel.send(b"\x81" * 10_000)

    def giant_array(self, request: int) -> None:
        self.channel.send(b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff")

    def giant_string(self, request: int) -> None:
        self.channel.send(b"\x83\x05\x01\x5b\x7f\xff\xff\xff\xff\xff\xff\xff")

    def giant_packet(self, request: int) -> None:
        self.send(DONE, request, b"x" * 150_000)

    def regex(self, request: int) -> None:
        self.send(DONE, request, cbor2.CBORTag(35, "(a+)+$"))

    def pickle(self, request: int) -> None:
        self.channel.send(b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")

    def flood(self, request: int) -> None:
        while True:
            self.send(DONE, request + 1000)

    def flood_of_right_answers(self, request: int) -> None:
        while True:
            self.send(DONE, request)

    def descriptors(self, request: int) -> None:
        socket.send_fds(self.channel, [_packet(DONE, request)], [NULL] * 50)

    def empty_packet(self, request: int) -> None:
        self.channel.send(b"")
        signal.pause()

    def closes_and_stays(self, request: int) -> None:
        self.channel.close()
        signal.pause()

    def stalls(self, request: int) -> None:
        signal.pause()

    def stops_itself(self, request: int) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def exits(self, request: int) -> None:
        os._exit(5)

    def shrinks_the_arena(self, request: int) -> None:
        for size in (0, 1 << 40):
            try:
                os.ftruncate(self.arena, size)
            except OSError:
                continue
            self.send(FAILED, request, 2, "the arena changed its size", 0, "", "")

    def writes_afterwards(self, request: int) -> None:
        os.pwrite(self.arena, b"\x01" * 64, 0)
        self.send(DONE, request)
        while True:
            os.pwrite(self.arena, b"\x02" * 64, 0)


def run(config: Mapping[str, Any], lie: str) -> None:
    """Be a liar on the channel of `config`."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Liar(int(config["fd"]), lie).run()
    except OSError:
        # A broken pipe: the node has hung up.
        os._exit(0)


__all__ = ["run"]
