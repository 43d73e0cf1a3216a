"""Int8 sums on an x86 with AVX2 and without VNNI saturate, unless the model is made for it.

``vpmaddubsw`` adds two products of a byte by a signed byte in 16 bits: 2 × 255 × 127 = 64,770 becomes
32,767.
"""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantize.static import QuantizeStatic, quantize_static
from deploy.bundle.make import bundle_model
from deploy.evalset import EvalSet
from deploy.session import open_model
from tests.compress.quantize.networks import images, network, task_with
from tests.emulated.processors import on_haswell, said_by

pytestmark = pytest.mark.emulated

FEATURES = 64
RUN = (
    "import sys, json, numpy as np; from pathlib import Path; "
    "from deploy.session import open_model; "
    "print(json.dumps(open_model(Path(sys.argv[1])).run(np.load(sys.argv[2])).tolist()))"
)


def run_on_haswell(model, x, folder):
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    np.save(folder / "x.npy", x)
    return np.array(json.loads(said_by(on_haswell("-c", RUN, folder / "m.onnx", folder / "x.npy"))))


def dense(weights):
    """Return ``x`` (n, 64) → Gemm → scores, in float."""
    weights = np.asarray(weights, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["scores"], name="dense")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", FEATURES))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("n", weights.shape[1]))],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.zeros(weights.shape[1], np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def steps(n=40):
    """Samples of one brightness each, from black to 255 in equal steps."""
    return np.repeat(np.linspace(0, 255, n, dtype=np.float32)[:, None], FEATURES, axis=1)


def quantized_for(target, weights):
    return quantize_static(dense(weights), QuantizeStatic(target=target), task_with(steps()))


def test_the_sum_of_64_products_saturates(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["sum"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ("n", FEATURES))],
        [helper.make_tensor_value_info("sum", TensorProto.INT32, ("n", 1))],
        [numpy_helper.from_array(np.full((FEATURES, 1), 127, np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    seen = run_on_haswell(model, np.full((1, FEATURES), 255, np.uint8), tmp_path)
    assert seen.tolist() == [[1_048_544]]  # 32 × 32,767
    assert FEATURES * 255 * 127 == 2_072_640


@pytest.mark.parametrize(
    ("target", "expected"), [("x86-vnni", 16320 * 1_048_544 / 2_072_640), ("x86-avx2", 16320)]
)
def test_a_model_is_right_there_only_if_it_was_quantized_for_it(target, expected, tmp_path):
    model = quantized_for(target, np.ones((FEATURES, 1)))
    x = np.full((1, FEATURES), 255, np.float32)
    assert open_model(dense(np.ones((FEATURES, 1))).SerializeToString()).run(x) == 16320
    assert run_on_haswell(model, x, tmp_path) == pytest.approx(expected, rel=0.01)


def selftest_on_haswell(model, x, folder):
    content = model.SerializeToString()
    (folder / "m.onnx").write_bytes(content)
    EvalSet(x=x, y=open_model(content).run(x).argmax(axis=1)).save(folder / "set.npz")
    bundle_model(folder / "m.onnx", folder / "set.npz", folder / "m.lship")
    done = on_haswell("-m", "deploy", "selftest", folder / "m.lship", "--json")
    return json.loads(done.stdout), done.returncode


# The brighter, the more the first class gains on the second, until both saturate.
TWO = np.stack([np.full(FEATURES, 1.0), np.full(FEATURES, 0.7)], axis=1)


@pytest.mark.parametrize(("target", "passes"), [("x86-vnni", False), ("x86-avx2", True)])
def test_the_selftest_tells_a_bundle_that_saturates_from_one_that_does_not(
    target, passes, tmp_path
):
    found, code = selftest_on_haswell(quantized_for(target, TWO), steps(), tmp_path)
    assert (found["passed"], code) == (passes, 0 if passes else 1), found["sentence"]


def test_convolutions_quantized_for_it_are_right_too(tmp_path):
    model = quantize_static(network(), QuantizeStatic(target="x86-avx2"), task_with(images()))
    found, _ = selftest_on_haswell(model, images(seed=2), tmp_path)
    assert found["passed"], found["sentence"]
