"""Which number of an epoch a search or a selection compares, and which way is better."""

from __future__ import annotations

from compress.data.task import Task

_SMALLER_IS_BETTER = ("loss", "mae", "mse", "error")


def default_metric(task: Task) -> str:
    """Return the task's own metric, as training names it on validation."""
    if not task.labels:
        return "val_loss"
    return "val_accuracy"


def larger_is_better(metric: str) -> bool:
    """Say which way is better.

    >>> larger_is_better("val_accuracy"), larger_is_better("val_loss")
    (True, False)
    """
    return not any(word in metric for word in _SMALLER_IS_BETTER)
