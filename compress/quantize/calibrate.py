"""The ranges that a network's tensors take on calibration data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.streams import Samples

Array = npt.NDArray[Any]
Method = Literal["minmax", "moving_average", "entropy", "percentile", "mse"]
Calibration = Literal["minmax", "moving_average", "entropy", "percentile", "mse", "auto"]
Range = tuple[float, float]

METHODS: tuple[Method, ...] = ("minmax", "moving_average", "entropy", "percentile", "mse")
FROM_HISTOGRAMS = frozenset({"entropy", "percentile", "mse"})

_BATCH = 32
_BINS = 2048
_BINS_PER_BIN_OF_ENTROPY = 4
_QUANTIZED_BINS = 128
"""With as many bins as these, the search of ``entropy`` has a single candidate: all that was seen."""
_SHRUNK_TO = np.geomspace(1, 1 / 64, 25)
"""Shares of either end that ``mse`` tries."""
_STEPS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often a tensor takes which values.

    Attributes:
        counts: of 2048 bins of equal width, symmetric about zero, so that no bin spans it.
        edges: of the bins, one more than bins.
        zeros: values that are exactly zero, which are counted in a bin as well.
    """

    counts: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float64]
    zeros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was seen of a network's tensors, by name.

    Attributes:
        extremes: smallest and largest value of each batch, ``(batches, 2)``.
        histograms: empty unless they were asked for.
    """

    extremes: Mapping[str, npt.NDArray[np.float64]]
    histograms: Mapping[str, Histogram]


def calibrate(
    model: Any,
    x: Samples,
    *,
    method: Method,
    percentile: float,
    operators: Sequence[str],
) -> Any:
    """Return the range of every float tensor of ``operators`` (an ONNX Runtime ``TensorsData``).

    - ``minmax``: the smallest and largest value seen.
    - ``moving_average``: the mean over batches of 32 of the smallest and the largest value: one
      strange sample counts for little. (An exponential average, as in training, would hardly leave
      the first of a dozen batches.)
    - ``entropy``: the range with the smallest Kullback-Leibler divergence between the histogram
      and its quantized form (Migacz, "8-bit inference with TensorRT", GTC 2017).
    - ``percentile``: the range that holds ``percentile`` % of the values, the rest shared between
      both ends.
    - ``mse``: the range with the smallest ``quantization_error``.

    One batch of samples and its activations are held in memory at a time; histograms take as many
    bins whatever comes. They are made in a second pass, when the extremes are known. A model that
    takes one sample at a time is given one at a time.

    Args:
        model: a ``ModelProto`` with one float32 input. It is left alone.
        x: model inputs ``(n, ...)``, or what gives them when sliced; those of another type are cast
            to float32.
        method: see above.
        percentile: used by ``percentile`` alone, in percent.
        operators: types of the nodes whose inputs and outputs are watched.

    Raises:
        UserError: if the model has another number or type of inputs or a batch fixed above 1, if
            there is no sample, if a sample is not finite or does not fit the model, or
            if a tensor of the model takes a value that is not finite.
    """
    parts = batches(model, x)
    observed = observe(model, x, parts, operators=operators, histograms=method in FROM_HISTOGRAMS)
    return ranges_of(observed, method, percentile=percentile)


def batches(model: Any, x: Array) -> list[slice]:
    """Return the slices of ``x`` that are run at a time.

    Raises:
        UserError: if there is no sample, or they or the model's input cannot be used.
    """
    graph_input = _float_input(model.graph)
    _check_shape(x, graph_input)
    step = 1 if graph_input.type.tensor_type.shape.dim[0].dim_value == 1 else _BATCH
    return [slice(start, min(start + step, len(x))) for start in range(0, len(x), step)]


def observe(
    model: Any,
    x: Array,
    parts: Sequence[slice],
    *,
    operators: Sequence[str],
    histograms: bool,
) -> Observed:
    """Run batches of samples through a model and keep what its tensors do.

    Args:
        model: as in ``calibrate``.
        x: as in ``calibrate``.
        parts: those of ``batches`` to look at.
        operators: as in ``calibrate``.
        histograms: whether to make them, in a second pass.

    Raises:
        UserError: as ``calibrate`` does.
    """
    seen: dict[str, list[Range]] = {}
    for values in activations(model, x, parts, operators=operators):
        for name, array in values.items():
            ends = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
            seen.setdefault(name, []).append(ends)
    extremes = {name: np.array(ends) for name, ends in seen.items()}
    _check_finite(extremes, model.graph)
    if not histograms:
        return Observed(extremes=extremes, histograms={})
    largest = {name: float(np.abs(ends).max()) or 1.0 for name, ends in extremes.items()}
    counts = {name: np.zeros(_BINS, np.int64) for name in extremes}
    zeros = dict.fromkeys(extremes, 0)
    for values in activations(model, x, parts, operators=operators):
        for name, array in values.items():
            reach = (-largest[name], largest[name])
            counts[name] += np.histogram(array, _BINS, range=reach)[0]
            zeros[name] += array.size - int(np.count_nonzero(array))
    return Observed(
        extremes=extremes,
        histograms={
            name: Histogram(
                counts=counts[name],
                edges=np.linspace(-largest[name], largest[name], _BINS + 1),
                zeros=zeros[name],
            )
            for name in extremes
        },
    )


def activations(
    model: Any, x: Array, parts: Sequence[slice], *, operators: Sequence[str]
) -> Iterator[dict[str, Array]]:
    """Yield, batch by batch, the values of the float tensors that some operators read and make.

    Args:
        model: as in ``calibrate``.
        x: as in ``calibrate``.
        parts: those of ``batches`` to run.
        operators: types of the nodes.

    Raises:
        UserError: if a sample is not finite.
    """
    import onnx
    import onnxruntime as ort

    twin = onnx.shape_inference.infer_shapes(model)
    graph, graph_input = twin.graph, _float_input(model.graph).name
    known = {v.name: v for v in (*graph.value_info, *graph.output, *graph.input)}
    stored = {tensor.name for tensor in graph.initializer}
    wanted = {
        name
        for node in graph.node
        if node.op_type in operators
        for name in (*node.input, *node.output)
        if name in known
        and name not in stored
        and known[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    made = sorted(wanted - {graph_input})
    outputs = {value.name for value in graph.output}
    graph.output.extend(known[name] for name in made if name not in outputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(twin, path)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # It warns of what nobody can act on; errors are raised as well.
        options.log_severity_level = 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for part in parts:
            batch = np.ascontiguousarray(x[part], np.float32)
            _check_samples(batch, part.start, len(x))
            values = dict(zip(made, session.run(made, {graph_input: batch}), strict=True))
            yield values | ({graph_input: batch} if graph_input in wanted else {})


def ranges_of(observed: Observed, method: Method, *, percentile: float) -> Any:
    """Return the range that a method gives each tensor (an ONNX Runtime ``TensorsData``).

    Args:
        observed: with histograms if the method is one of ``FROM_HISTOGRAMS``.
        method: as in ``calibrate``.
        percentile: as in ``calibrate``.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData

    ends = observed.extremes
    found: Mapping[str, Range]
    match method:
        case "minmax":
            found = {name: _widest(seen) for name, seen in ends.items()}
        case "moving_average":
            found = {name: tuple(seen.mean(axis=0)) for name, seen in ends.items()}
        case "mse":
            found = {
                name: least_error(histogram, _widest(ends[name]))
                for name, histogram in observed.histograms.items()
            }
        case "entropy" | "percentile":
            found = _collected(observed, method, percentile)
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
    return TensorsData(CalibrationMethod.MinMax, data)


def _widest(seen: npt.NDArray[np.float64]) -> Range:
    return float(seen[:, 0].min()), float(seen[:, 1].max())


def _collected(
    observed: Observed, method: Literal["entropy", "percentile"], percentile: float
) -> dict[str, Range]:
    """Let ONNX Runtime find ranges in our histograms; its own grow without bound."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    together = _BINS_PER_BIN_OF_ENTROPY if method == "entropy" else 1
    collector = HistogramCollector(
        method, False, _BINS // together, _QUANTIZED_BINS, percentile, "same"
    )
    for name, histogram in observed.histograms.items():
        low, high = (np.float32(end) for end in _widest(observed.extremes[name]))
        edges = histogram.edges[::together].astype(np.float32)
        counts = histogram.counts.reshape(-1, together).sum(axis=1)
        collector.histogram_dict[name] = (counts, edges, low, high, edges[-1])
    found = collector.compute_collection_result()
    return {name: (float(ends[0]), float(ends[1])) for name, ends in found.items()}


def least_error(histogram: Histogram, widest: Range) -> Range:
    """Return the range with the smallest ``quantization_error``; of equal ones, the widest.

    Args:
        histogram: of the tensor.
        widest: smallest and largest value. Either end is tried at 25 shares of it down to a 64th.
    """
    low, high = min(widest[0], 0.0), max(widest[1], 0.0)  # zero is always on the grid
    lows = low * _SHRUNK_TO if low else np.zeros(1)
    highs = high * _SHRUNK_TO if high else np.zeros(1)
    return min(
        ((float(a), float(b)) for a in lows for b in highs),
        key=lambda ends: quantization_error(histogram, *ends),
    )


def quantization_error(histogram: Histogram, low: float, high: float) -> float:
    """Return the mean squared error of a tensor in 256 steps from ``low`` to ``high``.

    What is to be least in Nagel et al. (2021), "A white paper on neural network quantization",
    section 3.1. A value in range is off by a twelfth of a squared step, as by Bennett (1948),
    "Spectra of quantized signals"; one out of range by its distance from it; zero by nothing.

    >>> twelve = Histogram(counts=np.array([0, 12]), edges=np.array([-255.0, 0, 255]), zeros=0)
    >>> quantization_error(twelve, 0.0, 255.0)
    0.08333333333333333
    """
    centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    off = centres - np.clip(centres, low, high)
    step = (high - low) / _STEPS
    total = int(histogram.counts.sum())
    inside = int(histogram.counts[off == 0].sum())
    clipped = float((histogram.counts * off**2).sum())
    return (max(0, inside - histogram.zeros) * step**2 / 12 + clipped) / max(1, total)


def _float_input(graph: Any) -> Any:
    """Return the one input of a graph that calibration samples can be given to."""
    import onnx

    stored = {tensor.name for tensor in graph.initializer}  # old files list weights as inputs too
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1:
        raise UserError(f"calibration: the model must have one input, got {len(inputs)}")
    (graph_input,) = inputs
    tensor = graph_input.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise UserError(
            f"calibration: the model's input {graph_input.name!r} must be float32, got {kind}; "
            f"use weight-only or dynamic quantization, which need no calibration"
        )
    sizes = [axis.dim_value for axis in tensor.shape.dim]
    if not sizes or sizes[0] > 1 or not all(sizes[1:]):
        raise UserError(
            f"calibration: the model's input {graph_input.name!r} must have a batch axis in front "
            f"that is free or 1, and no other free axis, got {sizes} (0 is free); export it so"
        )
    return graph_input


def _check_shape(x: Samples, graph_input: Any) -> None:
    if len(x) == 0:
        raise UserError("calibration: needs at least one sample, got none")
    axes = graph_input.type.tensor_type.shape.dim
    shape = tuple(axis.dim_value for axis in axes[1:])
    if tuple(x.shape[1:]) != shape:
        raise UserError(
            f"calibration: samples must have the shape {shape} of the model's input "
            f"{graph_input.name!r}, got {tuple(x.shape[1:])}"
        )


def _check_samples(batch: Array, start: int, samples: int) -> None:
    finite = np.isfinite(batch).reshape(len(batch), -1).all(axis=1)
    if not finite.all():
        raise UserError(
            f"calibration: samples must be finite, got NaN or infinity in sample "
            f"{start + int(np.argmin(finite))} of {samples}; remove it"
        )


def _check_finite(extremes: Mapping[str, npt.NDArray[np.float64]], graph: Any) -> None:
    """Refuse values that are not finite by the first tensor of the graph that has them."""
    broken = {name for name, ends in extremes.items() if not np.isfinite(ends).all()}
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name in broken:
                raise UserError(
                    f"calibration: tensor {name!r} takes values that are NaN or infinite; "
                    "the weights before it are broken, train them again"
                )
