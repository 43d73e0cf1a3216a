"""What is wrong with a set of calibration samples, before it spoils a quantized model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.task import Task
from compress.quantize.calibrate import activations, batches
from compress.quantize.static import STATIC_OPERATORS
from deploy.graph import producers, weighted_nodes

Array = npt.NDArray[Any]
Ends = npt.NDArray[np.float64]

_FEW = 100
_LOOKED_AT = 2000
"""Training samples whose range is held against that of the calibration samples."""
_WIDTHS_DIFFER = 1.5
_HALVES_DIFFER = 1.5
_SATURATED = 0.5
"""Share of a channel's values at the tensor's largest value."""
_NAMED = 3
"""Layers and classes that a sentence names before it counts."""


def lint_calibration(model: Any, task: Task) -> tuple[str, ...]:
    """Return what is wrong with a task's calibration samples, each with what to do about it.

    Looks at their number, at the classes or labels among them, at their range beside that of the training
    samples, at channels that never move or stand at their largest value most of the time, and at
    whether two halves of them give the same ranges. An empty result proves nothing: it says that
    the usual mistakes were not made.

    Args:
        model: the float ``ModelProto`` that is to be calibrated.
        task: calibrates; one batch of its samples and their activations are in memory at a time.

    Raises:
        UserError: as ``calibrate`` does.
    """
    found = [*_size(task), *_classes(task), *_against_training(task)]
    return (*found, *_inside(model, task))


def _size(task: Task) -> Iterator[str]:
    samples = len(task.calibration)
    if samples < _FEW:
        yield (
            f"calibration: {samples} samples are few, and each of them shapes the ranges; "
            f"give {_FEW} or more (calibration_samples in [data])"
        )


def _classes(task: Task) -> Iterator[str]:
    """Look for classes and labels without a sample; a regression and a reconstruction have none."""
    if task.kind not in {"classification", "multi_label"}:
        return
    y, what = np.asarray(task.calibration.y), "label" if task.kind == "multi_label" else "class"
    missing = [
        name
        for index, name in enumerate(task.labels)
        if not (y[:, index] == 1 if what == "label" else y == index).any()
    ]
    if missing:
        several = "labels" if what == "label" else "classes"
        yield (
            f"calibration: {len(missing)} of {len(task.labels)} {several} have no sample "
            f"({_some(missing)}); give samples of every {what}, as many as in use"
        )


def _against_training(task: Task) -> Iterator[str]:
    """Compare the inputs' ranges; of a large training set, samples spread over all of it."""
    ours, theirs = _range_of(task.calibration.x), _range_of(task.train.x)
    width, wanted = ours[1] - ours[0], theirs[1] - theirs[0]
    # An absent middle shows in neither width: ranges that do not meet are different too.
    apart = ours[0] > theirs[1] or theirs[0] > ours[1]
    if apart or not wanted / _WIDTHS_DIFFER <= width <= wanted * _WIDTHS_DIFFER:
        yield (
            f"calibration: inputs lie in [{ours[0]:.4g}, {ours[1]:.4g}], those of training in "
            f"[{theirs[0]:.4g}, {theirs[1]:.4g}]; calibrate on samples preprocessed as in training, "
            f"as varied as in use"
        )


def _range_of(x: Array) -> tuple[float, float]:
    starts = range(0, len(x), 32)
    stride = max(1, len(x) // _LOOKED_AT)
    parts = [x[start : start + 32] for start in list(starts)[::stride]]
    return (
        min(float(np.min(part)) for part in parts),
        max(float(np.max(part)) for part in parts),
    )


def _inside(model: Any, task: Task) -> Iterator[str]:
    """Look at what the network makes of the samples."""
    x = task.calibration.x
    parts = batches(model, x)
    if len(parts) == 1 and len(x) > 1:
        parts = [slice(0, len(x) // 2), slice(len(x) // 2, len(x))]
    extremes: dict[str, Ends] = {}  # (halves, 2, channels): every other batch is in one half
    for count, values in enumerate(activations(model, x, parts, operators=STATIC_OPERATORS)):
        for name, array in values.items():
            axes = tuple(axis for axis in range(array.ndim) if axis != 1)
            low, high = array.min(axis=axes).reshape(-1), array.max(axis=axes).reshape(-1)
            if name not in extremes:
                extremes[name] = np.array([[low, high]] * min(2, len(parts)), np.float64)
            half = extremes[name][count % 2]
            if count == 1:
                half[:] = low, high
            half[:] = np.minimum(half[0], low), np.maximum(half[1], high)
    layers = _results(model, extremes)
    yield from _dead(layers, extremes)
    yield from _saturated(model, task, layers, extremes, parts)
    yield from _disagreeing(extremes, layers)


def _results(model: Any, known: dict[str, Ends]) -> dict[str, str]:
    """Return the tensor in which each layer's result, its activation included, is found."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for layer in weighted_nodes(model.graph):
        tensor = layer.node.output[0]
        reading = readers.get(tensor, [])
        if len(reading) == 1 and reading[0].op_type in {"Relu", "Clip"}:
            tensor = reading[0].output[0]
        if tensor in known:
            found[layer.node.name] = tensor
    return found


def _dead(layers: dict[str, str], extremes: dict[str, Ends]) -> Iterator[str]:
    dead = {}
    for layer, tensor in layers.items():
        seen = extremes[tensor]
        still = seen[:, 1].max(axis=0) == seen[:, 0].min(axis=0)
        if still.any():
            dead[layer] = (int(still.sum()), len(still))
    if dead:
        named = _some(
            [f"{count} of {total} in {layer!r}" for layer, (count, total) in dead.items()]
        )
        yield (
            f"calibration: channels give one and the same value for every sample ({named}); if other "
            f"samples move them, add those, else the network is larger than it needs to be"
        )


def _saturated(
    model: Any,
    task: Task,
    layers: dict[str, str],
    extremes: dict[str, Ends],
    parts: Sequence[slice],
) -> Iterator[str]:
    """Look for channels that stand at the upper bound of their Clip, which hides what is above."""
    clips = {
        layer: tensor
        for layer, tensor in layers.items()
        if (maker := producers(model.graph).get(tensor)) is not None and maker.op_type == "Clip"
    }
    if not clips:
        return
    bounds = {tensor: extremes[tensor][:, 1].max() for tensor in clips.values()}
    counts: dict[str, Ends] = {}
    total: dict[str, int] = {}
    for values in activations(model, task.calibration.x, parts, operators=["Clip"]):
        for tensor, bound in bounds.items():
            array = values[tensor]
            axes = tuple(axis for axis in range(array.ndim) if axis != 1)
            counts[tensor] = counts.get(tensor, np.zeros(1)) + (array >= bound).sum(axis=axes)
            total[tensor] = total.get(tensor, 0) + array.size // array.shape[1]
    shares = {layer: counts[tensor] / total[tensor] for layer, tensor in clips.items()}
    # A channel that never moves is called dead already.
    full = {
        layer: int(((share > _SATURATED) & (share < 1)).sum()) for layer, share in shares.items()
    }
    named = [
        f"{count} of {len(shares[layer])} in {layer!r}" for layer, count in full.items() if count
    ]
    if named:
        yield (
            f"calibration: channels stand at their upper bound for most of the samples "
            f"({_some(named)}); check that the samples are scaled as in training"
        )


def _disagreeing(extremes: dict[str, Ends], layers: dict[str, str]) -> Iterator[str]:
    """Hold one half of the batches against the other."""
    worst, ratio = "", 1.0
    names = {tensor: layer for layer, tensor in layers.items()}
    for tensor, seen in extremes.items():
        if len(seen) < 2:
            continue
        widths = [float(half[1].max() - half[0].min()) for half in seen]
        narrow, wide = sorted(widths)
        if wide > ratio * narrow:
            worst, ratio = tensor, wide / narrow if narrow else float("inf")
    if ratio > _HALVES_DIFFER:
        yield (
            f"calibration: two halves of the samples disagree: the range of "
            f"{names.get(worst, worst)!r} is {ratio:.1f} times as wide in one as in the other; give "
            f'more samples, or calibration = "percentile", which leaves out rare values'
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
