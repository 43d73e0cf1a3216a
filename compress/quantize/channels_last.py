"""Int8 files that leave ONNX Runtime no image to bring into another order of axes.

Its int8 convolutions want channels last, a file has channels first. ONNX Runtime puts a Transpose
around every such kernel and lets those cancel that meet. Some are left: behind a float convolution,
whose result it could give in either order at no cost, and behind the average over an image, where
there is nothing to reorder. What is written here meets them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from compress.quantize.finished import finished
from deploy.graph import (
    array_of,
    attributes,
    constants,
    consumers,
    producers,
    read_inside,
    shapes_of,
    without_dead_parts,
)
from deploy.kernels import INT8_OPERATORS, kernels_of, optimized
from deploy.machine import Target

CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders of the axes of an image for ``Transpose``, from the other of the two."""
Shapes = Mapping[str, tuple[int | None, ...]]
"""Shapes by the name of the tensor; None is a free axis."""
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu"})


def one_element(tensor: Any | None) -> bool:
    """Say whether a tensor is stored and of one element."""
    return tensor is not None and math.prod(tensor.dims) == 1


def target_of(model: Any) -> Target | None:
    """Return ``arm64`` for a model whose activations are signed, else None: any of the others."""
    import onnx

    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    signed = any(
        node.op_type == "QuantizeLinear"
        and kinds.get(next(iter(node.input[2:]), "")) == onnx.TensorProto.INT8
        for node in model.graph.node
    )
    return "arm64" if signed else None


def spare_transposes(model: Any) -> Any:
    """Return a ``ModelProto`` that gives the same numbers, with fewer transposes when it runs.

    What ONNX Runtime makes of a hint is looked at in the optimised graph: a hint that spares none, or
    takes a layer out of int8, is not written.

    Args:
        model: of QuantizeLinear and DequantizeLinear, as ``quantize_static`` gives; left alone.
    """
    if read_inside(model.graph):
        return model  # an If or a Loop may read any tensor
    target = target_of(model)
    fewest, kernels = _running(model, target)
    for hint in (_average_with_channels_last, _borders_with_channels_last):
        twin = type(model)()
        twin.CopyFrom(model)
        if hint(twin.graph, shapes_of(model)):
            made = finished(without_dead_parts(twin), model)
            transposes, found = _running(made, target)
            if transposes < fewest and found == kernels:
                model, fewest = made, transposes
    return model


def transposes_of(model: Any) -> int:
    """Return how often ONNX Runtime reorders the axes of something when it runs a ``ModelProto``."""
    return _running(model, target_of(model))[0]


def _running(model: Any, target: Target | None) -> tuple[int, set[str]]:
    """Return how often ONNX Runtime reorders the axes of something, and the layers that run in int8."""
    running = optimized(model, target=target)
    kernels = kernels_of(model, running)
    return (
        sum(node.op_type == "Transpose" for node in running.graph.node),
        {name for name, node in kernels.items() if node.op_type in INT8_OPERATORS},
    )


def _average_with_channels_last(graph: Any, shapes: Shapes) -> bool:
    """Let what reads the int8 average over an image have channels last: ``(n, 1, 1, channels)``."""
    import onnx

    made_by, readers, stored = producers(graph), consumers(graph), constants(graph)
    outputs = {value.name for value in graph.output}
    changed = False
    for pool in [node for node in graph.node if node.op_type == "GlobalAveragePool"]:
        if len(shapes.get(pool.input[0], ())) != 4:
            continue
        before, after = made_by.get(pool.input[0]), readers.get(pool.output[0], [])
        if [getattr(before, "op_type", None), *(node.op_type for node in after)] != [
            "DequantizeLinear",
            "QuantizeLinear",
        ]:
            continue
        (quantize,) = after
        result = quantize.output[0]
        dequantized = readers.get(result, [])
        given = [one.output[0] for one in dequantized]
        reading = [node for name in given for node in readers.get(name, [])]
        if (
            not reading
            or any(one.op_type != "DequantizeLinear" for one in dequantized)
            or not one_element(stored.get(quantize.input[1]))
            or outputs.intersection((result, *given))
            or not all(_drops_rows_and_columns(node, stored) for node in reading)
        ):
            continue
        last = f"{result}/channels_last"
        _insert_behind(
            graph,
            quantize,
            onnx.helper.make_node("Transpose", [result], [last], name=last, perm=CHANNELS_LAST),
        )
        for node in dequantized:
            node.input[0] = last
        between = onnx.numpy_helper.from_array(np.array([1, 2]), f"{last}/axes")
        graph.initializer.append(between)
        for node in reading:
            if node.op_type == "Squeeze":
                node.input[1] = between.name
        changed = True
    return changed


def _drops_rows_and_columns(node: Any, stored: Mapping[str, Any]) -> bool:
    """Say whether a node makes ``(n, channels)`` of ``(n, channels, 1, 1)``, wherever the ones are."""
    if node.op_type == "Flatten":
        return bool(attributes(node).get("axis", 1) == 1)
    if len(node.input) < 2 or node.input[1] not in stored:
        return False
    values = array_of(stored[node.input[1]])
    if node.op_type == "Squeeze":
        return sorted(values % 4) == [2, 3]
    # 0 would stand for the size of an axis that is another one then.
    return node.op_type == "Reshape" and len(values) == 2 and values[1] != 0


def _borders_with_channels_last(graph: Any, shapes: Shapes) -> bool:
    """Quantize what float convolutions give to int8 ones with channels last, and rows in one.

    A float convolution's result gets its order when it leaves ONNX Runtime's blocked layout, so that
    this Transpose is none. ``Flatten`` keeps the optimiser from moving it on: behind the
    QuantizeLinear it would be one.
    """
    import onnx

    made_by, readers, stored = producers(graph), consumers(graph), constants(graph)

    def float_convolution(tensor: str) -> bool:
        node = made_by.get(tensor)
        while node is not None and node.op_type in _ACTIVATIONS:
            node = made_by.get(node.input[0])
        return node is not None and node.op_type == "Conv" and not int8_convolution(node)

    def int8_convolution(node: Any) -> bool:
        kernel = made_by.get(node.input[1]) if node.op_type == "Conv" else None
        return kernel is not None and kernel.op_type == "DequantizeLinear"

    changed = False
    for quantize in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        tensor, result = quantize.input[0], quantize.output[0]
        shape = shapes.get(tensor, ())
        if len(shape) != 4 or not all(shape[1:]) or not float_convolution(tensor):
            continue
        if not one_element(stored.get(quantize.input[1])):
            continue  # a grid for each channel would have another axis
        reading = [
            node
            for one in readers.get(result, [])
            for node in readers.get(one.output[0], [])
            if one.op_type == "DequantizeLinear"
        ]
        if not any(int8_convolution(node) for node in reading):
            continue
        _, channels, rows, columns = shape
        name = f"{result}/channels_last"
        image = onnx.numpy_helper.from_array(
            np.array([-1, rows, columns, channels]), f"{name}/shape"
        )
        graph.initializer.append(image)
        make = onnx.helper.make_node
        before = [
            make("Transpose", [tensor], [f"{name}:0"], name=name, perm=CHANNELS_LAST),
            make("Flatten", [f"{name}:0"], [f"{name}/pixels"], name=f"{name}/flatten", axis=3),
        ]
        at = list(graph.node).index(quantize)
        for node in reversed(before):
            graph.node.insert(at, node)
        quantize.input[0], quantize.output[0] = f"{name}/pixels", f"{name}/quantized"
        _insert_behind(
            graph,
            quantize,
            make("Reshape", [f"{name}/quantized", image.name], [f"{name}/image"], name=f"{name}/reshape"),
            make("Transpose", [f"{name}/image"], [result], name=f"{name}/first", perm=CHANNELS_FIRST),
        )  # fmt: skip
        changed = True
    return changed


def _insert_behind(graph: Any, node: Any, *new: Any) -> None:
    """Put nodes behind another one of a graph."""
    at = next(i for i, one in enumerate(graph.node) if one.output == node.output)
    for offset, one in enumerate(new, start=1):
        graph.node.insert(at + offset, one)
