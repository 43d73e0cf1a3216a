import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.export.facts import layer_facts
from deploy.record import LayerFacts

KERNEL = np.float32([[0, 1], [2, 0], [0, 3]])


def dense(nodes, constants):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (None, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (None, 2))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def gemm(weights="w"):
    return helper.make_node("Gemm", ["x", weights, "b"], ["y"], name="dense1")


BIAS = {"b": np.float32([0, 0])}


def test_float_weights_are_counted_without_the_bias():
    model = dense([gemm()], {"w": KERNEL} | BIAS)
    (facts,) = layer_facts(model, {"dense1": "left alone", "other": "ignored"})
    assert facts == LayerFacts(
        name="dense1",
        kind="Gemm",
        parameters=6,
        zeros=3,
        bits=32,
        note="left alone",
        distinct=4,
    )
    assert facts.sparsity == 0.5


@pytest.mark.parametrize(
    ("zero_point", "zeros"),
    [(np.int8([0, 0]), 3), (np.int8([2, 1]), 2), (None, 3)],
    ids=["zero", "per channel", "not stated"],
)
def test_a_stored_integer_is_a_zero_where_it_equals_the_zero_point(zero_point, zeros):
    inputs = ["q", "s"] + ([] if zero_point is None else ["z"])
    nodes = [helper.make_node("DequantizeLinear", inputs, ["w"], axis=1), gemm()]
    constants = {"q": KERNEL.astype(np.int8), "s": np.float32([1, 1])} | BIAS
    if zero_point is not None:
        constants["z"] = zero_point
    (facts,) = layer_facts(dense(nodes, constants), {})
    assert (facts.parameters, facts.zeros, facts.bits) == (6, zeros, 8)


def test_float16_behind_a_cast_has_16_bits():
    nodes = [helper.make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT), gemm()]
    (facts,) = layer_facts(dense(nodes, {"h": KERNEL.astype(np.float16)} | BIAS), {})
    assert (facts.parameters, facts.zeros, facts.bits) == (6, 3, 16)


def test_int8_behind_a_cast_and_a_scale_has_8_bits():
    nodes = [
        helper.make_node("Cast", ["q"], ["steps"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["steps", "s"], ["w"]),
        gemm(),
    ]
    constants = {"q": KERNEL.astype(np.int8), "s": np.float32([[1, 1]])} | BIAS
    (facts,) = layer_facts(dense(nodes, constants), {})
    assert (facts.parameters, facts.zeros, facts.bits) == (6, 3, 8)


def test_integer_operators_are_read_too():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "as", "az"]),
        helper.make_node("MatMulInteger", ["a", "q", "az", "z"], ["i"], name="dense1"),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    model = dense(nodes, {"q": np.uint8([[5, 1], [2, 5], [5, 3]]), "z": np.uint8(5)})
    (facts,) = layer_facts(model, {})
    assert facts == LayerFacts(
        name="dense1", kind="MatMulInteger", parameters=6, zeros=3, bits=8, distinct=4
    )


def test_weights_that_two_nodes_share_are_described_once():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (None, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (None, 2))],
        [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")],
    )
    assert [facts.name for facts in layer_facts(helper.make_model(graph), {})] == ["first"]


def test_a_product_of_two_activations_has_no_weights():
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 2))],
    )
    assert layer_facts(helper.make_model(graph), {}) == ()
