"""Questions about an ONNX graph that more than one room asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Where the weights of an operator sit among its inputs, and where their zero point does.
_WEIGHT_INPUT: dict[str, tuple[int, int | None]] = {
    "Conv": (1, None),
    "ConvTranspose": (1, None),
    "Gemm": (1, None),
    "MatMul": (1, None),
    "MatMulInteger": (1, 3),
    "ConvInteger": (1, 3),
    "QLinearMatMul": (3, 5),
    "QLinearConv": (3, 5),
    "QGemm": (3, 5),
    "DynamicQuantizeMatMul": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """A node and the weights it multiplies with.

    Attributes:
        node: the ``NodeProto``.
        weight: the stored weights, an initialiser (``TensorProto``).
        zero_point: the stored values that mean 0.0, broadcast to the shape of the weights; None
            where the weights are floats.
    """

    node: Any
    weight: Any
    zero_point: Array | None


def constants(graph: Any) -> dict[str, Any]:
    """Return the initialisers (``TensorProto``) of a ``GraphProto`` by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def producers(graph: Any) -> dict[str, Any]:
    """Return the node (``NodeProto``) that makes each tensor of a ``GraphProto``."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: Any) -> dict[str, list[Any]]:
    """Return the nodes that read each tensor, once per reading; unread tensors are missing."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            if name:
                readers.setdefault(name, []).append(node)
    return readers


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes that a ``NodeProto`` states, as Python values."""
    import onnx

    return {attr.name: onnx.helper.get_attribute_value(attr) for attr in node.attribute}


def array_of(tensor: Any) -> Array:
    """Return the values of an initialiser (``TensorProto``)."""
    import onnx

    return np.asarray(onnx.numpy_helper.to_array(tensor))


def weighted_nodes(graph: Any) -> list[Weighted]:
    """Return the nodes of a ``GraphProto`` that multiply with stored weights, in graph order.

    The weights are found behind ``DequantizeLinear``, ``Cast`` and ``Identity`` too. A product of
    two activations has no weights and is left out.
    """
    stored, made_by = constants(graph), producers(graph)
    found = []
    for node in graph.node:
        if node.op_type not in _WEIGHT_INPUT:
            continue
        index, zero_index = _WEIGHT_INPUT[node.op_type]
        zero_name = (
            node.input[zero_index]
            if zero_index is not None and len(node.input) > zero_index
            else None
        )
        name, axis, is_integer = node.input[index], 1, zero_index is not None
        while name not in stored and (maker := made_by.get(name)) is not None:
            if maker.op_type == "DequantizeLinear":
                is_integer = True
                axis = attributes(maker).get("axis", 1)
                zero_name = maker.input[2] if len(maker.input) > 2 else None
            elif maker.op_type not in {"Cast", "Identity"}:
                break
            name = maker.input[0]
        if name not in stored:
            continue
        weight = stored[name]
        zero_point = None
        if is_integer:
            zero_point = _broadcast_zero_point(stored, zero_name, axis, tuple(weight.dims))
        found.append(Weighted(node=node, weight=weight, zero_point=zero_point))
    return found


def _broadcast_zero_point(
    stored: Mapping[str, Any], name: str | None, axis: int, shape: tuple[int, ...]
) -> Array:
    zero = array_of(stored[name]) if name else np.zeros((), np.int8)
    if zero.size > 1:
        zero = zero.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
    return np.broadcast_to(zero.reshape(zero.shape or (1,) * len(shape)), shape)
