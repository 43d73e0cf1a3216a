"""The layers that are timed are those that a network would have."""

import numpy as np
import onnxruntime as ort
import pytest

from deploy.machine import SCHEMES
from deploy.probes import SUMMED, Probe, probe_model, sum_model
from deploy.session import open_model, random_inputs

SMALL = Probe(size=5, kernel=3, depth=2)


@pytest.mark.parametrize("target", SCHEMES)
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(("operator", "sides"), [("conv", (5, 5)), ("dense", ())])
def test_a_probe_opens_without_onnx_and_keeps_its_width(operator, sides, precision, target):
    model = open_model(probe_model(operator, precision, 6, SMALL, SCHEMES[target]))
    assert model.input_shape == (6, *sides)
    outputs = model.run(random_inputs(model, 3, seed=0))
    assert outputs.shape == (3, 6, *sides)
    assert outputs.dtype == model.input_dtype
    assert len(np.unique(outputs)) > 2  # the numbers neither vanish nor saturate


@pytest.mark.parametrize(("operator", "kernel"), [("conv", "QLinearConv"), ("dense", "QGemm")])
@pytest.mark.parametrize("target", SCHEMES)
def test_every_layer_of_an_int8_probe_is_an_int8_kernel(operator, kernel, target):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: a device has none")
    from deploy.kernels import optimized

    probe = Probe(size=5, depth=3)
    model = onnx.load_from_string(probe_model(operator, "int8", 6, probe, SCHEMES[target]))
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in optimized(model, target=target).graph.node]
    assert kinds.count(kernel) == 3
    assert set(kinds) <= {kernel, "Transpose"}


def test_a_processor_without_vnni_gets_weights_of_7_bits():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: a device has none")
    for target, most in (("x86-avx2", 64), ("x86-vnni", 127)):
        model = onnx.load_from_string(probe_model("dense", "int8", 6, SMALL, SCHEMES[target]))
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        assert np.abs(stored["w0"].astype(int)).max() == most


def test_int8_and_float_probes_of_a_width_store_the_same_layer_in_fewer_bytes():
    sizes = [
        len(probe_model("conv", precision, 64, SMALL, SCHEMES["x86-vnni"]))
        for precision in ("float32", "int8")
    ]
    assert sizes[0] / sizes[1] > 3.5


def test_the_sum_is_that_of_the_products():
    x = np.arange(SUMMED, dtype=np.uint8)[None]
    assert open_model(sum_model()).run(x).tolist() == [[127 * int(x.sum())]]


@pytest.mark.parametrize("width", [8, 16, 64, 128])
@pytest.mark.parametrize("operator", ["conv", "dense"])
def test_layers_of_8_bits_give_here_what_they_give_in_float(operator, width):
    """On every machine, as a model is opened: sums that overflow would be far off."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: a device has none")
    content = probe_model(operator, "int8", width, Probe(size=6, depth=1), SCHEMES["x86-vnni"])
    model = onnx.load_from_string(content)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    count = int(np.prod(stored["w0"].dims))
    codes = np.where(np.arange(count) % 7 < 5, 127, -127)  # the largest there are
    stored["w0"].raw_data = codes.astype(np.int8).tobytes()
    step = width / count / 100  # results in the middle of their range
    stored["w0_scale"].raw_data = np.full(width, step, np.float32).tobytes()
    opened = open_model(model.SerializeToString())
    x = np.full((4, *opened.input_shape), 255, np.uint8)
    x[1:] -= np.random.default_rng(0).integers(0, 80, x[1:].shape, dtype=np.uint8)
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    expected = plain.run(None, {"x0": x})[0].astype(int)
    assert expected.std() > 1
    assert np.abs(opened.run(x).astype(int) - expected).max() <= 1
