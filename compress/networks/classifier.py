"""Whether a network of the user's own does the task."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.errors import UserError


def as_classifier(model: Any, *, input_shape: tuple[int, ...], classes: int, where: str) -> Any:
    """Return the ``tf_keras.Model`` if it gives one probability a class for samples of this shape.

    A network that ends in logits gets a softmax layer, because training and every score read
    its outputs as probabilities.

    Args:
        model: what the user's file or function gave.
        input_shape: shape of one sample, without the batch axis.
        classes: how many classes the task has.
        where: what the messages call the network.

    Raises:
        UserError: if it is no tf-keras network built of layers, has more than one input or
            output, other shapes than the task's, or outputs that are no probabilities.
    """
    why_not = _why_no_network(model) or _why_not_these_shapes(
        model, input_shape=input_shape, classes=classes
    )
    if why_not is not None:
        raise UserError(f"{where}: {why_not}")
    samples = np.random.default_rng(0).random((16, *input_shape)).astype(model.input.dtype.name)
    outputs = np.asarray(model(samples, training=False))
    if np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        return model
    activation = getattr(model.get_layer(model.output_names[0]), "activation", None)
    name = getattr(activation, "__name__", "linear")
    if name != "linear":
        raise UserError(
            f"{where}: its outputs do not add up to 1 and come from {name!r}; "
            f"end it with a softmax over the {classes} classes"
        )
    from tf_keras import Model, layers

    return Model(model.inputs, layers.Softmax(name="softmax")(model.output), name=model.name)


def _why_no_network(model: Any) -> str | None:
    """Say why this is no network whose layers can be worked on, or None if it is one."""
    import tf_keras
    from tf_keras.src.engine.functional import Functional

    if not isinstance(model, tf_keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        hint = "; build it with `import tf_keras`" if kind.startswith("keras.") else ""
        return f"needs a tf_keras.Model, got {kind}{hint}"
    # A Sequential or Functional model knows its layers' order; a subclassed one is opaque code.
    if not isinstance(model, Functional):
        return "is a subclassed model; rebuild it as tf_keras.Sequential or tf_keras.Model(x, y)"
    if not model.inputs:
        return "has no input shape; start it with tf_keras.layers.Input"
    return None


def _why_not_these_shapes(model: Any, *, input_shape: tuple[int, ...], classes: int) -> str | None:
    """Say in what the network's shapes differ from the task's, or None if they fit."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"needs one input and one output, got {len(model.inputs)} and {len(model.outputs)}"
    takes, gives = tuple(model.inputs[0].shape[1:]), tuple(model.outputs[0].shape[1:])
    if takes != input_shape:
        return f"takes samples of shape {takes}, but the data's are {input_shape} once preprocessed"
    if gives != (classes,):
        return f"gives outputs of shape {gives}, but the data has {classes} classes: ({classes},)"
    return None
