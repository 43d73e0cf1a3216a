import json

import msgspec
import numpy as np
import pytest

from deploy.bundle import make
from deploy.bundle.make import Label, bundle_model, bundle_run
from deploy.bundle.manifest import Manifest, encode
from deploy.bundle.opened import open_bundle
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.report.verdict import best_variant
from tests.deploy import tiny_onnx
from tests.deploy.bundle import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny.write_run(folder)
    return folder


def test_the_same_variant_gives_the_same_bytes(run, tmp_path):
    for name in ("a", "b"):
        bundle_run(run, tmp_path / f"{name}.lship", variant="int8")
    assert (tmp_path / "a.lship").read_bytes() == (tmp_path / "b.lship").read_bytes()


def test_without_a_name_the_verdicts_choice_is_bundled(run, tmp_path):
    bundle = bundle_run(run, tmp_path / "best.lship")
    best = best_variant(make.read_results(run / "results.json"))
    assert bundle.manifest.lineage.variant == best.name
    assert bundle.manifest.name == f"demo-{best.name}"


def test_the_manifest_says_what_the_run_measured(run, tmp_path):
    manifest = bundle_run(run, tmp_path / "m.lship", variant="int8").manifest
    assert (manifest.quality.score.value, manifest.quality.samples) == (0.986, 2000)
    assert manifest.quality.delta.value == -0.05
    assert manifest.latency.p50_ms.value == 0.0871
    assert manifest.latency.speedup.value == 1.828
    assert manifest.latency.cpu.startswith("Intel")
    assert manifest.lineage.recipe == "demo"
    assert manifest.licences.data == "CC BY-SA 3.0, LeCun, Cortes and Burges"


def test_the_manifest_says_what_the_model_is(lship):
    manifest = open_bundle(lship).manifest
    assert manifest.labels == tiny.LABELS
    assert manifest.preprocess == tiny.ABOUT.preprocess
    assert (manifest.input.name, manifest.input.shape, manifest.input.dtype) == (
        "x",
        (3,),
        "float32",
    )
    assert (manifest.output.name, manifest.output.shape) == ("scores", (3,))
    assert (manifest.raw.shape, manifest.raw.dtype) == ((1, 3), "uint8")
    assert (manifest.requires.onnxruntime, manifest.requires.opsets) == ("1.12", {"": 17})
    assert manifest.lineage.parent == "ab" * 32
    assert manifest.scores == "logits"
    assert manifest.quality is None
    assert set(manifest.files) == {"model.onnx", "golden.npz", "MODEL_CARD.md"}


def test_the_manifest_is_json_and_comes_back_without_loss(lship):
    manifest = open_bundle(lship).manifest
    assert json.loads(encode(manifest))["schema"] == 2
    assert msgspec.json.decode(encode(manifest), type=Manifest) == manifest


def test_the_golden_scores_are_those_of_the_session_that_ships(lship):
    bundle = open_bundle(lship)
    assert np.array_equal(bundle.session().scores(bundle.golden.x), bundle.golden.scores)
    assert len(bundle.golden.x) == 12
    assert np.bincount(bundle.golden.scores.argmax(axis=1)).tolist() == [4, 4, 4]


def test_a_model_that_ends_in_a_softmax_answers_with_probabilities(tmp_path):
    paths = tiny.write_model(tmp_path, tiny.model(softmax=True))
    assert bundle_model(*paths, tmp_path / "p.lship").manifest.scores == "probabilities"


def test_a_model_without_labels_gets_numbers(tmp_path):
    about = msgspec.structs.replace(tiny.ABOUT, labels=())
    paths = tiny.write_model(tmp_path, tiny.model(about))
    assert bundle_model(*paths, tmp_path / "p.lship").manifest.labels == ("0", "1", "2")


def test_the_maker_names_and_numbers_it(tmp_path):
    label = Label(name="colours", version="2.1.0-rc.1", licence="MIT")
    bundle = bundle_model(*tiny.write_model(tmp_path), tmp_path / "c.lship", label=label)
    assert (bundle.id.name, bundle.id.version) == ("colours", "2.1.0-rc.1")
    assert bundle.manifest.licences.model == "MIT"
    assert bundle.card.startswith("# colours 2.1.0-rc.1\n")


@pytest.mark.parametrize(
    "label", [Label(name="a b"), Label(name="../x"), Label(version="1.0"), Label(version="01.0.0")]
)
def test_a_name_or_version_that_is_none_is_refused(tmp_path, label):
    with pytest.raises(UserError, match=r"Expected `str` matching"):
        bundle_model(*tiny.write_model(tmp_path), tmp_path / "c.lship", label=label)
    assert not (tmp_path / "c.lship").exists()


def test_a_variant_that_is_not_there_is_told_which_are(run, tmp_path):
    with pytest.raises(UserError, match="no variant 'int4'; it has baseline, pruned, int8"):
        bundle_run(run, tmp_path / "x.lship", variant="int4")


def test_a_file_that_is_not_the_one_that_was_measured_is_refused(tmp_path):
    tiny.write_run(tmp_path)
    (tmp_path / "variants/int8/model.onnx").write_bytes(tiny.model())
    with pytest.raises(UserError, match="is not the file that was measured"):
        bundle_run(tmp_path, tmp_path / "x.lship", variant="int8")


def test_labels_that_are_fewer_than_the_scores_are_refused(tmp_path):
    about = msgspec.structs.replace(tiny.ABOUT, labels=("a", "b"))
    with pytest.raises(UserError, match="2 labels but 3 scores"):
        bundle_model(*tiny.write_model(tmp_path, tiny.model(about)), tmp_path / "x.lship")


def test_values_of_more_targets_than_the_model_has_are_refused(tmp_path):
    folder = tiny.bundle_of("regression", tmp_path / "light").parent
    samples = EvalSet.load(folder / "test.npz", "regression")
    two = EvalSet(x=samples.x, y=np.repeat(samples.y, 2, axis=1))
    two.save(folder / "two.npz")
    with pytest.raises(UserError, match=r"gives 1 numbers a sample, y has 2; give the data"):
        bundle_model(folder / "model.onnx", folder / "two.npz", tmp_path / "x.lship")


def test_a_model_that_answers_nan_is_not_shipped(tmp_path):
    broken = tiny_onnx.linear(np.eye(3) * np.nan, metadata=tiny.ABOUT.to_props())
    with pytest.raises(UserError, match="scores must be numbers"):
        bundle_model(*tiny.write_model(tmp_path, broken), tmp_path / "x.lship")


def test_markup_in_a_label_is_shown_as_it_is_in_the_card(tmp_path):
    about = msgspec.structs.replace(tiny.ABOUT, labels=("<script>", "a|b", "*c*"))
    paths = tiny.write_model(tmp_path, tiny.model(about))
    card = bundle_model(*paths, tmp_path / "x.lship").card
    assert "\\<script\\>, a\\|b, \\*c\\*" in card


def test_the_card_of_a_run_says_how_good_and_how_fast(run, tmp_path):
    card = bundle_run(run, tmp_path / "m.lship", variant="int8").card
    assert "Accuracy 98.60\u202f% [97.98, 99.03] on 2,000 test samples" in card
    assert "0.0871 [0.0841, 0.0901] ms (median), 1.83 [1.74, 1.90] times as fast" in card
