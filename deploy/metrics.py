"""What every metric means, in numpy, with how sure it is.

Accuracy and top-k are shares of samples: Wilson's interval. ROC-AUC: Newcombe's interval by itself,
DeLong's for means of several and for differences. All others: a bootstrap of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.goals import metrics_of, top_k
from deploy.intervals import (
    bootstrap_tail,
    mann_whitney,
    normal_interval,
    paired_difference,
    wilson,
)
from deploy.record import Goal, Interval

Array = npt.NDArray[Any]
Weights = npt.NDArray[np.float64]
Measure = Callable[[Weights], dict[str, Array]]
"""From weights of samples ``(b, n)`` to the value of every metric under each, ``(b,)``."""

_SEED = 0
_RESAMPLES = 2000
_BLOCK = 4_000_000
_THRESHOLD = 0.5


def evaluate_all(goal: Goal, answers: Array, y: Array) -> dict[str, Interval]:
    """Return every metric of the goal's task, and the goal's own, with its interval.

    Args:
        goal: says the task and its metric.
        answers: ``(n, outputs)``: scores of classes, probabilities of labels, values of targets, or
            one anomaly score.
        y: the truth as an evaluation set has it.
    """
    names = metrics_of(goal.task, answers.shape[1])
    names += [goal.metric] if goal.metric not in names else []
    own = {name: _own(goal, name, answers, y) for name in names if _is_own(name)}
    found = _bootstrapped(goal, answers, y) if len(own) < len(names) else {}
    return {name: own[name] if name in own else found[name] for name in names}


def value_of(goal: Goal, answers: Array, y: Array) -> float:
    """Return the goal's metric without an interval, which spares the bootstrap.

    Args:
        goal: as in ``evaluate_all``.
        answers: as in ``evaluate_all``.
        y: as in ``evaluate_all``.
    """
    if goal.metric == "roc_auc":
        return auc_influences(*_ranked(goal, answers, y))[0]
    if _is_own(goal.metric):
        return float(_hits(goal, goal.metric, answers, y).mean())
    return _value(goal, answers, y)


def difference(goal: Goal, candidate: Array, reference: Array, y: Array) -> Interval:
    """Return the goal's metric of one model minus that of another on the same samples.

    Shares of samples: the adjusted Wald interval of ``paired_difference``. ROC-AUC: DeLong's, with
    the covariance of the two. All others: a bootstrap that draws samples with both models' answers.
    Metrics that count classes or labels get, as ``paired_difference`` does, one pair more of each
    kind on which the models differ, so that two equal models get a width too.
    """
    name = goal.metric
    if name == "accuracy" or top_k(name):
        right, other = (_hits(goal, name, answers, y) for answers in (candidate, reference))
        gained, lost = int((right & ~other).sum()), int((other & ~right).sum())
        return paired_difference(gained, lost, len(y))
    if name == "roc_auc":
        one, two = (auc_influences(*_ranked(goal, a, y)) for a in (candidate, reference))
        return normal_interval(one[0] - two[0], _deviation(one[1] - two[1]), least=-1, most=1)
    return _bootstrapped_difference(goal, candidate, reference, y)


def per_label(goal: Goal, answers: Array, y: Array) -> Array:
    """Return recall by class, F1 by label or the mean absolute error by target, ``(labels,)``."""
    match goal.task:
        case "classification":
            predicted, outputs = answers.argmax(axis=1), answers.shape[1]
            there = np.bincount(y, minlength=outputs)
            return np.bincount(y[predicted == y], minlength=outputs) / np.maximum(there, 1)
        case "multi_label":
            found, given, there = _label_counts(answers, y)
            return _ratio(2 * found.sum(axis=0), given.sum(axis=0) + there.sum(axis=0))
        case "regression":
            return np.asarray(np.abs(answers.astype(np.float64) - y).mean(axis=0))
        case "reconstruction":
            return np.empty(0)


def labels_of(answers: Array) -> npt.NDArray[np.bool_]:
    """Return which labels probabilities ``(n, labels)`` stand for: those of one half or more."""
    return np.asarray(answers >= _THRESHOLD)


def roc_curve(y: Array, scores: Array) -> tuple[Array, Array]:
    """Return false and true positive rate at every threshold, from none found to all found.

    Args:
        y: 0 or 1, ``(n,)``, both there.
        scores: higher for 1, ``(n,)``; equal scores are one threshold.

    >>> [rate.tolist() for rate in roc_curve(np.array([0, 1, 1]), np.array([0.1, 0.4, 0.1]))]
    [[0.0, 0.0, 1.0], [0.0, 0.5, 1.0]]
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(y) - 1)
    positive = np.cumsum(y[order] == 1)[last]
    negative = last + 1 - positive
    return (
        np.concatenate(([0.0], negative / negative[-1])),
        np.concatenate(([0.0], positive / positive[-1])),
    )


def auc_influences(y: Array, scores: Array) -> tuple[float, Array]:
    """Return the mean area under the ROC curves, and what each sample does to it, ``(n,)``.

    The squares of the influences add up to the variance of DeLong, DeLong and Clarke-Pearson
    (1988), Biometrics 44(3), and those of differences to that of a difference.

    Args:
        y: 0 or 1, ``(n, labels)``.
        scores: ``(n, labels)``; a label of which only one side is there is left out.
    """
    area, influence, counted = 0.0, np.zeros(len(y)), 0
    for truth, score in zip(y.T, scores.T, strict=True):
        positive, negative = score[truth == 1], score[truth == 0]
        if not (len(positive) and len(negative)):
            continue
        counted += 1
        above = _share_below(negative, positive)
        below = 1 - _share_below(positive, negative)
        own = float(above.mean())
        area += own
        influence[truth == 1] += (above - own) / _root(len(positive))
        influence[truth == 0] += (below - own) / _root(len(negative))
    counted = max(1, counted)
    return area / counted, influence / counted


def _root(n: int) -> float:
    return math.sqrt(n * max(1, n - 1))


def _deviation(influence: Array) -> float:
    return math.sqrt(float(np.square(influence).sum()))


def _share_below(values: Array, points: Array) -> Array:
    """Return for each point the share of values below it, equal ones counted half."""
    ordered = np.sort(values)
    left, right = (np.searchsorted(ordered, points, side) for side in ("left", "right"))
    return (left + right) / (2 * len(values))


def _is_own(name: str) -> bool:
    """Say whether a metric has an interval of its own, without a bootstrap."""
    return name in {"accuracy", "roc_auc"} or top_k(name) is not None


def _own(goal: Goal, name: str, answers: Array, y: Array) -> Interval:
    if name != "roc_auc":
        return wilson(int(_hits(goal, name, answers, y).sum()), len(y))
    truth, scores = _ranked(goal, answers, y)
    area, influence = auc_influences(truth, scores)
    if truth.shape[1] > 1:
        return normal_interval(area, _deviation(influence), least=0, most=1)
    positive = int(truth.sum())
    return mann_whitney(area, positive, len(truth) - positive)


def _hits(goal: Goal, name: str, answers: Array, y: Array) -> npt.NDArray[np.bool_]:
    """Return on which samples a model is right, ``(n,)``."""
    if goal.task == "multi_label":
        return np.asarray((labels_of(answers) == (y == 1)).all(axis=1))
    k = top_k(name) or 1
    if k == 1:
        return np.asarray(answers.argmax(axis=1) == y)
    # As with argmax, of equal scores the lower class goes first.
    best = np.argsort(-answers, axis=1, kind="stable")[:, :k]
    return np.asarray((best == y[:, None]).any(axis=1))


def _ranked(goal: Goal, answers: Array, y: Array) -> tuple[Array, Array]:
    """Return truth and scores as ``auc_influences`` takes them."""
    if goal.task == "multi_label":
        return y, answers
    scores = answers[:, 1] - answers[:, 0] if goal.task == "classification" else answers[:, 0]
    return y[:, None], scores[:, None]


def _bootstrapped(goal: Goal, answers: Array, y: Array) -> dict[str, Interval]:
    """Return what a bootstrap of samples says of every metric that a ``Measure`` knows."""
    counts, (measure,) = _cells(goal, (answers,), y)
    drawn = [measure(weights) for weights in _draws(counts)]
    tail = bootstrap_tail(len(y))
    return {
        name: _interval(float(value[0]), [one[name] for one in drawn], tail)
        for name, value in measure(counts[None]).items()
    }


def _bootstrapped_difference(goal: Goal, one: Array, other: Array, y: Array) -> Interval:
    name = goal.metric
    value = _value(goal, one, y) - _value(goal, other, y)
    truth, right, wrong, shares = _told_apart(goal, y, one.shape[1])
    counts, (first, second) = _cells(
        goal,
        (np.concatenate([one, right, wrong]), np.concatenate([other, wrong, right])),
        np.concatenate([y, truth, truth]),
        np.concatenate([np.ones(len(y)), shares, shares]),
    )
    drawn = [first(weights)[name] - second(weights)[name] for weights in _draws(counts)]
    return _interval(value, drawn, bootstrap_tail(len(y)))


def _told_apart(goal: Goal, y: Array, outputs: int) -> tuple[Array, Array, Array, Weights]:
    """Return truth, right and wrong answers, and shares that add up to one sample, if any."""
    match goal.task:
        case "classification":  # every class as often as it is there, taken for the next
            same = np.eye(outputs)
            shares = np.bincount(y, minlength=outputs) / len(y)
            return np.arange(outputs), same, np.roll(same, 1, axis=1), shares
        case "multi_label":  # all labels at once, none found
            every = np.ones((1, outputs))
            return every.astype(y.dtype), every, 0 * every, np.ones(1)
        case "regression" | "reconstruction":  # equal numbers are no chance
            return y[:0], np.empty((0, outputs)), np.empty((0, outputs)), np.empty(0)


def _value(goal: Goal, answers: Array, y: Array) -> float:
    counts, (measure,) = _cells(goal, (answers,), y)
    return float(measure(counts[None])[goal.metric][0])


def _interval(value: float, drawn: Sequence[Array], tail: float) -> Interval:
    low, high = np.quantile(np.concatenate(drawn), (tail, 1 - tail))
    # Of a statistic with a bias, the resamples may all lie on one side of the estimate.
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _draws(counts: Weights) -> Iterator[Weights]:
    """Yield how often each cell comes in so many resamples, ``(b, cells)``, a block at a time."""
    rng = np.random.default_rng(_SEED)
    step = max(1, min(_RESAMPLES, _BLOCK // len(counts)))
    total = counts.sum()
    for start in range(0, _RESAMPLES, step):
        size = min(step, _RESAMPLES - start)
        yield rng.multinomial(round(total), counts / total, size=size).astype(np.float64)


def _cells(
    goal: Goal, several: Sequence[Array], y: Array, shares: Weights | None = None
) -> tuple[Weights, list[Measure]]:
    """Return how often each kind of sample is there, and what measures each model on them.

    Samples that no metric tells apart are one cell: of classes these are few, and drawing samples
    anew is drawing how often each cell comes.

    Args:
        goal: says the task.
        several: the answers of one model or two, ``(n, outputs)`` each.
        y: the truth.
        shares: as how many samples each counts, ``(n,)``; None is one each.
    """
    shares = np.ones(len(y)) if shares is None else shares
    if goal.task == "regression":
        return shares, [_errors_measured(answers.astype(np.float64), y) for answers in several]
    if goal.task == "multi_label":
        return shares, [_labels_measured(*_label_counts(answers, y)) for answers in several]
    outputs = several[0].shape[1]
    rows = np.stack([y, *(answers.argmax(axis=1) for answers in several)], axis=1)
    cells, cell_of = np.unique(rows, axis=0, return_inverse=True)
    counts = np.float64(np.bincount(cell_of.reshape(-1), weights=shares, minlength=len(cells)))
    truth = cells[:, 0]
    return counts, [_classes_measured(truth, predicted, outputs) for predicted in cells[:, 1:].T]


def _classes_measured(truth: Array, predicted: Array, classes: int) -> Measure:
    right = np.flatnonzero(truth == predicted)

    def measure(weights: Weights) -> dict[str, Array]:
        found = _by_class(weights[:, right], truth[right], classes)
        given, there = (_by_class(weights, each, classes) for each in (predicted, truth))
        # A class that neither is there nor was named is no part of a mean over the classes.
        counted = np.maximum(1, ((given + there) > 0).sum(axis=1))
        return _averaged(found, given, there, counted, binary=classes == 2)

    return measure


def _labels_measured(found: Array, given: Array, there: Array) -> Measure:
    def measure(weights: Weights) -> dict[str, Array]:
        sums = [weights @ each for each in (found, given, there)]
        counted = np.full(len(weights), found.shape[1])
        return _averaged(sums[0], sums[1], sums[2], counted, binary=False)

    return measure


def _errors_measured(answers: Array, y: Array) -> Measure:
    apart = answers - y
    absolute, squared = np.abs(apart).mean(axis=1), np.square(apart)
    centred = y - y.mean(axis=0)

    def measure(weights: Weights) -> dict[str, Array]:
        total = weights.sum(axis=1)
        error = weights @ squared
        spread = weights @ np.square(centred) - np.square(weights @ centred) / total[:, None]
        # Targets that are all alike cannot be explained: 1 if they are met, else 0, as in sklearn.
        alike = spread <= 1e-12 * total[:, None]
        explained = 1 - error / np.where(alike, 1, spread)
        return {
            "mae": weights @ absolute / total,
            "mse": error.mean(axis=1) / total,
            "r2": np.where(alike, error == 0, explained).mean(axis=1),
        }

    return measure


def _averaged(
    found: Array, given: Array, there: Array, counted: Array, *, binary: bool
) -> dict[str, Array]:
    """Return precision, recall and F1 from what was found, given and there, ``(b, labels)``."""
    sides = {
        "precision": (found, given),
        "recall": (found, there),
        "f1": (2 * found, given + there),
    }
    values = {}
    for name, (part, whole) in sides.items():
        each = _ratio(part, whole)
        values[f"{name}_macro"] = each.sum(axis=1) / counted
        values[f"{name}_micro"] = _ratio(part.sum(axis=1), whole.sum(axis=1))
        values[f"{name}_weighted"] = _ratio((each * there).sum(axis=1), there.sum(axis=1))
        if binary:
            values[name] = each[:, 1]
    return values


def _label_counts(answers: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return what was found, given and there, ``(n, labels)`` of 0 and 1."""
    given, there = labels_of(answers).astype(np.float64), (y == 1).astype(np.float64)
    return given * there, given, there


def _by_class(weights: Weights, classes_of: Array, classes: int) -> Array:
    """Return the sums of columns by the class of each, ``(b, classes)``."""
    sums = np.zeros((len(weights), classes))
    if len(classes_of):
        order = np.argsort(classes_of, kind="stable")
        present, starts = np.unique(classes_of[order], return_index=True)
        sums[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def _ratio(part: Array, whole: Array) -> Array:
    """Return a quotient; 0 where there is nothing to divide by."""
    return part / np.where(whole == 0, 1, whole)
