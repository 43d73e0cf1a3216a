import numpy as np
import pytest
from onnx import TensorProto, helper

from compress.quantize.dynamic import QuantizeDynamic, why_not_dynamic
from deploy.errors import UserError
from tests.compress.quantize.applying import apply, element_types, stored
from tests.compress.quantize.networks import network


def test_dynamic_leaves_convolutions_in_float_unless_forced():
    model = apply(network(), QuantizeDynamic(target="x86-vnni"))
    np.testing.assert_array_equal(stored(model, "conv/kernel"), stored(network(), "conv/kernel"))
    reasons = why_not_dynamic(network(), QuantizeDynamic())
    assert set(reasons) == {"stem", "conv"}
    assert "convolutions = true forces them" in reasons["stem"]
    assert why_not_dynamic(network(), QuantizeDynamic(convolutions=True)) == {}


def test_forced_convolutions_have_unsigned_weights_and_dense_layers_signed_ones():
    model = apply(network(), QuantizeDynamic(target="x86-vnni", convolutions=True))
    assert element_types(model, "ConvInteger", 1) == {TensorProto.UINT8}
    assert element_types(model, "MatMulInteger", 1) == {TensorProto.INT8}


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2"])
def test_forced_convolutions_have_all_eight_bits_whatever_the_machine(target):
    """The kernel of two unsigned factors adds in 32 bits, with VNNI and without."""
    model = apply(network(), QuantizeDynamic(target=target, convolutions=True))
    weights = stored(model, "conv/kernel_quantized").astype(int)
    assert weights.max() - weights.min() == 255


def test_a_network_of_convolutions_alone_is_refused_with_the_way_out():
    model = network()
    del model.graph.node[-2:]
    model.graph.node.append(helper.make_node("Softmax", ["flatten:0"], ["scores"], name="softmax"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    with pytest.raises(UserError, match=r"needs MatMul or Gemm .* use quantize_static"):
        apply(model, QuantizeDynamic())
