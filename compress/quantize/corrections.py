"""What static quantization loses, won back on calibration samples without training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compress.quantize.calibrate import batches
from compress.quantize.equalise import equalised, pairs_of, put_bias
from compress.quantize.layer_inputs import Inputs, inputs_of
from compress.quantize.outputs import outputs_of
from compress.quantize.rounding import learned, nearest, widest_scale
from deploy.errors import ParityError, UserError
from deploy.graph import Weighted, array_of, attributes, outputs_axis, weighted_nodes

Array = npt.NDArray[Any]

Correction = Literal["equalise", "rounding", "bias"]
"""
- ``equalise``: ranges are moved between neighbouring layers until they are alike.
- ``rounding``: the step of each weight is chosen by what the layer gives, not by what is nearest.
- ``bias``: each layer's mean output is that of the float model again.
"""

_TOLERANCE = 1e-5
"""Float32 rounding of a model whose ranges were moved; of outputs above 1, a share of the largest."""


def check_corrections(correct: Sequence[Correction]) -> None:
    """Raise a ValueError for a correction that is asked for twice."""
    if len(set(correct)) < len(correct):
        raise ValueError(f"correct names each correction once, got {', '.join(correct)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A float model whose weights lie on the grid that they will be stored on.

    Attributes:
        model: a ``ModelProto``.
        scales: the steps by the name of the weight: one for each output channel, or one. Weights
            that are missing are for the quantizer to round.
    """

    model: Any
    scales: Mapping[str, Array]


def corrected(
    model: Any,
    layers: Collection[str],
    x: Array,
    *,
    bits: int,
    levels: int,
    per_channel: bool,
    corrections: Sequence[Correction],
) -> Corrected:
    """Return what rounding the weights of some layers makes of a model, and what repairs it.

    Layer by layer from the front, so that each makes good what those before it have lost. With
    ``rounding``, or fewer bits than 8, or ``bias``, the weights are put on their grid here; else
    that is left to the quantizer.

    Args:
        model: a float ``ModelProto`` with one input; its layers have names. It is left alone.
        layers: names of the layers to round.
        x: calibration samples, as the model takes them; ``bias`` and ``rounding`` look at 512.
        bits: of a stored weight.
        levels: the largest integer that may be stored; fewer bits may allow less.
        per_channel: one scale for each output of a layer, or one for all.
        corrections: what to do.

    Raises:
        UserError: if no two layers can be equalised, or as ``calibrate`` does.
        ParityError: if equalisation changed what the model computes.
    """
    if "equalise" in corrections:
        model = _equalised(model, x)
    if bits == 8 and not {"rounding", "bias"} & set(corrections):
        return Corrected(model=model, scales={})
    levels = min(levels, 2 ** (bits - 1) - 1)
    twin = type(model)()
    twin.CopyFrom(model)
    scales: dict[str, Array] = {}
    stored = {tensor.name: tensor for tensor in twin.graph.initializer}
    nodes = {node.name: node for node in twin.graph.node}
    found_layers = weighted_nodes(model.graph)
    for found in found_layers:
        if found.node.name not in layers or found.weight.name in scales:
            continue
        weights = matrix_of(found)
        inputs = None
        if {"rounding", "bias"} & set(corrections) and _understood(found, found_layers):
            inputs = inputs_of(model, twin, found, x)
        if inputs is not None and "rounding" in corrections:
            moments = inputs.centred() if _takes_bias(found, corrections) else inputs.moments
            steps, scale = learned(weights, moments, levels, per_channel=per_channel)
        else:
            scale = widest_scale(weights, levels, per_channel=per_channel)
            steps = nearest(weights, scale, levels)
        scale = scale.astype(np.float32)
        rounded = steps * scale
        scales[found.weight.name] = scale.reshape(-1)
        _put_matrix(stored[found.weight.name], found, rounded)
        if inputs is not None and _takes_bias(found, corrections):
            own = nodes[found.node.name]
            bias = array_of(stored[own.input[2]]) if len(own.input) > 2 else np.float32(0)
            shift = bias_shift(weights, rounded, inputs)
            put_bias(twin.graph, own, (bias + shift).astype(np.float32))
    return Corrected(model=twin, scales=scales)


def bias_shift(weights: Array, rounded: Array, inputs: Inputs) -> Array:
    """Return what a layer's bias has to gain for the mean output of the float model, ``(outputs,)``.

    ``E[W x] − E[W̃ x̂]``: Nagel et al. (2019), "Data-free quantization through weight equalization
    and bias correction", section 4.2, with the means of samples (appendix D).

    Args:
        weights: ``(groups, outputs, inputs)``, of the float model.
        rounded: the same on their grid.
        inputs: what the layer is given in either model.
    """
    before = np.einsum("gok,gk->go", weights, inputs.float_mean)
    after = np.einsum("gok,gk->go", rounded, inputs.mean)
    return np.asarray((before - after).reshape(-1))


def _equalised(model: Any, x: Array) -> Any:
    """Return ``equalised(model)``, proven to compute the same."""
    pairs, reasons = pairs_of(model.graph)
    if not pairs:
        told = "; ".join(f"{name!r}: {why}" for name, why in list(reasons.items())[:3])
        raise UserError(
            f'correct: "equalise" finds no two layers to equalise ({told}); leave it out'
        )
    made = equalised(model)
    part = batches(model, x)[:8]
    before, after = (outputs_of(one, x, part) for one in (model, made))
    apart = float(np.abs(before - after).max() / max(1.0, np.abs(before).max()))
    if not apart <= _TOLERANCE:
        raise ParityError(
            f"equalised layers give outputs {apart:.3g} apart, more than {_TOLERANCE:g}"
        )
    return made


def _understood(found: Weighted, layers: Sequence[Weighted]) -> bool:
    """Say whether a layer's product is known well enough to look at what it is given."""
    settings = attributes(found.node)
    return (
        found.node.op_type in {"Conv", "Gemm", "MatMul"}
        and not settings.get("transA")
        and settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0
        and (found.node.op_type == "Conv" or len(found.weight.dims) == 2)
        and sum(other.weight.name == found.weight.name for other in layers) == 1
    )


def _takes_bias(found: Weighted, corrections: Sequence[Correction]) -> bool:
    return "bias" in corrections and found.node.op_type != "MatMul"


def matrix_of(found: Weighted) -> Array:
    """Return a layer's weights as ``(groups, outputs, inputs)``, float64."""
    rows = np.moveaxis(array_of(found.weight), outputs_axis(found), 0).astype(np.float64)
    group = int(attributes(found.node).get("group", 1)) if found.node.op_type == "Conv" else 1
    return rows.reshape(group, len(rows) // group, -1)


def _put_matrix(tensor: Any, found: Weighted, matrix: Array) -> None:
    """Store what ``matrix_of`` gave in the place of a layer's weights."""
    import onnx

    shape, axis = list(found.weight.dims), outputs_axis(found)
    moved = matrix.reshape(shape[axis], *(size for a, size in enumerate(shape) if a != axis))
    values = np.ascontiguousarray(np.moveaxis(moved, 0, axis), np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
