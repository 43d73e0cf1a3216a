"""The ranges that a network's tensors take on calibration data."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.streams import Samples, blocks

Calibration = Literal["minmax", "entropy", "percentile"]

_BATCH = 32


class _Once:
    """What ONNX Runtime's calibrators read from: one batch, then the end."""

    def __init__(self, inputs: dict[str, npt.NDArray[Any]]) -> None:
        self._left: list[dict[str, npt.NDArray[Any]]] = [inputs]

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return self._left.pop() if self._left else None


def calibrate(
    model: Any,
    x: Samples,
    *,
    method: Calibration,
    percentile: float,
    operators: Sequence[str],
) -> Any:
    """Return the range of every float tensor of ``operators`` (an ONNX Runtime ``TensorsData``).

    - ``minmax``: the smallest and largest value seen.
    - ``entropy``: the range with the smallest Kullback-Leibler divergence between the histogram
      and its quantized form (Migacz, "8-bit inference with TensorRT", GTC 2017).
    - ``percentile``: the range that holds ``percentile`` % of the values, the rest shared between
      both ends.

    One batch of samples and its activations are held in memory at a time; histograms are merged.
    A model that takes one sample at a time is given one at a time.

    Args:
        model: a ``ModelProto`` with one float32 input. It is left alone.
        x: model inputs ``(n, ...)``; those of another type are cast to float32.
        method: see above.
        percentile: used by ``percentile`` alone, in percent.
        operators: types of the nodes whose inputs and outputs are watched.

    Raises:
        UserError: if the model has another number or type of inputs or a batch fixed above 1, if
            there is no sample, if a sample is not finite or does not fit the model, or
            if a tensor of the model takes a value that is not finite.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    graph_input = _float_input(model.graph)
    step = 1 if graph_input.type.tensor_type.shape.dim[0].dim_value == 1 else _BATCH
    _check_samples(x, graph_input)
    kind, options = {
        "minmax": (CalibrationMethod.MinMax, {}),
        # With the default of 128 bins the search has a single candidate: the whole range.
        "entropy": (CalibrationMethod.Entropy, {"num_bins": 512, "num_quantized_bins": 128}),
        # The default is symmetric: one negative outlier would take half the steps.
        "percentile": (
            CalibrationMethod.Percentile,
            {"num_bins": 2048, "percentile": percentile, "symmetric": False},
        ),
    }[method]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            list(operators),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=kind,
            extra_options=options,
        )
        with warnings.catch_warnings():
            # NaN ranges are refused below, by the name of their tensor.
            warnings.simplefilter("ignore", RuntimeWarning)
            for start in range(0, len(x), step):
                batch = np.ascontiguousarray(x[start : start + step], np.float32)
                calibrator.collect_data(_Once({graph_input.name: batch}))
            ranges = calibrator.compute_data()
    _check_ranges(ranges, model.graph)
    return ranges


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


def _check_samples(x: Samples, graph_input: Any) -> None:
    if len(x) == 0:
        raise UserError("calibration: needs at least one sample, got none")
    axes = graph_input.type.tensor_type.shape.dim
    shape = tuple(axis.dim_value for axis in axes[1:])
    if x.shape[1:] != shape:
        raise UserError(
            f"calibration: samples must have the shape {shape} of the model's input "
            f"{graph_input.name!r}, got {x.shape[1:]}"
        )
    fit = [np.isfinite(block).reshape(len(block), -1).all(axis=1) for block in blocks(x)]
    finite = np.concatenate(fit)
    if not finite.all():
        raise UserError(
            f"calibration: samples must be finite, got NaN or infinity in sample "
            f"{int(np.argmin(finite))} of {len(x)}; remove it"
        )


def _check_ranges(ranges: Any, graph: Any) -> None:
    """Refuse values that are not finite by the first tensor of the graph that has them."""
    broken = {
        name
        for name, data in ranges.items()
        if not np.isfinite(np.asarray(data.range_value, np.float64)).all()
    }
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name in broken:
                raise UserError(
                    f"calibration: tensor {name!r} takes values that are NaN or infinite; "
                    "the weights before it are broken, train them again"
                )
