"""The commands as a user of the device meets them."""

import json

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from deploy.bundle.container import write_container
from deploy.bundle.opened import open_bundle
from deploy.cli import cli
from deploy.record import MachineBench
from deploy.report.results import read_results
from tests.deploy.bundle import tiny
from tests.deploy.bundle.test_opened import rebuilt, replaced


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def done(*words):
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def one_line(*words):
    result = invoke(*words)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def run(tmp_path):
    tiny.write_run(tmp_path / "run")
    return tmp_path / "run"


def test_a_run_becomes_a_file_and_says_so(run, tmp_path):
    out = tmp_path / "m.lship"
    said = done("bundle", run, "--variant", "int8", "-o", out)
    assert said == f"{out}  demo-int8 1.0.0, {out.stat().st_size:,} bytes\n"


def test_a_run_becomes_a_folder(run, tmp_path):
    done("bundle", run, "-o", tmp_path / "m")
    assert open_bundle(tmp_path / "m").manifest.lineage.variant == "pruned-int8"


def test_a_single_model_becomes_a_bundle(tmp_path):
    model, data = tiny.write_model(tmp_path / "colours")
    words = ("--name", "c", "--model-version", "2.0.0", "--licence", "MIT", "--json")
    said = json.loads(done("bundle", model, "--data", data, "-o", tmp_path / "c.lship", *words))
    assert (said["bundle"]["name"], said["bundle"]["version"]) == ("c", "2.0.0")
    assert said["manifest"]["licences"] == {"model": "MIT", "data": "CC0"}


def test_a_single_model_without_samples_is_told_what_to_give(tmp_path):
    model, _ = tiny.write_model(tmp_path)
    assert "a single model needs --data" in one_line("bundle", model)


@pytest.mark.parametrize("label", [3, 2**40])
def test_labels_that_a_single_model_does_not_know_are_refused_and_nothing_is_written(
    tmp_path, label
):
    model, data = tiny.write_model(tmp_path / "colours")
    samples = tiny.samples()
    samples.y[5] = label
    samples.save(data)
    assert one_line("bundle", model, "--data", data, "-o", tmp_path / "c.lship") == (
        f"error: {data}: {model} tells classes 0 to 2, got {label} at index 5 of y; "
        "give the data of its own task"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["colours"]


def test_a_run_has_its_own_samples(run):
    assert "leave it out" in one_line("bundle", run, "--data", run / "test.npz")


def test_selftest_says_one_sentence(lship):
    assert done("selftest", lship).startswith("colours 1.0.0 passes: all digests are right")
    assert json.loads(done("selftest", lship, "--json"))["passed"] is True


def test_a_failed_selftest_is_one_sentence_and_exit_code_1(lship, tmp_path):
    bad = tmp_path / "bad.lship"
    bad.write_bytes(lship.read_bytes()[:-5])
    for words in (("selftest", bad), ("selftest", bad, "--json")):
        result = invoke(*words)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
    assert json.loads(invoke("selftest", bad, "--json").stdout)["passed"] is False
    assert len(invoke("selftest", bad).stdout.splitlines()) == 1


def test_a_selftest_of_nothing_is_a_mistake():
    assert "no such file; give a bundle" in one_line("selftest", "nowhere.lship")


def test_predict_prints_a_line_a_sample(lship, tmp_path):
    np.save(tmp_path / "x.npy", tiny.samples(3).x)
    lines = done("predict", lship, tmp_path / "x.npy", "--top", 2).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["x.npy[0]", "red"], ["x.npy[1]", "green"], ["x.npy[2]", "blue"],
    ]  # fmt: skip
    assert all(line.count("%") == 2 for line in lines)


def test_predict_prints_json(lship, tmp_path):
    np.save(tmp_path / "x.npy", tiny.samples(1).x[0])
    (said,) = json.loads(done("predict", lship, tmp_path / "x.npy", "--top", 9, "--json"))
    assert (said["sample"], said["label"]) == ("x.npy[0]", "red")
    assert sum(entry["probability"] for entry in said["top"]) == pytest.approx(1)


def test_predict_with_a_damaged_bundle_is_one_line(tmp_path):
    (tmp_path / "bad.lship").write_bytes(b"PK\3\4")
    np.save(tmp_path / "x.npy", tiny.samples(1).x)
    assert "is no bundle" in one_line("predict", tmp_path / "bad.lship", tmp_path / "x.npy")


def test_a_bundle_timed_elsewhere_comes_into_the_report(run, tmp_path):
    pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    bundle, baseline = tmp_path / "m.lship", run / "variants/baseline/model.onnx"
    done("bundle", run, "--variant", "int8", "-o", bundle)
    said = done("bench", baseline, bundle, "--processes", 5, "--batch", 2, "--json")
    bench = msgspec.json.decode(said, type=MachineBench)
    assert [model.path for model in bench.models] == [str(baseline), str(bundle)]
    assert bench.models[0].bundle is None
    assert bench.models[1].bundle.digest == open_bundle(bundle).digest
    (tmp_path / "pi4.json").write_text(said)
    done("report", run, "--add", tmp_path / "pi4.json")
    (machine,) = read_results(run / "results.json").machines
    assert machine.name == "pi4"
    assert [seen.variant for seen in machine.times] == ["baseline", "int8"]
    assert "Other machines" in (run / "report.html").read_text(encoding="utf-8")


def test_bench_refuses_a_damaged_bundle_and_a_missing_one(lship, tmp_path):
    (tmp_path / "bad.lship").write_bytes(lship.read_bytes()[:-5])
    result = invoke("bench", tmp_path / "bad.lship")
    assert result.exit_code == 2
    assert "error: " in result.stderr
    assert "no such file; give" in invoke("bench", tmp_path / "none.onnx").stderr


def test_bench_refuses_options_that_it_would_not_time(lship, tmp_path):
    files = rebuilt(lship, replaced("session", disabled_optimizers=("ConstantFolding",)))
    write_container(files, tmp_path / "other.lship")
    assert "ships with ConstantFolding disabled" in invoke("bench", tmp_path / "other.lship").stderr
    files = rebuilt(lship, replaced("session", exact_sums=False))
    write_container(files, tmp_path / "fast.lship")
    assert "ships with exact_sums false" in invoke("bench", tmp_path / "fast.lship").stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("bench",), "takes one sample at a time"),
        (("bench", "--memory-limit", "1MB", "--batch", "1"), "does not fit into 1 MB"),
    ],
)
def test_what_cannot_be_timed_is_named_as_it_was_given(tmp_path, monkeypatch, words, why):
    monkeypatch.chdir(tmp_path)
    model, data = tiny.write_model(tmp_path / "one", tiny.model(batch=1))
    done("bundle", model, "--data", data, "-o", "one.lship")
    for given in ("one.lship", "one/model.onnx"):
        result = invoke(*words, given)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith(f"error: {given}: {why}")
