"""The outputs of a network, which static quantization leaves in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.graph import consumers, producers


def into_unit(graph: Any) -> list[str]:
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


def unquantize_outputs(graph: Any, in_unit: Sequence[str]) -> None:
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
