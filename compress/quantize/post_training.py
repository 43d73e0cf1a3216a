"""Quantization of a trained ONNX model, without training."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
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
from compress.quantize.corrections import Corrected, Correction, corrected
from compress.quantize.equalise import outputs_axis
from compress.quantize.outputs import output_error
from deploy.errors import UserError, needs_extra
from deploy.graph import (
    Weighted,
    array_of,
    consumers,
    depthwise,
    producers,
    weighted_nodes,
)
from deploy.kernels import file_name, int8_layers, optimized
from deploy.machine import Target, this_target
from deploy.record import SessionOptions

Array = npt.NDArray[Any]

# Everything that ONNX Runtime has an int8 kernel for, or that only moves values, so that int8
# layers are not parted by islands of float. Softmax stays float: its int8 form is not faster.
STATIC_OPERATORS = (
    "Conv", "Gemm", "MatMul",
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Concat", "Pad",
    "MaxPool", "AveragePool", "GlobalAveragePool",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip

Bits = Annotated[int, Meta(ge=2, le=8)]

_LARGEST_FLOAT16 = 65504.0
_PERCENTILE = 99.99
_DEPTHWISE = "DepthwiseConv"


class _Step(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A step from one ONNX model to a smaller one."""


class QuantizeStatic(_Step, frozen=True, tag="quantize_static"):
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
    exclusion: Literal["session_option", "structural"] = "session_option"
    """What keeps ONNX Runtime from quantizing excluded layers when it opens the file: a session
    option, which every part of lightship sets, or the graph itself, whoever opens it. The graph
    then has ``LeakyRelu(alpha = 1)``, which changes no number, behind each layer that is in
    danger; it costs what a ReLU costs (docs/decisions/0005)."""

    def __post_init__(self) -> None:
        if self.percentile is not None and self.calibration != "percentile":
            raise ValueError(
                f'percentile needs calibration = "percentile", got "{self.calibration}"'
            )
        _check_corrections(self.correct)


def _check_corrections(correct: tuple[Correction, ...]) -> None:
    """Raise a ValueError for a correction that is asked for twice."""
    if len(set(correct)) < len(correct):
        raise ValueError(f"correct names each correction once, got {', '.join(correct)}")


class QuantizeDynamic(_Step, frozen=True, tag="quantize_dynamic"):
    """Int8 weights; the range of every activation is measured anew on each run.

    Needs no calibration data. Pays for dense layers. Convolutions stay float unless forced: with
    dynamic ranges they were 2-6 times slower than in float.
    """

    convolutions: bool = False
    """Quantize convolutions too, per tensor."""
    per_channel: bool = True
    """One scale per output unit of a dense layer instead of one for all."""
    target: Target | None = None
    """The machine to quantize for, as in ``QuantizeStatic``."""


class ToFloat16(_Step, frozen=True, tag="float16"):
    """Weights and biases stored as float16, computed with as float32: half the size, equal speed.

    ONNX Runtime's CPU has next to no float16 kernels. A model converted as a whole (tried:
    ``onnxruntime.transformers.float16``) gets casts to float32 around everything, rounds its
    activations as well, and was 2-10 % slower. A Cast behind each stored weight is folded away at
    load instead, so that the float32 graph runs, at the speed of float32.
    """


class WeightOnly(_Step, frozen=True, tag="quantize_weight_only"):
    """Kernels stored as int8 per output channel, computed with as float32: a quarter of the size.

    They are read back as ``Mul(Cast(int8), scale)``, which ONNX Runtime folds into one float32
    constant at load: the speed is that of float32. The obvious ``DequantizeLinear`` is not folded;
    it dequantizes on every run (2-8 times slower), and at times becomes ``MatMulNBits``.
    """

    weight_bits: Bits = 8
    """As in ``quantize_static``."""
    correct: tuple[Correction, ...] = ()
    """As in ``quantize_static``; what is corrected looks at calibration samples."""

    def __post_init__(self) -> None:
        _check_corrections(self.correct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What training has decided of a quantization.

    Attributes:
        ranges: smallest and largest value of the results of layers, by the layer's name; that of
            the model's input by ``INPUT``.
        one_scale: whether a kernel has one scale for all its channels.
    """

    ranges: Mapping[str, tuple[float, float]]
    one_scale: bool


INPUT = "(input)"
"""What the model's input is called among the layers."""


PostTraining = QuantizeStatic | QuantizeDynamic | ToFloat16 | WeightOnly
"""Steps that take a float ONNX model and what they are told, no measurement."""


def why_already_quantized(model: Any) -> str | None:
    """Say what shows that a ``ModelProto`` is quantized already, or None if it is plain float."""
    for node in model.graph.node:
        if node.op_type in _QUANTIZED_OPERATORS or node.op_type.startswith("QLinear"):
            return f"it is quantized already (node {node.name!r} is {node.op_type})"
    for found in weighted_nodes(model.graph):
        kind = array_of(found.weight).dtype
        if kind != np.float32:
            return f"its weights are not float32 any more (node {found.node.name!r}: {kind})"
    return None


_QUANTIZED_OPERATORS = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger",
        "ConvInteger", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits",
    }
)  # fmt: skip


def why_not_quantized(model: Any, step: PostTraining) -> dict[str, str]:
    """Say of every node with weights that ``step`` would leave in float why it does.

    Args:
        model: the float ``ModelProto`` that the step would get.
        step: the step; ``ToFloat16`` and ``WeightOnly`` leave out nothing.

    Raises:
        UserError: if a pattern of ``exclude`` matches no node.
    """
    nodes = weighted_nodes(model.graph)
    match step:
        case QuantizeStatic():
            reasons = _excluded(model, step)
            for found in nodes:
                if found.node.op_type == "ConvTranspose":
                    reasons[found.node.name] = "ONNX Runtime has no int8 ConvTranspose"
            names = {found.node.name for found in nodes}
            return {name: reason for name, reason in reasons.items() if name in names}
        case QuantizeDynamic():
            return {
                found.node.name: _why_not_dynamic(found, step)
                for found in nodes
                if found.node.op_type not in _dynamic_operators(step)
            }
        case ToFloat16() | WeightOnly():
            return {}


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
    with _quiet():
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
        UserError: as ``quantize_static`` does.
    """
    if step.calibration != "auto":
        return step
    _refuse_unfit_static(model, step)
    made = _corrected(model, step, task)
    x = task.calibration.x
    parts = batches(model, x)
    if len(parts) == 1 and len(x) > 1:
        parts = [slice(0, len(x) // 2), slice(len(x) // 2, len(x))]
    fitted, kept = parts[::2], parts[1::2] or parts
    with _quiet():
        seen = observe(made.model, x, fitted, operators=STATIC_OPERATORS, histograms=True)

    def error(method: Method) -> float:
        with _quiet():
            ranges = ranges_of(seen, method, percentile=_PERCENTILE)
        plain = msgspec.structs.replace(step, calibration=method)
        return output_error(model, _static(made, plain, ranges=ranges), x, kept)

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
    _refuse_unfit_static(model, step)
    made = _corrected(model, step, task)
    if ranges is None:
        ranges = static_ranges(made.model, step, task)
    return _static(made, step, ranges=ranges, learned=learned)


def _refuse_unfit_static(model: Any, step: QuantizeStatic) -> None:
    """Raise a UserError for a model that a static step cannot quantize."""
    refuse_unfit(model)
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if opset < 13:
        raise UserError(f"model: static quantization needs opset 13 or later, got {opset}")
    left_alone = why_not_quantized(model, step)
    if all(found.node.name in left_alone for found in weighted_nodes(model.graph)):
        raise UserError(
            f"exclude: {', '.join(asked)} leaves no layer to quantize; name fewer layers"
            if (asked := step.exclude + step.exclude_types)
            else "model: static quantization needs a Conv, Gemm or MatMul with stored weights"
        )


def _corrected(model: Any, step: QuantizeStatic | WeightOnly, task: Task) -> Corrected:
    """Return what the corrections of a step, and the grid of its weights, make of a float model."""
    if step.weight_bits == 8 and not step.correct:
        return Corrected(model=model, scales={})
    reasons = why_not_quantized(model, step)
    target = this_target()
    if isinstance(step, QuantizeStatic):
        target = step.target or target
    return corrected(
        model,
        [
            found.node.name
            for found in weighted_nodes(model.graph)
            if found.node.name not in reasons
        ],
        task.calibration.x,
        bits=step.weight_bits,
        levels=64 if target == "x86-avx2" and isinstance(step, QuantizeStatic) else 127,
        per_channel=isinstance(step, WeightOnly) or step.per_channel,
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
    model, excluded = made.model, _excluded(made.model, step)
    target = step.target or this_target()
    in_unit = _into_unit(model.graph)
    kept = [*excluded, *in_unit]
    ranges = copy.deepcopy(ranges)
    with _quiet():
        if learned is not None:
            _put_learned(ranges, model.graph, learned)
        scales = {
            found.weight.name: _overrides(found, made.scales.get(found.weight.name), learned)
            for found in weighted_nodes(model.graph)
        }
        quantizer = QDQQuantizer(
            onnx.shape_inference.infer_shapes(_with_own_constants(model, kept)),
            step.per_channel,
            target == "x86-avx2",  # reduce_range
            QuantType.QInt8,
            QuantType.QInt8 if target == "arm64" else QuantType.QUInt8,
            ranges,
            [],
            kept,
            list(STATIC_OPERATORS),
            {"TensorQuantOverrides": {name: how for name, how in scales.items() if how}},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized = quantizer.model.model
    _unquantize_scores(quantized.graph, in_unit)
    if step.exclusion == "structural":
        _guard(quantized.graph, excluded)
    finished = _finished(quantized, model)
    _require_float(finished, excluded, step, target)
    return finished


def _overrides(
    found: Weighted, scale: Array | None, learned: Learned | None
) -> list[dict[str, Any]]:
    """Return how the quantizer has to store a weight; nothing where that is for it to decide."""
    if scale is None:
        return [{"symmetric": True}] if learned is not None and learned.one_scale else []
    grid = [{"scale": step, "zero_point": np.int8(0)} for step in scale]
    return grid if len(grid) == 1 else [{**step, "axis": outputs_axis(found)} for step in grid]


def _put_learned(ranges: Any, graph: Any, learned: Learned) -> None:
    """Put learned ranges in the place of the calibrated ones, for all results of their layers."""
    from onnxruntime.quantization.calibrate import TensorData

    def put(tensor: str, name: str) -> None:
        low, high = learned.ranges[name]
        if tensor in ranges:
            ranges[tensor] = TensorData(lowest=np.float32(low), highest=np.float32(high))

    if INPUT in learned.ranges:
        put(graph.input[0].name, INPUT)
    for node in graph.node:
        # A layer's nodes are called "layer" and "layer/relu", those of a nested one "inner/layer".
        name = next((name for name in _prefixes(node.name) if name in learned.ranges), None)
        if name is not None:
            for tensor in node.output:
                put(tensor, name)


def _prefixes(name: str) -> Iterator[str]:
    """Yield a name and what is left when its last parts are taken away.

    >>> list(_prefixes("inner/conv/relu"))
    ['inner/conv/relu', 'inner/conv', 'inner']
    """
    parts = name.split("/")
    yield from ("/".join(parts[:count]) for count in range(len(parts), 0, -1))


def quantize_dynamic(model: Any, step: QuantizeDynamic) -> Any:
    """Return a ``ModelProto`` whose dense layers measure and quantize their input on each run.

    Activations are always unsigned; the weights of dense layers are signed int8.

    Args:
        model: a float ``ModelProto``. It is left alone.
        step: how to quantize.

    Raises:
        UserError: if the model is quantized already or has no layer that this step quantizes.
    """
    with needs_extra("compress"):
        from onnxruntime.quantization import QuantType
    refuse_unfit(model)
    operators = _dynamic_operators(step)
    names = {found.node.name for found in weighted_nodes(model.graph)}
    reasons = why_not_quantized(model, step)
    if names == set(reasons):
        raise UserError(
            f"model: dynamic quantization needs {' or '.join(operators)} with stored weights, "
            f"got none; use quantize_static"
        )
    reduce_range = (step.target or this_target()) == "x86-avx2"
    quantized = _ort_dynamic(
        model,
        ["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=step.per_channel,
        reduce_range=reduce_range,
    )
    if step.convolutions:
        # ConvInteger multiplies weights by activations, in that order: signed times unsigned, the
        # slow pair. So its weights are unsigned, and then it takes one zero point alone.
        quantized = _ort_dynamic(
            quantized,
            ["Conv"],
            weight_type=QuantType.QUInt8,
            per_channel=False,
            reduce_range=reduce_range,
        )
    # ONNX Runtime calls the heart of layer "dense1" "dense1_MatMul_quant"; it gets its name back.
    for node in quantized.graph.node:
        for suffix in ("_MatMul_quant", "_quant"):
            name = node.name.removesuffix(suffix)
            if node.op_type in {"MatMulInteger", "ConvInteger"} and name in names:
                node.name = name
    return _finished(quantized, model)


def _ort_dynamic(model: Any, operators: list[str], **settings: Any) -> Any:
    import onnx
    from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

    # Up to 1.20, ONNX Runtime moves the weights of the model it is given into a file of its own.
    twin = type(model)()
    twin.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder, "model.onnx")
        ort_quantize_dynamic(
            twin,
            path,
            op_types_to_quantize=operators,
            extra_options={"MatMulConstBOnly": True},
            **settings,
        )
        return onnx.load(path)


def to_float16(model: Any, step: ToFloat16) -> Any:
    """Return a ``ModelProto`` that stores the weights and biases of its layers as float16.

    Args:
        model: a float ``ModelProto``. It is left alone.
        step: has no settings.

    Raises:
        UserError: if the model is quantized already or a value is too large for float16.
    """
    refuse_unfit(model)
    return store_in_fewer_bits(model, step)


def weight_only(model: Any, step: WeightOnly, task: Task | None = None) -> Any:
    """Return a ``ModelProto`` that stores its kernels as int8, one scale per output channel.

    A stored weight is ``round(w / scale)`` with ``scale = max |w| / 127`` over its channel: off by
    half a step at most, and zero stays zero. Biases stay float32.

    Args:
        model: a float ``ModelProto``. It is left alone.
        step: how to store them.
        task: calibrates what is corrected; not looked at otherwise.

    Raises:
        UserError: if the model is quantized already or a weight is not finite, or a correction does
            not fit, as in ``quantize_static``.
    """
    refuse_unfit(model)
    if step.weight_bits == 8 and not step.correct:
        return store_in_fewer_bits(model, step)
    if task is None:
        raise TypeError("fewer bits and corrections need a task")
    made = _corrected(model, step, task)
    return store_in_fewer_bits(made.model, step, scales=made.scales)


def store_in_fewer_bits(
    model: Any,
    step: ToFloat16 | WeightOnly,
    *,
    layers: Collection[str] | None = None,
    scales: Mapping[str, Array] = MappingProxyType({}),
) -> Any:
    """Return a copy whose layers, or some of them, keep their weights as a step says.

    Args:
        model: a ``ModelProto`` whose layers have names. It is left alone.
        step: what to store them as.
        layers: names of layers with float32 weights; None for all there are.
        scales: the grids of weights that lie on one, by the weight's name, one step a channel.

    Raises:
        UserError: if there are none, or a weight cannot be stored so.
    """
    match step:
        case ToFloat16():
            return _with_stored_otherwise(model, step, _halve, layers, with_bias=True)
        case WeightOnly():

            def rewrite(
                layer: str, name: str, values: Array, axis: int
            ) -> tuple[list[Any], list[Any]]:
                return _quarter(layer, name, values, axis, scales.get(name))

            return _with_stored_otherwise(model, step, rewrite, layers, with_bias=False)


def _halve(layer: str, name: str, values: Array, _: int) -> tuple[list[Any], list[Any]]:
    import onnx

    largest = float(np.abs(values).max(initial=0))
    if not largest <= _LARGEST_FLOAT16:
        raise UserError(
            f"layer {layer!r}: float16 holds values up to {_LARGEST_FLOAT16:.0f}, got "
            f"{largest:g} in {name!r}; leave this model in float32"
        )
    half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_float16")
    cast = onnx.helper.make_node(
        "Cast", [half.name], [name], name=f"{name}/cast", to=onnx.TensorProto.FLOAT
    )
    return [half], [cast]


def _quarter(
    layer: str, name: str, values: Array, axis: int, scale: Array | None
) -> tuple[list[Any], list[Any]]:
    import onnx

    if not np.isfinite(values).all():
        raise UserError(f"layer {layer!r}: {name!r} holds NaN or infinity; train it again")
    others = tuple(a for a in range(values.ndim) if a != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    if scale is None:
        scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    scale = scale.reshape(largest.shape).astype(np.float32)
    stored = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    tensors = [
        onnx.numpy_helper.from_array(stored, f"{name}_int8"),
        onnx.numpy_helper.from_array(scale, f"{name}_scale"),
    ]
    cast = onnx.helper.make_node(
        "Cast",
        [tensors[0].name],
        [f"{name}_steps"],
        name=f"{name}/cast",
        to=onnx.TensorProto.FLOAT,
    )
    scaled = onnx.helper.make_node(
        "Mul", [f"{name}_steps", tensors[1].name], [name], name=f"{name}/mul"
    )
    return tensors, [cast, scaled]


def refuse_unfit(model: Any) -> None:
    """Raise a UserError for a model that is quantized already or whose layers cannot be told."""
    why_not = why_already_quantized(model)
    if why_not is not None:
        raise UserError(f"model: {why_not}; give the float model that it was made from")
    names = [found.node.name for found in weighted_nodes(model.graph)]
    for name in names:
        if not name or names.count(name) > 1:
            raise UserError(
                f"model: nodes with weights need names of their own, got {name!r} "
                f"{names.count(name)} times; give every node a name where the model is exported, "
                f"or set node.name with the onnx package"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's quantizer from logging advice through the root logger and printing."""
    with contextlib.redirect_stdout(io.StringIO()):
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _excluded(model: Any, step: QuantizeStatic) -> dict[str, str]:
    """Return the nodes that a step excludes, with the reason; sharing weights means sharing fate."""
    reasons: dict[str, str] = {}
    nodes = weighted_nodes(model.graph)
    for pattern in step.exclude:
        matched = [node.name for node in model.graph.node if fnmatchcase(node.name, pattern)]
        if not matched:
            raise UserError(
                f"exclude: {pattern!r} matches no node; the layers with weights are "
                f"{', '.join(found.node.name for found in nodes)}"
            )
        for name in matched:
            reasons.setdefault(name, f"excluded by {pattern!r}")
    by_type: dict[str, list[str]] = {}
    for node in model.graph.node:
        by_type.setdefault(node.op_type, []).append(node.name)
    by_type[_DEPTHWISE] = [found.node.name for found in nodes if depthwise(found)]
    for kind in step.exclude_types:
        if not by_type.get(kind):
            raise UserError(
                f"exclude_types: the model has no {kind!r}; it has "
                f"{', '.join(sorted(name for name, found in by_type.items() if found))}"
            )
        for name in by_type[kind]:
            reasons.setdefault(name, f"excluded as a {kind}")
    owners = {found.weight.name: found.node.name for found in nodes if found.node.name in reasons}
    for found in nodes:
        if found.weight.name in owners:
            owner = owners[found.weight.name]
            reasons.setdefault(found.node.name, f"shares its weights with {owner!r}")
    return reasons


def _with_own_constants(model: Any, excluded: Collection[str]) -> Any:
    """Return a copy whose excluded nodes share no constant with nodes that are quantized.

    Equal biases are stored once. The quantizer puts an int32 bias behind DequantizeLinear under the
    old name: an excluded reader would get it rounded on another layer's grid, and, because it is
    no constant any more, the slower of ONNX Runtime's float kernels (2 to 7 times, measured).
    """
    twin = type(model)()
    twin.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in twin.graph.initializer}
    shared = {name for node in twin.graph.node if node.name not in excluded for name in node.input}
    for node in twin.graph.node:
        for index, name in enumerate(node.input if node.name in excluded else ()):
            if name in stored and name in shared:
                own = twin.graph.initializer.add()
                own.CopyFrom(stored[name])
                own.name = node.input[index] = f"{node.name}/own_{index}"
    return twin


# What ONNX Runtime's WeightBiasQuantization takes for a layer that somebody forgot to quantize.
_REQUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm"})
# What it runs in int8 between DQ and Q in any case: these have no weights to tell by.
_ALWAYS_INT8 = frozenset(
    {"Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Softmax"}
)


def _guard(graph: Any, names: Collection[str]) -> None:
    """Put ``LeakyRelu(alpha = 1)`` behind every excluded node that stands between DQ and Q.

    ONNX Runtime looks past Relu and Clip for the QuantizeLinear, and at no other operator.
    """
    import onnx

    made_by, readers = producers(graph), consumers(graph)
    for node in [node for node in graph.node if node.name in names]:
        given = made_by.get(node.input[0])
        reading = readers.get(node.output[0], [])
        while len(reading) == 1 and reading[0].op_type in {"Relu", "Clip"}:
            reading = readers.get(reading[0].output[0], [])
        if (
            node.op_type not in _REQUANTIZED | _ALWAYS_INT8
            or given is None
            or given.op_type != "DequantizeLinear"
            or [reader.op_type for reader in reading] != ["QuantizeLinear"]
        ):
            continue
        result = node.output[0]
        node.output[0] = f"{result}_unguarded"
        guard = onnx.helper.make_node(
            "LeakyRelu", [node.output[0]], [result], name=f"{node.name}/guard", alpha=1.0
        )
        graph.node.insert(list(graph.node).index(node) + 1, guard)


def _require_float(
    model: Any, names: Collection[str], step: QuantizeStatic, target: Target
) -> None:
    """Look at the optimised graph for excluded layers that became int8 all the same.

    Raises:
        UserError: if there is one.
    """
    if not names:
        return
    anyhow = SessionOptions(disabled_optimizers=())
    options = anyhow if step.exclusion == "structural" else SessionOptions()
    running = int8_layers(model, target=target, options=options)
    running |= {
        name: node.op_type
        for node in optimized(model, target=target, options=options).graph.node
        if node.op_type.startswith("QLinear") and (name := file_name(node)) in names
    }
    for name in names:
        if name in running:
            raise UserError(
                f"exclude: ONNX Runtime {ort.__version__} runs {name!r} as {running[name]} although the "
                f"file leaves it in float with exclusion = {step.exclusion!r}; choose "
                f"{'session_option' if step.exclusion == 'structural' else 'structural'!r}, or "
                "another release of onnxruntime"
            )


def _dynamic_operators(step: QuantizeDynamic) -> tuple[str, ...]:
    return ("MatMul", "Gemm", "Conv") if step.convolutions else ("MatMul", "Gemm")


def _why_not_dynamic(found: Weighted, step: QuantizeDynamic) -> str:
    if found.node.op_type == "Conv" and not step.convolutions:
        return "dynamic int8 convolutions are slower than float (convolutions = true forces them)"
    return f"ONNX Runtime has no dynamic int8 {found.node.op_type}"


def _into_unit(graph: Any) -> list[str]:
    """Return the last two nodes if they bring the outputs into their unit, ``x * std + mean``.

    On one grid of 256 steps for all targets, one in millimetres would drown beside one in tonnes.
    """
    made_by, stored = producers(graph), {tensor.name for tensor in graph.initializer}
    names, tensor = [], graph.output[0].name
    for kind in ("Add", "Mul"):
        node = made_by.get(tensor)
        if node is None or node.op_type != kind or not stored & set(node.input):
            return []
        names.append(node.name)
        (tensor,) = set(node.input) - stored
    return names


def _unquantize_scores(graph: Any, in_unit: Sequence[str]) -> None:
    """Remove Q and DQ between a dense layer and what it feeds: Softmax, output, or ``in_unit``."""
    made_by, readers = producers(graph), consumers(graph)
    outputs = {value.name for value in graph.output}
    for last in list(graph.node):
        if last.op_type != "DequantizeLinear" or last.input[0] not in made_by:
            continue
        first = made_by[last.input[0]]
        dense = made_by.get(first.input[0])
        reading = readers.get(last.output[0], [])
        if (
            dense is None
            or dense.op_type not in {"Gemm", "MatMul"}
            or len(readers[first.input[0]]) != 1
            or len(readers[first.output[0]]) != 1
            or not (
                last.output[0] in outputs
                or [node.op_type for node in reading] == ["Softmax"]
                or [node.name for node in reading] == list(in_unit[-1:])
            )
        ):
            continue
        dense.output[0] = last.output[0]
        graph.node.remove(first)
        graph.node.remove(last)


def _with_stored_otherwise(
    model: Any,
    step: ToFloat16 | WeightOnly,
    rewrite: Callable[[str, str, Array, int], tuple[list[Any], list[Any]]],
    layers: Collection[str] | None,
    *,
    with_bias: bool,
) -> Any:
    """Return a copy whose weights are replaced by other tensors and the nodes that read them back.

    ``rewrite`` gets the layer's name, the tensor's name, its values and the axis of its output
    channels. It returns the tensors to store and the nodes that make the values again.
    """
    nodes = [
        found
        for found in weighted_nodes(model.graph)
        if layers is None or found.node.name in layers
    ]
    if not nodes:
        raise UserError(f"model: {type(step).__name__} needs layers with stored weights, got none")
    twin = type(model)()
    twin.CopyFrom(model)
    graph = twin.graph
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors: list[Any] = []
    readers: list[Any] = []
    done: set[str] = set()
    for found in nodes:
        names = [found.weight.name]
        if with_bias and found.node.op_type != "MatMul":
            names += [name for name in found.node.input[2:3] if name in stored]
        for name in names:
            if name not in done:
                done.add(name)
                axis = outputs_axis(found)
                new, made = rewrite(found.node.name, name, array_of(stored[name]), axis)
                tensors += new
                readers += made
    kept_tensors = [tensor for tensor in model.graph.initializer if tensor.name not in done]
    del graph.initializer[:]
    graph.initializer.extend([*tensors, *kept_tensors])
    del graph.node[:]
    graph.node.extend([*readers, *model.graph.node])
    return _finished(twin, model)


def _finished(quantized: Any, parent: Any) -> Any:
    """Give the result its parent's metadata and check it as strictly as an export."""
    import onnx

    del quantized.graph.value_info[:]
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(parent.metadata_props)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized
