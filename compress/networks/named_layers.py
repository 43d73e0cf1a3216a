"""The layers of a Keras model by name, those of models inside it too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def named_layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every layer that is no model itself, with its name in the exported graph.

    A layer of an inner model is called ``inner/layer``.
    """
    for layer in model.layers:
        if is_model(layer):
            yield from named_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def is_model(layer: Any) -> bool:
    """Say whether a layer is itself a model whose layers can be listed."""
    import tf_keras

    return isinstance(layer, tf_keras.Model)
