"""Tuning a recipe, on data small enough to train in a moment."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from compress.baseline import baseline
from compress.cli import cli
from compress.data.splits import load_task
from compress.recipe import parse_recipe, recipe_of
from compress.train.space import fill, grid_points, range_of
from compress.train.tune import read_search
from compress.train.workers import InThisProcess
from compress.tuning import load_search_recipe, tune_recipe
from deploy.errors import UserError

pytest.importorskip("optuna", reason="the extra tune is not installed")

RATES = "{ log = [1e-3, 0.1], points = 3 }"
RECIPE = """
name = "small"
seed = 3
[data]
source = "{source}"
{data}
[network]
kind = "mlp"
hidden = [8]
[train]
epochs = 3
batch_size = {batch}
optimizer = {{ kind = "sgd", learning_rate = {rate} }}
{train}
[tune]
{tune}
{rest}
"""
PRUNED = """
[[variant]]
name = "pruned"
from = "baseline"
[variant.step]
kind = "magnitude_prune"
final_sparsity = 0.8
fine_tune = { epochs = 2, optimizer = { kind = "adam", learning_rate = { log = [1e-4, 1e-1] } } }
[[variant]]
name = "int8"
from = "pruned"
step = { kind = "quantize_static" }
"""


@pytest.fixture
def sides(tmp_path):
    """Noisy images of 3 classes, with a test part of their own."""
    rng = np.random.default_rng(0)

    def part(samples):
        y = np.arange(samples) % 3
        x = rng.integers(0, 170, size=(samples, 6, 6), dtype=np.uint8)
        for label in range(3):
            x[y == label, :, 2 * label : 2 * label + 2] += 60
        return x, y

    (x, y), (x_test, y_test) = part(300), part(60)
    path = tmp_path / "sides.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def write(tmp_path, sides):
    def written(name="search.toml", **parts):
        given = {"source": f"npz:{sides}", "data": "", "batch": 32, "rate": RATES, "train": "",
                 "tune": 'method = "grid"', "rest": ""}  # fmt: skip
        path = tmp_path / name
        path.write_text(RECIPE.format(**given | parts))
        return str(path)

    return written


def tuned(path, out):
    return tune_recipe(load_search_recipe(path), out=out, workers=InThisProcess)


def exhaustive(path):
    """Train with every rate, one after the other; return the validation accuracy of each."""
    recipe = load_search_recipe(path)
    accuracy = {}
    for rate in grid_points("", range_of(recipe.tables["train"]["optimizer"]["learning_rate"])):
        filled = fill(recipe.tables, lambda place, found, rate=rate: rate)
        one = recipe_of(filled, where="loop")
        task = load_task(one.data, seed=one.seed)
        _, history = baseline(one.network, one.train, task, seed=one.seed)
        accuracy[rate] = history.epochs[-1]["val_accuracy"]
    return accuracy


EMBEDDED = {"source": "mnist-sample", "data": "train_samples = 500", "batch": 50}


def test_grid_and_random_search_find_the_winner_of_an_exhaustive_loop(write, tmp_path):
    path = write(**EMBEDDED)
    accuracy = exhaustive(path)
    winner = max(accuracy, key=accuracy.__getitem__)
    assert sorted(accuracy.values())[-2] < accuracy[winner]
    grid = tuned(path, tmp_path / "grid")
    assert {t.values["train.optimizer.learning_rate"]: t.value for t in grid.trials} == accuracy
    rates = list(accuracy)
    path = write(**EMBEDDED, rate=f"{{ choice = {rates} }}", tune='method = "random"\ntrials = 5')
    random = tuned(path, tmp_path / "random")
    for found in (grid, random):
        assert found.best_trial.values == {"train.optimizer.learning_rate": winner}
        assert found.best_trial.value == accuracy[winner]


def test_the_best_recipe_is_plain_and_trains_to_what_the_search_saw(write, tmp_path):
    found = tuned(write(), tmp_path / "out")
    recipe = parse_recipe((tmp_path / "out" / "best.toml").read_text())
    task = load_task(recipe.data, seed=recipe.seed)
    _, history = baseline(recipe.network, recipe.train, task, seed=recipe.seed)
    assert history.epochs[-1]["val_accuracy"] == found.best_trial.value
    assert recipe.tune is None


def test_the_test_split_is_not_looked_at(write, sides, tmp_path, monkeypatch):
    """The same search with other test samples and labels is, trial for trial, the same."""
    few = {"rate": "{ choice = [0.01, 0.1] }"}
    found = tuned(write(**few), tmp_path / "one")
    arrays = dict(np.load(sides))
    arrays["x_test"], arrays["y_test"] = 255 - arrays["x_test"], (arrays["y_test"] + 1) % 3
    np.savez(sides, **arrays)
    again = tuned(write(**few), tmp_path / "two")
    assert [(t.values, t.value, t.epochs) for t in again.trials] == [
        (t.values, t.value, t.epochs) for t in found.trials
    ]

    def trains(network, train, task, **rest):
        assert len(task.train) > 0
        assert len(task.test) == 0
        return baseline(network, train, task, **rest)

    monkeypatch.setattr("compress.tuning.baseline", trains)
    assert tuned(write(**few), tmp_path / "three").best == found.best


def test_whole_tables_are_searched_and_only_the_chosen_one_is_written(write, tmp_path):
    network = (
        '{ choice = [{ kind = "mlp", hidden = [{ int = [2, 16] }] }, { kind = "lenet_300_100" }] }'
    )
    path = write(tune='method = "random"\ntrials = 4', rate="0.1")
    text = (tmp_path / "search.toml").read_text()
    text = text.replace('[network]\nkind = "mlp"\nhidden = [8]\n', "")
    (tmp_path / "search.toml").write_text(text.replace("[data]", f"network = {network}\n[data]", 1))
    found = tuned(path, tmp_path / "out")
    assert {t.values["network"] for t in found.trials} == {"mlp", "lenet_300_100"}
    for trial in found.trials:
        assert ("network(mlp).hidden[0]" in trial.values) == (trial.values["network"] == "mlp")
    parse_recipe((tmp_path / "out" / "best.toml").read_text())


def test_the_metric_of_a_trial_is_that_of_the_kept_epoch(write, tmp_path):
    path = write(
        rate="{ choice = [0.05, 3.0] }",
        train='early_stopping = { patience = 1, metric = "val_loss" }',
        tune='method = "grid"\nmetric = "val_loss"',
    )
    found = tuned(path, tmp_path / "out")
    for trial in found.trials:
        (kept,) = trial.kept_epochs
        assert trial.value == trial.epochs[kept - 1] == min(trial.epochs)
    assert found.best_trial.value == min(trial.value for trial in found.trials)


def test_several_seeds_make_one_value(write, tmp_path):
    path = write(rate="{ choice = [0.01, 0.1] }", tune='method = "grid"\nseeds = 3')
    for trial in tuned(path, tmp_path / "out").trials:
        assert len(trial.per_seed) == 3
        assert trial.value == pytest.approx(np.mean(trial.per_seed))
        assert len(trial.epochs) == 3


def test_a_variant_that_trains_can_be_tuned(write, tmp_path):
    tune = 'method = "random"\ntrials = 3\nvariant = "pruned"'
    found = tuned(write(rate="0.1", tune=tune, rest=PRUNED), tmp_path / "out")
    place = "variant[pruned].step.fine_tune.optimizer.learning_rate"
    assert list(found.ranges) == [place]
    assert all(len(trial.epochs) == 2 for trial in found.trials)
    best = parse_recipe((tmp_path / "out" / "best.toml").read_text())
    step = best.variants[0].step
    assert step.fine_tune.optimizer.learning_rate == found.best_trial.values[place]


def test_a_recipe_with_ranges_does_not_run_before_it_is_tuned(write):
    result = CliRunner().invoke(cli, ["run", write()])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "train.optimizer.learning_rate is a range, not a value: `lightship tune`" in line


MISTAKES = {
    "no [tune]": ({"tune": "[bench]"}, None),
    "no ranges": ({"rate": "0.1"}, "nothing to search"),
    "empty range": ({"rate": "{ log = [0.1, 0.1] }"}, "learning_rate: log needs two numbers above 0"),
    "log from 0": ({"rate": "{ log = [0, 0.1] }"}, "log needs two numbers above 0"),
    "grid without points": ({"rate": "{ log = [0.1, 1] }"}, "a grid has to know how many values"),
    "no trials": ({"tune": 'method = "tpe"'}, "tune: .*has to know how many trials"),
    "unknown method": ({"tune": 'method = "bayes"'}, "tune: method: .*'bayes'"),
    "unknown key": ({"tune": 'method = "grid"\ntrails = 3'}, "unknown key 'trails'.*did you mean trials"),
    "a range no value of which fits": ({"batch": "{ int = [0, 9] }"}, "train.batch_size: .*≥ 1, got 0"),
    "a number where a table belongs": (
        {"train": "schedule = { uniform = [0, 1], points = 2 }"}, "train.schedule: must be a table"),
    "other validation samples": (
        {"data": "validation_fraction = { uniform = [0.1, 0.3], points = 2 }"}, "cannot be compared"),
    "no influence": ({"rest": "[bench]\nthreads = { int = [1, 2] }"}, "bench.threads: changes nothing"),
    "unknown variant": ({"tune": 'method = "grid"\nvariant = "x"'}, "tune.variant: 'x' does not exist"),
    "a variant that is not trained": (
        {"rest": PRUNED, "tune": 'trials = 1\nvariant = "int8"'}, "'int8' is not trained"),
    "a range of another variant": ({"rest": PRUNED, "tune": "trials = 1"}, "changes nothing about 'baseline'"),
    "unknown metric": ({"tune": 'method = "grid"\nmetric = "val_f1"'}, "'val_f1' is not measured; there are val_loss"),
    "a metric of the training samples": (
        {"tune": 'method = "grid"\nmetric = "accuracy"'}, "tune: metric must be that of validation"),
    "a batch larger than the data": ({"batch": 9999}, "none of 3 trials .*batch_size: 9999"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "line"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line(parts, line, write, tmp_path):
    path = write(**parts)
    if line is None:
        (tmp_path / "search.toml").write_text(
            (tmp_path / "search.toml").read_text().replace("[tune]", "")
        )
        line = r"add a \[tune\] table"
    with pytest.raises(UserError, match=line) as caught:
        tuned(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "best.toml").exists()


def test_the_command_searches_with_two_workers_and_leaves_record_table_and_picture(write, tmp_path):
    out = tmp_path / "out"
    words = ["tune", write(), "--out", str(out), "--workers", "2", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    found = read_search(out / "search.json")
    assert json.loads(result.stdout)["best"] == found.best
    rows = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert [float(row["val_accuracy"]) for row in rows] == [trial.value for trial in found.trials]
    assert (out / "search.png").read_bytes().startswith(b"\x89PNG")
    # One process sees the same as two.
    assert [t.value for t in tuned(write(), tmp_path / "here").trials] == [
        trial.value for trial in found.trials
    ]


def test_the_command_says_what_ctrl_c_left_and_goes_on(write, tmp_path, monkeypatch):
    out = tmp_path / "out"
    asked = []

    def interrupted(*given, **rest):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return baseline(*given, **rest)

    monkeypatch.setattr("compress.tuning.baseline", interrupted)
    result = CliRunner().invoke(cli, ["tune", write(), "--out", str(out)])
    assert result.exit_code == 130
    assert "interrupted after 2 of 3 trials; the same command goes on" in result.stdout
    assert (out / "best.toml").exists()
    result = CliRunner().invoke(cli, ["tune", write(), "--out", str(out)])
    assert result.exit_code == 0
    assert "3 finished" in result.stdout
    assert len(asked) == 4
