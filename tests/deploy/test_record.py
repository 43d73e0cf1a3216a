import gzip
import hashlib
import os

import msgspec
import pytest

from deploy.errors import UserError
from deploy.preprocess import Reshape, Scale
from deploy.record import (
    Artifact,
    Interval,
    LayerFacts,
    SessionOptions,
    gzip_bytes_of,
    notes_beside,
    read_capped,
    read_record,
    record_path,
    sha256_of,
)

ARTIFACT = Artifact(
    format="onnx",
    sha256="ab" * 32,
    size_bytes=10,
    gzip_bytes=9,
    parent=None,
    step={"kind": "train", "epochs": 3},
    seed=1,
    versions={"numpy": "2.0"},
    parameters=4,
    nonzero_parameters=3,
    layers=(LayerFacts(name="dense1", kind="Gemm", parameters=4, zeros=1, bits=8),),
    preprocess=(Reshape(shape=(28, 28, 1)), Scale(factor=0.1, offset=-1.0)),
    labels=("a", "ü"),
)


def test_a_record_comes_back_from_json_as_it_was_written():
    assert msgspec.json.decode(msgspec.json.encode(ARTIFACT), type=Artifact) == ARTIFACT


def test_a_record_of_another_version_is_refused_rather_than_read_in_part():
    text = msgspec.json.encode({**msgspec.to_builtins(SessionOptions()), "magic": 1})
    with pytest.raises(msgspec.ValidationError, match="magic"):
        msgspec.json.decode(text, type=SessionOptions)


def test_a_record_cannot_be_changed():
    with pytest.raises(AttributeError):
        ARTIFACT.seed = 2


@pytest.mark.parametrize(
    ("low", "high", "excluded"),
    [(1.1, 1.3, True), (0.7, 0.9, True), (0.9, 1.1, False), (1, 2, False)],
)
def test_an_interval_excludes_what_lies_outside_it(low, high, excluded):
    assert Interval(value=(low + high) / 2, low=low, high=high).excludes(1) is excluded


def test_sparsity_is_the_share_of_zeros_and_a_layer_without_weights_has_none():
    assert ARTIFACT.layers[0].sparsity == 0.25
    assert LayerFacts(name="r", kind="Relu", parameters=0, zeros=0, bits=32).sparsity == 0


def test_digest_and_zipped_size_depend_on_the_bytes_alone(tmp_path):
    first, second = tmp_path / "a.onnx", tmp_path / "another name.onnx"
    for path in (first, second):
        path.write_bytes(b"weights" * 100)
    assert sha256_of(first) == sha256_of(second) == hashlib.sha256(b"weights" * 100).hexdigest()
    assert gzip_bytes_of(first) == gzip_bytes_of(second)
    assert gzip_bytes_of(first) == len(gzip.compress(b"weights" * 100, 9, mtime=0)) < 700


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_that_may_never_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UserError, match=r"results\.json: is no regular file"):
        read_capped(tmp_path / "results.json", 10)


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_refused(tmp_path):
    path = tmp_path / "m.json"
    path.write_bytes(b"123")
    assert read_capped(path, 3) == b"123"
    with pytest.raises(UserError, match=r"m\.json: has more than the 2 bytes"):
        read_capped(path, 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b" " * ((1 << 24) + 1), "has more than the 16,777,216 bytes"),
        (b'{"step": {"a": ' + b"[" * 100_000, "not a record of lightship's"),
        (b"\xff", "not a record of lightship's"),
    ],
    ids=["too large", "nested without end", "no text"],
)
def test_a_hostile_record_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    record_path(path).write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_what_a_record_notes_of_layers_is_told_by_name_and_nothing_where_there_is_none(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    assert notes_beside(path) == {}
    layers = (
        LayerFacts(name="stem", kind="Conv", parameters=4, zeros=1, bits=32, note="excluded"),
        LayerFacts(name="dense", kind="Gemm", parameters=4, zeros=1, bits=8),
    )
    record = msgspec.structs.replace(ARTIFACT, layers=layers, sha256=sha256_of(path), size_bytes=5)
    record_path(path).write_bytes(msgspec.json.encode(record))
    assert notes_beside(path) == {"stem": "excluded"}
