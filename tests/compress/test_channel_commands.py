"""Fewer channels from the command line."""

import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner

from compress.cli import cli
from compress.cli.channels import prune_channels_command
from compress.prune.criteria import CRITERIA
from deploy.record import read_record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("channels")
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


def test_the_command_writes_a_narrower_network_and_what_each_layer_keeps(folder):
    out = folder / "narrow.keras"
    words = ("--width", "dense1=8", "--epochs", 1, "--batch-size", 32, "--out", out)
    result = invoke(folder, "prune-channels", folder / "m.keras", *words)
    assert result.exit_code == 0, result.output
    assert tf_keras.models.load_model(out).get_layer("dense1").units == 8
    record, before = read_record(out), read_record(folder / "m.keras")
    assert record.step["layer_widths"] == {"dense1": 8}
    assert record.parent == before.sha256
    notes = {layer.name: layer.note for layer in record.layers}
    assert notes["dense1"] == "keeps 8 of its 128 channels"
    assert notes["dense2"] == "its channels have to stay: they are what the network gives"
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{out}  ")
    lines = [line.split() for line in result.stderr.splitlines() if " weights " in line]
    assert [name for name, *_ in lines] == list(notes)
    assert lines[0] == [
        "dense1", "288", "weights", "0.0%", "zeros", "keeps", "8", "of", "its", "128", "channels",
    ]  # fmt: skip


def test_dead_channels_go_and_the_record_says_how_many(folder):
    model = tf_keras.models.load_model(folder / "m.keras")
    kernel, bias = model.get_layer("dense2").get_weights()
    kernel[5:] = 0
    model.get_layer("dense2").set_weights([kernel, bias])
    model.save(folder / "sparse.keras")
    out = folder / "alive.keras"
    result = invoke(
        folder, "remove-dead", folder / "sparse.keras", "--preprocess", "default", "--out", out
    )
    assert result.exit_code == 0, result.output
    assert tf_keras.models.load_model(out).get_layer("dense1").units == 5
    notes = {layer.name: layer.note for layer in read_record(out).layers}
    assert notes["dense1"] == "keeps 5 of its 128 channels: the others were dead"
    assert "nothing was taken out" not in result.stderr


def test_where_nothing_is_dead_the_command_says_so(folder):
    result = invoke(folder, "remove-dead", folder / "m.keras", "--out", folder / "same.keras")
    assert result.exit_code == 0, result.output
    assert "nothing was taken out: what is said of each layer tells why" in result.stderr
    assert "keeps all 128 channels: none of them is dead" in result.stderr


def residual(folder):
    """Write a network with one residual block, ``add``, and say where it is."""
    inputs = tf_keras.layers.Input((6, 6, 1))
    y = tf_keras.layers.Conv2D(1, 3, padding="same", name="conv")(inputs)
    x = tf_keras.layers.Flatten()(tf_keras.layers.Add(name="add")([inputs, y]))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, activation="softmax", name="dense")(x))
    model.save(folder / "residual.keras")
    return folder / "residual.keras"


@pytest.mark.parametrize("which", [("--block", "add*"), ("--count", 1)])
def test_a_block_goes_and_the_record_says_behind_which_layers_it_lay(folder, which):
    out = folder / "shallow.keras"
    words = (*which, "--preprocess", "default", "--epochs", 1, "--batch-size", 32, "--out", out)
    result = invoke(folder, "prune-blocks", residual(folder), *words)
    assert result.exit_code == 0, result.output
    names = [layer.name for layer in tf_keras.models.load_model(out).layers]
    assert not {"conv", "add"} & {*names}
    record = read_record(out)
    assert (record.step["blocks"], record.step["count"]) == (["add"], None)
    (dense,) = record.layers
    assert (dense.name, dense.note) == ("dense", "without add (conv) before it")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give either blocks, by name, or count"),
        (("--block", "add", "--count", 1), "give either blocks, by name, or count"),
        (("--count", 0), "count"),
        (("--count", 2), "count: 1 residual blocks can go, got 2; there are add"),
        (
            ("--block", "add1"),
            "blocks: no residual block that can go is named 'add1'; there are add",
        ),
    ],
)
def test_a_block_that_cannot_go_is_one_line_and_nothing_is_written(folder, words, says):
    out = folder / "none.keras"
    words = (*words, "--preprocess", "default", "--out", out)
    result = invoke(folder, "prune-blocks", residual(folder), *words)
    assert result.exit_code == 2
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert says in last
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--keep-ratio", 0.5, "--macs", 0.5), "exclude each other"),
        (("--threads", 2), "--threads: is what --speedup times with"),
        (("--precision", "int8"), "--precision: says which times of --widths count"),
        (
            ("--width", "dense1"),
            "--width: must be LAYER and a whole number, as conv1=…, got 'dense1'",
        ),
        (("--keep", "dense1=half"), "--keep: must be LAYER and a number"),
        (("--keep", "dense1=2"), "--keep: dense1 must keep a share above 0 and at most 1, got 2"),
        (("--width", "dense1=0"), "--width: dense1 must keep one channel or more, got 0"),
        (("--macs", 1.5), "--macs: must be a share above 0 and at most 1, got 1.5"),
        (("--keep-ratio", 0), "--keep-ratio: must be a share above 0 and at most 1, got 0"),
        (("--width", "conv1=8"), "layer_widths: no layer with channels is named 'conv1'"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_writes_nothing(words, says, folder):
    out = folder / "never.keras"
    result = invoke(folder, "prune-channels", folder / "m.keras", *words, "--out", out)
    assert result.exit_code == 2, result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert says in last
    assert not out.exists()


def test_the_command_offers_every_criterion():
    (option,) = [o for o in prune_channels_command.params if o.name == "criterion"]
    assert tuple(option.type.choices) == CRITERIA


def test_a_pruning_listens_to_whom_it_is_told_to(folder):
    out = folder / "alone.keras"
    words = ("--epochs", 1, "--batch-size", 32, "--out", out)
    result = invoke(folder, "prune-channels", folder / "m.keras", *words, "--no-distill")
    assert result.exit_code == 0, result.output
    assert read_record(out).step["distill"] is False
    result = invoke(
        folder, "prune-channels", folder / "m.keras", *words, "--teacher", folder / "none.keras"
    )
    assert (result.exit_code, "none.keras" in result.output) == (2, True)


def test_a_layer_is_given_one_width(folder):
    words = ("--width", "dense1=8", "--width", "dense1=9")
    result = invoke(folder, "prune-channels", folder / "m.keras", *words)
    assert result.exit_code == 2
    assert "error: --width: dense1 is given twice; give one number" in result.output
