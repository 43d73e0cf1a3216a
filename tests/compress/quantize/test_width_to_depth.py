import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from compress.quantize.static import QuantizeStatic
from compress.quantize.width_to_depth import columns_of, columns_that_fit, width_to_depth
from deploy.errors import UserError
from deploy.graph import array_of, attributes, weighted_nodes
from deploy.kernels import int8_layers, optimized
from tests.compress.quantize.applying import apply, run
from tests.compress.quantize.networks import images, network
from tests.compress.traps.graphs import Graph, as_written


def convolution(
    graph, *, channels, outputs, kernel, strides=(1, 1), pads=(0, 0, 0, 0), group=1, axis=0
):  # fmt: skip
    """Return a graph's result behind one int8 convolution, quantized."""
    weights = graph.weights((outputs, channels // group, *kernel), "conv/kernel", axis=axis)
    given = (graph.quantized("x"), weights)
    if axis is None:  # one scale for all weights is one for all of the bias
        given += (graph.bias(graph.random.integers(-99, 99, outputs), 1 / 128 / 128),)
    made = graph.node(
        "Conv", *given, name="conv", kernel_shape=kernel, strides=strides, pads=pads, group=group
    )
    return graph.quantized(graph.node("Relu", made), 1 / 16, 0)


def single(shape, **how):
    graph = Graph(shape)
    return graph.model(convolution(graph, channels=shape[0], **how))


SAME = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}


@st.composite
def geometries(draw):
    channels = draw(st.integers(1, 6))
    group = draw(st.sampled_from([1, channels]))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    pads = tuple(draw(st.integers(0, (size - 1))) for size in (*kernel, *kernel))
    return {
        "shape": (channels, draw(st.integers(5, 7)), draw(st.sampled_from([6, 8, 12]))),
        "outputs": group * draw(st.integers(1, 3)),
        "kernel": kernel,
        "pads": pads,
        "strides": draw(st.tuples(st.integers(1, 2), st.integers(1, 3))),
        "group": group,
        "axis": draw(st.sampled_from([0, None])),
    }


@settings(max_examples=40)
@given(geometries(), st.data())
def test_every_number_is_that_of_the_layer_as_it_was(geometry, data):
    model = single(**geometry)
    (counts,) = columns_that_fit(model).values() or ((),)
    assume(counts)
    made = width_to_depth(model, {"conv": data.draw(st.sampled_from(counts))})
    x = np.random.default_rng(0).uniform(-1, 1, (1, *geometry["shape"])).astype(np.float32)
    np.testing.assert_array_equal(run(made, x), run(model, x))
    # In float the sums are added in another order, which may take one over to the next step.
    np.testing.assert_allclose(as_written(made, x), as_written(model, x), rtol=0, atol=1 / 16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 16])
def test_onnx_runtime_moves_nothing_for_it(channels):
    """Columns and channels are reshaped: no transpose but those that one column takes as well."""
    model = single((channels, 8, 8), outputs=4, **SAME)
    made = width_to_depth(model, {"conv": 4})
    before, after = (
        [node.op_type for node in optimized(one, target="x86-vnni").graph.node]
        for one in (model, made)
    )
    assert after.count("Transpose") <= before.count("Transpose")
    assert int8_layers(made, target="x86-vnni") == {"conv": "QLinearConv"}


def test_a_whole_network_keeps_its_layers_kernels_and_answers():
    model = apply(network(), QuantizeStatic())
    made = width_to_depth(model, {"stem": 2, "conv": 2})
    assert int8_layers(made) == int8_layers(model)
    x = images(20, seed=3)
    np.testing.assert_array_equal(run(made, x), run(model, x))
    # The image comes with its channels last, and is read so.
    kinds = [node.op_type for node in made.graph.node]
    first = next(node for node in made.graph.node if node.op_type == "QuantizeLinear")
    assert first.input[0] == "image"
    assert kinds.index("Reshape") < kinds.index("Transpose") < kinds.index("Conv")


def test_the_weights_grow_by_zeros_alone():
    model = single((1, 8, 8), outputs=4, **SAME)
    (before,) = weighted_nodes(model.graph)
    (after,) = weighted_nodes(width_to_depth(model, {"conv": 4}).graph)
    assert tuple(after.weight.dims) == (16, 4, 3, 3)
    weights, wide = array_of(before.weight), array_of(after.weight)
    assert np.count_nonzero(wide) == 4 * np.count_nonzero(weights)


def test_the_input_is_left_alone_and_no_columns_change_nothing():
    model = single((1, 8, 8), outputs=4, **SAME)
    before = model.SerializeToString()
    assert width_to_depth(model, {}) is model
    width_to_depth(model, {"conv": 2})
    assert model.SerializeToString() == before


def test_columns_fit_where_the_result_is_a_whole_number_of_them():
    assert columns_that_fit(single((1, 5, 12), outputs=2, **SAME)) == {"conv": (2, 3, 4, 6, 12)}
    halved = single((1, 5, 12), outputs=2, strides=(2, 2), **SAME)
    assert columns_that_fit(halved) == {"conv": (2, 3, 6)}
    valid = single((1, 5, 28), outputs=2, kernel=(5, 5))
    assert columns_that_fit(valid) == {"conv": (2, 3, 4, 6, 8, 12)}


@pytest.mark.parametrize(
    ("shape", "columns", "wide", "stride"),
    [
        ((1, 8, 8), 4, (16, 4, 3, 3), 1),  # four columns of one channel are read as one of four
        ((2, 8, 8), 4, (16, 4, 3, 4), 2),
        ((4, 8, 8), 4, (16, 4, 3, 6), 4),  # four channels are read as they are
        ((1, 8, 6), 3, (12, 1, 3, 5), 3),  # three columns are no four channels
        ((3, 8, 8), 4, (16, 12, 3, 3), 1),
    ],
)
def test_channels_are_read_by_fours_where_columns_allow_and_nothing_beyond_is_seen(
    shape, columns, wide, stride
):
    made = width_to_depth(single(shape, outputs=4, **SAME), {"conv": columns})
    (found,) = weighted_nodes(made.graph)
    assert tuple(found.weight.dims) == wide
    assert attributes(found.node)["strides"] == [1, stride]


@pytest.mark.parametrize(
    "model",
    [
        single((17, 5, 12), outputs=2, **SAME),
        single((1, 5, 17), outputs=2, **SAME),
        network(),
    ],
    ids=["seventeen channels", "a prime number of columns", "float"],
)
def test_layers_that_do_not_fit_are_missing_and_refused(model):
    assert columns_that_fit(model) == {}
    with pytest.raises(UserError, match="cannot compute 2 columns at once; there are no int8"):
        width_to_depth(model, {"conv": 2})


def test_a_number_that_does_not_fit_is_refused_with_those_that_do():
    model = single((1, 5, 12), outputs=2, **SAME)
    with pytest.raises(UserError, match=r"'conv' cannot compute 5 .* conv \[2, 3, 4, 6, 12\]"):
        width_to_depth(model, {"conv": 5})


def test_weights_whose_zero_is_another_number_stay_as_they_are():
    model = single((1, 6, 8), outputs=4, **SAME)
    assert columns_that_fit(model)
    zero = next(t for t in model.graph.initializer if tuple(t.dims) == (4,) and t.data_type == 3)
    zero.CopyFrom(numpy_helper.from_array(np.int8([0, 1, 0, 0]), zero.name))
    assert columns_that_fit(model) == {}


def test_a_layer_that_computes_several_columns_is_not_thin_any_more():
    made = width_to_depth(single((1, 6, 8), outputs=4, **SAME), {"conv": 2})
    assert columns_of(made) == {"conv": 2}
    assert columns_that_fit(made) == {}


@pytest.mark.parametrize("axis", [0, -4])
def test_the_axis_of_a_scale_for_each_output_may_be_counted_from_behind(axis):
    model = single((1, 6, 8), outputs=4, **SAME)
    reader = next(n for n in model.graph.node if n.input[0] == "conv/kernel")
    reader.attribute[0].i = axis
    made, x = width_to_depth(model, {"conv": 2}), np.ones((1, 1, 6, 8), np.float32)
    np.testing.assert_array_equal(run(made, x), run(model, x))


def test_a_scale_that_is_one_of_one_is_not_taken_for_one_an_output():
    graph = Graph((1, 6, 8))
    stored = graph.constant(np.ones((4, 1, 3, 3), np.int8), "conv/kernel")
    grid = (graph.constant(np.float32([1 / 128])), graph.constant(np.int8([0])))
    weights = graph.node("DequantizeLinear", stored, *grid, axis=0)
    made = graph.node("Conv", graph.quantized("x"), weights, name="conv", pads=[1, 1, 1, 1])
    assert columns_that_fit(graph.model(graph.quantized(made, 1 / 16))) == {}


def test_a_layer_that_runs_in_float_is_not_widened():
    """A ReLU whose QuantizeLinear reaches below 0 has to be computed, and the layer with it in float."""
    graph = Graph((1, 6, 8))
    weights = graph.weights((4, 1, 3, 3), "conv/kernel", axis=0)
    made = graph.node("Conv", graph.quantized("x"), weights, name="conv", pads=[1, 1, 1, 1])
    model = graph.model(graph.quantized(graph.node("Relu", made), 1 / 16, 128))
    assert int8_layers(model) == {}
    assert columns_that_fit(model) == {}


def test_a_layer_whose_result_others_read_in_float_stays_as_it_is():
    graph = Graph((1, 6, 8))
    weights = graph.weights((4, 1, 3, 3), "conv/kernel", axis=0)
    made = graph.node("Conv", graph.quantized("x"), weights, name="conv", pads=[1, 1, 1, 1])
    added = graph.node("Add", graph.quantized(made, 1 / 16), made)
    assert columns_that_fit(graph.model(graph.quantized(added, 1 / 8))) == {}


def test_a_layer_of_one_dimension_stays_as_it_is():
    graph = Graph((1, 8))
    weights = graph.weights((4, 1, 3), "conv/kernel", axis=0)
    made = graph.node("Conv", graph.quantized("x"), weights, name="conv", pads=[1, 1])
    assert columns_that_fit(graph.model(graph.quantized(made, 1 / 16))) == {}


def test_a_layer_that_shares_its_weights_stays_as_it_is():
    graph = Graph((1, 6, 8))
    weights = graph.weights((1, 1, 3, 3), "kernel", axis=0)
    tensor = graph.quantized("x")
    for name in ("first", "second"):
        tensor = graph.quantized(
            graph.node("Conv", tensor, weights, name=name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        )
    assert columns_that_fit(graph.model(tensor)) == {}
