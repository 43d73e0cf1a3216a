"""Low rank as a command and as a step of a recipe."""

import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner

from compress.cli import cli
from compress.networks import Mlp, build
from compress.prune.low_rank import ByRank, BySpeed, LowRank
from compress.recipe import parse_recipe
from compress.steps import (
    _speedup_over,
    check_layer_names,
    distillation_of,
    epochs_of,
    keras_step,
    reasons_left_alone,
)
from compress.train.fit import Fit
from deploy.errors import UserError
from deploy.record import read_record

RECIPE = """
name = "thin"
[data]
source = "digits"
[network]
kind = "mlp"
[train]
epochs = 1
[[variant]]
name = "low-rank"
from = "baseline"
step = {{ kind = "low_rank", {settings} }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("low-rank")
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = rng.integers(0, 60, size=(120, 6, 6), dtype=np.uint8)
    x[y == 0, :, :3] += 150
    x[y == 1, :, 3:] += 150
    np.savez(folder / "sides.npz", x=x, y=y)
    result = invoke(folder, "train", "--network", "mlp", "--epochs", 1, "--batch-size", 32,
                    "--out", folder / "m.keras")  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def invoke(folder, command, *words):
    data = ("--data", f"npz:{folder / 'sides.npz'}")
    return CliRunner().invoke(cli, [command, *map(str, words), *data])


def test_the_command_writes_a_thinner_network_and_why_layers_stay_whole(folder):
    out = folder / "thin.keras"
    words = ("--rank", 4, "--fine-tune", "--epochs", 1, "--batch-size", 32, "--out", out)
    result = invoke(folder, "low-rank", folder / "m.keras", *words)
    assert result.exit_code == 0, result.output
    assert tf_keras.models.load_model(out).get_layer("dense1_basis").units == 4
    record, before = read_record(out), read_record(folder / "m.keras")
    assert record.step["by"] == {"kind": "rank", "rank": 4}
    assert record.parent == before.sha256
    assert record.parameters < before.parameters
    notes = {layer.name: layer.note for layer in record.layers}
    assert "at rank 2 of 2 two layers (channel) would take" in notes["dense2"]
    assert notes["dense1"] is None
    assert notes["dense1_basis"] == "rank 4, before dense1"
    assert "rank 4, before dense1" in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--kept", 0.9, "--rank", 4), "exclude each other"),
        (("--threads", 2), "--threads: is what --speedup times with"),
        (("--kept", 2), "low-rank"),
        (("--rank", 0), "low-rank"),
        (("--speedup", 1), "low-rank"),
        (("--rank", 4, "--skip", "conv*"), "skip: no layer is named 'conv*'"),
        (("--kept", 1.0), "nothing is left to split"),
        (("--epochs", 3), "--epochs: is for a training, and --fine-tune is not given; give it too"),
        (("--no-distill",), "--distill/--no-distill: is for a training"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_writes_nothing(words, says, folder):
    out = folder / "never.keras"
    result = invoke(folder, "low-rank", folder / "m.keras", *words, "--out", out)
    assert result.exit_code == 2, result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert says in last
    assert not out.exists()


def test_a_recipe_takes_the_step_and_refuses_what_contradicts():
    recipe = parse_recipe(RECIPE.format(settings='by = { kind = "rank", rank = 8 }'), where="thin")
    assert recipe.variants[0].step == LowRank(by=ByRank(rank=8))
    with pytest.raises(UserError, match=r"step\.by\.kept"):
        parse_recipe(RECIPE.format(settings='by = { kind = "energy", kept = 0 }'), where="thin")


def test_the_step_answers_what_every_step_is_asked(tiny_task):
    model = build(Mlp(hidden=(32,)), input_shape=(8, 8, 1), classes=3, seed=0)
    step = LowRank(by=ByRank(rank=3))
    check_layer_names(model, step)
    with pytest.raises(UserError, match="skip: no layer"):
        check_layer_names(model, LowRank(skip=("none",)))
    assert (epochs_of(step), distillation_of(step)) == (0, None)
    tuned = LowRank(fine_tune=Fit(epochs=2))
    assert epochs_of(tuned) == 2
    assert distillation_of(tuned) is not None
    made, history = keras_step(model, step, tiny_task, seed=0)
    assert history is None
    assert set(reasons_left_alone(model, step, made)) == {"dense1_basis", "dense2"}


def test_a_network_is_really_timed_beside_the_one_it_comes_from():
    model = build(Mlp(hidden=(4,)), input_shape=(2, 2, 1), classes=3, seed=0)
    assert _speedup_over(model, threads=BySpeed(speedup=2).threads, seed=0)(model) > 0
