"""``lightship pack`` and ``unpack``."""

import json

import numpy as np
from click.testing import CliRunner

from deploy.cli import cli
from tests.deploy.packing.test_packed import model_of


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
