"""What a network ends in, by what it has to answer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from deploy.errors import UserError
from deploy.record import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The end of a network.

    Attributes:
        task: a classifier ends in a softmax, a multi-label one in sigmoids, the others linearly.
        mean: of a regression, what stands for 0 in each target's unit; None leaves the outputs be.
        std: of a regression, what stands for 1.
    """

    task: TaskKind = "classification"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


_ACTIVATIONS: dict[TaskKind, str | None] = {
    "classification": "softmax",
    "multi_label": "sigmoid",
    "regression": None,
    "reconstruction": None,
}


def with_head(x: Any, head: Head, *, outputs: int, name: str, **settings: Any) -> Any:
    """Return a Keras tensor behind a last Dense layer and what the task wants after it.

    Args:
        x: a flat Keras tensor, ``(n, features)``.
        head: what to end in.
        outputs: how many classes, labels or targets there are.
        name: of the Dense layer.
        settings: further settings of the Dense layer.

    Raises:
        UserError: if the head is that of a reconstruction, which needs a sample's shape.
    """
    from tf_keras import layers

    if head.task == "reconstruction":
        raise UserError(
            "network: this one ends in a few numbers and cannot give a sample anew; "
            "take autoencoder or mlp for a reconstruction"
        )
    x = layers.Dense(outputs, activation=_ACTIVATIONS[head.task], name=name, **settings)(x)
    return in_unit(x, head)


def in_unit(x: Any, head: Head) -> Any:
    """Return a Keras tensor of standard values in the unit of the targets, if the head has one."""
    from tf_keras import layers

    if head.mean is None or head.std is None:
        return x
    # In the graph, so that whoever runs the model gets the target's unit.
    return layers.Rescaling(list(head.std), offset=list(head.mean), name="unit")(x)


def as_sample(x: Any, *, input_shape: tuple[int, ...], name: str) -> Any:
    """Return a Keras tensor of a sample's shape behind a last linear Dense layer."""
    from tf_keras import layers

    x = layers.Dense(prod(input_shape), name=name)(x)
    return x if len(input_shape) == 1 else layers.Reshape(input_shape, name="reshape")(x)
