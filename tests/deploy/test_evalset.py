from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.errors import UserError
from deploy.evalset import EvalSet, pair, read_arrays

NPY = b"\x93NUMPY\x01\x00"


def npz(folder: Path, **arrays: object) -> Path:
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return path


@given(
    x=hnp.arrays(
        st.sampled_from([np.uint8, np.float32, np.int64]),
        st.just(3).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, 4), st.integers(1, 4))),
    ),
    y=hnp.arrays(np.int64, 3, elements=st.integers(0, 2**40)),
)
def test_a_saved_set_is_read_back_unchanged(tmp_path_factory, x, y):
    path = tmp_path_factory.mktemp("set") / "evalset"  # no suffix: none may be added
    EvalSet(x=x, y=y).save(path)
    back = EvalSet.load(path)
    np.testing.assert_array_equal(back.x, x)
    np.testing.assert_array_equal(back.y, y)
    assert (back.x.dtype, back.y.dtype) == (x.dtype, np.int64)


def test_a_test_part_under_its_keras_names_is_read(tmp_path):
    path = npz(tmp_path, x_train=[[9]], y_train=[9], x_test=[[1], [2]], y_test=np.uint8([0, 1]))
    assert EvalSet.load(path).x.tolist() == [[1], [2]]


def test_a_column_of_classes_is_read_as_classes(tmp_path):
    assert EvalSet.load(npz(tmp_path, x=[[1], [2]], y=[[0], [1]])).y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arrays", "why_not"),
    [
        ({"x": [[1]], "z": [1]}, "needs arrays named x, y or x_test, y_test; got x, z"),
        ({}, "got none"),
        ({"x": [[1], [2]], "y": [0]}, r"must pair.*x \(2, 1\) and y \(1,\)"),
        ({"x": [[1], [2]], "y": [[0, 1], [1, 0]]}, r"one integer class a sample.*y \(2, 2\)"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, r"must pair.*x \(0, 2\)"),
        ({"x": 1, "y": 1}, r"must pair.*x \(\) and y \(\)"),
        ({"x": [[1]], "y": [0.5]}, "integer classes counted from 0, got float64"),
        ({"x": [[1], [2]], "y": [0, -3]}, "count from 0, got -3 at index 1 of y"),
        (
            {"x": [[1], [2]], "y": np.uint64([0, 2**64 - 1])},
            r"below 2\*\*63, got 18446744073709551615 at index 1 of y",
        ),
        ({"x": [["a"]], "y": [0]}, "x must hold real numbers, got <U1"),
        ({"x": [[1]], "y": ["a"]}, "y must hold real numbers, got <U1"),
        ({"x": [[1j]], "y": [0]}, "x must hold real numbers, got complex128"),
        ({"x": np.array([[{}]]), "y": [0]}, "Python objects are refused"),
    ],
)
def test_arrays_that_are_no_evaluation_set_are_refused(tmp_path, arrays, why_not):
    path = npz(tmp_path, **arrays)
    with pytest.raises(UserError, match=why_not) as caught:
        EvalSet.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.npz: no such file"):
        EvalSet.load(tmp_path / "absent.npz")


def test_a_folder_is_not_a_set(tmp_path):
    with pytest.raises(UserError, match=r"not a readable \.npz file"):
        EvalSet.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", pickle.dumps([1]), NPY])
def test_another_kind_of_file_is_not_a_set(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npz: not an \.npz file"):
        EvalSet.load(path)


def test_packed_data_that_do_not_unpack_are_refused(tmp_path):
    path = tmp_path / "set.npz"
    EvalSet(x=np.zeros((9, 9)), y=np.zeros(9, np.int64)).save(path)
    content = bytearray(path.read_bytes())
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    content[start : start + 9] = b"\xff" * 9  # no deflate stream begins so
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"set\.npz: not a readable \.npz file"):
        EvalSet.load(path)


@given(st.data())
def test_a_damaged_file_is_refused_or_read(tmp_path_factory, data):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(40).reshape(4, 10), y=[0, 1, 2, 3])
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.mktemp("damaged") / "set.npz"
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # anything else fails the test
        EvalSet.load(path)


def repacked(path, old, new):
    """Replace bytes of the parts of an ``.npz``, and give it checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(old, new))
    return path


def test_a_header_that_is_no_python_is_one_line(tmp_path):
    path = repacked(npz(tmp_path, x=[[1]], y=[0]), b"{'descr'", b"((('descr")
    with pytest.raises(UserError, match=r"set\.npz: not a readable \.npz file") as caught:
        EvalSet.load(path)
    assert "\n" not in str(caught.value)


def test_300_sets_with_damaged_headers_are_refused_or_read(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "set.npz"
    refused = []
    for _ in range(300):
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in (("x", np.arange(40).reshape(4, 10)), ("y", np.arange(4))):
                buffer = io.BytesIO()
                np.save(buffer, array)
                content = bytearray(buffer.getvalue())
                content[rng.integers(128)] = rng.integers(256)  # the header is 128 bytes long
                archive.writestr(f"{name}.npy", content)
        try:
            EvalSet.load(path)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in line for line in refused)


def test_the_first_group_of_arrays_that_is_whole_is_read(tmp_path):
    path = npz(tmp_path, a=[1], b=[2], c=[3])
    assert [array.tolist() for array in read_arrays(path, ("a", "z"), ("c", "a"), ("b",))] == [
        [3],
        [1],
    ]


def test_classes_that_pair_come_back_as_int64():
    assert pair(np.zeros((2, 1)), np.uint8([1, 0]), where="here").y.dtype == np.int64
