"""Every kind of task from its data to a device: train, export, quantize, measure, bundle, predict."""

import csv
import json
import re
from datetime import datetime, timezone

import numpy as np
import pytest
from click.testing import CliRunner

from compress import pipeline
from compress.baseline import baseline, with_weights
from compress.cli import cli
from compress.data.splits import Data, load_task
from compress.networks import parse_network
from compress.plan import plan
from compress.recipe import load_recipe, parse_recipe
from compress.selection import train_for
from compress.shipped import shipped_recipes
from compress.store import Store
from compress.train.fit import Fit
from deploy import load
from deploy.bundle.make import bundle_run
from deploy.bundle.selftest import selftest
from deploy.errors import UserError
from deploy.evalset import EvalSet

RECIPE = """
name = "small"
[data]
source = "{source}"
{data}
[network]
{network}
[train]
epochs = {epochs}
batch_size = 16
optimizer = {{ kind = "adam", learning_rate = 0.01 }}
[bench]
processes = 5
sessions_per_process = 1
rounds = 2
block_ms = 0.2
[[variant]]
name = "int8"
from = "baseline"
step = {{ kind = "quantize_static" }}
"""
MLP = 'kind = "mlp"\nhidden = [16]'
AUTOENCODER = 'kind = "autoencoder"\nhidden = [16]\nbottleneck = 4'


class Silent:
    def begins(self, variant, *, epochs): ...
    def epoch_ended(self, epoch): ...
    def ended(self, variant, *, reused): ...
    def bench_advanced(self, done, total): ...
    def search_advanced(self, what, done, total): ...


# What is made of Keras models, not of ONNX files.
FROM_KERAS = """
[[variant]]
name = "aware"
from = "baseline"
step = { kind = "quantize_aware", fine_tune = { epochs = 2, batch_size = 16 } }
[[variant]]
name = "litert"
from = "baseline"
step = { kind = "litert", form = "int8" }
"""


def run(folder, *, source, data, network=MLP, epochs=20, more=""):
    text = RECIPE.format(source=source, data=data, network=network, epochs=epochs) + more
    out = folder / "run"
    results = pipeline.run(
        parse_recipe(text),
        out=out,
        store=Store(folder / "store"),
        watcher=Silent(),
        command="lightship run small.toml",
        now=datetime(2026, 1, 2, tzinfo=timezone.utc),
    )
    return out, results


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def predicted(out, folder, samples):
    bundle_run(out, folder / "m.lship", variant="int8")
    assert selftest(folder / "m.lship").passed
    np.save(folder / "x.npy", samples)
    answer = invoke("predict", folder / "m.lship", folder / "x.npy")
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def weights_and_heights(folder):
    """Return the data of a regression whose targets are far apart in size."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (400, 3)).round(3)
    weight, height = 70 + 10 * x[:, 0] + x[:, 1], 1.7 + 0.1 * x[:, 2]
    source = table(folder / "t.csv", list("abcwh"), np.column_stack([x, weight, height]))
    data = 'task = "regression"\nlabel_columns = ["w", "h"]\nmetric = "r2"\nunit = "kg"'
    return {"source": f"csv:{source}", "data": data}


@pytest.mark.slow
def test_a_regression_that_is_trained_for_int8_or_runs_in_litert_keeps_every_target(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    _, results = run(tmp_path, **weights_and_heights(tmp_path), more=FROM_KERAS)
    for variant in results.variants:
        assert variant.score > 0.9, variant.name
        assert variant.per_label[1] < 0.04


def test_a_regression_answers_in_its_targets_units_on_the_device_too(tmp_path):
    out, results = run(tmp_path, **weights_and_heights(tmp_path))
    assert results.goal.metric == "r2"
    assert results.data.labels == ("w", "h")
    for variant in results.variants:
        assert variant.score > 0.9, variant.name
        assert variant.per_label[0] < 4
        assert variant.per_label[1] < 0.04
    samples = EvalSet.load(out / "test.npz", "regression")
    text = predicted(out, tmp_path, samples.x[:2])
    answers = load(tmp_path / "m.lship").predict(samples.x[:2]).scores
    assert f"w {answers[0, 0]:.6g} kg" in text
    assert abs(answers - samples.y[:2]).max() < 15
    page = (out / "report.html").read_text()
    assert "Predicted beside true values" in page
    assert "Per target" in page
    assert "val_mae" in (out / "results.json").read_text()


def test_a_sample_may_have_several_labels_or_none(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (500, 4)).round(3)
    source = table(
        tmp_path / "t.csv", ["a", "b", "c", "d", "hot", "wet"], np.column_stack([x, x[:, :2] > 0.3])
    )
    text = source.read_text().replace("1.0\n", "1\n").replace("0.0\n", "0\n")
    source.write_text(text.replace(",1.0,", ",1,").replace(",0.0,", ",0,"))
    out, results = run(
        tmp_path,
        source=f"csv:{source}",
        data='task = "multi_label"\nlabel_columns = ["hot", "wet"]',
    )
    assert results.goal.metric == "f1_macro"
    assert all(variant.score > 0.9 for variant in results.variants)
    assert results.variants[1].baseline_agreement > 0.9
    assert "Per label" in (out / "report.html").read_text()
    wanted = np.float32([[2, 2, 0, 0], [-2, -2, 0, 0], [2, -2, 0, 0]])
    lines = predicted(out, tmp_path, wanted).splitlines()
    assert "hot" in lines[0]
    assert "wet" in lines[0]
    assert lines[1].endswith("no label")
    answers = load(tmp_path / "m.lship").predict(wanted)
    assert answers.label_sets == [("hot", "wet"), (), ("hot",)]
    with pytest.raises(UserError, match="does multi-label, not classification"):
        _ = answers.labels


@pytest.fixture(scope="module")
def anomalies(tmp_path_factory):
    return run(
        folder := tmp_path_factory.mktemp("anomalies"),
        source="digits",
        data='task = "reconstruction"\nnormal = ["0", "1", "2"]',
        network=AUTOENCODER,
        epochs=40,
    ), folder


def test_anomalies_are_told_by_what_an_autoencoder_of_normal_samples_gets_wrong(anomalies):
    (out, results), folder = anomalies
    assert results.data.labels == ("normal", "anomalous")
    assert all(variant.score > 0.85 for variant in results.variants)
    samples = EvalSet.load(out / "test.npz", "reconstruction")
    text = predicted(out, folder, samples.x[:2])
    assert text.count("anomaly score 0.") == 2
    scores = load(folder / "m.lship").predict(samples.x).scores
    assert scores[samples.y == 1].mean() > 1.5 * scores[samples.y == 0].mean()
    assert "ROC curves" in (out / "report.html").read_text()


def test_training_saw_no_anomaly_and_the_test_part_has_them_all(anomalies):
    (out, results), _ = anomalies
    y = EvalSet.load(out / "test.npz", "reconstruction").y
    normal = results.data.train_samples + results.data.validation_samples + (y == 0).sum()
    assert (normal, (y == 1).sum()) == (537, 1797 - 537)  # of each digit there are about 180


def test_evaluate_knows_from_the_model_what_it_is_for(anomalies):
    (out, results), _ = anomalies
    model = out / "variants/int8/model.onnx"
    answer = invoke("evaluate", model, "--data", out / "test.npz", "--json")
    found = json.loads(answer.stdout)
    assert found["goal"]["task"] == "reconstruction"
    assert found["evaluation"]["score"]["value"] == results.variants[1].score
    refused = invoke("evaluate", model, "--data", out / "test.npz", "--metric", "mae")
    assert refused.exit_code == 2
    assert "'mae' does not fit a reconstruction task; there are roc_auc" in refused.stderr


def test_steps_on_files_take_the_task_from_the_model(tmp_path):
    model, onnx = tmp_path / "m.keras", tmp_path / "m.onnx"
    data = ("--data", "diabetes")
    task = ("--task", "regression", "--metric", "r2", "--epochs", 1, "--batch-size", 32)
    made = invoke("train", *data, *task, "--network", "mlp", "--out", model)
    assert made.exit_code == 0, made.output
    assert invoke("export", model, *data, "--out", onnx).exit_code == 0
    small = tmp_path / "small.onnx"
    assert invoke("quantize", onnx, *data, "--out", small).exit_code == 0
    ranked = invoke("sensitivity", onnx, *data)
    assert ranked.exit_code == 0, ranked.output
    assert re.match(r"layer +SQNR, dB  Δ points  saved, µs  noise per µs", ranked.stdout)
    (first, *_) = json.loads(invoke("sensitivity", onnx, *data, "--json").stdout)["layers"]
    assert first["kl_divergence"] is None
    assert first["sqnr_db"] == pytest.approx(-10 * np.log10(first["noise_share"]))
    test = tmp_path / "test.npz"
    assert invoke("evalset", *data, "--task", "regression", "--out", test).exit_code == 0
    answer = invoke("evaluate", small, "--data", test, "--against", onnx)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.startswith("R² ")


@pytest.fixture(scope="module")
def values():
    """Targets that lie far from 0."""
    return load_task(Data(source="diabetes", task="regression"), seed=0)


SHORT = Fit(epochs=1, batch_size=32)


def test_a_learning_rate_is_found_for_the_network_that_the_task_asks_for(tmp_path):
    found = invoke("find-learning-rate", "--data", "diabetes", "--task", "regression",
                   "--network", "mlp", "--batch-size", 32, "--steps", 60, "--json")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert 1e-6 < json.loads(found.stdout)["suggestion"] < 10


def test_the_winner_of_a_comparison_answers_in_the_unit_of_the_target(values):
    recipe = parse_recipe(RECIPE.format(
        source="diabetes", data='task = "regression"', network=MLP, epochs=1))  # fmt: skip
    winner = train_for(recipe, SHORT, values, epochs=1)
    folds, _ = baseline(recipe.network, SHORT, values, seed=recipe.seed)
    assert np.array_equal(answers(winner, values), answers(folds, values))
    assert answers(winner, values).mean() == pytest.approx(values.scaling.mean[0], rel=0.2)


def test_what_several_workers_learned_answers_in_the_unit_of_the_target(values):
    network = parse_network("mlp", trust_code=False)
    model, _ = baseline(network, SHORT, values, seed=0)
    saved = with_weights(network, values, model.get_weights(), seed=0)
    assert np.array_equal(answers(saved, values), answers(model, values))


def answers(model, task):
    return model(task.test.x).numpy()


@pytest.mark.parametrize(
    ("data", "network", "complaint"),
    [
        (
            'task = "regression"',
            MLP,
            "digits: is no data set for a regression task; set its task to classification",
        ),
        ('metric = "mae"', MLP, "metric 'mae' does not fit a classification task"),
        ('metric = "f1"', MLP, "metric 'f1' is for two classes, there are 10"),
        ('task = "reconstruction"', MLP, "task reconstruction and normal"),
        ('task = "reconstruction"\nnormal = ["ten"]', MLP, "normal must name some labels"),
        (
            'task = "reconstruction"\nnormal = ["1"]',
            'kind = "ds_cnn"',
            "cannot give a sample anew; take autoencoder or mlp",
        ),
        ("", AUTOENCODER, "autoencoder: gives a sample anew, which is no classification"),
        ('unit = "mm"', MLP, "unit is for regression, task is classification"),
        ('label_columns = ["a"]', MLP, "label_column is for csv: sources"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_in_one_line(tmp_path, data, network, complaint):
    with pytest.raises(UserError) as refusal:
        run(tmp_path, source="digits", data=data, network=network)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "digits_anomaly"])
def test_the_recipes_of_scikit_learns_data_need_no_network_and_have_quantized_variants(name):
    assert name in shipped_recipes()
    recipe = load_recipe(name)
    task = load_task(recipe.data, seed=recipe.seed)
    assert task.licence != "unknown"
    assert set(plan(recipe, task)) >= {"baseline", "int8"}
