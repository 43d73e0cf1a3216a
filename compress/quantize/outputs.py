"""How far the outputs of a quantized model are from those of the model that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.evaluate import require_finite
from deploy.record import TaskKind
from deploy.session import Model, open_model

Array = npt.NDArray[Any]
Outputs = npt.NDArray[np.float64]

_BATCH = 256
_LEAST = 1e-9
"""Float32 probabilities underflow to 0."""
_STILL = 1e-5
"""Share of its largest magnitude that a place has to spread by; float32 rounds a constant to 1e-7."""
_ALL_NOISE = 1 / _STILL**2
"""The share where nothing moves but the noise, as if it were as large as a place that just moves."""


def outputs_of(
    model: Any, x: Array, parts: Sequence[slice] | None = None, *, logarithms: bool = False
) -> Outputs:
    """Return a ``ModelProto``'s outputs ``(n, ...)``, a batch in memory at a time.

    Args:
        model: opened with the session options that ship.
        x: model inputs ``(n, ...)``, or what gives them when sliced.
        parts: which samples; None for all.
        logarithms: whether −∞ may be among them, as ``require_finite`` understands it.

    Raises:
        UserError: if an output is NaN or infinite: of classes NaN would count as the first.
    """
    opened = open_model(model.SerializeToString())
    if parts is None:
        parts = [slice(start, start + _BATCH) for start in range(0, len(x), _BATCH)]
    outputs = np.concatenate([_run(opened, x[part]) for part in parts])
    return require_finite(outputs, opened.where, logarithms=logarithms).astype(np.float64)


def _run(opened: Model, x: Array) -> Array:
    inputs = opened.cast(x)
    batch = opened.fixed_batch or len(inputs)
    runs = [opened.run(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    return np.concatenate(runs)


def output_error(
    kind: TaskKind, reference: Any, candidate: Any, x: Array, parts: Sequence[slice]
) -> float:
    """Return the ``distance`` between what two ``ModelProto`` give for some samples.

    Raises:
        UserError: as ``outputs_of`` does.
    """
    logarithms = kind == "classification"
    first, second = (
        outputs_of(model, x, parts, logarithms=logarithms) for model in (reference, candidate)
    )
    return distance(kind, first, second)


def distance(kind: TaskKind, reference: Outputs, candidate: Outputs) -> float:
    """Return how far outputs moved, in what has a meaning for the task; 0 for equals.

    Of classes the Kullback-Leibler divergence in nats; of labels the same for each label, there or
    not, mean over the labels; of values, targets or reconstructed, their ``noise_share``.

    Args:
        kind: what the outputs are.
        reference: those of the float model, ``(n, ...)``.
        candidate: the others, the same shape.
    """
    match kind:
        case "classification":
            return kl_divergence(probabilities(reference), probabilities(candidate))
        case "multi_label":
            there = (np.stack([one, 1 - one], axis=-1) for one in (reference, candidate))
            return kl_divergence(*there)
        case "regression" | "reconstruction":
            return noise_share(reference, candidate)


def noise_share(reference: Outputs, candidate: Outputs) -> float:
    """Return the mean square of the difference as a share of the reference's variance.

    Of each place of the last axis by itself, a target or a channel, and the mean of these: targets
    have units of their own. ``sqnr_db`` is its logarithm. The variance stands where signal-to-noise
    ratios of sounds have the mean square: a distance of 100 from zero is no information about where
    a target of 100 ± 1 lies. Places that hardly move, by less than a 100 000th of their largest
    magnitude, are left out; if there is no other, any noise at all is a share of 1e10, −100 dB.

    >>> noise_share(np.array([[1.0], [3.0]]), np.array([[1.1], [3.1]]))
    0.010000000000000018
    """
    signal, other = (one.reshape(-1, one.shape[-1]) for one in (reference, candidate))
    noise, variance = ((signal - other) ** 2).mean(axis=0), signal.var(axis=0)
    moving = np.sqrt(variance) > _STILL * np.abs(signal).max(axis=0)
    if not moving.any():
        return _ALL_NOISE if noise.any() else 0.0
    return float((noise[moving] / variance[moving]).mean())


def sqnr_db(share: float) -> float:
    """Return a ``noise_share`` as signal-to-quantization-noise ratio, in dB: less is worse.

    Pandey et al. (2023), "A practical mixed precision algorithm for post-training quantization",
    rank layers by it.

    >>> sqnr_db(0.01), sqnr_db(0.0)
    (20.0, inf)
    """
    return -10 * math.log10(share) if share else float("inf")


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
    """Return the mean of ``sum(p * log(p / q))`` over the last axis, in nats.

    Kullback and Leibler (1951), "On information and sufficiency", equation 2.4.

    >>> kl_divergence(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]]))
    0.0
    """
    p, q = np.maximum(reference, _LEAST), np.maximum(candidate, _LEAST)
    return float((p * np.log(p / q)).sum(axis=-1).mean())
