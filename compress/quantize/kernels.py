"""What ONNX Runtime really runs a quantized model with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnxruntime as ort

from compress.graph import weighted_nodes
from deploy.machine import Target
from deploy.record import SessionOptions
from deploy.session import ort_options

_INT8_OPERATORS = frozenset(
    {
        "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger",
        "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
    }
)  # fmt: skip


def optimized(model: Any, *, target: Target, options: SessionOptions = SessionOptions()) -> Any:
    """Return the graph (``ModelProto``) that ONNX Runtime runs in place of ``model``.

    Args:
        model: any ``ModelProto`` that ONNX Runtime opens.
        target: the machine it is made for. On another machine ONNX Runtime is asked to accept
            signed activations for ``arm64``, which it otherwise turns down on x86.
        options: how the model is opened; by default as it ships.
    """
    import onnx

    settings = ort_options(options)
    if target == "arm64":
        settings.add_session_config_entry("session.qdqisint8allowed", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        settings.optimized_model_filepath = str(path)
        ort.InferenceSession(
            model.SerializeToString(), sess_options=settings, providers=["CPUExecutionProvider"]
        )
        return onnx.load(path)


def int8_layers(model: Any, *, target: Target) -> dict[str, str]:
    """Return the weighted nodes of ``model`` that run as int8 kernels, with the kernel's operator.

    Layers are told by the initialiser that holds their weights, because ONNX Runtime renames nodes.
    """
    kernels = {
        found.weight.name: found.node.op_type
        for found in weighted_nodes(optimized(model, target=target).graph)
        if found.node.op_type in _INT8_OPERATORS
    }
    return {
        found.node.name: kernels[found.weight.name]
        for found in weighted_nodes(model.graph)
        if found.weight.name in kernels
    }


def why_not_int8(model: Any, *, target: Target) -> dict[str, str]:
    """Say of every node planned as int8 why it runs in float all the same; empty is as planned.

    Planned as int8 is a node whose weights stand behind ``DequantizeLinear`` or in an integer
    operator. Weight-only models plan none.
    """
    running = int8_layers(model, target=target)
    dequantized = {
        name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    return {
        found.node.name: (
            f"planned as int8, but ONNX Runtime {ort.__version__} runs no int8 "
            f"{found.node.op_type} for it"
        )
        for found in weighted_nodes(model.graph)
        if (found.node.input[1] in dequantized or found.node.op_type in _INT8_OPERATORS)
        and found.node.name not in running
    }
