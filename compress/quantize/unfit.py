"""Why a model cannot be quantized at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.errors import UserError
from deploy.graph import array_of, weighted_nodes

_QUANTIZED_OPERATORS = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger",
        "ConvInteger", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits",
    }
)  # fmt: skip


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
