"""What each layer costs in accuracy, and saves in time, when it alone becomes int8."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from compress.data.task import Task
from compress.quantize.post_training import (
    QuantizeStatic,
    quantize_static,
    static_ranges,
    why_not_quantized,
)
from deploy.audit import audit
from deploy.errors import UserError
from deploy.graph import weighted_nodes
from deploy.record import Record, SessionOptions
from deploy.session import open_model

Array = npt.NDArray[Any]

SAMPLES = 512
"""Validation samples that are looked at unless told otherwise."""


class LayerSensitivity(Record, frozen=True):
    """One layer in int8, all others in float."""

    name: str
    kl_divergence: float
    """Of the outputs from those of the float model, in nats, mean over the samples: Kullback and
    Leibler (1951), equation 2.4."""
    delta_points: float
    """Change of accuracy on the samples, in percentage points."""
    saved_us: float | None
    """Kernel time in float less kernel time in int8, in the model whose layers are all int8; None
    if nothing was timed."""

    @property
    def price(self) -> float | None:
        """Nats for a microsecond saved; infinite where nothing is saved; None if nothing was timed."""
        if self.saved_us is None:
            return None
        return self.kl_divergence / self.saved_us if self.saved_us > 0 else float("inf")


def sensitivity(
    model: Any,
    step: QuantizeStatic,
    task: Task,
    *,
    samples: int = SAMPLES,
    options: SessionOptions | None = SessionOptions(),
    ranges: Any = None,
) -> tuple[LayerSensitivity, ...]:
    """Return what each layer costs and saves in int8, the most sensitive first.

    Args:
        model: a float ``ModelProto`` that ends in class scores. It is left alone.
        step: how to quantize; layers that it excludes are left out.
        task: its calibration samples give the ranges, its validation samples the cost.
        samples: how many of the validation samples to look at.
        options: how the model is opened to be timed; None times nothing.
        ranges: as in ``quantize_static``.

    Raises:
        UserError: as ``quantize_static`` does, or if there is no validation sample.
    """
    x, y = task.validation.x[:samples], task.validation.y[:samples]
    if not len(x):
        raise UserError("sensitivity: needs validation samples, the task has none")
    ranges = static_ranges(model, step, task) if ranges is None else ranges
    fixed = why_not_quantized(model, step)
    names = [f.node.name for f in weighted_nodes(model.graph) if f.node.name not in fixed]
    before = probabilities(model, x)
    saved = {} if options is None else _saved_us(model, step, task, ranges, options)
    found = []
    for name in names:
        others = tuple(other for other in names if other != name)
        alone = msgspec.structs.replace(step, exclude=(*step.exclude, *others))
        after = probabilities(quantize_static(model, alone, task, ranges=ranges), x)
        found.append(
            LayerSensitivity(
                name=name,
                kl_divergence=kl_divergence(before, after),
                delta_points=100 * (_accuracy(after, y) - _accuracy(before, y)),
                saved_us=saved.get(name),
            )
        )
    return tuple(sorted(found, key=lambda layer: -layer.kl_divergence))


def probabilities(model: Any, x: Array) -> npt.NDArray[np.float64]:
    """Return a ``ModelProto``'s class probabilities ``(n, classes)``; logits get a softmax."""
    opened = open_model(model.SerializeToString())
    inputs = opened.cast(x)
    batch = opened.fixed_batch or 256
    runs = [opened.run(inputs[start : start + batch]) for start in range(0, len(inputs), batch)]
    scores = np.concatenate(runs).astype(np.float64)
    if scores.min() >= 0 and np.allclose(scores.sum(axis=-1), 1, atol=1e-3):
        return scores
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    normalized: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return normalized


def kl_divergence(reference: Array, candidate: Array) -> float:
    """Return the mean over samples of ``sum(p * log(p / q))``, in nats.

    >>> kl_divergence(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]]))
    0.0
    """
    least = 1e-9  # float32 scores underflow to 0
    p, q = np.maximum(reference, least), np.maximum(candidate, least)
    return float((p * np.log(p / q)).sum(axis=-1).mean())


def _accuracy(scores: Array, y: Array) -> float:
    return float((scores.argmax(axis=-1) == y).mean())


def _saved_us(
    model: Any, step: QuantizeStatic, task: Task, ranges: Any, options: SessionOptions
) -> dict[str, float]:
    """Return the kernel time that each layer saves in int8, in microseconds."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        float_path, int8_path = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, float_path)
        onnx.save(quantize_static(model, step, task, ranges=ranges), int8_path)
        found = audit(int8_path, options, against=float_path)
    return {
        layer.name: layer.reference_us - layer.time_us
        for layer in found.layers
        if layer.time_us is not None and layer.reference_us is not None
    }
