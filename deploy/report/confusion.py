"""The confusion matrix, as a report shows it."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.record import Confusion
from deploy.report.results import Results, Variant

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ConfusionTable:
    """How often a variant took each class for which."""

    variant: str
    labels: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    """By true class, then by predicted one."""

    def share(self, true: int, predicted: int) -> float:
        """Return what share of a true class was taken for another, 0 to 1."""
        return self.rows[true][predicted] / max(1, sum(self.rows[true]))


def confusion_tables(results: Results, best: Variant | None) -> list[ConfusionTable]:
    """Return the matrix of the baseline and of the best variant; none of more than 20 classes."""
    shown = [results.baseline, *([best] if best else [])]
    tables = []
    for variant in shown:
        seen = variant.answers
        if isinstance(seen, Confusion) and len(seen.counts) <= _SHOWN:
            labels = results.data.labels
            if len(labels) != len(seen.counts):
                labels = tuple(str(index) for index in range(len(seen.counts)))
            tables.append(ConfusionTable(variant.name, labels, seen.counts))
    return tables
