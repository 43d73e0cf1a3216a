"""Cross-layer equalisation of a Keras model, before it is trained with rounding.

``equalise`` does the same to an ONNX model, for quantizing it afterwards.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.networks.rewire import copied, rewired
from compress.quantize.equalise import PASSES, SETTLED, factor_between

Array = npt.NDArray[np.float64]

_KINDS = frozenset({"Dense", "Conv1D", "Conv2D", "DepthwiseConv2D"})
_PASS_ON = frozenset(
    {
        "MaxPooling1D", "MaxPooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D",
        "AveragePooling1D", "AveragePooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
        "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D", "UpSampling2D", "Flatten",
        "LeakyReLU", "Dropout", "SpatialDropout1D", "SpatialDropout2D",
    }
)  # fmt: skip
"""Layers f with ``f(s x) = s f(x)`` for each channel's ``s > 0``, which keep channels in order."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two layers, the second of which reads nothing but what the first gives, in so many channels."""

    first: Any
    second: Any
    channels: int


def balanced(model: Any) -> Any:
    """Return a model of the same function in which a channel's weights are as large as those that read it.

    Nagel et al. (2019), "Data-free quantization through weight equalization and bias correction",
    equations 8 to 11: where nothing is between two layers but what scales with its input, such as a
    ReLU (a ReLU6 does not), a pooling or Flatten, a channel may be divided by any positive number before
    it and multiplied by it behind. With BatchNorm folded, weights of some channels are a thousand times
    those of others, and so are their gradients: one learning rate is too large for the ones and too
    small for the others. A MobileNetV1 that lost 0.2 points to int8 lost 4.9 by training for it so. The
    bias counts among a channel's weights, lest one that says little but its bias take the range that
    all channels share.

    Args:
        model: a model that nests no other, as ``fold_batch_norm`` gives; left alone.
    """
    ends = {output.node.layer.name for output in model.outputs}
    pairs = [pair for layer in model.layers if (pair := _pair_from(layer, ends)) is not None]
    weights = {
        layer.name: [values.astype(np.float64) for values in layer.get_weights()]
        for pair in pairs
        for layer in (pair.first, pair.second)
    }
    for _ in range(PASSES):
        moved = 0.0
        for pair in pairs:
            kernel, *bias = weights[pair.first.name]
            reader = weights[pair.second.name][0]
            outputs = kernel.reshape(-1, pair.channels)  # views: the weights themselves
            # Behind Flatten a Dense reads each channel at every position, channels last.
            inputs = reader.reshape(-1, pair.channels, reader.shape[-1])
            given = np.abs(outputs).max(axis=0)
            if bias:
                given = np.maximum(given, np.abs(bias[0]))
            read = np.abs(inputs).max(axis=(0, 2))
            factor = factor_between(given, read)
            outputs /= factor
            inputs *= factor[:, None]
            if bias:
                bias[0] /= factor
            moved = max(moved, float(np.abs(factor - 1).max()))
        if moved < SETTLED:
            break
    made: list[tuple[Any, Any]] = []

    def make(layer: Any, name: str) -> Any:
        twin = copied(layer, name)
        made.append((layer, twin))
        return twin

    result = rewired(model, make)
    for layer, twin in made:
        now = weights.get(layer.name, layer.get_weights())
        twin.set_weights(
            [new.astype(was.dtype) for new, was in zip(now, layer.get_weights(), strict=True)]
        )
    return result


def _pair_from(first: Any, ends: Collection[str]) -> _Pair | None:
    """Return a layer with the one that alone reads what it gives, or None if there is none to move to.

    Args:
        first: the layer.
        ends: names of the layers that give the model's outputs.
    """
    if not (_movable(first) and _scales_with_its_input(first.activation)):
        return None
    channels, layer = first.output_shape[-1], first
    while len(layer.outbound_nodes) == 1 and layer.name not in ends:
        if getattr(layer, "activity_regularizer", None) is not None:
            return None
        layer = layer.outbound_nodes[0].layer
        if len(layer.inbound_nodes) != 1:
            return None
        if type(layer).__name__ in _KINDS:
            # Where channels are read in groups, a kernel has no axis of all of them.
            fits = _movable(layer) and getattr(layer, "groups", 1) == 1
            return _Pair(first, layer, channels) if fits else None
        if not _passes_on(layer):
            return None
    return None


def _movable(layer: Any) -> bool:
    """Say whether the weights of a layer are known, its own, and free to be of another size."""
    constraints = (f"{of}_constraint" for of in ("kernel", "depthwise", "bias"))
    return (
        type(layer).__name__ in _KINDS
        and _channels_last_of_keras(layer)
        and len(layer.inbound_nodes) == 1
        and all(getattr(layer, name, None) is None for name in constraints)
    )


def _passes_on(layer: Any) -> bool:
    """Say whether ``f(s x) = s f(x)`` holds of a layer without weights, channel by channel."""
    kind = type(layer).__name__
    if not _channels_last_of_keras(layer):
        return False
    if kind == "ReLU":
        return layer.max_value is None and not layer.threshold
    if kind == "Activation":
        return _scales_with_its_input(layer.activation)
    return kind in _PASS_ON


def _scales_with_its_input(activation: Any) -> bool:
    import tensorflow as tf
    import tf_keras

    known = (tf_keras.activations.linear, tf_keras.activations.relu, tf.nn.relu)
    return any(activation is one for one in known)


def _channels_last_of_keras(layer: Any) -> bool:
    """Say whether a layer is one of Keras's own, whose name says what it does, and has channels last."""
    own = type(layer).__module__.startswith("tf_keras.")
    return own and getattr(layer, "data_format", "channels_last") == "channels_last"
