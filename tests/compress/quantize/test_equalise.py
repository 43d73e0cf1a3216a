import numpy as np
import pytest
from onnx import helper, numpy_helper

from compress.quantize.equalise import equalised, pairs_of
from compress.quantize.outputs import outputs_of
from deploy.graph import array_of
from tests.compress.quantize.networks import depthwise_chain, images, network


def stored(model, name):
    return next(array_of(tensor) for tensor in model.graph.initializer if tensor.name == name)


def test_an_equalised_network_computes_the_same():
    model, x = depthwise_chain(spread=1000.0), images(seed=5)
    apart = np.abs(outputs_of(equalised(model), x) - outputs_of(model, x)).max()
    assert apart <= 1e-5


def test_equalised_layers_have_equal_ranges_channel_by_channel():
    made = equalised(depthwise_chain(spread=1000.0))
    stem = np.abs(stored(made, "stem/kernel")).max(axis=(1, 2, 3))
    depthwise = np.abs(stored(made, "depthwise/kernel")).max(axis=(1, 2, 3))
    pointwise = np.abs(stored(made, "pointwise/kernel")).max(axis=(0, 2, 3))
    np.testing.assert_allclose(stem, depthwise, rtol=0.01)
    np.testing.assert_allclose(depthwise, pointwise, rtol=0.01)


def test_the_model_is_left_alone():
    model = depthwise_chain(spread=10.0)
    before = model.SerializeToString()
    equalised(model)
    assert model.SerializeToString() == before


def test_a_factor_reaches_every_place_of_a_flattened_channel():
    """Two channels of four places each are eight columns of a dense layer, channel by channel."""
    rng = np.random.default_rng(0)
    constants = {
        "conv/kernel": (rng.normal(size=(2, 2, 1, 1)) * [[[[1.0]]], [[[50.0]]]]).astype(np.float32),
        "dense/kernel": rng.normal(size=(3, 8)).astype(np.float32),
        "shape": np.int64([-1, 8]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv/kernel"], ["a"], name="conv"),
        helper.make_node("Reshape", ["a", "shape"], ["b"], name="flatten"),
        helper.make_node("Gemm", ["b", "dense/kernel"], ["y"], name="dense", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", 1, ("n", 2, 2, 2))],
        [helper.make_tensor_value_info("y", 1, ("n", 3))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.normal(size=(5, 2, 2, 2)).astype(np.float32)
    made = equalised(model)
    assert np.abs(stored(made, "conv/kernel") - constants["conv/kernel"]).max() > 1
    np.testing.assert_allclose(outputs_of(made, x), outputs_of(model, x), rtol=1e-5, atol=1e-5)


def test_layers_that_cannot_be_equalised_are_told_why():
    pairs, reasons = pairs_of(network().graph)
    assert [(pair.first.node.name, pair.second.node.name) for pair in pairs] == []
    assert reasons == {
        "stem": "2 operators read what it gives",
        "conv": "a Add behind it does not pass a factor on",
        "dense": "a Softmax behind it does not pass a factor on",
    }


def test_a_bounded_activation_passes_no_factor_on():
    model = depthwise_chain()
    relu = next(node for node in model.graph.node if node.name == "stem/relu")
    relu.op_type = "Clip"
    pairs, reasons = pairs_of(model.graph)
    assert "a Clip behind it" in reasons["stem"]
    assert [pair.first.node.name for pair in pairs] == ["depthwise", "pointwise"]


@pytest.mark.parametrize("shared", ["stem/bias", "depthwise/bias"])
def test_a_bias_that_two_layers_share_is_changed_for_one_alone(shared):
    model = depthwise_chain(spread=100.0)
    other = "depthwise" if shared == "stem/bias" else "stem"
    next(node for node in model.graph.node if node.name == other).input[2] = shared
    x = images(seed=6)
    apart = np.abs(outputs_of(equalised(model), x) - outputs_of(model, x)).max()
    assert apart <= 1e-5
