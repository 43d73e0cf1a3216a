"""Models that a stranger could send: small files that never end or ask for everything."""

from __future__ import annotations

import numpy as np

from tests.deploy import tiny_onnx

TWO = {"inputs": {"x": ("float32", ("n", 2))}, "outputs": {"y": ("float32", ("n", 2))}}


def endless() -> bytes:
    """Return a loop whose condition is always true and whose number of turns is the largest."""
    body = tiny_onnx.graph(
        [("Identity", ["going"], ["goes_on"]), ("Add", ["given", "given"], ["next"])],
        inputs={"turn": ("int64", ()), "going": ("bool", ()), "given": ("float32", ("n", 2))},
        outputs={"goes_on": ("bool", ()), "next": ("float32", ("n", 2))},
    )
    return tiny_onnx.model(
        [("Loop", ["turns", "true", "x"], ["y"], {"body": body})],
        initializers={"turns": np.int64(2**63 - 1), "true": np.bool_(True)},
        **TWO,
    )


def greedy(terabytes=4) -> bytes:
    """Return a graph that fills terabytes with zeros when it is run, and sums them."""
    return tiny_onnx.model(
        [
            ("ReduceMin", ["x"], ["least"], {"keepdims": 0}),
            ("Cast", ["least"], ["zero"], {"to": 7}),
            ("Mul", ["zero", "nothing"], ["none"]),
            ("Add", ["none", "size"], ["asked"]),
            ("ConstantOfShape", ["asked"], ["huge"]),
            ("ReduceSum", ["huge"], ["sum"], {"keepdims": 0}),
            ("Add", ["x", "sum"], ["y"]),
        ],
        initializers={
            "nothing": np.int64([0]),
            "size": np.int64([terabytes << 38]),  # float32
        },
        **TWO,
    )


def greedy_at_once(terabytes=4) -> bytes:
    """Return a graph that asks for terabytes while it is opened, when constants are folded."""
    return tiny_onnx.model(
        [
            ("ConstantOfShape", ["size"], ["huge"]),
            ("ReduceSum", ["huge"], ["sum"], {"keepdims": 0}),
            ("Add", ["x", "sum"], ["y"]),
        ],
        initializers={"size": np.int64([terabytes << 38])},
        **TWO,
    )


def weights_elsewhere(location: str) -> bytes:
    """Return a linear model whose 2×2 float32 weights lie at ``location``."""
    entry = tiny_onnx._bytes(1, b"location") + tiny_onnx._bytes(2, location.encode())
    weights = b"".join(
        [
            tiny_onnx._int(1, 2),
            tiny_onnx._int(1, 2),
            tiny_onnx._int(2, 1),
            tiny_onnx._bytes(8, b"w"),
            tiny_onnx._bytes(13, entry),
            tiny_onnx._int(14, 1),
        ]
    )
    graph = tiny_onnx.graph([("MatMul", ["x", "w"], ["y"])], **TWO) + tiny_onnx._bytes(5, weights)
    return (
        tiny_onnx._int(1, 8)
        + tiny_onnx._bytes(7, graph)
        + tiny_onnx._bytes(8, tiny_onnx._bytes(1, b"") + tiny_onnx._int(2, 17))
    )
