"""Every metric of the task, variant by variant."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from deploy.goals import title
from deploy.record import Goal, Interval
from deploy.report.results import Results


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric, as ``goal`` writes it, of every variant; None where it was not measured."""

    title: str
    goal: Goal
    values: tuple[Interval | None, ...]


def metric_rows(results: Results) -> list[MetricRow]:
    """Return the task's metrics, that which decides first; empty where it is the only one."""
    decides = results.goal.metric
    names = sorted(results.baseline.metrics, key=lambda name: name != decides)
    if len(names) < 2:
        return []
    rows = []
    for name in names:
        goal = msgspec.structs.replace(results.goal, metric=name)
        values = tuple(variant.metrics.get(name) for variant in results.variants)
        rows.append(MetricRow(title(goal), goal, values))
    return rows
