"""Federated averaging with secure aggregation: clients keep their data, and nobody sees the update of a single one.

Each client trains at home and sends its update as fixed-point integers under masks that its peers' masks cancel,
modulo 2**64 and so to the last bit. Unmasking is where the work is: the sum of all uploads, less every client's own
mask and those that drop-outs left behind. It is bought from the network, a task and a payment for each round. Providers
see what the server sees: masked uploads, seeds of masks, and the sum.

The protocol is that of Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS
2017, simplified: who has sent its upload stays until the masks are revealed (in the paper shares of its secrets are
with the others), all are told the same list of arrivals (in the paper they sign it), and masks are drawn from Philox,
which is fast everywhere and not made for secrets (in the paper from AES). Don't guard real data with it.

python examples/federated.py [--clients 32] [--rounds 5]
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trio
from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base

import p2pcompute as p2p
from p2pcompute import cuda, events, random

Array = np.ndarray[Any, Any]
FEATURES, CLASSES = 1_024, 10
ONE = 2**24  # what 1.0 is as a fixed-point number


@p2p.kernel
def unmask(total, uploads, seeds, signs):
    i = cuda.grid(1)
    if i < total.size:
        s = 0
        for client in range(uploads.shape[0]):
            s += uploads[client, i]
        for k in range(seeds.size):
            a, b, _, _ = random.philox(i, i >> 32, 0, 0, seeds[k], seeds[k] >> 32)
            s -= signs[k] * (a << 32 | b)
        total[i] = s


def mask(seed: int, size: int) -> Array:
    """The mask that `unmask` takes off again for `seed`: int64, of any value."""
    i = np.arange(size)
    a, b, _, _ = random.philox(i, i >> 32, 0, 0, seed, seed >> 32)
    return a << 32 | b


@dataclass(slots=True)
class Client:
    """One holder of data. What is sent to the server leaves it by `public`, `upload` and `reveal` only."""

    number: int
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    own: int = field(default=0, repr=False)

    @property
    def public(self) -> bytes:
        """The public key by which others agree with it on the seeds of masks: X25519, RFC 7748."""
        return crypto_scalarmult_base(self.secret)

    def update(self, model: Array, steps: int = 5, rate: float = 0.5) -> Array:
        """Train on its own rows; rows times the change of each weight, and the rows, as fixed-point int64."""
        weights = model.copy()
        for _ in range(steps):
            error = chances(weights, self.x)
            error[np.arange(len(self.y)), self.y] -= 1
            weights -= rate * error.T @ self.x / len(self.y)
        return np.append(np.rint((weights - model).ravel() * len(self.y) * ONE), len(self.y)).astype(np.int64)

    def upload(self, model: Array, invited: dict[int, bytes], number: int) -> Array:
        """Its update under a mask of its own and one with each other client that is invited to round `number`."""
        self.own = secrets.randbits(63)
        masked = self.update(model)
        masked += mask(self.own, masked.size)
        for other in invited:
            if other != self.number:
                masked += self._sign(other) * mask(self._shared(invited, other, number), masked.size)
        return masked

    def reveal(self, invited: dict[int, bytes], arrived: set[int], number: int) -> list[tuple[int, int]]:
        """Seeds and signs of what is left of its masks in the sum of the uploads that have arrived."""
        if 2 * len(arrived) <= len(invited):
            raise ValueError("half of the updates are missing: the sum would say too much of the others")
        gone = [(self._shared(invited, other, number), self._sign(other)) for other in invited if other not in arrived]
        return [(self.own, 1), *gone]

    def _sign(self, other: int) -> int:
        return 1 if self.number < other else -1  # one of the two adds what the other takes off

    def _shared(self, invited: dict[int, bytes], other: int, number: int) -> int:
        agreed = crypto_scalarmult(self.secret, invited[other]) + number.to_bytes(8, "big")
        return int.from_bytes(hashlib.sha256(agreed).digest()[:8], "big", signed=True)


def chances(model: Array, x: Array) -> Array:
    """How likely each row of `x` (rows, features) is of each class: (rows, classes), by softmax regression."""
    score = x @ model.T
    share = np.exp(score - score.max(axis=1, keepdims=True))
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def samples(rows: int, classes: list[int], seed: int) -> tuple[Array, Array]:
    """Rows around a place for each class, far apart in few of many directions: (rows, features), (rows,)."""
    places = np.random.default_rng(0).normal(0, 0.08, (CLASSES, FEATURES))
    rng = np.random.default_rng(seed)
    label = rng.choice(classes, rows)
    return places[label] + rng.normal(0, 0.5, (rows, FEATURES)), label


async def one_round(
    node: p2p.Node, clients: list[Client], dropping: set[int], model: Array, number: int
) -> tuple[Array, int]:
    """The next model from the clients that don't drop out, and what the round cost, in micro-USD."""
    invited = {client.number: client.public for client in clients}
    uploads = {c.number: c.upload(model, invited, number) for c in clients if c.number not in dropping}
    arrived = set(uploads)
    left = [pair for client in clients if client.number in arrived for pair in client.reveal(invited, arrived, number)]
    seeds, signs = np.array(left, np.int64).T
    paid: dict[str, int] = {}

    def count(event: events.TaskEvent) -> None:
        if isinstance(event, events.Paid):
            paid[event.provider] = event.paid_uusd  # all of it so far

    total = await node.run(
        unmask,
        p2p.out(model.size + 1, np.int64),
        *(np.stack(list(uploads.values())), seeds, signs),
        on_event=count,
        budget="0.01 USD",
    )
    return model + total[:-1].reshape(model.shape) / (ONE * total[-1]), sum(paid.values())


async def federate(
    node: p2p.Node,
    *,
    clients: int = 32,
    rounds: int = 5,
    report: Callable[[int, int, float, int], object] = lambda *_: None,
) -> Array:
    """The model (classes, features) after some rounds, in each of which an eighth of the clients drop out.

    `report` gets each round's number, how many updates arrived, the share of unseen rows that the model tells right,
    and what the round cost, in micro-USD.
    """
    rng = np.random.default_rng(7)
    all_of_them = [  # each knows three of the ten classes
        Client(k, *samples(40, sorted(rng.choice(CLASSES, 3, replace=False)), seed=100 + k)) for k in range(clients)
    ]
    unseen, label = samples(1_000, list(range(CLASSES)), seed=1)
    model = np.zeros((CLASSES, FEATURES))
    for number in range(rounds):
        dropping = set(rng.choice(clients, clients // 8, replace=False).tolist())
        model, paid_uusd = await one_round(node, all_of_them, dropping, model, number)
        right = float(np.mean(chances(model, unseen).argmax(axis=1) == label))
        report(number, clients - len(dropping), right, paid_uusd)
    return model


def line(number: int, arrived: int, right: float, paid_uusd: int) -> None:
    """One line for each round."""
    bar = "█" * round(40 * right)
    sys.stdout.write(f"{number:3}  {arrived} updates, {paid_uusd} micro-USD paid, {right:6.1%} right  {bar}\n")
    sys.stdout.flush()


def main() -> None:
    """Open a node on the network of this machine and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    async def work() -> None:
        async with p2p.open_node() as node:
            await federate(node, clients=options.clients, rounds=options.rounds, report=line)

    trio.run(work)


if __name__ == "__main__":
    main()
