"""Tiny quantized graphs, written by hand so that nothing of ours stands between them and ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

RELEASE = tuple(int(part) for part in ort.__version__.split(".")[:2])
requantizing = pytest.mark.skipif(
    RELEASE < (1, 23), reason="WeightBiasQuantization came with ONNX Runtime 1.23"
)


class Graph:
    """A model being written: each method adds nodes and returns the name of a tensor."""

    def __init__(self, shape, *, opset=17):
        self.shape, self.opset, self.nodes, self.tensors = shape, opset, [], []
        self.random = np.random.default_rng(0)

    def constant(self, array, name=None):
        name = name or f"constant{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind, *inputs, name=None, **attributes):
        name = name or f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def quantized(self, tensor, scale=1 / 128, zero=128):
        """Pass a tensor through uint8."""
        grid = (self.constant(np.float32(scale)), self.constant(np.uint8(zero)))
        steps = self.node("QuantizeLinear", tensor, *grid)
        return self.node("DequantizeLinear", steps, *grid)

    def weights(self, shape, name, *, axis=None, scale=1 / 128):
        """Int8 weights, one scale for all or one per index of ``axis``."""
        # Sums of seven bits are exact on every processor: what differs is what the runtime does.
        stored = self.random.integers(-64, 65, shape).astype(np.int8)
        if axis is None:
            grid = (self.constant(np.float32(scale)), self.constant(np.int8(0)))
            return self.node("DequantizeLinear", self.constant(stored, name), *grid)
        scales = np.float32(scale) * np.linspace(0.5, 1, shape[axis], dtype=np.float32)
        grid = (self.constant(scales), self.constant(np.zeros(shape[axis], np.int8)))
        return self.node("DequantizeLinear", self.constant(stored, name), *grid, axis=axis)

    def bias(self, values, scale):
        stored = self.constant(np.asarray(values, np.int32))
        grid = (self.constant(np.float32(scale)), self.constant(np.int32(0)))
        return self.node("DequantizeLinear", stored, *grid)

    def model(self, output):
        value = helper.make_tensor_value_info
        self.nodes[[node.output[0] for node in self.nodes].index(output)].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "trap",
            [value("x", TensorProto.FLOAT, (1, *self.shape))],
            [value("y", TensorProto.FLOAT, [None] * (1 + len(self.shape)))],
            self.tensors,
        )
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
        )
        onnx.checker.check_model(made, full_check=True)
        return made


def as_written(model, x):
    """Run every node as it is written: dequantize, compute in float, quantize."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]
