"""Batch inference with a small transformer: a block of threads is a text, and a thread one of its places.

Layer norm, causal attention, a GELU layer and greedy choice are one kernel, which writes twelve characters before it
comes back. Activations stay in the block; the weights are inputs, and go to each provider once for the whole batch.

The weights come from no training: they are made so that one sees what the model does. The first layer looks up the
character before each place, and the second finds where the last character came before and says what followed it (an
"induction head": Olsson et al., 2022). So it completes a word that it has just read, which plain Python can check.

A text is a long piece of work, and a chunk has some thirty, of which four, drawn in private, are written again here.

python examples/transformer.py [--texts 256]
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda

Array = np.ndarray[Any, Any]
LETTERS = " abcdefghijklmnopqrstuvwxyz"
CHARACTERS = len(LETTERS)
PROMPT, NEW = 20, 12  # characters that are given, and that are written
PLACES = PROMPT + NEW
SLOT = 32  # numbers in a code of a place or a character, and of a head
WIDTH = 4 * SLOT  # a place's vector: its code, its character's, that of the one before, that of the answer
HIDDEN = 128
WORDS = (  # no letter twice in any
    "ambidextrously background blacksmith complainers copyrightable dermatoglyphics documentary lumberjacks "
    "metalworking nightwalkers patronymics playgrounds switchboard troublemaking unforgivable unprofitably"
)


@p2p.kernel
def write(texts, scores, prompts, codes, places, looks, attends, up, down, reads):
    keys = cuda.shared.array((PLACES, SLOT), np.float32)
    values = cuda.shared.array((PLACES, SLOT), np.float32)
    text = cuda.shared.array(PLACES, np.int32)
    last = cuda.shared.array(WIDTH, np.float32)
    score = cuda.shared.array(CHARACTERS, np.float32)
    x = cuda.local.array(WIDTH, np.float32)
    normal = cuda.local.array(WIDTH, np.float32)
    query = cuda.local.array(SLOT, np.float32)
    taken = cuda.local.array(SLOT, np.float32)
    b = cuda.blockIdx.x
    t = cuda.threadIdx.x
    text[t] = prompts[b, t]  # beyond the prompt they are zeros
    for step in range(NEW):
        for d in range(WIDTH):
            x[d] = codes[text[t], d] + places[t, d]
        for part in range(2 * looks.shape[0]):  # attention, GELU layer, attention, ...
            layer = part // 2
            mean = np.float32(0.0)
            for d in range(WIDTH):
                mean += x[d] / WIDTH
            variance = np.float32(0.0)
            for d in range(WIDTH):
                variance += (x[d] - mean) * (x[d] - mean) / WIDTH
            for d in range(WIDTH):
                normal[d] = (x[d] - mean) / math.sqrt(variance + 1e-5)
            if part % 2 == 0:
                for h in range(SLOT):
                    q = np.float32(0.0)
                    k = np.float32(0.0)
                    v = np.float32(0.0)
                    for d in range(WIDTH):
                        q += looks[layer, 0, h, d] * normal[d]
                        k += looks[layer, 1, h, d] * normal[d]
                        v += looks[layer, 2, h, d] * normal[d]
                    query[h] = q
                    keys[t, h] = k
                    values[t, h] = v
                cuda.syncthreads()
                highest = np.float32(-math.inf)
                for other in range(t + 1):
                    like = np.float32(0.0)
                    for h in range(SLOT):
                        like += query[h] * keys[other, h]
                    highest = max(highest, like)
                total = np.float32(0.0)
                for h in range(SLOT):
                    taken[h] = 0.0
                for other in range(t + 1):
                    like = np.float32(0.0)
                    for h in range(SLOT):
                        like += query[h] * keys[other, h]
                    share = math.exp((like - highest) / math.sqrt(np.float32(SLOT)))
                    total += share
                    for h in range(SLOT):
                        taken[h] += share * values[other, h]
                for h in range(SLOT):
                    for d in range(WIDTH):
                        x[d] += taken[h] / total * attends[layer, h, d]
                cuda.syncthreads()
            else:
                for u in range(HIDDEN):
                    a = np.float32(0.0)
                    for d in range(WIDTH):
                        a += up[layer, u, d] * normal[d]
                    a *= 0.5 * (1.0 + math.erf(a / math.sqrt(np.float32(2.0))))
                    for d in range(WIDTH):
                        x[d] += a * down[layer, u, d]
        if t == PROMPT + step - 1:
            for d in range(WIDTH):
                last[d] = x[d]
        cuda.syncthreads()
        if t < CHARACTERS:
            total = np.float32(0.0)
            for d in range(WIDTH):
                total += reads[t, d] * last[d]
            score[t] = total
            scores[b, step, t] = total
        cuda.syncthreads()
        if t == 0:
            best = 0
            for c in range(1, CHARACTERS):
                if score[c] > score[best]:
                    best = c
            text[PROMPT + step] = best
        cuda.syncthreads()
    texts[b, t] = text[t]


def weights(seed: int = 4) -> tuple[Array, ...]:
    """Codes of characters and places, queries, keys and values, outputs of heads, the two of the GELU layers, and what
    reads the answer: float32, in the order in which `write` takes them."""
    rng = np.random.default_rng(seed)
    letter = 4 * np.linalg.qr(rng.normal(size=(SLOT, SLOT)))[0][:CHARACTERS]  # at right angles to each other
    turns = np.arange(PLACES)[:, None] * (np.arange(SLOT // 2) + 0.5) * 2 * math.pi / PLACES
    place = np.concatenate([np.cos(turns), np.sin(turns)], axis=1)  # likewise
    back = 2 * math.pi / PLACES * np.diag(np.arange(SLOT // 2) + 0.5)  # turns the code of a place to that before
    cos, sin = np.diag(np.cos(np.diag(back))), np.diag(np.sin(np.diag(back)))
    here, mine, before, answer = (np.eye(WIDTH)[k * SLOT : (k + 1) * SLOT] for k in range(4))
    codes, places = letter @ mine, place @ here
    looks = np.stack(
        [
            [2.0 * np.block([[cos, sin], [-sin, cos]]) @ here, here, mine],  # asks for the place before its own
            [2.5 * mine, before, mine],  # asks for a place whose character before is its own
        ]
    )
    attends = np.stack([0.5 * before, 0.6 * answer])
    up, down = rng.normal(size=(2, 2, HIDDEN, WIDTH)) * np.array([0.1, 0.005])[:, None, None, None]
    return tuple(w.astype(np.float32) for w in (codes, places, looks, attends, up, down, letter @ answer))


def questions(count: int, seed: int = 6) -> list[tuple[str, str]]:
    """Words without a letter twice, each with as much of it as is told again; words first, then made-up ones."""
    rng = np.random.default_rng(seed)
    made = ("".join(rng.permutation(list(LETTERS[1:]))[: rng.integers(8, 15)]) for _ in range(count))
    return [(word, word[: max(len(word) - NEW, rng.integers(1, 4))]) for word in [*WORDS.split(), *made][:count]]


async def complete(node: p2p.Node, asked: list[tuple[str, str]]) -> tuple[list[str], Array]:
    """How the model goes on after "word wo", up to a space, and its scores: float32 (texts, 12, 27)."""
    rows = [f"{word} {again}".rjust(PROMPT) for word, again in asked]
    prompts = np.array([[LETTERS.index(c) for c in row] for row in rows], np.int8)
    texts, scores = await node.run(
        write[len(asked), PLACES],
        p2p.out((len(asked), PLACES), np.int8),
        p2p.out((len(asked), NEW, CHARACTERS), np.float32),
        *(prompts, *weights()),
        samples=4,
        budget="0.10 USD",
    )
    return ["".join(LETTERS[c] for c in row[PROMPT:]).split(" ")[0] for row in texts], scores


def main() -> None:
    """Open a node on the network of this machine and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    asked = questions(parser.parse_args().texts)

    async def work() -> tuple[list[str], Array]:
        async with p2p.open_node() as node:
            return await complete(node, asked)

    written, _ = trio.run(work)
    for (word, again), rest in list(zip(asked, written, strict=True))[:20]:
        sys.stdout.write(f"{word} {again}|{rest}\n")
    right = sum(again + rest == word for (word, again), rest in zip(asked, written, strict=True))
    sys.stdout.write(f"{right} of {len(asked)} are completed as they should be\n")


if __name__ == "__main__":
    main()
