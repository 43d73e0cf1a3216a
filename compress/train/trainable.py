"""The network for a task, and whether a model can be trained on it at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress.data.task import Task
from compress.networks import Head, Network, build

_OUTPUTS = {
    "classification": "one output a class",
    "multi_label": "one output a label",
    "regression": "one output a target",
    "reconstruction": "its sample anew",
}


def network_for(task: Task, network: Network, *, seed: int, in_unit: bool = True) -> Any:
    """Return a network as a ``tf_keras.Model`` that takes a task's samples and answers as it asks.

    Args:
        task: what it will learn.
        network: which one.
        seed: seed of the initial weights.
        in_unit: of a regression, whether a last layer brings standard values into the target's
            unit; a network that comes trained answers in it already.

    Raises:
        UserError: as ``networks.build`` does.
    """
    scaling = task.scaling if in_unit else None
    head = Head(
        task=task.kind,
        mean=scaling.mean if scaling else None,
        std=scaling.std if scaling else None,
    )
    return build(
        network,
        input_shape=task.input_shape,
        classes=len(task.labels),
        seed=seed,
        head=head,
    )


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
