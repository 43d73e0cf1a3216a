"""Names in an ONNX graph that a reader of the Keras model knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.graph import weighted_nodes

# Inputs of weighted operators by what Keras calls them; others are called by the ONNX schema.
_KERAS_ROLES = {
    ("Conv", 1): "kernel", ("Conv", 2): "bias",
    ("ConvTranspose", 1): "kernel", ("ConvTranspose", 2): "bias",
    ("Gemm", 1): "kernel", ("Gemm", 2): "bias",
    ("MatMul", 1): "kernel",
}  # fmt: skip


def named_after_layers(model: Any, layers: Mapping[str, str]) -> Any:
    """Return a copy of a ``ModelProto`` whose nodes and tensors bear the names of Keras layers.

    The node that holds a layer's weights, or else the layer's first node, is named like the layer:
    ``conv1``. The layer's other nodes add their operator: ``conv1/relu``. Initialisers are named
    after the first node that reads them: ``conv1/kernel``, ``conv1/bias``. Other tensors are named
    after their node, ``conv1:0``. Graph inputs and outputs keep their names.

    Args:
        model: as tf2onnx made it: its names are paths of TensorFlow scopes.
        layers: path of a Keras layer's TensorFlow scope → name to give, such as
            ``{"model/inner/conv1": "inner/conv1"}``.
    """
    twin = type(model)()
    twin.CopyFrom(model)
    graph = twin.graph
    weighted = {found.node.output[0] for found in weighted_nodes(graph)}
    by_layer: dict[str, list[Any]] = {}
    for node in graph.node:
        by_layer.setdefault(_owner(node, layers) or node.op_type.lower(), []).append(node)
    heads = {
        layer: next((node for node in nodes if node.output[0] in weighted), nodes[0])
        for layer, nodes in by_layer.items()
    }
    taken: set[str] = set()
    # Heads first, so that no other node can take the name of a layer.
    for layer, head in heads.items():
        head.name = _free(layer, taken)
    for layer, nodes in by_layer.items():
        for node in nodes:
            if node.output[0] != heads[layer].output[0]:
                node.name = _free(f"{layer}/{node.op_type.lower()}", taken)
    _rename_tensors(graph)
    return twin


def _owner(node: Any, layers: Mapping[str, str]) -> str | None:
    """Return the layer a node belongs to: by its own name, else by that of what it makes."""
    for text in (node.name, *node.output):
        parts = text.split(":")[0].split("/")
        for length in range(len(parts), 0, -1):
            name = layers.get("/".join(parts[:length]))
            if name is not None:
                return name
    return None


def _free(wanted: str, taken: set[str]) -> str:
    """Return ``wanted``, or with the first free number from 2 on behind it, and take it."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def _rename_tensors(graph: Any) -> None:
    fixed = {value.name for value in (*graph.input, *graph.output)}
    stored = {tensor.name for tensor in graph.initializer}
    taken = set(fixed)
    names: dict[str, str] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in stored and name not in names:
                names[name] = _free(f"{node.name}/{_role(node, index)}", taken)
        for index, name in enumerate(node.output):
            if name and name not in fixed:
                names[name] = _free(f"{node.name}:{index}", taken)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)


def _role(node: Any, index: int) -> str:
    import onnx

    known = _KERAS_ROLES.get((node.op_type, index))
    if known is not None:
        return known
    formal = onnx.defs.get_schema(node.op_type, domain=node.domain).inputs
    # The last formal input of a variadic operator stands for all that follow.
    return str(formal[min(index, len(formal) - 1)].name).lower()


def layer_scopes(model: Any) -> dict[str, str]:
    """Return the TensorFlow scope of every layer, also of nested models, with the layer's name.

    A BatchNormalization that follows a convolution bears the convolution's name: tf2onnx folds it,
    and of a depthwise convolution with a bias it keeps no other trace.
    """
    scopes: dict[str, str] = {}

    def visit(parent: Any, scope: str, prefix: str) -> None:
        for layer in parent.layers:
            named = _folded_into(layer) or layer
            scopes[f"{scope}/{layer.name}"] = prefix + named.name
            if getattr(layer, "layers", None):
                visit(layer, f"{scope}/{layer.name}", f"{prefix}{layer.name}/")

    visit(model, model.name, "")
    return scopes


def _folded_into(layer: Any) -> Any:
    """Return the convolution whose output alone a BatchNormalization reads, or None."""
    if type(layer).__name__ != "BatchNormalization" or len(layer.inbound_nodes) != 1:
        return None
    previous = layer.inbound_nodes[0].inbound_layers
    is_convolution = not isinstance(previous, list) and "Conv" in type(previous).__name__
    return previous if is_convolution else None
