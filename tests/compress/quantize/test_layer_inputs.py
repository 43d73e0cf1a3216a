import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from compress.quantize.corrections import matrix_of
from compress.quantize.layer_inputs import inputs_of, rows_of
from deploy.graph import weighted_nodes
from tests.compress.quantize.networks import depthwise_chain, images


def convolution(**attributes):
    rng = np.random.default_rng(0)
    group = attributes.get("group", 1)
    kernel = rng.normal(size=(4, 4 // group, 3, 2)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", 1, ("n", 4, 7, 6))],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(kernel, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 0, 2, 1]},
        {"strides": [2, 1], "pads": [1, 1, 1, 1]},
        {"dilations": [2, 3]},
        {"group": 2, "pads": [1, 1, 1, 1]},
        {"group": 4},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
    ],
    ids=str,
)
def test_rows_times_weights_are_what_onnx_runtime_computes(attributes):
    model = convolution(**attributes)
    x = np.random.default_rng(1).normal(size=(3, 4, 7, 6)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    (found,) = weighted_nodes(model.graph)
    got = rows_of(x, found) @ matrix_of(found).transpose(0, 2, 1)  # (groups, products, outputs)
    got = got.transpose(0, 2, 1).reshape(4, 3, -1).transpose(1, 0, 2).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_some_places_of_a_result_are_rows_among_all_places():
    (found,) = weighted_nodes(convolution().graph)
    x = np.random.default_rng(1).normal(size=(1, 4, 7, 6)).astype(np.float32)
    everything = {row.tobytes() for row in rows_of(x, found)[0]}
    some = [row.tobytes() for row in rows_of(x, found, places=6, first=2)[0]]
    assert len(set(some)) == 6
    assert set(some) < everything


def test_two_equal_models_give_a_layer_equal_inputs():
    model = depthwise_chain()
    found = weighted_nodes(model.graph)[1]
    seen = inputs_of(model, model, found, images(70))
    np.testing.assert_array_equal(seen.mean, seen.float_mean)
    np.testing.assert_array_equal(seen.moments.second, seen.moments.cross)
    centred = seen.centred()
    assert (np.linalg.eigvalsh(centred.second) > -1e-6).all()
