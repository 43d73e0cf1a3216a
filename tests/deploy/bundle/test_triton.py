"""The layout that Triton Inference Server reads."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle import triton
from deploy.bundle.make import bundle_model
from deploy.bundle.opened import open_bundle
from deploy.bundle.triton import config, write_triton
from deploy.errors import UserError
from deploy.session import open_model
from tests.deploy import tiny_tflite
from tests.deploy.bundle import tiny
from tests.deploy.bundle.test_commands import done, one_line

WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|-?\d+|[A-Za-z_]\w*|[][{}:,])')


def parsed(text):
    """Read protobuf's text format as nested dicts of lists; raise on anything else."""
    words, place = [], 0
    while text[place:].strip():
        match = WORD.match(text, place)
        assert match, text[place : place + 40]
        words.append(match[1])
        place = match.end()
    fields = message(words)
    assert not words
    return fields


def message(words):
    fields = {}
    while words and words[0] != "}":
        name = words.pop(0)
        assert re.fullmatch(r"[a-z_]+", name), name
        if words[0] == ":":
            words.pop(0)
        fields.setdefault(name, []).extend(values(words))
    return fields


def values(words):
    word = words.pop(0)
    if word == "{":
        inner = message(words)
        assert words.pop(0) == "}"
        return [inner]
    if word == "[":
        found = []
        while words[0] != "]":
            found += values(words)
            if words[0] == ",":
                words.pop(0)
        words.pop(0)
        return found
    return [int(word) if re.fullmatch(r"-?\d+", word) else word.strip('"')]


def test_the_model_lies_where_triton_looks_for_it(lship, tmp_path):
    bundle = open_bundle(lship)
    place = write_triton(bundle, tmp_path / "repository")
    assert place == tmp_path / "repository" / "colours"
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "labels.txt", "README.md", "1/model.onnx"}
    assert (place / "1" / "model.onnx").read_bytes() == bundle.model
    assert (place / "labels.txt").read_text() == "red\ngreen\nblue\n"
    assert "Preprocessing is not part of the model" in (place / "README.md").read_text()


def test_the_config_says_what_the_manifest_does(lship):
    read = parsed(config(open_bundle(lship).manifest))
    assert read["name"] == ["colours"]
    assert read["platform"] == ["onnxruntime_onnx"]
    assert read["max_batch_size"] == [32]
    assert read["input"] == [{"name": ["x"], "data_type": ["TYPE_FP32"], "dims": [3]}]
    assert read["output"] == [
        {
            "name": ["scores"],
            "data_type": ["TYPE_FP32"],
            "dims": [3],
            "label_filename": ["labels.txt"],
        }
    ]
    assert read["instance_group"] == [{"kind": ["KIND_CPU"], "count": [1]}]
    assert read["dynamic_batching"] == [{}]
    parameters = {p["key"][0]: p["value"][0]["string_value"][0] for p in read["parameters"]}
    assert parameters["intra_op_thread_count"] == "1"


@pytest.mark.parametrize(
    ("task", "words", "has_labels"),
    [
        ("multi_label", "probabilities, one a label, in the order of `labels.txt`", True),
        ("regression", "values in lux, in this order: light", False),
        ("reconstruction", "the mean square of the difference", False),
    ],
)
def test_what_another_task_answers_is_said_in_its_own_words(tmp_path, task, words, has_labels):
    place = write_triton(open_bundle(tiny.bundle_of(task, tmp_path / "b")), tmp_path / "repository")
    read = (place / "README.md").read_text()
    assert words in read
    assert "class" not in read
    assert (place / "labels.txt").exists() == has_labels
    assert ("label_filename" in (place / "config.pbtxt").read_text()) == has_labels


def test_a_model_of_one_sample_at_a_time_is_not_batched(tmp_path):
    model, data = tiny.write_model(tmp_path / "one", tiny.model(batch=1))
    read = parsed(config(bundle_model(model, data, tmp_path / "m.lship").manifest))
    assert read["max_batch_size"] == [0]
    assert read["input"][0]["dims"] == [1, 3]
    assert "dynamic_batching" not in read


def test_tritons_own_message_takes_the_config(lship):
    """The generated code alone is loaded: the package around it needs gRPC."""
    try:
        found = importlib.metadata.distribution("tritonclient")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tritonclient is not installed")
    text_format = pytest.importorskip("google.protobuf.text_format")
    path = Path(found.locate_file("tritonclient/grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    message = text_format.Parse(config(open_bundle(lship).manifest), module.ModelConfig())
    assert (message.name, list(message.input[0].dims)) == ("colours", [3])
    assert message.HasField("dynamic_batching")


def test_equal_bundles_give_equal_files_and_none_is_overwritten(lship, tmp_path):
    places = [write_triton(open_bundle(lship), tmp_path / name) for name in "ab"]
    for name in ("config.pbtxt", "labels.txt", "README.md", "1/model.onnx"):
        assert (places[0] / name).read_bytes() == (places[1] / name).read_bytes()
    with pytest.raises(UserError, match="is there already"):
        write_triton(open_bundle(lship), tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["colours"]


def test_a_model_that_needs_an_option_triton_cannot_set_is_refused(lship, monkeypatch, tmp_path):
    def as_if_requantized(content, options):
        return open_model(tiny.tiny_onnx.linear(7.9 * np.eye(3)), options)

    monkeypatch.setattr(triton, "open_model", as_if_requantized)
    with pytest.raises(UserError, match='quantize it with exclusion = "structural"'):
        write_triton(open_bundle(lship), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_ort_format_is_refused(tmp_path):
    bundle = bundle_model(*tiny.write_model(tmp_path / "c"), tmp_path / "m.lship", form="ort")
    with pytest.raises(UserError, match=r"takes ONNX models, this is model\.ort"):
        write_triton(bundle, tmp_path / "repository")


def test_a_model_that_triton_does_not_take_is_named_as_it_was_given(tmp_path):
    pytest.importorskip("ai_edge_litert", reason="the extra 'litert' is not installed")
    _, data = tiny.write_model(tmp_path)
    model = tmp_path / "model.tflite"
    model.write_bytes(tiny_tflite.linear(8 * np.eye(3), metadata=tiny.ABOUT.to_props()))
    line = one_line("bundle", model, "--data", data, "--format", "triton", "-o", tmp_path / "new")
    assert line.startswith(f"error: {model}: Triton's ONNX Runtime backend takes ONNX models")
    assert not (tmp_path / "new").exists()


def test_the_command_says_that_preprocessing_stays_with_the_client(tmp_path):
    tiny.write_run(tmp_path / "run")
    said = done(
        "bundle", tmp_path / "run", "--variant", "int8", "--format", "triton",
        "-o", tmp_path / "repository",
    )  # fmt: skip
    first, second = said.splitlines()
    assert first.startswith(f"{tmp_path / 'repository' / 'demo-int8'}  demo-int8 1.0.0, ")
    assert second.startswith("preprocessing is not part of a model in Triton")
