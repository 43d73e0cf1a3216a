"""Clustering and teachers as commands and in recipes, down to the bytes of the files."""

import os
import re
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from compress import pipeline
from compress.cli import cli
from compress.data.augment import Flip
from compress.data.known import FOLDER_VARIABLE
from compress.data.sources import Data
from compress.data.splits import load_task
from compress.export.facts import layer_facts
from compress.export.proven import Export
from compress.networks import LeNet5, ResNet8
from compress.plan import plan
from compress.prune.channels import KeepRatio, PruneChannels
from compress.prune.clusters import Cluster
from compress.prune.magnitude import MagnitudePrune
from compress.quantize.aware import QuantizeAware, why_not_kept
from compress.recipe import parse_recipe
from compress.steps import exported, keras_step
from compress.store import Store
from compress.train.fit import Fit, fit
from compress.train.optimizers import Adam
from compress.train.schedules import Cosine
from compress.train.trainable import network_for
from deploy.preprocess import Cast, Reshape, Resize, Scale
from deploy.record import LayerFacts, read_record, sha256_of
from tests.compress.test_pipeline import Heard

FOLDER = os.environ.get(FOLDER_VARIABLE)
CLOTHES = Data(
    source="fashion_mnist",
    train_samples=5000,
    validation_fraction=0.05,
    preprocess=(Reshape(shape=(28, 28, 1)), Cast(), Scale(), Resize(height=20, width=20)),
    augment=(Flip(),),
)
CHAIN = """
name = "chain"
[data]
source = "npz:{data}"
calibration_samples = 50
[network]
kind = "mlp"
hidden = [16]
[train]
epochs = 2
batch_size = 32
[bench]
processes = 5
sessions_per_process = 1
rounds = 2
block_ms = 0.2
[[variant]]
name = "pruned"
from = "baseline"
[variant.step]
kind = "magnitude_prune"
final_sparsity = 0.5
fine_tune = {{ epochs = 1, batch_size = 32 }}
[[variant]]
name = "clustered"
from = "pruned"
[variant.step]
kind = "cluster"
clusters = 8
fine_tune = {{ epochs = 1, batch_size = 32 }}
[[variant]]
name = "pcqat"
from = "clustered"
[variant.step]
kind = "quantize_aware"
keep_clusters = true
fine_tune = {{ epochs = 1, batch_size = 32 }}
[[variant]]
name = "small"
from = "baseline"
[variant.step]
kind = "distill"
network = {{ kind = "mlp", hidden = [4] }}
train = {{ epochs = 1, batch_size = 32 }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clusters")
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = rng.integers(0, 60, size=(200, 6, 6), dtype=np.uint8)
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


def briefly(folder, command, model, out, *words):
    words = (folder / model, "--epochs", 1, "--batch-size", 32, *words, "--out", folder / out)
    result = invoke(folder, command, *words)
    assert result.exit_code == 0, result.output
    return read_record(folder / out)


def test_the_command_writes_a_model_of_few_values_and_why_a_layer_was_left(folder):
    record = briefly(folder, "cluster", "m.keras", "c.keras", "--clusters", 5, "--skip", "dense2")
    found = {layer.name: layer for layer in record.layers}
    assert found["dense1"].distinct <= 5
    assert found["dense2"].note == "skipped: 'dense2'"
    assert record.parent == sha256_of(folder / "m.keras")
    assert "teacher" not in record.step
    assert not (folder / "c.keras.unfinished").exists()


def test_another_teacher_is_in_the_record(folder):
    other = briefly(folder, "distill", "m.keras", "small.keras", "--network", "mlp")
    assert other.step["network"]["kind"] == "mlp"
    for command in ("prune", "cluster"):
        record = briefly(
            folder, command, "small.keras", "taught.keras", "--teacher", folder / "m.keras"
        )
        assert record.step["teacher"] == sha256_of(folder / "m.keras")
        assert record.step["distill"] is True


def test_a_fine_tuning_can_do_without_a_teacher(folder):
    record = briefly(folder, "cluster", "m.keras", "alone.keras", "--no-distill")
    assert record.step["distill"] is False
    assert "distance" not in (folder / "alone.epochs.csv").read_text()
    briefly(folder, "cluster", "m.keras", "taught.keras")
    assert "distance" in (folder / "taught.epochs.csv").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cluster", "m.keras", "--clusters", 1), "clusters"),
        (("cluster", "m.keras", "--skip", "nothing"), "skip: no layer is named 'nothing'"),
        (("cluster", "m.keras", "--teacher", "m.keras", "--no-distill"), "exclude each other"),
        (("distill", "m.keras", "--weight", 2), "weight"),
        (("distill", "m.keras", "--hint", "dense1", "other"), "teacher has no layer 'other'"),
    ],
)
def test_a_mistake_is_one_line(folder, words, said):
    command, model, *more = words
    more = [folder / word if word == "m.keras" else word for word in more]
    out = folder / "never.keras"
    result = invoke(folder, command, folder / model, *more, "--batch-size", 32, "--out", out)
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert not out.exists()


def test_a_chain_keeps_zeros_and_values_to_the_int8_bytes_and_knows_its_teacher(folder, tmp_path):
    text = CHAIN.format(data=folder / "sides.npz")
    recipe, store = parse_recipe(text), Store(tmp_path / "store")
    results = pipeline.run(
        recipe,
        out=tmp_path / "out",
        store=store,
        watcher=Heard(),
        command="test",
        now=datetime(2026, 1, 2, tzinfo=timezone.utc),
    )
    found = {v.name: {layer.name: layer for layer in v.layers} for v in results.variants}
    for name, layer in found["pcqat"].items():
        assert layer.bits == 8
        assert layer.distinct <= found["clustered"][name].distinct <= 8
        assert layer.zeros >= found["pruned"][name].zeros > 0
    taught = {
        name: "distance" in (tmp_path / f"out/variants/{name}/epochs.csv").read_text()
        for name in found
    }
    assert taught == {name: name != "baseline" for name in found}
    page = (tmp_path / "out/report.html").read_text()
    assert re.search(r"zeros, \d values", page)


def test_the_teacher_is_part_of_the_key_of_all_that_listens_to_it(folder):
    def keys(text):
        recipe = parse_recipe(text)
        task = load_task(recipe.data, seed=recipe.seed)
        return {name: stage.keras_key for name, stage in plan(recipe, task).items()}

    text = CHAIN.format(data=folder / "sides.npz")
    before, after = keys(text), keys(text.replace("clusters = 8", "clusters = 8\ndistill = false"))
    assert {name for name in before if before[name] != after[name]} == {"clustered", "pcqat"}
    other = keys(text.replace("epochs = 2", "epochs = 3"))
    assert all(before[name] != other[name] for name in before)


def test_an_int8_file_that_lost_zeros_or_gained_values_is_told():
    def facts(**fields):
        given = {"name": "a", "kind": "Conv", "parameters": 9, "zeros": 4, "bits": 8, **fields}
        return [LayerFacts(**{"distinct": 5, **given})]

    step = QuantizeAware(fine_tune=Fit(epochs=1), keep_clusters=True)
    assert why_not_kept(facts(), facts(), step) is None
    assert why_not_kept(facts(zeros=3), facts(), step) == (
        "quantize_aware: 'a' has 3 zeros left of 4"
    )
    assert why_not_kept(facts(distinct=6), facts(), step) == (
        "quantize_aware: 'a' has 6 distinct weights, 5 before"
    )
    loose = msgspec.structs.replace(step, keep_zeros=False, keep_clusters=False)
    assert why_not_kept(facts(zeros=0, distinct=9), facts(), loose) is None


@pytest.fixture(scope="module")
def digits():
    return load_task(Data(source="mnist-sample"), seed=0)


def rate(value, epochs):
    return Fit(epochs=epochs, optimizer=Adam(learning_rate=value), schedule=Cosine())


def batches_of_64(value, epochs):
    return msgspec.structs.replace(rate(value, epochs), batch_size=64)


def accuracy(model, split):
    return float((np.asarray(model.predict(split.x, verbose=0)).argmax(1) == split.y).mean())


@pytest.mark.slow
def test_a_pruned_clustered_resnet_8_is_so_in_its_int8_file(digits):
    """PCQAT: the zeros and the number of values of each kernel, read from the bytes."""
    original = network_for(digits, ResNet8(), seed=0)
    fit(original, digits, rate(2e-3, 4), seed=0)
    steps = [
        MagnitudePrune(final_sparsity=0.6, fine_tune=rate(1e-3, 2)),
        Cluster(clusters=16, fine_tune=rate(3e-4, 1)),
        QuantizeAware(fine_tune=rate(1e-4, 1), keep_clusters=True),
    ]
    model, files = original, []
    for step in steps:
        model, _ = keras_step(model, step, digits, seed=0, teacher=original)
        files.append(layer_facts(exported(model, step, Export(), digits)[0], {}))
    assert len(files[-1]) == 10
    for pruned, clustered, final in zip(*files, strict=True):
        assert final.bits == 8
        assert final.zeros >= clustered.zeros >= pruned.zeros >= 0.6 * pruned.parameters - 1
        assert final.distinct <= clustered.distinct <= 16
    lost = accuracy(original, digits.validation) - accuracy(model, digits.validation)
    print(f"accuracy {accuracy(original, digits.validation):.4f}, lost {lost:.4f}")
    assert lost <= 0.015


@pytest.mark.slow
@pytest.mark.skipif(
    not (FOLDER and (Path(FOLDER) / "fashion_mnist.npz").is_file()),
    reason="needs fashion_mnist.npz in the folder that LIGHTSHIP_DATA names",
)
def test_a_network_that_lost_channels_recovers_more_with_its_teacher_than_without():
    """Worth, with its control, the same training without the teacher: `scripts/measure_distillation`."""
    gains = []
    for seed in range(3):
        task = load_task(CLOTHES, seed=seed)
        original = network_for(task, LeNet5(), seed=seed)
        fit(original, task, batches_of_64(2e-3, 8), seed=seed)
        step = PruneChannels(
            target=KeepRatio(keep_ratio=0.25), criterion="l2", fine_tune=batches_of_64(1e-3, 4)
        )
        scores = []
        for teacher in (original, None):
            student, _ = keras_step(original, step, task, seed=seed, teacher=teacher)
            scores.append(accuracy(student, task.validation))
        gains.append(scores[0] - scores[1])
        print(seed, scores)
    assert np.mean(gains) > 0
