"""Questions about an ONNX graph that more than one room asks, and what they take from it, on the host.

They need ``onnx``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
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
        zero_point: the stored value that means 0.0, of a shape that broadcasts to the weights'.
    """

    node: Any
    weight: Any
    zero_point: Array


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


def shapes_of(model: Any) -> dict[str, tuple[int | None, ...]]:
    """Return the inferred shape of every tensor whose rank is known; None is a free axis."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else None
            for axis in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def read_inside(graph: Any) -> set[str]:
    """Return the names that are read in the graphs of nodes, such as a branch or the body of a loop."""
    inside = [
        part
        for node in graph.node
        for attribute in node.attribute
        for part in (attribute.g, *attribute.graphs)
    ]
    read = {name for part in inside for node in part.node for name in node.input}
    read.update(value.name for part in inside for value in part.output)
    return read.union(*map(read_inside, inside))


def without_dead_parts(model: Any) -> Any:
    """Drop nodes, initialisers and operator sets that no output needs.

    What is left of the initialisers is put in the order of their first use.
    """
    twin = type(model)()
    twin.CopyFrom(model)
    model, graph = twin, twin.graph
    drop_dead(graph)
    stored = constants(graph)
    used = dict.fromkeys(name for node in graph.node for name in node.input if name in stored)
    # An input whose value is stored may be left out by who runs the model.
    used |= dict.fromkeys(value.name for value in graph.input if value.name in stored)
    replace_field(graph.initializer, [stored[name] for name in used])
    domains = {node.domain for node in graph.node} | {""}
    replace_field(
        model.opset_import, [entry for entry in model.opset_import if entry.domain in domains]
    )
    return model


def drop_dead(graph: Any) -> None:
    """Remove the nodes of a ``GraphProto`` that no output of it needs."""
    needed = {value.name for value in graph.output}
    live = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name)
            live.append(node)
    if len(live) < len(graph.node):
        replace_field(graph.node, live[::-1])


def replace_field(field: Any, items: Sequence[Any]) -> None:
    """Set a repeated protobuf field."""
    copies = [type(item).FromString(item.SerializeToString(deterministic=True)) for item in items]
    del field[:]
    field.extend(copies)


def weighted_nodes(graph: Any) -> list[Weighted]:
    """Return the nodes of a ``GraphProto`` that multiply with stored weights, in graph order.

    The weights are found behind ``DequantizeLinear``, ``Cast``, ``Identity`` and ``Mul`` with a
    constant scale too. A product of two activations has no weights and is left out.
    """
    stored, made_by = constants(graph), producers(graph)
    found = []
    for node in graph.node:
        if node.op_type not in _WEIGHT_INPUT:
            continue
        index, zero_index = _WEIGHT_INPUT[node.op_type]
        zero_name, axis = "", 1
        if zero_index is not None and len(node.input) > zero_index:
            zero_name = node.input[zero_index]
        name = node.input[index]
        while name not in stored and (maker := made_by.get(name)) is not None:
            if maker.op_type == "DequantizeLinear":
                axis = attributes(maker).get("axis", 1)
                zero_name = maker.input[2] if len(maker.input) > 2 else ""
            elif maker.op_type not in {"Cast", "Identity", "Mul"}:
                break
            name = maker.input[0]
        if name in stored:
            zero = array_of(stored[zero_name]) if zero_name in stored else None
            found.append(
                Weighted(
                    node=node,
                    weight=stored[name],
                    zero_point=_along(zero, axis, tuple(stored[name].dims)),
                )
            )
    return found


def outputs_axis(found: Weighted) -> int:
    """Return the axis of a weight that counts the layer's outputs."""
    kind = found.node.op_type
    if kind == "ConvTranspose":
        return 1
    if "Conv" in kind:
        return 0
    if "Gemm" in kind:
        return 0 if attributes(found.node).get("transB", 0) else 1
    return len(found.weight.dims) - 1


def depthwise(found: Weighted) -> bool:
    """Say whether a weighted node convolves each channel by itself, with two channels or more."""
    group = int(attributes(found.node).get("group", 1))
    return found.node.op_type == "Conv" and group > 1 and found.weight.dims[1] == 1


def macs_by_node(model: Any) -> dict[str, int | None]:
    """Return the multiply-accumulates that each weighted node spends on one sample, by its name.

    None where the shapes of the file do not tell. Free axes count as 1, as the batch axis is.

    Args:
        model: a ``ModelProto``; left alone.
    """
    import onnx

    twin = type(model)()
    twin.CopyFrom(model)
    for value in (*twin.graph.input, *twin.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if not axis.dim_value:
                axis.dim_value = 1  # takes the place of a name
    del twin.graph.value_info[:]
    twin = onnx.shape_inference.infer_shapes(twin)
    shapes = {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*twin.graph.input, *twin.graph.value_info, *twin.graph.output)
    }
    return {
        found.node.name: _macs(found, shapes.get(found.node.input[0]), shapes.get(out))
        for found in weighted_nodes(model.graph)
        for out in found.node.output[:1]
    }


def _macs(
    found: Weighted, given: tuple[int, ...] | None, made: tuple[int, ...] | None
) -> int | None:
    """Return products of elements of one side by weights that each of them meets."""
    weight = tuple(found.weight.dims)
    if found.node.op_type == "ConvTranspose":
        side, each = given, math.prod(weight[1:])
    elif "Conv" in found.node.op_type:
        side, each = made, math.prod(weight[1:])
    else:
        # However the matrix lies, one axis counts the outputs; the others are summed over.
        side = made
        each = math.prod(weight) // made[-1] if made and made[-1] else 0
    return math.prod(side) * each if side and all(side) else None


def _along(zero: Array | None, axis: int, shape: tuple[int, ...]) -> Array:
    """Give zero points, one or one per channel, a shape that broadcasts to that of the weights."""
    if zero is None or zero.size == 1:
        return np.zeros((), np.int64) if zero is None else zero.reshape(())
    return zero.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])
