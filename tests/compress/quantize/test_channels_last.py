import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantize import channels_last as module
from compress.quantize.channels_last import spare_transposes, target_of
from compress.quantize.layout import laid_out
from compress.quantize.mixed import QuantizeMixed, as_static
from compress.quantize.static import QuantizeStatic, quantize_static
from compress.quantize.width_to_depth import columns_that_fit
from deploy.kernels import int8_layers, optimized
from tests.compress.quantize.applying import run
from tests.compress.quantize.networks import images, task_with
from tests.compress.traps.graphs import Graph

SHAPE = (8, 8, 2)
FLATTENING = {"Squeeze": ["axes"], "Reshape": ["rows"], "Flatten": []}
"""What may bring an average into form, and with what constant."""


def residual(flatten="Squeeze"):
    """Return image → stem → conv → add ← stem, squeezed after an average, dense, softmax: 16 channels."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32) / 6

    constants = {
        "stem/kernel": normal(16, 2, 3, 3), "conv/kernel": normal(16, 16, 3, 3),
        "last/kernel": normal(16, 16, 3, 3), "dense/kernel": normal(16, 3), "axes": np.int64([2, 3]),
        "rows": np.int64([-1, 16]),
    }  # fmt: skip
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        ("Transpose", "to_nchw", ["image"], {"perm": [0, 3, 1, 2]}),
        ("Conv", "stem", ["to_nchw:0", "stem/kernel"], same),
        ("Relu", "stem/relu", ["stem:0"], {}),
        ("Conv", "conv", ["stem/relu:0", "conv/kernel"], same),
        ("Add", "add", ["stem/relu:0", "conv:0"], {}),
        ("Relu", "relu", ["add:0"], {}),
        ("Conv", "last", ["relu:0", "last/kernel"], same),
        ("GlobalAveragePool", "average", ["last:0"], {}),
        (flatten, "squeeze", ["average:0", *FLATTENING[flatten]], {}),
        ("Gemm", "dense", ["squeeze:0", "dense/kernel"], {}),
        ("Softmax", "softmax", ["dense:0"], {"axis": 1}),
    ]
    graph = helper.make_graph(
        [
            helper.make_node(kind, given, [f"{name}:0"], name=name, **how)
            for kind, name, given, how in nodes
        ],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", *SHAPE))],
        [helper.make_tensor_value_info("softmax:0", TensorProto.FLOAT, ("batch", 3))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(*floats):
    return quantize_static(residual(), as_static(QuantizeMixed(), floats), task_with(images()))


def transposes(model):
    return [node.op_type for node in optimized(model).graph.node].count("Transpose")


@pytest.mark.parametrize("floats", [(), ("stem",), ("stem", "dense"), ("conv",)])
def test_the_same_kernels_give_the_same_answers_after_fewer_transposes(floats):
    model = quantized(*floats)
    made = spare_transposes(model)
    assert int8_layers(made) == int8_layers(model)
    assert transposes(made) < transposes(model)
    x = images(20, seed=4)
    np.testing.assert_array_equal(run(made, x), run(model, x))


def test_behind_a_float_stem_nothing_is_left_to_transpose_but_the_image():
    assert transposes(quantized("stem")) > 3
    assert transposes(spare_transposes(quantized("stem"))) == 1


def test_a_model_without_such_places_is_returned_as_it_is():
    model = residual()
    assert spare_transposes(model) is model


def test_a_hint_that_spares_nothing_is_not_written():
    """Behind a float convolution the average has its channels first in any case."""
    model = quantized("last")
    assert spare_transposes(model) is model


def test_nothing_is_left_that_nobody_reads():
    made = spare_transposes(quantized("stem"))
    read = {name for node in made.graph.node for name in node.input}
    assert {tensor.name for tensor in made.graph.initializer} <= read


def test_a_model_with_graphs_in_its_nodes_is_left_as_it_is():
    """An If may read any tensor by its name."""
    model = quantized("stem")
    value = helper.make_tensor_value_info("then", TensorProto.FLOAT, ())
    constant = helper.make_node("Constant", [], ["then"], value_float=1.0)
    branch = helper.make_graph([constant], "branch", [], [value])
    other = model.graph.node.add()
    other.CopyFrom(
        helper.make_node("If", ["yes"], ["unread"], then_branch=branch, else_branch=branch)
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    assert spare_transposes(model) is model
    assert columns_that_fit(model) == {}


def test_the_input_is_left_alone():
    model = quantized("stem")
    before = model.SerializeToString()
    spare_transposes(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("kind", FLATTENING)
def test_whatever_flattens_an_average_may_do_so_with_channels_last(kind):
    model = quantize_static(residual(kind), QuantizeStatic(), task_with(images()))
    made = spare_transposes(model)
    assert transposes(made) < transposes(model)
    x = images(8, seed=5)
    np.testing.assert_array_equal(run(made, x), run(model, x))


@pytest.mark.parametrize(
    ("constant", "values", "kind", "spared"),
    [
        ("axes", [-1, -2], "Squeeze", True),
        ("axes", [3], "Squeeze", False),
        ("rows", [0, -1], "Reshape", True),
        ("rows", [0, 0], "Reshape", False),
        ("rows", [-1, 4, 4], "Reshape", False),
    ],
)
def test_only_what_drops_rows_and_columns_is_given_channels_last(constant, values, kind, spared):
    model = residual(kind)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors[constant].CopyFrom(numpy_helper.from_array(np.int64(values), constant))
    node = next(node for node in model.graph.node if node.name == "squeeze")
    assert module._drops_rows_and_columns(node, tensors) == spared


@pytest.mark.parametrize("size", [(3,), (3, 3, 3)])
def test_an_average_over_a_series_or_a_volume_is_left_as_it_is(size):
    graph = Graph((2, *([6] * len(size))))
    pads = [1] * (2 * len(size))
    tensor = graph.quantized("x")
    weights = graph.weights((4, 2, *size), "a/kernel", axis=0)
    tensor = graph.quantized(graph.node("Conv", tensor, weights, name="a", pads=pads), 1 / 16)
    tensor = graph.quantized(graph.node("GlobalAveragePool", tensor), 1 / 16)
    flat = graph.quantized(graph.node("Flatten", tensor), 1 / 16)
    shape = graph.constant(np.array([1, 4, *([1] * len(size))]))
    model = graph.model(graph.node("Reshape", flat, shape))
    assert laid_out(model, {}) is model


def test_what_is_laid_out_stays_as_it_is_the_second_time():
    made = laid_out(quantized("stem"), {})
    assert laid_out(made, {}) is made


def test_a_model_for_arm_is_looked_at_as_arm_would_run_it():
    arm = quantize_static(residual(), QuantizeStatic(target="arm64"), task_with(images()))
    assert target_of(arm) == "arm64"
    assert target_of(quantized()) is None
    assert spare_transposes(arm) is not arm
