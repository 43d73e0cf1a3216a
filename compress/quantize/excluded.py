"""Layers that are left in float because somebody asked for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import onnxruntime as ort

from deploy.errors import UserError
from deploy.graph import consumers, depthwise, producers, weighted_nodes
from deploy.kernels import file_name, int8_layers, optimized
from deploy.machine import Target
from deploy.record import SessionOptions

Exclusion = Literal["session_option", "structural"]
"""What keeps ONNX Runtime from quantizing excluded layers when it opens a file: an option of the
session, or the graph itself."""

_DEPTHWISE = "DepthwiseConv"


def excluded(model: Any, patterns: Sequence[str], types: Sequence[str]) -> dict[str, str]:
    """Return the nodes that are excluded, with the reason; sharing weights means sharing fate.

    Args:
        model: the float ``ModelProto``.
        patterns: names of nodes, with ``*`` and ``?``.
        types: operators, and ``DepthwiseConv``.

    Raises:
        UserError: if a pattern matches no node, or the model has none of a type.
    """
    reasons: dict[str, str] = {}
    nodes = weighted_nodes(model.graph)
    for pattern in patterns:
        matched = [node.name for node in model.graph.node if fnmatchcase(node.name, pattern)]
        if not matched:
            raise UserError(
                f"exclude: {pattern!r} matches no node; the layers with weights are "
                f"{', '.join(found.node.name for found in nodes)}"
            )
        for name in matched:
            reasons.setdefault(name, f"excluded by {pattern!r}")
    by_type: dict[str, list[str]] = {}
    for node in model.graph.node:
        by_type.setdefault(node.op_type, []).append(node.name)
    by_type[_DEPTHWISE] = [found.node.name for found in nodes if depthwise(found)]
    for kind in types:
        if not by_type.get(kind):
            raise UserError(
                f"exclude_types: the model has no {kind!r}; it has "
                f"{', '.join(sorted(name for name, found in by_type.items() if found))}"
            )
        for name in by_type[kind]:
            reasons.setdefault(name, f"excluded as a {kind}")
    owners = {found.weight.name: found.node.name for found in nodes if found.node.name in reasons}
    for found in nodes:
        if found.weight.name in owners:
            owner = owners[found.weight.name]
            reasons.setdefault(found.node.name, f"shares its weights with {owner!r}")
    return reasons


def with_own_constants(model: Any, names: Collection[str]) -> Any:
    """Return a copy whose excluded nodes share no constant with nodes that are quantized.

    Equal biases are stored once. The quantizer puts an int32 bias behind DequantizeLinear under the
    old name: an excluded reader would get it rounded on another layer's grid, and, because it is
    no constant any more, the slower of ONNX Runtime's float kernels (2 to 7 times, measured).
    """
    twin = type(model)()
    twin.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in twin.graph.initializer}
    shared = {name for node in twin.graph.node if node.name not in names for name in node.input}
    for node in twin.graph.node:
        for index, name in enumerate(node.input if node.name in names else ()):
            if name in stored and name in shared:
                own = twin.graph.initializer.add()
                own.CopyFrom(stored[name])
                own.name = node.input[index] = f"{node.name}/own_{index}"
    return twin


# What ONNX Runtime's WeightBiasQuantization takes for a layer that somebody forgot to quantize.
_REQUANTIZED = frozenset({"Conv", "ConvTranspose", "Gemm"})
# What it runs in int8 between DQ and Q in any case: these have no weights to tell by.
_ALWAYS_INT8 = frozenset(
    {"Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Softmax"}
)


def guard(graph: Any, names: Collection[str]) -> None:
    """Put ``LeakyRelu(alpha = 1)`` behind every excluded node that stands between DQ and Q.

    ONNX Runtime looks past Relu and Clip for the QuantizeLinear, and at no other operator.
    """
    import onnx

    made_by, readers = producers(graph), consumers(graph)
    for node in [node for node in graph.node if node.name in names]:
        given = made_by.get(node.input[0])
        reading = readers.get(node.output[0], [])
        while len(reading) == 1 and reading[0].op_type in {"Relu", "Clip"}:
            reading = readers.get(reading[0].output[0], [])
        if (
            node.op_type not in _REQUANTIZED | _ALWAYS_INT8
            or given is None
            or given.op_type != "DequantizeLinear"
            or [reader.op_type for reader in reading] != ["QuantizeLinear"]
        ):
            continue
        result = node.output[0]
        node.output[0] = f"{result}_unguarded"
        same = onnx.helper.make_node(
            "LeakyRelu", [node.output[0]], [result], name=f"{node.name}/guard", alpha=1.0
        )
        graph.node.insert(list(graph.node).index(node) + 1, same)


def require_float(
    model: Any, names: Collection[str], *, exclusion: Exclusion, target: Target
) -> None:
    """Look at the optimised graph for excluded layers that became int8 all the same.

    Args:
        model: the ``ModelProto`` that was made.
        names: nodes that it leaves in float.
        exclusion: how it was told to.
        target: as in ``optimized``.

    Raises:
        UserError: if there is one.
    """
    if not names:
        return
    anyhow = SessionOptions(disabled_optimizers=())
    options = anyhow if exclusion == "structural" else SessionOptions()
    running = int8_layers(model, target=target, options=options)
    running |= {
        name: node.op_type
        for node in optimized(model, target=target, options=options).graph.node
        if node.op_type.startswith("QLinear") and (name := file_name(node)) in names
    }
    for name in names:
        if name in running:
            raise UserError(
                f"exclude: ONNX Runtime {ort.__version__} runs {name!r} as {running[name]} although the "
                f"file leaves it in float with exclusion = {exclusion!r}; choose "
                f"{'session_option' if exclusion == 'structural' else 'structural'!r}, or "
                "another release of onnxruntime"
            )
