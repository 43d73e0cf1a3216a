"""Ranges moved from one layer to the next, so that one grid fits all their channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.graph import (
    Weighted,
    array_of,
    attributes,
    consumers,
    outputs_axis,
    weighted_nodes,
)

Array = npt.NDArray[Any]

_PASS_ON = frozenset(
    {
        "Relu", "LeakyRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool",
        "GlobalMaxPool", "Flatten", "Reshape",
    }
)  # fmt: skip
"""Operators f with ``f(s x) = s f(x)`` for each channel's ``s > 0``, which keep channels in order."""
PASSES = 40
"""How often all pairs are gone through at most."""
SETTLED = 1e-3
"""Relative change of a factor below which it counts as found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two layers, the second of which reads nothing but what the first gives."""

    first: Weighted
    second: Weighted


def pairs_of(graph: Any) -> tuple[list[Pair], dict[str, str]]:
    """Return the layers of a ``GraphProto`` that can be equalised, and why others cannot.

    The reasons are by the name of the layer that would have been the first of a pair.
    """
    layers = {found.node.name: found for found in weighted_nodes(graph)}
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    readers = consumers(graph)
    outputs = {value.name for value in graph.output}
    pairs, reasons = [], {}
    for name, first in layers.items():
        second, why_not = _next_layer(first, layers, readers, outputs)
        if second is None:
            reasons[name] = why_not
        elif uses[first.weight.name] > 1 or uses[second.weight.name] > 1:
            reasons[name] = "its weights, or those of the layer behind it, are shared"
        elif (unclear := _why_not_scaled(first, second, graph)) is not None:
            reasons[name] = unclear
        else:
            pairs.append(Pair(first=first, second=second))
    return pairs, reasons


def _next_layer(
    first: Weighted, layers: dict[str, Weighted], readers: dict[str, list[Any]], outputs: set[str]
) -> tuple[Weighted | None, str]:
    tensor = first.node.output[0]
    while True:
        reading = readers.get(tensor, [])
        if tensor in outputs or not reading:
            return None, "the model's output is all that reads it"
        if len(reading) > 1:
            return None, f"{len(reading)} operators read what it gives"
        (node,) = reading
        if node.name in layers and node.input[0] == tensor:
            return layers[node.name], ""
        if node.op_type not in _PASS_ON:
            return None, f"a {node.op_type} behind it does not pass a factor on"
        tensor = node.output[0]


def _why_not_scaled(first: Weighted, second: Weighted, graph: Any) -> str | None:
    stored = {tensor.name for tensor in graph.initializer}
    for found in (first, second):
        node = found.node
        settings = attributes(node)
        plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or settings.get("transA") or not plain:
            return f"{node.name!r} is a {node.op_type} whose channels cannot be told"
        if node.op_type == "MatMul" and len(found.weight.dims) != 2:
            return f"{node.name!r} multiplies with more than one matrix"
        if len(node.input) > 2 and node.input[2] and node.input[2] not in stored:
            return f"the bias of {node.name!r} is computed"
    if _inputs(second) % output_count(first):
        return f"{second.node.name!r} does not read its channels one by one"
    return None


def output_count(found: Weighted) -> int:
    """Return how many outputs a layer has."""
    return int(found.weight.dims[outputs_axis(found)])


def _inputs(found: Weighted) -> int:
    group = int(attributes(found.node).get("group", 1))
    return int(found.weight.dims[1 - outputs_axis(found)]) * group


def equalised(model: Any) -> Any:
    """Return a copy of a float model whose layers share their ranges channel by channel.

    Nagel et al. (2019), "Data-free quantization through weight equalization and bias correction",
    section 4.1: channel i of a layer is divided by ``s_i = sqrt(r1_i / r2_i)``, and what reads it in
    the next layer is multiplied with it, where r1 and r2 are the largest weights on either side
    (equation 11); all pairs in turn until nothing moves. What the model computes stays the same.

    Args:
        model: a float ``ModelProto``. It is left alone.
    """
    import onnx

    twin = type(model)()
    twin.CopyFrom(model)
    pairs, _ = pairs_of(model.graph)
    weights = {found.node.name: array_of(found.weight).astype(np.float64) for found in weighted_nodes(model.graph)}  # fmt: skip
    total = {pair.first.node.name: np.ones(output_count(pair.first)) for pair in pairs}
    for _ in range(PASSES):
        moved = 0.0
        for pair in pairs:
            first, second = pair.first.node.name, pair.second.node.name
            factor = _factor(weights[first], weights[second], pair)
            weights[first] = weights[first] / _on_outputs(factor, pair.first)
            weights[second] = weights[second] * _on_inputs(factor, pair.second)
            total[first] *= factor
            moved = max(moved, float(np.abs(factor - 1).max()))
        if moved < SETTLED:
            break
    stored = {tensor.name: tensor for tensor in twin.graph.initializer}
    for found in weighted_nodes(twin.graph):
        name = found.node.name
        made = onnx.numpy_helper.from_array(weights[name].astype(np.float32), found.weight.name)
        stored[found.weight.name].CopyFrom(made)
        if name in total and len(found.node.input) > 2 and found.node.input[2]:
            bias = array_of(stored[found.node.input[2]]).astype(np.float64)
            put_bias(twin.graph, found.node, (bias / total[name]).astype(np.float32))
    return twin


def put_bias(graph: Any, node: Any, values: Array) -> None:
    """Give a Conv or Gemm a bias of its own: equal ones are stored once and read by many."""
    import onnx

    name, before = f"{node.name}/own_bias", node.input[2] if len(node.input) > 2 else ""
    own = next((tensor for tensor in graph.initializer if tensor.name == name), None)
    (own or graph.initializer.add()).CopyFrom(onnx.numpy_helper.from_array(values, name))
    del node.input[2:]
    node.input.append(name)
    if not any(before in other.input for other in graph.node):
        for unread in [tensor for tensor in graph.initializer if tensor.name == before]:
            graph.initializer.remove(unread)


def _factor(first: Array, second: Array, pair: Pair) -> Array:
    """Return ``s``, ``(outputs of the first,)``; 1 where either side has nothing but zeros."""
    axis = outputs_axis(pair.first)
    before = np.abs(first).max(axis=tuple(a for a in range(first.ndim) if a != axis))
    after = _largest_by_input(second, pair.second).reshape(len(before), -1).max(axis=1)
    return factor_between(before, after)


def factor_between(given: Array, read: Array) -> Array:
    """Return ``s = sqrt(r1 / r2)`` of each channel, equation 11; 1 where either side has nothing but zeros.

    Args:
        given: r1, ``(channels,)``: the largest weight that makes a channel.
        read: r2, likewise: the largest that reads it.
    """
    live = (given > 0) & (read > 0)
    return np.sqrt(np.divide(given, read, out=np.ones_like(given), where=live))


def _largest_by_input(weights: Array, found: Weighted) -> Array:
    """Return the largest weight that each input of a layer meets."""
    axis = outputs_axis(found)
    if found.node.op_type != "Conv":
        return np.asarray(np.abs(weights).max(axis=axis))
    group = int(attributes(found.node).get("group", 1))
    split = np.abs(weights).reshape(group, weights.shape[0] // group, weights.shape[1], -1)
    return np.asarray(split.max(axis=(1, 3)).reshape(-1))


def _on_outputs(factor: Array, found: Weighted) -> Array:
    axis = outputs_axis(found)
    return factor.reshape([-1 if a == axis else 1 for a in range(len(found.weight.dims))])


def _on_inputs(factor: Array, found: Weighted) -> Array:
    """Return factors in a shape that broadcasts to the weights of the layer that reads them."""
    repeated = np.repeat(factor, _inputs(found) // len(factor))
    axis = outputs_axis(found)
    if found.node.op_type != "Conv":
        return repeated[None, :] if axis == 0 else repeated[:, None]
    outputs, columns, *kernel = found.weight.dims
    group = int(attributes(found.node).get("group", 1))
    by_group = np.repeat(repeated.reshape(group, columns), outputs // group, axis=0)
    return by_group.reshape(outputs, columns, *(1 for _ in kernel))
