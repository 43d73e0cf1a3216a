"""What a layer is given on calibration samples, summed up so that no sample has to be kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.quantize.calibrate import batches
from compress.quantize.rounding import Moments
from deploy.graph import Weighted, attributes, producers
from deploy.session import open_model

Array = npt.NDArray[Any]

_SAMPLES = 512
"""Calibration samples that are looked at, spread over all there are."""
_PLACES = 32
"""Places of a convolution's result that are looked at in each sample, others in the next batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a layer is given by the float model and by the one that is being rounded.

    Attributes:
        float_mean: mean input in the float model, ``(groups, inputs)``.
        mean: mean input in the other.
        moments: second moments of both.
    """

    float_mean: Array
    mean: Array
    moments: Moments

    def centred(self) -> Moments:
        """Return the moments about the means: what is left to lose once the bias is corrected."""
        return Moments(
            second=self.moments.second - self.mean[:, :, None] * self.mean[:, None, :],
            cross=self.moments.cross - self.mean[:, :, None] * self.float_mean[:, None, :],
        )


def inputs_of(original: Any, rounded: Any, found: Weighted, x: Array) -> Inputs:
    """Return what a layer is given on samples, in two models with the same nodes.

    Args:
        original: the float ``ModelProto``.
        rounded: the same with other weights in front of the layer.
        found: a layer of ``original``, a Conv, Gemm or MatMul.
        x: model inputs ``(n, ...)``, or what gives them when sliced.
    """
    parts = batches(original, x)
    parts = parts[:: max(1, math.ceil(len(x) / _SAMPLES))]
    tensor, count = found.node.input[0], 0
    sums: list[Array] = []
    pairs = (_values(model, tensor, x, parts) for model in (original, rounded))
    for index, values in enumerate(zip(*pairs, strict=True)):
        plain, given = (rows_of(array, found, places=_PLACES, first=index) for array in values)
        count += plain.shape[1]
        sums_now = (
            plain.sum(axis=1),
            given.sum(axis=1),
            _products(given, given),
            _products(given, plain),
        )
        new = [part.astype(np.float64) for part in sums_now]
        sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
    float_mean, mean, second_moment, cross = (total / count for total in sums)
    return Inputs(
        float_mean=float_mean, mean=mean, moments=Moments(second=second_moment, cross=cross)
    )


def _products(left: Array, right: Array) -> Array:
    """Return the sum over products of ``left rightᵀ``, ``(groups, inputs, inputs)``."""
    if len(left) == 1:
        return np.asarray(left.transpose(0, 2, 1) @ right)
    # As many matrices as channels, each tiny: BLAS would wake its threads for every one of them.
    return np.asarray(np.einsum("gnk,gnl->gkl", left, right))


def rows_of(values: Array, found: Weighted, *, places: int | None = None, first: int = 0) -> Array:
    """Return what a layer multiplies with its weights, ``(groups, products, inputs)``.

    Args:
        values: what the layer is given: ``(n, channels, ...)``, or ``(..., inputs)`` if it is dense.
        found: the layer; the last axis is in the order of its weights.
        places: how many places of a convolution's result to look at, evenly spread; None for all.
        first: the place to begin with.
    """
    if found.node.op_type != "Conv":
        return values.reshape(1, -1, values.shape[-1])
    settings = attributes(found.node)
    kernel = tuple(found.weight.dims[2:])
    ones = [1] * len(kernel)
    strides, dilations = settings.get("strides", ones), settings.get("dilations", ones)
    reaches = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    pads = _pads(settings, values.shape[2:], reaches, strides)
    padded = np.pad(values, [(0, 0), (0, 0), *pads])
    axes = tuple(range(2, values.ndim))
    windows: Any = np.lib.stride_tricks.sliding_window_view(padded, reaches, axis=axes)
    every = tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))
    windows = windows[every]
    samples, channels = windows.shape[:2]
    size = windows.shape[2 : values.ndim]
    total = math.prod(size)
    looked_at = min(total, places or total)
    flat = (np.arange(looked_at) * total // looked_at + first) % total
    picked = (slice(None), slice(None), *np.unravel_index(flat, size))
    windows = windows[picked]
    group = int(settings.get("group", 1))
    split = windows.reshape(samples, group, channels // group, looked_at, -1)
    rows: Array = split.transpose(1, 0, 3, 2, 4).reshape(group, samples * looked_at, -1)
    return rows


def _pads(
    settings: dict[str, Any], sizes: tuple[int, ...], reaches: list[int], strides: list[int]
) -> list[tuple[int, int]]:
    """Return the zeros in front of and behind each axis in space."""
    auto = settings.get("auto_pad", b"NOTSET")
    if auto in {b"SAME_UPPER", b"SAME_LOWER"}:
        found = []
        for size, reach, stride in zip(sizes, reaches, strides, strict=True):
            total = max(0, (math.ceil(size / stride) - 1) * stride + reach - size)
            less, more = total // 2, total - total // 2
            found.append((less, more) if auto == b"SAME_UPPER" else (more, less))
        return found
    stated = settings.get("pads", [0] * 2 * len(sizes))
    return list(zip(stated[: len(sizes)], stated[len(sizes) :], strict=True))


def _values(model: Any, tensor: str, x: Array, parts: list[slice]) -> Iterator[Array]:
    """Yield what a tensor of a model is, batch by batch."""
    if tensor == model.graph.input[0].name:
        yield from (np.asarray(x[part], np.float32) for part in parts)
        return
    opened = open_model(_up_to(model, tensor).SerializeToString())
    yield from (opened.run(np.ascontiguousarray(x[part], np.float32)) for part in parts)


def _up_to(model: Any, tensor: str) -> Any:
    """Return a copy of a model that ends in one of its tensors."""
    import onnx

    twin = type(model)()
    twin.CopyFrom(model)
    graph, made_by = twin.graph, producers(twin.graph)
    needed, waiting = set[str](), [tensor]
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            waiting.extend(node.input)
    kept = [node for node in model.graph.node if node.name in needed]
    read = {name for node in kept for name in node.input}
    stored = [weight for weight in model.graph.initializer if weight.name in read]
    del graph.node[:], graph.output[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(stored)
    graph.output.add(name=tensor).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return twin
