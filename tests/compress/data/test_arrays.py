from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from compress.data.arrays import read_idx, read_npz
from deploy.errors import UserError

X = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
WIDE = X.astype(int) * 1000
Y = np.array([0, 1, 1], np.uint8)


def idx(array: np.ndarray, *, code: int = 8, dtype: str = ">u1") -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(dtype).tobytes()


def write_idx(folder: Path, part: str, *, suffix: str = "", x: np.ndarray = X, y: np.ndarray = Y):
    pack = gzip.compress if suffix else bytes
    (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(x)))
    (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(y)))


def test_an_npz_with_a_test_part_keeps_it(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:1], y_test=Y[:1])
    source = read_npz(tmp_path / "a.npz")
    assert source.test is not None
    np.testing.assert_array_equal(source.train.x, X)
    np.testing.assert_array_equal(source.test.x, X[:1])
    assert source.labels == ("0", "1")
    assert source.licence == "unknown"


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("x", "y")])
def test_an_npz_of_one_part_has_no_test_part(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)))
    source = read_npz(tmp_path / "a.npz")
    assert source.test is None
    assert source.train.y.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("y", "why_not"),
    [
        ([0, 2, 2], "none of class 1 and a largest of 2; number them anew"),
        ([1, 2, 3], "none of class 0 and a largest of 3"),
        ([0, 1, 2**62], f"none of class 2 and a largest of {2**62}"),
        ([0, 1], r"training part: x and y must pair.*\(3, 2, 2\) and y \(2,\)"),
        ([0, 1, -1], "count from 0, got -1 at index 2"),
        ([0, 1, 0.5], "integer classes counted from 0, got float64"),
        (np.array([0, 1, None]), "Python objects are refused"),
    ],
)
def test_classes_that_do_not_count_from_0_are_refused(tmp_path, y, why_not):
    np.savez(tmp_path / "a.npz", x=X, y=y)
    with pytest.raises(UserError, match=rf"a\.npz: .*{why_not}"):
        read_npz(tmp_path / "a.npz")


def test_an_npz_that_lacks_its_arrays_lists_what_it_has(tmp_path):
    np.savez(tmp_path / "a.npz", images=X, y=Y)
    with pytest.raises(UserError, match=r"x_train, y_train or x, y; got images, y"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_plain_and_compressed(tmp_path, suffix):
    write_idx(tmp_path, "train", suffix=suffix)
    write_idx(tmp_path, "t10k", suffix=suffix, x=X[1:], y=Y[1:])
    source = read_idx(tmp_path)
    assert source.test is not None
    np.testing.assert_array_equal(source.train.x, X)
    np.testing.assert_array_equal(source.test.x, X[1:])
    assert (source.train.x.dtype, source.train.y.tolist()) == (np.uint8, [0, 1, 1])


def test_idx_files_of_a_wider_type_are_read_in_the_order_of_this_machine(tmp_path):
    write_idx(tmp_path, "train")
    wide = idx(WIDE, code=12, dtype=">i4")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(wide)
    source = read_idx(tmp_path)
    assert source.train.x.dtype == np.dtype("=i4")
    np.testing.assert_array_equal(source.train.x, WIDE)
    assert source.test is None


@pytest.mark.parametrize(
    ("content", "why_not"),
    [
        (b"", "not an idx file, it begins with 0x$"),
        (b"\x89PNG....", "not an idx file, it begins with 0x89504e47"),
        (b"\0\0\x08\x03\0\0", "damaged"),
        (idx(X)[:-1], "damaged, its header promises 28 bytes and it has 27"),
        (idx(X) + b"\0", "damaged, its header promises 28 bytes and it has 29"),
        (
            b"\0\0\x08\x03" + b"\xff" * 12,
            f"damaged, its header promises {16 + (2**32 - 1) ** 3} bytes",
        ),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, content, why_not):
    write_idx(tmp_path, "train")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=rf"train-images-idx3-ubyte: {why_not}"):
        read_idx(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"plain", gzip.compress(b"abc", mtime=0)[:-9], b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 9],
)
def test_a_damaged_gz_file_is_named(tmp_path, content):
    write_idx(tmp_path, "train", suffix=".gz")
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz: not a readable file"):
        read_idx(tmp_path)


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_a_missing_idx_file_is_named(tmp_path, name):
    write_idx(tmp_path, "train")
    write_idx(tmp_path, "t10k")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file, plain or .gz"):
        read_idx(tmp_path)
