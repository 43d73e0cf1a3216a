"""Int8 weights, and int8 activations the ranges of which are measured anew on each run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from compress.quantize.finished import finished
from compress.quantize.silence import silence
from compress.quantize.unfit import refuse_unfit
from deploy.errors import UserError, needs_extra
from deploy.graph import Weighted, weighted_nodes
from deploy.machine import SCHEMES, Target, this_target
from deploy.record import Record


class QuantizeDynamic(Record, frozen=True, tag_field="kind", tag="quantize_dynamic"):
    """Int8 weights; the range of every activation is measured anew on each run.

    Needs no calibration data. Pays for dense layers. Convolutions stay float unless forced: with
    dynamic ranges they were 2-6 times slower than in float.
    """

    convolutions: bool = False
    """Quantize convolutions too, per tensor."""
    per_channel: bool = True
    """One scale per output unit of a dense layer instead of one for all."""
    target: Target | None = None
    """The machine to quantize for, as in ``quantize_static``."""


def why_not_dynamic(model: Any, step: QuantizeDynamic) -> dict[str, str]:
    """Say of every node with weights that ``step`` would leave in float why it does.

    Args:
        model: the float ``ModelProto`` that the step would get.
        step: the step.
    """
    return {
        found.node.name: _why_not(found, step)
        for found in weighted_nodes(model.graph)
        if found.node.op_type not in _operators(step)
    }


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
    operators = _operators(step)
    names = {found.node.name for found in weighted_nodes(model.graph)}
    reasons = why_not_dynamic(model, step)
    if names == set(reasons):
        raise UserError(
            f"model: dynamic quantization needs {' or '.join(operators)} with stored weights, "
            f"got none; use quantize_static"
        )
    quantized = _ort_dynamic(
        model,
        ["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=step.per_channel,
        reduce_range=SCHEMES[step.target or this_target()].reduce_range,
    )
    if step.convolutions:
        # ConvInteger multiplies weights by activations, in that order: signed times unsigned, the
        # slow pair. So its weights are unsigned, and then it takes one zero point alone. The kernel
        # of two unsigned factors saturates nowhere: weights have all their bits.
        quantized = _ort_dynamic(
            quantized,
            ["Conv"],
            weight_type=QuantType.QUInt8,
            per_channel=False,
            reduce_range=False,
        )
    # ONNX Runtime calls the heart of layer "dense1" "dense1_MatMul_quant"; it gets its name back.
    for node in quantized.graph.node:
        for suffix in ("_MatMul_quant", "_quant"):
            name = node.name.removesuffix(suffix)
            if node.op_type in {"MatMulInteger", "ConvInteger"} and name in names:
                node.name = name
    return finished(quantized, model)


def _ort_dynamic(model: Any, operators: list[str], **settings: Any) -> Any:
    import onnx
    from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

    # Up to 1.20, ONNX Runtime moves the weights of the model it is given into a file of its own.
    twin = type(model)()
    twin.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder, silence():
        path = Path(folder, "model.onnx")
        ort_quantize_dynamic(
            twin,
            path,
            op_types_to_quantize=operators,
            extra_options={"MatMulConstBOnly": True},
            **settings,
        )
        return onnx.load(path)


def _operators(step: QuantizeDynamic) -> tuple[str, ...]:
    return ("MatMul", "Gemm", "Conv") if step.convolutions else ("MatMul", "Gemm")


def _why_not(found: Weighted, step: QuantizeDynamic) -> str:
    if found.node.op_type == "Conv" and not step.convolutions:
        return "dynamic int8 convolutions are slower than float (convolutions = true forces them)"
    return f"ONNX Runtime has no dynamic int8 {found.node.op_type}"
