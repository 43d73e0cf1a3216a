import numpy as np
import pytest

from deploy import load
from deploy.bundle.make import bundle_model
from deploy.bundle.runtime import Predictions
from deploy.errors import UserError
from deploy.serve.refused import RefusedError
from deploy.serve.served import Models, Served, open_models, why_not_merged
from deploy.serve.wire import Asked, Wanted
from tests.deploy import tiny_onnx
from tests.deploy.bundle import tiny


def bundled(folder, content):
    """Return the runtime of a bundle of another model of the three colours."""
    bundle_model(*tiny.write_model(folder / "m", content), folder / "m.lship")
    return load(folder / "m.lship")


def centred_over_the_batch() -> bytes:
    """Subtract from every sample what is least in the whole batch, as a dynamic scale would."""
    return tiny_onnx.model(
        [
            ("ReduceMin", ["x"], ["least"], {"axes": [0, 1], "keepdims": 1}),
            ("Sub", ["x", "least"], ["centred"]),
            ("Gemm", ["centred", "w"], ["scores"]),
        ],
        inputs={"x": ("float32", ("batch", 3))},
        outputs={"scores": ("float32", ("batch", 3))},
        initializers={"w": np.diag([8, 9, 10]).astype(np.float32)},
        metadata=tiny.ABOUT.to_props(),
    )


def test_samples_share_a_run_only_if_that_changes_no_bit(tmp_path, bundles):
    assert why_not_merged(load(bundles[0]), max_batch=8) is None
    model = Served(bundled(tmp_path, centred_over_the_batch()), max_batch=8)
    assert "scores change by up to" in model.why_not_merged
    assert model.max_batch == 1


def test_a_model_of_one_sample_at_a_time_is_not_merged(tmp_path):
    runtime = bundled(tmp_path, tiny.model(batch=1))
    assert why_not_merged(runtime, max_batch=8) == "the model takes one sample at a time"
    assert why_not_merged(runtime, max_batch=1) == "it was asked not to"


def test_metadata_states_the_raw_sample(bundles):
    model = Served(load(bundles[2]), max_batch=8)
    said = model.metadata(("1.0.0",))
    assert said["inputs"] == [{"name": "x", "datatype": "UINT8", "shape": [-1, 8, 8]}]
    assert [(o["name"], o["datatype"], o["shape"]) for o in said["outputs"]] == [
        ("label", "BYTES", [-1]), ("probabilities", "FP64", [-1, 2]), ("scores", "FP32", [-1, 2]),
    ]  # fmt: skip
    assert said["parameters"]["labels"] == ["left", "right"]


def test_a_graph_whose_output_has_the_name_of_ours_keeps_out_of_its_way(tmp_path):
    content = tiny_onnx.model(
        [("Gemm", ["x", "w"], ["label"])],
        inputs={"x": ("float32", ("batch", 3))},
        outputs={"label": ("float32", ("batch", 3))},
        initializers={"w": 8 * np.eye(3, dtype=np.float32)},
        metadata=tiny.ABOUT.to_props(),
    )
    model = Served(bundled(tmp_path, content), max_batch=8)
    assert [spec.name for spec in model.outputs] == ["label", "probabilities", "scores"]


def test_the_version_given_first_answers_where_none_is_named(bundles):
    models = open_models(bundles[1::-1], threads=None, max_batch=1)
    assert models.versions("colours") == ("2.0.0", "1.0.0")
    assert models.find("colours", None).version == "2.0.0"
    assert models.find("colours", "1.0.0").version == "1.0.0"
    for name, version in (("colors", None), ("colours", "3.0.0")):
        with pytest.raises(RefusedError) as caught:
            models.find(name, version)
        assert caught.value.status == 404


def test_two_bundles_of_one_name_and_version_are_a_mistake(bundles):
    model = Served(load(bundles[0]), max_batch=1)
    with pytest.raises(UserError, match=r"colours 1\.0\.0 is served already"):
        Models([model, model])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_an_answer_is_refused_as_predict_refuses_it(bundles, bad):
    model = Served(load(bundles[0]), max_batch=1)
    scores = np.array([[1, bad, 0]], np.float32)
    asked = Asked(np.zeros((1, 1, 3)), (Wanted("label", False),), None, None)
    with pytest.raises(RefusedError, match="NaN") as caught:
        model.answer(asked, Predictions(scores, model.runtime.labels, logits=True))
    assert caught.value.status == 400


def test_nan_in_a_sample_of_floats_is_refused(floats):
    model = Served(load(floats), max_batch=1)
    assert model.input.datatype == "FP32"
    asked = Asked(np.full((1, 3), np.nan, "float32"), (Wanted("label", False),), None, None)
    with pytest.raises(RefusedError, match="NaN"):
        model.answer(asked, model.runtime.predict(asked.samples))
