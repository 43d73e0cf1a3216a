"""What a network computes whatever it is given: channels that never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.prune.calls import calls_of, listed
from compress.prune.coupling import why_not_followed, why_not_one_by_one
from compress.prune.groups import Coupling

Known = npt.NDArray[np.float64]
"""The constant value of each position on the last axis of a tensor; NaN where it varies."""

_SAME = {
    f"{kind}{axes}D"
    for axes in (1, 2, 3)
    for kind in (
        "MaxPooling", "AveragePooling", "GlobalMaxPooling", "GlobalAveragePooling",
        "UpSampling", "Cropping", "SpatialDropout",
    )
} | {
    "Dropout", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization",
    "RepeatVector", "Permute",
}  # fmt: skip
"""Layers that give a constant as it is, when nothing is trained. The mean of a pooling does not count
its padding."""
_FUNCTIONS = {"Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Rescaling"}
_NORMS = {"BatchNormalization", "SyncBatchNormalization"}
_MEETING: dict[str, Callable[..., Known]] = {
    "Add": np.sum,
    "Average": np.mean,
    "Maximum": np.max,
    "Minimum": np.min,
}


def constants(coupling: Coupling) -> dict[str, list[Known]]:
    """Return what is constant in that which each layer is given first, a vector for each call."""
    tensors: dict[int, Known] = {}
    given: dict[str, list[Known]] = {}
    for node in calls_of(coupling.model):
        outputs = listed(node.outputs)
        if not node.is_input:
            inputs = [tensors[id(tensor)] for tensor in listed(node.keras_inputs)]
            given.setdefault(node.layer.name, []).append(inputs[0])
            if len(outputs) == 1 and _is_followed(node):
                tensors[id(outputs[0])] = _after(node, inputs)
        for tensor in outputs:
            tensors.setdefault(id(tensor), np.full(int(tensor.shape[-1] or 0), np.nan))
    return given


def contributions(layer: Any, x: Known) -> npt.NDArray[np.float64]:
    """Return what each input channel adds to each output channel of a kernel, wherever it is constant.

    0 where the weights are 0 or the input is, NaN where it varies: a constant that is not 0 varies at
    the border of a convolution that pads.

    Args:
        layer: a Dense, convolution, transposed or separable convolution.
        x: of what it is given.

    Returns:
        ``(channels read by one group, outputs)``; of several groups each output's own.
    """
    kind, kernel = type(layer).__name__, layer.get_weights()[0].astype(np.float64)
    if kind.startswith("Separable"):
        pointwise = layer.get_weights()[1].astype(np.float64)
        middle = _depthwise(layer, kernel, x)
        added = _times(middle, pointwise.reshape(-1, pointwise.shape[-1]))
        each: npt.NDArray[np.float64] = added.reshape(len(x), -1, added.shape[-1]).sum(axis=1)
        return each
    if "Transpose" in kind:
        kernel = np.swapaxes(kernel, -1, -2)
    sums = kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)
    nothing = (kernel == 0).reshape(-1, *kernel.shape[-2:]).all(axis=0)
    groups = getattr(layer, "groups", 1)
    # (channels of one group, groups) spread over the outputs of each group
    values = np.repeat(_inside(layer, x).reshape(groups, -1).T, kernel.shape[-1] // groups, axis=1)
    added = np.where(values == 0, 0.0, values * sums)
    return np.where(nothing, 0.0, added)


def _is_followed(node: Any) -> bool:
    """Say whether it is known what a call does to channels, when nothing is trained."""
    inputs, outputs = listed(node.keras_inputs), listed(node.outputs)
    trains = bool(node.call_kwargs.get("training"))
    return not trains and why_not_followed(node.layer, inputs, outputs) is None


def _after(node: Any, inputs: list[Known]) -> Known:
    """Return what is constant after a call."""
    layer, x = node.layer, inputs[0]
    kind = type(layer).__name__
    if kind in _SAME:
        return x
    if kind.startswith("ZeroPadding"):
        return np.where(x == 0, 0.0, np.nan)
    if kind in _FUNCTIONS:
        return _applied(layer, x)
    if kind == "PReLU":
        slope = layer.alpha.numpy().astype(np.float64)
        uniform = slope.size == slope.shape[-1]
        below = x * slope.reshape(-1) if uniform else np.full(len(x), np.nan)
        return np.where(x >= 0, x, below)
    if kind in _NORMS:
        return _normalised(layer, x)
    if kind in {"Flatten", "Reshape"}:
        return _reshaped(node, x)
    if kind in _MEETING and len({len(each) for each in inputs}) == 1:
        return _MEETING[kind](np.stack(inputs), axis=0)
    if kind == "Multiply" and len({len(each) for each in inputs}) == 1:
        stacked = np.stack(inputs)
        return np.where((stacked == 0).any(axis=0), 0.0, stacked.prod(axis=0))
    if (
        kind == "Concatenate"
        and layer.axis % len(node.outputs.shape) == len(node.outputs.shape) - 1
    ):
        return np.concatenate(inputs)
    return _after_kernel(node, x)


def _after_kernel(node: Any, x: Known) -> Known:
    layer, kind = node.layer, type(node.layer).__name__
    if kind.startswith("Depthwise"):
        y = _depthwise(layer, layer.get_weights()[0].astype(np.float64), x)
    elif kind == "Dense" or "Conv" in kind:
        y = contributions(layer, x).sum(axis=0)
    else:
        return np.full(int(node.outputs.shape[-1]), np.nan)
    if layer.use_bias:
        y = y + layer.get_weights()[-1]
    mixes = why_not_one_by_one(layer) is not None
    return np.full(len(y), np.nan) if mixes else _applied(layer.activation, y)


def _inside(layer: Any, x: Known) -> Known:
    """Return what a kernel sees of a constant at every place, the border too."""
    kind = type(layer).__name__
    whole = kind == "Dense" or (layer.padding == "valid" and "Transpose" not in kind)
    return x if whole else np.where(x == 0, 0.0, np.nan)


def _depthwise(layer: Any, kernel: npt.NDArray[np.float64], x: Known) -> Known:
    """Return what is constant after the depthwise kernel ``(..., channels, multiplier)``."""
    flat = kernel.reshape(-1, *kernel.shape[-2:])
    values = np.where(_inside(layer, x) == 0, 0.0, _inside(layer, x))[:, None]
    y: Known = np.where((flat == 0).all(axis=0) | (values == 0), 0.0, flat.sum(axis=0) * values)
    return y.reshape(-1)


def _times(x: Known, kernel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    nothing = (kernel == 0) | (x == 0)[:, None]
    return np.where(nothing, 0.0, x[:, None] * kernel)


def _applied(function: Any, x: Known) -> Known:
    """Return an elementwise function of what is known."""
    if function is None:
        return x
    varies = np.isnan(x)
    y = np.asarray(function(np.where(varies, 0, x).astype(np.float32)[None]), np.float64)[0]
    return np.where(varies, np.nan, y)


def _normalised(layer: Any, x: Known) -> Known:
    deviation = np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
    gamma = layer.gamma.numpy().astype(np.float64) if layer.scale else np.ones(len(deviation))
    beta = layer.beta.numpy().astype(np.float64) if layer.center else np.zeros(len(deviation))
    if len(x) != len(deviation):
        return np.full(len(x), np.nan)
    scaled = np.where(gamma == 0, 0.0, (x - layer.moving_mean.numpy()) / deviation * gamma)
    y: Known = scaled + beta
    return y


def _reshaped(node: Any, x: Known) -> Known:
    """Return what is constant after a reshape: the same value in all places of the last axis."""
    before, last = node.keras_inputs[0].shape[1:], int(node.outputs.shape[-1])
    if None in tuple(before):
        return np.full(last, np.nan)
    columns = np.broadcast_to(x, tuple(before)).reshape(-1, last)
    return np.where((columns == columns[0]).all(axis=0), columns[0], np.nan)
