"""How good a model is at its task, and whether it is as good as another."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.goals import delta, delta_bounds, gain, metric_of, per_label, why_not_metric
from deploy.intervals import CONFIDENCE, mcnemar_p
from deploy.metrics import difference, evaluate_all, labels_of, roc_curve, value_of
from deploy.metrics import per_label as measure_per_label
from deploy.record import Answers, Comparison, Confusion, Evaluation, Goal, Interval, Roc, Scatter
from deploy.session import Model

Array = npt.NDArray[Any]
Classes = npt.NDArray[np.int64]

_MOST_CLASSES = 50
_MOST_POINTS = 200


def predict_classes(model: Model, samples: Array) -> Classes:
    """Return the class of the highest score for each raw sample, ``(n,)``; ties go to the lowest.

    Raises:
        UserError: as ``answers_of`` does.
    """
    return np.asarray(answers_of(model, samples, Goal()).argmax(axis=1), np.int64)


def answers_of(model: Model, samples: Array, goal: Goal | None = None) -> Array:
    """Return what a model answers to raw samples, ``(n, outputs)``.

    These are scores of classes, probabilities of labels, values of targets in their unit, or one
    anomaly score: the mean square of what the reconstruction got wrong.

    Args:
        model: an open model.
        samples: as a device receives them, ``(n, ...)``.
        goal: what the model is for; None believes what the model says of itself.

    Raises:
        UserError: if the output is not of the task's shape, or an answer is NaN or infinite: it
            must not count as right by chance.
    """
    goal = model.metadata.goal if goal is None else goal
    if goal.task == "reconstruction":
        return require_finite(model.errors(samples)[:, None], model.where)
    outputs = model.scores(samples)
    classification = goal.task == "classification"
    if outputs.ndim != 2 or outputs.shape[1] < (2 if classification else 1):
        what = "(n, classes) with 2 classes or more" if classification else "(n, outputs)"
        end = "one score a class" if classification else "one number a label or target"
        raise UserError(
            f"{model.where}: evaluation needs an output of {what}, "
            f"got {outputs.shape}; end the network with {end}"
        )
    return require_finite(outputs, model.where, logarithms=classification)


def require_finite(answers: Array, where: str, *, logarithms: bool = False) -> Array:
    """Return answers as they are, once each of them is known to be a number.

    Args:
        answers: ``(n, ...)``.
        where: the model, as the error is to name it.
        logarithms: whether they may be logarithms of probabilities, of which −∞ is a fair one
            beside others that are not.

    Raises:
        UserError: if an answer is NaN or infinite.
    """
    rows = answers.reshape(len(answers), math.prod(answers.shape[1:]))
    broken = ~np.isfinite(rows)
    if logarithms:
        broken &= ~np.isneginf(rows) | np.isneginf(rows).all(axis=1, keepdims=True)
    samples = np.flatnonzero(broken.any(axis=1))
    if samples.size:
        raise UserError(
            f"{where}: scores must be numbers, got {rows[broken][0]} for "
            f"{samples.size} of {len(answers)} samples, the first of them sample {samples[0]}; "
            f"look for overflow in the model or NaN in the samples"
        )
    return answers


def require_known_truth(answers: Array, y: Array, goal: Goal, *, data: Path, model: str) -> None:
    """Refuse a truth that the model has no number for.

    Args:
        answers: of the model to any samples, ``(n, outputs)``.
        y: the truth about all samples, as ``evaluate`` takes it.
        goal: the task.
        data: where ``y`` is from, as the error is to name it.
        model: the model, alike.

    Raises:
        UserError: if ``y`` holds a class that the model does not know, or has more or fewer labels
            or targets than the model.
    """
    outputs = answers.shape[1]
    if goal.task == "classification" and int(y.max()) >= outputs:
        raise UserError(
            f"{data}: {model} tells classes 0 to {outputs - 1}, got {int(y.max())} at index "
            f"{int(y.argmax())} of y; give the data of its own task"
        )
    if y.ndim == 2 and y.shape[1] != outputs:
        raise UserError(
            f"{data}: {model} gives {outputs} numbers a sample, y has {y.shape[1]}; give the data of "
            "its own task"
        )


def evaluate(answers: Array, y: Array, goal: Goal = Goal()) -> Evaluation:
    """Compare the answers to samples, ``(n, outputs)``, with the truth.

    Args:
        answers: as ``answers_of`` gives them.
        y: classes ``(n,)``; labels ``(n, labels)`` of 0 and 1; values ``(n, targets)``; or for a
            reconstruction 1 where a sample is an anomaly, ``(n,)``.
        goal: the task and its metric.

    Raises:
        UserError: if answers and truth do not pair, there are none, the truth is not of the
            task's kind, or the metric does not fit it.

    >>> evaluate(np.array([[2, 1], [0, 1], [0, 1]]), np.array([0, 1, 0])).per_label
    (0.5, 1.0)
    """
    _require_pairs("answers", answers, y, goal)
    metrics = evaluate_all(goal, answers, y)
    return Evaluation(
        samples=len(y),
        score=metrics[goal.metric],
        metrics=metrics,
        per_label=tuple(measure_per_label(goal, answers, y).tolist()),
        answers=_shown(goal, answers, y),
    )


def score_of(answers: Array, y: Array, goal: Goal = Goal()) -> float:
    """Return the score that ``evaluate`` gives, without its interval: a search asks often.

    Args:
        answers: as in ``evaluate``.
        y: as in ``evaluate``.
        goal: as in ``evaluate``.

    Raises:
        UserError: as ``evaluate`` does.

    >>> score_of(np.array([[2, 1], [0, 1], [0, 1], [0, 1]]), np.array([0, 1, 0, 1]))
    0.75
    """
    _require_pairs("answers", answers, y, goal)
    return value_of(goal, answers, y)


def compare(candidate: Array, reference: Array, y: Array, goal: Goal = Goal()) -> Comparison:
    """Compare two models' answers to the same samples, pair by pair.

    Raises:
        UserError: as ``evaluate`` does.
    """
    _require_pairs("candidate", candidate, y, goal)
    _require_pairs("reference", reference, y, goal)
    found = difference(goal, candidate, reference, y)
    by_label = measure_per_label(goal, candidate, y) - measure_per_label(goal, reference, y)
    same, mcnemar = _told_apart(candidate, reference, y, goal)
    unit = 100 if metric_of(goal).form == "share" else 1
    label_unit = 100 if metric_of(per_label(goal)).form == "share" else 1
    return Comparison(
        delta=Interval(value=unit * found.value, low=unit * found.low, high=unit * found.high),
        mcnemar_p=mcnemar if goal.metric == "accuracy" else None,
        agreement=same,
        per_label_delta=tuple((label_unit * by_label).tolist()),
    )


def is_difference(low: float, high: float, mcnemar_p: float | None) -> bool:
    """Say whether a paired difference is more than noise.

    It is where its interval excludes 0 and, for an accuracy, the exact test agrees: either alone
    errs at times, the interval where few samples changed sides.

    Args:
        low: low end of the interval of the difference.
        high: high end.
        mcnemar_p: p-value of the exact McNemar test on the same samples; None where there is none.

    >>> is_difference(0.1, 1.0, 0.04), is_difference(-0.1, 1.0, 0.04), is_difference(0.1, 1.0, 0.06)
    (True, False, False)
    """
    return (low > 0 or high < 0) and (mcnemar_p is None or mcnemar_p < 1 - CONFIDENCE)


def verdict(comparison: Comparison, goal: Goal = Goal()) -> str:
    """Say in a few words whether the candidate is as good as the reference.

    A difference is called one where ``is_difference`` says so.
    """
    ends = comparison.delta.value, comparison.delta.low, comparison.delta.high
    size = f"{delta(goal, *ends)} {delta_bounds(goal, *ends)}"
    if not is_difference(*ends[1:], comparison.mcnemar_p):
        return f"no detectable difference: {size}"
    better = gain(goal, comparison.delta.value) > 0
    if goal.metric == "accuracy":
        return f"{'more' if better else 'less'} accurate: {size}"
    return f"{'better' if better else 'worse'} {metric_of(goal).title}: {size}"


def _told_apart(
    candidate: Array, reference: Array, y: Array, goal: Goal
) -> tuple[float | None, float | None]:
    """Return on what share of the samples two models say the same, and McNemar's p-value."""
    match goal.task:
        case "classification":
            said, other = candidate.argmax(axis=1), reference.argmax(axis=1)
            same, right, other_right = said == other, said == y, other == y
        case "multi_label":
            given, others = labels_of(candidate), labels_of(reference)
            same = (given == others).all(axis=1)
            right, other_right = ((each == y).all(axis=1) for each in (given, others))
        case _:
            return None, None
    gained, lost = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return float(same.mean()), mcnemar_p(gained, lost)


def _shown(goal: Goal, answers: Array, y: Array) -> Answers | None:
    """Return how the answers lie beside the truth, as a report draws it."""
    match goal.task:
        case "classification":
            classes = answers.shape[1]
            if classes > _MOST_CLASSES:
                return None
            pairs = np.bincount(classes * y + answers.argmax(axis=1), minlength=classes**2)
            return Confusion(counts=_rows(pairs.reshape(classes, classes)))
        case "regression":
            some = np.linspace(0, len(y) - 1, min(len(y), _MOST_POINTS)).astype(int)
            predicted = np.float64(answers[some])
            return Scatter(true=_rows(np.float64(y[some]).T), predicted=_rows(predicted.T))
        case "reconstruction":
            rates = np.stack(roc_curve(y, answers[:, 0]))
            some = np.linspace(0, rates.shape[1] - 1, min(rates.shape[1], _MOST_POINTS))
            found, alarms = rates[1, some.astype(int)], rates[0, some.astype(int)]
            return Roc(
                false_positive_rate=tuple(alarms.tolist()), true_positive_rate=tuple(found.tolist())
            )
        case "multi_label":
            return None


def _rows(table: Array) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())


def _require_pairs(name: str, answers: Array, y: Array, goal: Goal) -> None:
    """Refuse answers and truth that do not pair, or that the goal's metric cannot judge."""
    wide = goal.task in {"multi_label", "regression"}
    shape = (len(y), answers.shape[1] if answers.ndim == 2 else 0)
    fits = answers.ndim == 2 and len(answers) == len(y) > 0 and min(shape) > 0
    if not fits or y.shape != (shape if wide else shape[:1]):
        truth = "one row of labels or values" if wide else "one class"
        raise UserError(
            f"{name}: needs one row of answers and {truth} a sample and one sample or more, "
            f"got shape {answers.shape} beside y of {y.shape}"
        )
    outputs = answers.shape[1]
    why_not = why_not_metric(goal.task, goal.metric, outputs)
    if why_not is not None:
        raise UserError(why_not)
    if goal.task == "regression":
        return
    most = outputs - 1 if goal.task == "classification" else 1
    if y.min() < 0 or y.max() > most:
        what = "classes" if goal.task == "classification" else "labels"
        raise UserError(
            f"y: {what} must lie from 0 to {most}, "
            f"got {y.min()} to {y.max()}; is this the model's own task?"
        )
    if goal.metric == "roc_auc" and goal.task != "multi_label" and len(np.unique(y)) < 2:
        raise UserError("y: ROC-AUC needs samples of both kinds, got one kind alone")
