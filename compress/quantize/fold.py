"""BatchNorm folded into the layer before it: the same function with fewer layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.networks.rewire import copied, flat_copy, rewired
from deploy.record import Record

Array = npt.NDArray[Any]

# The axis of a kernel that counts a layer's outputs; None: input channels times multiplier.
_OUTPUT_AXIS: dict[str, int | None] = {
    "Dense": -1,
    "Conv1D": -1,
    "Conv2D": -1,
    "Conv3D": -1,
    "Conv1DTranspose": -2,
    "Conv2DTranspose": -2,
    "Conv3DTranspose": -2,
    "DepthwiseConv1D": None,
    "DepthwiseConv2D": None,
}
_DROPOUTS = frozenset(
    {"Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"}
    | {"GaussianDropout", "AlphaDropout"}
)


class FoldBatchNorm(Record, frozen=True, tag_field="kind", tag="fold_batch_norm"):
    """Take every BatchNorm into the layer before it: the same numbers from fewer layers.

    The export folds too; as a step of its own it shows a technique that follows, and its reader,
    the network that will run. Trained on, the network leaves dropout out.
    """


def fold_batch_norm(model: Any) -> tuple[Any, dict[str, str]]:
    """Return a model without the BatchNorms that a layer before them can take in, and why not all.

    ``kernel * gamma / sqrt(variance + epsilon)`` and ``(bias - mean) * gamma / sqrt(variance +
    epsilon) + beta``: Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference" (2018), equation 14. Models inside the model are opened up.

    Where something was folded, dropout is at rate 0 from then on. Under it activations vary more than
    without; only BatchNorm made up for that, and weights that are trained on without BatchNorm would
    come to need it: Li et al., "Understanding the disharmony between dropout and batch normalization
    by variance shift" (2019).

    Args:
        model: a functional or Sequential ``tf_keras.Model``; left alone.

    Returns:
        The folded model, and by name the reason of every BatchNormalization that stays.
    """
    flat = flat_copy(model)
    norms = [layer for layer in flat.layers if _is_norm(layer)]
    reasons = {norm.name: why_not_folded(norm) for norm in norms}
    folded = {_before(norm).name: norm for norm in norms if reasons[norm.name] is None}
    gone = {norm.name for norm in folded.values()}
    made: list[tuple[Any, Any]] = []

    def make(layer: Any, name: str) -> Callable[..., Any]:
        if name in gone:
            return lambda x, **_: x
        changes: dict[str, Any] = {"use_bias": True} if name in folded else {}
        if folded and type(layer).__name__ in _DROPOUTS:
            changes = {"rate": 0.0}
        twin: Callable[..., Any] = copied(layer, name, **changes)
        made.append((layer, twin))
        return twin

    result = rewired(flat, make)
    for layer, twin in made:
        norm = folded.get(layer.name)
        twin.set_weights(layer.get_weights() if norm is None else _weights(layer, norm))
    return result, {name: why for name, why in reasons.items() if why is not None}


def why_not_folded(norm: Any) -> str | None:
    """Say why a BatchNormalization cannot go into the layer before it, or None if it can.

    Args:
        norm: a layer of a model that nests no model and was built for it alone, as ``flat_copy``
            gives: all its calls are calls of that model.
    """
    if len(norm.inbound_nodes) != 1:
        return f"it is called {len(norm.inbound_nodes)} times"
    if norm.inbound_nodes[0].call_kwargs.get("training"):
        return "it normalises with the statistics of each batch (training = True)"
    before = _before(norm)
    kind = type(before).__name__
    if kind in {"Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"}:
        return (
            f"it follows the activation {before.name!r}, through which it cannot be moved; put the "
            "activation behind it"
        )
    if kind not in _OUTPUT_AXIS:
        return f"it follows {before.name!r}, a {kind}, which has no kernel to take it in"
    activation = getattr(before.activation, "__name__", "linear")
    if activation != "linear":
        return (
            f"{before.name!r} applies its {activation} before it; give that layer no activation and "
            "put one behind the BatchNormalization"
        )
    readers = len(before.outbound_nodes)
    if readers != 1:
        return f"the result of {before.name!r} is read by {readers} layers"
    rank = len(norm.input_shape)
    axes = norm.axis if isinstance(norm.axis, list | tuple) else [norm.axis]
    if [axis % rank for axis in axes] != [rank - 1]:
        return f"it normalises axis {list(axes)}, not the channels"
    return None


def _is_norm(layer: Any) -> bool:
    return type(layer).__name__ in {"BatchNormalization", "SyncBatchNormalization"}


def _before(norm: Any) -> Any:
    return norm.inbound_nodes[0].inbound_layers


def _weights(layer: Any, norm: Any) -> list[Array]:
    """Return kernel and bias of a layer with the BatchNorm behind it taken in."""
    kernel = layer.get_weights()[0].astype(np.float64)
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    factor = 1.0 / np.sqrt(variance.astype(np.float64) + norm.epsilon)
    if norm.scale:
        factor = factor * norm.gamma.numpy()
    shift = norm.beta.numpy() if norm.center else 0.0
    bias = layer.get_weights()[1] if layer.use_bias else 0.0
    axis = _OUTPUT_AXIS[type(layer).__name__]
    if axis is None:  # (height, width, channels, multiplier); the output is channel by channel
        scaled = kernel * factor.reshape(kernel.shape[-2:])
    else:
        scaled = kernel * factor.reshape(
            [-1 if a == axis % kernel.ndim else 1 for a in range(kernel.ndim)]
        )
    return [scaled.astype(np.float32), ((bias - mean) * factor + shift).astype(np.float32)]
