"""What the bytes of a model file say about its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.graph import array_of, weighted_nodes
from deploy.record import LayerFacts


def layer_facts(model: Any, notes: Mapping[str, str]) -> tuple[LayerFacts, ...]:
    """Describe every node of a ``ModelProto`` that multiplies with stored weights, in graph order.

    ``parameters``, ``zeros`` and ``bits`` are those of the weights as stored; the bias is not
    counted, because no technique here removes biases and ``sparsity`` should read as it was asked
    for. A stored integer that equals its zero point is a zero. Weights that two nodes share are
    described once, under the first.

    Args:
        model: float, float16 or quantized, in QDQ or operator form.
        notes: node name → why a technique left that layer alone; other names are ignored.
    """
    facts: dict[str, LayerFacts] = {}
    for found in weighted_nodes(model.graph):
        stored = array_of(found.weight)
        facts.setdefault(
            found.weight.name,
            LayerFacts(
                name=found.node.name,
                kind=found.node.op_type,
                parameters=int(stored.size),
                zeros=int(np.count_nonzero(stored == found.zero_point)),
                bits=_bits(found.weight),
                note=notes.get(found.node.name),
                distinct=len(np.unique(stored)),
            ),
        )
    return tuple(facts.values())


def _bits(tensor: Any) -> int:
    """Return the width of one stored value; ONNX packs 4-bit values two to a byte."""
    import onnx

    if onnx.TensorProto.DataType.Name(tensor.data_type) in {"INT4", "UINT4"}:
        return 4
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize) * 8
