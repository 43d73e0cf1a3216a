import logging

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from compress.quantize.post_training import (
    QuantizeDynamic,
    QuantizeStatic,
    ToFloat16,
    WeightOnly,
    quantize_dynamic,
    quantize_static,
    to_float16,
    weight_only,
    why_already_quantized,
    why_not_quantized,
)
from deploy.errors import UserError
from deploy.graph import array_of, weighted_nodes
from deploy.session import open_model
from tests.compress.quantize.networks import images, network, task_with

STEPS = [
    QuantizeStatic(target="x86-vnni"),
    QuantizeStatic(target="x86-vnni", calibration="percentile", percentile=99.9),
    QuantizeStatic(target="x86-avx2", per_channel=False),
    QuantizeStatic(target="arm64", exclude=("stem",)),
    QuantizeDynamic(target="x86-vnni"),
    QuantizeDynamic(target="x86-vnni", convolutions=True),
    ToFloat16(),
    WeightOnly(),
]
every_step = pytest.mark.parametrize("step", STEPS, ids=repr)


def apply(model, step, x=None):
    match step:
        case QuantizeStatic():
            return quantize_static(model, step, task_with(images() if x is None else x))
        case QuantizeDynamic():
            return quantize_dynamic(model, step)
        case ToFloat16():
            return to_float16(model, step)
        case WeightOnly():
            return weight_only(model, step)


def run(model, x):
    return open_model(model.SerializeToString()).run(x)


def stored(model, name):
    return next(array_of(tensor) for tensor in model.graph.initializer if tensor.name == name)


def element_types(model, kind, index):
    """Return the types of the constants that are input ``index`` of the nodes of one kind."""
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        constants[node.input[index]]
        for node in model.graph.node
        if node.op_type == kind and node.input[index] in constants
    }


# What holds for every step.


@every_step
def test_the_input_is_left_alone(step):
    model = network()
    before = model.SerializeToString()
    apply(model, step)
    assert model.SerializeToString() == before


@every_step
def test_the_same_step_gives_the_same_bytes(step):
    assert apply(network(), step).SerializeToString() == apply(network(), step).SerializeToString()


@every_step
def test_names_batch_and_metadata_are_kept(step):
    before, after = network(), apply(network(), step)
    assert after.graph.input == before.graph.input
    assert after.graph.output == before.graph.output
    assert after.metadata_props == before.metadata_props
    assert {found.node.name for found in weighted_nodes(after.graph)} == {"stem", "conv", "dense"}
    onnx.checker.check_model(after, full_check=True)


@every_step
def test_the_scores_stay_close(step):
    x = images(seed=2)
    np.testing.assert_allclose(run(apply(network(), step), x), run(network(), x), atol=0.05)


@every_step
def test_nothing_is_logged_printed_or_left_behind(step, caplog, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    apply(network(), step)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("first", [STEPS[0], STEPS[4], ToFloat16(), WeightOnly()], ids=repr)
@pytest.mark.parametrize("second", [STEPS[0], STEPS[4], ToFloat16(), WeightOnly()], ids=repr)
def test_a_quantized_model_is_refused_with_the_reason(first, second):
    assert why_already_quantized(network()) is None
    with pytest.raises(UserError, match=r"quantized already|not float32 any more") as caught:
        apply(apply(network(), first), second)
    assert "give the float model" in str(caught.value)


@pytest.mark.parametrize("name", ["", "stem"])
def test_layers_that_cannot_be_told_apart_are_refused(name):
    model = network()
    next(node for node in model.graph.node if node.name == "conv").name = name
    with pytest.raises(UserError, match=f"names of their own, got '{name}'"):
        apply(model, WeightOnly())


# Static.


def test_entropy_calibration_says_nothing_and_keeps_the_scores_close(capfd):
    x = images()
    model = apply(network(), QuantizeStatic(target="x86-vnni", calibration="entropy"), x)
    np.testing.assert_allclose(run(model, x), run(network(), x), atol=0.05)
    assert capfd.readouterr() == ("", "")


def test_scores_without_a_softmax_come_out_in_float():
    model = network()
    del model.graph.node[-1]
    model.graph.node[-1].output[0] = "scores"
    quantized = apply(model, STEPS[0])
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
    assert why_not_quantized(network(), step) == {"stem": "excluded by 'st*m'"}


def test_layers_that_share_weights_are_excluded_together():
    model = network()
    stem = next(node for node in model.graph.node if node.name == "conv")
    twin = helper.make_node("Conv", list(stem.input), ["twin:0"], name="twin", pads=[1, 1, 1, 1])
    model.graph.node.insert(5, twin)
    step = QuantizeStatic(exclude=("twin",))
    assert why_not_quantized(model, step) == {
        "twin": "excluded by 'twin'",
        "conv": "shares its weights with 'twin'",
    }


def test_a_pattern_that_matches_nothing_lists_the_layers():
    with pytest.raises(UserError, match=r"'stern' matches no node; .* stem, conv, dense"):
        apply(network(), QuantizeStatic(exclude=("stern",)))


def test_excluding_every_layer_is_refused():
    with pytest.raises(UserError, match=r"exclude: \* leaves no layer to quantize"):
        apply(network(), QuantizeStatic(exclude=("*",)))


def test_a_model_without_weights_is_refused():
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [value("x", TensorProto.FLOAT, (None, 2))],
        [value("y", TensorProto.FLOAT, (None, 2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for step in (STEPS[0], STEPS[4], ToFloat16(), WeightOnly()):
        with pytest.raises(UserError, match="with stored weights"):
            apply(model, step, images())


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


# Dynamic.


def test_dynamic_leaves_convolutions_in_float_unless_forced():
    model = apply(network(), QuantizeDynamic(target="x86-vnni"))
    np.testing.assert_array_equal(stored(model, "conv/kernel"), stored(network(), "conv/kernel"))
    reasons = why_not_quantized(network(), QuantizeDynamic())
    assert set(reasons) == {"stem", "conv"}
    assert "convolutions = true forces them" in reasons["stem"]
    assert why_not_quantized(network(), QuantizeDynamic(convolutions=True)) == {}


def test_forced_convolutions_have_unsigned_weights_and_dense_layers_signed_ones():
    model = apply(network(), QuantizeDynamic(target="x86-vnni", convolutions=True))
    assert element_types(model, "ConvInteger", 1) == {TensorProto.UINT8}
    assert element_types(model, "MatMulInteger", 1) == {TensorProto.INT8}


def test_a_network_of_convolutions_alone_is_refused_with_the_way_out():
    model = network()
    del model.graph.node[-2:]
    model.graph.node.append(helper.make_node("Softmax", ["flatten:0"], ["scores"], name="softmax"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    with pytest.raises(UserError, match=r"needs MatMul or Gemm .* use quantize_static"):
        apply(model, QuantizeDynamic())


# Float16 and weight-only.


def test_float16_halves_the_weights_and_the_biases():
    model = apply(network(), ToFloat16())
    assert stored(model, "conv/kernel_float16").dtype == np.float16
    assert stored(model, "dense/bias_float16").dtype == np.float16
    assert all(
        value.type.tensor_type.elem_type == TensorProto.FLOAT
        for value in (*model.graph.input, *model.graph.output)
    )


@pytest.mark.parametrize("value", [70000, np.inf, np.nan])
def test_a_value_too_large_for_float16_is_refused_with_its_layer(value):
    model = network()
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "dense/kernel")
    changed = array_of(kernel).copy()
    changed[1, 1] = value
    kernel.CopyFrom(numpy_helper.from_array(changed, kernel.name))
    with pytest.raises(UserError, match=f"layer 'dense': float16 .* got {value:g} in"):
        apply(model, ToFloat16())


def test_weight_only_refuses_a_weight_that_is_nan():
    model = network()
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "dense/kernel")
    kernel.CopyFrom(numpy_helper.from_array(np.full((8, 3), np.nan, np.float32), kernel.name))
    with pytest.raises(UserError, match="layer 'dense': 'dense/kernel' holds NaN"):
        apply(model, WeightOnly())


@given(
    kernel=hnp.arrays(
        np.float32,
        (3, 2),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    )
)
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most_and_zero_stays_zero(kernel):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")],
        "graph",
        [value("x", TensorProto.FLOAT, ("batch", 3))],
        [value("y", TensorProto.FLOAT, ("batch", 2))],
        [numpy_helper.from_array(kernel, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    read_back = run(weight_only(model, WeightOnly()), np.eye(3, dtype=np.float32))
    step = np.abs(kernel).max(axis=0) / 127
    assert (np.abs(read_back - kernel) <= step * 0.5001).all()
    assert (read_back[kernel == 0] == 0).all()


def test_weight_only_computes_with_exactly_the_weights_it_stores():
    model = apply(network(), WeightOnly())
    plain = network()
    for name in ("stem", "conv", "dense"):
        kernel = next(t for t in plain.graph.initializer if t.name == f"{name}/kernel")
        values = stored(model, f"{name}/kernel_int8") * stored(model, f"{name}/kernel_scale")
        kernel.CopyFrom(numpy_helper.from_array(values.astype(np.float32), kernel.name))
    np.testing.assert_array_equal(run(model, images()), run(plain, images()))
