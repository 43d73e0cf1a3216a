"""Whether a model can be trained on a task at all."""

from __future__ import annotations

from typing import Any

from compress.data.task import Task


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
    if shape != (1, len(task.labels)):
        return (
            f"model: must give one output a class, {len(task.labels)} for {task.name}, "
            f"got {f'shape {tuple(shape[1:])}' if shape is not None else 'several outputs'}"
        )
    total = float(sum(outputs[0]))
    if not abs(total - 1) < 1e-2:
        return (
            f"model: outputs must be probabilities, got a sum of {total:.3g}; end it in a softmax"
        )
    return None
