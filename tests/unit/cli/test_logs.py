"""A node's log: one line an event, bounded whatever strangers do, nothing in it that is a secret or moves a cursor."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from p2pcompute._log import log_event
from p2pcompute._provider_events import Checkpointed, ServedTaskEnded, ServedTaskStarted
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute_cli._logs import (
    BURST,
    MAX_KEYS,
    REFILL_S,
    TOTAL_BURST,
    TOTAL_REFILL_S,
    RateLimit,
    log_handler,
)
from p2pcompute_cli._up_says import Voice
from p2pcompute_protocols.ids import PeerId, TaskId

from ..identity.test_no_secret_leaks import assert_silent
from ..market._harness import Market, compute, in_memory

PEER = PeerId("12D3KooWStranger")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def logged(
    log_format: str = "text", level: str = "info", *, debug: bool = False, limited: bool = True, name: str = "test-log"
) -> Generator[tuple[logging.Logger, io.StringIO, Clock]]:
    """A logger whose lines go nowhere else; taken down again."""
    said, clock = io.StringIO(), Clock()
    handler = log_handler(log_format, level, debug=debug, stream=said, limit=RateLimit(clock))
    if not limited:
        handler.removeFilter(handler.filters[1])
    logger = logging.getLogger(name)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield logger, said, clock
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        logger.setLevel(before[0])


def lines(said: io.StringIO) -> list[str]:
    return said.getvalue().splitlines()


def test_an_event_is_one_object_a_line() -> None:
    with logged("json") as (logger, said, _):
        log_event(logger, "peer connected", "peer …1 connected", peer=PEER, direction="in", streams=3)
        logger.warning("the disk is %d%% full", 97)
    first, second = map(json.loads, lines(said))
    assert (first["event"], first["level"], first["peer"], first["streams"]) == ("peer connected", "info", PEER, 3)
    assert first["text"] == "peer …1 connected"
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert (second["event"], second["level"], second["logger"]) == ("log", "warning", "test-log")
    assert second["text"] == "the disk is 97% full"


def test_an_event_is_one_line_for_people() -> None:
    with logged() as (logger, said, _):
        log_event(logger, "peer connected", "peer …1 connected", peer=PEER)
        logger.warning("the disk is full")
    first, second = lines(said)
    assert first[2] == first[5] == ":"
    assert first[8:] == "  peer …1 connected"
    assert second[8:] == "  warning: the disk is full"


def test_levels_and_what_is_of_no_event() -> None:
    def say(logger: logging.Logger) -> None:
        log_event(logger, "voucher", "a voucher", level=logging.DEBUG)
        log_event(logger, "peer connected", "a peer")
        logger.info("inner life")
        logger.warning("a warning")
        logger.error("an error")

    expected = {
        "debug": ["a voucher", "a peer", "inner life", "warning: a warning", "error: an error"],
        "info": ["a peer", "warning: a warning", "error: an error"],
        "warning": ["warning: a warning", "error: an error"],
        "error": ["error: an error"],
    }
    for level, texts in expected.items():
        with logged(level=level) as (logger, said, _):
            say(logger)
        assert [line[10:] for line in lines(said)] == texts, level


def test_a_stranger_cannot_make_the_log_grow() -> None:
    """Ten thousand connections a second for an hour; without the limit each is a line."""

    def flood(logger: logging.Logger, clock: Clock, count: int) -> None:
        for number in range(count):
            clock.now_s += 0.1
            log_event(logger, "peer connected", f"peer {number} connected", peer=str(number))
            logger.warning("the handler of %s failed", number)

    with logged(limited=False) as (logger, said, clock):
        flood(logger, clock, 2_000)
        assert len(lines(said)) == 4_000, "the attack works without the limit"
    with logged("json") as (logger, said, clock):
        flood(logger, clock, 36_000)
        most = 2 * (BURST + 3_600 / REFILL_S + 1)
        found = [json.loads(line) for line in lines(said)]
        assert len(found) <= most
        counted = [line for line in found if line["event"] == "peer connected"]
        assert len(counted) > BURST
        assert len(counted) + sum(line.get("left_out", 0) for line in counted) == pytest.approx(36_000, abs=100)
        assert max(line.get("left_out", 0) for line in counted) > 10
        clock.now_s += 3_600
        log_event(logger, "checkpoint", "another event goes on")
        assert json.loads(lines(said)[-1])["event"] == "checkpoint"


def test_many_kinds_of_lines_are_bounded_together() -> None:
    """Whoever gets its own words into a line's text, by code that puts them there first, gains nothing."""
    with logged() as (logger, said, clock):
        for number in range(20_000):
            clock.now_s += 0.01
            logger.warning(f"what the peer says: {number}")  # noqa: G004  as a careless library would
        assert len(lines(said)) <= TOTAL_BURST + 200 / TOTAL_REFILL_S + 1
        limit = next(one for one in logger.handlers[0].filters if isinstance(one, RateLimit))
        assert len(limit._buckets) <= MAX_KEYS + 1
        assert len(limit._left_out) <= MAX_KEYS + 1
        before = len(lines(said))
        logger.critical("the disk is gone")
        assert len(lines(said)) == before + 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_strangers_say_stays_in_its_line(log_format: str) -> None:
    evil = "name\r\n12:00:00  checkpoint: all is well\x1b[2J\x9b31m\u2028end" + "x" * 100_000
    with logged(log_format) as (logger, said, _):
        log_event(logger, "peer connected", f"peer {evil}", agent=evil)
        try:
            raise ValueError(evil)
        except ValueError:
            logger.warning("odd: %s", evil, exc_info=True)
    assert len(said.getvalue().split("\n")) == 3
    assert len(lines(said)) == 2
    for line in lines(said):
        assert len(line) < 6_000
        assert line.isprintable()
        assert "Traceback" not in line


def test_tracebacks_are_for_debugging() -> None:
    with logged(debug=True) as (logger, said, _):
        try:
            raise ValueError("why")
        except ValueError:
            logger.warning("odd", exc_info=True)
    assert "Traceback" in said.getvalue()
    assert "test-log odd (ValueError: why)" in said.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_node_at_work_logs_its_events_and_no_secret(log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets: list[bytes] = []
    for kind in (NodeKey, WalletKey):
        original = kind.__init__

        def noted(self: Any, secret: bytes, *, original: Any = original) -> None:
            secrets.append(secret)
            original(self, secret)

        monkeypatch.setattr(kind, "__init__", noted)
    with logged(log_format, "debug", debug=True, limited=False, name="p2pcompute") as (_, said, _):
        voice = Voice(as_json=False, log_format="json")

        async def scenario(market: Market) -> None:
            provider = await market.provider(on_event=voice.show)
            requester = await market.node(connect=(provider,))
            await compute(requester, chunks=4)

        in_memory(scenario)
    assert len(secrets) >= 4
    assert_silent(said.getvalue(), secrets)
    if log_format == "json":
        events = [json.loads(line) for line in lines(said)]
        names = [event["event"] for event in events]
        assert names.count("task started") == names.count("task done") == 1
        assert {"voucher", "checkpoint"} <= set(names)
        [done] = [event for event in events if event["event"] == "task done"]
        assert (done["chunks"], done["failed"], done["unpaid_chunks"]) == (4, 0, 0)
    else:
        assert any(": 4 chunks in " in line for line in lines(said))


def test_json_events_of_a_provider_stay_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs read them; the log is beside them, and says nothing unless it is asked to."""
    voice = Voice(as_json=True)
    task = TaskId(bytes(32))
    voice.say("starting", "starting", step="process")
    voice.show(ServedTaskStarted(task=task, requester=PEER, price_pusd=14, window=1, max_loss_uusd=9))
    voice.show(
        ServedTaskEnded(task=task, requester=PEER, chunks=2, failed=0, billed_uusd=3, unpaid_chunks=0),
    )
    voice.show(Checkpointed(channels=1, claimed_uusd=3))
    voice.ready([], "local", {"peer_id": "me"})
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    names = [event["event"] for event in events]
    assert names == ["starting", "task-started", "task-ended", "checkpoint", "ready"]
    assert events[2]["billed_uusd"] == 3
    assert err == ""
    assert not voice.to_people
