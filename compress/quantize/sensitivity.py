"""What each layer costs, and saves in time, when it alone becomes int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from compress.data.task import Task
from compress.quantize.outputs import distance, outputs_of, sqnr_db
from compress.quantize.points import points_gained, score
from compress.quantize.static import (
    QuantizeStatic,
    quantize_static,
    static_ranges,
    why_not_static,
)
from deploy.audit import audit
from deploy.errors import UserError
from deploy.graph import weighted_nodes
from deploy.record import Record, SessionOptions

SAMPLES = 512
"""Validation samples that are looked at unless told otherwise."""


class LayerSensitivity(Record, frozen=True):
    """One layer in int8, all others in float."""

    name: str
    kl_divergence: float | None
    """Of the outputs from those of the float model, in nats, mean over the samples, and over labels
    where a sample has several; None if the outputs are values."""
    noise_share: float | None
    """Of outputs that are values: mean square of their error in int8 over the float model's variance,
    mean over the targets; None if they are classes or labels."""
    delta_points: float
    """Change of the task's metric on the samples, in points; of an error, in per cent of the float
    model's; below 0 is worse. Of a reconstruction that of its mean squared error."""
    saved_us: float | None
    """Kernel time in float less kernel time in int8, in the model whose layers are all int8; None
    if nothing was timed or the kernel cannot be told."""

    @property
    def cost(self) -> float:
        """What the layers are ranked by: nats, or the share of noise."""
        return (self.kl_divergence if self.noise_share is None else self.noise_share) or 0.0

    @property
    def sqnr_db(self) -> float | None:
        """Signal-to-quantization-noise ratio of outputs that are values; infinite without noise."""
        return None if self.noise_share is None else sqnr_db(self.noise_share)

    @property
    def cost_per_us(self) -> float | None:
        """Price of a microsecond saved; None where none is saved, or nothing was timed."""
        if self.saved_us is None or self.saved_us <= 0:
            return None
        return self.cost / self.saved_us


def sensitivity(
    model: Any,
    step: QuantizeStatic,
    task: Task,
    *,
    samples: int = SAMPLES,
    options: SessionOptions | None = SessionOptions(),
    ranges: Any = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Return what each layer costs and saves in int8, the most sensitive first.

    Args:
        model: a float ``ModelProto``. It is left alone.
        step: how to quantize; layers that it leaves in float are left out.
        task: its calibration samples give the ranges, its validation samples the cost.
        samples: how many of the validation samples to look at.
        options: how the model is opened to be timed; None times nothing.
        ranges: as in ``quantize_static``.
        on_progress: called with layers done and layers in all.

    Raises:
        UserError: as ``quantize_static`` and ``outputs_of`` do, or if there is no validation sample.
    """
    x, y = task.validation.x[:samples], task.validation.y[:samples]
    if not len(x):
        raise UserError(
            "sensitivity: needs validation samples, the data has none; give more samples"
        )
    ranges = static_ranges(model, step, task) if ranges is None else ranges
    # The layers that can be int8; what all of them in int8 takes says what each saves.
    whole = quantize_static(model, step, task, ranges=ranges)
    fixed = why_not_static(model, step)
    names = [f.node.name for f in weighted_nodes(model.graph) if f.node.name not in fixed]
    saved = {} if options is None else _saved_us(model, whole, options)
    logarithms = task.kind == "classification"
    before = outputs_of(model, x, logarithms=logarithms)
    scored, classes = score(task, before, y), task.kind in {"classification", "multi_label"}
    found = []
    for done, name in enumerate(names, start=1):
        others = tuple(other for other in names if other != name)
        alone = msgspec.structs.replace(step, exclude=(*step.exclude, *others))
        made = quantize_static(model, alone, task, ranges=ranges)
        after = outputs_of(made, x, logarithms=logarithms)
        apart = distance(task.kind, before, after)
        found.append(
            LayerSensitivity(
                name=name,
                kl_divergence=apart if classes else None,
                noise_share=None if classes else apart,
                delta_points=points_gained(task, scored, score(task, after, y)),
                saved_us=saved.get(name),
            )
        )
        if on_progress is not None:
            on_progress(done, len(names))
    return tuple(sorted(found, key=lambda layer: -layer.cost))


def _saved_us(model: Any, whole: Any, options: SessionOptions) -> dict[str, float]:
    """Return the kernel time that each layer saves in int8, in microseconds."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        float_path, int8_path = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, float_path)
        onnx.save(whole, int8_path)
        found = audit(int8_path, options, against=float_path, race_settings=None)
    return {
        layer.name: layer.reference_us - layer.time_us
        for layer in found.layers
        if layer.time_us is not None and layer.reference_us is not None
    }
