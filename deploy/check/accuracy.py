"""What the gate knows of a model's score: measured here, or as the run wrote it down."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.bundle.opened import Bundle
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.evaluate import answers_of, compare, evaluate
from deploy.record import Goal, Interval
from deploy.session import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How good a model is by its task's own metric, and beside the baseline."""

    goal: Goal
    samples: int
    score: Interval
    """In the metric's unit; a fraction where it is a share."""
    delta: Interval | None
    """Against the baseline, paired, in points where the metric is a share; None if there is none."""
    source: str
    """Where it comes from, in words."""


def measured(model: Model, baseline: Model | None, data: EvalSet, *, name: str) -> Accuracy:
    """Measure the score in the sessions that ship.

    Raises:
        UserError: if the samples do not fit a model.
    """
    goal = model.metadata.goal
    answers = answers_of(model, data.x, goal)
    delta = None
    if baseline is not None:
        delta = compare(answers, answers_of(baseline, data.x, goal), data.y, goal).delta
    return Accuracy(
        goal=goal,
        samples=len(data.y),
        score=evaluate(answers, data.y, goal).score,
        delta=delta,
        source=f"measured here on {len(data.y):,} samples of {name}",
    )


def recorded(bundle: Bundle | None, where: str) -> Accuracy:
    """Return what the run that made a bundle measured on its test samples.

    Raises:
        UserError: if it is no bundle, or one of a single model, of which nothing is known.
    """
    known = bundle.manifest.quality if bundle is not None else None
    if bundle is None or known is None:
        raise UserError(
            f"{where}: says nothing of its accuracy; give labelled samples with --data test.npz"
        )
    return Accuracy(
        goal=bundle.manifest.goal,
        samples=known.samples,
        score=known.score,
        delta=known.delta,
        source=f"as its run measured it on {known.samples:,} samples of {known.data}",
    )
