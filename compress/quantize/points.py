"""What quantization costs, in points of the metric that decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.task import Task
from deploy.evaluate import score_of
from deploy.goals import gain, metric_of
from deploy.record import Goal

Array = npt.NDArray[Any]

_LEAST = float(np.finfo(np.float64).tiny)
_MOST = 1e6
"""Points that are told: an error that was 0 grows past every share, and JSON has no infinity."""


def score(task: Task, outputs: Array, y: Array) -> float:
    """Return what outputs for validation samples are worth, by the metric of ``judged_by``.

    Args:
        task: whose samples they are.
        outputs: of a model, ``(n, ...)``.
        y: the truth, as ``Split.y``.

    Raises:
        UserError: if outputs and truth do not pair or the metric does not fit them.
    """
    if task.kind == "reconstruction":
        outputs, y = (np.asarray(each).reshape(len(each), -1) for each in (outputs, y))
    return score_of(outputs, np.asarray(y), judged_by(task))


def judged_by(task: Task) -> Goal:
    """Return the task's goal; of a reconstruction the mean squared error.

    Which samples are anomalies is known of the test part alone, which only the report looks at.
    """
    if task.kind == "reconstruction":
        return Goal(task="regression", metric="mse")
    return task.goal


def points_gained(task: Task, before: float, after: float) -> float:
    """Return a change of ``score`` in points, below 0 if it is for the worse.

    A point is a hundredth: of a share and of R² as such, of an error in terms of the one before,
    where it ends at ±1 000 000, ten thousand times that error.

    >>> from types import SimpleNamespace as Of
    >>> points_gained(Of(kind="classification", goal=Goal()), 0.75, 0.5)
    -25.0
    >>> mae = Goal(task="regression", metric="mae", unit="mm")
    >>> points_gained(Of(kind="regression", goal=mae), 40.0, 42.0)
    -5.0
    """
    goal = judged_by(task)
    gained = gain(goal, after - before)
    if metric_of(goal).form != "error":
        return 100 * gained
    # A float of Python, unlike one of numpy, overflows to infinity without a warning.
    return max(-_MOST, min(_MOST, 100 * float(gained) / max(float(before), _LEAST)))
