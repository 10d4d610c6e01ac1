"""Two programs that p2pcompute's providers can allow: `infer` and `local-step`.

A program is called once for each item, as ``function(index, *arguments)``: arguments in the order of the call, and in
the place of each output its row for this item, all zeros, which the function writes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["infer", "local_step"]

Array = np.ndarray[Any, Any]


def infer(
    index: int, label: Array, scores: Array, images: Array, hidden: Array, hidden_bias: Array, last: Array, bias: Array
) -> None:
    """Classify image `index` with a quantised perceptron of one hidden layer.

    All of it is integers, so that every machine gives the same bits: samples can check it.

    Args:
        index: which image.
        label: uint8, no axes; the best class.
        scores: int32 (classes,).
        images: uint8 (images, pixels).
        hidden: int8 (pixels, units); `hidden_bias` int32 (units,).
        last: int8 (units, classes); `bias` int32 (classes,).
    """
    light = images[index].astype(np.int64)
    inner = np.maximum(light @ hidden.astype(np.int64) + hidden_bias, 0) >> 8
    scores[...] = np.clip(inner, 0, 127) @ last.astype(np.int64) + bias
    label[...] = np.argmax(scores)


def local_step(index: int, update: Array, loss: Array, weights: Array, x: Array, y: Array, rate: np.float32) -> None:
    """One worker's part of a round of federated learning: a gradient step of logistic regression on shard `index`.

    Its sums and exponentials are floats, whose last bits differ between processors: use ``check="none"``, or take
    what comes for a value with an error.

    Args:
        index: which shard.
        update: float32 (features,); what to add to the weights.
        loss: float32, no axes; the mean loss before the step.
        weights: float32 (features,).
        x: float32 (shards, rows, features); `y` uint8 (shards, rows), 0 or 1.
        rate: of learning.
    """
    rows, truth = x[index], y[index].astype(np.float32)
    score = rows @ weights
    guess = np.float32(0.5) + np.float32(0.5) * np.tanh(score / 2)
    update[...] = -rate * (rows.T @ (guess - truth)) / np.float32(len(rows))
    loss[...] = np.mean(np.logaddexp(np.float32(0), score) - score * truth)
