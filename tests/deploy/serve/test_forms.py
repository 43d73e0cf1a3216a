"""Bundles of other forms than ONNX, served by a process of their own and asked by Triton's client."""

import sys

import numpy as np
import pytest
from click.testing import CliRunner

from deploy import load
from deploy.bundle.make import Label, bundle_model
from deploy.cli import cli
from tests.deploy import tiny_tflite
from tests.deploy.bundle import tiny

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

X = tiny.samples(12).x


def lite(**settings) -> bytes:
    return tiny_tflite.linear(8 * np.eye(3), metadata=tiny.ABOUT.to_props(), **settings)


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """A bundle of the same three colours in every form, by the name that it is served under."""
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    folder = tmp_path_factory.mktemp("forms")
    contents = {
        "litert": (lite(), "as-is"),
        "litert-int8": (lite(int8=True), "as-is"),
        "litert-one": (lite(free_batch=False), "as-is"),
        "onnx-one": (tiny.model(batch=1), "as-is"),
        "ort": (tiny.model(), "ort"),
        "ort-one": (tiny.model(batch=1), "ort"),
        "packed": (tiny.model(), "packed"),
    }
    made = {}
    for name, (content, form) in contents.items():
        model, data = tiny.write_model(folder / name, content)
        made[name] = folder / f"{name}.lship"
        bundle_model(model, data, made[name], label=Label(name=name), form=form)
    return made


@pytest.fixture(scope="module")
def server(serving, forms):
    with serving(*forms.values()) as running:
        yield running


@pytest.fixture
def triton(server):
    """Triton's client of that server, with eight connections."""
    http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    client = http.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=8)

    def given(x):
        tensor = http.InferInput("x", list(x.shape), "UINT8")
        tensor.set_data_from_numpy(x)
        return [tensor]

    client.ask = lambda name, x: client.infer(name, given(x))
    client.ask_later = lambda name, x: client.async_infer(name, given(x))
    yield client
    client.close()


PLATFORMS = {
    "litert": "litert_tflite",
    "litert-int8": "litert_tflite",
    "litert-one": "litert_tflite",
    "onnx-one": "onnxruntime_onnx",
    "ort": "onnxruntime_ort",
    "ort-one": "onnxruntime_ort",
    "packed": "onnxruntime_onnx",
}


@pytest.mark.parametrize("name", PLATFORMS)
def test_every_form_states_the_raw_sample_and_what_runs_it(triton, name):
    said = triton.get_model_metadata(name)
    assert triton.is_model_ready(name)
    assert said["platform"] == PLATFORMS[name]
    assert said["inputs"] == [{"name": "x", "datatype": "UINT8", "shape": [-1, 1, 3]}]
    assert [(o["name"], o["datatype"], o["shape"]) for o in said["outputs"]] == [
        ("label", "BYTES", [-1]), ("probabilities", "FP64", [-1, 3]), ("scores", "FP32", [-1, 3]),
    ]  # fmt: skip


@pytest.mark.parametrize("name", PLATFORMS)
@pytest.mark.parametrize("count", [1, 12], ids=["one sample", "many"])
def test_every_form_answers_as_predict_does_to_the_last_bit(triton, forms, name, count):
    found, expected = triton.ask(name, X[:count]), load(forms[name]).predict(X[:count])
    np.testing.assert_array_equal(found.as_numpy("scores"), expected.scores)
    np.testing.assert_array_equal(found.as_numpy("probabilities"), expected.probabilities)
    assert [label.decode() for label in found.as_numpy("label")] == expected.labels


def test_a_form_of_one_sample_at_a_time_is_not_merged_and_the_server_says_why(server):
    merged = {model["name"]: model["merged"] for model in server.ready["models"]}
    assert merged == {name: not name.endswith("-one") for name in PLATFORMS}
    reasons = {model["why_not"] for model in server.ready["models"] if not model["merged"]}
    assert reasons == {"the model takes one sample at a time"}


@pytest.mark.parametrize("name", ["litert", "litert-int8", "litert-one", "ort"])
def test_many_clients_at_once_are_each_answered_as_if_alone(triton, forms, name):
    runtime, rng = load(forms[name]), np.random.default_rng(0)
    asked = [rng.integers(0, 256, (1 + n % 5, 1, 3), dtype=np.uint8) for n in range(40)]
    later = [triton.ask_later(name, x) for x in asked]
    for x, found in zip(asked, later, strict=True):
        alone = np.concatenate([runtime.predict(sample).scores for sample in x])
        np.testing.assert_array_equal(found.get_result().as_numpy("scores"), alone)


def test_without_litert_its_bundle_is_refused_in_one_line(forms, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    refused = CliRunner().invoke(cli, ["serve", str(forms["litert"]), "--port", "0"])
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "pip install 'lightship[litert]'" in refused.stderr
