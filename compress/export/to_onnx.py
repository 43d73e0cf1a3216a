"""From a tf-keras model to a tidy ONNX model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from compress.export.names import layer_scopes, named_after_layers
from compress.export.tidy import tidy
from compress.networks.named_layers import named_layers
from deploy.errors import UserError, needs_extra
from deploy.graph import array_of, weighted_nodes

# QuantizeLinear got its axis in opset 13; tf2onnx 1.16 and 1.17 write up to 18.
OLDEST_OPSET, NEWEST_OPSET = 13, 18


def to_onnx(model: Any, *, opset: int = 17) -> Any:
    """Return a ``tf_keras.Model`` as a checked ``ModelProto``.

    The graph's input and output keep their Keras names, their first axis is named ``batch`` and
    their other axes are fixed. Nodes and weights are named after the Keras layers. BatchNorm that
    follows a convolution is folded into it. Equal models give equal bytes.

    Args:
        model: a built model with one input and one output. It is left alone.
        opset: version of the ONNX operator set, 13 to 18.

    Raises:
        UserError: if the opset is out of range, if the model is not built, has more than one input
            or output or a free axis beside the batch, or if a layer has no ONNX counterpart.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UserError(f"opset: must be {OLDEST_OPSET} to {NEWEST_OPSET}, got {opset}")
    why_not = why_not_exported(model)
    if why_not is not None:
        raise UserError(f"model {model.name!r}: {why_not}")
    with needs_extra("compress"):
        import onnx
    proto = _convert(model, opset)
    _refuse_unknown_operators(model, proto)
    # Keras numbers the names of models; a fixed one keeps the bytes of equal models equal.
    proto.graph.name = "lightship"
    proto = named_after_layers(_with_lost_names(tidy(proto), model), layer_scopes(model))
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return proto


def why_not_exported(model: Any) -> str | None:
    """Say why a Keras model cannot become one ONNX graph, or None if it can be tried."""
    if not model.built or not getattr(model, "inputs", None):
        return "its input shape is not known; build it with an Input layer first"
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return (
            f"needs one input and one output, got {len(model.inputs)} and {len(model.outputs)}; "
            "export one model per output"
        )
    if None in tuple(model.inputs[0].shape)[1:]:
        return f"only the batch axis may be free, got input shape {tuple(model.inputs[0].shape)}"
    return None


def _convert(model: Any, opset: int) -> Any:
    with needs_extra("compress"), _quiet_tf2onnx():
        import tensorflow as tf
        import tf2onnx

        (tensor,) = model.inputs
        signature = [tf.TensorSpec(tensor.shape, tensor.dtype, name=model.input_names[0])]
        try:
            proto, _ = tf2onnx.convert.from_keras(model, input_signature=signature, opset=opset)
        # tf2onnx raises whatever its rewriters meet: ValueError, KeyError, TypeError …
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model {model.name!r}: tf2onnx cannot convert it to opset {opset}: {reason}"
            ) from error
    return proto


@contextlib.contextmanager
def _quiet_tf2onnx() -> Iterator[None]:
    """Keep tf2onnx from logging, also what it would log as an error and then return normally."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse_unknown_operators(model: Any, proto: Any) -> None:
    """Raise a UserError that names the layer of a TensorFlow operator that was left as it is."""
    import onnx

    versions = {entry.domain: entry.version for entry in proto.opset_import}
    scopes = layer_scopes(model)
    for node in proto.graph.node:
        if onnx.defs.has(node.op_type, versions.get(node.domain, 1), node.domain):
            continue
        path = node.name.split("/")
        known = ["/".join(path[:length]) for length in range(len(path), 0, -1)]
        layer = next((scopes[scope] for scope in known if scope in scopes), node.name)
        raise UserError(
            f"layer {layer!r}: its TensorFlow operator {node.op_type} has no counterpart in ONNX "
            f"opset {versions.get('', 0)}; replace the layer or leave it out of the exported model"
        )


def _with_lost_names(proto: Any, model: Any) -> Any:
    """Return the graph with the scopes of depthwise convolutions that have a bias.

    tf2onnx merges the two into a node of a made-up name. Its kernel tells whose it is; of layers
    with equal kernels the first that is still unnamed, as both are in the order of the graph.
    """
    layers = [
        (f"{model.name}/{name}", _onnx_kernel(layer))
        for name, layer in named_layers(model)
        if type(layer).__name__ == "DepthwiseConv2D" and layer.use_bias
    ]
    twin = type(proto)()
    twin.CopyFrom(proto)
    for found in weighted_nodes(twin.graph):
        if "/" in found.node.name or found.node.op_type != "Conv":
            continue
        kernel = array_of(found.weight)
        for index, (scope, expected) in enumerate(layers):
            if np.array_equal(kernel, expected):
                found.node.name = f"{scope}/depthwise"
                del layers[index]
                break
    return twin


def _onnx_kernel(layer: Any) -> Any:
    """Return a depthwise kernel as ONNX has it, ``(channels × multiplier, 1, height, width)``."""
    kernel = layer.depthwise_kernel.numpy()
    return kernel.reshape(*kernel.shape[:2], -1).transpose(2, 0, 1)[:, None]
