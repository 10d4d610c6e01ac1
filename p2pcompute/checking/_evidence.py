"""Evidence that we make: what a liar signed, and all that it takes to compute it again, in one file.

A file can be checked by anybody and by itself: `verify_evidence`. What it holds, and in which form, is specified in
protocols/evidence/README.md. Of strict work it needs no output of the provider's: its receipt names the digest of what
it delivered, and the agreement, which both have signed, names what it should have been made from.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from p2pcompute._private_files import private_directory
from p2pcompute.errors import ConfigError, EvidenceError
from p2pcompute_protocols.dispute import StateClaim
from p2pcompute_protocols.envelope import Signer
from p2pcompute_protocols.evidence import (
    Accusation,
    EvidenceFile,
    chunks_of_round,
    open_evidence,
    seal_accusation,
)
from p2pcompute_protocols.limits import MAX_EVIDENCE_BYTES
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import HeldTiles
from p2pcompute_protocols.work import ArrayArg, ChunkWork, RoundWork

from ._sampling import SampleReport

__all__ = [
    "EVIDENCE_SUFFIX",
    "PLEDGE_SUFFIX",
    "EvidenceStore",
    "can_be_judged",
    "read_evidence",
    "receipted_round_evidence",
    "result_evidence",
    "round_evidence",
    "two_results_evidence",
]

_log = logging.getLogger("p2pcompute.checking")

EVIDENCE_SUFFIX: Final = ".p2pevidence"
PLEDGE_SUFFIX: Final = ".p2ppledge"
INLINE_BYTES: Final = 16 * 1024 * 1024  # inputs that are put into a file, all together
_MAX_FILES: Final = 64
_MAX_BYTES: Final = 256 * 1024 * 1024


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _file(
    agreement: Agreement,
    accusation: Accusation,
    statements: Sequence[bytes],
    blobs: Mapping[bytes, bytes],
    claims: Sequence[StateClaim] = (),
    *,
    signer: Signer,
) -> bytes:
    """The file's bytes; blobs go in from the smallest on, as far as there is room, but manifests of split inputs before
    all others: without them nobody knows what tiles are for."""
    inline: list[bytes] = []
    room = INLINE_BYTES
    work = agreement.terms.work
    first = {arg.manifest for arg in work.splits.values()} if isinstance(work, ChunkWork) else set[bytes]()
    for _, blob in sorted(blobs.items(), key=lambda pair: (pair[0] not in first, len(pair[1]), pair[0])):
        if not blob or len(blob) > room:
            break
        room -= len(blob)
        inline.append(blob)
    made = EvidenceFile(
        version=1,
        network=agreement.network,
        accusation=seal_accusation(accusation, network=agreement.network, signer=signer),
        agreement=agreement.raw,
        statements=tuple(statements),
        blobs=tuple(inline),
        claims=tuple(claims),
    )
    return made.encode()


def can_be_judged(agreement: Agreement) -> bool:
    """Whether a file about this work can decide: it has to be a kernel's, whose source goes into the file. Of other
    work nobody could say from the file alone what it gives, and the inputs of a call are in no agreement."""
    return isinstance(agreement.terms.work, ChunkWork) and not agreement.terms.standing


def result_evidence(
    agreement: Agreement,
    receipt: bytes,
    index: int,
    *,
    blobs: Mapping[bytes, bytes],
    signer: Signer,
    now_ms: int,
    report: SampleReport | None = None,
    output: bytes | memoryview = b"",
) -> bytes:
    """A file that holds the receipt of chunk `index` against its provider: it is for another output than the work's.

    Args:
        agreement: what both have signed.
        receipt: the envelope.
        blobs: kernel, inputs, and tiles of the chunk, by digest. They go into the file up to 16 MiB, manifests first
            and then the smallest; whoever checks it needs the others too.
        signer: who accuses.
        now_ms: when.
        report: what the sample found; names the first item that differs.
        output: what was delivered. A file about strict work needs none; in fast mode it is what is compared.
    """
    accusation = Accusation(
        task=agreement.task_id,
        kind="result",
        statements=(_digest(receipt),),
        created_ms=now_ms,
        index=index,
        item=None if report is None else report.thread,
        detail=None if report is None else f"{report.mismatched} of {report.checked} samples differ",
    )
    given = _of_work(agreement, blobs, index)
    if agreement.terms.fp == "fast" and output:
        given[_digest(bytes(output))] = bytes(output)
    return _file(agreement, accusation, [receipt], given, signer=signer)


def two_results_evidence(
    agreement: Agreement, receipts: tuple[bytes, bytes], index: int, *, signer: Signer, now_ms: int
) -> bytes:
    """A file that holds two receipts for unlike outputs of chunk `index` against their provider. Nothing has to be
    computed again: the two signatures decide."""
    accusation = Accusation(
        task=agreement.task_id,
        kind="equivocation",
        statements=(_digest(receipts[0]), _digest(receipts[1])),
        created_ms=now_ms,
        index=index,
    )
    return _file(agreement, accusation, receipts, {}, signer=signer)


def round_evidence(
    agreement: Agreement,
    rounds: bytes,
    round_: int,
    claims: Sequence[StateClaim],
    *,
    before: bytes = b"",
    blobs: Mapping[bytes, bytes],
    signer: Signer,
    now_ms: int,
) -> bytes:
    """A file that holds one round of a commitment against its provider; `Bisection` finds which.

    Args:
        agreement: what both have signed.
        rounds: the commitment's envelope.
        round_: the round; 0 where the first state itself is not the agreement's.
        claims: the committed states before and after it; for round 0 the first one alone.
        before: the bytes of the state before the round, where it is above 0; of a `RoundWork` the digests of its
            arrays, one behind the other, and the arrays are among `blobs`.
        blobs: kernel and inputs by digest; what is not needed is left out.
        signer: who accuses.
        now_ms: when.
    """
    accusation = Accusation(
        task=agreement.task_id, kind="round", statements=(_digest(rounds),), created_ms=now_ms, round=round_
    )
    given: dict[bytes, bytes] = {}
    if round_:
        bare = _file(agreement, accusation, [rounds], {}, claims, signer=signer)
        held = {**blobs, _digest(before): before}
        needs = open_evidence(bare, more=held).needs
        given = {digest: data for digest, data in held.items() if digest in needs}
    return _file(agreement, accusation, [rounds], given, claims, signer=signer)


def receipted_round_evidence(
    agreement: Agreement,
    receipts: Mapping[int, tuple[bytes, bytes]],
    round_: int,
    *,
    before: tuple[Sequence[bytes | bytearray], Sequence[bytes]],
    blobs: Mapping[bytes, bytes],
    signer: Signer,
    now_ms: int,
    report: SampleReport | None = None,
) -> bytes:
    """A file that holds one round of a `RoundWork` against its provider: the state before it does not give the one
    after it that was receipted.

    Args:
        agreement: what both have signed.
        receipts: by chunk, the envelope and the list of digests that it is for.
        round_: from 1 on, within the agreement's work.
        before: the arrays of the state before it, and their digests.
        blobs: kernels and constant inputs by digest.
        signer: who accuses.
        now_ms: when.
        report: what the sample found.
    """
    work = agreement.terms.work
    assert isinstance(work, RoundWork)  # what there are receipted rounds of
    chunks = chunks_of_round(work, round_)
    statements = [receipts[index][0] for index in chunks]
    accusation = Accusation(
        task=agreement.task_id,
        kind="round",
        statements=tuple(_digest(statement) for statement in statements),
        created_ms=now_ms,
        round=round_,
        detail=None if report is None else f"{report.mismatched} of {report.checked} samples differ",
    )
    arrays, digests = before
    lists = [receipts[index][1] for index in chunks]
    given = {_digest(data): data for data in (*lists, *([b"".join(digests)] if round_ > 1 else ()))}
    given.update(zip(digests, map(bytes, arrays), strict=True))
    for launch in work.launches:
        constants = [arg.digest for arg in launch.args if isinstance(arg, ArrayArg)]
        given.update({digest: blobs[digest] for digest in (launch.kernel.digest, *constants)})
    return _file(agreement, accusation, statements, given, signer=signer)


def _of_work(agreement: Agreement, blobs: Mapping[bytes, bytes], index: int) -> dict[bytes, bytes]:
    work = agreement.terms.work
    if not isinstance(work, ChunkWork):
        return {}
    needed = list(work.inputs)
    if work.splits and all(arg.manifest in blobs for arg in work.splits.values()):
        manifests = {position: blobs[arg.manifest] for position, arg in work.splits.items()}
        needed += HeldTiles(work, manifests).of_chunk(index).values()
    return {digest: blobs[digest] for digest in needed if digest in blobs}


def read_evidence(path: Path) -> bytes:
    """The bytes of a file of evidence.

    Raises:
        EvidenceError: there is no such regular file, it is too large to be one, or it can't be read.
    """
    try:
        # O_NONBLOCK: a pipe must not hang.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise EvidenceError(f"{path} is not a regular file; name one that ends in {EVIDENCE_SUFFIX}")
            data = file.read(MAX_EVIDENCE_BYTES + 1)
    except OSError as exc:
        raise EvidenceError(f"{path} can't be read ({exc.strerror}); check the path and its permissions") from exc
    if len(data) > MAX_EVIDENCE_BYTES:
        raise EvidenceError(f"{path} has more than the {MAX_EVIDENCE_BYTES} bytes that evidence may have")
    return data


class _RunSync(Protocol):
    def __call__(self, call: Callable[[], Any], /) -> Awaitable[Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceStore:
    """The files of one profile, in a directory of its own.

    Identities cost nothing, so liars without end could fill the disk: there are 64 files and 256 MiB at most, and
    the oldest make room.

    Attributes:
        directory: made with mode 0700 where it is missing.
        run_sync: calls what waits for the disk, such as `trio.to_thread.run_sync`.
    """

    directory: Path
    run_sync: _RunSync
    max_files: int = _MAX_FILES
    max_bytes: int = _MAX_BYTES

    async def save(self, agreement: Agreement, what: str, data: bytes, *, pledge: bytes = b"") -> Path | None:
        """Keep a file; gives where it lies. A disk that takes none is logged, and does not end the task.

        Args:
            agreement: of the task; its ID begins the file's name.
            what: goes into the name, such as "chunk-7".
            data: its bytes.
            pledge: what the provider has put at risk; lies beside the file, under its name with `PLEDGE_SUFFIX`.
        """
        path = self.directory / f"{agreement.task_id.hex()[:16]}-{what}{EVIDENCE_SUFFIX}"
        try:
            if pledge:
                await self.run_sync(partial(self._write, path.with_suffix(PLEDGE_SUFFIX), pledge))
            await self.run_sync(partial(self._write, path, data))
        except (OSError, ConfigError) as exc:
            _log.warning("evidence against %s is not kept: %s", agreement.terms.provider, exc)
            return None
        return path

    def _write(self, path: Path, data: bytes) -> None:
        private_directory(self.directory)
        self._make_room(len(data))
        part = path.with_suffix(".part")
        with os.fdopen(
            os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def _make_room(self, size: int) -> None:
        held = [(info.st_mtime_ns, path, info.st_size) for path in self.files() if (info := path.stat())]
        held.sort()
        total = sum(length for _, _, length in held)
        while held and (len(held) >= self.max_files or total + size > self.max_bytes):
            _, oldest, length = held.pop(0)
            oldest.unlink(missing_ok=True)
            oldest.with_suffix(PLEDGE_SUFFIX).unlink(missing_ok=True)
            total -= length

    def files(self) -> list[Path]:
        """All files, in the order of their names; none where the directory is missing."""
        return sorted(self.directory.glob(f"*{EVIDENCE_SUFFIX}"))
