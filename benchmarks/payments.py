"""Vouchers a second, restarts, and gas: what paying costs. Prints a table, or JSON.

    python benchmarks/payments.py [--quick] [--json] [--write] [--directory DIR]

Everything is the product's own: payers, payees and ledgers as nodes have them, on a model of the hub, over socket
pairs. The ledgers lie in `--directory` (the system's temporary one unless given); what its disk takes for a sync bounds
a single channel, so that is measured too. The rows are run ten times in turn, and the best counts. `--write` puts the
figures into docs/benchmarks/payments.md and benchmarks/results/payments.json; `make bench-payments` does that.
`--quick` is for tests: no figure of it means anything.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import platform
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import trio
from _common import Figure, arguments, at_least, at_most, cores, processor, report, say
from payments_gas import gas
from payments_page import page
from payments_world import Provider, Requester, open_pair, open_provider, open_requester, restart_s, signer_s

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "payments.json"
PAGE = HERE.parent / "docs" / "benchmarks" / "payments.md"
ROUNDS = 10


def alternate(
    rounds: int, measures: Sequence[Callable[[Path], Awaitable[float]]], directory: Path
) -> list[list[float]]:
    """The times of each of several rounds, in which the measures take turns; each in a directory and in a process of
    its own, as a node is: none works in memory that another one has left in pieces."""
    times: list[list[float]] = [[] for _ in measures]
    for number in range(rounds):
        for measure, found in zip(measures, times, strict=True):
            place = directory / f"round {number}"
            place.mkdir()
            found.append(_apart(measure, place))
            shutil.rmtree(place)
    return times


def _apart(measure: Callable[[Path], Awaitable[float]], place: Path) -> float:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: theirs.send(trio.run(measure, place)))
    process.start()
    theirs.close()
    try:
        took_s = float(ours.recv())
    except EOFError:
        raise AssertionError("a measurement failed; what it says is above") from None
    finally:
        process.join()
    return took_s


def sync_ms(directory: Path, count: int) -> float:
    """The median time of writing 12 KiB at a file's end and syncing it, as a commit does."""
    times = []
    with (directory / "probe").open("wb", buffering=0) as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(bytes(12_288))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    (directory / "probe").unlink()
    return sorted(times)[count // 2] * 1000


def vouchers(options: argparse.Namespace, directory: Path) -> Iterator[Figure]:
    """Signed, sent, checked, stored."""
    quick, rounds = options.quick, options.rounds
    single, channels, each = (5, 3, 2) if quick else (400, 50, 60)

    async def sequence(place: Path) -> float:
        async with open_pair(place, channels=1) as (requester, provider):
            return await _in_sequence(requester, provider, single)

    async def bare_sequence(place: Path) -> float:
        async with open_provider(place, channels=1) as provider:
            return await provider.take_from_others(single, place)

    async def parallel(place: Path) -> float:
        async with open_pair(place, channels=channels) as (requester, provider):
            return await _in_parallel(requester, provider, each)

    async def bare_parallel(place: Path) -> float:
        async with open_provider(place, channels=channels) as provider:
            return await provider.take_from_others(each, place)

    total = channels * each
    rows = (
        ("one channel in sequence, both ledgers", sequence, single, 1_000),
        ("the same, payers without ledgers in a process of their own", bare_sequence, single, None),
        (f"{channels} channels at once, payers without ledgers in a process of their own", bare_parallel, total, 5_000),
        (f"{channels} channels at once, both ledgers, in one process", parallel, total, None),
    )
    say(f"{single} vouchers on one channel, {each} each on {channels} channels at once, {rounds} rounds")
    for (name, _, count, reach), times in zip(
        rows, alternate(rounds, [row[1] for row in rows], directory), strict=True
    ):
        yield at_least(name, count / min(times), "vouchers/s", reach)
        yield at_least(f"{name}: median round", count / statistics.median(times), "vouchers/s")


async def _in_sequence(requester: Requester, provider: Provider, count: int) -> float:
    spent = 0.0
    for number in range(count):
        await requester.accept(0, number)
        began = time.perf_counter()
        paid = await requester.pay(0)
        spent += time.perf_counter() - began
        if paid != number + 1:
            raise AssertionError(f"{paid} are paid after {number + 1} chunks")
    await provider.check([count])
    return spent


async def _in_parallel(requester: Requester, provider: Provider, each: int) -> float:
    channels = len(provider.accounts)

    async def pay(at: int) -> None:
        for number in range(each):
            await requester.accept(at, number)
            await requester.pay(at)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for at in range(channels):
            nursery.start_soon(pay, at)
    spent = time.perf_counter() - began
    await provider.check([each] * channels)
    return spent


def crowd(options: argparse.Namespace, directory: Path) -> Iterator[Figure]:
    """Many payers, each with a ledger of its own, and one provider: to the last micro-USD."""
    payers, each = (3, 2) if options.quick else (50, 100)
    say(f"{payers} payers, {each} vouchers each")

    async def measure(place: Path) -> float:
        async with open_provider(place / "provider", channels=0) as provider, trio.open_nursery() as nursery:
            ready = []
            for number in range(payers):
                requester = await nursery.start(open_requester, place / str(number), number, provider)
                ready.append(requester)

            async def pay(requester: Requester) -> None:
                for number in range(each):
                    await requester.accept(0, number)
                    await requester.pay(0)

            began = time.perf_counter()
            async with trio.open_nursery() as work:
                for requester in ready:
                    work.start_soon(pay, requester)
            spent = time.perf_counter() - began
            await provider.check([each] * payers)  # raises where one balance is off by one
            nursery.cancel_scope.cancel()
        return spent

    [[spent]] = alternate(1, [measure], directory)
    yield Figure(
        figure=f"{payers} payers × {each} vouchers to one provider at once: balances that are exact",
        value=float(payers),
        unit="payers",
        reach=float(payers),
        ok=True,
        least=True,
    )
    yield at_least("the same, each payer with a ledger of its own", payers * each / spent, "vouchers/s")


def restart(options: argparse.Namespace, directory: Path) -> Iterator[Figure]:
    """A provider with many channels starts again."""
    channels = 50 if options.quick else 10_000
    say(f"restart with {channels} channels")
    place = directory / "restart"
    yield at_most(
        f"restart with {channels:,} channels in the ledger, to the first answer on one of them",
        trio.run(restart_s, place, channels, min(3, options.rounds)),
        "s",
        2.0,
    )
    shutil.rmtree(place)


def signatures(options: argparse.Namespace) -> Iterator[Figure]:
    """What one core signs and checks."""
    say("signatures")
    sign, recover, verify = signer_s(20 if options.quick else 2_000)
    yield at_least("vouchers signed by one core", 1 / sign, "/s")
    yield at_least("vouchers checked by one core: the signer recovered", 1 / recover, "/s")
    yield at_least("the same, with the signer's key known", 1 / verify, "/s")


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = arguments(__doc__, quick="few vouchers")
    parser.add_argument("--directory", type=Path, default=None, help="where the ledgers lie meanwhile")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else ROUNDS
    gc.freeze()  # as `p2pcompute up` does: what is imported stays
    began, load = time.perf_counter(), os.getloadavg()[0]
    directory = Path(tempfile.mkdtemp(prefix="p2pcompute-payments-", dir=options.directory))
    try:
        figures = [
            at_most("writing 12 KiB and syncing it, median", sync_ms(directory, 20 if options.quick else 300), "ms"),
            *signatures(options),
            *vouchers(options, directory),
            *crowd(options, directory),
            *restart(options, directory),
            *(at_most(name, value, "gas", reach, digits=6) for name, value, reach in gas(say)),
        ]
    finally:
        shutil.rmtree(directory)
    machine = (
        f"{processor()}, {cores()} cores; Python {platform.python_version()}, SQLite "
        f"{sqlite3.sqlite_version}, coincurve {version('coincurve')}; "
        f"load average at the start {load:.1f}, {time.perf_counter() - began:.0f} s"
    )
    report(figures, options, results=RESULTS, page_at=PAGE, page=partial(page, machine=machine))


if __name__ == "__main__":
    main()
