import numpy as np
import pytest
from onnx import numpy_helper

from compress.quantize import static as static_module
from compress.quantize.static import QuantizeStatic, quantize_static, why_not_static
from deploy.errors import UserError
from deploy.kernels import int8_layers, optimized
from deploy.record import SessionOptions
from deploy.session import open_model
from tests.compress.quantize.networks import images, network, task_with
from tests.compress.traps.graphs import requantizing

VNNI = "x86-vnni"
LAYERS = {"stem", "conv", "dense"}
AS_OTHERS_OPEN_IT = SessionOptions(disabled_optimizers=())


def static(**settings):
    step = QuantizeStatic(**({"target": VNNI} | settings))
    return quantize_static(network(), step, task_with(images()))


def depthwise_network():
    """The network with its second convolution over each channel by itself."""
    model = network()
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "conv/kernel")
    kernel.CopyFrom(numpy_helper.from_array(np.ones((8, 1, 3, 3), np.float32) / 9, "conv/kernel"))
    node = next(node for node in model.graph.node if node.name == "conv")
    node.attribute.add(name="group", type=2, i=8)
    return model


@pytest.mark.parametrize("exclusion", ["session_option", "structural"])
@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64"])
@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_excluding_a_layer_takes_exactly_that_layer_out_of_int8(layer, target, exclusion):
    model = static(exclude=(layer,), target=target, exclusion=exclusion)
    assert set(int8_layers(model, target=target)) == LAYERS - {layer}


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_a_structural_exclusion_holds_for_who_knows_no_session_option(layer):
    model = static(exclude=(layer,), exclusion="structural")
    assert set(int8_layers(model, target=VNNI, options=AS_OTHERS_OPEN_IT)) == LAYERS - {layer}
    x = images(seed=3)
    shipped = open_model(model.SerializeToString()).run(x)
    np.testing.assert_array_equal(
        shipped, open_model(model.SerializeToString(), AS_OTHERS_OPEN_IT).run(x)
    )
    plain = static(exclude=(layer,))
    np.testing.assert_array_equal(shipped, open_model(plain.SerializeToString()).run(x))


def test_the_guard_is_computed_inside_the_convolution_and_stands_only_where_it_is_needed():
    guarded = static(exclude=("conv",), exclusion="structural")
    assert [n.name for n in guarded.graph.node if n.op_type == "LeakyRelu"] == ["conv/guard"]
    kinds = [node.op_type for node in optimized(guarded, target=VNNI).graph.node]
    plain = [n.op_type for n in optimized(static(exclude=("conv",)), target=VNNI).graph.node]
    assert kinds == plain
    # The stem reads the image in float: ONNX Runtime leaves it alone.
    unguarded = static(exclude=("stem",), exclusion="structural")
    assert not [n for n in unguarded.graph.node if n.op_type == "LeakyRelu"]


@requantizing
def test_an_excluded_layer_that_became_int8_all_the_same_is_refused_by_name(monkeypatch):
    """Without the guard in the graph, ONNX Runtime undoes a structural exclusion."""
    monkeypatch.setattr(static_module, "guard", lambda graph, names: None)
    with pytest.raises(UserError, match="runs 'conv' as QLinearConv although"):
        static(exclude=("conv",), exclusion="structural")


def test_an_excluded_layer_keeps_a_bias_that_it_shared_with_an_int8_layer():
    """The quantizer would hand it the other layer's bias, rounded to int32 steps."""
    model = network()
    next(node for node in model.graph.node if node.name == "conv").input[2] = "stem/bias"
    step = QuantizeStatic(target=VNNI, exclude=("conv",))
    quantized = quantize_static(model, step, task_with(images()))
    bias = next(node for node in quantized.graph.node if node.name == "conv").input[2]
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    expected = next(tensor for tensor in model.graph.initializer if tensor.name == "stem/bias")
    assert constants[bias].raw_data == expected.raw_data
    conv = next(
        node for node in optimized(quantized, target=VNNI).graph.node if node.op_type == "Conv"
    )
    assert conv.input[2] not in {
        name for node in optimized(quantized, target=VNNI).graph.node for name in node.output
    }


def test_layers_are_excluded_by_type():
    step = QuantizeStatic(target=VNNI, exclude_types=("Conv",))
    assert why_not_static(network(), step) == {
        "stem": "excluded as a Conv", "conv": "excluded as a Conv",
    }  # fmt: skip
    assert set(int8_layers(static(exclude_types=("Conv",)), target=VNNI)) == {"dense"}


def test_an_operator_without_weights_takes_the_guard_to_stay_float():
    """Between DQ and Q ONNX Runtime runs an Add in int8, whatever the quantizer was told."""
    with pytest.raises(UserError, match=r"runs 'add' as QLinearAdd .* choose 'structural'"):
        static(exclude_types=("Add",))
    guarded = static(exclude_types=("Add",), exclusion="structural")
    kinds = [node.op_type for node in optimized(guarded, target=VNNI).graph.node]
    assert "Add" in kinds
    assert "QLinearAdd" not in kinds
    assert set(int8_layers(guarded, target=VNNI)) == LAYERS


def test_depthwise_convolutions_are_a_type_of_their_own():
    step = QuantizeStatic(target=VNNI, exclude_types=("DepthwiseConv",))
    assert why_not_static(depthwise_network(), step) == {"conv": "excluded as a DepthwiseConv"}
    model = quantize_static(depthwise_network(), step, task_with(images()))
    assert set(int8_layers(model, target=VNNI)) == {"stem", "dense"}


def test_a_type_that_the_model_lacks_is_refused():
    with pytest.raises(UserError, match=r"has no 'DepthwiseConv'; it has Add, Conv, Gemm,"):
        static(exclude_types=("DepthwiseConv",))


def test_excluding_every_type_is_refused():
    with pytest.raises(UserError, match="Conv, Gemm leaves no layer"):
        static(exclude_types=("Conv", "Gemm"))
