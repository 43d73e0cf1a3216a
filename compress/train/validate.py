"""Compares candidates by cross-validation: which folds, what they say, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.data.task import Split, Task
from compress.train.losses import higher_is_better, targets
from deploy.errors import UserError
from deploy.intervals import student_cdf, student_quantile
from deploy.record import Interval, Record

Indices = npt.NDArray[np.int64]
NOISE = 0.05
"""A difference whose p-value is not below this is called noise."""
_BATCH = 512


class KFold(Record, frozen=True, tag_field="kind", tag="k_fold", kw_only=True):
    """Every sample is held out once in each repeat, in one of ``folds`` parts."""

    folds: Annotated[int, Meta(ge=2)] = 5
    repeats: Annotated[int, Meta(ge=1)] = 1
    """Times that all samples are dealt into folds anew."""
    stratified: bool = True
    """Every class keeps its share in each fold."""


class HoldOut(Record, frozen=True, tag_field="kind", tag="hold_out", kw_only=True):
    """A share of the samples is held out, drawn anew in each repeat."""

    fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    repeats: Annotated[int, Meta(ge=1)] = 1
    stratified: bool = True
    """Every class keeps its share in the part that is held out."""


Splitting = KFold | HoldOut


class Fold(Record, frozen=True):
    """What one candidate did on one fold."""

    value: float
    """The metric on the held-out samples, which training has not seen in any way."""
    kept_epoch: int
    seconds: float


class Candidate(Record, frozen=True):
    """One candidate over all folds."""

    name: str
    folds: tuple[Fold, ...]
    mean: float
    interval: Interval | None
    """Of the mean; None with a single fold, which does not tell how much the metric varies."""


class Paired(Record, frozen=True):
    """The winner against another candidate, fold by fold."""

    other: str
    difference: float
    """Mean metric of the winner minus that of the other."""
    interval: Interval | None
    p: float | None
    """That chance alone makes a difference as large; corrected for the number of comparisons by
    Holm's method (1979). None with a single fold."""
    verdict: Literal["better", "noise", "unknown"]


class Selection(Record, frozen=True):
    """Which candidate is best, and how sure that is."""

    metric: str
    larger_is_better: bool
    splitting: Splitting
    seed: int
    samples: int
    """How many were dealt into folds; test samples are not among them."""
    candidates: tuple[Candidate, ...]
    winner: str
    paired: tuple[Paired, ...]
    facts: dict[str, str] = {}
    """Data, versions and whatever else the comparison rests on."""


def splits_of(
    y: npt.NDArray[Any], splitting: Splitting, *, seed: int, where: str
) -> list[tuple[Indices, Indices]]:
    """Return the rest and the held-out samples of every fold, as indices into ``y``.

    Args:
        y: what is to be learned, ``(n, …)``; classes ``(n,)`` for stratified folds.
        splitting: how to split.
        seed: of the shuffling.
        where: the data's name, for messages.

    Raises:
        UserError: if there are fewer samples than folds need, of any class where it is stratified.
    """
    from sklearn import model_selection as sk

    indices = np.arange(len(y))
    classes = splitting.stratified
    if classes and (y.ndim != 1 or y.dtype.kind not in "iu"):
        raise UserError(f"{where}: stratified folds need one class a sample; leave stratified out")
    match splitting:
        case KFold(folds=folds, repeats=repeats):
            few, what = (np.bincount(y).min(), "samples of its smallest class") if classes else (
                len(y), "samples")  # fmt: skip
            if folds > few:
                raise UserError(
                    f"{where}: {folds} folds are more than the {few} {what}; "
                    f"ask for {few} or fewer{', or for folds that are not stratified' if classes else ''}"
                )
            made = sk.RepeatedStratifiedKFold if classes else sk.RepeatedKFold
            splitter = made(n_splits=folds, n_repeats=repeats, random_state=seed)
        case HoldOut(fraction=fraction, repeats=repeats):
            made = sk.StratifiedShuffleSplit if classes else sk.ShuffleSplit
            splitter = made(n_splits=repeats, test_size=fraction, random_state=seed)
    try:
        return [(rest, held) for rest, held in splitter.split(indices, y if classes else None)]
    except ValueError as error:
        raise UserError(f"{where}: cannot be split so: {error}") from error


def score(model: Any, task: Task, split: Split, metric: str) -> float:
    """Return what a model that ``fit`` has trained does on a split it was not trained on.

    Args:
        model: compiled with its loss and metrics.
        task: what it was trained on.
        split: what it is judged on.
        metric: as training names it, ``val_accuracy``.

    Raises:
        UserError: if training does not measure this metric.
    """
    model.reset_metrics()
    measured: dict[str, float] = {}
    for start in range(0, len(split), _BATCH):
        batch = slice(start, start + _BATCH)
        measured = model.test_on_batch(
            split.x[batch],
            targets(task, split.y[batch]),
            reset_metrics=False,
            return_dict=True,
        )
    name = metric.removeprefix("val_")
    if name not in measured:
        known = ", ".join(f"val_{name}" for name in measured)
        raise UserError(f"metric: {metric!r} is not measured; there are {known}")
    return float(measured[name])


def select(
    folds: Mapping[str, Sequence[Fold]],
    *,
    metric: str,
    splitting: Splitting,
    seed: int,
    samples: int,
    facts: dict[str, str] | None = None,
) -> Selection:
    """Return what the folds say of the candidates.

    The training parts of the folds overlap, so that their values are not independent and the usual
    t-test finds differences that are none. Intervals and tests use the corrected variance of Nadeau
    and Bengio, "Inference for the generalization error" (2003), section 5, equation 9:
    ``(1/n + held out / rest) · s²`` in place of ``s²/n``; for repeated k-fold as proposed by Bouckaert
    and Frank, "Evaluating the replicability of significance tests" (2004).

    Args:
        folds: of each candidate, by name; the same folds in the same order.
        metric: what they were judged by.
        splitting: how the folds were made.
        seed: how they were shuffled.
        samples: how many there were.
        facts: what the comparison rests on.
    """
    larger = higher_is_better(metric)
    ratio = _held_out_ratio(splitting)
    values = {name: np.array([fold.value for fold in of]) for name, of in folds.items()}
    candidates = tuple(
        Candidate(
            name=name,
            folds=tuple(folds[name]),
            mean=float(of.mean()),
            interval=_possible(corrected_interval(of, ratio), metric),
        )
        for name, of in values.items()
    )
    sign = 1 if larger else -1
    winner = max(
        candidates, key=lambda candidate: sign * candidate.mean
    ).name  # of equals the first
    differences = {name: values[winner] - of for name, of in values.items() if name != winner}
    p_values = _holm({name: corrected_p(of, ratio) for name, of in differences.items()})
    paired = tuple(
        Paired(
            other=name,
            difference=float(of.mean()),
            interval=corrected_interval(of, ratio),
            p=p_values[name],
            verdict=_verdict(p_values[name]),
        )
        for name, of in differences.items()
    )
    return Selection(
        metric=metric,
        larger_is_better=larger,
        splitting=splitting,
        seed=seed,
        samples=samples,
        candidates=candidates,
        winner=winner,
        paired=paired,
        facts=facts or {},
    )


def _possible(interval: Interval | None, metric: str) -> Interval | None:
    """Return what of an interval a metric can be: nothing below 0, and no accuracy above 1."""
    if interval is None:
        return None
    high = min(1.0, interval.high) if metric.endswith("accuracy") else interval.high
    return Interval(value=interval.value, low=max(0.0, interval.low), high=high)


def corrected_interval(values: npt.NDArray[np.float64], ratio: float) -> Interval | None:
    """Return a mean over folds with its corrected 95 % interval; None for a single fold.

    Args:
        values: one per fold, ``(n,)``.
        ratio: held-out samples of a fold per sample of its rest.

    >>> interval = corrected_interval(np.array([0.7, 0.8, 0.9]), 1 / 2)
    >>> f"{interval.low:.3f} {interval.value:.1f} {interval.high:.3f}"
    '0.407 0.8 1.193'
    """
    if len(values) < 2:
        return None
    mean = float(values.mean())
    half = student_quantile(0.975, len(values) - 1) * _standard_error(values, ratio)
    return Interval(value=mean, low=mean - half, high=mean + half)


def corrected_p(differences: npt.NDArray[np.float64], ratio: float) -> float | None:
    """Return the two-sided p-value that the mean difference is 0; None for a single fold.

    Where every fold gives exactly the same difference the t-test would be infinitely sure; then it
    is the sign test's: folds all on one side.

    >>> f"{corrected_p(np.array([0.0, 0.1, 0.2]), 1 / 2):.3f}"
    '0.388'
    """
    n = len(differences)
    if n < 2:
        return None
    mean, error = float(differences.mean()), _standard_error(differences, ratio)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return 1.0 if abs(mean) <= 1e-12 else min(1.0, 2.0 ** (1 - n))
    return 2 * (1 - student_cdf(abs(mean) / error, n - 1))


def _standard_error(values: npt.NDArray[np.float64], ratio: float) -> float:
    return math.sqrt((1 / len(values) + ratio) * float(values.var(ddof=1)))


def _held_out_ratio(splitting: Splitting) -> float:
    match splitting:
        case KFold(folds=folds):
            return 1 / (folds - 1)
        case HoldOut(fraction=fraction):
            return fraction / (1 - fraction)


def _holm(p_values: dict[str, float | None]) -> dict[str, float | None]:
    """Return p-values corrected for being several: Holm (1979), "A simple sequentially rejective…"."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for index, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - index)))
        corrected[name] = largest
    return corrected


def _verdict(p: float | None) -> Literal["better", "noise", "unknown"]:
    if p is None:
        return "unknown"
    return "better" if p < NOISE else "noise"


OnFold = Callable[[str, int, int, Fold], None]
"""Told a candidate's name, how many folds of all are done, of how many, and what the fold gave."""
