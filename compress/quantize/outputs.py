"""How far the outputs of a quantized model are from those of the model that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.session import Model, open_model

Array = npt.NDArray[Any]
Outputs = npt.NDArray[np.float64]

_BATCH = 256
_LEAST = 1e-9
"""Float32 probabilities underflow to 0."""


def outputs_of(model: Any, x: Array, parts: Sequence[slice] | None = None) -> Outputs:
    """Return a ``ModelProto``'s outputs ``(n, ...)``, a batch in memory at a time.

    Args:
        model: opened with the session options that ship.
        x: model inputs ``(n, ...)``, or what gives them when sliced.
        parts: which samples; None for all.
    """
    opened = open_model(model.SerializeToString())
    if parts is None:
        parts = [slice(start, start + _BATCH) for start in range(0, len(x), _BATCH)]
    return np.concatenate([_run(opened, x[part]) for part in parts]).astype(np.float64)


def _run(opened: Model, x: Array) -> Array:
    inputs = opened.cast(x)
    batch = opened.fixed_batch or len(inputs)
    runs = [opened.run(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    return np.concatenate(runs)


def output_error(reference: Any, candidate: Any, x: Array, parts: Sequence[slice]) -> float:
    """Return how far the outputs of two ``ModelProto`` are apart.

    In nats, as ``kl_divergence``, if the reference gives probabilities; else the mean square of
    the difference.
    """
    first, second = (outputs_of(model, x, parts) for model in (reference, candidate))
    if are_probabilities(first):
        return kl_divergence(first, second)
    return float(((first - second) ** 2).mean())


def probabilities(outputs: Outputs) -> Outputs:
    """Return class probabilities ``(n, classes)``; what are none yet get a softmax."""
    if are_probabilities(outputs):
        return outputs
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    normalized: Outputs = powers / powers.sum(axis=-1, keepdims=True)
    return normalized


def are_probabilities(outputs: Outputs) -> bool:
    """Say whether each row is a distribution over the classes."""
    return bool(outputs.min() >= 0 and np.allclose(outputs.sum(axis=-1), 1, atol=1e-3))


def kl_divergence(reference: Outputs, candidate: Outputs) -> float:
    """Return the mean over samples of ``sum(p * log(p / q))``, in nats.

    Kullback and Leibler (1951), "On information and sufficiency", equation 2.4.

    >>> kl_divergence(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]]))
    0.0
    """
    p, q = np.maximum(reference, _LEAST), np.maximum(candidate, _LEAST)
    return float((p * np.log(p / q)).sum(axis=-1).mean())


def accuracy(outputs: Outputs, y: Array) -> float:
    """Return the share of samples whose largest output is their class: what a search may lose."""
    return float((outputs.argmax(axis=-1) == y).mean())
