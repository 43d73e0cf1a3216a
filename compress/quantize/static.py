"""Int8 weights and int8 activations, the ranges of which are calibrated beforehand."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.data.task import Task
from compress.quantize.calibrate import (
    METHODS,
    Calibration,
    Method,
    batches,
    calibrate,
    observe,
    ranges_of,
)
from compress.quantize.corrections import Corrected, Correction, check_corrections, corrected
from compress.quantize.excluded import (
    Exclusion,
    excluded,
    guard,
    require_float,
    with_own_constants,
)
from compress.quantize.finished import finished
from compress.quantize.float_outputs import into_unit, unquantize_outputs
from compress.quantize.learned_ranges import Learned, put_learned
from compress.quantize.outputs import output_error
from compress.quantize.rounding import Bits
from compress.quantize.silence import silence
from compress.quantize.unfit import refuse_unfit
from deploy.errors import UserError, needs_extra
from deploy.graph import Weighted, outputs_axis, weighted_nodes
from deploy.machine import SCHEMES, Target, this_target
from deploy.record import Record

Array = npt.NDArray[Any]

# Everything that ONNX Runtime has an int8 kernel for, or that only moves values, so that int8
# layers are not parted by islands of float. Softmax stays float: its int8 form is not faster.
STATIC_OPERATORS = (
    "Conv", "Gemm", "MatMul",
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Concat", "Pad",
    "MaxPool", "AveragePool", "GlobalAveragePool",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip

_PERCENTILE = 99.99


class QuantizeStatic(Record, frozen=True, tag_field="kind", tag="quantize_static"):
    """Int8 weights and int8 activations, whose ranges are calibrated beforehand.

    Weights are signed int8, symmetric. Activations are unsigned on x86, where ONNX Runtime's
    signed kernels are slower than float, and signed on ARM.
    """

    calibration: Calibration = "minmax"
    """What decides the range of an activation: docs/quantization.md. "auto" takes the method whose
    outputs are nearest to the float model's on calibration samples kept aside."""
    percentile: Annotated[float, Meta(gt=50, lt=100)] | None = None
    """Per cent of the values that calibration "percentile" keeps in range; None means 99.99."""
    per_channel: bool = True
    """One scale per output channel of a weight instead of one for all."""
    weight_bits: Bits = 8
    """Weights take this many bits' worth of values, a byte each in the file: what gets smaller is a
    compressed form of it, as a bundle. The kernels are those of int8."""
    correct: tuple[Correction, ...] = ()
    """What to win back on the calibration samples, without training, any of "equalise", "rounding"
    and "bias": docs/quantization.md."""
    target: Target | None = None
    """The machine to quantize for; None means this one. ``x86-avx2`` spends one bit of the
    weights, because its kernels add two products in 16 bits, which saturates."""
    exclude: tuple[str, ...] = ()
    """Names of nodes to leave in float; ``*`` and ``?`` stand for any characters."""
    exclude_types: tuple[str, ...] = ()
    """Operators to leave in float, as ``Conv`` or ``Add``; ``DepthwiseConv`` is a convolution of
    each channel by itself."""
    exclusion: Exclusion = "session_option"
    """What keeps ONNX Runtime from quantizing excluded layers when it opens the file: a session
    option, which every part of lightship sets, or the graph itself, whoever opens it. The graph
    then has ``LeakyRelu(alpha = 1)``, which changes no number, behind each layer that is in
    danger; it costs what a ReLU costs (docs/decisions/0005)."""

    def __post_init__(self) -> None:
        if self.percentile is not None and self.calibration != "percentile":
            raise ValueError(
                f'percentile needs calibration = "percentile", got "{self.calibration}"'
            )
        check_corrections(self.correct)


def why_not_static(model: Any, step: QuantizeStatic) -> dict[str, str]:
    """Say of every node with weights that ``step`` would leave in float why it does.

    Args:
        model: the float ``ModelProto`` that the step would get.
        step: the step.

    Raises:
        UserError: if a pattern of ``exclude`` matches no node.
    """
    nodes = weighted_nodes(model.graph)
    reasons = excluded(model, step.exclude, step.exclude_types)
    for found in nodes:
        if found.node.op_type == "ConvTranspose":
            reasons[found.node.name] = "ONNX Runtime has no int8 ConvTranspose"
    names = {found.node.name for found in nodes}
    return {name: reason for name, reason in reasons.items() if name in names}


def static_ranges(model: Any, step: QuantizeStatic, task: Task) -> Any:
    """Return the calibrated ranges of a float model's tensors, for ``quantize_static``.

    They depend on the calibration of the step alone: models that differ in what they exclude share
    them.

    Args:
        model: a float ``ModelProto`` with one input.
        step: its ``calibration`` and ``percentile`` say how.
        task: its ``calibration.x`` is run through the model.

    Raises:
        UserError: as ``calibrate`` does.
    """
    method = with_method(model, step, task).calibration
    if method == "auto":
        raise TypeError("with_method gave no method")
    with silence():
        return calibrate(
            model,
            task.calibration.x,
            method=method,
            percentile=step.percentile or _PERCENTILE,
            operators=STATIC_OPERATORS,
        )


def with_method(model: Any, step: QuantizeStatic, task: Task) -> QuantizeStatic:
    """Return a step whose calibration is the best method in the place of "auto".

    Every other batch of the calibration samples gives ranges, one set a method; the rest are run
    through the model that each makes. The method of the least ``output_error`` wins, of equal ones
    the first of ``METHODS``. A single batch is halved; a single sample has to do for both.

    Args:
        model: as in ``quantize_static``.
        step: returned as it is unless its calibration is "auto".
        task: its ``calibration.x`` is looked at.

    Raises:
        UserError: as ``quantize_static`` and ``outputs_of`` do.
    """
    if step.calibration != "auto":
        return step
    refuse_unfit_static(model, step)
    made = _corrected(model, step, task)
    x = task.calibration.x
    parts = batches(model, x)
    if len(parts) == 1 and len(x) > 1:
        parts = [slice(0, len(x) // 2), slice(len(x) // 2, len(x))]
    fitted, kept = parts[::2], parts[1::2] or parts
    with silence():
        seen = observe(made.model, x, fitted, operators=STATIC_OPERATORS, histograms=True)

    def error(method: Method) -> float:
        with silence():
            ranges = ranges_of(seen, method, percentile=_PERCENTILE)
        plain = msgspec.structs.replace(step, calibration=method)
        return output_error(task.kind, model, _static(made, plain, ranges=ranges), x, kept)

    return msgspec.structs.replace(step, calibration=min(METHODS, key=error))


def quantize_static(
    model: Any,
    step: QuantizeStatic,
    task: Task,
    *,
    learned: Learned | None = None,
    ranges: Any = None,
) -> Any:
    """Return a ``ModelProto`` with QuantizeLinear and DequantizeLinear around its operators (QDQ).

    The class scores in front of the final Softmax are left in float: ONNX Runtime's ``QGemm``
    gives them for free, and 256 steps would tie classes.

    Args:
        model: a float ``ModelProto`` with one input and opset 13 or later. It is left alone.
        step: how to quantize.
        task: its ``calibration.x`` gives the ranges.
        learned: takes the place of calibration where training has found the ranges.
        ranges: what ``static_ranges`` gave for this model, of a step that corrects nothing; by
            default they are calibrated now.

    Raises:
        UserError: if the model is quantized already, too old or without weights, if ``exclude``
            matches nothing or everything, if the calibration samples do not fit the model or are
            not finite, if there is nothing to equalise, or if ONNX Runtime runs an excluded layer
            as int8 all the same.
        ParityError: if equalisation changed what the model computes.
    """
    refuse_unfit_static(model, step)
    made = _corrected(model, step, task)
    if ranges is None:
        ranges = static_ranges(made.model, step, task)
    return _static(made, step, ranges=ranges, learned=learned)


def refuse_unfit_static(model: Any, step: QuantizeStatic) -> None:
    """Raise a UserError for a model that a static step cannot quantize, whatever calibrates it."""
    refuse_unfit(model)
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if opset < 13:
        raise UserError(f"model: static quantization needs opset 13 or later, got {opset}")
    left_alone = why_not_static(model, step)
    if all(found.node.name in left_alone for found in weighted_nodes(model.graph)):
        raise UserError(
            f"exclude: {', '.join(asked)} leaves no layer to quantize; name fewer layers"
            if (asked := step.exclude + step.exclude_types)
            else "model: static quantization needs a Conv, Gemm or MatMul with stored weights"
        )


def _corrected(model: Any, step: QuantizeStatic, task: Task) -> Corrected:
    """Return what the corrections of a step, and the grid of its weights, make of a float model."""
    reasons = why_not_static(model, step)
    names = [found.node.name for found in weighted_nodes(model.graph)]
    return corrected(
        model,
        [name for name in names if name not in reasons],
        task.calibration.x,
        bits=step.weight_bits,
        levels=SCHEMES[step.target or this_target()].levels,
        per_channel=step.per_channel,
        corrections=step.correct,
    )


def _static(
    made: Corrected, step: QuantizeStatic, *, ranges: Any, learned: Learned | None = None
) -> Any:
    """Write a model with these ranges, its weights on the grid that they lie on."""
    with needs_extra("compress"):
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    model = made.model
    in_float = excluded(model, step.exclude, step.exclude_types)
    target = step.target or this_target()
    scheme = SCHEMES[target]
    in_unit = into_unit(model.graph)
    kept = [*in_float, *in_unit]
    ranges = copy.deepcopy(ranges)
    with silence():
        if learned is not None:
            put_learned(ranges, model.graph, learned)
        scales = {
            found.weight.name: _overrides(found, made.scales.get(found.weight.name), learned)
            for found in weighted_nodes(model.graph)
        }
        quantizer = QDQQuantizer(
            onnx.shape_inference.infer_shapes(with_own_constants(model, kept)),
            step.per_channel,
            scheme.reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if scheme.activations == "s8" else QuantType.QUInt8,
            ranges,
            [],
            kept,
            list(STATIC_OPERATORS),
            {"TensorQuantOverrides": {name: how for name, how in scales.items() if how}},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized = quantizer.model.model
    unquantize_outputs(quantized.graph, in_unit)
    if step.exclusion == "structural":
        guard(quantized.graph, in_float)
    result = finished(quantized, model)
    require_float(result, in_float, exclusion=step.exclusion, target=target)
    return result


def _overrides(
    found: Weighted, scale: Array | None, learned: Learned | None
) -> list[dict[str, Any]]:
    """Return how the quantizer has to store a weight; nothing where that is for it to decide."""
    if scale is None:
        return [{"symmetric": True}] if learned is not None and learned.one_scale else []
    grid = [{"scale": step, "zero_point": np.int8(0)} for step in scale]
    return grid if len(grid) == 1 else [{**step, "axis": outputs_axis(found)} for step in grid]
