"""Whether a model can be trained on a task at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress.data.task import Task

_OUTPUTS = {
    "classification": "one output a class",
    "multi_label": "one output a label",
    "regression": "one output a target",
    "reconstruction": "its sample anew",
}


def why_not_trained(model: Any, task: Task) -> str | None:
    """Say why this model cannot be trained on this task, or None if it can."""
    try:
        outputs = model(task.train.x[:1], training=False)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        return (
            f"model: does not take the samples of {task.name}, shape {task.input_shape}: {reason}"
        )
    shape = getattr(outputs, "shape", None)
    wanted = task.output_shape
    if shape != (1, *wanted):
        size = wanted[0] if len(wanted) == 1 else wanted
        return (
            f"model: must give {_OUTPUTS[task.kind]}, {size} for {task.name}, "
            f"got {f'shape {tuple(shape[1:])}' if shape is not None else 'several outputs'}"
        )
    if task.kind == "classification":
        total = float(sum(outputs[0]))
        if not abs(total - 1) < 1e-2:
            return (
                f"model: outputs must be probabilities, got a sum of {total:.3g}; "
                f"end it in a softmax"
            )
    if task.kind == "multi_label" and not _within_0_and_1(np.asarray(outputs)):
        return (
            f"model: outputs must be probabilities, got {float(np.max(outputs)):.3g}; "
            f"end it in a sigmoid"
        )
    return None


def _within_0_and_1(outputs: Any) -> bool:
    return bool(((outputs >= 0) & (outputs <= 1)).all())
