import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from compress.quantize.dynamic import QuantizeDynamic
from compress.quantize.static import QuantizeStatic, quantize_static, why_not_static, with_method
from deploy.errors import UserError
from deploy.graph import weighted_nodes
from tests.compress.quantize.applying import apply, element_types, run, stored
from tests.compress.quantize.networks import images, network, task_with

INT8 = QuantizeStatic(target="x86-vnni")


def test_entropy_calibration_says_nothing_and_keeps_the_scores_close(capfd):
    x = images()
    model = apply(network(), QuantizeStatic(target="x86-vnni", calibration="entropy"), x)
    np.testing.assert_allclose(run(model, x), run(network(), x), atol=0.05)
    assert capfd.readouterr() == ("", "")


def test_scores_without_a_softmax_come_out_in_float():
    model = network()
    del model.graph.node[-1]
    model.graph.node[-1].output[0] = "scores"
    quantized = apply(model, QuantizeStatic())  # for another machine it may answer otherwise here
    assert quantized.graph.node[-1].op_type == "Gemm"
    x = images()
    np.testing.assert_allclose(run(quantized, x), run(model, x), atol=0.05)


@pytest.mark.parametrize(
    ("target", "activation"),
    [
        ("x86-vnni", TensorProto.UINT8),
        ("x86-avx2", TensorProto.UINT8),
        ("arm64", TensorProto.INT8),
    ],
)
def test_activations_are_unsigned_on_x86_and_signed_on_arm(target, activation):
    model = apply(network(), QuantizeStatic(target=target))
    assert element_types(model, "QuantizeLinear", 2) == {activation}
    assert {found.weight.data_type for found in weighted_nodes(model.graph)} == {TensorProto.INT8}


def test_avx2_leaves_one_bit_of_the_weights_unused():
    """255 x 127 x 2 does not fit in 16 bits; 255 x 64 x 2 does."""
    narrow = apply(network(), QuantizeStatic(target="x86-avx2"))
    full = apply(network(), QuantizeStatic(target="x86-vnni"))
    assert np.abs(stored(narrow, "conv/kernel_quantized").astype(int)).max() <= 64
    assert np.abs(stored(full, "conv/kernel_quantized").astype(int)).max() > 100


def test_per_channel_gives_one_scale_per_output():
    per_channel = apply(network(), QuantizeStatic(target="x86-vnni"))
    per_tensor = apply(network(), QuantizeStatic(target="x86-vnni", per_channel=False))
    assert stored(per_channel, "conv/kernel_scale").shape == (8,)
    assert stored(per_channel, "dense/kernel_scale").shape == (3,)
    assert stored(per_tensor, "conv/kernel_scale").shape == ()


def test_the_bias_is_an_int32_on_the_grid_of_its_products():
    model = apply(network(), QuantizeStatic(target="x86-vnni"))
    assert stored(model, "dense/bias_quantized").dtype == np.int32


def test_an_excluded_layer_keeps_its_float_weights_and_says_why():
    step = QuantizeStatic(target="x86-vnni", exclude=("st*m",))
    model = apply(network(), step)
    np.testing.assert_array_equal(stored(model, "stem/kernel"), stored(network(), "stem/kernel"))
    assert why_not_static(network(), step) == {"stem": "excluded by 'st*m'"}


def test_layers_that_share_weights_are_excluded_together():
    model = network()
    stem = next(node for node in model.graph.node if node.name == "conv")
    twin = helper.make_node("Conv", list(stem.input), ["twin:0"], name="twin", pads=[1, 1, 1, 1])
    model.graph.node.insert(5, twin)
    step = QuantizeStatic(exclude=("twin",))
    assert why_not_static(model, step) == {
        "twin": "excluded by 'twin'",
        "conv": "shares its weights with 'twin'",
    }


def test_a_pattern_that_matches_nothing_lists_the_layers():
    with pytest.raises(UserError, match=r"'stern' matches no node; .* stem, conv, dense"):
        apply(network(), QuantizeStatic(exclude=("stern",)))


def test_excluding_every_layer_is_refused():
    with pytest.raises(UserError, match=r"exclude: \* leaves no layer to quantize"):
        apply(network(), QuantizeStatic(exclude=("*",)))


def test_an_old_opset_is_refused():
    model = network()
    model.opset_import[0].version = 12
    with pytest.raises(UserError, match="opset 13 or later, got 12"):
        apply(model, QuantizeStatic())


def test_nan_in_the_calibration_samples_is_refused():
    x = images()
    x[0] = np.nan
    with pytest.raises(UserError, match="sample 0 of 40"):
        apply(network(), QuantizeStatic(), x)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"kind": "quantize_static", "percentile": 99.9}, 'needs calibration = "percentile"'),
        ({"kind": "quantize_static", "calibration": "percentile", "percentile": 0.9}, "> 50"),
        ({"kind": "quantize_static", "calibration": "best"}, "Invalid enum value 'best'"),
        ({"kind": "quantize_static", "target": "riscv"}, "Invalid enum value 'riscv'"),
        ({"kind": "quantize_dynamic", "exclude": ["a"]}, "unknown field `exclude`"),
    ],
)
def test_a_step_that_makes_no_sense_does_not_decode(text, reason):
    with pytest.raises(msgspec.ValidationError, match=reason):
        msgspec.convert(text, QuantizeStatic | QuantizeDynamic)


def test_auto_leaves_out_an_outlier_that_spoils_minmax():
    x = images(128)
    x[0, 0, 0, 0] = 3e3
    chosen = with_method(network(), QuantizeStatic(calibration="auto"), task_with(x)).calibration
    assert chosen not in {"auto", "minmax"}


def test_auto_gives_what_its_choice_gives():
    given = task_with(images(100))
    auto = QuantizeStatic(calibration="auto")
    chosen = with_method(network(), auto, given)
    assert (
        quantize_static(network(), auto, given).SerializeToString()
        == quantize_static(network(), chosen, given).SerializeToString()
    )


@pytest.mark.parametrize("samples", [1, 2, 20])
def test_auto_makes_do_with_few_samples(samples):
    step = with_method(network(), QuantizeStatic(calibration="auto"), task_with(images(samples)))
    assert step.calibration != "auto"


def test_auto_chooses_nothing_by_outputs_that_are_no_numbers():
    """Of the second batch, which compares what the first gave; NaN is less than nothing."""
    x = images(64)
    x[40] = 3e38
    with pytest.raises(UserError, match="scores must be numbers, got nan for 1 of 32 samples"):
        with_method(network(), QuantizeStatic(calibration="auto"), task_with(x))


def test_a_method_that_was_named_stays():
    step = QuantizeStatic(calibration="mse")
    assert with_method(network(), step, task_with(images())) is step
