import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compress.quantize.dynamic import QuantizeDynamic, quantize_dynamic
from compress.quantize.static import QuantizeStatic, quantize_static
from compress.quantize.storage import WeightOnly, weight_only
from deploy.graph import weighted_nodes
from deploy.kernels import can_saturate, int8_layers, optimized, why_not_int8
from deploy.record import SessionOptions
from tests.compress.quantize.applying import apply
from tests.compress.quantize.networks import images, network, task_with

VNNI = "x86-vnni"


def static(**settings):
    step = QuantizeStatic(**({"target": VNNI} | settings))
    return quantize_static(network(), step, task_with(images()))


def operators(model, **options):
    return [node.op_type for node in optimized(model, **({"target": VNNI} | options)).graph.node]


def test_every_layer_of_a_static_model_runs_as_int8():
    model = static()
    assert int8_layers(model, target=VNNI) == {
        "stem": "QLinearConv", "conv": "QLinearConv", "dense": "QGemm",
    }  # fmt: skip
    assert why_not_int8(model, target=VNNI) == {}


MADE = [
    QuantizeStatic(),
    QuantizeStatic(per_channel=False),
    QuantizeStatic(correct=("rounding", "bias")),
    QuantizeDynamic(),
    QuantizeDynamic(per_channel=False, convolutions=True),
]


def saturating(step, *, made_for, on):
    model = apply(network(), msgspec.structs.replace(step, target=made_for))
    int8 = int8_layers(model, target=made_for)
    layers = [found for found in weighted_nodes(model.graph) if found.node.name in int8]
    return {found.node.name for found in layers if can_saturate(model, found, target=on)}


@pytest.mark.parametrize("step", MADE, ids=repr)
def test_what_is_made_for_avx2_saturates_nowhere_and_what_is_made_for_vnni_does_there(step):
    assert saturating(step, made_for="x86-avx2", on="x86-avx2") == set()
    assert "dense" in saturating(step, made_for="x86-vnni", on="x86-avx2")
    assert saturating(step, made_for="x86-vnni", on="x86-vnni") == set()


@pytest.mark.parametrize("step", MADE, ids=repr)
def test_a_step_that_names_no_target_saturates_nowhere_here(step):
    assert saturating(step, made_for=None, on=None) == set()


def test_what_is_made_for_arm_saturates_there_as_onnx_runtime_makes_its_inputs_unsigned():
    assert "dense" in saturating(QuantizeStatic(), made_for="arm64", on="x86-avx2")
    assert saturating(QuantizeStatic(), made_for="arm64", on="arm64") == set()


def test_a_file_of_four_bit_weights_may_be_opened_anywhere():
    assert saturating(QuantizeStatic(weight_bits=4), made_for="x86-vnni", on="x86-avx2") == set()


def test_no_island_of_float_is_left_between_int8_layers():
    kinds = operators(static())
    assert kinds.count("QuantizeLinear") == 1  # the image
    assert kinds.count("DequantizeLinear") == 0  # QGemm gives its scores in float
    assert not {"Add", "Relu", "GlobalAveragePool", "Conv", "Gemm"} & set(kinds)


def test_a_model_for_arm_is_all_int8_where_signed_activations_are_accepted():
    model = static(target="arm64")
    assert set(int8_layers(model, target="arm64")) == {"stem", "conv", "dense"}


def test_an_excluded_layer_stays_float_when_it_is_opened_as_it_ships():
    model = static(exclude=("conv",))
    assert set(int8_layers(model, target=VNNI)) == {"stem", "dense"}
    assert "Conv" in operators(model)
    assert why_not_int8(model, target=VNNI) == {}


def test_a_layer_that_was_planned_as_int8_and_runs_in_float_is_reported():
    """A DequantizeLinear on the weights alone is a plan that ONNX Runtime does not follow."""
    model = network()
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "conv/kernel")
    kernel.CopyFrom(numpy_helper.from_array(np.ones((8, 8, 3, 3), np.int8), "conv/int8"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "conv/scale"))
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["conv/int8", "conv/scale"], ["conv/kernel"])
    )
    onnx.checker.check_model(model, full_check=True)
    reasons = why_not_int8(model, target=VNNI)
    assert list(reasons) == ["conv"]
    assert reasons["conv"].startswith(
        "planned as int8, but runs in float: its weights are int8, but"
    )


def test_a_dynamic_model_runs_its_dense_layer_as_int8():
    model = quantize_dynamic(network(), QuantizeDynamic(target=VNNI))
    assert int8_layers(model, target=VNNI) == {"dense": "DynamicQuantizeMatMul"}
    forced = quantize_dynamic(network(), QuantizeDynamic(target=VNNI, convolutions=True))
    assert set(int8_layers(forced, target=VNNI)) == {"stem", "conv", "dense"}
    assert why_not_int8(forced, target=VNNI) == {}


def test_a_weight_only_model_runs_the_kernels_of_the_float_model():
    model = weight_only(network(), WeightOnly())
    assert operators(model) == operators(network())
    assert int8_layers(model, target=VNNI) == {}
    assert why_not_int8(model, target=VNNI) == {}


def test_the_optimized_graph_depends_on_how_the_model_is_opened():
    default = optimized(network(), target=VNNI)
    assert "FusedGemm" not in [node.op_type for node in default.graph.node]
    options = SessionOptions(disabled_optimizers=("NchwcTransformer", "WeightBiasQuantization"))
    kinds = operators(network(), options=options)
    assert "ReorderOutput" not in kinds
