"""Fast int8 sums on an x86 with AVX2 and without VNNI saturate, unless the model is made for it.

``vpmaddubsw`` adds two products of a byte by a signed byte in 16 bits: 2 × 255 × 127 = 64,770 becomes
32,767.
"""

import json
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantize.layout import laid_out
from compress.quantize.static import QuantizeStatic, quantize_static
from deploy.bundle.make import bundle_model
from deploy.evalset import EvalSet
from deploy.session import open_model
from tests.compress.quantize.applying import apply
from tests.compress.quantize.networks import images, network, task_with
from tests.emulated.processors import on_haswell, said_by

pytestmark = pytest.mark.emulated

FEATURES = 64
RUN = (
    "import sys, json, numpy as np; from pathlib import Path; "
    "from deploy.session import open_model; "
    "from deploy.record import SessionOptions; "
    "options = SessionOptions(exact_sums=sys.argv[3] == 'exact'); "
    "print(json.dumps(open_model(Path(sys.argv[1]), options).run(np.load(sys.argv[2])).tolist()))"
)


def run_on_haswell(model, x, folder, sums):
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    np.save(folder / "x.npy", x)
    said = said_by(on_haswell("-c", RUN, folder / "m.onnx", folder / "x.npy", sums))
    return np.array(json.loads(said))


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


@pytest.mark.parametrize(("sums", "expected"), [("fast", 1_048_544), ("exact", 2_072_640)])
def test_the_sum_of_64_products_saturates_unless_exact_sums_are_asked_for(sums, expected, tmp_path):
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["sum"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ("n", FEATURES))],
        [helper.make_tensor_value_info("sum", TensorProto.INT32, ("n", 1))],
        [numpy_helper.from_array(np.full((FEATURES, 1), 127, np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    seen = run_on_haswell(model, np.full((1, FEATURES), 255, np.uint8), tmp_path, sums)
    assert seen.tolist() == [[expected]]
    assert (32 * 32_767, FEATURES * 255 * 127) == (1_048_544, 2_072_640)


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2"])
def test_what_is_laid_out_answers_there_as_what_it_was_made_of(target, tmp_path):
    model = apply(network(), QuantizeStatic(target=target))
    made, x = laid_out(model, {"stem": 4, "conv": 2}), images(20, seed=2)
    plain, laid = (run_on_haswell(one, x, tmp_path, "exact") for one in (model, made))
    np.testing.assert_array_equal(laid, plain)


SATURATED = 16320 * 1_048_544 / 2_072_640


@pytest.mark.parametrize(
    ("target", "sums", "expected"),
    [
        ("x86-vnni", "fast", SATURATED),
        ("x86-vnni", "exact", 16320),
        ("arm64", "fast", SATURATED),
        ("arm64", "exact", 16320),
        ("x86-avx2", "fast", 16320),
        ("x86-avx2", "exact", 16320),
    ],
)
def test_fast_sums_are_right_there_only_if_the_model_was_quantized_for_it(
    target, sums, expected, tmp_path
):
    model = quantized_for(target, np.ones((FEATURES, 1)))
    x = np.full((1, FEATURES), 255, np.float32)
    assert open_model(dense(np.ones((FEATURES, 1))).SerializeToString()).run(x) == 16320
    assert run_on_haswell(model, x, tmp_path, sums) == pytest.approx(expected, rel=0.01)


def bundled(model, x, folder):
    content = model.SerializeToString()
    (folder / "m.onnx").write_bytes(content)
    EvalSet(x=x, y=open_model(content).run(x).argmax(axis=1)).save(folder / "set.npz")
    bundle_model(folder / "m.onnx", folder / "set.npz", folder / "m.lship")
    return folder / "m.lship"


def selftest_on_haswell(lship):
    done = on_haswell("-m", "deploy", "selftest", lship, "--json")
    return json.loads(done.stdout), done.returncode


def with_fast_sums(lship, to):
    """Copy a bundle, but for its asking for exact sums."""
    with zipfile.ZipFile(lship) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "manifest.json":
                manifest = json.loads(content)
                manifest["session"]["exact_sums"] = False
                content = json.dumps(manifest).encode()
            new.writestr(name, content)
    return to


# The brighter, the more the first class gains on the second, until both saturate.
TWO = np.stack([np.full(FEATURES, 1.0), np.full(FEATURES, 0.7)], axis=1)


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2"])
def test_a_bundle_answers_there_as_it_does_here(target, tmp_path):
    lship = bundled(quantized_for(target, TWO), steps(), tmp_path)
    found, code = selftest_on_haswell(lship)
    assert (found["passed"], code) == (True, 0), found["sentence"]


def test_the_selftest_tells_a_bundle_whose_sums_saturate(tmp_path):
    lship = bundled(quantized_for("x86-vnni", TWO), steps(), tmp_path)
    found, code = selftest_on_haswell(with_fast_sums(lship, tmp_path / "fast.lship"))
    assert (found["passed"], code) == (False, 1), found["sentence"]


def test_convolutions_quantized_for_it_are_right_too(tmp_path):
    model = quantize_static(network(), QuantizeStatic(target="x86-avx2"), task_with(images()))
    found, _ = selftest_on_haswell(bundled(model, images(seed=2), tmp_path))
    assert found["passed"], found["sentence"]
