import importlib.util

import numpy as np
import pytest
from click.testing import CliRunner

from deploy import ort_format
from deploy.cli import cli
from deploy.errors import ParityError, UserError
from deploy.ort_format import is_ort, required_operators, to_ort
from deploy.session import ModelMetadata, open_model
from tests.deploy import tiny_onnx, tiny_tflite

WEIGHTS = np.array([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5]], np.float32)
ABOUT = ModelMetadata(labels=("a", "b", "c"))


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_the_ort_form_answers_bit_for_bit_and_keeps_what_the_model_says():
    content = tiny_onnx.linear(WEIGHTS, softmax=True, metadata=ABOUT.to_props())
    model, made = open_model(content), open_model(to_ort(content))
    x = np.random.default_rng(0).random((5, 2), dtype=np.float32)
    np.testing.assert_array_equal(made.run(x), model.run(x))
    assert made.metadata == ABOUT
    assert is_ort(to_ort(content)[:8])
    assert not is_ort(content[:8])


def test_other_answers_than_the_onnx_models_are_found_out(monkeypatch):
    monkeypatch.setattr(ort_format, "PARITY", -1.0)  # no difference is small enough
    with pytest.raises(ParityError, match="answers otherwise"):
        to_ort(tiny_onnx.linear(WEIGHTS))


def test_what_is_no_onnx_model_is_refused():
    with pytest.raises(UserError, match="in ORT format already"):
        to_ort(to_ort(tiny_onnx.linear(WEIGHTS)))
    with pytest.raises(UserError, match="is a LiteRT model"):
        to_ort(tiny_tflite.linear(WEIGHTS))
    with pytest.raises(UserError, match="cannot open it"):
        to_ort(b"garbage")


needs_flatbuffers = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="flatbuffers is not installed"
)


@needs_flatbuffers
def test_a_reduced_build_is_told_the_operators_that_run_and_no_others():
    lines = required_operators(to_ort(tiny_onnx.linear(WEIGHTS, softmax=True))).splitlines()
    names = {op.partition("{")[0] for line in lines for op in line.split(";")[2].split(",")}
    assert names == {"Gemm", "Softmax"}
    assert not [line for line in lines if line.startswith("#") or "tmp" in line]


@needs_flatbuffers
def test_convert_writes_the_model_and_the_list_beside_it(tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_onnx.linear(WEIGHTS))
    result = invoke("convert", tmp_path / "m.onnx", "-o", tmp_path / "m.ort")
    assert result.exit_code == 0, result.output
    assert (len(result.stdout.splitlines()), result.stderr) == (1, "")
    assert open_model(tmp_path / "m.ort").input_shape == (2,)
    assert (tmp_path / "m.ort.config").read_text().startswith("ai.onnx;")


def test_convert_refuses_in_one_line(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    for words, line in (
        (("m.onnx", "-o", "m.lship"), "error: --out: must end in .ort"),
        (("none.onnx", "-o", "m.ort"), "no such file; give an ONNX model"),
        (("m.onnx", "-o", "m.ort"), "m.onnx: is no ONNX model"),
    ):
        result = invoke("convert", *(tmp_path / w if "." in w else w for w in words))
        assert result.exit_code == 2
        (said,) = result.stderr.splitlines()
        assert line in said
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
