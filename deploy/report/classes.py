"""What every class, label or target gained and lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.goals import gain, metric_of, per_label
from deploy.record import Goal
from deploy.report.results import Results

_SHOWN = 20
_LOST_MOST = 3


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One label: how good the baseline is at it and what became of that in every other variant."""

    label: str
    value: float
    """Of the baseline: recall, F1 or mean absolute error, as ``goals.per_label`` says."""
    deltas: tuple[float | None, ...]
    """Change, by variant after the first; None where it was not kept."""
    lost_most: tuple[bool, ...]
    """Whether the loss is among the largest three of its variant."""


def class_rows(results: Results) -> list[ClassRow]:
    """Return the labels in order; of more than 20 those that lost most in any variant.

    Empty where there is nothing to compare by label: one target alone, or a reconstruction.
    """
    values, goal = results.baseline.per_label, per_label(results.goal)
    changes = [
        variant.baseline_per_label_delta
        if len(variant.baseline_per_label_delta) == len(values)
        else ()
        for variant in results.variants[1:]
    ]
    if len(values) < 2 or not any(changes):
        return []
    gains = [[gain(goal, change) for change in each] for each in changes]
    lost_most = [_lost_most(each) for each in gains]
    labels = results.data.labels
    if len(labels) != len(values):
        labels = tuple(str(index) for index in range(len(values)))
    shown = sorted(
        sorted(range(len(values)), key=lambda i: min(each[i] for each in gains if each))[:_SHOWN]
    )
    return [
        ClassRow(
            labels[i],
            values[i],
            tuple(each[i] if each else None for each in changes),
            tuple(i in most for most in lost_most),
        )
        for i in shown
    ]


def noun(goal: Goal) -> str:
    """Return what one of the outputs is called.

    >>> noun(Goal())
    'class'
    """
    match goal.task:
        case "classification":
            return "class"
        case "multi_label":
            return "label"
        case "regression" | "reconstruction":
            return "target"


def about_classes(results: Results) -> str:
    """Say what the numbers by label are and how little they are sure of."""
    goal, count = results.goal, len(results.baseline.per_label)
    if goal.task == "classification":
        samples = results.data.test_samples / max(1, count)
        text = (
            "Share of each class that the baseline classes right, and the change in percentage "
            f"points by variant. Without intervals: a class has about {samples:,.0f} of the test "
            f"samples, one of them is about {100 / max(1.0, samples):.2g} points, and the largest of "
            "many changes is large by chance too."
        )
    else:
        text = (
            f"{metric_of(per_label(goal)).title[0].upper()}{metric_of(per_label(goal)).title[1:]} of "
            f"the baseline by {noun(goal)}, and the change by variant. Without intervals: the "
            "largest of many changes is large by chance too."
        ).replace("Macro F1", "F1")
    text += " Read it as where to look, not as a finding."
    if count > _SHOWN:
        plural = "classes" if goal.task == "classification" else f"{noun(goal)}s"
        text += f" Of {count} {plural} the {_SHOWN} that lost most in a variant; all are in results.json."
    return text


def _lost_most(gains: Sequence[float]) -> set[int]:
    """Return the labels of the largest losses; a gain is none."""
    return {
        i for i in sorted(range(len(gains)), key=gains.__getitem__)[:_LOST_MOST] if gains[i] < 0
    }
