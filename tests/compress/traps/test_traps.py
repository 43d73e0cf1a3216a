"""What a release of ONNX Runtime must do with the graphs that are known to go wrong.

Each trap says which operators the optimised graph holds and how far the result may be from that of
the graph as it is written. A new release that fails here has changed something that lightship
relies on, or mended something that lightship works around.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from compress.quantize.calibrate import calibrate
from compress.quantize.layout import laid_out
from deploy.errors import UserError
from deploy.graph import weighted_nodes
from deploy.kernels import int8_layers, obstacle, optimized
from deploy.record import SessionOptions
from deploy.session import open_model
from tests.compress.quantize.networks import images, network
from tests.compress.traps.graphs import RELEASE, Graph, as_written, requantizing

SHIPPED = SessionOptions()
AS_OTHERS_OPEN_IT = SessionOptions(disabled_optimizers=())


@dataclass
class Trap:
    """``steps`` is the tolerance, in steps of ``step``, the grid of the result."""

    model: object
    int8: set
    holds: set = field(default_factory=set)
    lacks: set = field(default_factory=set)
    step: float = 1 / 16
    steps: float = 1.0


def conv(graph, tensor, name, *, inputs=4, outputs=4, group=1, axis=0, bias=None, stored="int8"):
    shape = (outputs, inputs // group, 3, 3)
    if stored == "int8":
        weights = graph.weights(shape, f"{name}/kernel", axis=axis)
    else:
        values = graph.random.normal(size=shape).astype(np.float32) / 4
        weights = graph.constant(values, f"{name}/kernel")
    given = (tensor, weights, *([bias] if bias else []))
    return graph.node("Conv", *given, name=name, pads=[1, 1, 1, 1], group=group)


def chain(middle, *, opset=17):
    """Return conv "a" → ``middle`` → conv "b", all of it quantized."""
    graph = Graph((4, 6, 6), opset=opset)
    tensor = graph.quantized(conv(graph, graph.quantized("x"), "a"), 1 / 16)
    tensor = graph.quantized(middle(graph, tensor), 1 / 16)
    return graph.model(graph.quantized(conv(graph, tensor, "b"), 1 / 4))


def excluded():
    graph = Graph((4, 6, 6))
    tensor = graph.quantized(conv(graph, graph.quantized("x"), "a"), 1 / 16)
    tensor = graph.quantized(conv(graph, tensor, "middle", stored="float"), 1 / 8)
    return graph.model(graph.quantized(conv(graph, tensor, "b"), 1 / 4))


def clipped(low, high, scale, zero):
    graph = Graph((4, 6, 6))
    bounds = (graph.constant(np.float32(low)), graph.constant(np.float32(high)))
    tensor = graph.node("Clip", conv(graph, graph.quantized("x"), "a"), *bounds)
    return graph.model(graph.quantized(tensor, scale, zero))


def joined(kind, **attributes):
    graph = Graph((4, 6, 6))
    tensor = graph.quantized("x")
    left = graph.quantized(conv(graph, tensor, "a"), 1 / 16)
    right = graph.quantized(conv(graph, tensor, "b"), 1 / 64, 100)
    return graph.model(graph.quantized(graph.node(kind, left, right, **attributes), 1 / 8))


def single(*, scale=1 / 16, zero=128, **settings):
    graph = Graph((4, 6, 6))
    tensor = conv(graph, graph.quantized("x"), "a", **settings)
    return graph.model(graph.quantized(tensor, scale, zero))


def biased(bias, scale):
    graph = Graph((4, 6, 6))
    bias = graph.bias([bias, 0, 0, 5], 1 / 128 / 128)
    tensor = conv(graph, graph.quantized("x"), "a", axis=None, bias=bias)
    return graph.model(graph.quantized(tensor, scale))


def pool(graph, tensor):
    return graph.node("MaxPool", tensor, kernel_shape=[2, 2], strides=[2, 2])


TRAPS = {
    "an excluded convolution between Q and DQ": Trap(
        excluded(), int8={"a", "b"}, holds={"Conv"}, step=1 / 4
    ),
    **{
        f"MaxPool of opset {opset}": Trap(
            chain(pool, opset=opset), {"a", "b"}, {"NhwcMaxPool"}, {"MaxPool"}, step=1 / 4
        )
        for opset in (13, 17, 19, 21, 22)
    },
    "ReLU6 whose whole range is quantized": Trap(
        clipped(0, 6, 6 / 255, 0), {"a"}, lacks={"Clip", "FusedConv"}, step=6 / 255
    ),
    "ReLU6 quantized below its bound": Trap(
        clipped(0, 6, 4 / 255, 0), {"a"}, lacks={"Clip", "FusedConv"}, step=4 / 255
    ),
    "Clip quantized beyond its bounds": Trap(
        clipped(0, 6, 8 / 255, 64), set(), holds={"FusedConv"}, step=8 / 255
    ),
    "HardSwish between convolutions": Trap(
        chain(lambda graph, tensor: graph.node("HardSwish", tensor)),
        {"a", "b"}, {"DequantizeLinear", "HardSigmoid", "Mul"}, step=1 / 4, steps=2,
    ),
    "Add of different scales": Trap(joined("Add"), {"a", "b"}, {"QLinearAdd"}, {"Add"}, 1 / 8),
    "Concat of different scales": Trap(
        joined("Concat", axis=1), {"a", "b"}, {"QLinearConcat"}, {"Concat"}, 1 / 8
    ),
    "a depthwise convolution, per channel": Trap(single(group=4), {"a"}, lacks={"Conv"}),
    "a grouped convolution, per channel": Trap(single(group=2, outputs=8), {"a"}, lacks={"Conv"}),
    "a bias far beyond the products": Trap(biased(2**30, 1000.0), {"a"}, step=1000.0),
    "a constant output (scale 0)": Trap(single(scale=0.0), {"a"}, step=0.0),
    "an output of next to no range": Trap(single(scale=1e-38), {"a"}, step=1e-38),
}  # fmt: skip


def trap_of(name):
    if name == "MaxPool of opset 22" and RELEASE < (1, 21):
        pytest.skip("this release of ONNX Runtime opens models up to opset 21")
    return TRAPS[name]


def samples():
    return np.random.default_rng(1).uniform(-1, 1, (1, 4, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("name", TRAPS)
def test_onnx_runtime_runs_the_kernels_that_the_trap_asks_for(name):
    trap = trap_of(name)
    kinds = {node.op_type for node in optimized(trap.model, target="x86-vnni").graph.node}
    assert set(int8_layers(trap.model, target="x86-vnni")) == trap.int8
    assert trap.holds <= kinds
    assert not trap.lacks & kinds


@pytest.mark.parametrize("name", TRAPS)
def test_the_result_is_that_of_the_graph_as_it_is_written(name):
    trap, x = trap_of(name), samples()
    got = open_model(trap.model.SerializeToString(), SHIPPED).run(x)
    expected = as_written(trap.model, x)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(got, expected, rtol=0, atol=trap.steps * trap.step * 1.001)


def float_stem():
    """Return a float convolution → conv "b" → Add of both, quantized: 16 channels fill a block."""
    graph = Graph((4, 6, 6))
    stem = graph.node("Relu", conv(graph, "x", "stem", outputs=16, stored="float"))
    stem = graph.quantized(stem, 1 / 16, 0)
    left = graph.quantized(conv(graph, stem, "b", inputs=16, outputs=16), 1 / 4)
    added = graph.quantized(graph.node("Add", stem, left), 1 / 2)
    return graph.model(graph.quantized(conv(graph, added, "c", inputs=16, outputs=16), 1))


def thin():
    graph = Graph((4, 6, 6))
    tensor = graph.quantized(conv(graph, graph.quantized("x"), "a"), 1 / 16)
    return graph.model(graph.quantized(conv(graph, tensor, "b"), 1 / 4))


@pytest.mark.parametrize(
    ("model", "columns"), [(float_stem(), {}), (thin(), {"a": 2})], ids=["border", "columns"]
)
def test_what_is_laid_out_keeps_its_kernels_and_is_transposed_less_often(model, columns):
    """At most where the model is given its image and gives its result."""
    made = laid_out(model, columns)
    kernels = int8_layers(made, target="x86-vnni")
    assert kernels == int8_layers(model, target="x86-vnni")
    kinds = [node.op_type for node in optimized(made, target="x86-vnni").graph.node]
    assert kinds.count("Transpose") <= 2
    assert "Conv" not in kinds or "ReorderOutput" in kinds
    np.testing.assert_array_equal(
        open_model(made.SerializeToString(), SHIPPED).run(samples()),
        open_model(model.SerializeToString(), SHIPPED).run(samples()),
    )


@requantizing
def test_without_the_session_option_onnx_runtime_quantizes_what_was_excluded():
    """If this fails, ONNX Runtime has mended it: the option and the guard may go."""
    model = excluded()
    assert set(int8_layers(model, options=AS_OTHERS_OPEN_IT)) == {"a", "middle", "b"}
    off = open_model(model.SerializeToString(), AS_OTHERS_OPEN_IT).run(samples())
    assert np.abs(off - as_written(model, samples())).max() >= 1 / 4


def test_a_clip_that_cannot_be_absorbed_is_told():
    model = clipped(0, 6, 8 / 255, 64)
    (found,) = weighted_nodes(model.graph)
    told = obstacle(model, found, target="x86-vnni")
    assert "the range of the QuantizeLinear behind it reaches further" in told.pattern


@pytest.mark.parametrize("bias", [2**31 - 1, -(2**31)])
def test_a_bias_at_the_edge_of_int32_wraps_around(bias):
    """The kernel adds in 32 bits: what quantizes must leave room for the products."""
    model = biased(bias, 1000.0)
    got = open_model(model.SerializeToString(), SHIPPED).run(samples())
    expected = as_written(model, samples())
    flipped = np.abs(got - expected) > 2**31 / 128**2
    assert flipped[:, 0].any()
    assert not flipped[:, 1:].any()


def test_a_scale_that_is_no_number_passes_silently():
    """ONNX Runtime opens and runs it: only the calibration can refuse it."""
    model = single(scale=math.nan)
    assert int8_layers(model, target="x86-vnni")
    assert np.isnan(open_model(model.SerializeToString(), SHIPPED).run(samples())).all()


def test_nan_in_calibration_is_refused_by_us_before_a_range_is_made_of_it():
    x = images()
    x[3, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="NaN or infinity in sample 3"):
        calibrate(network(), x, method="minmax", percentile=99.99, operators=("Conv",))
