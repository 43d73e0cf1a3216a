"""Bundles of models that are no ONNX file: LiteRT's and ONNX Runtime's own format."""

import sys
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from deploy import load, needs
from deploy.bundle.container import MODEL, ORT, TFLITE, read_container, write_container
from deploy.bundle.make import bundle_model, bundle_run
from deploy.bundle.opened import checked, open_bundle
from deploy.bundle.selftest import selftest
from deploy.bundle.unpack import to_bench
from deploy.check.int8 import products
from deploy.cli import cli
from deploy.errors import BundleError, MissingExtraError, UserError
from deploy.needs import least_litert, operator_versions
from deploy.tflite import read_tflite
from tests.deploy import tiny_tflite
from tests.deploy.bundle import tiny
from tests.deploy.bundle.test_damage import drawn_from, mutated, opened
from tests.deploy.bundle.test_opened import rebuilt


def tflite(**settings):
    return tiny_tflite.linear(8 * np.eye(3), metadata=tiny.ABOUT.to_props(), **settings)


@pytest.fixture(scope="module")
def litert(tmp_path_factory):
    """A bundle file of a LiteRT model that no test may change."""
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    folder = tmp_path_factory.mktemp("litert")
    (folder / "model.tflite").write_bytes(tflite())
    tiny.samples().save(folder / "test.npz")
    bundle_model(folder / "model.tflite", folder / "test.npz", folder / "m.lship")
    return folder / "m.lship"


@pytest.fixture(scope="module")
def ort(tmp_path_factory):
    """A bundle file of the tiny model in ORT format that no test may change."""
    folder = tmp_path_factory.mktemp("ort")
    bundle_model(*tiny.write_model(folder / "colours"), folder / "m.lship", form="ort")
    return folder / "m.lship"


def test_a_litert_bundle_answers_and_passes_its_self_test(litert):
    x = tiny.samples().x
    assert load(litert).predict(x).labels == [tiny.LABELS[i] for i in tiny.samples().y]
    found = selftest(litert)
    assert found.passed
    assert "LiteRT 2." in found.sentence
    assert "ONNX" not in found.sentence


def test_a_litert_bundle_says_what_it_needs(litert):
    bundle = open_bundle(litert)
    requires = bundle.manifest.requires
    assert (requires.onnxruntime, requires.opsets) == (None, {})
    assert requires.operators == {"FULLY_CONNECTED": 1}
    assert bundle.model_name == TFLITE
    assert "Needs | LiteRT (ai-edge-litert)" in bundle.card
    with zipfile.ZipFile(litert) as plain:
        assert plain.testzip() is None
        assert TFLITE in plain.namelist()


def test_a_litert_bundle_is_a_folder_as_well(litert, tmp_path):
    write_container(read_container(litert), tmp_path / "m")
    assert open_bundle(tmp_path / "m").digest == open_bundle(litert).digest
    (tmp_path / "m" / MODEL).write_bytes(b"second")
    with pytest.raises(BundleError, match="holds more than one model"):
        open_bundle(tmp_path / "m")


def test_equal_litert_models_give_equal_bundles(litert, tmp_path):
    folder = litert.parent
    bundle_model(folder / "model.tflite", folder / "test.npz", tmp_path / "again.lship")
    assert (tmp_path / "again.lship").read_bytes() == litert.read_bytes()


def test_without_litert_the_bundle_is_whole_but_says_what_to_install(litert, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    open_bundle(litert)
    with pytest.raises(MissingExtraError, match=r"pip install 'lightship\[litert\]'"):
        load(litert)
    with pytest.raises(MissingExtraError):
        selftest(litert)


def test_an_older_litert_than_the_bundle_needs_is_refused(litert, monkeypatch):
    monkeypatch.setattr("deploy.bundle.opened.litert_version", lambda: "1.2.0")
    with pytest.raises(UserError, match=r"needs LiteRT 2\.\d or newer, this is 1\.2\.0; install"):
        open_bundle(litert).session()


def test_a_model_of_the_other_format_under_the_name_is_refused(litert, lship):
    swapped = {**rebuilt(litert, **{TFLITE: tiny.model()})}
    with pytest.raises(BundleError, match=r"model\.tflite is no \.tflite file"):
        checked(swapped, "here")
    with pytest.raises(BundleError, match=r"model\.onnx needs other versions"):
        checked(rebuilt(lship, **{MODEL: tflite()}), "here")


def test_operators_other_than_the_manifests_are_refused(litert):
    with pytest.raises(BundleError, match=r"model\.tflite needs other versions"):
        checked(rebuilt(litert, **{TFLITE: tflite(int8=True)}), "here")


@pytest.mark.parametrize("form", ["litert", "ort"])
def test_no_damage_to_such_a_bundle_is_accepted(form, request):
    data, rng = request.getfixturevalue(form).read_bytes(), drawn_from(3)
    assert opened(data) is not None
    for _ in range(2000):
        changed = mutated(data, rng)
        assert changed == data or opened(changed) is None


def test_what_is_timed_of_a_litert_bundle_is_its_model(litert):
    with to_bench([litert]) as ((file,), (named,)):
        assert file.suffix == ".tflite"
        assert file.read_bytes() == tflite()
    assert named.sha256 == open_bundle(litert).manifest.files[TFLITE].sha256


def test_the_gate_takes_a_litert_bundle_and_counts_its_int8_layers_by_type(litert):
    assert products(tflite(int8=True), np.zeros((1, 3), np.float32)).int8 == ("dense",)
    assert products(tflite(), np.zeros((1, 3), np.float32)).floating == ("dense",)
    result = CliRunner().invoke(cli, ["check", str(litert), "--max-size", "100kB"])
    assert result.exit_code == 0, result.output


def test_the_oldest_litert_is_read_from_what_the_converter_wrote_down():
    model = read_tflite(tflite())
    assert least_litert(model, "2.3.0") == "2.3"
    for said, least in (
        (b"1.5.0\0\0", "1.4"),
        (b"2.18.0", "1.4"),
        (b"2.19.0", "2.3"),
        (b"x", "2.3"),
    ):
        told = needs.Tflite(
            tensors=model.tensors,
            inputs=model.inputs,
            outputs=model.outputs,
            operators=model.operators,
            metadata={"min_runtime_version": said},
        )
        assert least_litert(told, "2.3.0") == least
    assert operator_versions(read_tflite(tflite(int8=True))) == {
        "DEQUANTIZE": 2,
        "FULLY_CONNECTED": 4,
        "QUANTIZE": 1,
    }


def test_a_bundle_in_ort_format_gives_the_scores_of_the_onnx_model(ort, lship):
    x = tiny.samples().x
    assert open_bundle(ort).model_name == ORT
    np.testing.assert_array_equal(load(ort).predict(x).scores, load(lship).predict(x).scores)
    assert selftest(ort).passed


def test_what_was_timed_of_the_onnx_file_is_not_said_of_its_ort_form(tmp_path):
    tiny.write_run(tmp_path / "run")
    bundle = bundle_run(tmp_path / "run", tmp_path / "o.lship", variant="int8", form="ort")
    assert bundle.manifest.latency is None
    assert bundle.manifest.quality is not None


def test_a_loose_ort_file_is_not_bundled(ort, tmp_path):
    (tmp_path / "model.ort").write_bytes(open_bundle(ort).model)
    tiny.samples().save(tmp_path / "test.npz")
    with pytest.raises(UserError, match=r"model\.ort: is in ORT format, .*give the ONNX model"):
        bundle_model(tmp_path / "model.ort", tmp_path / "test.npz", tmp_path / "m.lship")


def test_a_litert_model_has_no_ort_form(litert, tmp_path):
    with pytest.raises(UserError, match="only an ONNX model has an ORT form"):
        bundle_model(
            litert.parent / "model.tflite", litert.parent / "test.npz", tmp_path / "m", form="ort"
        )
    assert not (tmp_path / "m").exists()
