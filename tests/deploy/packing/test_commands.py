"""``lightship pack`` and ``unpack``, and the script that weighs them beside others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.cli import cli
from tests.deploy.packing.test_packed import model_of

SCRIPT = Path(__file__).parents[3] / "scripts/measure_packing"


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_model_goes_into_few_bytes_and_back(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(model_of(np.zeros(5_000, np.float32)))
    told = run("pack", model, "--sizes", "--json")
    assert told.exit_code == 0, told.output
    sizes = json.loads(told.stdout)
    assert sizes["size_bytes"] == (tmp_path / "model.lsp").stat().st_size < 400
    assert sizes["sizes"]["raw_bytes"] == model.stat().st_size
    assert "bytes" in run("pack", model, "--sizes").output
    assert run("unpack", tmp_path / "model.lsp", "-o", tmp_path / "back.onnx").exit_code == 0
    assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes()
    assert run("unpack", "--json", tmp_path / "model.lsp").exit_code == 0


def test_a_mistake_is_one_line_and_leaves_no_file(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(model_of(np.zeros(5_000, np.float32)))
    run("pack", model)
    packed = tmp_path / "model.lsp"
    for words in (
        ("pack", tmp_path / "none.onnx"),
        ("pack", packed),
        ("unpack", model, "-o", tmp_path / "out.onnx"),
        ("unpack", packed, "-o", tmp_path / "out.onnx", "--max-size", "1kB"),
    ):
        told = run(*words)
        assert told.exit_code == 2, told.output
        assert told.output.startswith("error: ")
        assert told.output.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("command", ["audit", "bench"])
def test_who_is_given_a_packed_model_says_that_it_is_packed(command, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(model_of(np.zeros(5_000, np.float32)))
    run("pack", model)
    told = run(command, tmp_path / "model.lsp")
    assert told.exit_code == 2, told.output
    assert told.output.startswith(
        f"error: {tmp_path / 'model.lsp'}: is a packed model; lightship unpack"
    )
    assert told.output.count("\n") == 1


def test_a_file_is_not_written_over_another(tmp_path):
    model, keras = tmp_path / "m.onnx", tmp_path / "m.keras"
    model.write_bytes(model_of(np.zeros(5_000, np.float32)))
    keras.write_bytes(b"some other bytes " * 9)
    assert run("pack", model).exit_code == 0
    told = run("pack", keras)
    assert told.exit_code == 0
    assert "is no ONNX model" in told.stderr
    assert "packed as plain bytes" in told.stderr
    assert (tmp_path / "m.keras.lsp").exists()
    model.write_bytes(b"newer")
    for words, why in (
        (("unpack", tmp_path / "m.lsp"), "is there and holds something else"),
        (("pack", keras, "-o", keras), "is what is read"),
        (("unpack", tmp_path / "m.lsp", "-o", tmp_path / "m.lsp"), "is what is read"),
    ):
        told = run(*words)
        assert (told.exit_code, told.output.count("\n")) == (2, 1)
        assert why in told.output
    assert model.read_bytes() == b"newer"
    keras.unlink()
    assert run("unpack", tmp_path / "m.keras.lsp").exit_code == 0
    assert keras.read_bytes() == b"some other bytes " * 9


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    model, pipe = tmp_path / "m.onnx", tmp_path / "pipe"
    model.write_bytes(model_of(np.zeros(64, np.float32)))
    os.mkfifo(pipe)
    told = run("pack", model, "-o", pipe)
    assert (told.exit_code, told.output.count("\n")) == (2, 1)
    assert f"{pipe} is a device, a pipe or a socket; name a file" in told.output
    assert pipe.is_fifo()


def test_a_model_whose_weights_lie_in_another_file_is_not_packed_without_them(tmp_path):
    onnx = pytest.importorskip("onnx", reason="a device has no onnx to write such a file with")
    model, weights = onnx.load_from_string(model_of(np.ones(64, np.float32))), tmp_path / "w.bin"
    place = tmp_path / "model.onnx"
    onnx.save(model, place, save_as_external_data=True, location=weights.name, size_threshold=0)
    assert weights.exists()
    told = run("pack", place)
    assert (told.exit_code, told.output.count("\n")) == (2, 1)
    assert f"{place}: keeps weights in another file; save it as one file" in told.output
    assert not (tmp_path / "model.lsp").exists()


def test_the_script_fails_where_another_packer_is_better(tmp_path):
    rng, places = np.random.default_rng(0), {}
    places["good"] = rng.normal(0, 20, 100_000).astype(np.int8)
    places["bad"] = np.tile(rng.normal(0, 20, 1_000).astype(np.int8), 100)  # repeats itself
    found = {}
    for name, weights in places.items():
        (tmp_path / f"{name}.onnx").write_bytes(model_of(weights))
        words = [sys.executable, SCRIPT, tmp_path / f"{name}.onnx"]
        found[name] = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found["good"].returncode == 0, found["good"].stdout + found["good"].stderr
    assert "| good | 100," in found["good"].stdout
    assert found["bad"].returncode == 1
    assert "by zstd or xz" in found["bad"].stdout
