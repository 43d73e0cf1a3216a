import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from deploy.audit import audit
from deploy.errors import MissingExtraError, UserError
from deploy.evaluate import predict_classes
from deploy.preprocess import Scale
from deploy.record import SessionOptions
from deploy.session import ModelMetadata, open_model
from tests.deploy import tiny_onnx, tiny_tflite

WEIGHTS = np.array([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5]], np.float32)
ABOUT = ModelMetadata(preprocess=(Scale(factor=0.5),), labels=("a", "b", "c"))
X = np.array([[2.0, 4.0], [0.0, 1.0], [3.0, 3.0]], np.float32)


def test_without_litert_a_model_for_it_is_refused_in_one_line_that_says_what_to_install(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lightship\[litert\]'"):
        open_model(tiny_tflite.linear(WEIGHTS))


def test_an_onnx_model_does_not_import_litert():
    code = "import sys; from deploy.session import open_model; open_model(sys.stdin.buffer.read())"
    code += "; assert not [m for m in sys.modules if 'litert' in m and m != 'deploy.litert']"
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=tiny_onnx.linear(WEIGHTS),
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
    )
    assert child.returncode == 0, child.stderr.decode()


needs_litert = pytest.mark.usefixtures("litert")


@pytest.fixture
def litert():
    return pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")


@needs_litert
def test_a_model_answers_and_says_of_itself_what_its_onnx_form_does(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(tiny_tflite.linear(WEIGHTS, metadata=ABOUT.to_props()))
    (tmp_path / "model.onnx").write_bytes(tiny_onnx.linear(WEIGHTS, metadata=ABOUT.to_props()))
    model, other = open_model(path), open_model(tmp_path / "model.onnx")
    assert (model.runtime, other.runtime) == ("LiteRT", "ONNX Runtime")
    for name in ("input_name", "input_shape", "input_dtype", "fixed_batch", "output_name"):
        assert getattr(model, name) == getattr(other, name)
    assert model.metadata == other.metadata == ABOUT
    np.testing.assert_allclose(model.scores(X), other.scores(X), rtol=1e-6)
    np.testing.assert_array_equal(predict_classes(model, X), predict_classes(other, X))


@needs_litert
def test_one_sample_and_batches_of_any_size_in_any_order_give_the_same_rows():
    model = open_model(tiny_tflite.linear(WEIGHTS))
    for batch in (1, 3, 2, 1, 3):
        np.testing.assert_allclose(model.run(X[:batch]), X[:batch] @ WEIGHTS, rtol=1e-6)


@needs_litert
def test_int8_arithmetic_takes_and_gives_float():
    model = open_model(tiny_tflite.linear(WEIGHTS, int8=True))
    scores = model.run(np.float32([[100, 50]]))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [[100, 0, 225]], atol=4)  # −50 is out of range: 0


@needs_litert
def test_a_batch_of_one_alone_is_known_from_the_file():
    model = open_model(tiny_tflite.linear(WEIGHTS, free_batch=False))
    assert model.fixed_batch == 1
    np.testing.assert_allclose(model.scores(X), X @ WEIGHTS, rtol=1e-6)


@needs_litert
def test_an_answer_stays_what_it_was_when_the_next_one_comes():
    model = open_model(tiny_tflite.linear(WEIGHTS))
    first = model.run(X[:1])
    kept = first.copy()
    model.run(X[1:2])
    np.testing.assert_array_equal(first, kept)


@needs_litert
def test_threads_get_their_own_answers():
    model = open_model(tiny_tflite.linear(WEIGHTS))
    wrong = []

    def ask(row):
        for _ in range(200):
            batch = X[row : row + 1] if row else X
            if not np.allclose(model.run(batch), batch @ WEIGHTS):
                wrong.append(row)

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@needs_litert
def test_the_number_of_threads_reaches_litert(monkeypatch):
    from ai_edge_litert import interpreter

    seen = []
    real = interpreter.Interpreter

    def spy(**settings):
        seen.append(settings["num_threads"])
        return real(**settings)

    monkeypatch.setattr(interpreter, "Interpreter", spy)
    open_model(tiny_tflite.linear(WEIGHTS), SessionOptions(threads=2))
    assert seen == [2]
    with pytest.raises(UserError, match="threads: must be at most"):
        open_model(tiny_tflite.linear(WEIGHTS), SessionOptions(threads=10_000))


@needs_litert
def test_two_inputs_and_damaged_metadata_are_refused_in_one_line():
    with pytest.raises(UserError, match="one input and one output, got 2 and 1"):
        open_model(tiny_tflite.linear(WEIGHTS, inputs=2))
    with pytest.raises(UserError, match="entry 'lightship' does not decode"):
        open_model(tiny_tflite.linear(WEIGHTS, metadata=["no", "table"]))


DAMAGE = """
import random, sys
from deploy.errors import UserError
from deploy.session import open_model
import numpy as np
whole, rng, refused = sys.stdin.buffer.read(), random.Random(0), 0
for _ in range(400):
    content = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(8, len(content))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.3:
        content = content[: rng.randrange(8, len(content))]
    try:
        model = open_model(bytes(content))
        model.scores(np.zeros((1, *model.input_shape), np.float32))
    except UserError:
        refused += 1
print(refused)
"""


@needs_litert
def test_a_damaged_file_ends_no_process():
    child = subprocess.run(
        [sys.executable, "-c", DAMAGE],
        input=tiny_tflite.linear(WEIGHTS, int8=True),
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr.decode()[-500:]
    assert int(child.stdout) > 100


@needs_litert
def test_opening_a_model_writes_nothing(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(tiny_tflite.linear(WEIGHTS))
    code = "import sys; from pathlib import Path; from deploy.session import open_model; "
    code += "open_model(Path(sys.argv[1]))"
    child = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    assert (child.stdout, child.stderr) == (b"", b"")


@needs_litert
def test_the_audit_reads_int8_from_the_types_and_says_what_it_cannot_tell(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(tiny_tflite.linear(WEIGHTS, int8=True))
    found = audit(path)
    assert (found.int8_layers, found.int8_macs_share, found.onnxruntime) == (1, 1.0, None)
    assert found.verdict.startswith("1 of 1 layers with weights multiply int8 (100.0% of the MACs)")
    path.write_bytes(tiny_tflite.linear(WEIGHTS))
    assert audit(path).layers[0].why_not == "its weights are float32 where it multiplies"
    with pytest.raises(UserError, match="compare whole models with lightship bench"):
        audit(path, against=path)
