"""Whether a network of the user's own does the task."""

from __future__ import annotations

from typing import Any

import numpy as np

from compress.networks.heads import Head, in_unit
from deploy.errors import UserError

_NOUNS = {"classification": "classes", "multi_label": "labels", "regression": "targets"}


def fitted_to_task(
    model: Any, *, input_shape: tuple[int, ...], classes: int, where: str, head: Head = Head()
) -> Any:
    """Return the ``tf_keras.Model`` if it gives what the task asks for, for samples of this shape.

    A classifier that ends in logits gets a softmax layer, a multi-label one sigmoids, because
    training and every score read outputs as probabilities. A regression whose head has a unit
    gets a layer that brings its standard values into it.

    Args:
        model: what the user's file or function gave.
        input_shape: shape of one sample, without the batch axis.
        classes: how many classes, labels or targets the task has.
        where: what the messages call the network.
        head: what it has to end in.

    Raises:
        UserError: if it is no tf-keras network built of layers, has more than one input or
            output, other shapes than the task's, or outputs that are no probabilities where the
            task needs such.
    """
    why_not = _why_no_network(model) or _why_not_these_shapes(
        model, input_shape=input_shape, classes=classes, head=head
    )
    if why_not is not None:
        raise UserError(f"{where}: {why_not}")
    activation = getattr(model.get_layer(model.output_names[0]), "activation", None)
    name = getattr(activation, "__name__", "linear")
    match head.task:
        case "reconstruction":
            return model
        case "regression":
            if name in {"softmax", "sigmoid"}:
                raise UserError(f"{where}: ends in a {name}; a regression needs a linear end")
            outputs = in_unit(model.output, head)
            return model if outputs is model.output else _ended(model, outputs)
        case "multi_label" if activation is not None and name == "linear":
            pass  # numbers that lie between 0 and 1 only as yet
        case "classification" | "multi_label":
            if _gives_probabilities(model, input_shape, head):
                return model
    end = "sigmoid" if head.task == "multi_label" else "softmax"
    if name != "linear":
        what = "lie outside 0 to 1" if end == "sigmoid" else "do not add up to 1"
        over = "labels" if end == "sigmoid" else "classes"
        raise UserError(
            f"{where}: its outputs {what} and come from {name!r}; "
            f"end it with a {end} over the {classes} {over}"
        )
    from tf_keras import layers

    last = layers.Activation(end, name=end) if end == "sigmoid" else layers.Softmax(name=end)
    return _ended(model, last(model.output))


def _ended(model: Any, outputs: Any) -> Any:
    from tf_keras import Model

    return Model(model.inputs, outputs, name=model.name)


def _gives_probabilities(model: Any, input_shape: tuple[int, ...], head: Head) -> bool:
    """Say whether a network's outputs are probabilities, of which those of classes add up to 1."""
    samples = np.random.default_rng(0).random((16, *input_shape)).astype(model.input.dtype.name)
    outputs = np.asarray(model(samples, training=False))
    if head.task == "multi_label":
        return bool((outputs >= 0).all() and (outputs <= 1).all())
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-3))


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


def _why_not_these_shapes(
    model: Any, *, input_shape: tuple[int, ...], classes: int, head: Head
) -> str | None:
    """Say in what the network's shapes differ from the task's, or None if they fit."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return f"needs one input and one output, got {len(model.inputs)} and {len(model.outputs)}"
    takes, gives = tuple(model.inputs[0].shape[1:]), tuple(model.outputs[0].shape[1:])
    if takes != input_shape:
        return f"takes samples of shape {takes}, but the data's are {input_shape} once preprocessed"
    if head.task == "reconstruction" and gives != input_shape:
        return (
            f"gives outputs of shape {gives}, but a reconstruction has the samples' {input_shape}"
        )
    if head.task != "reconstruction" and gives != (classes,):
        noun = _NOUNS[head.task]
        return f"gives outputs of shape {gives}, but the data has {classes} {noun}: ({classes},)"
    return None
