"""An agreement over a real kernel, what an honest provider signs for it, and what others make of that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.checking import Verdict, verify_evidence
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.tasks._work import chunk_work
from p2pcompute.testing import InlineWorkers
from p2pcompute_protocols import dispute, negotiation, task
from p2pcompute_protocols.merkle import MerkleTree

from ..protocols.vectors._material import NETWORK, NOW, PROVIDER, REQUESTER, Node
from ..protocols.vectors._negotiation import bid_bytes, order_bytes, some_terms

__all__ = ["CHUNK", "Case", "blur", "case_of", "judge", "scaled"]

SIZE, CHUNK = 640, 2  # elements, blocks of 128 threads a chunk


@p2p.kernel
def scaled(out, total, a, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + np.float32(0.5)
        total[i, 0] = i
        total[i, 1] = i * i


@p2p.kernel
def blur(after, before, edge):  # type: ignore[no-untyped-def]
    y, x = cuda.grid(2)
    if y < after.shape[0] and x < after.shape[1]:
        left = before[y, x - 1] if x > 0 else edge
        after[y, x] = (left + before[y, x]) * np.float32(0.5)


X = np.random.default_rng(3).random(SIZE).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One agreement, its blobs, and what computing it rightly gives."""

    binding: Any
    agreement: negotiation.Agreement
    blobs: Mapping[bytes, bytes]

    @property
    def work(self) -> Any:
        return self.agreement.terms.work

    def output(self, index: int) -> bytes:
        """A chunk's output, on the real back end."""
        with CpuBackend() as backend:
            kernel = backend.compile(self.binding.source, self.binding.launch, self.binding.specs)
            first, blocks = self.work.chunk_range(index)
            layout = self.binding.layout
            rows = blocks * layout.items_per_block
            outs = [
                np.zeros((rows, *row), spec.dtype) for spec, row in zip(layout.outputs, layout.row_shapes, strict=True)
            ]
            kernel.run_blocks(first, blocks, self.binding.values, outs)
        return b"".join(out.tobytes() for out in outs)

    def states(self, rounds: int) -> list[bytes]:
        """The states 0 to `rounds`."""
        with CpuBackend() as backend:
            kernel = backend.compile(self.binding.source, self.binding.launch, self.binding.specs)
            layout = self.binding.layout
            values = list(self.binding.values)
            found = [values[0].tobytes()]
            for _ in range(rounds):
                rows = np.zeros((self.binding.launch.threads, *layout.row_shapes[0]), np.float32)
                kernel.run_blocks(0, self.binding.launch.blocks, values, [rows])
                target = np.zeros_like(values[0])
                layout.scatter(0, 0, self.binding.launch.blocks, rows, target)
                values[0] = target
                found.append(target.tobytes())
        return found

    def receipt(self, index: int, content: bytes, *, node: Node = PROVIDER, **changes: Any) -> bytes:
        made = task.ReceiptPayload(
            **{
                "task": self.agreement.task_id,
                "index": index,
                "code": 0,
                "output": hashlib.sha256(content).digest(),
                "fp": "strict",
                "units": 1_000,
                "finished_ms": NOW,
                **changes,
            }
        )
        return task.seal_receipt(made, network=NETWORK, signer=node)

    def committed(self, states: list[bytes], *, node: Node = PROVIDER, **changes: Any) -> tuple[bytes, MerkleTree]:
        """A commitment to these states, and its tree."""
        tree = dispute.rounds_tree([hashlib.sha256(state).digest() for state in states])
        made = dispute.RoundsPayload(
            **{
                "task": self.agreement.task_id,
                "state": 1,
                "out": 0,
                "rounds": len(states) - 1,
                "root": tree.root,
                "finished_ms": NOW,
                **changes,
            }
        )
        return dispute.seal_rounds(made, network=NETWORK, signer=node), tree


def case_of(kernel: Any = scaled, args: tuple[Any, ...] = (), **changes: Any) -> Case:
    """Two parties that have agreed on a kernel over real arrays."""
    if args:
        pass
    elif kernel is scaled:
        args = (p2p.out((SIZE,), np.float32), p2p.out((SIZE, 2), np.int64), np.float32(3), X)
    else:
        grid = X[:600].reshape(20, 30)
        args = (p2p.out(grid.shape, np.float32), grid, np.float32(0.25))
    binding = kernel.bind(*args)
    work, blobs = chunk_work(binding, blocks_per_chunk=CHUNK, units_per_chunk=1_000)
    given = {"work": work, "language": LANGUAGE_VERSION, "fp": "strict", **changes}
    terms = some_terms(order_bytes(), bid_bytes(), **given)
    sealed = negotiation.seal_terms(terms, network=NETWORK, signer=REQUESTER)
    raw = negotiation.accept_terms(sealed, network=NETWORK, signer=PROVIDER)
    agreement = negotiation.open_agreement(raw, network=NETWORK, requester=REQUESTER.peer_id, provider=PROVIDER.peer_id)
    return Case(binding=binding, agreement=agreement, blobs=blobs)


def judge(evidence: Any, *, workers: Any = None, **options: Any) -> Verdict:
    """The verdict of somebody who has nothing but the file."""

    async def main() -> Verdict:
        return await verify_evidence(evidence, workers=workers or InlineWorkers(), **options)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
