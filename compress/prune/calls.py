"""The calls of a network's layers, which make up its graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compress.networks.named_layers import is_model
from compress.networks.rewire import flat_copy
from deploy.errors import UserError


def opened(model: Any) -> Any:
    """Return a model if no model lies in it, else a copy whose inner models are opened up.

    Raises:
        UserError: if the model is no graph of layers.
    """
    if not getattr(model, "_is_graph_network", False):
        raise UserError(
            f"model {model.name!r}: is no graph of layers; give a functional or Sequential model that "
            "is built"
        )
    return flat_copy(model) if any(is_model(layer) for layer in model.layers) else model


def calls_of(model: Any) -> Iterator[Any]:
    """Yield the calls of a graph's layers, its inputs too, in the order in which Keras runs them."""
    depths = model._nodes_by_depth  # noqa: SLF001  # nothing public tells it
    for depth in sorted(depths, reverse=True):
        yield from depths[depth]


def listed(value: Any) -> list[Any]:
    """Return the tensors of a structure, in order."""
    import tensorflow as tf

    return list(tf.nest.flatten(value))
