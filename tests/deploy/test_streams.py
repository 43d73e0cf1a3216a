from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import streams
from deploy.errors import UserError
from deploy.evalset import EvalSet, pair, read_arrays
from deploy.streams import Chosen, FileArray, Mapped, Spool, blocks, choose, open_npy

X = np.arange(40 * 3, dtype=np.int16).reshape(40, 3)


def on_disk(x: np.ndarray) -> FileArray:
    spool = Spool(memory_bytes=0)
    for start in range(0, len(x), 7):
        spool.add(x[start : start + 7])
    found = spool.finish()
    assert isinstance(found, FileArray)
    return found


indices = st.one_of(
    st.slices(40),
    st.integers(-40, 39),
    st.lists(st.integers(-40, 39), max_size=8).map(lambda i: np.array(i, np.int64)),
    st.lists(st.booleans(), min_size=40, max_size=40).map(np.array),
)
STREAM = on_disk(X)


@given(indices)
def test_a_stream_gives_what_its_array_would_give(index):
    got = STREAM[index]
    np.testing.assert_array_equal(got, X[index])
    assert got.dtype == X.dtype
    assert got.shape == X[index].shape


@given(st.lists(st.integers(0, 39), min_size=1, max_size=9), st.data())
def test_chosen_and_mapped_samples_are_those_of_the_array(numbers, data):
    chosen = choose(STREAM, np.array(numbers))
    mapped = Mapped(chosen, lambda block: block[:, :2] * np.float32(0.5))
    assert isinstance(chosen, Chosen)
    assert mapped.shape == (len(numbers), 2)
    assert mapped.dtype == np.float32
    index = data.draw(st.slices(len(numbers)))
    np.testing.assert_array_equal(chosen[index], X[numbers][index])
    np.testing.assert_array_equal(mapped[index], X[numbers][index][:, :2] * np.float32(0.5))


def test_numpy_takes_a_stream_whole():
    np.testing.assert_array_equal(np.asarray(STREAM), X)
    np.testing.assert_array_equal(np.concatenate(list(blocks(STREAM))), X)


@pytest.mark.parametrize("index", [40, -41, [0, 40], np.ones(39, np.bool_)])
def test_a_sample_that_is_not_there_is_refused(index):
    with pytest.raises(IndexError):
        STREAM[index]


def test_few_samples_stay_in_memory():
    spool = Spool(memory_bytes=X.nbytes)
    spool.add(X[:30])
    spool.add(X[30:])
    assert isinstance(spool.finish(), np.ndarray)
    np.testing.assert_array_equal(spool.finish(), X)


def test_the_blocks_do_not_depend_on_where_the_samples_are(monkeypatch):
    monkeypatch.setattr(streams, "_BLOCK_BYTES", 60)
    sizes = [[len(block) for block in blocks(x)] for x in (X, STREAM)]
    assert sizes[0] == sizes[1] == [10] * 4


def test_nothing_is_left_in_the_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    stream = on_disk(X)
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(stream[:], X)


def test_a_scratch_folder_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(
        UserError, match=r"/nowhere: cannot hold .*set TMPDIR to a folder with room"
    ):
        on_disk(X)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(monkeypatch):
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(streams, "scratch_file", lambda: full)
        with pytest.raises(UserError, match="no room on disk"):
            on_disk(X)


@pytest.mark.parametrize(
    ("change", "why_not"),
    [
        (lambda data: data[:-1], "cut off, 1 bytes are missing"),
        (lambda data: b"PK" + data, "magic string"),
    ],
)
def test_a_damaged_npy_file_is_refused(tmp_path, change, why_not):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.npy").write_bytes(change((tmp_path / "x.npy").read_bytes()))
    with pytest.raises(ValueError, match=why_not):
        open_npy(tmp_path / "x.npy")


def test_objects_and_columns_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(X))
    with pytest.raises(ValueError, match="stored by columns"):
        open_npy(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        open_npy(tmp_path / "x.npy")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_large_array_of_an_npz_is_read_from_disk(tmp_path, write):
    write(tmp_path / "a.npz", x=X, y=np.arange(40))
    x, y = read_arrays(tmp_path / "a.npz", ("x", "y"), memory_bytes=X.nbytes)
    assert isinstance(x, FileArray)
    np.testing.assert_array_equal(x[3:5], X[3:5])
    assert pair(x, np.asarray(y), where="here").x is x


def test_a_large_array_with_a_flipped_bit_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.arange(40))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(X.tobytes()) + 5] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz: not a readable \.npz file \(Bad CRC-32"):
        read_arrays(tmp_path / "a.npz", ("x", "y"), memory_bytes=10)


def test_a_set_with_a_stream_is_saved_as_the_same_arrays(tmp_path):
    EvalSet(x=on_disk(X), y=np.arange(40)).save(tmp_path / "s.npz")
    EvalSet(x=X, y=np.arange(40)).save(tmp_path / "a.npz")
    for name in ("s.npz", "a.npz"):
        with np.load(tmp_path / name) as arrays:
            np.testing.assert_array_equal(arrays["x"], X)
            np.testing.assert_array_equal(arrays["y"], np.arange(40))
            assert arrays["x"].dtype == X.dtype
    with zipfile.ZipFile(tmp_path / "s.npz") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_a_file_that_shrinks_is_told():
    file = io.BytesIO(X.tobytes())
    stream = FileArray(file, X.shape, X.dtype)
    file.truncate(100)
    with pytest.raises(UserError, match="became shorter"):
        stream[:]
