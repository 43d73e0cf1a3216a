"""What the gate knows of a model's accuracy: measured here, or as the run wrote it down."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.bundle.opened import Bundle
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.evaluate import class_scores, compare, evaluate, predict_classes
from deploy.record import Interval
from deploy.session import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How often a model is right, and how often beside the baseline."""

    samples: int
    share: Interval
    """Fraction of samples that are right."""
    delta_points: Interval | None
    """Against the baseline, paired; None if there is none."""
    source: str
    """Where it comes from, in words."""


def measured(model: Model, baseline: Model | None, data: EvalSet, *, name: str) -> Accuracy:
    """Measure accuracy in the sessions that ship. The one place that knows which metric it is.

    Raises:
        UserError: if the samples do not fit a model.
    """
    scores = class_scores(model, data.x)
    classes, predicted = scores.shape[1], scores.argmax(axis=1)
    delta = None
    if baseline is not None:
        reference = predict_classes(baseline, data.x)
        delta = compare(predicted, reference, data.y, classes=classes).delta_points
    return Accuracy(
        samples=len(data.y),
        share=evaluate(predicted, data.y, classes=classes).accuracy,
        delta_points=delta,
        source=f"measured here on {len(data.y):,} samples of {name}",
    )


def recorded(bundle: Bundle | None, where: str) -> Accuracy:
    """Return what the run that made a bundle measured on its test samples.

    Raises:
        UserError: if it is no bundle, or one of a single model, of which nothing is known.
    """
    known = bundle.manifest.accuracy if bundle is not None else None
    if known is None:
        raise UserError(
            f"{where}: says nothing of its accuracy; give labelled samples with --data test.npz"
        )
    return Accuracy(
        samples=known.samples,
        share=known.accuracy,
        delta_points=known.delta_points,
        source=f"as its run measured it on {known.samples:,} samples of {known.data}",
    )
