"""A Keras model rebuilt call by call, its inner models opened up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress.networks.named_layers import is_model
from deploy.errors import UserError

Make = Callable[[Any, str], Callable[..., Any]]
"""From a layer and its name, ``inner/conv`` where it lies in a model, to what is called instead."""


def flat_copy(model: Any) -> Any:
    """Return a model of the same layers and weights that shares nothing with it and nests no model.

    A layer of an inner model is called ``inner/layer``, as in the exported graph.

    Raises:
        UserError: if the model is no graph of layers, or a layer cannot be made from its config.
    """
    copies: list[tuple[Any, Any]] = []

    def copy(layer: Any, name: str) -> Callable[..., Any]:
        twin: Callable[..., Any] = copied(layer, name)
        copies.append((layer, twin))
        return twin

    twin = rewired(model, copy)
    for layer, new in copies:
        new.set_weights(layer.get_weights())
    return twin


def copied(layer: Any, name: str, **changes: Any) -> Any:
    """Return a layer of the same config, but for its name and ``changes``, with weights of its own.

    Raises:
        UserError: if it cannot be made from its config.
    """
    try:
        return type(layer).from_config({**layer.get_config(), "name": name, **changes})
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"layer {name!r}: cannot be made anew from its config: {reason}; "
            "give the layer a get_config that its from_config takes"
        ) from error


def rewired(
    model: Any, make: Make, *, on_input: Callable[[Any], Any] = lambda tensor: tensor
) -> Any:
    """Return the model that results from calling ``make(layer, name)`` wherever it calls a layer.

    ``make`` is asked once a layer, so that a layer that is called twice stays one. Inner models
    are opened up. The result keeps the name and the inputs of the model.

    Args:
        model: a functional or Sequential ``tf_keras.Model``; its weights are neither copied nor
            shared unless ``make`` does so.
        on_input: called with each input of the new model; the layers get what it returns.
        make: gives what is called in place of a layer, with the same arguments.

    Raises:
        UserError: if the model is no graph of layers.
    """
    import tf_keras

    made: dict[int, Callable[..., Any]] = {}

    def called(layer: Any, prefix: str) -> Callable[..., Any]:
        if id(layer) not in made:
            made[id(layer)] = make(layer, prefix + layer.name)
        return made[id(layer)]

    def run(inner: Any, inputs: list[Any], prefix: str) -> list[Any]:
        if not getattr(inner, "_is_graph_network", False):
            raise UserError(
                f"model {inner.name!r}: is no graph of layers; give a functional or Sequential model "
                "that is built"
            )
        tensors = {id(old): new for old, new in zip(inner.inputs, inputs, strict=True)}

        def mapped(value: Any) -> Any:
            return tensors.get(id(value), value)

        # The order in which Keras itself runs them.
        depths = inner._nodes_by_depth  # noqa: SLF001
        for node in (node for depth in sorted(depths, reverse=True) for node in depths[depth]):
            if node.is_input:
                continue
            args, kwargs = _mapped((node.call_args, node.call_kwargs), mapped)
            if is_model(node.layer):
                given = _listed(args[0] if args else next(iter(kwargs.values())))
                results = run(node.layer, given, f"{prefix}{node.layer.name}/")
            else:
                results = _listed(called(node.layer, prefix)(*args, **kwargs))
            tensors.update(
                {id(old): new for old, new in zip(_listed(node.outputs), results, strict=True)}
            )
        return [tensors[id(output)] for output in inner.outputs]

    inputs = [
        tf_keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype, name=name)
        for tensor, name in zip(model.inputs, model.input_names, strict=True)
    ]
    outputs = run(model, [on_input(tensor) for tensor in inputs], "")
    one_each = len(inputs) == len(outputs) == 1
    return tf_keras.Model(
        *((inputs[0], outputs[0]) if one_each else (inputs, outputs)), name=model.name
    )


def _mapped(structure: Any, function: Callable[[Any], Any]) -> Any:
    import tensorflow as tf

    return tf.nest.map_structure(function, structure)


def _listed(value: Any) -> list[Any]:
    import tensorflow as tf

    return list(tf.nest.flatten(value))
