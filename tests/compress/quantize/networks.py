"""A float network small enough to read, with all that quantization meets."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.data.task import Split, Task
from compress.quantize.outputs import outputs_of

SHAPE = (8, 8, 2)


def network(*, seed=0):
    """Return image → stem → pool → (conv + shortcut) → pool → dense → softmax, opset 17."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32) / 4

    constants = {
        "stem/kernel": normal(8, 2, 3, 3), "stem/bias": normal(8),
        "conv/kernel": normal(8, 8, 3, 3), "conv/bias": normal(8),
        "dense/kernel": normal(8, 3), "dense/bias": normal(3),
        "flatten/shape": np.int64([-1, 8]),
    }  # fmt: skip
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        ("Transpose", "to_nchw", ["image"], {"perm": [0, 3, 1, 2]}),
        ("Conv", "stem", ["to_nchw:0", "stem/kernel", "stem/bias"], pads),
        ("Relu", "stem/relu", ["stem:0"], {}),
        ("MaxPool", "pool", ["stem/relu:0"], pool),
        ("Conv", "conv", ["pool:0", "conv/kernel", "conv/bias"], pads),
        ("Add", "add", ["pool:0", "conv:0"], {}),
        ("Relu", "relu", ["add:0"], {}),
        ("GlobalAveragePool", "average", ["relu:0"], {}),
        ("Reshape", "flatten", ["average:0", "flatten/shape"], {}),
        ("Gemm", "dense", ["flatten:0", "dense/kernel", "dense/bias"], {}),
    ]
    graph = helper.make_graph(
        [
            *(
                helper.make_node(kind, inputs, [f"{name}:0"], name=name, **attributes)
                for kind, name, inputs, attributes in nodes
            ),
            helper.make_node("Softmax", ["dense:0"], ["scores"], name="dense/softmax", axis=1),
        ],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", *SHAPE))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("batch", 3))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="lightship.data", value='"tiny"')
    onnx.checker.check_model(model, full_check=True)
    return model


def regression(*, seed=0):
    """Return ``network`` without its softmax: three targets, the second a thousand times the others."""
    model = network(seed=seed)
    softmax = model.graph.node.pop()
    model.graph.output[0].name = softmax.input[0]
    for name in ("dense/kernel", "dense/bias"):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor) * np.float32([1, 1000, 1])
        tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def depthwise_chain(*, spread=1.0, seed=0):
    """Return image → stem → depthwise → pointwise → average → dense → softmax, a ReLU behind each.

    ``spread``: by what the channels between stem, depthwise and pointwise differ in range; the
    network computes the same whatever it is.
    """
    rng = np.random.default_rng(seed)
    factors = np.geomspace(1, spread, 8).astype(np.float32)[rng.permutation(8)]

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32) / 3

    stem, stem_bias = normal(8, 2, 3, 3), normal(8)
    depthwise, depthwise_bias = normal(8, 1, 3, 3), normal(8)
    pointwise = normal(12, 8, 1, 1)
    constants = {
        "stem/kernel": stem * factors[:, None, None, None], "stem/bias": stem_bias * factors,
        "depthwise/kernel": depthwise,
        "depthwise/bias": depthwise_bias * factors,
        "pointwise/kernel": pointwise / factors[None, :, None, None], "pointwise/bias": normal(12),
        "dense/kernel": normal(12, 3), "dense/bias": normal(3),
        "flatten/shape": np.int64([-1, 12]),
    }  # fmt: skip
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        ("Transpose", "to_nchw", ["image"], {"perm": [0, 3, 1, 2]}),
        ("Conv", "stem", ["to_nchw:0", "stem/kernel", "stem/bias"], same | {"strides": [2, 2]}),
        ("Relu", "stem/relu", ["stem:0"], {}),
        ("Conv", "depthwise", ["stem/relu:0", "depthwise/kernel", "depthwise/bias"], same | {"group": 8}),
        ("Relu", "depthwise/relu", ["depthwise:0"], {}),
        ("Conv", "pointwise", ["depthwise/relu:0", "pointwise/kernel", "pointwise/bias"], {}),
        ("Relu", "pointwise/relu", ["pointwise:0"], {}),
        ("GlobalAveragePool", "average", ["pointwise/relu:0"], {}),
        ("Reshape", "flatten", ["average:0", "flatten/shape"], {}),
        ("Gemm", "dense", ["flatten:0", "dense/kernel", "dense/bias"], {}),
    ]  # fmt: skip
    graph = helper.make_graph(
        [
            *(
                helper.make_node(kind, inputs, [f"{name}:0"], name=name, **attributes)
                for kind, name, inputs, attributes in nodes
            ),
            helper.make_node("Softmax", ["dense:0"], ["scores"], name="dense/softmax", axis=1),
        ],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", *SHAPE))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("batch", 3))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def textures(n, *, seed):
    """Return images of stripes, columns or checks, more or less of them in noise, and which it is."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    rows, columns = np.indices(SHAPE[:2]) % 2
    kinds = np.stack([rows, columns, rows ^ columns])[..., None]
    strength = rng.uniform(0.2, 1, (n, 1, 1, 1))
    x = kinds[y] * strength + rng.uniform(0, 0.5, (n, *SHAPE))
    return (x / 1.5).astype(np.float32), y


def taught(model, x, y):
    """Return ``depthwise_chain`` with a dense layer that tells classes by what the rest gives."""
    features = type(model)()
    features.CopyFrom(model)
    del features.graph.node[-2:]
    features.graph.output[0].name = "flatten:0"
    features.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 12
    given = np.column_stack([outputs_of(features, x), np.ones(len(x))])
    # Ridge regression: without the ridge, tiny differences of large numbers would decide.
    head = np.linalg.solve(given.T @ given + 0.3 * np.eye(13), given.T @ (5 * np.eye(3)[y]))
    for tensor in model.graph.initializer:
        values = {"dense/kernel": head[:-1], "dense/bias": head[-1]}.get(tensor.name)
        if values is not None:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


def images(n=40, *, seed=1):
    return np.random.default_rng(seed).random((n, *SHAPE), dtype=np.float32)


def task_with(x):
    """Return a task whose calibration samples are ``x``; the rest is empty."""
    split = Split(raw=x, x=x, y=np.zeros(len(x), np.int64))
    none = Split(raw=x[:0], x=x[:0], y=np.zeros(0, np.int64))
    return Task(
        name="tiny", digest="", licence="", labels=("a", "b", "c"), preprocess=(),
        train=split, calibration=split, validation=none, test=none,
    )  # fmt: skip
