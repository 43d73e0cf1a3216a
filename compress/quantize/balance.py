"""Cross-layer equalisation of a Keras model, before it is trained with rounding."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.networks.rewire import copied, rewired

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
_PASSES = 40
_SETTLED = 1e-3
"""Relative change of a factor below which it counts as found."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two layers, the second of which reads nothing but what the first gives."""

    first: Any
    second: Any


def balanced(model: Any) -> Any:
    """Return a model of the same function in which the weights of a channel and of its readers are as large.

    Nagel et al. (2019), "Data-free quantization through weight equalization and bias correction",
    equations 8 to 11: where only a ReLU or a pooling is between two layers, a channel may be divided by
    any positive number before it and multiplied by it behind. With BatchNorm folded, weights of some
    channels are a thousand times those of others, and so are their gradients: one learning rate is too
    large for the ones and too small for the others. A MobileNetV1 that lost 0.2 points to int8 lost 4.9
    by training for it so. The bias counts among a channel's weights, lest one that says little but its
    bias take the range that all channels share.

    Args:
        model: a model that nests no other, as ``fold_batch_norm`` gives; left alone.
    """
    ends = {output.node.layer.name for output in model.outputs}
    pairs = [pair for layer in model.layers if (pair := _pair_from(layer, ends)) is not None]
    weights = {
        layer.name: [values.astype(np.float64) for values in layer.get_weights()]
        for layer in model.layers
    }
    for _ in range(_PASSES):
        moved = 0.0
        for pair in pairs:
            first, second = weights[pair.first.name], weights[pair.second.name]
            outputs, inputs = _outputs(pair.first, first[0]), _inputs(second[0], pair)
            given = np.abs(outputs).max(axis=0)
            if pair.first.use_bias:
                given = np.maximum(given, np.abs(first[1]))
            read = np.abs(inputs).max(axis=(0, 2))
            live = (given > 0) & (read > 0)
            factor = np.sqrt(np.divide(given, read, out=np.ones_like(given), where=live))
            outputs /= factor  # views: the weights themselves
            inputs *= factor[:, None]
            if pair.first.use_bias:
                first[1] /= factor
            moved = max(moved, float(np.abs(factor - 1).max()))
        if moved < _SETTLED:
            break
    made: list[tuple[str, Any]] = []

    def make(layer: Any, name: str) -> Any:
        twin = copied(layer, name)
        made.append((name, twin))
        return twin

    result = rewired(model, make)
    for name, twin in made:
        twin.set_weights([values.astype(np.float32) for values in weights[name]])
    return result


def _pair_from(first: Any, ends: Collection[str]) -> _Pair | None:
    """Return a layer with the one that alone reads what it gives, or None if there is none to move to.

    Args:
        first: the layer.
        ends: names of the layers that give the model's outputs.
    """
    if not _movable(first) or not _scales(first):
        return None
    layer = first
    while len(layer.outbound_nodes) == 1 and layer.name not in ends:
        layer = layer.outbound_nodes[0].layer
        if len(layer.inbound_nodes) != 1:
            return None
        if _movable(layer):
            # Where channels are read in groups, a kernel has no axis of all of them.
            return _Pair(first, layer) if getattr(layer, "groups", 1) == 1 else None
        if not _scales(layer):
            return None
    return None


def _movable(layer: Any) -> bool:
    """Say whether the weights of a layer are known, its own, and free to be of another size."""
    constraints = (f"{of}_constraint" for of in ("kernel", "depthwise", "bias"))
    return (
        type(layer).__name__ in _KINDS
        and type(layer).__module__.startswith("tf_keras.")
        and len(layer.inbound_nodes) == 1
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and all(getattr(layer, name, None) is None for name in constraints)
    )


def _scales(layer: Any) -> bool:
    """Say whether ``f(s x) = s f(x)`` holds for what a layer does behind its weights, if it has any."""
    kind = type(layer).__name__
    if kind == "ReLU":
        return layer.max_value is None and not layer.threshold
    if kind in _KINDS or kind == "Activation":
        return getattr(layer.activation, "__name__", "") in {"linear", "relu"}
    return kind in _PASS_ON


def _outputs(layer: Any, kernel: Array) -> Array:
    """Return a view of a kernel, ``(…, outputs)``."""
    if type(layer).__name__ == "DepthwiseConv2D":
        return kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])
    return kernel.reshape(-1, kernel.shape[-1])


def _inputs(kernel: Array, pair: _Pair) -> Array:
    """Return a view of a kernel, ``(positions, channels that the first layer gives, outputs)``.

    Behind Flatten a Dense reads each channel at every position, channels last.
    """
    first = pair.first.get_weights()[0]
    return kernel.reshape(-1, _outputs(pair.first, first).shape[1], kernel.shape[-1])
