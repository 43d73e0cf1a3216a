"""What every class gained and lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.report.results import Results

_SHOWN = 20
_LOST_MOST = 3


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class: its recall in the baseline and what became of it in every other variant."""

    label: str
    recall: float
    """Fraction of the class's test samples that the baseline classes right."""
    deltas: tuple[float | None, ...]
    """Change in percentage points, by variant after the first; None where it was not kept."""
    lost_most: tuple[bool, ...]
    """Whether the loss is among the largest three of its variant."""


def class_rows(results: Results) -> list[ClassRow]:
    """Return the classes in order; of more than 20 those that lost most in any variant.

    Empty where recall was not kept, as in files of before it was.
    """
    recall = results.baseline.recall
    changes = [
        variant.baseline_recall_delta_points
        if len(variant.baseline_recall_delta_points) == len(recall)
        else ()
        for variant in results.variants[1:]
    ]
    if not recall or not any(changes):
        return []
    lost_most = [_lost_most(points) for points in changes]
    labels = results.data.labels
    if len(labels) != len(recall):
        labels = tuple(str(index) for index in range(len(recall)))
    shown = sorted(
        sorted(range(len(recall)), key=lambda i: min(p[i] for p in changes if p))[:_SHOWN]
    )
    return [
        ClassRow(
            labels[i],
            recall[i],
            tuple(points[i] if points else None for points in changes),
            tuple(i in most for most in lost_most),
        )
        for i in shown
    ]


def about_classes(results: Results) -> str:
    """Say what the numbers by class are and how little they are sure of."""
    classes = len(results.baseline.recall)
    samples = results.data.test_samples / max(1, classes)
    text = (
        "Share of each class that the baseline classes right, and the change in percentage points "
        f"by variant. Without intervals: a class has about {samples:,.0f} of the test samples, "
        f"one of them is about {100 / max(1.0, samples):.2g} points, and the largest of "
        "many changes is large by chance too. Read it as where to look, not as a finding."
    )
    if classes > _SHOWN:
        text += f" Of {classes} classes the {_SHOWN} that lost most in a variant; all are in results.json."
    return text


def _lost_most(points: Sequence[float]) -> set[int]:
    """Return the classes of the largest losses; a gain is none."""
    return {
        i for i in sorted(range(len(points)), key=points.__getitem__)[:_LOST_MOST] if points[i] < 0
    }
