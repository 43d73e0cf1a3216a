"""How often a model is right, and whether it is right as often as another."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.intervals import CONFIDENCE, mcnemar_p, paired_difference, wilson
from deploy.record import Comparison, Evaluation, Interval
from deploy.session import Model

Classes = npt.NDArray[np.int64]


def predict_classes(model: Model, samples: npt.NDArray[Any]) -> Classes:
    """Return the class of the highest score for each raw sample, ``(n,)``; ties go to the lowest.

    Raises:
        UserError: as ``class_scores`` does.
    """
    return np.asarray(class_scores(model, samples).argmax(axis=1), np.int64)


def class_scores(model: Model, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the score of every class for each raw sample, ``(n, classes)``.

    Raises:
        UserError: if the output is not one score per class and sample, or a score is NaN or +∞:
            such a sample has no class, and must not count as right by chance.
    """
    scores = model.scores(samples)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise UserError(
            f"{model.where}: evaluation needs an output of (n, classes) with 2 classes or more, "
            f"got {scores.shape}; end the network with one score a class"
        )
    # −∞ is a fair score: the logarithm of a probability of 0.
    broken = np.flatnonzero((np.isnan(scores) | np.isposinf(scores)).any(axis=1))
    if broken.size:
        raise UserError(
            f"{model.where}: scores must be numbers, got {scores[broken[0]].max()} for "
            f"{broken.size} of {len(scores)} samples, the first of them sample {broken[0]}; "
            f"look for overflow in the model or NaN in the samples"
        )
    return scores


def evaluate(predicted: Classes, y: Classes, *, classes: int) -> Evaluation:
    """Compare predicted classes ``(n,)`` with the true ones ``(n,)``.

    Raises:
        UserError: if they do not pair, there are none, or a class is not in ``range(classes)``.

    >>> evaluate(np.array([0, 1, 1]), np.array([0, 1, 0]), classes=2).recall
    (0.5, 1.0)
    """
    _require_classes("predicted", predicted, y, classes)
    _require_classes("y", y, y, classes)
    return Evaluation(
        samples=len(y),
        accuracy=wilson(int((predicted == y).sum()), len(y)),
        recall=tuple(_recall(predicted, y, classes).tolist()),
    )


def compare(candidate: Classes, reference: Classes, y: Classes, *, classes: int) -> Comparison:
    """Compare two models' predicted classes ``(n,)`` on the same samples, pair by pair.

    Raises:
        UserError: as ``evaluate`` does.
    """
    _require_classes("candidate", candidate, y, classes)
    _require_classes("reference", reference, y, classes)
    _require_classes("y", y, y, classes)
    right, reference_right = candidate == y, reference == y
    gained = int((right & ~reference_right).sum())
    lost = int((reference_right & ~right).sum())
    delta = paired_difference(gained, lost, len(y))
    recall_delta = _recall(candidate, y, classes) - _recall(reference, y, classes)
    return Comparison(
        delta_points=Interval(value=100 * delta.value, low=100 * delta.low, high=100 * delta.high),
        mcnemar_p=mcnemar_p(gained, lost),
        agreement=float((candidate == reference).mean()),
        recall_delta_points=tuple((100 * recall_delta).tolist()),
    )


def is_difference(low: float, high: float, mcnemar_p: float) -> bool:
    """Say whether a paired difference of accuracy is more than noise.

    It is where its interval excludes 0 and the exact test agrees: either alone errs at times, the
    interval where few samples changed sides.

    Args:
        low: low end of the interval of the difference.
        high: high end.
        mcnemar_p: p-value of the exact McNemar test on the same samples.

    >>> is_difference(0.1, 1.0, 0.04), is_difference(-0.1, 1.0, 0.04), is_difference(0.1, 1.0, 0.06)
    (True, False, False)
    """
    return (low > 0 or high < 0) and mcnemar_p < 1 - CONFIDENCE


def verdict(comparison: Comparison) -> str:
    """Say in a few words whether the candidate is as accurate as the reference.

    A difference is called one where ``is_difference`` says so.
    """
    delta = comparison.delta_points
    size = f"{delta.value:+.2f} points [{delta.low:+.2f}, {delta.high:+.2f}]".replace("-", "−")
    if not is_difference(delta.low, delta.high, comparison.mcnemar_p):
        return f"no detectable difference: {size}"
    return f"{'more' if delta.value > 0 else 'less'} accurate: {size}"


def _recall(predicted: Classes, y: Classes, classes: int) -> npt.NDArray[np.float64]:
    """Return the fraction correct per class, ``(classes,)``; 0 for a class without samples."""
    there = np.bincount(y, minlength=classes)
    found = np.bincount(y[predicted == y], minlength=classes)
    recall: npt.NDArray[np.float64] = found / np.maximum(there, 1)
    return recall


def _require_classes(name: str, values: Classes, y: Classes, classes: int) -> None:
    if values.shape != y.shape or y.ndim != 1 or len(y) == 0:
        raise UserError(
            f"{name}: needs one class a sample and one sample or more, "
            f"got shape {values.shape} beside y of {y.shape}"
        )
    if values.min() < 0 or values.max() >= classes:
        raise UserError(
            f"{name}: classes must lie from 0 to {classes - 1}, "
            f"got {values.min()} to {values.max()}; is this the model's own task?"
        )
