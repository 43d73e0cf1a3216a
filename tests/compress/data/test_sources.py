from __future__ import annotations

import msgspec
import numpy as np
import pytest
from PIL import Image

from compress.data.known import KNOWN
from compress.data.sources import Data, read_source, why_not_a_source
from deploy.preprocess import Cast, Reshape


def decode(text: str) -> Data:
    return msgspec.toml.decode(text, type=Data)


@pytest.mark.parametrize("source", [*KNOWN, "npz:a.npz", "idx:folder", "images:c:/d", "npz:mnist"])
def test_a_source_that_exists_is_not_refused(source):
    assert why_not_a_source(source) is None


@pytest.mark.parametrize(
    ("source", "why_not"),
    [
        ("mnits", "source 'mnits' is unknown, did you mean mnist? known are mnist-sample, mnist"),
        ("fashion-mnist", "did you mean fashion_mnist?"),
        ("cvs:table.csv", "did you mean csv:?"),
        (
            "imagenet",
            "known are mnist-sample, mnist, fashion_mnist, cifar10, digits, breast_cancer, diabetes, npz:PATH, npy:FOLDER, idx:FOLDER",
        ),
        ("mnist:here", "source 'mnist:here' is unknown"),
        ("digits.npz", "source 'digits.npz' is unknown"),
        ("", "source '' is unknown"),
        ("npz", "source 'npz' lacks its place: write npz:PATH"),
        ("images:", "write images:FOLDER"),
    ],
)
def test_a_source_that_does_not_exist_is_refused_with_those_that_do(source, why_not):
    assert why_not in (why_not_a_source(source) or "")


@pytest.mark.parametrize(
    ("text", "why_not"),
    [
        ('source = "mnits"', "did you mean mnist"),
        ('source = "mnist"\nseed = 1', "unknown field `seed`"),
        ('source = "mnist"\nvalidation_fraction = 0', r"> 0.*validation_fraction"),
        ('source = "mnist"\ntest_fraction = 1.0', r"< 1.*test_fraction"),
        ('source = "mnist"\ncalibration_samples = 0', r">= 1.*calibration_samples"),
        ('source = "mnist"\ntrain_samples = 0', r">= 1.*train_samples"),
        ('source = "mnist"\nlabel_column = "y"', "label_column is for csv: sources"),
        ('source = "csv:a.csv"', "'csv:a.csv' needs label_column"),
        ('source = "mnist"\npreprocess = [{op = "crop"}]', r"crop.*preprocess\[0\]"),
        ("validation_fraction = 0.1", "missing required field `source`"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_when_read(text, why_not):
    with pytest.raises(msgspec.ValidationError, match=why_not):
        decode(text)


def test_a_config_reads_its_preprocessing_from_toml():
    data = decode(
        'source = "csv:a.csv"\nlabel_column = "y"\n'
        'preprocess = [{op = "cast"}, {op = "reshape", shape = [2, 2]}]'
    )
    assert data.preprocess == (Cast(), Reshape(shape=(2, 2)))


def test_every_kind_of_file_is_read_by_its_prefix(tmp_path):
    np.savez(tmp_path / "a.npz", x=[[1.0], [2.0]], y=[0, 1])
    (tmp_path / "a.csv").write_text("x,y\n1,a\n2,b\n")
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "images" / label / "0.png")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(
        b"\0\0\x08\2" + b"\0\0\0\2\0\0\0\1" + b"\1\2"
    )
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1" + b"\0\0\0\2" + b"\0\1")
    for data in (
        Data(source=f"npz:{tmp_path / 'a.npz'}"),
        Data(source=f"csv:{tmp_path / 'a.csv'}", label_column="y"),
        Data(source=f"images:{tmp_path / 'images'}"),
        Data(source=f"idx:{tmp_path}"),
    ):
        assert read_source(data).train.y.tolist() == [0, 1]
