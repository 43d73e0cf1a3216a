"""A Keras model made anew, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compress.networks.named_layers import is_model
from deploy.errors import UserError


def require_built(model: Any) -> None:
    """Raise a UserError if it is not known what a model takes."""
    if not model.built:
        raise UserError(f"model: '{model.name}' has no known input shape; begin it with an Input")


def copied(model: Any) -> Any:
    """Return a model with the same layers, names and weights, which shares nothing with it.

    Raises:
        UserError: if the model has no known input shape or cannot be copied layer by layer.
    """
    require_built(model)
    try:
        copy = cloned(model, lambda layer: type(layer).from_config(layer.get_config()))
        copy.set_weights(model.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model: '{model.name}' cannot be copied layer by layer: {reason}; give a functional or "
            "Sequential model whose own layers have get_config"
        ) from error
    return copy


def cloned(model: Any, clone_layer: Callable[[Any], Any]) -> Any:
    """Rebuild a model, and the models inside it, from what ``clone_layer`` makes of each layer."""
    import tf_keras

    def clone(layer: Any) -> Any:
        return cloned(layer, clone_layer) if is_model(layer) else clone_layer(layer)

    return tf_keras.models.clone_model(model, clone_function=clone)
