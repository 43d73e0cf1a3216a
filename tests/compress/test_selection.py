"""Choosing between recipes, on data small enough to train in a moment."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from compress.baseline import baseline
from compress.cli import cli
from compress.data.splits import load_task
from compress.recipe import load_recipe
from compress.selection import choose, load_candidates, train_for
from compress.store import Store
from compress.train.validate import HoldOut, KFold
from deploy.errors import UserError

RECIPE = """
name = "{name}"
[data]
source = "{source}"
{data}
[network]
kind = "mlp"
hidden = [8]
[train]
epochs = {epochs}
batch_size = 16
optimizer = {optimizer}
{train}
"""
GOOD = '{ kind = "adam", learning_rate = 0.03 }'
BAD = '{ kind = "adam", learning_rate = 1e-5 }'


@pytest.fixture
def sides(tmp_path):
    """Images of 2 classes, brighter on the left or on the right, with a test part of their own."""
    rng = np.random.default_rng(0)

    def part(samples):
        y = np.arange(samples) % 2
        x = rng.integers(0, 160, size=(samples, 6, 6), dtype=np.uint8)
        x[y == 0, :, :3] += 90
        x[y == 1, :, 3:] += 90
        return x, y

    (x, y), (x_test, y_test) = part(120), part(40)
    path = tmp_path / "sides.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def write(tmp_path, sides):
    def written(name, optimizer=GOOD, data="", train="", source=None, epochs=1):
        path = tmp_path / f"{name}.toml"
        given = {"name": name, "optimizer": optimizer, "data": data, "train": train,
                 "epochs": epochs}  # fmt: skip
        path.write_text(RECIPE.format(source=source or f"npz:{sides}", **given))
        return str(path)

    return written


def chosen(paths, out, splitting=KFold(folds=2), metric=None, **settings):
    return choose(
        load_candidates(paths, seed=None),
        splitting,
        metric=metric,
        out=out,
        store=Store(out / ".store"),
        **settings,
    )


def values(found):
    return [[fold.value for fold in candidate.folds] for candidate in found.candidates]


def test_the_better_recipe_wins_and_is_trained_again_on_all_training_data(
    write, tmp_path, monkeypatch
):
    sizes = []

    def trains(recipe, config, task, **rest):
        sizes.append((len(task.train), len(task.validation)))
        return train_for(recipe, config, task, **rest)

    monkeypatch.setattr("compress.selection.train_for", trains)
    out = tmp_path / "out"
    found = chosen([write("bad", BAD), write("good")], out)
    assert found.winner == "good"
    assert found.paired[0].difference > 0.2
    assert sizes == [(120, 0)]
    record = json.loads((out / "winner.keras.json").read_text())
    assert record["step"]["stopped_after_epoch"] == 1
    assert load_recipe(str(out / "winner.toml")).name == "good"


def test_a_fold_is_a_task_whose_held_out_samples_training_never_sees(write, tmp_path, monkeypatch):
    seen = []

    def trains(network, train, task, **rest):
        seen.append(task)
        return baseline(network, train, task, **rest)

    monkeypatch.setattr("compress.selection.baseline", trains)
    chosen([write("a"), write("b", BAD)], tmp_path / "out")
    whole = load_task(load_recipe(write("a")).data, seed=0)
    test = {sample.tobytes() for sample in whole.test.raw}
    for task in seen[:4]:
        parts = [
            {x.tobytes() for x in split.raw} for split in (task.train, task.validation, task.test)
        ]
        assert [len(part) for part in parts] == [54, 6, 60]
        assert len(set.union(*parts)) == 120
        assert not test & set.union(*parts)
    # Candidates see the same folds, and each sample is held out once.
    held_out = [frozenset(x.tobytes() for x in task.test.raw) for task in seen[:4]]
    assert held_out[::2] == held_out[1::2]
    assert len(frozenset.union(*held_out)) == 120


def test_the_test_split_is_not_looked_at(write, sides, tmp_path):
    paths = [write("a"), write("b", BAD)]
    found = chosen(paths, tmp_path / "one")
    arrays = dict(np.load(sides))
    arrays["x_test"], arrays["y_test"] = 255 - arrays["x_test"], 1 - arrays["y_test"]
    np.savez(sides, **arrays)
    assert values(chosen(paths, tmp_path / "two")) == values(found)


def test_finished_folds_are_not_trained_again(write, tmp_path, monkeypatch):
    paths, out = [write("a"), write("b", BAD)], tmp_path / "out"
    whole = values(chosen(paths, tmp_path / "whole"))
    trained = []

    def interrupted(network, train, task, **rest):
        trained.append(train)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return baseline(network, train, task, **rest)

    monkeypatch.setattr("compress.selection.baseline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chosen(paths, out)
    assert values(chosen(paths, out)) == whole
    assert len([train for train in trained if train is not None]) == 4 + 1


def test_an_interrupted_choice_says_that_the_same_command_goes_on(write, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("compress.selection.baseline", interrupted)
    words = ["validate", str(write("a")), str(write("b", BAD)), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 130
    assert result.stderr == "stopped; the same command goes on where it was\n"


def test_the_alternatives_of_one_recipe_are_candidates(write, tmp_path):
    path = write("one", "{ choice = [" + GOOD + ", " + BAD + "] }")
    names = list(load_candidates([path], seed=None))
    assert len(names) == 2
    assert all(name.startswith("one: train.optimizer ") for name in names)


def test_early_stopping_sets_how_long_the_winner_trains(write, tmp_path):
    stop = 'early_stopping = { patience = 1, metric = "val_loss" }'
    out = tmp_path / "out"
    found = chosen([write("a", train=stop, epochs=4), write("b", BAD)], out)
    kept = sorted(fold.kept_epoch for fold in found.candidates[0].folds)
    record = json.loads((out / "winner.keras.json").read_text())
    assert record["step"]["stopped_after_epoch"] == round(sum(kept) / 2)
    assert record["step"]["train"].get("early_stopping") is None


MISTAKES = {
    "one candidate": (lambda write: [write("a")], "one candidate only"),
    "a range": (lambda write: [write("a", '{ kind = "adam", learning_rate = { log = [1e-3, 1] } }')],
                "candidates are chosen from lists"),
    "a name twice": (lambda write: [write("a"), write("a")], "there is a candidate 'a' already"),
    "other data": (lambda write: [write("a"), write("b", source="mnist-sample")],
                   "data.source .*only on the same samples"),
    "more folds than samples of a class": (
        lambda write: [write("a"), write("b")], "99 folds are more than the 60 samples"),
    "a schedule that the winner could not follow": (
        lambda write: [write("a"), write("b", train='schedule = { kind = "reduce_on_plateau" }')],
        "b: train.schedule.metric: val_loss cannot be watched .*set it to 'loss'"),
    "unknown metric": (lambda write: [write("a"), write("b")], "'val_f1' is not measured"),
}  # fmt: skip


@pytest.mark.parametrize(("paths", "line"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line(paths, line, write, tmp_path):
    with pytest.raises(UserError, match=line) as caught:
        chosen(
            paths(write),
            tmp_path / "out",
            KFold(folds=99) if "99" in line else HoldOut(),
            metric="val_f1" if "f1" in line else None,
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "selection.json").exists()


def test_the_command_prints_the_verdict_and_leaves_record_table_and_picture(write, tmp_path):
    out = tmp_path / "out"
    words = ["validate", write("a"), write("b", BAD), "--hold-out", "0.25", "--out", str(out)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "a is best on one split, which tells nothing of chance; add --repeats" in result.stdout
    rows = list(csv.DictReader((out / "folds.csv").read_text().splitlines()))
    record = json.loads((out / "selection.json").read_text())
    assert float(rows[0]["a"]) == record["candidates"][0]["mean"]
    assert (out / "selection.png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(cli, [*words, "--json"])
    assert json.loads(again.stdout)["winner"] == "a"
    assert Path(out / "winner.keras").exists()
