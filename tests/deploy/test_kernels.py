"""Which int8 sums can overflow needs the onnx package to look at a graph, which a device does not have."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.graph import weighted_nodes
from deploy.kernels import can_saturate
from deploy.machine import this_target
from deploy.record import SessionOptions
from deploy.session import open_model
from tests.deploy.tiny_onnx import model

try:
    import onnx
except ModuleNotFoundError:
    onnx = None

needs_onnx = pytest.mark.skipif(onnx is None, reason="a device has no onnx: nothing to look with")
I8, U8 = np.int8, np.uint8


def weighted(weights):
    """Return a model that multiplies uint8 inputs with weights ``(inputs, outputs)``, and its layer."""
    inputs, outputs = weights.shape
    made = onnx.load_from_string(
        model(
            [("MatMulInteger", ["x", "w"], ["y"])],
            inputs={"x": ("uint8", ("batch", inputs))},
            outputs={"y": ("int32", ("batch", outputs))},
            initializers={"w": weights},
        )
    )
    return made, weighted_nodes(made.graph)[0]


@needs_onnx
@pytest.mark.parametrize(
    ("weights", "can"),
    [
        (I8([[127], [1], [1]]), False),
        (I8([[127], [2], [1]]), True),
        (I8([[-127], [127]]), False),
        (I8([[-65], [127], [-64]]), True),
        (I8([[64, 127], [64, 0]]), False),
        (U8([[255], [255]]), False),
    ],
    ids=[
        "128 together",
        "129 together",
        "unlike signs",
        "both below zero",
        "two outputs",
        "unsigned",
    ],
)
def test_two_weights_of_one_output_that_reach_beyond_128_can_overflow(weights, can):
    assert can_saturate(*weighted(weights), target="x86-avx2") == can


@needs_onnx
@given(
    weights=hnp.arrays(np.int8, (8, 2), elements=st.integers(-127, 127)),
    bright=hnp.arrays(np.bool_, 8),
)
def test_a_sum_that_cannot_overflow_is_exact_here(weights, bright):
    """On any machine: with the largest inputs that there are."""
    x = np.where(bright, 255, 0).astype(U8)[None]
    made, layer = weighted(weights)
    assume(not can_saturate(made, layer, target="x86-avx2"))
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    assert (session.run(None, {"x": x})[0] == x.astype(int) @ weights.astype(int)).all()


@needs_onnx
@pytest.mark.skipif(this_target() != "x86-avx2", reason="this processor adds int8 products exactly")
def test_a_sum_that_can_overflow_does_so_here_unless_the_session_asks_for_exact_ones():
    """64 products of 255 and 127: half of what they are."""
    made, layer = weighted(np.full((64, 1), 127, I8))
    assert can_saturate(made, layer)
    content, bright = made.SerializeToString(), np.full((1, 64), 255, U8)
    fast = open_model(content, SessionOptions(exact_sums=False)).run(bright)
    assert fast.tolist() == [[32 * 32_767]]
    assert open_model(content).run(bright).tolist() == [[64 * 255 * 127]]
