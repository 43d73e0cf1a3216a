import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from compress.quantize.storage import ToFloat16, WeightOnly, weight_only
from deploy.errors import UserError
from deploy.graph import array_of
from tests.compress.quantize.applying import apply, run, stored
from tests.compress.quantize.networks import images, network


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
